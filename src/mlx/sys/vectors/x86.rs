//! What loops say in the words of x86-64.
//!
//! Owns these few functions of intrinsics; each of them does what [`Instructions`] says of it in general.

use std::arch::x86_64::*;

use std::ptr;

use super::{Instructions, Lanes, NUM_LANES, sums_in_halves};

#[inline(always)]
pub(super) fn prefetch<T>(place: &T) {
    // SAFETY: every machine with x86-64 has it, and it reads nothing that the program would see.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(ptr::from_ref(place).cast()) };
}

/// Whether the machine has what [`Avx2`] stands for beside FMA; all with the one have the other.
#[inline(always)]
pub(super) fn has_256_bits() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("f16c")
}

/// AVX2, FMA and F16C. Nobody may name it but what is compiled for them.
pub(super) struct Avx2;

impl Instructions for Avx2 {
    type Vector = [__m256; 2];

    const HAS_ROOM_FOR_SUMS: bool = false;

    #[inline(always)]
    fn load(lanes: &Lanes) -> Self::Vector {
        // SAFETY: as many numbers as are read, here and below; only what is compiled for them names this.
        unsafe { [_mm256_loadu_ps(lanes.as_ptr()), _mm256_loadu_ps(lanes[8..].as_ptr())] }
    }

    #[inline(always)]
    fn store([low, high]: Self::Vector, lanes: &mut Lanes) {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(lanes.as_mut_ptr(), low);
            _mm256_storeu_ps(lanes[8..].as_mut_ptr(), high);
        }
    }

    #[inline(always)]
    fn splat(number: f32) -> Self::Vector {
        // SAFETY: as above.
        [unsafe { _mm256_set1_ps(number) }; 2]
    }

    #[inline(always)]
    fn product(left: Self::Vector, right: Self::Vector) -> Self::Vector {
        // SAFETY: as above.
        unsafe { [_mm256_mul_ps(left[0], right[0]), _mm256_mul_ps(left[1], right[1])] }
    }

    #[inline(always)]
    fn add_product(sum: Self::Vector, left: Self::Vector, right: Self::Vector) -> Self::Vector {
        // SAFETY: as above.
        unsafe { [_mm256_fmadd_ps(left[0], right[0], sum[0]), _mm256_fmadd_ps(left[1], right[1], sum[1])] }
    }

    #[inline(always)]
    fn sums_of_four(vectors: [Self::Vector; 4]) -> [f32; 4] {
        let mut lanes = [[0.0; NUM_LANES]; 4];
        for (vector, lanes) in vectors.into_iter().zip(&mut lanes) {
            Self::store(vector, lanes);
        }
        sums_in_halves(&lanes)
    }

    #[inline(always)]
    fn scaled<const BITS: usize>(
        words: &[u32; BITS],
        scales_and_biases: [(f32, f32); 2],
    ) -> [Self::Vector; 2] {
        // SAFETY: as above.
        unsafe { scaled_in_256_bits(words, scales_and_biases) }
    }

    #[inline(always)]
    fn looked_up(table: &[f32; 16], words: &[u32; 4]) -> [Self::Vector; 2] {
        // SAFETY: as above.
        unsafe { looked_up_in_256_bits(table, words) }
    }

    #[inline(always)]
    fn bfloat16s(words: &[u32; NUM_LANES]) -> [Self::Vector; 2] {
        // SAFETY: as above.
        unsafe { bfloat16s_in_256_bits(words) }
    }

    #[inline(always)]
    fn float16s(words: &[u32; NUM_LANES]) -> [Self::Vector; 2] {
        // SAFETY: as above.
        unsafe { float16s_in_256_bits(words) }
    }

    #[inline(always)]
    fn float32s(words: &[u32; 2 * NUM_LANES]) -> [Self::Vector; 2] {
        let at = |first: usize| {
            // SAFETY: as above.
            unsafe { _mm256_loadu_ps(words[first..].as_ptr().cast()) }
        };
        [[at(0), at(8)], [at(16), at(24)]]
    }
}

/// Whether the machine has what [`Avx512`] stands for; all but the first with 512 bits, which did not last, have both.
#[inline(always)]
pub(super) fn has_512_bits() -> bool {
    std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bw")
}

/// AVX-512 F and BW. Nobody may name it but what is compiled for them.
pub(super) struct Avx512;

impl Instructions for Avx512 {
    type Vector = __m512;

    const HAS_ROOM_FOR_SUMS: bool = true;

    #[inline(always)]
    fn load(lanes: &Lanes) -> __m512 {
        // SAFETY: as many numbers as are read, here and below; only what is compiled for them names this.
        unsafe { _mm512_loadu_ps(lanes.as_ptr()) }
    }

