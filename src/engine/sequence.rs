//! One request on its way through the engine.
//!
//! Owns how far a sequence is and what it can do next. Which sequences run in a pass is the
//! scheduler's business, what of it is stored `prefixes`'; a finished sequence is simply gone from
//! the engine's lists.

use std::ops::Range;

use super::edits::{Processing, Tokens};
use super::guiding::Guiding;
use super::hold::{Hold, Piece};
use super::{
    Choice, Event, FinishReason, GenerationRequest, Group, Input, RequestId, Scoring, SequenceId, Stored,
    TokenId, Want,
};
use crate::cache::Match;

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
    /// The next position at which the prompt is cut, by its plan or to be stored.
    pub next_cut: usize,
    /// The last position up to here at which the plan cuts the prompt, 0 if none.
    pub last_cut: usize,
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

    /// The next work of a sequence whose prompt is cut where its plan says, and from there on after every
    /// `prefill_chunk` tokens.
    ///
    /// The cuts depend on nothing but prompt and plan: two runs that batch it differently compute
    /// the same shapes and so round alike.
    pub fn next_work(&self, prefill_chunk: usize) -> Option<Work> {
        match self.state {
            State::Prefilling { position } => {
                let num_chunks = (position - self.last_cut) / prefill_chunk + 1;
                let end = self.last_cut.saturating_add(num_chunks.saturating_mul(prefill_chunk));
                let end = end.min(self.next_cut).min(self.num_prefill_tokens);
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
    /// What memory had of its prompt when that was last looked up.
    pub found: Match,
    /// Prompt tokens that it could resume with from the cache file, in the version of that number.
    pub num_in_file: Option<(u64, usize)>,
    pub hold: Hold,
    /// Prompt tokens that were not computed because their KV was there already.
    pub num_cached_tokens: usize,
    /// New tokens collected so far, an end token included.
    pub new_tokens: Vec<TokenId>,
    /// Its KV after the path, taken out of the runner before its tokens are known: the KV and the
    /// position where it ends.
    pub rest: Option<(Stored, usize)>,
    /// Its processors, if they change anything.
    processing: Option<Box<Processing>>,
    /// Its guide, if it has one.
    guiding: Option<Box<Guiding>>,
}

impl Sequence {
    pub fn new(id: SequenceId, request: GenerationRequest) -> Self {
        let GenerationRequest { processors, end_ids, guide, .. } = &request;
        let guiding = guide.clone().map(|pattern| Guiding::new(pattern, end_ids, processors.min_new_tokens));
        let mut processors = processors.clone();
        if guiding.is_some() {
            // It bans end tokens itself: it knows when the answer must end.
            processors.min_new_tokens = 0;
        }
        Sequence {
            id,
            processing: Processing::of(&processors, end_ids).map(Box::new),
            guiding: guiding.map(Box::new),
            request,
            state: State::Waiting,
            found: Match::default(),
            num_in_file: None,
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
        let num_passed = cuts.partition_point(|cut| cut.position <= position);
        let planned = cuts.get(num_passed).map(|cut| cut.position);
        let next_cut = planned.into_iter().chain(self.hold.next_due().map(|(end, _)| end)).min();
        // The last new token is never fed back, so it needs no KV.
        let max_kv_tokens =
            self.request.prompt.len().saturating_add(self.request.max_new_tokens).saturating_sub(1);
        Counts {
            num_prefill_tokens: self.num_prefill_tokens(),
            next_cut: next_cut.unwrap_or(usize::MAX),
            last_cut: cuts[..num_passed].last().map_or(0, |cut| cut.position),
            max_kv_tokens: max_kv_tokens
                - (self.num_cached_tokens - self.hold.num_tokens_as(Piece::TakenOver)),
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
        } else if self.request.max_new_tokens == 0 {
            State::Draining
        } else {
            State::Decoding { num_sampled: 0 }
        }
    }

    /// Describes `work` to the runner.
    pub fn group(&mut self, work: &Work) -> Group {
        let prompt = &self.request.prompt;
        let (input, start, want) = match (work, self.state) {
            (Work::Prefill(range), _) => {
                (Input::Prompt(prompt[range.clone()].to_vec()), range.start, self.scoring_of(range))
            }
            (Work::Decode, State::Decoding { num_sampled }) => {
                let start = self.num_prefill_tokens() + num_sampled;
                let input = if num_sampled == 0 { Input::Last(prompt[start]) } else { Input::Sampled };
                (input, start, Want::Token(self.choice(start)))
            }
            (Work::Decode, state) => unreachable!("only a decoding sequence decodes, not {state:?}"),
        };
        Group { sequence: self.id, input, start, want }
    }

    /// Which tokens are scored with a chunk of the prompt: those that follow its positions.
    fn scoring_of(&self, chunk: &Range<usize>) -> Want {
        let Some(score) = &self.request.score else { return Want::Nothing };
        let targets = &self.request.prompt[score.from.max(chunk.start + 1).min(chunk.end + 1)..=chunk.end];
        if targets.is_empty() {
            return Want::Nothing;
        }
        Want::Scores(Scoring { targets: targets.to_vec(), num_top: score.num_top })
    }

    /// How the token after position `input` is chosen. All tokens before that one are known.
    fn choice(&mut self, input: usize) -> Choice {
        let request = &self.request;
        let num_prompt_tokens = request.prompt.len();
        let edits = self.processing.as_mut().map(|processing| {
            let (prompt, new) =
                (&request.prompt[..input.min(num_prompt_tokens)], input.saturating_sub(num_prompt_tokens));
            Box::new(processing.edits(num_prompt_tokens, Tokens { prompt, new: &self.new_tokens[..new] }))
        });
        let is_guided = self.guiding.is_some();
        Choice { sampling: request.sampling.clone(), edits, report: request.report, is_guided }
    }

    /// Its guide, with the tokens that it cannot choose next whatever the guide says; all tokens before are
    /// known.
    pub fn guide(&mut self) -> Option<(&mut Guiding, Vec<TokenId>)> {
        let guiding = self.guiding.as_deref_mut()?;
        let tokens = Tokens { prompt: &self.request.prompt, new: &self.new_tokens };
        let banned = self.processing.as_ref().map(|processing| processing.banned(tokens));
        Some((guiding, banned.unwrap_or_default()))
    }

    /// Whether there is anything to compute.
    pub fn has_work(&self) -> bool {
        let num_prompt_tokens = self.request.prompt.len();
        self.request.max_new_tokens > 0
            || self.request.score.is_some_and(|score| score.from < num_prompt_tokens)
    }

    /// Whether the tokens up to this position are all that it was to compute.
    pub fn is_whole_at(&self, position: usize) -> bool {
        self.request.max_new_tokens == 0 && position == self.request.prompt.len()
    }

    /// Whether what it computes behind its prompt may be kept: not where it has not kept the prompt.
    pub fn may_keep_answer(&self) -> bool {
        self.request.num_reusable() == self.num_prefill_tokens()
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

    /// Takes in a collected token: an end token, the last one allowed and one after which a guide has no other
    /// give a finish reason.
    pub fn accept(&mut self, token: TokenId) -> Accepted {
        self.new_tokens.push(token);
        if self.request.end_ids.contains(&token) {
            return Accepted { token: None, reason: Some(FinishReason::Stop), problem: None };
        }
        let is_over = match &mut self.guiding {
            Some(guiding) => guiding.accept(token),
            None => Ok(false),
        };
        let is_full = self.new_tokens.len() == self.request.max_new_tokens;
        let reason = match is_over {
            Ok(true) => Some(FinishReason::Stop),
            Ok(false) => is_full.then_some(FinishReason::Length),
            Err(_) => Some(FinishReason::Stuck),
        };
        Accepted { token: Some(token), reason, problem: is_over.err().map(|error| error.to_string()) }
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

    /// The end token that it has come to.
    fn end_token(&self) -> Option<TokenId> {
        self.new_tokens.last().copied().filter(|token| self.request.end_ids.contains(token))
    }

    pub fn finished(&self, reason: FinishReason) -> Event {
        Event::Finished {
            id: self.request.id,
            reason,
            num_prompt_tokens: self.request.prompt.len(),
            num_cached_tokens: self.num_cached_tokens,
            num_new_tokens: self.new_tokens.len(),
            end_token: self.end_token(),
            end_report: None,
            problem: None,
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
    /// Why it is stuck, where it is.
    pub problem: Option<String>,
}

#[cfg(test)]
mod tests;
