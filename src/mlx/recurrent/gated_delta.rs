//! Gated delta nets: Qwen3.5's, and Kimi Linear's, whose decays go by dimension.
//!
//! Owns the layer around the recurrence: projections, convolution, normalised queries and keys,
//! decay and write strength of each token, and the gated norm of what is read. The recurrence
//! itself is `delta_rule`'s.

use mlx_rs::{Array, Dtype, fast, ops};

use super::{
    causal_conv::CausalConv,
    delta_rule::{self, DeltaRows},
};
use crate::{
    mlx::{
        arrays::concatenated,
        device::ComputeDtype,
        error::Result,
        linear::Linear,
        loader::Loader,
        norm::Norm,
        ops::Ops,
        states::{Mixed, RecurrentState, RowGroup},
        sys,
    },
    models::{DeltaGate, DeltaNames, DeltaProjections, GatedDeltaSpec},
};

/// Keeps queries and keys away from division by zero, added to the sum of their squares.
const NORMALISE_EPS: f32 = 1e-6;

/// A gated-delta layer.
#[derive(Debug)]
pub(in crate::mlx) struct GatedDelta {
    spec: GatedDeltaSpec,
    dtype: ComputeDtype,
    /// To queries, keys and values, in this order: one matrix for all, or one each.
    inputs: Vec<Linear>,
    output_gate: Chain,
    write_strength: Linear,
    decay: Chain,
    conv: CausalConv,
    /// -e^A of the value head of each decay, in float32.
    decay_rate: Array,
    /// Added to the decay's projection, in float32.
    decay_bias: Array,
    norm: Norm,
    output: Linear,
}

/// A matrix, or one to fewer numbers and one from these.
#[derive(Debug)]
struct Chain(Vec<Linear>);

impl Chain {
    fn load(
        loader: &mut Loader<'_>,
        paths: impl Iterator<Item = String>,
        (outputs, inputs): (usize, usize),
        rank: Option<usize>,
    ) -> Result<Self> {
        let widths = match rank {
            None => vec![inputs, outputs],
            Some(rank) => vec![inputs, rank, outputs],
        };
        let links = paths.zip(widths.windows(2));
        let load = |(path, widths): (String, &[usize])| loader.linear(&path, widths[1], widths[0], false);
        Ok(Self(links.map(load).collect::<Result<_>>()?))
    }

    fn forward(&self, rows: &Array) -> Result<Array> {
        self.0.iter().try_fold(rows.clone(), |rows, linear| linear.forward(&rows))
    }
}

/// Makes of Qwen3-Next's two matrices, which go key head by key head, the projections of Qwen3.5.
fn cut_fused_projections(
    loader: &mut Loader<'_>,
    spec: &GatedDeltaSpec,
    names: &DeltaNames,
    path: impl Fn(&str) -> String,
) -> Result<()> {
    let [all, of_steps] = names.by_key_head;
    let num_shared = spec.num_value_heads / spec.num_key_heads;
    // The rows of some parts of each head, part by part.
    let rows_of = |widths: &[usize], parts: &[usize]| -> Vec<i32> {
        let of_head: usize = widths.iter().sum();
        let rows = parts.iter().flat_map(|&part| {
            let first: usize = widths[..part].iter().sum();
            (0..spec.num_key_heads).flat_map(move |head| {
                let start = (head * of_head + first) as i32;
                start..start + widths[part] as i32
            })
        });
        rows.collect()
    };
    let values = num_shared * spec.value_head_dim;
    let widths = [spec.key_head_dim, spec.key_head_dim, values, values];
    let parts = [
        (path(names.inputs[0]), rows_of(&widths, &[0, 1, 2])),
        (path(names.output_gate[0]), rows_of(&widths, &[3])),
    ];
    loader.weights.cut(&path(all), 0, &parts)?;
    let widths = [num_shared, num_shared];
    let parts = [
        (path(names.write_strength), rows_of(&widths, &[0])),
        (path(names.decay[0]), rows_of(&widths, &[1])),
    ];
    loader.weights.cut(&path(of_steps), 0, &parts)
}

