//! Processors, reports and scores on tiny models: held to mlx-lm's log-probabilities and to formulas.
//!
//! Owns small batches in which every prompt wants something else: alone and eight side by side, over a cold, a
//! warm and a restored cache, on both kinds of device. Long prompts at random are `fuzz_answers`'.

mod common;

use std::{collections::BTreeSet, path::Path, sync::Arc};

use common::{
    batch::{Batch, Numbers, Prompt},
    golden, load, on_both_kinds,
    runs::{AMPLE, Outcome, Setting, engine_of, engine_with_file, run},
    wants::{MAX_ERROR, Wants, fault, faults, processed},
};
use mlxbatch::{
    cache::{ResumeRule, Tier},
    engine::{Processors, Report, Runner, Score, TokenReport},
    guide::{Constraint, JsonOptions},
    mlx::{ComputeDevice, MlxRunner},
    text::TextModel,
};
use serde_json::json;

/// Plain KV, windows, and two kinds of recurrent layers.
const MODELS: [&str; 4] = ["tiny-llama", "tiny-gemma3", "tiny-qwen3_5", "tiny-lfm2"];

fn setting(device: ComputeDevice, batch_size: usize, num_prompts: usize) -> Setting {
    Setting {
        device,
        batch_size,
        lookahead: batch_size > 1,
        prefill_chunk: 64,
        max_copied_bytes: u64::MAX,
        order: (0..num_prompts).collect(),
        drops_private: false,
        plays_turns: false,
    }
}

fn prompt(tokens: Vec<u32>, max_new_tokens: usize, wants: Wants) -> Prompt {
    let spans = vec![(tokens.len(), Tier::User)];
    Prompt { tokens, spans, max_new_tokens, stopped_after: None, follows: None, wants }
}

fn batch_of(runner: &MlxRunner, prompts: Vec<Prompt>) -> Batch {
    let has_checkpoints = runner.resume_rule() == ResumeRule::Checkpoints;
    Batch { prompts, end_ids: Arc::from([]), has_checkpoints }
}

/// Runs a batch one at a time without a cache, eight at a time with one, once more over what is cached, and
/// over what is restored from a file; `check` gets each outcome with the way it came about.
fn every_way(
    model: &str,
    device: ComputeDevice,
    batch: &Batch,
    path: &Path,
    mut check: impl FnMut(&str, &Outcome),
) {
    let num_prompts = batch.prompts.len();
    let alone = setting(device, 1, num_prompts);
    check("alone", &run(&mut engine_of(model, &alone, None), batch, &alone));
    let eight = setting(device, 8, num_prompts);
    let mut engine = engine_with_file(model, &eight, AMPLE, path);
    check("eight", &run(&mut engine, batch, &eight));
    let warm = run(&mut engine, batch, &eight);
    assert!(warm.num_cached > 0 || batch.prompts.len() == 1, "{model}: nothing is cached");
    check("warm", &warm);
    engine.save_snapshot().unwrap();
    let one = setting(device, 1, num_prompts);
    let restored = run(&mut engine_with_file(model, &one, AMPLE, path), batch, &one);
    assert!(restored.num_cached > 0 || batch.prompts.len() == 1, "{model}: nothing is restored");
    check("restored", &restored);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn reports_are_mlx_lms_log_probabilities() {
    let folder = tempfile::tempdir().unwrap();
    for (model, device) in on_both_kinds(MODELS) {
        let golden = golden(model);
        let num_top = 10;
        let wants = Wants { report: Some(Report { num_top }), ..Wants::default() };
        // Twice each, so that there are eight and more.
        let prompts =
            golden.iter().chain(&golden).map(|golden| prompt(golden.prompt.clone(), 3, wants.clone()));
        let batch = batch_of(&load(model, device), prompts.collect());
        every_way(model, device, &batch, &folder.path().join("cache"), |way, outcome| {
            for (index, golden) in golden.iter().chain(&golden).enumerate() {
                let reports = &outcome.reports[index];
                assert_eq!(reports.len(), 3);
                let all: Vec<f32> = golden.last_logprobs.iter().map(|number| *number as f32).collect();
                let found = fault(&reports[0], &all, num_top);
                assert_eq!(found, None, "{model}, {device:?}, {way}, prompt {index}");
                let tokens: Vec<u32> = reports.iter().map(|report| report.token).collect();
                assert_eq!(tokens, outcome.answers[index], "a report is on its token");
                assert!(reports.iter().all(|report| report.rank == 1), "greedy tokens are the best");
            }
        });
    }
}

/// A few-shot context with several continuations, a scored prompt that goes on, one scored whole, and
/// others that want nothing.
fn scored_prompts(numbers: &mut Numbers) -> Vec<Prompt> {
    let context = numbers.words(90);
    let wants = |from, num_top| Wants { score: Some(Score { from, num_top }), ..Wants::default() };
    let mut prompts: Vec<Prompt> = (0..6)
        .map(|choice| {
            let tokens = [&context[..], &numbers.words(1 + choice)].concat();
            prompt(tokens, 0, wants(context.len(), choice as u32))
        })
        .collect();
    let longer = [&context[..], &numbers.words(50)].concat();
    prompts.push(prompt(longer.clone(), 4, wants(120, 3)));
    prompts.push(prompt(longer.clone(), 2, wants(1, 0)));
    prompts.push(prompt(longer, 4, Wants::default()));
    prompts.push(prompt(numbers.words(40), 3, Wants::default()));
    prompts
}

#[test]
fn scores_are_log_probabilities_computed_one_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    for (model, device) in on_both_kinds(MODELS) {
        let mut runner = load(model, ComputeDevice::Cpu);
        let batch = batch_of(&runner, scored_prompts(&mut Numbers(7)));
        let mut first: Option<Vec<Vec<TokenReport>>> = None;
        every_way(model, device, &batch, &folder.path().join("cache"), |way, outcome| {
            for (index, prompt) in batch.prompts.iter().enumerate() {
                let num_scored = prompt.wants.score.map_or(0, |score| prompt.tokens.len() - score.from);
                assert_eq!(outcome.scores[index].len(), num_scored, "{model}, {device:?}, {way}, {index}");
                assert_eq!(outcome.answers[index].len(), prompt.max_new_tokens);
                // Those of one way are held to the formula, all others to these.
                let Some(first) = &first else {
                    let scores = &outcome.scores[index];
                    let faults = faults(&mut runner, &batch, index, &[], scores);
                    assert!(faults.is_empty(), "{model}, {device:?}, {way}, prompt {index}: {faults:?}");
                    continue;
                };
                for (left, right) in outcome.scores[index].iter().zip(&first[index]) {
                    assert_eq!((left.token, left.top.len()), (right.token, right.top.len()));
                    let difference = (left.log_probability - right.log_probability).abs();
                    assert!(difference < MAX_ERROR, "{model}, {device:?}, {way}, {index}: {difference}");
                }
            }
            first.get_or_insert_with(|| outcome.scores.clone());
        });
    }
}

