//! Prefill chunks that run on the same stored segments.
//!
//! Owns that the segments are attended once for the rows of all of them: the keys are read, and made
//! ready for the products, for many rows at a time, where each chunk may have but a few; and that few rows
//! which see little are attended without products. What a chunk sees besides is `chunk`'s business.

use std::ops::Range;

use mlx_rs::Array;

use super::{
    Attention, LayerKv, Result,
    chunk::ChunkKv,
    concatenated, overlap,
    partial::Partial,
    rows_of,
    strip_rows::{SeenByRow, SeenStrip, StripRows},
    within,
};

/// KV of one layer as consecutive chunks see it.
#[derive(Debug)]
pub(in crate::mlx) struct RunKv {
    /// What all of them see from its first token to its last, windows aside; in order of position.
    pub shared: Vec<LayerKv>,
    /// One at least, in the order of their rows.
    pub chunks: Vec<ChunkKv>,
}

impl RunKv {
    /// The rows of all chunks among those of the pass.
    pub(super) fn rows(&self) -> Range<usize> {
        let ends = |chunk: Option<&ChunkKv>| chunk.map_or(0..0, |chunk| chunk.rows.clone());
        ends(self.chunks.first()).start..ends(self.chunks.last()).end
    }

    /// The chunks that these rows are of, and which of them are each one's.
    fn parts(&self, rows: &Range<usize>) -> Vec<(&ChunkKv, Range<usize>)> {
        let parts = self.chunks.iter().map(|chunk| (chunk, overlap(rows, &chunk.rows)));
        parts.filter(|(_, part)| !part.is_empty()).collect()
    }
}

impl Attention<'_> {
    /// Adds these of a run's rows to those that are attended in strips, if they and what they see are few enough for
    /// that; `first` is the first of them among the scaled queries. Returns whether it has.
    pub(super) fn add_run(
        &self,
        scaled: &Array,
        (rows, first): (&Range<usize>, usize),
        run: &RunKv,
        strips: &mut StripRows,
    ) -> Result<bool> {
        let parts = run.parts(rows);
        let num_own: usize = parts.iter().map(|(chunk, part)| part.len() * chunk.num_held(part.end)).sum();
        if self.are_products(parts.len(), num_own) {
            return Ok(false);
        }
        let num_shared = rows.len() * run.shared.iter().map(LayerKv::num_tokens).sum::<usize>();
        let mut shared_strips = Vec::new();
        let mut shared_parts = Vec::new();
        if !self.are_products(run.shared.len(), num_shared) {
            shared_strips.extend(run.shared.iter().map(|kv| (kv, strips.add_planes(kv.planes.clone()))));
        } else {
            for part in self.shared((scaled, first), &positions(&parts), &run.shared)? {
                shared_parts.push(strips.add_partial(&part)?);
            }
        }
        for (chunk, part) in parts {
            let held = chunk.earlier.iter().chain([&chunk.own]);
            let mut seen = shared_strips.clone();
            seen.extend(held.map(|kv| (kv, strips.add_planes(kv.planes.clone()))));
            for row in part {
                let (index, position) = (row - rows.start, chunk.position(row));
                let strip = |&(kv, planes): &(&LayerKv, _)| SeenStrip {
                    planes,
                    slot: 0,
                    tokens: self.visible(position, kv),
                };
                strips.add_row(SeenByRow {
                    query: first + index,
                    strips: seen.iter().map(strip).collect(),
                    parts: shared_parts.iter().map(|&part| (part, index)).collect(),
                });
            }
        }
        Ok(true)
    }

    /// Attends these of a run's rows, `(n, H, D)`, each chunk's in MLX's fused kernel: `(n, H·D)`.
    pub(super) fn run_fused(&self, queries: &Array, rows: &Range<usize>, run: &RunKv) -> Result<Array> {
        let attended = run.parts(rows).into_iter().map(|(chunk, part)| {
            let queries = rows_of(queries, &within(&part, rows), rows.len())?;
            self.chunk_fused(&queries, &part, &run.shared, chunk)
        });
        concatenated(attended.collect::<Result<Vec<_>>>()?, 0)
    }

    /// Attends scaled queries `(n, H_kv, G, D)` of these of a run's rows by matrix products: `(n, H·D)`.
    pub(super) fn run_by_products(&self, queries: &Array, rows: &Range<usize>, run: &RunKv) -> Result<Array> {
        let parts = run.parts(rows);
        let own = parts.iter().map(|(chunk, part)| {
            self.chunk_partial(&rows_of(queries, &within(part, rows), rows.len())?, part, chunk)
        });
        let mut partials = vec![Partial::of_rows(own.collect::<Result<Vec<_>>>()?, self.device)?];
        partials.extend(self.shared((queries, 0), &positions(&parts), &run.shared)?);
        if let Some(sinks) = self.sinks {
            partials.push(sinks.partial()?);
        }
        Ok(Partial::merged(&partials, self.ops)?.reshape(&[rows.len() as i32, self.width()])?)
    }
}

