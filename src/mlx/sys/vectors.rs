//! Loops compiled for the widest instructions that the machine has.
//!
//! Owns finding out which those are, and the few things that loops say in another way for each of them.

/// Numbers of float32 in the widest vector that is made use of.
pub(in crate::mlx) const NUM_LANES: usize = 16;

pub(in crate::mlx) type Lanes = [f32; NUM_LANES];

/// Does little work in instructions as wide as this machine has; where there is more to it than a loop or two,
/// [`do_with_wide_vectors`] does.
#[inline(always)]
pub(in crate::mlx) fn with_wide_vectors<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn with_512_bits<T>(work: impl FnOnce() -> T) -> T {
            work()
        }
        #[target_feature(enable = "avx2")]
        fn with_256_bits<T>(work: impl FnOnce() -> T) -> T {
            work()
        }
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has them.
            return unsafe { with_512_bits(work) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has them.
            return unsafe { with_256_bits(work) };
        }
    }
    work()
}

/// Work for [`do_with_wide_vectors`].
pub(in crate::mlx) trait WideWork {
    /// Does it; `#[inline(always)]`, with all that it calls.
    fn run<I: Instructions>(self);
}

/// What is said in another way for each kind of instructions.
pub(in crate::mlx) trait Instructions {
    /// `left · right + sum`, in one instruction where there is one: a function that does the same is a hundred times
    /// slower than two.
    fn multiply_add(left: f32, right: f32, sum: f32) -> f32;

    /// The sum of the lanes of each of four.
    #[inline(always)]
    fn sums_of_four(lanes: &[Lanes; 4]) -> [f32; 4] {
        // In halves, as vectors are added up; one after the other they would wait for each other.
        halved::<4, 2>(&halved::<8, 4>(&halved::<16, 8>(lanes))).map(|[left, right]| left + right)
    }

    /// Writes two vectors of scale · code + bias each, the codes being 32 whole numbers of so many bits, which lie
    /// behind each other from the lowest bits up, some across two words.
    #[inline(always)]
    fn write_scaled<const BITS: usize>(
        vectors: &mut [Lanes; 2],
        codes: &[u32; BITS],
        scales_and_biases: [(f32, f32); 2],
    ) {
        for (half, (vector, (scale, bias))) in vectors.iter_mut().zip(scales_and_biases).enumerate() {
            for (lane, number) in vector.iter_mut().enumerate() {
                let first_bit = (half * NUM_LANES + lane) * BITS;
                let (word, shift) = (first_bit / 32, first_bit % 32);
                let mut code = codes[word] >> shift;
                if shift + BITS > 32 {
                    code |= codes[word + 1] << (32 - shift);
                }
                *number = Self::multiply_add((code & ((1 << BITS) - 1)) as i32 as f32, scale, bias);
            }
        }
    }
}

#[inline(always)]
fn halved<const N: usize, const HALF: usize>(numbers: &[[f32; N]; 4]) -> [[f32; HALF]; 4] {
    let mut halves = [[0.0; HALF]; 4];
    for (half, numbers) in halves.iter_mut().zip(numbers) {
        for lane in 0..HALF {
            half[lane] = numbers[lane] + numbers[lane + HALF];
        }
    }
    halves
}

/// Those without a fused multiply-add.
pub(in crate::mlx) struct Plain;

impl Instructions for Plain {
    #[inline(always)]
    fn multiply_add(left: f32, right: f32, sum: f32) -> f32 {
        left * right + sum
    }
}

/// Those with one.
struct Fused;

impl Instructions for Fused {
    #[inline(always)]
    fn multiply_add(left: f32, right: f32, sum: f32) -> f32 {
        left.mul_add(right, sum)
    }
}

/// AVX-512. Only what is compiled for it may name this.
#[cfg(target_arch = "x86_64")]
struct Avx512;

#[cfg(target_arch = "x86_64")]
impl Instructions for Avx512 {
    #[inline(always)]
    fn multiply_add(left: f32, right: f32, sum: f32) -> f32 {
        left.mul_add(right, sum)
    }

    #[inline(always)]
    fn sums_of_four(lanes: &[Lanes; 4]) -> [f32; 4] {
        // SAFETY: only what is compiled for them names this.
        unsafe { sums_of_four_in_512_bits(lanes) }
    }

