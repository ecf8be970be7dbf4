//! Windows of requests: read ahead, planned together, handed to the engine in the plan's order.
//!
//! Owns the requests between the reader and the engine, and their numbers. Memory is bounded by a window's size,
//! however long the input is. The plan itself is `plan`'s, when to read the session's.

use std::collections::VecDeque;

use super::prepare::{PreparedJob, PreparedRequest};
use crate::{
    batch::Outlook,
    cache::{Tier, common_prefix},
    commands::shared_prefixes::SharedPrefixes,
    engine::{Cut, GenerationRequest, PromptPlan, RequestId, TokenId},
    plan::{self, PlanOptions, PlanPrompt, WindowPlan},
    text::{Span, Tokenizer},
};

/// Metadata that a window's requests hold together, beyond which it is run before more is read: 256 bytes
/// for each request of a full window.
const MAX_METADATA_BYTES: usize = 2 << 20;

/// A request that is ready for the engine.
#[derive(Debug)]
pub(super) struct Ready {
    pub seat: Seat,
    pub request: PreparedRequest,
}

/// Which choice of which line a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seat {
    /// The line's place among the output lines.
    pub job: u64,
    pub choice: usize,
}

/// What requests that are read ahead hold together.
#[derive(Debug, Default)]
pub(super) struct WindowSize {
    num_requests: usize,
    num_tokens: usize,
    num_metadata_bytes: usize,
}

impl WindowSize {
    pub(super) fn add(&mut self, job: &PreparedJob) {
        self.num_requests += job.requests.len();
        self.num_tokens += job.requests.iter().map(|request| request.generation.prompt.len()).sum::<usize>();
        // What later turns are made of is held as text: it counts as tokens that take as much memory.
        let num_text_bytes = job.dialogue.as_ref().map_or(0, |dialogue| dialogue.num_bytes());
        self.num_tokens += num_text_bytes / size_of::<TokenId>();
        // Metadata has no length limit of its own, and a window may hold thousands of them.
        let told = job.head.metadata.iter().chain(&job.head.input);
        self.num_metadata_bytes += told.map(|told| told.to_string().len()).sum::<usize>();
    }

    /// Counts a line that cannot be served: what is to be told of it is held, too.
    pub(super) fn add_failed(&mut self) {
        self.num_requests += 1;
    }

    /// Whether no more is to be read before a window of this size has been run.
    pub(super) fn is_full(&self) -> bool {
        plan::window_is_full(self.num_requests, self.num_tokens)
            || self.num_metadata_bytes >= MAX_METADATA_BYTES
    }
}

/// Requests read and not yet submitted.
#[derive(Debug, Default)]
pub(super) struct Windows {
    gathering: Vec<Ready>,
    gathered: WindowSize,
    planned: VecDeque<Ready>,
    /// Requests planned so far: the order of the run goes on from window to window.
    num_planned: u64,
    /// Requests gathered so far: the next one's number.
    num_gathered: u64,
    /// The last window is planned, and nothing stored outlives the run.
    is_last: bool,
    /// Prompt tokens of the windows planned so far, and new tokens at most.
    num_prompt_tokens: u64,
    max_new_tokens: u64,
    /// Distinct prompt tokens of the windows planned so far, and of the turns that followed.
    pub num_unique_tokens: usize,
    /// What they shared.
    pub shared: SharedPrefixes,
}

impl Windows {
    /// Adds a line's requests to the window that is being gathered.
    pub(super) fn gather(&mut self, mut job: PreparedJob) -> PreparedJob {
        self.gathered.add(&job);
        for (choice, mut request) in std::mem::take(&mut job.requests).into_iter().enumerate() {
            request.generation.id = RequestId(self.num_gathered);
            self.num_gathered += 1;
            self.gathering.push(Ready { seat: Seat { job: job.head.index, choice }, request });
        }
        job
    }

    /// Whether the gathered window is to be planned before more is read.
    pub(super) fn is_full(&self) -> bool {
        self.gathered.is_full()
    }

    /// Takes the next request in the plan's order.
    pub(super) fn next(&mut self) -> Option<Ready> {
        self.planned.pop_front()
    }

    /// The requests that are planned and not taken yet.
    pub(super) fn planned(&self) -> impl Iterator<Item = &GenerationRequest> {
        self.planned.iter().map(|ready| &ready.request.generation)
    }

    /// Whether no request is left to be submitted.
    pub(super) fn is_empty(&self) -> bool {
        self.planned.is_empty() && self.gathering.is_empty()
    }

    /// Whether a window is planned and not yet used up.
    pub(super) fn has_planned(&self) -> bool {
        !self.planned.is_empty()
    }

