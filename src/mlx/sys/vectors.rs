//! Loops compiled for the widest instructions that the machine has.

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
    fn run(self);
}

/// Does work in instructions as wide as this machine has, and with a fused multiply-add where
/// [`has_fused_multiply_add`] says so.
///
/// A trait's method can be told to be inlined, a closure cannot: once it is large its three calls are not inlined,
/// and what is not inlined is compiled for the narrow instructions that every machine has.
#[inline(always)]
pub(in crate::mlx) fn do_with_wide_vectors(work: impl WideWork) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn with_512_bits(work: impl WideWork) {
            work.run();
        }
        #[target_feature(enable = "avx2,fma")]
        fn with_256_bits(work: impl WideWork) {
            work.run();
        }
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has them.
            return unsafe { with_512_bits(work) };
        }
        if has_fused_multiply_add() {
            // SAFETY: the machine has them.
            return unsafe { with_256_bits(work) };
        }
    }
    work.run();
}

/// Whether [`WideWork`] may use `f32::mul_add`: where the instructions have none it is a
/// call of a function, a hundred times slower.
pub(in crate::mlx) fn has_fused_multiply_add() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    cfg!(target_arch = "aarch64")
}
