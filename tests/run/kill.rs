//! kill -9 at random moments of runs that save their cache file all the time.
//!
//! Owns the proof that what a save has published is never lost, and never wrong. The file's own tests,
//! which fail each operation once, are beside `snapshot`.

use std::collections::BTreeSet;
use std::thread;
use std::time::Instant;

use mlxbatch::snapshot::{Contents, verify};
use serde_json::json;

use crate::support::{Desk, text_of};

const NUM_KILLS: u32 = 200;

/// Prompts of one round: some as in every round, some new.
fn input(round: u32) -> String {
    let prompt = |text: String| format!("{}\n", json!({"prompt": text, "max_tokens": 4}));
    let common = (0..3).map(|number| prompt(format!("The harbour at dawn, part {number}")));
    common.chain((0..12).map(|number| prompt(format!("Round {round} of the boats, boat {number}")))).collect()
}

/// The tokens of every stored prefix that nothing continues.
fn stored(desk: &Desk) -> Vec<Vec<u32>> {
    let contents = match Contents::read(&desk.path("cache.bin")) {
        Ok(contents) => contents,
        Err(error) => panic!("the cache file cannot be read: {error}"),
    };
    assert_eq!(contents.num_damaged, 0);
    let mut path = Vec::new();
    let mut leaves = Vec::new();
    for entry in &contents.entries {
        path.truncate(entry.end - entry.tokens.len());
        path.extend_from_slice(&entry.tokens);
        if entry.num_below == 0 {
            leaves.push(path.clone());
        }
    }
    leaves
}

fn answers(desk: &Desk, arguments: &[&str]) -> Vec<String> {
    desk.run().args(arguments).assert().code(0);
    desk.output().iter().map(|line| text_of(line).to_owned()).collect()
}

#[test]
fn nothing_that_was_saved_is_lost_or_wrong() {
    let desk = Desk::with_input(input(0));
    let saving = ["--persist-cache", "cache.bin", "--persist-every", "1ms", "--batch-size", "2"];
    let started = Instant::now();
    answers(&desk, &saving);
    let run_time = started.elapsed();
    let mut before = stored(&desk);
    assert!(!before.is_empty());

    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut num_grown = 0;
    let mut killed = 0;
    let mut round = 0;
    while killed < NUM_KILLS {
        round += 1;
        desk.write("in.jsonl", input(round));
        let mut arguments = vec!["in.jsonl", "-o", "out.jsonl"];
        arguments.extend(saving);
        let mut child = desk.spawn(&arguments);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        thread::sleep(run_time.mul_f64((random >> 40) as f64 / (1_u64 << 24) as f64));
        child.kill().expect("it is killed, or has ended");
        killed += u32::from(child.wait().expect("it ends").code().is_none());

        let verified = verify(&desk.path("cache.bin"), |_| {}).expect("the cache file opens");
        assert!(verified.damaged.is_empty(), "round {round}: {verified:?}");
        let after = stored(&desk);
        let starts: BTreeSet<&[u32]> = after.iter().map(Vec::as_slice).collect();
        for path in &before {
            // The first stored path that is not before this one continues it, if any does.
            let next = starts.range(path.as_slice()..).next();
            assert!(next.is_some_and(|next| next.starts_with(path)), "round {round}: {path:?} is lost");
        }
        num_grown += u32::from(after.len() > before.len());
        before = after;

        if round % 40 == 0 {
            let warm = answers(&desk, &saving);
            assert_eq!(warm, answers(&desk, &["--cache-bytes", "0", "--batch-size", "2"]), "round {round}");
            before = stored(&desk);
        }
    }
    assert!(num_grown > NUM_KILLS / 10, "only {num_grown} of {round} runs were killed after a save");
    // What the killed processes have left beside the file goes with the next save.
    answers(&desk, &saving);
    let left: Vec<String> = desk.names().into_iter().filter(|name| name.contains(".new-")).collect();
    assert!(left.is_empty(), "{left:?}");
}