    #[inline(always)]
    fn store(vector: __m512, lanes: &mut Lanes) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), vector) }
    }

    #[inline(always)]
    fn splat(number: f32) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(number) }
    }

    #[inline(always)]
    fn product(left: __m512, right: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(left, right) }
    }

    #[inline(always)]
    fn add_product(sum: __m512, left: __m512, right: __m512) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(left, right, sum) }
    }

    #[inline(always)]
    fn sums_of_four(vectors: [__m512; 4]) -> [f32; 4] {
        // SAFETY: as above.
        unsafe { sums_of_four_in_512_bits(vectors) }
    }

    #[inline(always)]
    fn scaled<const BITS: usize>(words: &[u32; BITS], scales_and_biases: [(f32, f32); 2]) -> [__m512; 2] {
        // SAFETY: as above.
        unsafe { scaled_in_512_bits(words, scales_and_biases) }
    }

    #[inline(always)]
    fn looked_up(table: &[f32; 16], words: &[u32; 4]) -> [__m512; 2] {
        // SAFETY: as above.
        unsafe { looked_up_in_512_bits(table, words) }
    }

    #[inline(always)]
    fn bfloat16s(words: &[u32; NUM_LANES]) -> [__m512; 2] {
        // SAFETY: as above.
        unsafe { bfloat16s_in_512_bits(words) }
    }

    #[inline(always)]
    fn float16s(words: &[u32; NUM_LANES]) -> [__m512; 2] {
        // SAFETY: as above.
        unsafe { float16s_in_512_bits(words) }
    }

    #[inline(always)]
    fn float32s(words: &[u32; 2 * NUM_LANES]) -> [__m512; 2] {
        // SAFETY: as above.
        unsafe {
            [_mm512_loadu_ps(words.as_ptr().cast()), _mm512_loadu_ps(words[NUM_LANES..].as_ptr().cast())]
        }
    }
}

/// Where 32 codes of so many bits are.
struct Places<const BITS: usize>;

impl<const BITS: usize> Places<BITS> {
    /// Of each code the word that it begins in, the next one, how far to the right the one has to go and how far to the
    /// left the other.
    const WORDS: [[u32; 2 * NUM_LANES]; 4] = {
        let mut all = [[0; 2 * NUM_LANES]; 4];
        let mut index = 0;
        while index < 2 * NUM_LANES {
            let (word, shift) = ((index * BITS / 32) as u32, (index * BITS % 32) as u32);
            // Nothing is needed of what follows the last word.
            all[0][index] = word;
            all[1][index] = (word + 1) % 8;
            all[2][index] = shift;
            all[3][index] = 32 - shift;
            index += 1;
        }
        all
    };

    /// Of each code the half word that it begins in and the next one, as one number, and how far to the right both have
    /// to go.
    const HALF_WORDS: [[[u32; NUM_LANES]; 2]; 2] = {
        let mut all = [[[0; NUM_LANES]; 2]; 2];
        let mut index = 0;
        while index < 2 * NUM_LANES {
            let (half, lane) = (index / NUM_LANES, index % NUM_LANES);
            let half_word = (index * BITS / 16) as u32;
            all[half][0][lane] = half_word | (half_word + 1) << 16;
            all[half][1][lane] = (index * BITS % 16) as u32;
            index += 1;
        }
        all
    };
}

/// Each lane gets the word that its code begins in and the next one, and shifts them. Nothing is left of a word that is
/// shifted as far as it is wide.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn codes_in_256_bits<const BITS: usize>(words: &[u32; BITS]) -> [[__m256i; 2]; 2] {
    const WIDTH: usize = 8;
    let mut mask = [0; WIDTH];
    mask[..BITS].fill(-1_i32);
    let mut codes = [[_mm256_setzero_si256(); 2]; 2];
    // SAFETY: as many numbers as are read; of the words those that there are.
    unsafe {
        let words = _mm256_maskload_epi32(words.as_ptr().cast(), _mm256_loadu_si256(mask.as_ptr().cast()));
        for (quarter, codes) in codes.as_flattened_mut().iter_mut().enumerate() {
            let [word, next, right, left] = &Places::<BITS>::WORDS;
            let word = _mm256_loadu_si256(word[quarter * WIDTH..].as_ptr().cast());
            let next = _mm256_loadu_si256(next[quarter * WIDTH..].as_ptr().cast());
            let right = _mm256_loadu_si256(right[quarter * WIDTH..].as_ptr().cast());
            let left = _mm256_loadu_si256(left[quarter * WIDTH..].as_ptr().cast());
            let low = _mm256_srlv_epi32(_mm256_permutevar8x32_epi32(words, word), right);
            let high = _mm256_sllv_epi32(_mm256_permutevar8x32_epi32(words, next), left);
            *codes = _mm256_and_si256(_mm256_or_si256(low, high), _mm256_set1_epi32((1 << BITS) - 1));
        }
    }
    codes
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn scaled_in_256_bits<const BITS: usize>(
    words: &[u32; BITS],
    scales_and_biases: [(f32, f32); 2],
) -> [[__m256; 2]; 2] {
    let codes = codes_in_256_bits(words);
    let mut vectors = [[_mm256_setzero_ps(); 2]; 2];
    for half in 0..2 {
        let (scale, bias) = scales_and_biases[half];
        for quarter in 0..2 {
            let code = _mm256_cvtepi32_ps(codes[half][quarter]);
            vectors[half][quarter] = _mm256_fmadd_ps(code, _mm256_set1_ps(scale), _mm256_set1_ps(bias));
        }
    }
    vectors
}

