//! Where packed words, scales and biases are.
//!
//! Owns matrices as they are stored, and what a chunk of one output is made of, in the order of the inputs. What codes
//! stand for is `packing`'s; which outputs are made where, and what they are multiplied by, is for `packed_products`.

use std::ops::Range;

use super::packing::Packing;
use crate::mlx::sys::{Instructions, Lanes, NUM_LANES, prefetch};

/// Vectors of one output that are made at a time, so many that they fill whole groups.
pub(super) const CHUNK_VECTORS: usize = 56;

/// Numbers of one output that are made at a time.
pub(super) const CHUNK_INPUTS: usize = CHUNK_VECTORS * NUM_LANES;

/// Bits of a number, at most, where a vector may be without another to make a pair with: wider ones are whole pairs.
const MAX_ODD_BITS: usize = 8;

/// How far ahead what is read is fetched: what is taken in while memory answers; more would not stay in the first cache.
const BYTES_AHEAD: usize = 2048;

/// How a matrix's numbers are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::mlx) enum Format {
    /// Unsigned integers of 2, 3, 4, 5, 6 or 8 bits, times the group's scale, plus its bias.
    Affine {
        bits: usize,
    },
    /// E2M1 times the group's power of two (E8M0).
    Mxfp4,
    /// E2M1 times the group's E4M3.
    Nvfp4,
    /// E4M3 times the group's power of two (E8M0).
    Mxfp8,
    /// These and the next are numbers as they are: nothing is said of groups.
    Bfloat16,
    Float16,
    Float32,
}

impl Format {
    pub(super) fn bits(self) -> usize {
        match self {
            Self::Affine { bits } => bits,
            Self::Mxfp4 | Self::Nvfp4 => 4,
            Self::Mxfp8 => 8,
            Self::Bfloat16 | Self::Float16 => 16,
            Self::Float32 => 32,
        }
    }
}

/// What the numbers of each group are multiplied by, `(outputs, inputs / group size)`.
#[derive(Debug, Clone, Copy)]
pub(in crate::mlx) enum Scales<'a> {
    Numbers(&'a [f32]),
    /// Of the formats of small floating-point numbers.
    Bytes(&'a [u8]),
    /// There are none.
    Ones,
}

/// A matrix `(outputs, inputs)` as it is stored.
#[derive(Debug, Clone, Copy)]
pub(in crate::mlx) struct PackedMatrix<'a> {
    /// `(outputs, inputs · bits / 32)`; an output's numbers follow each other from the lowest bits up.
    pub(in crate::mlx) words: &'a [u32],
    pub(in crate::mlx) scales: Scales<'a>,
    /// Of `Format::Affine`, `(outputs, inputs / group size)`.
    pub(in crate::mlx) biases: Option<&'a [f32]>,
    pub(in crate::mlx) num_outputs: usize,
    pub(in crate::mlx) num_inputs: usize,
    /// Numbers that share a scale: 16, 32, 64 or 128, or that rows are multiples of where there are no scales. Each is as
    /// many vectors, or a few.
    pub(in crate::mlx) group_size: usize,
    pub(in crate::mlx) format: Format,
}

impl<'a> PackedMatrix<'a> {
    /// Some of its outputs.
    pub(in crate::mlx) fn part(&self, outputs: Range<usize>) -> Self {
        let of_outputs = |per_output: usize| outputs.start * per_output..outputs.end * per_output;
        let groups = of_outputs(self.num_inputs / self.group_size);
        Self {
            words: &self.words[of_outputs(self.num_inputs * self.bits() / 32)],
            scales: match self.scales {
                Scales::Numbers(scales) => Scales::Numbers(&scales[groups.clone()]),
                Scales::Bytes(scales) => Scales::Bytes(&scales[groups.clone()]),
                Scales::Ones => Scales::Ones,
            },
            biases: self.biases.map(|biases| &biases[groups]),
            num_outputs: outputs.len(),
            ..*self
        }
    }

