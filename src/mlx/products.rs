//! Products of rows with one matrix of numbers.
//!
//! Owns whose thread computes them. On the CPU MLX hands each to a thread of its own, and whoever reads what comes of
//! it waits for that: where a model is small that takes longer than the product. So the BLAS that MLX would call is
//! called at once, or for few rows, and matrices of 16 bits, the program's own loops (`host_matrices`).

use mlx_rs::Array;
#[cfg(target_os = "linux")]
use mlx_rs::Dtype;

use super::{device::ComputeDevice, error::Result, host_matrices::HostMatrices};
#[cfg(target_os = "linux")]
use super::{host::made_by_host, sys};

/// Rows `(…, inputs)` times a matrix `(inputs, outputs)`: `(…, outputs)`.
pub(super) fn multiplied(rows: &Array, matrix: &Array, device: ComputeDevice) -> Result<Array> {
    if device == ComputeDevice::Cpu
        && let Some(matrix) = HostMatrices::of_numbers(matrix)?
        && let Some(results) = matrix.multiply(0, rows)?
    {
        return Ok(results);
    }
    match multiplied_by_host(rows, matrix, (0, 1), device)? {
        Some(results) => Ok(results),
        None => Ok(rows.matmul(matrix)?),
    }
}

/// Rows `(…, inputs)` times the transpose of a matrix `(outputs, inputs)`: `(…, outputs)`.
pub(super) fn multiplied_by_transpose(rows: &Array, matrix: &Array, device: ComputeDevice) -> Result<Array> {
    match multiplied_by_host(rows, matrix, (1, 0), device)? {
        Some(results) => Ok(results),
        None => Ok(rows.matmul(matrix.t())?),
    }
}

/// The product, the matrix having inputs and outputs on these axes; `None` where MLX is to compute it.
#[cfg(target_os = "linux")]
fn multiplied_by_host(
    rows: &Array,
    matrix: &Array,
    (input_axis, output_axis): (usize, usize),
    device: ComputeDevice,
) -> Result<Option<Array>> {
    let is_float32 = |array: &Array| array.dtype() == Dtype::Float32;
    let is_product =
        matrix.ndim() == 2 && rows.ndim() > 0 && rows.shape().last() == matrix.shape().get(input_axis);
    if device != ComputeDevice::Cpu
        || !is_float32(rows)
        || !is_float32(matrix)
        || !is_product
        || rows.size() == 0
    {
        return Ok(None);
    }
    let (numbers, strides) = sys::strided_numbers(matrix)?;
    let of_axes = |sizes: &[usize]| (sizes[input_axis], sizes[output_axis]);
    let sizes: Vec<usize> = matrix.shape().iter().map(|&size| size as usize).collect();
    let matrix = (numbers, of_axes(&sizes), of_axes(strides));
    if !sys::is_for_blas(matrix) {
        return Ok(None);
    }
    let mut shape = rows.shape().to_vec();
    *shape.last_mut().expect("rows have an axis of inputs") = sizes[output_axis] as i32;
    made_by_host([rows], &shape, |[rows], results| sys::multiply_rows(rows, matrix, false, results)).map(Some)
}

/// What a Mac's CPU computes is MLX's business.
#[cfg(not(target_os = "linux"))]
fn multiplied_by_host(_: &Array, _: &Array, _: (usize, usize), _: ComputeDevice) -> Result<Option<Array>> {
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mlx::sys::slice_axis;

    #[test]
    fn products_are_the_same_on_both_kinds_of_device_however_rows_and_matrix_lie_in_memory() {
        let array = |shape: &[i32], seed: f32| {
            let size: i32 = shape.iter().product();
            let numbers: Vec<f32> = (0..size).map(|at| ((at as f32 + seed) * 0.61).sin()).collect();
            Array::from_slice(&numbers, shape)
        };
        let (inputs, outputs) = (20, 35);
        for rows in [
            array(&[1, inputs], 1.0),
            array(&[7, inputs], 1.0),
            array(&[2, 3, inputs], 2.0),
            array(&[inputs, 7], 3.0).t(),
            slice_axis(&array(&[4, 2 * inputs], 4.0), 1, 3, 3 + inputs as usize).unwrap(),
        ] {
            for matrix in [
                array(&[inputs, outputs], 5.0),
                array(&[outputs, inputs], 6.0).t(),
                slice_axis(&array(&[outputs, inputs], 7.0).t(), 1, 4, 9).unwrap(),
                slice_axis(&array(&[inputs, outputs], 8.0), 1, 4, 5).unwrap(),
                array(&[1, inputs], 9.0).t(),
                // Two steps, as no BLAS takes it.
                slice_axis(&array(&[inputs, outputs, 2], 9.0), 2, 1, 2).unwrap().squeeze_axes(&[2]).unwrap(),
            ] {
                let [cpu, gpu] =
                    ComputeDevice::KINDS.map(|device| multiplied(&rows, &matrix, device).unwrap());
                let by_transpose = multiplied_by_transpose(&rows, &matrix.t(), ComputeDevice::Cpu).unwrap();
                let numbers = |array: &Array| array.contiguous().unwrap().to_vec_exact::<f32>().unwrap();
                for cpu in [cpu, by_transpose] {
                    assert_eq!(cpu.shape(), gpu.shape());
                    for (left, right) in numbers(&cpu).into_iter().zip(numbers(&gpu)) {
                        assert!((left - right).abs() < 1e-5, "{left} {right}");
                    }
                }
            }
        }
        assert!(multiplied(&array(&[2, 3], 0.0), &array(&[4, 5], 0.0), ComputeDevice::Cpu).is_err());
    }
}
