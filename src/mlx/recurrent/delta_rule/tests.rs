//! The recurrence in its three forms: step by step in double precision, and the two that are used.

use super::*;
use crate::mlx::device::ComputeDevice;

/// One sequence's rows, flat, head by head within a token.
struct Sample {
    num_tokens: usize,
    key_heads: usize,
    heads: usize,
    key_dim: usize,
    value_dim: usize,
    /// Decays of each head.
    decay_dim: usize,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    log_decays: Vec<f32>,
    write_strengths: Vec<f32>,
}

/// A repeatable stream of numbers between -1 and 1.
fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(2) + 1;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    }
}

impl Sample {
    fn new(num_tokens: usize, seed: u64) -> Self {
        Self::with_decays(num_tokens, seed, 1)
    }

    /// Decays by dimension.
    fn by_dimension(num_tokens: usize, seed: u64) -> Self {
        Self::with_decays(num_tokens, seed, 8)
    }

    fn with_decays(num_tokens: usize, seed: u64, decay_dim: usize) -> Self {
        let (key_heads, heads, key_dim, value_dim) = (2, 4, 8, 6);
        let mut next = noise(seed);
        let mut fill = |count: usize| (0..count).map(|_| next()).collect::<Vec<f32>>();
        let (queries, mut keys) =
            (fill(num_tokens * key_heads * key_dim), fill(num_tokens * key_heads * key_dim));
        for key in keys.chunks_mut(key_dim) {
            let length = key.iter().map(|x| x * x).sum::<f32>().sqrt();
            key.iter_mut().for_each(|x| *x /= length);
        }
        Self {
            num_tokens,
            key_heads,
            heads,
            key_dim,
            value_dim,
            decay_dim,
            queries,
            keys,
            values: fill(num_tokens * heads * value_dim),
            log_decays: fill(num_tokens * heads * decay_dim).into_iter().map(|x| -(x + 1.0) * 0.3).collect(),
            write_strengths: fill(num_tokens * heads).into_iter().map(|x| (x + 1.0) / 2.0).collect(),
        }
    }

    fn rows(&self, tokens: std::ops::Range<usize>) -> DeltaRows {
        let count = tokens.len() as i32;
        let pick = |values: &[f32], heads: usize, width: usize| {
            let row = heads * width;
            let values = &values[tokens.start * row..tokens.end * row];
            Array::from_slice(values, &[1, count, heads as i32, width as i32])
        };
        let by_head = |values: &[f32]| pick(values, self.heads, 1).reshape(&[1, count, -1]).unwrap();
        DeltaRows {
            queries: pick(&self.queries, self.key_heads, self.key_dim),
            keys: pick(&self.keys, self.key_heads, self.key_dim),
            values: pick(&self.values, self.heads, self.value_dim),
            log_decays: pick(&self.log_decays, self.heads, self.decay_dim),
            write_strengths: by_head(&self.write_strengths),
        }
    }

    fn empty_memory(&self) -> Array {
        let shape = [1, self.heads as i32, self.key_dim as i32, self.value_dim as i32];
        ops::zeros_dtype(&shape, mlx_rs::Dtype::Float32).unwrap()
    }

    /// What is read and the last memory, by the definition.
    fn expected(&self) -> (Vec<f64>, Vec<f64>) {
        let sharing = self.heads / self.key_heads;
        let mut reads = vec![0.0; self.num_tokens * self.heads * self.value_dim];
        let mut memories = Vec::new();
        for head in 0..self.heads {
            let mut memory = vec![0.0f64; self.key_dim * self.value_dim];
            for token in 0..self.num_tokens {
                let key_row = (token * self.key_heads + head / sharing) * self.key_dim;
                let row = token * self.heads + head;
                let decays = &self.log_decays[row * self.decay_dim..][..self.decay_dim];
                for (key, faded) in memory.chunks_mut(self.value_dim).enumerate() {
                    let decay = f64::from(decays[key % self.decay_dim]).exp();
                    faded.iter_mut().for_each(|x| *x *= decay);
                }
                for column in 0..self.value_dim {
                    let at = |i: usize| i * self.value_dim + column;
                    let seen: f64 =
                        (0..self.key_dim).map(|i| f64::from(self.keys[key_row + i]) * memory[at(i)]).sum();
                    let value = f64::from(self.values[row * self.value_dim + column]);
                    let write = f64::from(self.write_strengths[row]) * (value - seen);
                    for i in 0..self.key_dim {
                        memory[at(i)] += f64::from(self.keys[key_row + i]) * write;
                    }
                    reads[row * self.value_dim + column] =
                        (0..self.key_dim).map(|i| f64::from(self.queries[key_row + i]) * memory[at(i)]).sum();
                }
            }
            memories.extend(memory);
        }
        (reads, memories)
    }

