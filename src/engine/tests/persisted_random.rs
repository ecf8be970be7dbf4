//! Random stories of several engines on one cache file: each with other requests, limits, failures.
//!
//! Owns what has to hold of every such story: right answers, nothing computed twice that a file
//! without a limit holds, and a file that stays sound.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::fake_runner::Failures;
use super::cached_random::{
    Case, MAX_PROMPT_TOKENS, UNLIMITED, any_cache, any_case, any_rule, uninterrupted,
    with_a_last_token_of_its_own, with_wants,
};
use super::persisted::CacheFile;
use super::*;
use crate::cache::{CacheLimits, ResumeRule};
use crate::snapshot::{Contents, Snapshot, verify};

/// One engine of a story.
#[derive(Debug, Clone)]
struct Generation {
    case: Case,
    cache: CacheLimits,
    failures: Failures,
    /// Saves after as many steps, beside the save at the end.
    save_every: Option<usize>,
    /// It is killed rather than ended: what its last save has is all that stays.
    is_killed: bool,
}

fn any_failures() -> impl Strategy<Value = Failures> {
    let rarely = |number: std::ops::Range<usize>| prop::option::weighted(0.3, number);
    (rarely(0..30), rarely(0..30), rarely(0..60)).prop_map(|(launch, collect, cache_call)| Failures {
        launch,
        collect,
        cache_call,
        ..Failures::default()
    })
}

fn any_generation() -> impl Strategy<Value = Generation> {
    (
        any_case().prop_flat_map(with_wants),
        any_cache(),
        any_failures(),
        prop::option::of(1usize..6),
        prop::bool::weighted(0.2),
    )
        .prop_map(|(case, cache, failures, save_every, is_killed)| Generation {
            case,
            cache,
            failures,
            save_every,
            is_killed,
        })
}

/// The file is sound, and memory and file agree in what they are trees of.
fn check_file(file: &CacheFile) {
    if file.path.exists() {
        let verified = verify(&file.path, |_| {}).expect("it opens");
        assert_eq!((verified.damaged.len(), verified.num_damaged_entries), (0, 0));
    }
}

fn num_held(file: &CacheFile) -> usize {
    if file.path.exists() { Contents::read(&file.path).expect("it opens").num_tokens() } else { 0 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_happens_to_engines_before_every_answer_is_the_one_alone(
        rule in any_rule(),
        generations in prop::collection::vec(any_generation(), 2..5),
    ) {
        let file = CacheFile::new();
        for Generation { case, cache, failures, save_every, is_killed } in generations {
            let case = Case { rule, ..case };
            let num_before = num_held(&file);
            let engine = file.attach(case.engine(cache, failures.clone()), rule);
            let requests = case.planned(0);
            let mut num_steps = 0;
            let mut run = run_with(engine, &requests, |engine| {
                num_steps += 1;
                if save_every.is_some_and(|every| num_steps % every == 0) {
                    // An export that fails leaves the file as it was.
                    let _ = engine.save_snapshot();
                }
            });
            let is_sound = failures.launch.is_none() && failures.collect.is_none();
            let is_sound = is_sound && failures.cache_call.is_none();
            prop_assert!(run.errors.is_empty() || !is_sound, "{:?}", run.errors);
            for (request, interruption) in &requests {
                let outcome = &run.outcomes[&request.id];
                prop_assert!(answer_alone(request).tokens.starts_with(&outcome.tokens));
                let ended_by_error = outcome.finishes.iter().any(|(reason, _)| *reason == FinishReason::Error);
                prop_assert!(!ended_by_error || !run.errors.is_empty());
                if matches!(interruption, Interruption::None) && !ended_by_error {
                    prop_assert_eq!(outcome, &answer_alone(request));
                }
            }
            if !is_killed && run.engine.save_snapshot().is_err() {
                prop_assert!(failures.cache_call.is_some());
            }
            checks::at_the_end(&mut run.engine);
            prop_assert_eq!(run.engine.snapshot().map(Snapshot::num_damaged), Some(0));
            check_file(&file);
            prop_assert!(num_held(&file) >= num_before, "nothing goes from a file without a limit");
        }
    }

    #[test]
    fn what_a_file_holds_no_later_engine_computes_again(
        cases in prop::collection::vec(any_case().prop_map(uninterrupted), 2..4),
        boundary in 1usize..=MAX_PROMPT_TOKENS,
        caches in prop::collection::vec(any_cache(), 4),
    ) {
        let file = CacheFile::new();
        let mut prefilled: HashMap<Vec<TokenId>, usize> = HashMap::new();
        for case in cases {
            let case = Case { boundary: Some(boundary), rule: ResumeRule::AnyToken, ..case };
            let case = with_a_last_token_of_its_own(case);
            let engine = file.attach(case.engine(UNLIMITED, Failures::default()), case.rule);
            let requests = case.planned(0);
            let mut run = run(engine, &requests);
            prop_assert!(run.errors.is_empty(), "{:?}", run.errors);
            for (tokens, count) in &run.engine.runner().prefilled {
                *prefilled.entry(tokens.clone()).or_default() += count;
            }
            prop_assert!(prefilled.values().all(|count| *count == 1), "{:?}", prefilled);
            run.engine.save_snapshot().expect("there is room");
            checks::at_the_end(&mut run.engine);
            check_file(&file);
            // Whatever memory has room for: the file has it all.
            for cache in caches.iter().filter(|cache| cache.max_entries.is_none()) {
                let engine = file.attach(case.engine(*cache, Failures::default()), case.rule);
                let mut warm = super::run(engine, &requests);
                prop_assert!(warm.errors.is_empty(), "{:?}", warm.errors);
                for (request, _) in &requests {
                    prop_assert_eq!(&warm.outcomes[&request.id], &answer_alone(request));
                }
                checks::at_the_end(&mut warm.engine);
            }
            let engine = file.attach(case.engine(UNLIMITED, Failures::default()), case.rule);
            let warm = super::run(engine, &requests);
            prop_assert_eq!(warm.engine.runner().num_prefilled(), 0);
        }
    }

    #[test]
    fn the_same_requests_once_more_compute_nothing_in_another_process(
        case in any_case().prop_map(uninterrupted).prop_map(with_a_last_token_of_its_own),
        rule in any_rule(),
        boundary in 1usize..=MAX_PROMPT_TOKENS,
    ) {
        let file = CacheFile::new();
        let case = Case { boundary: Some(boundary), rule, ..case };
        for repetition in 0..3 {
            let engine = file.attach(case.engine(UNLIMITED, Failures::default()), rule);
            let requests = case.planned(0);
            let mut run = run(engine, &requests);
            prop_assert!(run.errors.is_empty(), "{:?}", run.errors);
            for (request, _) in &requests {
                prop_assert_eq!(&run.outcomes[&request.id], &answer_alone(request));
            }
            let runner = run.engine.runner();
            prop_assert!(runner.prefilled.values().all(|count| *count == 1), "{:?}", runner.prefilled);
            prop_assert_eq!(runner.num_prefilled() == 0, repetition > 0 || requests.iter().all(|(request, _)| request.prompt.len() == 1));
            let num_new = run.engine.save_snapshot().expect("there is room").num_new_tokens;
            prop_assert!(repetition == 0 || num_new == 0, "{num_new} tokens are saved twice");
            checks::at_the_end(&mut run.engine);
        }
    }
}
