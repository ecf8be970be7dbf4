//! The K types, 256 numbers whose parts have scales of their own, and the ternary types.
//!
//! Codes lie in planes: a run of 32 bytes (64 in Q6_K) holds in its lowest bits the codes of as many
//! neighbouring numbers, in its next bits those of the neighbours after them, and so on.

use super::{f16_at, u32_at};

/// 16 scales and minima of 4 bits; 2 bits each; scale of the scales, scale of the minima.
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    numbers_of_groups(block, out, q2_k_groups);
}

/// Two of a block's sixteen groups.
pub(in crate::models::gguf) fn q2_k_groups(block: &[u8], pair: usize) -> AffineGroups {
    let (scale, minimum) = (f16_at(block, 80), f16_at(block, 82));
    let [first, second] = [0, 1].map(|half| block[2 * pair + half]);
    let mut codes_of = codes::<2, 32>(&block[16..80], pair * 32);
    AffineGroups {
        scales: [first, second].map(|both| scale * f32::from(both & 0x0f)),
        biases: [first, second].map(|both| -(minimum * f32::from(both >> 4))),
        codes: std::array::from_fn(|_| codes_of.next().unwrap_or(0)),
    }
}

/// The third bits; 2 bits each; 16 scales of 6 bits, less 32; scale of the scales. Less 4.
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    centred_numbers(block, out, (q3_k_groups, 4));
}

/// Two of a block's sixteen groups.
pub(in crate::models::gguf) fn q3_k_groups(block: &[u8], pair: usize) -> AffineGroups {
    let (third, lower, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let scales = [0, 1].map(|half| {
        let part = 2 * pair + half;
        // Four bits in the halves of the first eight bytes, two in the quarters of the last four.
        let low = scales[part % 8] >> (part / 8 * 4) & 0x0f;
        let high = scales[8 + part % 4] >> (part / 4 * 2) & 0x03;
        f16_at(block, 108) * f32::from((low | high << 4) as i8 - 32)
    });
    let mut codes_of = codes::<2, 32>(lower, pair * 32).zip(codes::<1, 32>(third, pair * 32));
    AffineGroups {
        scales,
        biases: scales.map(|scale| -4.0 * scale),
        codes: std::array::from_fn(|_| codes_of.next().map_or(0, |(low, high)| low | high << 2)),
    }
}

/// Scale of the scales, scale of the minima; 8 scales and minima of 6 bits; 4 bits each.
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    numbers_of_groups(block, out, q4_k_group);
}

/// As `q4_k`; the fifth bits lie before the other four.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    numbers_of_groups(block, out, q5_k_group);
}

/// 32 numbers, each scale · code + bias, with the scales and biases of their two halves.
pub struct AffineGroups {
    pub scales: [f32; 2],
    pub biases: [f32; 2],
    pub codes: [u8; 32],
}

impl AffineGroups {
    /// One group.
    pub fn one(scale: f32, bias: f32, codes: [u8; 32]) -> Self {
        Self { scales: [scale; 2], biases: [bias; 2], codes }
    }
}

/// Takes a number of the 32s of a block apart.
pub type GroupsOf = fn(&[u8], usize) -> AffineGroups;

fn numbers_of_groups(block: &[u8], out: &mut [f32; 256], groups: GroupsOf) {
    for (part, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let AffineGroups { scales, biases, codes } = groups(block, part);
        for (at, (value, code)) in values.iter_mut().zip(codes).enumerate() {
            *value = scales[at / 16] * f32::from(code) + biases[at / 16];
        }
    }
}

/// The same of codes that count from a middle, as llama.cpp has it: a scale times a code may have a digit too many, and
/// zeros have signs.
fn centred_numbers(block: &[u8], out: &mut [f32; 256], (groups, middle): (GroupsOf, i8)) {
    for (part, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let AffineGroups { scales, codes, .. } = groups(block, part);
        for (at, (value, code)) in values.iter_mut().zip(codes).enumerate() {
            *value = scales[at / 16] * f32::from(code as i8 - middle);
        }
    }
}

/// One of a block's eight groups.
pub(in crate::models::gguf) fn q4_k_group(block: &[u8], part: usize) -> AffineGroups {
    let (scale, minimum) = scale_and_minimum(&block[..16], part);
    let mut codes_of = codes::<4, 32>(&block[16..], part * 32);
    AffineGroups::one(scale, -minimum, std::array::from_fn(|_| codes_of.next().unwrap_or(0)))
}

