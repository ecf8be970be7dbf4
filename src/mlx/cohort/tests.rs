//! What rows share and what they have to themselves, for paths of every kind.
//!
//! Owns no attention: that what is divided adds up to the same softmax is tested beside it.

use mlx_rs::ops;

use super::*;
use crate::mlx::segment::SegmentStore;

/// Bytes of a token in one layer of one head of one dimension.
const BYTES_PER_TOKEN: u64 = 8;

fn segment(store: &mut SegmentStore, first: usize, num_tokens: usize) -> Rc<Segment> {
    let array = || ops::zeros::<f32>(&[1, 1, num_tokens as i32, 1]).unwrap();
    store.insert(first, num_tokens, vec![LayerKv { first, keys: array(), values: array() }])
}

/// Forms the cohorts of sequences that run on these paths.
fn formed(max_copied_bytes: u64, paths: &[Vec<Rc<Segment>>]) -> (Vec<SequenceId>, Cohorts) {
    let paths = (0..).map(SequenceId).zip(paths.iter().map(Vec::as_slice)).collect();
    Cohorts::new(max_copied_bytes).form(&paths).unwrap()
}

#[test]
fn copies_stay_within_their_limit_and_all_is_seen_all_the_same() {
    let mut store = SegmentStore::default();
    // Two rows of two short segments each: 5 and 3 tokens, 6 and 2.
    let paths: Vec<Vec<Rc<Segment>>> =
        [5, 6].map(|at| vec![segment(&mut store, 0, at), segment(&mut store, at, 8 - at)]).into();
    // Bytes for no copy, for the first row's, for both rows', and for the block of 16 tokens too.
    for (max_tokens, num_pieces, num_lists) in [(7, 4, 2), (8, 3, 2), (16, 2, 1), (31, 2, 1), (32, 2, 1)] {
        let mut cohorts = formed(max_tokens * BYTES_PER_TOKEN, &paths).1;
        assert_eq!(cohorts.private.iter().map(Vec::len).sum::<usize>(), num_pieces, "{max_tokens}");
        for _ in 0..MIN_SAME_PASSES {
            cohorts.step(&mut [vec![], vec![]]).unwrap();
        }
        assert_eq!(cohorts.blocks.len(), usize::from(max_tokens == 32), "{max_tokens}");
        let lists = cohorts.private(0, &[None, None], &[8, 8], None).unwrap();
        assert_eq!(lists.len(), num_lists, "{max_tokens}");
        let num_seen: i32 = lists.iter().flatten().map(|kv| kv.keys.dim(0) * kv.keys.dim(2)).sum();
        assert_eq!(num_seen, 16, "{max_tokens}");
    }
}

#[test]
fn rows_on_the_same_short_segments_have_one_joined_piece_and_share_what_many_would_copy() {
    let mut store = SegmentStore::default();
    // Words that all begin with, then a few that the first two rows share, then each one's own.
    let prefix = segment(&mut store, 0, MIN_SHARED_TOKENS);
    let all = segment(&mut store, 64, 5);
    let common = segment(&mut store, 69, 4);
    let more = segment(&mut store, 73, 2);
    let on_both = [&prefix, &all, &common, &more].map(Rc::clone).to_vec();
    for (num_rows, is_shared) in [(MIN_SPARED_TOKENS / 5 + 1, false), (MIN_SPARED_TOKENS / 5 + 2, true)] {
        let mut paths: Vec<Vec<Rc<Segment>>> = vec![on_both.clone(), on_both.clone()];
        paths.resize_with(num_rows, || vec![Rc::clone(&prefix), Rc::clone(&all), segment(&mut store, 69, 3)]);
        let (order, cohorts) = formed(u64::MAX, &paths);
        let shared = cohorts.shared.iter().map(|shared| (shared.rows.clone(), shared.segments.len()));
        assert_eq!(shared.collect::<Vec<_>>(), [(0..num_rows, 1 + usize::from(is_shared))], "{num_rows}");
        let row_of = |sequence| order.iter().position(|&row| row == SequenceId(sequence)).unwrap();
        let private = [0, 1].map(|sequence| cohorts.private[row_of(sequence)].as_slice());
        let [[first], [second]] = private else { panic!("{num_rows}: {:?}", cohorts.private) };
        assert_eq!(first.layers[0].num_tokens(), if is_shared { 6 } else { 11 }, "{num_rows}");
        assert!(Rc::ptr_eq(&first.layers, &second.layers), "{num_rows}");
    }
}

