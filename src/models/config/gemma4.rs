//! Configurations of gemma4 (text): layers of two kinds with shapes of their own, KV that later layers share,
//! inputs of each layer besides, and experts beside an MLP.
//!
//! Owns what the fields mean and their defaults, the publisher's.

use super::{
    family::Bias,
    fields::{Fields, MAX_LAYERS},
    moe::{self, MoeLayers, MoeTraits, Normalised},
    rope::{LayerType, RopeDefaults},
};
use crate::models::{
    block_names::BlockNames,
    context::ContextChoice,
    mlp_spec::{Activation, DenseSpec, MlpSpec, RoutingSpec},
    names::WeightNames,
    rope::RopeSpec,
    spec::{
        AttentionSpec, HeadNorms, KeyValueSource, LayerSpec, MixerSpec, ModelSpec, NormKind, NormSpec,
        NormWeight, PerLayerInputSpec,
    },
};

/// Softmax over the chosen experts' logits, with a factor for each expert; the router norms what it sees.
const EXPERTS: MoeTraits = MoeTraits {
    num_per_token: ("top_k_experts", None),
    layers: MoeLayers::All,
    routing: RoutingSpec { per_expert_scale: true, own_norm: true, ..RoutingSpec::softmax(true) },
    normalised: Normalised::Known,
    ..moe::QWEN
};

/// Reads the language model's fields.
pub(super) fn spec(model_type: &str, fields: &Fields) -> Result<ModelSpec, String> {
    let hidden_size = fields.dimension("hidden_size", Some(2304))?;
    let num_layers = fields.integer("num_hidden_layers", Some(30), 1, MAX_LAYERS)?;
    let max_context = fields.dimension("max_position_embeddings", Some(131_072))?;
    let vocab_size = fields.vocab_size(Some(262_144))?;
    let slides = slides(fields, num_layers)?;
    let num_shared = fields.integer("num_kv_shared_layers", Some(0), 0, MAX_LAYERS)?;
    if num_shared >= num_layers {
        return Err(format!(
            "'num_kv_shared_layers' ({num_shared}) must be fewer than 'num_hidden_layers' ({num_layers})"
        ));
    }
    let num_own = num_layers - num_shared;
    let kinds = Kinds::read(fields, &slides, max_context)?;
    let dense =
        |intermediate_size| DenseSpec { intermediate_size, activation: Activation::GeluTanh, bias: false };
    let intermediate_size = fields.dimension("intermediate_size", Some(9216))?;
    let is_wide = num_shared > 0 && fields.flag("use_double_wide_mlp", false)?;
    let experts = match fields.flag("enable_moe_block", false)? {
        true => Some(EXPERTS.spec(fields, dense(0))?),
        false => None,
    };
    let mut layers = Vec::with_capacity(num_layers);
    for (index, &slides_here) in slides.iter().enumerate() {
        let mut attention = kinds.of(slides_here)?.clone();
        if index >= num_own {
            let last = slides[..num_own].iter().rposition(|&slides| slides == slides_here);
            let last = last.ok_or_else(|| {
                format!(
                    "'num_kv_shared_layers': layer {index} has no earlier layer of its type to share with"
                )
            })?;
            attention.kv = KeyValueSource::Layer(last);
        }
        let width = if index >= num_own && is_wide { 2 * intermediate_size } else { intermediate_size };
        let mlp = match experts {
            Some(experts) => MlpSpec::DenseAndMoe(dense(width), experts),
            None => MlpSpec::Dense(dense(width)),
        };
        layers
            .push(LayerSpec { output_scale: true, ..LayerSpec::plain(MixerSpec::Attention(attention), mlp) });
    }
    let input_width = fields.integer("hidden_size_per_layer_input", Some(256), 0, 1 << 16)?;
    let per_layer_inputs = match input_width {
        0 => None,
        width => Some(PerLayerInputSpec {
            vocab_size: fields.dimension("vocab_size_per_layer_input", Some(262_144))?,
            width,
        }),
    };
    Ok(ModelSpec {
        model_type: model_type.to_owned(),
        hidden_size,
        vocab_size,
        max_context,
        context: ContextChoice::One,
        layers,
        norm: NormSpec {
            eps: fields.epsilon("rms_norm_eps", Some(1e-6))?,
            kind: NormKind::RootMeanSquare,
            weight: NormWeight::Factor,
        },
        embedding_scale: Some((hidden_size as f32).sqrt()),
        tied_head: None,
        per_layer_inputs,
        logits_scale: None,
        tied_logits_scale: None,
        folds: Vec::new(),
        final_logit_softcap: fields.softcap("final_logit_softcapping")?,
        quantization: None,
        names: WeightNames::new(BlockNames::GEMMA4),
    })
}

