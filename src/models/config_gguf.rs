//! GGUF metadata → [`ModelSpec`].
//!
//! Owns the translation of llama.cpp's keys into the fields of `config.json`, so that both go through the
//! same checks in `config`, what llama.cpp takes where a key is absent or sets by size, and that no key is
//! passed over. What its tensors are called is `gguf_names`' business.

mod known;

use std::{cell::RefCell, collections::BTreeSet};

use serde_json::{Map, Value, json};

use super::{
    config::{ConfigError, ModelConfig, parse_config},
    gguf::{GgufHeader, GgufValue, decoder},
    known_keys::Unread,
    rope::RopeScaling,
    spec::{MixerSpec, ModelSpec, NormWeight},
};

/// Turns a GGUF header into a layer description.
pub fn read_gguf_config(header: &GgufHeader) -> Result<ModelConfig, ConfigError> {
    let path = header.path().display().to_string();
    let invalid = |reason: String| ConfigError::Invalid { path: path.clone(), reason };
    let architecture = header
        .str("general.architecture")
        .ok_or_else(|| invalid("'general.architecture' is missing".to_owned()))?;
    let architecture = Architecture::of(architecture).ok_or_else(|| {
        invalid(format!(
            "GGUF files of architecture '{architecture}' are not supported (llama, qwen2 and gemma3 are); \
             use the model's safetensors folder"
        ))
    })?;
    if let Some(tensor) = header.tensors().iter().find(|tensor| decoder(tensor.ggml_type.code()).is_none()) {
        return Err(ConfigError::Invalid {
            path: header.files()[tensor.file].display().to_string(),
            reason: format!(
                "tensor '{}' is of type {}, which cannot be read; use another quantisation of this model",
                tensor.name,
                tensor.ggml_type.name(),
            ),
        });
    }
    let translator = Translator { header, architecture, asked: RefCell::default() };
    let config = translator.config().map_err(invalid)?;
    let mut spec = parse_config(&config, &path)?;
    translator.scale_frequencies(&mut spec).map_err(invalid)?;
    // llama.cpp's converter has added the one already.
    spec.norm.weight = NormWeight::Factor;
    let warnings = translator.account().map_err(invalid)?.warnings(&path);
    // The types say nothing of the range of what is computed, which may be out of float16's, as Gemma's
    // hidden states are.
    Ok(ModelConfig { spec, stored_dtype: None, warnings })
}

/// The architectures that are served from GGUF files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Architecture {
    Llama,
    Qwen2,
    Gemma3,
}

impl Architecture {
    fn of(name: &str) -> Option<Self> {
        [Self::Llama, Self::Qwen2, Self::Gemma3].into_iter().find(|architecture| architecture.name() == name)
    }

    /// What keys of the metadata begin with.
    fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Gemma3 => "gemma3",
        }
    }

    /// `model_type` of a configuration of the same model.
    fn model_type(self) -> &'static str {
        match self {
            Self::Gemma3 => "gemma3_text",
            _ => self.name(),
        }
    }
}

/// Layers of the one Gemma 3 whose queries are not scaled by the width of a head: 27B.
const GEMMA3_27B_LAYERS: u64 = 62;

struct Translator<'a> {
    header: &'a GgufHeader,
    architecture: Architecture,
    /// Keys that were asked for, there or not.
    asked: RefCell<BTreeSet<String>>,
}

