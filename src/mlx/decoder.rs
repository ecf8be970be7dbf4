//! The one decoder: embeddings, a stack of blocks and a head, built from a `ModelSpec`.
//!
//! Owns what comes before and after the blocks. Linear layers see the packed rows of all
//! sequences at once, `(T, hidden)`; what happens within a block is `block`'s business.

use std::{collections::HashMap, ops::Range};

use mlx_rs::Array;

use super::{
    arrays::rows_of,
    blas,
    block::{DecoderBlock, Places},
    block_pass::{BlockPass, row_blocks},
    device::ComputeDevice,
    error::{MlxError, Result},
    host::{rows_at, stacked},
    linear::{Embedding, Linear},
    live::{LiveKv, LivePass},
    loader::Loader,
    logit_rows,
    matrices::{MatrixShape, Precision},
    norm::Norm,
    ops::Ops,
    per_layer::PerLayerInputs,
    rope::{Rope, RopeTable},
    sampler::Chosen,
    states::RecurrentState,
    weights::Weights,
};
use crate::models::ModelSpec;

/// So many logits at a time are computed on the CPU where only the largest is asked for: more take memory, and more parts
/// take time.
const MAX_LOGITS_OF_PART: usize = 1 << 20;

/// A loaded model.
#[derive(Debug)]
pub(super) struct Decoder {
    pub spec: ModelSpec,
    pub precision: Precision,
    device: ComputeDevice,
    ops: Ops,
    embedding: Embedding,
    embedding_scale: Option<Array>,
    per_layer_inputs: Option<PerLayerInputs>,
    blocks: Vec<DecoderBlock>,
    initial_states: Vec<RecurrentState>,
    /// The distinct rotations of the layers.
    ropes: Vec<Rope>,
    norm: Norm,
    head: Linear,
    /// Whether the head is the embedding table, with which it then shares its memory.
    is_tied: bool,
}

impl Decoder {
    /// Builds the model, taking every weight it needs and refusing any it does not know.
    pub(super) fn load(
        spec: &ModelSpec,
        mut weights: Weights,
        precision: Precision,
        device: ComputeDevice,
    ) -> Result<Self> {
        let tied = spec.tied_head.unwrap_or_else(|| !weights.contains("lm_head.weight"));
        if weights.are_published() {
            spec.folds.iter().try_for_each(|fold| weights.fold(fold))?;
        }
        blas::leave_threads_to_team();
        let mut loader = Loader::new(spec, &mut weights, precision);
        let embedding = loader.table("model.embed_tokens", spec.vocab_size, spec.hidden_size)?;
        let mut places = Places::default();
        let per_layer_inputs =
            spec.per_layer_inputs.map(|inputs| PerLayerInputs::load(&mut loader, inputs)).transpose()?;
        let blocks = spec
            .layers
            .iter()
            .enumerate()
            .map(|(index, layer)| DecoderBlock::load(&mut loader, index, layer, &mut places))
            .collect::<Result<Vec<_>>>()?;
        let norm = loader.norm(spec.names.final_norm, spec.hidden_size)?;
        let head = if tied {
            for part in ["weight", "scales", "biases"] {
                loader.weights.drop_duplicate(&format!("lm_head.{part}"));
            }
            let shape = MatrixShape { outputs: spec.vocab_size, inputs: spec.hidden_size };
            embedding.to_head(loader.weights, "lm_head", shape)?
        } else {
            loader.linear("lm_head", spec.vocab_size, spec.hidden_size, false)?
        };
        weights.finish(&spec.names)?;
        Ok(Self {
            precision,
            device,
            ops: Ops::new(device),
            embedding,
            embedding_scale: spec
                .embedding_scale
                .map(|scale| Array::from_f32(scale).as_dtype(precision.dtype.mlx()))
                .transpose()?,
            per_layer_inputs,
            initial_states: blocks.iter().filter_map(DecoderBlock::initial_state).collect::<Result<_>>()?,
            blocks,
            ropes: places.ropes.iter().map(|rope| Rope::new(rope, device)).collect(),
            norm,
            head,
            is_tied: tied,
            spec: spec.clone(),
        })
    }

