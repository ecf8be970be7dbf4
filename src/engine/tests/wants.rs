//! Requests that want more than tokens: what they are owed, and how they share what is stored.
//!
//! Owns an independent formula for processors, the random wants that other runs put on their requests, and
//! the cases of scored prompts whose exact course matters.

use proptest::prelude::*;

use super::super::fake_runner::{self, VOCAB_SIZE};
use super::cached_stories::{RULES, answered, cached_engine, words};
use super::*;
use crate::cache::Tier;

/// Logits after a prompt and some new tokens, as the request's processors have them.
pub(super) fn processed(request: &GenerationRequest, new: &[TokenId]) -> Vec<f32> {
    let Processors { repetition_penalty, repetition_window, presence_penalty, frequency_penalty, .. } =
        request.processors;
    let Processors { logit_bias, min_new_tokens, bad_words, never, .. } = &request.processors;
    let all: Vec<TokenId> = request.prompt.iter().chain(new).copied().collect();
    let recent = &all[all.len() - repetition_window.unwrap_or(all.len()).min(all.len())..];
    let is_banned = |token: TokenId| {
        let completes = |word: &Vec<TokenId>| {
            word.split_last().is_some_and(|(last, start)| *last == token && new.ends_with(start))
        };
        never.contains(&token)
            // A guide knows better when an answer may end.
            || request.guide.is_none() && new.len() < *min_new_tokens && request.end_ids.contains(&token)
            || bad_words.iter().any(completes)
    };
    let mut logits = fake_runner::logits(&all, &request.sampling);
    for (token, logit) in (0..).zip(&mut logits) {
        let biases = logit_bias.iter().filter(|(biased, _)| *biased == token);
        *logit += biases.map(|(_, bias)| bias).sum::<f32>();
        if is_banned(token) {
            *logit = f32::NEG_INFINITY;
        }
        if recent.contains(&token) {
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
        }
        let num_new = new.iter().filter(|other| **other == token).count();
        *logit -= frequency_penalty * num_new as f32;
        *logit -= if num_new > 0 { presence_penalty } else { 0.0 };
    }
    logits
}

/// What is owed of a scored prompt.
pub(super) fn scores(request: &GenerationRequest) -> Vec<TokenReport> {
    let Some(score) = &request.score else { return Vec::new() };
    let positions = score.from..request.prompt.len().max(score.from);
    let report = |position: usize| {
        let logits = fake_runner::logits(&request.prompt[..position], &greedy(0));
        fake_runner::report(&logits, request.prompt[position], score.num_top)
    };
    positions.map(report).collect()
}

fn any_processors() -> impl Strategy<Value = Processors> {
    let token = || 0..VOCAB_SIZE;
    let penalty = || prop_oneof![3 => Just(0.0f32), 1 => -1.0f32..3.0];
    let penalties = (prop_oneof![2 => Just(1.0f32), 1 => 0.5f32..4.0], penalty(), penalty());
    let window = prop::option::of(0usize..10);
    let bias = prop::collection::vec((token(), -6.0f32..6.0), 0..3);
    let words = prop::collection::vec(prop::collection::vec(0..4u32, 0..4), 0..4);
    let never = prop::collection::vec(token(), 0..2);
    (penalties, window, bias, 0usize..4, words, never).prop_map(
        |((repetition, presence, frequency), repetition_window, bias, min_new_tokens, words, never)| {
            Processors {
                repetition_penalty: repetition,
                repetition_window,
                presence_penalty: presence,
                frequency_penalty: frequency,
                logit_bias: bias.into(),
                min_new_tokens,
                bad_words: words.into(),
                never: never.into(),
            }
        },
    )
}

type Wants = (Option<Processors>, Option<u32>, Option<(usize, u32)>, bool, Option<usize>);

fn any_wants() -> impl Strategy<Value = Wants> {
    let processors = prop::option::weighted(0.4, any_processors());
    let score = prop::option::weighted(0.3, (1usize..50, 0u32..3));
    let guide = prop::option::weighted(0.3, 0usize..100);
    (processors, prop::option::weighted(0.3, 0u32..4), score, any::<bool>(), guide)
}

/// The same requests, some of which want more.
pub(super) fn with_wants(
    requests: Vec<(GenerationRequest, Interruption)>,
) -> impl Strategy<Value = Vec<(GenerationRequest, Interruption)>> {
    prop::collection::vec(any_wants(), requests.len()).prop_map(move |wants| {
        let mut requests = requests.clone();
        for ((request, _), (processors, report, score, is_score_only, guide)) in
            requests.iter_mut().zip(wants)
        {
            request.processors = processors.unwrap_or_default();
            if let Some(number) = guide {
                request.guide = Some(guided::pattern(number));
                if !request.end_ids.is_empty() {
                    request.end_ids = [guided::END].into();
                }
                // So that there is always something to choose.
                (request.processors.never, request.processors.bad_words) = Default::default();
            }
            request.report = report.map(|num_top| Report { num_top });
            request.score =
                score.map(|(from, num_top)| Score { from: 1 + from % request.prompt.len(), num_top });
            if request.score.is_some() && is_score_only {
                request.max_new_tokens = 0;
            }
        }
        requests
    })
}

fn scored(id: u64, prompt: Vec<TokenId>, from: usize) -> GenerationRequest {
    let score = Some(Score { from, num_top: 1 });
    GenerationRequest { score, ..request(id, prompt, 0, &[]) }
}

