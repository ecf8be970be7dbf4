//! Engines on a cache file that is damaged, and files of engines whose passes fail.
//!
//! Owns what is computed again, and what must never be saved. Sound files are `persisted`'s.

use super::super::fake_runner::Failures;
use super::cached_stories::{RULES, answered, uninterrupted, with_a_shared_prefix, words};
use super::persisted::{CacheFile, open, saved};
use super::*;
use crate::cache::{ResumeRule, Tier};
use crate::snapshot::{Contents, Snapshot};

#[test]
fn a_damaged_extent_costs_what_it_holds_and_all_below_it_and_is_counted() {
    let requests = with_a_shared_prefix(3);
    for rule in RULES {
        let file = CacheFile::new();
        saved(answered(file.engine(limits(4, 64, true), rule), &requests));
        let pristine = std::fs::read(&file.path).expect("the file is there");
        let extents = file.extents(rule, &requests[1].prompt[..29]);
        assert_eq!(extents.len(), 2);
        // The shared prefix, then one end of three.
        for (offset, num_computed) in [(extents[0], 20 + 3 * 9), (extents[1], 9)] {
            std::fs::write(&file.path, &pristine).expect("there is room");
            file.damage(offset + 7);
            let run = answered(file.engine(limits(4, 64, true), rule), &requests);
            assert_eq!(run.engine.runner().num_prefilled(), num_computed, "{rule:?}");
            assert_eq!(run.engine.snapshot().map(Snapshot::num_damaged), Some(1), "{rule:?}");
            saved(run);
            // Its save has healed the file.
            assert_eq!(file.num_damaged(), 0);
            let run = answered(file.engine(limits(4, 64, true), rule), &requests);
            assert_eq!(run.engine.runner().num_prefilled(), 0, "{rule:?}");
        }
    }
}

#[test]
fn a_damaged_state_costs_its_prefix_and_is_counted() {
    let requests = with_a_shared_prefix(3);
    let (file, rule) = (CacheFile::new(), ResumeRule::Checkpoints);
    saved(answered(file.engine(limits(4, 64, true), rule), &requests));
    let found = open(&file.path, rule).find(&requests[1].prompt[..29]);
    let state = found.last().and_then(|found| found.checkpoint.as_ref()).expect("a state at the end");
    file.damage(state.extents()[0].offset);
    let run = answered(file.engine(limits(4, 64, true), rule), &requests);
    assert_eq!(run.engine.runner().num_prefilled(), 9);
    assert_eq!(run.engine.snapshot().map(Snapshot::num_damaged), Some(1));
    saved(run);
    let run = answered(file.engine(limits(4, 64, true), rule), &requests);
    assert_eq!(run.engine.runner().num_prefilled(), 0);
}

#[test]
fn what_another_process_saves_does_not_bring_damage_back() {
    // The other's index still named the damaged extent, and what was computed anew counted as there.
    let requests = with_a_shared_prefix(2);
    let file = CacheFile::new();
    let rule = ResumeRule::AnyToken;
    saved(answered(file.engine(limits(4, 64, true), rule), &requests));
    file.damage(file.extents(rule, &requests[0].prompt)[0]);
    let run = answered(file.engine(limits(4, 64, true), rule), &requests);
    assert_eq!(run.engine.runner().num_prefilled(), 20 + 2 * 9);
    saved(answered(file.engine(limits(4, 64, true), rule), &[request(7, words(900, 9), 2, &[])]));
    saved(run);
    assert_eq!(file.num_damaged(), 0);
    let run = answered(file.engine(limits(4, 64, true), rule), &requests);
    assert_eq!(run.engine.runner().num_prefilled(), 0);
}

#[test]
fn what_a_pass_under_way_computes_is_not_saved_yet() {
    for rule in RULES {
        let file = CacheFile::new();
        let mut engine = file.engine(limits(2, 8, true), rule);
        engine.submit(request(0, words(0, 25), 3, &[])).expect("there is room");
        let mut num_saved = Vec::new();
        while !engine.is_idle() {
            engine.step().expect("nothing fails");
            num_saved.push(engine.save_snapshot().expect("there is room").num_tokens);
        }
        assert!(num_saved.is_sorted() && num_saved[0] < 24, "{num_saved:?}");
        // The prompt and two tokens of its answer; the third is not fed back.
        assert_eq!(num_saved.last(), Some(&27), "{rule:?}");
        checks::at_the_end(&mut engine);
    }
}

#[test]
fn what_a_failed_pass_was_to_compute_is_never_saved() {
    let requests = with_a_shared_prefix(6);
    for rule in RULES {
        for collect in 0..8 {
            let file = CacheFile::new();
            let mut runner = FakeRunner::new(limits(3, 10, true)).with_rule(rule);
            runner.failures = Failures { collect: Some(collect), ..Failures::default() };
            let cache = crate::cache::CacheLimits { max_bytes: u64::MAX, max_entries: None };
            let engine = file.attach(Engine::new(runner, limits(3, 10, true), Some(cache)), rule);
            // Saved after every step, failed ones among them.
            let first = run_with(engine, &uninterrupted(&requests), |engine| {
                engine.save_snapshot().expect("there is room");
            });
            assert_eq!(first.errors.len(), 1);
            saved(first);
            let run = answered(file.engine(limits(3, 10, true), rule), &requests);
            saved(run);
            let contents = Contents::read(&file.path).expect("it opens");
            assert!(contents.entries.iter().any(|entry| entry.tier == Tier::System));
        }
    }
}
