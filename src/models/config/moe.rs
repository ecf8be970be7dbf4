//! Mixtures of experts in a configuration.
//!
//! Owns the fields in which families write them and their checks. What they are is `mlp_spec`'s.

use serde_json::Value;

use super::fields::{Fields, MAX_LAYERS};
use crate::models::mlp_spec::{
    Activation, DenseSpec, ExpertGroups, GroupScore, MoeSpec, RouterScore, RoutingSpec, SharedExpertSpec,
};

/// Far above any real model; they keep what is made for each expert within reason.
const MAX_EXPERTS: u64 = 1 << 14;

/// How a family writes its experts.
#[derive(Debug, Clone, Copy)]
pub(super) struct MoeTraits {
    pub num_experts: (&'static str, Option<u64>),
    pub num_per_token: (&'static str, Option<u64>),
    pub intermediate_size: &'static str,
    /// Field of the width of what experts see; the hidden size where it is absent.
    pub latent_size: Option<&'static str>,
    pub layers: MoeLayers,
    pub expert_bias: bool,
    /// What is not in the configuration.
    pub routing: RoutingSpec,
    /// A flag that says whether there are biases for the choice.
    pub selection_bias: Option<&'static str>,
    pub normalised: Normalised,
    /// Fields of a factor on the weights, and of the number of groups and how many are kept.
    pub scale: Option<&'static str>,
    pub groups: Option<(&'static str, &'static str, GroupScore)>,
    /// What `topk_method` may be, the first where it is absent, and whether each goes by groups.
    pub methods: &'static [(&'static str, bool)],
    pub shared: SharedTraits,
}

/// Whether the chosen experts' weights are made to add up to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Normalised {
    /// As the routing says.
    Known,
    /// By this flag with this default, and this number that keeps it from division by zero.
    Field(&'static str, bool, f32),
}