impl Translator<'_> {
    /// The value of a key of this architecture.
    fn value(&self, name: &str) -> Option<(String, &GgufValue)> {
        let key = format!("{}.{name}", self.architecture.name());
        self.asked.borrow_mut().insert(key.clone());
        self.header.value(&key).map(|value| (key, value))
    }

    /// A whole number; llama.cpp may write one for each layer, which have to be the same.
    fn integer(&self, name: &str) -> Result<Option<u64>, String> {
        let whole = |value: &GgufValue| match value {
            GgufValue::Unsigned(number) => Some(*number),
            GgufValue::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        };
        let Some((key, value)) = self.value(name) else { return Ok(None) };
        if let GgufValue::Numbers(numbers) = value {
            let mut numbers = numbers.iter().map(|number| whole(&number));
            let first = numbers.next().flatten();
            return match first {
                Some(_) if numbers.all(|number| number == first) => Ok(first),
                _ => Err(format!("'{key}' differs from layer to layer, which is not supported")),
            };
        }
        whole(value).map(Some).ok_or_else(|| format!("'{key}' must be a whole number, got {value:?}"))
    }

    fn number(&self, name: &str) -> Result<Option<f32>, String> {
        let Some((key, value)) = self.value(name) else { return Ok(None) };
        match value {
            GgufValue::Float(number) => Ok(Some(*number as f32)),
            GgufValue::Unsigned(number) => Ok(Some(*number as f32)),
            GgufValue::Signed(number) => Ok(Some(*number as f32)),
            _ => Err(format!("'{key}' must be a number, got {value:?}")),
        }
    }

    /// The fields of `config.json` that say the same; where keys are absent, what llama.cpp then takes.
    fn config(&self) -> Result<Value, String> {
        let mut config = Map::new();
        let mut put = |field: &str, value: Value| config.insert(field.to_owned(), value);
        put("model_type", json!(self.architecture.model_type()));
        for (field, key) in [
            ("hidden_size", "embedding_length"),
            ("intermediate_size", "feed_forward_length"),
            ("num_hidden_layers", "block_count"),
            ("max_position_embeddings", "context_length"),
        ] {
            if let Some(number) = self.integer(key)? {
                put(field, json!(number));
            }
        }
        if let Some(eps) = self.number("attention.layer_norm_rms_epsilon")? {
            put("rms_norm_eps", json!(eps));
        }
        for (field, key) in [
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ] {
            if let Some(cap) = self.number(key)?.filter(|cap| *cap != 0.0) {
                put(field, json!(cap));
            }
        }
        let table = self.header.tensors().iter().find(|tensor| tensor.name == "token_embd.weight");
        if let Some(vocabulary) = table.and_then(|tensor| tensor.shape.first()) {
            put("vocab_size", json!(vocabulary));
        }
        let has_head = self.header.tensors().iter().any(|tensor| tensor.name == "output.weight");
        put("tie_word_embeddings", json!(!has_head));
        self.heads(&mut config)?;
        self.rope(&mut config)?;
        if self.architecture == Architecture::Gemma3 {
            self.windows(&mut config)?;
        }
        Ok(Value::Object(config))
    }

    fn heads(&self, config: &mut Map<String, Value>) -> Result<(), String> {
        let hidden_size = self.integer("embedding_length")?;
        let num_heads = self.integer("attention.head_count")?;
        let num_kv_heads = self.integer("attention.head_count_kv")?.or(num_heads);
        let even_share = match (hidden_size, num_heads) {
            (Some(hidden_size), Some(num_heads)) => hidden_size.checked_div(num_heads),
            _ => None,
        };
        let head_dim = self.integer("attention.key_length")?.or(even_share);
        for key in ["attention.value_length", "rope.dimension_count"] {
            let found = self.integer(key)?;
            if found.is_some() && found != head_dim {
                return Err(format!(
                    "'{0}.{key}' and '{0}.attention.key_length' must be the same: {1} and {2}",
                    self.architecture.name(),
                    found.unwrap_or_default(),
                    head_dim.unwrap_or_default(),
                ));
            }
        }
        let fields = [
            ("num_attention_heads", num_heads),
            ("num_key_value_heads", num_kv_heads),
            ("head_dim", head_dim),
        ];
        for (field, value) in fields {
            config.extend(value.map(|value| (field.to_owned(), json!(value))));
        }
        if self.architecture == Architecture::Gemma3 {
            let is_27b = self.integer("block_count")? == Some(GEMMA3_27B_LAYERS);
            let scaled_by = if is_27b { even_share } else { head_dim };
            config.extend(scaled_by.map(|dims| ("query_pre_attn_scalar".to_owned(), json!(dims))));
        }
        Ok(())
    }

    fn rope(&self, config: &mut Map<String, Value>) -> Result<(), String> {
        config.insert("rope_theta".to_owned(), json!(self.number("rope.freq_base")?.unwrap_or(10_000.0)));
        let kind = match self.value("rope.scaling.type") {
            None => "linear",
            Some((_, GgufValue::String(kind))) => kind,
            Some((key, other)) => return Err(format!("'{key}' must be a text, got {other:?}")),
        };
        let old_factor = self.number("rope.scale_linear")?;
        let factor = self.number("rope.scaling.factor")?.or(old_factor).filter(|factor| *factor != 0.0);
        let factor = f64::from(factor.unwrap_or(1.0));
        let original_context = self.integer("rope.scaling.original_context_length")?;
        let attention_factor = self.number("rope.scaling.attn_factor")?.map_or(1.0, f64::from);
        let scaling = match kind {
            "none" => return Ok(()),
            "linear" if factor == 1.0 => return Ok(()),
            "yarn" => json!({
                "type": kind,
                "factor": factor,
                "original_max_position_embeddings": original_context,
                "beta_fast": self.number("rope.scaling.yarn_beta_fast")?,
                "beta_slow": self.number("rope.scaling.yarn_beta_slow")?,
                "attention_factor": attention_factor * RopeScaling::yarn_attention_factor(factor, None, None),
            }),
            _ => json!({"type": kind, "factor": factor}),
        };
        config.insert("rope_scaling".to_owned(), scaling);
        Ok(())
    }

    /// Gemma's windows: their pattern is a number or one flag for each layer, and there are none without
    /// a size.
    fn windows(&self, config: &mut Map<String, Value>) -> Result<(), String> {
        let num_layers = self.integer("block_count")?.unwrap_or_default();
        let slides = match self.value("attention.sliding_window_pattern") {
            Some((_, GgufValue::Numbers(flags))) => {
                Some(flags.iter().map(|flag| flag == GgufValue::Bool(true)).collect::<Vec<_>>())
            }
            Some(_) => {
                let period = self.integer("attention.sliding_window_pattern")?;
                config.extend(period.map(|period| ("sliding_window_pattern".to_owned(), json!(period))));
                None
            }
            None => None,
        };
        let window = self.integer("attention.sliding_window")?.filter(|window| *window > 0);
        let slides = match window {
            Some(_) => slides,
            // More layers than any model has are an error by themselves.
            None => Some(vec![false; usize::try_from(num_layers).unwrap_or_default().min(1 << 13)]),
        };
        if window.is_none() {
            config.remove("sliding_window_pattern");
        }
        config.extend(window.map(|window| ("sliding_window".to_owned(), json!(window))));
        if let Some(slides) = slides {
            let name = |slides| if slides { "sliding_attention" } else { "full_attention" };
            config.insert("layer_types".to_owned(), slides.into_iter().map(name).collect());
        }
        let base = self.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
        config.insert("rope_local_base_freq".to_owned(), json!(base));
        Ok(())
    }

    /// Looks at all keys that are not asked for above.
    fn account(&self) -> Result<Unread, String> {
        let mut unread = Unread::default();
        let prefix = format!("{}.", self.architecture.name());
        let asked = self.asked.borrow();
        let (own, general): (Vec<_>, Vec<_>) = self
            .header
            .metadata()
            .filter(|(key, _)| !asked.contains(*key))
            .map(|(key, value)| (key, json_of(value)))
            .partition(|(key, _)| key.starts_with(&prefix));
        let own = own.iter().map(|(key, value)| (&key[prefix.len()..], value));
        unread.account(&prefix, own, |_| false, &[known::ARCHITECTURE])?;
        unread.account("", general.iter().map(|(key, value)| (*key, value)), |_| false, &[known::GENERAL])?;
        Ok(unread)
    }

    /// Applies llama3's scaling, which llama.cpp stores as one factor per rotated pair.
    fn scale_frequencies(&self, spec: &mut ModelSpec) -> Result<(), String> {
        let Some(factors) = self.frequency_factors()? else { return Ok(()) };
        if self.architecture != Architecture::Llama {
            return Err(format!(
                "'rope_freqs.weight' is not known in files of architecture '{}'",
                self.architecture.name()
            ));
        }
        for layer in &mut spec.layers {
            let Some(MixerSpec::Attention(attention)) = &mut layer.mixer else { continue };
            let Some(rope) = &mut attention.rope else { continue };
            let frequencies = &mut rope.frequencies;
            if frequencies.len() != factors.len() {
                return Err("'rope_freqs.weight' does not fit the head dimension".to_owned());
            }
            for (frequency, factor) in frequencies.iter_mut().zip(&factors) {
                *frequency *= factor;
            }
        }
        Ok(())
    }

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
        let mut file = std::fs::File::open(&self.header.files()[tensor.file])
            .map_err(|error| unreadable(error.to_string()))?;
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

/// A value as a table of known keys can look at it: of a list only whether it is empty.
fn json_of(value: &GgufValue) -> Value {
    let list = |num_entries: usize| match num_entries {
        0 => json!([]),
        more => json!(format!("a list of {more}")),
    };
    match value {
        GgufValue::Unsigned(number) => json!(number),
        GgufValue::Signed(number) => json!(number),
        GgufValue::Float(number) => json!(number),
        GgufValue::Bool(flag) => json!(flag),
        GgufValue::String(text) => json!(text),
        GgufValue::Strings(texts) => list(texts.len()),
        GgufValue::Numbers(numbers) => list(numbers.len()),
        GgufValue::Nested(lists) => list(lists.len()),
    }
}

#[cfg(test)]
mod tests;
