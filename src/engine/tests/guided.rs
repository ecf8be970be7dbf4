//! Requests with guides: when their tokens are chosen, and how they end.
//!
//! Owns the guides that other runs put on their requests at random, and the cases whose exact course matters.
//! The fake model's tokens are the letters from a on.

use std::sync::{Arc, OnceLock};

use super::super::fake_runner::VOCAB_SIZE;
use super::cached_stories::words;
use super::*;
use crate::guide::{Compiler, Constraint, Guide, Next, Pattern, TokenSet, Vocabulary};

/// A token that is in none of the expressions, so that it can be an end token beside them.
pub(super) const END: TokenId = 12;

/// What answers may be; some can go on for ever.
const EXPRESSIONS: [&str; 7] =
    ["b*", "a", "[b-f]{3}", "(ab|cd|[e-l]k){1,4}", "a?b?c?d?e?", "[a-l]*", "([a-d]+[e-l]{2})+"];

fn compiler() -> &'static Compiler {
    static COMPILER: OnceLock<Compiler> = OnceLock::new();
    COMPILER.get_or_init(|| {
        let tokens = (0..VOCAB_SIZE as u8).map(|token| vec![b'a' + token]).collect();
        Compiler::new(Vocabulary { tokens, ..Vocabulary::default() }).expect("it is a vocabulary")
    })
}

fn pattern_of(expression: &str) -> Pattern {
    compiler()
        .pattern(Some(&Arc::new(Constraint::Regex(expression.to_owned()))), None)
        .expect("it can be served")
}

/// One of some patterns.
pub(super) fn pattern(number: usize) -> Pattern {
    pattern_of(EXPRESSIONS[number % EXPRESSIONS.len()])
}

/// What may come after so many new tokens; nothing where the answer is over.
pub(super) fn allowed(guide: &mut Guide, request: &GenerationRequest, num_new: usize) -> Option<TokenSet> {
    let is_early = num_new < request.processors.min_new_tokens;
    match guide.next(&request.end_ids, is_early).expect("it goes on") {
        Next::OneOf(allowed) => Some(allowed),
        Next::Anything | Next::Nothing => None,
    }
}

fn guided(id: u64, expression: &str, max_new_tokens: usize, end_ids: &[TokenId]) -> GenerationRequest {
    let guide = Some(pattern_of(expression));
    GenerationRequest { guide, ..request(id, words(10 * id as u32, 5), max_new_tokens, end_ids) }
}

fn uninterrupted(requests: Vec<GenerationRequest>) -> Vec<(GenerationRequest, Interruption)> {
    requests.into_iter().map(|request| (request, Interruption::None)).collect()
}

fn letters(outcome: &Outcome) -> String {
    outcome.tokens.iter().map(|token| char::from(b'a' + *token as u8)).collect()
}

#[test]
fn answers_are_what_they_have_to_be_and_end_by_themselves() {
    for lookahead in [false, true] {
        let requests = vec![
            guided(0, "abc", 50, &[]),
            guided(1, "(ab){3}", 50, &[12]),
            guided(2, "[ab]{40}", 5, &[]),
            request(3, words(90, 4), 6, &[]),
            guided(4, "abcd", 4, &[]),
        ];
        let run = run(engine(limits(8, 64, lookahead)), &uninterrupted(requests.clone()));
        let outcome = |id: u64| &run.outcomes[&RequestId(id)];
        for request in &requests {
            assert_eq!(run.outcomes[&request.id], answer_alone(request), "{lookahead}");
        }
        assert_eq!((letters(outcome(0)).as_str(), outcome(0).finishes[0]), ("abc", (FinishReason::Stop, 3)));
        assert_eq!(
            (letters(outcome(1)).as_str(), outcome(1).finishes[0]),
            ("ababab", (FinishReason::Stop, 6))
        );
        assert_eq!(outcome(2).finishes[0], (FinishReason::Length, 5));
        // Its last token is the last one allowed, too.
        assert_eq!(outcome(4).finishes[0], (FinishReason::Stop, 4));
    }
}

/// Guided rows have a row in every pass, and rows without a guide never wait for one.
#[test]
fn a_guide_costs_no_pass() {
    for lookahead in [false, true] {
        let requests = || {
            vec![guided(0, "[a-m]{12}", 8, &[]), request(1, words(90, 4), 8, &[]), guided(2, "[ab]*", 8, &[])]
        };
        let plain =
            requests().into_iter().map(|request| GenerationRequest { guide: None, ..request }).collect();
        let num_passes = |requests: Vec<GenerationRequest>| {
            let run = run(engine(limits(8, 64, lookahead)), &uninterrupted(requests));
            (run.engine.runner().passes.len(), run.engine.runner().peak_under_way)
        };
        assert_eq!(num_passes(requests()), num_passes(plain), "{lookahead}");
    }
}

