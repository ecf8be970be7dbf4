//! One block of the decoder: a mixer, and an MLP or experts, or one of these alone, each normed and added to its input.
//!
//! Owns the order of a block's operations. Mixers, which look at other positions, are
//! `self_attention`, `latent_attention` and `recurrent`; all else works on each packed row by itself.

use mlx_rs::Array;

use super::{
    arrays::{concatenated, rows_of},
    block_pass::BlockPass,
    error::Result,
    host::summed,
    latent_attention::LatentAttention,
    loader::Loader,
    mlp::Mlp,
    moe::Moe,
    norm::{Norm, normed_by},
    ops::Ops,
    per_layer::PerLayerInput,
    recurrent::RecurrentMixer,
    self_attention::{Appended, AttentionPlace, SelfAttention},
    states::RecurrentState,
};
use crate::models::{AttentionSpec, BlockNames, KeyValueSource, LayerSpec, MixerSpec, MlpSpec, RopeSpec};

/// What is shared between blocks while they load, and how many of each kind there are.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub ropes: Vec<RopeSpec>,
    num_with_kv: usize,
    num_recurrent: usize,
}

impl Places {
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
pub(super) struct DecoderBlock {
    mixer_norm: Option<Norm>,
    mixer: Option<Mixer>,
    mixer_post_norm: Option<Norm>,
    mlp_norm: Option<Norm>,
    feed_forward: Option<FeedForward>,
    mlp_post_norm: Option<Norm>,
    residual_scale: Option<Array>,
    is_parallel: bool,
    per_layer_input: Option<PerLayerInput>,
    /// `(1,)`, on the block's result.
    output_scale: Option<Array>,
}

/// What looks at other positions: one of two, or both side by side, whose results are added up.
#[derive(Debug)]
struct Mixer {
    attention: Option<AttentionMixer>,
    recurrent: Option<Recurrent>,
}

#[derive(Debug)]
struct Recurrent {
    mixer: Box<RecurrentMixer>,
    /// Number of recurrent layers before it: its index in the live states.
    state_index: usize,
}

/// Attention with what comes before and after it.
#[derive(Debug)]
enum AttentionMixer {
    Heads(Box<SelfAttention>),
    Latents(Box<LatentAttention>),
}

/// What follows the mixer.
#[derive(Debug)]
enum FeedForward {
    Dense(Box<Mlp>),
    Moe(Box<Moe>),
    Both(Box<Both>),
}

/// An MLP and experts side by side, whose results are added up.
#[derive(Debug)]
struct Both {
    dense: Mlp,
    dense_post_norm: Norm,
    moe_norm: Norm,
    moe: Moe,
    moe_post_norm: Norm,
}

impl DecoderBlock {
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
        // Of a half that the block has.
        let norm = |loader: &mut Loader<'_>, half: bool, name: Option<&str>| {
            name.filter(|_| half).map(|name| loader.norm(&path(name), hidden)).transpose()
        };
        let (mixes, follows) = (layer.mixer.is_some(), layer.mlp.is_some());
        Ok(Self {
            mixer_norm: norm(loader, mixes, names.mixer_norm)?,
            mixer: match &layer.mixer {
                Some(mixer) => Some(Mixer::load(loader, index, mixer, places)?),
                None => None,
            },
            mixer_post_norm: norm(loader, mixes, names.mixer_post_norm)?,
            mlp_norm: norm(loader, follows, names.mlp_norm)?,
            feed_forward: match &layer.mlp {
                Some(mlp) => Some(FeedForward::load(loader, (&block_path, names), mlp)?),
                None => None,
            },
            mlp_post_norm: norm(loader, follows, names.mlp_post_norm)?,
            residual_scale: match layer.residual_scale {
                1.0 => None,
                scale => Some(Array::from_f32(scale).as_dtype(loader.precision.dtype.mlx())?),
            },
            is_parallel: layer.is_parallel,
            per_layer_input: match loader.spec.per_layer_inputs {
                Some(spec) => Some(PerLayerInput::load(loader, &block_path, index, spec)?),
                None => None,
            },
            output_scale: match layer.output_scale {
                true => {
                    let dtype = loader.precision.dtype.mlx();
                    let scale = loader.vector(&path("layer_scalar"), 1)?.as_dtype(dtype)?;
                    scale.eval()?;
                    Some(scale)
                }
                false => None,
            },
        })
    }

    /// The state of this layer before the first token, if it is a recurrent one.
    pub(super) fn initial_state(&self) -> Option<Result<RecurrentState>> {
        let recurrent = self.mixer.as_ref()?.recurrent.as_ref()?;
        Some(recurrent.mixer.initial_state())
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
        let recurrent = self.mixer.as_ref().and_then(|mixer| mixer.recurrent.as_ref());
        let attention = self.mixer.as_ref().and_then(|mixer| mixer.attention.as_ref());
        let from_states = match recurrent {
            Some(Recurrent { mixer, state_index }) => {
                Some(mixer.forward(&concatenated(normed.clone(), 0)?, *state_index, pass)?)
            }
            None => None,
        };
        let appended = attention.map(|attention| attention.append(&normed, pass)).transpose()?;
        for (index, (rows, normed)) in hidden.iter_mut().zip(normed).enumerate() {
            let attended = match (attention, &appended) {
                (Some(attention), Some(appended)) => Some(attention.attend(&normed, index, appended, pass)?),
                _ => None,
            };
            let from_states = match &from_states {
                Some(mixed) => Some(rows_of(mixed, &pass.row_blocks[index], mixed.dim(0) as usize)?),
                None => None,
            };
            let mixed = match (attended, from_states) {
                (Some(attended), Some(from_states)) => Some(attended.add(from_states)?),
                (attended, from_states) => attended.or(from_states),
            };
            *rows = match mixed {
                Some(mixed) => self.finish(rows, normed, mixed, (index, pass))?,
                None => self.follow(rows.clone(), normed, (index, pass))?,
            };
            pass.settle(&[rows])?;
        }
        Ok(())
    }

    /// What comes after the mixer, for one row block: its rows added to its input, and the MLP. `normed` is what
    /// the mixer saw.
    fn finish(
        &self,
        hidden: &Array,
        normed: Array,
        mixed: Array,
        (row_block, pass): (usize, &BlockPass<'_>),
    ) -> Result<Array> {
        let mixed = self.scaled(normed_by(self.mixer_post_norm.as_ref(), mixed)?)?;
        self.follow(summed(hidden, &mixed, pass.device)?, normed, (row_block, pass))
    }

    /// What follows the mixer of one row block, if anything does.
    fn follow(
        &self,
        mut hidden: Array,
        normed: Array,
        (row_block, pass): (usize, &BlockPass<'_>),
    ) -> Result<Array> {
        if let Some(feed_forward) = &self.feed_forward {
            let normed = match self.is_parallel {
                true => normed,
                false => normed_by(self.mlp_norm.as_ref(), hidden.clone())?,
            };
            let update = match feed_forward {
                FeedForward::Dense(mlp) => mlp.forward(&normed, pass.ops)?,
                FeedForward::Moe(moe) => moe.forward(&normed, pass.ops)?,
                FeedForward::Both(both) => both.forward(&hidden, &normed, pass.ops)?,
            };
            let update = self.scaled(normed_by(self.mlp_post_norm.as_ref(), update)?)?;
            hidden = summed(&hidden, &update, pass.device)?;
        }
        if let Some(input) = &self.per_layer_input {
            let inputs = &pass.per_layer_inputs[row_block];
            hidden = hidden.add(input.update(&hidden, inputs, pass.ops)?)?;
        }
        if let Some(scale) = &self.output_scale {
            hidden = hidden.multiply(scale)?;
        }
        Ok(hidden)
    }

    /// What is added to the input of a half of the block.
    fn scaled(&self, update: Array) -> Result<Array> {
        match &self.residual_scale {
            Some(scale) => Ok(update.multiply(scale)?),
            None => Ok(update),
        }
    }
}

impl Mixer {
    /// Loads the mixer of layer `index`.
    fn load(loader: &mut Loader<'_>, index: usize, spec: &MixerSpec, places: &mut Places) -> Result<Self> {
        let block_path = format!("model.layers.{index}");
        let heads = |loader: &mut Loader<'_>, spec: &AttentionSpec, place: AttentionPlace| -> Result<_> {
            let mut later = loader.spec.layers[index + 1..].iter().filter_map(LayerSpec::attention);
            let is_shared = later.any(|later| later.kv == KeyValueSource::Layer(place.kv_index));
            let attention = SelfAttention::load(loader, &block_path, spec, place, is_shared)?;
            Ok(AttentionMixer::Heads(Box::new(attention)))
        };
        let (mut attention, mut recurrent) = (None, None);
        match spec {
            MixerSpec::Attention(spec) | MixerSpec::SideBySide(spec, _) => {
                attention = Some(heads(loader, spec, places.attention(spec))?);
            }
            MixerSpec::Latent(spec) => {
                let place = places.attention(&spec.attention);
                let latents = LatentAttention::load(loader, &block_path, spec, place)?;
                attention = Some(AttentionMixer::Latents(Box::new(latents)));
            }
            MixerSpec::Recurrent(_) => {}
        }
        if let MixerSpec::Recurrent(spec) | MixerSpec::SideBySide(_, spec) = spec {
            let mixer = Box::new(RecurrentMixer::load(loader, &block_path, spec)?);
            recurrent = Some(Recurrent { mixer, state_index: places.recurrent() });
        }
        Ok(Self { attention, recurrent })
    }
}

