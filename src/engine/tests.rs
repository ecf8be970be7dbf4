//! The engine against a model that answers one request at a time.
//!
//! Owns the tests of whole runs, over the fake runner, which checks contract and limits at every
//! pass. The tests of single decisions stand beside the code that makes them.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::fake_runner::{FakeRunner, VOCAB_SIZE, greedy, next_token};
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
    /// Reason and number of new tokens; one entry for each time it finished.
    finishes: Vec<(FinishReason, usize)>,
    is_aborted: bool,
}

/// The whole answer, worked out alone and one token at a time.
fn answer_alone(request: &GenerationRequest) -> Outcome {
    let mut context = request.prompt.clone();
    let mut tokens = Vec::new();
    loop {
        let token = next_token(&context, &request.sampling);
        if request.end_ids.contains(&token) {
            let finishes = vec![(FinishReason::Stop, tokens.len() + 1)];
            return Outcome { tokens, finishes, is_aborted: false };
        }
        context.push(token);
        tokens.push(token);
        if tokens.len() == request.max_new_tokens {
            let finishes = vec![(FinishReason::Length, tokens.len())];
            return Outcome { tokens, finishes, is_aborted: false };
        }
    }
}

/// What the whole answer comes to with an interruption by token count.
fn expected(request: &GenerationRequest, interruption: Interruption) -> Outcome {
    let mut outcome = answer_alone(request);
    let is_cut = |count: usize| {
        outcome.tokens.len() > count
            || outcome.tokens.len() == count && outcome.finishes[0].0 == FinishReason::Stop
    };
    match interruption {
        Interruption::StopAfterTokens(count) if is_cut(count) => {
            outcome.tokens.truncate(count);
            outcome.finishes = vec![(FinishReason::Stop, count)];
        }
        Interruption::AbortAfterTokens(count) if is_cut(count) => {
            outcome.tokens.truncate(count);
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
    outcomes: HashMap<RequestId, Outcome>,
    errors: Vec<RunnerError>,
}

fn run(engine: Engine<FakeRunner>, requests: &[(GenerationRequest, Interruption)]) -> Run {
    let mut run = Run { engine, outcomes: HashMap::new(), errors: Vec::new() };
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
    }
    unreachable!("the loop ends by return or by panic");
}

impl Run {
    fn take_in(&mut self, events: &[Event], interruptions: &HashMap<RequestId, Interruption>) {
        let mut with_token = Vec::new();
        for event in events {
            match *event {
                Event::Token { id, token } => {
                    assert!(!with_token.contains(&id), "two tokens of {id:?} in a step");
                    with_token.push(id);
                    let outcome = self.outcomes.get_mut(&id).expect("submitted");
                    assert!(outcome.finishes.is_empty() && !outcome.is_aborted, "a token after the end");
                    outcome.tokens.push(token);
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
                Event::Finished { id, reason, num_new_tokens, .. } => {
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
    GenerationRequest { id, prompt, max_new_tokens, end_ids, sampling }
}

fn limits(max_batch_size: usize, prefill_chunk: usize, lookahead: bool) -> Limits {
    Limits {
        max_batch_size: NonZeroUsize::new(max_batch_size).unwrap(),
        prefill_chunk: NonZeroUsize::new(prefill_chunk).unwrap(),
        max_batch_tokens: None,
        lookahead,
    }
}

fn engine(limits: Limits) -> Engine<FakeRunner> {
    Engine::new(FakeRunner::new(limits.clone()), limits)
}

const MAX_PROMPT_TOKENS: usize = 40;
const MAX_NEW_TOKENS: usize = 12;

fn any_limits() -> impl Strategy<Value = Limits> {
    let max_batch_tokens = prop::option::of(MAX_PROMPT_TOKENS + MAX_NEW_TOKENS..200);
    (1usize..=16, 1usize..=48, max_batch_tokens, any::<bool>()).prop_map(|(rows, chunk, max, lookahead)| {
        Limits { max_batch_tokens: max, ..limits(rows, chunk, lookahead) }
    })
}

fn any_requests() -> impl Strategy<Value = Vec<(GenerationRequest, Interruption)>> {
    let token = 0..VOCAB_SIZE;
    let prompt = prop::collection::vec(token.clone(), 1..=MAX_PROMPT_TOKENS);
    let end_ids = prop::collection::vec(token, 0..3);
    let interruption = prop_oneof![
        4 => Just(Interruption::None),
        1 => (1..MAX_NEW_TOKENS).prop_map(Interruption::StopAfterTokens),
        1 => (1..MAX_NEW_TOKENS).prop_map(Interruption::AbortAfterTokens),
        1 => (1usize..30).prop_map(Interruption::StopBeforeStep),
        1 => (1usize..30).prop_map(Interruption::AbortBeforeStep),
    ];
    prop::collection::vec((prompt, 1..=MAX_NEW_TOKENS, end_ids, interruption), 1..40).prop_map(|requests| {
        requests
            .into_iter()
            .enumerate()
            .map(|(id, (prompt, max_new_tokens, end_ids, interruption))| {
                (request(id as u64, prompt, max_new_tokens, &end_ids), interruption)
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_request_gets_the_answer_it_would_get_alone(limits in any_limits(), requests in any_requests()) {
        let chunk = limits.prefill_chunk.get();
        let lookahead = limits.lookahead;
        let run = run(engine(limits), &requests);

        prop_assert!(run.errors.is_empty());
        prop_assert_eq!(run.engine.runner().num_live(), 0, "KV is left behind");
        let max_under_way = if lookahead { 2 } else { 1 };
        prop_assert!(run.engine.runner().peak_under_way <= max_under_way);

        let mut num_generated = 0;
        for (request, interruption) in &requests {
            let outcome = &run.outcomes[&request.id];
            num_generated += outcome.tokens.len();
            match interruption {
                Interruption::StopBeforeStep(_) | Interruption::AbortBeforeStep(_) => {
                    let alone = answer_alone(request);
                    prop_assert!(alone.tokens.starts_with(&outcome.tokens));
                    let cut = (FinishReason::Stop, outcome.tokens.len());
                    prop_assert!(outcome.is_aborted && outcome.finishes.is_empty()
                        || outcome.finishes == [cut]
                        || *outcome == alone, "{outcome:?}");
                }
                _ => prop_assert_eq!(outcome, &expected(request, *interruption)),
            }
            // An end token is counted and not shown.
            num_generated += outcome.finishes.iter().map(|(_, n)| n - outcome.tokens.len()).sum::<usize>();
        }
        let stats = run.engine.stats();
        prop_assert_eq!(stats.num_generated_tokens, num_generated);
        prop_assert_eq!(stats.num_passes(), run.engine.runner().passes.len());
        prop_assert!(lookahead || requests.iter().any(|(_, i)| !matches!(i, Interruption::None))
            || stats.num_wasted_rows() == 0);

        // Sequences are numbered as they were submitted; they enter in that order.
        let groups = run.groups();
        let mut entries: Vec<(usize, SequenceId)> = groups.iter().map(|(id, g)| (g[0].0, *id)).collect();
        entries.sort_by_key(|(_, id)| *id);
        prop_assert!(entries.is_sorted_by_key(|(pass, _)| *pass), "somebody overtook: {entries:?}");

        for (id, groups) in &groups {
            let prompt = &requests[id.0 as usize].0.prompt;
            let num_groups = groups.len();
            let chunks = groups.iter().filter_map(|(_, group)| match &group.input {
                Input::Prompt(tokens) => Some((tokens.as_slice(), group.sample.is_some())),
                Input::Sampled => None,
            });
            // The cuts are those of the prompt alone; only an interruption leaves chunks away.
            let num_chunks = prompt.len().div_ceil(chunk);
            let cuts = prompt.chunks(chunk).enumerate().map(|(i, tokens)| (tokens, i + 1 == num_chunks));
            let cuts: Vec<_> = cuts.take(num_groups).collect();
            prop_assert_eq!(chunks.collect::<Vec<_>>(), cuts);
            // Once its prompt is done, a sequence is in every pass until it ends.
            let decodes: Vec<usize> = groups.iter().skip(num_chunks - 1).map(|(pass, _)| *pass).collect();
            prop_assert!(decodes.windows(2).all(|pair| pair[1] == pair[0] + 1), "{decodes:?}");
        }
    }

    #[test]
    fn a_failing_pass_ends_its_own_requests_and_no_others(
        limits in any_limits(),
        requests in any_requests(),
        failing_launch in prop::option::of(0usize..40),
        failing_collect in prop::option::of(0usize..40),
    ) {
        let requests: Vec<_> = requests.into_iter().map(|(r, _)| (r, Interruption::None)).collect();
        let mut runner = FakeRunner::new(limits.clone());
        runner.failing_launch = failing_launch;
        runner.failing_collect = failing_collect;
        let run = run(Engine::new(runner, limits), &requests);
        prop_assert_eq!(run.engine.runner().num_live(), 0, "KV is left behind");

        // What a failed launch was to compute, and what was under way when a collection failed.
        let passes = &run.engine.runner().passes;
        let launched = (0..passes.len()).filter(|number| Some(*number) != failing_launch);
        let uncollected = failing_collect.map_or_else(Vec::new, |n| launched.skip(n).take(2).collect());
        let lost = failing_launch.into_iter().chain(uncollected).filter_map(|number| passes.get(number));
        let lost: Vec<RequestId> = lost.flatten().map(|group| RequestId(group.sequence.0)).collect();

        for (request, _) in &requests {
            let outcome = &run.outcomes[&request.id];
            let alone = answer_alone(request);
            if outcome.finishes == [(FinishReason::Error, outcome.tokens.len())] {
                prop_assert!(lost.contains(&request.id), "{:?} was in no failed pass", request.id);
                prop_assert!(alone.tokens.starts_with(&outcome.tokens));
            } else {
                prop_assert_eq!(outcome, &alone);
            }
        }
        let num_failures = [failing_launch, failing_collect]
            .into_iter()
            .flatten()
            .filter(|number| *number < passes.len())
            .count();
        prop_assert!(run.errors.len() <= num_failures);
        prop_assert!(failing_launch.is_none_or(|number| number >= passes.len()) || !run.errors.is_empty());
    }
}

/// Prompt whose answer is `num_tokens` long before the token `end` comes up.
fn prompt_with_answer(num_tokens: usize, end: TokenId) -> Vec<TokenId> {
    (0..VOCAB_SIZE * VOCAB_SIZE * VOCAB_SIZE)
        .map(|n| vec![n % VOCAB_SIZE, n / VOCAB_SIZE % VOCAB_SIZE, n / VOCAB_SIZE / VOCAB_SIZE])
        .find(|prompt| answer_alone(&request(0, prompt.clone(), 50, &[end])).tokens.len() == num_tokens)
        .expect("one of 2,197 prompts has such an answer")
}

#[test]
fn lookahead_wastes_a_row_on_an_end_token_and_none_on_a_length_limit() {
    let prompt = prompt_with_answer(5, 1);
    for (lookahead, max_new_tokens, num_wasted, num_passes) in
        [(true, 50, 1, 7), (false, 50, 0, 6), (true, 5, 0, 5), (false, 5, 0, 5)]
    {
        let requests = [(request(0, prompt.clone(), max_new_tokens, &[1]), Interruption::None)];
        let run = run(engine(limits(4, 8, lookahead)), &requests);
        assert_eq!(run.outcomes[&RequestId(0)].tokens.len(), 5);
        assert_eq!(run.engine.stats().num_wasted_rows(), num_wasted);
        assert_eq!(run.engine.stats().num_passes(), num_passes);
    }
}

#[test]
fn a_length_limit_gives_its_row_to_the_next_in_line_without_a_gap() {
    for lookahead in [true, false] {
        let requests: Vec<_> =
            (0..3).map(|id| (request(id, vec![1, 2], 4, &[]), Interruption::None)).collect();
        let run = run(engine(limits(1, 8, lookahead)), &requests);
        // One row, three requests of four passes each: never an idle or a wasted pass.
        assert_eq!(run.engine.stats().num_passes(), 12);
        assert_eq!(run.engine.stats().peak_rows, 1);
    }
}

#[test]
fn a_full_batch_runs_with_two_passes_under_way() {
    let requests: Vec<_> =
        (0..32).map(|id| (request(id, vec![3; 10], 12, &[]), Interruption::None)).collect();
    let run = run(engine(limits(8, 40, true)), &requests);
    assert_eq!(run.engine.runner().peak_under_way, 2);
    let stats = run.engine.stats();
    assert_eq!(stats.peak_rows, 8);
    assert_eq!(stats.num_admitted, 32);
    assert_eq!(stats.num_prompt_tokens, 320);
    assert_eq!(stats.num_prefilled_tokens(), 320);
    assert_eq!(stats.num_generated_tokens, 32 * 12);
}

#[test]
fn an_answer_that_is_stopped_frees_its_row_before_the_next_pass() {
    let mut engine = engine(limits(1, 8, true));
    engine.submit(request(0, vec![1], 50, &[])).unwrap();
    assert!(matches!(engine.step().unwrap()[..], [Event::Token { id: RequestId(0), .. }]));
    engine.submit(request(1, vec![2], 1, &[])).unwrap();
    assert!(engine.stop(RequestId(0)));
    assert!(!engine.stop(RequestId(0)), "it has ended");
    assert_eq!(engine.runner().num_live(), 0);

    // The pass under way held a row of the stopped request; its token is dropped.
    let finished = Event::Finished {
        id: RequestId(0),
        reason: FinishReason::Stop,
        num_prompt_tokens: 1,
        num_cached_tokens: 0,
        num_new_tokens: 1,
    };
    assert_eq!(engine.step().unwrap(), [finished]);
    assert_eq!(engine.stats().num_wasted_rows(), 1);
    let events = engine.step().unwrap();
    assert!(matches!(events[..], [Event::Token { id: RequestId(1), .. }, Event::Finished { .. }]));
    assert!(engine.is_idle());
}

#[test]
fn a_request_can_be_stopped_or_aborted_in_line_and_amid_its_prompt() {
    for number_of_steps in [0, 1, 2] {
        let mut engine = engine(limits(1, 2, true));
        engine.submit(request(0, vec![1; 20], 5, &[])).unwrap();
        for _ in 0..number_of_steps {
            assert_eq!(engine.step().unwrap(), []);
        }
        assert!(engine.stop(RequestId(0)));
        engine.submit(request(1, vec![1; 20], 5, &[])).unwrap();
        assert!(engine.abort(RequestId(1)));
        assert!(!engine.is_idle(), "the first one's end is not told");
        let events = engine.step().unwrap();
        assert!(matches!(
            events[..],
            [Event::Finished { id: RequestId(0), reason: FinishReason::Stop, num_new_tokens: 0, .. }]
        ));
        while !engine.is_idle() {
            assert_eq!(engine.step().unwrap(), []);
        }
        assert_eq!(engine.runner().num_live(), 0);
    }
}

#[test]
fn tokens_collected_before_a_failed_launch_are_told_before_the_error() {
    let limits = limits(2, 8, true);
    let mut runner = FakeRunner::new(limits.clone());
    runner.failing_launch = Some(2);
    let mut engine = Engine::new(runner, limits);
    engine.submit(request(0, vec![1], 2, &[])).unwrap();
    engine.submit(request(1, vec![2], 9, &[])).unwrap();
    engine.submit(request(2, vec![3], 1, &[])).unwrap_err();

    let tokens = |events: &[Event]| events.iter().filter(|e| matches!(e, Event::Token { .. })).count();
    assert_eq!(tokens(&engine.step().unwrap()), 2);
    engine.submit(request(2, vec![3], 1, &[])).unwrap();
    // The third launch fails here, yet the second pass still ends request 0 as it should.
    let events = engine.step().unwrap();
    assert_eq!(tokens(&events), 2);
    assert!(matches!(
        events[..],
        [.., Event::Finished { id: RequestId(0), reason: FinishReason::Length, .. }, _]
    ));
    assert_eq!(engine.step().unwrap_err().to_string(), "launch 2 is out of memory");
    assert!(!engine.is_idle());

    let events = engine.step().unwrap();
    let failed: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Finished { id, reason: FinishReason::Error, num_new_tokens, .. } => {
                Some((id.0, *num_new_tokens))
            }
            _ => None,
        })
        .collect();
    assert_eq!(failed, [(1, 2), (2, 0)]);
    assert!(engine.is_idle());
}

#[test]
fn a_request_that_cannot_be_served_is_refused_with_the_reason() {
    let mut engine = engine(Limits { max_batch_tokens: Some(10), ..limits(2, 4, true) });
    assert_eq!(engine.submit(request(0, vec![], 1, &[])), Err(SubmitError::EmptyPrompt));
    assert_eq!(engine.submit(request(0, vec![1], 0, &[])), Err(SubmitError::NoNewTokens));
    let error = engine.submit(request(0, vec![1; 8], 4, &[])).unwrap_err();
    assert!(error.to_string().starts_with("8 prompt tokens and up to 4 new ones cannot fit"), "{error}");
    assert!(matches!(
        engine.submit(request(0, vec![1], usize::MAX, &[])),
        Err(SubmitError::TooLong { max_batch_tokens: 10, .. })
    ));
    assert!(engine.is_idle());

    // The last new token is not fed back and needs no KV: 8 + 3 fill 10 places.
    engine.submit(request(0, vec![1; 8], 3, &[])).unwrap();
    assert_eq!(engine.submit(request(0, vec![1], 1, &[])), Err(SubmitError::DuplicateId(RequestId(0))));
    assert_eq!(engine.num_free_slots(), 1);
    engine.submit(request(1, vec![1; 8], 3, &[])).unwrap();
    assert!(!engine.has_room());
    assert_eq!(engine.submit(request(2, vec![1], 1, &[])), Err(SubmitError::QueueFull { max_waiting: 2 }));
    while !engine.is_idle() {
        engine.step().unwrap();
    }
    assert_eq!(engine.stats().peak_rows, 1, "the two do not fit together");
    engine.submit(request(0, vec![1], 1, &[])).expect("an id is free again when its request has ended");
}

#[test]
fn a_runner_that_loses_a_token_is_an_error_not_a_shifted_answer() {
    struct Forgetful(FakeRunner);
    impl Runner for Forgetful {
        fn launch(&mut self, groups: &[Group]) -> Result<(), RunnerError> {
            self.0.launch(groups)
        }
        fn collect(&mut self) -> Result<Vec<TokenId>, RunnerError> {
            let mut tokens = self.0.collect()?;
            tokens.pop();
            Ok(tokens)
        }
        fn release(&mut self, sequence: SequenceId) {
            self.0.release(sequence);
        }
    }
    let limits = limits(2, 8, true);
    let mut engine = Engine::new(Forgetful(FakeRunner::new(limits.clone())), limits);
    engine.submit(request(0, vec![1], 2, &[])).unwrap();
    engine.submit(request(1, vec![2], 9, &[])).unwrap();
    let error = engine.step().unwrap_err();
    assert_eq!(error.to_string(), "a forward pass gave 1 tokens for 2 rows");
    assert_eq!(engine.step().unwrap().len(), 2, "both requests end, as errors");
    assert!(engine.is_idle());
}
