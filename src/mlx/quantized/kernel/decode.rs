//! What MLX's packed words, scales and biases mean.
//!
//! Owns the formats and loops that make numbers of them, a chunk of one output at a time, in the order of the inputs.
//! Which outputs are made where, and what they are multiplied by, is `kernel`'s.

use std::{
    hint::black_box,
    ops::Range,
    sync::atomic::{Ordering, compiler_fence},
};

use crate::mlx::sys::{Instructions, Lanes, NUM_LANES};

/// Vectors of one output that are decoded before they are multiplied, so many that they fill whole groups.
pub(super) const CHUNK_VECTORS: usize = 56;

/// Numbers of one output that are decoded before they are multiplied.
pub(super) const CHUNK_INPUTS: usize = CHUNK_VECTORS * NUM_LANES;

/// How a matrix's numbers are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::mlx) enum Format {
    /// Unsigned integers of 2, 3, 4, 5, 6 or 8 bits, times the group's scale, plus its bias.
    Affine { bits: usize },
    /// E2M1 times the group's power of two (E8M0).
    Mxfp4,
    /// E2M1 times the group's E4M3.
    Nvfp4,
    /// E4M3 times the group's power of two (E8M0).
    Mxfp8,
}

/// What the numbers of each group are multiplied by, `(outputs, inputs / group size)`.
#[derive(Debug, Clone, Copy)]
pub(in crate::mlx) enum Scales<'a> {
    Numbers(&'a [f32]),
    /// Of the formats of floating-point numbers.
    Bytes(&'a [u8]),
}

/// A matrix `(outputs, inputs)` as MLX quantises it.
#[derive(Debug, Clone, Copy)]
pub(in crate::mlx) struct QuantizedRows<'a> {
    /// `(outputs, inputs · bits / 32)`; an output's numbers follow each other from the lowest bits up.
    pub(in crate::mlx) words: &'a [u32],
    pub(in crate::mlx) scales: Scales<'a>,
    /// Of `Format::Affine`, `(outputs, inputs / group size)`.
    pub(in crate::mlx) biases: Option<&'a [f32]>,
    pub(in crate::mlx) num_outputs: usize,
    pub(in crate::mlx) num_inputs: usize,
    /// Numbers that share a scale: 16, 32, 64 or 128. Each is as many vectors, or a few.
    pub(in crate::mlx) group_size: usize,
    pub(in crate::mlx) format: Format,
}

impl<'a> QuantizedRows<'a> {
    /// Some of its outputs.
    pub(in crate::mlx) fn part(&self, outputs: Range<usize>) -> Self {
        let of_outputs = |per_output: usize| outputs.start * per_output..outputs.end * per_output;
        let groups = of_outputs(self.num_inputs / self.group_size);
        Self {
            words: &self.words[of_outputs(self.num_inputs * self.bits() / 32)],
            scales: match self.scales {
                Scales::Numbers(scales) => Scales::Numbers(&scales[groups.clone()]),
                Scales::Bytes(scales) => Scales::Bytes(&scales[groups.clone()]),
            },
            biases: self.biases.map(|biases| &biases[groups]),
            num_outputs: outputs.len(),
            ..*self
        }
    }

    fn bits(&self) -> usize {
        match self.format {
            Format::Affine { bits } => bits,
            Format::Mxfp4 | Format::Nvfp4 => 4,
            Format::Mxfp8 => 8,
        }
    }

    /// Panics where slices have not the sizes that are stated.
    pub(super) fn check(&self) {
        let bits = self.bits();
        assert!([2, 3, 4, 5, 6, 8].contains(&bits), "numbers have 2, 3, 4, 5, 6 or 8 bits");
        assert!([16, 32, 64, 128].contains(&self.group_size), "groups have one of these sizes");
        assert!(
            self.num_inputs > 0 && self.num_inputs.is_multiple_of(self.group_size),
            "inputs are whole groups"
        );
        // Two vectors of other bits are whole words.
        assert!(
            matches!(bits, 4 | 8) || self.num_inputs.is_multiple_of(2 * NUM_LANES),
            "outputs are whole words"
        );
        let num_groups = self.num_outputs * (self.num_inputs / self.group_size);
        assert_eq!(self.words.len() * 32, self.num_outputs * self.num_inputs * bits, "all numbers are there");
        let is_affine = matches!(self.format, Format::Affine { .. });
        let num_scales = match self.scales {
            Scales::Numbers(scales) if is_affine => Some(scales.len()),
            Scales::Bytes(scales) if !is_affine => Some(scales.len()),
            _ => None,
        };
        assert_eq!(num_scales, Some(num_groups), "each group has a scale of the format's type");
        assert_eq!(
            self.biases.map(<[f32]>::len),
            is_affine.then_some(num_groups),
            "affine groups have biases"
        );
    }

