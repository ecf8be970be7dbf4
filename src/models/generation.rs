//! How a model's authors would sample from it: `generation_config.json`, or a GGUF file's metadata.
//!
//! Owns reading them, and that no setting is passed over. What wins over them (flags, requests) and which
//! tokens end an answer are decided elsewhere.

mod known;

use std::{cell::RefCell, path::Path};

use serde_json::{Map, Value, json};

use super::{
    config::{ConfigError, Fields, MAX_FILE_BYTES},
    gguf::{GgufHeader, GgufValue},
};
use crate::small_file;

/// What a model's authors would sample with; absent where they are silent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GenerationDefaults {
    pub max_new_tokens: Option<u32>,
    /// 0 (greedy) unless the file asks for sampling.
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
}

/// What a file says about sampling.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    pub defaults: GenerationDefaults,
    /// Settings that are not acted on, or not known.
    pub warnings: Vec<String>,
}

/// Reads the file in a model folder; a folder without one has no defaults.
///
/// As in transformers, temperature and filters count only where `do_sample` is true.
pub fn read_generation_config(folder: &Path) -> Result<GenerationConfig, ConfigError> {
    let path = folder.join("generation_config.json");
    let shown = path.display().to_string();
    let text = match small_file::read_text(&path, MAX_FILE_BYTES) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(GenerationConfig::default());
        }
        Err(source) => return Err(ConfigError::Read { path: shown, source }),
    };
    let value: Value = crate::json::parse_python(&text)
        .map_err(|source| ConfigError::Json { path: shown.clone(), source })?;
    parse(&value, &shown).map_err(|reason| ConfigError::Invalid { path: shown, reason })
}

/// What GGUF keys of sampling begin with.
const GGUF_PREFIX: &str = "general.sampling.";

/// Reads a GGUF file's metadata about sampling, which llama.cpp takes for defaults.
pub fn read_gguf_generation(header: &GgufHeader) -> Result<GenerationConfig, ConfigError> {
    let path = header.path().display().to_string();
    let settings: Map<String, Value> = header
        .metadata()
        .filter_map(|(key, value)| Some((key.strip_prefix(GGUF_PREFIX)?.to_owned(), value)))
        .map(|(name, value)| match value {
            GgufValue::Unsigned(number) => (name, json!(number)),
            GgufValue::Signed(number) => (name, json!(number)),
            GgufValue::Float(number) => (name, json!(number)),
            GgufValue::String(text) => (name, json!(text)),
            other => (name, json!(format!("{other:?}"))),
        })
        .collect();
    parse_gguf(&settings, &path).map_err(|reason| ConfigError::Invalid { path, reason })
}

fn parse(value: &Value, path: &str) -> Result<GenerationConfig, String> {
    let map = value.as_object().ok_or("is not a JSON object")?;
    let unread = RefCell::default();
    let fields = Fields::of_file(map, &unread);
    let max_new_tokens = whole(&fields, "max_new_tokens")?.filter(|&tokens| tokens > 0);
    let defaults = if fields.get("do_sample").and_then(Value::as_bool).unwrap_or(false) {
        GenerationDefaults {
            max_new_tokens,
            temperature: Some(number(&fields, "temperature", 0.0, 100.0)?.unwrap_or(1.0)),
            ..filters(&fields)?
        }
    } else {
        GenerationDefaults { max_new_tokens, temperature: Some(0.0), ..GenerationDefaults::default() }
    };
    fields.account(&[known::GENERATION_CONFIG])?;
    Ok(GenerationConfig { defaults, warnings: unread.into_inner().warnings(path) })
}

fn parse_gguf(settings: &Map<String, Value>, path: &str) -> Result<GenerationConfig, String> {
    let unread = RefCell::default();
    let fields = Fields::of_file(settings, &unread);
    let defaults =
        GenerationDefaults { temperature: number(&fields, "temp", 0.0, 100.0)?, ..filters(&fields)? };
    fields.account(&[known::GGUF_SAMPLING])?;
    Ok(GenerationConfig { defaults, warnings: unread.into_inner().warnings(path) })
}

fn filters(fields: &Fields) -> Result<GenerationDefaults, String> {
    Ok(GenerationDefaults {
        top_p: number(fields, "top_p", 0.0, 1.0)?.filter(|&top_p| top_p > 0.0),
        top_k: whole(fields, "top_k")?,
        min_p: number(fields, "min_p", 0.0, 1.0)?,
        ..GenerationDefaults::default()
    })
}

fn whole(fields: &Fields, name: &str) -> Result<Option<u32>, String> {
    match fields.get(name) {
        None => Ok(None),
        Some(value) => match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("'{name}' must be a whole number, got {value}")),
        },
    }
}