fn positions(parts: &[(&ChunkKv, Range<usize>)]) -> Vec<usize> {
    parts.iter().flat_map(|(chunk, part)| part.clone().map(|row| chunk.position(row))).collect()
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use mlx_rs::{Dtype, ops};

    use super::super::{ChunkKv, DecodeKv, MaskCache, PassKv, PieceKv, SlabKv};
    use super::*;
    use crate::{
        mlx::{device::ComputeDevice, ops::Ops, planes::Planes, slab::SlabRows},
        models::{AttentionSpec, KeyValueSource},
    };

    fn array(shape: [i32; 4], seed: f32) -> Array {
        let count: i32 = shape.iter().product();
        let numbers: Vec<f32> = (0..count).map(|at| ((at as f32 + seed) * 0.917).sin()).collect();
        Array::from_slice(&numbers, &shape)
    }

    fn kv(first: usize, num_tokens: usize, seed: f32) -> LayerKv {
        let shape = [1, 2, num_tokens as i32, 4];
        LayerKv { first, planes: Planes::new(array(shape, seed), array(shape, seed + 0.5)) }
    }

    fn spec(window: Option<usize>) -> AttentionSpec {
        AttentionSpec { window, ..AttentionSpec::plain((4, 2), 4, None) }
    }

    /// Chunks of these lengths after a shared prefix and, but for the first, something short.
    fn chunks(prefix: &LayerKv, lengths: &[usize]) -> Vec<ChunkKv> {
        let mut chunks = Vec::new();
        let mut first_row = 0;
        for (index, &num_tokens) in lengths.iter().enumerate() {
            let seed = 10.0 * index as f32;
            let earlier: Vec<LayerKv> =
                (index > 0).then(|| kv(prefix.end(), index, seed)).into_iter().collect();
            let start = prefix.end() + index;
            let rows = first_row..first_row + num_tokens;
            first_row = rows.end;
            chunks.push(ChunkKv { rows, start, earlier, own: kv(start, num_tokens, seed + 5.0) });
        }
        chunks
    }

    /// As on a GPU the mask of a chunk began at its own piece although the window had moved into it: from
    /// the second chunk of a prompt on, rows saw keys that were not theirs.
    #[test]
    fn chunks_attend_to_what_they_share_as_each_would_by_itself() {
        // In loops, and by products for all that each chunk holds.
        for lengths in [[3, 40, 1, 170, 9], [3, 40, 1, 800, 9]] {
            chunks_attend_together_as_apart(&lengths);
        }
    }

    fn chunks_attend_together_as_apart(lengths: &[usize]) {
        let num_rows: usize = lengths.iter().sum();
        let queries = array_of_rows(num_rows);
        // Beyond the window of 30 the last rows of the long chunk see nothing of the prefix; 6,000 tokens
        // make several blocks.
        for (num_prefix, window) in
            [(70, None), (6000, None), (70, Some(30)), (70, Some(100)), (6000, Some(5990))]
        {
            let spec = spec(window);
            let masks = MaskCache::default();
            let prefix = kv(0, num_prefix, 7.0);
            let together = PassKv {
                decode: None,
                runs: vec![RunKv { shared: vec![prefix.clone()], chunks: chunks(&prefix, lengths) }],
            };
            let by_itself = |mut chunk: ChunkKv| {
                chunk.earlier.insert(0, prefix.clone());
                RunKv { shared: Vec::new(), chunks: vec![chunk] }
            };
            let apart =
                PassKv { decode: None, runs: chunks(&prefix, lengths).into_iter().map(by_itself).collect() };
            // All rows at once, and in row blocks that end within chunks.
            for ends in [vec![num_rows], vec![2, 60, 100, num_rows]] {
                let mut first = 0;
                for end in ends {
                    let rows = first..end;
                    let queries = rows_of(&queries, &rows, num_rows).unwrap();
                    let numbers = |device: ComputeDevice, kv: &PassKv| {
                        let ops = Ops::new(device);
                        let attention =
                            Attention { spec: &spec, sinks: None, ops: &ops, device, masks: &masks };
                        let attended = attention.rows(&queries, &rows, kv).unwrap();
                        attended.eval().unwrap();
                        attended.to_vec_exact::<f32>().unwrap()
                    };
                    let alone = numbers(ComputeDevice::Cpu, &apart);
                    for device in ComputeDevice::KINDS {
                        // Meant for a GPU, all keys are summed up at once, in float32.
                        let limit = if device == ComputeDevice::Gpu { 5e-6 } else { 2e-6 };
                        for (found, alone) in numbers(device, &together).into_iter().zip(&alone) {
                            assert!(
                                (found - alone).abs() < limit,
                                "{device:?}, {num_prefix}, {window:?}, {rows:?}: {found} {alone}"
                            );
                        }
                    }
                    first = end;
                }
            }
        }
    }

    /// Values that are the first columns of keys, against the same values in an array of their own: chunks, what they
    /// share and decode rows, on both kinds of device.
    #[test]
    fn values_within_keys_are_attended_to_as_values_apart_are() {
        let apart = AttentionSpec::plain((4, 2), 4, None);
        let within = AttentionSpec { kv: KeyValueSource::WithinKeys { value_dim: 3 }, ..apart.clone() };
        // The last column of the values apart is left out of the answers.
        let of_keys = |kv: &LayerKv, is_within: bool| {
            let keys = kv.planes.keys().clone();
            let planes =
                if is_within { Planes::within_keys(keys, 3) } else { Planes::new(keys.clone(), keys) };
            LayerKv { first: kv.first, planes }
        };
        let num_prefix = 70;
        for device in ComputeDevice::KINDS {
            let ops = Ops::new(device);
            let attended = |spec: &AttentionSpec, is_within: bool| -> Vec<Vec<f32>> {
                let masks = MaskCache::default();
                let attention = Attention { spec, sinks: None, ops: &ops, device, masks: &masks };
                let prefix = of_keys(&kv(0, num_prefix, 7.0), is_within);
                let of_chunk = |chunk: ChunkKv| ChunkKv {
                    earlier: chunk.earlier.iter().map(|kv| of_keys(kv, is_within)).collect(),
                    own: of_keys(&chunk.own, is_within),
                    ..chunk
                };
                let chunks = chunks(&prefix, &[3, 40, 170]).into_iter().map(of_chunk).collect();
                let run = RunKv { shared: vec![prefix.clone()], chunks };
                let pass = PassKv { decode: None, runs: vec![run] };
                let chunked = attention.rows(&array_of_rows(213), &(0..213), &pass).unwrap();
                let tail = of_keys(&kv(num_prefix, 5, 3.0), is_within);
                let three = |plane: &Array| Ok(ops::broadcast_to(plane, &[3, 2, 5, 4])?.contiguous()?);
                let decode = |pieces: Vec<PieceKv>| DecodeKv {
                    positions: vec![num_prefix + 4; 3],
                    pieces,
                    slab: SlabKv {
                        planes: tail.planes.map(three).unwrap(),
                        rows: Rc::new(SlabRows::new(vec![2, 0, 1], vec![0, 2, 0], 5, 3)),
                    },
                };
                let shared = PieceKv { rows: 0..3, kv: prefix.clone() };
                let own = PieceKv { rows: 1..2, kv: prefix };
                let decoded = [vec![], vec![shared], vec![own]]
                    .map(|pieces| attention.decode(&array_of_rows(3), &decode(pieces)).unwrap());
                [chunked].iter().chain(&decoded).map(float32).collect()
            };
            let expected = attended(&apart, false);
            for (index, (found, expected)) in attended(&within, true).iter().zip(&expected).enumerate() {
                let values = expected.chunks(4).flat_map(|values| &values[..3]);
                assert_eq!(found.len(), expected.len() / 4 * 3);
                for (found, expected) in found.iter().zip(values) {
                    assert!((found - expected).abs() < 2e-6, "{device:?}, {index}: {found} {expected}");
                }
            }
        }
    }

    fn of_dtype(kv: &LayerKv, dtype: Dtype) -> LayerKv {
        LayerKv { first: kv.first, planes: kv.planes.of_dtype(dtype).unwrap() }
    }

    fn float32(array: &Array) -> Vec<f32> {
        let array = array.as_dtype(Dtype::Float32).unwrap();
        array.eval().unwrap();
        array.to_vec_exact::<f32>().unwrap()
    }

    #[test]
    fn in_sixteen_bits_many_weights_add_up_and_rows_that_see_nothing_of_a_piece_are_numbers() {
        // The weights' sum was taken in the scores' type, where it stops growing at 256 or 2048; and the
        // largest score of no score was -inf in float16, which made the row NaN.
        let num_tail = 3;
        for (device, dtype) in ComputeDevice::KINDS
            .into_iter()
            .flat_map(|device| [(device, Dtype::Float16), (device, Dtype::Bfloat16)])
        {
            let ops = Ops::new(device);
            for (num_prefix, window) in [(5000, None), (70, Some(30)), (70, Some(100)), (5000, Some(4900))] {
                let spec = spec(window);
                let mut prefix = kv(0, num_prefix, 7.0);
                // All of one sign: their mean is no small difference of large numbers.
                let values = prefix.planes.values().unwrap().add(Array::from_f32(2.0)).unwrap();
                prefix.planes = Planes::new(prefix.planes.keys().clone(), values);
                let attended = |dtype: Dtype| -> Vec<f32> {
                    let masks = MaskCache::default();
                    let attention = Attention { spec: &spec, sinks: None, ops: &ops, device, masks: &masks };
                    let rounded = |kv: &LayerKv| {
                        // What is compared is the arithmetic, on the same numbers.
                        of_dtype(&of_dtype(kv, Dtype::Bfloat16), dtype)
                    };
                    let array =
                        |array: Array| array.as_dtype(Dtype::Bfloat16).unwrap().as_dtype(dtype).unwrap();
                    let prefix = rounded(&prefix);
                    let chunks: Vec<ChunkKv> = chunks(&prefix, &[3, 40, 170])
                        .into_iter()
                        .map(|chunk| ChunkKv {
                            earlier: chunk.earlier.iter().map(rounded).collect(),
                            own: rounded(&chunk.own),
                            ..chunk
                        })
                        .collect();
                    let rows = 0..213;
                    let run = RunKv { shared: vec![prefix.clone()], chunks };
                    let queries = array_of_rows(rows.len());
                    let pass = PassKv { decode: None, runs: vec![run] };
                    let chunked = attention.rows(&array(queries), &rows, &pass).unwrap();
                    assert_eq!(chunked.dtype(), dtype);
                    // Decode rows: at the prefix's end, and where a window may have left all of it. The second
                    // has one token of its own, the others all three.
                    let positions = vec![num_prefix + num_tail - 1, num_prefix + 40, num_prefix + 60];
                    let tail = kv(num_prefix, num_tail, 3.0);
                    let of_rows = |array: &Array| {
                        Ok(ops::broadcast_to(array, &[3, 2, num_tail as i32, 4])?.contiguous()?)
                    };
                    let tail = rounded(&tail);
                    let decode = DecodeKv {
                        positions,
                        pieces: vec![PieceKv { rows: 0..3, kv: prefix }],
                        slab: SlabKv {
                            planes: tail.planes.map(of_rows).unwrap(),
                            rows: Rc::new(SlabRows::new(vec![0, 1, 2], vec![0, 2, 0], num_tail, 3)),
                        },
                    };
                    let decoded = attention.decode(&array(array_of_rows(3)), &decode).unwrap();
                    assert_eq!(decoded.dtype(), dtype);
                    [float32(&chunked), float32(&decoded)].concat()
                };
                for (found, expected) in attended(dtype).into_iter().zip(attended(Dtype::Float32)) {
                    // Scores and weights are rounded to 8 bits in bfloat16.
                    let limit = if dtype == Dtype::Float16 { 4e-3 } else { 3e-2 };
                    assert!(
                        (found - expected).abs() <= limit,
                        "{device:?}, {dtype:?}, {num_prefix}, {window:?}: {found} instead of {expected}"
                    );
                }
            }
        }
    }

    fn array_of_rows(num_rows: usize) -> Array {
        array([num_rows as i32, 4, 4, 1], 0.3).reshape(&[num_rows as i32, 4, 4]).unwrap()
    }
}