/// Looks each code up in both halves of the table, which take its last three bits; the fourth chooses.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn looked_up_in_256_bits(table: &[f32; 16], words: &[u32; 4]) -> [[__m256; 2]; 2] {
    let [first, last] = Avx2::load(table);
    let codes = codes_in_256_bits(words);
    let mut vectors = [[_mm256_setzero_ps(); 2]; 2];
    for (vector, &code) in vectors.as_flattened_mut().iter_mut().zip(codes.as_flattened()) {
        let low = _mm256_permutevar8x32_ps(first, code);
        let high = _mm256_permutevar8x32_ps(last, code);
        let is_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(code));
        *vector = _mm256_blendv_ps(low, high, is_high);
    }
    vectors
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn bfloat16s_in_256_bits(words: &[u32; NUM_LANES]) -> [[__m256; 2]; 2] {
    let mut vectors = [[_mm256_setzero_ps(); 2]; 2];
    for (vector, words) in vectors.as_flattened_mut().iter_mut().zip(words.as_chunks::<4>().0) {
        // SAFETY: as many numbers as are read.
        let halves = unsafe { _mm_loadu_si128(words.as_ptr().cast()) };
        *vector = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)));
    }
    vectors
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn float16s_in_256_bits(words: &[u32; NUM_LANES]) -> [[__m256; 2]; 2] {
    let mut vectors = [[_mm256_setzero_ps(); 2]; 2];
    for (vector, words) in vectors.as_flattened_mut().iter_mut().zip(words.as_chunks::<4>().0) {
        // SAFETY: as many numbers as are read.
        *vector = _mm256_cvtph_ps(unsafe { _mm_loadu_si128(words.as_ptr().cast()) });
    }
    vectors
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn bfloat16s_in_512_bits(words: &[u32; NUM_LANES]) -> [__m512; 2] {
    let mut vectors = [_mm512_setzero_ps(); 2];
    for (vector, words) in vectors.iter_mut().zip(words.as_chunks::<8>().0) {
        // SAFETY: as many numbers as are read.
        let halves = unsafe { _mm256_loadu_si256(words.as_ptr().cast()) };
        *vector = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)));
    }
    vectors
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn float16s_in_512_bits(words: &[u32; NUM_LANES]) -> [__m512; 2] {
    let mut vectors = [_mm512_setzero_ps(); 2];
    for (vector, words) in vectors.iter_mut().zip(words.as_chunks::<8>().0) {
        // SAFETY: as many numbers as are read.
        *vector = _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(words.as_ptr().cast()) });
    }
    vectors
}

/// Each lane gets the two half words that have its code, and shifts them so that it is what they end with.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn shifted_codes_in_512_bits<const BITS: usize>(words: &[u32; BITS]) -> [__m512i; 2] {
    let mut codes = [_mm512_setzero_si512(); 2];
    // SAFETY: as many numbers as are read; of the words those that there are.
    unsafe {
        let words = _mm512_maskz_loadu_epi32((1 << BITS) - 1, words.as_ptr().cast());
        for (codes, [half_words, shifts]) in codes.iter_mut().zip(&Places::<BITS>::HALF_WORDS) {
            let half_words = _mm512_loadu_si512(half_words.as_ptr().cast());
            // The compiler's word for it says what a shift by 32 and more does; here it sees that there is none.
            let shifts = _mm512_and_si512(_mm512_loadu_si512(shifts.as_ptr().cast()), _mm512_set1_epi32(31));
            *codes = _mm512_srlv_epi32(_mm512_permutexvar_epi16(half_words, words), shifts);
        }
    }
    codes
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn scaled_in_512_bits<const BITS: usize>(
    words: &[u32; BITS],
    scales_and_biases: [(f32, f32); 2],
) -> [__m512; 2] {
    let codes = shifted_codes_in_512_bits(words);
    let mut vectors = [_mm512_setzero_ps(); 2];
    for ((vector, codes), (scale, bias)) in vectors.iter_mut().zip(codes).zip(scales_and_biases) {
        let codes = _mm512_and_si512(codes, _mm512_set1_epi32((1 << BITS) - 1));
        *vector = _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(scale), _mm512_set1_ps(bias));
    }
    vectors
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn looked_up_in_512_bits(table: &[f32; 16], words: &[u32; 4]) -> [__m512; 2] {
    let table = Avx512::load(table);
    let [low, high] = shifted_codes_in_512_bits(words);
    // Of an index the last four bits count.
    [_mm512_permutexvar_ps(low, table), _mm512_permutexvar_ps(high, table)]
}

/// The four are laid across each other, twice, so that whole vectors are added: no lane waits for its neighbour.
#[target_feature(enable = "avx512f")]
#[inline]
fn sums_of_four_in_512_bits([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
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
