//! Prompts in several chunks, whose KV is in one array or in pieces.
//!
//! Owns that the way changes no number, that arrays are written in place, and what is held of them. How much is copied
//! is counted in `launch_tests`.

use super::*;
use crate::engine::{Scoring, TokenReport};
use crate::mlx::{ComputeDevice, ComputeDtype, WeightSource};
use crate::models::read_config;

/// Plain KV; windows; windows in sight of nothing stored, with sinks; soft caps; KV that later layers use too; latents;
/// states beside KV.
const MODELS: [&str; 7] = [
    "tiny-llama",
    "tiny-gemma3",
    "tiny-gpt_oss",
    "tiny-gemma2",
    "tiny-gemma4",
    "tiny-glm4_moe_lite",
    "tiny-qwen3_5",
];

fn runner(model: &str, device: ComputeDevice, dtype: ComputeDtype, max_copied_bytes: u64) -> MlxRunner {
    let folder = std::path::Path::new("fixtures").join(model);
    let spec = read_config(&folder.join("config.json")).unwrap();
    let weights = WeightSource::Safetensors(vec![folder.join("model.safetensors")]);
    MlxRunner::new(LoadedModel::load(&spec, &weights, device, dtype).unwrap(), max_copied_bytes)
}

fn chunk(sequence: SequenceId, positions: Range<usize>, want: Want) -> Group {
    let tokens = positions.clone().map(|at| (at * 7 % 290) as u32);
    Group { sequence, input: Input::Prompt(tokens.collect()), start: positions.start, want }
}

fn prefill(runner: &mut MlxRunner, sequence: SequenceId, positions: Range<usize>) {
    runner.launch(&[chunk(sequence, positions, Want::Nothing)]).unwrap();
    runner.collect().unwrap();
}

/// Ends of a prompt's chunks; what is before some of them is stored there.
const CHUNKS: [(usize, bool); 8] = [
    (90, true),
    (180, false),
    (200, false),
    (290, true),
    (300, false),
    (400, false),
    (450, true),
    (460, false),
];

/// What a prompt's last positions say of the tokens after them, and which arrays there were in between.
fn scores(runner: &mut MlxRunner, is_told: bool) -> Vec<TokenReport> {
    let sequence = SequenceId(1);
    let end = CHUNKS[CHUNKS.len() - 1].0;
    if is_told {
        runner.expect_prefill(sequence, end);
    }
    let (mut start, mut stored) = (0, 0);
    for (end, is_stored) in &CHUNKS[..CHUNKS.len() - 1] {
        prefill(runner, sequence, start..*end);
        start = *end;
        if *is_stored {
            runner.store(sequence, start - stored).unwrap();
            stored = start;
        }
    }
    let scoring = Scoring { targets: vec![5, 6, 7], num_top: 3 };
    runner.launch(&[chunk(sequence, start..end, Want::Scores(scoring))]).unwrap();
    let Outcome::Scores(reports) = runner.collect().unwrap().remove(0) else {
        panic!("scores were asked for")
    };
    runner.release(sequence);
    reports
}

#[test]
fn in_one_array_a_prompt_has_the_numbers_that_it_has_in_pieces() {
    let float32 = MODELS.map(|model| (model, ComputeDtype::Float32));
    for (model, dtype) in float32.into_iter().chain([("tiny-llama", ComputeDtype::Bfloat16)]) {
        for device in ComputeDevice::KINDS {
            let mut runner = runner(model, device, dtype, u64::MAX);
            let in_pieces = scores(&mut runner, false);
            assert_eq!(scores(&mut runner, true), in_pieces, "{model}, {device:?}, {dtype:?}");
        }
    }
}

/// A sequence on a stored prefix of so many tokens, which is told that it has many more.
fn behind(runner: &mut MlxRunner, num_prefix: usize) -> SequenceId {
    let (first, sequence) = (SequenceId(1), SequenceId(2));
    prefill(runner, first, 0..num_prefix);
    let stored = runner.store(first, num_prefix).unwrap();
    runner.release(first);
    runner.resume(sequence, &[stored.segment.id], None).unwrap();
    runner.expect_prefill(sequence, 1000);
    sequence
}

/// Bytes of a token's KV in tiny-llama, and of what a sequence holds that is not stored or in one array.
fn num_bytes(runner: &MlxRunner, sequence: SequenceId) -> (usize, usize) {
    let of_token: u32 = runner.plane_widths().iter().sum();
    (of_token as usize, runner.live.own_arrays(sequence).map(Array::nbytes).sum())
}

#[test]
fn chunks_are_written_in_place() {
    for device in ComputeDevice::KINDS {
        let mut runner = runner("tiny-llama", device, ComputeDtype::Float32, u64::MAX);
        let sequence = behind(&mut runner, 100);
        let mut places = Vec::new();
        for start in (100..900).step_by(100) {
            prefill(&mut runner, sequence, start..start + 100);
            let arrays = runner.live.own_arrays(sequence);
            places.push(
                arrays.map(|array| sys::strided_numbers(array).unwrap().0.as_ptr()).collect::<Vec<_>>(),
            );
        }
        // On a CPU the first chunk by itself.
        assert!(places[1..].iter().all(|of_chunk| *of_chunk == places[1]), "{device:?}");
    }
}

#[test]
fn what_is_there_twice_is_within_the_limit() {
    let num_prefix = 100;
    let of_token =
        num_bytes(&runner("tiny-llama", ComputeDevice::Gpu, ComputeDtype::Float32, 0), SequenceId(0)).0;
    for (max_copied_tokens, is_joined) in [(num_prefix - 1, false), (num_prefix, true)] {
        let max_copied_bytes = (max_copied_tokens * of_token) as u64;
        let mut runner = runner("tiny-llama", ComputeDevice::Gpu, ComputeDtype::Float32, max_copied_bytes);
        let sequence = behind(&mut runner, num_prefix);
        prefill(&mut runner, sequence, num_prefix..200);
        prefill(&mut runner, sequence, 200..300);
        let held = if is_joined { 1000 } else { 200 };
        assert_eq!(num_bytes(&runner, sequence).1, held * of_token, "{max_copied_tokens}");
        // What is stored is there twice from now on, and one more would be too much of all.
        runner.store(sequence, 200).unwrap();
        assert_eq!(num_bytes(&runner, sequence).1, 0, "{max_copied_tokens}");
        prefill(&mut runner, sequence, 300..400);
        assert_eq!(num_bytes(&runner, sequence).1, 100 * of_token, "{max_copied_tokens}");
    }
    // On a CPU nothing is there twice.
    let mut runner = runner("tiny-llama", ComputeDevice::Cpu, ComputeDtype::Float32, 0);
    let sequence = behind(&mut runner, num_prefix);
    prefill(&mut runner, sequence, num_prefix..200);
    prefill(&mut runner, sequence, 200..300);
    assert_eq!(num_bytes(&runner, sequence).1, 900 * of_token);
}