    /// Decodes numbers of one output from an input on, where a chunk begins.
    #[inline(always)]
    pub(super) fn decode<I: Instructions>(&self, output: usize, first_input: usize, numbers: &mut [Lanes]) {
        let first_number = output * self.num_inputs + first_input;
        let num_inputs = numbers.len() * NUM_LANES;
        let bits = self.bits();
        let words = &self.words[first_number * bits / 32..][..num_inputs * bits / 32];
        let groups = first_number / self.group_size..(first_number + num_inputs) / self.group_size;
        let group_vectors = self.group_size / NUM_LANES;
        let mut scales = [0.0; CHUNK_VECTORS];
        match self.scales {
            Scales::Numbers(of_matrix) => {
                spread(&of_matrix[groups.clone()], group_vectors, &mut scales, |s| s)
            }
            Scales::Bytes(of_matrix) => {
                let table = if self.format == Format::Nvfp4 { &E4M3 } else { &E8M0 };
                let of_groups = &of_matrix[groups.clone()];
                spread(of_groups, group_vectors, &mut scales, |scale| table[usize::from(scale)]);
            }
        }
        let mut biases = [0.0; CHUNK_VECTORS];
        if let Some(of_matrix) = self.biases {
            spread(&of_matrix[groups], group_vectors, &mut biases, |bias| bias);
        }
        // Out of the compiler's sight, or it takes the last number of a word, which needs no mask, apart from the others.
        let first_bits = black_box(FIRST_BITS).map(|bit| bit & 31);
        match self.format {
            Format::Affine { bits: 4 } => {
                each_vector(words, numbers, (&scales, &biases), |&[low, high]: &[u32; 2], scale, bias| {
                    each_lane(|lane| {
                        let word = if lane < 8 { low } else { high };
                        I::multiply_add(nibble(word, first_bits[lane]), scale, bias)
                    })
                });
            }
            Format::Affine { bits: 8 } => {
                each_vector(words, numbers, (&scales, &biases), |words: &[u32; 4], scale, bias| {
                    let bytes = bytes_of(words);
                    each_lane(|lane| I::multiply_add(f32::from(bytes[lane]), scale, bias))
                });
            }
            Format::Affine { bits } => {
                let scales_and_biases = (&scales, &biases);
                match bits {
                    2 => decode_integers::<2, I>(words, numbers, scales_and_biases),
                    3 => decode_integers::<3, I>(words, numbers, scales_and_biases),
                    5 => decode_integers::<5, I>(words, numbers, scales_and_biases),
                    _ => decode_integers::<6, I>(words, numbers, scales_and_biases),
                }
            }
            Format::Mxfp4 | Format::Nvfp4 => {
                let mut twice = [0; CHUNK_INPUTS / 8];
                for (twice, word) in twice.iter_mut().zip(words) {
                    *twice = twice_e2m1(*word);
                }
                let scales = (&scales, &biases);
                // First the magnitudes, then the signs: both at once come out in vectors of half the width.
                each_vector(&twice[..words.len()], numbers, scales, |&[low, high]: &[u32; 2], scale, _| {
                    let half_scale = 0.5 * scale;
                    each_lane(|lane| nibble(if lane < 8 { low } else { high }, first_bits[lane]) * half_scale)
                });
                for (vector, [low, high]) in numbers.iter_mut().zip(words.as_chunks::<2>().0) {
                    let magnitudes = *vector;
                    *vector = each_lane(|lane| {
                        let word = if lane < 8 { *low } else { *high };
                        let sign = word.wrapping_shl(28_u32.wrapping_sub(first_bits[lane])) & SIGN;
                        f32::from_bits(magnitudes[lane].to_bits() ^ sign)
                    });
                    keep_in_order();
                }
            }
            Format::Mxfp8 => {
                each_vector(words, numbers, (&scales, &biases), |words: &[u32; 4], scale, _| {
                    let bytes = bytes_of(words);
                    if words.iter().any(|word| has_e4m3_nan(*word)) {
                        return bytes.map(|byte| e4m3(byte) * scale);
                    }
                    each_lane(|lane| finite_e4m3(bytes[lane]) * scale)
                });
            }
        }
    }
}

