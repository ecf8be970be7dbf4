#!/usr/bin/env python3
"""Checks mlxbatch on published GGUF files: their weights against gguf-py, 30 answers each against mlx-lm.

  .mlx/reference/bin/python scripts/check_gguf.py [NAME]...      (make check-gguf fetches what it needs)

Owns what is compared and how a difference is judged. The answers are fixtures/answers/*.json, which
scripts/make_gguf_golden.py wrote; what a weight is called and how its rows are ordered is
gguf_to_mlx.py's. Speed is the business of benches/compare.py.
"""
# Weights: the SHA-256 of each tensor as gguf-py decodes it, in float32, is handed to a test of mlxbatch
# that loads the file as a run does and compares its own.
#
# Answers: batch 1 and 8, greedy. An answer passes when it is mlx-lm's, word for word, with as many
# tokens, or when the first step that differs is a near-tie: one where mlx-lm's two best logits lie
# within 1e-3, so that rounding decides. Each of these is listed. Token counts of prompts must agree
# (that is the chat template and the tokenizer).

import argparse
import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

try:
    import numpy
    from gguf import GGUFReader
    from gguf.quants import dequantize

    import gguf_to_mlx
except ImportError as error:
    sys.exit(f"check_gguf.py: error: {error}: run scripts/setup.sh reference, "
             "then .mlx/reference/bin/python scripts/check_gguf.py")

ROOT = pathlib.Path(__file__).resolve().parent.parent
NEAR_TIE = 1e-3
BROKEN = "\N{REPLACEMENT CHARACTER}"
WEIGHTS_TEST = "mlx::weights_gguf::tests::a_published_files_weights_are_those_of_gguf_py_bit_for_bit"
# Golden answers by their file's name, and the model below --models that they are of.
MODELS = {
    "smollm2": "smollm2/SmolLM2-135M-Instruct.gguf",
    "gemma-3-270m": "gemma-3-270m/gemma-3-270m-Q4_K_M.gguf",
    "qwen2.5-coder-0.5b": "qwen2.5-coder-0.5b/Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf",
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"which models (default: {', '.join(MODELS)})")
    add("--mlxbatch", default=ROOT / "target/release/mlxbatch", type=pathlib.Path, help="the mlxbatch binary")
    add("--models", default=ROOT / ".mlx/models", type=pathlib.Path, help="folder of the models")
    add("--only", choices=("weights", "answers"), help="half of the check")
    add("--batch-sizes", default=[1, 8], type=int, nargs="+", metavar="N", help="batch sizes to run (default 1 8)")
    options = parser.parse_args()
    options.names = options.names or list(MODELS)
    for name in options.names:
        if name not in MODELS:
            parser.error(f"{name} is none of {', '.join(MODELS)}")
        if not (options.models / MODELS[name]).exists():
            parser.error(f"{options.models / MODELS[name]} does not exist: run scripts/setup.sh model gguf-models")
    if not options.mlxbatch.exists():
        parser.error(f"--mlxbatch {options.mlxbatch} does not exist: run cargo build --release")
    return options


def digests_of_weights(reader):
    """The SHA-256 of every weight's float32 numbers as gguf-py decodes them, by the decoder's name."""
    architecture = gguf_to_mlx.field(reader, "general.architecture")
    num_heads = gguf_to_mlx.field(reader, f"{architecture}.attention.head_count")
    num_kv_heads = gguf_to_mlx.field(reader, f"{architecture}.attention.head_count_kv", num_heads)
    digests = {}
    for tensor in reader.tensors:
        numbers = dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        numbers = numbers.reshape([int(size) for size in reversed(tensor.shape)])
        if architecture == "llama" and (".attn_q." in tensor.name or ".attn_k." in tensor.name):
            numbers = gguf_to_mlx.unpermute(numbers, num_heads if ".attn_q." in tensor.name else num_kv_heads)
        name = gguf_to_mlx.hf_name(architecture, tensor.name)
        digests[name] = hashlib.sha256(numpy.ascontiguousarray(numbers, "<f4").tobytes()).hexdigest()
    return digests


def check_weights(gguf, reader):
    """Whether mlxbatch decodes every weight to the same bits; prints what it says where it does not."""
    digests = digests_of_weights(reader)
    types = collections.Counter(tensor.tensor_type.name for tensor in reader.tensors)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(digests, file)
        file.flush()
        command = ["cargo", "test", "--quiet", "--locked", "--lib", "--", "--exact", "--ignored", WEIGHTS_TEST]
        environment = {**os.environ, "GGUF_FILE": str(gguf.resolve()), "GGUF_DIGESTS": file.name}
        environment.pop("LD_PRELOAD", None)
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    is_equal = done.returncode == 0 and "1 passed" in done.stdout
    kinds = ", ".join(f"{count} {kind}" for kind, count in types.most_common())
    print(f"  weights: {len(digests)} tensors ({kinds}): {'equal bit for bit' if is_equal else 'DIFFERENT'}", flush=True)
    if not is_equal:
        print(done.stdout[-3000:], done.stderr[-3000:], sep="\n")
    return is_equal


