//! GGUF tensors → named arrays.
//!
//! Owns bringing blocks to the device, as numbers or packed where MLX has the same form, and undoing
//! llama.cpp's row permutation. What a block means, and the header, are `models::gguf`'s.

use std::{collections::HashMap, path::Path, sync::Mutex};

use mlx_rs::Array;

use super::{
    device::ComputeDtype,
    error::{MlxError, Result},
    linear::Precision,
    sys,
    weights::Weights,
};
use crate::{
    models::{
        GgufHeader, GgufWeight, ModelSpec,
        gguf::{Affine, Decode, GROUP_SIZE, GgufTensor, affine, decoder},
        gguf_weight,
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
    let architecture = match spec.model_type.as_str() {
        "gemma3_text" => "gemma3",
        other => other,
    };
    let mut arrays = HashMap::new();
    for tensor in header.tensors() {
        let file = &header.files()[tensor.file];
        let (name, num_heads) = match gguf_weight(architecture, &tensor.name) {
            Some(GgufWeight::Named(name)) => (name, None),
            Some(GgufWeight::Interleaved { name, is_query }) => {
                let heads = spec.kv_layers().next().map_or(1, |attention| {
                    if is_query { attention.num_heads } else { attention.num_kv_heads }
                });
                (name, Some(heads))
            }
            Some(GgufWeight::Ignored) => continue,
            None => {
                return Err(MlxError::Weights(format!(
                    "'{}' in {} is not part of this model type",
                    tensor.name,
                    file.display()
                )));
            }
        };
        let in_tensor = |reason: String| unreadable(file, format!("tensor '{}': {reason}", tensor.name));
        let blocks = Blocks::of(tensor, &maps[tensor.file], num_heads).map_err(in_tensor)?;
        let packed = match name.strip_suffix(".weight") {
            Some(path) if !precision.widen_quantized => {
                blocks.packed(precision.dtype)?.map(|packed| (path, packed))
            }
            _ => None,
        };
        match packed {
            Some((path, [weight, scales, biases])) => {
                arrays.insert(format!("{path}.scales"), scales);
                arrays.insert(format!("{path}.biases"), biases);
                arrays.insert(name, weight);
            }
            None => {
                let decode = decoder(tensor.ggml_type.code()).ok_or_else(|| {
                    in_tensor(format!("its type {} cannot be read", tensor.ggml_type.name()))
                })?;
                arrays.insert(name, blocks.numbers(decode, precision.dtype)?);
            }
        }
    }
    Ok(Weights::from_arrays(arrays))
}

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
    fn of(
        tensor: &GgufTensor,
        file: &'a [u8],
        num_heads: Option<usize>,
    ) -> std::result::Result<Self, String> {
        let bytes = usize::try_from(tensor.offset_bytes)
            .ok()
            .zip(usize::try_from(tensor.num_bytes).ok())
            .and_then(|(start, len)| file.get(start..start.checked_add(len)?))
            .ok_or("the file has become shorter")?;
        let shape = (tensor.shape.iter())
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

    /// The matrix as MLX's packed codes, scales and biases, which are float32; `None` where that form cannot
    /// hold it, or not in the range of `dtype`.
    fn packed(&self, dtype: ComputeDtype) -> Result<Option<[Array; 3]>> {
        let (&[rows, columns], Some(affine)) = (self.shape.as_slice(), affine(self.type_code)) else {
            return Ok(None);
        };
        let num_groups = columns as usize / GROUP_SIZE;
        let mut words = vec![0_u32; rows as usize * num_groups * affine.bits];
        let mut scales = Vec::with_capacity(rows as usize * num_groups);
        let mut biases = Vec::with_capacity(rows as usize * num_groups);
        for (row, words) in words.chunks_mut(num_groups * affine.bits).enumerate() {
            let blocks = self.row(row).chunks_exact(self.block_bytes);
            for (block, words) in blocks.zip(words.chunks_mut(affine.bits)) {
                let (scale, bias) = Affine::unpack(affine, block, words);
                scales.push(scale);
                biases.push(bias);
            }
        }
        let largest_f16 = 65504.0;
        if dtype == ComputeDtype::Float16
            && biases.iter().any(|bias| bias.is_finite() && bias.abs() > largest_f16)
        {
            return Ok(None);
        }
        let groups = [rows, num_groups as i32];
        Ok(Some([
            Array::from_slice(&words, &[rows, (num_groups * affine.bits) as i32]),
            Array::from_slice(&scales, &groups),
            Array::from_slice(&biases, &groups),
        ]))
    }
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
