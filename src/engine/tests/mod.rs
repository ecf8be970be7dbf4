//! The engine against a model that answers one request at a time.
//!
//! Owns that model and the loop that drives a run over the fake runner, which checks contract and
//! limits at every pass. The runs themselves are in the files beside this one, the tests of single
//! decisions beside the code that makes them.

mod cached_random;
mod cached_stories;
mod checks;
mod guided;
mod persisted;
mod persisted_faults;
mod persisted_random;
mod planner;
mod random;
mod stories;
mod turns;
mod wants;

use std::collections::HashMap;
use std::num::NonZeroUsize;

use super::fake_runner::{self, FakeRunner, greedy};
use super::*;

/// What the caller does to a request on the way.
#[derive(Debug, Clone, Copy)]
enum Interruption {
    None,
    /// Stopped once it has this many tokens, as when a stop string is matched.
    StopAfterTokens(usize),
    AbortAfterTokens(usize),
    /// Stopped before the step with this number, whatever it is doing.
    StopBeforeStep(usize),
    AbortBeforeStep(usize),
}

/// What became of a request.
#[derive(Debug, Clone, Default, PartialEq)]
struct Outcome {
    tokens: Vec<TokenId>,
    /// On each token, where they are asked for.
    reports: Vec<TokenReport>,
    /// On the prompt's tokens, those that are asked for.
    scores: Vec<TokenReport>,
    /// Reason and number of new tokens; one entry for each time it finished.
    finishes: Vec<(FinishReason, usize)>,
    is_aborted: bool,
}

/// The whole answer, worked out alone and one token at a time.
fn answer_alone(request: &GenerationRequest) -> Outcome {
    let mut outcome = Outcome { scores: wants::scores(request), ..Outcome::default() };
    let mut guide = request.guide.as_ref().map(|pattern| pattern.begin().expect("it was compiled"));
    loop {
        if outcome.tokens.len() == request.max_new_tokens {
            outcome.finishes.push((FinishReason::Length, outcome.tokens.len()));
            return outcome;
        }
        let mut logits = wants::processed(request, &outcome.tokens);
        if let Some(guide) = &mut guide {
            let Some(allowed) = guided::allowed(guide, request, outcome.tokens.len()) else {
                outcome.finishes.push((FinishReason::Stop, outcome.tokens.len()));
                return outcome;
            };
            let forbidden = (0..).zip(&mut logits).filter(|(token, _)| !allowed.contains(*token));
            forbidden.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
        }
        let token = fake_runner::best(&logits);
        if request.end_ids.contains(&token) {
            outcome.finishes.push((FinishReason::Stop, outcome.tokens.len() + 1));
            return outcome;
        }
        let context: Vec<TokenId> = request.prompt.iter().chain(&outcome.tokens).copied().collect();
        let report = |report: Report| {
            let logits = fake_runner::logits(&context, &request.sampling);
            fake_runner::report(&logits, token, report.num_top)
        };
        outcome.reports.extend(request.report.map(report));
        outcome.tokens.push(token);
        if guide.as_mut().is_some_and(|guide| guide.accept(token).expect("it was allowed")) {
            outcome.finishes.push((FinishReason::Stop, outcome.tokens.len()));
            return outcome;
        }
    }
}

/// What the whole answer comes to with an interruption by token count.
fn expected(request: &GenerationRequest, interruption: Interruption) -> Outcome {
    let mut outcome = answer_alone(request);
    let is_cut = |count: usize| {
        outcome.tokens.len() > count
            // By an end token that is yet to come.
            || outcome.tokens.len() == count && outcome.finishes[0] == (FinishReason::Stop, count + 1)
    };
    match interruption {
        Interruption::StopAfterTokens(count) if is_cut(count) => {
            outcome.tokens.truncate(count);
            outcome.reports.truncate(count);
            outcome.finishes = vec![(FinishReason::Stop, count)];
        }
        Interruption::AbortAfterTokens(count) if is_cut(count) => {
            outcome.tokens.truncate(count);
            outcome.reports.truncate(count);
            outcome.finishes.clear();
            outcome.is_aborted = true;
        }
        _ => {}
    }
    outcome
}

/// A run of all requests, streamed in as there is room.
struct Run {
    engine: Engine<FakeRunner>,
    requests: HashMap<RequestId, GenerationRequest>,
    outcomes: HashMap<RequestId, Outcome>,
    errors: Vec<RunnerError>,
    /// Cached tokens of each request that finished.
    num_cached: HashMap<RequestId, usize>,
}

fn run(engine: Engine<FakeRunner>, requests: &[(GenerationRequest, Interruption)]) -> Run {
    run_with(engine, requests, |_| {})
}

