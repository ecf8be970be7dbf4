#!/usr/bin/env python3
"""Blocks of every GGUF tensor type with the numbers that gguf-py decodes from them.

  python make_gguf_fixture.py fixture [--out fixtures/gguf_blocks.json]
  python make_gguf_fixture.py grids [--out src/models/gguf/decode/grids.rs]

fixture writes a list of {"name", "code", "num_block_values", "bytes", "values"}: a few blocks of
random bytes (fixed seed) of each type, in hexadecimal, and what they decode to, in hexadecimal
little-endian f32.  Where a type has f16 scales, or is itself a float, these bits are replaced by
numbers that are neither infinite nor NaN.

grids writes the tables of the IQ types as Rust, packed as in gguf-py's quants.py (MIT licence).

The reference is gguf 0.19.0 with numpy 2.  It does not decode F64 (here: numpy's rounding) and
Q8_K (here: an f32 scale times signed bytes, as in ggml's dequantize_row_q8_K).
"""
import argparse
import json
import random
import struct
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T

HERE = Path(__file__).resolve().parent
SEED = 13

# Where a block holds f16 scales (minima too).
F16_AT = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
    T.IQ2_XXS: [0], T.IQ2_XS: [0], T.IQ2_S: [0], T.IQ3_XXS: [0], T.IQ3_S: [0],
    T.IQ1_S: [0], T.IQ4_NL: [0], T.IQ4_XS: [0], T.TQ1_0: [52], T.TQ2_0: [64], T.F16: [0],
}
OTHERS = [T.F32, T.F64, T.BF16, T.Q8_K, T.IQ1_M, T.MXFP4, T.NVFP4]


def finite(rng, name):
    """A random block of a type without infinities and NaN."""
    block = bytearray(rng.randbytes(GGML_QUANT_SIZES[name][1]))
    value = rng.choice([-1, 1]) * 2 ** rng.uniform(-12, 2)
    for at in F16_AT.get(name, []):
        block[at:at + 2] = struct.pack("<e", rng.choice([-1, 1]) * 2 ** rng.uniform(-18, 2))
    if name in (T.F32, T.Q8_K):
        block[:4] = struct.pack("<f", value)
    elif name == T.F64:
        block[:] = struct.pack("<d", value)
    elif name == T.BF16:
        block[:] = struct.pack("<f", value)[2:]
    elif name == T.IQ1_M:
        # The scale's four bits each are the upper bits of four numbers of 16 bits, lowest first.
        bits = struct.unpack("<H", struct.pack("<e", value))[0]
        for i in range(4):
            at = 48 + 2 * i + 1
            block[at] = block[at] & 0x0F | (bits >> 4 * i & 0x0F) << 4
    elif name == T.MXFP4:
        block[0] = rng.choice([0, 1, 2, rng.randrange(90, 160)])
    elif name == T.NVFP4:
        # Zero, a subnormal, the NaN that counts as zero, and one of those with a sign bit.
        block[:2] = rng.sample([0, 5, 0x7F, 0xFF], 2)
    return bytes(block)


def decoded(name, blocks):
    data = np.frombuffer(blocks, np.uint8)
    if name == T.F64:
        return data.view(np.float64).astype(np.float32)
    if name == T.Q8_K:
        data = data.reshape(-1, 292)
        return data[:, :4].copy().view(np.float32) * data[:, 4:260].view(np.int8).astype(np.float32)
    return quants.dequantize(data, name)


def fixture(out):
    rng = random.Random(SEED)
    rows = []
    for name in sorted([*F16_AT, *OTHERS]):
        size = GGML_QUANT_SIZES[name][0]
        blocks = b"".join(finite(rng, name) for _ in range({1: 16, 32: 4, 64: 4, 256: 2}[size]))
        values = decoded(name, blocks)
        assert values.dtype == np.float32 and np.isfinite(values).all(), name
        rows.append({"name": name.name, "code": int(name), "num_block_values": size,
                     "bytes": blocks.hex(), "values": values.tobytes().hex()})
    out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


GRIDS_HEAD = f"""\
//! The grids of the IQ types: rows of small numbers that a code chooses whole.
//!
//! Written by `scripts/make_gguf_fixture.py grids` from `quants.py` of gguf {version("gguf")} (PyPI; MIT
//! licence, Copyright (c) 2023 Georgi Gerganov), packed as there: a row is 16 bits in little-endian
//! hexadecimal, its numbers from the lowest bits up, two bits each of eight or four bits each of
//! four. What the bits stand for is the reader's, `iq.rs`.

/// Reads rows of four hexadecimal digits, while the program is compiled.
const fn rows<const N: usize>(hex: &str) -> [u16; N] {{
    const fn digit(ascii: u8) -> u16 {{
        (if ascii >= b'a' {{ ascii - b'a' + 10 }} else {{ ascii - b'0' }}) as u16
    }}
    let hex = hex.as_bytes();
    assert!(hex.len() == 4 * N);
    let mut rows = [0; N];
    let mut i = 0;
    while i < N {{
        let at = 4 * i;
        let low = digit(hex[at]) << 4 | digit(hex[at + 1]);
        let high = digit(hex[at + 2]) << 4 | digit(hex[at + 3]);
        rows[i] = low | high << 8;
        i += 1;
    }}
    rows
}}
"""


def grids(out):
    text = [GRIDS_HEAD]
    for name in [T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S, T.IQ1_S]:
        traits = quants._type_traits[name]
        digits = traits.grid_hex.decode()
        lines = [digits[at:at + 96] for at in range(0, len(digits), 96)]
        text.append(f"pub(super) static {name.name}: [u16; {traits.grid_shape[0]}] = rows(\n    \"\\")
        text += [f"    {line}\\" for line in lines[:-1]]
        text.append(f"    {lines[-1]}\",\n);\n")
    out.write_text("\n".join(text).rstrip("\n") + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["fixture", "grids"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.what == "fixture":
        fixture(args.out or HERE.parent / "fixtures" / "gguf_blocks.json")
    else:
        grids(args.out or HERE.parent / "src" / "models" / "gguf" / "decode" / "grids.rs")


if __name__ == "__main__":
    main()
