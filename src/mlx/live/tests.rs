//! What a pass does to sequences' own KV.
//!
//! Owns cases that need arrays and no model.

use mlx_rs::ops;

use super::*;
use crate::mlx::{attention::KvSight, planes::Planes};

#[test]
fn short_chunks_are_views_where_they_are_most_of_what_is_kept_with_them() {
    let chunk = |sequence, num_tokens| PassChunk { sequence: SequenceId(sequence), num_tokens, start: 0 };
    let part = |num_rows: usize| ops::zeros::<f32>(&[num_rows as i32, 1, 2]).unwrap();
    let cases: [(&[usize], &[usize], &[bool]); 4] = [
        // Two short ones beside a long one, and alone.
        (&[10, 10, 100], &[120], &[false, false, false]),
        (&[10, 10], &[20], &[true, true]),
        // One that lies in two row blocks is copied; most of the second block is its end.
        (&[20, 40, 10], &[40, 30], &[false, false, false]),
        (&[30, 20, 30], &[40, 40], &[true, false, true]),
    ];
    for (lengths, parts, expected) in cases {
        let mut live = LiveKv::new(Vec::new(), ComputeDevice::Gpu, u64::MAX);
        let chunks = (0..).zip(lengths).map(|(sequence, &length)| chunk(sequence, length)).collect();
        let pass = live.begin_pass(chunks).unwrap();
        assert_eq!(live.chunks_as_views(parts, &pass), expected, "{lengths:?}");
        let planes: Vec<Planes> =
            parts.iter().map(|&num_rows| Planes::new(part(num_rows), part(num_rows))).collect();
        live.append(0, KvSight::default(), &planes, &pass).unwrap();
        let own = |sequence| live.sequences[&SequenceId(sequence)].is_own_shared;
        assert_eq!((0..).map(own).take(lengths.len()).collect::<Vec<_>>(), expected, "{lengths:?}");
    }
}

/// The whole stayed beside its halves, counted apart, for as long as somebody ran on it.
#[test]
fn a_segment_that_was_split_is_held_by_nobody() {
    let mut store = SegmentStore::default();
    let mut piece = |first: usize, num_tokens: usize| {
        // As wide as makes the rows see it together.
        let array = || ops::zeros::<f32>(&[1, 1, num_tokens as i32, 256]).unwrap();
        store.insert(first, num_tokens, vec![LayerKv { first, planes: Planes::new(array(), array()) }])
    };
    let (long, short, below) = (piece(0, 90), piece(90, 9), piece(99, 3));
    let wholes = [Rc::downgrade(&long), Rc::downgrade(&short)];
    let ids = [long.id, short.id];
    let mut live = LiveKv::new(Vec::new(), ComputeDevice::Cpu, u64::MAX);
    let sequences = [1, 2].map(SequenceId);
    for sequence in sequences {
        let path = vec![Rc::clone(&long), Rc::clone(&short), Rc::clone(&below)];
        live.resume(sequence, path, None).unwrap();
    }
    drop((long, short, below));
    live.prepare_decode(&sequences, false).unwrap();
    for (id, whole) in ids.into_iter().zip(wholes) {
        let (upper, lower) = store.split(id, 4).unwrap();
        live.replace(id, [&upper, &lower]);
        assert_eq!(whole.strong_count(), 0);
    }
    // Without rows that come or go it is formed anew.
    live.prepare_decode(&sequences, false).unwrap();
    for sequence in sequences {
        let path = live.sequences[&sequence].path.iter();
        assert_eq!(path.map(|segment| segment.first).collect::<Vec<_>>(), [0, 4, 90, 94, 99]);
    }
    let seen: Vec<_> =
        live.cohorts.pieces.iter().map(|piece| (piece.rows.clone(), piece.layers[0].num_tokens())).collect();
    assert_eq!(seen, [(0..2, 102)]);
}
