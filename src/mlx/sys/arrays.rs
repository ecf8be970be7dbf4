//! What `mlx_rs` does not do with arrays: parts and changes without a copy, and their bytes.

use std::{borrow::Cow, ops::Range};

use mlx_rs::{Array, Dtype, Stream, error::Exception};

pub(super) fn array_from(
    operation: &'static str,
    call: impl FnOnce(*mut mlx_sys::mlx_array) -> i32,
) -> Result<Array, Exception> {
    // SAFETY: a fresh empty handle; whatever the call leaves in it is owned by the new `Array`.
    let (array, status) = unsafe {
        let mut raw = mlx_sys::mlx_array_new();
        let status = call(&mut raw);
        (Array::from_ptr(raw), status)
    };
    if status == 0 { Ok(array) } else { Err(Exception::custom(format!("MLX {operation} failed"))) }
}

/// Elements `start..stop` along `axis`, without a copy.
///
/// Bounds are clipped by MLX as in NumPy.
pub(in crate::mlx) fn slice_axis(
    array: &Array,
    axis: usize,
    start: usize,
    stop: usize,
) -> Result<Array, Exception> {
    let shape = array.shape();
    if axis >= shape.len() {
        return Err(Exception::custom(format!("no axis {axis} in an array of {} axes", shape.len())));
    }
    let (mut starts, mut stops) = (vec![0; shape.len()], shape.to_vec());
    (starts[axis], stops[axis]) = (start as i32, stop as i32);
    slice(array, &starts, &stops, &vec![1; shape.len()])
}

/// The same elements in the opposite order along the last axis, without a copy.
pub(in crate::mlx) fn reversed_last_axis(array: &Array) -> Result<Array, Exception> {
    let shape = array.shape();
    let Some(last) = shape.len().checked_sub(1) else {
        return Err(Exception::custom("no axis in an array of one number".to_owned()));
    };
    let (mut starts, mut stops, mut strides) = (vec![0; shape.len()], shape.to_vec(), vec![1; shape.len()]);
    // Before the first element, as in NumPy where the end is left out.
    (starts[last], stops[last], strides[last]) = (shape[last] - 1, -shape[last] - 1, -1);
    slice(array, &starts, &stops, &strides)
}

/// Elements from `starts` to `stops` in steps of `strides`, one of each for every axis, without a copy.
fn slice(array: &Array, starts: &[i32], stops: &[i32], strides: &[i32]) -> Result<Array, Exception> {
    let stream = Stream::thread_local_or_default();
    array_from("slice", |result| {
        // SAFETY: all pointers are valid for their lengths during the call.
        unsafe {
            mlx_sys::mlx_slice(
                result,
                array.as_ptr(),
                starts.as_ptr(),
                starts.len(),
                stops.as_ptr(),
                stops.len(),
                strides.as_ptr(),
                strides.len(),
                stream.as_ptr(),
            )
        }
    })
}

/// An array with elements from `starts` on, along each axis, replaced by all of `update`. Nothing is copied
/// but those where nobody else holds the array when it is computed: it takes it for that.
pub(in crate::mlx) fn set_at(array: Array, starts: &[usize], update: &Array) -> Result<Array, Exception> {
    if starts.len() != array.ndim() || starts.len() != update.ndim() {
        return Err(Exception::custom(format!("{} starts for {} axes", starts.len(), array.ndim())));
    }
    let stops: Vec<i32> =
        starts.iter().zip(update.shape()).map(|(&start, &size)| start as i32 + size).collect();
    let starts: Vec<i32> = starts.iter().map(|&start| start as i32).collect();
    if stops.iter().zip(array.shape()).any(|(stop, size)| stop > size) {
        return Err(Exception::custom(format!("{:?} do not fit into {:?}", update.shape(), array.shape())));
    }
    let strides = vec![1; starts.len()];
    let stream = Stream::thread_local_or_default();
    array_from("slice update", |result| {
        // SAFETY: both handles are alive, and all pointers valid for their lengths, during the call.
        unsafe {
            mlx_sys::mlx_slice_update(
                result,
                array.as_ptr(),
                update.as_ptr(),
                starts.as_ptr(),
                starts.len(),
                stops.as_ptr(),
                stops.len(),
                strides.as_ptr(),
                strides.len(),
                stream.as_ptr(),
            )
        }
    })
}

