//! Types whose codes of 4 bits choose among sixteen fixed numbers: IQ4_NL, IQ4_XS, MXFP4, NVFP4.

use super::{f16_at, u16_at};

/// Steps that grow with the distance from zero.
const UNEVEN: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// The numbers of four-bit floats (E2M1), doubled.
const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Scale; 32 codes.
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    look_up(&UNEVEN, f16_at(block, 0), &block[2..], out);
}

/// Scale of the scales; the upper 2 bits of 8 scales, their lower 4 bits; 8 times 32 codes.
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let (scale, upper, lower) = (f16_at(block, 0), u16_at(block, 2), &block[4..8]);
    let parts = out.as_chunks_mut::<32>().0.iter_mut().zip(block[8..].chunks(16));
    for (part, (values, codes)) in parts.enumerate() {
        let low = lower[part / 2] >> (part % 2 * 4) & 0x0f;
        let high = (upper >> (part * 2) & 0x03) as u8;
        look_up(&UNEVEN, scale * f32::from((low | high << 4) as i8 - 32), codes, values);
    }
}

/// Scale, a power of two as its exponent; 32 codes.
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    look_up(&E2M1_DOUBLED, half_e8m0(block[0]), &block[1..], out);
}

/// 4 scales, floats of 8 bits; 4 times 16 codes.
pub(super) fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    let (scales, codes) = block.split_at(4);
    for (part, values) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        look_up(&E2M1_DOUBLED, half_ue4m3(scales[part]), &codes[part * 8..][..8], values);
    }
}

/// Writes the numbers of a block's codes: the low halves of all bytes, then the high halves.
fn look_up(table: &[i8; 16], scale: f32, codes: &[u8], out: &mut [f32]) {
    let (first, second) = out.split_at_mut(codes.len());
    for ((&byte, low), high) in codes.iter().zip(first).zip(second) {
        *low = scale * f32::from(table[usize::from(byte & 0x0f)]);
        *high = scale * f32::from(table[usize::from(byte >> 4)]);
    }
}

/// Half of 2^(code - 127), since the table's numbers are doubled.
fn half_e8m0(code: u8) -> f32 {
    // The two smallest are subnormal.
    f32::from_bits(if code < 2 { 0x0020_0000 << code } else { u32::from(code - 1) << 23 })
}

/// Half of an unsigned float of 4 bits exponent and 3 bits fraction; its NaN (0x7f) counts as zero.
fn half_ue4m3(code: u8) -> f32 {
    let (exponent, fraction) = (u32::from(code >> 3 & 0x0f), f32::from(code & 0x07));
    let power_of_two = |exponent: u32| f32::from_bits(exponent << 23);
    match (code, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => fraction * power_of_two(127 - 9) * 0.5,
        _ => (1.0 + fraction / 8.0) * power_of_two(exponent + 127 - 7) * 0.5,
    }
}
