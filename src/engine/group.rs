//! One sequence's share of a forward pass: what goes in, what is wanted, what comes out.
//!
//! Owns these words of the [`super::Runner`] contract. What a request wants as a whole is in `want`; what a
//! token does to the choice of the next one is in `edits`.

use super::{LogitEdits, Report, SamplingParams, SequenceId, TokenId, TokenReport};

/// Where a group's input tokens come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A prefill chunk: these prompt tokens, at least one.
    Prompt(Vec<TokenId>),
    /// A sequence's first decode step: the last token of its prompt.
    Last(TokenId),
    /// A decode step: the one token that this sequence's previous group sampled. It may still be
    /// on the device, not collected yet.
    Sampled,
}

/// One sequence's share of a forward pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    pub sequence: SequenceId,
    pub input: Input,
    /// Position of the first input token; equals the number of tokens already in the KV.
    pub start: usize,
    pub want: Want,
}

/// What is wanted of a group beside the KV of its tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum Want {
    Nothing,
    /// A token after the group's last position.
    Token(Choice),
    /// How probable given tokens are.
    Scores(Scoring),
}

/// How one token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub sampling: SamplingParams,
    /// Changes to the logits before the choice, where the request has any.
    pub edits: Option<Box<LogitEdits>>,
    /// Whether the token is to come with its log-probability.
    pub report: Option<Report>,
    /// Whether it waits until it is known which tokens may be chosen: [`super::Runner::choose`] says it.
    pub is_guided: bool,
}

impl Group {
    /// Whether its token is chosen among those that a guide allows.
    pub fn is_guided(&self) -> bool {
        matches!(&self.want, Want::Token(choice) if choice.is_guided)
    }
}

/// Tokens whose log-probabilities are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scoring {
    /// What follows the group's last positions, at least one token: the last of them follows the last
    /// position, and so on backwards.
    pub targets: Vec<TokenId>,
    /// How many of the most probable tokens are reported at each position.
    pub num_top: u32,
}

/// What came of a group.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Its KV, and nothing else was wanted.
    Nothing,
    /// The token, with a report where one was wanted.
    Token(TokenId, Option<Box<TokenReport>>),
    /// A report on each target.
    Scores(Vec<TokenReport>),
    /// What the model computed are no numbers, so there is no token or no score. The sequence is released
    /// next, as its KV is worth nothing.
    NotNumbers,
}
