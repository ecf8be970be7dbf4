//! Law 1 at random: conversations over shared documents of hundreds of tokens, whatever the cache went through.
//!
//! Owns the comparison: every answer of every run is held to that of a prompt by itself without a cache, and
//! a difference to the logits where it begins. `NUM_TRIALS` and `SEED` say how many trials there are of each
//! test and from which seed on, `FUZZ_SECONDS` for how long; `make fuzz-answers` makes long runs.

mod common;
#[path = "fuzz_answers/conversations.rs"]
mod conversations;
#[path = "fuzz_answers/judge.rs"]
mod judge;
#[path = "fuzz_answers/life.rs"]
mod life;
#[path = "fuzz_answers/rounding.rs"]
mod rounding;

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    time::{Duration, Instant},
};

use common::{
    batch::{Batch, Numbers},
    runs::{Outcome, Setting, engine_of, run},
    wants::MAX_ERROR,
};
use conversations::conversations;
use judge::Judge;
use life::Life;
use mlxbatch::{engine::TokenReport, mlx::ComputeDevice, models::read_config};
use rounding::{Reported, Rounding, distance};

/// Two logits this close may change places by rounding.
const MAX_NEAR_TIE: f32 = 1e-3;

/// What a batch goes through on each kind of device: a trial each.
const NUM_LIVES: usize = 3;

/// Trials of each test unless the environment says otherwise.
const NUM_TRIALS: u64 = 12;

/// Failed trials after which no more are made.
const MAX_FAILED: usize = 20;

/// A number from the environment.
fn asked(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// What the trials came to.
#[derive(Default)]
struct Findings {
    num_trials: usize,
    num_answers: usize,
    near_ties: Vec<String>,
    /// Reports that are off by more than a thousandth, as far as rounding takes them.
    num_rounded: usize,
    /// One entry a trial.
    failed: Vec<String>,
}

/// A batch, and the answers to each of its prompts by itself.
struct Reference {
    model: &'static str,
    judge: Judge,
    batch: Batch,
    answers: Vec<Vec<u32>>,
    reports: Vec<Vec<TokenReport>>,
    scores: Vec<Vec<TokenReport>>,
    rounding: Rounding,
}

impl Reference {
    fn random(model: &'static str, numbers: &mut Numbers) -> Self {
        let alone = Setting::alone();
        let mut judge = Judge::new(model);
        let mut engine = engine_of(model, &alone, None);
        let (mut reports, mut scores) = (Vec::new(), Vec::new());
        let (batch, answers) = conversations(numbers, judge.has_checkpoints(), |prompt| {
            let mut outcome = run(&mut engine, prompt, &alone);
            reports.append(&mut outcome.reports);
            scores.append(&mut outcome.scores);
            outcome.answers.remove(0)
        });
        // What all is held to is right itself, computed another way.
        let checked = numbers.within(0..=batch.prompts.len() - 1);
        for (position, token) in answers[checked].iter().enumerate().take(3) {
            let text = [&batch.prompts[checked].tokens, &answers[checked][..position]].concat();
            let gap = judge.gap(&batch, checked, &text, &[*token]);
            assert!(gap < MAX_NEAR_TIE, "alone, prompt {checked}, token {position}: {gap} below the best");
        }
        let some = |reports: &[TokenReport]| reports.iter().take(3).cloned().collect::<Vec<_>>();
        let faults = judge.faults(&batch, checked, &some(&reports[checked]), &some(&scores[checked]));
        assert!(faults.is_empty(), "alone, prompt {checked}: {faults:?}");
        Self { model, judge, batch, answers, reports, scores, rounding: Rounding::new(model) }
    }

    /// Holds the answers of one life to these; tells of those that differ, and why that is excused.
    fn check(&mut self, life: &Life, findings: &mut Findings) -> Vec<String> {
        let mut differences = Vec::new();
        let mut num_runs = 0;
        life.live(self.model, &self.batch, |run, Outcome { answers, is_whole, reports, scores, .. }| {
            num_runs += 1;
            for index in 0..answers.len() {
                let num_alike = common_prefix(&answers[index], &self.answers[index]);
                let of_alike = &reports[index][..num_alike.min(reports[index].len())];
                for (reported, found, expected) in [
                    (Reported::Answer, of_alike, &self.reports[index]),
                    (Reported::Prompt, &scores[index], &self.scores[index]),
                ] {
                    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
                        let distance = distance(found, expected);
                        if distance.is_some_and(|distance| distance < MAX_ERROR) {
                            continue;
                        }
                        let place = (reported, place);
                        let allowed = distance.map_or(0.0, |distance| {
                            self.rounding.allowed((&self.batch, index), place, expected, distance)
                        });
                        if distance.is_some_and(|distance| distance <= allowed) {
                            findings.num_rounded += 1;
                            continue;
                        }
                        let length = self.batch.prompts[index].tokens.len();
                        differences.push(format!(
                            "run {num_runs}, prompt {index} of {length} tokens, report {} is {found:?}, not \
                             {expected:?}, and rounding makes {allowed}\n    {run:?}",
                            place.1
                        ));
                        break;
                    }
                }
                let num_scored = if is_whole[index] { self.scores[index].len() } else { scores[index].len() };
                assert_eq!(scores[index].len(), num_scored, "prompt {index} has all its scores");
            }
            for (index, (found, expected)) in answers.iter().zip(&self.answers).enumerate() {
                findings.num_answers += usize::from(is_whole[index]);
                let flips = self.judge.flips(&self.batch, index, expected, found, is_whole[index]);
                let Some(first) = flips.first() else { continue };
                let length = self.batch.prompts[index].tokens.len();
                let told = format!("run {num_runs}, prompt {index} of {length} tokens, {first}");
                if flips.iter().all(|flip| flip.gap < MAX_NEAR_TIE) {
                    findings.near_ties.push(told);
                } else {
                    differences.push(format!(
                        "{told}\n    expected {expected:?}\n    found    {found:?}\n    {run:?}"
                    ));
                }
            }
        });
        differences
    }
}

