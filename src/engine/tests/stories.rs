//! Runs that are told step by step.
//!
//! Owns the cases whose exact course matters: what lookahead costs, when rows fall free, what is
//! told in which order when the runner fails, why a request is refused.

use super::super::fake_runner::VOCAB_SIZE;
use super::*;

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
        [(true, 50, 1, 8), (false, 50, 0, 7), (true, 5, 0, 6), (false, 5, 0, 6)]
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
        // One row, three requests of five passes each: never an idle or a wasted pass.
        assert_eq!(run.engine.stats().num_passes(), 15);
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
    assert_eq!(stats.num_prefilled_tokens(), 32 * 9, "the last token of a prompt is a decode row");
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
        end_token: None,
        end_report: None,
        problem: None,
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
    runner.failures.launch = Some(2);
    let mut engine = Engine::new(runner, limits, None);
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
    let limits = limits(2, 8, true);
    let mut runner = FakeRunner::new(limits.clone());
    runner.failures.loses_tokens = true;
    let mut engine = Engine::new(runner, limits, None);
    engine.submit(request(0, vec![1], 2, &[])).unwrap();
    engine.submit(request(1, vec![2], 9, &[])).unwrap();
    let error = engine.step().unwrap_err();
    assert_eq!(error.to_string(), "a forward pass gave 1 outcomes for 2 groups");
    assert_eq!(engine.step().unwrap().len(), 2, "both requests end, as errors");
    assert!(engine.is_idle());
}

#[test]
fn a_row_without_a_token_ends_for_that_reason_and_the_others_do_not() {
    // Logits that are no numbers were taken for token 0, and the answer for a good one.
    for lookahead in [false, true] {
        let limits = limits(3, 64, lookahead);
        let requests: Vec<_> = (0..4).map(|id| request(id, vec![id as u32; 5], 6, &[])).collect();
        let mut runner = FakeRunner::new(limits.clone());
        // The first pass computes the prompts.
        runner.failures.no_token = Some(3);
        let requests: Vec<_> = requests.into_iter().map(|request| (request, Interruption::None)).collect();
        let run = run(Engine::new(runner, limits, None), &requests);
        assert_eq!(run.outcomes[&RequestId(0)].finishes, [(FinishReason::NotNumbers, 2)], "{lookahead}");
        for (request, _) in &requests[1..] {
            assert_eq!(run.outcomes[&request.id], answer_alone(request), "{lookahead}");
        }
        assert!(run.errors.is_empty(), "the device is not at fault: {:?}", run.errors);
        assert_eq!((run.engine.runner().num_live(), run.engine.stats().num_without_token), (0, 1));
    }
}
