#!/usr/bin/env python3
"""Runs mlx-lm, or llama.cpp, and mlxbatch side by side on the same JSONL, interleaved, and prints the ratios.

Owns the rounds, the metrics, the bars and the table. Leaves running and measuring one side to
sides.py, and how the other program is driven and counted to mlx_lm_run.py and llama_cpp_run.py.
Standard library only.
"""
# The two programs run by turns, A B A B …, each time in a new process, so that a slow minute of the
# machine hits both and the ratio of a round survives it. Ratios are mlxbatch / the other, one a round.
#
# - prefill tokens/s: prompt tokens really computed, over the time in prefill. Tokens that came from
#   a cache or a shared prefix are in neither, so this is the speed of the computation alone.
# - decode tokens/s: tokens generated, over the time in decode steps. Both count the same tokens:
#   where mlxbatch's count leaves out the EOS tokens, they are taken out of mlx-lm's count too.
# - decode tokens/s, all overhead: the same tokens over everything that is not prefill: reading,
#   templates, tokenizing, batching, detokenizing, writing.
# - run seconds: from the loaded model to the last answer. Process seconds: start to exit.
# - peak memory: the largest resident set of the process, as the kernel has it.
#
# Both get the same lines, chat template, max_tokens, EOS tokens, batch width, greedy sampling, f32
# weights and number of BLAS threads. On Linux mlx-lm gets OpenBLAS preloaded, since its wheel's own
# BLAS is some forty times slower; --stock measures that one too, on a few lines.
#
# llama.cpp gets the same lines, width and greedy sampling, and both sides the same GGUF file; it computes
# with the quantised weights, so that answers differ, and has no times of its own to compare.

import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

import sides

PREFILL, DECODE, WHOLE = "prefill, tokens/s", "decode, tokens/s", "whole process, s"


def metrics(figures, num_generated):
    """The compared figures of one run of one side, by name."""
    whole = {
        "run without loading, s": figures["run_seconds"],
        WHOLE: figures["process_seconds"],
        "peak memory, MiB": figures["peak_rss_bytes"] / 2**20,
    }
    if "prefill_seconds" not in figures:
        return whole
    decode_and_overhead_seconds = figures["run_seconds"] - figures["prefill_seconds"]
    return {
        PREFILL: rate(figures["num_prefilled_tokens"], figures["prefill_seconds"]),
        DECODE: rate(num_generated, figures["decode_step_seconds"]),
        "decode, all overhead, tokens/s": rate(num_generated, decode_and_overhead_seconds),
        **whole,
    }


# What the project asks for: at least, or at most, this ratio; of llama.cpp by the file of conversations.
BARS = {PREFILL: (">=", 1.0), DECODE: (">=", 1.0), "peak memory, MiB": ("<=", 1.0)}
BARS_OF_LLAMA_CPP = {
    "humaneval.jsonl": {WHOLE: ("<=", 0.75)},
    "gsm8k_8shot.jsonl": {WHOLE: ("<=", 0.30)},
}
STOCK_BAR = (">=", 10.0)


def rate(count, seconds):
    return count / seconds if seconds > 0 else 0.0


def arguments():
    parser = sides.parser_of(__doc__.split("\n")[0])
    sides.add_run_flags(parser, "humaneval.jsonl", rounds=3)
    sides.add_llama_cpp_flags(parser)
    add = parser.add_argument
    add("--stock", action="store_true", help="also measure prefill of mlx-lm without OpenBLAS")
    add("--stock-lines", type=int, default=4, metavar="N", help="on how many lines (default 4)")
    positive = ("rounds", "max_tokens", "batch_size", "stock_lines")
    options = sides.parse(parser, positive, [("data", "it must be a JSONL file")])
    if options.stock and (options.only or options.against != "mlx-lm" or sys.platform != "linux"):
        parser.error("--stock compares with mlx-lm on Linux: leave out --only and --against, run it on Linux")
    if options.check and options.only:
        parser.error("--check compares both sides: leave out --only")
    return options


def say(text):
    print(text, file=sys.stderr, flush=True)


def run_rounds(options, data, openblas):
    """All rounds: a list of {side: figures}."""
    others = {
        "mlx-lm": lambda: sides.run_mlx_lm(options, data, options.max_tokens, openblas),
        "llama.cpp": lambda: sides.run_llama_cpp(options, data, options.max_tokens),
    }
    runners = {
        options.against: others[options.against],
        "mlxbatch": lambda: sides.run_mlxbatch(options, data, options.max_tokens),
    }
    rounds = []
    for number in range(1, options.rounds + 1):
        one = {"load_average": os.getloadavg()[0]}
        for side, runner in runners.items():
            if options.only in (None, side):
                one[side] = runner()
                say(f"round {number} of {options.rounds}: {side} took {one[side]['process_seconds']:.1f} s")
        rounds.append(one)
    return rounds


