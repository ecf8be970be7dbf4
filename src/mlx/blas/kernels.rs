//! The kernels that OpenBLAS uses, which are the processor's only if OpenBLAS knows that.
//!
//! Owns seeing that it does not, and starting the program anew with kernels that fit: OpenBLAS can be told
//! of others only before it is loaded.

use std::{env, os::unix::process::CommandExt, process::Command};

use crate::mlx::{device::ComputeDevice, sys};

/// The variable by which OpenBLAS is told which kernels to use. It reads it as it is loaded, before `main`.
const KERNELS_VARIABLE: &str = "OPENBLAS_CORETYPE";

/// Kernels that know neither AVX2 nor FMA.
const OLD_KERNELS: [&str; 14] = [
    "Prescott",
    "Core2",
    "Penryn",
    "Dunnington",
    "Nehalem",
    "Sandybridge",
    "Atom",
    "Katmai",
    "Coppermine",
    "Northwood",
    "Banias",
    "Opteron",
    "Barcelona",
    "Bobcat",
];

/// Kernels that use AVX-512.
const WIDE_KERNELS: [&str; 3] = ["SkylakeX", "Cooperlake", "SapphireRapids"];

fn is_among(kernels: &str, names: &[&str]) -> bool {
    names.iter().any(|name| name.eq_ignore_ascii_case(kernels))
}

/// What a processor has that kernels are made for.
#[derive(Debug, Clone, Copy)]
struct Vectors {
    has_avx2_and_fma: bool,
    /// AVX-512 F, BW, CD, DQ and VL.
    has_avx512: bool,
}

impl Vectors {
    fn of_this_processor() -> Self {
        #[cfg(target_arch = "x86_64")]
        return Self {
            has_avx2_and_fma: is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            has_avx512: is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512cd")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl"),
        };
        #[cfg(not(target_arch = "x86_64"))]
        Self { has_avx2_and_fma: false, has_avx512: false }
    }

    /// The kernels to use instead of those that OpenBLAS chose.
    ///
    /// A release does not know processors that are newer than it, and takes Prescott's for them: Debian 12's
    /// is three to four times slower by that on Intel's Emerald Rapids.
    fn better_than(self, kernels: &str) -> Option<&'static str> {
        match self {
            _ if !is_among(kernels, &OLD_KERNELS) => None,
            Self { has_avx512: true, .. } => Some("SkylakeX"),
            Self { has_avx2_and_fma: true, .. } => Some("Haswell"),
            _ => None,
        }
    }

    /// What the processor has that these kernels do not use.
    fn unused_by(self, kernels: &str) -> Option<&'static str> {
        match self {
            Self { has_avx512: true, .. } if !is_among(kernels, &WIDE_KERNELS) => Some("AVX-512"),
            Self { has_avx2_and_fma: true, .. } if is_among(kernels, &OLD_KERNELS) => Some("AVX2"),
            _ => None,
        }
    }
}

/// Says that the kernels which the user chose are older than the processor.
pub(super) fn told_if_older(kernels: &str) -> Option<String> {
    env::var_os(KERNELS_VARIABLE)?;
    let unused = Vectors::of_this_processor().unused_by(kernels)?;
    Some(format!(
        "OpenBLAS uses {kernels} kernels, from {KERNELS_VARIABLE}; this processor has {unused}: unset {KERNELS_VARIABLE}"
    ))
}

/// See [`super::restart_with_better_kernels`].
pub(super) fn restart_with_better() {
    if env::var_os(KERNELS_VARIABLE).is_some() || ComputeDevice::current() != ComputeDevice::Cpu {
        return;
    }
    let kernels = sys::openblas_kernels();
    let better = kernels.and_then(|kernels| Vectors::of_this_processor().better_than(&kernels));
    if let (Some(better), Ok(program)) = (better, env::current_exe()) {
        let mut arguments = env::args_os();
        let mut command = Command::new(program);
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        // Returns only where it fails.
        let _ = command.args(arguments).env(KERNELS_VARIABLE, better).exec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_replaced_by_what_the_processor_has() {
        let vectors = |has_avx2_and_fma, has_avx512| Vectors { has_avx2_and_fma, has_avx512 };
        let (old, haswell, skylake) = (vectors(false, false), vectors(true, false), vectors(true, true));
        assert_eq!(skylake.better_than("Prescott"), Some("SkylakeX"));
        assert_eq!(haswell.better_than("Prescott"), Some("Haswell"));
        assert_eq!(haswell.better_than("barcelona"), Some("Haswell"));
        assert_eq!(old.better_than("Prescott"), None);
        assert_eq!(skylake.unused_by("Haswell"), Some("AVX-512"));
        assert_eq!((skylake.unused_by("skylakex"), haswell.unused_by("Haswell")), (None, None));
        assert_eq!(haswell.unused_by("Nehalem"), Some("AVX2"));
        // What OpenBLAS knows, it chooses best itself.
        for known in ["Haswell", "Zen", "SkylakeX", "Cooperlake", "SapphireRapids", "Whatever", "armv8"] {
            assert_eq!(skylake.better_than(known), None, "{known}");
        }
    }
}
