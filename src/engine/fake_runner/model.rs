//! The fake model: logits are a hash of all tokens before.
//!
//! Owns what the fake runner computes, and nothing of how it is asked.

use crate::engine::{LogitEdits, SamplingParams, TokenId, TokenReport};

/// Tokens that the fake model knows; few, so that end tokens come up.
pub(crate) const VOCAB_SIZE: u32 = 13;

fn mix(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
}

fn hash_of(tokens: &[TokenId], key: u64) -> u64 {
    tokens.iter().fold(mix(0xcbf2_9ce4_8422_2325, key), |hash, &token| mix(hash, u64::from(token) + 1))
}

/// The fake model's token after `tokens`.
pub(crate) fn next_token(tokens: &[TokenId], sampling: &SamplingParams) -> TokenId {
    u32::try_from((hash_of(tokens, sampling.key) >> 7) % u64::from(VOCAB_SIZE)).expect("less than a u32")
}

/// The fake model's logits after `tokens`, of which those of [`next_token`] are the largest.
pub(crate) fn logits(tokens: &[TokenId], sampling: &SamplingParams) -> Vec<f32> {
    let hash = hash_of(tokens, sampling.key);
    let best = next_token(tokens, sampling);
    let logit = |token| {
        let noise = (mix(hash, u64::from(token)) >> 20) % 1000;
        noise as f32 / 250.0 - 2.0 + if token == best { 4.0 } else { 0.0 }
    };
    (0..VOCAB_SIZE).map(logit).collect()
}

/// The token of the largest logit.
pub(crate) fn best(logits: &[f32]) -> TokenId {
    (0..VOCAB_SIZE)
        .rev()
        .max_by(|a, b| logits[*a as usize].total_cmp(&logits[*b as usize]))
        .expect("there are some")
}

/// How probable a token is.
pub(crate) fn report(logits: &[f32], token: TokenId, num_top: u32) -> TokenReport {
    let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
    let log_probability = |logit: f32| (f64::from(logit) - sum.ln()) as f32;
    // A prompt may have tokens that the model does not know.
    let logit = logits.get(token as usize).copied().unwrap_or(-30.0);
    let mut top: Vec<(TokenId, f32)> = (0..).zip(logits.iter().copied().map(log_probability)).collect();
    top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    top.truncate(num_top as usize);
    let rank = logits.iter().filter(|other| **other > logit).count() as u32 + 1;
    TokenReport { token, log_probability: log_probability(logit), rank, top }
}

/// Changes logits as a runner has to where `input` is the token of the step.
pub(super) fn edit(logits: &mut [f32], edits: &LogitEdits, input: TokenId) {
    let num_tokens = logits.len();
    let mut add = |token: TokenId, addend: f32| {
        if (token as usize) < num_tokens {
            logits[token as usize] += addend;
        }
    };
    edits.added.iter().for_each(|(token, addend)| add(*token, *addend));
    edits.banned.iter().for_each(|token| add(*token, f32::NEG_INFINITY));
    let armed = edits.banned_after.iter().filter(|(trigger, _)| *trigger == input);
    armed.for_each(|(_, banned)| add(*banned, f32::NEG_INFINITY));
    let Some(penalties) = &edits.penalties else { return };
    for token in 0..num_tokens as u32 {
        let seen = penalties.seen.iter().find(|seen| seen.token == token);
        let (num_recent, num_new) = seen.map_or((0, 0), |seen| (seen.num_recent, seen.num_new));
        let is_input = token == input;
        let num_new = num_new + u32::from(is_input && penalties.input_is_new);
        let logit = &mut logits[token as usize];
        if num_recent > 0 || is_input {
            *logit = if *logit > 0.0 { *logit / penalties.repetition } else { *logit * penalties.repetition };
        }
        *logit -= penalties.frequency * num_new as f32;
        *logit -= if num_new > 0 { penalties.presence } else { 0.0 };
    }
}
