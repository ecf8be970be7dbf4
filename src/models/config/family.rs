//! A family of models, as data, and how its configuration is read by it.
//!
//! Owns what families may differ in, and the reading of what they have in common. Which families there are is
//! `families`' business; the parts with rules of their own are `attention`'s, `windows`', `hybrid`'s, `moe`'s and
//! `rope`'s.

use super::{
    attention::AttentionTraits,
    fields::{Fields, MAX_LAYERS},
    hybrid::{HybridTraits, LayerKind, MixerKind, MlpKind},
    latent::LatentTraits,
    moe::MoeTraits,
};
use crate::models::{
    block_names::BlockNames,
    context::ContextChoice,
    mlp_spec::{Activation, DenseSpec, MlpSpec},
    names::WeightNames,
    spec::{Fold, LayerSpec, MixerSpec, ModelSpec, NormKind, NormSpec, NormWeight},
};

/// What differs between the families before any number is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    /// Numbers of fields that a configuration may leave out; without an entry here a field has to be there. 0 heads
    /// of keys and values are as many as queries have.
    pub defaults: &'static [(&'static str, u64)],
    /// Those that come before them in a `text_config`.
    pub nested_defaults: &'static [(&'static str, u64)],
    /// Fields of the longest context, of which the first that is there counts.
    pub context_fields: &'static [&'static str],
    pub eps: (&'static str, Option<f64>),
    pub norm: (NormKind, NormWeight),
    pub attention: AttentionTraits,
    /// In place of the other, where keys and values are made of latents.
    pub latent: Option<LatentTraits>,
    /// What layers there are besides those of attention and what follows it.
    pub hybrid: Option<HybridTraits>,
    pub activation: Activation,
    /// Field of the width of dense MLPs.
    pub mlp_width: &'static str,
    pub mlp_bias: Bias,
    pub moe: Option<MoeTraits>,
    pub embedding_scale: EmbeddingScale,
    /// Factor on what a block's halves add.
    pub residual_scale: Option<&'static str>,
    /// Whether the MLP sees what the attention sees.
    pub is_parallel: bool,
    pub logits_scale: LogitsScale,
    /// Factors that MLX's conversions have in the weights, given what layers there are.
    pub folds: Option<ReadFolds>,
    /// Whether the configuration says if the head is the embedding matrix; else the weights do.
    pub says_if_tied: bool,
    /// How many blocks there are after the others that guess several tokens at once.
    pub extra_layers: Option<&'static str>,
    /// Parts of names of weights that are of no use.
    pub ignored_parts: &'static [&'static str],
    /// Parts of names of weights that are spelt otherwise in the family's files, as (found, meant).
    pub renamed_parts: &'static [(&'static str, &'static str)],
    pub names: BlockNames,
}

/// Reads factors that MLX's conversions have in the weights.
pub(super) type ReadFolds = fn(&Fields, &[LayerSpec]) -> Result<Vec<Fold>, String>;

