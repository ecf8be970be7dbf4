//! How numbers are packed into words.
//!
//! Owns what the codes of each format stand for, and making vectors of 32 of them at a time. Where the words are and which
//! scale a group has is `decode`'s.

use super::decode::{Format, PackedMatrix};
use crate::mlx::sys::{Instructions, NUM_LANES};

/// A way in which 32 numbers are packed into B words.
pub(super) trait Packing<const B: usize> {
    /// Them in order, the numbers of each vector with its scale and, where they have one, its bias.
    fn numbers<I: Instructions>(words: &[u32; B], scales_and_biases: [(f32, f32); 2]) -> [I::Vector; 2];
}

/// Work that depends on the way of packing, and on whether the two vectors of a pair have G = 2 scales or one.
pub(super) trait PackedWork {
    fn run<const B: usize, const G: usize, P: Packing<B>>(self);
}

impl PackedMatrix<'_> {
    /// Does it for this matrix's way.
    pub(super) fn choose(&self, work: impl PackedWork) {
        let has_two_scales = self.group_size == NUM_LANES;
        match (self.format, has_two_scales) {
            (Format::Affine { bits: 2 }, false) => work.run::<2, 1, Integers>(),
            (Format::Affine { bits: 2 }, true) => work.run::<2, 2, Integers>(),
            (Format::Affine { bits: 3 }, false) => work.run::<3, 1, Integers>(),
            (Format::Affine { bits: 3 }, true) => work.run::<3, 2, Integers>(),
            (Format::Affine { bits: 4 }, false) => work.run::<4, 1, Integers>(),
            (Format::Affine { bits: 4 }, true) => work.run::<4, 2, Integers>(),
            (Format::Affine { bits: 5 }, false) => work.run::<5, 1, Integers>(),
            (Format::Affine { bits: 5 }, true) => work.run::<5, 2, Integers>(),
            (Format::Affine { bits: 6 }, false) => work.run::<6, 1, Integers>(),
            (Format::Affine { bits: 6 }, true) => work.run::<6, 2, Integers>(),
            (Format::Affine { .. }, false) => work.run::<8, 1, Integers>(),
            (Format::Affine { .. }, true) => work.run::<8, 2, Integers>(),
            (Format::Mxfp4 | Format::Nvfp4, false) => work.run::<4, 1, E2m1>(),
            (Format::Mxfp4 | Format::Nvfp4, true) => work.run::<4, 2, E2m1>(),
            (Format::Mxfp8, false) => work.run::<8, 1, E4m3>(),
            (Format::Mxfp8, true) => work.run::<8, 2, E4m3>(),
            (Format::Bfloat16, _) => work.run::<16, 1, Bfloat16>(),
            (Format::Float16, _) => work.run::<16, 1, Float16>(),
            (Format::Float32, _) => work.run::<32, 1, Float32>(),
        }
    }
}

impl Format {
    /// What a byte of scales stands for.
    pub(super) fn scales(self) -> &'static [f32; 256] {
        if self == Self::Nvfp4 { &E4M3 } else { &E8M0 }
    }
}

/// Whole numbers of B bits each, some of them across two words.
pub(super) struct Integers;

impl<const B: usize> Packing<B> for Integers {
    #[inline(always)]
    fn numbers<I: Instructions>(words: &[u32; B], scales_and_biases: [(f32, f32); 2]) -> [I::Vector; 2] {
        I::scaled(words, scales_and_biases)
    }
}

/// Of four bits one is the sign, two are the exponent and one is the fraction.
pub(super) struct E2m1;

impl Packing<4> for E2m1 {
    #[inline(always)]
    fn numbers<I: Instructions>(words: &[u32; 4], scales: [(f32, f32); 2]) -> [I::Vector; 2] {
        let [low, high] = I::looked_up(&E2M1, words);
        [I::product(low, I::splat(scales[0].0)), I::product(high, I::splat(scales[1].0))]
    }
}

/// Of eight bits one is the sign, four are the exponent and three are the fraction.
pub(super) struct E4m3;

impl Packing<8> for E4m3 {
    #[inline(always)]
    fn numbers<I: Instructions>(words: &[u32; 8], scales: [(f32, f32); 2]) -> [I::Vector; 2] {
        let mut vectors = [[0.0; NUM_LANES]; 2];
        for ((vector, words), (scale, _)) in vectors.iter_mut().zip(words.as_chunks::<4>().0).zip(scales) {
            let bytes = bytes_of(words);
            *vector = if words.iter().any(|word| has_e4m3_nan(*word)) {
                bytes.map(|byte| e4m3(byte) * scale)
            } else {
                bytes.map(|byte| finite_e4m3(byte) * scale)
            };
        }
        vectors.each_ref().map(I::load)
    }
}

pub(super) struct Bfloat16;

impl Packing<16> for Bfloat16 {
    #[inline(always)]
    fn numbers<I: Instructions>(words: &[u32; 16], _: [(f32, f32); 2]) -> [I::Vector; 2] {
        I::bfloat16s(words)
    }
}

pub(super) struct Float16;

impl Packing<16> for Float16 {
    #[inline(always)]
    fn numbers<I: Instructions>(words: &[u32; 16], _: [(f32, f32); 2]) -> [I::Vector; 2] {
        I::float16s(words)
    }
}

pub(super) struct Float32;

impl Packing<32> for Float32 {
    #[inline(always)]
    fn numbers<I: Instructions>(words: &[u32; 32], _: [(f32, f32); 2]) -> [I::Vector; 2] {
        I::float32s(words)
    }
}

#[inline(always)]
fn bytes_of(words: &[u32; 4]) -> [u8; NUM_LANES] {
    let mut bytes = [0; NUM_LANES];
    for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    bytes
}

/// The bit of a negative number.
const SIGN: u32 = 1 << 31;

/// What each code of E2M1 stands for.
static E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Whether one of four E4M3 numbers is none.
#[inline(always)]
fn has_e4m3_nan(word: u32) -> bool {
    ((word & 0x7f7f_7f7f) + 0x0101_0101) & 0x8080_8080 != 0
}

/// The E4M3 number of these eight bits.
const fn e4m3(byte: u8) -> f32 {
    if byte & 0x7f == 0x7f { f32::NAN } else { finite_e4m3(byte) }
}

/// The E4M3 number of these eight bits, which are one.
#[inline(always)]
const fn finite_e4m3(byte: u8) -> f32 {
    let magnitude = (byte & 0x7f) as u32;
    // Below 2^-6 there are multiples of 2^-9: the fractions of 2^-6 less this itself.
    let (first_exponent, less) = if magnitude < 8 { (121, 1.0 / 64.0) } else { (120, 0.0) };
    let number = f32::from_bits((magnitude << 20) + (first_exponent << 23)) - less;
    f32::from_bits(number.to_bits() | ((byte as u32) << 24) & SIGN)
}

/// What each byte stands for as E4M3.
static E4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut bits = 0;
    while bits < 256 {
        table[bits] = e4m3(bits as u8);
        bits += 1;
    }
    table
};

/// What each byte stands for as E8M0, 2^(byte - 127); 255 is no number.
static E8M0: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut bits = 0;
    while bits < 255 {
        table[bits] = f32::from_bits(if bits == 0 { 1 << 22 } else { (bits as u32) << 23 });
        bits += 1;
    }
    table[255] = f32::NAN;
    table
};
