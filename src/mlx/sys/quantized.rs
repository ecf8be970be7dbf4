//! MLX's operations on quantised matrices, in all of its modes; mlx-rs wraps one of them.

use std::ffi::CStr;

use mlx_rs::{Array, Dtype, Stream, error::Exception};

use super::arrays::array_from;

/// How numbers are packed, as MLX's functions are told.
#[derive(Debug, Clone, Copy)]
pub(in crate::mlx) struct Packing {
    pub group_size: i32,
    pub bits: i32,
    /// MLX's name of the mode.
    pub mode: &'static CStr,
}

/// A quantised matrix, or several on one more axis in front.
#[derive(Debug, Clone, Copy)]
pub(in crate::mlx) struct QuantizedParts<'a> {
    pub words: &'a Array,
    pub scales: &'a Array,
    /// Of the mode that has them.
    pub biases: Option<&'a Array>,
    pub packing: Packing,
}

impl Packing {
    fn group_size(self) -> mlx_sys::mlx_optional_int {
        mlx_sys::mlx_optional_int_ { value: self.group_size, has_value: true }
    }

    fn bits(self) -> mlx_sys::mlx_optional_int {
        mlx_sys::mlx_optional_int_ { value: self.bits, has_value: true }
    }
}

/// No array, where MLX takes one or none.
fn or_none(array: Option<&Array>) -> mlx_sys::mlx_array {
    // SAFETY: an empty handle owns nothing, and MLX only looks whether there is one.
    array.map_or_else(|| unsafe { mlx_sys::mlx_array_new() }, Array::as_ptr)
}

/// `x · matrixᵀ`: `(…, inputs)` → `(…, outputs)`.
pub(in crate::mlx) fn quantized_matmul(x: &Array, matrix: QuantizedParts<'_>) -> Result<Array, Exception> {
    let stream = Stream::thread_local_or_default();
    let QuantizedParts { words, scales, biases, packing } = matrix;
    array_from("quantized matmul", |result| {
        // SAFETY: all handles are alive during the call, and the name ends with NUL.
        unsafe {
            mlx_sys::mlx_quantized_matmul(
                result,
                x.as_ptr(),
                words.as_ptr(),
                scales.as_ptr(),
                or_none(biases),
                true,
                packing.group_size(),
                packing.bits(),
                packing.mode.as_ptr(),
                stream.as_ptr(),
            )
        }
    })
}

/// Each `(1, inputs)` of `x` times the transpose of the matrix that `indices` name for it: `(…, 1, outputs)`.
/// `is_sorted`: the indices never fall.
pub(in crate::mlx) fn gather_quantized_matmul(
    x: &Array,
    matrices: QuantizedParts<'_>,
    indices: &Array,
    is_sorted: bool,
) -> Result<Array, Exception> {
    let stream = Stream::thread_local_or_default();
    let QuantizedParts { words, scales, biases, packing } = matrices;
    array_from("gather quantized matmul", |result| {
        // SAFETY: all handles are alive during the call, and the name ends with NUL.
        unsafe {
            mlx_sys::mlx_gather_qmm(
                result,
                x.as_ptr(),
                words.as_ptr(),
                scales.as_ptr(),
                or_none(biases),
                or_none(None),
                indices.as_ptr(),
                true,
                packing.group_size(),
                packing.bits(),
                packing.mode.as_ptr(),
                is_sorted,
                stream.as_ptr(),
            )
        }
    })
}

/// The numbers of a quantised matrix, in `dtype`.
pub(in crate::mlx) fn dequantize(matrix: QuantizedParts<'_>, dtype: Dtype) -> Result<Array, Exception> {
    let stream = Stream::thread_local_or_default();
    let QuantizedParts { words, scales, biases, packing } = matrix;
    array_from("dequantize", |result| {
        // SAFETY: all handles are alive during the call, and the name ends with NUL.
        unsafe {
            mlx_sys::mlx_dequantize(
                result,
                words.as_ptr(),
                scales.as_ptr(),
                or_none(biases),
                packing.group_size(),
                packing.bits(),
                packing.mode.as_ptr(),
                or_none(None),
                mlx_sys::mlx_optional_dtype_ { value: dtype.into(), has_value: true },
                stream.as_ptr(),
            )
        }
    })
}

/// The numbers that bytes stand for in 8-bit floating point (E4M3).
pub(in crate::mlx) fn from_fp8(bytes: &Array, dtype: Dtype) -> Result<Array, Exception> {
    let stream = Stream::thread_local_or_default();
    array_from("from fp8", |result| {
        // SAFETY: all handles are alive during the call.
        unsafe { mlx_sys::mlx_from_fp8(result, bytes.as_ptr(), dtype.into(), stream.as_ptr()) }
    })
}
