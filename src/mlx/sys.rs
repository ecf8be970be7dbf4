//! The only `unsafe` code: calls that `mlx_rs` does not wrap, the C library's dynamic linker, and the
//! one BLAS call that the executable has in front of the library's.
//!
//! Owns thin, checked wrappers, by what they wrap; what they are for is their callers' business.

mod arrays;
#[cfg(target_os = "linux")]
mod blas;
#[cfg(target_os = "linux")]
mod gemm;
mod library;
mod process;
mod quantized;
mod team;
mod vectors;

pub(super) use arrays::{
    append_bytes, array_of_bytes, changed_in_place, compute, copied_part, each_in_order, element_bytes,
    in_order, left_shift, reversed_last_axis, set_at, slice_axis, strided_numbers, strided_words,
};
#[cfg(target_os = "linux")]
pub(super) use blas::{
    is_for_blas, library_of, multiply_rows, multiply_rows_into_parts, openblas_kernels, set_openblas_threads,
};
#[cfg(target_os = "linux")]
pub(super) use gemm::COLUMNS_TOGETHER;
pub(super) use library::{gpu_is_available, mlx_version};
#[cfg(test)]
pub(super) use library::{graph_of, operations_of};
pub(super) use process::{
    exit_at_once, forget_pages, ignore_file_size_signal, map_file, peak_resident_bytes,
};
pub(super) use quantized::{
    Packing, QuantizedParts, dequantize, from_fp8, gather_quantized_matmul, quantized_matmul,
};
pub(super) use team::{even_parts, on_team, parts_of_rows, share_out, team_size};
pub(super) use vectors::{
    InstructionSet, Instructions, Lanes, NUM_LANES, WideWork, do_with_wide_vectors, prefetch,
    with_wide_vectors,
};