def run_stock(options, data, few_lines):
    """Prefill of stock mlx-lm and of mlxbatch on the same few lines, one token each."""
    sides.first_lines(data, options.stock_lines, few_lines)
    say(f"stock mlx-lm on {options.stock_lines} lines: slow, a minute or more")
    ours = sides.run_mlxbatch(options, few_lines, 1)
    theirs = sides.run_mlx_lm(options, few_lines, 1, None)
    return {"mlx-lm": theirs, "mlxbatch": ours}


def compare_answers(theirs, ours):
    """How many answers agree, and whether mlxbatch counts EOS as a generated token."""
    if len(theirs) != len(ours):
        raise sides.SideError(f"mlx-lm answered {len(theirs)} lines and mlxbatch {len(ours)}")
    different = [i + 1 for i, (a, b) in enumerate(zip(theirs, ours)) if a["text"] != b["text"]]
    agreeing = [(a, b) for a, b in zip(theirs, ours) if a["text"] == b["text"]]
    excess = {b["num_tokens"] - a["num_tokens"] for a, b in agreeing if a["stopped"] and b["stopped"]}
    odd = [b for a, b in agreeing if not a["stopped"] and not b["stopped"] and a["num_tokens"] != b["num_tokens"]]
    if odd or not excess <= {0, 1} or len(excess) > 1:
        raise sides.SideError("equal answers have different token counts: the two sides do not count the same tokens")
    # None where no answer shows it, since none ended with EOS on both sides.
    counts_eos = (1 in excess) if excess else None
    return {"num_equal": len(agreeing), "different_lines": different, "counts_eos": counts_eos}


def comparable(rounds, options):
    """The metrics of every round and side, over tokens that both sides count alike, and the answers."""
    if options.only:
        answers, counts_eos = None, True
    elif options.against == "llama.cpp":
        pairs = zip(rounds[0][options.against]["answers"], rounds[0]["mlxbatch"]["answers"], strict=True)
        different = [number for number, (a, b) in enumerate(pairs, 1) if a["text"] != b["text"]]
        num_equal = len(rounds[0]["mlxbatch"]["answers"]) - len(different)
        answers, counts_eos = {"num_equal": num_equal, "different_lines": different, "counts_eos": None}, True
    else:
        answers = compare_answers(rounds[0]["mlx-lm"]["answers"], rounds[0]["mlxbatch"]["answers"])
        counts_eos = answers["counts_eos"]
    measured = []
    for one in rounds:
        row = {}
        for side in (options.against, "mlxbatch"):
            if side in one:
                figures = one[side]
                num_stopped = sum(x["stopped"] for x in figures["answers"])
                leave_out = num_stopped if side == "mlx-lm" and counts_eos is False else 0
                row[side] = metrics(figures, figures["num_generated_tokens"] - leave_out)
        measured.append(row)
    return measured, answers