#[test]
fn an_answer_that_cannot_go_on_says_so_and_the_others_go_on() {
    for lookahead in [false, true] {
        let banned = Processors { bad_words: [vec![1], vec![0, 2]].to_vec().into(), ..Processors::default() };
        let stuck = |id, expression| GenerationRequest {
            processors: banned.clone(),
            ..guided(id, expression, 9, &[])
        };
        // There is no token for it in the vocabulary.
        let unspoken = guided(2, "a(z|aa)", 9, &[]);
        let requests = [
            stuck(0, "ab"),
            stuck(1, "a[bc]"),
            unspoken,
            guided(3, "az", 9, &[]),
            request(4, words(70, 3), 9, &[]),
        ];
        let mut engine = engine(limits(8, 64, lookahead));
        requests.iter().for_each(|request| engine.submit(request.clone()).expect("there is room"));
        let mut problems = HashMap::new();
        while !engine.is_idle() {
            for event in engine.step().expect("nothing fails") {
                if let Event::Finished { id, reason, num_new_tokens, problem, .. } = event {
                    problems.insert(id.0, (reason, num_new_tokens, problem.unwrap_or_default()));
                }
            }
        }
        for (id, problem) in [(0, "bad_words"), (1, "bad_words"), (3, "no token")] {
            let (reason, num_new_tokens, told) = &problems[&id];
            assert_eq!((*reason, *num_new_tokens), (FinishReason::Stuck, 1), "{id}: {told}");
            assert!(told.contains(problem), "{told}");
        }
        assert_eq!(problems[&2], (FinishReason::Stop, 3, String::new()));
        assert_eq!(problems[&4].0, FinishReason::Length);
        assert_eq!(engine.runner().num_live(), 0);
    }
}

/// What could still follow is beyond the vocabulary, and there is no end token.
#[test]
fn an_answer_that_nothing_can_follow_is_over() {
    for lookahead in [false, true] {
        let run = run(engine(limits(8, 64, lookahead)), &uninterrupted(vec![guided(0, "ab?z*", 9, &[1])]));
        let outcome = &run.outcomes[&RequestId(0)];
        assert_eq!((letters(outcome).as_str(), &outcome.finishes[..]), ("a", &[(FinishReason::Stop, 2)][..]));
        let run =
            super::run(engine(limits(8, 64, lookahead)), &uninterrupted(vec![guided(0, "abz*", 9, &[])]));
        let outcome = &run.outcomes[&RequestId(0)];
        assert_eq!(
            (letters(outcome).as_str(), &outcome.finishes[..]),
            ("ab", &[(FinishReason::Stop, 2)][..])
        );
    }
}

/// An early end gives way where there is nothing else to come.
#[test]
fn a_least_length_holds_as_long_as_the_answer_can_go_on() {
    for (expression, min_new_tokens, expected) in [("a*", 4, "aaaa"), ("aa", 4, "aa"), ("a{1,3}", 9, "aaa")] {
        let processors =
            Processors { min_new_tokens, logit_bias: [(12, 100.0)].into(), ..Processors::default() };
        let request = GenerationRequest { processors, ..guided(0, expression, 20, &[12]) };
        for lookahead in [false, true] {
            let run = run(engine(limits(8, 64, lookahead)), &uninterrupted(vec![request.clone()]));
            assert_eq!(letters(&run.outcomes[&RequestId(0)]), expected, "{expression}");
        }
    }
}

#[test]
fn a_choice_that_fails_ends_those_in_its_pass_and_no_others() {
    for lookahead in [false, true] {
        for number in 0..6 {
            let mut engine = engine(limits(2, 64, lookahead));
            engine.runner_mut().failures.choose = Some(number);
            let requests: Vec<GenerationRequest> = (0..5)
                .map(|id| match id % 2 {
                    0 => guided(id, "[a-m]{9}", 4, &[]),
                    _ => request(id, words(10 * id as u32, 5), 4, &[]),
                })
                .collect();
            let run = run(engine, &uninterrupted(requests.clone()));
            assert_eq!(run.errors.len(), 1, "{number}");
            let mut num_failed = 0;
            for request in &requests {
                let outcome = &run.outcomes[&request.id];
                if outcome.finishes[0].0 == FinishReason::Error {
                    num_failed += 1;
                } else {
                    assert_eq!(*outcome, answer_alone(request));
                }
            }
            assert!((1..=2).contains(&num_failed), "{num_failed} of choice {number}");
            assert_eq!(run.engine.runner().num_live(), 0);
        }
    }
}
