#!/usr/bin/env python3
"""What llama.cpp's converter makes of the tiny fixtures: fixtures/gguf_cases.json.

  python scripts/make_gguf_cases.py LLAMA_CPP [--out fixtures/gguf_cases.json] [--gguf DIR] [NAME]...

LLAMA_CPP is a source tree of llama.cpp, such as vendor/llama.cpp in the sdist of PyPI's llama-cpp-python
0.3.36.  For each model type that is served from GGUF files, one of the tiny fixtures is brought to its
publisher's names (publisher.py), its configuration to what llama.cpp can express, and handed to the classes
behind convert_hf_to_gguf.py, in float32.  --gguf keeps the files.

Written is a list of {"name", "fixture", "config", "dropped", "renamed", "metadata", "tensors"}: the
configuration of the same model as a folder, parts of names of weights that are left out or renamed, the metadata
but for the tokenizer as [key, type, value], and each tensor as [name, shape, recipe].  A recipe says of which
weight of the fixture (with "*" for those of all experts, on top of each other) the converter's bytes are:
[weight, operation], where the operation is "same",
"plus_one", "pairs N" (N heads' rows by pairs), "first_half" or "second_half" of the second axis, "keys N K" or
"values N K" (of N heads' rows the first K, transposed, or the others), or [numbers].
It was found by comparing all numbers, so that a file put together by the recipes is the converter's.

Needs torch, transformers, mlx, numpy, safetensors and what convert_hf_to_gguf.py imports.
"""
import argparse
import collections
import json
import pathlib
import re
import sys
import tempfile

import mlx.core as mx
import numpy as np

import publisher

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parent / "fixtures"

# Of each type: the fixture, what its configuration has otherwise, and parts of names of weights that are left out
# or are others.
CASES = {
    "llama": ("llama-rope3", {}),
    "mixtral": ("mixtral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2_moe": ("qwen2_moe", {}),
    "qwen2_5_vl": ("qwen2_5_vl", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {"num_hidden_layers": 2, "mlp_only_layers": []},
                  [".layers.1."], [[".layers.2.", ".layers.1."]]),
    "qwen3_vl": ("qwen3_vl", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3", {"sliding_window_pattern": 6,
                          "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}),
    "gemma4": ("gemma4", {}),
    "gemma4_moe": ("gemma4-moe", {}),
    "phi3": ("phi3", {}),
    "gpt_oss": ("gpt_oss", {}),
    "ministral3": ("ministral3", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {}),
    "olmoe": ("olmoe", {"rms_norm_eps": 1e-5}),
    "glm4": ("glm4", {}),
    "glm4_moe": ("glm4_moe", {}),
    "granite": ("granite", {}),
    "granitemoe": ("granitemoe", {}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 1, 1, 0], "no_rope_layer_interval": 4}),
    "exaone4": ("exaone4", {}),
    "seed_oss": ("seed_oss", {}),
    "lfm2": ("lfm2", {}),
    "lfm2_moe": ("lfm2_moe", {"routed_scaling_factor": 1.0}),
    "deepseek_v2": ("deepseek_v2", {"attention_bias": False}, [".bias"], []),
    "deepseek_v3": ("deepseek_v3", {"rope_scaling": {
        "type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 8, "beta_slow": 1,
        "mscale": 1.0, "mscale_all_dim": 1.0}}),
    "glm4_moe_lite": ("glm4_moe_lite", {}),
}


def case(name):
    """The fixture's folder, the adapted configuration and weights, and which parts of names are left out or renamed."""
    fixture, changes, *names = CASES[name]
    dropped, renamed = names or ([], [])
    folder = FIXTURES / f"tiny-{fixture}"
    config = json.loads((folder / "config.json").read_text())
    config.get("text_config", config).update(changes)
    weights = {}
    for weight, array in mx.load(str(folder / "model.safetensors")).items():
        if any(part in weight for part in dropped):
            continue
        for old, new in renamed:
            weight = weight.replace(old, new)
        weights[weight] = array
    return folder, config, weights, dropped, renamed


def numbers(weights):
    """All weights as NumPy arrays, and those of single experts on top of each other."""
    arrays, single = {}, collections.defaultdict(dict)
    for name, array in weights.items():
        arrays[name] = np.array(array.astype(mx.float32))
        if found := re.fullmatch(r"(.*\.experts\.)(\d+)(\..*)", name):
            single[f"{found[1]}*{found[3]}"][int(found[2])] = arrays[name]
    for name, experts in single.items():
        arrays[name] = np.stack([experts[index] for index in range(len(experts))])
    return arrays


def pairs(array, heads):
    rows = array.shape[0]
    if rows % (2 * heads):
        return None
    return array.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)


