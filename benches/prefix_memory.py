#!/usr/bin/env python3
"""Peak memory of mlxbatch and mlx-lm when all requests of a batch share one long prefix.

Owns the input, the expectation and the table. Leaves running and measuring one side to sides.py.
Standard library only.
"""
# Each side runs three times, each time in a new process:
#
# - short: a single request without the prefix. Its peak holds weights, code and little working memory.
# - plain: all requests without the prefix: in addition the working memory of prefilling and decoding
#   so many rows together, and their tails.
# - batch: all of them with the prefix.
#
# What the batch takes over the others is set against the KV that has to be there:
#
#   over plain: one prefix * KV bytes of a token + 20 %
#   over short: (one prefix + as many tails as run together) * KV bytes of a token + 20 %
#
# The first is what the prefix itself costs. The second is strict: it leaves no room for the working
# memory of a batch, which is there without any prefix too. Both are judged. A tail is what a request
# has to itself: the end of its question, the template's words after it, its answer. Its size is counted
# from what mlxbatch reports, so that no tokenizer is needed here. A program that keeps a copy of the
# prefix for each row is over either expectation by about the batch size.
#
# mlx-lm computes the prefix once for each request: on a CPU of two cores SmolLM2 takes it most of an
# hour and 21 GiB, so give it --requests 8 --batch-size 8, or mlxbatch alone with --only, for a first look.

import json
import pathlib
import sys
import tempfile
import time

import sides

# The generated prefix: common words, in SmolLM2's vocabulary a token each, of which no two lines of
# ten are the same.
WORDS = (
    "water stone light river house garden winter summer morning evening table window letter answer "
    "question number music school market village mountain forest island harbor bridge castle engine"
).split()

TOPICS = "bread rain iron paper glass salt wool coffee silver honey maps clocks bees trains boats kites".split()


def arguments():
    parser = sides.parser_of(__doc__.split("\n")[0])
    add = parser.add_argument
    add("--requests", type=int, default=64, help="requests that share the prefix (default 64)")
    add("--prefix-tokens", type=int, default=2000, help="tokens of the prefix, about (default 2000)")
    add("--max-tokens", type=int, default=16, help="new tokens a request (default 16)")
    add("--batch-size", type=int, default=32, help="sequences prefilled and decoded together (default 32)")
    add("--check", action="store_true", help="exit with 1 when mlxbatch takes more than either expectation")
    positive = ("requests", "prefix_tokens", "max_tokens", "batch_size")
    # Its configuration says how many bytes a token takes, whichever side runs.
    options = sides.parse(parser, positive, [("model_folder", "run scripts/setup.sh reference")])
    if options.check and options.only == "mlx-lm":
        parser.error("--check is about mlxbatch: leave out --only mlx-lm")
    return options


def kv_bytes_per_token(model_folder):
    """Keys and values of one token in all layers, in float32, as both sides hold them."""
    config = json.loads(pathlib.Path(model_folder, "config.json").read_text(encoding="utf-8"))
    num_heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
    return config["num_hidden_layers"] * config.get("num_key_value_heads", num_heads) * head_dim * 2 * 4


def prefix(num_tokens):
    """A text of about so many tokens that repeats no line."""
    count, lines = 0, []
    while count < num_tokens:
        number = len(lines)
        line = [WORDS[(number * 7 + place * (1 + number % 5)) % len(WORDS)] for place in range(18)]
        lines.append(" ".join(line) + ".")
        # A token for each word, and one for the full stop and one for the end of the line.
        count += len(line) + 2
    return "\n".join(lines)


def write_input(path, system, questions):
    """Writes one conversation a line; no system message where there is none."""
    with open(path, "w", encoding="utf-8") as out:
        for number, question in enumerate(questions):
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": question})
            out.write(json.dumps({"id": str(number), "messages": messages}) + "\n")


