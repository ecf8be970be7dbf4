//! llama.cpp's tensor names → the decoder's weight names.
//!
//! Owns which part of a block each name is for, and in which form llama.cpp's converter stores it. How the
//! family spells the part is `block_names`', what an architecture calls otherwise its row's; reading the
//! tensors is `mlx/`'s.

use super::{
    block_names::BlockNames, config_gguf::architectures::Architecture, gguf::GgufHeader, spec::ModelSpec,
};

/// What a GGUF tensor is to the decoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GgufWeight {
    /// A weight under this name, in this form.
    Named { name: String, form: StoredForm },
    /// Nothing the decoder needs.
    Ignored,
}

/// How a weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredForm {
    AsItIs,
    /// A query or key projection whose rows are interleaved by pairs within each of so many heads (llama.cpp's
    /// `LlamaModel.permute`); the decoder wants each head's two halves.
    Interleaved {
        num_heads: usize,
    },
    /// A matrix of one row, perhaps without its first axis.
    OneRow,
    /// Kernels of a convolution of each channel by itself, `(channels, kernel)`.
    Kernels,
}

type Part = (&'static str, fn(&BlockNames) -> Option<&'static str>);

/// Parts of a block that have a weight, and perhaps a bias.
const PARTS: &[Part] = &[
    ("attn_norm", |block| block.mixer_norm),
    ("post_attention_norm", |block| block.mixer_post_norm),
    ("ffn_norm", |block| block.mlp_norm),
    ("post_ffw_norm", |block| block.mlp_post_norm),
    ("post_ffw_norm_1", |block| Some(block.both_norms[0])),
    ("pre_ffw_norm_2", |block| Some(block.both_norms[1])),
    ("post_ffw_norm_2", |block| Some(block.both_norms[2])),
    ("attn_q", |block| Some(block.attention.query)),
    ("attn_k", |block| Some(block.attention.key)),
    ("attn_v", |block| Some(block.attention.value)),
    ("attn_qkv", |block| block.attention.fused),
    ("attn_output", |block| Some(block.attention.output)),
    ("attn_q_norm", |block| Some(block.attention.query_norm)),
    ("attn_k_norm", |block| Some(block.attention.key_norm)),
    ("attn_q_a", |block| Some(block.latent.query_down)),
    ("attn_q_a_norm", |block| Some(block.latent.query_norm)),
    ("attn_q_b", |block| Some(block.latent.query_up)),
    ("attn_kv_a_mqa", |block| Some(block.latent.latent)),
    ("attn_kv_a_norm", |block| Some(block.latent.latent_norm)),
    ("attn_k_b", |block| Some(block.latent.embed_query)),
    ("attn_v_b", |block| Some(block.latent.unembed_output)),
    ("attn_kv_b", |block| Some(block.latent.both)),
    ("ffn_gate", |block| Some(block.mlp.gate)),
    ("ffn_up", |block| Some(block.mlp.up)),
    ("ffn_gate_up", |block| block.mlp.gate_up),
    ("ffn_down", |block| Some(block.mlp.down)),
    ("ffn_gate_inp", |block| Some(block.moe.router)),
    ("ffn_gate_exps", |block| Some(block.moe.experts.stacked[0])),
    ("ffn_up_exps", |block| Some(block.moe.experts.stacked[1])),
    ("ffn_down_exps", |block| Some(block.moe.experts.stacked[2])),
    ("ffn_gate_up_exps", |block| block.moe.experts.fused.map(|fused| fused.gate_up)),
    ("ffn_gate_shexp", |block| Some(block.moe.shared.gate)),
    ("ffn_up_shexp", |block| Some(block.moe.shared.up)),
    ("ffn_down_shexp", |block| Some(block.moe.shared.down)),
    ("ffn_gate_inp_shexp", |block| Some(block.moe.shared_gate)),
    ("shortconv.in_proj", |_| Some("conv.in_proj")),
    ("shortconv.conv", |_| Some("conv.conv")),
    ("shortconv.out_proj", |_| Some("conv.out_proj")),
    ("inp_gate", |_| Some("per_layer_input_gate")),
    ("proj", |_| Some("per_layer_projection")),
    ("post_norm", |_| Some("post_per_layer_input_norm")),
];