fn number(fields: &Fields, name: &str, min: f64, max: f64) -> Result<Option<f32>, String> {
    match fields.get(name) {
        None => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) if number >= min && number <= max => Ok(Some(number as f32)),
            _ => Err(format!("'{name}' must be a number from {min} to {max}, got {value}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{
        gguf::testing::GgufFile,
        known_keys::{Effect, KeyRule, Plain},
    };

    fn defaults(value: &Value) -> Result<GenerationDefaults, String> {
        parse(value, "generation_config.json").map(|config| config.defaults)
    }

    #[test]
    fn filters_count_only_where_the_file_asks_for_sampling() {
        let sampling =
            json!({"do_sample": true, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_new_tokens": 99});
        let found = defaults(&sampling).unwrap();
        assert_eq!(
            found,
            GenerationDefaults {
                max_new_tokens: Some(99),
                temperature: Some(0.6),
                top_p: Some(0.95),
                top_k: Some(20),
                min_p: None
            }
        );
        let greedy = defaults(&json!({"temperature": 0.6, "top_k": 20})).unwrap();
        assert_eq!((greedy.temperature, greedy.top_k), (Some(0.0), None));
    }

    #[test]
    fn bad_values_name_the_field() {
        for (field, value) in [("top_p", json!(2)), ("top_k", json!(-1)), ("temperature", json!("hot"))] {
            let mut config = json!({"do_sample": true});
            config[field] = value;
            assert!(defaults(&config).unwrap_err().contains(field));
        }
        assert!(read_generation_config(Path::new("no-such-folder")).unwrap() == GenerationConfig::default());
    }

    /// Qwen's files carry a penalty of 1.05, which was passed over: the publisher's own answers have it.
    #[test]
    fn a_setting_that_is_not_acted_on_is_named_with_its_value_once() {
        let file = json!({"bos_token_id": 151643, "do_sample": true, "eos_token_id": [151645, 151643],
            "pad_token_id": 151643, "repetition_penalty": 1.05, "temperature": 0.7, "top_k": 20, "top_p": 0.8,
            "no_repeat_ngram_size": 0, "transformers_version": "4.37.0"});
        let found = parse(&file, "generation_config.json").unwrap();
        assert_eq!(found.warnings.len(), 1, "{:?}", found.warnings);
        assert!(found.warnings[0].contains("'repetition_penalty' = 1.05"), "{}", found.warnings[0]);
        let harmless =
            json!({"repetition_penalty": 1.0, "num_beams": 1, "suppress_tokens": [], "min_length": 0});
        assert_eq!(parse(&harmless, "g").unwrap().warnings, Vec::<String>::new());
        let unknown = parse(&json!({"new_setting": 1}), "g").unwrap().warnings.concat();
        assert!(unknown.contains("'new_setting'"), "{unknown}");
    }

    /// Each key of a table, in a file that asks for sampling and in one that does not.
    fn check_table(table: &[KeyRule], parse: impl Fn(&Value) -> Result<GenerationConfig, String>) {
        let usual = parse(&json!({})).unwrap();
        for rule in table {
            let key = rule.key.replace('*', "anything");
            let of = |value: Value| parse(&json!({&key: value})).unwrap();
            match rule.effect {
                Effect::ReadBy(_) | Effect::Nothing(_) => {
                    assert!(
                        [json!(3), json!("x"), json!([])].map(of).iter().all(|found| *found == usual),
                        "{key}"
                    );
                }
                Effect::ErrorUnless(..) => {
                    panic!("{key}: a model that samples otherwise is still worth having")
                }
                Effect::WarningUnless(neutral, what) => {
                    for plain in neutral {
                        let value = match *plain {
                            Plain::Bool(flag) => json!(flag),
                            Plain::Number(number) => json!(number),
                            Plain::Text(text) => json!(text),
                            Plain::Empty => json!([]),
                        };
                        assert_eq!(of(value), usual, "{key}");
                    }
                    let found = of(json!(123.5));
                    assert_eq!((found.defaults, found.warnings.len()), (usual.defaults, 1), "{key}");
                    let warning = &found.warnings[0];
                    assert!(
                        warning.contains(&format!("'{key}' = 123.5")) && warning.contains(what),
                        "{warning}"
                    );
                }
            }
        }
    }

    #[test]
    fn each_known_setting_is_read_harmless_or_named() {
        check_table(known::GENERATION_CONFIG, |value| parse(value, "g"));
        check_table(known::GGUF_SAMPLING, |value| parse_gguf(value.as_object().expect("an object"), "g"));
        let usual = defaults(&json!({"do_sample": true})).unwrap();
        for (key, value) in [("temperature", 0.5), ("top_p", 0.5), ("min_p", 0.5), ("top_k", 5.0)] {
            let value = if key == "top_k" { json!(5) } else { json!(value) };
            assert_ne!(defaults(&json!({"do_sample": true, key: value})).unwrap(), usual, "{key}");
        }
        assert_ne!(defaults(&json!({"do_sample": true, "max_new_tokens": 5})).unwrap(), usual);
        assert_ne!(defaults(&json!({"do_sample": false})).unwrap(), usual);
    }

    #[test]
    fn gguf_files_may_have_settings_too() {
        let header = GgufFile::default()
            .raw("general.sampling.temp", 6, &0.6f32.to_le_bytes())
            .raw("general.sampling.top_p", 6, &0.95f32.to_le_bytes())
            .raw("general.sampling.top_k", 5, &20i32.to_le_bytes())
            .raw("general.sampling.penalty_repeat", 6, &1.1f32.to_le_bytes())
            .header();
        let found = read_gguf_generation(&header).unwrap();
        let expected = GenerationDefaults {
            temperature: Some(0.6),
            top_p: Some(0.95),
            top_k: Some(20),
            ..GenerationDefaults::default()
        };
        assert_eq!(found.defaults, expected);
        assert!(found.warnings.concat().contains("'penalty_repeat' = 1.1"), "{:?}", found.warnings);
        assert_eq!(read_gguf_generation(&GgufFile::default().header()).unwrap(), GenerationConfig::default());
    }
}
