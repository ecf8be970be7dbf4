//! Who sees what, for paths of every kind.
//!
//! Owns no attention: that what is divided adds up to the same softmax is tested beside it.

use mlx_rs::ops;

use super::*;
use crate::mlx::{device::ComputeDevice, planes::Planes, segment::SegmentStore};

/// Bytes of a token in one layer of one head of 32 dimensions.
const TOKEN_BYTES: u64 = 256;

fn segment(store: &mut SegmentStore, first: usize, num_tokens: usize) -> Rc<Segment> {
    let array = || ops::zeros::<f32>(&[1, 1, num_tokens as i32, 32]).unwrap();
    store.insert(first, num_tokens, vec![LayerKv { first, planes: Planes::new(array(), array()) }])
}

/// A path and how many tokens follow it.
type Given = (Vec<Rc<Segment>>, usize);

fn row(sequence: usize, (path, num_own_tokens): &Given, num_in_slab: Option<usize>) -> Row<'_> {
    let path_end = path.last().map_or(0, |segment| segment.first + segment.num_tokens);
    Row {
        sequence: SequenceId(sequence as u64),
        path,
        own: &[],
        num_own_tokens: *num_own_tokens,
        num_tokens: path_end + num_own_tokens,
        num_in_slab,
    }
}

/// Places sequences that all join, and forms them.
fn formed(device: ComputeDevice, max_copied_tokens: u64, given: &[Given]) -> (Vec<Place>, Cohorts) {
    let cohorts = Cohorts::new(Costs::of(device), max_copied_tokens.saturating_mul(TOKEN_BYTES));
    let joining: Vec<Row<'_>> =
        given.iter().enumerate().map(|(index, given)| row(index, given, None)).collect();
    let places = cohorts.places(&joining);
    let joined: Vec<Row<'_>> = joining
        .iter()
        .zip(&places)
        .map(|(row, place)| Row { num_in_slab: Some(row.num_tokens - place.from), ..*row })
        .collect();
    let formed = cohorts.form(&joined, &places, |sequence| Some(sequence.0 as usize)).unwrap();
    (places, formed)
}

/// Rows and tokens of each piece.
fn pieces(cohorts: &Cohorts) -> Vec<(Range<usize>, usize)> {
    cohorts.pieces.iter().map(|piece| (piece.rows.clone(), piece.layers[0].num_tokens())).collect()
}

/// 30 rows on 480 tokens in eight segments, half of them on 120 more, and each on five of its own.
fn many_rows(store: &mut SegmentStore, num_own_tokens: usize) -> Vec<Given> {
    let prefix: Vec<Rc<Segment>> = (0..10).map(|index| segment(store, 60 * index, 60)).collect();
    let path = |index: usize| {
        let mut path = prefix[..if index < 15 { 10 } else { 8 }].to_vec();
        let first = path.last().map_or(0, |segment| segment.first + segment.num_tokens);
        path.push(segment(store, first, 5));
        (path, num_own_tokens)
    };
    (0..30).map(path).collect()
}

#[test]
fn what_many_rows_begin_with_is_one_piece_however_many_segments_it_is() {
    let given = many_rows(&mut SegmentStore::default(), 3);
    let (places, cohorts) = formed(ComputeDevice::Gpu, u64::MAX, &given);
    // Another piece costs more than to read 120 tokens for each of 15 rows.
    assert_eq!(pieces(&cohorts), [(0..30, 480)]);
    assert!(places.iter().all(|place| place.from == 480));
}

#[test]
fn on_a_cpu_all_is_seen_where_it_lies() {
    let given = many_rows(&mut SegmentStore::default(), 0);
    let (places, cohorts) = formed(ComputeDevice::Cpu, u64::MAX, &given);
    let (of_several, of_one): (Vec<_>, Vec<_>) =
        pieces(&cohorts).into_iter().partition(|(rows, _)| rows.len() > 1);
    assert_eq!(of_several, [(0..30, 480), (0..15, 120)]);
    assert!(of_one.len() == 30 && of_one.iter().all(|(_, num_tokens)| *num_tokens == 5));
    let ends = given.iter().map(|(path, _)| path.last().map_or(0, |last| last.first + last.num_tokens));
    assert!(places.iter().map(|place| place.from).eq(ends));
}

#[test]
fn copies_stay_within_their_limit_and_all_is_seen_all_the_same() {
    let mut store = SegmentStore::default();
    // Two rows of two short segments each: 5 and 3 tokens, 6 and 2.
    let given: Vec<Given> =
        [5, 6].map(|at| (vec![segment(&mut store, 0, at), segment(&mut store, at, 8 - at)], 1)).into();
    // Tokens for no copy, for the first row's, for both rows' in the slab.
    for (max_tokens, expected) in [(7, vec![5, 3, 6, 2]), (8, vec![6, 2]), (15, vec![6, 2]), (16, vec![])] {
        let (places, cohorts) = formed(ComputeDevice::Gpu, max_tokens, &given);
        let from: Vec<usize> = places.iter().map(|place| place.from).collect();
        match max_tokens {
            16 => assert_eq!(from, [0, 0]),
            7 => assert_eq!(from, [8, 8]),
            // The first row's are in the slab, so only the second's are pieces.
            _ => assert_eq!(from, [0, 8]),
        }
        let found: Vec<usize> = pieces(&cohorts).iter().map(|(_, num_tokens)| *num_tokens).collect();
        assert_eq!(found, expected, "{max_tokens}");
    }
}

