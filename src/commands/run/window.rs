//! Windows of requests: read ahead, planned together, handed to the engine in the plan's order.
//!
//! Owns the requests between the reader and the engine. Memory is bounded by a window's size,
//! however long the input is. The plan itself is `plan`'s, when to read the session's.

use std::collections::VecDeque;

use super::prepare::Prepared;
use crate::{
    batch::RequestHead,
    engine::{Cut, PromptPlan},
    plan::{self, PlanOptions, PlanPrompt, WindowPlan},
    text::Span,
};

/// Metadata that a window's requests hold together, beyond which it is run before more is read.
const MAX_METADATA_BYTES: usize = 1 << 20;

/// A request that is ready for the engine.
#[derive(Debug)]
pub(super) struct Ready {
    pub head: RequestHead,
    pub prepared: Prepared,
}

/// Requests read and not yet submitted.
#[derive(Debug, Default)]
pub(super) struct Windows {
    gathering: Vec<Ready>,
    num_gathered_tokens: usize,
    num_gathered_metadata_bytes: usize,
    planned: VecDeque<Ready>,
    /// Requests planned so far: the order of the run goes on from window to window.
    num_planned: u64,
    /// Distinct prompt tokens of the windows planned so far.
    pub num_unique_tokens: usize,
}

impl Windows {
    /// Adds a request to the window that is being gathered.
    pub(super) fn gather(&mut self, ready: Ready) {
        self.num_gathered_tokens += ready.prepared.generation.prompt.len();
        // Metadata has no length limit of its own, and a window may hold thousands of them.
        let metadata = ready.head.metadata.as_ref();
        self.num_gathered_metadata_bytes += metadata.map_or(0, |metadata| metadata.to_string().len());
        self.gathering.push(ready);
    }

    /// Whether the gathered window is to be planned before more is read.
    pub(super) fn is_full(&self) -> bool {
        plan::window_is_full(self.gathering.len(), self.num_gathered_tokens)
            || self.num_gathered_metadata_bytes >= MAX_METADATA_BYTES
    }

    /// Takes the next request in the plan's order; when none is planned, what has been gathered is
    /// planned. `is_last` says that no more will be, and that nothing stored outlives the run.
    pub(super) fn next(&mut self, is_last: bool) -> Option<Ready> {
        if self.planned.is_empty() {
            self.plan(is_last);
        }
        self.planned.pop_front()
    }

    /// Whether no request is left to be submitted.
    pub(super) fn is_empty(&self) -> bool {
        self.planned.is_empty() && self.gathering.is_empty()
    }

    /// Whether a window is planned and not yet used up.
    pub(super) fn has_planned(&self) -> bool {
        !self.planned.is_empty()
    }

    fn plan(&mut self, is_last: bool) {
        let gathered = std::mem::take(&mut self.gathering);
        self.num_gathered_tokens = 0;
        self.num_gathered_metadata_bytes = 0;
        let first_order = self.num_planned;
        self.num_planned += gathered.len() as u64;
        let prompts: Vec<PlanPrompt> = gathered
            .iter()
            .map(|ready| PlanPrompt {
                tokens: &ready.prepared.generation.prompt,
                boundaries: &ready.prepared.boundaries,
                max_new_tokens: ready.prepared.generation.max_new_tokens,
            })
            .collect();
        let plan = WindowPlan::new(&prompts, &PlanOptions { first_order, ..PlanOptions::default() });
        self.num_unique_tokens += plan.num_unique_tokens;
        let mut gathered: Vec<Option<Ready>> = gathered.into_iter().map(Some).collect();
        for (place, &index) in plan.order.iter().enumerate() {
            let Some(mut ready) = gathered.get_mut(index).and_then(Option::take) else { continue };
            let cuts = plan.cuts[index].iter().map(|cut| {
                let first = (cut.last_user_order + 1).saturating_sub(cut.num_users as u64);
                Cut {
                    position: cut.position,
                    tier: tier_at(&ready.prepared.spans, cut.position),
                    users: first..=cut.last_user_order,
                }
            });
            let cuts = cuts.collect();
            let order = first_order + place as u64;
            ready.prepared.generation.plan = PromptPlan { order, cuts, drops_private: is_last };
            self.planned.push_back(ready);
        }
    }
}

/// Tier of the tokens that end at a position.
fn tier_at(spans: &[Span], position: usize) -> crate::cache::Tier {
    let span = spans.iter().find(|span| span.end >= position).or(spans.last());
    span.map_or(crate::cache::Tier::User, |span| span.tier)
}
