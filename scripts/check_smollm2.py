#!/usr/bin/env python3
"""Checks mlxbatch on a real model: SmolLM2's answers to 30 MT-Bench questions, against mlx-lm's.

  .mlx/reference/bin/python scripts/check_smollm2.py      (scripts/setup.sh reference makes it)

Owns running target/release/mlxbatch and judging its answers by fixtures/smollm2_mt_bench.json, which
scripts/make_smollm2_golden.py wrote. Speed is the business of benches/compare.py.
"""
# Runs the converted f32 folder and the GGUF file, each with batch 1 and 8, greedy. An answer passes
# when it is mlx-lm's, word for word, or when the first step that differs is a near-tie: one where
# mlx-lm's two best logits lie within 1e-3, so that rounding decides. Each of these is listed.
# Token counts of prompts must agree (that is the chat template and the tokenizer), as must the
# answers of folder and GGUF among themselves, without excuse: they hold the same weights.

import argparse
import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

try:
    from tokenizers import Tokenizer
except ImportError:
    sys.exit("check_smollm2.py: error: needs the package tokenizers: run scripts/setup.sh reference, "
             "then .mlx/reference/bin/python scripts/check_smollm2.py")

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = ROOT / ".mlx/models"
NEAR_TIE = 1e-3
BROKEN = "\N{REPLACEMENT CHARACTER}"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--mlxbatch", default=ROOT / "target/release/mlxbatch", type=pathlib.Path, help="the mlxbatch binary")
    add("--folder", default=MODELS / "smollm2-f32", type=pathlib.Path, help="SmolLM2 as a float32 folder")
    add("--gguf", default=MODELS / "smollm2/SmolLM2-135M-Instruct.gguf", type=pathlib.Path, help="SmolLM2 as GGUF")
    add("--golden", default=ROOT / "fixtures/smollm2_mt_bench.json", type=pathlib.Path, help="mlx-lm's answers")
    add("--batch-sizes", default=[1, 8], type=int, nargs="+", metavar="N", help="batch sizes to run (default 1 8)")
    options = parser.parse_args()
    for flag, hint in (("mlxbatch", "cargo build --release"), ("folder", "scripts/setup.sh reference"),
                       ("gguf", "scripts/setup.sh model"), ("golden", "git checkout fixtures")):
        if not getattr(options, flag).exists():
            parser.error(f"--{flag} {getattr(options, flag)} does not exist: run {hint}")
    return options


@dataclasses.dataclass
class Answer:
    text: str
    finish: str
    num_prompt_tokens: int


@dataclasses.dataclass
class Verdict:
    """'equal', 'near-tie' or 'wrong', and in words what differs."""
    kind: str
    detail: str = ""


def ask(options, model, batch_size, golden):
    """mlxbatch's answers to the golden questions."""
    with tempfile.TemporaryDirectory(prefix="mlxbatch-check-") as folder:
        questions, out = pathlib.Path(folder, "questions.jsonl"), pathlib.Path(folder, "out.jsonl")
        lines = [json.dumps({"id": x["id"], "messages": x["messages"]}) for x in golden["items"]]
        questions.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [options.mlxbatch, "run", questions, "-o", out, "--model", model, "--quiet"]
        command += ["--max-tokens", str(golden["max_tokens"]), "--batch-size", str(batch_size), "--temperature", "0"]
        done = subprocess.run([str(x) for x in command], stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"check_smollm2.py: error: mlxbatch ended with exit code {done.returncode}:\n{done.stderr}")
        results = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    if len(results) != len(lines):
        sys.exit(f"check_smollm2.py: error: {len(results)} answers to {len(lines)} questions")
    bodies = [result["response"]["body"] for result in results]
    return [Answer(body["choices"][0]["message"]["content"] or "", body["choices"][0]["finish_reason"],
                   body["usage"]["prompt_tokens"]) for body in bodies]


