//! One block of the decoder: a mixer and a gated MLP, each normed and added to its input.
//!
//! Owns the order of a block's operations. Mixers, which look at other positions, are
//! `self_attention` and `recurrent`; all else works on each packed row by itself.

use mlx_rs::Array;

use super::{
    arrays::{in_row_blocks, rows_of},
    device::ComputeDevice,
    error::Result,
    linear::Linear,
    live::{LiveKv, LivePass},
    loader::Loader,
    norm::Norm,
    ops::Ops,
    recurrent::{RecurrentMixer, RecurrentState},
    rope::{Rope, RopeTable},
    self_attention::{AttentionPlace, SelfAttention},
};
use crate::models::{Activation, AttentionSpec, LayerSpec, MixerSpec, RopeSpec};

/// Rows that the MLP of a prefill pass takes at a time on the CPU; fewer make matrix products slow.
const MAX_MLP_ROWS: usize = 256;

/// What a pass carries from block to block.
pub(super) struct BlockPass<'a> {
    pub ops: &'a Ops,
    pub device: ComputeDevice,
    /// The model's distinct rotations, prepared for the pass's positions.
    pub rotations: Vec<(&'a Rope, RopeTable)>,
    pub rows: &'a LivePass,
    pub live: &'a mut LiveKv,
}

/// What is shared between blocks while they load, and how many of each kind there are.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub ropes: Vec<RopeSpec>,
    num_attention: usize,
    num_recurrent: usize,
}

impl Places {
    fn attention(&mut self, spec: &AttentionSpec) -> AttentionPlace {
        let rope = self.ropes.iter().position(|known| *known == spec.rope).unwrap_or_else(|| {
            self.ropes.push(spec.rope.clone());
            self.ropes.len() - 1
        });
        self.num_attention += 1;
        AttentionPlace { kv_index: self.num_attention - 1, rope }
    }

    fn recurrent(&mut self) -> usize {
        self.num_recurrent += 1;
        self.num_recurrent - 1
    }
}

#[derive(Debug)]
pub(super) struct Block {
    mixer_norm: Norm,
    mixer: Mixer,
    mixer_post_norm: Option<Norm>,
    mlp_norm: Norm,
    mlp: Mlp,
    mlp_post_norm: Option<Norm>,
}

#[derive(Debug)]
enum Mixer {
    Attention(Box<SelfAttention>),
    Recurrent {
        mixer: RecurrentMixer,
        /// Number of recurrent layers before it: its index in the live states.
        state_index: usize,
    },
}

#[derive(Debug)]
struct Mlp {
    activation: Activation,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Block {
    /// Loads layer `index`.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        index: usize,
        layer: &LayerSpec,
        places: &mut Places,
    ) -> Result<Self> {
        let hidden = loader.spec.hidden_size;
        let names = loader.spec.names.block;
        let block_path = format!("model.layers.{index}");
        let path = |name: &str| format!("{block_path}.{name}");
        let post_norm = |loader: &mut Loader<'_>, name: Option<&str>| {
            name.map(|name| loader.norm(&path(name), hidden)).transpose()
        };
        Ok(Self {
            mixer_norm: loader.norm(&path(names.mixer_norm), hidden)?,
            mixer: match &layer.mixer {
                MixerSpec::Attention(spec) => {
                    let place = places.attention(spec);
                    Mixer::Attention(Box::new(SelfAttention::load(loader, &block_path, spec, place)?))
                }
                MixerSpec::Recurrent(spec) => Mixer::Recurrent {
                    mixer: RecurrentMixer::load(loader, &block_path, spec)?,
                    state_index: places.recurrent(),
                },
            },
            mixer_post_norm: post_norm(loader, names.mixer_post_norm)?,
            mlp_norm: loader.norm(&path(names.mlp_norm), hidden)?,
            mlp: Mlp {
                activation: layer.activation,
                gate: loader.linear(&path(names.gate), layer.intermediate_size, hidden, layer.mlp_bias)?,
                up: loader.linear(&path(names.up), layer.intermediate_size, hidden, layer.mlp_bias)?,
                down: loader.linear(&path(names.down), hidden, layer.intermediate_size, layer.mlp_bias)?,
            },
            mlp_post_norm: post_norm(loader, names.mlp_post_norm)?,
        })
    }

    /// The state of this layer before the first token, if it is a recurrent one.
    pub(super) fn initial_state(&self) -> Option<Result<RecurrentState>> {
        match &self.mixer {
            Mixer::Attention(_) => None,
            Mixer::Recurrent { mixer, .. } => Some(mixer.initial_state()),
        }
    }

    /// Packed rows in, packed rows out, `(T, hidden)`. Takes its input, so that what has been used
    /// takes no memory while the rest is computed.
    pub(super) fn forward(&self, hidden: Array, pass: &mut BlockPass<'_>) -> Result<Array> {
        let hidden = self.mix(hidden, pass)?;
        let num_rows = hidden.dim(0) as usize;
        let max_rows = if pass.device == ComputeDevice::Cpu { MAX_MLP_ROWS } else { num_rows };
        in_row_blocks(
            pass.device,
            num_rows,
            |_| max_rows,
            |rows| {
                let hidden = rows_of(&hidden, &rows, num_rows)?;
                let mut update = self.mlp.forward(&self.mlp_norm.forward(&hidden)?, pass.ops)?;
                if let Some(norm) = &self.mlp_post_norm {
                    update = norm.forward(&update)?;
                }
                Ok(hidden.add(&update)?)
            },
        )
    }

    fn mix(&self, hidden: Array, pass: &mut BlockPass<'_>) -> Result<Array> {
        let normed = self.mixer_norm.forward(&hidden)?;
        let mut update = match &self.mixer {
            Mixer::Attention(attention) => attention.forward(normed, pass)?,
            Mixer::Recurrent { mixer, state_index } => mixer.forward(&normed, *state_index, pass)?,
        };
        if let Some(norm) = &self.mixer_post_norm {
            update = norm.forward(&update)?;
        }
        Ok(hidden.add(&update)?)
    }
}

impl Mlp {
    fn forward(&self, normed: &Array, ops: &Ops) -> Result<Array> {
        let gate = self.gate.forward(normed)?;
        let gate = match self.activation {
            Activation::Silu => ops.silu(&gate)?,
            Activation::GeluTanh => ops.gelu_tanh(&gate)?,
        };
        self.down.forward(&gate.multiply(self.up.forward(normed)?)?)
    }
}
