//! Loading a model: files → a decoder on the device.
//!
//! Owns whether quantised weights are widened. Reading files is
//! `weights`', their meaning `models/`'s.

use std::path::PathBuf;

use super::{
    adapter::{self, UsedAdapter},
    decoder::Decoder,
    device::{ComputeDevice, ComputeDtype},
    error::Result,
    host_matrices::INPUTS_TOGETHER,
    matrices::Precision,
    weights::Weights,
    weights_gguf,
};
use crate::{
    machine_memory::available_bytes,
    models::{AttentionSpec, MixerSpec, ModelSpec},
};

/// Where a model's weights are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightSource {
    Safetensors(Vec<PathBuf>),
    Gguf(PathBuf),
}

/// A model on the device, ready to run.
#[derive(Debug)]
pub struct LoadedModel {
    decoder: Decoder,
}

impl LoadedModel {
    /// Loads a model's weights, to be computed in `dtype` the way that is best on `device`: the current one,
    /// but for tests.
    pub fn load(
        spec: &ModelSpec,
        source: &WeightSource,
        device: ComputeDevice,
        dtype: ComputeDtype,
    ) -> Result<Self> {
        Self::load_adapted(spec, source, None, device, dtype)
    }

    /// The same with an adapter.
    pub fn load_adapted(
        spec: &ModelSpec,
        source: &WeightSource,
        adapter: Option<UsedAdapter<'_>>,
        device: ComputeDevice,
        dtype: ComputeDtype,
    ) -> Result<Self> {
        let adapter_bytes = adapter.map_or(0, |used| used.added_bytes(spec, device, dtype));
        let precision = Precision {
            dtype,
            device,
            widen_quantized: device == ComputeDevice::Cpu && widened_fits(spec, dtype, adapter_bytes),
            fuse_updates: adapter.is_some_and(|used| used.is_fused),
        };
        device.keep_no_free_buffers();
        let mut weights = match source {
            WeightSource::Safetensors(files) => {
                let format = spec.quantization.as_ref().and_then(|settings| settings.publisher);
                Weights::from_safetensors(files, &spec.names, format)?
            }
            WeightSource::Gguf(path) => weights_gguf::load(path, spec, precision)?,
        };
        let mut spec = spec.clone();
        if let Some(used) = adapter {
            adapter::add(&mut weights, &mut spec, used.adapter)?;
        }
        Ok(Self { decoder: Decoder::load(&spec, weights, precision, device)? })
    }

    /// Element type that the model is computed in.
    pub fn dtype(&self) -> ComputeDtype {
        self.decoder.precision.dtype
    }

    pub(super) fn into_decoder(self) -> Decoder {
        self.decoder
    }
}

/// Whether all matrices in `dtype` leave at least a quarter of the free memory for KV.
fn widened_fits(spec: &ModelSpec, dtype: ComputeDtype, adapter_bytes: u64) -> bool {
    let needed = matrix_bytes(spec, dtype).saturating_add(adapter_bytes);
    available_bytes().is_none_or(|available| needed <= available / 4 * 3)
}

/// Whether the rows of a model's matrices are such that numbers of 16 bits can stay as they are stored on a CPU, as far as
/// its description says.
pub fn has_even_rows(spec: &ModelSpec) -> bool {
    let of_layers = spec.layers.iter().flat_map(|layer| {
        let dense = layer.mlp.as_ref().and_then(|mlp| mlp.dense()).map(|dense| dense.intermediate_size);
        let experts = layer.mlp.as_ref().and_then(|mlp| mlp.moe()).map(|moe| moe.expert.intermediate_size);
        let attended = layer.attention().map(|attention| attention.num_heads * attention.value_dim());
        dense.into_iter().chain(experts).chain(attended)
    });
    of_layers.chain([spec.hidden_size]).all(|num_inputs| num_inputs.is_multiple_of(INPUTS_TOGETHER))
}

/// What all matrices take in `dtype`; those of experts stay as they are stored, a byte or less a number where they
/// are quantised.
pub fn matrix_bytes(spec: &ModelSpec, dtype: ComputeDtype) -> u64 {
    let num_tables = if spec.tied_head == Some(true) { 1 } else { 2 };
    let embeddings = spec.vocab_size.saturating_mul(spec.hidden_size).saturating_mul(num_tables);
    let layers = spec.layers.iter().fold(0usize, |sum, layer| {
        let heads = |attention: &AttentionSpec| {
            let gates = if attention.output_gate { attention.num_heads } else { 0 };
            let heads = 2 * (attention.num_heads + attention.num_kv_heads) + gates;
            heads.saturating_mul(attention.head_dim).saturating_mul(spec.hidden_size)
        };
        let mixer = match &layer.mixer {
            None => 0,
            Some(MixerSpec::Attention(attention)) => heads(attention),
            Some(MixerSpec::SideBySide(attention, recurrent)) => {
                heads(attention).saturating_add(recurrent.num_matrix_elements(spec.hidden_size))
            }
            Some(MixerSpec::Latent(latent)) => latent.num_matrix_elements(spec.hidden_size),
            Some(MixerSpec::Recurrent(recurrent)) => recurrent.num_matrix_elements(spec.hidden_size),
        };
        let mlp = layer.mlp.as_ref().map_or(0, |mlp| mlp.num_dense_elements(spec.hidden_size));
        sum.saturating_add(mixer).saturating_add(mlp)
    });
    let mlps = spec.layers.iter().filter_map(|layer| layer.mlp.as_ref());
    let experts = mlps.fold(0usize, |sum, mlp| sum.saturating_add(mlp.num_expert_elements(spec.hidden_size)));
    let expert_bytes = if spec.quantization.is_some() { 1 } else { dtype.num_bytes() };
    let widened = embeddings.saturating_add(layers).saturating_mul(dtype.num_bytes());
    widened.saturating_add(experts.saturating_mul(expert_bytes)) as u64
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::models::{MlpSpec, read_config};

    #[test]
    fn rows_are_even_where_all_matrices_have_whole_vectors_of_inputs() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
        let spec = read_config(&fixtures.join("tiny-qwen2/config.json")).unwrap();
        assert!(has_even_rows(&spec));
        let mut other = spec.clone();
        other.hidden_size = 1000;
        assert!(!has_even_rows(&other));
        let mut other = spec;
        let Some(MlpSpec::Dense(dense)) = &mut other.layers[1].mlp else { panic!("it has an MLP") };
        dense.intermediate_size = 48;
        assert!(!has_even_rows(&other));
    }
}
