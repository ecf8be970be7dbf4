//! Sequences on stored segments answer as sequences of their own do: shared, split, side by side.
//!
//! Drives the real runner without the engine, so that every way of putting a prompt together from
//! segments is named here and not left to scheduling.

mod common;

use common::{Golden, golden, load, on_both_kinds};
use mlxbatch::{
    cache::ResumeRule,
    engine::{Choice, Group, Input, Outcome, Runner, SamplingParams, SegmentId, SequenceId, Want},
    mlx::{ComputeDevice, MlxRunner},
};

const MODELS: [&str; 7] = [
    "tiny-llama",
    "tiny-mistral-swa",
    "tiny-qwen3",
    "tiny-gemma3",
    "tiny-gemma4",
    "tiny-gpt_oss",
    "tiny-glm4_moe_lite",
];

/// Of each kind of state.
const RECURRENT: [&str; 4] = ["tiny-lfm2", "tiny-qwen3_5", "tiny-nemotron_h", "tiny-kimi_linear"];

fn group(sequence: u64, input: Input, start: usize) -> Group {
    let greedy = SamplingParams { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, key: 0 };
    let want = match input {
        Input::Prompt(_) => Want::Nothing,
        _ => Want::Token(Choice { sampling: greedy, edits: None, report: None, is_guided: false }),
    };
    Group { sequence: SequenceId(sequence), input, start, want }
}

/// The tokens of the oldest pass.
fn collect(runner: &mut MlxRunner) -> Vec<u32> {
    let token = |outcome| match outcome {
        Outcome::Token(token, None) => Some(token),
        Outcome::Nothing => None,
        _ => panic!("{outcome:?}"),
    };
    runner.collect().unwrap().into_iter().filter_map(token).collect()
}

/// Computes the prompt tokens from `start` up to each of the cuts, storing each piece.
fn prefill(
    runner: &mut MlxRunner,
    sequence: u64,
    prompt: &[u32],
    start: usize,
    cuts: &[usize],
) -> Vec<SegmentId> {
    let mut segments = Vec::new();
    let mut first = start;
    for &cut in cuts {
        runner.launch(&[group(sequence, Input::Prompt(prompt[first..cut].to_vec()), first)]).unwrap();
        assert!(collect(runner).is_empty(), "a chunk does not sample");
        segments.push(runner.store(SequenceId(sequence), cut - first).unwrap().segment.id);
        first = cut;
    }
    segments
}

/// Decodes 40 tokens of each prompt; every sequence has all but its prompt's last token.
fn decode(runner: &mut MlxRunner, sequences: &[(u64, &Golden)]) -> Vec<Vec<u32>> {
    let rows: Vec<_> =
        sequences.iter().map(|(sequence, golden)| (*sequence, golden.prompt.as_slice(), 0)).collect();
    decode_on(runner, &rows, 40)
}

/// Decodes so many tokens of each prompt, after those that its sequence has decoded.
fn decode_on(runner: &mut MlxRunner, rows: &[(u64, &[u32], usize)], num_steps: usize) -> Vec<Vec<u32>> {
    let mut answers = vec![Vec::new(); rows.len()];
    for step in 0..num_steps {
        let groups: Vec<Group> = rows
            .iter()
            .map(|&(sequence, prompt, num_decoded)| {
                let last = prompt.len() - 1;
                let input = if num_decoded + step == 0 { Input::Last(prompt[last]) } else { Input::Sampled };
                group(sequence, input, last + num_decoded + step)
            })
            .collect();
        runner.launch(&groups).unwrap();
        for (answer, token) in answers.iter_mut().zip(collect(runner)) {
            answer.push(token);
        }
    }
    answers
}