/// Gives each vector what its group has.
#[inline(always)]
fn spread<T: Copy>(
    of_groups: &[T],
    group_vectors: usize,
    of_vectors: &mut [f32; CHUNK_VECTORS],
    number: impl Fn(T) -> f32,
) {
    match group_vectors {
        1 => spread_over::<1, T>(of_groups, of_vectors, number),
        2 => spread_over::<2, T>(of_groups, of_vectors, number),
        4 => spread_over::<4, T>(of_groups, of_vectors, number),
        8 => spread_over::<8, T>(of_groups, of_vectors, number),
        _ => unreachable!("sizes of groups were checked"),
    }
}

#[inline(always)]
fn spread_over<const N: usize, T: Copy>(
    of_groups: &[T],
    of_vectors: &mut [f32; CHUNK_VECTORS],
    number: impl Fn(T) -> f32,
) {
    let (vectors, _) = of_vectors.as_chunks_mut::<N>();
    for (vectors, of_group) in vectors.iter_mut().zip(of_groups) {
        *vectors = [number(*of_group); N];
    }
}

#[inline(always)]
fn each_lane(number: impl Fn(usize) -> f32) -> Lanes {
    let mut lanes = [0.0; NUM_LANES];
    for (lane, value) in lanes.iter_mut().enumerate() {
        *value = number(lane);
    }
    lanes
}

#[inline(always)]
fn bytes_of(words: &[u32; 4]) -> [u8; NUM_LANES] {
    let mut bytes = [0; NUM_LANES];
    for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    bytes
}

/// Keeps the compiler from doing several turns of a loop at once, the same lane of sixteen vectors, whose numbers it
/// then scatters one by one. Costs nothing itself.
#[inline(always)]
fn keep_in_order() {
    compiler_fence(Ordering::SeqCst);
}

/// Makes each vector of N words, its group's scale and its bias.
#[inline(always)]
fn each_vector<const N: usize>(
    words: &[u32],
    vectors: &mut [Lanes],
    (scales, biases): (&[f32; CHUNK_VECTORS], &[f32; CHUNK_VECTORS]),
    decode: impl Fn(&[u32; N], f32, f32) -> Lanes,
) {
    let (words, _) = words.as_chunks::<N>();
    for (((vector, words), scale), bias) in vectors.iter_mut().zip(words).zip(scales).zip(biases) {
        *vector = decode(words, *scale, *bias);
        keep_in_order();
    }
}

/// Decodes integers of B bits, 32 of which are B words, some across two.
#[inline(always)]
fn decode_integers<const B: usize, I: Instructions>(
    words: &[u32],
    vectors: &mut [Lanes],
    (scales, biases): (&[f32; CHUNK_VECTORS], &[f32; CHUNK_VECTORS]),
) {
    let (words, _) = words.as_chunks::<B>();
    let (pairs, _) = vectors.as_chunks_mut::<2>();
    for (index, (pair, words)) in pairs.iter_mut().zip(words).enumerate() {
        keep_in_order();
        let of_vector = |half: usize| (scales[2 * index + half], biases[2 * index + half]);
        I::write_scaled(pair, words, [of_vector(0), of_vector(1)]);
    }
}

/// The bit of a negative number.
const SIGN: u32 = 1 << 31;

/// The first bits of the numbers of a vector in their words, for numbers of four bits.
const FIRST_BITS: [u32; NUM_LANES] = [0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28];

/// The integer of four bits that begins at a bit of a word.
#[inline(always)]
fn nibble(word: u32, first_bit: u32) -> f32 {
    (word.wrapping_shr(first_bit) & 15) as i32 as f32
}

/// Twice the magnitudes of eight E2M1 numbers, 0, 1, 2, 3, 4, 6, 8 or 12, each in the place of its number.
#[inline(always)]
fn twice_e2m1(word: u32) -> u32 {
    let codes = word & 0x7777_7777;
    let is_4_or_more = codes >> 2 & 0x1111_1111;
    let is_7 = is_4_or_more & codes >> 1 & codes;
    // Codes 4 to 7 stand for 4, 6, 8 and 12: themselves, their two low bits once more, and the last 2 more.
    codes + (codes & (is_4_or_more | is_4_or_more << 1)) + (is_7 << 1)
}

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