/// Whether projections have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bias {
    Never,
    Always,
    /// As this flag says; `false` where it is absent.
    Field(&'static str),
    /// As this flag says; `true` where it is absent.
    FieldOrTrue(&'static str),
}

impl Bias {
    pub(super) fn read(self, fields: &Fields) -> Result<bool, String> {
        match self {
            Self::Never => Ok(false),
            Self::Always => Ok(true),
            Self::Field(name) => fields.flag(name, false),
            Self::FieldOrTrue(name) => fields.flag(name, true),
        }
    }
}

/// Factor on the embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EmbeddingScale {
    None,
    /// The square root of the width, rounded as its publisher's code rounds it.
    SqrtWidth,
    Field(&'static str),
}

/// Factor on the logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum LogitsScale {
    None,
    Times(&'static str, f64),
    DividedBy(&'static str),
    /// The first by the second where the head is the embedding matrix; elsewhere none.
    RatioIfTied(&'static str, &'static str),
}

/// llama's; the others are told by how they differ.
pub(super) const LLAMA: Family = Family {
    defaults: &[("max_position_embeddings", 32_768), ("num_key_value_heads", 0)],
    nested_defaults: &[],
    context_fields: &["max_position_embeddings"],
    eps: ("rms_norm_eps", None),
    norm: (NormKind::RootMeanSquare, NormWeight::Factor),
    attention: AttentionTraits::LLAMA,
    latent: None,
    hybrid: None,
    activation: Activation::Silu,
    mlp_width: "intermediate_size",
    mlp_bias: Bias::Field("mlp_bias"),
    moe: None,
    embedding_scale: EmbeddingScale::None,
    residual_scale: None,
    is_parallel: false,
    logits_scale: LogitsScale::None,
    folds: None,
    says_if_tied: true,
    extra_layers: None,
    ignored_parts: &[],
    renamed_parts: &[],
    names: BlockNames::PLAIN,
};

impl Family {
    /// Reads the language model's fields.
    pub(super) fn spec(&self, model_type: &str, fields: &Fields) -> Result<ModelSpec, String> {
        let sizes = Sizes { family: self, fields, nested: fields.outer().is_some() };
        let hidden_size = sizes.dimension("hidden_size")?;
        let kinds = match &self.hybrid {
            Some(hybrid) => hybrid.layers.read(fields)?,
            None => {
                let default = sizes.default("num_hidden_layers");
                vec![LayerKind::ATTENTION; fields.integer("num_hidden_layers", default, 1, MAX_LAYERS)?]
            }
        };
        let num_layers = kinds.len();
        let max_context = sizes.max_context()?;
        let eps = fields.epsilon(self.eps.0, self.eps.1)?;
        let vocab_size = fields.vocab_size(sizes.default("vocab_size"))?;
        let mixers = self.mixers(&sizes, &kinds, (hidden_size, max_context))?;
        let max_seen = match &self.latent {
            None => max_context,
            Some(latent) => latent.max_context(fields, max_context)?,
        };
        let mlps = self.mlps(&sizes, &kinds)?;
        let residual_scale = match self.residual_scale {
            None => 1.0,
            Some(name) => fields.factor(name, Some(1.0))?,
        };
        let extra_layers = match self.extra_layers {
            None => 0,
            Some(name) => fields.integer(name, Some(0), 0, MAX_LAYERS)?,
        };
        let of_layer = |(mixer, mlp)| LayerSpec {
            mixer,
            mlp,
            residual_scale,
            is_parallel: self.is_parallel,
            output_scale: false,
        };
        let layers: Vec<LayerSpec> = mixers.into_iter().zip(mlps).map(of_layer).collect();
        let folds = self.folds.map_or(Ok(Vec::new()), |read| read(fields, &layers))?;
        let is_rotated = layers.iter().filter_map(LayerSpec::attention).any(|layer| layer.rope.is_some());
        let max_rotated = if is_rotated { fields.context_of_rope(max_context)? } else { max_context };
        Ok(ModelSpec {
            model_type: model_type.to_owned(),
            hidden_size,
            vocab_size,
            max_context: max_rotated.min(max_seen),
            context: match max_context.min(max_seen) {
                max_long_context if max_long_context > max_rotated => {
                    ContextChoice::Short { max_long_context }
                }
                _ => ContextChoice::One,
            },
            layers,
            norm: NormSpec { eps, kind: self.norm.0, weight: self.norm.1 },
            embedding_scale: match self.embedding_scale {
                EmbeddingScale::None => None,
                EmbeddingScale::SqrtWidth => Some(round_to_bfloat16((hidden_size as f32).sqrt())),
                EmbeddingScale::Field(name) => Some(fields.factor(name, Some(1.0))?),
            },
            tied_head: if self.says_if_tied { fields.tied_head()? } else { None },
            per_layer_inputs: None,
            logits_scale: match self.logits_scale {
                LogitsScale::None | LogitsScale::RatioIfTied(..) => None,
                LogitsScale::Times(name, default) => Some(fields.factor(name, Some(default))?),
                LogitsScale::DividedBy(name) => Some(1.0 / fields.factor(name, Some(1.0))?),
            },
            tied_logits_scale: match self.logits_scale {
                LogitsScale::RatioIfTied(over, under) => {
                    Some(fields.factor(over, Some(1.0))? / fields.factor(under, Some(1.0))?)
                }
                _ => None,
            },
            folds,
            final_logit_softcap: fields.softcap("final_logit_softcapping")?,
            quantization: None,
            names: WeightNames {
                extra_layers: num_layers..num_layers + extra_layers,
                ignored_parts: self.ignored_parts,
                renamed_parts: self.renamed_parts,
                ..WeightNames::new(self.names)
            },
        })
    }

    /// The mixer of each layer, given the hidden size and the longest context.
    fn mixers(
        &self,
        sizes: &Sizes<'_>,
        kinds: &[LayerKind],
        (hidden_size, max_context): (usize, usize),
    ) -> Result<Vec<Option<MixerSpec>>, String> {
        let are_there = |mixer: MixerKind| {
            kinds.iter().any(|kind| [Some(mixer), Some(MixerKind::SideBySide)].contains(&kind.mixer))
        };
        let (attention, latent) = match &self.latent {
            _ if !are_there(MixerKind::Attention) => (Vec::new(), None),
            Some(latent) => (Vec::new(), Some(latent.spec(sizes, max_context)?)),
            None => (self.attention.layers(sizes, (hidden_size, kinds.len(), max_context))?, None),
        };
        let hybrid = self.hybrid.filter(|_| are_there(MixerKind::States));
        let states = hybrid.map(|hybrid| hybrid.states.spec(sizes.fields, hidden_size)).transpose()?;
        let of_layer = |(layer, kind): (usize, &LayerKind)| match kind.mixer? {
            MixerKind::Attention if latent.is_some() => latent.clone().map(MixerSpec::Latent),
            MixerKind::Attention => attention.get(layer).cloned().map(MixerSpec::Attention),
            MixerKind::States => states.clone().map(MixerSpec::Recurrent),
            MixerKind::SideBySide => attention
                .get(layer)
                .cloned()
                .zip(states.clone())
                .map(|(attention, states)| MixerSpec::SideBySide(attention, states)),
        };
        Ok(kinds.iter().enumerate().map(of_layer).collect())
    }

    /// What follows the mixer of each layer, or stands alone.
    fn mlps(&self, sizes: &Sizes<'_>, kinds: &[LayerKind]) -> Result<Vec<Option<MlpSpec>>, String> {
        let fields = sizes.fields;
        let bias = self.mlp_bias.read(fields)?;
        let dense = |intermediate_size| DenseSpec { intermediate_size, activation: self.activation, bias };
        let are_stated = kinds.iter().any(|kind| kind.mlp == Some(MlpKind::AsStated));
        let stated = match &self.moe {
            Some(moe) if are_stated => moe.layers.read(fields, kinds.len())?,
            _ => vec![false; kinds.len()],
        };
        let kind_of = |(kind, is_moe): (&LayerKind, bool)| match kind.mlp? {
            MlpKind::AsStated if is_moe => Some(MlpKind::Experts),
            MlpKind::AsStated => Some(MlpKind::Dense),
            stated => Some(stated),
        };
        let kinds: Vec<Option<MlpKind>> = kinds.iter().zip(stated).map(kind_of).collect();
        let experts = match &self.moe {
            Some(moe) if kinds.contains(&Some(MlpKind::Experts)) => Some(moe.spec(fields, dense(0))?),
            _ => None,
        };
        // A configuration of experts alone may say nothing of dense ones.
        let has_dense = kinds.contains(&Some(MlpKind::Dense));
        let dense = has_dense.then(|| sizes.dimension(self.mlp_width)).transpose()?.map(dense);
        let of_layer = |kind| match kind? {
            MlpKind::Experts => experts.map(MlpSpec::Moe),
            MlpKind::Dense | MlpKind::AsStated => dense.map(MlpSpec::Dense),
        };
        Ok(kinds.into_iter().map(of_layer).collect())
    }
}

/// Fields with a family's defaults.
#[derive(Clone, Copy)]
pub(super) struct Sizes<'a> {
    family: &'a Family,
    pub fields: &'a Fields<'a>,
    nested: bool,
}

impl Sizes<'_> {
    pub(super) fn default(&self, name: &str) -> Option<u64> {
        let nested = if self.nested { self.family.nested_defaults } else { &[] };
        let all = nested.iter().chain(self.family.defaults);
        all.clone().find(|(known, _)| *known == name).map(|(_, number)| *number)
    }

    fn max_context(&self) -> Result<usize, String> {
        let names = self.family.context_fields;
        let stated = names.iter().find(|name| self.fields.get(name).is_some());
        self.dimension(stated.or(names.first()).copied().unwrap_or_default())
    }

    pub(super) fn dimension(&self, name: &str) -> Result<usize, String> {
        self.fields.dimension(name, self.default(name))
    }
}

/// Rounds to the nearest bfloat16, ties to even, as the reference rounds Gemma's embedding factor.
pub(super) fn round_to_bfloat16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    f32::from_bits(rounded & 0xffff_0000)
}
