//! One request on its way through the engine.
//!
//! Owns how far a sequence is and what it can do next. Which sequences run in a pass is the
//! scheduler's business, what of it is stored `prefixes`'; a finished sequence is simply gone from
//! the engine's lists.

use std::ops::Range;

use super::prefixes::Hold;
use super::{Event, FinishReason, GenerationRequest, Group, Input, RequestId, SequenceId, Stored, TokenId};

/// How far a sequence's *launched* work is; what is collected lags behind by up to two passes.
///
/// A prompt's last token is no part of its prefill: it is the first decode step's input. So what is
/// computed in chunks does not depend on how much of it was stored already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// In line; owns no row and no KV.
    Waiting,
    /// The first `position` prompt tokens are launched or were stored, and some are left to prefill.
    Prefilling { position: usize },
    /// All of the prompt but its last token is launched, and `num_sampled` decode steps.
    Decoding { num_sampled: usize },
    /// Every token it may have is launched. It owns neither row nor KV and only waits to have its
    /// last tokens collected.
    Draining,
}

/// A sequence's work in one pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Work {
    /// Computes the KV of these prompt positions.
    Prefill(Range<usize>),
    /// Computes the prompt's last token or the token sampled last, for the next one.
    Decode,
}

/// The counts by which the scheduler judges a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    /// Prompt tokens to prefill: all but the last.
    pub num_prefill_tokens: usize,
    /// The next position at which its plan cuts the prompt.
    pub next_cut: usize,
    /// KV positions it may come to own, less what it shares with others. Checked to fit when the
    /// request was submitted.
    pub max_kv_tokens: usize,
    pub state: State,
}

impl Counts {
    /// Whether it owns a row of the batch and KV.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Prefilling { .. } | State::Decoding { .. })
    }

    /// The next work of a sequence whose prompt is cut at the multiples of `prefill_chunk` and
    /// where its plan says.
    ///
    /// The cuts depend on nothing but prompt and plan: two runs that batch it differently compute
    /// the same shapes and so round alike.
    pub fn next_work(&self, prefill_chunk: usize) -> Option<Work> {
        match self.state {
            State::Prefilling { position } => {
                let multiple = (position / prefill_chunk + 1).saturating_mul(prefill_chunk);
                let end = multiple.min(self.next_cut).min(self.num_prefill_tokens);
                Some(Work::Prefill(position..end))
            }
            State::Decoding { .. } => Some(Work::Decode),
            State::Waiting | State::Draining => None,
        }
    }
}

/// A request and its progress.
#[derive(Debug)]
pub(super) struct Sequence {
    pub id: SequenceId,
    pub request: GenerationRequest,
    pub state: State,
    pub hold: Hold,
    /// Prompt tokens that were not computed because their KV was there already.
    pub num_cached_tokens: usize,
    /// New tokens collected so far, an end token included.
    pub new_tokens: Vec<TokenId>,
    /// Its KV after the path, taken out of the runner before its tokens are known: the KV and the
    /// position where it ends.
    pub rest: Option<(Stored, usize)>,
}

impl Sequence {
    pub fn new(id: SequenceId, request: GenerationRequest) -> Self {
        Sequence {
            id,
            request,
            state: State::Waiting,
            hold: Hold::default(),
            num_cached_tokens: 0,
            new_tokens: Vec::new(),
            rest: None,
        }
    }

    pub fn request_id(&self) -> RequestId {
        self.request.id
    }

    pub fn num_prefill_tokens(&self) -> usize {
        self.request.prompt.len() - 1
    }

    pub fn counts(&self) -> Counts {
        let position = match self.state {
            State::Prefilling { position } => position,
            _ => 0,
        };
        let cuts = &self.request.plan.cuts;
        let next_cut = cuts.iter().map(|cut| cut.position).find(|&cut| cut > position);
        // The last new token is never fed back, so it needs no KV.
        let max_kv_tokens = self.request.prompt.len().saturating_add(self.request.max_new_tokens - 1);
        Counts {
            num_prefill_tokens: self.num_prefill_tokens(),
            next_cut: next_cut.unwrap_or(usize::MAX),
            max_kv_tokens: max_kv_tokens - self.num_cached_tokens,
            state: self.state,
        }
    }

