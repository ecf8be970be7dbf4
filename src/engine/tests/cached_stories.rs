//! Runs with the prompt cache that are told step by step.
//!
//! Owns the cases whose exact course matters: who waits for whom, what a next turn finds, what goes
//! where room is short.

use super::super::fake_runner::{BYTES_PER_TOKEN, VOCAB_SIZE};
use super::*;
use crate::cache::{CacheLimits, ResumeRule, Tier};

pub(super) const RULES: [ResumeRule; 2] = [ResumeRule::AnyToken, ResumeRule::Checkpoints];

pub(super) fn cached_engine(limits: Limits, rule: ResumeRule, max_bytes: u64) -> Engine<FakeRunner> {
    let runner = FakeRunner::new(limits.clone()).with_rule(rule);
    Engine::new(runner, limits, Some(CacheLimits { max_bytes, max_entries: None }))
}

pub(super) fn uninterrupted(requests: &[GenerationRequest]) -> Vec<(GenerationRequest, Interruption)> {
    requests.iter().map(|request| (request.clone(), Interruption::None)).collect()
}

/// Runs requests that must all get the answers they would get alone.
pub(super) fn answered(engine: Engine<FakeRunner>, requests: &[GenerationRequest]) -> Run {
    let run = run(engine, &uninterrupted(requests));
    for request in requests {
        assert_eq!(run.outcomes[&request.id], answer_alone(request));
    }
    run
}

/// Tokens from `first` on that no answer contains.
pub(super) fn words(first: u32, num_tokens: u32) -> Vec<TokenId> {
    (VOCAB_SIZE + first..VOCAB_SIZE + first + num_tokens).collect()
}

/// The prompt of the next turn: all that was said, an end token included, and a new question.
pub(super) fn next_turn(id: u64, request: &GenerationRequest, question: u32) -> (GenerationRequest, usize) {
    let answer = answer_alone(request);
    let mut prompt = request.prompt.clone();
    prompt.extend(&answer.tokens);
    if answer.finishes[0].0 == FinishReason::Stop {
        prompt.push(request.end_ids[0]);
    }
    let num_said = prompt.len();
    prompt.extend(words(question, 3));
    (self::request(id, prompt, 2, &[]), num_said)
}

#[test]
fn the_next_turn_of_a_conversation_finds_the_answer() {
    for rule in RULES {
        for (lookahead, end_ids) in [(false, &[][..]), (true, &[]), (true, &[1]), (false, &[1])] {
            let first = request(0, words(0, 4), 9, end_ids);
            let run = answered(
                cached_engine(limits(4, 8, lookahead), rule, u64::MAX),
                std::slice::from_ref(&first),
            );
            let (second, num_said) = next_turn(1, &first, 10);
            let mut run = answered(run.engine, &[second]);
            // The last token of an answer is not fed back, but that one row of lookahead after an
            // end token is kept.
            let is_stopped = answer_alone(&first).finishes[0].0 == FinishReason::Stop;
            let num_fed = if lookahead && is_stopped { num_said } else { num_said - 1 };
            assert_eq!(run.num_cached[&RequestId(1)], num_fed, "{rule:?} {lookahead} {end_ids:?}");
            checks::at_the_end(&mut run.engine);
        }
    }
}

#[test]
fn an_answer_that_cannot_come_again_is_not_kept() {
    // Where the template drops the thinking of earlier turns, no later prompt begins with such an answer, and
    // it took the place of others in memory and in the file.
    for rule in RULES {
        for (lookahead, end_ids) in [(false, &[][..]), (true, &[]), (true, &[1]), (false, &[1])] {
            let mut requests = [request(0, words(0, 4), 9, end_ids), request(1, words(20, 4), 9, end_ids)];
            requests[0].answer_recurs = AnswerRecurs::asking(|tokens| {
                assert!(!tokens.is_empty());
                false
            });
            let run = answered(cached_engine(limits(4, 8, lookahead), rule, u64::MAX), &requests);
            let held = run.engine.cache_usage().unwrap();
            assert_eq!(held.tiers[Tier::Assistant].num_entries, 1, "{rule:?} {lookahead} {end_ids:?}");
            let (next, _) = next_turn(2, &requests[0], 10);
            let mut run = answered(run.engine, &[next]);
            assert_eq!(run.num_cached[&RequestId(2)], 3, "the prompt is there");
            checks::at_the_end(&mut run.engine);
        }
    }
}

