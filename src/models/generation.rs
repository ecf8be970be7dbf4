//! `generation_config.json`: how a model's authors would sample from it.
//!
//! Owns reading that file. What wins over it (flags, requests) and which tokens end an answer are
//! decided elsewhere.

use std::path::Path;

use serde_json::Value;

use super::config::ConfigError;

/// What a model's generation_config.json says; absent where it is silent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GenerationDefaults {
    pub max_new_tokens: Option<u32>,
    /// 0 (greedy) unless the file asks for sampling.
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
}

/// Reads the file in a model folder; a folder without one has no defaults.
///
/// As in transformers, temperature and filters count only where `do_sample` is true.
pub fn read_generation_config(folder: &Path) -> Result<GenerationDefaults, ConfigError> {
    let path = folder.join("generation_config.json");
    let shown = path.display().to_string();
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(GenerationDefaults::default());
        }
        Err(source) => return Err(ConfigError::Read { path: shown, source }),
    };
    let value: Value =
        serde_json::from_str(&text).map_err(|source| ConfigError::Json { path: shown.clone(), source })?;
    parse(&value).map_err(|reason| ConfigError::Invalid { path: shown, reason })
}

fn parse(value: &Value) -> Result<GenerationDefaults, String> {
    let get = |name: &str| value.get(name).filter(|value| !value.is_null());
    let whole = |name: &str| match get(name) {
        None => Ok(None),
        Some(value) => match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("'{name}' must be a whole number, got {value}")),
        },
    };
    let number = |name: &str, min: f64, max: f64| match get(name) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) if number >= min && number <= max => Ok(Some(number as f32)),
            _ => Err(format!("'{name}' must be a number from {min} to {max}, got {value}")),
        },
    };
    let max_new_tokens = whole("max_new_tokens")?.filter(|&tokens| tokens > 0);
    if !get("do_sample").and_then(Value::as_bool).unwrap_or(false) {
        return Ok(GenerationDefaults {
            max_new_tokens,
            temperature: Some(0.0),
            ..GenerationDefaults::default()
        });
    }
    Ok(GenerationDefaults {
        max_new_tokens,
        temperature: Some(number("temperature", 0.0, 100.0)?.unwrap_or(1.0)),
        top_p: number("top_p", 0.0, 1.0)?.filter(|&top_p| top_p > 0.0),
        top_k: whole("top_k")?,
        min_p: number("min_p", 0.0, 1.0)?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn filters_count_only_where_the_file_asks_for_sampling() {
        let sampling =
            json!({"do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_new_tokens": 99});
        let defaults = parse(&sampling).unwrap();
        assert_eq!(
            defaults,
            GenerationDefaults {
                max_new_tokens: Some(99),
                temperature: Some(0.6),
                top_p: Some(0.95),
                top_k: Some(20),
                min_p: None
            }
        );
        let greedy = parse(&json!({"temperature": 0.6, "top_k": 20})).unwrap();
        assert_eq!((greedy.temperature, greedy.top_k), (Some(0.0), None));
    }

    #[test]
    fn bad_values_name_the_field() {
        for (field, value) in [("top_p", json!(2)), ("top_k", json!(-1)), ("temperature", json!("hot"))] {
            let mut config = json!({"do_sample": true});
            config[field] = value;
            assert!(parse(&config).unwrap_err().contains(field));
        }
        assert!(
            read_generation_config(Path::new("no-such-folder")).unwrap() == GenerationDefaults::default()
        );
    }
}