    /// Has activations made as on a real GPU: computed on a CPU, they would want a C++ compiler.
    #[cfg(test)]
    pub(super) fn compile_activations(&mut self) {
        self.ops = Ops::compiling(self.device);
    }

    /// Runs the packed tokens through all blocks and returns their hidden states, `(T, hidden)`.
    ///
    /// `tokens` is `(T,)`; `pass` says whose they are, and `live` gets their KV.
    pub(super) fn forward(&self, tokens: &Array, pass: &LivePass, live: &mut LiveKv) -> Result<Array> {
        let positions = pass.positions();
        if positions.len() != tokens.size() {
            return Err(MlxError::Unsupported(format!(
                "a pass of {} positions got {} tokens",
                positions.len(),
                tokens.size()
            )));
        }
        let row_blocks = row_blocks(self.device, positions.len(), pass.decode_positions.len());
        let dtype = self.precision.dtype.mlx();
        let rotations = self
            .ropes
            .iter()
            .map(|rope| {
                let table = |rows: &Range<usize>| rope.table(&positions[rows.clone()], dtype);
                Ok((rope, row_blocks.iter().map(table).collect::<Result<_>>()?))
            })
            .collect::<Result<Vec<_>>>()?;
        let mut hidden = Vec::with_capacity(row_blocks.len());
        let mut per_layer_inputs = Vec::new();
        for rows in &row_blocks {
            let tokens = rows_of(tokens, rows, positions.len())?;
            let rows = self.embedding.lookup(&tokens)?;
            let rows = match &self.embedding_scale {
                Some(scale) => rows.multiply(scale)?,
                None => rows,
            };
            if let Some(inputs) = &self.per_layer_inputs {
                per_layer_inputs.push(inputs.of(&tokens, &rows)?);
            }
            hidden.push(rows);
        }
        if self.device == ComputeDevice::Cpu {
            // What the blocks read one after the other is waited for once.
            let tables = rotations.iter().flat_map(|(_, tables): &(_, Vec<RopeTable>)| tables);
            mlx_rs::transforms::eval(hidden.iter().chain(tables.flat_map(RopeTable::arrays)))?;
        }
        let mut block_pass = BlockPass {
            ops: &self.ops,
            device: self.device,
            row_blocks,
            rotations,
            positions: &positions,
            per_layer_inputs,
            kv_of_layers: HashMap::new(),
            rows: pass,
            live: &mut *live,
        };
        for block in &self.blocks {
            block.forward(&mut hidden, &mut block_pass)?;
            // What a layer makes of many chunks is many small operations: they are under way before
            // the next layer's are made.
            if self.device == ComputeDevice::Cpu && !pass.chunks.is_empty() {
                mlx_rs::transforms::async_eval(&hidden)?;
            }
        }
        live.end_pass(pass);
        stacked(hidden, self.device)
    }

    /// The states of all recurrent layers before the first token.
    pub(super) fn initial_states(&self) -> &[RecurrentState] {
        &self.initial_states
    }

    /// What computes.
    pub(super) fn device(&self) -> ComputeDevice {
        self.device
    }

    /// The elementwise functions of this device.
    pub(super) fn ops(&self) -> &Ops {
        &self.ops
    }

    /// Logits of the given rows of the hidden states: `(R, vocabulary)`, float32.
    pub(super) fn logits(&self, hidden: &Array, rows: &[i32]) -> Result<Array> {
        self.finish_logits(self.head.forward(&self.normed_rows(hidden, rows)?)?)
    }

    /// The most probable token after each of the given rows of the hidden states.
    ///
    /// On the CPU the vocabulary comes in parts.
    pub(super) fn most_probable(&self, hidden: &Array, rows: &[i32]) -> Result<Chosen> {
        if self.device != ComputeDevice::Cpu {
            return Chosen::most_probable(&self.logits(hidden, rows)?);
        }
        let num_logits = rows.len() * self.spec.vocab_size;
        self.most_probable_in_parts(hidden, rows, num_logits.div_ceil(MAX_LOGITS_OF_PART))
    }