    /// What is read and the last memory when the tokens come in pieces of these sizes.
    fn computed(&self, ops: &Ops, pieces: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let (mut memory, mut reads, mut first) = (self.empty_memory(), Vec::new(), 0);
        for &piece in pieces {
            let (read, next) = advance(ops, &self.rows(first..first + piece), &memory).unwrap();
            assert_eq!(read.shape(), [1, piece as i32, self.heads as i32, self.value_dim as i32]);
            assert_eq!(next.shape(), memory.shape());
            reads.extend(values(&read));
            memory = next;
            first += piece;
        }
        assert_eq!(first, self.num_tokens);
        (reads, values(&memory))
    }

    fn check(&self, pieces: &[usize]) {
        let (expected_reads, expected_memory) = self.expected();
        for ops in ComputeDevice::KINDS.map(Ops::new) {
            let (reads, memory) = self.computed(&ops, pieces);
            for (what, ours, expected) in
                [("read", reads, &expected_reads), ("memory", memory, &expected_memory)]
            {
                for (index, (ours, expected)) in ours.iter().zip(expected).enumerate() {
                    assert!(
                        (f64::from(*ours) - expected).abs() < 2e-5,
                        "{pieces:?} {what} {index}: {ours} {expected}"
                    );
                }
            }
        }
    }
}

fn values(array: &Array) -> Vec<f32> {
    let array = array.contiguous().unwrap();
    array.eval().unwrap();
    array.to_vec_exact::<f32>().unwrap()
}

#[test]
fn blocks_and_steps_agree_with_the_definition() {
    for (seed, num_tokens) in [1, 2, 3, 7, 31, 32, 33, 64, 100].into_iter().enumerate() {
        for sample in [Sample::new, Sample::by_dimension] {
            let sample = sample(num_tokens, seed as u64);
            sample.check(&[num_tokens]);
            sample.check(&vec![1; num_tokens]);
        }
    }
}

#[test]
fn a_chunk_goes_on_from_the_one_before() {
    for sample in [Sample::new(77, 5), Sample::by_dimension(77, 5)] {
        sample.check(&[13, 13, 13, 13, 13, 12]);
        sample.check(&[40, 1, 36]);
    }
}

/// A prompt that repeats one token gives equal keys, and A's powers then grow to 10⁸ and cancel:
/// the power series of (I + A)⁻¹ has no correct digit left there.
#[test]
fn equal_keys_written_at_full_strength_stay_accurate() {
    for mut sample in [Sample::new(64, 9), Sample::by_dimension(64, 9)] {
        let key: Vec<f32> = sample.keys[..sample.key_heads * sample.key_dim].to_vec();
        for keys in sample.keys.chunks_mut(key.len()) {
            keys.copy_from_slice(&key);
        }
        sample.log_decays.fill(0.0);
        sample.write_strengths.fill(1.0);
        sample.check(&[64]);
    }
}

/// Ratios of decays would be 0/0 if they were computed as quotients of products.
#[test]
fn a_block_that_forgets_everything_stays_finite() {
    for mut sample in [Sample::new(50, 3), Sample::by_dimension(50, 3)] {
        for (index, decay) in sample.log_decays.iter_mut().enumerate() {
            *decay = if index % 3 == 0 { -60.0 } else { -1e-3 };
        }
        sample.check(&[50]);
        sample.log_decays.fill(-400.0);
        sample.check(&[50]);
    }
}

#[test]
fn a_step_of_several_sequences_is_each_ones_own() {
    for ops in ComputeDevice::KINDS.map(Ops::new) {
        let samples: Vec<Sample> = (0..3).map(|seed| Sample::by_dimension(6, 20 + seed)).collect();
        let together = |part: fn(&DeltaRows) -> &Array| {
            let rows: Vec<DeltaRows> = samples.iter().map(|sample| sample.rows(5..6)).collect();
            ops::concatenate(&rows.iter().map(part).collect::<Vec<_>>(), 0).unwrap()
        };
        let rows = DeltaRows {
            queries: together(|rows| &rows.queries),
            keys: together(|rows| &rows.keys),
            values: together(|rows| &rows.values),
            log_decays: together(|rows| &rows.log_decays),
            write_strengths: together(|rows| &rows.write_strengths),
        };
        let before: Vec<Array> = samples
            .iter()
            .map(|sample| advance(&ops, &sample.rows(0..5), &sample.empty_memory()).unwrap().1)
            .collect();
        let (reads, _) = advance(&ops, &rows, &ops::concatenate(&before, 0).unwrap()).unwrap();
        let alone: Vec<f32> = samples
            .iter()
            .zip(&before)
            .flat_map(|(sample, memory)| values(&advance(&ops, &sample.rows(5..6), memory).unwrap().0))
            .collect();
        assert_eq!(values(&reads), alone);
    }
}
