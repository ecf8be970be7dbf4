//! What a caller hands to the engine and what it hears back.
//!
//! Owns the engine's outside vocabulary: requests, events, finish reasons and the reasons to
//! refuse a request. Text and files are the caller's.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use thiserror::Error;

use super::{Processors, Report, SamplingParams, Score, TokenId, TokenReport};
use crate::cache::Tier;
use crate::guide::Pattern;

/// Names a request to its caller, who chooses the number; unique among unfinished requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// One prompt to be continued.
#[derive(Debug, Clone)]
pub struct GenerationRequest {
    pub id: RequestId,
    /// The whole prompt, at least one token.
    pub prompt: Vec<TokenId>,
    /// Tokens to generate at most; an end token counts. At least one, unless the prompt is scored.
    pub max_new_tokens: usize,
    /// Tokens that end the answer; usually shared by all requests of a run.
    pub end_ids: Arc<[TokenId]>,
    pub sampling: SamplingParams,
    /// Changes to the logits before a token is chosen.
    pub processors: Processors,
    /// What the answer has to be.
    pub guide: Option<Pattern>,
    /// Whether each new token comes with its log-probability.
    pub report: Option<Report>,
    /// Whether the log-probabilities of prompt tokens are wanted.
    pub score: Option<Score>,
    /// Where the prompt is cut for storing, and who else will use the pieces.
    pub plan: PromptPlan,
    /// Whether the answer is worth keeping.
    pub answer_recurs: AnswerRecurs,
}

impl GenerationRequest {
    /// How many of the prompt's tokens may come from the cache and go there. The last one never does: it is
    /// the first decode step's input. Nor does what is needed anew to score the tokens behind it.
    pub fn num_reusable(&self) -> usize {
        num_reusable(self.prompt.len(), self.score.as_ref())
    }

    /// The tokens that may come from the cache and go there.
    pub fn reusable(&self) -> &[TokenId] {
        &self.prompt[..self.num_reusable()]
    }
}

/// How many tokens of a prompt of so many may come from the cache and go there.
pub fn num_reusable(num_prompt_tokens: usize, score: Option<&Score>) -> usize {
    let before_last = num_prompt_tokens.saturating_sub(1);
    score.map_or(before_last, |score| before_last.min(score.from.saturating_sub(1)))
}

/// Whether the tokens of an answer may come again as they are, in the prompt of a later turn. It is asked
/// when the answer has ended and could be kept; by default every answer may.
#[derive(Clone, Default)]
pub struct AnswerRecurs {
    asked: Option<Arc<Recurs>>,
    is_awaited: bool,
}

type Recurs = dyn Fn(&[TokenId]) -> bool + Send + Sync;

impl AnswerRecurs {
    /// Asks `recurs`, which gets the new tokens, an end token included.
    pub fn asking(recurs: impl Fn(&[TokenId]) -> bool + Send + Sync + 'static) -> Self {
        Self { asked: Some(Arc::new(recurs)), is_awaited: false }
    }

    /// Says that the turn behind it is submitted as soon as the answer is there: until it has begun, prompt and
    /// answer are kept as what a planned request uses.
    pub fn awaited(self) -> Self {
        Self { is_awaited: true, ..self }
    }

    /// Whether it is.
    pub fn is_awaited(&self) -> bool {
        self.is_awaited
    }

    pub(super) fn is_true_of(&self, new_tokens: &[TokenId]) -> bool {
        self.asked.as_ref().is_none_or(|recurs| recurs(new_tokens))
    }
}

impl fmt::Debug for AnswerRecurs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when = if self.asked.is_some() { "asks" } else { "always" };
        write!(f, "AnswerRecurs({when}{})", if self.is_awaited { ", awaited" } else { "" })
    }
}

/// What is known beforehand of a prompt among the others of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PromptPlan {
    /// The request's place in the order of the run.
    pub order: u64,
    /// Ascending positions at which the prefill is cut and what is computed is stored.
    pub cuts: Vec<Cut>,
    /// What no planned request shares is not stored, nor is the answer to it: no request will come that is
    /// not planned, and nothing outlives the run. Not for an answer that is awaited. The prefill is cut all the same, so that the same shapes
    /// are computed whatever is known of what comes next.
    pub drops_private: bool,
}

impl PromptPlan {
    /// Whether planned requests beside this one begin with the tokens up to `end`.
    pub(super) fn is_shared_up_to(&self, end: usize) -> bool {
        self.cuts.iter().any(|cut| cut.position >= end && !cut.is_private())
    }
}

/// A position in a prompt at which others part from it or a span of another tier begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    pub position: usize,
    /// Tier of the tokens that end here.
    pub tier: Tier,
    /// Orders of the requests that begin with the tokens up to here; they stand side by side. Where
    /// it is one alone, what ends here is kept only if no other needs the room.
    pub users: RangeInclusive<u64>,
}

impl Cut {
    /// Whether no other planned request begins with the tokens up to here.
    pub(super) fn is_private(&self) -> bool {
        self.users.start() >= self.users.end()
    }
}

/// Why a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model gave an end token, what the answer has to be is complete, or the caller stopped the request.
    Stop,
    /// The request has as many new tokens as it asked for.
    Length,
    /// What the model computed for its next token are no numbers. Its tokens so far are good, but the
    /// answer is not whole.
    NotNumbers,
    /// The answer cannot go on as it has to be, or to find out how takes too much. Its tokens so far are good,
    /// but the answer is not whole.
    Stuck,
    /// The runner failed in a pass that this request was part of. Its tokens so far are good, but
    /// the answer is not whole.
    Error,
}

/// What happened to a request, in the order in which it happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The next token of an answer; never an end token. A step gives a request at most one. It has a report
    /// where the request asked for one.
    Token { id: RequestId, token: TokenId, report: Option<Box<TokenReport>> },
    /// The prompt's tokens from `position` on, one report each: several such events, ascending and without
    /// gaps, before the request's first token.
    Scored { id: RequestId, position: usize, reports: Vec<TokenReport> },
    /// The last event of a request.
    Finished {
        id: RequestId,
        reason: FinishReason,
        num_prompt_tokens: usize,
        /// Prompt tokens whose KV was there already.
        num_cached_tokens: usize,
        /// Tokens the answer took. The end token counts though it is no [`Event::Token`], as in
        /// mlx-lm's generation counters: it was computed, and it used up one of `max_new_tokens`.
        num_new_tokens: usize,
        /// The end token that ended it, where one did.
        end_token: Option<TokenId>,
        /// How probable that token was, where the request asked for a report.
        end_report: Option<Box<TokenReport>>,
        /// Why it is stuck, where it is.
        problem: Option<String>,
    },
}

/// Why a request was refused; nothing of it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SubmitError {
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    #[error("no new tokens are asked for: set max_tokens (--max-tokens) to 1 or more")]
    NoNewTokens,
    #[error(
        "{num_prompt_tokens} prompt tokens and up to {max_new_tokens} new ones cannot fit: the running batch \
         may hold {max_batch_tokens} tokens in all; shorten the prompt, lower max_tokens (--max-tokens), or let the \
         run have more memory (--max-memory)"
    )]
    TooLong { num_prompt_tokens: usize, max_new_tokens: usize, max_batch_tokens: usize },
    #[error("request {} is running already: give each request its own id", .0.0)]
    DuplicateId(RequestId),
    #[error("all {max_waiting} places of the waiting list are taken: step the engine until it has room")]
    QueueFull { max_waiting: usize },
}