def first_different_step(tokenizer, ids, text):
    """The first step whose token the text does not have; len(ids) when it has them all.

    Only text is known of the answer, so the step is that of the first differing character.
    """
    for step in range(len(ids)):
        so_far = tokenizer.decode(ids[: step + 1], skip_special_tokens=True).rstrip(BROKEN)
        if not text.startswith(so_far):
            return step
    return len(ids)


def judge(tokenizer, item, answer):
    """Compares one answer with mlx-lm's."""
    if answer.num_prompt_tokens != len(item["prompt_ids"]):
        return Verdict("wrong", f"{answer.num_prompt_tokens} prompt tokens instead of {len(item['prompt_ids'])}")
    ids = item["greedy_ids"]
    # An answer cut by the limit may end within a character; whether that shows is not at issue.
    expected = tokenizer.decode(ids, skip_special_tokens=True).rstrip(BROKEN)
    text = answer.text.rstrip(BROKEN)
    if (text, answer.finish) == (expected, item["finish"]):
        return Verdict("equal")
    step = first_different_step(tokenizer, ids, text)
    # All of the text is there, so what differs is where it ends: at the EOS, which is the last step.
    if step == len(ids) and item["finish"] == "stop":
        step -= 1
    if step == len(ids):
        return Verdict("wrong", f"goes on after mlx-lm's last token, or finish reason {answer.finish}")
    gap = item["gaps"][step]
    words = tokenizer.decode(ids[max(0, step - 3): step + 3], skip_special_tokens=True)
    # What the answer has from the same place on: as much text as the tokens before it make.
    start = len(tokenizer.decode(ids[: max(0, step - 3)], skip_special_tokens=True))
    got = text[start: start + len(words)]
    detail = f"step {step + 1}, gap {gap:.5f}: mlx-lm has {words!r}, mlxbatch {got!r}"
    return Verdict("near-tie" if gap < NEAR_TIE else "wrong", detail)


def check_model_is_the_golden_one(folder, golden):
    """The golden answers belong to certain weights; says so when these are others."""
    for name, expected in golden["sha256"].items():
        with open(folder / name, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            print(f"warning: {folder / name} is not the file that mlx-lm answered with: sha256 {found[:16]}…, "
                  f"expected {expected[:16]}…", file=sys.stderr)


def main():
    options = arguments()
    golden = json.loads(options.golden.read_text(encoding="utf-8"))
    check_model_is_the_golden_one(options.folder, golden)
    tokenizer = Tokenizer.from_file(str(options.folder / "tokenizer.json"))
    num_bad = 0
    details = []
    version = golden["made_with"]["mlx-lm"]
    print(f"{len(golden['items'])} questions, {golden['max_tokens']} greedy tokens, against mlx-lm {version}")
    kinds = ("equal", "near-tie", "wrong")
    print(f"{'model':<8} {'batch':>5}" + "".join(f"{kind:>10}" for kind in kinds))
    by_batch = {}
    for batch_size in options.batch_sizes:
        for name, model in (("folder", options.folder), ("gguf", options.gguf)):
            answers = ask(options, model, batch_size, golden)
            by_batch.setdefault(batch_size, {})[name] = answers
            verdicts = [judge(tokenizer, item, answer) for item, answer in zip(golden["items"], answers)]
            counts = [sum(v.kind == kind for v in verdicts) for kind in kinds]
            print(f"{name:<8} {batch_size:>5}" + "".join(f"{count:>10}" for count in counts), flush=True)
            details += [f"{name}, batch {batch_size}, {item['id']}: {v.kind}: {v.detail}"
                        for item, v in zip(golden["items"], verdicts) if v.kind != "equal"]
            num_bad += counts[kinds.index("wrong")]
    for batch_size, answers in by_batch.items():
        differing = [item["id"] for item, a, b in zip(golden["items"], answers["folder"], answers["gguf"]) if a != b]
        num_bad += len(differing)
        verdict = f"DIFFERENT on {', '.join(differing)}" if differing else "same answers"
        print(f"folder and gguf, batch {batch_size}: {verdict}")
    print(*details, "FAILED" if num_bad else "passed", sep="\n")
    sys.exit(1 if num_bad else 0)


if __name__ == "__main__":
    main()
