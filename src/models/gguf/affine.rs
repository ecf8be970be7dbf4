//! The block types that are affine groups: each number is scale · code + bias, with codes of a few bits.
//!
//! Owns taking such a block apart, without rounding. Blocks of any type as numbers are `decode`'s.

use super::decode::f16_at;

/// Takes what follows scale and bias apart.
type Codes = fn(&[u8]) -> [u8; GROUP_SIZE];

/// How a type's blocks of 32 numbers become codes.
#[derive(Clone, Copy)]
pub struct Affine {
    /// Bits of a code.
    pub bits: usize,
    /// Whether a second float16 is the bias; else the codes are centred at 0.
    has_bias: bool,
    codes: Codes,
}

/// Numbers that share a scale.
pub const GROUP_SIZE: usize = 32;

/// The affine form of a tensor type, if it has one.
pub fn affine(type_code: u32) -> Option<Affine> {
    let (bits, has_bias, codes): (_, _, Codes) = match type_code {
        2 => (4, false, four_bits),
        3 => (4, true, four_bits),
        6 => (5, false, five_bits),
        7 => (5, true, five_bits),
        8 => (8, false, |bytes| std::array::from_fn(|at| bytes[at] ^ 0x80)),
        _ => return None,
    };
    Some(Affine { bits, has_bias, codes })
}

impl Affine {
    /// Writes a block's codes behind each other, the first in the lowest bits, into as many words as a code
    /// has bits; returns scale and bias.
    pub fn unpack(self, block: &[u8], words: &mut [u32]) -> (f32, f32) {
        let scale = f16_at(block, 0);
        let (bias, codes) = match self.has_bias {
            true => (f16_at(block, 2), &block[4..]),
            false => (-scale * (1_u32 << (self.bits - 1)) as f32, &block[2..]),
        };
        words.fill(0);
        for (number, code) in (self.codes)(codes).into_iter().enumerate() {
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

/// Sixteen bytes: the low halves come first.
fn four_bits(bytes: &[u8]) -> [u8; GROUP_SIZE] {
    std::array::from_fn(|at| if at < 16 { bytes[at] & 15 } else { bytes[at - 16] >> 4 })
}

/// The fifth bits of all, then the rest as [`four_bits`].
fn five_bits(bytes: &[u8]) -> [u8; GROUP_SIZE] {
    let low = four_bits(&bytes[4..]);
    std::array::from_fn(|at| low[at] | ((bytes[at / 8] >> (at % 8)) & 1) << 4)
}
