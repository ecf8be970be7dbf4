//! Random mixes of requests, limits, interruptions and failures.
//!
//! Owns what has to hold of every run.

use proptest::prelude::*;

use super::super::fake_runner::{Failures, VOCAB_SIZE};
use super::*;

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
    fn every_request_gets_the_answer_it_would_get_alone(limits in any_limits(), requests in any_requests().prop_flat_map(wants::with_wants)) {
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
            // The cuts are those of the prompt alone; only an interruption leaves chunks away. The
            // last token is no part of them: it is the first decode row's input.
            let (last, rest) = requests[id.0 as usize].0.prompt.split_last().expect("not empty");
            let chunks = rest.chunks(chunk).map(|tokens| (Input::Prompt(tokens.to_vec()), false));
            let num_chunks = chunks.len();
            let first_row = [(Input::Last(*last), true)];
            let rows = std::iter::repeat_with(|| (Input::Sampled, true));
            let expected = chunks.chain(first_row).chain(rows).take(groups.len());
            let inputs = groups.iter().map(|(_, group)| (group.input.clone(), matches!(group.want, Want::Token(_))));
            prop_assert_eq!(inputs.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
            // Once its prompt is done, a sequence is in every pass until it ends.
            let decodes = groups.iter().skip(num_chunks.saturating_sub(1)).map(|(pass, _)| *pass);
            let decodes: Vec<usize> = decodes.collect();
            prop_assert!(decodes.windows(2).all(|pair| pair[1] == pair[0] + 1), "{decodes:?}");
        }
    }

    #[test]
    fn a_failing_pass_ends_its_own_requests_and_no_others(
        limits in any_limits(),
        requests in any_requests().prop_flat_map(wants::with_wants),
        failing_launch in prop::option::of(0usize..40),
        failing_collect in prop::option::of(0usize..40),
    ) {
        let requests: Vec<_> = requests.into_iter().map(|(r, _)| (r, Interruption::None)).collect();
        let mut runner = FakeRunner::new(limits.clone());
        runner.failures = Failures { launch: failing_launch, collect: failing_collect, ..Failures::default() };
        let run = run(Engine::new(runner, limits, None), &requests);
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
