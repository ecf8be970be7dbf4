//! Where the decoder's weights are among a file's names.
//!
//! Owns the spelling of every family's names, as constants, and which names are of no use. That
//! all of them are used and none is missing is checked where they are loaded, in `mlx/`.

/// Where the decoder's weights are among a file's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightNames {
    /// Put before every name, e.g. `language_model.`.
    pub prefix: String,
    /// Beginnings that are spelt otherwise in some files of the family, as (found, meant); the
    /// first that fits is replaced before anything else looks at the names.
    pub renamed_prefixes: Vec<(String, String)>,
    /// Names that begin so belong to parts which are not run (vision towers).
    pub ignored_prefixes: Vec<String>,
    pub block: BlockNames,
    /// The norm before the head.
    pub final_norm: &'static str,
}

impl WeightNames {
    /// Whether a name that the decoder did not ask for is known to be of no use.
    pub fn is_ignored(&self, name: &str) -> bool {
        name.ends_with("rotary_emb.inv_freq")
            || self.ignored_prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()))
    }

    /// The name as the decoder's family spells it.
    pub fn canonical(&self, name: &str) -> String {
        self.renamed_prefixes
            .iter()
            .find_map(|(found, meant)| name.strip_prefix(found.as_str()).map(|rest| format!("{meant}{rest}")))
            .unwrap_or_else(|| name.to_owned())
    }
}

impl Default for WeightNames {
    /// The names that most families use.
    fn default() -> Self {
        Self {
            prefix: String::new(),
            renamed_prefixes: Vec::new(),
            ignored_prefixes: Vec::new(),
            block: BlockNames::PLAIN,
            final_norm: "model.norm",
        }
    }
}

/// Names of a block's parts, below `model.layers.{index}.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockNames {
    pub mixer_norm: &'static str,
    /// Before the mixer's residual is added; only Gemma has it.
    pub mixer_post_norm: Option<&'static str>,
    pub mlp_norm: &'static str,
    /// Before the MLP's residual is added; only Gemma has it.
    pub mlp_post_norm: Option<&'static str>,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub query_norm: &'static str,
    pub key_norm: &'static str,
    pub attention_output: &'static str,
}

impl BlockNames {
    /// llama's, which most families follow.
    pub const PLAIN: Self = Self {
        mixer_norm: "input_layernorm",
        mixer_post_norm: None,
        mlp_norm: "post_attention_layernorm",
        mlp_post_norm: None,
        gate: "mlp.gate_proj",
        up: "mlp.up_proj",
        down: "mlp.down_proj",
        query_norm: "self_attn.q_norm",
        key_norm: "self_attn.k_norm",
        attention_output: "self_attn.o_proj",
    };

    /// Gemma's, where `post_attention_layernorm` is what it says.
    pub const GEMMA: Self = Self {
        mixer_post_norm: Some("post_attention_layernorm"),
        mlp_norm: "pre_feedforward_layernorm",
        mlp_post_norm: Some("post_feedforward_layernorm"),
        ..Self::PLAIN
    };

    /// LFM2's.
    pub const LFM2: Self = Self {
        mixer_norm: "operator_norm",
        mlp_norm: "ffn_norm",
        gate: "feed_forward.w1",
        up: "feed_forward.w3",
        down: "feed_forward.w2",
        query_norm: "self_attn.q_layernorm",
        key_norm: "self_attn.k_layernorm",
        attention_output: "self_attn.out_proj",
        ..Self::PLAIN
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_prefix_that_fits_is_replaced_once() {
        let names = WeightNames {
            renamed_prefixes: vec![
                ("language_model.".to_owned(), String::new()),
                ("model.language_model.".to_owned(), "model.".to_owned()),
            ],
            ..WeightNames::default()
        };
        assert_eq!(names.canonical("language_model.model.norm.weight"), "model.norm.weight");
        assert_eq!(names.canonical("model.language_model.norm.weight"), "model.norm.weight");
        assert_eq!(names.canonical("model.norm.weight"), "model.norm.weight");
    }
}