def spread(values, digits=None):
    """'median (min–max)'."""
    digits = digits if digits is not None else (0 if max(values) >= 1000 else 1)
    middle, low, high = (f"{x:,.{digits}f}" for x in (statistics.median(values), min(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low}–{high})"


def verdict(ratios, bar):
    """The bar in words with pass or FAIL, judged by the median, and whether it is met."""
    sign, limit = bar
    met = statistics.median(ratios) >= limit if sign == ">=" else statistics.median(ratios) <= limit
    return f"{'≥' if sign == '>=' else '≤'} {limit:g}: {'pass' if met else 'FAIL'}", met


def table(measured, stock, options):
    """The Markdown table's lines, and whether all bars are met."""
    if options.only:
        lines = [f"| median (min–max) of {options.rounds} | {options.only} |", "|---|--:|"]
        columns = [m[options.only] for m in measured]
        lines += [f"| {name} | {spread([column[name] for column in columns])} |" for name in columns[0]]
        return lines, True
    other = options.against
    bars = BARS if other == "mlx-lm" else BARS_OF_LLAMA_CPP.get(options.data.name, {})
    lines = [f"| median (min–max) of {options.rounds} | {other} | mlxbatch | ratio | bar |", "|---|--:|--:|--:|---|"]
    all_met = True
    for name in measured[0][other]:
        theirs, ours = ([m[side][name] for m in measured] for side in (other, "mlxbatch"))
        ratios = [rate(b, a) for a, b in zip(theirs, ours)]
        text, met = verdict(ratios, bars[name]) if name in bars else ("", True)
        all_met = all_met and met
        lines.append(f"| {name} | {spread(theirs)} | {spread(ours)} | {spread(ratios, 2)} | {text} |")
    if stock:
        theirs, ours = (metrics(stock[side], 0)[PREFILL] for side in ("mlx-lm", "mlxbatch"))
        text, met = verdict([rate(ours, theirs)], STOCK_BAR)
        all_met = all_met and met
        name = f"{PREFILL}, against stock mlx-lm on {options.stock_lines} lines"
        lines.append(f"| {name} | {spread([theirs])} | {spread([ours])} | {spread([rate(ours, theirs)], 1)} | {text} |")
    return lines, all_met


def notes(rounds, answers, options):
    """What a reader must know to believe the table: token counts, agreement, versions, load."""
    lines = []
    for side in (options.against, "mlxbatch"):
        if side in rounds[0]:
            f = rounds[0][side]
            lines.append(
                f"- {side}: {f['num_prompt_tokens']:,} prompt tokens, {f['num_prefilled_tokens']:,} of them computed "
                f"in prefill, {f['num_generated_tokens']:,} generated; {f['load_seconds']:.1f} s to load"
            )
    if answers:
        num_different = len(answers["different_lines"])
        where = f" (lines {', '.join(map(str, answers['different_lines'][:20]))})" if num_different else ""
        lines.append(f"- answers: {answers['num_equal']} equal, {num_different} different{where}")
        if answers["counts_eos"] is not None:
            counted = "counted" if answers["counts_eos"] else "not counted"
            lines.append(f"- end-of-sequence tokens are {counted} as generated on both sides")
    if "llama.cpp" in rounds[0]:
        lines.append(f"- xllamacpp {rounds[0]['llama.cpp']['versions']['xllamacpp']}, {pathlib.Path(options.gguf).name}")
    if "mlx-lm" in rounds[0]:
        f = rounds[0]["mlx-lm"]
        versions = ", ".join(f"{name} {version}" for name, version in f["versions"].items())
        lines.append(f"- {versions}, {f['device']}, BLAS {f['openblas'] or 'its own'}"
                     f"{' with the kernels of ' + f['openblas_kernels'] if f['openblas_kernels'] else ''}")
        own = [[x["mlx-lm"][k] for x in rounds] for k in ("prompt_tps_of_mlx_lm", "generation_tps_of_mlx_lm")]
        lines.append(f"- as mlx-lm itself counts: {spread(own[0])} prompt and {spread(own[1])} generation tokens/s")
    if "mlxbatch" in rounds[0]:
        commit = sides.first_line(["git", "describe", "--always", "--dirty"])
        lines.append(f"- {sides.first_line([options.mlxbatch, '--version'])}, commit {commit}")
    load = rounds[0]["load_average"]
    if load > 0.5:
        lines.append(f"- warning: the machine was busy before the first round (load {load:.1f}); times are rough")
    return lines


def main():
    options = arguments()
    try:
        openblas = (options.openblas or sides.find_openblas()) if options.against == "mlx-lm" else None
        with tempfile.TemporaryDirectory(prefix="mlxbatch-bench-") as folder:
            data = pathlib.Path(folder, options.data.name)
            num_lines = sides.first_lines(options.data, options.limit, data)
            rounds = run_rounds(options, data, openblas)
            stock = run_stock(options, data, pathlib.Path(folder, "stock.jsonl")) if options.stock else None
        measured, answers = comparable(rounds, options)
    except (sides.SideError, OSError) as error:
        sys.exit(f"compare.py: error: {error}")
    lines, all_met = table(measured, stock, options)
    head = f"{options.data.name}, {num_lines} lines, {options.max_tokens} new tokens, batch {options.batch_size}"
    head += time.strftime(", %Y-%m-%d")
    print("\n".join([head, sides.machine(), "", *lines, "", *notes(rounds, answers, options)]))
    if options.json:
        everything = {
            "options": {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in vars(options).items()},
            "machine": sides.machine(), "answers": answers, "metrics": measured, "rounds": rounds, "stock": stock,
        }
        options.json.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.check and not all_met:
        sys.exit(1)


if __name__ == "__main__":
    main()