/// Which layers have a window: by `layer_types`, or all but every sixth and the last.
fn slides(fields: &Fields, num_layers: usize) -> Result<Vec<bool>, String> {
    let known = [("full_attention", false), ("sliding_attention", true)];
    if let Some(slides) = fields.layer_types(num_layers, known)? {
        return Ok(slides);
    }
    let pattern = fields.integer("sliding_window_pattern", Some(6), 1, MAX_LAYERS)?;
    let slides = (1..=num_layers).map(|number| !number.is_multiple_of(pattern) && number != num_layers);
    Ok(slides.collect())
}

/// The attention of both kinds of layers, of which a model may lack one.
struct Kinds {
    sliding: Option<AttentionSpec>,
    full: Option<AttentionSpec>,
}

impl Kinds {
    fn read(fields: &Fields, slides: &[bool], max_context: usize) -> Result<Self, String> {
        let num_heads = fields.dimension("num_attention_heads", Some(8))?;
        let num_kv_heads = fields.dimension("num_key_value_heads", Some(4))?;
        let head_dim = fields.dimension("head_dim", Some(256))?;
        let full_head_dim = fields.dimension("global_head_dim", Some(512))?;
        let values_are_keys = fields.flag("attention_k_eq_v", false)?;
        let full_kv_heads = match values_are_keys {
            true => fields.dimension("num_global_key_value_heads", Some(num_kv_heads as u64))?,
            false => num_kv_heads,
        };
        let bias = Bias::Field("attention_bias").read(fields)?;
        let attention = |num_kv_heads: usize, head_dim: usize, rope: RopeSpec| AttentionSpec {
            scale: 1.0,
            head_norms: HeadNorms::PerHead,
            value_norm: true,
            qkv_bias: bias,
            output_bias: bias,
            ..AttentionSpec::plain((num_heads, num_kv_heads), head_dim, Some(rope))
        };
        let rope = |layer_type, head_dim, defaults| {
            Fields::check_head_dim(head_dim)?;
            fields.rope(layer_type, head_dim, max_context, false, defaults)
        };
        let full = match slides.contains(&false) {
            true => {
                Fields::check_heads(num_heads, full_kv_heads)?;
                let defaults = RopeDefaults { is_proportional: true, ..RopeDefaults::new(Some(1_000_000.0)) };
                let rope = rope(LayerType::Full, full_head_dim, defaults)?;
                let mut full = attention(full_kv_heads, full_head_dim, rope);
                if values_are_keys {
                    full.kv = KeyValueSource::ValuesFromKeys;
                }
                Some(full)
            }
            false => None,
        };
        let sliding = match slides.contains(&true) {
            true => {
                Fields::check_heads(num_heads, num_kv_heads)?;
                let defaults = RopeDefaults { is_scaled: false, ..RopeDefaults::new(Some(10_000.0)) };
                let rope = rope(LayerType::Sliding, head_dim, defaults)?;
                let window = Some(fields.dimension("sliding_window", Some(512))?);
                Some(AttentionSpec { window, ..attention(num_kv_heads, head_dim, rope) })
            }
            false => None,
        };
        Ok(Self { sliding, full })
    }

    fn of(&self, slides: bool) -> Result<&AttentionSpec, String> {
        let of_kind = if slides { &self.sliding } else { &self.full };
        of_kind.as_ref().ok_or_else(|| "'layer_types' has a type without attention".to_owned())
    }
}
