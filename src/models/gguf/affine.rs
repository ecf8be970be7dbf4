//! The block types that are affine groups: each number is scale · code + bias, with codes of a few bits.
//!
//! Owns taking such a block apart, without rounding. Blocks of any type as numbers are `decode`'s.

use super::decode::{
    AffineGroups, GroupsOf, f16_at, q2_k_groups, q3_k_groups, q4_k_group, q5_k_group, q6_k_groups,
};

/// How a type's blocks become groups of codes.
#[derive(Clone, Copy)]
pub struct Affine {
    /// Bits of a code.
    pub bits: usize,
    /// Numbers that share a scale and a bias: 16 or 32.
    pub group_size: usize,
    parts_per_block: usize,
    part: GroupsOf,
}

/// Numbers that are taken out of a block at once.
pub const PART_SIZE: usize = 32;

/// The affine form of a tensor type, if it has one.
pub fn affine(type_code: u32) -> Option<Affine> {
    let (bits, group_size, parts_per_block, part): (_, _, _, GroupsOf) = match type_code {
        2 => (4, 32, 1, |block, _| centred(block, 4, four_bits(&block[2..]))),
        3 => (4, 32, 1, |block, _| with_bias(block, four_bits(&block[4..]))),
        6 => (5, 32, 1, |block, _| centred(block, 5, five_bits(&block[2..]))),
        7 => (5, 32, 1, |block, _| with_bias(block, five_bits(&block[4..]))),
        8 => (8, 32, 1, |block, _| centred(block, 8, std::array::from_fn(|at| block[2 + at] ^ 0x80))),
        10 => (2, 16, 8, q2_k_groups),
        11 => (3, 16, 8, q3_k_groups),
        12 => (4, 32, 8, q4_k_group),
        13 => (5, 32, 8, q5_k_group),
        14 => (6, 16, 8, q6_k_groups),
        _ => return None,
    };
    Some(Affine { bits, group_size, parts_per_block, part })
}

impl Affine {
    /// Takes blocks apart that follow each other: writes the codes behind each other, the first in the lowest bits,
    /// and each group's scale and bias.
    pub fn unpack<'b>(
        self,
        blocks: impl Iterator<Item = &'b [u8]>,
        words: &mut [u32],
        (scales, biases): (&mut [f32], &mut [f32]),
    ) {
        let groups_per_part = PART_SIZE / self.group_size;
        let parts = blocks.flat_map(|block| (0..self.parts_per_block).map(move |part| (block, part)));
        let groups = scales.chunks_mut(groups_per_part).zip(biases.chunks_mut(groups_per_part));
        for ((block, part), (words, (scales, biases))) in parts.zip(words.chunks_mut(self.bits).zip(groups)) {
            let part = (self.part)(block, part);
            scales.copy_from_slice(&part.scales[..groups_per_part]);
            biases.copy_from_slice(&part.biases[..groups_per_part]);
            words.fill(0);
            for (number, code) in part.codes.into_iter().enumerate() {
                let at = number * self.bits;
                let bits = u64::from(code) << (at % 32);
                words[at / 32] |= bits as u32;
                if bits >> 32 != 0 {
                    words[at / 32 + 1] |= (bits >> 32) as u32;
                }
            }
        }
    }
}

/// A block that begins with its scale; codes of so many bits count from their middle.
fn centred(block: &[u8], bits: usize, codes: [u8; PART_SIZE]) -> AffineGroups {
    let scale = f16_at(block, 0);
    AffineGroups::one(scale, -scale * (1_u32 << (bits - 1)) as f32, codes)
}

/// A block that begins with its scale and bias.
fn with_bias(block: &[u8], codes: [u8; PART_SIZE]) -> AffineGroups {
    AffineGroups::one(f16_at(block, 0), f16_at(block, 2), codes)
}

/// Sixteen bytes: the low halves come first.
fn four_bits(bytes: &[u8]) -> [u8; PART_SIZE] {
    std::array::from_fn(|at| if at < 16 { bytes[at] & 15 } else { bytes[at - 16] >> 4 })
}

/// The fifth bits of all, then the rest as [`four_bits`].
fn five_bits(bytes: &[u8]) -> [u8; PART_SIZE] {
    let low = four_bits(&bytes[4..]);
    std::array::from_fn(|at| low[at] | ((bytes[at / 8] >> (at % 8)) & 1) << 4)
}
