//! The device that computes, and what is known about it.
//!
//! Owns the choice between CPU and GPU, and its memory; what the machine has left is `machine_memory`'s. How an operation is best computed on each is `ops`'
//! and `attention`'s business.

use mlx_rs::{Device, DeviceType, Dtype};

use super::sys;
use crate::machine_memory::{available_bytes, kib_in};

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeDevice {
    Cpu,
    Gpu,
}

impl ComputeDevice {
    /// Both kinds. MLX's CPU backend computes what is meant for a GPU as well, only slower: tests take both
    /// sides of every branch on the kind, wherever they run.
    pub const KINDS: [Self; 2] = [Self::Cpu, Self::Gpu];

    /// The device MLX uses by default in this process: the GPU where there is one.
    pub fn current() -> Self {
        match Device::try_default().and_then(|device| device.get_type()) {
            Ok(DeviceType::Gpu) if sys::gpu_is_available() => Self::Gpu,
            _ => Self::Cpu,
        }
    }

    /// Element type that a model is computed in: the one asked for, else float32 on the CPU, whose
    /// fast BLAS knows nothing else, and on a GPU what the weights are stored in.
    pub fn compute_dtype(self, asked: Option<ComputeDtype>, stored: Option<ComputeDtype>) -> ComputeDtype {
        asked.unwrap_or(match self {
            Self::Cpu => ComputeDtype::Float32,
            Self::Gpu => stored.unwrap_or(ComputeDtype::Bfloat16),
        })
    }

    /// Has MLX give back what arrays held as soon as they are gone, on the CPU: there the system's
    /// allocator keeps enough for reuse itself, exactly as large as asked for. On a GPU MLX's own
    /// buffers are what makes reuse possible.
    pub(super) fn keep_no_free_buffers(self) {
        if self == Self::Cpu {
            // Only memory is at stake, should it fail.
            let _ = mlx_rs::memory::set_cache_limit(0);
        }
    }

    /// Name of the backend, as `--version -v` prints it.
    pub fn backend(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Gpu if cfg!(target_os = "macos") => "GPU (Metal)",
            Self::Gpu => "GPU (CUDA)",
        }
    }

    /// Whether matrices stay as they are stored when `dtype` is computed in, because the program's own loops multiply
    /// by them: these read less memory than products with numbers of that type. On a Mac's CPU the BLAS has
    /// instructions that loops cannot have.
    pub fn multiplies_packed(self, dtype: ComputeDtype) -> bool {
        cfg!(target_os = "linux") && self == Self::Cpu && dtype == ComputeDtype::Float32
    }
}

/// Element type that a model is computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeDtype {
    Float32,
    Float16,
    Bfloat16,
}

impl ComputeDtype {
    pub(super) fn mlx(self) -> Dtype {
        match self {
            Self::Float32 => Dtype::Float32,
            Self::Float16 => Dtype::Float16,
            Self::Bfloat16 => Dtype::Bfloat16,
        }
    }

    /// Bytes of one element.
    pub fn num_bytes(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Float16 | Self::Bfloat16 => 2,
        }
    }

    /// Name as typed after `--dtype`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "f32",
            Self::Float16 => "f16",
            Self::Bfloat16 => "bf16",
        }
    }
}

/// Ends the process at once, even while a forward pass is under way; nothing is flushed.
pub fn exit_at_once(code: u8) -> ! {
    sys::exit_at_once(code)
}

/// Has a write beyond the limit on the size of files fail in place of ending the process.
pub fn ignore_file_size_signal() {
    sys::ignore_file_size_signal();
}

/// Most memory this process has had resident so far, in bytes.
pub fn peak_memory_bytes() -> u64 {
    // On Linux getrusage starts from the peak of the process that started this one.
    kib_in("/proc/self/status", "VmHWM:").unwrap_or_else(sys::peak_resident_bytes)
}

/// Bytes that MLX's arrays hold in this process now; buffers kept for reuse are not among them.
pub fn active_memory_bytes() -> Option<u64> {
    mlx_rs::memory::active_memory().ok().map(|num_bytes| num_bytes as u64)
}

/// Memory that the KV of a run may take, in bytes: what the machine has left, or on a GPU what that has;
/// `None` where neither is known.
pub fn free_memory_bytes() -> Option<u64> {
    let of_machine = || available_bytes().filter(|_| ComputeDevice::current() == ComputeDevice::Cpu);
    of_machine().or_else(|| {
        let limit = mlx_rs::memory::memory_limit().ok()?;
        let active = mlx_rs::memory::active_memory().ok()?;
        Some(gpu_memory_bytes(limit as u64, cfg!(target_os = "macos")).saturating_sub(active as u64))
    })
}

/// What the limit at which MLX stops allocating says of the memory that a GPU can work in.
///
/// On CUDA it lies just below the card's own memory. On Metal it is one and a half times what the system
/// recommends as working set, and at most 95 % of all memory: beyond the former others are swapped out.
fn gpu_memory_bytes(limit_bytes: u64, is_metal: bool) -> u64 {
    if is_metal { limit_bytes / 3 * 2 } else { limit_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_has_left_is_what_a_run_may_take() {
        // On a GPU the machine's memory is not the GPU's.
        assert_eq!(gpu_memory_bytes(96 << 30, false), 96 << 30);
        assert_eq!(gpu_memory_bytes(15 << 30, true), 10 << 30);
        if ComputeDevice::current() == ComputeDevice::Cpu && cfg!(target_os = "linux") {
            let (free, available) = (free_memory_bytes().unwrap(), available_bytes().unwrap());
            assert!(free.abs_diff(available) < available / 2, "{free} {available}");
        }
    }

    #[test]
    fn the_loaded_library_is_the_version_that_is_pinned() {
        assert_eq!(sys::mlx_version(), "0.32.2");
    }
}