#[test]
fn one_stored_prefix_serves_several_sequences_at_once() {
    // Short pieces are joined for each row, long ones attended once for all; both lie in windows.
    let cuts = [(20, 41), (66, 80), (20, 86)];
    for ((model, device), (first, second)) in
        on_both_kinds(MODELS).flat_map(|model| cuts.map(|cuts| (model, cuts)))
    {
        let mut runner = load(model, device);
        let prompts = golden(model);
        let prompt = &prompts[4];
        let last = prompt.prompt.len() - 1;
        let path = prefill(&mut runner, 0, &prompt.prompt, 0, &[first, second]);
        // One goes on from both segments, one from the first alone, one has everything from 0 on.
        runner.resume(SequenceId(1), &path, None).unwrap();
        runner.resume(SequenceId(2), &path[..1], None).unwrap();
        prefill(&mut runner, 0, &prompt.prompt, second, &[last]);
        prefill(&mut runner, 1, &prompt.prompt, second, &[second + 9, last]);
        prefill(&mut runner, 2, &prompt.prompt, first, &[last]);
        // An unrelated sequence in the same batch.
        prefill(&mut runner, 3, &prompts[2].prompt, 0, &[prompts[2].prompt.len() - 1]);
        let rows = [(0, prompt), (1, prompt), (2, prompt), (3, &prompts[2])];
        for ((sequence, golden), answer) in rows.iter().zip(decode(&mut runner, &rows)) {
            assert_eq!(
                answer, golden.greedy,
                "{model}, {device:?}, cuts {first} and {second}, sequence {sequence}"
            );
        }
    }
}

/// A pass of more rows than the CPU takes at once: chunks begin and end anywhere in its row blocks,
/// after rows that decode.
#[test]
fn a_pass_of_many_rows_computes_what_each_sequence_would_by_itself() {
    for (model, device) in on_both_kinds(MODELS.into_iter().chain(RECURRENT)) {
        let mut runner = load(model, device);
        let prompts = golden(model);
        let (decoding, waiting) = (&prompts[2], &prompts[4]);
        let last = decoding.prompt.len() - 1;
        prefill(&mut runner, 0, &decoding.prompt, 0, &[last]);
        let sequences = 1..9;
        let mut groups = vec![group(0, Input::Last(decoding.prompt[last]), last)];
        let prompt = &waiting.prompt[..waiting.prompt.len() - 1];
        groups.extend(sequences.clone().map(|sequence| group(sequence, Input::Prompt(prompt.to_vec()), 0)));
        assert!(prompt.len() * sequences.clone().count() > 512, "{model}, {device:?}");
        runner.launch(&groups).unwrap();
        assert_eq!(collect(&mut runner), decoding.greedy[..1], "{model}, {device:?}");
        runner.release(SequenceId(0));
        let rows: Vec<_> = sequences.map(|sequence| (sequence, waiting)).collect();
        for ((sequence, golden), answer) in rows.iter().zip(decode(&mut runner, &rows)) {
            assert_eq!(answer, golden.greedy, "{model}, {device:?}, sequence {sequence}");
        }
    }
}

#[test]
fn a_segment_can_be_split_at_any_token_and_outlives_its_maker() {
    for (model, device) in on_both_kinds(MODELS) {
        let mut runner = load(model, device);
        let prompt = &golden(model)[3];
        let last = prompt.prompt.len() - 1;
        let whole = prefill(&mut runner, 0, &prompt.prompt, 0, &[last])[0];
        runner.release(SequenceId(0));
        let (upper, lower) = runner.split(whole, 29).unwrap();
        let (middle, lowest) = runner.split(lower.id, 1).unwrap();
        assert!(upper.num_bytes > middle.num_bytes && middle.num_bytes * 29 == upper.num_bytes);
        // All of it again; and the first half again, the rest computed anew.
        runner.resume(SequenceId(1), &[upper.id, middle.id, lowest.id], None).unwrap();
        runner.resume(SequenceId(2), &[upper.id], None).unwrap();
        for segment in [upper.id, middle.id, lowest.id] {
            runner.discard(segment);
        }
        assert!(
            runner.resume(SequenceId(3), &[upper.id], None).is_err(),
            "discarded segments serve nobody new"
        );
        prefill(&mut runner, 2, &prompt.prompt, 29, &[last]);
        let rows = [(1, prompt), (2, prompt)];
        for ((sequence, golden), answer) in rows.iter().zip(decode(&mut runner, &rows)) {
            assert_eq!(answer, golden.greedy, "{model}, {device:?}, sequence {sequence}");
        }
    }
}

/// Tokens that look random.
fn words(first: u32, num_words: u32) -> Vec<u32> {
    (first..first + num_words).map(|at| at.wrapping_mul(2_654_435_761) / 65_536 % 303).collect()
}