/// The same with something done after every step.
fn run_with(
    engine: Engine<FakeRunner>,
    requests: &[(GenerationRequest, Interruption)],
    mut after_step: impl FnMut(&mut Engine<FakeRunner>),
) -> Run {
    let mut run = Run {
        engine,
        requests: requests.iter().map(|(request, _)| (request.id, request.clone())).collect(),
        outcomes: HashMap::new(),
        errors: Vec::new(),
        num_cached: HashMap::new(),
    };
    let interruptions: HashMap<RequestId, Interruption> =
        requests.iter().map(|(request, interruption)| (request.id, *interruption)).collect();
    // Each step collects a pass, and a pass brings on every running sequence and the first prompt.
    let max_steps: usize =
        requests.iter().map(|(request, _)| request.prompt.len() + request.max_new_tokens + 3).sum();
    let mut next = requests.iter();
    for step in 0.. {
        assert!(step <= max_steps, "the engine does not come to an end");
        while run.engine.has_room() {
            let Some((request, _)) = next.next() else { break };
            run.engine.submit(request.clone()).expect("the request is valid");
            run.outcomes.insert(request.id, Outcome::default());
        }
        for (id, interruption) in &interruptions {
            match interruption {
                Interruption::StopBeforeStep(number) if *number == step => _ = run.engine.stop(*id),
                Interruption::AbortBeforeStep(number) if *number == step && run.engine.abort(*id) => {
                    run.outcomes.get_mut(id).expect("submitted").is_aborted = true;
                }
                _ => {}
            }
        }
        if next.len() == 0 && run.engine.is_idle() {
            return run;
        }
        match run.engine.step() {
            Ok(events) => run.take_in(&events, &interruptions),
            Err(error) => run.errors.push(error),
        }
        checks::after_step(&mut run.engine);
        after_step(&mut run.engine);
    }
    unreachable!("the loop ends by return or by panic");
}

impl Run {
    fn take_in(&mut self, events: &[Event], interruptions: &HashMap<RequestId, Interruption>) {
        let mut with_token = Vec::new();
        for event in events {
            match event {
                &Event::Token { id, token, ref report } => {
                    assert!(!with_token.contains(&id), "two tokens of {id:?} in a step");
                    with_token.push(id);
                    let outcome = self.outcomes.get_mut(&id).expect("submitted");
                    assert!(outcome.finishes.is_empty() && !outcome.is_aborted, "a token after the end");
                    outcome.tokens.push(token);
                    outcome.reports.extend(report.as_deref().cloned());
                    let count = outcome.tokens.len();
                    match interruptions[&id] {
                        Interruption::StopAfterTokens(number) if number == count => {
                            self.engine.stop(id);
                        }
                        Interruption::AbortAfterTokens(number) if number == count => {
                            outcome.is_aborted = self.engine.abort(id);
                        }
                        _ => {}
                    }
                }
                Event::Scored { id, position, reports } => {
                    let request = self.requests.get(id).expect("submitted");
                    let outcome = self.outcomes.get_mut(id).expect("submitted");
                    let from = request.score.expect("it asked for scores").from;
                    assert_eq!(*position, from + outcome.scores.len(), "scores come in order");
                    assert!(outcome.tokens.is_empty() && outcome.finishes.is_empty(), "scores come first");
                    outcome.scores.extend(reports.iter().cloned());
                }
                &Event::Finished { id, reason, num_new_tokens, num_cached_tokens, .. } => {
                    self.num_cached.insert(id, num_cached_tokens);
                    let outcome = self.outcomes.get_mut(&id).expect("submitted");
                    assert!(!outcome.is_aborted, "an event of an aborted request");
                    outcome.finishes.push((reason, num_new_tokens));
                }
            }
        }
    }

    /// For each sequence, the passes it was in and its group in each.
    fn groups(&self) -> HashMap<SequenceId, Vec<(usize, &Group)>> {
        let mut groups: HashMap<SequenceId, Vec<(usize, &Group)>> = HashMap::new();
        for (number, pass) in self.engine.runner().passes.iter().enumerate() {
            for group in pass {
                groups.entry(group.sequence).or_default().push((number, group));
            }
        }
        groups
    }
}

fn request(id: u64, prompt: Vec<TokenId>, max_new_tokens: usize, end_ids: &[TokenId]) -> GenerationRequest {
    let (id, end_ids, sampling) = (RequestId(id), end_ids.into(), greedy(id % 3));
    let (plan, answer_recurs) = (PromptPlan::default(), AnswerRecurs::default());
    let (processors, report, score) = (Processors::default(), None, None);
    GenerationRequest {
        id,
        prompt,
        max_new_tokens,
        end_ids,
        sampling,
        processors,
        guide: None,
        report,
        score,
        plan,
        answer_recurs,
    }
}

fn limits(max_batch_size: usize, prefill_chunk: usize, lookahead: bool) -> Limits {
    Limits {
        max_batch_size: NonZeroUsize::new(max_batch_size).unwrap(),
        prefill_chunk: NonZeroUsize::new(prefill_chunk).unwrap(),
        max_batch_tokens: None,
        lookahead,
        kv_bytes_per_token: fake_runner::BYTES_PER_TOKEN,
        max_restored_bytes: u64::MAX,
    }
}

fn engine(limits: Limits) -> Engine<FakeRunner> {
    Engine::new(FakeRunner::new(limits.clone()), limits, None)
}
