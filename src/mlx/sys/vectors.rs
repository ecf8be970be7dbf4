//! Loops compiled for the widest instructions that the machine has.
//!
//! Owns finding out which those are, and the few things that loops say in another way for each of them; how x86-64 says
//! them is `x86`'s.

#[cfg(target_arch = "x86_64")]
mod x86;

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
    #[inline(always)]
    fn multiply_add(left: f32, right: f32, sum: f32) -> f32 {
        left.mul_add(right, sum)
    }

    /// Whether sixteen sums of vectors fit into registers beside what is added.
    const HAS_MANY_REGISTERS: bool;

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
    const HAS_MANY_REGISTERS: bool = false;

    #[inline(always)]
    fn multiply_add(left: f32, right: f32, sum: f32) -> f32 {
        left * right + sum
    }
}

/// NEON.
#[cfg(target_arch = "aarch64")]
struct Neon;

#[cfg(target_arch = "aarch64")]
impl Instructions for Neon {
    const HAS_MANY_REGISTERS: bool = true;
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
            work.run::<x86::Avx512>();
        }
        #[target_feature(enable = "avx2,fma")]
        fn with_256_bits(work: impl WideWork) {
            work.run::<x86::Avx2>();
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
    work.run::<Neon>();
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    work.run::<Plain>();
}
