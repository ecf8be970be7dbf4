#!/usr/bin/env python3
"""What the prompt cache costs where there is little to share: the same input with it and without.

Owns the pairs, the bar and the table. Leaves running and measuring to sides.py. Standard library only.
"""
# Each round runs both, in turns first, each in a new process. The bar is on the median of the rounds'
# ratios: machines change their speed between rounds more than within one.

import pathlib
import statistics
import sys
import tempfile
import time

import sides

MAX_RATIO = 1.02


def arguments():
    parser = sides.parser_of(__doc__.split("\n")[0])
    sides.add_run_flags(parser, "humaneval.jsonl", rounds=5)
    return sides.parse_for_mlxbatch(parser, "mlx-lm's batches have no prompt cache")


def main():
    options = arguments()
    flags = {"with": (), "without": ("--cache-bytes", "0")}
    rounds = []
    try:
        with tempfile.TemporaryDirectory(prefix="mlxbatch-bench-") as folder:
            data = pathlib.Path(folder, "in.jsonl")
            num_lines = sides.first_lines(options.data, options.limit, data)
            for number in range(options.rounds):
                names = list(flags) if number % 2 == 0 else list(reversed(flags))
                rounds.append({name: sides.run_mlxbatch(options, data, options.max_tokens, flags[name]) for name in names})
                seconds = ", ".join(f"{name} {rounds[-1][name]['process_seconds']:.1f} s" for name in flags)
                print(f"round {number + 1} of {options.rounds}: {seconds}", file=sys.stderr, flush=True)
    except (sides.SideError, OSError) as error:
        sys.exit(f"cache_overhead.py: error: {error}")
    of = lambda name, key: [one[name][key] for one in rounds]
    ratios = [a / b for a, b in zip(of("with", "process_seconds"), of("without", "process_seconds"))]
    is_met = statistics.median(ratios) <= MAX_RATIO
    print(f"{options.data.name}, {num_lines} lines, {options.max_tokens} new tokens, batch {options.batch_size}"
          + time.strftime(", %Y-%m-%d"))
    print(sides.machine())
    print("\n| median (min–max) | with the cache | without |\n|---|--:|--:|")
    for title, key, unit in [("whole process, s", "process_seconds", 1), ("prompt tokens computed", "num_prefilled_tokens", 1),
                             ("peak memory, MiB", "peak_rss_bytes", 2**20)]:
        cells = [[value / unit for value in of(name, key)] for name in flags]
        print(f"| {title} | " + " | ".join(f"{statistics.median(x):,.1f} ({min(x):,.1f}–{max(x):,.1f})" for x in cells) + " |")
    same = all(one["with"]["answers"] == one["without"]["answers"] for one in rounds)
    print(f"\n- with it a run takes {statistics.median(ratios):.3f} of the time without "
          f"({min(ratios):.2f}–{max(ratios):.2f}), ≤ {MAX_RATIO}: {'pass' if is_met else 'FAIL'}")
    print(f"- answers: {'the same' if same else 'DIFFERENT'}")
    if options.check and not (is_met and same):
        sys.exit(1)


if __name__ == "__main__":
    main()