    fn bits(&self) -> usize {
        self.format.bits()
    }

    /// Panics where slices have not the sizes that are stated.
    pub(super) fn check(&self) {
        let bits = self.bits();
        assert!([2, 3, 4, 5, 6, 8, 16, 32].contains(&bits), "numbers have one of these widths");
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
        let has_right_scales = match (self.format, self.scales) {
            (Format::Affine { .. }, Scales::Numbers(scales)) => scales.len() == num_groups,
            (Format::Mxfp4 | Format::Nvfp4 | Format::Mxfp8, Scales::Bytes(scales)) => {
                scales.len() == num_groups
            }
            (Format::Bfloat16 | Format::Float16 | Format::Float32, Scales::Ones) => true,
            _ => false,
        };
        assert!(has_right_scales, "each group has a scale of the format's type, if it has any");
        let is_affine = matches!(self.format, Format::Affine { .. });
        assert_eq!(
            self.biases.map(<[f32]>::len),
            is_affine.then_some(num_groups),
            "affine groups have biases"
        );
    }

    /// How many outputs before it is made one is worth being fetched.
    pub(super) fn outputs_ahead(&self) -> usize {
        (BYTES_AHEAD * 8).div_ceil(self.num_inputs * self.bits())
    }

    /// Where among all of the matrix a chunk's numbers are, and its groups.
    #[inline(always)]
    fn of_chunk(&self, output: usize, first_input: usize) -> (Range<usize>, Range<usize>) {
        let first = output * self.num_inputs + first_input;
        let numbers = first..first + (self.num_inputs - first_input).min(CHUNK_INPUTS);
        // Sizes of groups are powers of two.
        let shift = self.group_size.trailing_zeros();
        let groups = numbers.start >> shift..numbers.end >> shift;
        (numbers, groups)
    }

    /// Has the scales and biases of a chunk of one output, or of the last one, brought into the first cache; returns the
    /// words of its pairs, which are to be brought while others are made. Of an odd vector at the matrix's end there are
    /// none.
    #[inline(always)]
    pub(super) fn fetch<const B: usize>(&self, output: usize, first_input: usize) -> &'a [[u32; B]] {
        let (numbers, groups) = self.of_chunk(output.min(self.num_outputs - 1), first_input);
        match self.scales {
            Scales::Numbers(scales) => prefetch(&scales[groups.clone()]),
            Scales::Bytes(scales) => prefetch(&scales[groups.clone()]),
            Scales::Ones => {}
        }
        if let Some(biases) = self.biases {
            prefetch(&biases[groups]);
        }
        let num_words = numbers.len().next_multiple_of(PAIR_INPUTS) * B / PAIR_INPUTS;
        let words = &self.words[numbers.start * B / PAIR_INPUTS..];
        words[..num_words.min(words.len())].as_chunks().0
    }

    /// What a chunk of one output is made of, from an input on where a chunk begins; the room is for what has to be laid out
    /// for it.
    #[inline(always)]
    pub(super) fn chunk<'r, const B: usize, const G: usize>(
        &self,
        output: usize,
        first_input: usize,
        room: &'r mut Room,
    ) -> PackedChunk<'r, B, G>
    where
        'a: 'r,
    {
        let (numbers, groups) = self.of_chunk(output, first_input);
        let num_pairs = numbers.len().div_ceil(PAIR_INPUTS);
        let mut words = &self.words[numbers.start * B / PAIR_INPUTS..][..numbers.len() * B / PAIR_INPUTS];
        if !numbers.len().is_multiple_of(PAIR_INPUTS) {
            room.words[..words.len()].copy_from_slice(words);
            words = &room.words[..num_pairs * B];
        }
        let pairs_of_group = (self.group_size / PAIR_INPUTS).max(1);
        let layout = (pairs_of_group, G * num_pairs);
        let scales = match self.scales {
            Scales::Numbers(scales) => laid_out(&scales[groups.clone()], layout, &mut room.scales),
            Scales::Bytes(scales) => {
                let table = self.format.scales();
                let room = &mut room.scales[..G * num_pairs];
                room.fill(0.0);
                for (number, scale) in room.iter_mut().zip(&scales[groups.clone()]) {
                    *number = table[usize::from(*scale)];
                }
                room
            }
            Scales::Ones => &[1.0; CHUNK_VECTORS][..G * num_pairs],
        };
        let biases = match self.biases {
            Some(biases) => laid_out(&biases[groups], layout, &mut room.biases),
            None => &[0.0; CHUNK_VECTORS][..scales.len()],
        };
        PackedChunk { words: words.as_chunks().0, scales: scales.as_chunks().0, biases: biases.as_chunks().0 }
    }
}

