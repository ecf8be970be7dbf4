//! `adapter_config.json` as peft writes it.
//!
//! Owns what its keys mean, ranks and alphas by pattern among them. What is known of the keys that are not read is in
//! `known`.

use regex::Regex;

use super::{AdapterKind, Settings, checked_scale, in_layer, known, mlx_lm::names};
use crate::models::config::Fields;

/// More than any matrix has rows.
const MAX_RANK: u64 = 1 << 24;
/// Far more than any model's distinct modules; each is an expression to compile.
const MAX_PATTERNS: usize = 1 << 12;
/// A module's name is short, and so is what matches it.
const MAX_PATTERN_BYTES: usize = 1 << 12;

/// What the configuration says.
#[derive(Debug)]
pub(super) struct PeftSettings {
    kind: AdapterKind,
    rank: usize,
    alpha: f64,
    is_stabilised: bool,
    /// Each with what it matches, in the file's order: the first that matches counts.
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
    /// Ends of the names of the adapted modules, where they are listed.
    targets: Option<Vec<String>>,
    /// Ends of the names of adapted parameters that are no linear layer's.
    parameters: Vec<String>,
    layers: Option<Vec<usize>>,
    /// Modules that are saved whole.
    saved: Vec<String>,
    has_biases: bool,
}

/// Reads it.
pub(super) fn read(fields: &Fields) -> Result<PeftSettings, String> {
    match fields.get("peft_type") {
        Some(kind) if kind == "LORA" => {}
        kind => {
            let shown = kind.map(ToString::to_string).unwrap_or_default();
            return Err(format!("'peft_type' = {shown} is not supported: LORA is, with or without DoRA"));
        }
    }
    let settings = PeftSettings {
        kind: if fields.own_flag("use_dora")? == Some(true) { AdapterKind::Dora } else { AdapterKind::Lora },
        rank: fields.integer("r", None, 1, MAX_RANK)?,
        alpha: f64::from(checked_scale(fields.number("lora_alpha", None)?, "'lora_alpha'")?),
        is_stabilised: fields.own_flag("use_rslora")?.unwrap_or(false),
        ranks: patterns(fields, "rank_pattern", |value| {
            value.as_u64().filter(|rank| (1..=MAX_RANK).contains(rank)).map(|rank| rank as usize)
        })?,
        alphas: patterns(fields, "alpha_pattern", |value| {
            checked_scale(value.as_f64()?, "").ok().map(f64::from)
        })?,
        targets: match fields.get("target_modules") {
            // Expressions and "all-linear" chose among modules of the model that was trained.
            None | Some(serde_json::Value::String(_)) => None,
            Some(value) => Some(names(value).ok_or_else(|| {
                format!("'target_modules' must be a text or a list of modules' names, got {value}")
            })?),
        },
        parameters: match fields.get("target_parameters") {
            None => Vec::new(),
            Some(value) => names(value).ok_or_else(|| {
                format!("'target_parameters' must be a list of parameters' names, got {value}")
            })?,
        },
        layers: match fields.get("layers_to_transform") {
            None => None,
            Some(value) => {
                let number = |value: &serde_json::Value| value.as_u64().map(|layer| layer as usize);
                let listed = value.as_array().map(|list| list.iter().map(number).collect());
                let layers: Option<Vec<usize>> = listed.unwrap_or_else(|| Some(vec![number(value)?]));
                Some(
                    layers.ok_or_else(|| {
                        format!("'layers_to_transform' must be layers' numbers, got {value}")
                    })?,
                )
            }
        },
        saved: match fields.get("modules_to_save") {
            None => Vec::new(),
            Some(value) => names(value)
                .ok_or_else(|| format!("'modules_to_save' must be a list of modules' names, got {value}"))?,
        },
        has_biases: match fields.get("bias") {
            None => false,
            Some(value) => match value.as_str() {
                Some("none") => false,
                Some("all" | "lora_only") => true,
                _ => return Err(format!("'bias' must be none, all or lora_only, got {value}")),
            },
        },
    };
    fields.account(&[known::PEFT])?;
    Ok(settings)
}