/// Has arrays computed that are not yet. Where all are, which is a short question, MLX is not given them: that would take
/// as long as many an operation on the host.
pub(in crate::mlx) fn compute<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<(), Exception> {
    let open: Vec<&Array> = arrays.into_iter().filter(|array| !is_computed(array)).collect();
    if open.is_empty() { Ok(()) } else { mlx_rs::transforms::eval(open) }
}

fn is_computed(array: &Array) -> bool {
    let mut is_computed = false;
    // SAFETY: the handle is alive during the call, and there is room for its answer.
    let status = unsafe { mlx_sys::_mlx_array_is_available(&mut is_computed, array.as_ptr()) };
    status == 0 && is_computed
}

/// An array that is computed and whose elements lie one behind the other in row-major order: itself where they do.
pub(in crate::mlx) fn in_order(array: &Array) -> Result<Cow<'_, Array>, Exception> {
    compute([array])?;
    laid_out(array)
}

/// [`in_order`] of several arrays, which are computed together.
pub(in crate::mlx) fn each_in_order<'a>(
    arrays: impl IntoIterator<Item = &'a Array> + Clone,
) -> Result<Vec<Cow<'a, Array>>, Exception> {
    compute(arrays.clone())?;
    arrays.into_iter().map(laid_out).collect()
}

/// The same of an array that is computed.
fn laid_out(array: &Array) -> Result<Cow<'_, Array>, Exception> {
    let mut is_in_order = false;
    // SAFETY: the handle is alive during the call, and there is room for its answer.
    let status = unsafe { mlx_sys::_mlx_array_is_row_contiguous(&mut is_in_order, array.as_ptr()) };
    if status == 0 && is_in_order {
        return Ok(Cow::Borrowed(array));
    }
    let in_order = array.contiguous()?;
    in_order.eval()?;
    Ok(Cow::Owned(in_order))
}

/// Arrays of float32 after `change` has been at their numbers, in row-major order; nothing is copied where
/// they are in that order.
///
/// They are computed first, and changed in place: nobody else may hold one of them, or another array that
/// shares its memory, or something not computed yet that is made of it.
pub(in crate::mlx) fn changed_in_place(
    mut arrays: Vec<Array>,
    change: impl FnOnce(&mut [&mut [f32]]),
) -> Result<Vec<Array>, Exception> {
    if let Some(array) = arrays.iter().find(|array| array.dtype() != Dtype::Float32) {
        return Err(Exception::custom(format!("{:?} numbers are not changed in place", array.dtype())));
    }
    compute(&arrays)?;
    for array in &mut arrays {
        if let Cow::Owned(in_order) = laid_out(array)? {
            *array = in_order;
        }
    }
    let mut slices: Vec<&mut [f32]> = Vec::with_capacity(arrays.len());
    for array in &arrays {
        // SAFETY: the array is evaluated and in order, so its numbers lie one behind the other; they are
        // alive as long as it is, and by the contract nobody else reads them.
        slices.push(unsafe {
            let data = mlx_sys::mlx_array_data_float32(array.as_ptr()).cast_mut();
            if data.is_null() && array.size() > 0 {
                return Err(Exception::custom("an array without data".to_owned()));
            }
            if data.is_null() { &mut [] } else { std::slice::from_raw_parts_mut(data, array.size()) }
        });
    }
    change(&mut slices);
    Ok(arrays)
}

/// What an array's elements are as they lie in memory, from the first to the last, and how many elements neighbours along
/// each axis lie apart.
type Strided<'a, T> = (&'a [T], &'a [usize]);