/// Parts whose names here have no ending.
const BARE_PARTS: &[Part] = &[
    ("attn_sinks.weight", |block| Some(block.attention.sinks)),
    ("exp_probs_b.bias", |block| Some(block.moe.selection_bias)),
    ("ffn_gate_inp.scale", |block| Some(block.moe.router_norm)),
    ("ffn_down_exps.scale", |block| Some(block.moe.per_expert_scale)),
    ("layer_output_scale.weight", |_| Some("layer_scalar")),
];

/// Outside of blocks; the norm before the head is the family's to spell.
const WHOLE: &[(&str, &str)] = &[
    ("token_embd", "model.embed_tokens"),
    ("output", "lm_head"),
    ("per_layer_token_embd", "model.embed_tokens_per_layer"),
    ("per_layer_model_proj", "model.per_layer_model_projection"),
    ("per_layer_proj_norm", "model.per_layer_projection_norm"),
];

/// Read with the metadata.
const FACTORS: [&str; 3] = ["rope_freqs", "rope_factors_short", "rope_factors_long"];

/// The names of one file's tensors.
pub struct GgufNames<'a> {
    architecture: &'static Architecture,
    spec: &'a ModelSpec,
}

impl<'a> GgufNames<'a> {
    /// The names of the tensors of a file of which `spec` was read; the error says what is wrong with it.
    pub fn of(header: &GgufHeader, spec: &'a ModelSpec) -> Result<Self, String> {
        Ok(Self { architecture: Architecture::of(header)?, spec })
    }

    /// Says what the tensor `name`, with its `.weight`, `.bias` or `.scale`, is; `None` if it is not known.
    pub fn weight(&self, name: &str) -> Option<GgufWeight> {
        let (stem, suffix) = name.rsplit_once('.')?;
        let as_it_is = |name: String| Some(GgufWeight::Named { name, form: StoredForm::AsItIs });
        if let Some((index, part)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            return self.weight_of_block(index.parse().ok()?, part, suffix);
        }
        if !matches!(suffix, "weight" | "bias") {
            return None;
        }
        let stem = self.meant(stem);
        if FACTORS.contains(&stem) {
            return Some(GgufWeight::Ignored);
        }
        if stem == "output_norm" {
            return as_it_is(format!("{}.{suffix}", self.spec.names.final_norm));
        }
        let (_, found) = WHOLE.iter().find(|(known, _)| *known == stem)?;
        as_it_is(format!("{found}.{suffix}"))
    }

    fn weight_of_block(&self, index: usize, part: &str, suffix: &str) -> Option<GgufWeight> {
        let names = &self.spec.names;
        if names.extra_layers.contains(&index) {
            return Some(GgufWeight::Ignored);
        }
        let find = |parts: &[Part], part: &str| {
            parts.iter().find(|(known, _)| *known == part).and_then(|(_, spelt)| spelt(&names.block))
        };
        if let Some(found) = find(BARE_PARTS, &format!("{part}.{suffix}")) {
            let name = format!("model.layers.{index}.{found}");
            return Some(GgufWeight::Named { name, form: StoredForm::AsItIs });
        }
        if !matches!(suffix, "weight" | "bias") {
            return None;
        }
        let found = find(PARTS, self.meant(part))?;
        let name = format!("model.layers.{index}.{found}.{suffix}");
        Some(GgufWeight::Named { name, form: self.form(index, part) })
    }

