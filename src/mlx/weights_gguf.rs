//! GGUF tensors → named arrays.
//!
//! Owns bringing blocks to the device, as numbers or packed where MLX has the same form, and undoing what
//! llama.cpp's converter does to rows and shapes. What a block means, and the header, are `models::gguf`'s.

use std::{borrow::Cow, collections::HashMap, path::Path, sync::Mutex};

use mlx_rs::{Array, Dtype};

use super::{
    device::ComputeDtype,
    error::{MlxError, Result},
    matrices::Precision,
    sys,
    weights::Weights,
};
use crate::{
    models::{
        GgufHeader, GgufNames, GgufWeight, ModelSpec, StoredForm,
        gguf::{Affine, Decode, GgufTensor, PART_SIZE, affine, decoder},
    },
    threads::on_threads,
};

/// Loads all tensors of a GGUF model under the decoder's names, tensor by tensor, in the element type that
/// the model is computed in.
pub(super) fn load(path: &Path, spec: &ModelSpec, precision: Precision) -> Result<Weights> {
    let unreadable =
        |path: &Path, reason: String| MlxError::WeightFile { path: path.display().to_string(), reason };
    let header = GgufHeader::read(path).map_err(|error| MlxError::Unsupported(error.to_string()))?;
    let maps = (header.files().iter())
        .map(|file| sys::map_file(file).map_err(|error| unreadable(file, format!("cannot be read: {error}"))))
        .collect::<Result<Vec<_>>>()?;
    let names = GgufNames::of(&header, spec).map_err(MlxError::Unsupported)?;
    let mut arrays = HashMap::new();
    for tensor in header.tensors() {
        let file = &header.files()[tensor.file];
        let (name, form) = match names.weight(&tensor.name) {
            Some(GgufWeight::Named { name, form }) => (name, form),
            Some(GgufWeight::Ignored) => continue,
            None => {
                return Err(MlxError::Weights(format!(
                    "'{}' in {} is not part of this model type",
                    tensor.name,
                    file.display()
                )));
            }
        };
        if arrays.contains_key(&name) {
            return Err(MlxError::Weights(format!("'{name}' is in {} under two names", file.display())));
        }
        let in_tensor = |reason: String| unreadable(file, format!("tensor '{}': {reason}", tensor.name));
        let blocks = Blocks::of(tensor, &maps[tensor.file], form).map_err(in_tensor)?;
        let packed = match name.strip_suffix(".weight") {
            Some(path) if !precision.widen_quantized || precision.multiplies_packed() => {
                blocks.packed(precision)?.map(|packed| (path, packed))
            }
            _ => None,
        };
        match (packed, blocks.kept_dtype(precision)) {
            (Some((path, Packed { words, scales, biases })), _) => {
                arrays.insert(format!("{path}.scales"), scales);
                if let Some(biases) = biases {
                    arrays.insert(format!("{path}.biases"), biases);
                }
                arrays.insert(name, words);
            }
            (None, Some(dtype)) => {
                arrays.insert(name, blocks.as_stored(dtype)?);
            }
            (None, None) => {
                let decode = decoder(tensor.ggml_type.code()).ok_or_else(|| {
                    in_tensor(format!("its type {} cannot be read", tensor.ggml_type.name()))
                })?;
                arrays.insert(name, blocks.numbers(decode, precision.dtype)?);
            }
        }
        sys::forget_pages(&maps[tensor.file], tensor.offset_bytes, tensor.num_bytes);
    }
    let mut weights = Weights::from_arrays(arrays);
    weights.has_small_groups = precision.multiplies_packed();
    Ok(weights)
}

/// A matrix, or several on top of each other, as MLX packs them.
struct Packed {
    words: Array,
    scales: Array,
    /// Of affine groups.
    biases: Option<Array>,
}

/// Numbers of a matrix that several threads share the unpacking of.
const MIN_SHARED_NUMBERS: usize = 1 << 16;

/// A tensor's blocks, row by row.
struct Blocks<'a> {
    shape: Vec<i32>,
    type_code: u32,
    block_bytes: usize,
    bytes: &'a [u8],
    row_bytes: usize,
    row_size: usize,
    /// Which stored row each row is, where they are in another order.
    order: Option<Vec<usize>>,
}