/// Rows that ran on a segment kept it whole when it was split, while later ones began on the halves and went
/// on into the same segments below: those were taken for everybody's who stood between the two.
#[test]
fn those_who_run_on_a_segment_that_is_split_run_on_its_halves() {
    for (model, device) in on_both_kinds(MODELS) {
        let mut runner = load(model, device);
        let (document, block, other) = (words(0, 150), words(1000, 80), words(2000, 70));
        let ends = [words(3000, 9), words(4000, 5), words(5000, 7), words(6000, 8)];
        let prompts: Vec<Vec<u32>> = vec![
            [&document[..], &block, &ends[0]].concat(),
            [&document[..], &block, &ends[1]].concat(),
            [&document[..], &other, &ends[2]].concat(),
            [&document[..60], &ends[3]].concat(),
        ];
        let last = |row: usize| prompts[row].len() - 1;
        let path = prefill(&mut runner, 0, &prompts[0], 0, &[150, 230]);
        prefill(&mut runner, 0, &prompts[0], 230, &[last(0)]);
        let stored_bytes = runner.num_stored_bytes();
        let (upper, lower) = runner.split(path[0], 60).unwrap();
        assert_eq!(runner.num_stored_bytes(), stored_bytes, "{model}, {device:?}");
        runner.resume(SequenceId(1), &[upper.id, lower.id, path[1]], None).unwrap();
        runner.resume(SequenceId(2), &[upper.id, lower.id], None).unwrap();
        runner.resume(SequenceId(3), &[upper.id], None).unwrap();
        prefill(&mut runner, 1, &prompts[1], 230, &[last(1)]);
        prefill(&mut runner, 2, &prompts[2], 150, &[220, last(2)]);
        prefill(&mut runner, 3, &prompts[3], 60, &[last(3)]);
        let rows = |num_decoded| [0, 1, 2, 3].map(|row| (row as u64, prompts[row].as_slice(), num_decoded));
        let mut answers = decode_on(&mut runner, &rows(0), 6);
        // And once more while they decode, with nobody who comes or goes.
        runner.split(lower.id, 70).unwrap();
        for (answer, more) in answers.iter_mut().zip(decode_on(&mut runner, &rows(6), 6)) {
            answer.extend(more);
        }

        for (row, answer) in answers.iter().enumerate() {
            let sequence = 10 + row as u64;
            prefill(&mut runner, sequence, &prompts[row], 0, &[last(row)]);
            let alone = decode_on(&mut runner, &[(sequence, &prompts[row], 0)], answer.len());
            assert_eq!(*answer, alone[0], "{model}, {device:?}, row {row}");
            runner.release(SequenceId(sequence));
        }
    }
}

#[test]
fn an_answer_is_stored_with_its_sequence_and_continued_later() {
    for (model, device) in on_both_kinds(MODELS) {
        let mut runner = load(model, device);
        let golden = &golden(model)[1];
        let last = golden.prompt.len() - 1;
        let mut path = prefill(&mut runner, 0, &golden.prompt, 0, &[last]);
        let answers = decode(&mut runner, &[(0, golden)]);
        assert_eq!(answers[0], golden.greedy, "{model}, {device:?}");
        // The prompt's last token and the answer's first 24 were fed; the rest is left out.
        path.push(runner.store(SequenceId(0), 25).unwrap().segment.id);
        runner.release(SequenceId(0));
        runner.resume(SequenceId(1), &path, None).unwrap();
        let mut continued = Vec::new();
        for step in 0..10 {
            let input = if step == 0 { Input::Last(golden.greedy[24]) } else { Input::Sampled };
            runner.launch(&[group(1, input, last + 25 + step)]).unwrap();
            continued.extend(collect(&mut runner));
        }
        assert_eq!(continued, golden.greedy[25..35], "{model}, {device:?}");
    }
}

