//! States follow their sequences through joining, leaving, release and resumption.

use mlx_rs::Array;

use super::*;

const LAYERS: usize = 2;

/// A layer that counts: each token adds its row's number to every element of the state.
fn counting(packed: &Array) -> impl FnMut(RowGroup, &RecurrentState) -> Result<Mixed> + '_ {
    move |group, state| {
        let added = group.of(packed)?.sum_axis(1, true)?;
        let conv_tail = state.conv_tail.add(&added)?;
        let memory = state.memory.as_ref().expect("initial() has one").add(added.expand_dims(3)?)?;
        Ok((group.pack(&group.of(packed)?)?, RecurrentState { conv_tail, memory: Some(memory) }))
    }
}

fn initial() -> Vec<RecurrentState> {
    let zeros = |shape: &[i32]| mlx_rs::ops::zeros_dtype(shape, mlx_rs::Dtype::Float32).unwrap();
    (0..LAYERS)
        .map(|_| RecurrentState { conv_tail: zeros(&[1, 3, 1]), memory: Some(zeros(&[1, 2, 4, 5])) })
        .collect()
}

/// The decode rows' sequences, then chunks of (sequence, tokens); rows count from `first`.
fn pass(states: &mut LiveStates, decoding: &[u64], chunks: &[(u64, usize)], first: f32) -> Vec<f32> {
    let decoding: Vec<SequenceId> = decoding.iter().map(|&id| SequenceId(id)).collect();
    states.align_decode(&decoding).unwrap();
    let chunks: Vec<PassChunk> = chunks
        .iter()
        .map(|&(id, num_tokens)| PassChunk { sequence: SequenceId(id), num_tokens, start: 0 })
        .collect();
    let num_rows = decoding.len() + chunks.iter().map(|chunk| chunk.num_tokens).sum::<usize>();
    let rows: Vec<f32> = (0..num_rows).map(|row| first + row as f32).collect();
    let packed = Array::from_slice(&rows, &[num_rows as i32, 1]);
    let owners = RowOwners { num_decode: decoding.len(), chunks: &chunks };
    let mut output = Vec::new();
    for layer in 0..LAYERS {
        output = numbers(&states.advance(layer, owners, &mut counting(&packed)).unwrap());
        assert_eq!(output, rows, "rows come back in their order");
    }
    output
}

fn numbers(array: &Array) -> Vec<f32> {
    array.eval().unwrap();
    array.to_vec_exact::<f32>().unwrap()
}

/// The one number that all of a sequence's states hold.
fn total(states: &LiveStates, sequence: u64) -> f32 {
    let checkpoint = states.checkpoint(SequenceId(sequence)).unwrap();
    assert_eq!(checkpoint.len(), LAYERS);
    let all: Vec<f32> = checkpoint.iter().flat_map(RecurrentState::arrays).flat_map(numbers).collect();
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{all:?}");
    all[0]
}

#[test]
fn states_follow_their_sequences_as_rows_join_and_leave() {
    let mut states = LiveStates::new(initial());
    pass(&mut states, &[], &[(1, 2), (2, 3)], 1.0);
    assert_eq!((total(&states, 1), total(&states, 2), total(&states, 3)), (3.0, 12.0, 0.0));
    // 2 decodes while 1 goes on and 3 starts.
    pass(&mut states, &[2], &[(1, 1), (3, 1)], 10.0);
    assert_eq!((total(&states, 1), total(&states, 2), total(&states, 3)), (14.0, 22.0, 12.0));
    // The newcomer stands before the old row.
    pass(&mut states, &[3, 2, 1], &[], 100.0);
    assert_eq!((total(&states, 1), total(&states, 2), total(&states, 3)), (116.0, 123.0, 112.0));
    // 2 pauses, 3 ends; 1 decodes on alone, and then 2 with it.
    states.release(SequenceId(3));
    pass(&mut states, &[1], &[], 1000.0);
    pass(&mut states, &[1, 2], &[], 2000.0);
    assert_eq!((total(&states, 1), total(&states, 2), total(&states, 3)), (3116.0, 2124.0, 0.0));
}

#[test]
fn a_checkpoint_keeps_its_numbers_and_may_be_resumed_by_several() {
    let mut states = LiveStates::new(initial());
    pass(&mut states, &[], &[(1, 2)], 1.0);
    pass(&mut states, &[1, 9], &[], 4.0);
    let checkpoint = states.checkpoint(SequenceId(1)).unwrap();
    pass(&mut states, &[1, 9], &[], 50.0);
    for sequence in [5, 6] {
        states.resume(SequenceId(sequence), checkpoint.clone());
    }
    pass(&mut states, &[1, 9], &[(6, 1)], 100.0);
    assert_eq!((total(&states, 1), total(&states, 9)), (157.0, 5.0 + 51.0 + 101.0));
    assert_eq!((total(&states, 5), total(&states, 6)), (7.0, 109.0));
}

#[test]
fn a_prompt_of_one_token_decodes_from_the_initial_state() {
    let mut states = LiveStates::new(initial());
    pass(&mut states, &[4], &[], 7.0);
    assert_eq!(total(&states, 4), 7.0);
}

#[test]
fn released_sequences_leave_no_arrays_behind() {
    let mut states = LiveStates::new(initial());
    pass(&mut states, &[1], &[(2, 3)], 1.0);
    assert_eq!(states.arrays(SequenceId(2)).count(), 2 * LAYERS);
    states.release(SequenceId(1));
    states.release(SequenceId(2));
    states.align_decode(&[]).unwrap();
    assert_eq!(states.arrays(SequenceId(2)).count(), 0);
    assert!(states.waiting.is_empty() && states.decoding.is_empty() && states.decode_order.is_empty());
}

#[test]
fn a_model_of_attention_only_keeps_nothing() {
    let mut states = LiveStates::new(Vec::new());
    states.align_decode(&[SequenceId(1), SequenceId(2)]).unwrap();
    assert!(states.checkpoint(SequenceId(1)).unwrap().is_empty());
    assert!(states.decode_order.is_empty());
}

#[test]
fn decode_rows_that_were_not_aligned_are_an_error() {
    let mut states = LiveStates::new(initial());
    let owners = RowOwners { num_decode: 1, chunks: &[] };
    let packed = Array::from_slice(&[1.0f32], &[1, 1]);
    let error = states.advance(0, owners, &mut counting(&packed)).unwrap_err();
    assert!(error.to_string().contains("recurrent"), "{error}");
}
