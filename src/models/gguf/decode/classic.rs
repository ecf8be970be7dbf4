//! Plain floats, and ggml's first quantised types: 32 numbers that share a scale, some also a minimum.
//!
//! In blocks of 4 and 5 bits the first 16 numbers lie in the low halves of 16 bytes, the other 16 in
//! the high halves; the fifth bits lie apart, in 32 bits of their own.

use super::{f16_at, f16_to_f32, u32_at};

pub(super) fn f32(block: &[u8; 4], out: &mut [f32; 1]) {
    out[0] = f32::from_le_bytes(*block);
}

pub(super) fn f64(block: &[u8; 8], out: &mut [f32; 1]) {
    out[0] = f64::from_le_bytes(*block) as f32;
}

pub(super) fn f16(block: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = f16_to_f32(u16::from_le_bytes(*block));
}

/// The upper half of an f32.
pub(super) fn bf16(block: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = f32::from_bits(u32::from(u16::from_le_bytes(*block)) << 16);
}

/// Scale; 32 times 4 bits, less 8.
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    halves(&block[2..], out, |_, low| scale * f32::from(low as i8 - 8));
}

/// Scale, minimum; 32 times 4 bits.
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (f16_at(block, 0), f16_at(block, 2));
    halves(&block[4..], out, |_, low| scale * f32::from(low) + minimum);
}

/// Scale; the fifth bits; 32 times 4 bits. Less 16.
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let (scale, fifth) = (f16_at(block, 0), u32_at(block, 2));
    halves(&block[6..], out, |i, low| scale * f32::from(with_fifth(low, fifth, i) as i8 - 16));
}

/// Scale, minimum; the fifth bits; 32 times 4 bits.
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, minimum, fifth) = (f16_at(block, 0), f16_at(block, 2), u32_at(block, 4));
    halves(&block[8..], out, |i, low| scale * f32::from(with_fifth(low, fifth, i)) + minimum);
}

/// Scale; 32 times 8 bits, signed.
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    for (value, &byte) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(byte as i8) * scale;
    }
}

/// Calls `number` with the place and the four bits of each number of a block.
fn halves(bytes: &[u8], out: &mut [f32; 32], number: impl Fn(usize, u8) -> f32) {
    let (first, second) = out.split_at_mut(16);
    for (i, &byte) in bytes.iter().enumerate() {
        first[i] = number(i, byte & 0x0f);
        second[i] = number(i + 16, byte >> 4);
    }
}

fn with_fifth(low: u8, fifth: u32, i: usize) -> u8 {
    low | ((fifth >> i & 1) as u8) << 4
}
