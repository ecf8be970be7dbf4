//! Random runs with the prompt cache: shared prompts, plans, limits, interruptions, failures.
//!
//! Owns what has to hold of every such run; what has to hold after every step is in `checks`.

use proptest::prelude::*;

use super::super::fake_runner::{Failures, VOCAB_SIZE};
use super::*;
use crate::cache::{CacheLimits, ResumeRule};

pub(super) const MAX_PROMPT_TOKENS: usize = 14;
const MAX_NEW_TOKENS: usize = 6;
pub(super) const UNLIMITED: CacheLimits = CacheLimits { max_bytes: u64::MAX, max_entries: None };

#[derive(Debug, Clone)]
pub(super) struct Case {
    pub limits: Limits,
    pub rule: ResumeRule,
    /// Message ends of the plan; `None` for requests without a plan.
    pub boundary: Option<usize>,
    pub requests: Vec<(GenerationRequest, Interruption)>,
}

impl Case {
    pub fn engine(&self, cache: CacheLimits, failures: Failures) -> Engine<FakeRunner> {
        let mut runner = FakeRunner::new(self.limits.clone()).with_rule(self.rule);
        runner.failures = failures;
        Engine::new(runner, self.limits.clone(), Some(cache))
    }

    /// The requests, with plans as places after `first_order`.
    pub fn planned(&self, first_order: u64) -> Vec<(GenerationRequest, Interruption)> {
        let mut requests = self.requests.clone();
        if let Some(boundary) = self.boundary {
            planner::plan(&mut requests, first_order, boundary);
        }
        requests
    }
}

pub(super) fn any_rule() -> impl Strategy<Value = ResumeRule> {
    prop_oneof![Just(ResumeRule::AnyToken), Just(ResumeRule::Checkpoints)]
}

fn any_limits() -> impl Strategy<Value = Limits> {
    let max_batch_tokens = prop::option::of(MAX_PROMPT_TOKENS + MAX_NEW_TOKENS..80);
    (1usize..=8, 1usize..=20, max_batch_tokens, any::<bool>()).prop_map(|(rows, chunk, max, lookahead)| {
        Limits { max_batch_tokens: max, ..limits(rows, chunk, lookahead) }
    })
}

pub(super) fn any_cache() -> impl Strategy<Value = CacheLimits> {
    let max_bytes = prop_oneof![Just(0), 0u64..200, 0u64..2000, Just(u64::MAX)];
    (max_bytes, prop::option::of(0usize..8))
        .prop_map(|(max_bytes, max_entries)| CacheLimits { max_bytes, max_entries })
}

fn any_interruption() -> impl Strategy<Value = Interruption> {
    prop_oneof![
        6 => Just(Interruption::None),
        1 => (1..MAX_NEW_TOKENS).prop_map(Interruption::StopAfterTokens),
        1 => (1..MAX_NEW_TOKENS).prop_map(Interruption::AbortAfterTokens),
        1 => (1usize..30).prop_map(Interruption::StopBeforeStep),
        1 => (1usize..30).prop_map(Interruption::AbortBeforeStep),
    ]
}

/// Prompts over two tokens share a lot. Some are said twice or go on where others end.
pub(super) fn any_case() -> impl Strategy<Value = Case> {
    let prompt = prop::collection::vec(0..2u32, 1..=MAX_PROMPT_TOKENS);
    let end_ids = prop::collection::vec(0..VOCAB_SIZE, 0..3);
    let asked = (prompt, 1..=MAX_NEW_TOKENS, end_ids, any_interruption());
    let boundary = prop::option::weighted(0.7, 1usize..=MAX_PROMPT_TOKENS);
    (any_limits(), any_rule(), boundary, prop::collection::vec(asked, 1..24)).prop_map(
        |(limits, rule, boundary, requests)| {
            let requests = requests.into_iter().enumerate();
            let requests = requests.map(|(id, (prompt, max_new_tokens, end_ids, interruption))| {
                (request(id as u64, prompt, max_new_tokens, &end_ids), interruption)
            });
            Case { limits, rule, boundary, requests: requests.collect() }
        },
    )
}

/// The same case, in which some requests want more than tokens.
pub(super) fn with_wants(case: Case) -> impl Strategy<Value = Case> {
    wants::with_wants(case.requests.clone()).prop_map(move |requests| Case { requests, ..case.clone() })
}

pub(super) fn uninterrupted(mut case: Case) -> Case {
    for (_, interruption) in &mut case.requests {
        *interruption = Interruption::None;
    }
    case
}

/// With a last token that is found nowhere else, no prompt goes on in another's answer.
pub(super) fn with_a_last_token_of_its_own(mut case: Case) -> Case {
    for (request, _) in &mut case.requests {
        request.prompt.pop();
        request.prompt.push(VOCAB_SIZE);
    }
    case
}

