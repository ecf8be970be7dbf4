//! Latent attention in a configuration.
//!
//! Owns the widths of its parts and the factor on its scores. What they are is `spec`'s, the frequencies of rotary
//! positions are `rope`'s.

use super::{
    attention::position_scale,
    family::{Bias, Sizes},
    fields::{Fields, MAX_HEAD_DIM},
    rope::{LayerType, RopeDefaults},
};
use crate::models::{
    rope::{RopeScaling, RopeSpec},
    spec::{AttentionSpec, KeyValueSource, LatentSpec},
};

/// Publishers' code has it fixed, whatever the other norms have.
const NORM_EPS: f32 = 1e-6;

/// How a family's latent attention differs from others'.
#[derive(Debug, Clone, Copy)]
pub(super) struct LatentTraits {
    pub bias: Bias,
    pub rope: RopeDefaults,
    /// Whether what queries and keys have beside latents is rotated by position.
    pub is_rotated: bool,
    /// The field of how many positions each one sees, chosen by a projection of its own; contexts end there, as up to
    /// so many it sees all.
    pub max_seen: Option<&'static str>,
    pub position_scale: bool,
    /// Whether `partial_rotary_factor` is the rotated share of whole heads, and not of what may be rotated.
    pub rotates_share_of_head: bool,
}

impl LatentTraits {
    pub(super) const DEEPSEEK: Self = Self {
        bias: Bias::Field("attention_bias"),
        rope: RopeDefaults::new(Some(10_000.0)),
        is_rotated: true,
        max_seen: None,
        position_scale: false,
        rotates_share_of_head: false,
    };

    /// The attention of each layer, all alike.
    pub(super) fn spec(&self, sizes: &Sizes<'_>, max_context: usize) -> Result<LatentSpec, String> {
        let fields = sizes.fields;
        let num_heads = sizes.dimension("num_attention_heads")?;
        let part = |name: &str| fields.integer(name, sizes.default(name), 1, MAX_HEAD_DIM as u64);
        let [rank, rotated_dim, plain_dim, value_dim] =
            ["kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"].map(part);
        let (rank, rotated_dim, plain_dim, value_dim) = (rank?, rotated_dim?, plain_dim?, value_dim?);
        if self.is_rotated && !rotated_dim.is_multiple_of(2) {
            return Err(format!("'qk_rope_head_dim' must be even for rotary positions, got {rotated_dim}"));
        }
        let query_dim = plain_dim + rotated_dim;
        if let Some(stated) = fields.get("qk_head_dim")
            && stated.as_u64() != Some(query_dim as u64)
        {
            return Err(format!(
                "'qk_head_dim' must be {query_dim}, as 'qk_nope_head_dim' and 'qk_rope_head_dim' say, got {stated}"
            ));
        }
        let query_rank = match fields.get("q_lora_rank") {
            None => None,
            Some(_) => Some(fields.dimension("q_lora_rank", None)?),
        };
        let rope = match self.is_rotated {
            true => Some(self.rope(fields, (plain_dim, rotated_dim), max_context)?),
            false => None,
        };
        let bias = self.bias.read(fields)?;
        let yarn_factor = if self.is_rotated { yarn_score_factor(fields)? } else { 1.0 };
        let scale = (query_dim as f64).powf(-0.5) * yarn_factor;
        let attention = AttentionSpec {
            scale: scale as f32,
            qkv_bias: bias,
            output_bias: bias,
            position_scale: if self.position_scale { position_scale(fields)? } else { None },
            kv: KeyValueSource::WithinKeys { value_dim: rank },
            ..AttentionSpec::plain((num_heads, 1), rank + rotated_dim, rope)
        };
        Ok(LatentSpec { attention, query_rank, plain_dim, value_dim, norm_eps: NORM_EPS })
    }

