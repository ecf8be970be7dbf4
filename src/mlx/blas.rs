//! The library of matrix products on the CPU, and the kernels that it uses.
//!
//! Owns telling which one the process got. That it is OpenBLAS, and the executable's own dependency, is the
//! build's business; which of its kernels are used, that of `kernels`.

#[cfg(target_os = "linux")]
mod kernels;

use super::device::ComputeDevice;
#[cfg(not(target_os = "macos"))]
use super::sys;

/// Which BLAS serves matrix products on the CPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blas {
    Accelerate,
    OpenBlas {
        /// The kernels it uses, by the processor they were written for; not every BLAS of this speed tells.
        kernels: Option<String>,
    },
    /// Netlib's reference BLAS or another unoptimised one; 40 times slower.
    Slow {
        library: String,
    },
}

impl Blas {
    /// The BLAS that the dynamic linker chose for this process.
    pub fn current() -> Self {
        #[cfg(target_os = "macos")]
        return Self::Accelerate;
        #[cfg(not(target_os = "macos"))]
        // Not the one that `sys` has in front of the library's.
        Self::from_library(sys::library_of(c"cblas_sgemv"))
    }

    #[cfg(not(target_os = "macos"))]
    fn from_library(library: Option<String>) -> Self {
        match library {
            Some(library)
                if library.contains("openblas") || library.contains("mkl") || library.contains("blis") =>
            {
                Self::OpenBlas { kernels: sys::openblas_kernels() }
            }
            library => Self::Slow { library: library.unwrap_or_else(|| "none found".to_owned()) },
        }
    }

    /// What to tell the user when matrix products will be slow on `device`.
    pub fn warning(&self, device: ComputeDevice) -> Option<String> {
        match (self, device) {
            (Self::Slow { library }, ComputeDevice::Cpu) => Some(format!(
                "matrix products run on a slow BLAS ({library}), about 40 times slower than OpenBLAS; \
                 install it (Debian: apt-get install libopenblas0) and build with 'make', \
                 or start with LD_PRELOAD=libopenblas.so.0"
            )),
            #[cfg(target_os = "linux")]
            (Self::OpenBlas { kernels: Some(kernels) }, ComputeDevice::Cpu) => {
                kernels::told_if_older(kernels)
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for Blas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Accelerate => f.write_str("Accelerate"),
            Self::OpenBlas { kernels: None } => f.write_str("OpenBLAS"),
            Self::OpenBlas { kernels: Some(kernels) } => write!(f, "OpenBLAS ({kernels} kernels)"),
            Self::Slow { library } => write!(f, "slow reference BLAS ({library})"),
        }
    }
}

/// Starts the program anew, as it was called, where the BLAS uses kernels that are far older than the
/// processor. Returns where all is well, where the user has chosen the kernels, or where that fails, which
/// costs speed and nothing else.
///
/// To be called before anything is done.
pub fn restart_with_better_kernels() {
    #[cfg(target_os = "linux")]
    kernels::restart_with_better();
}

/// Leaves it to the team which threads products are shared among; the user's own setting counts for that.
pub(super) fn leave_threads_to_team() {
    #[cfg(target_os = "linux")]
    sys::set_openblas_threads(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_blas_is_named_with_the_fix() {
        let blas = Blas::Slow { library: "libblas.so.3".to_owned() };
        let warning = blas.warning(ComputeDevice::Cpu).unwrap();
        assert!(warning.contains("libblas.so.3") && warning.contains("libopenblas0"), "{warning}");
        assert_eq!(blas.warning(ComputeDevice::Gpu), None);
        assert_eq!(Blas::OpenBlas { kernels: None }.warning(ComputeDevice::Cpu), None);
    }
}