fn num_last_rows(run: &Run) -> usize {
    let groups = run.engine.runner().passes.iter().flatten();
    groups.filter(|group| matches!(group.input, Input::Last(_))).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn with_a_plan_every_prefix_is_computed_once_and_a_second_time_never(
        case in any_case().prop_map(uninterrupted).prop_map(with_a_last_token_of_its_own),
        boundary in 1usize..=MAX_PROMPT_TOKENS,
    ) {
        let case = Case { boundary: Some(boundary), ..case };
        let first = case.planned(0);
        let num_requests = first.len();
        let num_prompt_tokens: usize = first.iter().map(|(request, _)| request.prompt.len() - 1).sum();
        let mut run = run(case.engine(UNLIMITED, Failures::default()), &first);
        for repetition in 1u64..=2 {
            prop_assert!(run.errors.is_empty(), "{:?}", run.errors);
            for (request, _) in &first {
                prop_assert_eq!(&run.outcomes[&request.id], &answer_alone(request));
            }
            let runner = run.engine.runner();
            prop_assert!(runner.prefilled.values().all(|count| *count == 1), "{:?}", runner.prefilled);
            prop_assert_eq!(runner.num_prefilled(), planner::num_distinct_prefixes(&first));
            prop_assert_eq!(num_last_rows(&run), num_requests * repetition as usize);
            let num_computed = if repetition == 1 { runner.num_prefilled() } else { 0 };
            let num_cached: usize = run.num_cached.values().sum();
            prop_assert_eq!(num_cached + num_computed, num_prompt_tokens);
            // Everything is there now; in another order too, and without a plan.
            let mut again = if repetition == 1 { case.planned(num_requests as u64) } else { first.clone() };
            if case.limits.lookahead {
                again.reverse();
                again.iter_mut().for_each(|(request, _)| request.plan.cuts.clear());
            }
            run = super::run(run.engine, &again);
        }
        checks::at_the_end(&mut run.engine);
    }

    #[test]
    fn without_a_plan_every_prefix_is_computed_once_where_any_token_will_do(
        case in any_case().prop_map(uninterrupted),
    ) {
        let case = Case { boundary: None, rule: ResumeRule::AnyToken, ..case };
        let mut run = run(case.engine(UNLIMITED, Failures::default()), &case.requests);
        prop_assert!(run.errors.is_empty());
        for (request, _) in &case.requests {
            prop_assert_eq!(&run.outcomes[&request.id], &answer_alone(request));
        }
        let runner = run.engine.runner();
        prop_assert!(runner.prefilled.values().all(|count| *count == 1), "{:?}", runner.prefilled);
        let stats = run.engine.stats();
        prop_assert_eq!(stats.num_cached_tokens, run.num_cached.values().sum::<usize>());
        prop_assert_eq!(
            stats.num_prompt_tokens,
            stats.num_cached_tokens + stats.num_prefilled_tokens() + stats.num_last_tokens()
        );
        prop_assert_eq!(stats.num_last_tokens(), case.requests.len());
        checks::at_the_end(&mut run.engine);
    }

    #[test]
    fn under_any_limits_and_interruptions_every_answer_is_the_one_alone(
        case in any_case().prop_flat_map(with_wants),
        cache in any_cache(),
    ) {
        let mut engine = case.engine(cache, Failures::default());
        for repetition in 0..2 {
            let requests = case.planned(repetition * case.requests.len() as u64);
            let run = run(engine, &requests);
            prop_assert!(run.errors.is_empty(), "{:?}", run.errors);
            for (request, interruption) in &requests {
                let outcome = &run.outcomes[&request.id];
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
            }
            let usage = run.engine.cache_usage().expect("it has a cache");
            prop_assert_eq!(usage.num_cached_tokens(), run.engine.stats().num_cached_tokens);
            engine = run.engine;
        }
        checks::at_the_end(&mut engine);
    }

    #[test]
    fn a_failure_ends_some_requests_and_leaves_the_cache_sound(
        case in any_case().prop_flat_map(with_wants),
        cache in any_cache(),
        launch in prop::option::of(0usize..30),
        collect in prop::option::of(0usize..30),
        cache_call in prop::option::of(0usize..40),
    ) {
        let failures = Failures { launch, collect, cache_call, ..Failures::default() };
        let requests = case.planned(0);
        let first = run(case.engine(cache, failures), &requests);
        for (request, interruption) in &requests {
            let outcome = &first.outcomes[&request.id];
            let alone = answer_alone(request);
            prop_assert!(alone.tokens.starts_with(&outcome.tokens));
            prop_assert_eq!(outcome.finishes.len(), usize::from(!outcome.is_aborted));
            if outcome.finishes == [(FinishReason::Error, outcome.tokens.len())] {
                prop_assert!(!first.errors.is_empty(), "a request ended by an error that was not told");
            } else if matches!(interruption, Interruption::None) {
                prop_assert_eq!(outcome, &alone);
            }
        }
        // Whatever was lost, the same requests are answered afterwards. A failure that the first run
        // did not come to may end some of them.
        let again = uninterrupted(case.clone()).planned(requests.len() as u64);
        let mut second = run(first.engine, &again);
        for (request, _) in &again {
            let outcome = &second.outcomes[&request.id];
            let is_lost = !second.errors.is_empty() && outcome.finishes[0].0 == FinishReason::Error;
            prop_assert!(is_lost || *outcome == answer_alone(request), "{outcome:?}");
        }
        checks::at_the_end(&mut second.engine);
    }
}