/// Found by `same_answer`: how far apart the first and the last of them stand was taken for their number.
#[test]
fn rows_that_are_too_few_to_share_a_short_segment_do_not_share_it_with_those_between_them() {
    let mut store = SegmentStore::default();
    let prefix = segment(&mut store, 0, MIN_SHARED_TOKENS);
    let common = segment(&mut store, 64, 33);
    let with_end = |store: &mut SegmentStore, num_tokens| {
        vec![Rc::clone(&prefix), Rc::clone(&common), segment(store, 97, num_tokens)]
    };
    let ends = [1, 5, 20, 30];
    let mut all: Vec<Vec<Rc<Segment>>> = ends.map(|length| with_end(&mut store, length)).into();
    all.extend([40; 4].map(|length| vec![Rc::clone(&prefix), segment(&mut store, 64, length)]));
    let (order, cohorts) = formed(u64::MAX, &all);
    let rows: Vec<&Vec<Rc<Segment>>> = order.iter().map(|sequence| &all[sequence.0 as usize]).collect();
    assert!(rows[0].len() == 3 && rows[7].len() == 3, "others stand between them");
    assert!(cohorts.shared.len() == 1 && cohorts.shared[0].segments.len() == 1, "{:?}", cohorts.shared);
    for (pieces, path) in cohorts.private.iter().zip(rows) {
        let num_tokens: usize = path[1..].iter().map(|segment| segment.num_tokens).sum();
        assert_eq!(pieces.iter().map(|piece| piece.layers[0].num_tokens()).sum::<usize>(), num_tokens);
    }
}
/// A segment that was split lay whole on some paths and in halves on others, above the same segments below:
/// rows between the first and the last that ran on those were shown them too. Paths are a tree now; what
/// rows see does not rest on it.
#[test]
fn every_row_sees_its_path_whatever_the_paths_are() {
    let mut store = SegmentStore::default();
    let mut random = 1_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    for _ in 0..200 {
        // Segments of several lengths to choose from at each of a few places.
        let places: Vec<Vec<Rc<Segment>>> = (0..4)
            .map(|place| {
                let num_segments = 1 + next(3);
                (0..num_segments).map(|_| segment(&mut store, 1000 * place, 1 + next(200))).collect()
            })
            .collect();
        let path = |next: &mut dyn FnMut(usize) -> usize| {
            let chosen = places.iter().filter_map(|segments| segments.get(next(segments.len() + 1)));
            chosen.map(Rc::clone).collect::<Vec<_>>()
        };
        let paths: Vec<Vec<Rc<Segment>>> = (0..1 + next(12)).map(|_| path(&mut next)).collect();
        let (order, cohorts) = formed(u64::MAX, &paths);
        for (row, sequence) in order.iter().enumerate() {
            let shared = cohorts.shared.iter().filter(|shared| shared.rows.contains(&row));
            let shared = shared.flat_map(|shared| &shared.segments).map(|segment| segment.id);
            let private = cohorts.private[row].iter().flat_map(|piece| piece.ids.clone());
            let mut seen: Vec<SegmentId> = shared.chain(private).collect();
            seen.sort_unstable();
            let mut path: Vec<SegmentId> =
                paths[sequence.0 as usize].iter().map(|segment| segment.id).collect();
            path.sort_unstable();
            assert_eq!(seen, path);
        }
    }
}
