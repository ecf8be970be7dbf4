//! What MLX has no call for: arrays copied, joined, cut and padded.
//!
//! Owns these few shapes of calls; what the arrays mean is the callers' business.

use std::ops::Range;

use mlx_rs::{Array, Dtype, error::Exception, ops};

use super::{device::ComputeDevice, error::Result, sys};

/// Several arrays along one axis as one; a single one is not copied. There must be one at least.
pub(super) fn concatenated(mut arrays: Vec<Array>, axis: i32) -> Result<Array> {
    Ok(if arrays.len() == 1 { arrays.remove(0) } else { ops::concatenate(&arrays, axis)? })
}

/// Some rows of an array that has `num_rows` of them, as a view.
pub(super) fn rows_of(array: &Array, rows: &Range<usize>, num_rows: usize) -> Result<Array> {
    Ok(if rows.len() == num_rows { array.clone() } else { sys::slice_axis(array, 0, rows.start, rows.end)? })
}

/// What two ranges have in common; empty where nothing.
pub(super) fn overlap(left: &Range<usize>, right: &Range<usize>) -> Range<usize> {
    left.start.max(right.start)..left.end.min(right.end)
}

/// Where rows are among `all`, of which they are some.
pub(super) fn within(rows: &Range<usize>, all: &Range<usize>) -> Range<usize> {
    rows.start - all.start..rows.end - all.start
}

/// Where rows are that come in parts of so many consecutive ones: the part, and those of its rows.
pub(super) fn rows_in_parts(part_rows: &[usize], rows: &Range<usize>) -> Vec<(usize, Range<usize>)> {
    let mut found = Vec::new();
    let mut first = 0;
    for (part, num_rows) in part_rows.iter().enumerate() {
        let wanted = overlap(rows, &(first..first + num_rows));
        if !wanted.is_empty() {
            found.push((part, wanted.start - first..wanted.end - first));
        }
        first += num_rows;
    }
    found
}

/// Adds `num_rows` rows of zeros at the end of the first axis of `(S, H, C, D)`, and columns of zeros before and
/// after the third.
pub(super) fn padded_around(
    array: &Array,
    num_rows: usize,
    (before, after): (usize, usize),
) -> std::result::Result<Array, Exception> {
    let pads = [(0, num_rows as i32), (0, 0), (before as i32, after as i32), (0, 0)];
    ops::pad(array, &pads[..], Array::from_int(0).as_dtype(array.dtype())?, None)
}

/// A copy in row-major order that owns just its elements.
///
/// MLX's own `contiguous` will not do: what is in order already, as slices of a single head are, it
/// gives back as a view, where the whole takes up to 16 KiB more. A concatenation always copies.
pub(super) fn compact(array: &Array) -> Result<Array> {
    let shape = array.shape();
    let Some(axis) = shape.iter().position(|&size| size > 1) else { return Ok(array.contiguous()?) };
    let first = sys::slice_axis(array, axis, 0, 1)?;
    let rest = sys::slice_axis(array, axis, 1, shape[axis] as usize)?;
    Ok(ops::concatenate(&[first, rest], axis as i32)?)
}

/// A copy of an array's first element, once more behind itself: there is no smaller one that MLX would copy.
pub(super) fn first_number(array: &Array) -> Result<Array> {
    let mut first = array.clone();
    for axis in 0..array.ndim() {
        first = sys::slice_axis(&first, axis, 0, 1)?;
    }
    let first = first.reshape(&[1])?;
    Ok(ops::concatenate(&[&first, &first], 0)?)
}

/// How a part of an array becomes an array of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copying {
    /// By this thread, at once: where the device is the processor itself, its operations cost more than small copies.
    ByHost,
    /// By the device, when it comes to it.
    ByDevice,
}

impl Copying {
    pub(super) fn of(device: ComputeDevice) -> Self {
        match device {
            ComputeDevice::Cpu => Self::ByHost,
            ComputeDevice::Gpu => Self::ByDevice,
        }
    }

    /// Some tokens of one sequence, `(1, H, L, D)`, of planes `(S, H, C, D)`, as a copy that owns just its elements.
    pub(super) fn tokens_of(self, planes: &Array, slot: usize, tokens: Range<usize>) -> Result<Array> {
        match (self, planes.shape()) {
            (Self::ByHost, &[_, num_heads, _, width]) => Ok(sys::copied_part(
                planes,
                &[slot..slot + 1, 0..num_heads as usize, tokens, 0..width as usize],
            )?),
            _ => {
                let of_slot = sys::slice_axis(planes, 0, slot, slot + 1)?;
                compact(&sys::slice_axis(&of_slot, 2, tokens.start, tokens.end)?)
            }
        }
    }
}

