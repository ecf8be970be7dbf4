//! Engines that follow each other on one cache file, told step by step.
//!
//! Owns what a second engine gets from the first by way of a real file: everything once, cut anywhere,
//! under tight limits. Damage and failures are in `persisted_faults`, random stories in
//! `persisted_random`.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::super::fake_runner::{BYTES_PER_TOKEN, EXPORTED_BYTES_PER_TOKEN};
use super::cached_stories::{
    RULES, answered, cached_engine, next_turn, uninterrupted, with_a_shared_prefix, words,
};
use super::*;
use crate::cache::{ResumeRule, Tier};
use crate::snapshot::{CacheMode, Identity, IdentityPart, Snapshot, SnapshotError, SnapshotOptions, verify};

/// A cache file in a folder of its own.
pub(super) struct CacheFile {
    _folder: tempfile::TempDir,
    pub path: PathBuf,
}

impl CacheFile {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("cache.bin");
        Self { _folder: folder, path }
    }

    /// Attaches the file, as it is now, to an engine of this rule.
    pub fn attach(&self, engine: Engine<FakeRunner>, rule: ResumeRule) -> Engine<FakeRunner> {
        engine.with_snapshot(open(&self.path, rule))
    }

    /// An engine without a limit on this file.
    pub fn engine(&self, limits: Limits, rule: ResumeRule) -> Engine<FakeRunner> {
        self.attach(cached_engine(limits, rule, u64::MAX), rule)
    }

    /// Places of the extents that a prompt's pieces are in, first to last.
    pub fn extents(&self, rule: ResumeRule, prompt: &[TokenId]) -> Vec<u64> {
        let found = open(&self.path, rule).find(prompt);
        let extents = found.iter().flat_map(|found| found.piece.extents());
        extents.map(|extent| extent.offset).collect()
    }

    /// Extents whose bytes are not what was saved.
    pub fn num_damaged(&self) -> usize {
        verify(&self.path, |_| {}).expect("it opens").damaged.len()
    }

    /// Flips a bit.
    pub fn damage(&self, offset: u64) {
        let file = std::fs::File::options().read(true).write(true).open(&self.path).expect("it opens");
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).expect("the place is in the file");
        file.write_all_at(&[byte[0] ^ 4], offset).expect("it can be written");
    }
}

pub(super) fn open(path: &Path, rule: ResumeRule) -> Snapshot {
    let identity = Identity {
        model: "fake".to_owned(),
        needs_checkpoints: rule == ResumeRule::Checkpoints,
        parts: vec![IdentityPart::new("weights", b"fake")],
        stamps: Vec::new(),
    };
    let options = SnapshotOptions { mode: CacheMode::ReadWrite, max_bytes: None };
    Snapshot::open(path, options, |_| Ok::<_, SnapshotError>(identity)).expect("a sound file or none")
}

pub(super) fn saved(mut run: Run) -> usize {
    let report = run.engine.save_snapshot().expect("there is room");
    checks::at_the_end(&mut run.engine);
    report.num_new_tokens
}

fn num_restored(engine: &Engine<FakeRunner>) -> usize {
    engine.persist_stats().num_restored_tokens
}

#[test]
fn what_one_engine_has_stored_and_saved_the_next_brings_in() {
    let requests = with_a_shared_prefix(4);
    for rule in RULES {
        for lookahead in [false, true] {
            let file = CacheFile::new();
            let first = answered(file.engine(limits(4, 64, lookahead), rule), &requests);
            assert_eq!(first.engine.runner().num_prefilled(), 20 + 4 * 9);
            // The answers but for their last tokens, and the last token of each prompt before them.
            assert_eq!(saved(first), 20 + 4 * 9 + 4 * 4, "{rule:?}");
            // Each brings in the shared prefix and its own end, and all of it only once.
            let mut second = answered(file.engine(limits(4, 64, lookahead), rule), &requests);
            assert_eq!(second.engine.runner().num_prefilled(), 0, "{rule:?}");
            assert_eq!(num_restored(&second.engine), 20 + 4 * 9, "{rule:?}");
            assert_eq!(second.num_cached.values().sum::<usize>(), 4 * 29);
            let report = second.engine.save_snapshot().expect("there is room");
            assert_eq!((report.num_new_tokens, report.num_tokens), (0, 20 + 4 * 9 + 4 * 4), "{rule:?}");
            checks::at_the_end(&mut second.engine);
        }
    }
}