def measure(options, folder):
    """Figures of the runs of each side: {side: {"short": …, "plain": …, "batch": …}}."""
    questions = [f"What do you know about {TOPICS[i % len(TOPICS)]}, item {i}?" for i in range(options.requests)]
    system = prefix(options.prefix_tokens)
    inputs = {"short": ("", questions[:1]), "plain": ("", questions), "batch": (system, questions)}
    for name, (system, asked) in inputs.items():
        write_input(pathlib.Path(folder, f"{name}.jsonl"), system, asked)
    openblas = options.openblas or sides.find_openblas()
    runners = {
        "mlx-lm": lambda data: sides.run_mlx_lm(options, data, options.max_tokens, openblas),
        "mlxbatch": lambda data: sides.run_mlxbatch(options, data, options.max_tokens),
    }
    figures = {}
    for side, runner in runners.items():
        if options.only in (None, side):
            figures[side] = {}
            for name in inputs:
                figures[side][name] = runner(pathlib.Path(folder, f"{name}.jsonl"))
                seconds = figures[side][name]["process_seconds"]
                print(f"{side}, {name}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return figures


def expectation(options, figures):
    """Tokens of the prefix and of a tail, and the bytes expected over each of the other runs."""
    batch = next(iter(figures.values()))["batch"]
    num_requests, num_prompt_tokens = batch["num_requests"], batch["num_prompt_tokens"]
    ours = figures.get("mlxbatch")
    if ours:
        # Tokens that begin at least two prompts are counted once in the unique ones.
        num_prefix = (num_prompt_tokens - ours["batch"]["num_unique_tokens"]) / (num_requests - 1)
    else:
        num_prefix = options.prefix_tokens
    tail = num_prompt_tokens / num_requests - num_prefix + options.max_tokens
    num_rows = min(options.batch_size, num_requests)
    kv_bytes = (num_prefix + num_rows * tail) * kv_bytes_per_token(options.model_folder)
    prefix_bytes = num_prefix * kv_bytes_per_token(options.model_folder)
    return num_prefix, tail, {"plain": 1.2 * prefix_bytes, "short": 1.2 * kv_bytes}


def main():
    options = arguments()
    try:
        with tempfile.TemporaryDirectory(prefix="mlxbatch-bench-") as folder:
            figures = measure(options, folder)
    except (sides.SideError, OSError) as error:
        sys.exit(f"prefix_memory.py: error: {error}")
    num_prefix, tail, expected = expectation(options, figures)
    mib = 2**20
    print(f"{options.requests} requests, prefix of {num_prefix:,.0f} tokens, tails of {tail:.0f}, batch "
          f"{options.batch_size}, {kv_bytes_per_token(options.model_folder):,} KV bytes a token"
          + time.strftime(", %Y-%m-%d"))
    print(sides.machine())
    print(f"\n| peak memory, MiB | {' | '.join(figures)} |\n|---|{'--:|' * len(figures)}")
    peaks = {side: {name: run["peak_rss_bytes"] for name, run in runs.items()} for side, runs in figures.items()}
    names = {"short": "one short request", "plain": "the batch without the prefix", "batch": "the batch"}
    rows = [(text, [peak[name] for peak in peaks.values()]) for name, text in names.items()]
    over = {base: {side: peak["batch"] - peak[base] for side, peak in peaks.items()} for base in expected}
    for base, num_bytes in expected.items():
        rows.append((f"the batch over {names[base]}", list(over[base].values())))
        rows.append(("at most expected", [num_bytes] * len(peaks)))
    for text, values in rows:
        print(f"| {text} | {' | '.join(f'{value / mib:,.0f}' for value in values)} |")
    is_met = True
    if "mlxbatch" in figures:
        shares = {base: over[base]["mlxbatch"] / num_bytes for base, num_bytes in expected.items()}
        is_met = max(shares.values()) <= 1
        print()
        for base, share in shares.items():
            print(f"- mlxbatch over {names[base]}: {'pass' if share <= 1 else 'FAIL'}, {share:.2f} of what is expected")
        cache = figures["mlxbatch"]["batch"]["cache"]
        if cache:
            print(f"- its prompt cache held {cache['peak_bytes'] / mib:,.0f} MiB at its peak")
    if options.json:
        everything = {
            "options": {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in vars(options).items()},
            "machine": sides.machine(), "expected_bytes": expected, "num_prefix_tokens": num_prefix,
            "num_tail_tokens": tail, "figures": figures,
        }
        options.json.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.check and not is_met:
        sys.exit(1)


if __name__ == "__main__":
    main()
