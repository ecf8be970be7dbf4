#!/usr/bin/env python3
"""Check the written tiny models: the other reference, and that each mechanism shows.

  python check_fixtures.py [--out fixtures] [name ...]      (no name: all; needs torch)

Per folder: golden.json is what its reference computes; the other reference, whose code has nothing
in common with it, answers the same (or, where mlx-lm is known to lack a mechanism, answers the
same once that is taken out of both); each mechanism of `Tiny.without`, taken out, moves some
log-probability by more than 0.01.  Prints a line of fixtures/SOURCES.md's table for each; exit
code 1 if one fails.  What the folders are is tiny_models.py's, writing them make_fixtures.py's.
"""
import argparse
import json
import os
import shutil
import sys
import tempfile

import mlx.core as mx
from references import REFERENCES, farthest, greedy, log_probabilities
from tiny_models import MODELS

MAX_FAR = 1e-3  # between two references that compute the same
MIN_MOVED = 1e-2  # by a mechanism that is taken out


def changed(folder, change, away, noise=0.0):
    """Copies `folder` to `away` with a mechanism taken out, and relative noise on the weights."""
    shutil.copytree(folder, away, dirs_exist_ok=True)
    path = os.path.join(away, "config.json")
    with open(path, encoding="utf-8") as f:
        cfg = json.load(f)
    (cfg.get("text_config") or cfg).update(change.get("config", {}))
    with open(path, "w", encoding="utf-8") as f:
        json.dump(cfg, f)
    path = os.path.join(away, "model.safetensors")
    params = dict(mx.load(path))
    for ending, value in change.get("weights", {}).items():
        hit = [n for n in params if n.endswith(ending)]
        assert hit, ending
        params.update({n: mx.full(params[n].shape, value, params[n].dtype) for n in hit})
    if noise:
        keys = mx.random.split(mx.random.key(0), len(params))
        params = {n: p.astype(mx.float32) * (1 + noise * mx.random.normal(p.shape, key=k))
                  if mx.issubdtype(p.dtype, mx.floating) else p for (n, p), k in zip(params.items(), keys)}
    mx.eval(params)
    mx.save_safetensors(path, params, metadata={"format": "mlx"})


def moved(folder, tiny, change, prompts):
    """How far some log-probability moves when a mechanism is left out."""
    with tempfile.TemporaryDirectory() as away:
        changed(folder, change, away)
        reference = REFERENCES[tiny.reference](away)
        return max(farthest(reference.step(p["prompt_ids"]), p) for p in prompts)


def apart_without(folder, change, prompts):
    """The largest difference between the two references with a mechanism taken out."""
    with tempfile.TemporaryDirectory() as away:
        changed(folder, change, away)
        one, other = (kind(away) for kind in REFERENCES.values())
        return max(mx.abs(log_probabilities(one.step(p["prompt_ids"])) -
                          log_probabilities(other.step(p["prompt_ids"]))).max().item() for p in prompts)


def check(name, root):
    """The complaints about a folder; prints its line of the table."""
    folder, tiny, wrong = os.path.join(root, "tiny-" + name), MODELS[name], []
    with open(os.path.join(folder, "golden.json"), encoding="utf-8") as f:
        prompts = json.load(f)["prompts"]
    far, same = {}, {}
    for kind, reference in REFERENCES.items():
        reference = reference(folder)
        far[kind] = max(farthest(reference.step(p["prompt_ids"]), p) for p in prompts)
        same[kind] = all(greedy(reference, p["prompt_ids"], len(p["greedy_ids"]))[0] == p["greedy_ids"]
                         for p in prompts)
    other = next(kind for kind in REFERENCES if kind != tiny.reference)
    if far[tiny.reference] > MAX_FAR or not same[tiny.reference]:
        wrong.append(f"not what {tiny.reference} computes: {far[tiny.reference]:.1e}")
    if tiny.differ_by:
        without = apart_without(folder, tiny.without[tiny.differ_by], prompts)
        note = f"{tiny.why}; without it {without:.0e} apart"
        if without > MAX_FAR or far[other] < MIN_MOVED:
            wrong.append(f"{tiny.differ_by} is not all that {other} does otherwise")
    else:
        note = ""
        if far[other] > MAX_FAR or not same[other]:
            wrong.append(f"{other} computes something else: {far[other]:.1e}")
    shown = {mechanism: moved(folder, tiny, change, prompts) for mechanism, change in tiny.without.items()}
    wrong += [f"{mechanism} does not show: {by:.1e}" for mechanism, by in shown.items() if by < MIN_MOVED]
    print(f"| tiny-{name} | {tiny.reference} | {far[other]:.0e} | {note} | "
          + ", ".join(f"{mechanism} {by:.1f}" for mechanism, by in shown.items()) + " |", flush=True)
    return wrong


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("names", nargs="*")
    ap.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures"))
    a = ap.parse_args()
    failed = False
    for name in a.names or MODELS:
        for complaint in check(name, a.out):
            failed = True
            print(f"tiny-{name}: {complaint}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
