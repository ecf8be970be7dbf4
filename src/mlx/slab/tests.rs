//! Rows that join, step and leave, against lists of numbers.
//!
//! Owns no attention: what is seen of the slab is tested beside it.

use std::collections::BTreeMap;

use super::*;
use crate::mlx::arrays::compact;

fn plane(numbers: &[f32]) -> Array {
    Array::from_slice(numbers, &[1, 1, numbers.len() as i32, 1])
}

fn piece(numbers: &[f32]) -> Vec<LayerKv> {
    vec![LayerKv { first: 0, planes: Planes::new(plane(numbers), plane(numbers)) }]
}

fn numbers_of(array: &Array) -> Vec<f32> {
    compact(array).unwrap().to_vec_exact::<f32>().unwrap()
}

/// A step that appends one number to each row, in the order given.
fn step(slab: &mut Slab, rows: &[(SequenceId, f32)]) -> SlabRows {
    slab.step().unwrap();
    let order: Vec<_> = rows.iter().map(|&(row, _)| (row, slab.num_tokens(row).unwrap())).collect();
    let rows_of_pass = slab.rows(&order);
    let new: Vec<f32> = rows.iter().map(|(_, number)| *number).collect();
    let new = Array::from_slice(&new, &[new.len() as i32, 1, 1]);
    slab.fill(0, &Planes::new(new.clone(), new), &rows_of_pass, false).unwrap();
    rows_of_pass
}

#[test]
fn rows_hold_what_they_were_given_whoever_comes_and_goes() {
    ComputeDevice::KINDS.into_iter().for_each(rows_hold_what_they_were_given_whoever_comes_and_goes_on);
}

fn rows_hold_what_they_were_given_whoever_comes_and_goes_on(device: ComputeDevice) {
    let mut random = 7_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    let mut slab = Slab::new(device);
    let mut model: BTreeMap<u64, Vec<f32>> = BTreeMap::new();
    let (mut num_joined, mut number) = (0, 0.0);
    for _ in 0..400 {
        let mut fresh = || {
            number += 1.0;
            number
        };
        for _ in 0..next(3) {
            if let Some(&leaves) = model.keys().nth(next(model.len().max(1))) {
                model.remove(&leaves);
                slab.leave(SequenceId(leaves));
            }
        }
        let lengths: Vec<usize> = (0..next(3)).map(|_| [0, 1, next(9), next(60)][next(4)]).collect();
        let pieces: Vec<Vec<Vec<LayerKv>>> = lengths
            .iter()
            .map(|&length| {
                let tokens: Vec<f32> = (0..length).map(|_| fresh()).collect();
                let cut = next(length + 1);
                let parts = [&tokens[..cut], &tokens[cut..]].into_iter().filter(|part| !part.is_empty());
                let parts = parts.map(piece).collect();
                model.insert(num_joined, tokens);
                num_joined += 1;
                parts
            })
            .collect();
        let first = num_joined - lengths.len() as u64;
        let joining: Vec<Joining<'_>> = (first..)
            .zip(lengths.iter().zip(&pieces))
            .map(|(id, (&num_tokens, pieces))| Joining {
                sequence: SequenceId(id),
                pieces: pieces.iter().map(Vec::as_slice).collect(),
                num_tokens,
            })
            .collect();
        slab.join(&joining).unwrap();
        if !model.is_empty() && next(4) > 0 {
            let mut rows: Vec<(SequenceId, f32)> =
                model.keys().map(|&id| (SequenceId(id), fresh())).collect();
            let rotation = next(rows.len());
            rows.rotate_left(rotation);
            let of_pass = step(&mut slab, &rows);
            for (id, number) in &rows {
                model.get_mut(&id.0).unwrap().push(*number);
            }
            // Each row sees just its own columns.
            let (first, mask) = of_pass.mask(None, Dtype::Float32).unwrap();
            let width = of_pass.end - first;
            let mask = mask.map(|mask| numbers_of(&mask));
            for (row, (id, _)) in rows.iter().enumerate() {
                let slot = of_pass.slots[row];
                let num_hidden = mask.as_ref().map_or(0, |mask| {
                    mask[slot * width..][..width].iter().filter(|&&hidden| hidden < 0.0).count()
                });
                assert_eq!(width - num_hidden, model[&id.0].len());
            }
        }
        for (&id, tokens) in &model {
            assert_eq!(slab.num_tokens(SequenceId(id)), Some(tokens.len()));
            if tokens.is_empty() || slab.layers.is_empty() {
                continue;
            }
            let skip = next(tokens.len());
            let copy =
                slab.copy_out(SequenceId(id), skip, tokens.len() - skip, 5, Copying::ByDevice).unwrap();
            assert_eq!(
                (copy[0].first, numbers_of(copy[0].planes.keys())),
                (5, tokens[skip..].to_vec()),
                "{id}"
            );
        }
    }
    assert!(num_joined > 300);
}