#[test]
fn answers_to_the_same_prompt_are_kept_side_by_side() {
    // Found by reading: each answer begins with the prompt's last token, so the second one always
    // overlapped the first and was dropped.
    for rule in RULES {
        let first: Vec<_> = (0..3).map(|id| request(id, words(0, 4), 6, &[])).collect();
        let run = answered(cached_engine(limits(4, 8, true), rule, u64::MAX), &first);
        let turns: Vec<_> = first.iter().map(|request| next_turn(request.id.0 + 3, request, 10)).collect();
        let second: Vec<_> = turns.iter().map(|(request, _)| request.clone()).collect();
        assert_ne!(second[0].prompt, second[1].prompt, "their keys differ");
        let mut run = answered(run.engine, &second);
        for (request, num_said) in &turns {
            assert_eq!(run.num_cached[&request.id], num_said - 1, "{rule:?}");
        }
        checks::at_the_end(&mut run.engine);
    }
}

#[test]
fn a_prefix_of_no_numbers_is_dropped_when_a_row_on_it_has_no_token() {
    // It stayed in the cache, and every row that had no token counted as a failure of the device.
    for rule in RULES {
        for lookahead in [false, true] {
            let mut engine = cached_engine(limits(4, 16, lookahead), rule, u64::MAX);
            engine.runner_mut().failures.poison = Some(words(8, 1)[0]);
            // Eight good tokens, then the poisoned one, in half of the prompts.
            let mut requests: Vec<_> = (0..12).map(|id| request(id, words(0, 8), 5, &[])).collect();
            for (index, request) in requests.iter_mut().enumerate() {
                request.prompt.extend(if index % 2 == 0 { words(8, 6) } else { words(40, 6) });
                request.prompt.extend(words(60 + index as u32, 1));
            }
            let mut run = run(engine, &uninterrupted(&requests));
            assert!(run.errors.is_empty(), "{:?}", run.errors);
            for (index, request) in requests.iter().enumerate() {
                if index % 2 == 0 {
                    assert_eq!(run.outcomes[&request.id].finishes, [(FinishReason::NotNumbers, 0)]);
                } else {
                    assert_eq!(run.outcomes[&request.id], answer_alone(request), "{rule:?} {lookahead}");
                }
            }
            assert_eq!(run.engine.stats().num_without_token, 6);
            let tree = run.engine.cache_mut().expect("it has one").tree();
            let tokens =
                tree.preorder().into_iter().filter_map(|id| tree.node(id)).flat_map(|node| node.tokens());
            assert!(!tokens.copied().any(|token| token == words(8, 1)[0]), "{rule:?} {lookahead}");
            checks::at_the_end(&mut run.engine);
        }
    }
}

#[test]
fn who_waits_for_a_prefix_takes_over_when_its_leader_is_gone() {
    let mut engine = cached_engine(limits(3, 2, false), ResumeRule::AnyToken, u64::MAX);
    let mut requests: Vec<_> = (0..3).map(|id| request(id, words(0, 9), 3, &[])).collect();
    requests[2].prompt.extend(words(20, 2));
    for request in &requests {
        engine.submit(request.clone()).unwrap();
    }
    for _ in 0..3 {
        assert_eq!(engine.step().unwrap(), []);
    }
    assert_eq!(engine.runner().num_live(), 1, "the others wait");
    assert_eq!(engine.runner().num_prefilled(), 6);
    assert!(engine.abort(RequestId(0)));
    let mut finished = Vec::new();
    for _ in 0..20 {
        for event in engine.step().unwrap() {
            if let Event::Finished { id, num_cached_tokens, .. } = event {
                finished.push((id.0, num_cached_tokens));
            }
        }
    }
    // The second begins anew, and the third waits for it.
    assert_eq!(finished, [(1, 0), (2, 8)]);
    assert_eq!(engine.runner().num_prefilled(), 6 + 8 + 2);
    checks::at_the_end(&mut engine);
}

