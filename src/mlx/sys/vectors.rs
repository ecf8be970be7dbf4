//! Loops compiled for the widest instructions that the machine has.
//!
//! Owns finding out which those are, and the few things that loops say in another way for each of them, on vectors of
//! equally many numbers everywhere; how x86-64 says them is `x86`'s.

#[cfg(target_arch = "x86_64")]
mod x86;

/// Numbers of float32 in the widest vector that is made use of.
pub(in crate::mlx) const NUM_LANES: usize = 16;

pub(in crate::mlx) type Lanes = [f32; NUM_LANES];

/// What the caches have of memory at once.
const LINE_BYTES: usize = 64;

/// Has numbers, if there are any, brought into the first cache, as they are soon read. Machines guess what is read next,
/// but not across the ends of pages, or not at all.
#[inline(always)]
pub(in crate::mlx) fn prefetch<T>(numbers: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in numbers.chunks((LINE_BYTES / size_of::<T>()).max(1)) {
        x86::prefetch(&line[0]);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (numbers, LINE_BYTES);
}

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

/// Work for [`InstructionSet::run`].
pub(in crate::mlx) trait WideWork {
    /// Does it; `#[inline(always)]`, with all that it calls.
    fn run<I: Instructions>(self);
}

/// What is said in another way for each kind of instructions.
pub(in crate::mlx) trait Instructions {
    /// As many numbers as there are lanes, in one register or in a few.
    type Vector: Copy;

    /// Whether registers have room for the sums of several rows beside what is multiplied.
    const HAS_ROOM_FOR_SUMS: bool;

    fn load(lanes: &Lanes) -> Self::Vector;

    fn store(vector: Self::Vector, lanes: &mut Lanes);

    /// The same number in each lane.
    fn splat(number: f32) -> Self::Vector;

    fn product(left: Self::Vector, right: Self::Vector) -> Self::Vector;

    /// `left · right + sum`, lane by lane.
    fn add_product(sum: Self::Vector, left: Self::Vector, right: Self::Vector) -> Self::Vector;

    /// The sum of the lanes of each of four.
    fn sums_of_four(vectors: [Self::Vector; 4]) -> [f32; 4];

    /// `left · right + sum`, in one instruction where there is one: a function that does the same is a hundred times
    /// slower than two.
    #[inline(always)]
    fn multiply_add(left: f32, right: f32, sum: f32) -> f32 {
        left.mul_add(right, sum)
    }

    /// Two vectors of scale · code + bias each, the codes being 32 whole numbers of so many bits, which lie behind each
    /// other from the lowest bits up, some across two words.
    #[inline(always)]
    fn scaled<const BITS: usize>(
        words: &[u32; BITS],
        scales_and_biases: [(f32, f32); 2],
    ) -> [Self::Vector; 2] {
        let codes = codes(words);
        [0, 1].map(|half: usize| {
            let (scale, bias) = scales_and_biases[half];
            let codes = codes[half].map(|code| code as i32 as f32);
            Self::add_product(Self::splat(bias), Self::load(&codes), Self::splat(scale))
        })
    }

    /// Two vectors of a table's numbers, by codes of four bits, which lie as those of [`scaled`](Self::scaled).
    #[inline(always)]
    fn looked_up(table: &[f32; 16], words: &[u32; 4]) -> [Self::Vector; 2] {
        codes(words).map(|codes| Self::load(&codes.map(|code| table[code as usize])))
    }

    /// Two vectors of numbers that are bfloat16 in the words.
    #[inline(always)]
    fn bfloat16s(words: &[u32; NUM_LANES]) -> [Self::Vector; 2] {
        codes(words).map(|halves| Self::load(&halves.map(|half| f32::from_bits(half << 16))))
    }

    /// Two vectors of numbers that are float16 in the words.
    #[inline(always)]
    fn float16s(words: &[u32; NUM_LANES]) -> [Self::Vector; 2] {
        codes(words).map(|halves| Self::load(&halves.map(float16)))
    }

    /// Two vectors of numbers that are float32 in the words.
    #[inline(always)]
    fn float32s(words: &[u32; 2 * NUM_LANES]) -> [Self::Vector; 2] {
        let mut lanes = [[0.0; NUM_LANES]; 2];
        for (number, word) in lanes.as_flattened_mut().iter_mut().zip(words) {
            *number = f32::from_bits(*word);
        }
        [Self::load(&lanes[0]), Self::load(&lanes[1])]
    }
}

/// The float16 number of these sixteen bits.
#[inline(always)]
fn float16(bits: u32) -> f32 {
    const LARGEST_FINITE: u32 = 0x7bff;
    /// By so much less: its exponents begin at -15, float32's at -127.
    const FACTOR: f32 = f32::from_bits((127 + 127 - 15) << 23);
    let magnitude = bits & 0x7fff;
    let number = f32::from_bits(magnitude << 13) * FACTOR;
    let number =
        if magnitude > LARGEST_FINITE { f32::from_bits(magnitude << 13 | 0x7f80_0000) } else { number };
    f32::from_bits(number.to_bits() | (bits & 0x8000) << 16)
}

/// 32 whole numbers of so many bits.
#[inline(always)]
fn codes<const BITS: usize>(words: &[u32; BITS]) -> [[u32; NUM_LANES]; 2] {
    let mut codes = [[0; NUM_LANES]; 2];
    for (index, code) in codes.as_flattened_mut().iter_mut().enumerate() {
        let (word, shift) = (index * BITS / 32, index * BITS % 32);
        *code = words[word] >> shift;
        if shift + BITS > 32 {
            *code |= words[word + 1] << (32 - shift);
        }
        *code &= (1 << BITS) - 1;
    }
    codes
}

/// [`Instructions::sums_of_four`], in halves, as vectors are added up; one after the other they would wait for each
/// other.
#[inline(always)]
fn sums_in_halves(lanes: &[Lanes; 4]) -> [f32; 4] {
    halved::<4, 2>(&halved::<8, 4>(&halved::<16, 8>(lanes))).map(|[left, right]| left + right)
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

/// Those with vectors of few lanes, which the compiler finds for itself.
pub(in crate::mlx) struct Narrow<const IS_FUSED: bool>;

impl<const IS_FUSED: bool> Instructions for Narrow<IS_FUSED> {
    type Vector = Lanes;

    const HAS_ROOM_FOR_SUMS: bool = false;

    #[inline(always)]
    fn load(lanes: &Lanes) -> Lanes {
        *lanes
    }

    #[inline(always)]
    fn store(vector: Lanes, lanes: &mut Lanes) {
        *lanes = vector;
    }

    #[inline(always)]
    fn splat(number: f32) -> Lanes {
        [number; NUM_LANES]
    }

    #[inline(always)]
    fn product(left: Lanes, right: Lanes) -> Lanes {
        let mut product = left;
        for lane in 0..NUM_LANES {
            product[lane] *= right[lane];
        }
        product
    }

    #[inline(always)]
    fn add_product(mut sum: Lanes, left: Lanes, right: Lanes) -> Lanes {
        for lane in 0..NUM_LANES {
            sum[lane] = Self::multiply_add(left[lane], right[lane], sum[lane]);
        }
        sum
    }

    #[inline(always)]
    fn sums_of_four(vectors: [Lanes; 4]) -> [f32; 4] {
        sums_in_halves(&vectors)
    }

    #[inline(always)]
    fn multiply_add(left: f32, right: f32, sum: f32) -> f32 {
        if IS_FUSED { left.mul_add(right, sum) } else { left * right + sum }
    }
}

/// One that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::mlx) enum InstructionSet {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(not(target_arch = "aarch64"))]
    Plain,
}

impl InstructionSet {
    /// The one with the widest vectors.
    #[inline(always)]
    pub(in crate::mlx) fn widest() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let has_fused = std::arch::is_x86_feature_detected!("fma");
            if has_fused && x86::has_512_bits() {
                return Self::Avx512;
            }
            if has_fused && x86::has_256_bits() {
                return Self::Avx2;
            }
        }
        #[cfg(target_arch = "aarch64")]
        return Self::Neon;
        #[cfg(not(target_arch = "aarch64"))]
        Self::Plain
    }

    /// All of them.
    #[cfg(test)]
    pub(in crate::mlx) fn all() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let all = [Self::Avx512, Self::Avx2, Self::Plain];
        #[cfg(target_arch = "aarch64")]
        let all = [Self::Neon];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let all = [Self::Plain];
        let widest = all.iter().position(|&set| set == Self::widest()).expect("it is one of them");
        all[widest..].to_vec()
    }

    /// Does work in its instructions.
    ///
    /// A trait's method can be told to be inlined, a closure cannot: once it is large its calls are not inlined, and what
    /// is not inlined is compiled for the narrow instructions that every machine has.
    #[inline(always)]
    pub(in crate::mlx) fn run(self, work: impl WideWork) {
        match self {
            // SAFETY: the machine has them, or nobody could name this.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { with_512_bits(work) },
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { with_256_bits(work) },
            #[cfg(target_arch = "aarch64")]
            Self::Neon => work.run::<Narrow<true>>(),
            #[cfg(not(target_arch = "aarch64"))]
            Self::Plain => work.run::<Narrow<false>>(),
        }
    }

    /// [`Instructions::HAS_ROOM_FOR_SUMS`].
    pub(in crate::mlx) fn has_room_for_sums(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => x86::Avx512::HAS_ROOM_FOR_SUMS,
            _ => false,
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn with_512_bits(work: impl WideWork) {
    work.run::<x86::Avx512>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn with_256_bits(work: impl WideWork) {
    work.run::<x86::Avx2>();
}

/// Does work in instructions as wide as this machine has.
#[inline(always)]
pub(in crate::mlx) fn do_with_wide_vectors(work: impl WideWork) {
    InstructionSet::widest().run(work);
}