    /// Enters the running batch with its first `num_cached_tokens` tokens stored already.
    pub fn enter(&mut self, num_cached_tokens: usize) {
        self.num_cached_tokens = num_cached_tokens;
        self.state = self.after_prefill_of(num_cached_tokens);
    }

    fn after_prefill_of(&self, position: usize) -> State {
        if position < self.num_prefill_tokens() {
            State::Prefilling { position }
        } else {
            State::Decoding { num_sampled: 0 }
        }
    }

    /// Describes `work` to the runner.
    pub fn group(&self, work: &Work) -> Group {
        let prompt = &self.request.prompt;
        let (input, start, sample) = match (work, self.state) {
            (Work::Prefill(range), _) => (Input::Prompt(prompt[range.clone()].to_vec()), range.start, None),
            (Work::Decode, State::Decoding { num_sampled }) => {
                let start = self.num_prefill_tokens() + num_sampled;
                let input = if num_sampled == 0 { Input::Last(prompt[start]) } else { Input::Sampled };
                (input, start, Some(self.request.sampling.clone()))
            }
            (Work::Decode, state) => unreachable!("only a decoding sequence decodes, not {state:?}"),
        };
        Group { sequence: self.id, input, start, sample }
    }

    /// Notes that `work` is launched.
    pub fn advance(&mut self, work: &Work) {
        self.state = match (work, self.state) {
            (Work::Prefill(range), _) => self.after_prefill_of(range.end),
            (Work::Decode, State::Decoding { num_sampled })
                if num_sampled + 1 < self.request.max_new_tokens =>
            {
                State::Decoding { num_sampled: num_sampled + 1 }
            }
            (Work::Decode, _) => State::Draining,
        };
    }

    /// Takes in a collected token: an end token or the last one allowed gives a finish reason.
    pub fn accept(&mut self, token: TokenId) -> Accepted {
        self.new_tokens.push(token);
        let is_end = self.request.end_ids.contains(&token);
        let reason = if is_end {
            Some(FinishReason::Stop)
        } else if self.new_tokens.len() == self.request.max_new_tokens {
            Some(FinishReason::Length)
        } else {
            None
        };
        Accepted { token: (!is_end).then_some(token), reason }
    }

    /// The position up to which its KV is launched and its tokens are known.
    pub fn num_known_tokens(&self) -> usize {
        let launched = match self.state {
            State::Waiting => 0,
            State::Prefilling { position } => position,
            State::Decoding { num_sampled } => self.num_prefill_tokens() + num_sampled,
            State::Draining => self.num_prefill_tokens() + self.request.max_new_tokens,
        };
        launched.min(self.request.prompt.len() + self.new_tokens.len())
    }

    /// Prompt and answer as known, from one position up to another.
    pub fn tokens(&self, range: Range<usize>) -> Vec<TokenId> {
        let all = self.request.prompt.iter().chain(&self.new_tokens);
        all.skip(range.start).take(range.len()).copied().collect()
    }

    pub fn finished(&self, reason: FinishReason) -> Event {
        Event::Finished {
            id: self.request.id,
            reason,
            num_prompt_tokens: self.request.prompt.len(),
            num_cached_tokens: self.num_cached_tokens,
            num_new_tokens: self.new_tokens.len(),
        }
    }
}

/// What a collected token means for its sequence.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    /// The token, unless it ends the answer and is not part of it.
    pub token: Option<TokenId>,
    /// Set when the sequence has ended with this token.
    pub reason: Option<FinishReason>,
}

#[cfg(test)]
mod tests {
    use super::super::fake_runner::greedy;
    use super::super::{Cut, PromptPlan};
    use super::*;
    use crate::cache::Tier;

