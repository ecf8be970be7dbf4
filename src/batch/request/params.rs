//! The parameters of a request that steer its answer.
//!
//! Owns their names, types and ranges. What applies where a request is silent is decided with
//! [`RequestParams::or`], strongest first: request, flag, the model's generation_config.json.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::super::line_error::RequestError;
use super::fields::{Fields, expected};

/// Generation parameters, each absent where nobody has spoken.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RequestParams {
    pub max_tokens: Option<u32>,
    /// 0 to 2; 0 is greedy.
    pub temperature: Option<f32>,
    /// Above 0, up to 1.
    pub top_p: Option<f32>,
    /// 0 keeps all.
    pub top_k: Option<u32>,
    /// 0 to 1; 0 keeps all.
    pub min_p: Option<f32>,
    pub seed: Option<u64>,
    /// None of them is empty; an empty list means no stops, whatever the flags say.
    pub stop: Option<Vec<String>>,
    /// Whether the tokenizer adds its own tokens, such as BOS; absent: to raw prompts only.
    pub add_special_tokens: Option<bool>,
    /// Whether an answer goes on where the model would end it.
    pub ignore_eos: Option<bool>,
    /// No end token is chosen before the answer has so many tokens.
    pub min_tokens: Option<u32>,
    /// Above 0; 1 changes nothing.
    pub repetition_penalty: Option<f32>,
    /// How many of the last tokens it looks at; all of prompt and answer where nobody has spoken.
    pub repetition_context_size: Option<u32>,
    /// -2 to 2; 0 changes nothing.
    pub presence_penalty: Option<f32>,
    /// -2 to 2; 0 changes nothing.
    pub frequency_penalty: Option<f32>,
    /// Tokens that thinking may have before it is closed.
    pub thinking_budget: Option<u32>,
}

/// Names of the length of the thinking: Qwen's, vLLM's, Anthropic's, llama.cpp's.
const THINKING_BUDGETS: [&str; 5] = [
    "thinking_budget",
    "thinking_token_budget",
    "thinking_budget_tokens",
    "reasoning_budget",
    "max_reasoning_tokens",
];

/// Ranges of penalties, also for the flags.
pub const PENALTY_RANGE: RangeInclusive<f64> = -2.0..=2.0;
pub const REPETITION_PENALTY_RANGE: RangeInclusive<f64> = 0.01..=100.0;