#[test]
fn who_waits_for_a_prefix_is_passed_over_by_those_behind_who_need_another() {
    for rule in RULES {
        // Three groups of three, each with a prefix of its own, in the plan's order.
        let requests: Vec<_> = (0..9)
            .map(|id| {
                let (group, first) = (id / 3, id / 3 * 3);
                let cut = Cut { position: 6, tier: Tier::User, users: first..=first + 2 };
                let prompt = [words(100 * group as u32, 6), words(1000 + 10 * id as u32, 3)].concat();
                let plan = PromptPlan { order: id, cuts: vec![cut], drops_private: true };
                GenerationRequest { plan, ..request(id, prompt, 2, &[]) }
            })
            .collect();
        let run = answered(cached_engine(limits(9, 64, false), rule, u64::MAX), &requests);
        let num_tokens = |pass: &Vec<Group>| -> Vec<usize> {
            let prompt = |group: &Group| match &group.input {
                Input::Prompt(tokens) => Some(tokens.len()),
                _ => None,
            };
            pass.iter().filter_map(prompt).collect()
        };
        let prefills: Vec<_> = run.engine.runner().passes.iter().map(num_tokens).collect();
        assert_eq!(prefills[..2], [vec![6; 3], vec![2; 9]], "{rule:?}");
        assert!(prefills[2..].iter().all(Vec::is_empty), "{rule:?}: {prefills:?}");
    }
}

/// Requests whose prompts share 20 tokens and go on alone for 10, the last one included.
pub(super) fn with_a_shared_prefix(num_requests: u64) -> Vec<GenerationRequest> {
    let users = 0..=num_requests - 1;
    let cut = Cut { position: 20, tier: Tier::System, users };
    (0..num_requests)
        .map(|id| GenerationRequest {
            plan: PromptPlan { order: id, cuts: vec![cut.clone()], drops_private: false },
            ..request(id, [words(0, 20), words(100 * (id as u32 + 1), 10)].concat(), 4, &[])
        })
        .collect()
}

#[test]
fn what_is_private_does_not_push_out_what_others_need() {
    // Stored and pinned while its sequence ran, a private suffix pushed out the prefix that the next
    // requests needed, or stayed over the limit.
    let requests = with_a_shared_prefix(6);
    for rule in RULES {
        let limits = limits(2, 64, true);
        let mut engine = cached_engine(limits, rule, 20 * BYTES_PER_TOKEN + 40);
        for chunk in requests.chunks(2) {
            let run = answered(engine, chunk);
            engine = run.engine;
            // Between the requests of the run, too: the rest of them is yet to come.
            let usage = engine.cache_usage().unwrap();
            assert!(usage.num_bytes <= 20 * BYTES_PER_TOKEN + 40, "{usage:?}");
        }
        assert_eq!(engine.runner().num_prefilled(), 20 + 6 * 9, "{rule:?}");
        checks::at_the_end(&mut engine);
    }
}

#[test]
fn a_prompt_larger_than_the_cache_is_answered_and_not_kept() {
    for rule in RULES {
        let mut engine = cached_engine(limits(2, 4, true), rule, 5 * BYTES_PER_TOKEN);
        engine.submit(request(0, words(0, 12), 3, &[])).unwrap();
        while !engine.is_idle() {
            engine.step().unwrap();
            assert_eq!(engine.runner().num_stored_bytes(), 0, "{rule:?}");
        }
        checks::at_the_end(&mut engine);
    }
}

#[test]
fn what_is_stored_never_counts_beside_what_it_pushes_out() {
    // Room was made only after each insertion, so the limit was passed by a prompt or an answer each time.
    let requests: Vec<GenerationRequest> =
        (0..8u32).map(|id| request(u64::from(id), words(20 * id, 12), 6, &[])).collect();
    for rule in RULES {
        let max_bytes = 40 * BYTES_PER_TOKEN;
        let mut run = answered(cached_engine(limits(2, 64, true), rule, max_bytes), &requests);
        let usage = run.engine.cache_usage().unwrap();
        assert!(usage.num_evictions() > 0 && usage.num_bytes > max_bytes / 2, "{rule:?}: {usage:?}");
        assert!(usage.peak_bytes <= max_bytes && usage.num_over_limit == 0, "{rule:?}: {usage:?}");
        checks::at_the_end(&mut run.engine);
    }
}