#[test]
fn a_prompts_tokens_are_compared_once_wherever_they_are_before_it_enters() {
    // Each prompt was looked up when it was submitted, twice or more in every pass that it waited for, and three to
    // six times when it entered: more with each piece that the file had of it.
    let compared = |engine: &mut Engine<FakeRunner>, requests: &[GenerationRequest]| {
        let num_compared = |engine: &mut Engine<FakeRunner>| {
            engine.cache_mut().expect("it has one").tree().num_compared.get()
        };
        let before = num_compared(engine);
        requests.iter().for_each(|request| engine.submit(request.clone()).expect("there is room"));
        let mut num_begun = 0;
        while num_begun < requests.len() {
            engine.step().expect("nothing fails");
            num_begun += engine.admitted().len();
        }
        let num_compared = num_compared(engine) - before;
        while !engine.is_idle() {
            engine.step().expect("nothing fails");
        }
        num_compared
    };
    let new = [request(0, words(0, 30), 9, &[])];
    let parts = [request(1, [words(0, 12), words(100, 8)].concat(), 9, &[])];
    let follower = request(3, [words(200, 20), words(300, 8)].concat(), 2, &[]);
    let leader = GenerationRequest { id: RequestId(2), ..follower.clone() };
    for rule in RULES {
        for max_rows in [1, 4] {
            let file = CacheFile::new();
            let mut engine = file.engine(limits(max_rows, 4, true), rule);
            assert_eq!(compared(&mut engine, &new), 0, "{rule:?}: it is new");
            assert_eq!(compared(&mut engine, &new), 29, "{rule:?}: it is in memory");
            assert_eq!(compared(&mut engine, &parts), 12, "{rule:?}: it parts from what is in memory");
            // The second waits while the first is computed, or for a row.
            assert_eq!(
                compared(&mut engine, &[leader.clone(), follower.clone()][..max_rows.min(2)]),
                27 * (max_rows.min(2) - 1),
                "{rule:?}"
            );
            engine.save_snapshot().expect("there is room");
            let mut engine = file.engine(limits(max_rows, 4, true), rule);
            for requests in [&new, &parts] {
                let num_reusable = requests[0].num_reusable();
                assert_eq!(compared(&mut engine, requests), num_reusable, "{rule:?}: it is in the file");
            }
        }
    }
}

#[test]
fn without_limits_nothing_is_stored_and_a_file_is_left_alone() {
    let mut requests = with_a_shared_prefix(4);
    requests.push(request(4, words(7, 1), 3, &[]));
    for rule in RULES {
        let file = CacheFile::new();
        saved(answered(file.engine(limits(4, 64, true), rule), &requests[..2]));
        let before = std::fs::read(&file.path).expect("it was saved");
        let limits = limits(4, 64, true);
        let runner = FakeRunner::new(limits.clone()).with_rule(rule);
        let mut run = answered(file.attach(Engine::new(runner, limits, None), rule), &requests);
        assert_eq!(run.engine.runner().num_prefilled(), 4 * 29, "{rule:?}");
        assert_eq!((run.engine.cache_usage(), num_restored(&run.engine)), (None, 0));
        assert!(!run.engine.has_much_unsaved());
        assert_eq!(run.engine.save_snapshot().expect("there is nothing to do").num_tokens, 0);
        assert_eq!(std::fs::read(&file.path).expect("it is still there"), before, "{rule:?}");
        checks::at_the_end(&mut run.engine);
    }
}

