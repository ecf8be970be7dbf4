//! A forward pass under way.
//!
//! Owns what has to be remembered of a pass from launch to collection: whose rows it computes, what
//! it counts for, when it began.

use std::time::Instant;

use super::stats::PassTotals;
use super::{Group, Input, SequenceId};

/// A pass launched and not yet collected.
pub(super) struct Pass {
    pub rows: Vec<Row>,
    pub totals: PassTotals,
    launched: Instant,
}

/// A sequence's part in a pass.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub sequence: SequenceId,
    /// Whether a token of it will be collected.
    samples: bool,
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
        let row = |group: &Group| Row { sequence: group.sequence, samples: group.sample.is_some() };
        Pass { rows: groups.iter().map(row).collect(), totals, launched: Instant::now() }
    }

    /// Sequences of the tokens to be collected, in their order.
    pub fn sampling_rows(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.rows.iter().filter(|row| row.samples).map(|row| row.sequence)
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
