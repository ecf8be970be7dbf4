//! Putting an adapter's tensors among the weights of the model that it is for.
//!
//! Owns their layouts and scales, and what is replaced. Which tensors there are is read in `models/`; each update is
//! taken with its matrix, wherever that is cut or stacked meanwhile, and one that is left over is an error as with any
//! weight.

use mlx_rs::{Array, Dtype};

use super::{
    device::{ComputeDevice, ComputeDtype},
    error::{MlxError, Result},
    weights::{UPDATE_DOWN, UPDATE_MAGNITUDE, UPDATE_UP, Weights, load_file, weight_file_error},
};
use crate::models::{Adapter, AdapterWriter, ModelSpec, NormWeight, UpdateShape};

const TABLE: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";

/// An adapter and how it is used.
#[derive(Debug, Clone, Copy)]
pub struct UsedAdapter<'a> {
    pub adapter: &'a Adapter,
    /// Whether updates are added into the matrices' numbers, which then are no longer quantised.
    pub is_fused: bool,
}

impl UsedAdapter<'_> {
    /// What it adds to what a model's weights take, as [`matrix_bytes`](super::matrix_bytes) has them on a CPU and its
    /// files on a GPU.
    pub fn added_bytes(&self, spec: &ModelSpec, device: ComputeDevice, dtype: ComputeDtype) -> u64 {
        let num_elements = match (self.is_fused, &spec.quantization, device) {
            (false, _, _) => self.adapter.num_elements(),
            (true, None, _) => 0,
            // Matrices are counted as numbers already, but for experts'.
            (true, Some(_), ComputeDevice::Cpu) => self.adapter.num_updated_elements(true),
            (true, Some(_), ComputeDevice::Gpu) => self.adapter.num_updated_elements(false),
        };
        num_elements.saturating_mul(dtype.num_bytes()) as u64
    }
}

/// Puts the tensors of `adapter` among the weights of the model that `spec` describes, before any is taken.
pub(super) fn add(weights: &mut Weights, spec: &mut ModelSpec, adapter: &Adapter) -> Result<()> {
    let mut stored = load_file(&adapter.weights_file)?;
    let mut take = |name: &str| {
        let array = stored.remove(name);
        array.ok_or_else(|| weight_file_error(&adapter.weights_file, format!("'{name}' is missing")))
    };
    for update in &adapter.updates {
        let (down, up) = (take(&update.down)?, take(&update.up)?);
        let [down, up] = [down.as_dtype(Dtype::Float32)?, up.as_dtype(Dtype::Float32)?];
        let (down, up) = match (adapter.writer, update.shape.num_matrices) {
            (AdapterWriter::MlxLm, None) => (down.swap_axes(-1, -2)?, up.swap_axes(-1, -2)?),
            (AdapterWriter::MlxLm, Some(_)) | (AdapterWriter::Peft, None) => (down, up),
            // The experts' side by side: (E · r, inputs) and (outputs, r · E).
            (AdapterWriter::Peft, Some(count)) => {
                let UpdateShape { rank, inputs, outputs, .. } = update.shape;
                let [count, rank, inputs, outputs] = [count, rank, inputs, outputs].map(|size| size as i32);
                let up = up.reshape(&[outputs, rank, count])?.transpose_axes(&[2, 0, 1])?;
                (down.reshape(&[count, rank, inputs])?, up)
            }
        };
        let up = up.multiply(Array::from_f32(update.scale))?;
        weights.insert(format!("{}.{UPDATE_DOWN}", update.path), down)?;
        weights.insert(format!("{}.{UPDATE_UP}", update.path), up)?;
        if let Some(name) = &update.magnitude {
            let magnitude = take(name)?.as_dtype(Dtype::Float32)?;
            weights.insert(format!("{}.{UPDATE_MAGNITUDE}", update.path), magnitude)?;
        }
    }
    // What peft trained is for the publisher's weights, whichever these are.
    if adapter.writer == AdapterWriter::Peft {
        spec.folds.iter().try_for_each(|fold| weights.fold_updates(fold))?;
    }
    if adapter.replaced.is_empty() {
        return Ok(());
    }
    let is_other_form = match adapter.writer {
        AdapterWriter::MlxLm => weights.are_published(),
        AdapterWriter::Peft => {
            !weights.are_published()
                && (spec.norm.weight == NormWeight::LessOneUnlessConverted || !spec.folds.is_empty())
        }
    };
    if is_other_form {
        let form = match adapter.writer {
            AdapterWriter::MlxLm => "an MLX conversion, as which mlx-lm",
            AdapterWriter::Peft => "the publisher's files, as which peft",
        };
        return Err(MlxError::Adapter(format!(
            "it replaces '{}', and weights of this model are stored otherwise here: give --model {form} reads it",
            adapter.replaced[0].name
        )));
    }
    let is_tied = spec.tied_head.unwrap_or_else(|| !weights.contains(&format!("{HEAD}.weight")));
    if is_tied && adapter.replaced.iter().any(|replaced| replaced.unties) {
        weights.copy_matrix(TABLE, HEAD);
        spec.tied_head = Some(false);
    }
    for replaced in &adapter.replaced {
        let array = take(&replaced.stored)?;
        if is_tied && !replaced.unties && replaced.name == format!("{HEAD}.weight") {
            // The table itself, which is there too.
            continue;
        }
        weights.replace(&replaced.name, array)?;
    }
    Ok(())
}
