//! Inputs of each layer besides the hidden states: a second table of embeddings, of all layers side by side.
//!
//! Owns what tokens and hidden states give before the first layer, and what a layer makes of its part after its
//! MLP (Gemma 3n and 4; transformers' `Gemma4TextModel.project_per_layer_inputs`).

use mlx_rs::Array;

use super::{
    error::Result,
    linear::{Embedding, Linear},
    loader::Loader,
    norm::Norm,
    ops::Ops,
    sys,
};
use crate::models::{Activation, PerLayerInputSpec};

/// What gives the inputs of all layers.
#[derive(Debug)]
pub(super) struct PerLayerInputs {
    num_layers: i32,
    table: Embedding,
    /// On what the table gives.
    table_scale: Array,
    projection: Linear,
    /// On what the hidden states give.
    projection_scale: Array,
    norm: Norm,
    /// On the sum of both.
    scale: Array,
}

impl PerLayerInputs {
    pub(super) fn load(loader: &mut Loader<'_>, spec: PerLayerInputSpec) -> Result<Self> {
        let hidden = loader.spec.hidden_size;
        let num_layers = loader.spec.layers.len();
        let width = num_layers * spec.width;
        let dtype = loader.precision.dtype.mlx();
        let number = |number: f32| Array::from_f32(number).as_dtype(dtype);
        Ok(Self {
            num_layers: num_layers as i32,
            table: loader.table("model.embed_tokens_per_layer", spec.vocab_size, width)?,
            table_scale: number((spec.width as f32).sqrt())?,
            projection: loader.linear("model.per_layer_model_projection", width, hidden, false)?,
            projection_scale: number((hidden as f32).sqrt().recip())?,
            norm: loader.norm("model.per_layer_projection_norm", spec.width)?,
            scale: number(std::f32::consts::FRAC_1_SQRT_2)?,
        })
    }

    /// Tokens `(n,)` and their hidden states before the first layer `(n, hidden)` → `(n, layers, width)`.
    pub(super) fn of(&self, tokens: &Array, hidden: &Array) -> Result<Array> {
        let by_layer = |rows: Array| rows.reshape(&[rows.dim(0), self.num_layers, -1]);
        let from_table = by_layer(self.table.lookup(tokens)?.multiply(&self.table_scale)?)?;
        let projected = by_layer(self.projection.forward(hidden)?.multiply(&self.projection_scale)?)?;
        Ok(self.norm.forward(&projected)?.add(from_table)?.multiply(&self.scale)?)
    }
}

/// What one layer makes of its own inputs.
#[derive(Debug)]
pub(super) struct PerLayerInput {
    index: usize,
    gate: Linear,
    projection: Linear,
    norm: Norm,
}

impl PerLayerInput {
    /// Loads the weights of layer `index`.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        block_path: &str,
        index: usize,
        spec: PerLayerInputSpec,
    ) -> Result<Self> {
        let hidden = loader.spec.hidden_size;
        let path = |name: &str| format!("{block_path}.{name}");
        Ok(Self {
            index,
            gate: loader.linear(&path("per_layer_input_gate"), spec.width, hidden, false)?,
            projection: loader.linear(&path("per_layer_projection"), hidden, spec.width, false)?,
            norm: loader.norm(&path("post_per_layer_input_norm"), hidden)?,
        })
    }

    /// What is added to hidden states `(n, hidden)`, given the inputs of all layers `(n, layers, width)`.
    pub(super) fn update(&self, hidden: &Array, inputs: &Array, ops: &Ops) -> Result<Array> {
        let own = sys::slice_axis(inputs, 1, self.index, self.index + 1)?.squeeze_axes(&[1])?;
        let gated = ops.gated(Activation::GeluTanh, self.gate.forward(hidden)?, own.contiguous()?)?;
        self.norm.forward(&self.projection.forward(&gated)?)
    }
}
