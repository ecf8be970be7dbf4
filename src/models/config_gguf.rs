//! GGUF metadata → [`ModelSpec`].
//!
//! Owns the translation of llama.cpp's keys into the fields of `config.json`, so that both go
//! through the same checks in `config`. What its tensors are called is `gguf_names`' business.

use serde_json::{Map, Value, json};

use super::{
    config::{ConfigError, parse_config},
    gguf::GgufHeader,
    spec::{MixerSpec, ModelSpec, NormWeight},
};

/// Tensor types that MLX's GGUF loader reads.
const READABLE_TYPES: [&str; 9] = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q2_K", "Q4_K", "Q6_K"];

/// Turns a GGUF header into a layer description.
pub fn read_gguf_config(header: &GgufHeader) -> Result<ModelSpec, ConfigError> {
    let path = header.path().display().to_string();
    let invalid = |reason: String| ConfigError::Invalid { path: path.clone(), reason };
    let architecture = header
        .str("general.architecture")
        .ok_or_else(|| invalid("'general.architecture' is missing".to_owned()))?;
    let model_type = match architecture {
        "gemma3" => "gemma3_text",
        "llama" | "qwen2" => architecture,
        other => {
            return Err(invalid(format!(
                "GGUF files of architecture '{other}' are not supported (llama, qwen2 and gemma3 are); \
                 use the model's safetensors folder"
            )));
        }
    };
    if let Some(tensor) =
        header.tensors().iter().find(|tensor| !READABLE_TYPES.contains(&tensor.ggml_type.name()))
    {
        return Err(invalid(format!(
            "tensor '{}' is of type {}, which MLX cannot read (it reads {}); use another quantisation of this model",
            tensor.name,
            tensor.ggml_type.name(),
            READABLE_TYPES.join(", ")
        )));
    }
    let translator = Translator { header, architecture };
    let config = translator.config(model_type);
    let mut spec = parse_config(&config, &path)?;
    if let Some(factors) = translator.frequency_factors().map_err(invalid)? {
        let attention = spec.layers.iter_mut().filter_map(|layer| match &mut layer.mixer {
            MixerSpec::Attention(attention) => Some(attention),
            MixerSpec::Recurrent(_) => None,
        });
        for attention in attention {
            let frequencies = &mut attention.rope.frequencies;
            if frequencies.len() != factors.len() {
                return Err(invalid("'rope_freqs.weight' does not fit the head dimension".to_owned()));
            }
            for (frequency, factor) in frequencies.iter_mut().zip(&factors) {
                *frequency *= factor;
            }
        }
    }
    // llama.cpp's converter has added the one already.
    spec.norm.weight = NormWeight::Factor;
    Ok(spec)
}

struct Translator<'a> {
    header: &'a GgufHeader,
    architecture: &'a str,
}

impl Translator<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn config(&self, model_type: &str) -> Value {
        let header = self.header;
        let mut config = Map::new();
        config.insert("model_type".to_owned(), json!(model_type));
        let integers = [
            ("hidden_size", "embedding_length"),
            ("intermediate_size", "feed_forward_length"),
            ("num_hidden_layers", "block_count"),
            ("num_attention_heads", "attention.head_count"),
            ("num_key_value_heads", "attention.head_count_kv"),
            ("head_dim", "attention.key_length"),
            ("max_position_embeddings", "context_length"),
            ("sliding_window", "attention.sliding_window"),
        ];
        for (field, key) in integers {
            if let Some(number) = header.u64(&self.key(key)) {
                config.insert(field.to_owned(), json!(number));
            }
        }
        // Where absent, there is a KV head for each head.
        if let (None, Some(heads)) = (config.get("num_key_value_heads"), config.get("num_attention_heads")) {
            let heads = heads.clone();
            config.insert("num_key_value_heads".to_owned(), heads);
        }
        let numbers =
            [("rms_norm_eps", "attention.layer_norm_rms_epsilon"), ("rope_theta", "rope.freq_base")];
        for (field, key) in numbers {
            if let Some(number) = header.f32(&self.key(key)) {
                config.insert(field.to_owned(), json!(number));
            }
        }
        let table = header.tensors().iter().find(|tensor| tensor.name == "token_embd.weight");
        let vocabulary = table.and_then(|tensor| tensor.shape.first()).copied();
        if let Some(vocabulary) = vocabulary {
            config.insert("vocab_size".to_owned(), json!(vocabulary));
        }
        let has_head = header.tensors().iter().any(|tensor| tensor.name == "output.weight");
        config.insert("tie_word_embeddings".to_owned(), json!(!has_head));
        if let Some(scaling) = self.rope_scaling() {
            config.insert("rope_scaling".to_owned(), scaling);
        }
        Value::Object(config)
    }

    fn rope_scaling(&self) -> Option<Value> {
        let kind = self.header.str(&self.key("rope.scaling.type"))?;
        if kind == "none" {
            return None;
        }
        let mut scaling = Map::new();
        scaling.insert("type".to_owned(), json!(kind));
        if let Some(factor) = self.header.f32(&self.key("rope.scaling.factor")) {
            scaling.insert("factor".to_owned(), json!(factor));
        }
        if let Some(context) = self.header.u64(&self.key("rope.scaling.original_context_length")) {
            scaling.insert("original_max_position_embeddings".to_owned(), json!(context));
        }
        Some(Value::Object(scaling))
    }

    /// llama3's scaling, which llama.cpp stores as one factor per rotated pair.
    fn frequency_factors(&self) -> Result<Option<Vec<f32>>, String> {
        use std::io::{Read, Seek, SeekFrom};
        let Some(tensor) = self.header.tensors().iter().find(|tensor| tensor.name == "rope_freqs.weight")
        else {
            return Ok(None);
        };
        let unreadable = |reason: String| format!("'rope_freqs.weight' cannot be read: {reason}");
        if tensor.ggml_type.name() != "F32" || tensor.num_bytes > 1 << 20 {
            return Err(unreadable(format!(
                "it is {} bytes of {}",
                tensor.num_bytes,
                tensor.ggml_type.name()
            )));
        }
        let mut file =
            std::fs::File::open(self.header.path()).map_err(|error| unreadable(error.to_string()))?;
        let mut bytes = vec![0; tensor.num_bytes as usize];
        file.seek(SeekFrom::Start(tensor.offset_bytes))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| unreadable(error.to_string()))?;
        let factors: Vec<f32> =
            bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        if factors.iter().any(|factor| !(factor.is_finite() && *factor > 0.0)) {
            return Err(unreadable("a factor is not a positive number".to_owned()));
        }
        Ok(Some(factors))
    }
}
