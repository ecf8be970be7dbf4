//! llama.cpp's tensor names → the decoder's weight names.
//!
//! Owns the map and which rows llama.cpp's converter permuted. Reading the tensors is `mlx/`'s.

/// What a GGUF tensor is to the decoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GgufWeight {
    /// A weight under this name.
    Named(String),
    /// A query or key projection whose rows are interleaved by pairs within each head (llama.cpp's
    /// `LlamaModel.permute`); the decoder wants each head's two halves.
    Interleaved { name: String, is_query: bool },
    /// Nothing the decoder needs.
    Ignored,
}

/// Says what the tensor `name` (with its `.weight` or `.bias`) is in a file
/// of this architecture; `None` if it is not known.
pub fn gguf_weight(architecture: &str, name: &str) -> Option<GgufWeight> {
    let (stem, suffix) = name.rsplit_once('.')?;
    if !matches!(suffix, "weight" | "bias") {
        return None;
    }
    let named = |path: &str| Some(GgufWeight::Named(format!("{path}.{suffix}")));
    match stem {
        "token_embd" => return named("model.embed_tokens"),
        "output_norm" => return named("model.norm"),
        "output" => return named("lm_head"),
        "rope_freqs" => return Some(GgufWeight::Ignored),
        _ => {}
    }
    let (index, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    let index: usize = index.parse().ok()?;
    let gemma = architecture == "gemma3";
    let path = match part {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_norm" => "input_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "ffn_norm" if gemma => "pre_feedforward_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q_norm" if gemma => "self_attn.q_norm",
        "attn_k_norm" if gemma => "self_attn.k_norm",
        "post_attention_norm" if gemma => "post_attention_layernorm",
        "post_ffw_norm" if gemma => "post_feedforward_layernorm",
        _ => return None,
    };
    let name = format!("model.layers.{index}.{path}.{suffix}");
    Some(match part {
        "attn_q" | "attn_k" if architecture == "llama" => {
            GgufWeight::Interleaved { name, is_query: part == "attn_q" }
        }
        _ => GgufWeight::Named(name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_architecture() {
        let named = |name: &str| Some(GgufWeight::Named(name.to_owned()));
        assert_eq!(gguf_weight("llama", "output_norm.weight"), named("model.norm.weight"));
        assert_eq!(
            gguf_weight("llama", "blk.3.ffn_norm.weight"),
            named("model.layers.3.post_attention_layernorm.weight")
        );
        assert_eq!(
            gguf_weight("gemma3", "blk.3.ffn_norm.weight"),
            named("model.layers.3.pre_feedforward_layernorm.weight")
        );
        assert_eq!(
            gguf_weight("llama", "blk.0.attn_k.bias"),
            Some(GgufWeight::Interleaved {
                name: "model.layers.0.self_attn.k_proj.bias".to_owned(),
                is_query: false
            })
        );
        assert_eq!(gguf_weight("qwen2", "blk.0.attn_k.bias"), named("model.layers.0.self_attn.k_proj.bias"));
        for unknown in ["blk.x.attn_q.weight", "blk.0.other.weight", "weight", "blk.0.attn_q.scales"] {
            assert_eq!(gguf_weight("llama", unknown), None, "{unknown}");
        }
    }
}