/// The numbers of an array of float32. Nothing is copied; it is computed first.
pub(in crate::mlx) fn strided_numbers(array: &Array) -> Result<Strided<'_, f32>, Exception> {
    if array.dtype() != Dtype::Float32 {
        return Err(Exception::custom(format!("{:?} numbers are not read as float32", array.dtype())));
    }
    let (bytes, strides) = strided_bytes(array)?;
    // SAFETY: every four bytes of them are a float32, and all bits are one.
    let (_, numbers, _) = unsafe { bytes.align_to() };
    Ok((numbers, strides))
}

/// The same of an array of any numbers, as words; `None` where it does not lie in whole words.
pub(in crate::mlx) fn strided_words(array: &Array) -> Result<Option<Strided<'_, u32>>, Exception> {
    let (bytes, strides) = strided_bytes(array)?;
    // SAFETY: any bytes are words.
    let (before, words, behind) = unsafe { bytes.align_to() };
    Ok((before.is_empty() && behind.is_empty()).then_some((words, strides)))
}

fn strided_bytes(array: &Array) -> Result<Strided<'_, u8>, Exception> {
    compute([array])?;
    let strides = array.strides();
    if array.size() == 0 {
        return Ok((&[], strides));
    }
    let last = array.shape().iter().zip(strides).try_fold(0_usize, |last, (&size, &stride)| {
        let backwards = isize::try_from(stride).is_err() && size > 1;
        let axis = if backwards { None } else { (size as usize - 1).checked_mul(stride) };
        last.checked_add(axis.unwrap_or_default()).filter(|_| !backwards)
    });
    let last = last.ok_or_else(|| Exception::custom("an array that runs backwards in memory".to_owned()))?;
    // SAFETY: the array is evaluated, so that its elements lie at these strides from the first one, which is where
    // the pointer points; they are alive as long as it is, and what is computed is not written to while it is held.
    let bytes = unsafe {
        let data = mlx_sys::mlx_array_data_uint8(array.as_ptr());
        if data.is_null() {
            return Err(Exception::custom("an array without data".to_owned()));
        }
        std::slice::from_raw_parts(data, (last + 1) * element_bytes(array.dtype()))
    };
    Ok((bytes, strides))
}

/// A copy of a part of an array, made by this thread at once; the part is given as a range along each axis. The array
/// is computed first.
pub(in crate::mlx) fn copied_part(array: &Array, part: &[Range<usize>]) -> Result<Array, Exception> {
    array.eval()?;
    let (shape, strides) = (array.shape(), array.strides());
    let is_within =
        |(range, &size): (&Range<usize>, &i32)| range.start <= range.end && range.end <= size as usize;
    if part.len() != shape.len() || !part.iter().zip(shape).all(is_within) {
        return Err(Exception::custom(format!("no part {part:?} in an array of shape {shape:?}")));
    }
    let part_shape: Vec<i32> = part.iter().map(|range| range.len() as i32).collect();
    let width = element_bytes(array.dtype());
    let num_elements: usize = part.iter().map(Range::len).product();
    let mut bytes = Vec::with_capacity(num_elements * width);
    // The last axes whose elements lie one behind the other are copied together.
    let mut run = 1;
    let mut num_outer = part.len();
    while num_outer > 0 && strides[num_outer - 1] == run {
        let axis = num_outer - 1;
        num_outer = axis;
        run *= part[axis].len();
        if part[axis].len() != shape[axis] as usize {
            break;
        }
    }
    let inner_start: usize = (num_outer..part.len()).map(|axis| part[axis].start * strides[axis]).sum();
    let mut place: Vec<usize> = part[..num_outer].iter().map(|range| range.start).collect();
    // SAFETY: the array is evaluated, so its elements lie at its strides from where the pointer points, and are
    // alive as long as it is; all that is read is within its shape, as was checked.
    let data = unsafe { mlx_sys::mlx_array_data_uint8(array.as_ptr()) };
    if data.is_null() && num_elements > 0 {
        return Err(Exception::custom("an array without data".to_owned()));
    }
    while bytes.len() < num_elements * width {
        let offset = place.iter().zip(strides).map(|(index, stride)| index.wrapping_mul(*stride));
        let offset = offset.fold(inner_start, usize::wrapping_add) as isize * width as isize;
        // SAFETY: as above.
        bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(data.offset(offset), run * width) });
        for axis in (0..num_outer).rev() {
            place[axis] += 1;
            if place[axis] < part[axis].end {
                break;
            }
            place[axis] = part[axis].start;
        }
    }
    array_of_bytes(&bytes, &part_shape, array.dtype())
}

