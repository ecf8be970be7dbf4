"""Publishers' packed formats: how a tiny model is written in them, and what they stand for, by NumPy.

MLX's own (affine, mxfp4, nvfp4, mxfp8 with weight, scales, biases) are only decoded here; AWQ and
gpt-oss's mxfp4 blocks are written, too.  `decode_all` is what the transformers reference reads, so
that no decoder of MLX's is checked against itself.  Names of weights are publisher.py's.
"""
import mlx.core as mx
import numpy

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight neighbours lies in each nibble's place, lowest bits first


def unpacked(packed, bits):
    """Unsigned integers of `bits` (4 or 8) each from words of 32, lowest bits first: (..., 32 // bits * words)."""
    lanes = packed[..., None] >> numpy.arange(0, 32, bits, dtype=numpy.uint32) & (2 ** bits - 1)
    return lanes.reshape(*packed.shape[:-1], -1)


def small_float(code, exponent_bits, mantissa_bits):
    """What a float of few bits (e2m1, e4m3) means; the formats have no infinities, and no NaN is expected."""
    bias = 2 ** (exponent_bits - 1) - 1
    mantissa = (code & (2 ** mantissa_bits - 1)) / 2.0 ** mantissa_bits
    exponent = (code >> mantissa_bits & (2 ** exponent_bits - 1)).astype(numpy.int64)
    size = numpy.where(exponent > 0, (1 + mantissa) * 2.0 ** (exponent - bias), mantissa * 2.0 ** (1 - bias))
    return numpy.where(code >> (exponent_bits + mantissa_bits) & 1, -size, size)


def decoded(packed, scales, biases, group_size, bits, mode="affine"):
    """The matrix that MLX's packed one stands for, by the formats' definitions (float64)."""
    code = unpacked(packed, bits)
    spread = lambda x: numpy.repeat(x, group_size, axis=-1)  # noqa: E731
    if mode == "affine":
        return code * spread(scales.astype(float)) + spread(biases.astype(float))
    values = small_float(code, *((2, 1) if bits == 4 else (4, 3)))
    return values * spread(small_float(scales, 4, 3) if mode == "nvfp4" else 2.0 ** (scales.astype(float) - 127))


# ---------------------------------------------------------------- AWQ: (in, out / 8), order of its own
def awq_packed(code):
    """(rows, columns) of 4 bits as int32 (rows, columns / 8)."""
    eights = code.astype(numpy.uint32).reshape(len(code), -1, 8)[..., list(AWQ_ORDER)]
    return (eights << numpy.arange(0, 32, 4, dtype=numpy.uint32)).sum(-1, dtype=numpy.uint32).view(numpy.int32)


def awq_unpacked(packed):
    lanes = packed.view(numpy.uint32)[..., None] >> numpy.arange(0, 32, 4, dtype=numpy.uint32) & 15
    out = numpy.empty_like(lanes)
    out[..., list(AWQ_ORDER)] = lanes
    return out.reshape(len(packed), -1)


def as_awq(params, group_size):
    """The projections of a model without experts in AWQ's form, the rest in float16."""
    out = {}
    for name, value in params.items():
        if not name.endswith("_proj.weight"):
            out[name] = value.astype(mx.float16)
            continue
        w = numpy.array(value.astype(mx.float32)).T  # (in, out)
        groups = w.reshape(-1, group_size, w.shape[1])
        low, high = numpy.minimum(groups.min(1), 0), numpy.maximum(groups.max(1), 0)
        # seven bits of mantissa: zero times scale is then exact in float16
        mantissa, exponent = numpy.frexp((high - low) / 15)
        scales = numpy.ldexp(numpy.ceil(mantissa * 128) / 128, exponent)
        zeros = numpy.rint(-low / scales)
        code = numpy.clip(numpy.rint(groups / scales[:, None]) + zeros[:, None], 0, 15).reshape(w.shape)
        path = name.removesuffix(".weight")
        out[f"{path}.qweight"] = mx.array(awq_packed(code))
        out[f"{path}.qzeros"] = mx.array(awq_packed(zeros))
        out[f"{path}.scales"] = mx.array(scales.astype(numpy.float16))
    return out


def awq_decoded(packed, zeros, scales):
    """(out, in), as a linear layer has it."""
    group_size = len(packed) // len(scales)
    spread = lambda x: numpy.repeat(x, group_size, axis=0)  # noqa: E731
    return ((awq_unpacked(packed) - spread(awq_unpacked(zeros).astype(float))) * spread(scales.astype(float))).T


# ---------------------------------------------------------------- gpt-oss: blocks of 32 as 16 bytes
def as_blocks(params):
    """mlx-lm's mxfp4 experts as the publisher's: rows of gate and up in turns, bytes in blocks; the rest bfloat16."""
    params = {n: v.astype(mx.bfloat16) if mx.issubdtype(v.dtype, mx.floating) else v for n, v in params.items()}
    out = {}
    for name, value in params.items():
        base, found, tail = name.partition(".mlp.experts.")
        if not found or tail.startswith("up_proj"):
            out.update({} if found else {name: value})
            continue
        which, part = tail.split(".")
        if which == "gate_proj":
            up = params[name.replace("gate_proj", "up_proj")]
            value = mx.flatten(mx.stack([value, up], axis=2), 1, 2)
        if part == "weight":
            value = mx.unflatten(value.view(mx.uint8), -1, (-1, 16))
        suffix = {"weight": "_blocks", "scales": "_scales", "bias": "_bias"}[part]
        out[f"{base}.mlp.experts.{'gate_up' if which == 'gate_proj' else 'down'}_proj{suffix}"] = value
    return out


def blocks_decoded(blocks, scales):
    """(num_experts, in, out), as transformers has gpt-oss's experts."""
    code = numpy.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    values = small_float(code, 2, 1) * 2.0 ** (scales[..., None].astype(float) - 127)
    return values.reshape(*values.shape[:-2], -1).swapaxes(1, 2)


def decode_all(params, config):
    """`params` with each packed matrix as the float32 matrix that it stands for."""
    settings, out = config.get("quantization"), {}
    numbers = lambda name: None if name not in params else numpy.array(params[name])  # noqa: E731
    for name, value in params.items():
        path, _, part = name.rpartition(".")
        if part == "qweight":
            name = f"{path}.weight"
            value = awq_decoded(*(numbers(f"{path}.{p}") for p in ("qweight", "qzeros", "scales")))
        elif part.endswith("_blocks"):
            name = name.removesuffix("_blocks")
            value = blocks_decoded(numbers(f"{name}_blocks"), numbers(f"{name}_scales"))
        elif part == "weight" and f"{path}.scales" in params:
            own = settings.get(path) or {k: settings[k] for k in ("group_size", "bits", "mode") if k in settings}
            value = decoded(*(numbers(f"{path}.{p}") for p in ("weight", "scales", "biases")), **own)
        elif part in ("scales", "biases", "qzeros") or part.endswith("_scales"):
            continue
        out[name] = mx.array(value.astype(numpy.float32)) if isinstance(value, numpy.ndarray) else value
    return out
