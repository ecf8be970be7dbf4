#!/usr/bin/env python3
"""Golden answers of a published GGUF file: what mlx-lm says to MT-Bench questions with its weights.

  .mlx/reference/bin/python scripts/make_gguf_golden.py MODEL.gguf fixtures/answers/NAME.json
      [--licence TEXT] [--data fixtures/data/mt_bench.jsonl] [--count 30] [--tokens 32]

The file is converted by gguf_to_mlx.py, in float32, into a temporary folder that mlx-lm reads. For each
of the first COUNT conversations the golden file gets the request (messages, or where the file has no
chat template a raw prompt: the first message's text), the prompt's ids, the greedy ids that mlx-lm's
model class gives alone with its own KV cache (up to and including EOS, at most TOKENS), how it ended
("stop" or "length"), and for every step the distance between the two best logits: where it is below
some 1e-3 another correct program may differ.

Needs what scripts/setup.sh reference installs. On Linux preload a BLAS, it is some forty times faster.
"""
import argparse
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
from importlib.metadata import version

HERE = pathlib.Path(__file__).resolve().parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("gguf", type=pathlib.Path)
    add("out", type=pathlib.Path)
    add("--licence", default="", help="the model's licence, for the record")
    add("--data", type=pathlib.Path, default=HERE.parent / "fixtures/data/mt_bench.jsonl")
    add("--count", type=int, default=30)
    add("--tokens", type=int, default=32)
    return parser.parse_args()


def greedy(model, ids, limit, eos):
    """Greedy ids (EOS included), gaps between the two best logits, and the finish reason."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    logits = model(mx.array([ids]), cache=cache)[0, -1]
    answer, gaps = [], []
    while True:
        best = mx.sort(logits)[-2:]
        token = mx.argmax(logits).item()
        answer.append(token)
        gaps.append(round((best[1] - best[0]).item(), 5))
        if token in eos:
            return answer, gaps, "stop"
        if len(answer) == limit:
            return answer, gaps, "length"
        logits = model(mx.array([[token]]), cache=cache)[0, -1]


def items(options, folder):
    """The requests with mlx-lm's answers."""
    from mlx_lm.utils import load

    model, tokenizer = load(str(folder))
    with open(options.data, encoding="utf-8") as lines:
        conversations = [json.loads(line) for line in lines if line.strip()][: options.count]
    for conversation in conversations:
        messages = conversation["messages"]
        if tokenizer.has_chat_template:
            request = {"messages": messages}
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        else:
            request = {"prompt": messages[0]["content"]}
            ids = tokenizer.encode(request["prompt"])
        answer, gaps, finish = greedy(model, list(ids), options.tokens, tokenizer.eos_token_ids)
        yield {"id": conversation["id"], **request, "prompt_ids": list(ids), "greedy_ids": answer, "gaps": gaps,
               "finish": finish}
        print(conversation["id"], len(ids), len(answer), finish, "smallest gap", min(gaps),
              repr(tokenizer.decode(answer))[:90], flush=True)


def main():
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="mlxbatch-golden-") as folder:
        command = [sys.executable, str(HERE / "gguf_to_mlx.py"), str(options.gguf), folder, "--dtype", "float32"]
        subprocess.run(command, check=True)
        with open(options.gguf, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        golden = {
            "model": f"{options.gguf.name}, dequantised to float32", "licence": options.licence,
            "made_with": {name: version(name) for name in ("mlx", "mlx-lm", "transformers", "gguf")},
            "sha256": digest, "max_tokens": options.tokens, "items": list(items(options, folder)),
        }
    text = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
    options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