#[test]
fn what_nobody_can_ask_for_again_is_not_stored() {
    let mut requests = with_a_shared_prefix(4);
    for GenerationRequest { plan, .. } in &mut requests {
        plan.drops_private = true;
        plan.cuts.push(Cut { position: 25, tier: Tier::User, users: plan.order..=plan.order });
    }
    for rule in RULES {
        let mut run = answered(cached_engine(limits(2, 64, true), rule, u64::MAX), &requests);
        assert_eq!(run.engine.runner().num_prefilled(), 20 + 4 * 9, "{rule:?}");
        // It is cut for it all the same, as where it is stored: the prefix, and each one's two pieces. Else a
        // run with a cache file computed other shapes than one without.
        let is_prompt = |group: &&Group| matches!(group.input, Input::Prompt(_));
        let num_chunks = run.engine.runner().passes.iter().flatten().filter(is_prompt).count();
        assert_eq!(num_chunks, 1 + 2 * 4, "{rule:?}");
        let held = run.engine.cache_usage().unwrap();
        assert_eq!((held.num_bytes, held.num_evictions()), (held.peak_bytes, 0), "{rule:?}");
        // The shared prefix alone, and its state.
        assert_eq!(run.engine.cache_mut().unwrap().tree().num_nodes(), 1, "{rule:?}");
        checks::at_the_end(&mut run.engine);
    }
}

#[test]
fn an_answer_that_a_planned_request_continues_is_stored_all_the_same() {
    for rule in RULES {
        let mut first = request(0, words(0, 8), 5, &[]);
        let (mut second, num_said) = next_turn(1, &first, 10);
        let cut = Cut { position: 7, tier: Tier::User, users: 0..=1 };
        for (order, request) in [&mut first, &mut second].into_iter().enumerate() {
            request.plan = PromptPlan { order: order as u64, cuts: vec![cut.clone()], drops_private: true };
        }
        // One after the other, so that the answer is there in time.
        let mut run = answered(cached_engine(limits(1, 64, false), rule, u64::MAX), &[first, second]);
        assert_eq!(run.num_cached[&RequestId(1)], num_said - 1, "{rule:?}");
        checks::at_the_end(&mut run.engine);
    }
}

#[test]
fn a_prefix_larger_than_the_cache_is_kept_for_those_who_share_it() {
    let requests = with_a_shared_prefix(4);
    for rule in RULES {
        let mut run = answered(cached_engine(limits(4, 64, true), rule, 5 * BYTES_PER_TOKEN), &requests);
        assert_eq!(run.engine.runner().num_prefilled(), 20 + 4 * 9, "{rule:?}");
        let usage = run.engine.cache_usage().unwrap();
        assert!(usage.num_over_limit > 0 && usage.peak_bytes >= 20 * BYTES_PER_TOKEN, "it is told");
        checks::at_the_end(&mut run.engine);
    }
}

#[test]
fn shared_prefixes_beyond_the_limit_count_against_the_memory_of_the_batch() {
    // Whoever computed a prefix was charged for it and ended first; those who shared it held it for nothing,
    // so one prefix after the other came in.
    let requests: Vec<_> = (0..16)
        .map(|id| {
            let first = id / 2 * 2;
            let cut = Cut { position: 20, tier: Tier::User, users: first..=first + 1 };
            let prompt = [words(100 * (id as u32 / 2), 20), words(5000 + 10 * id as u32, 3)].concat();
            let plan = PromptPlan { order: id, cuts: vec![cut], drops_private: true };
            let num_new = if id == first { 4 } else { 30 };
            GenerationRequest { plan, ..request(id, prompt, num_new, &[]) }
        })
        .collect();
    let (max_bytes, max_batch_tokens) = (25 * BYTES_PER_TOKEN, 300);
    for rule in RULES {
        let limits = Limits { max_batch_tokens: Some(max_batch_tokens), ..limits(16, 64, false) };
        let mut peak_bytes = 0;
        let mut run = run_with(cached_engine(limits, rule, max_bytes), &uninterrupted(&requests), |engine| {
            let own_bytes = engine.runner().num_own_tokens() as u64 * BYTES_PER_TOKEN;
            peak_bytes = peak_bytes.max(engine.runner().num_stored_bytes() + own_bytes);
        });
        for request in &requests {
            assert_eq!(run.outcomes[&request.id], answer_alone(request));
        }
        assert!(peak_bytes > max_bytes, "{rule:?}: what is needed is kept");
        let most = max_bytes + max_batch_tokens as u64 * BYTES_PER_TOKEN;
        assert!(peak_bytes <= most, "{rule:?}: {peak_bytes} of {most}");
        checks::at_the_end(&mut run.engine);
    }
}

