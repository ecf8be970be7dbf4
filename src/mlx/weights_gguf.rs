//! GGUF tensors → named arrays.
//!
//! Owns calling MLX's GGUF loader and undoing llama.cpp's row permutation. The header has been
//! checked before (`models::GgufHeader`), since that loader trusts it.

use std::{collections::HashMap, path::Path};

use mlx_rs::{Array, io::GgufFile};

use super::{
    error::{MlxError, Result},
    weights::Weights,
};
use crate::models::{GgufWeight, ModelSpec, gguf_weight};

/// Loads all tensors of a GGUF file under the decoder's names.
pub(super) fn load(path: &Path, spec: &ModelSpec) -> Result<Weights> {
    let unreadable = |reason: String| MlxError::WeightFile { path: path.display().to_string(), reason };
    let file = GgufFile::load(path).map_err(|error| unreadable(format!("MLX cannot read it: {error}")))?;
    let architecture = match spec.model_type.as_str() {
        "gemma3_text" => "gemma3",
        other => other,
    };
    let mut arrays = HashMap::new();
    for (name, array) in file.arrays().map_err(|error| unreadable(error.to_string()))? {
        match gguf_weight(architecture, &name) {
            Some(GgufWeight::Named(name)) => {
                arrays.insert(name, array);
            }
            Some(GgufWeight::Interleaved { name, is_query }) => {
                let attention = spec.attention_layers().next();
                let num_heads =
                    attention.map_or(
                        1,
                        |attention| {
                            if is_query { attention.num_heads } else { attention.num_kv_heads }
                        },
                    );
                let array = deinterleave(&array, num_heads)
                    .map_err(|error| unreadable(format!("{name}: {error}")))?;
                arrays.insert(name, array);
            }
            Some(GgufWeight::Ignored) => {}
            None => {
                return Err(MlxError::Weights(format!(
                    "'{name}' in {} is not part of this model type",
                    path.display()
                )));
            }
        }
    }
    Ok(Weights::from_arrays(arrays, &spec.names))
}

/// Reorders rows from pairs to halves within each head; packed rows are whole rows, so this works
/// on quantised matrices and biases alike.
fn deinterleave(array: &Array, num_heads: usize) -> Result<Array> {
    let num_rows = array.dim(0) as usize;
    if !num_rows.is_multiple_of(2 * num_heads) {
        return Err(MlxError::Weights(format!(
            "{num_rows} rows do not divide into {num_heads} heads of pairs"
        )));
    }
    let head_dim = num_rows / num_heads;
    let half = head_dim / 2;
    let order: Vec<i32> = (0..num_rows)
        .map(|row| {
            let (head, within) = (row / head_dim, row % head_dim);
            (head * head_dim + 2 * (within % half) + within / half) as i32
        })
        .collect();
    Ok(array.take_axis(Array::from_slice(&order, &[num_rows as i32]), 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_halves() {
        let rows = Array::from_slice(&[0, 4, 1, 5, 2, 6, 3, 7, 10, 14, 11, 15, 12, 16, 13, 17], &[16]);
        let restored = deinterleave(&rows, 2).unwrap();
        restored.eval().unwrap();
        let expected = [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17];
        assert_eq!(restored.to_vec_exact::<i32>().unwrap(), expected);
        assert!(deinterleave(&rows, 3).is_err());
    }
}
