#!/usr/bin/env python3
"""What a cache file saves: the same input cold, then warm from the file that the cold run left.

Owns the rounds, the bars and the table. Leaves running and measuring to sides.py, and what saving and
opening a file cost by themselves to cache_file.rs. Standard library only.
"""
# Each round runs cold and warm, each in a new process. The time to the first token begins when the
# model is loaded: it holds templates and tokenizing, as far as loading took less time than they,
# planning, bringing in the stored prefixes of the first rows and their first decode pass, which costs
# as much warm as cold. It is set against what the cold run takes to prefill the largest shared prefix,
# at that run's own speed.

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import sides

MAX_FIRST_TOKEN, MAX_FILE_SIZE = 0.03, 1.05


def arguments():
    parser = sides.parser_of(__doc__.split("\n")[0])
    sides.add_run_flags(parser, "gsm8k_8shot.jsonl", rounds=3)
    return sides.parse_for_mlxbatch(parser, "only mlxbatch has a cache file")


def largest_shared_tokens(options, data):
    """Tokens of the largest prefix that prompts share, as `mlxbatch plan` counts them."""
    command = [options.mlxbatch, "plan", str(data), "--model", options.model, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise sides.SideError(f"mlxbatch plan ended with exit code {done.returncode}:\n{done.stderr}")
    shared = json.loads(done.stdout)["largest_shared"]
    if not shared:
        raise sides.SideError("the prompts share no prefix")
    return shared[0]["num_tokens"]


def main():
    options = arguments()
    rounds = []
    try:
        with tempfile.TemporaryDirectory(prefix="mlxbatch-bench-") as folder:
            data, cache = pathlib.Path(folder, "in.jsonl"), pathlib.Path(folder, "cache.bin")
            num_lines = sides.first_lines(options.data, options.limit, data)
            num_shared = largest_shared_tokens(options, data)
            for number in range(options.rounds):
                cache.unlink(missing_ok=True)
                cold, warm = (
                    sides.run_mlxbatch(options, data, options.max_tokens, ["--persist-cache", str(cache)])
                    for _ in range(2)
                )
                if [x["text"] for x in cold["answers"]] != [x["text"] for x in warm["answers"]]:
                    raise sides.SideError("the warm run has other answers than the cold one")
                rounds.append((cold, warm))
                print(f"round {number + 1} of {options.rounds}: {cold['process_seconds']:.1f} s cold, "
                      f"{warm['process_seconds']:.1f} s warm", file=sys.stderr, flush=True)
    except (sides.SideError, OSError) as error:
        sys.exit(f"warm_restart.py: error: {error}")

    cold_runs, warm_runs = [cold for cold, _ in rounds], [warm for _, warm in rounds]
    print(f"{options.data.name}, {num_lines} lines, {options.max_tokens} new tokens, "
          f"batch {options.batch_size}, medians of {options.rounds}" + time.strftime(", %Y-%m-%d"))
    print(sides.machine())
    print("\n| | cold | warm |\n|---|--:|--:|")
    for text, name in [("prompt tokens computed", "num_prefilled_tokens"), ("first token, s", "first_token_seconds"),
                       ("run without loading, s", "run_seconds"), ("whole process, s", "process_seconds")]:
        cold, warm = (statistics.median(run[name] for run in runs) for runs in (cold_runs, warm_runs))
        print(f"| {text} | {cold:,.4g} | {warm:,.4g} |")

    prefix_seconds = [num_shared / run["prefill_tokens_per_second"] for run in cold_runs]
    first_token = statistics.median(run["first_token_seconds"] / took for run, took in zip(warm_runs, prefix_seconds))
    file = cold_runs[0]["cache_file"]
    size = file["file_bytes"] / file["num_saved_bytes"]
    is_met = first_token <= MAX_FIRST_TOKEN and size <= MAX_FILE_SIZE
    print(f"\n- first token of a warm run: {first_token:.1%} of the {statistics.median(prefix_seconds):.2f} s that the shared prefix of "
          f"{num_shared} tokens takes cold (at most {MAX_FIRST_TOKEN:.0%}: {'pass' if first_token <= MAX_FIRST_TOKEN else 'FAIL'})")
    print(f"- file: {size:.3f} of its KV (at most {MAX_FILE_SIZE}: {'pass' if size <= MAX_FILE_SIZE else 'FAIL'})")
    print("- the same answers in all runs")
    if options.json:
        everything = {"machine": sides.machine(), "num_shared_tokens": num_shared, "rounds": rounds}
        options.json.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.check and not is_met:
        sys.exit(1)


if __name__ == "__main__":
    main()
