#!/usr/bin/env python3
"""All that a first hour with a GPU should try, in one command of under eight minutes: make gpu-check.

Owns which tests are run, on what models and requests the two sides are compared, and the table. Leaves
random weights to random_model.py, and running and measuring one side to sides.py.
"""
# First the tests of golden answers, segments and law 1, which compute on the GPU where MLX finds one. Then
# mlxbatch against mlx-lm on random weights of a real size, in bfloat16 and in 4 bits: 1, 8 and 32 rows
# that decode together, with prompts of their own or behind a shared prefix. Greedy, one run a side;
# decode is tokens generated over the time in decode steps, prefill prompt tokens computed over the time
# in prefill, and the whole is that from the loaded model to the last answer.

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import sides

TESTS = ("golden", "segments", "same_answer")
MODELS = {"bf16": [], "4-bit": ["--bits", "4"]}
WORDS = "water stone light river house garden winter summer morning evening table window letter answer".split()


def arguments():
    parser = sides.parser_of(__doc__.split("\n")[0])
    add = parser.add_argument
    add("--shapes", choices=("1b", "small"), default="1b", help="size of the models (default 1b: Llama 3.2 1B's)")
    add("--rows", type=int, nargs="+", default=[1, 8, 32], help="rows that decode together (default 1 8 32)")
    add("--prompt-tokens", type=int, default=200, help="a prompt's own tokens, about (default 200)")
    add("--prefix-tokens", type=int, default=1000, help="tokens of the shared prefix, about (default 1000)")
    add("--max-tokens", type=int, default=64, help="new tokens a request (default 64)")
    add("--skip-tests", action="store_true", help="compare only")
    options = sides.parse(parser, ("prompt_tokens", "prefix_tokens", "max_tokens"), [])
    if options.only:
        parser.error("--only makes no table: leave it out")
    return options


def device(options):
    """What mlxbatch says it computes on."""
    facts = subprocess.run([options.mlxbatch, "--version", "-v"], capture_output=True, text=True, check=False)
    if facts.returncode != 0:
        raise sides.SideError(f"mlxbatch does not start:\n{facts.stderr[-2000:]}")
    return "; ".join(line.strip() for line in facts.stdout.splitlines())


def run_tests():
    """Runs the tests that rest on the device; their output goes to the terminal."""
    command = ["cargo", "test", "--release", "--locked"]
    for name in TESTS:
        command += ["--test", name]
    began = time.perf_counter()
    passed = subprocess.run(command, cwd=sides.ROOT, check=False).returncode == 0
    return f"tests {', '.join(TESTS)}: {'passed' if passed else 'FAILED'} in {time.perf_counter() - began:.0f} s", passed


def text(num_tokens, seed):
    """Common words, a token each, that differ from seed to seed from the first line on."""
    words = [WORDS[(seed * 5 + place * (1 + seed % 3) + place // 7) % len(WORDS)] for place in range(num_tokens)]
    return f"{seed}: " + " ".join(words)


def write_requests(options, num_rows, is_shared, path):
    prefix = text(options.prefix_tokens, 0) + "\n" if is_shared else ""
    lines = [
        json.dumps({"id": str(row), "messages": [{"role": "user", "content": prefix + text(options.prompt_tokens, row + 1)}]})
        for row in range(num_rows)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def per_second(count, seconds):
    return f"{count / seconds:,.0f}" if seconds > 0 else "–"


def compare(options, model, num_rows, is_shared):
    """One line of the table."""
    data = model / "requests.jsonl"
    write_requests(options, num_rows, is_shared, data)
    options = argparse.Namespace(**{**vars(options), "batch_size": num_rows, "model": str(model), "model_folder": str(model)})
    theirs = sides.run_mlx_lm(options, data, options.max_tokens, options.preload)
    ours = sides.run_mlxbatch(options, data, options.max_tokens)
    num_equal = sum(a["text"] == b["text"] for a, b in zip(theirs["answers"], ours["answers"], strict=True))
    cells = [model.name, str(num_rows), "shared" if is_shared else "own"]
    for figures in (theirs, ours):
        cells.append(per_second(figures["num_prefilled_tokens"], figures["prefill_seconds"]))
        cells.append(per_second(figures["num_generated_tokens"], figures["decode_step_seconds"]))
        cells.append(f"{figures['run_seconds']:.2f}")
    cells += [f"{ours['run_seconds'] / theirs['run_seconds']:.2f}", f"{num_equal} of {num_rows}"]
    return "| " + " | ".join(cells) + " |"


def main():
    options = arguments()
    all_right, notes = True, []
    try:
        print(device(options), flush=True)
        options.preload = options.openblas or sides.find_openblas()
        if not options.skip_tests:
            note, all_right = run_tests()
            notes.append(note)
        lines = ["| model | rows | prompts | mlx-lm: prefill, tok/s | decode, tok/s | whole, s "
                 "| mlxbatch: prefill, tok/s | decode, tok/s | whole, s | ratio | equal answers |",
                 "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
        with tempfile.TemporaryDirectory(prefix="mlxbatch-gpu-") as folder:
            folder = pathlib.Path(folder)
            for name, flags in MODELS.items():
                made = folder / name
                command = [options.python, str(sides.HERE / "random_model.py"), str(made), options.model_folder]
                sides.run_child(command + ["--shapes", options.shapes, *flags], sides.environment_with(None), "random_model.py")
                for num_rows in options.rows:
                    for is_shared in (False, True):
                        lines.append(compare(options, made, num_rows, is_shared))
                        print(lines[-1], flush=True)
    except (sides.SideError, OSError) as error:
        sys.exit(f"gpu_check.py: error: {error}")
    print("\n".join(["", sides.machine(), *notes, "", *lines]))
    sys.exit(0 if all_right else 1)


if __name__ == "__main__":
    main()
