//! What is made of arrays by the thread at hand rather than by MLX, on the CPU.
//!
//! Owns when that is, and the few shapes of such work that several layers share. Where it is not, or the device is
//! another, MLX's operations make the same. Loops with more to them are `fused`'s, `row_loops`'s and `strips`'s,
//! matrix products `products`'s.

use std::ops::Range;

use mlx_rs::{Array, Dtype};

use super::{
    arrays::{concatenated, rows_of},
    device::ComputeDevice,
    error::{MlxError, Result},
    sys,
};

/// Whether what is made of an array is made by the thread at hand rather than by MLX: on the CPU MLX hands each
/// operation to a thread of its own, and to wait for that takes longer than most of them.
pub(super) fn is_for_host(array: &Array, device: ComputeDevice) -> bool {
    device == ComputeDevice::Cpu && array.dtype() == Dtype::Float32 && array.size() > 0
}

/// An array of float32 whose numbers `make` writes, given those of others, all in row-major order. The others, float32
/// too and none of them empty, are computed first; nothing is copied of those that are in that order.
pub(super) fn made_by_host<const N: usize>(
    inputs: [&Array; N],
    shape: &[i32],
    make: impl FnOnce([&[f32]; N], &mut [f32]),
) -> Result<Array> {
    let mut made = all_made_by_host(inputs, vec![zeros(shape)], |numbers, made| {
        if let [made] = made {
            make(numbers, made);
        }
    })?;
    Ok(made.pop().expect("as many as were given"))
}

/// The same for several arrays that are made together, given as [zeros].
pub(super) fn all_made_by_host<const N: usize>(
    inputs: [&Array; N],
    zeros: Vec<Array>,
    make: impl FnOnce([&[f32]; N], &mut [&mut [f32]]),
) -> Result<Vec<Array>> {
    let inputs = sys::each_in_order(inputs)?;
    let mut numbers = [[].as_slice(); N];
    for (numbers, input) in numbers.iter_mut().zip(&inputs) {
        *numbers = numbers_of(input)?;
    }
    Ok(sys::changed_in_place(zeros, |made| make(numbers, made))?)
}

/// Zeros that a new array is filled with: what is made is written into the array itself. They are never written, so
/// that all of them are one page of memory, and to read them costs nothing.
static ZEROS: [f32; 1 << 23] = [0.0; 1 << 23];

/// A new array of zeros of float32.
pub(super) fn zeros(shape: &[i32]) -> Array {
    let size = shape.iter().product::<i32>() as usize;
    match ZEROS.get(..size) {
        Some(zeros) => Array::from_slice(zeros, shape),
        None => Array::from_slice(&vec![0.0; size], shape),
    }
}

/// The numbers of an array of float32 that is computed and in order.
pub(super) fn numbers_of(array: &Array) -> Result<&[f32]> {
    array.try_as_slice().map_err(|error| {
        MlxError::Unsupported(format!("numbers of shape {:?} cannot be read: {error}", array.shape()))
    })
}

/// Rows `(…, n)` and what is added to them: as many rows, or one for all, `(n,)`.
pub(super) fn summed(rows: &Array, added: &Array, device: ComputeDevice) -> Result<Array> {
    let is_one = added.ndim() == 1 && rows.shape().last() == added.shape().last();
    let fit = is_one || rows.shape() == added.shape();
    if !fit || !is_for_host(rows, device) || !is_for_host(added, device) {
        return Ok(rows.add(added)?);
    }
    made_by_host([rows, added], rows.shape(), |[rows, added], sums| {
        let rows = rows.chunks_exact(added.len());
        for (rows, sums) in rows.zip(sums.chunks_exact_mut(added.len())) {
            sums.iter_mut().zip(rows).zip(added).for_each(|((sum, x), y)| *sum = x + y);
        }
    })
}

/// An array times a number, in another shape.
pub(super) fn scaled(array: &Array, factor: f32, shape: &[i32], device: ComputeDevice) -> Result<Array> {
    if !is_for_host(array, device) {
        return Ok(array.multiply(Array::from_f32(factor).as_dtype(array.dtype())?)?.reshape(shape)?);
    }
    made_by_host([array], shape, |[numbers], scaled| {
        scaled.iter_mut().zip(numbers).for_each(|(scaled, number)| *scaled = number * factor);
    })
}

/// The shape `(n, H, D)` of rows `(n, H·D)` or `(n, H, D)`.
pub(super) fn shape_by_head(rows: &Array, num_heads: usize) -> [i32; 3] {
    let num_all_heads = rows.dim(0) * num_heads as i32;
    [rows.dim(0), num_heads as i32, rows.size() as i32 / num_all_heads.max(1)]
}

/// `(n, H·D)` or `(n, H, D)` → `(n, H, D)`.
pub(super) fn by_head(rows: &Array, num_heads: usize, device: ComputeDevice) -> Result<Array> {
    let shape = shape_by_head(rows, num_heads);
    if rows.shape() == shape {
        return Ok(rows.clone());
    }
    // A view is an operation, too, that somebody would wait for.
    if is_for_host(rows, device) {
        return made_by_host([rows], &shape, |[rows], heads| heads.copy_from_slice(rows));
    }
    Ok(rows.reshape(&shape)?)
}