/// Each processor by itself, then some together, then none, for prompts with this neutral answer.
fn all_processors(neutral: &[u32]) -> Vec<Processors> {
    let none = Processors::default;
    let words = [neutral[..2].to_vec(), neutral[1..4].to_vec()];
    vec![
        Processors { repetition_penalty: 1.7, ..none() },
        Processors { repetition_penalty: 0.6, repetition_window: Some(4), ..none() },
        Processors { presence_penalty: 1.5, ..none() },
        Processors { frequency_penalty: 1.1, ..none() },
        Processors { logit_bias: [(7, 4.0), (9, -3.0), (250, 3.5)].into(), ..none() },
        Processors { never: (0..150).collect(), ..none() },
        Processors { bad_words: words.into(), ..none() },
        Processors { min_new_tokens: 10, ..none() },
        Processors {
            repetition_penalty: 1.2,
            presence_penalty: 0.5,
            frequency_penalty: 0.9,
            logit_bias: [(20, 2.0)].into(),
            bad_words: [vec![20, 20], vec![21]].into(),
            ..none()
        },
        none(),
        none(),
    ]
}

/// Those of all processors that are not neutral.
const NUM_CHANGING: usize = 9;

#[test]
fn processors_change_greedy_answers_as_the_formulas_say() {
    let folder = tempfile::tempdir().unwrap();
    let mut changed = BTreeSet::new();
    for (model, device) in on_both_kinds(["tiny-llama", "tiny-lfm2"]) {
        let mut runner = load(model, ComputeDevice::Cpu);
        let text = Numbers(3).words(30);
        let mut tokens = text.clone();
        for _ in 0..8 {
            let logits = runner.next_logits(&tokens).unwrap();
            tokens.extend((0..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1)).map(|(token, _)| token));
        }
        let neutral = tokens.split_off(text.len());
        let prompts = all_processors(&neutral).into_iter().map(|processors| {
            prompt(
                text.clone(),
                14,
                Wants { processors, report: Some(Report { num_top: 2 }), ..Wants::default() },
            )
        });
        let mut batch = batch_of(&runner, prompts.collect());
        // It ends with its eighth token, so that it matters when it may.
        batch.end_ids = neutral.last().copied().into_iter().collect();
        let mut answers = Vec::new();
        every_way(model, device, &batch, &folder.path().join("cache"), |way, outcome| {
            for (index, answer) in outcome.answers.iter().enumerate() {
                let mut tokens: Vec<u32> = batch.prompts[index].tokens.clone();
                let ended = answer.len() < batch.prompts[index].max_new_tokens;
                for place in 0..answer.len() + usize::from(ended) {
                    let logits = processed(&mut runner, &batch, index, &tokens);
                    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let is_best = |token: &u32| best - logits[*token as usize] < MAX_ERROR;
                    let is_right = match answer.get(place) {
                        Some(token) => is_best(token),
                        None => batch.end_ids.iter().any(is_best),
                    };
                    assert!(
                        is_right,
                        "{model}, {device:?}, {way}, prompt {index}, token {place}: {answer:?}"
                    );
                    tokens.extend(answer.get(place));
                }
                // Reports are of the raw logits, whatever was done to them.
                let faults = faults(&mut runner, &batch, index, &outcome.reports[index], &[]);
                assert!(faults.is_empty(), "{model}, {device:?}, {way}, prompt {index}: {faults:?}");
            }
            answers.push(outcome.answers.clone());
        });
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{model}, {device:?}: one answer each");
        let differ =
            |(index, answer): (usize, &Vec<u32>)| (*answer != answers[0][NUM_CHANGING]).then_some(index);
        changed.extend(answers[0].iter().enumerate().filter_map(differ));
    }
    // Nothing was in vain.
    assert_eq!(changed.into_iter().collect::<Vec<_>>(), (0..NUM_CHANGING).collect::<Vec<_>>());
}