impl RequestParams {
    /// Fills what is absent from `fallback`.
    pub fn or(self, fallback: &Self) -> Self {
        Self {
            max_tokens: self.max_tokens.or(fallback.max_tokens),
            temperature: self.temperature.or(fallback.temperature),
            top_p: self.top_p.or(fallback.top_p),
            top_k: self.top_k.or(fallback.top_k),
            min_p: self.min_p.or(fallback.min_p),
            seed: self.seed.or(fallback.seed),
            stop: self.stop.or_else(|| fallback.stop.clone()),
            add_special_tokens: self.add_special_tokens.or(fallback.add_special_tokens),
            ignore_eos: self.ignore_eos.or(fallback.ignore_eos),
            min_tokens: self.min_tokens.or(fallback.min_tokens),
            repetition_penalty: self.repetition_penalty.or(fallback.repetition_penalty),
            repetition_context_size: self.repetition_context_size.or(fallback.repetition_context_size),
            presence_penalty: self.presence_penalty.or(fallback.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(fallback.frequency_penalty),
            thinking_budget: self.thinking_budget.or(fallback.thinking_budget),
        }
    }

    /// Those that somebody has set, as flags.
    pub fn as_flags(&self) -> Vec<(&'static str, String)> {
        fn told<T: ToString>(name: &'static str, value: Option<T>) -> Option<(&'static str, String)> {
            value.map(|value| (name, value.to_string()))
        }
        let stop = self.stop.as_ref().map(|stop| Value::from(stop.clone()));
        [
            told("--max-tokens", self.max_tokens),
            told("--temperature", self.temperature),
            told("--top-p", self.top_p),
            told("--top-k", self.top_k),
            told("--min-p", self.min_p),
            told("--seed", self.seed),
            told("--stop", stop),
            told("--ignore-eos", self.ignore_eos.filter(|ignores| *ignores)),
            told("--min-tokens", self.min_tokens),
            told("--repetition-penalty", self.repetition_penalty),
            told("--presence-penalty", self.presence_penalty),
            told("--frequency-penalty", self.frequency_penalty),
            told("--thinking-budget", self.thinking_budget),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    pub(super) fn take(fields: &mut Fields) -> Result<Self, RequestError> {
        let mut params = Self {
            max_tokens: take_max_tokens(fields)?,
            temperature: fields.take_number("temperature", 0.0..=2.0)?,
            top_p: fields.take_number("top_p", 0.0..=1.0)?,
            top_k: take_top_k(fields)?,
            min_p: fields.take_number("min_p", 0.0..=1.0)?,
            seed: take_seed(fields)?,
            stop: take_stop(fields)?,
            add_special_tokens: fields.take_bool("add_special_tokens")?,
            ignore_eos: fields.take_bool("ignore_eos")?,
            min_tokens: take_size(fields, "min_tokens", 0)?,
            repetition_penalty: fields.take_number("repetition_penalty", REPETITION_PENALTY_RANGE)?,
            repetition_context_size: take_size(fields, "repetition_context_size", 1)?,
            presence_penalty: fields.take_number("presence_penalty", PENALTY_RANGE)?,
            frequency_penalty: fields.take_number("frequency_penalty", PENALTY_RANGE)?,
            thinking_budget: take_thinking_budget(fields)?,
        };
        // mlx-lm's server has windows for them, too, and clients write out what they have.
        for (name, penalty) in [
            ("presence_context_size", params.presence_penalty),
            ("frequency_context_size", params.frequency_penalty),
        ] {
            if fields.take(name).is_some() && penalty.is_some_and(|penalty| penalty != 0.0) {
                return Err(RequestError::unsupported(
                    name,
                    "the penalty looks at the whole answer; leave it out",
                ));
            }
        }
        // The limit of a small top_p is the most probable token alone: greedy.
        if params.top_p == Some(0.0) {
            params.temperature = Some(0.0);
            params.top_p = None;
        }
        Ok(params)
    }
}

fn take_max_tokens(fields: &mut Fields) -> Result<Option<u32>, RequestError> {
    let range = 0..=i128::from(u32::MAX);
    let old = fields.take_integer("max_tokens", range.clone())?;
    let new = fields.take_integer("max_completion_tokens", range)?;
    if let (Some(old), Some(new)) = (old, new)
        && old != new
    {
        let reason = "differs from `max_completion_tokens`; give one of them";
        return Err(RequestError::invalid("max_tokens", reason));
    }
    Ok(new.or(old).and_then(|num_tokens| u32::try_from(num_tokens).ok()))
}

/// Takes the length of the thinking, under one of the names that programs have for it; -1 is no limit.
fn take_thinking_budget(fields: &mut Fields) -> Result<Option<u32>, RequestError> {
    let mut found: Option<(&str, i128)> = None;
    for name in THINKING_BUDGETS {
        let Some(budget) = fields.take_integer(name, -1..=i128::from(u32::MAX))? else { continue };
        match found {
            Some((first, other)) if other != budget => {
                let reason = format!("differs from `{first}`; give one of them");
                return Err(RequestError::invalid(name, reason));
            }
            _ => found = Some((name, budget)),
        }
    }
    Ok(found.and_then(|(_, budget)| u32::try_from(budget).ok()))
}

fn take_size(fields: &mut Fields, name: &str, least: i128) -> Result<Option<u32>, RequestError> {
    let size = fields.take_integer(name, least..=i128::from(u32::MAX))?;
    Ok(size.and_then(|size| u32::try_from(size).ok()))
}

fn take_top_k(fields: &mut Fields) -> Result<Option<u32>, RequestError> {
    // Some servers write "all" as -1, others as 0.
    let top_k = fields.take_integer("top_k", -1..=i128::from(u32::MAX))?;
    Ok(top_k.map(|top_k| u32::try_from(top_k).unwrap_or(0)))
}

fn take_seed(fields: &mut Fields) -> Result<Option<u64>, RequestError> {
    let seed = fields.take_integer("seed", i128::from(i64::MIN)..=i128::from(u64::MAX))?;
    // Negative seeds are as good as others: their bits are taken as they are.
    Ok(seed.map(|seed| seed as u64))
}

fn take_stop(fields: &mut Fields) -> Result<Option<Vec<String>>, RequestError> {
    let stops = match fields.take("stop") {
        None => return Ok(None),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(values)) => {
            let mut stops = Vec::with_capacity(values.len());
            for (position, value) in values.into_iter().enumerate() {
                match value {
                    Value::String(text) => stops.push(text),
                    other => return Err(expected("a string", &format!("stop[{position}]"), &other)),
                }
            }
            stops
        }
        Some(other) => return Err(expected("a string or a list of strings", "stop", &other)),
    };
    if stops.iter().any(String::is_empty) {
        return Err(RequestError::invalid("stop", "must not be empty: every answer would end at once"));
    }
    Ok(Some(stops))
}
