//! One request on its way through the engine.
//!
//! Owns how far a sequence is and what it can do next. Which sequences run in a pass is the
//! scheduler's business; a finished sequence is simply gone from the engine's lists.

use std::ops::Range;

use super::{Event, FinishReason, GenerationRequest, Group, Input, RequestId, SequenceId, TokenId};

/// How far a sequence's *launched* work is; what is collected lags behind by up to two passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// In line; owns no row and no KV.
    Waiting,
    /// The first `position` prompt tokens are launched, and some are left.
    Prefilling { position: usize },
    /// The whole prompt is launched, and with it `num_sampled` new tokens; more may follow.
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
    /// Computes the token sampled last, for the next one.
    Decode,
}

/// The counts by which the scheduler judges a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub num_prompt_tokens: usize,
    /// KV positions it may come to own. Checked to fit when the request was submitted.
    pub max_kv_tokens: usize,
    pub state: State,
}

impl Counts {
    /// Whether it owns a row of the batch and KV.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Prefilling { .. } | State::Decoding { .. })
    }

    /// The next work of a sequence whose prompt is cut at the multiples of `prefill_chunk`.
    ///
    /// The cuts depend on nothing but the prompt: two runs that batch it differently compute the
    /// same shapes and so round alike.
    pub fn next_work(&self, prefill_chunk: usize) -> Option<Work> {
        let start = match self.state {
            State::Waiting => 0,
            State::Prefilling { position } => position,
            State::Decoding { .. } => return Some(Work::Decode),
            State::Draining => return None,
        };
        let cut = (start / prefill_chunk + 1).saturating_mul(prefill_chunk);
        Some(Work::Prefill(start..cut.min(self.num_prompt_tokens)))
    }
}

/// A request and its progress.
#[derive(Debug)]
pub(super) struct Sequence {
    pub id: SequenceId,
    pub request: GenerationRequest,
    pub state: State,
    /// Prompt tokens that were not computed because their KV was there already.
    pub num_cached_tokens: usize,
    /// New tokens collected so far, an end token included.
    pub num_new_tokens: usize,
}

impl Sequence {
    pub fn new(id: SequenceId, request: GenerationRequest) -> Self {
        Sequence { id, request, state: State::Waiting, num_cached_tokens: 0, num_new_tokens: 0 }
    }

    pub fn request_id(&self) -> RequestId {
        self.request.id
    }

    pub fn counts(&self) -> Counts {
        let num_prompt_tokens = self.request.prompt.len();
        // The last new token is never fed back, so it needs no KV.
        let max_kv_tokens = num_prompt_tokens.saturating_add(self.request.max_new_tokens - 1);
        Counts { num_prompt_tokens, max_kv_tokens, state: self.state }
    }

    /// Describes `work` to the runner.
    pub fn group(&self, work: &Work) -> Group {
        let sampling = || Some(self.request.sampling.clone());
        let (input, start, sample) = match (work, self.state) {
            (Work::Prefill(range), _) => {
                let ends_prompt = range.end == self.request.prompt.len();
                let tokens = self.request.prompt[range.clone()].to_vec();
                (Input::Prompt(tokens), range.start, if ends_prompt { sampling() } else { None })
            }
            (Work::Decode, State::Decoding { num_sampled }) => {
                (Input::Sampled, self.request.prompt.len() + num_sampled - 1, sampling())
            }
            (Work::Decode, state) => unreachable!("only a decoding sequence decodes, not {state:?}"),
        };
        Group { sequence: self.id, input, start, sample }
    }

    /// Notes that `work` is launched.
    pub fn advance(&mut self, work: &Work) {
        let num_sampled = match (work, self.state) {
            (Work::Prefill(range), _) if range.end < self.request.prompt.len() => {
                self.state = State::Prefilling { position: range.end };
                return;
            }
            (Work::Decode, State::Decoding { num_sampled }) => num_sampled + 1,
            _ => 1,
        };
        self.state = if num_sampled < self.request.max_new_tokens {
            State::Decoding { num_sampled }
        } else {
            State::Draining
        };
    }

    /// Takes in a collected token: an end token or the last one allowed gives a finish reason.
    pub fn accept(&mut self, token: TokenId) -> Accepted {
        self.num_new_tokens += 1;
        let is_end = self.request.end_ids.contains(&token);
        let reason = if is_end {
            Some(FinishReason::Stop)
        } else if self.num_new_tokens == self.request.max_new_tokens {
            Some(FinishReason::Length)
        } else {
            None
        };
        Accepted { token: (!is_end).then_some(token), reason }
    }

    pub fn finished(&self, reason: FinishReason) -> Event {
        Event::Finished {
            id: self.request.id,
            reason,
            num_prompt_tokens: self.request.prompt.len(),
            num_cached_tokens: self.num_cached_tokens,
            num_new_tokens: self.num_new_tokens,
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
    use super::*;

    fn sequence(num_prompt_tokens: u32, max_new_tokens: usize) -> Sequence {
        let prompt = (0..num_prompt_tokens).collect();
        let request = GenerationRequest {
            id: RequestId(7),
            prompt,
            max_new_tokens,
            end_ids: [99].into(),
            sampling: greedy(3),
        };
        Sequence::new(SequenceId(1), request)
    }

    #[test]
    fn walks_from_waiting_to_draining() {
        let mut sequence = sequence(10, 3);
        let mut seen = Vec::new();
        while let Some(work) = sequence.counts().next_work(4) {
            let group = sequence.group(&work);
            seen.push((group.start, group.sample.is_some(), work.clone()));
            sequence.advance(&work);
        }
        assert_eq!(
            seen,
            [
                (0, false, Work::Prefill(0..4)),
                (4, false, Work::Prefill(4..8)),
                (8, true, Work::Prefill(8..10)),
                (10, true, Work::Decode),
                (11, true, Work::Decode),
            ]
        );
        assert_eq!(sequence.state, State::Draining);
        assert!(!sequence.counts().is_running());
        assert_eq!(sequence.counts().max_kv_tokens, 12);
    }

    #[test]
    fn a_single_new_token_needs_no_decoding() {
        let mut sequence = sequence(4, 1);
        sequence.advance(&Work::Prefill(0..4));
        assert_eq!(sequence.state, State::Draining);
    }

    #[test]
    fn a_cut_lies_at_a_multiple_of_the_chunk_wherever_the_prefill_starts() {
        let counts = |position| Counts {
            num_prompt_tokens: 10,
            max_kv_tokens: 10,
            state: State::Prefilling { position },
        };
        assert_eq!(counts(3).next_work(4), Some(Work::Prefill(3..4)));
        assert_eq!(counts(4).next_work(4), Some(Work::Prefill(4..8)));
        assert_eq!(counts(9).next_work(usize::MAX), Some(Work::Prefill(9..10)));
    }

    #[test]
    fn an_end_token_is_counted_and_not_shown_even_as_the_last_one_allowed() {
        let mut sequence = sequence(2, 2);
        assert_eq!(sequence.accept(5), Accepted { token: Some(5), reason: None });
        assert_eq!(sequence.accept(99), Accepted { token: None, reason: Some(FinishReason::Stop) });
        assert_eq!(sequence.num_new_tokens, 2);
    }
}
