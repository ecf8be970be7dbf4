//! The recurrence in its three forms: step by step in double precision, and the two that are used.

use mlx_rs::ops;

use super::*;
use crate::mlx::device::ComputeDevice;

const NUM_GROUPS: usize = 2;
const NUM_HEADS: usize = 6;
const KEY_DIM: usize = 8;
const VALUE_DIM: usize = 5;

/// One sequence's rows, flat, head by head within a token.
struct Sample {
    num_tokens: usize,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    log_decays: Vec<f32>,
}

impl Sample {
    fn new(num_tokens: usize, seed: u64) -> Self {
        let mut state = seed.wrapping_mul(2) + 1;
        let mut fill = |count: usize| -> Vec<f32> {
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
            };
            (0..count).map(|_| next()).collect()
        };
        Self {
            num_tokens,
            queries: fill(num_tokens * NUM_GROUPS * KEY_DIM),
            keys: fill(num_tokens * NUM_GROUPS * KEY_DIM),
            values: fill(num_tokens * NUM_HEADS * VALUE_DIM),
            log_decays: fill(num_tokens * NUM_HEADS).into_iter().map(|x| -(x + 1.0) * 0.3).collect(),
        }
    }

    fn rows(&self, tokens: std::ops::Range<usize>) -> StateRows {
        let count = tokens.len() as i32;
        let pick = |values: &[f32], heads: usize, width: usize| {
            let row = heads * width;
            let values = &values[tokens.start * row..tokens.end * row];
            Array::from_slice(values, &[1, count, heads as i32, width as i32])
        };
        StateRows {
            queries: pick(&self.queries, NUM_GROUPS, KEY_DIM),
            keys: pick(&self.keys, NUM_GROUPS, KEY_DIM),
            values: pick(&self.values, NUM_HEADS, VALUE_DIM),
            log_decays: pick(&self.log_decays, NUM_HEADS, 1).reshape(&[1, count, -1]).unwrap(),
        }
    }

    /// What is read and the last memory, by the definition, in the memory's layout.
    fn expected(&self) -> (Vec<f64>, Vec<f64>) {
        let sharing = NUM_HEADS / NUM_GROUPS;
        let mut reads = vec![0.0; self.num_tokens * NUM_HEADS * VALUE_DIM];
        let mut memory = vec![0.0f64; NUM_HEADS * KEY_DIM * VALUE_DIM];
        for (token, head) in
            (0..self.num_tokens).flat_map(|token| (0..NUM_HEADS).map(move |head| (token, head)))
        {
            let group = head / sharing;
            let key_row = (token * NUM_GROUPS + group) * KEY_DIM;
            let row = token * NUM_HEADS + head;
            let decay = f64::from(self.log_decays[row]).exp();
            for column in 0..VALUE_DIM {
                let at = |i: usize| ((group * KEY_DIM + i) * sharing + head % sharing) * VALUE_DIM + column;
                let value = f64::from(self.values[row * VALUE_DIM + column]);
                for i in 0..KEY_DIM {
                    memory[at(i)] = memory[at(i)] * decay + f64::from(self.keys[key_row + i]) * value;
                    reads[row * VALUE_DIM + column] += f64::from(self.queries[key_row + i]) * memory[at(i)];
                }
            }
        }
        (reads, memory)
    }

    /// What is read and the last memory when the tokens come in pieces of these sizes.
    fn computed(&self, ops: &Ops, pieces: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let (mut memory, mut reads, mut first) = (empty_memory(), Vec::new(), 0);
        for &piece in pieces {
            let (read, next) = advance(ops, &self.rows(first..first + piece), &memory).unwrap();
            assert_eq!(read.shape(), [1, piece as i32, NUM_HEADS as i32, VALUE_DIM as i32]);
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

fn empty_memory() -> Array {
    let of_group = NUM_HEADS / NUM_GROUPS * VALUE_DIM;
    let shape = [1, NUM_GROUPS as i32, KEY_DIM as i32, of_group as i32];
    ops::zeros_dtype(&shape, mlx_rs::Dtype::Float32).unwrap()
}

fn values(array: &Array) -> Vec<f32> {
    let array = array.contiguous().unwrap();
    array.eval().unwrap();
    array.to_vec_exact::<f32>().unwrap()
}

#[test]
fn blocks_and_steps_agree_with_the_definition() {
    for (seed, num_tokens) in [1, 2, 3, 31, 63, 64, 65, 128, 150].into_iter().enumerate() {
        let sample = Sample::new(num_tokens, seed as u64);
        sample.check(&[num_tokens]);
        sample.check(&vec![1; num_tokens]);
    }
}

#[test]
fn a_chunk_goes_on_from_the_one_before() {
    let sample = Sample::new(177, 5);
    sample.check(&[100, 1, 76]);
    sample.check(&[13, 64, 100]);
}

/// Ratios of decays would be 0/0 if they were computed as quotients of products.
#[test]
fn a_block_that_forgets_everything_stays_finite() {
    let mut sample = Sample::new(70, 3);
    for (index, decay) in sample.log_decays.iter_mut().enumerate() {
        *decay = if index % 3 == 0 { -60.0 } else { -1e-3 };
    }
    sample.check(&[70]);
    sample.log_decays.fill(-400.0);
    sample.check(&[70]);
}

#[test]
fn a_step_of_several_sequences_is_each_ones_own() {
    for ops in ComputeDevice::KINDS.map(Ops::new) {
        let samples: Vec<Sample> = (0..3).map(|seed| Sample::new(6, 20 + seed)).collect();
        let together = |part: fn(&StateRows) -> &Array| {
            let rows: Vec<StateRows> = samples.iter().map(|sample| sample.rows(5..6)).collect();
            ops::concatenate(&rows.iter().map(part).collect::<Vec<_>>(), 0).unwrap()
        };
        let rows = StateRows {
            queries: together(|rows| &rows.queries),
            keys: together(|rows| &rows.keys),
            values: together(|rows| &rows.values),
            log_decays: together(|rows| &rows.log_decays),
        };
        let before: Vec<Array> = samples
            .iter()
            .map(|sample| advance(&ops, &sample.rows(0..5), &empty_memory()).unwrap().1)
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