/// Some of packed rows `(n, H, D)` as those of one sequence, `(1, H, L, D)`: a copy on the CPU, otherwise a view.
pub(super) fn as_sequence(packed: &Array, rows: &Range<usize>, device: ComputeDevice) -> Result<Array> {
    let &[_, num_heads, width] = packed.shape() else {
        return Err(MlxError::Unsupported(format!("packed rows of shape {:?}", packed.shape())));
    };
    if !is_for_host(packed, device) {
        let rows = rows_of(packed, rows, packed.dim(0) as usize)?;
        return Ok(rows.expand_dims(0)?.transpose_axes(&[0, 2, 1, 3])?);
    }
    let shape = [1, num_heads, rows.len() as i32, width];
    let width = width as usize;
    made_by_host([packed], &shape, |[packed], by_head| {
        let row_width = num_heads as usize * width;
        for (head, tokens) in by_head.chunks_exact_mut((rows.len() * width).max(1)).enumerate() {
            let of_rows = packed[rows.start * row_width + head * width..].chunks(row_width);
            tokens
                .chunks_exact_mut(width)
                .zip(of_rows)
                .for_each(|(token, row)| token.copy_from_slice(&row[..width]));
        }
    })
}

/// Rows of several arrays, the first axis, as one; a single one is not copied. There must be one at least.
pub(super) fn stacked(arrays: Vec<Array>, device: ComputeDevice) -> Result<Array> {
    if arrays.len() == 1 || !arrays.iter().all(|array| is_for_host(array, device)) {
        return concatenated(arrays, 0);
    }
    let mut shape = arrays[0].shape().to_vec();
    shape[0] = arrays.iter().map(|array| array.dim(0)).sum();
    let mut rows = Vec::with_capacity(shape.iter().product::<i32>() as usize);
    for array in sys::each_in_order(&arrays)? {
        rows.extend_from_slice(numbers_of(&array)?);
    }
    Ok(Array::from_slice(&rows, &shape))
}

/// Some rows of an array, the first axis, in this order.
pub(super) fn rows_at(array: &Array, rows: &[i32], device: ComputeDevice) -> Result<Array> {
    let num_rows = array.dim(0);
    if !is_for_host(array, device) || rows.iter().any(|row| !(0..num_rows).contains(row)) {
        return Ok(array.take_axis(Array::from_slice(rows, &[rows.len() as i32]), 0)?);
    }
    let mut shape = array.shape().to_vec();
    shape[0] = rows.len() as i32;
    let width = array.size() / num_rows as usize;
    made_by_host([array], &shape, |[all], chosen| {
        for (chosen, &row) in chosen.chunks_exact_mut(width).zip(rows) {
            chosen.copy_from_slice(&all[row as usize * width..][..width]);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(shape: &[i32]) -> Array {
        let size: i32 = shape.iter().product();
        Array::from_slice(&(0..size).map(|number| number as f32 * 0.5 - 7.0).collect::<Vec<_>>(), shape)
    }

    fn numbers(array: &Array) -> (Vec<i32>, Vec<f32>) {
        (array.shape().to_vec(), array.contiguous().unwrap().to_vec_exact::<f32>().unwrap())
    }

    /// All that is made here, by the thread at hand and by MLX's operations, of arrays in order and of views.
    #[test]
    fn both_kinds_of_device_make_the_same() {
        let wide = array(&[9, 2 * 24]);
        let view = sys::slice_axis(&wide, 1, 3, 27).unwrap();
        let turned = array(&[24, 9]).t();
        for rows in [array(&[9, 24]), view, turned] {
            let heads = rows.reshape(&[9, 4, 6]).unwrap();
            let one = array(&[24]);
            let [cpu, gpu] = ComputeDevice::KINDS.map(|device| {
                [
                    summed(&rows, &rows, device).unwrap(),
                    summed(&rows, &one, device).unwrap(),
                    scaled(&rows, 0.25, &[9, 2, 12], device).unwrap(),
                    by_head(&rows, 4, device).unwrap(),
                    by_head(&heads, 4, device).unwrap(),
                    as_sequence(&heads, &(2..7), device).unwrap(),
                    as_sequence(&heads, &(0..9), device).unwrap(),
                    stacked(vec![rows.clone(), array(&[1, 24]), rows.clone()], device).unwrap(),
                    rows_at(&rows, &[8, 0, 0, 3], device).unwrap(),
                ]
            });
            for (cpu, gpu) in cpu.iter().zip(&gpu) {
                assert_eq!(numbers(cpu), numbers(gpu));
            }
        }
        let bias = array(&[23]);
        assert!(ComputeDevice::KINDS.iter().all(|&device| summed(&array(&[2, 24]), &bias, device).is_err()));
    }

    #[test]
    fn what_is_made_by_host_reads_several_arrays_in_order() {
        let made = made_by_host([&array(&[2, 3]).t(), &array(&[2])], &[4], |[turned, plain], made| {
            made.copy_from_slice(&[turned[1], turned[2], plain[0], plain[1]]);
        });
        assert_eq!(numbers(&made.unwrap()), (vec![4], vec![-5.5, -6.5, -7.0, -6.5]));
        let whole = array(&[3]).as_dtype(Dtype::Int32).unwrap();
        assert!(made_by_host([&whole], &[3], |_, _| unreachable!("no float32")).is_err());
    }
}
