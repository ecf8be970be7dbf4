#!/usr/bin/env python3
"""Write the adapters under fixtures/adapters/, with golden answers.

  python make_adapter_fixtures.py [--out fixtures/adapters] [name ...]      (no name: all; peft needs torch)

Each OUT/NAME is what `mlx_lm.lora` (0.32.2) or peft (0.21.2) writes after five steps of training on a
tiny model of fixtures/, and golden.json beside it:
  base         the tiny model
  prompts      three, of 17, 40 and 64 ids: prompt_ids, greedy_ids (40), gaps and last_logprobs as in
               make_fixtures.py, computed in float32 by the program that wrote the adapter
  moved        the least distance over the prompts between the farthest log-probability with the
               adapter and without it: above 0.1, so that no test passes without it

Prompts whose answers hang on rounding are left out, as there.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version

import mlx.core as mx
from make_fixtures import MIN_DISTINCT, MIN_GAP, MIN_ROUTER_GAP, STEPS, TEXT, dump
from mlx_lm.tuner.utils import load_adapters
from references import MlxLm, Transformers, greedy, log_probabilities
from tokenizers import Tokenizer

FIXTURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures")
LENGTHS, NUM_STEPS, MIN_MOVED = [17, 40, 64], 5, 0.1


@dataclass
class Adapter:
    base: str
    show: str
    # What mlx_lm.lora is told, or peft's LoraConfig where `peft` is set.
    settings: dict = field(default_factory=dict)
    peft: bool = False
    learning_rate: float = 2e-2


ATTENTION = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
ADAPTERS = {
    "llama-qv": Adapter("tiny-llama", "queries and values of the last three layers", {
        "num_layers": 3, "lora_parameters": {
            "rank": 4, "dropout": 0.0, "scale": 20.0, "keys": ["self_attn.q_proj", "self_attn.v_proj"]}}),
    "llama-4bit-all": Adapter("tiny-llama-4bit", "all linear layers, quantised", {
        "num_layers": -1, "lora_parameters": {"rank": 2, "dropout": 0.1, "scale": 10.0}}),
    "llama-4bit-dora": Adapter("tiny-llama-4bit", "DoRA on quantised matrices", {
        "fine_tune_type": "dora", "num_layers": -1, "lora_parameters": {
            "rank": 2, "dropout": 0.0, "scale": 5.0, "keys": ATTENTION + ["mlp.down_proj"]}}, learning_rate=5e-3),
    "qwen3_moe-4bit-all": Adapter("tiny-qwen3_moe-4bit", "experts and routers, quantised", {
        "num_layers": -1, "lora_parameters": {"rank": 1, "dropout": 0.0, "scale": 10.0}}, learning_rate=4e-3),
    "glm4-all": Adapter("tiny-glm4", "a matrix of two in one", {
        "num_layers": 2, "lora_parameters": {"rank": 3, "dropout": 0.0, "scale": 10.0}}),
    "llama-full": Adapter("tiny-llama", "weights in place of the base's", {
        "fine_tune_type": "full", "num_layers": 1}, learning_rate=5e-3),
    "phi3-peft": Adapter("tiny-phi3", "peft's LoRA of fused matrices, rank-stabilised", {
        "r": 4, "lora_alpha": 6, "use_rslora": True, "lora_dropout": 0.1,
        "target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], "layers_to_transform": [1, 2, 3]},
        peft=True, learning_rate=5e-2),
    "qwen2-peft-dora": Adapter("tiny-qwen2", "peft's DoRA, ranks and alphas by pattern, norms saved", {
        "r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": "all-linear",
        "rank_pattern": {"^model.layers.[01].self_attn.q_proj": 3, "down_proj": 1},
        "alpha_pattern": {"layers.2.mlp.up_proj": 7, r"(k|v)_proj": 3}, "modules_to_save": ["input_layernorm"]},
        peft=True, learning_rate=5e-2),
    "qwen3_moe-peft-experts": Adapter("tiny-qwen3_moe", "peft's of parameters: experts in one", {
        "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "rank_pattern": {"experts.down_proj": 1},
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}, peft=True, learning_rate=5e-2),
    "qwen2-peft-bias": Adapter("tiny-qwen2", "peft's biases in place of the base's", {
        "r": 2, "lora_alpha": 8, "bias": "lora_only", "target_modules": ["q_proj", "v_proj"]},
        peft=True, learning_rate=5e-2),
}


def texts():
    sentences = TEXT.replace("\n", " ").split(". ")
    return [". ".join(sentences[i:i + 2]) + "." for i in range(0, len(sentences) - 2, 2)]


# ---------------------------------------------------------------- mlx-lm
def train_mlx_lm(name, adapter, out):
    """Runs mlx_lm.lora as its users do, where its paths are the same on every machine."""
    with tempfile.TemporaryDirectory() as away:
        os.symlink(os.path.abspath(os.path.join(FIXTURES, adapter.base)), os.path.join(away, adapter.base))
        os.makedirs(os.path.join(away, "data"))
        for part in ["train", "valid"]:
            with open(os.path.join(away, "data", part + ".jsonl"), "w", encoding="utf-8") as f:
                f.writelines(json.dumps({"text": t}) + "\n" for t in texts())
        config = dict(model=adapter.base, train=True, data="data", adapter_path=name, iters=NUM_STEPS, batch_size=1,
                      val_batches=1, save_every=1000, max_seq_length=256, seed=7,
                      learning_rate=adapter.learning_rate, **adapter.settings)
        with open(os.path.join(away, "config.yaml"), "w", encoding="utf-8") as f:
            json.dump(config, f)  # which is YAML too
        subprocess.run([sys.executable, "-m", "mlx_lm", "lora", "-c", "config.yaml"], cwd=away, check=True,
                       stdout=subprocess.DEVNULL)
        for file in ["adapters.safetensors", "adapter_config.json"]:
            shutil.copy(os.path.join(away, name, file), out)


def mlx_lm_with(adapter, out):
    reference = MlxLm(os.path.join(FIXTURES, adapter.base))
    load_adapters(reference.model, out)
    reference.model.set_dtype(mx.float32)
    reference.model.eval()  # as mlx_lm.load does: no dropout
    return reference


# ---------------------------------------------------------------- peft
def train_peft(adapter, out):
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(7)
    base = os.path.join(FIXTURES, adapter.base)
    reference = Transformers(base)
    model = get_peft_model(reference.model, LoraConfig(task_type="CAUSAL_LM", **adapter.settings))
    model.peft_config["default"].base_model_name_or_path = adapter.base
    tokenizer = Tokenizer.from_file(os.path.join(base, "tokenizer.json"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=adapter.learning_rate)
    model.train()
    for text in texts()[:NUM_STEPS]:
        ids = torch.tensor([tokenizer.encode(text).ids])
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)
    os.remove(os.path.join(out, "README.md"))


def peft_with(adapter, out):
    from peft import PeftModel

    reference = Transformers(os.path.join(FIXTURES, adapter.base))
    reference.model = PeftModel.from_pretrained(reference.model, out)
    reference.model.eval()
    return reference


# ---------------------------------------------------------------- golden answers
def golden(adapter, reference, base, pool):
    prompts, moved, shift = [], [], 0
    for n in LENGTHS:
        for _ in range(400):
            shift += 7
            ids, routed = [pool[(shift + i) % len(pool)] for i in range(n)], []
            with reference.choices(routed):
                out, gaps, y = greedy(reference, ids, STEPS)
            if min(gaps) > MIN_GAP and len(set(out)) >= MIN_DISTINCT and min(routed, default=1.0) > MIN_ROUTER_GAP:
                break
        else:
            raise RuntimeError(f"{adapter.base}: no prompt of {n} has a clear answer")
        before = log_probabilities(base.step(ids))
        moved.append(mx.abs(log_probabilities(y) - before).max().item())
        prompts.append(dict(prompt_ids=ids, greedy_ids=out, gaps=gaps,
                            last_logprobs=[round(x, 5) for x in log_probabilities(y).tolist()]))
    assert min(moved) > MIN_MOVED, moved
    packages = ["peft", "transformers", "torch"] if adapter.peft else ["mlx", "mlx-lm"]
    return dict(base=adapter.base, show=adapter.show, computed_in="float32", made_with={k: version(k) for k in packages},
                moved=round(min(moved), 3), prompts=prompts)


def make(name, root):
    adapter, out = ADAPTERS[name], os.path.join(root, name)
    shutil.rmtree(out, ignore_errors=True)
    os.makedirs(out)
    if adapter.peft:
        train_peft(adapter, out)
        reference, base = peft_with(adapter, out), Transformers(os.path.join(FIXTURES, adapter.base))
    else:
        train_mlx_lm(name, adapter, out)
        reference, base = mlx_lm_with(adapter, out), MlxLm(os.path.join(FIXTURES, adapter.base))
    pool = Tokenizer.from_file(os.path.join(FIXTURES, adapter.base, "tokenizer.json")).encode(
        TEXT.replace("\n", " ")).ids
    answers = golden(adapter, reference, base, pool)
    dump(answers, os.path.join(out, "golden.json"))
    size = sum(os.path.getsize(os.path.join(out, f)) for f in os.listdir(out))
    print(f"{name:20s} {size / 1000:.0f} kB, moved {answers['moved']}, smallest gap "
          f"{min(min(p['gaps']) for p in answers['prompts']):.4f}", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("names", nargs="*")
    ap.add_argument("--out", default=os.path.join(FIXTURES, "adapters"))
    a = ap.parse_args()
    for n in a.names or ADAPTERS:
        make(n, a.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