#[test]
fn what_is_no_number_is_not_saved_and_the_rest_is() {
    for rule in RULES {
        let file = CacheFile::new();
        let mut engine = file.engine(limits(4, 64, false), rule);
        let poison = words(40, 1)[0];
        engine.runner_mut().failures.poison = Some(poison);
        let good = request(0, words(0, 8), 2, &[]);
        let bad = request(1, [words(20, 6), words(40, 3)].concat(), 9, &[]);
        engine.submit(good).expect("there is room");
        engine.submit(bad.clone()).expect("there is room");
        // The prompts are computed, and nobody knows yet what they are.
        engine.step().expect("nothing fails");
        engine.save_snapshot().expect("there is room");
        let found = open(&file.path, rule).find(&words(0, 8));
        assert_eq!(found.last().map(|found| found.end), Some(7), "{rule:?}");
        let found = open(&file.path, rule).find(&bad.prompt);
        assert!(found.last().is_none_or(|found| found.end <= 6), "{rule:?}");
    }
}

#[test]
fn who_is_brought_in_first_does_not_wait_for_the_others() {
    let requests = with_a_shared_prefix(4);
    for rule in RULES {
        let file = CacheFile::new();
        saved(answered(file.engine(limits(4, 64, false), rule), &requests));
        let mut engine = file.engine(Limits { max_restored_bytes: 0, ..limits(4, 64, false) }, rule);
        for request in &requests {
            engine.submit(request.clone()).expect("there is room");
        }
        for num_running in 1..=4 {
            let events = engine.step().expect("nothing fails");
            let tokens = events.iter().filter(|event| matches!(event, Event::Token { .. }));
            assert_eq!(tokens.count(), num_running, "{rule:?}");
        }
        assert_eq!(engine.runner().num_prefilled(), 0, "{rule:?}");
    }
}

#[test]
fn the_next_turn_finds_the_answer_of_another_process() {
    for rule in RULES {
        let file = CacheFile::new();
        let first = request(0, words(0, 4), 9, &[]);
        saved(answered(file.engine(limits(4, 8, true), rule), std::slice::from_ref(&first)));
        let (second, num_said) = next_turn(1, &first, 10);
        let run = answered(file.engine(limits(4, 8, true), rule), &[second]);
        assert_eq!(run.num_cached[&RequestId(1)], num_said - 1, "{rule:?}");
        saved(run);
    }
}

#[test]
fn memory_and_file_may_be_cut_at_different_places() {
    // The file has prompts whole; in memory another prompt has cut the same tokens first, and the
    // other way round.
    let long = request(0, words(0, 30), 2, &[]);
    let short = request(1, [words(0, 12), words(50, 5)].concat(), 2, &[]);
    let middle = request(2, [words(0, 21), words(60, 5)].concat(), 2, &[]);
    let file = CacheFile::new();
    saved(answered(file.engine(limits(1, 64, false), ResumeRule::AnyToken), std::slice::from_ref(&long)));

    let mut engine = file.engine(limits(1, 64, false), ResumeRule::AnyToken);
    let mut num_prefilled = 0;
    for (request, num_new, num_brought_in) in [(&short, 4, 12), (&middle, 4, 9), (&long, 0, 8)] {
        let num_before = num_restored(&engine);
        engine = answered(engine, std::slice::from_ref(request)).engine;
        num_prefilled += num_new;
        assert_eq!(engine.runner().num_prefilled(), num_prefilled, "{request:?}");
        assert_eq!(num_restored(&engine) - num_before, num_brought_in, "{request:?}");
    }
    let report = engine.save_snapshot().expect("there is room");
    // The new ends, and answers of two tokens each, of which the last is not fed; the last token
    // of a prompt comes with them. The long one's answer was there.
    assert_eq!(report.num_new_tokens, 2 * (4 + 2));

    // Now the file is cut at three places, and memory where a fourth prompt leaves the others.
    let mut engine = file.engine(limits(1, 64, false), ResumeRule::AnyToken);
    let fourth = request(3, [words(0, 25), words(70, 2)].concat(), 2, &[]);
    for (request, num_brought_in) in [(&fourth, 25), (&long, 4), (&middle, 4), (&short, 4)] {
        let num_before = num_restored(&engine);
        engine = answered(engine, std::slice::from_ref(request)).engine;
        assert_eq!(num_restored(&engine) - num_before, num_brought_in, "{request:?}");
    }
    assert_eq!(engine.runner().num_prefilled(), 1, "all but one token of the fourth was there");
    checks::at_the_end(&mut engine);
}