/// One of a block's eight groups.
pub(in crate::models::gguf) fn q5_k_group(block: &[u8], part: usize) -> AffineGroups {
    let (scale, minimum) = scale_and_minimum(&block[..16], part);
    let mut codes_of = codes::<4, 32>(&block[48..], part * 32).zip(codes::<1, 32>(&block[16..48], part * 32));
    let codes = std::array::from_fn(|_| codes_of.next().map_or(0, |(low, high)| low | high << 4));
    AffineGroups::one(scale, -minimum, codes)
}

/// The lower 4 bits; the upper 2 bits; 16 signed scales of 8 bits; scale of the scales. Less 32.
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    centred_numbers(block, out, (q6_k_groups, 32));
}

/// Two of a block's sixteen groups.
pub(in crate::models::gguf) fn q6_k_groups(block: &[u8], pair: usize) -> AffineGroups {
    let (lower, upper, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scales = [0, 1].map(|half| f16_at(block, 208) * f32::from(scales[2 * pair + half] as i8));
    let mut codes_of = codes::<4, 64>(lower, pair * 32).zip(codes::<2, 32>(upper, pair * 32));
    AffineGroups {
        scales,
        biases: scales.map(|scale| -32.0 * scale),
        codes: std::array::from_fn(|_| codes_of.next().map_or(0, |(low, high)| low | high << 4)),
    }
}

/// Scale in f32; 8 bits each, signed; sums that only multiplication uses.
pub(super) fn q8_k(block: &[u8; 292], out: &mut [f32; 256]) {
    let scale = f32::from_bits(u32_at(block, 0));
    for (value, &byte) in out.iter_mut().zip(&block[4..]) {
        *value = scale * f32::from(byte as i8);
    }
}

/// Five trits a byte in 32 and 16 bytes, four trits a byte in 4 bytes; scale.
pub(super) fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let scale = f16_at(block, 52);
    let mut values = out.iter_mut();
    for (bytes, powers) in [
        (&block[..32], &[1u8, 3, 9, 27, 81][..]),
        (&block[32..48], &[1, 3, 9, 27, 81]),
        (&block[48..52], &[1, 3, 9, 27]),
    ] {
        for &power in powers {
            // A byte is a fraction of 256 in base 3: multiplied by a power of 3, modulo 256, it starts
            // with the trit wanted.
            for (&byte, value) in bytes.iter().zip(&mut values) {
                let trit = (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
                *value = scale * f32::from(trit as i8 - 1);
            }
        }
    }
}

/// 2 bits each, less 1; scale.
pub(super) fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let scale = f16_at(block, 64);
    for (part, values) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (value, code) in values.iter_mut().zip(codes::<2, 32>(&block[..64], part * 32)) {
            *value = scale * f32::from(code as i8 - 1);
        }
    }
}

/// The codes of number `place` and of those after it in its plane.
fn codes<const CODE_BITS: usize, const PLANE_BYTES: usize>(
    bytes: &[u8],
    place: usize,
) -> impl Iterator<Item = u8> {
    let (plane, in_plane) = (place / PLANE_BYTES, place % PLANE_BYTES);
    let codes_per_byte = 8 / CODE_BITS;
    let run = &bytes[plane / codes_per_byte * PLANE_BYTES..][..PLANE_BYTES];
    let shift = plane % codes_per_byte * CODE_BITS;
    run[in_plane..].iter().map(move |byte| byte >> shift & ((1 << CODE_BITS) - 1))
}

/// The scale and minimum of one of eight parts, from the head that Q4_K and Q5_K share.
///
/// Of the twelve bytes that hold them, the first four have the scales of parts 0 to 3 in their lower
/// six bits, the next four the minima; the last four have the lower four bits of scale and minimum of
/// parts 4 to 7, whose upper two lie in the upper bits of the others.
fn scale_and_minimum(head: &[u8], part: usize) -> (f32, f32) {
    let (scales, minima, mixed) = (&head[4..8], &head[8..12], &head[12..16]);
    let (scale, minimum) = match part.checked_sub(4) {
        None => (scales[part] & 0x3f, minima[part] & 0x3f),
        Some(i) => (mixed[i] & 0x0f | scales[i] >> 2 & 0x30, mixed[i] >> 4 | minima[i] >> 2 & 0x30),
    };
    (f16_at(head, 0) * f32::from(scale), f16_at(head, 2) * f32::from(minimum))
}