/// An MLP that every token goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SharedTraits {
    None,
    /// Of this width, gated; none where it is 0 or absent.
    Gated(&'static str),
    /// Of this width; none where it is 0 or absent.
    Plain(&'static str),
    /// Of so many experts' width; none where it is 0 or absent.
    Experts(&'static str),
    /// Of the width that the second says, where the first is 1 or absent and not 0.
    PlainIf(&'static str, &'static str),
}

/// Which layers have experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MoeLayers {
    All,
    /// Every so many, `decoder_sparse_step`, but for those in `mlp_only_layers`.
    Qwen,
    /// From this many on, unless `mlp_layer_types` lists them.
    From(&'static str, u64),
    /// All, where this number of experts is not 0; none where it is, or absent.
    IfAny(&'static str),
    /// ERNIE's: from one to another, every so many.
    Ernie,
}

impl MoeLayers {
    pub(super) fn read(self, fields: &Fields, num_layers: usize) -> Result<Vec<bool>, String> {
        Ok(match self {
            Self::All => vec![true; num_layers],
            Self::IfAny(field) => vec![fields.integer(field, Some(0), 0, MAX_EXPERTS)? > 0; num_layers],
            Self::Qwen => {
                let step = fields.integer("decoder_sparse_step", Some(1), 1, MAX_LAYERS)?;
                let dense = layer_list(fields, "mlp_only_layers", num_layers)?;
                (0..num_layers).map(|layer| (layer + 1).is_multiple_of(step) && !dense[layer]).collect()
            }
            Self::From(field, default) => {
                let first = fields.integer(field, Some(default), 0, MAX_LAYERS)?;
                let listed =
                    fields.of_layers("mlp_layer_types", num_layers, [("sparse", true), ("dense", false)])?;
                listed.unwrap_or_else(|| (0..num_layers).map(|layer| layer >= first).collect())
            }
            Self::Ernie => {
                let layer = |name, default: usize| fields.integer(name, Some(default as u64), 0, MAX_LAYERS);
                let first = layer("moe_layer_start_index", 0)?;
                // The publisher's -1 is the last layer.
                let last = match fields.get("moe_layer_end_index") {
                    Some(Value::Number(number)) if number.as_i64() == Some(-1) => num_layers - 1,
                    _ => layer("moe_layer_end_index", num_layers - 1)?,
                };
                let interval = fields.integer("moe_layer_interval", Some(1), 1, MAX_LAYERS)?;
                (0..num_layers)
                    .map(|layer| (layer + 1).is_multiple_of(interval) && layer >= first && layer <= last)
                    .collect()
            }
        })
    }
}

/// A list of layers as one flag for each.
fn layer_list(fields: &Fields, name: &str, num_layers: usize) -> Result<Vec<bool>, String> {
    let mut flags = vec![false; num_layers];
    let Some(list) = fields.get(name) else { return Ok(flags) };
    let wrong = || format!("'{name}' must be a list of layers below {num_layers}, got {list}");
    for entry in list.as_array().ok_or_else(wrong)? {
        let layer = entry.as_u64().and_then(|layer| usize::try_from(layer).ok());
        *layer.and_then(|layer| flags.get_mut(layer)).ok_or_else(wrong)? = true;
    }
    Ok(flags)
}

/// The name under which transformers saves this field from version 5 on, where that is another.
fn other_name(name: &str) -> Option<&'static str> {
    (name == "num_experts").then_some("num_local_experts")
}

/// The name that this field has in a configuration.
pub(super) fn num_experts_field(fields: &Fields, name: &'static str) -> &'static str {
    other_name(name).filter(|other| fields.get(name).is_none() && fields.get(other).is_some()).unwrap_or(name)
}

impl MoeTraits {
    /// Reads the experts; `like` has what they have in common with dense MLPs.
    pub(super) fn spec(&self, fields: &Fields, like: DenseSpec) -> Result<MoeSpec, String> {
        let number = |(name, default): (&str, Option<u64>)| fields.integer(name, default, 1, MAX_EXPERTS);
        let num_experts = number((num_experts_field(fields, self.num_experts.0), self.num_experts.1))?;
        if let Some(other) = other_name(self.num_experts.0).and_then(|other| fields.get(other))
            && other.as_u64() != Some(num_experts as u64)
        {
            return Err(format!(
                "'{}' is {num_experts} by one name and {other} by another",
                self.num_experts.0
            ));
        }
        let num_per_token = number(self.num_per_token)?;
        if num_per_token > num_experts {
            return Err(format!(
                "'{}' ({num_per_token}) must be at most '{}' ({num_experts})",
                self.num_per_token.0, self.num_experts.0
            ));
        }
        let intermediate_size = fields.dimension(self.intermediate_size, None)?;
        let expert = DenseSpec { intermediate_size, bias: self.expert_bias, ..like };
        let mut routing = self.routing;
        if let Normalised::Field(name, default, eps) = self.normalised {
            routing.normalised = fields.flag(name, default)?.then_some(eps);
        }
        if let Some(name) = self.selection_bias {
            routing.selection_bias = fields.flag(name, true)?;
        }
        if let Some(name) = self.scale {
            routing.scale = fields.factor(name, Some(1.0))?;
        }
        let by_groups = goes_by_groups(fields, self.methods)?;
        if let Some(groups) = self.groups.filter(|_| by_groups) {
            routing.groups = expert_groups(fields, groups, (num_experts, num_per_token))?;
        }
        let width = |name: &str, of_one: usize| -> Result<Option<SharedExpertSpec>, String> {
            let count = fields.integer(name, Some(0), 0, 1 << 24)?;
            let intermediate_size = count.saturating_mul(of_one);
            let mlp = DenseSpec { intermediate_size, ..like };
            Ok((count > 0).then_some(SharedExpertSpec { mlp, gated: false }))
        };
        let shared = match self.shared {
            SharedTraits::None => None,
            SharedTraits::Gated(name) => {
                width(name, 1)?.map(|shared| SharedExpertSpec { gated: true, ..shared })
            }
            SharedTraits::Plain(name) => width(name, 1)?,
            SharedTraits::Experts(name) => width(name, intermediate_size)?,
            SharedTraits::PlainIf(count, name) => match fields.integer(count, Some(1), 0, 1)? {
                0 => None,
                _ => width(name, 1)?,
            },
        };
        let latent_size = match self.latent_size.filter(|name| fields.get(name).is_some()) {
            None => None,
            Some(name) => Some(fields.dimension(name, None)?),
        };
        Ok(MoeSpec { latent_size, num_experts, num_per_token, expert, routing, shared })
    }
}

/// Whether `topk_method`, one of these, goes by groups.
fn goes_by_groups(fields: &Fields, methods: &[(&str, bool)]) -> Result<bool, String> {
    let Some((_, default)) = methods.first() else { return Ok(true) };
    let Some(stated) = fields.get("topk_method") else { return Ok(*default) };
    let known = methods.iter().find(|(name, _)| stated == name).map(|(_, by_groups)| *by_groups);
    known.ok_or_else(|| {
        let names: Vec<&str> = methods.iter().map(|(name, _)| *name).collect();
        format!("'topk_method' must be {}, got {stated}", names.join(" or "))
    })
}

fn expert_groups(
    fields: &Fields,
    (count, kept, score): (&str, &str, GroupScore),
    (num_experts, num_per_token): (usize, usize),
) -> Result<Option<ExpertGroups>, String> {
    let num_groups = fields.integer(count, Some(1), 1, MAX_EXPERTS)?;
    let num_kept = fields.integer(kept, Some(1), 1, MAX_EXPERTS)?;
    if num_groups == 1 && num_kept == 1 {
        return Ok(None);
    }
    if !num_experts.is_multiple_of(num_groups) || num_experts / num_groups < 2 {
        return Err(format!(
            "'{count}' ({num_groups}) does not divide {num_experts} experts into groups of at least 2"
        ));
    }
    if num_kept > num_groups || num_kept * (num_experts / num_groups) < num_per_token {
        return Err(format!(
            "'{kept}' ({num_kept}) of {num_groups} groups of {num_experts} experts cannot hold {num_per_token} a token"
        ));
    }
    Ok(Some(ExpertGroups { num_groups, num_kept, score }))
}

/// Softmax, the chosen ones' weights added up to 1 where `norm_topk_prob` says so: Qwen's.
pub(super) const QWEN: MoeTraits = MoeTraits {
    num_experts: ("num_experts", None),
    num_per_token: ("num_experts_per_tok", None),
    intermediate_size: "moe_intermediate_size",
    latent_size: None,
    layers: MoeLayers::Qwen,
    expert_bias: false,
    routing: RoutingSpec::softmax(false),
    selection_bias: None,
    normalised: Normalised::Field("norm_topk_prob", false, 0.0),
    scale: None,
    groups: None,
    methods: &[],
    shared: SharedTraits::None,
};

/// DeepSeek-V3's, which many have taken: sigmoid scores, a bias for the choice, groups, a factor, experts that all
/// tokens go through, and dense layers first.
pub(super) const DEEPSEEK_V3: MoeTraits = MoeTraits {
    num_experts: ("n_routed_experts", None),
    num_per_token: ("num_experts_per_tok", None),
    intermediate_size: "moe_intermediate_size",
    latent_size: None,
    layers: MoeLayers::From("first_k_dense_replace", 0),
    expert_bias: false,
    routing: RoutingSpec { score: RouterScore::Sigmoid, selection_bias: true, ..RoutingSpec::softmax(true) },
    selection_bias: None,
    normalised: Normalised::Field("norm_topk_prob", true, 1e-20),
    scale: Some("routed_scaling_factor"),
    groups: Some(("n_group", "topk_group", GroupScore::TwoBest)),
    methods: &[("noaux_tc", true)],
    shared: SharedTraits::Experts("n_shared_experts"),
};

/// DeepSeek-V2's: softmax scores, which are not made to add up to 1, and groups by their best expert, if any.
pub(super) const DEEPSEEK_V2: MoeTraits = MoeTraits {
    routing: RoutingSpec::softmax(false),
    normalised: Normalised::Known,
    groups: Some(("n_group", "topk_group", GroupScore::Best)),
    methods: &[("greedy", false), ("group_limited_greedy", true)],
    ..DEEPSEEK_V3
};

/// Mistral 4's.
pub(super) const MISTRAL4: MoeTraits =
    MoeTraits { routing: RoutingSpec::softmax(true), methods: &[], ..DEEPSEEK_V3 };

/// gpt-oss's gate.
pub(super) const GPT_OSS_ACTIVATION: Activation = Activation::ClampedSilu { limit: 7.0, sharpness: 1.702 };