#[test]
fn recurrent_state_comes_back_only_where_it_was_kept() {
    let file = CacheFile::new();
    let old = request(0, [words(0, 20), words(50, 10)].concat(), 4, &[]);
    let rule = ResumeRule::Checkpoints;
    saved(answered(file.engine(limits(4, 64, true), rule), std::slice::from_ref(&old)));
    // They leave the old prompt after 20 tokens, where no state was kept: nothing is brought in.
    let requests = with_a_shared_prefix(4);
    let run = answered(file.engine(limits(4, 64, true), rule), &requests);
    assert_eq!(num_restored(&run.engine), 0);
    assert_eq!(run.engine.runner().num_prefilled(), 20 + 4 * 9);
    saved(run);
    // From the next on there is a state, and the old prompt has lost nothing.
    let all = [requests, vec![GenerationRequest { id: RequestId(9), ..old }]].concat();
    let run = answered(file.engine(limits(4, 64, true), rule), &all);
    assert_eq!(run.engine.runner().num_prefilled(), 0);
    saved(run);
}

#[test]
fn under_a_tight_limit_what_was_evicted_is_brought_in_again_and_again() {
    // Three groups that share 20 tokens each, in turns, and room for one group.
    let group = |index: u64, round: u64| -> Vec<GenerationRequest> {
        let order = (round * 3 + index) * 2;
        let cut = Cut { position: 20, tier: Tier::System, users: order..=order + 1 };
        let prompt = |id| [words(1000 * index as u32, 20), words(100 * (id as u32 + 1), 5)].concat();
        let request = |id| GenerationRequest {
            plan: PromptPlan { order: order + id, cuts: vec![cut.clone()], drops_private: false },
            ..request(index * 2 + id, prompt(id), 3, &[])
        };
        (0..2).map(request).collect()
    };
    let max_bytes = 50 * BYTES_PER_TOKEN;
    for rule in RULES {
        let file = CacheFile::new();
        let mut engine = file.attach(cached_engine(limits(1, 64, false), rule, max_bytes), rule);
        for round in 0..3 {
            for index in 0..3 {
                let requests = group(index, round);
                let run = run_with(engine, &uninterrupted(&requests), |engine| {
                    engine.save_snapshot().expect("there is room");
                });
                for request in &requests {
                    assert_eq!(run.outcomes[&request.id], answer_alone(request));
                }
                engine = run.engine;
                assert!(engine.cache_usage().is_some_and(|usage| usage.num_bytes <= max_bytes));
            }
            assert_eq!(engine.runner().num_prefilled(), 3 * (20 + 2 * 4), "{rule:?} in round {round}");
        }
        assert!(num_restored(&engine) >= 2 * 2 * 28, "{rule:?}: {}", num_restored(&engine));
        checks::at_the_end(&mut engine);
    }
}

#[test]
fn who_has_to_wait_for_a_row_is_not_brought_in_at_every_step() {
    // With rows that pin more than the limit, what was brought in for the next in line was evicted in the same
    // step, and read from the file again in the next one.
    let file = CacheFile::new();
    let requests: Vec<_> = (0..2).map(|id| request(id, words(100 * id as u32, 20), 30, &[])).collect();
    let tight = |max_bytes| {
        file.attach(
            cached_engine(limits(1, 64, false), ResumeRule::AnyToken, max_bytes),
            ResumeRule::AnyToken,
        )
    };
    saved(answered(tight(u64::MAX), &requests));
    let mut run = answered(tight(25 * BYTES_PER_TOKEN), &requests);
    assert_eq!(run.engine.runner().num_prefilled(), 0);
    assert_eq!(num_restored(&run.engine), 2 * 19);
    checks::at_the_end(&mut run.engine);
}