impl GatedDelta {
    pub(super) fn load(loader: &mut Loader<'_>, block_path: &str, spec: GatedDeltaSpec) -> Result<Self> {
        let hidden = loader.spec.hidden_size;
        let names = loader.spec.names.block.delta;
        let path = |name: &str| format!("{block_path}.{name}");
        let paths = |names: &'static [&'static str]| names.iter().map(|name| path(name));
        let heads = spec.num_value_heads;
        if spec.projections == DeltaProjections::ByKeyHead {
            cut_fused_projections(loader, &spec, &names, path)?;
        }
        let widths = match spec.projections {
            DeltaProjections::Joined | DeltaProjections::ByKeyHead => vec![spec.conv_width()],
            DeltaProjections::Apart => vec![spec.key_width(), spec.key_width(), spec.value_width()],
        };
        // Decays multiply up over a whole prompt, so their parameters are never rounded.
        let log_rate = loader.flat_vector(&path(names.log_rate), heads)?.as_dtype(Dtype::Float32)?;
        let decay_rate = ops::repeat_axis::<f32>(log_rate.exp()?.negative()?, spec.decay_dim() as i32, 0)?;
        let decay_bias =
            loader.flat_vector(&path(names.decay_bias), spec.decay_width())?.as_dtype(Dtype::Float32)?;
        mlx_rs::transforms::eval([&decay_rate, &decay_bias])?;
        let inputs = paths(names.inputs)
            .zip(&widths)
            .map(|(path, width)| loader.linear(&path, *width, hidden, false))
            .collect::<Result<_>>()?;
        let convs: Vec<(String, usize)> = paths(names.convs).zip(widths).collect();
        let gates = (spec.value_width(), hidden);
        let decays = (spec.decay_width(), hidden);
        Ok(Self {
            spec,
            dtype: loader.precision.dtype,
            inputs,
            output_gate: Chain::load(loader, paths(names.output_gate), gates, spec.gate_rank)?,
            write_strength: loader.linear(&path(names.write_strength), heads, hidden, false)?,
            decay: Chain::load(loader, paths(names.decay), decays, spec.gate_rank)?,
            conv: CausalConv::load_joined(loader, &convs, spec.kernel_size)?,
            decay_rate,
            decay_bias,
            norm: loader.plain_norm(&path(names.norm), spec.value_head_dim)?,
            output: loader.linear(&path(names.output), hidden, spec.value_width(), false)?,
        })
    }

    pub(super) fn initial_state(&self) -> Result<RecurrentState> {
        let spec = &self.spec;
        let memory = [1, spec.num_value_heads as i32, spec.key_head_dim as i32, spec.value_head_dim as i32];
        Ok(RecurrentState {
            conv_tail: self.conv.initial_tail(self.dtype.mlx())?,
            memory: Some(ops::zeros_dtype(&memory, Dtype::Float32)?),
        })
    }

    /// Mixes packed rows `(T, hidden)`; `advance` runs what depends on states, group by group.
    pub(super) fn forward(
        &self,
        normed: &Array,
        ops: &Ops,
        advance: impl FnOnce(&mut dyn FnMut(RowGroup, &RecurrentState) -> Result<Mixed>) -> Result<Array>,
    ) -> Result<Array> {
        let inputs = self.inputs.iter().map(|input| input.forward(normed)).collect::<Result<_>>()?;
        let input = concatenated(inputs, 1)?;
        let write_strengths = ops.sigmoid(&self.write_strength.forward(normed)?.as_dtype(Dtype::Float32)?)?;
        let time_steps = self.decay.forward(normed)?.as_dtype(Dtype::Float32)?.add(&self.decay_bias)?;
        let softplus = ops::logaddexp(&time_steps, Array::from_f32(0.0))?;
        let log_decays = softplus.multiply(&self.decay_rate)?;

        let read = advance(&mut |group, state| {
            let (convolved, conv_tail) = self.conv.forward(&group.of(&input)?, &state.conv_tail)?;
            let (queries, keys, values) = self.heads(&ops.silu(&convolved)?)?;
            let rows = DeltaRows {
                queries,
                keys,
                values,
                log_decays: self.by_head(&group.of(&log_decays)?)?,
                write_strengths: group.of(&write_strengths)?,
            };
            let memory = state.memory.as_ref().expect("initial_state gives every gated-delta layer a memory");
            let (read, memory) = delta_rule::advance(ops, &rows, memory)?;
            Ok((group.pack(&read)?, RecurrentState { conv_tail, memory: Some(memory) }))
        })?;

        let num_rows = normed.dim(0);
        let by_head = [num_rows, self.spec.num_value_heads as i32, self.spec.value_head_dim as i32];
        let normed_read = self.norm.forward(&read.reshape(&by_head)?)?.reshape(&[num_rows, -1])?;
        let gate = self.output_gate.forward(normed)?.as_dtype(Dtype::Float32)?;
        let gate = match self.spec.gate {
            DeltaGate::Silu => ops.silu(&gate)?,
            DeltaGate::Sigmoid => ops.sigmoid(&gate)?,
        };
        self.output.forward(&normed_read.multiply(gate)?.as_dtype(self.dtype.mlx())?)
    }

    /// Decays `(B, n, H · D_g)`, by head.
    fn by_head(&self, decays: &Array) -> Result<Array> {
        let (num_sequences, num_tokens) = (decays.dim(0), decays.dim(1));
        Ok(decays.reshape(&[num_sequences, num_tokens, self.spec.num_value_heads as i32, -1])?)
    }

    /// Queries, keys (both of length 1, queries scaled too) and values of `(B, n, C)`, by head in
    /// float32: `(B, n, H, D)`.
    fn heads(&self, convolved: &Array) -> Result<(Array, Array, Array)> {
        let spec = &self.spec;
        let convolved = convolved.as_dtype(Dtype::Float32)?;
        let (num_sequences, num_tokens) = (convolved.dim(0), convolved.dim(1));
        let part = |start: usize, num_heads: usize, head_dim: usize| -> Result<Array> {
            let columns = sys::slice_axis(&convolved, 2, start, start + num_heads * head_dim)?;
            Ok(columns.reshape(&[num_sequences, num_tokens, num_heads as i32, head_dim as i32])?)
        };
        let key_width = spec.key_width();
        // x / |x| by way of x / rms(x), whose square is smaller by a factor of the dimension.
        let per_dimension = 1.0 / spec.key_head_dim as f32;
        let normalise = |x: Array, factor: f32| -> Result<Array> {
            Ok(fast::rms_norm(&x, None, NORMALISE_EPS * per_dimension)?.multiply(Array::from_f32(factor))?)
        };
        Ok((
            normalise(part(0, spec.num_key_heads, spec.key_head_dim)?, per_dimension)?,
            normalise(part(key_width, spec.num_key_heads, spec.key_head_dim)?, per_dimension.sqrt())?,
            part(2 * key_width, spec.num_value_heads, spec.value_head_dim)?,
        ))
    }
}