/// What an object says by expressions that match the end of a module's name.
fn patterns<T>(
    fields: &Fields,
    name: &str,
    read: impl Fn(&serde_json::Value) -> Option<T>,
) -> Result<Vec<(Regex, T)>, String> {
    let object = match fields.get(name) {
        None => return Ok(Vec::new()),
        Some(serde_json::Value::Object(object)) if object.len() <= MAX_PATTERNS => object,
        Some(_) => return Err(format!("'{name}' must be an object of at most {MAX_PATTERNS} entries")),
    };
    let entry = |(pattern, value): (&String, &serde_json::Value)| {
        if pattern.len() > MAX_PATTERN_BYTES {
            return Err(format!("'{name}' has a pattern of more than {MAX_PATTERN_BYTES} bytes"));
        }
        // As peft does.
        let expression = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
            .map_err(|_| format!("'{name}.{pattern}' is no expression that can be matched"))?;
        let value = read(value)
            .ok_or_else(|| format!("'{name}.{pattern}' must be a number in range, got {value}"))?;
        Ok((expression, value))
    };
    object.iter().map(entry).collect()
}

impl PeftSettings {
    /// Rank and scale of what is at `path`.
    fn sizes_of(&self, path: &str) -> (usize, f32) {
        let rank = self.ranks.iter().find(|(pattern, _)| pattern.is_match(path)).map(|(_, rank)| *rank);
        let rank = rank.unwrap_or(self.rank);
        let alpha = self.alphas.iter().find(|(pattern, _)| pattern.is_match(path)).map(|(_, alpha)| *alpha);
        let alpha = alpha.unwrap_or(self.alpha);
        let divisor = if self.is_stabilised { (rank as f64).sqrt() } else { rank as f64 };
        (rank, (alpha / divisor) as f32)
    }
}

impl Settings for PeftSettings {
    fn kind(&self) -> AdapterKind {
        self.kind
    }

    fn update_of(&self, path: &str) -> Result<(usize, f32), String> {
        if let Some(targets) = &self.targets
            && !targets.iter().any(|target| is_or_ends_with(path, target))
        {
            return Err(format!("'{path}' has an update, and 'target_modules' does not name it"));
        }
        if let (Some(layers), Some((layer, _))) = (&self.layers, in_layer(path))
            && !layers.contains(&layer)
        {
            return Err(format!("'{path}' has an update, and 'layers_to_transform' does not name its layer"));
        }
        Ok(self.sizes_of(path))
    }

    fn update_of_parameter(&self, path: &str) -> Option<Result<(usize, f32), String>> {
        if self.parameters.is_empty() {
            return None;
        }
        Some(match self.parameters.iter().any(|parameter| is_or_ends_with(path, parameter)) {
            true => Ok(self.sizes_of(path)),
            false => Err(format!("'{path}' has an update, and 'target_parameters' does not name it")),
        })
    }

    fn unties(&self, name: &str) -> Result<bool, String> {
        let (module, kind) = name.rsplit_once('.').unwrap_or((name, ""));
        let is_saved = self.saved.iter().any(|saved| is_or_ends_with(module, saved));
        let is_table = ["embed_tokens", "lm_head"].iter().any(|table| is_or_ends_with(module, table));
        // Tables are saved unasked where tokens were added.
        if is_saved || (is_table && kind == "weight") || (self.has_biases && kind == "bias") {
            return Ok(is_saved && is_table);
        }
        Err(format!(
            "'{name}' is no part of a LoRA or DoRA of a linear layer, and neither 'modules_to_save' nor 'bias' speaks \
             of it"
        ))
    }
}

fn is_or_ends_with(path: &str, module: &str) -> bool {
    path.strip_suffix(module).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}