#[test]
fn prompts_that_do_not_all_fit_under_the_limit_are_read_once_and_run_on() {
    // Rows held as much as the limit allows, so what was read for the next one was dropped at once: it was
    // computed after all, or, where it found no place, read again in every step.
    let requests: Vec<_> = (0..6).map(|id| request(id, words(100 * id as u32, 20), 12, &[])).collect();
    let max_bytes = 30 * BYTES_PER_TOKEN;
    for rule in RULES {
        let file = CacheFile::new();
        saved(answered(file.engine(limits(6, 64, false), rule), &requests));
        // With a place for all, and with one for the KV of two at a time.
        for max_batch_tokens in [None, Some(2 * 31)] {
            let limits = Limits { max_batch_tokens, ..limits(6, 64, false) };
            let engine = file.attach(cached_engine(limits, rule, max_bytes), rule);
            let mut run = run_with(engine, &uninterrupted(&requests), |engine| {
                let usage = engine.cache_usage().unwrap();
                assert!(usage.num_bytes <= max_bytes, "{rule:?}: {usage:?}");
            });
            for request in &requests {
                assert_eq!(run.outcomes[&request.id], answer_alone(request));
                assert_eq!(run.num_cached[&request.id], 19);
            }
            assert_eq!(run.engine.runner().num_prefilled(), 0, "{rule:?}");
            assert_eq!(num_restored(&run.engine), 6 * 19, "{rule:?}");
            let peak_rows = run.engine.stats().peak_rows;
            assert!(if max_batch_tokens.is_some() { peak_rows <= 2 } else { peak_rows == 6 }, "{peak_rows}");
            checks::at_the_end(&mut run.engine);
        }
    }
}

#[test]
fn what_the_next_pass_may_push_out_is_saved_before() {
    // It was time to save when little room was left, however much a pass may store: what two passes had stored
    // was evicted before it was ever saved.
    let requests: Vec<_> = (0..6).map(|id| request(id, words(100 * id as u32, 20), 2, &[])).collect();
    for rule in RULES {
        let file = CacheFile::new();
        let max_bytes = 100 * BYTES_PER_TOKEN;
        let engine = file.attach(cached_engine(limits(3, 64, false), rule, max_bytes), rule);
        let run = run_with(engine, &uninterrupted(&requests), |engine| {
            if engine.has_much_unsaved() {
                engine.save_snapshot().expect("there is room");
            }
        });
        assert!(run.engine.cache_usage().unwrap().num_evictions() > 0, "{rule:?}");
        saved(run);
        let second = answered(file.engine(limits(3, 64, false), rule), &requests);
        assert_eq!(second.engine.runner().num_prefilled(), 0, "{rule:?}");
        saved(second);
    }
}

#[test]
fn a_prompt_that_others_have_cut_is_read_once() {
    // Each piece read the whole of what the prompt was saved in: 30 times as much as there was.
    let file = CacheFile::new();
    let long = request(0, words(0, 1501), 1, &[]);
    let cut = |id: u64| request(id, [words(0, 50 * id as u32), words(5000, 3)].concat(), 1, &[]);
    let rule = ResumeRule::AnyToken;
    saved(answered(file.engine(limits(1, 2048, false), rule), std::slice::from_ref(&long)));
    for id in 1..30 {
        saved(answered(file.engine(limits(1, 2048, false), rule), &[cut(id)]));
    }
    assert_eq!(open(&file.path, rule).find(&long.prompt[..1500]).len(), 30);
    let run = answered(file.engine(limits(1, 2048, false), rule), std::slice::from_ref(&long));
    assert_eq!(num_restored(&run.engine), 1500);
    let num_bytes = u64::from(EXPORTED_BYTES_PER_TOKEN) * 1500;
    assert_eq!(run.engine.persist_stats().num_read_bytes, num_bytes);
    saved(run);
}
