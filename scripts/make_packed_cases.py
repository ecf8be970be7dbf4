#!/usr/bin/env python3
"""Write fixtures/packed: small matrices as GPTQ and compressed-tensors store them, and their numbers.

  python make_packed_cases.py --gptqmodel DIRECTORY      (PyPI's sdist of gptqmodel 7.7.0, unpacked)

cases.safetensors has, below the name of each case, a matrix's arrays as `a.…` and its numbers as
`expected`; cases.json the settings of a configuration that say how they are stored, whether MLX's
forms can hold them, and how near the numbers must be.  The numbers are those of the programs
themselves: gptqmodel's `convert_gptq_file` and compressed-tensors' `decompress`, in float32.  Only
groups out of order, which compressed-tensors no longer reads, are NumPy's.
"""
import argparse
import json
import os
import pathlib
import sys
import tempfile
import types

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import quantize
from safetensors.torch import save_file

EXACT, ROUNDED = 1e-6, 4e-3  # in float32, and where numbers are rounded to bfloat16
CASES, ARRAYS = {}, {}


def case(name, settings, arrays, expected, packed, tolerance=EXACT):
    CASES[name] = dict(settings=settings, stays_packed=packed, tolerance=tolerance)
    ARRAYS.update({f"{name}/a.{part}": value.clone().contiguous() for part, value in arrays.items()})
    ARRAYS[f"{name}/expected"] = expected.float().contiguous()


def reader_of(root):
    """gptqmodel's module without the package around it, which wants a GPU's programs."""
    for name in ("gptqmodel", "gptqmodel.utils", "gptqmodel.quantization"):
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(root, *name.split("."))]
        sys.modules[name] = package
    sys.modules["gptqmodel.utils.torch"] = types.SimpleNamespace(HAS_NPU=False)
    from gptqmodel.utils import model_dequant
    return model_dequant


