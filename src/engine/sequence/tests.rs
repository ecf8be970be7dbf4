//! How a request goes through its states.
//!
//! Owns single sequences; many at once are in the engine's tests.

use super::super::fake_runner::greedy;
use super::super::{AnswerRecurs, Cut, Processors, PromptPlan};
use super::*;
use crate::cache::Tier;

fn sequence(num_prompt_tokens: u32, max_new_tokens: usize, cuts: &[usize]) -> Sequence {
    let cut = |&position| Cut { position, tier: Tier::User, users: 0..=0 };
    let request = GenerationRequest {
        id: RequestId(7),
        prompt: (0..num_prompt_tokens).collect(),
        max_new_tokens,
        end_ids: [99].into(),
        sampling: greedy(3),
        processors: Processors::default(),
        guide: None,
        report: None,
        score: None,
        plan: PromptPlan { cuts: cuts.iter().map(cut).collect(), ..PromptPlan::default() },
        answer_recurs: AnswerRecurs::default(),
    };
    Sequence::new(SequenceId(1), request)
}

fn walk(sequence: &mut Sequence) -> Vec<(usize, bool, Work)> {
    let mut seen = Vec::new();
    while let Some(work) = sequence.counts().next_work(4) {
        let group = sequence.group(&work);
        seen.push((group.start, matches!(group.want, Want::Token(_)), work.clone()));
        sequence.advance(&work);
    }
    seen
}

#[test]
fn walks_from_waiting_to_draining() {
    let mut sequence = sequence(10, 3, &[]);
    assert_eq!(sequence.counts().next_work(4), None, "it has not entered");
    sequence.enter(0);
    let expected = [
        (0, false, Work::Prefill(0..4)),
        (4, false, Work::Prefill(4..8)),
        (8, false, Work::Prefill(8..9)),
        (9, true, Work::Decode),
        (10, true, Work::Decode),
        (11, true, Work::Decode),
    ];
    assert_eq!(walk(&mut sequence), expected);
    assert_eq!(sequence.state, State::Draining);
    assert!(!sequence.counts().is_running());
    assert_eq!(sequence.counts().max_kv_tokens, 12);
}

#[test]
fn a_plan_adds_cuts_and_what_is_stored_is_left_out() {
    let ends =
        |walked: Vec<(usize, bool, Work)>| walked.into_iter().map(|(start, ..)| start).collect::<Vec<_>>();
    // A prefix of 3 and a middle of 11 tokens, and the rest, each in pieces of 4 at most: a few tokens
    // after a long prefix are one piece, wherever they are.
    let mut whole = sequence(18, 1, &[3, 14]);
    whole.enter(0);
    assert_eq!(ends(walk(&mut whole)), [0, 3, 7, 11, 14, 17]);
    let mut rest = sequence(18, 1, &[3, 14]);
    rest.enter(9);
    assert_eq!(ends(walk(&mut rest)), [9, 11, 14, 17]);
    let mut nothing = sequence(10, 1, &[3, 6, 9]);
    nothing.enter(9);
    assert_eq!(nothing.counts().max_kv_tokens, 1);
    assert_eq!(ends(walk(&mut nothing)), [9]);
}

#[test]
fn a_prompt_of_one_token_needs_no_prefill() {
    let mut sequence = sequence(1, 1, &[]);
    sequence.enter(0);
    assert_eq!(walk(&mut sequence), [(0, true, Work::Decode)]);
    assert_eq!(sequence.state, State::Draining);
}

#[test]
fn an_end_token_is_counted_and_not_shown_even_as_the_last_one_allowed() {
    let mut sequence = sequence(2, 2, &[]);
    assert_eq!(sequence.accept(5), Accepted { token: Some(5), reason: None, problem: None });
    assert_eq!(
        sequence.accept(99),
        Accepted { token: None, reason: Some(FinishReason::Stop), problem: None }
    );
    assert_eq!(sequence.new_tokens, [5, 99]);
}

#[test]
fn what_is_known_is_what_is_both_launched_and_collected() {
    let mut sequence = sequence(3, 5, &[]);
    sequence.enter(0);
    sequence.advance(&Work::Prefill(0..2));
    assert_eq!(sequence.num_known_tokens(), 2);
    for _ in 0..2 {
        sequence.advance(&Work::Decode);
    }
    assert_eq!(sequence.num_known_tokens(), 3, "two steps are launched, no token is collected");
    sequence.accept(5);
    sequence.accept(6);
    assert_eq!(sequence.num_known_tokens(), 4, "the token 6 is not fed yet");
    assert_eq!(sequence.tokens(1..4), [1, 2, 5]);
}
