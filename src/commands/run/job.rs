//! A line of the input while it is answered: one or more requests of the engine, one record.
//!
//! Owns a job's choices, turn by turn, from their first token to the record's fields. The engine knows the
//! requests alone; which of them is which choice is the session's to remember.

use std::ops::AddAssign;

use super::{
    prepare::{AnswerFormat, Dialogue, PreparedRequest, PromptShown},
    times::Moments,
};
use crate::{
    batch::{
        Choice, Completion, FinishReason, RequestError, RequestHead, Scored, StopReason, Token, TokenCounts,
        TokenLogprob, Turn,
    },
    engine::{RequestId, TokenId, TokenReport},
    text::{Answer, Occasion, Reply, Stopped, TextError, Tokenizer},
};

/// A line that is being answered.
pub(super) struct Job {
    pub head: RequestHead,
    pub moments: Moments,
    format: AnswerFormat,
    /// The conversation, where it has turns behind the first.
    dialogue: Option<Box<Dialogue>>,
    choices: Vec<ChoiceState>,
    num_unfinished: usize,
}

/// One choice, from its submission on.
#[derive(Default)]
struct ChoiceState {
    /// The answer that is being generated.
    running: Option<Box<Running>>,
    /// The prompt that it answers, where another turn follows.
    prompt: Vec<TokenId>,
    /// The answers before it, turn by turn.
    finished: Vec<Finished>,
}

/// What an answer that has ended means for its line.
pub(super) enum Ended {
    /// Others of its choices are not done.
    Open,
    /// The choice has another turn.
    Turn,
    /// All of them are done.
    Whole(Box<Completion>),
}

struct Running {
    id: RequestId,
    answer: Answer,
    /// The prompt ends within thinking.
    begins_thinking: bool,
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
#[derive(Debug, Clone, Copy, Default)]
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
    pub(super) fn new(
        head: RequestHead,
        format: AnswerFormat,
        dialogue: Option<Box<Dialogue>>,
        num_choices: usize,
    ) -> Self {
        let choices = (0..num_choices).map(|_| ChoiceState::default()).collect();
        Self { head, moments: Moments::begin(), format, dialogue, choices, num_unfinished: num_choices }
    }

    /// Notes that the next turn of a choice runs as this request.
    pub(super) fn begin(&mut self, choice: usize, request: &PreparedRequest, tokenizer: &Tokenizer) {
        let PreparedRequest { generation: request, begins_thinking, .. } = request;
        let answer = Answer::new(tokenizer, &self.format.stops, self.format.shown);
        let Some(state) = self.choices.get_mut(choice) else { return };
        if request.answer_recurs.is_awaited() {
            state.prompt.clone_from(&request.prompt);
        }
        state.running = Some(Box::new(Running {
            id: request.id,
            answer,
            begins_thinking: *begins_thinking,
            stopped: None,
            reports: Vec::new(),
            scores: Vec::new(),
        }));
    }

    /// The requests that run.
    pub(super) fn running(&self) -> impl Iterator<Item = RequestId> {
        self.choices.iter().filter_map(|choice| Some(choice.running.as_ref()?.id))
    }

    /// A choice whose answer is not there yet.
    pub(super) fn unfinished(&self) -> usize {
        self.choices.iter().position(|choice| choice.running.is_some()).unwrap_or(0)
    }

    /// Tokens of the answers that are being generated.
    pub(super) fn num_running_tokens(&self) -> usize {
        let running = self.choices.iter().filter_map(|choice| choice.running.as_ref());
        running.map(|running| running.answer.num_tokens()).sum()
    }

    /// The conversation whose turns follow each other, if it has several.
    pub(super) fn dialogue(&self) -> Option<&Dialogue> {
        self.dialogue.as_deref()
    }

    /// A choice's answers so far.
    pub(super) fn answers(&self, choice: usize) -> Vec<&Choice> {
        let finished = self.choices.get(choice).map_or(&[][..], |state| &state.finished);
        finished.iter().map(|finished| &finished.choice).collect()
    }

    /// The prompt of a choice's last turn, where another follows.
    pub(super) fn prompt(&self, choice: usize) -> &[TokenId] {
        self.choices.get(choice).map_or(&[], |state| &state.prompt)
    }

    /// What went wrong with a choice, as the line's error, with the turns before.
    pub(super) fn failed(&mut self, choice: usize, error: RequestError) -> (RequestError, Vec<Turn>) {
        let num_turns = self.num_turns();
        let Some(state) = self.choices.get_mut(choice) else { return (error, Vec::new()) };
        let before: Vec<Turn> = state.finished.drain(..).map(Finished::into_turn).collect();
        (error.in_turn(before.len() + 1, num_turns), before)
    }

    fn num_turns(&self) -> usize {
        self.dialogue.as_ref().map_or(1, |dialogue| dialogue.num_turns())
    }