    /// The part that a name means in this architecture.
    fn meant<'b>(&self, part: &'b str) -> &'b str {
        let alias = self.architecture.aliases.iter().find(|(found, _)| *found == part);
        alias.map_or(part, |(_, meant)| meant)
    }

    fn form(&self, index: usize, part: &str) -> StoredForm {
        let attention = self.spec.layers.get(index).and_then(|layer| layer.attention());
        match (part, attention) {
            ("attn_q", Some(attention)) if self.architecture.are_rows_paired => {
                StoredForm::Interleaved { num_heads: attention.num_heads }
            }
            ("attn_k", Some(attention)) if self.architecture.are_rows_paired => {
                StoredForm::Interleaved { num_heads: attention.num_kv_heads }
            }
            ("ffn_gate_inp_shexp", _) => StoredForm::OneRow,
            ("shortconv.conv", _) => StoredForm::Kernels,
            _ => StoredForm::AsItIs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{
        config_gguf::architectures::{ARCHITECTURES, When},
        config_gguf::read_gguf_config,
        gguf::testing::GgufFile,
    };

    fn file(architecture: &str) -> GgufFile {
        let key = |name: &str| format!("{architecture}.{name}");
        GgufFile::default()
            .str("general.architecture", architecture)
            .u32(&key("embedding_length"), 64)
            .u32(&key("feed_forward_length"), 96)
            .u32(&key("block_count"), 4)
            .u32(&key("context_length"), 512)
            .u32(&key("attention.head_count"), 4)
            .u32(&key("attention.head_count_kv"), 2)
            .raw(&key("attention.layer_norm_rms_epsilon"), 6, &1e-5_f32.to_le_bytes())
            .tensor("token_embd.weight", 0, &[1, 32], &[0; 128])
    }

    fn weights(file: &GgufFile, names: &[&str]) -> Vec<Option<GgufWeight>> {
        let header = file.header();
        let spec = read_gguf_config(&header).unwrap().spec;
        let all = GgufNames::of(&header, &spec).unwrap();
        names.iter().map(|name| all.weight(name)).collect()
    }

    fn named(name: &str, form: StoredForm) -> Option<GgufWeight> {
        Some(GgufWeight::Named { name: name.to_owned(), form })
    }

    fn plain(name: &str) -> Option<GgufWeight> {
        named(name, StoredForm::AsItIs)
    }

    #[test]
    fn names_follow_the_architecture() {
        let found = weights(
            &file("llama"),
            &["output_norm.weight", "blk.3.ffn_norm.weight", "blk.0.attn_k.bias", "blk.1.attn_q.weight"],
        );
        let expected = [
            plain("model.norm.weight"),
            plain("model.layers.3.post_attention_layernorm.weight"),
            named("model.layers.0.self_attn.k_proj.bias", StoredForm::Interleaved { num_heads: 2 }),
            named("model.layers.1.self_attn.q_proj.weight", StoredForm::Interleaved { num_heads: 4 }),
        ];
        assert_eq!(found, expected);
        for (architecture, meant) in
            [("gemma3", "pre_feedforward_layernorm"), ("qwen2", "post_attention_layernorm")]
        {
            let found = weights(&file(architecture), &["blk.3.ffn_norm.weight", "blk.0.attn_k.bias"]);
            assert_eq!(found[0], plain(&format!("model.layers.3.{meant}.weight")));
            assert_eq!(found[1], plain("model.layers.0.self_attn.k_proj.bias"));
        }
        let unknown =
            ["blk.x.attn_q.weight", "blk.0.other.weight", "weight", "blk.0.attn_q.scales", "a.weight"];
        assert_eq!(weights(&file("llama"), &unknown), vec![None; unknown.len()]);
    }

    /// The norm behind the attention in one architecture is that before the MLP in another.
    #[test]
    fn one_name_means_what_its_architecture_means_by_it() {
        let names = ["blk.0.post_attention_norm.weight", "blk.0.ffn_up.weight"];
        for (architecture, norm, up) in [
            ("glm4", Some("post_self_attn_layernorm"), "mlp.gate_up_proj"),
            ("seed_oss", Some("post_attention_layernorm"), "mlp.up_proj"),
            ("olmo2", Some("post_attention_layernorm"), "mlp.up_proj"),
            ("qwen3", None, "mlp.up_proj"),
        ] {
            let found = weights(&file(architecture), &names);
            let norm = norm.and_then(|norm| plain(&format!("model.layers.0.{norm}.weight")));
            assert_eq!(found, [norm, plain(&format!("model.layers.0.{up}.weight"))], "{architecture}");
        }
    }

    #[test]
    fn an_architectures_last_row_is_for_all_its_other_files() {
        for (index, row) in ARCHITECTURES.iter().enumerate() {
            let is_last = !ARCHITECTURES[index + 1..].iter().any(|later| later.name == row.name);
            assert_eq!(row.when == When::Always, is_last, "{}", row.name);
            for (_, meant) in row.aliases {
                let is_known = PARTS.iter().any(|(part, _)| part == meant) || *meant == "output_norm";
                assert!(is_known, "{}: {meant}", row.name);
            }
        }
    }
}
