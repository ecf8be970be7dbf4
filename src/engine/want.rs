//! What a request may want beside its next token: processors, reports, scores.
//!
//! Owns these words. They hold no tensors and nothing of one pass: what a single group of rows wants
//! follows from them and is in `runner`. What nobody asks for costs nothing.

use std::sync::Arc;

use super::TokenId;

/// Changes to the logits before a token is chosen; neutral by default.
///
/// They apply in vLLM's order: `logit_bias`, then what may not be chosen (`never`, `min_new_tokens`,
/// `bad_words`), then the repetition, frequency and presence penalties; temperature and filters follow.
#[derive(Debug, Clone, PartialEq)]
pub struct Processors {
    /// Positive. Logits of tokens that prompt or answer have are divided by it where they are above 0, and
    /// multiplied where not; 1 changes nothing.
    pub repetition_penalty: f32,
    /// How many tokens, the last of prompt and answer together, the repetition penalty looks at; all of
    /// them by default.
    pub repetition_window: Option<usize>,
    /// Taken off once from the logits of all tokens that the answer has; 0 changes nothing.
    pub presence_penalty: f32,
    /// Taken off for each time that the answer has the token; 0 changes nothing.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens, finite. A token that is named twice gets both.
    pub logit_bias: Arc<[(TokenId, f32)]>,
    /// The request's `end_ids` cannot be chosen before the answer has so many tokens.
    pub min_new_tokens: usize,
    /// Sequences of tokens that the answer never completes; empty ones say nothing.
    pub bad_words: Arc<[Vec<TokenId>]>,
    /// Tokens that are never chosen.
    pub never: Arc<[TokenId]>,
}

impl Default for Processors {
    fn default() -> Self {
        Self {
            repetition_penalty: 1.0,
            repetition_window: None,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Arc::default(),
            min_new_tokens: 0,
            bad_words: Arc::default(),
            never: Arc::default(),
        }
    }
}

impl Processors {
    /// Whether they change nothing, whatever the tokens are.
    pub fn are_neutral(&self) -> bool {
        !self.has_penalties()
            && self.logit_bias.is_empty()
            && self.min_new_tokens == 0
            && self.bad_words.is_empty()
            && self.never.is_empty()
    }

    /// Whether it matters which tokens there are already.
    pub(super) fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// Wants to know how probable the chosen token is, and what else was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// How many of the most probable tokens are reported, at most [`MAX_TOP`].
    pub num_top: u32,
}

/// Wants to know how probable tokens of the prompt are, given those before them. They are computed even
/// where their KV is stored: what is before position `from - 1` comes from the cache as ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Score {
    /// The first position that is scored, at least 1: nothing comes before position 0.
    pub from: usize,
    /// How many of the most probable tokens are reported at each position, at most [`MAX_TOP`].
    pub num_top: u32,
}

/// Most tokens that are reported as the most probable ones.
pub const MAX_TOP: u32 = 20;

/// How probable a token was, by the log-softmax of the model's logits in float32, before processors,
/// temperature and filters.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenReport {
    pub token: TokenId,
    pub log_probability: f32,
    /// 1 is the most probable token; tokens that are as probable have the same rank.
    pub rank: u32,
    /// The most probable tokens, those first; among equals the lower token.
    pub top: Vec<(TokenId, f32)>,
}
