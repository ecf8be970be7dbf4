//! Heads and windows of a GGUF file's layers, as fields of `config.json`.
//!
//! Owns the keys that say how many heads there are and how wide, for all layers or one by one, and which
//! layers have a window. Which of these an architecture has is `architectures`' table.

use serde_json::{Map, Value, json};

use super::{GgufValue, Translator, architectures::Heads};

/// More layers than any model has are an error by themselves.
const MAX_LISTED_LAYERS: u64 = 1 << 13;

impl Translator<'_> {
    pub(super) fn heads(&self, config: &mut Map<String, Value>) -> Result<(), String> {
        let num_heads = self.integer("attention.head_count")?;
        put(config, "num_attention_heads", num_heads);
        match self.architecture.heads {
            Heads::Latent => return self.latent_heads(config),
            Heads::TwoSizes => return self.heads_of_two_sizes(config),
            Heads::OrConvolution => self.heads_or_convolutions(config)?,
            Heads::Whole | Heads::Partial | Heads::ScaledByWidth { .. } => {
                put(config, "num_key_value_heads", self.integer("attention.head_count_kv")?.or(num_heads));
            }
        }
        let even_share = match (self.integer("embedding_length")?, num_heads) {
            (Some(hidden_size), Some(num_heads)) => hidden_size.checked_div(num_heads),
            _ => None,
        };
        let head_dim = self.integer("attention.key_length")?.or(even_share);
        put(config, "head_dim", head_dim);
        self.must_be("attention.value_length", head_dim, "attention.key_length")?;
        match self.architecture.heads {
            Heads::Partial => self.rotated_share(config, head_dim)?,
            _ => self.must_be("rope.dimension_count", head_dim, "attention.key_length")?,
        }
        if let Heads::ScaledByWidth { unless_layers } = self.architecture.heads {
            let is_even_share = self.integer("block_count")? == Some(unless_layers);
            put(config, "query_pre_attn_scalar", if is_even_share { even_share } else { head_dim });
        }
        Ok(())
    }

    /// Refuses a key that says something else than another.
    fn must_be(&self, key: &str, meant: Option<u64>, by: &str) -> Result<(), String> {
        let found = self.integer(key)?;
        if found.is_none() || found == meant {
            return Ok(());
        }
        Err(format!(
            "'{0}.{key}' and '{0}.{by}' must be the same: {1} and {2}",
            self.architecture.name,
            found.unwrap_or_default(),
            meant.unwrap_or_default(),
        ))
    }

    /// How many of a head's dimensions are rotated; all where the file is silent.
    fn rotated_share(&self, config: &mut Map<String, Value>, head_dim: Option<u64>) -> Result<(), String> {
        let Some(rotated) =
            self.integer("rope.dimension_count")?.filter(|rotated| Some(*rotated) != head_dim)
        else {
            config.insert("partial_rotary_factor".to_owned(), json!(1.0));
            return Ok(());
        };
        let head_dim = head_dim.unwrap_or_default();
        if rotated == 0 || rotated > head_dim {
            return Err(format!(
                "'{0}.rope.dimension_count' must lie between 1 and '{0}.attention.key_length' ({head_dim}), got \
                 {rotated}",
                self.architecture.name
            ));
        }
        // A quarter more than whole, so that what is cut off the product is never a dimension.
        let share = (rotated as f64 + 0.25) / head_dim as f64;
        config.insert("partial_rotary_factor".to_owned(), json!(share));
        Ok(())
    }

    /// Layers without heads of keys are convolutions.
    fn heads_or_convolutions(&self, config: &mut Map<String, Value>) -> Result<(), String> {
        let mut by_layer = self.integers("attention.head_count_kv")?.unwrap_or_default();
        let num_layers = self.num_layers()?.unwrap_or_default().min(MAX_LISTED_LAYERS) as usize;
        if let [one] = by_layer.as_slice() {
            by_layer = vec![*one; num_layers];
        }
        let mut attending = by_layer.iter().filter(|number| **number > 0);
        let first = attending.next();
        if attending.any(|number| Some(number) != first) {
            return Err(format!(
                "'{}.attention.head_count_kv' differs between layers that attend, which is not supported",
                self.architecture.name
            ));
        }
        put(config, "num_key_value_heads", first.copied());
        let types = by_layer.iter().map(|number| if *number > 0 { "full_attention" } else { "conv" });
        config.insert("layer_types".to_owned(), types.collect());
        Ok(())
    }

    /// Gemma 4's: layers that see everything have heads of their own width and number.
    fn heads_of_two_sizes(&self, config: &mut Map<String, Value>) -> Result<(), String> {
        let (full, sliding) =
            (self.integer("attention.key_length")?, self.integer("attention.key_length_swa")?);
        put(config, "global_head_dim", full);
        put(config, "head_dim", sliding.or(full));
        self.must_be("attention.value_length", full, "attention.key_length")?;
        self.must_be("rope.dimension_count", full, "attention.key_length")?;
        self.must_be("attention.value_length_swa", sliding, "attention.key_length_swa")?;
        self.must_be("rope.dimension_count_swa", sliding, "attention.key_length_swa")?;
        let num_layers = self.num_layers()?.unwrap_or_default().min(MAX_LISTED_LAYERS) as usize;
        let slides = self.slides()?;
        let differs =
            |key: &str| format!("'{}.{key}' differs between layers of one kind", self.architecture.name);
        let key = "attention.head_count_kv";
        if let Some(by_layer) = self.integers(key)? {
            let of = |slide: bool| {
                let number = |layer: usize| by_layer.get(layer).or(by_layer.first()).copied();
                let mut kind = (0..num_layers).filter(|layer| slides.get(*layer) == Some(&slide)).map(number);
                let first = kind.next().flatten();
                kind.all(|number| number == first).then_some(first).ok_or_else(|| differs(key))
            };
            let (full, sliding) = (of(false)?, of(true)?);
            put(config, "num_key_value_heads", sliding.or(full));
            put(config, "num_global_key_value_heads", full);
        }
        let inputs = self.header.tensors().iter().find(|tensor| tensor.name == "per_layer_token_embd.weight");
        put(config, "vocab_size_per_layer_input", inputs.and_then(|inputs| inputs.shape.first().copied()));
        // Layers that make their keys and values of the same numbers have one matrix for both.
        let full_layer = slides.iter().position(|slides| !slides);
        let lacks_values = full_layer.is_some_and(|layer| {
            self.has_tensor(&format!("blk.{layer}.attn_k.weight"))
                && !self.has_tensor(&format!("blk.{layer}.attn_v.weight"))
        });
        config.insert("attention_k_eq_v".to_owned(), json!(lacks_values));
        let key = "feed_forward_length";
        if let Some(widths) = self.integers(key)? {
            let narrow = widths.iter().copied().min();
            let num_own = num_layers as u64
                - self.integer("attention.shared_kv_layers")?.unwrap_or(0).min(num_layers as u64);
            let is_wide = widths.iter().any(|width| Some(*width) != narrow);
            let fits = |(layer, width): (usize, &u64)| {
                *width
                    == narrow.unwrap_or(0).saturating_mul(if is_wide && layer as u64 >= num_own {
                        2
                    } else {
                        1
                    })
            };
            if is_wide && !widths.iter().enumerate().all(fits) {
                return Err(differs(key));
            }
            put(config, "intermediate_size", narrow);
            config.insert("use_double_wide_mlp".to_owned(), json!(is_wide));
        }
        Ok(())
    }

    /// DeepSeek's: what is stored of a token is one latent and what is rotated; older files tell the widths of
    /// the heads that are made of it in place of these.
    fn latent_heads(&self, config: &mut Map<String, Value>) -> Result<(), String> {
        let rank = self.integer("attention.kv_lora_rank")?;
        let rotated = self.integer("rope.dimension_count")?;
        put(config, "kv_lora_rank", rank);
        put(config, "q_lora_rank", self.integer("attention.q_lora_rank")?);
        put(config, "qk_rope_head_dim", rotated);
        let [stored_key, stored_value] =
            [self.integer("attention.key_length")?, self.integer("attention.value_length")?];
        let [key, value] =
            [self.integer("attention.key_length_mla")?, self.integer("attention.value_length_mla")?];
        let (key, value) = match key {
            None => (stored_key, stored_value),
            Some(_) => {
                let stored = rank.zip(rotated).map(|(rank, rotated)| rank.saturating_add(rotated));
                self.must_be("attention.key_length", stored, "attention.kv_lora_rank")?;
                self.must_be("attention.value_length", rank, "attention.kv_lora_rank")?;
                (key, value)
            }
        };
        put(config, "v_head_dim", value);
        put(config, "qk_nope_head_dim", key.zip(rotated).map(|(key, rotated)| key.saturating_sub(rotated)));
        // Of latents there is one head; older files say how many are made of it.
        let num_kv_heads = self.integer("attention.head_count_kv")?;
        if num_kv_heads.is_some_and(|number| number != 1) {
            self.must_be(
                "attention.head_count_kv",
                self.integer("attention.head_count")?,
                "attention.head_count",
            )?;
        }
        Ok(())
    }

    /// Which layers have a window, and how wide; none has where there is no width.
    pub(super) fn windows(&self, config: &mut Map<String, Value>) -> Result<(), String> {
        let Some(keys) = self.architecture.windows else { return Ok(()) };
        let window = self.integer("attention.sliding_window")?.or(keys.default).filter(|window| *window > 0);
        let mut slides = self.slides()?;
        if window.is_none() {
            slides.fill(false);
        }
        put(config, "sliding_window", window);
        let name = |slides| if slides { "sliding_attention" } else { "full_attention" };
        config.insert("layer_types".to_owned(), slides.into_iter().map(name).collect());
        Ok(())
    }

    /// Which layers have a window, if there are any: a flag for each, or all but every so many.
    fn slides(&self) -> Result<Vec<bool>, String> {
        let num_layers = self.num_layers()?.unwrap_or_default().min(MAX_LISTED_LAYERS);
        let pattern = "attention.sliding_window_pattern";
        let period = match self.value(pattern) {
            Some((_, GgufValue::Numbers(flags))) => {
                return Ok(flags.iter().map(|flag| flag == GgufValue::Bool(true)).collect());
            }
            Some(_) => self.integer(pattern)?,
            None => None,
        };
        let default = self.architecture.windows.map_or(0, |keys| keys.period);
        let period = period.unwrap_or(default);
        Ok((1..=num_layers).map(|number| period == 0 || !number.is_multiple_of(period)).collect())
    }
}

fn put(config: &mut Map<String, Value>, field: &str, value: Option<u64>) {
    config.extend(value.map(|value| (field.to_owned(), json!(value))));
}