    /// What all windows planned so far come to.
    pub(super) fn outlook(&self) -> Outlook {
        Outlook { num_prompt_tokens: self.num_prompt_tokens, max_new_tokens: self.max_new_tokens }
    }

    /// Plans what has been gathered; nothing may be planned still. Shared prefixes are named by `tokenizer`. `is_last` says that no more will be
    /// gathered, and that nothing stored outlives the run.
    pub(super) fn plan(&mut self, is_last: bool, tokenizer: &Tokenizer) {
        let gathered = std::mem::take(&mut self.gathering);
        self.gathered = WindowSize::default();
        let first_order = self.num_planned;
        self.num_planned += gathered.len() as u64;
        self.is_last = is_last;
        let prompts: Vec<PlanPrompt> = gathered.iter().map(|ready| plan_prompt(&ready.request)).collect();
        let plan = WindowPlan::new(&prompts, &PlanOptions { first_order, ..PlanOptions::default() });
        self.num_prompt_tokens += plan.num_prompt_tokens as u64;
        self.max_new_tokens += prompts.iter().map(|prompt| prompt.max_new_tokens as u64).sum::<u64>();
        self.num_unique_tokens += plan.num_unique_tokens;
        self.shared.add(&plan.largest_shared, |index| prompts[index].tokens, tokenizer);
        let mut gathered: Vec<Option<Ready>> = gathered.into_iter().map(Some).collect();
        for (place, &index) in plan.order.iter().enumerate() {
            let Some(mut ready) = gathered.get_mut(index).and_then(Option::take) else { continue };
            let order = first_order + place as u64;
            ready.request.generation.plan = self.prompt_plan(&ready.request, order, &plan.cuts[index]);
            self.planned.push_back(ready);
        }
    }

    /// Makes a request of a line's next turn, planned alone: `order` is where the run has come to, and
    /// `before` the prompt of the turn before it.
    pub(super) fn next_turn(
        &mut self,
        seat: Seat,
        mut request: PreparedRequest,
        order: u64,
        before: &[TokenId],
    ) -> Ready {
        request.generation.id = RequestId(self.num_gathered);
        self.num_gathered += 1;
        let options = PlanOptions { first_order: order, ..PlanOptions::default() };
        let plan = WindowPlan::new(&[plan_prompt(&request)], &options);
        self.num_unique_tokens += plan.num_unique_tokens - common_prefix(before, &request.generation.prompt);
        request.generation.plan = self.prompt_plan(&request, order, &plan.cuts[0]);
        Ready { seat, request }
    }

    fn prompt_plan(&self, request: &PreparedRequest, order: u64, cuts: &[plan::Cut]) -> PromptPlan {
        let mut start = 0;
        let cuts = cuts.iter().map(|cut| {
            let first = (cut.last_user_order + 1).saturating_sub(cut.num_users as u64);
            let tier = tier_of(&request.spans, start, cut.position);
            start = cut.position;
            Cut { position: cut.position, tier, users: first..=cut.last_user_order }
        });
        let cuts = cuts.collect();
        // The turn behind it needs both prompt and answer.
        let drops_private = self.is_last && !request.generation.answer_recurs.is_awaited();
        PromptPlan { order, cuts, drops_private }
    }
}

fn plan_prompt(request: &PreparedRequest) -> PlanPrompt<'_> {
    let PreparedRequest { generation, boundaries, .. } = request;
    PlanPrompt {
        tokens: &generation.prompt,
        num_reusable: generation.num_reusable(),
        boundaries,
        max_new_tokens: generation.max_new_tokens,
    }
}

/// The most persistent tier of any span that ends among the tokens from `start` to `end`; where none does,
/// that of the span they are part of.
fn tier_of(spans: &[Span], start: usize, end: usize) -> Tier {
    let ends_there = spans.iter().filter(|span| span.end > start && span.end <= end);
    let ending = ends_there.map(|span| span.tier).max();
    let around = || spans.iter().find(|span| span.end >= end).or(spans.last()).map(|span| span.tier);
    ending.or_else(around).unwrap_or(Tier::User)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_has_the_most_persistent_tier_of_what_ends_in_it() {
        let span = |end, tier| Span { end, tier };
        let spans = [span(10, Tier::System), span(20, Tier::User), span(23, Tier::Assistant)];
        let tiers = [(0, 5), (0, 10), (5, 12), (10, 15), (10, 20), (15, 22), (10, 23), (20, 22), (0, 23)]
            .map(|(start, end)| tier_of(&spans, start, end));
        use Tier::{Assistant, System, User};
        // A prompt that several share ends in the answer's header: it was a piece of tier assistant, and
        // went before those that one request has alone.
        assert_eq!(tiers, [System, System, System, User, User, User, User, Assistant, System]);
        assert_eq!(tier_of(&[], 0, 5), User);
    }
}