impl<'a> Blocks<'a> {
    fn of(tensor: &GgufTensor, file: &'a [u8], form: StoredForm) -> std::result::Result<Self, String> {
        let num_heads = match form {
            StoredForm::Interleaved { num_heads } => Some(num_heads),
            StoredForm::AsItIs | StoredForm::OneRow | StoredForm::Kernels => None,
        };
        let bytes = usize::try_from(tensor.offset_bytes)
            .ok()
            .zip(usize::try_from(tensor.num_bytes).ok())
            .and_then(|(start, len)| file.get(start..start.checked_add(len)?))
            .ok_or("the file has become shorter")?;
        let mut shape = (tensor.shape.iter())
            .map(|&size| i32::try_from(size).map_err(|_| format!("a dimension of {size} is too large")))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let num_elements =
            tensor.shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size as usize));
        let num_elements = num_elements.ok_or("it is too large")?;
        // Blocks lie within a row of the fastest dimension, but the reordered rows are the first one's.
        let num_rows = match (num_heads, tensor.shape.split_last()) {
            (Some(_), _) => tensor.shape.first().map_or(1, |&size| size as usize),
            (None, Some((_, slower))) => slower.iter().map(|&size| size as usize).product(),
            (None, None) => 1,
        };
        let row_size = num_elements / num_rows.max(1);
        let (block_size, block_bytes) =
            (tensor.ggml_type.num_block_elements(), tensor.ggml_type.block_bytes());
        if !row_size.is_multiple_of(block_size) {
            return Err(format!("rows of {row_size} are not made of whole blocks of {block_size}"));
        }
        let order = num_heads.map(|num_heads| halves_of_pairs(num_rows, num_heads)).transpose()?;
        let row_bytes = row_size / block_size * block_bytes;
        match form {
            StoredForm::OneRow if shape.len() == 1 => shape.insert(0, 1),
            StoredForm::Kernels => shape.push(1),
            StoredForm::OneRow | StoredForm::AsItIs | StoredForm::Interleaved { .. } => {}
        }
        Ok(Self { shape, type_code: tensor.ggml_type.code(), block_bytes, bytes, row_bytes, row_size, order })
    }

    /// The bytes of a row.
    fn row(&self, number: usize) -> &[u8] {
        let stored = self.order.as_ref().map_or(number, |order| order[number]);
        &self.bytes[stored * self.row_bytes..][..self.row_bytes]
    }

    /// All numbers, made by all cores.
    fn numbers(&self, decode: Decode, dtype: ComputeDtype) -> Result<Array> {
        /// Enough for what a thread takes to be worth its while.
        const PIECE_SIZE: usize = 1 << 16;
        let zeros = mlx_rs::ops::zeros::<f32>(&self.shape)?;
        let mut arrays = sys::changed_in_place(vec![zeros], |slices| {
            let rows_per_piece = (PIECE_SIZE / self.row_size.max(1)).max(1);
            let mut num_pieces = 0;
            let pieces: Vec<_> = (slices.iter_mut())
                .flat_map(|numbers| numbers.chunks_mut(rows_per_piece * self.row_size.max(1)))
                .enumerate()
                .inspect(|_| num_pieces += 1)
                .collect();
            let pieces = Mutex::new(pieces.into_iter());
            let next = || pieces.lock().expect("no thread panics while it holds the lock").next();
            on_threads(num_pieces, || {
                while let Some((piece, numbers)) = next() {
                    for (row, numbers) in numbers.chunks_mut(self.row_size).enumerate() {
                        decode(self.row(piece * rows_per_piece + row), numbers);
                    }
                }
            });
        })?;
        let numbers = arrays.remove(0).as_dtype(dtype.mlx())?;
        numbers.eval()?;
        Ok(numbers)
    }

    /// The type of the numbers, where they are those of a matrix that stays as it is stored.
    fn kept_dtype(&self, precision: Precision) -> Option<Dtype> {
        let stored = match self.type_code {
            F16 => Dtype::Float16,
            BF16 => Dtype::Bfloat16,
            _ => return None,
        };
        (self.shape.len() > 1 && precision.keeps(stored, self.row_size)).then_some(stored)
    }

    /// All numbers as they are stored, row by row.
    fn as_stored(&self, dtype: Dtype) -> Result<Array> {
        let bytes = match self.order {
            None => Cow::Borrowed(self.bytes),
            Some(_) => (0..self.num_rows()).flat_map(|row| self.row(row)).copied().collect(),
        };
        Ok(sys::array_of_bytes(&bytes, &self.shape, dtype)?)
    }

    /// The matrices as MLX packs them, or in groups that are smaller than MLX has them where nobody else multiplies by
    /// them; `None` where there is no such form, or not in the range of `dtype`.
    fn packed(&self, precision: Precision) -> Result<Option<Packed>> {
        let (&[.., columns], 2 | 3) = (self.shape.as_slice(), self.shape.len()) else { return Ok(None) };
        if columns == 0 || !(columns as usize).is_multiple_of(PART_SIZE) {
            return Ok(None);
        }
        match affine(self.type_code) {
            Some(affine) if affine.group_size < PART_SIZE && !precision.multiplies_packed() => Ok(None),
            Some(affine) => self.packed_affine(affine, precision.dtype),
            None if self.type_code == MXFP4 => Ok(Some(self.packed_mxfp4())),
            None => Ok(None),
        }
    }

    /// Groups of a scale and a bias each, which are float32.
    fn packed_affine(&self, affine: Affine, dtype: ComputeDtype) -> Result<Option<Packed>> {
        let num_groups = self.row_size / affine.group_size;
        let num_words = self.row_size * affine.bits / 32;
        let num_rows = self.num_rows();
        let mut words = vec![0_u32; num_rows * num_words];
        let [mut scales, mut biases] = [(); 2].map(|()| vec![0.0_f32; num_rows * num_groups]);
        let groups = scales.chunks_mut(num_groups).zip(biases.chunks_mut(num_groups));
        let rows = Mutex::new(words.chunks_mut(num_words).zip(groups).enumerate());
        let next = || rows.lock().expect("no thread panics while it holds the lock").next();
        on_threads(num_rows * self.row_size / MIN_SHARED_NUMBERS, || {
            while let Some((row, (words, groups))) = next() {
                affine.unpack(self.row(row).chunks_exact(self.block_bytes), words, groups);
            }
        });
        let largest_f16 = 65504.0;
        if dtype == ComputeDtype::Float16
            && scales.iter().chain(&biases).any(|number| number.is_finite() && number.abs() > largest_f16)
        {
            return Ok(None);
        }
        let groups = self.shape_of_rows(num_groups);
        Ok(Some(Packed {
            words: Array::from_slice(&words, &self.shape_of_rows(num_words)),
            scales: Array::from_slice(&scales, &groups),
            biases: Some(Array::from_slice(&biases, &groups)),
        }))
    }

    /// Groups of a power of two and codes of four bits, which MLX has in the order of the numbers.
    fn packed_mxfp4(&self) -> Packed {
        let num_groups = self.row_size / PART_SIZE;
        let num_rows = self.num_rows();
        let mut words = Vec::with_capacity(num_rows * num_groups * 4);
        let mut scales = Vec::with_capacity(num_rows * num_groups);
        for row in 0..num_rows {
            for block in self.row(row).chunks_exact(self.block_bytes) {
                scales.push(block[0]);
                words.extend(mxfp4_words(&block[1..]));
            }
        }
        Packed {
            words: Array::from_slice(&words, &self.shape_of_rows(num_groups * 4)),
            scales: Array::from_slice(&scales, &self.shape_of_rows(num_groups)),
            biases: None,
        }
    }

    fn num_rows(&self) -> usize {
        let (_, slower) = self.shape.split_last().expect("a tensor that is packed has columns");
        slower.iter().map(|&size| size as usize).product()
    }

    /// The shape with rows of another length.
    fn shape_of_rows(&self, row_size: usize) -> Vec<i32> {
        let mut shape = self.shape.clone();
        *shape.last_mut().expect("a tensor that is packed has columns") = row_size as i32;
        shape
    }
}

/// llama.cpp's numbers of these types.
const F16: u32 = 1;
const BF16: u32 = 30;
const MXFP4: u32 = 39;

/// Sixteen bytes of codes, of which the low halves come first, as four words.
fn mxfp4_words(bytes: &[u8]) -> [u32; 4] {
    let code = |at: usize| u32::from(if at < 16 { bytes[at] & 15 } else { bytes[at - 16] >> 4 });
    std::array::from_fn(|word| (0..8).map(|at| code(8 * word + at) << (4 * at)).sum())
}

/// The stored rows in the order of each head's two halves; they are stored by pairs.
fn halves_of_pairs(num_rows: usize, num_heads: usize) -> std::result::Result<Vec<usize>, String> {
    if num_heads == 0 || !num_rows.is_multiple_of(2 * num_heads) {
        return Err(format!("{num_rows} rows do not divide into {num_heads} heads of pairs"));
    }
    let head_dim = num_rows / num_heads;
    let half = head_dim / 2;
    Ok((0..num_rows)
        .map(|row| {
            let (head, within) = (row / head_dim, row % head_dim);
            head * head_dim + 2 * (within % half) + within / half
        })
        .collect())
}

#[cfg(test)]
mod tests;