    fn rope(
        &self,
        fields: &Fields,
        (plain_dim, rotated_dim): (usize, usize),
        max_context: usize,
    ) -> Result<RopeSpec, String> {
        let query_dim = plain_dim + rotated_dim;
        let interleaved = fields.flag("rope_interleave", true)?;
        let (rope_dim, defaults) = match self.rotates_share_of_head {
            false => (rotated_dim, self.rope),
            true => {
                let rotated = rotated_dim as f64 / query_dim as f64;
                (query_dim, RopeDefaults { rotated, ..self.rope })
            }
        };
        let rope = fields.rope(LayerType::Full, rope_dim, max_context, interleaved, defaults)?;
        if rope.dims != rotated_dim {
            return Err(format!(
                "'partial_rotary_factor' rotates {} dimensions of a head, 'qk_rope_head_dim' {rotated_dim}",
                rope.dims
            ));
        }
        Ok(rope)
    }

    /// The longest context in which each position sees all before it.
    pub(super) fn max_context(&self, fields: &Fields, max_context: usize) -> Result<usize, String> {
        match self.max_seen {
            None => Ok(max_context),
            Some(name) => Ok(fields.dimension(name, None)?.min(max_context)),
        }
    }
}

/// Yarn's further factor on scores: the square of what `mscale_all_dim` gives.
fn yarn_score_factor(fields: &Fields) -> Result<f64, String> {
    for name in ["rope_scaling", "rope_parameters"] {
        let Some(object) = fields.nested(name)? else { continue };
        let kind = ["rope_type", "type"].into_iter().find_map(|kind| object.get(kind)?.as_str());
        if kind == Some("yarn")
            && let Some(all_dims) = object.optional_number("mscale_all_dim")?
        {
            let factor = RopeScaling::yarn_mscale(object.number("factor", None)?, all_dims).powi(2);
            return match factor > 0.0 && (factor as f32).is_finite() {
                true => Ok(factor),
                false => Err(format!("'{name}': 'mscale_all_dim' of {all_dims} gives no usable factor")),
            };
        }
    }
    Ok(1.0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{parse_model_config, published};
    use crate::models::spec::{LatentSpec, MixerSpec, ModelSpec};

    /// A configuration of `fixtures/configs`.
    fn config(name: &str) -> Value {
        let found = published::all().into_iter().find(|(file, _)| file == name);
        found.unwrap_or_else(|| panic!("there is no {name}")).1
    }

    fn read(config: &Value) -> Result<ModelSpec, String> {
        parse_model_config(config, "config.json").map(|read| read.spec).map_err(|error| error.to_string())
    }

    fn latent(config: &Value) -> LatentSpec {
        match &read(config).unwrap().layers[0].mixer {
            Some(MixerSpec::Latent(latent)) => latent.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_latent_a_token_is_all_that_is_kept_whatever_the_number_of_heads() {
        for (name, num_layers) in
            [("glm4_moe_lite.json", 47), ("deepseek_v3.json", 61), ("deepseek_v2-lite.json", 27)]
        {
            let spec = read(&config(name)).unwrap();
            assert_eq!(spec.kv_bytes_per_token(2), num_layers * (512 + 64) * 2, "{name}");
            assert_eq!(spec.state_bytes(4), 0, "{name}");
        }
        let flash = latent(&config("glm4_moe_lite.json"));
        assert_eq!((flash.rank(), flash.rotated_dim(), flash.plain_dim), (512, 64, 192));
        assert_eq!((flash.value_dim, flash.query_rank, flash.attention.num_heads), (256, Some(768), 20));
        assert_eq!(latent(&config("deepseek_v2-lite.json")).query_rank, None);
    }

    #[test]
    fn yarn_scales_scores_by_the_square_of_what_mscale_all_dim_gives() {
        let scale = |name: &str| f64::from(latent(&config(name)).attention.scale);
        let factor = (0.1 * 40f64.ln() + 1.0).powi(2);
        assert!((scale("deepseek_v3.json") * 192f64.sqrt() - factor).abs() < 1e-6);
        assert!((scale("glm4_moe_lite.json") * 256f64.sqrt() - 1.0).abs() < 1e-6);
        let rope = latent(&config("deepseek_v3.json")).attention.rope.unwrap();
        assert_eq!((rope.dims, rope.interleaved, rope.input_scale), (64, true, 1.0));
    }

    #[test]
    fn layers_that_transformers_lists_have_experts_as_the_publishers_number_of_dense_ones_says() {
        let mut listed = config("glm4_moe_lite.json");
        let first = read(&listed).unwrap();
        let types: Vec<&str> = (0..47).map(|layer| if layer == 0 { "dense" } else { "sparse" }).collect();
        listed["first_k_dense_replace"] = Value::Null;
        listed["mlp_layer_types"] = json!(types);
        assert_eq!(read(&listed).unwrap(), first);
        let has_experts =
            |layer: usize| first.layers[layer].mlp.as_ref().is_some_and(|mlp| mlp.moe().is_some());
        assert!(!has_experts(0) && has_experts(1));
        listed["mlp_layer_types"] = json!(["dense"]);
        assert!(read(&listed).unwrap_err().contains("mlp_layer_types"));
    }

    #[test]
    fn an_indexer_is_left_out_up_to_as_many_tokens_as_it_would_choose() {
        for model_type in ["deepseek_v32", "glm_moe_dsa"] {
            let mut sparse = config("deepseek_v3.json");
            sparse["model_type"] = json!(model_type);
            for (key, value) in [("index_n_heads", 64), ("index_head_dim", 128), ("index_topk", 2048)] {
                sparse[key] = json!(value);
            }
            let found = parse_model_config(&sparse, "config.json").unwrap();
            assert_eq!(found.spec.max_context, 2048);
            let [warning] = found.warnings.as_slice() else { panic!("{:?}", found.warnings) };
            assert!(warning.contains("index_topk") && warning.contains("refused"), "{warning}");
            assert!(found.spec.names.is_ignored("model.layers.3.self_attn.indexer.wk.weight"));
            sparse["index_topk"] = json!(0);
            assert!(read(&sparse).unwrap_err().contains("index_topk"));
        }
        assert!(read(&config("deepseek_v3.json")).unwrap().max_context > 2048);
    }

    #[test]
    fn a_wrapper_around_it_may_say_either_name_of_its_type() {
        let plain = latent(&config("kimi_k2.json"));
        for inner in ["kimi_k2", "deepseek_v3"] {
            let mut text = config("kimi_k2.json");
            text["model_type"] = json!(inner);
            let wrapped =
                json!({"model_type": "kimi_k25", "text_config": text, "vision_config": {"depth": 1}});
            assert_eq!(latent(&wrapped), plain);
        }
    }

    #[test]
    fn widths_that_cannot_be_are_named() {
        for (key, values) in [
            ("kv_lora_rank", vec![json!(null), json!(0), json!(1 << 20), json!(-5), json!(0.5)]),
            ("qk_rope_head_dim", vec![json!(null), json!(0), json!(63), json!(u64::MAX)]),
            ("qk_nope_head_dim", vec![json!(null), json!(0), json!(1 << 20)]),
            ("v_head_dim", vec![json!(null), json!(0), json!("x")]),
            ("q_lora_rank", vec![json!(0), json!(1u64 << 40)]),
            ("qk_head_dim", vec![json!(64)]),
            ("topk_method", vec![json!("greedy"), json!(3)]),
            ("scoring_func", vec![json!("softmax")]),
            ("moe_layer_freq", vec![json!(2)]),
            ("partial_rotary_factor", vec![json!(0.5)]),
        ] {
            for value in values {
                let mut wrong = config("deepseek_v3.json");
                wrong[key] = value.clone();
                let message = read(&wrong).expect_err(&format!("{key} = {value}"));
                assert!(message.contains(key), "{key} = {value}: {message}");
            }
        }
        let mut wrong = config("deepseek_v3.json");
        wrong["rope_scaling"]["mscale"] = json!(0);
        wrong["rope_scaling"]["mscale_all_dim"] = json!(1e300);
        let message = read(&wrong).unwrap_err();
        assert!(message.contains("mscale_all_dim"), "{message}");
        let mut wrong = config("deepseek_v2-lite.json");
        wrong["norm_topk_prob"] = json!(true);
        assert!(read(&wrong).unwrap_err().contains("norm_topk_prob"));
    }
}