/// Law 1 with guides: beside rows without one, with other wishes, on both sides of every branch.
#[test]
fn guided_answers_are_one_in_every_way_and_what_they_have_to_be() {
    let folder = tempfile::tempdir().unwrap();
    for (model, device) in on_both_kinds(["tiny-llama", "tiny-lfm2"]) {
        let text = TextModel::from_folder(&Path::new("fixtures").join(model)).unwrap();
        let schema = json!({"type": "array", "items": {"type": "string", "maxLength": 6}, "minItems": 2, "maxItems": 3});
        let json = Constraint::Json { schema: schema.clone(), options: JsonOptions::default() };
        let constraints = [
            None,
            Some(Constraint::Regex("[a-z]{3}( [a-z]{3})*\\.".into())),
            Some(Constraint::Choice(vec!["the one and only".into(), "some other".into()])),
            Some(json),
        ];
        let patterns = constraints
            .map(|constraint| constraint.map(|it| text.pattern(Some(&Arc::new(it)), None).unwrap()));
        let mut numbers = Numbers(11);
        let shared = numbers.words(40);
        let prompts = (0..16).map(|index| {
            let processors = match index % 3 {
                0 => Processors { repetition_penalty: 1.4, min_new_tokens: 6, ..Processors::default() },
                _ => Processors::default(),
            };
            let report = (index % 5 == 0).then_some(Report { num_top: 3 });
            let wants = Wants { processors, guide: patterns[index % 4].clone(), report, score: None };
            prompt([&shared[..], &numbers.words(1 + index / 2)].concat(), 30, wants)
        });
        let mut batch = batch_of(&load(model, ComputeDevice::Cpu), prompts.collect());
        batch.end_ids = text.end_ids().into();
        let mut first: Option<Vec<Vec<u32>>> = None;
        every_way(model, device, &batch, &folder.path().join("cache"), |way, outcome| {
            for (index, answer) in outcome.answers.iter().enumerate() {
                let told = text.tokenizer().decode(answer).unwrap();
                let is_cut = answer.len() == 30;
                let is_right = match index % 4 {
                    1 => is_cut || told.ends_with('.') && told.len().is_multiple_of(4),
                    2 => ["the one and only", "some other"].contains(&told.as_str()),
                    3 => is_cut || jsonschema::is_valid(&schema, &serde_json::from_str(&told).unwrap()),
                    _ => true,
                };
                assert!(is_right, "{model}, {device:?}, {way}, prompt {index}: {told:?}");
                if index % 5 == 0 {
                    let tokens: Vec<u32> = outcome.reports[index].iter().map(|report| report.token).collect();
                    assert_eq!(&tokens, answer, "a report is on its token");
                }
            }
            let first = first.get_or_insert_with(|| outcome.answers.clone());
            assert_eq!(first, &outcome.answers, "{model}, {device:?}, {way}");
        });
    }
}
