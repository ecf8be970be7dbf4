//! What a pass does to sequences' own KV.
//!
//! Owns cases that need arrays and no model.

use mlx_rs::ops;

use super::*;

#[test]
fn short_chunks_are_views_where_they_are_most_of_what_is_kept_with_them() {
    let chunk = |sequence, num_tokens| PassChunk { sequence: SequenceId(sequence), num_tokens, start: 0 };
    let part = |num_rows| ops::zeros::<f32>(&[num_rows, 1, 2]).unwrap();
    let cases: [(&[usize], &[i32], &[bool]); 4] = [
        // Two short ones beside a long one, and alone.
        (&[10, 10, 100], &[120], &[false, false, false]),
        (&[10, 10], &[20], &[true, true]),
        // One that lies in two row blocks is copied; most of the second block is its end.
        (&[20, 40, 10], &[40, 30], &[false, false, false]),
        (&[30, 20, 30], &[40, 40], &[true, false, true]),
    ];
    for (lengths, parts, expected) in cases {
        let mut live = LiveKv::new(Vec::new(), u64::MAX);
        let chunks = (0..).zip(lengths).map(|(sequence, &length)| chunk(sequence, length)).collect();
        let pass = live.begin_pass(chunks, &[None]);
        let parts: Vec<Array> = parts.iter().map(|&num_rows| part(num_rows)).collect();
        assert_eq!(live.chunks_as_views(&parts, &pass), expected, "{lengths:?}");
        live.append(0, None, &parts, &parts, &pass).unwrap();
        let own = |sequence| live.sequences[&SequenceId(sequence)].is_own_shared;
        assert_eq!((0..).map(own).take(lengths.len()).collect::<Vec<_>>(), expected, "{lengths:?}");
    }
}