impl AttentionMixer {
    /// Appends the KV of all rows of a pass, normed and in its row blocks.
    fn append(&self, normed: &[Array], pass: &mut BlockPass<'_>) -> Result<Appended> {
        match self {
            Self::Heads(attention) => attention.append(normed, pass),
            Self::Latents(attention) => attention.append(normed, pass),
        }
    }

    /// What the normed rows of one row block make of what they see.
    fn attend(
        &self,
        normed: &Array,
        row_block: usize,
        appended: &Appended,
        pass: &BlockPass<'_>,
    ) -> Result<Array> {
        match self {
            Self::Heads(attention) => attention.attend(normed, row_block, appended, pass),
            Self::Latents(attention) => attention.attend(normed, row_block, appended, pass),
        }
    }
}

impl FeedForward {
    fn load(
        loader: &mut Loader<'_>,
        (block_path, names): (&str, BlockNames),
        spec: &MlpSpec,
    ) -> Result<Self> {
        let moe = |loader: &mut Loader<'_>, spec| Moe::load(loader, block_path, &names.moe, spec);
        Ok(match spec {
            MlpSpec::Dense(spec) => Self::Dense(Box::new(Mlp::load(loader, block_path, names.mlp, *spec)?)),
            MlpSpec::Moe(spec) => Self::Moe(Box::new(moe(loader, spec)?)),
            MlpSpec::DenseAndMoe(dense, spec) => {
                let hidden = loader.spec.hidden_size;
                let [dense_post, moe_before, moe_post] =
                    names.both_norms.map(|name| loader.norm(&format!("{block_path}.{name}"), hidden));
                Self::Both(Box::new(Both {
                    dense: Mlp::load(loader, block_path, names.mlp, *dense)?,
                    dense_post_norm: dense_post?,
                    moe_norm: moe_before?,
                    moe: moe(loader, spec)?,
                    moe_post_norm: moe_post?,
                }))
            }
        })
    }
}

impl Both {
    /// What is added to hidden states `(n, hidden)`; `normed` is what the MLP sees of them.
    fn forward(&self, hidden: &Array, normed: &Array, ops: &Ops) -> Result<Array> {
        let dense = self.dense_post_norm.forward(&self.dense.forward(normed, ops)?)?;
        let mixed = self.moe.forward_routed(&self.moe_norm.forward(hidden)?, hidden, ops)?;
        Ok(dense.add(self.moe_post_norm.forward(&mixed)?)?)
    }
}