/// Whether all elements are numbers, none of them infinite.
pub(super) fn all_finite(arrays: &[Array]) -> Result<bool> {
    // Zero times what is no finite number is no number, and nor is any sum of it.
    let zero = |array: &Array| Ok(array.multiply(Array::from_int(0).as_dtype(array.dtype())?)?.sum(None)?);
    let sums = arrays.iter().map(zero).collect::<Result<Vec<Array>>>()?;
    mlx_rs::transforms::eval(&sums)?;
    for sum in sums {
        if sum.as_dtype(Dtype::Float32)?.item_exact::<f32>() != 0.0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The same of an array's bytes, found out by this thread.
pub(super) fn all_finite_in(bytes: &[u8], dtype: Dtype) -> bool {
    // An exponent of nothing but ones is no finite number. Not one by one until the first: so it is done in vectors.
    let in_halves = |exponent: u16| {
        let (numbers, _) = bytes.as_chunks::<2>();
        numbers.iter().fold(true, |all, number| all & (u16::from_le_bytes(*number) & exponent != exponent))
    };
    match dtype {
        Dtype::Float16 => in_halves(0x7c00),
        Dtype::Bfloat16 => in_halves(0x7f80),
        Dtype::Float32 => {
            let (numbers, _) = bytes.as_chunks::<4>();
            let exponent = 0x7f80_0000;
            numbers
                .iter()
                .fold(true, |all, number| all & (u32::from_le_bytes(*number) & exponent != exponent))
        }
        // Whole numbers.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_element_that_is_no_finite_number_is_found() {
        for dtype in [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16] {
            for (value, expected) in
                [(-6.0e4, true), (f32::NAN, false), (f32::INFINITY, false), (f32::NEG_INFINITY, false)]
            {
                let mut numbers = [1.5_f32; 60];
                numbers[17] = value;
                let arrays = [[2.0; 60], numbers]
                    .map(|numbers| Array::from_slice(&numbers, &[1, 3, 4, 5]).as_dtype(dtype).unwrap());
                assert_eq!(all_finite(&arrays).unwrap(), expected, "{value} {dtype:?}");
                let mut bytes = Vec::new();
                sys::append_bytes(&arrays[1], &mut bytes).unwrap();
                assert_eq!(all_finite_in(&bytes, dtype), expected, "{value} {dtype:?}");
            }
        }
        assert!(all_finite(&[Array::from_slice::<f32>(&[], &[1, 0])]).unwrap());
        assert!(all_finite(&[]).unwrap());
    }

    #[test]
    fn tokens_are_the_same_whoever_copies_them_and_whatever_their_order_in_memory() {
        let numbers: Vec<f32> = (0..3 * 2 * 7 * 5).map(|number| number as f32).collect();
        for dtype in [Dtype::Float32, Dtype::Bfloat16] {
            let whole = Array::from_slice(&numbers, &[3, 2, 7, 5]).as_dtype(dtype).unwrap();
            let turned = whole.transpose_axes(&[0, 2, 1, 3]).unwrap();
            let by_columns = whole.transpose_axes(&[0, 1, 3, 2]).unwrap();
            let within = sys::slice_axis(&sys::slice_axis(&whole, 2, 1, 6).unwrap(), 3, 1, 4).unwrap();
            for planes in [&whole, &turned, &by_columns, &within] {
                let num_tokens = planes.dim(2) as usize;
                for (slot, tokens) in [(0, 0..num_tokens), (2, 1..2), (1, 1..num_tokens - 1), (1, 0..0)] {
                    let copy = |copying: Copying| copying.tokens_of(planes, slot, tokens.clone()).unwrap();
                    let (by_host, by_device) = (copy(Copying::ByHost), copy(Copying::ByDevice));
                    assert_eq!((by_host.shape(), by_host.dtype()), (by_device.shape(), dtype));
                    assert!(by_host.eq(&by_device).unwrap().all(None).unwrap().item_exact::<bool>());
                }
            }
        }
        let array = Array::from_slice(&numbers, &[3, 2, 7, 5]);
        for part in [vec![0..3, 0..2, 0..8, 0..5], vec![0..3, 0..2], vec![0..3, 0..2, 7..8, 0..5]] {
            assert!(sys::copied_part(&array, &part).is_err());
        }
    }

    /// What was cut from a single head, or a single token, was a view: the rest stayed in memory when
    /// it was evicted.
    #[test]
    fn a_compact_copy_shares_no_memory_with_what_it_was_cut_from() {
        let numbers: Vec<f32> = (0..240).map(|number| number as f32).collect();
        for shape in [[1, 1, 24, 10], [1, 2, 12, 10], [1, 24, 1, 10], [24, 1, 1, 10], [1, 1, 240, 1]] {
            let whole = Array::from_slice(&numbers, &shape);
            let memory = whole.try_as_slice::<f32>().unwrap().as_ptr_range();
            for (axis, &size) in shape.iter().enumerate() {
                let size = size as usize;
                for (start, stop) in [(0, size), (size / 2, size), (0, 1), (size - 1, size)] {
                    let part = sys::slice_axis(&whole, axis, start, stop).unwrap();
                    let copy = compact(&part).unwrap();
                    copy.eval().unwrap();
                    assert_eq!(copy.shape(), part.shape());
                    let is_all_ones = copy.size() == 1;
                    let start = copy.try_as_slice::<f32>().unwrap().as_ptr();
                    assert!(is_all_ones || !memory.contains(&start), "{shape:?}, axis {axis}");
                    assert!(part.eq(&copy).unwrap().all(None).unwrap().item_exact::<bool>());
                }
            }
        }
    }
}
