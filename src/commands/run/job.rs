//! A line of the input while it is answered: one or more requests of the engine, one record.
//!
//! Owns a job's choices from their first token to the record's fields. The engine knows the requests
//! alone; which of them is which choice is the session's to remember.

use super::prepare::{AnswerFormat, PromptShown};
use crate::{
    batch::{
        Choice, Completion, FinishReason, RequestError, RequestHead, Scored, StopReason, Token, TokenLogprob,
    },
    engine::{RequestId, TokenId, TokenReport},
    text::{Answer, Reply, Stopped, TextError, Tokenizer},
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
    /// Of the answer's tokens, where they are asked for.
    reports: Vec<TokenReport>,
    /// Of the prompt's tokens, from the first that is scored.
    scores: Vec<TokenReport>,
}

struct Finished {
    choice: Choice,
    counts: Counts,
    /// Where the model's way of thinking is known.
    num_reasoning_tokens: Option<usize>,
    scores: Vec<TokenReport>,
    reports: Vec<TokenReport>,
}

/// What the engine says of a request that ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counts {
    pub num_prompt_tokens: usize,
    pub num_cached_tokens: usize,
    pub num_new_tokens: usize,
}

/// The token that ended an answer and is no part of it.
pub(super) struct End {
    pub token: TokenId,
    pub report: Option<TokenReport>,
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
            *state = ChoiceState::Running(Box::new(Running {
                id,
                answer,
                stopped: None,
                reports: Vec::new(),
                scores: Vec::new(),
            }));
        }
    }

    /// The requests that run.
    pub(super) fn running(&self) -> impl Iterator<Item = RequestId> {
        self.choices.iter().filter_map(|choice| match choice {
            ChoiceState::Running(running) => Some(running.id),
            ChoiceState::Waiting | ChoiceState::Finished(_) => None,
        })
    }

    /// Takes what is known of a prompt's tokens, the next ones.
    pub(super) fn score(&mut self, choice: usize, reports: Vec<TokenReport>) {
        if let Some(ChoiceState::Running(running)) = self.choices.get_mut(choice) {
            running.scores.extend(reports);
        }
    }

    /// Takes the next token of a choice; returns whether a stop string is complete with it.
    pub(super) fn push(
        &mut self,
        choice: usize,
        token: TokenId,
        report: Option<TokenReport>,
    ) -> Result<bool, RequestError> {
        let Some(ChoiceState::Running(running)) = self.choices.get_mut(choice) else { return Ok(false) };
        // Tokens may be under way behind a stop.
        if running.stopped.is_none() {
            running.reports.extend(report);
        }
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
    /// an error where its answer is not whole, unless a stop string is in what came before.
    pub(super) fn finish(
        &mut self,
        choice: usize,
        ending: Result<FinishReason, RequestError>,
        end: Option<End>,
        counts: Counts,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Completion>, RequestError> {
        let Some(state) = self.choices.get_mut(choice) else { return Ok(None) };
        let ChoiceState::Running(running) = std::mem::replace(state, ChoiceState::Waiting) else {
            return Ok(None);
        };
        let Running { mut answer, stopped, mut reports, scores, .. } = *running;
        let end_token = end.as_ref().map(|end| end.token);
        // As vLLM does: it was chosen, and lm-eval counts on one more token than the prompt has.
        reports.extend(end.and_then(|end| end.report));
        let internal = |error: TextError| RequestError::internal(error.to_string());
        let by_end = match end_token.filter(|_| self.format.shown.includes_stop) {
            Some(token) => answer.push(token).map_err(internal)?,
            None => None,
        };
        let last = answer.finish().map_err(internal)?;
        let stopped = stopped.or(by_end).or(last);
        let stop_token = end_token.filter(|token| self.format.stop_token_ids.contains(token));
        let stop_reason = match &stopped {
            Some(stopped) => Some(StopReason::Text(stopped.stop.clone())),
            None => stop_token.map(StopReason::Token),
        };
        let finish_reason = if stopped.is_some() { FinishReason::Stop } else { ending? };
        let (reply, num_reasoning_tokens) = self.format.taken_apart(&answer, choice);
        let calls = reply.as_ref().is_some_and(|reply| !reply.calls.is_empty());
        let choice = Choice {
            text: answer.into_text(),
            finish_reason: match finish_reason {
                FinishReason::Stop if calls => FinishReason::ToolCalls,
                reason => reason,
            },
            stop_reason,
            logprobs: None,
            prompt_logprobs: None,
            reply,
        };
        let finished = Finished { choice, counts, num_reasoning_tokens, scores, reports };
        *state = ChoiceState::Finished(Box::new(finished));
        self.num_unfinished -= 1;
        Ok((self.num_unfinished == 0).then(|| self.completion(tokenizer)))
    }

    /// Puts the finished choices together; a prompt's tokens count once, however many answers it has.
    fn completion(&mut self, tokenizer: &Tokenizer) -> Completion {
        let finished = std::mem::take(&mut self.choices).into_iter().filter_map(|state| match state {
            ChoiceState::Finished(finished) => Some(*finished),
            ChoiceState::Waiting | ChoiceState::Running(_) => None,
        });
        let mut finished: Vec<Finished> = finished.collect();
        let num_choices = self.format.num_choices.max(1);
        let telling = Telling { format: &self.format, tokenizer };
        for (position, choices) in finished.chunks_mut(num_choices).enumerate() {
            telling.tell(self.format.prompts.get(position), choices);
        }
        let of_prompts = finished.chunks(num_choices);
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
            num_reasoning_tokens: finished
                .iter()
                .filter_map(|done| Some(done.num_reasoning_tokens? as u64))
                .reduce(|sum, num_tokens| sum + num_tokens),
            choices: finished.into_iter().map(|finished| finished.choice).collect(),
            num_prompt_tokens,
            num_cached_tokens,
        }
    }
}

