//! One block of the decoder: a mixer and a gated MLP, each normed and added to its input.
//!
//! Owns the order of a block's operations. Mixers, which look at other positions, are
//! `self_attention` and `recurrent`; all else works on each packed row by itself.

use mlx_rs::Array;

use super::{
    arrays::{concatenated, rows_of},
    block_pass::BlockPass,
    error::Result,
    linear::Linear,
    loader::Loader,
    norm::{Norm, normed_by},
    ops::Ops,
    recurrent::RecurrentMixer,
    self_attention::{AttentionPlace, SelfAttention},
    states::RecurrentState,
};
use crate::models::{Activation, AttentionSpec, LayerSpec, MixerSpec, RopeSpec};

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

    /// Computes this block of the model in place, for each row block of the pass, `(n, hidden)` each.
    ///
    /// Row by row as far as can be, so that what one row block needs meanwhile is gone before the next
    /// is begun: of all rows there are only the hidden states, the normed ones and the KV.
    pub(super) fn forward(&self, hidden: &mut [Array], pass: &mut BlockPass<'_>) -> Result<()> {
        let normed = hidden.iter().map(|rows| self.mixer_norm.forward(rows)).collect::<Result<Vec<_>>>()?;
        match &self.mixer {
            Mixer::Attention(attention) => {
                let kv = attention.append(&normed, pass)?;
                for (index, (rows, normed)) in hidden.iter_mut().zip(normed).enumerate() {
                    let mixed = attention.attend(normed, index, &kv, pass)?;
                    *rows = self.finish(rows, mixed, pass.ops)?;
                    pass.settle(&[rows])?;
                }
            }
            Mixer::Recurrent { mixer, state_index } => {
                let mixed = mixer.forward(&concatenated(normed, 0)?, *state_index, pass)?;
                let num_rows = mixed.dim(0) as usize;
                for (rows, range) in hidden.iter_mut().zip(&pass.row_blocks) {
                    *rows = self.finish(rows, rows_of(&mixed, range, num_rows)?, pass.ops)?;
                    pass.settle(&[rows])?;
                }
            }
        }
        Ok(())
    }

    /// What follows the mixer: its rows added to its input, and the MLP.
    fn finish(&self, hidden: &Array, mixed: Array, ops: &Ops) -> Result<Array> {
        let hidden = hidden.add(normed_by(self.mixer_post_norm.as_ref(), mixed)?)?;
        let update = self.mlp.forward(&self.mlp_norm.forward(&hidden)?, ops)?;
        Ok(hidden.add(normed_by(self.mlp_post_norm.as_ref(), update)?)?)
    }
}

impl Mlp {
    fn forward(&self, normed: &Array, ops: &Ops) -> Result<Array> {
        let gated = ops.gated(self.activation, self.gate.forward(normed)?, self.up.forward(normed)?)?;
        self.down.forward(&gated)
    }
}