#[test]
fn a_row_with_much_more_to_itself_than_the_others_stays_out_of_the_slab() {
    let mut store = SegmentStore::default();
    let mut given: Vec<Given> = vec![(vec![segment(&mut store, 0, 3000)], 100)];
    given.extend((0..10).map(|_| (vec![], 90)));
    let cohorts = Cohorts::new(Costs::of(ComputeDevice::Gpu), u64::MAX);
    let joining: Vec<Row<'_>> =
        given.iter().enumerate().map(|(index, given)| row(index, given, None)).collect();
    let places = cohorts.places(&joining);
    assert_eq!(places[0], Place { from: 3100, leaves_slab: false });
    assert!(places[1..].iter().all(|place| *place == Place { from: 0, leaves_slab: false }));
    // It was the first, and is in the slab: it leaves.
    let mut rows: Vec<Row<'_>> = joining;
    rows[0].num_in_slab = Some(3100);
    assert_eq!(cohorts.places(&rows)[0], Place { from: 3100, leaves_slab: true });
    // Among its like it stays.
    let like: Vec<Given> = (0..6).map(|_| (vec![segment(&mut store, 0, 3000)], 100)).collect();
    let rows: Vec<Row<'_>> = like.iter().enumerate().map(|(index, given)| row(index, given, None)).collect();
    assert!(cohorts.places(&rows).iter().all(|place| place.from == 0));
}

#[test]
fn rows_that_hold_a_copy_see_the_segment_together_once_others_come() {
    let mut store = SegmentStore::default();
    let long = segment(&mut store, 0, 1800);
    let given: Vec<Given> = (0..5).map(|_| (vec![Rc::clone(&long)], 10)).collect();
    let cohorts = Cohorts::new(Costs::of(ComputeDevice::Gpu), u64::MAX);
    let rows = |in_slab: [Option<usize>; 5]| -> Vec<Row<'_>> {
        in_slab
            .iter()
            .zip(&given)
            .enumerate()
            .map(|(index, (held, given))| row(index, given, *held))
            .collect()
    };
    let place = |leaves_slab| Place { from: 1800, leaves_slab };
    let copies = rows([Some(1810), Some(1810), Some(1810), Some(1810), None]);
    assert_eq!(cohorts.places(&copies), vec![place(false); 5]);
    // A single copy among rows that have none only takes room.
    let held = rows([Some(1810), Some(10), None, Some(10), None]);
    let leaves = cohorts.places(&held).iter().map(|place| place.leaves_slab).collect::<Vec<_>>();
    assert_eq!(leaves, [true, false, false, false, false]);
    // The others have left: each sees what it has.
    let alone = |index: usize| cohorts.places(&held[index..=index])[0].from;
    assert_eq!([alone(0), alone(1), alone(2)], [0, 1800, 0]);
}

/// A segment that was split lay whole on some paths and in halves on others, above the same segments below:
/// rows between the first and the last that ran on those were shown them too. Every row is held to its own
/// path, tree or not.
#[test]
fn every_row_sees_its_path_whatever_the_paths_are() {
    let mut random = 1_u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    for trial in 0..200 {
        let mut store = SegmentStore::default();
        let mut given: Vec<Given> = Vec::new();
        for _ in 0..1 + next(12) {
            // As another goes, then on by itself.
            let from = given.get(next(given.len() + 1)).map(|(path, _)| path.clone()).unwrap_or_default();
            let mut path = from[..next(from.len() + 1)].to_vec();
            // Some have computed a segment anew.
            let place = next(path.len() + 1);
            if let Some(copied) = path.get_mut(place).filter(|_| next(3) == 0) {
                *copied = segment(&mut store, copied.first, copied.num_tokens);
            }
            for _ in 0..next(4) {
                let first = path.last().map_or(0, |segment| segment.first + segment.num_tokens);
                path.push(segment(&mut store, first, 1 + next(400)));
            }
            given.push((path, next(3)));
        }
        let device = ComputeDevice::KINDS[trial % 2];
        let max_tokens = [0, 300, 2000, u64::MAX][next(4)];
        // That each row sees its tokens just once is held to where they are divided.
        let (places, cohorts) = formed(device, max_tokens, &given);
        for (index, (sequence, place)) in cohorts.rows.iter().enumerate() {
            let (path, _) = &given[sequence.0 as usize];
            assert_eq!(*place, places[sequence.0 as usize]);
            let mut pieces: Vec<&Piece> =
                cohorts.pieces.iter().filter(|piece| piece.rows.contains(&index)).collect();
            pieces.sort_by_key(|piece| piece.first);
            let seen = pieces.iter().flat_map(|piece| piece.ids.clone());
            let expected = path.iter().filter(|segment| segment.first < place.from);
            assert!(seen.eq(expected.map(|segment| segment.id)));
        }
    }
}