impl AnswerFormat {
    /// A conversation's answer in its parts, and how many of its tokens are thinking.
    fn taken_apart(&self, answer: &Answer, choice: usize) -> (Option<Reply>, Option<usize>) {
        let Some(reader) = &self.reader else { return (None, None) };
        let control = if self.hides_control { answer.control_names() } else { Vec::new() };
        let reply = reader.read(answer.text(), choice, &control);
        let num_reasoning_tokens =
            reader.thinking().map(|_| answer.num_tokens_within(reply.num_thinking_bytes));
        (Some(reply), num_reasoning_tokens)
    }
}

/// What is told of tokens beside the text.
struct Telling<'a> {
    format: &'a AnswerFormat,
    tokenizer: &'a Tokenizer,
}

impl Telling<'_> {
    /// Puts what is known of tokens into the choices that answer one prompt. What is known of the prompt's own
    /// is the first one's.
    fn tell(&self, prompt: Option<&PromptShown>, choices: &mut [Finished]) {
        let scores = choices.first_mut().map(|first| std::mem::take(&mut first.scores)).unwrap_or_default();
        for Finished { choice, reports, .. } in choices {
            let told = |reports: &[TokenReport], num_top: u32| -> Vec<TokenLogprob> {
                reports.iter().map(|report| self.logprob_of(report, num_top)).collect()
            };
            choice.prompt_logprobs = self.format.prompt_logprobs.zip(prompt).map(|(num_top, prompt)| {
                // Of those that are not scored nothing is told at all.
                let nameless = |id: &TokenId| Token { id: *id, bytes: Vec::new() };
                let unscored = unscored(prompt, scores.len(), nameless);
                unscored.chain(told(&scores, num_top)).collect()
            });
            choice.logprobs = self.format.logprobs.map(|num_top| {
                let mut tokens: Vec<TokenLogprob> = Vec::new();
                if let Some(prompt) = prompt.filter(|_| self.format.echo) {
                    tokens.extend(unscored(prompt, scores.len(), |id| self.token(*id)));
                    tokens.extend(told(&scores, num_top));
                }
                tokens.extend(told(reports, num_top));
                tokens
            });
            if let Some(prompt) = prompt.filter(|_| self.format.echo) {
                choice.text.insert_str(0, &prompt.text);
            }
        }
    }

    fn logprob_of(&self, report: &TokenReport, num_top: u32) -> TokenLogprob {
        let top = report.top.iter().take(num_top as usize);
        let scored = Scored {
            log_probability: report.log_probability,
            rank: report.rank,
            top: top.map(|(id, number)| (self.token(*id), *number)).collect(),
        };
        TokenLogprob { token: self.token(report.token), scored: Some(scored) }
    }

    fn token(&self, id: TokenId) -> Token {
        Token { id, bytes: self.tokenizer.token_bytes(id) }
    }
}

/// The prompt's tokens before those that are scored, which are its last.
fn unscored<'a>(
    prompt: &'a PromptShown,
    num_scored: usize,
    token_of: impl Fn(&TokenId) -> Token + 'a,
) -> impl Iterator<Item = TokenLogprob> + 'a {
    let unscored = &prompt.tokens[..prompt.tokens.len().saturating_sub(num_scored)];
    unscored.iter().map(move |id| TokenLogprob { token: token_of(id), scored: None })
}
