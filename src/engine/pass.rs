//! A forward pass under way.
//!
//! Owns what has to be remembered of a pass from launch to collection: whose rows it computes, what
//! it counts for, when it began.

use std::time::Instant;

use super::stats::PassTotals;
use super::{Group, Input, Outcome, SequenceId, Want};

/// A pass launched and not yet collected.
pub(super) struct Pass {
    pub rows: Vec<Row>,
    /// Whether its tokens are being chosen, or none of them waits for a guide.
    pub is_chosen: bool,
    pub totals: PassTotals,
    launched: Instant,
}

/// A sequence's part in a pass.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub sequence: SequenceId,
    /// What will be collected of it.
    pub awaits: Awaits,
    pub is_guided: bool,
}

/// What is to come of a sequence's part in a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaits {
    Nothing,
    Token,
    /// Reports on so many prompt tokens from this position on.
    Scores {
        position: usize,
        num_tokens: usize,
    },
}

impl Awaits {
    /// Whether this is what the runner was asked for.
    pub fn is_met_by(self, outcome: &Outcome) -> bool {
        match (self, outcome) {
            (Self::Nothing, Outcome::Nothing) | (Self::Token, Outcome::Token(..)) => true,
            (Self::Scores { num_tokens, .. }, Outcome::Scores(reports)) => reports.len() == num_tokens,
            (_, Outcome::NotNumbers) => self != Self::Nothing,
            _ => false,
        }
    }
}

impl Row {
    fn new(group: &Group) -> Self {
        let awaits = match (&group.want, &group.input) {
            (Want::Nothing, _) => Awaits::Nothing,
            (Want::Token(_), _) => Awaits::Token,
            (Want::Scores(scoring), input) => {
                let num_inputs = if let Input::Prompt(tokens) = input { tokens.len() } else { 1 };
                let num_tokens = scoring.targets.len();
                // The last target stands behind the last input.
                Awaits::Scores { position: group.start + num_inputs + 1 - num_tokens, num_tokens }
            }
        };
        Row { sequence: group.sequence, awaits, is_guided: group.is_guided() }
    }
}

impl Pass {
    /// Describes a pass of these groups that is launched now.
    pub fn new(groups: &[Group]) -> Self {
        let mut totals = PassTotals { num_passes: 1, ..PassTotals::default() };
        for group in groups {
            match &group.input {
                Input::Prompt(tokens) => totals.num_prompt_tokens += tokens.len(),
                Input::Last(_) => {
                    totals.num_decode_rows += 1;
                    totals.num_last_rows += 1;
                }
                Input::Sampled => totals.num_decode_rows += 1,
            }
        }
        let rows: Vec<Row> = groups.iter().map(Row::new).collect();
        let is_chosen = !rows.iter().any(|row| row.is_guided);
        Pass { rows, is_chosen, totals, launched: Instant::now() }
    }

    /// Takes the pass's time now that its tokens are there, and returns the moment.
    ///
    /// Passes overlap; each is given the time from where the one before it was done.
    pub fn note_collected(&mut self, last_collected: Option<Instant>) -> Instant {
        let now = Instant::now();
        let started = last_collected.map_or(self.launched, |last| last.max(self.launched));
        self.totals.time = now.saturating_duration_since(started);
        now
    }
}