    fn most_probable_in_parts(&self, hidden: &Array, rows: &[i32], num_parts: usize) -> Result<Chosen> {
        let num_outputs = self.spec.vocab_size;
        let normed = self.normed_rows(hidden, rows)?;
        let mut best = vec![(0, f32::NEG_INFINITY); rows.len()];
        for part in 0..num_parts {
            let outputs = num_outputs * part / num_parts..num_outputs * (part + 1) / num_parts;
            let logits = match num_parts {
                1 => self.head.forward(&normed)?,
                _ => self.head.forward_part(&normed, &outputs)?,
            };
            let of_part =
                logit_rows::of_each(&self.finish_logits(logits)?, |_, logits| logit_rows::best(logits))?;
            for (best, (token, logit)) in best.iter_mut().zip(of_part) {
                // The first among equals; what is no number stays none.
                if logit > best.1 || logit.is_nan() {
                    *best = (outputs.start as u32 + token, logit);
                }
            }
        }
        Ok(Chosen::of_rows(best))
    }

    fn normed_rows(&self, hidden: &Array, rows: &[i32]) -> Result<Array> {
        self.norm.forward(&rows_at(hidden, rows, self.device)?)
    }

    fn finish_logits(&self, logits: Array) -> Result<Array> {
        let mut logits = logits.as_dtype(mlx_rs::Dtype::Float32)?;
        let tied_scale = self.spec.tied_logits_scale.filter(|_| self.is_tied);
        for scale in [self.spec.logits_scale, tied_scale].into_iter().flatten() {
            logits = logits.multiply(Array::from_f32(scale))?;
        }
        match self.spec.final_logit_softcap {
            Some(cap) => Ok(self.ops.softcap(&logits, cap)?),
            None => Ok(logits),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{mlx::device::ComputeDtype, models::read_config};

    fn load(folder: &str, device: ComputeDevice) -> Decoder {
        let folder = PathBuf::from("fixtures").join(folder);
        let spec = read_config(&folder.join("config.json")).unwrap();
        let weights =
            Weights::from_safetensors(&[folder.join("model.safetensors")], &spec.names, None).unwrap();
        // Quantised matrices as they are.
        let dtype = ComputeDtype::Float32;
        let precision = Precision { dtype, device, widen_quantized: false, fuse_updates: false };
        Decoder::load(&spec, weights, precision, device).unwrap()
    }

    #[test]
    fn the_most_probable_tokens_are_the_same_in_however_many_parts() {
        let models = ["tiny-llama", "tiny-qwen2", "tiny-llama-4bit"];
        let on_both_kinds =
            models.into_iter().flat_map(|model| ComputeDevice::KINDS.map(|device| (model, device)));
        for (model, device) in on_both_kinds {
            let decoder = load(model, device);
            let width = decoder.spec.hidden_size as i32;
            let hidden: Vec<f32> = (0..40 * width).map(|index| (index as f32 * 0.37).sin()).collect();
            let hidden = Array::from_slice(&hidden, &[40, width]);
            let rows: Vec<i32> = (0..40).rev().collect();
            let expected = decoder.most_probable(&hidden, &rows).unwrap().read().unwrap();
            let distinct: std::collections::HashSet<_> = expected.iter().collect();
            assert!(distinct.len() > 5, "{model}: {expected:?}");
            for num_parts in [2, 3, 7] {
                let found = decoder.most_probable_in_parts(&hidden, &rows, num_parts).unwrap();
                assert_eq!(found.read().unwrap(), expected, "{model}, {num_parts}");
            }
            // What comes of a hidden state that is no number is none.
            let numbers: Vec<f32> =
                (0..40 * width).map(|index| if index == 7 * width { f32::NAN } else { 1.0 }).collect();
            let broken = Array::from_slice(&numbers, &[40, width]);
            for num_parts in [1, 3] {
                let found =
                    decoder.most_probable_in_parts(&broken, &[6, 7], num_parts).unwrap().read().unwrap();
                assert!(found[0].is_some() && found[1].is_none(), "{model}: {found:?}");
            }
            let found = decoder.most_probable(&broken, &[7]).unwrap().read().unwrap();
            assert_eq!(found, [None], "{model}");
        }
    }
}
