//! The block types that are affine groups: each number is scale · code + bias, with codes of a few bits.
//!
//! Owns taking such a block apart, without rounding. Blocks of any type as numbers are `decode`'s.

use super::decode::{AffineGroup, f16_at, q4_k_group, q5_k_group};

/// How a type's blocks become groups of codes.
#[derive(Clone, Copy)]
pub struct Affine {
    /// Bits of a code.
    pub bits: usize,
    pub groups_per_block: usize,
    group: fn(&[u8], usize) -> AffineGroup,
}

/// Numbers that share a scale.
pub const GROUP_SIZE: usize = 32;

/// The affine form of a tensor type, if it has one.
pub fn affine(type_code: u32) -> Option<Affine> {
    let (bits, groups_per_block, group): (_, _, fn(&[u8], usize) -> AffineGroup) = match type_code {
        2 => (4, 1, |block, _| centred(block, 4, four_bits(&block[2..]))),
        3 => (4, 1, |block, _| with_bias(block, four_bits(&block[4..]))),
        6 => (5, 1, |block, _| centred(block, 5, five_bits(&block[2..]))),
        7 => (5, 1, |block, _| with_bias(block, five_bits(&block[4..]))),
        8 => (8, 1, |block, _| centred(block, 8, std::array::from_fn(|at| block[2 + at] ^ 0x80))),
        12 => (4, 8, q4_k_group),
        13 => (5, 8, q5_k_group),
        _ => return None,
    };
    Some(Affine { bits, groups_per_block, group })
}

impl Affine {
    /// Writes the codes of one of a block's groups behind each other, the first in the lowest bits, into as many
    /// words as a code has bits; returns scale and bias.
    pub fn unpack(self, block: &[u8], group: usize, words: &mut [u32]) -> (f32, f32) {
        let AffineGroup { scale, bias, codes } = (self.group)(block, group);
        words.fill(0);
        for (number, code) in codes.into_iter().enumerate() {
            let at = number * self.bits;
            let bits = u64::from(code) << (at % 32);
            words[at / 32] |= bits as u32;
            if bits >> 32 != 0 {
                words[at / 32 + 1] |= (bits >> 32) as u32;
            }
        }
        (scale, bias)
    }
}

/// A block that begins with its scale; codes of so many bits count from their middle.
fn centred(block: &[u8], bits: usize, codes: [u8; GROUP_SIZE]) -> AffineGroup {
    let scale = f16_at(block, 0);
    AffineGroup { scale, bias: -scale * (1_u32 << (bits - 1)) as f32, codes }
}

/// A block that begins with its scale and bias.
fn with_bias(block: &[u8], codes: [u8; GROUP_SIZE]) -> AffineGroup {
    AffineGroup { scale: f16_at(block, 0), bias: f16_at(block, 2), codes }
}

/// Sixteen bytes: the low halves come first.
fn four_bits(bytes: &[u8]) -> [u8; GROUP_SIZE] {
    std::array::from_fn(|at| if at < 16 { bytes[at] & 15 } else { bytes[at - 16] >> 4 })
}

/// The fifth bits of all, then the rest as [`four_bits`].
fn five_bits(bytes: &[u8]) -> [u8; GROUP_SIZE] {
    let low = four_bits(&bytes[4..]);
    std::array::from_fn(|at| low[at] | ((bytes[at / 8] >> (at % 8)) & 1) << 4)
}