    fn sequence(num_prompt_tokens: u32, max_new_tokens: usize, cuts: &[usize]) -> Sequence {
        let cut = |&position| Cut { position, tier: Tier::User, users: 0..=0 };
        let request = GenerationRequest {
            id: RequestId(7),
            prompt: (0..num_prompt_tokens).collect(),
            max_new_tokens,
            end_ids: [99].into(),
            sampling: greedy(3),
            plan: PromptPlan { order: 0, cuts: cuts.iter().map(cut).collect() },
        };
        Sequence::new(SequenceId(1), request)
    }

    fn walk(sequence: &mut Sequence) -> Vec<(usize, bool, Work)> {
        let mut seen = Vec::new();
        while let Some(work) = sequence.counts().next_work(4) {
            let group = sequence.group(&work);
            seen.push((group.start, group.sample.is_some(), work.clone()));
            sequence.advance(&work);
        }
        seen
    }

    #[test]
    fn walks_from_waiting_to_draining() {
        let mut sequence = sequence(10, 3, &[]);
        assert_eq!(sequence.counts().next_work(4), None, "it has not entered");
        sequence.enter(0);
        let expected = [
            (0, false, Work::Prefill(0..4)),
            (4, false, Work::Prefill(4..8)),
            (8, false, Work::Prefill(8..9)),
            (9, true, Work::Decode),
            (10, true, Work::Decode),
            (11, true, Work::Decode),
        ];
        assert_eq!(walk(&mut sequence), expected);
        assert_eq!(sequence.state, State::Draining);
        assert!(!sequence.counts().is_running());
        assert_eq!(sequence.counts().max_kv_tokens, 12);
    }

    #[test]
    fn a_plan_adds_cuts_and_what_is_stored_is_left_out() {
        let mut whole = sequence(10, 1, &[3, 6, 9]);
        whole.enter(0);
        let ends = |walked: Vec<(usize, bool, Work)>| {
            walked.into_iter().map(|(start, ..)| start).collect::<Vec<_>>()
        };
        assert_eq!(ends(walk(&mut whole)), [0, 3, 4, 6, 8, 9]);
        let mut rest = sequence(10, 1, &[3, 6, 9]);
        rest.enter(6);
        assert_eq!(ends(walk(&mut rest)), [6, 8, 9]);
        let mut nothing = sequence(10, 1, &[3, 6, 9]);
        nothing.enter(9);
        assert_eq!(nothing.counts().max_kv_tokens, 1);
        assert_eq!(ends(walk(&mut nothing)), [9]);
    }

    #[test]
    fn a_prompt_of_one_token_needs_no_prefill() {
        let mut sequence = sequence(1, 1, &[]);
        sequence.enter(0);
        assert_eq!(walk(&mut sequence), [(0, true, Work::Decode)]);
        assert_eq!(sequence.state, State::Draining);
    }

    #[test]
    fn an_end_token_is_counted_and_not_shown_even_as_the_last_one_allowed() {
        let mut sequence = sequence(2, 2, &[]);
        assert_eq!(sequence.accept(5), Accepted { token: Some(5), reason: None });
        assert_eq!(sequence.accept(99), Accepted { token: None, reason: Some(FinishReason::Stop) });
        assert_eq!(sequence.new_tokens, [5, 99]);
    }

    #[test]
    fn what_is_known_is_what_is_both_launched_and_collected() {
        let mut sequence = sequence(3, 5, &[]);
        sequence.enter(0);
        sequence.advance(&Work::Prefill(0..2));
        assert_eq!(sequence.num_known_tokens(), 2);
        for _ in 0..2 {
            sequence.advance(&Work::Decode);
        }
        assert_eq!(sequence.num_known_tokens(), 3, "two steps are launched, no token is collected");
        sequence.accept(5);
        sequence.accept(6);
        assert_eq!(sequence.num_known_tokens(), 4, "the token 6 is not fed yet");
        assert_eq!(sequence.tokens(1..4), [1, 2, 5]);
    }
}