    /// Takes what is known of a prompt's tokens, the next ones.
    pub(super) fn score(&mut self, choice: usize, reports: Vec<TokenReport>) {
        if let Some(running) = self.choices.get_mut(choice).and_then(|state| state.running.as_mut()) {
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
        let running = self.choices.get_mut(choice).and_then(|state| state.running.as_mut());
        let Some(running) = running else { return Ok(false) };
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

    /// Ends a choice's answer; returns the line's completion with the last of them. `ending` is why the engine
    /// ended it, an error where its answer is not whole, unless a stop string is in what came before.
    pub(super) fn finish(
        &mut self,
        choice: usize,
        ending: Result<FinishReason, RequestError>,
        end: Option<End>,
        counts: Counts,
        tokenizer: &Tokenizer,
    ) -> Result<Ended, RequestError> {
        let num_turns = self.num_turns();
        let Some(state) = self.choices.get_mut(choice) else { return Ok(Ended::Open) };
        let Some(running) = state.running.take() else { return Ok(Ended::Open) };
        let Running { mut answer, stopped, begins_thinking, mut reports, scores, .. } = *running;
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
        let occasion = Occasion { choice, turn: state.finished.len(), begins_thinking };
        let (reply, num_reasoning_tokens) = self.format.taken_apart(&answer, occasion);
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
            turns: Vec::new(),
        };
        let mut finished = Finished { choice, counts, num_reasoning_tokens, scores, reports };
        if num_turns > 1 {
            let telling = Telling { format: &self.format, tokenizer };
            telling.tell(None, [&mut finished]);
        }
        state.finished.push(finished);
        if state.finished.len() < num_turns {
            return Ok(Ended::Turn);
        }
        self.num_unfinished -= 1;
        Ok(match self.num_unfinished {
            0 => Ended::Whole(Box::new(self.completion(tokenizer))),
            _ => Ended::Open,
        })
    }

    /// Puts the finished choices together; a prompt's tokens count once, however many answers it has.
    fn completion(&mut self, tokenizer: &Tokenizer) -> Completion {
        let num_turns = self.num_turns();
        let choices = std::mem::take(&mut self.choices);
        let mut finished: Vec<Vec<Finished>> = choices.into_iter().map(|state| state.finished).collect();
        let num_choices = self.format.num_choices.max(1);
        let mut usage = Counts::default();
        for (position, choices) in finished.chunks_mut(num_choices).enumerate() {
            if num_turns == 1 {
                let telling = Telling { format: &self.format, tokenizer };
                telling.tell(self.format.prompts.get(position), choices.iter_mut().flatten());
            }
            usage += usage_of(choices);
        }
        let reasoning = finished.iter().flatten().filter_map(|finished| finished.num_reasoning_tokens);
        let usage = usage.told(reasoning.reduce(|sum, num_tokens| sum + num_tokens));
        Completion { choices: finished.into_iter().filter_map(choice_of).collect(), usage }
    }
}

impl AnswerFormat {
    /// A conversation's answer in its parts, and how many of its tokens are thinking.
    fn taken_apart(&self, answer: &Answer, occasion: Occasion) -> (Option<Reply>, Option<usize>) {
        let Some(reader) = &self.reader else { return (None, None) };
        let control = if self.hides_control { answer.control_names() } else { Vec::new() };
        let reply = reader.read(answer.text(), occasion, &control);
        let num_reasoning_tokens =
            reader.thinking().map(|_| answer.num_tokens_within(reply.num_thinking_bytes));
        (Some(reply), num_reasoning_tokens)
    }
}

impl Finished {
    fn into_turn(self) -> Turn {
        Turn { usage: self.counts.told(self.num_reasoning_tokens), answer: self.choice }
    }
}

/// A choice of the record, the last of its turns.
fn choice_of(mut finished: Vec<Finished>) -> Option<Choice> {
    if finished.len() < 2 {
        return Some(finished.pop()?.choice);
    }
    let turns: Vec<Turn> = finished.into_iter().map(Finished::into_turn).collect();
    let last = turns.last()?.answer.clone();
    Some(Choice { turns, ..last })
}

/// What the choices of one prompt come to, each of them turn by turn. Only the first turn's prompt is the same for
/// all of them, and counts once.
fn usage_of(choices: &[Vec<Finished>]) -> Counts {
    let first = choices.iter().filter_map(|turns| turns.first()).map(|turn| turn.counts);
    let mut usage = Counts {
        num_prompt_tokens: first.clone().map(|counts| counts.num_prompt_tokens).max().unwrap_or(0),
        // What the line's own choices left for each other was not there before.
        num_cached_tokens: first.clone().map(|counts| counts.num_cached_tokens).min().unwrap_or(0),
        num_new_tokens: first.map(|counts| counts.num_new_tokens).sum(),
    };
    choices.iter().flat_map(|turns| turns.iter().skip(1)).for_each(|turn| usage += turn.counts);
    usage
}

impl Counts {
    /// As the record has it.
    fn told(self, num_reasoning_tokens: Option<usize>) -> TokenCounts {
        TokenCounts {
            num_prompt_tokens: self.num_prompt_tokens as u64,
            num_completion_tokens: self.num_new_tokens as u64,
            num_cached_tokens: self.num_cached_tokens as u64,
            num_reasoning_tokens: num_reasoning_tokens.map(|num_tokens| num_tokens as u64),
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.num_prompt_tokens += more.num_prompt_tokens;
        self.num_cached_tokens += more.num_cached_tokens;
        self.num_new_tokens += more.num_new_tokens;
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
    fn tell<'f>(&self, prompt: Option<&PromptShown>, choices: impl IntoIterator<Item = &'f mut Finished>) {
        let mut choices = choices.into_iter().peekable();
        let scores = choices.peek_mut().map(|first| std::mem::take(&mut first.scores)).unwrap_or_default();
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
