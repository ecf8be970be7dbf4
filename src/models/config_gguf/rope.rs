//! Rotary positions of a GGUF file, as fields of `config.json`.
//!
//! Owns the keys under `rope.` and the tensors of factors, one for each rotated pair. What frequencies follow
//! is `models::rope`'s.

use serde_json::{Map, Value, json};

use super::{
    GgufValue, Translator,
    architectures::{FactorTensors, WindowKeys},
};
use crate::models::{
    rope::RopeScaling,
    spec::{MixerSpec, ModelSpec},
};

/// llama.cpp's base where the file does not say.
const BASE: f32 = 10_000.0;
const SCALED: &str = "rope_freqs.weight";
const SHORT: &str = "rope_factors_short.weight";
const LONG: &str = "rope_factors_long.weight";
/// A factor from which on a pair of Gemma 4 rests.
const REST: f32 = 1e29;
/// A head has fewer pairs by far.
const MAX_FACTORS_BYTES: u64 = 1 << 20;

impl Translator<'_> {
    pub(super) fn rope(&self, config: &mut Map<String, Value>) -> Result<(), String> {
        let base = self.number("rope.freq_base")?.unwrap_or(BASE);
        config.insert("rope_theta".to_owned(), json!(base));
        if self.architecture.rope.factors == FactorTensors::OneOrRest {
            return self.resting_pairs(config, base);
        }
        if let Some(windows) = self.architecture.windows {
            self.base_of_windows(config, windows, base)?;
        }
        let Some(mut scaling) = self.scaling()? else { return Ok(()) };
        let growth = match self.architecture.rope.temperature {
            true => self.number("attention.temperature_scale")?.filter(|beta| *beta != 0.0),
            false => None,
        };
        let field = match growth {
            None => "rope_scaling",
            Some(beta) => {
                scaling["llama_4_scaling_beta"] = json!(beta);
                "rope_parameters"
            }
        };
        config.insert(field.to_owned(), scaling);
        Ok(())
    }

    fn base_of_windows(
        &self,
        config: &mut Map<String, Value>,
        windows: WindowKeys,
        base: f32,
    ) -> Result<(), String> {
        let stated = self.number("rope.freq_base_swa")?;
        match windows.base {
            Some((field, default)) => {
                config.insert(field.to_owned(), json!(stated.unwrap_or(default)));
            }
            None if stated.is_some_and(|stated| stated != base) => {
                return Err(format!(
                    "'{0}.rope.freq_base_swa' and '{0}.rope.freq_base' must be the same: {1} and {base}",
                    self.architecture.name,
                    stated.unwrap_or_default()
                ));
            }
            None => {}
        }
        Ok(())
    }

    /// What stretches or shortens all or some waves.
    fn scaling(&self) -> Result<Option<Value>, String> {
        let kind = match self.value("rope.scaling.type") {
            None => "linear",
            Some((_, GgufValue::String(kind))) => kind,
            Some((key, other)) => return Err(format!("'{key}' must be a text, got {}", super::shown(other))),
        };
        let old_factor = self.number("rope.scale_linear")?;
        let factor = self.number("rope.scaling.factor")?.or(old_factor).filter(|factor| *factor != 0.0);
        let factor = f64::from(factor.unwrap_or(1.0));
        let original_context = self.integer("rope.scaling.original_context_length")?;
        let attention_factor = self.number("rope.scaling.attn_factor")?.map_or(1.0, f64::from);
        if let Some([short, long]) = self.short_and_long()? {
            if !matches!(kind, "none" | "linear" | "longrope") || factor != 1.0 {
                return Err(format!(
                    "'{SHORT}' beside '{0}.rope.scaling.type' {kind} and factor {factor} is not supported",
                    self.architecture.name
                ));
            }
            return Ok(Some(json!({
                "type": "longrope",
                "short_factor": short,
                "long_factor": long,
                "original_max_position_embeddings": original_context,
                "attention_factor": attention_factor,
            })));
        }
        Ok(match kind {
            "none" => None,
            "linear" if factor == 1.0 => None,
            "yarn" => Some(self.yarn(factor, original_context, attention_factor)?),
            _ => Some(json!({"type": kind, "factor": factor})),
        })
    }

    fn yarn(
        &self,
        factor: f64,
        original_context: Option<u64>,
        attention_factor: f64,
    ) -> Result<Value, String> {
        let mut yarn = json!({
            "type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original_context,
            "beta_fast": self.number("rope.scaling.yarn_beta_fast")?,
            "beta_slow": self.number("rope.scaling.yarn_beta_slow")?,
        });
        if !self.architecture.rope.truncates {
            yarn["truncate"] = json!(false);
        }
        let stored = match self.architecture.rope.log_multiplier {
            None => None,
            Some(multiplier) => {
                let stored = self.number("rope.scaling.yarn_log_multiplier")?.filter(|stored| *stored != 0.0);
                stored.map(|stored| (multiplier, round(f64::from(stored) / multiplier.unit)))
            }
        };
        let usual = match stored {
            None => RopeScaling::yarn_attention_factor(factor, None, None),
            Some((multiplier, all_dims)) => {
                let mscale = if multiplier.is_both { all_dims } else { 1.0 };
                yarn["mscale"] = json!(mscale);
                yarn["mscale_all_dim"] = json!(all_dims);
                RopeScaling::yarn_attention_factor(factor, Some(mscale), Some(all_dims))
            }
        };
        // What the configuration stated, and 1 where files are written again that had nothing.
        let stated = self.number("rope.scaling.yarn_attn_factor")?;
        let stated = stated.filter(|stated| *stated != 0.0 && *stated != 1.0).map(f64::from);
        yarn["attention_factor"] = json!(attention_factor * stated.unwrap_or(usual));
        Ok(yarn)
    }

    /// LongRoPE's factors, those for short contexts first.
    fn short_and_long(&self) -> Result<Option<[Vec<f32>; 2]>, String> {
        if self.architecture.rope.factors != FactorTensors::ShortAndLong {
            for name in [SHORT, LONG] {
                if self.has_tensor(name) {
                    return Err(self.unknown_factors(name));
                }
            }
            return Ok(None);
        }
        match (self.factors(SHORT)?, self.factors(LONG)?) {
            (None, None) => Ok(None),
            (Some(short), Some(long)) => Ok(Some([short, long])),
            (None, Some(_)) => Err(format!("'{SHORT}' is missing beside '{LONG}'")),
            (Some(_), None) => Err(format!("'{LONG}' is missing beside '{SHORT}'")),
        }
    }

    fn unknown_factors(&self, name: &str) -> String {
        format!("'{name}' is not known in files of architecture '{}'", self.architecture.name)
    }

    /// Gemma 4's: of layers that see everything the first pairs are rotated, the others rest.
    fn resting_pairs(&self, config: &mut Map<String, Value>, base: f32) -> Result<(), String> {
        let factors = self.factors(SCALED)?.unwrap_or_default();
        let num_rotated = factors.iter().take_while(|factor| **factor == 1.0).count();
        if factors.iter().skip(num_rotated).any(|factor| *factor < REST) {
            return Err(format!("'{SCALED}' has other factors than 1 and such as make a pair rest"));
        }
        let share = match factors.len() {
            0 => 1.0,
            // As in `rotated_share`: two dimensions a pair, and what is cut off is never one.
            num_pairs => ((2 * num_rotated) as f64 + 0.25) / (2 * num_pairs) as f64,
        };
        let sliding_base = self.number("rope.freq_base_swa")?.unwrap_or(BASE);
        config.remove("rope_theta");
        config.insert(
            "rope_parameters".to_owned(),
            json!({
                "full_attention": {"rope_type": "proportional", "rope_theta": base,
                                   "partial_rotary_factor": share.min(1.0)},
                "sliding_attention": {"rope_type": "default", "rope_theta": sliding_base},
            }),
        );
        Ok(())
    }

    /// Applies llama3's scaling, which llama.cpp stores as one factor per rotated pair.
    pub(super) fn scale_frequencies(&self, spec: &mut ModelSpec) -> Result<(), String> {
        match self.architecture.rope.factors {
            FactorTensors::Scaled => {}
            FactorTensors::OneOrRest => return Ok(()),
            FactorTensors::None | FactorTensors::ShortAndLong => {
                return if self.has_tensor(SCALED) { Err(self.unknown_factors(SCALED)) } else { Ok(()) };
            }
        }
        let Some(factors) = self.factors(SCALED)? else { return Ok(()) };
        for layer in &mut spec.layers {
            let Some(MixerSpec::Attention(attention)) = &mut layer.mixer else { continue };
            let Some(rope) = &mut attention.rope else { continue };
            let frequencies = &mut rope.frequencies;
            if frequencies.len() != factors.len() {
                return Err(format!("'{SCALED}' does not fit the head dimension"));
            }
            for (frequency, factor) in frequencies.iter_mut().zip(&factors) {
                *frequency *= factor;
            }
        }
        Ok(())
    }

    /// A tensor of positive factors, if it is there.
    fn factors(&self, name: &str) -> Result<Option<Vec<f32>>, String> {
        use std::io::{Read, Seek, SeekFrom};
        let Some(tensor) = self.header.tensors().iter().find(|tensor| tensor.name == name) else {
            return Ok(None);
        };
        let unreadable = |reason: String| format!("'{name}' cannot be read: {reason}");
        if tensor.ggml_type.name() != "F32" || tensor.num_bytes > MAX_FACTORS_BYTES {
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

/// A number that was rounded to float32, as it was written.
fn round(number: f64) -> f64 {
    (number * 1e6).round() / 1e6
}
