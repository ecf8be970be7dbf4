#!/usr/bin/env python3
"""Makes a model with random weights that mlx-lm and mlxbatch both read.

  .mlx/reference/bin/python benches/random_model.py OUT_DIR TOKENIZER_DIR [--shapes 1b] [--bits 4]

Owns shapes and weights: real sizes, for speed, not for sense. The mixture of experts needs MLX 0.32.4 where mlx-lm is
to run it, since mlx-lm 0.32.2 cannot on MLX 0.32.2. The tokenizer, its settings and the size of
the vocabulary are those of TOKENIZER_DIR.
"""
import argparse
import json
import pathlib
import shutil

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import llama, qwen3_moe

# Llama 3.2 1B's, and a small one by which the check itself is tried.
SHAPES = {
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64},
    "small": {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 256, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 32},
}
# Qwen3-30B-A3B's, with 8 of its 48 layers.
MOE_SHAPES = {
    "30b-a3b": {"hidden_size": 2048, "num_hidden_layers": 8, "intermediate_size": 6144, "num_attention_heads": 32,
                "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
                "moe_intermediate_size": 768},
    "small-moe": {"hidden_size": 128, "num_hidden_layers": 2, "intermediate_size": 256, "num_attention_heads": 4,
                  "num_key_value_heads": 2, "head_dim": 32, "num_experts": 16, "num_experts_per_tok": 4,
                  "moe_intermediate_size": 64},
}
GROUP_SIZE = 64


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("out", type=pathlib.Path)
    add("tokenizer", type=pathlib.Path, help="a model folder whose tokenizer is taken")
    add("--shapes", choices=[*SHAPES, *MOE_SHAPES], default="1b")
    add("--bits", type=int, choices=(4, 8), help="quantise in groups of 64 (default: bfloat16)")
    return parser.parse_args()


def experts(shapes, bits):
    """The experts of all layers, quantised: their numbers would not fit into memory beforehand."""
    hidden, inner, count = shapes["hidden_size"], shapes["moe_intermediate_size"], shapes["num_experts"]
    for layer in range(shapes["num_hidden_layers"]):
        for name, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            path = f"model.layers.{layer}.mlp.switch_mlp.{name}_proj"
            words = mx.random.randint(0, 1 << 16, (count, rows, columns * bits // 16)).astype(mx.uint16).view(mx.uint32)
            # Such that a row of random codes is about as long as that of a fresh matrix.
            scale = 2.0 / (1 << bits) / columns**0.5
            groups = (count, rows, columns // GROUP_SIZE)
            yield f"{path}.weight", words
            yield f"{path}.scales", mx.full(groups, scale, dtype=mx.bfloat16)
            yield f"{path}.biases", mx.full(groups, -scale * ((1 << bits) - 1) / 2, dtype=mx.bfloat16)


def save(options, config, weights):
    mx.save_safetensors(str(options.out / "model.safetensors"), weights, metadata={"format": "mlx"})
    (options.out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(options.tokenizer / name, options.out / name)


def make_moe(options, config, shapes):
    bits = options.bits or 4
    config |= {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", **shapes, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "rope_scaling": None,
        "quantization": {"group_size": GROUP_SIZE, "bits": bits},
    }
    config.pop("mlp_bias")
    # All but the experts, which are few here.
    few = config | {"num_experts": 1, "num_experts_per_tok": 1}
    model = qwen3_moe.Model(qwen3_moe.ModelArgs.from_dict(few))
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, group_size=GROUP_SIZE, bits=bits)
    weights = {name: array for name, array in tree_flatten(model.parameters()) if ".mlp." not in name}
    for layer in range(shapes["num_hidden_layers"]):
        router = mx.random.normal((shapes["num_experts"], shapes["hidden_size"])) * 0.05
        path = f"model.layers.{layer}.mlp.gate"
        parts = mx.quantize(router.astype(mx.bfloat16), GROUP_SIZE, bits)
        weights |= zip((f"{path}.weight", f"{path}.scales", f"{path}.biases"), parts)
    weights |= experts(shapes, bits)
    save(options, config, weights)


def main():
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    theirs = json.loads((options.tokenizer / "config.json").read_text(encoding="utf-8"))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **SHAPES.get(options.shapes, {}),
        "vocab_size": theirs["vocab_size"], "bos_token_id": theirs["bos_token_id"],
        "eos_token_id": theirs["eos_token_id"], "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "max_position_embeddings": 8192, "tie_word_embeddings": True, "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False, "torch_dtype": "bfloat16",
    }
    mx.random.seed(13)
    if options.shapes in MOE_SHAPES:
        return make_moe(options, config, MOE_SHAPES[options.shapes])
    model = llama.Model(llama.ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    if options.bits:
        nn.quantize(model, group_size=GROUP_SIZE, bits=options.bits)
        config["quantization"] = {"group_size": GROUP_SIZE, "bits": options.bits}
    weights = dict(tree_flatten(model.parameters()))
    save(options, config, weights)


if __name__ == "__main__":
    main()