#[test]
fn recurrent_state_is_brought_once_to_a_stored_path_that_lacks_it() {
    // A sequence that could not resume on a stored path computed its whole prompt alone, stored
    // nothing, and so did everyone after it.
    let old = request(0, [words(0, 20), words(50, 10)].concat(), 4, &[]);
    for (lookahead, is_planned) in [(true, true), (false, true), (true, false), (false, false)] {
        let engine = cached_engine(limits(4, 64, lookahead), ResumeRule::Checkpoints, u64::MAX);
        let run = answered(engine, std::slice::from_ref(&old));
        assert_eq!(run.engine.runner().num_prefilled(), 29);
        // They leave the old prompt after 20 tokens, where no state was kept.
        let mut requests = with_a_shared_prefix(4);
        if !is_planned {
            requests.iter_mut().for_each(|request| request.plan = PromptPlan::default());
        }
        let mut run = answered(run.engine, &requests);
        assert_eq!(run.engine.runner().num_prefilled(), 29 + 20 + 4 * 9);
        let num_cached: Vec<usize> = (0..4).map(|id| run.num_cached[&RequestId(id)]).collect();
        assert_eq!(num_cached, [0, 20, 20, 20]);
        checks::at_the_end(&mut run.engine);
    }
}

/// The whole stayed in memory beside its halves for as long as somebody ran on it.
#[test]
fn what_is_split_while_a_sequence_runs_on_it_is_held_once() {
    let max_bytes = 42 * BYTES_PER_TOKEN;
    for rule in RULES {
        let stored = [request(0, words(0, 21), 1, &[]), request(1, words(50, 10), 1, &[])];
        let mut engine = answered(cached_engine(limits(2, 64, false), rule, max_bytes), &stored).engine;
        engine.submit(request(2, words(0, 21), 9, &[])).unwrap();
        engine.step().unwrap();
        let before = engine.runner().num_stored_bytes();

        engine.submit(request(3, [words(0, 10), words(90, 1)].concat(), 1, &[])).unwrap();
        engine.step().unwrap();
        // The halves take what the whole took, and there is a state more.
        let states = engine.runner().num_stored_bytes() - before;
        assert!(states <= 2 * 15, "{rule:?}: {states}");
        let during = engine.cache_usage().unwrap();
        assert!(during.num_evictions() == 0 && during.peak_bytes <= max_bytes, "{rule:?}: {during:?}");

        while !engine.is_idle() {
            engine.step().unwrap();
        }
        checks::at_the_end(&mut engine);
    }
}

#[test]
fn what_the_cache_did_not_keep_is_charged_to_the_sequence_that_has_it() {
    // Once stored it counted as kept, and was taken off what the cache holds beyond its limit for others: with a
    // long shared prefix and ends that find no room, twice the rows entered that the limits have memory for.
    let num_users = 8;
    let (num_shared, num_own, num_new) = (120, 30, 20);
    let of_id = |id: u64| {
        let prompt = [words(0, num_shared), words(1000 + 100 * id as u32, num_own)].concat();
        let cut = Cut { position: num_shared as usize, tier: Tier::System, users: 0..=num_users };
        GenerationRequest {
            plan: PromptPlan { order: id, cuts: vec![cut], drops_private: false },
            ..request(id, prompt, if id == 0 { 1 } else { num_new }, &[])
        }
    };
    let requests: Vec<GenerationRequest> = (0..=num_users).map(of_id).collect();
    let (max_cached, max_batch_tokens) = (20, 200);
    for rule in RULES {
        let limits = Limits { max_batch_tokens: Some(max_batch_tokens), ..limits(8, 64, false) };
        let engine = cached_engine(limits, rule, max_cached * BYTES_PER_TOKEN);
        let mut peak_bytes = 0;
        let mut run = run_with(engine, &uninterrupted(&requests), |engine| {
            peak_bytes = peak_bytes.max(engine.runner().num_alive_bytes() - engine.num_rest_bytes());
        });
        for request in &requests {
            assert_eq!(run.outcomes[&request.id], answer_alone(request));
        }
        assert!(
            peak_bytes <= (max_cached + max_batch_tokens as u64) * BYTES_PER_TOKEN,
            "{rule:?}: {peak_bytes}"
        );
        // As many as fit do run side by side.
        assert_eq!(run.engine.stats().peak_rows, 2, "{rule:?}");
        checks::at_the_end(&mut run.engine);
    }
}
