//! Layers that keep states, and layers of one half, in a configuration.
//!
//! Owns which layers a family has of which kind and the sizes of Mamba-2 layers; those of gated delta nets are
//! `kimi_linear`'s, and attention, MLPs and experts are read as any family's. The families themselves are here or, with others of their publisher, in files of their
//! own.

use serde_json::Value;

use super::{
    attention::{AttentionTraits, Pairs, RotatedLayers},
    family::{Bias, Family, LLAMA},
    fields::{Fields, MAX_LAYERS},
    kimi_linear,
    moe::{self, MoeTraits, SharedTraits},
    windows::Windows,
};
use crate::models::{
    block_names::BlockNames,
    mlp_spec::Activation,
    recurrent_spec::{Mamba2Spec, RecurrentSpec, StateNorm},
};

/// Which layers of a family are what, and those that keep states.
#[derive(Debug, Clone, Copy)]
pub(super) struct HybridTraits {
    pub layers: LayerKinds,
    pub states: StateTraits,
}

/// The layers that keep states.
#[derive(Debug, Clone, Copy)]
pub(super) enum StateTraits {
    Mamba(&'static MambaTraits),
    /// Kimi Linear's gated delta nets.
    KimiDelta,
}

impl StateTraits {
    pub(super) fn spec(&self, fields: &Fields, hidden_size: usize) -> Result<RecurrentSpec, String> {
        match self {
            Self::Mamba(mamba) => mamba.spec(fields, hidden_size).map(RecurrentSpec::Mamba2),
            Self::KimiDelta => kimi_linear::gated_delta(fields).map(RecurrentSpec::GatedDelta),
        }
    }
}

/// How a family says what each layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerKinds {
    /// By `layer_types`: a Mamba-2 layer or attention, and what follows either is as the family says.
    Types,
    /// By a letter or a name for each: a Mamba-2 layer, attention, an MLP or experts, and nothing else.
    Halves,
    /// All are Mamba-2 layers and nothing else.
    StatesAlone,
    /// All are Mamba-2 layers and attention side by side, and what follows is as the family says.
    SideBySide,
    /// By two lists of layers, Kimi Linear's, and what follows either is as the family says.
    KimiLists,
}

