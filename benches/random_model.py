#!/usr/bin/env python3
"""Makes a llama with random weights that mlx-lm and mlxbatch both read.

  .mlx/reference/bin/python benches/random_model.py OUT_DIR TOKENIZER_DIR [--shapes 1b] [--bits 4]

Owns shapes and weights: real sizes, for speed, not for sense. The tokenizer, its settings and the size of
the vocabulary are those of TOKENIZER_DIR.
"""
import argparse
import json
import pathlib
import shutil

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import llama

# Llama 3.2 1B's, and a small one by which the check itself is tried.
SHAPES = {
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64},
    "small": {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 256, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 32},
}
GROUP_SIZE = 64


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("out", type=pathlib.Path)
    add("tokenizer", type=pathlib.Path, help="a model folder whose tokenizer is taken")
    add("--shapes", choices=list(SHAPES), default="1b")
    add("--bits", type=int, choices=(4, 8), help="quantise in groups of 64 (default: bfloat16)")
    return parser.parse_args()


def main():
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    theirs = json.loads((options.tokenizer / "config.json").read_text(encoding="utf-8"))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **SHAPES[options.shapes],
        "vocab_size": theirs["vocab_size"], "bos_token_id": theirs["bos_token_id"],
        "eos_token_id": theirs["eos_token_id"], "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "max_position_embeddings": 8192, "tie_word_embeddings": True, "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False, "torch_dtype": "bfloat16",
    }
    mx.random.seed(13)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    if options.bits:
        nn.quantize(model, group_size=GROUP_SIZE, bits=options.bits)
        config["quantization"] = {"group_size": GROUP_SIZE, "bits": options.bits}
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(options.out / "model.safetensors"), weights, metadata={"format": "mlx"})
    (options.out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(options.tokenizer / name, options.out / name)


if __name__ == "__main__":
    main()