def candidates(array, head):
    yield "same", array
    yield "plus_one", array + np.float32(1)
    for heads in (1, 2, 4):
        if array.ndim <= 2 and (paired := pairs(array, heads)) is not None:
            yield f"pairs {heads}", paired
    if array.ndim == 3 and array.shape[1] % 2 == 0:
        half = array.shape[1] // 2
        yield "first_half", array[:, :half]
        yield "second_half", array[:, half:]
    if head and array.ndim == 2 and array.shape[0] % head[0] == 0:
        heads, num_keys = head
        of_heads = array.reshape(heads, -1, array.shape[1])
        yield f"keys {heads} {num_keys}", of_heads[:, :num_keys].swapaxes(1, 2)
        yield f"values {heads} {num_keys}", of_heads[:, num_keys:]


def recipe(tensor, weights, head):
    """Of which weight these numbers are, and what was done to it."""
    flat = tensor.reshape(-1)
    for name, array in weights.items():
        for operation, made in candidates(array, head):
            if made.size == flat.size and np.array_equal(made.reshape(-1), flat):
                return [name, operation]
    if flat.size <= 64:
        return [float(number) for number in flat]
    return None


def publish(folder, config, weights, out):
    """Writes a folder as the publisher would have it."""
    text = publisher.text_config(config)
    renamed = {}
    for name, array in weights.items():
        if not publisher.OTHER_PARTS.search(name):
            name = name.removeprefix("language_model.").replace("model.language_model.", "model.")
            renamed[name] = array
    published = publisher.publish(renamed, text)
    published = {name: array.astype(mx.float32) if array.dtype == mx.bfloat16 else array
                 for name, array in published.items()}
    mx.save_safetensors(str(out / "model.safetensors"), published, metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((folder / name).read_bytes())
    written = json.loads(json.dumps(config))
    for part in (written, written.get("text_config", {})):
        part.pop("torch_dtype", None)
        for key in ("bos_token_id", "eos_token_id"):
            part.pop(key, None)
    (out / "config.json").write_text(json.dumps(written))


def convert(llama_cpp, folder, out):
    """Runs the converter's class for the folder."""
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    import convert_hf_to_gguf as converter
    import gguf
    import torch
    from conversion.base import ModelBase, ModelType, TextModel, get_model_architecture

    # The tiny tokenizer is GPT-2's in form, and known to nobody by its hash.
    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    hparams = ModelBase.load_hparams(folder, False)
    chosen = converter.get_model_class(get_model_architecture(hparams, ModelType.TEXT), mmproj=False)
    chosen.set_vocab = TextModel._set_vocab_gpt2
    for inner in vars(chosen).values():
        if isinstance(inner, type):
            inner.set_vocab = TextModel._set_vocab_gpt2
    with torch.inference_mode():
        chosen(folder, gguf.LlamaFileType.ALL_F32, out, eager=True).write()
    return gguf.GGUFReader(out)


def value_of(field, gguf):
    """[type, value] of a key."""
    kind = field.types[0]
    if kind == gguf.GGUFValueType.ARRAY:
        return ["[" + field.types[-1].name.lower() + "]", field.contents()]
    return [kind.name.lower(), field.contents()]


def made(name, llama_cpp, keep):
    folder, config, weights, dropped, renamed = case(name)
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / name
        out.mkdir()
        publish(folder, config, weights, out)
        file = (keep or pathlib.Path(scratch)) / f"{name}.gguf"
        reader = convert(llama_cpp, out, file)
        import gguf

        skipped = ("GGUF.", "general.", "tokenizer.")
        metadata = [[key, *value_of(field, gguf)] for key, field in reader.fields.items()
                    if not key.startswith(skipped) or key == "general.architecture"]
        arrays, text = numbers(weights), config.get("text_config", config)
        head = (text["num_attention_heads"], text["qk_nope_head_dim"]) if "qk_nope_head_dim" in text else None
        tensors = []
        for tensor in reader.tensors:
            assert tensor.tensor_type.name == "F32", tensor
            found = recipe(np.array(tensor.data), arrays, head)
            assert found is not None, f"{name}: no weight of the fixture is {tensor.name}"
            tensors.append([tensor.name, [int(size) for size in reversed(tensor.shape)], found])
        used = {found[0] for _, _, found in tensors if isinstance(found[0], str)}
        left = [weight for weight in weights if weight not in used and not publisher.OTHER_PARTS.search(weight)
                and re.sub(r"(\.experts\.)\d+\.", r"\1*.", weight) not in used]
        print(name, len(tensors), "left out:", left)
        return {"name": name, "fixture": folder.name, "config": config, "dropped": dropped,
                "renamed": renamed, "metadata": metadata, "tensors": tensors}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("llama_cpp", type=pathlib.Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=pathlib.Path, default=FIXTURES / "gguf_cases.json")
    parser.add_argument("--gguf", type=pathlib.Path)
    options = parser.parse_args()
    cases = []
    for name in options.names or CASES:
        print(name, flush=True)
        cases.append(made(name, options.llama_cpp.resolve(), options.gguf))
    if not options.names:
        rows = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
        options.out.write_text(f"[\n{rows}\n]\n")


if __name__ == "__main__":
    main()