/// What a layer consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LayerKind {
    pub mixer: Option<MixerKind>,
    pub mlp: Option<MlpKind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MixerKind {
    Attention,
    States,
    SideBySide,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MlpKind {
    Dense,
    Experts,
    /// As the family says for this layer.
    AsStated,
}

impl LayerKind {
    pub(super) const ATTENTION: Self = Self::of(MixerKind::Attention);

    /// Followed by what the family says.
    pub(super) const fn of(mixer: MixerKind) -> Self {
        Self { mixer: Some(mixer), mlp: Some(MlpKind::AsStated) }
    }

    const fn mixer(mixer: MixerKind) -> Self {
        Self { mixer: Some(mixer), mlp: None }
    }

    const fn mlp(mlp: MlpKind) -> Self {
        Self { mixer: None, mlp: Some(mlp) }
    }
}

/// Halves by letter and by the names that the publisher and transformers give them.
const HALVES: [(char, &[&str], LayerKind); 4] = [
    ('M', &["mamba", "linear_attention", "conv"], LayerKind::mixer(MixerKind::States)),
    ('*', &["attention", "full_attention"], LayerKind::mixer(MixerKind::Attention)),
    ('-', &["mlp"], LayerKind::mlp(MlpKind::Dense)),
    ('E', &["moe"], LayerKind::mlp(MlpKind::Experts)),
];

impl LayerKinds {
    pub(super) fn read(self, fields: &Fields) -> Result<Vec<LayerKind>, String> {
        match self {
            Self::Types => {
                let num_layers = fields.integer("num_hidden_layers", None, 1, MAX_LAYERS)?;
                let (states, attention) = (LayerKind::of(MixerKind::States), LayerKind::ATTENTION);
                let known = [
                    ("mamba", states),
                    ("attention", attention),
                    ("linear_attention", states),
                    ("full_attention", attention),
                ];
                let types = fields.layer_types(num_layers, known)?;
                types.ok_or_else(|| "'layer_types' is missing".to_owned())
            }
            Self::Halves => halves(fields),
            Self::StatesAlone => {
                let num_layers = fields.integer("num_hidden_layers", None, 1, MAX_LAYERS)?;
                Ok(vec![LayerKind::mixer(MixerKind::States); num_layers])
            }
            Self::SideBySide => {
                let num_layers = fields.integer("num_hidden_layers", None, 1, MAX_LAYERS)?;
                Ok(vec![LayerKind::of(MixerKind::SideBySide); num_layers])
            }
            Self::KimiLists => kimi_linear::layers(fields),
        }
    }
}

/// Nemotron-H's layers, which may be written in several ways that have to agree.
fn halves(fields: &Fields) -> Result<Vec<LayerKind>, String> {
    let mut found: Option<(&str, Vec<LayerKind>)> = None;
    for name in ["hybrid_override_pattern", "layers_block_type", "layer_types"] {
        let kinds = match fields.get(name) {
            None => continue,
            Some(Value::String(letters)) => letters.chars().map(by_letter).collect(),
            Some(Value::Array(names)) => names.iter().map(by_name).collect(),
            Some(_) => None,
        };
        let Some(kinds) =
            kinds.filter(|kinds: &Vec<LayerKind>| (1..=MAX_LAYERS).contains(&(kinds.len() as u64)))
        else {
            return Err(format!(
                "'{name}' must have for each layer, {MAX_LAYERS} at most, one of the letters M, *, - and E or of the \
                 names mamba, attention, mlp and moe"
            ));
        };
        match &found {
            Some((other, others)) if *others != kinds => {
                return Err(format!("'{other}' and '{name}' contradict each other; remove the wrong one"));
            }
            _ => found = Some((name, kinds)),
        }
    }
    let (name, kinds) = found.ok_or_else(|| "'hybrid_override_pattern' is missing".to_owned())?;
    let stated = fields.integer("num_hidden_layers", Some(kinds.len() as u64), 1, MAX_LAYERS)?;
    if stated != kinds.len() {
        return Err(format!(
            "'num_hidden_layers' and '{name}' contradict each other: {stated} and {} layers; remove the wrong one",
            kinds.len()
        ));
    }
    Ok(kinds)
}

fn by_letter(letter: char) -> Option<LayerKind> {
    HALVES.iter().find(|(known, ..)| *known == letter).map(|(.., kind)| *kind)
}

fn by_name(name: &Value) -> Option<LayerKind> {
    let name = name.as_str()?;
    let mut letters = name.chars();
    let by_name = HALVES.iter().find(|(_, names, _)| names.contains(&name)).map(|(.., kind)| *kind);
    by_name.or_else(|| by_letter(letters.next()?).filter(|_| letters.next().is_none()))
}

/// How a family writes its Mamba-2 layers: fields, and what they are where these are absent.
#[derive(Debug, Clone, Copy)]
pub(super) struct MambaTraits {
    pub num_heads: &'static str,
    pub head_dim: &'static str,
    /// Field of how many times the hidden size all heads have together, where `head_dim` may be left to it.
    pub expand: Option<&'static str>,
    /// Field of that width itself, which comes before it.
    pub width: Option<&'static str>,
    pub num_groups: (&'static str, Option<u64>),
    pub state_dim: &'static str,
    pub kernel_size: (&'static str, Option<u64>),
    pub conv_bias: Bias,
    pub input_bias: Bias,
    pub output_bias: Bias,
    pub norm: MambaNorm,
}

/// Where the norm of what is read from states stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MambaNorm {
    AfterGates,
    /// There is one where the first flag says so, by default not, and before the gates where the second does, by
    /// default so.
    Flags(&'static str, &'static str),
}

impl MambaTraits {
    /// Granite's and Falcon's.
    pub(super) const PREFIXED: Self = Self {
        num_heads: "mamba_n_heads",
        head_dim: "mamba_d_head",
        expand: Some("mamba_expand"),
        width: None,
        num_groups: ("mamba_n_groups", Some(1)),
        state_dim: "mamba_d_state",
        kernel_size: ("mamba_d_conv", Some(4)),
        conv_bias: Bias::FieldOrTrue("mamba_conv_bias"),
        input_bias: Bias::Field("mamba_proj_bias"),
        output_bias: Bias::Field("mamba_proj_bias"),
        norm: MambaNorm::AfterGates,
    };

    pub(super) fn spec(&self, fields: &Fields, hidden_size: usize) -> Result<Mamba2Spec, String> {
        // Far above any real model; they keep the state, the product of three, within reason.
        let number = |name: &str, default| fields.integer(name, default, 1, 1024);
        let num_heads = number(self.num_heads, None)?;
        let of_field = match self.width.filter(|width| fields.get(width).is_some()) {
            None => None,
            Some(width) => Some(fields.dimension(width, None)?),
        };
        let is_stated = fields.get(self.head_dim).is_some_and(|stated| stated != "auto");
        let head_dim = match (of_field, self.expand) {
            (None, Some(expand)) if !is_stated => {
                let width = fields.integer(expand, Some(2), 1, 64)?.saturating_mul(hidden_size);
                self.split(width, num_heads)?
            }
            (Some(width), _) if !is_stated => self.split(width, num_heads)?,
            (width, _) => {
                let head_dim = number(self.head_dim, None)?;
                if width.is_some_and(|width| width != num_heads * head_dim) {
                    return Err(format!(
                        "'{}' must be '{}' ({num_heads}) times '{}' ({head_dim})",
                        self.width.unwrap_or_default(),
                        self.num_heads,
                        self.head_dim
                    ));
                }
                head_dim
            }
        };
        let num_groups = number(self.num_groups.0, self.num_groups.1)?;
        if !num_heads.is_multiple_of(num_groups) {
            return Err(format!(
                "'{}' ({num_heads}) must be a multiple of '{}' ({num_groups})",
                self.num_heads, self.num_groups.0
            ));
        }
        Ok(Mamba2Spec {
            num_heads,
            head_dim,
            num_groups,
            state_dim: number(self.state_dim, None)?,
            kernel_size: fields.integer(self.kernel_size.0, self.kernel_size.1, 2, 64)?,
            conv_bias: self.conv_bias.read(fields)?,
            input_bias: self.input_bias.read(fields)?,
            output_bias: self.output_bias.read(fields)?,
            step_limits: step_limits(fields)?,
            norm: match self.norm {
                MambaNorm::AfterGates => StateNorm::AfterGates,
                MambaNorm::Flags(has, _) if !fields.flag(has, false)? => StateNorm::None,
                MambaNorm::Flags(_, is_before) if fields.flag(is_before, true)? => StateNorm::BeforeGates,
                MambaNorm::Flags(..) => StateNorm::AfterGates,
            },
        })
    }

    /// Width of each of the heads that have this width together.
    fn split(&self, width: usize, num_heads: usize) -> Result<usize, String> {
        if !width.is_multiple_of(num_heads) || width / num_heads > 1024 {
            return Err(format!(
                "'{}' ({num_heads}) does not divide the width of all heads ({width}) into heads of at most 1024",
                self.num_heads
            ));
        }
        Ok(width / num_heads)
    }
}

/// The least and the greatest step; transformers writes infinity as an object, or as Python spells it.
fn step_limits(fields: &Fields) -> Result<(f32, f32), String> {
    const NAME: &str = "time_step_limit";
    let Some(stated) = fields.get(NAME) else { return Ok((0.0, f32::INFINITY)) };
    let number = |value: &Value| match value.get("__float__") {
        Some(spelt) => (spelt == "Infinity").then_some(f32::INFINITY),
        None => value.as_f64().map(|number| number as f32),
    };
    let limits = match stated.as_array().map(Vec::as_slice) {
        Some([least, greatest]) => number(least).zip(number(greatest)),
        _ => None,
    };
    match limits {
        Some((least, greatest)) if least >= 0.0 && least < greatest => Ok((least, greatest)),
        _ => Err(format!("'{NAME}' must be two numbers from 0 up, the second greater, got {stated}")),
    }
}

const NEMOTRON_MAMBA: MambaTraits = MambaTraits {
    num_heads: "mamba_num_heads",
    head_dim: "mamba_head_dim",
    expand: None,
    width: None,
    num_groups: ("n_groups", None),
    state_dim: "ssm_state_size",
    kernel_size: ("conv_kernel", Some(4)),
    conv_bias: Bias::FieldOrTrue("use_conv_bias"),
    input_bias: Bias::Field("use_bias"),
    output_bias: Bias::Field("use_bias"),
    norm: MambaNorm::AfterGates,
};

/// How Mamba's names of what is around the blocks are spelt elsewhere.
const BACKBONE: &[(&str, &str)] = &[
    ("backbone.embeddings.", "model.embed_tokens."),
    ("backbone.norm_f.", "model.norm."),
    ("backbone.layers.", "model.layers."),
];

pub(super) const NEMOTRON_H: Family = Family {
    defaults: &[("max_position_embeddings", 4096), ("num_key_value_heads", 0)],
    eps: ("layer_norm_epsilon", Some(1e-5)),
    attention: AttentionTraits {
        windows: Windows::Never,
        pairs: Pairs::Halves,
        rotated: RotatedLayers::None,
        ..AttentionTraits::LLAMA
    },
    hybrid: Some(HybridTraits { layers: LayerKinds::Halves, states: StateTraits::Mamba(&NEMOTRON_MAMBA) }),
    activation: Activation::SquaredRelu,
    mlp_bias: Bias::Never,
    moe: Some(MoeTraits {
        latent_size: Some("moe_latent_size"),
        methods: &[],
        shared: SharedTraits::PlainIf("n_shared_experts", "moe_shared_expert_intermediate_size"),
        ..moe::DEEPSEEK_V3
    }),
    names: BlockNames::HALVES,
    renamed_parts: BACKBONE,
    ..LLAMA
};

pub(super) const MAMBA2: Family = Family {
    // No part of it knows of positions.
    defaults: &[("max_position_embeddings", 1 << 20)],
    hybrid: Some(HybridTraits {
        layers: LayerKinds::StatesAlone,
        states: StateTraits::Mamba(&MambaTraits {
            num_heads: "num_heads",
            head_dim: "head_dim",
            state_dim: "state_size",
            ..NEMOTRON_MAMBA
        }),
    }),
    ..NEMOTRON_H
};

#[cfg(test)]
mod tests;
