//! The IQ types of 1 to 3 bits: a code chooses a whole row of a grid, four or eight numbers.
//!
//! Parts of a block have scales of their own; in IQ2 and IQ3 each number has a sign bit besides, in
//! IQ1 each part is shifted up or down a little. Places of the fields are those of ggml's structs.

use super::{f16_at, f16_to_f32, grids, u16_at, u32_at};

/// What the two bits of a number in the grids of IQ2 stand for; 3 occurs in none.
const IQ2_NUMBERS: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
const IQ3_XXS_NUMBERS: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
const IQ3_S_NUMBERS: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
const IQ1_NUMBERS: [f32; 4] = [-1.0, 0.0, 1.0, 0.0];
const IQ1_SHIFT: f32 = 0.125;

/// Scale; for each 32 numbers four codes of 8 bits, four signs of 7 bits and a scale of 4 bits.
pub(super) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let scale = f16_at(block, 0);
    for (group, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let at = 2 + group / 4 * 8;
        let signs_and_scale = u32_at(block, at + 4);
        let group_scale = scale * (0.5 + (signs_and_scale >> 28) as f32) * 0.25;
        let row = eight(grids::IQ2_XXS[usize::from(block[at + group % 4])], &IQ2_NUMBERS);
        let signs = signs_of_seven(signs_and_scale >> (group % 4 * 7));
        signed(values, group_scale, &row, signs);
    }
}

/// Scale; for each 8 numbers a code of 9 bits and a sign of 7 bits; 16 scales of 4 bits.
pub(super) fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let (scale, scales) = (f16_at(block, 0), &block[66..]);
    for (group, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let code = u16_at(block, 2 + group * 2);
        let group_scale = scale * (0.5 + f32::from(half(scales, group / 2))) * 0.25;
        let row = eight(grids::IQ2_XS[usize::from(code & 0x1ff)], &IQ2_NUMBERS);
        signed(values, group_scale, &row, signs_of_seven(u32::from(code >> 9)));
    }
}

/// Scale; the lower 8 bits of 32 codes; signs; the codes' upper 2 bits; 16 scales of 4 bits.
pub(super) fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let scale = f16_at(block, 0);
    let (lower, signs, upper, scales) = (&block[2..34], &block[34..66], &block[66..74], &block[74..]);
    for (group, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = upper[group / 4] >> (group % 4 * 2) & 0x03;
        let group_scale = scale * (0.5 + f32::from(half(scales, group / 2))) * 0.25;
        let row = eight(grids::IQ2_S[usize::from(high) << 8 | usize::from(lower[group])], &IQ2_NUMBERS);
        signed(values, group_scale, &row, signs[group]);
    }
}

/// Scale; 64 codes of 8 bits; for each 32 numbers four signs of 7 bits and a scale of 4 bits.
pub(super) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let (scale, codes) = (f16_at(block, 0), &block[2..66]);
    for (group, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let signs_and_scale = u32_at(block, 66 + group / 4 * 4);
        let group_scale = scale * (0.5 + (signs_and_scale >> 28) as f32) * 0.5;
        let row = twice_four(
            [
                grids::IQ3_XXS[usize::from(codes[group * 2])],
                grids::IQ3_XXS[usize::from(codes[group * 2 + 1])],
            ],
            &IQ3_XXS_NUMBERS,
        );
        let signs = signs_of_seven(signs_and_scale >> (group % 4 * 7));
        signed(values, group_scale, &row, signs);
    }
}

/// Scale; the lower 8 bits of 64 codes; their ninth bits; signs; 8 scales of 4 bits.
pub(super) fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let scale = f16_at(block, 0);
    let (lower, ninth, signs, scales) = (&block[2..66], &block[66..74], &block[74..106], &block[106..]);
    let grid_row = |i: usize| {
        let high = ninth[i / 8] >> (i % 8) & 1;
        grids::IQ3_S[usize::from(high) << 8 | usize::from(lower[i])]
    };
    for (group, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let group_scale = scale * f32::from(1 + 2 * half(scales, group / 4));
        let row = twice_four([grid_row(group * 2), grid_row(group * 2 + 1)], &IQ3_S_NUMBERS);
        signed(values, group_scale, &row, signs[group]);
    }
}

/// Scale; the lower 8 bits of 32 codes; for each 32 numbers the codes' upper 3 bits, a scale of 3 bits
/// and the direction of the shift.
pub(super) fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let (scale, lower) = (f16_at(block, 0), &block[2..34]);
    for (group, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let head = u16_at(block, 34 + group / 4 * 2);
        let group_scale = scale * f32::from(2 * (head >> 12 & 0x07) + 1);
        let high = head >> (group % 4 * 3) & 0x07;
        let row = eight(grids::IQ1_S[usize::from(high) << 8 | usize::from(lower[group])], &IQ1_NUMBERS);
        shifted(values, group_scale, &row, head & 0x8000 != 0);
    }
}

/// The lower 8 bits of 32 codes; for each code its upper 3 bits and the direction of the shift; four
/// times 16 bits, of which the upper four make the scale and the others four scales of 3 bits.
pub(super) fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let (lower, upper) = (&block[..32], &block[32..48]);
    let heads: [u16; 4] = std::array::from_fn(|i| u16_at(block, 48 + 2 * i));
    let scale = f16_to_f32(heads.iter().rev().fold(0, |bits, head| bits << 4 | head >> 12));
    for (group, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let part = group / 2;
        let group_scale = scale * f32::from(2 * (heads[part / 4] >> (part % 4 * 3) & 0x07) + 1);
        let head = half(upper, group);
        let row =
            eight(grids::IQ1_S[usize::from(head & 0x07) << 8 | usize::from(lower[group])], &IQ1_NUMBERS);
        shifted(values, group_scale, &row, head & 0x08 != 0);
    }
}

/// The 4 bits at a place, the lower half of a byte first.
fn half(bytes: &[u8], place: usize) -> u8 {
    bytes[place / 2] >> (place % 2 * 4) & 0x0f
}

/// The lowest seven of these bits, and an eighth that makes the number of ones even.
fn signs_of_seven(bits: u32) -> u8 {
    let seven = (bits & 0x7f) as u8;
    seven | ((seven.count_ones() & 1) as u8) << 7
}

fn eight(row: u16, numbers: &[f32; 4]) -> [f32; 8] {
    std::array::from_fn(|i| numbers[usize::from(row >> (2 * i) & 0x03)])
}

fn twice_four(rows: [u16; 2], numbers: &[f32; 8]) -> [f32; 8] {
    std::array::from_fn(|i| numbers[usize::from(rows[i / 4] >> (i % 4 * 4) & 0x07)])
}

fn signed(values: &mut [f32; 8], scale: f32, row: &[f32; 8], signs: u8) {
    for (i, (value, number)) in values.iter_mut().zip(row).enumerate() {
        let sign = if signs >> i & 1 == 0 { 1.0 } else { -1.0 };
        *value = scale * number * sign;
    }
}

fn shifted(values: &mut [f32; 8], scale: f32, row: &[f32; 8], down: bool) {
    let shift = if down { -IQ1_SHIFT } else { IQ1_SHIFT };
    for (value, number) in values.iter_mut().zip(row) {
        *value = scale * (number + shift);
    }
}
