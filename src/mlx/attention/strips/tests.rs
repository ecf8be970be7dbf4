use super::*;

fn numbers(count: usize, seed: f32) -> Vec<f32> {
    (0..count).map(|index| ((index as f32 + seed) * 0.713).sin() * 2.0).collect()
}

/// Heads of so many tokens each, one behind the other, the first of them the `first`th token.
fn plane(numbers: &[f32], first: usize, capacity: usize, width: usize) -> Plane<'_> {
    Plane { numbers: &numbers[first * width..], head_step: capacity * width, token_step: width }
}

/// Softmax attention in double precision of one query to keys and values `(L, D)`, and its largest score and sum.
fn reference(
    query: &[f32],
    keys: &[f32],
    (values, value_step): (&[f32], usize),
    (shape, cap): (HeadShape, Option<f32>),
) -> (Vec<f64>, f64, f64) {
    let scores: Vec<f64> = keys
        .chunks(shape.key_dim)
        .map(|key| key.iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum())
        .map(|score: f64| cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh()))
        .collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
    let mut weighed = vec![0.0; shape.value_dim];
    for (score, value) in scores.iter().zip(values.chunks(value_step)) {
        for (weighed, value) in weighed.iter_mut().zip(value) {
            *weighed += (score - max).exp() * f64::from(*value);
        }
    }
    (weighed, max, sum)
}

#[test]
fn rows_over_several_strips_and_parts_are_one_softmax_in_double_precision() {
    // Widths of keys and values, and what lies between values where they are keys' first columns.
    for ((key_dim, value_dim, value_step), num_groups, num_kv_heads, cap) in [
        ((64, 64, 64), 3, 3, None),
        ((16, 16, 16), 1, 2, None),
        ((80, 80, 80), 7, 2, None),
        ((24, 24, 24), 4, 1, Some(3.0)),
        ((5, 5, 5), 2, 2, None),
        ((40, 19, 19), 3, 2, None),
        ((72, 64, 72), 20, 1, None),
        ((21, 13, 21), 4, 1, None),
    ] {
        let shape = HeadShape { num_kv_heads, num_groups, key_dim, value_dim };
        // Keys and values; the same numbers where values are within keys.
        let planes = |num_tokens: usize, seed: f32| {
            let apart = if value_step == value_dim { 0.5 } else { 0.0 };
            [numbers(num_tokens * key_dim, seed), numbers(num_tokens * value_step, seed + apart)]
        };
        // A strip with room at both ends, a short one without whose heads alternate, and a part.
        let (capacity, tokens) = (300, 37..263);
        let long = planes(2 * num_kv_heads * capacity, 1.0);
        let short = planes(num_kv_heads * 3, 4.0);
        let known = planes(90, 6.0);
        let num_heads = num_kv_heads * num_groups;
        let queries = numbers(2 * num_heads * key_dim, 2.0);
        let of_part: Vec<_> = queries
            .chunks(key_dim)
            .take(num_heads)
            .map(|query| reference(query, &known[0], (&known[1], value_step), (shape, cap)))
            .collect();
        let max: Vec<f32> = of_part.iter().map(|(_, max, _)| *max as f32).collect();
        let sum: Vec<f32> = of_part.iter().map(|(_, _, sum)| *sum as f32).collect();
        let weighed: Vec<f32> = of_part.iter().flat_map(|(weighed, ..)| weighed).map(|x| *x as f32).collect();
        let strip = |slot: usize| {
            let plane = |numbers, width| plane(numbers, slot * num_kv_heads * capacity, capacity, width);
            Strip {
                keys: plane(&long[0], key_dim),
                values: plane(&long[1], value_step),
                tokens: tokens.clone(),
            }
        };
        let alternating =
            |numbers, width| Plane { numbers, head_step: width, token_step: num_kv_heads * width };
        let (keys, values) = (alternating(&short[0], key_dim), alternating(&short[1], value_step));
        let whole = Strip { keys, values, tokens: 0..3 };
        let part = Part { max: &max, sum: &sum, weighed: &weighed };
        let of_rows: Vec<&[f32]> = queries.chunks(num_heads * key_dim).collect();
        let rows = [
            StripRow { queries: of_rows[0], strips: vec![strip(1), whole], parts: vec![part] },
            StripRow { queries: of_rows[1], strips: vec![strip(0)], parts: Vec::new() },
        ];
        for instructions in InstructionSet::all() {
            let found = attend_by(instructions, &rows, shape, (cap, None), 1);
            for (index, (query, found)) in queries.chunks(key_dim).zip(found.chunks(value_dim)).enumerate() {
                let (row, head) = (index / num_heads, index % num_heads / num_groups);
                let (mut keys, mut values) = (Vec::new(), Vec::new());
                let from = ((1 - row) * num_kv_heads + head) * capacity;
                let at = |stride: usize| (from + tokens.start) * stride..(from + tokens.end) * stride;
                keys.extend_from_slice(&long[0][at(key_dim)]);
                values.extend_from_slice(&long[1][at(value_step)]);
                if row == 0 {
                    for token in 0..3 {
                        let of_head = |width: usize| (token * num_kv_heads + head) * width..;
                        keys.extend_from_slice(&short[0][of_head(key_dim)][..key_dim]);
                        values.extend_from_slice(&short[1][of_head(value_step)][..value_step]);
                    }
                    keys.extend_from_slice(&known[0]);
                    values.extend_from_slice(&known[1]);
                }
                let (weighed, _, sum) = reference(query, &keys, (&values, value_step), (shape, cap));
                for (found, weighed) in found.iter().zip(weighed) {
                    let expected = weighed / sum;
                    assert!((f64::from(*found) - expected).abs() < 2e-5, "{shape:?}: {found} {expected}");
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_whoever_is_beside_it_and_a_number_that_is_none_stays_none() {
    let shape = HeadShape { num_kv_heads: 2, num_groups: 2, key_dim: 32, value_dim: 32 };
    // Enough for several threads.
    let capacity = 3000;
    let mut keys = numbers(4 * 2 * capacity * 32, 1.0);
    let values = numbers(keys.len(), 3.0);
    keys[2 * capacity * 32 + 70 * 32] = f32::NAN;
    let queries = numbers(4 * 4 * 32, 2.0);
    let row = |slot: usize| {
        let plane = |numbers| plane(numbers, slot * 2 * capacity, capacity, 32);
        let strip = Strip { keys: plane(&keys), values: plane(&values), tokens: slot..capacity };
        StripRow { queries: &queries[slot * 4 * 32..][..4 * 32], strips: vec![strip], parts: Vec::new() }
    };
    let together = attend(&[row(0), row(1), row(2), row(3)], shape, (None, None), 3);
    for slot in 0..4 {
        let of_row = slot * 4 * 32..(slot + 1) * 4 * 32;
        let alone = attend(&[row(slot)], shape, (None, None), 1);
        let bits = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&alone), bits(&together[of_row]), "{slot}");
        assert_eq!(alone.iter().any(|x| x.is_nan()), slot == 1);
    }
}