def gptq(reader):
    torch.manual_seed(1)
    for name, bits, group, form, change in [
        ("gptq-4-v1", 4, 32, "gptq", {}), ("gptq-4-v2", 4, 64, "gptq_v2", {}),
        ("gptq-4-symmetric", 4, 128, "gptq", dict(sym=True)), ("gptq-4-unsaid", 4, 128, None, {}),
        ("gptq-4-column", 4, -1, "gptq", {}), ("gptq-4-small-groups", 4, 16, "gptq_v2", {}),
        ("gptq-4-by-importance", 4, 32, "gptq", dict(desc_act=True)),
        ("gptq-8-v1", 8, 32, "gptq", {}), ("gptq-8-by-importance", 8, 64, "gptq_v2", dict(desc_act=True)),
        ("gptq-2-v1", 2, 32, "gptq", {}), ("gptq-3-v1", 3, 32, "gptq", {}), ("gptq-3-v2", 3, 64, "gptq_v2", {}),
        ("gptq-3-by-importance", 3, 32, "gptq", dict(desc_act=True)),
        ("gptq-8-among-4", 8, 32, "gptq_v2", dict(bits=4)),
    ]:
        inputs, outputs = 128, 32 if bits == 3 else 16
        size = inputs if group == -1 else group
        codes = torch.randint(0, 1 << bits, (inputs, outputs), dtype=torch.int32)
        # The first form has no zeros of 0.
        zeros = torch.randint(1, 1 << bits, (inputs // size, outputs), dtype=torch.int32)
        if change.get("sym"):
            zeros = torch.full_like(zeros, 1 << (bits - 1))
        groups = torch.arange(inputs, dtype=torch.int32) // size
        if change.get("desc_act"):
            groups = groups[torch.randperm(inputs)]
        less = 0 if form == "gptq_v2" else 1
        arrays = dict(
            qweight=reader.pack_cols(codes.t().contiguous(), bits, pack_dtype=torch.int32).t().contiguous(),
            qzeros=reader.pack_cols(zeros - less, bits, pack_dtype=torch.int32),
            scales=(torch.rand(inputs // size, outputs) * 0.02 + 0.001).half(), g_idx=groups)
        settings = dict(quant_method="gptq", bits=change.get("bits", bits), group_size=group,
                        desc_act=change.get("desc_act", False), sym=change.get("sym", False))
        if form:
            settings["checkpoint_format"] = form
        with tempfile.TemporaryDirectory() as away:
            path = pathlib.Path(away, "model.safetensors")
            save_file({f"a.{part}": value for part, value in arrays.items()}, path)
            read = reader.convert_gptq_file(path, torch.float32, dict(settings, bits=bits), "cpu")
        case(name, settings, arrays, read["a.weight"], packed=group != 16 and not change.get("desc_act"))


def compressed(reader):
    torch.manual_seed(2)
    whole = dict(type="int", num_bits=4)
    for name, form, weights, inputs, packed, tolerance in [
        ("packed-4-group", "pack-quantized", dict(whole, strategy="group", group_size=32), 128, True, EXACT),
        ("packed-4-128", "pack-quantized", dict(whole, strategy="group", group_size=128), 256, True, EXACT),
        ("packed-4-channel", "pack-quantized", dict(whole, strategy="channel"), 128, True, EXACT),
        ("packed-4-channel-96", "pack-quantized", dict(whole, strategy="channel"), 96, True, EXACT),
        ("packed-4-zeros", "pack-quantized", dict(whole, strategy="group", group_size=32, symmetric=False), 128, True,
         EXACT),
        ("packed-4-channel-zeros", "pack-quantized", dict(whole, strategy="channel", symmetric=False), 64, True, EXACT),
        ("packed-4-small-groups", "pack-quantized", dict(whole, strategy="group", group_size=16), 64, False, EXACT),
        ("packed-8-group", "pack-quantized", dict(whole, num_bits=8, strategy="group", group_size=64), 64, True, EXACT),
        ("packed-8-channel-zeros", "pack-quantized", dict(whole, num_bits=8, strategy="channel", symmetric=False), 64,
         True, EXACT),
        ("packed-3-group", "pack-quantized", dict(whole, num_bits=3, strategy="group", group_size=32), 64, True, EXACT),
        ("packed-5-zeros", "pack-quantized",
         dict(whole, num_bits=5, strategy="group", group_size=32, symmetric=False), 64, True, EXACT),
        ("packed-6-channel", "pack-quantized", dict(whole, num_bits=6, strategy="channel"), 64, True, EXACT),
        ("packed-7-channel", "pack-quantized", dict(whole, num_bits=7, strategy="channel"), 64, None, EXACT),
        ("bytes-channel", "int-quantized", dict(whole, num_bits=8, strategy="channel"), 64, True, EXACT),
        ("bytes-tensor", "int-quantized", dict(whole, num_bits=8, strategy="tensor"), 64, True, EXACT),
        ("bytes-zeros", "int-quantized", dict(whole, num_bits=8, strategy="channel", symmetric=False), 64, True, EXACT),
        ("floats-channel", "float-quantized", dict(type="float", num_bits=8, strategy="channel"), 64, False, ROUNDED),
        ("floats-tensor", "float-quantized", dict(type="float", num_bits=8, strategy="tensor"), 64, False, ROUNDED),
        ("floats-block", "float-quantized", dict(type="float", num_bits=8, strategy="block", block_structure=[8, 32]),
         80, False, ROUNDED),
        ("nvfp4", "nvfp4-pack-quantized", dict(type="float", num_bits=4, strategy="tensor_group", group_size=16), 64,
         True, ROUNDED),
        ("mxfp4", "mxfp4-pack-quantized", dict(type="float", num_bits=4, strategy="group", group_size=32), 64, True,
         EXACT),
        ("mxfp8", "mxfp8-quantized", dict(type="float", num_bits=8, strategy="group", group_size=32), 64, True, EXACT),
    ]:
        if packed is None:
            continue  # MLX has no such codes: an error, which no case can show
        args = QuantizationArgs(**weights)
        scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
        weight = torch.randn(16, inputs) * 0.05
        shape = {"group": (16, inputs // (args.group_size or 1)), "tensor_group": (16, inputs // 16),
                 "channel": (16, 1), "tensor": (1,), "block": (2, -(-inputs // 32))}[str(args.strategy)]
        largest = dict(int=2.0 ** (args.num_bits - 1), float=6.0 if args.num_bits == 4 else 448.0)[str(args.type)]
        scale = (torch.rand(shape) * 0.5 + 0.75) * 0.15 / largest
        state = dict(weight=weight, weight_scale=scale.bfloat16().float())
        if form.startswith("mx"):
            state["weight_scale"] = 2.0 ** torch.randint(-9, -5, shape).float()
        if form == "nvfp4-pack-quantized":
            state["weight_global_scale"] = torch.tensor([2688.0 / 0.2])
            state["weight_scale"] = (scale * state["weight_global_scale"]).to(torch.float8_e4m3fn).float()
        if not args.symmetric:
            half = 1 << (args.num_bits - 1)
            state["weight_zero_point"] = torch.randint(-half, half, shape, dtype=torch.int8)
        compressor = BaseCompressor.get_value_from_registry(form)
        stored = compressor.compress(dict(state), scheme)
        expected = compressor.decompress(dict(stored), scheme)["weight"]
        settings = dict(quant_method="compressed-tensors", format=form, config_groups={"group_0": dict(
            targets=["Linear"], weights=dict(json.loads(args.model_dump_json())), input_activations=None,
            output_activations=None)})
        if form in ("pack-quantized", "int-quantized"):
            stored["weight_scale"] = stored["weight_scale"].bfloat16()
        case(name, settings, stored, expected, packed, tolerance)
        if name == "packed-4-group":
            by_importance(settings, stored)


def by_importance(settings, stored):
    """The same codes with groups out of order, as earlier versions stored them."""
    codes = torch.stack([stored["weight_packed"] >> shift & 15 for shift in range(0, 32, 4)], dim=2).flatten(1) - 8
    groups = (torch.arange(128, dtype=torch.int32) // 32)[torch.randperm(128)]
    expected = codes * stored["weight_scale"].float()[:, groups]
    case("packed-4-by-importance", settings, dict(stored, weight_g_idx=groups), expected, False)
    case("packed-4-in-order", settings, dict(stored, weight_g_idx=torch.full((128,), -1, dtype=torch.int32)),
         codes * stored["weight_scale"].float().repeat_interleave(32, dim=1), True)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--gptqmodel", required=True)
    ap.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures", "packed"))
    a = ap.parse_args()
    reader = reader_of(a.gptqmodel)
    gptq(reader)
    compressed(reader)
    os.makedirs(a.out, exist_ok=True)
    save_file(ARRAYS, os.path.join(a.out, "cases.safetensors"))
    with open(os.path.join(a.out, "cases.json"), "w", encoding="utf-8") as f:
        json.dump(CASES, f, indent=1, sort_keys=True)
        f.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
