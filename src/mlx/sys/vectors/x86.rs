//! What loops say in the words of x86-64.
//!
//! Owns these few functions of intrinsics; each of them does what [`Instructions`] says of it in general.

use std::arch::x86_64::{
    _mm_add_ps, _mm_storeu_ps, _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_fmadd_ps, _mm256_loadu_si256,
    _mm256_maskload_epi32, _mm256_or_si256, _mm256_permutevar8x32_epi32, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_sllv_epi32, _mm256_srlv_epi32, _mm256_storeu_ps, _mm512_add_ps, _mm512_and_si512,
    _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps512_ps128, _mm512_cvtepi32_ps, _mm512_extractf32x4_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_maskz_loadu_epi32, _mm512_or_si512,
    _mm512_permutexvar_epi32, _mm512_set1_epi32, _mm512_set1_ps, _mm512_sllv_epi32, _mm512_srlv_epi32,
    _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

use super::{Instructions, Lanes, NUM_LANES};

/// AVX2 and FMA. Only what is compiled for them may name this.
pub(super) struct Avx2;

impl Instructions for Avx2 {
    const HAS_MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn write_scaled<const BITS: usize>(
        vectors: &mut [Lanes; 2],
        codes: &[u32; BITS],
        scales_and_biases: [(f32, f32); 2],
    ) {
        // SAFETY: only what is compiled for them names this.
        unsafe { write_scaled_in_256_bits(vectors, codes, scales_and_biases) }
    }
}

/// AVX-512 F. Only what is compiled for it may name this.
pub(super) struct Avx512;

impl Instructions for Avx512 {
    const HAS_MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn sums_of_four(lanes: &[Lanes; 4]) -> [f32; 4] {
        // SAFETY: only what is compiled for it names this.
        unsafe { sums_of_four_in_512_bits(lanes) }
    }

    #[inline(always)]
    fn write_scaled<const BITS: usize>(
        vectors: &mut [Lanes; 2],
        codes: &[u32; BITS],
        scales_and_biases: [(f32, f32); 2],
    ) {
        // SAFETY: only what is compiled for it names this.
        unsafe { write_scaled_in_512_bits(vectors, codes, scales_and_biases) }
    }
}

/// Of each of 32 codes of so many bits the word that it begins in, the next one, how far to the right the one has to go
/// and how far to the left the other.
struct Places<const BITS: usize>;

impl<const BITS: usize> Places<BITS> {
    const ALL: [[u32; 2 * NUM_LANES]; 4] = {
        assert!(BITS < 8, "all words fit into a vector");
        let mut all = [[0; 2 * NUM_LANES]; 4];
        let mut index = 0;
        while index < 2 * NUM_LANES {
            let (word, shift) = ((index * BITS / 32) as u32, (index * BITS % 32) as u32);
            all[0][index] = word;
            all[1][index] = word + 1;
            all[2][index] = shift;
            all[3][index] = 32 - shift;
            index += 1;
        }
        all
    };
}

/// Each lane gets the word that its code begins in and the next one, and shifts them. Nothing is left of a word that is
/// shifted as far as it is wide.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn write_scaled_in_256_bits<const BITS: usize>(
    vectors: &mut [Lanes; 2],
    codes: &[u32; BITS],
    scales_and_biases: [(f32, f32); 2],
) {
    const WIDTH: usize = 8;
    let mask: [i32; WIDTH] = std::array::from_fn(|word| if word < BITS { -1 } else { 0 });
    // SAFETY: as many numbers as are read and written; of the words those that there are.
    unsafe {
        let words = _mm256_maskload_epi32(codes.as_ptr().cast(), _mm256_loadu_si256(mask.as_ptr().cast()));
        for (index, numbers) in vectors.as_flattened_mut().as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
            let (scale, bias) = scales_and_biases[index * WIDTH / NUM_LANES];
            let [word, next, right, left] = Places::<BITS>::ALL
                .each_ref()
                .map(|places| _mm256_loadu_si256(places[index * WIDTH..].as_ptr().cast()));
            let low = _mm256_srlv_epi32(_mm256_permutevar8x32_epi32(words, word), right);
            let high = _mm256_sllv_epi32(_mm256_permutevar8x32_epi32(words, next), left);
            let bits = _mm256_and_si256(_mm256_or_si256(low, high), _mm256_set1_epi32((1 << BITS) - 1));
            let scaled =
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(bits), _mm256_set1_ps(scale), _mm256_set1_ps(bias));
            _mm256_storeu_ps(numbers.as_mut_ptr(), scaled);
        }
    }
}

/// The same in vectors of twice the width.
#[target_feature(enable = "avx512f")]
#[inline]
fn write_scaled_in_512_bits<const BITS: usize>(
    vectors: &mut [Lanes; 2],
    codes: &[u32; BITS],
    scales_and_biases: [(f32, f32); 2],
) {
    // SAFETY: as many numbers as are read and written; of the words those that there are.
    unsafe {
        let words = _mm512_maskz_loadu_epi32((1 << BITS) - 1, codes.as_ptr().cast());
        for (half, (numbers, (scale, bias))) in vectors.iter_mut().zip(scales_and_biases).enumerate() {
            let [word, next, right, left] = Places::<BITS>::ALL
                .each_ref()
                .map(|places| _mm512_loadu_si512(places[half * NUM_LANES..].as_ptr().cast()));
            let low = _mm512_srlv_epi32(_mm512_permutexvar_epi32(word, words), right);
            let high = _mm512_sllv_epi32(_mm512_permutexvar_epi32(next, words), left);
            let bits = _mm512_and_si512(_mm512_or_si512(low, high), _mm512_set1_epi32((1 << BITS) - 1));
            let scaled =
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(bits), _mm512_set1_ps(scale), _mm512_set1_ps(bias));
            _mm512_storeu_ps(numbers.as_mut_ptr(), scaled);
        }
    }
}

/// The four are laid across each other, twice, so that whole vectors are added: no lane waits for its neighbour.
#[target_feature(enable = "avx512f")]
#[inline]
fn sums_of_four_in_512_bits(lanes: &[Lanes; 4]) -> [f32; 4] {
    // SAFETY: as many numbers as are read.
    let [a, b, c, d] = unsafe { [0, 1, 2, 3].map(|index: usize| _mm512_loadu_ps(lanes[index].as_ptr())) };
    let pairs = |left, right| {
        let (low, high) = (_mm512_unpacklo_ps(left, right), _mm512_unpackhi_ps(left, right));
        _mm512_castps_pd(_mm512_add_ps(low, high))
    };
    let (ab, cd) = (pairs(a, b), pairs(c, d));
    let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
    // Of each quarter's lanes the four sums.
    let quarters = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    let first = _mm_add_ps(_mm512_castps512_ps128(quarters), _mm512_extractf32x4_ps::<2>(quarters));
    let second = _mm_add_ps(_mm512_extractf32x4_ps::<1>(quarters), _mm512_extractf32x4_ps::<3>(quarters));
    let mut sums = [0.0; 4];
    // SAFETY: as many numbers as are written.
    unsafe { _mm_storeu_ps(sums.as_mut_ptr(), _mm_add_ps(first, second)) };
    sums
}