fn common_prefix(left: &[u32], right: &[u32]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

/// Makes up a batch and lives of it, on both kinds of device.
fn try_batch(model: &'static str, seed: u64, findings: &mut Findings) {
    let mut numbers = Numbers(seed);
    let mut reference = Reference::random(model, &mut numbers);
    let kv_bytes_per_token = {
        let spec = read_config(&Path::new("fixtures").join(model).join("config.json")).unwrap();
        spec.kv_bytes_per_token(4) as u64
    };
    for device in [ComputeDevice::KINDS; NUM_LIVES].concat() {
        let life = Life::random(&mut numbers, device, reference.answers.len(), kv_bytes_per_token);
        findings.num_trials += 1;
        let first_near_tie = findings.near_ties.len();
        let checked = catch_unwind(AssertUnwindSafe(|| reference.check(&life, findings)));
        let told = match checked.as_deref() {
            Ok([]) => None,
            Ok([first, ..]) => Some(first.as_str()),
            Err(_) => Some("panicked, see above"),
        };
        for near_tie in &mut findings.near_ties[first_near_tie..] {
            *near_tie = format!("{model}, seed {seed}, {device:?}, {near_tie}");
        }
        if let Some(told) = told {
            findings.failed.push(format!("{model}, seed {seed}, {device:?}: {told}\n    {life:?}"));
        }
    }
}

/// Makes as many trials as are asked for and tells of all that differ.
fn check(test: &str, model: &'static str) {
    let first = asked("SEED").unwrap_or(0);
    let deadline = asked("FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let num_trials = asked("NUM_TRIALS").unwrap_or(if deadline.is_some() { u64::MAX } else { NUM_TRIALS });
    let mut findings = Findings::default();
    for seed in first.. {
        if findings.num_trials as u64 >= num_trials
            || findings.failed.len() >= MAX_FAILED
            || deadline.is_some_and(|deadline| Instant::now() >= deadline)
        {
            break;
        }
        try_batch(model, seed, &mut findings);
    }
    let Findings { num_trials, num_answers, near_ties, num_rounded, failed } = findings;
    println!(
        "{model}: {num_trials} trials, {num_answers} answers, {} near-ties, {num_rounded} reports off by rounding",
        near_ties.len()
    );
    near_ties.iter().for_each(|told| println!("  near-tie: {told}"));
    assert!(
        failed.is_empty(),
        "{model}: {} of {num_trials} trials fail; again, with the seed below: SEED=… NUM_TRIALS=1 \
         cargo test --locked --test fuzz_answers {test}\n{}",
        failed.len(),
        failed.join("\n")
    );
}

#[test]
fn plain_kv() {
    check("plain_kv", "tiny-llama");
}

#[test]
fn windows_and_one_head() {
    check("windows_and_one_head", "tiny-gemma3");
}

#[test]
fn windows_among_whole_attention() {
    check("windows_among_whole_attention", "tiny-mistral-swa");
}

#[test]
fn gated_delta_layers() {
    check("gated_delta_layers", "tiny-qwen3_5");
}

#[test]
fn delta_layers_by_dimension_and_latents() {
    check("delta_layers_by_dimension_and_latents", "tiny-kimi_linear");
}

#[test]
fn short_convolutions() {
    check("short_convolutions", "tiny-lfm2");
}

#[test]
fn state_space_layers() {
    check("state_space_layers", "tiny-nemotron_h");
}

#[test]
fn layers_of_several_shapes() {
    check("layers_of_several_shapes", "tiny-gemma4");
}

#[test]
fn sinks_and_experts() {
    check("sinks_and_experts", "tiny-gpt_oss");
}
