//! One block of the decoder: a mixer, and an MLP or experts, each normed and added to its input.
//!
//! Owns the order of a block's operations. Mixers, which look at other positions, are
//! `self_attention` and `recurrent`; all else works on each packed row by itself.

use mlx_rs::Array;

use super::{
    arrays::{concatenated, rows_of},
    block_pass::BlockPass,
    device::ComputeDevice,
    error::Result,
    loader::Loader,
    mlp::Mlp,
    moe::Moe,
    norm::{Norm, normed_by},
    ops::Ops,
    recurrent::RecurrentMixer,
    self_attention::{AttentionPlace, SelfAttention},
    states::RecurrentState,
};
use crate::models::{AttentionSpec, KeyValueSource, LayerSpec, MixerSpec, MlpSpec, RopeSpec};

/// What is shared between blocks while they load, and how many of each kind there are.
#[derive(Debug)]
pub(super) struct Places {
    pub ropes: Vec<RopeSpec>,
    device: ComputeDevice,
    num_with_kv: usize,
    num_recurrent: usize,
}

impl Places {
    pub(super) fn new(device: ComputeDevice) -> Self {
        Self { ropes: Vec::new(), device, num_with_kv: 0, num_recurrent: 0 }
    }

    fn attention(&mut self, spec: &AttentionSpec) -> AttentionPlace {
        let rope = spec.rope.as_ref().map(|rope| {
            self.ropes.iter().position(|known| known == rope).unwrap_or_else(|| {
                self.ropes.push(rope.clone());
                self.ropes.len() - 1
            })
        });
        let kv_index = match spec.kv {
            KeyValueSource::Layer(index) => index,
            _ => {
                self.num_with_kv += 1;
                self.num_with_kv - 1
            }
        };
        AttentionPlace { kv_index, rope }
    }

    fn recurrent(&mut self) -> usize {
        self.num_recurrent += 1;
        self.num_recurrent - 1
    }
}

#[derive(Debug)]
pub(super) struct Block {
    mixer_norm: Option<Norm>,
    mixer: Mixer,
    mixer_post_norm: Option<Norm>,
    mlp_norm: Option<Norm>,
    rest: Rest,
    mlp_post_norm: Option<Norm>,
    residual_scale: Option<Array>,
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

/// What follows the mixer.
#[derive(Debug)]
enum Rest {
    Dense(Mlp),
    Moe(Box<Moe>),
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
        let norm = |loader: &mut Loader<'_>, name: Option<&str>| {
            name.map(|name| loader.norm(&path(name), hidden)).transpose()
        };
        Ok(Self {
            mixer_norm: norm(loader, names.mixer_norm)?,
            mixer: match &layer.mixer {
                MixerSpec::Attention(spec) => {
                    let place = places.attention(spec);
                    let mut later = loader.spec.layers[index + 1..].iter().filter_map(LayerSpec::attention);
                    let is_shared = later.any(|later| later.kv == KeyValueSource::Layer(place.kv_index));
                    let attention = SelfAttention::load(loader, &block_path, spec, place, is_shared)?;
                    Mixer::Attention(Box::new(attention))
                }
                MixerSpec::Recurrent(spec) => Mixer::Recurrent {
                    mixer: RecurrentMixer::load(loader, &block_path, spec)?,
                    state_index: places.recurrent(),
                },
            },
            mixer_post_norm: norm(loader, names.mixer_post_norm)?,
            mlp_norm: norm(loader, names.mlp_norm)?,
            rest: match &layer.mlp {
                MlpSpec::Dense(spec) => Rest::Dense(Mlp::load(loader, &block_path, names.mlp, *spec)?),
                MlpSpec::Moe(spec) => {
                    Rest::Moe(Box::new(Moe::load(loader, &block_path, &names.moe, spec, places.device)?))
                }
                MlpSpec::DenseAndMoe(..) => todo!(),
            },
            mlp_post_norm: norm(loader, names.mlp_post_norm)?,
            residual_scale: match layer.residual_scale {
                1.0 => None,
                scale => Some(Array::from_f32(scale).as_dtype(loader.precision.dtype.mlx())?),
            },
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
        let normed = hidden
            .iter()
            .map(|rows| normed_by(self.mixer_norm.as_ref(), rows.clone()))
            .collect::<Result<Vec<_>>>()?;
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
        let mixed = normed_by(self.mixer_post_norm.as_ref(), mixed)?;
        let hidden = hidden.add(self.scaled(mixed)?)?;
        let normed = normed_by(self.mlp_norm.as_ref(), hidden.clone())?;
        let update = match &self.rest {
            Rest::Dense(mlp) => mlp.forward(&normed, ops)?,
            Rest::Moe(moe) => moe.forward(&normed, ops)?,
        };
        let update = normed_by(self.mlp_post_norm.as_ref(), update)?;
        Ok(hidden.add(self.scaled(update)?)?)
    }

    /// What is added to the input of a half of the block.
    fn scaled(&self, update: Array) -> Result<Array> {
        match &self.residual_scale {
            Some(scale) => Ok(update.multiply(scale)?),
            None => Ok(update),
        }
    }
}
