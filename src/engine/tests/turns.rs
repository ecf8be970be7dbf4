//! Turns that follow each other: the next one is submitted when the answer before it is there.
//!
//! Owns what that takes of the engine: that the answer is there still, and that nobody comes first.

use super::super::fake_runner::BYTES_PER_TOKEN;
use super::cached_stories::{RULES, answered, cached_engine, next_turn, words};
use super::*;
use crate::cache::ResumeRule;

/// Steps until something is told of the end of a request; what is told of it.
fn ended(engine: &mut Engine<FakeRunner>, id: u64) -> Event {
    loop {
        let events = engine.step().expect("the runner does not fail");
        let is_end = |event: &Event| matches!(event, Event::Finished { id: ended, .. } if ended.0 == id);
        if let Some(event) = events.into_iter().find(is_end) {
            return event;
        }
    }
}

fn num_cached(event: &Event) -> usize {
    match event {
        Event::Finished { num_cached_tokens, .. } => *num_cached_tokens,
        other => panic!("not the end of a request: {other:?}"),
    }
}

/// Another answer of the same pass took the room of the one that was about to be continued.
#[test]
fn an_answer_that_the_next_turn_awaits_stays_until_that_has_begun() {
    for rule in RULES {
        for (lookahead, is_awaited) in [(false, true), (true, true), (false, false)] {
            // Room for two prompts and one answer, and for a state at the end of each.
            let state_bytes = if rule == ResumeRule::Checkpoints { 15 } else { 0 };
            let max_bytes = (7 + 7 + 8) * BYTES_PER_TOKEN + 3 * state_bytes;
            let mut engine = cached_engine(limits(2, 64, lookahead), rule, max_bytes);
            let mut first = request(0, words(0, 8), 8, &[]);
            if is_awaited {
                first.answer_recurs = AnswerRecurs::default().awaited();
            }
            engine.submit(first.clone()).expect("it has room");
            engine.submit(request(3, words(50, 8), 8, &[])).expect("it has room");
            ended(&mut engine, 0);
            let (mut second, num_said) = next_turn(6, &first, 100);
            second.plan.order = engine.present();
            engine.submit_next(second).expect("it takes the place of the first");
            let found = num_cached(&ended(&mut engine, 6));
            // The last token of an answer is not fed back.
            assert_eq!(found == num_said - 1, is_awaited, "{found} of {num_said}, {rule:?}, {lookahead}");
            while !engine.is_idle() {
                engine.step().expect("the runner does not fail");
            }
            checks::at_the_end(&mut engine);
        }
    }
}

#[test]
fn the_next_turn_comes_before_all_that_wait_and_needs_no_room_in_the_line() {
    let mut engine = cached_engine(limits(1, 64, false), RULES[0], u64::MAX);
    let first = request(0, words(0, 8), 3, &[]);
    engine.submit(first.clone()).expect("it has room");
    engine.step().expect("the runner does not fail");
    engine.submit(request(1, words(50, 8), 3, &[])).expect("it has room");
    assert!(!engine.has_room());
    ended(&mut engine, 0);
    let (second, num_said) = next_turn(2, &first, 100);
    engine.submit_next(second.clone()).expect("it takes the place of the first");
    assert_eq!(
        engine.submit(request(3, words(70, 2), 1, &[])),
        Err(SubmitError::QueueFull { max_waiting: 1 })
    );
    assert_eq!(num_cached(&ended(&mut engine, 2)), num_said - 1);
    ended(&mut engine, 1);
    assert!(engine.is_idle());
    answered(engine, &[second]);
}

/// It was told by the step after, whose pass had begun without the next turn.
#[test]
fn that_a_request_was_stopped_is_told_without_another_pass() {
    let mut engine = cached_engine(limits(2, 64, true), RULES[0], u64::MAX);
    engine.submit(request(0, words(0, 8), 30, &[])).expect("it has room");
    while engine.stats().num_generated_tokens == 0 {
        engine.step().expect("the runner does not fail");
    }
    assert_eq!(engine.take_events(), []);
    assert!(engine.stop(RequestId(0)));
    let told = engine.take_events();
    assert!(matches!(told[..], [Event::Finished { reason: FinishReason::Stop, .. }]), "{told:?}");
    assert_eq!(engine.take_events(), []);
}