#[test]
fn steps_are_written_in_place_while_there_is_room_and_holes_are_taken() {
    ComputeDevice::KINDS
        .into_iter()
        .for_each(steps_are_written_in_place_while_there_is_room_and_holes_are_taken_on);
}

fn steps_are_written_in_place_while_there_is_room_and_holes_are_taken_on(device: ComputeDevice) {
    let memory = |slab: &Slab| slab.layers[0].keys().try_as_slice::<f32>().unwrap().as_ptr();
    let mut slab = Slab::new(device);
    let tokens = piece(&[0.5; 100]);
    let joining = |sequence: u64| Joining {
        sequence: SequenceId(sequence),
        pieces: vec![tokens.as_slice()],
        num_tokens: 100,
    };
    slab.join(&[joining(0), joining(1), joining(2)]).unwrap();
    let mut num_moves = 0;
    let mut before = memory(&slab);
    for number in 0..200 {
        step(&mut slab, &[0, 1, 2].map(|row| (SequenceId(row), number as f32)));
        num_moves += usize::from(memory(&slab) != before);
        before = memory(&slab);
        assert!(slab.capacity <= slab.end + (slab.end / 8).max(MIN_ROOM));
    }
    assert!(num_moves <= 10, "moved {num_moves} times in 200 steps");
    slab.leave(SequenceId(1));
    slab.join(&[joining(7)]).unwrap();
    assert_eq!((slab.slot_of(SequenceId(7)), memory(&slab)), (Some(1), before));
    // The longest has left: its columns go with the next move.
    slab.leave(SequenceId(0));
    slab.leave(SequenceId(2));
    while slab.end < slab.capacity {
        step(&mut slab, &[(SequenceId(7), 1.0)]);
    }
    step(&mut slab, &[(SequenceId(7), 1.0)]);
    assert_eq!((slab.end, slab.slots.len()), (slab.num_tokens(SequenceId(7)).unwrap(), 1));
    slab.leave(SequenceId(7));
    assert!(slab.layers.is_empty());
}

#[test]
fn a_window_moves_with_the_end() {
    ComputeDevice::KINDS.into_iter().for_each(a_window_moves_with_the_end_on);
}

fn a_window_moves_with_the_end_on(device: ComputeDevice) {
    let mut slab = Slab::new(device);
    let (long, short) = (piece(&[1.0; 9]), piece(&[2.0; 2]));
    let joining = [(1, &long), (2, &short)].map(|(id, tokens)| Joining {
        sequence: SequenceId(id),
        pieces: vec![tokens.as_slice()],
        num_tokens: tokens[0].num_tokens(),
    });
    slab.join(&joining).unwrap();
    let rows = step(&mut slab, &[(SequenceId(2), 3.0), (SequenceId(1), 4.0)]);
    assert_eq!((rows.end, rows.slots.clone()), (10, vec![1, 0]));
    assert_eq!(rows.seen_through(None), [7, 0]);
    assert_eq!(rows.seen_through(Some(5)), [7, 5]);
    let (first, mask) = rows.mask(Some(5), Dtype::Float32).unwrap();
    assert_eq!((first, numbers_of(&mask.unwrap())[5..7].to_vec()), (5, vec![f32::NEG_INFINITY; 2]));
    assert!(rows.mask(Some(2), Dtype::Float32).unwrap().1.is_none());
}