/// Shifts integers left, bit by bit.
pub(in crate::mlx) fn left_shift(array: &Array, bits: &Array) -> Result<Array, Exception> {
    let stream = Stream::thread_local_or_default();
    array_from("left shift", |result| {
        // SAFETY: both handles are alive during the call.
        unsafe { mlx_sys::mlx_left_shift(result, array.as_ptr(), bits.as_ptr(), stream.as_ptr()) }
    })
}

/// Bytes of one element.
pub(in crate::mlx) fn element_bytes(dtype: Dtype) -> usize {
    // SAFETY: a table lookup.
    unsafe { mlx_sys::mlx_dtype_size(dtype.into()) }
}

/// Appends an array's bytes to `bytes`; its elements must lie one behind the other.
pub(in crate::mlx) fn append_bytes(array: &Array, bytes: &mut Vec<u8>) -> Result<(), Exception> {
    array.eval()?;
    // SAFETY: the array is evaluated, so its data is there, and alive as long as `array` is; any
    // element type may be read as bytes.
    let data = unsafe {
        let data = mlx_sys::mlx_array_data_uint8(array.as_ptr());
        if data.is_null() && array.nbytes() > 0 {
            return Err(Exception::custom("an array without data".to_owned()));
        }
        if data.is_null() { &[] } else { std::slice::from_raw_parts(data, array.nbytes()) }
    };
    bytes.extend_from_slice(data);
    Ok(())
}

/// A new array of these bytes, which are copied.
pub(in crate::mlx) fn array_of_bytes(bytes: &[u8], shape: &[i32], dtype: Dtype) -> Result<Array, Exception> {
    let num_elements = shape.iter().try_fold(1_usize, |product, &dim| {
        usize::try_from(dim).ok().and_then(|dim| product.checked_mul(dim))
    });
    let num_bytes = num_elements.and_then(|num_elements| num_elements.checked_mul(element_bytes(dtype)));
    if num_bytes != Some(bytes.len()) {
        return Err(Exception::custom(format!("{} bytes are no {dtype:?} of shape {shape:?}", bytes.len())));
    }
    // SAFETY: the bytes are as many as the shape takes, and copied during the call.
    Ok(unsafe { Array::from_raw_data(bytes.as_ptr().cast(), shape, dtype) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_changed_in_row_major_order_and_only_float32_ones() {
        let array = || Array::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
        let in_order = array().multiply(Array::from_f32(1.0)).unwrap();
        in_order.eval().unwrap();
        let memory = in_order.try_as_slice::<f32>().unwrap().as_ptr();
        let transposed = array().transpose_axes(&[1, 0]).unwrap();
        let changed = changed_in_place(vec![in_order, transposed], |numbers| {
            assert_eq!(numbers[1], [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
            numbers.iter_mut().for_each(|numbers| numbers[1] = 9.0);
        })
        .unwrap();
        assert_eq!(changed[0].try_as_slice::<f32>().unwrap(), [1.0, 9.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(changed[0].try_as_slice::<f32>().unwrap().as_ptr(), memory, "nothing is copied");
        assert_eq!(changed[1].shape(), [3, 2]);
        assert_eq!(changed[1].try_as_slice::<f32>().unwrap(), [1.0, 9.0, 2.0, 5.0, 3.0, 6.0]);
        assert!(changed_in_place(vec![Array::from_int(3)], |_| unreachable!("not float32")).is_err());
    }
}
