//! A decode step of the state-space recurrence on the CPU: one pass over the memories, on all cores.
//!
//! Owns that pass over slices. MLX makes one for each operation, on one core, and the memories of many sequences
//! are what a step reads and writes most of.

use crate::mlx::sys::{Instructions, WideWork, do_with_wide_vectors, share_out};

/// Parts that the rows of a memory are divided into, each with a sum of its own: as many whatever the machine and
/// the batch, so that what is read does not depend on these.
const NUM_PARTS: usize = 4;

/// Less than this is not worth another thread.
const MIN_THREAD_NUMBERS: usize = 1 << 17;

/// What a step brings to memories `(M, D_k, W)`, in row-major order.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepRows<'a> {
    /// `(M, D_k)`.
    pub queries: &'a [f32],
    /// `(M, D_k)`.
    pub keys: &'a [f32],
    /// `(M, W)`.
    pub values: &'a [f32],
    /// W.
    pub width: usize,
}

/// Adds keyᵀ·value to each memory and returns query · memory of each, `(M, W)`.
pub(super) fn write_and_read(memories: &mut [f32], rows: StepRows<'_>) -> Vec<f32> {
    let StepRows { queries, keys, values, width } = rows;
    let num_memories = values.len() / width;
    let key_dim = keys.len() / num_memories;
    let part_rows = key_dim.div_ceil(NUM_PARTS);
    let parts_of_memory = key_dim.div_ceil(part_rows);
    let num_threads = 1 + memories.len() / MIN_THREAD_NUMBERS;
    let mut sums = vec![0.0; num_memories * parts_of_memory * width];
    let parts = memories.chunks_mut(key_dim * width).flat_map(|memory| memory.chunks_mut(part_rows * width));
    let parts = parts.zip(sums.chunks_mut(width)).enumerate();
    let write_and_read = |(): &mut (), (index, (part, sums)): (usize, (&mut [f32], &mut [f32]))| {
        let memory = index / parts_of_memory;
        let first = memory * key_dim + index % parts_of_memory * part_rows;
        let numbers = first..first + part.len() / width;
        let step = Part {
            queries: &queries[numbers.clone()],
            keys: &keys[numbers],
            values: &values[memory * width..][..width],
        };
        do_with_wide_vectors(WriteAndRead { step, part, sums });
    };
    share_out(num_threads, parts, || (), write_and_read);
    let mut reads = Vec::with_capacity(values.len());
    for sums in sums.chunks(parts_of_memory * width) {
        let (first, others) = sums.split_at(width);
        let sum_of = |(column, first): (usize, &f32)| {
            others.iter().skip(column).step_by(width).fold(*first, |sum, other| sum + other)
        };
        reads.extend(first.iter().enumerate().map(sum_of));
    }
    reads
}

/// What a step brings to some rows of one memory.
struct Part<'a> {
    queries: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
}

struct WriteAndRead<'a> {
    step: Part<'a>,
    part: &'a mut [f32],
    sums: &'a mut [f32],
}

impl WideWork for WriteAndRead<'_> {
    #[inline(always)]
    fn run<I: Instructions>(self) {
        let Part { queries, keys, values } = self.step;
        for ((row, query), key) in self.part.chunks_mut(values.len()).zip(queries).zip(keys) {
            for ((number, value), sum) in row.iter_mut().zip(values).zip(self.sums.iter_mut()) {
                *number += key * value;
                *sum += query * *number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small ones by hand, large enough ones for several threads by the definition; alone and side by side.
    #[test]
    fn each_memory_is_written_and_read_by_itself() {
        let mut memories = [1.0, 2.0, 3.0, 4.0];
        let rows = StepRows { queries: &[1.0, 10.0], keys: &[0.5, 2.0], values: &[4.0, 6.0], width: 2 };
        assert_eq!(write_and_read(&mut memories, rows), [3.0 + 110.0, 5.0 + 160.0]);
        assert_eq!(memories, [3.0, 5.0, 11.0, 16.0]);

        let (num_memories, key_dim, width) = (3, 130, 700);
        let numbers = |count: usize, step: f32| -> Vec<f32> {
            (0..count).map(|index| (index as f32 * step).sin()).collect()
        };
        let (queries, keys) = (numbers(num_memories * key_dim, 0.37), numbers(num_memories * key_dim, 0.51));
        let (values, before) =
            (numbers(num_memories * width, 0.83), numbers(num_memories * key_dim * width, 0.29));
        let step = |memories: &mut [f32], range: std::ops::Range<usize>| {
            let of_rows = range.start * key_dim..range.end * key_dim;
            let rows = StepRows {
                queries: &queries[of_rows.clone()],
                keys: &keys[of_rows],
                values: &values[range.start * width..range.end * width],
                width,
            };
            write_and_read(memories, rows)
        };
        let mut together = before.clone();
        let reads = step(&mut together, 0..num_memories);
        for memory in 0..num_memories {
            let size = key_dim * width;
            let mut alone = before[memory * size..][..size].to_vec();
            assert_eq!(step(&mut alone, memory..memory + 1), reads[memory * width..][..width]);
            assert_eq!(alone, together[memory * size..][..size]);
            for column in [0, 1, 345, width - 1] {
                let mut expected = 0.0;
                for row in 0..key_dim {
                    let written = f64::from(before[memory * size + row * width + column])
                        + f64::from(keys[memory * key_dim + row])
                            * f64::from(values[memory * width + column]);
                    assert!((f64::from(alone[row * width + column]) - written).abs() < 1e-6);
                    expected += f64::from(queries[memory * key_dim + row]) * written;
                }
                let found = f64::from(reads[memory * width + column]);
                assert!((found - expected).abs() < 1e-4, "{found} {expected}");
            }
        }
    }
}