/// Answers so long that their KV moves on twice from where steps are appended, with a row that joins
/// late: any token is the one that follows when all before it is computed as a prompt.
#[test]
fn long_answers_go_on_from_all_that_was_decoded() {
    for (model, device) in on_both_kinds(MODELS.into_iter().chain(RECURRENT)) {
        let mut runner = load(model, device);
        let prompts = golden(model);
        let mut texts: Vec<Vec<u32>> = [1, 2, 3].map(|index: usize| prompts[index].prompt.clone()).into();
        let joins = [0, 0, 21];
        for (sequence, text) in texts.iter().enumerate() {
            runner
                .launch(&[group(sequence as u64, Input::Prompt(text[..text.len() - 1].to_vec()), 0)])
                .unwrap();
            collect(&mut runner);
        }
        for step in 0..140 {
            let rows: Vec<usize> = (0..3).filter(|&row| step >= joins[row]).collect();
            let input = |row: usize| {
                if step == joins[row] { Input::Last(*texts[row].last().unwrap()) } else { Input::Sampled }
            };
            let groups: Vec<Group> =
                rows.iter().map(|&row| group(row as u64, input(row), texts[row].len() - 1)).collect();
            runner.launch(&groups).unwrap();
            for (&row, token) in rows.iter().zip(collect(&mut runner)) {
                texts[row].push(token);
            }
        }
        for (row, text) in texts.iter().enumerate() {
            let num_prompt = prompts[row + 1].prompt.len();
            for (index, at) in [30, 64, 65, 100].map(|at| num_prompt + at).into_iter().enumerate() {
                let sequence = (10 + row * 4 + index) as u64;
                prefill(&mut runner, sequence, text, 0, &[at - 1]);
                runner.launch(&[group(sequence, Input::Last(text[at - 1]), at - 1)]).unwrap();
                assert_eq!(
                    collect(&mut runner),
                    text[at..=at],
                    "{model}, {device:?}, sequence {row}, token {at}"
                );
            }
        }
    }
}

#[test]
fn misuse_is_an_error_and_not_a_wrong_answer() {
    let mut runner = load("tiny-llama", ComputeDevice::current());
    let prompt = golden("tiny-llama").remove(2).prompt;
    let path = prefill(&mut runner, 0, &prompt, 0, &[10, 20]);
    assert!(runner.resume(SequenceId(1), &path[1..], None).is_err(), "a path begins at position 0");
    assert!(runner.store(SequenceId(0), 1).is_err(), "nothing is left to store");
    assert!(runner.split(path[0], 0).is_err() && runner.split(path[0], 10).is_err());
    assert!(runner.launch(&[group(0, Input::Prompt(vec![1]), 19)]).is_err(), "it has 20 tokens");
    assert!(runner.launch(&[group(0, Input::Prompt(vec![100_000]), 20)]).is_err(), "no such token");
    assert!(runner.launch(&[group(9, Input::Last(1), 3)]).is_err(), "an unknown sequence");
    // A prompt of one token ended the run: its sequence had never been begun.
    runner.launch(&[group(10, Input::Last(1), 0)]).unwrap();
    assert_eq!(collect(&mut runner).len(), 1);
}

/// Recurrent layers have no tokens to take a range of: a sequence can only begin where their states
/// were stored, at the end of a segment, and then each one goes on with its own.
#[test]
fn a_recurrent_model_resumes_from_checkpoints_and_nowhere_else() {
    for (model, device) in on_both_kinds(RECURRENT) {
        let mut runner = load(model, device);
        assert_eq!(runner.resume_rule(), ResumeRule::Checkpoints);
        let prompts = golden(model);
        let prompt = &prompts[4];
        let last = prompt.prompt.len() - 1;
        let store = |runner: &mut MlxRunner, first: usize, cut: usize| {
            runner.launch(&[group(0, Input::Prompt(prompt.prompt[first..cut].to_vec()), first)]).unwrap();
            collect(runner);
            runner.store(SequenceId(0), cut - first).unwrap()
        };
        let (first, second) = (store(&mut runner, 0, 20), store(&mut runner, 20, 41));
        let path = [first.segment.id, second.segment.id];
        let (at_20, at_41) = (first.checkpoint.unwrap(), second.checkpoint.unwrap());
        assert!(at_20.num_bytes > 0 && at_20.num_bytes == at_41.num_bytes, "a state's size is fixed");

        let mut resume =
            |sequence, path: &[SegmentId], checkpoint| runner.resume(SequenceId(sequence), path, checkpoint);
        assert!(resume(1, &path, None).is_err(), "without the states");
        assert!(resume(1, &path, Some(at_20.id)).is_err(), "with the states of another position");
        resume(1, &path, Some(at_41.id)).unwrap();
        resume(2, &path, Some(at_41.id)).unwrap();
        resume(3, &path[..1], Some(at_20.id)).unwrap();
        runner.discard(at_41.id);
        assert!(runner.resume(SequenceId(4), &path, Some(at_41.id)).is_err(), "discarded");

        prefill(&mut runner, 0, &prompt.prompt, 41, &[last]);
        prefill(&mut runner, 1, &prompt.prompt, 41, &[60, last]);
        prefill(&mut runner, 2, &prompt.prompt, 41, &[42, last]);
        prefill(&mut runner, 3, &prompt.prompt, 20, &[last]);
        prefill(&mut runner, 5, &prompts[2].prompt, 0, &[prompts[2].prompt.len() - 1]);
        let rows = [(5, &prompts[2]), (0, prompt), (1, prompt), (2, prompt), (3, prompt)];
        for ((sequence, golden), answer) in rows.iter().zip(decode(&mut runner, &rows)) {
            assert_eq!(answer, golden.greedy, "{model}, {device:?}, sequence {sequence}");
        }
    }
}