/// Several continuations of one context, as a plan has them.
fn choices(context: &[TokenId], num_choices: u64) -> Vec<GenerationRequest> {
    let users = 0..=num_choices - 1;
    let cut = Cut { position: context.len() - 1, tier: Tier::User, users };
    let choice = |id: u64| {
        let prompt = [context, &words(100 + 10 * id as u32, 3)].concat();
        let plan = PromptPlan { order: id, cuts: vec![cut.clone()], drops_private: num_choices > 1 };
        GenerationRequest { plan, ..scored(id, prompt, context.len()) }
    };
    (0..num_choices).map(choice).collect()
}

#[test]
fn continuations_of_one_context_cost_the_context_once_and_are_not_decoded() {
    for rule in RULES {
        let context = words(0, 20);
        let mut run = answered(cached_engine(limits(8, 64, true), rule, u64::MAX), &choices(&context, 8));
        let runner = run.engine.runner();
        // The context less its last token once; that one and all but the last of three tokens eight times.
        assert_eq!(runner.num_prefilled(), 19 + 8 * 3);
        assert!(runner.passes.iter().flatten().all(|group| matches!(group.input, Input::Prompt(_))));
        assert_eq!(runner.passes.len(), 2, "the context, then all of them side by side");
        assert_eq!(run.num_cached.values().sum::<usize>(), 7 * 19);
        checks::at_the_end(&mut run.engine);
    }
}

#[test]
fn what_is_scored_again_is_computed_again_and_nothing_else_is() {
    for rule in RULES {
        let context = words(0, 20);
        let first = answered(cached_engine(limits(8, 64, true), rule, u64::MAX), &choices(&context, 1));
        let again = answered(first.engine, &choices(&context, 1));
        assert_eq!(again.num_cached[&RequestId(0)], 19);
        // A prompt that goes on from the same tokens resumes on them, however deep they are stored.
        let whole = request(1, [&context[..], &words(100, 9)].concat(), 2, &[]);
        let whole = answered(again.engine, &[whole]);
        assert_eq!(whole.num_cached[&RequestId(1)], 19);
        let deeper = answered(whole.engine, &[scored(2, [&context[..], &words(100, 9)].concat(), 25)]);
        let expected = if rule == RULES[0] { 24 } else { 19 };
        assert_eq!(deeper.num_cached[&RequestId(2)], expected, "{rule:?}");
        let mut all = answered(deeper.engine, &[scored(3, [&context[..], &words(100, 9)].concat(), 1)]);
        assert_eq!(all.num_cached[&RequestId(3)], 0);
        checks::at_the_end(&mut all.engine);
    }
}

#[test]
fn scores_come_in_order_before_the_first_token_and_only_for_those_who_asked() {
    let mut engine = engine(limits(2, 4, false));
    let prompt = words(0, 11);
    let both = GenerationRequest { score: Some(Score { from: 3, num_top: 2 }), ..request(0, prompt, 2, &[]) };
    engine.submit(both.clone()).unwrap();
    engine.submit(request(1, words(30, 11), 1, &[])).unwrap();
    let mut events = Vec::new();
    while !engine.is_idle() {
        events.extend(engine.step().unwrap());
    }
    let of_first = events.iter().filter(
        |event| matches!(event, Event::Scored { id, .. } | Event::Token { id, .. } if *id == RequestId(0)),
    );
    let seen: Vec<(usize, usize)> = of_first
        .map(|event| match event {
            Event::Scored { position, reports, .. } => (*position, reports.len()),
            _ => (0, 0),
        })
        .collect();
    assert_eq!(seen, [(3, 2), (5, 4), (9, 2), (0, 0), (0, 0)]);
    let of_second = |event: &&Event| matches!(event, Event::Scored { id: RequestId(1), .. });
    assert_eq!(events.iter().filter(of_second).count(), 0);
}

#[test]
fn a_prompt_with_nothing_to_score_is_finished_at_once() {
    let mut engine = engine(limits(2, 4, true));
    engine.submit(scored(0, vec![5], 1)).unwrap();
    engine.submit(scored(1, vec![5, 6], 2)).unwrap();
    let events = engine.step().unwrap();
    assert_eq!(events.len(), 2);
    assert!(events.iter().all(|event| matches!(
        event,
        Event::Finished { reason: FinishReason::Length, num_new_tokens: 0, .. }
    )));
    assert!(engine.is_idle());
    assert_eq!(engine.submit(request(2, vec![5, 6], 0, &[])), Err(SubmitError::NoNewTokens));
}

#[test]
fn a_scored_prompt_whose_logits_are_no_numbers_ends_for_that_reason() {
    for rule in RULES {
        let limits = limits(4, 64, true);
        let mut runner = FakeRunner::new(limits.clone()).with_rule(rule);
        runner.failures.poison = Some(words(100, 1)[0]);
        let cache = crate::cache::CacheLimits { max_bytes: u64::MAX, max_entries: None };
        let requests = choices(&words(0, 20), 3);
        let requests: Vec<_> = requests.into_iter().map(|request| (request, Interruption::None)).collect();
        let mut run = run(Engine::new(runner, limits, Some(cache)), &requests);
        assert_eq!(run.outcomes[&RequestId(0)].finishes, [(FinishReason::NotNumbers, 0)]);
        for (request, _) in &requests[1..] {
            assert_eq!(run.outcomes[&request.id], answer_alone(request), "{rule:?}");
        }
        checks::at_the_end(&mut run.engine);
    }
}