    #[inline(always)]
    fn write_scaled<const BITS: usize>(
        vectors: &mut [Lanes; 2],
        codes: &[u32; BITS],
        scales_and_biases: [(f32, f32); 2],
    ) {
        // SAFETY: only what is compiled for them names this.
        unsafe { write_scaled_in_512_bits(vectors, codes, scales_and_biases) }
    }
}

/// Each lane gets the word that its number begins in and the next one, and shifts them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn write_scaled_in_512_bits<const BITS: usize>(
    vectors: &mut [Lanes; 2],
    codes: &[u32; BITS],
    scales_and_biases: [(f32, f32); 2],
) {
    use std::arch::x86_64::{
        _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_fmadd_ps, _mm512_loadu_si512, _mm512_maskz_loadu_epi32,
        _mm512_or_si512, _mm512_permutexvar_epi32, _mm512_set1_epi32, _mm512_set1_ps, _mm512_sllv_epi32,
        _mm512_srlv_epi32, _mm512_storeu_ps,
    };
    /// For each half and lane: the word, the next one, how far the one goes right and the other left.
    struct Places<const BITS: usize>;
    impl<const BITS: usize> Places<BITS> {
        const ALL: [[[u32; NUM_LANES]; 4]; 2] = {
            let mut all = [[[0; NUM_LANES]; 4]; 2];
            let mut index = 0;
            while index < 2 * NUM_LANES {
                let (half, lane) = (index / NUM_LANES, index % NUM_LANES);
                let (word, shift) = ((index * BITS / 32) as u32, (index * BITS % 32) as u32);
                all[half][0][lane] = word;
                all[half][1][lane] = word + 1;
                all[half][2][lane] = shift;
                all[half][3][lane] = 32 - shift;
                index += 1;
            }
            all
        };
    }
    const { assert!(BITS < NUM_LANES, "all words fit into a vector") };
    // SAFETY: as many numbers as are read and written; of the words those that there are.
    unsafe {
        let words = _mm512_maskz_loadu_epi32((1 << BITS) - 1, codes.as_ptr().cast());
        for ((vector, places), (scale, bias)) in
            vectors.iter_mut().zip(&Places::<BITS>::ALL).zip(scales_and_biases)
        {
            let [word, next, right, left] =
                [0, 1, 2, 3].map(|place: usize| _mm512_loadu_si512(places[place].as_ptr().cast()));
            let low = _mm512_srlv_epi32(_mm512_permutexvar_epi32(word, words), right);
            // Nothing is left of a word that goes as far as it is wide.
            let high = _mm512_sllv_epi32(_mm512_permutexvar_epi32(next, words), left);
            let bits = _mm512_and_si512(_mm512_or_si512(low, high), _mm512_set1_epi32((1 << BITS) - 1));
            let numbers =
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(bits), _mm512_set1_ps(scale), _mm512_set1_ps(bias));
            _mm512_storeu_ps(vector.as_mut_ptr(), numbers);
        }
    }
}

/// The four are laid across each other, twice, so that whole vectors are added: no lane waits for its neighbour.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn sums_of_four_in_512_bits(lanes: &[Lanes; 4]) -> [f32; 4] {
    use std::arch::x86_64::{
        _mm_add_ps, _mm_storeu_ps, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_castps512_ps128,
        _mm512_extractf32x4_ps, _mm512_loadu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps, _mm512_unpacklo_pd,
        _mm512_unpacklo_ps,
    };
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

/// Does work in instructions as wide as this machine has.
///
/// A trait's method can be told to be inlined, a closure cannot: once it is large its three calls are not inlined,
/// and what is not inlined is compiled for the narrow instructions that every machine has.
#[inline(always)]
pub(in crate::mlx) fn do_with_wide_vectors(work: impl WideWork) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn with_512_bits(work: impl WideWork) {
            work.run::<Avx512>();
        }
        #[target_feature(enable = "avx2,fma")]
        fn with_256_bits(work: impl WideWork) {
            work.run::<Fused>();
        }
        let has_fused = std::arch::is_x86_feature_detected!("fma");
        if has_fused && std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has them.
            return unsafe { with_512_bits(work) };
        }
        if has_fused && std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has them.
            return unsafe { with_256_bits(work) };
        }
        work.run::<Plain>();
    }
    #[cfg(target_arch = "aarch64")]
    work.run::<Fused>();
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    work.run::<Plain>();
}