@dataclasses.dataclass
class Answer:
    text: str
    finish: str
    num_prompt_tokens: int
    num_tokens: int


@dataclasses.dataclass
class Verdict:
    """'equal', 'near-tie' or 'wrong', and in words what differs."""
    kind: str
    detail: str = ""


def ask(options, model, batch_size, golden):
    """mlxbatch's answers to the golden questions."""
    with tempfile.TemporaryDirectory(prefix="mlxbatch-check-") as folder:
        questions, out = pathlib.Path(folder, "questions.jsonl"), pathlib.Path(folder, "out.jsonl")
        fields = ("id", "messages", "prompt")
        lines = [json.dumps({field: x[field] for field in fields if field in x}) for x in golden["items"]]
        questions.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [options.mlxbatch, "run", questions, "-o", out, "--model", model, "--quiet"]
        command += ["--max-tokens", str(golden["max_tokens"]), "--batch-size", str(batch_size), "--temperature", "0"]
        done = subprocess.run([str(x) for x in command], stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"check_gguf.py: error: mlxbatch ended with exit code {done.returncode}:\n{done.stderr}")
        results = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    if len(results) != len(lines):
        sys.exit(f"check_gguf.py: error: {len(results)} answers to {len(lines)} questions")
    return [answer_of(result["response"]["body"]) for result in results]


def answer_of(body):
    choice, usage = body["choices"][0], body["usage"]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return Answer(text or "", choice["finish_reason"], usage["prompt_tokens"], usage["completion_tokens"])


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
    if (text, answer.finish, answer.num_tokens) == (expected, item["finish"], len(ids)):
        return Verdict("equal")
    step = first_different_step(tokenizer, ids, text)
    # All of the text is there, so what differs is where it ends: at the EOS, which is the last step.
    if step == len(ids) and item["finish"] == "stop":
        step -= 1
    if step == len(ids):
        return Verdict("wrong", f"{answer.num_tokens} tokens and {answer.finish}, not {len(ids)} and {item['finish']}")
    gap = item["gaps"][step]
    words = tokenizer.decode(ids[max(0, step - 3): step + 3], skip_special_tokens=True)
    # What the answer has from the same place on: as much text as the tokens before it make.
    start = len(tokenizer.decode(ids[: max(0, step - 3)], skip_special_tokens=True))
    got = text[start: start + len(words)]
    detail = f"step {step + 1}, gap {gap:.5f}: mlx-lm has {words!r}, mlxbatch {got!r}"
    return Verdict("near-tie" if gap < NEAR_TIE else "wrong", detail)


def check_answers(options, gguf, reader, golden):
    """Whether all answers are mlx-lm's, but for near-ties; prints a count for each batch size."""
    tokenizer, _ = gguf_to_mlx.build_tokenizer(reader)
    num_wrong, details = 0, []
    for batch_size in options.batch_sizes:
        verdicts = [judge(tokenizer, item, answer)
                    for item, answer in zip(golden["items"], ask(options, gguf, batch_size, golden))]
        counts = collections.Counter(verdict.kind for verdict in verdicts)
        num_wrong += counts["wrong"]
        print(f"  answers, batch {batch_size}: {counts['equal']} equal, {counts['near-tie']} near-ties, "
              f"{counts['wrong']} wrong", flush=True)
        details += [f"    batch {batch_size}, {item['id']}: {verdict.kind}: {verdict.detail}"
                    for item, verdict in zip(golden["items"], verdicts) if verdict.kind != "equal"]
    print(*details, sep="\n", end="\n" if details else "")
    return num_wrong == 0


def main():
    options = arguments()
    all_right = True
    for name in options.names:
        gguf = options.models / MODELS[name]
        golden = json.loads((ROOT / f"fixtures/answers/{name}.json").read_text(encoding="utf-8"))
        with open(gguf, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != golden["sha256"]:
            sys.exit(f"check_gguf.py: error: {gguf} is not the file of the golden answers: sha256 {found[:16]}…, "
                     f"expected {golden['sha256'][:16]}…: delete it and run scripts/setup.sh model gguf-models")
        print(f"{name}: {len(golden['items'])} questions, {golden['max_tokens']} greedy tokens, "
              f"against mlx-lm {golden['made_with']['mlx-lm']}", flush=True)
        reader = GGUFReader(gguf)
        if options.only != "answers":
            all_right &= check_weights(gguf, reader)
        if options.only != "weights":
            all_right &= check_answers(options, gguf, reader, golden)
    print("passed" if all_right else "FAILED")
    sys.exit(0 if all_right else 1)


if __name__ == "__main__":
    main()
