//! A line of the input while it is answered: one or more requests of the engine, one record.
//!
//! Owns a job's choices from their first token to the record's fields. The engine knows the requests
//! alone; which of them is which choice is the session's to remember.

use super::prepare::AnswerFormat;
use crate::{
    batch::{Choice, Completion, FinishReason, RequestError, RequestHead, StopReason},
    engine::{RequestId, TokenId},
    text::{Answer, Stopped, TextError, Tokenizer},
};

/// A line that is being answered.
pub(super) struct Job {
    pub head: RequestHead,
    format: AnswerFormat,
    choices: Vec<ChoiceState>,
    num_unfinished: usize,
}

/// One choice, from its submission on.
enum ChoiceState {
    Waiting,
    Running(Box<Running>),
    Finished(Box<Finished>),
}

struct Running {
    id: RequestId,
    answer: Answer,
    /// A stop string has been found.
    stopped: Option<Stopped>,
}

struct Finished {
    choice: Choice,
    counts: Counts,
}

/// What the engine says of a request that ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    pub num_prompt_tokens: usize,
    pub num_cached_tokens: usize,
    pub num_new_tokens: usize,
}

impl Job {
    pub(super) fn new(head: RequestHead, format: AnswerFormat, num_choices: usize) -> Self {
        let choices = (0..num_choices).map(|_| ChoiceState::Waiting).collect();
        Self { head, format, choices, num_unfinished: num_choices }
    }

    /// Notes that a choice runs as this request.
    pub(super) fn begin(&mut self, choice: usize, id: RequestId, tokenizer: &Tokenizer) {
        let answer = Answer::new(tokenizer, &self.format.stops, self.format.shown);
        if let Some(state) = self.choices.get_mut(choice) {
            *state = ChoiceState::Running(Box::new(Running { id, answer, stopped: None }));
        }
    }

    /// The requests that run.
    pub(super) fn running(&self) -> impl Iterator<Item = RequestId> {
        self.choices.iter().filter_map(|choice| match choice {
            ChoiceState::Running(running) => Some(running.id),
            ChoiceState::Waiting | ChoiceState::Finished(_) => None,
        })
    }

    /// Takes the next token of a choice; returns whether a stop string is complete with it.
    pub(super) fn push(&mut self, choice: usize, token: TokenId) -> Result<bool, RequestError> {
        let Some(ChoiceState::Running(running)) = self.choices.get_mut(choice) else { return Ok(false) };
        match running.answer.push(token) {
            Ok(stopped) => {
                let is_stopped = stopped.is_some();
                running.stopped = running.stopped.take().or(stopped);
                Ok(is_stopped)
            }
            // The tokens are no use without their text.
            Err(error) => Err(RequestError::internal(error.to_string())),
        }
    }

    /// Ends a choice; returns the line's completion with the last of them. `ending` is why the engine ended it,
    /// an error where its answer is not whole, unless a stop string is in what came before; `end_token` the token
    /// that did.
    pub(super) fn finish(
        &mut self,
        choice: usize,
        ending: Result<FinishReason, RequestError>,
        end_token: Option<TokenId>,
        counts: Counts,
    ) -> Result<Option<Completion>, RequestError> {
        let Some(state) = self.choices.get_mut(choice) else { return Ok(None) };
        let ChoiceState::Running(running) = std::mem::replace(state, ChoiceState::Waiting) else {
            return Ok(None);
        };
        let Running { mut answer, stopped, .. } = *running;
        let internal = |error: TextError| RequestError::internal(error.to_string());
        if let Some(token) = end_token.filter(|_| self.format.shown.includes_stop) {
            answer.push(token).map_err(internal)?;
        }
        let last = answer.finish().map_err(internal)?;
        let stopped = stopped.or(last);
        let stop_token = end_token.filter(|token| self.format.stop_token_ids.contains(token));
        let stop_reason = match &stopped {
            Some(stopped) => Some(StopReason::Text(stopped.stop.clone())),
            None => stop_token.map(StopReason::Token),
        };
        let choice = Choice {
            text: answer.into_text(),
            finish_reason: if stopped.is_some() { FinishReason::Stop } else { ending? },
            stop_reason,
        };
        *state = ChoiceState::Finished(Box::new(Finished { choice, counts }));
        self.num_unfinished -= 1;
        Ok((self.num_unfinished == 0).then(|| self.completion()))
    }

    /// Puts the finished choices together; a prompt's tokens count once, however many answers it has.
    fn completion(&mut self) -> Completion {
        let finished = std::mem::take(&mut self.choices).into_iter().filter_map(|state| match state {
            ChoiceState::Finished(finished) => Some(*finished),
            ChoiceState::Waiting | ChoiceState::Running(_) => None,
        });
        let finished: Vec<Finished> = finished.collect();
        let of_prompts = finished.chunks(self.format.num_choices.max(1));
        let (num_prompt_tokens, num_cached_tokens) = of_prompts
            .map(|choices| {
                let counts = choices.iter().map(|finished| finished.counts);
                let num_prompt = counts.clone().map(|counts| counts.num_prompt_tokens).max().unwrap_or(0);
                // What the line's own choices left for each other was not there before.
                let num_cached = counts.map(|counts| counts.num_cached_tokens).min().unwrap_or(0);
                (num_prompt as u64, num_cached as u64)
            })
            .fold((0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1));
        Completion {
            num_completion_tokens: finished.iter().map(|done| done.counts.num_new_tokens as u64).sum(),
            choices: finished.into_iter().map(|finished| finished.choice).collect(),
            num_prompt_tokens,
            num_cached_tokens,
        }
    }
}