/// Numbers that are made at once.
const PAIR_INPUTS: usize = 2 * NUM_LANES;

/// So many numbers for all pairs, in the room where they are not stored so: a group is several pairs, or the last pair is
/// no whole one.
#[inline(always)]
fn laid_out<'r>(
    of_groups: &'r [f32],
    (pairs_of_group, num_numbers): (usize, usize),
    room: &'r mut [f32; CHUNK_VECTORS],
) -> &'r [f32] {
    if of_groups.len() == num_numbers {
        return of_groups;
    }
    let room = &mut room[..num_numbers];
    room.fill(0.0);
    for (of_pairs, of_group) in room.chunks_mut(pairs_of_group).zip(of_groups) {
        of_pairs.fill(*of_group);
    }
    room
}

/// Where a chunk is laid out.
pub(super) struct Room {
    words: [u32; CHUNK_INPUTS * MAX_ODD_BITS / 32],
    scales: [f32; CHUNK_VECTORS],
    biases: [f32; CHUNK_VECTORS],
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            words: [0; CHUNK_INPUTS * MAX_ODD_BITS / 32],
            scales: [0.0; CHUNK_VECTORS],
            biases: [0.0; CHUNK_VECTORS],
        }
    }
}

/// A chunk of one output, in pairs of vectors; one that is left has another of zeros.
#[derive(Clone, Copy)]
pub(super) struct PackedChunk<'a, const B: usize, const G: usize> {
    pub(super) words: &'a [[u32; B]],
    scales: &'a [[f32; G]],
    biases: &'a [[f32; G]],
}

/// The words of a pair of vectors, and its G scales and biases.
pub(super) type Pair<'a, const B: usize, const G: usize> = ((&'a [u32; B], &'a [f32; G]), &'a [f32; G]);

impl<'a, const B: usize, const G: usize> PackedChunk<'a, B, G> {
    /// Pair after pair.
    #[inline(always)]
    pub(super) fn pairs(&self) -> impl Iterator<Item = Pair<'a, B, G>> + use<'a, B, G> {
        self.words.iter().zip(self.scales).zip(self.biases)
    }

    /// Writes its numbers; has as many others brought meanwhile.
    #[inline(always)]
    pub(super) fn numbers_into<P: Packing<B>, I: Instructions>(
        &self,
        numbers: &mut [Lanes],
        ahead: &[[u32; B]],
    ) {
        ahead.iter().for_each(|words| prefetch(words));
        for (vectors, pair) in numbers.chunks_mut(2).zip(self.pairs()) {
            let [first, second] = numbers_of::<B, G, P, I>(pair);
            match vectors {
                [left, right] => {
                    I::store(first, left);
                    I::store(second, right);
                }
                [last] => I::store(first, last),
                _ => {}
            }
        }
    }
}

/// A pair's numbers.
#[inline(always)]
pub(super) fn numbers_of<const B: usize, const G: usize, P: Packing<B>, I: Instructions>(
    ((words, scales), biases): Pair<'_, B, G>,
) -> [I::Vector; 2] {
    P::numbers::<I>(words, [(scales[0], biases[0]), (scales[G - 1], biases[G - 1])])
}
