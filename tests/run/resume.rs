//! `--resume` on the real binary: killed at any moment, gone on with, and in the end as if nothing had been.
//!
//! Owns the proof that nothing is lost or done otherwise. NUM_KILLS sets how many runs are killed; every state
//! that one may leave is tested beside the writer.

use std::env;
use std::process::Child;
use std::thread;
use std::time::Instant;

use serde_json::json;

use crate::support::{Desk, code_of, message_of};

/// Requests that share prompts and differ in length, greedy and sampled ones; some are errors.
fn input(num_lines: usize) -> String {
    let line = |number: usize| match number % 17 {
        4 => "{\"id\": \"bad\n".to_owned(),
        9 => format!("{}\n", json!({"id": format!("r{number}"), "prompt": 1})),
        _ => format!(
            "{}\n",
            json!({
                "id": format!("r{number}"),
                "prompt": format!("Words that all begin with, again and again, then number {number}"),
                "max_tokens": 2 + number % 9,
                "temperature": (number % 3) as f64 / 2.0,
            })
        ),
    };
    (0..num_lines).map(line).collect()
}

const FLAGS: [&str; 6] = ["in.jsonl", "-o", "out.jsonl", "--deterministic-ids", "--batch-size", "3"];

fn spawn(desk: &Desk, resumes: bool) -> Child {
    let mut arguments = FLAGS.to_vec();
    arguments.extend(resumes.then_some("--resume"));
    desk.spawn(&arguments)
}

fn end(mut child: Child) -> Option<i32> {
    child.wait().expect("it ends").code()
}

#[test]
fn a_run_killed_anywhere_and_gone_on_with_writes_what_an_uninterrupted_one_does() {
    let num_kills: usize = env::var("NUM_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let desk = Desk::with_input(input(80));
    let started = Instant::now();
    assert_eq!(end(spawn(&desk, false)), Some(3), "some lines are errors");
    let run_time = started.elapsed();
    let expected = desk.read("out.jsonl");
    assert_eq!(expected.lines().count(), 80);
    desk.remove("out.jsonl");
    desk.remove("out.jsonl.manifest");

    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 40) as f64 / (1_u64 << 24) as f64
    };
    let (mut num_killed, mut num_resumed) = (0, 0);
    while num_killed < num_kills {
        // An older whole result is there or not; it must never be touched before the new one is.
        let older = (next() < 0.5).then_some(&expected[..expected.len() / 2]);
        if let Some(older) = older {
            desk.write("out.jsonl", older);
        }
        let mut is_first = true;
        loop {
            // An output of an earlier run is not gone on with where this one left nothing.
            let resumes = !is_first && desk.path("out.jsonl.partial").exists();
            num_resumed += usize::from(resumes);
            let mut child = spawn(&desk, resumes);
            is_first = false;
            if next() < 0.3 {
                assert_eq!(end(child), Some(3));
                break;
            }
            thread::sleep(run_time.mul_f64(next() * 1.1));
            let signal = ["-KILL", "-INT", "-TERM"][(next() * 3.0) as usize];
            let _ = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status();
            let code = child.wait().expect("it ends").code();
            if code == Some(3) {
                break;
            }
            assert!(matches!(code, None | Some(130)), "{code:?}");
            num_killed += 1;
            let found = desk.path("out.jsonl").exists().then(|| desk.read("out.jsonl"));
            // The kill may have come when all was done.
            assert!(found.as_deref() == older || found.as_deref() == Some(&expected), "{found:?}");
        }
        assert_eq!(desk.read("out.jsonl"), expected);
        assert_eq!(desk.names(), ["in.jsonl", "out.jsonl", "out.jsonl.manifest"]);
        desk.remove("out.jsonl");
        desk.remove("out.jsonl.manifest");
    }
    assert!(num_resumed > num_kills / 3, "only {num_resumed} runs went on");
}

#[test]
fn what_has_changed_is_named_and_errors_are_retried_on_demand() {
    let desk = Desk::with_input(input(10));
    assert_eq!(end(spawn(&desk, false)), Some(3));
    let whole = desk.read("out.jsonl");

    // Nothing is left, and the model is not even loaded.
    let assert = desk.run().args(["--resume", "--deterministic-ids"]).assert().code(3);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    // A line that is no request has nothing in its record to know it by: it is looked at again.
    assert!(stderr.contains("10 requests done") && stderr.contains("9 of them earlier"), "{stderr}");
    assert_eq!(desk.read("out.jsonl"), whole);

    let assert = desk.run().args(["--resume", "--temperature", "0.5"]).assert().code(1);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains("--temperature was 0, is 0.5") && stderr.contains("--force"), "{stderr}");
    assert_eq!(desk.read("out.jsonl"), whole);

    // The bad lines are mended: changed lines are refused, and answered anew where that is forced.
    let mended: String = (0..10)
        .map(|number| match number {
            4 | 9 => {
                format!("{}\n", json!({"id": format!("r{number}"), "prompt": "Better", "max_tokens": 2}))
            }
            _ => input(10).lines().nth(number).expect("ten lines").to_owned() + "\n",
        })
        .collect();
    desk.write("in.jsonl", mended);
    let assert = desk.run().args(["--resume"]).assert().code(1);
    let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(stderr.contains("in.jsonl:10 is not the line that was answered"), "{stderr}");
    desk.run().args(["--resume", "--retry-errors", "--force", "--deterministic-ids"]).assert().code(0);
    let lines = desk.output();
    assert!(lines.len() == 10 && lines.iter().all(|line| code_of(line) == "ok"), "{lines:?}");
    for (before, after) in whole.lines().zip(desk.read("out.jsonl").lines()) {
        assert!(before == after || !before.contains("\"status_code\":200"), "{before}\n{after}");
    }

    for arguments in [&["-", "-o", "out.jsonl", "--resume"][..], &["in.jsonl", "-o", "-", "--resume"]] {
        let mut child = desk.spawn(arguments);
        drop(child.stdin.take());
        assert_eq!(end(child), Some(1), "{arguments:?}");
    }
}

#[test]
fn an_interrupted_run_says_what_is_missing_and_how_to_go_on() {
    let desk = Desk::with_input(input(4000));
    let child = spawn(&desk, false);
    crate::support::wait_until("a result is there", || {
        std::fs::metadata(desk.path("out.jsonl.partial")).is_ok_and(|metadata| metadata.len() > 0)
    });
    let _ = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    let output = child.wait_with_output().expect("it ends");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(!stderr.contains("all ok"), "{stderr}");
    assert!(stderr.contains("results    out.jsonl.partial"), "{stderr}");
    assert!(stderr.contains("requests; the same command with --resume goes on"), "{stderr}");
    let lines = crate::support::json_lines(&desk.read("out.jsonl.partial"));
    let bad = lines.iter().find(|line| code_of(line) == "invalid_json").expect("the fifth line is bad");
    assert!(message_of(bad).starts_with("in.jsonl:5"), "{bad}");
}