/// A sequence that has computed more than is stored has no states of the segment's end any more.
#[test]
fn an_answer_has_a_checkpoint_only_if_all_of_it_is_stored() {
    for (model, device) in on_both_kinds(RECURRENT) {
        let golden = &golden(model)[1];
        let last = golden.prompt.len() - 1;
        for (num_stored, has_checkpoint) in [(25, false), (40, true)] {
            let mut runner = load(model, device);
            let path = prefill(&mut runner, 0, &golden.prompt, 0, &[last]);
            decode(&mut runner, &[(0, golden)]);
            // The prompt's last token and the answer's first 39 were fed.
            let stored = runner.store(SequenceId(0), num_stored).unwrap();
            runner.release(SequenceId(0));
            assert_eq!(stored.checkpoint.is_some(), has_checkpoint, "{model}, {device:?}");
            let Some(checkpoint) = stored.checkpoint else { continue };
            runner.resume(SequenceId(1), &[path[0], stored.segment.id], Some(checkpoint.id)).unwrap();
            runner.launch(&[group(1, Input::Last(golden.greedy[39]), last + 40)]).unwrap();
            let continued = collect(&mut runner);

            // The same from nothing, as one prompt.
            let whole: Vec<u32> = golden.prompt.iter().chain(&golden.greedy).copied().collect();
            prefill(&mut runner, 2, &whole, 0, &[whole.len() - 1]);
            runner.launch(&[group(2, Input::Last(golden.greedy[39]), whole.len() - 1)]).unwrap();
            assert_eq!(continued, collect(&mut runner), "{model}, {device:?}");
        }
    }
}

/// With lookahead an answer's end is known when the step after it is under way: its state was gone, and the next
/// turn computed anew.
#[test]
fn an_answer_that_ends_one_step_before_the_last_has_a_checkpoint_if_that_was_launched_ahead() {
    for (model, device) in on_both_kinds(RECURRENT) {
        let golden = &golden(model)[1];
        let last = golden.prompt.len() - 1;
        let mut runner = load(model, device);
        let path = prefill(&mut runner, 0, &golden.prompt, 0, &[last]);
        let answers = decode_on(&mut runner, &[(0, &golden.prompt, 0)], 10);
        assert_eq!(answers[0], golden.greedy[..10], "{model}, {device:?}");
        // Two passes are under way; the tokens of the first end the answer.
        runner.launch(&[group(0, Input::Sampled, last + 10)]).unwrap();
        runner.launch(&[group(0, Input::Sampled, last + 11)]).unwrap();
        assert_eq!(collect(&mut runner), golden.greedy[10..11], "{model}, {device:?}");
        let stored = runner.store(SequenceId(0), 11).unwrap();
        runner.release(SequenceId(0));
        collect(&mut runner);
        let checkpoint = stored.checkpoint.expect("the state before the last step").id;
        runner.resume(SequenceId(1), &[path[0], stored.segment.id], Some(checkpoint)).unwrap();
        runner.launch(&[group(1, Input::Last(golden.greedy[10]), last + 11)]).unwrap();
        assert_eq!(collect(&mut runner), golden.greedy[11..12], "{model}, {device:?}");
    }
}
