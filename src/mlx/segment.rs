//! Segments, the stored KV of one range of tokens in all layers, and checkpoints, the states of all
//! recurrent layers at one position; both immutable and shared.
//!
//! Owns their identity, bytes and splitting. Which are kept is the prompt cache's decision; what
//! sequences do on top of them is `live`'s.

use std::{
    collections::HashMap,
    io::Read,
    ops::Range,
    rc::Rc,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use mlx_rs::{Array, Dtype};

use super::{
    arrays::{all_finite, all_finite_in, compact, concatenated, overlap},
    error::{MlxError, Result},
    kv::{LayerKv, is_short},
    planes::Planes,
    read_shared::read_shared,
    states::RecurrentState,
    sys,
};
use crate::{
    engine::{Exported, SegmentId, StoredSegment},
    models::KvLayout,
};

/// KV of exactly the tokens at positions `first..first + num_tokens`, one entry a layer.
#[derive(Debug)]
pub(super) struct Segment {
    pub id: SegmentId,
    pub first: usize,
    pub num_tokens: usize,
    pub layers: Vec<LayerKv>,
}

impl Segment {
    /// Bytes of all its arrays; they are compact, so this is what they hold.
    pub(super) fn num_bytes(&self) -> u64 {
        self.layers.iter().map(LayerKv::num_bytes).sum()
    }
}

/// Segments that are worth attending to once for all chunks on them.
pub(super) fn long_segments(path: &[Rc<Segment>]) -> impl Iterator<Item = &Rc<Segment>> {
    path.iter().filter(|segment| !is_short(segment.num_tokens))
}

/// States of all recurrent layers after the tokens before `position`; cannot be split or trimmed.
#[derive(Debug)]
pub(super) struct Checkpoint {
    pub position: usize,
    pub states: Vec<RecurrentState>,
}

impl Checkpoint {
    fn num_bytes(&self) -> u64 {
        self.states.iter().map(RecurrentState::num_bytes).sum()
    }
}

/// What copies may be made of, while the device has not made them, and is counted nowhere any more. Beyond that
/// it is waited for: the cache's limit holds for what is really allocated.
const MAX_UNCOUNTED_BYTES: u64 = 128 << 20;

/// All stored segments and checkpoints by id.
///
/// A running sequence holds handles of its own, so discarding one here frees its memory only when
/// nobody runs on it any more.
#[derive(Debug)]
pub(super) struct SegmentStore {
    segments: HashMap<SegmentId, Rc<Segment>>,
    checkpoints: HashMap<SegmentId, Rc<Checkpoint>>,
    /// Both kinds together: no id names two things.
    num_made: u64,
    /// What copies were made of since the device was last waited for here.
    num_uncounted_bytes: u64,
    max_uncounted_bytes: u64,
}

impl Default for SegmentStore {
    fn default() -> Self {
        Self {
            segments: HashMap::new(),
            checkpoints: HashMap::new(),
            num_made: 0,
            num_uncounted_bytes: 0,
            max_uncounted_bytes: MAX_UNCOUNTED_BYTES,
        }
    }
}

impl SegmentStore {
    /// Takes a range's KV in; every array must be compact.
    pub(super) fn insert(&mut self, first: usize, num_tokens: usize, layers: Vec<LayerKv>) -> Rc<Segment> {
        let id = SegmentId(self.num_made);
        self.num_made += 1;
        let segment = Rc::new(Segment { id, first, num_tokens, layers });
        self.segments.insert(id, Rc::clone(&segment));
        segment
    }

    pub(super) fn get(&self, id: SegmentId) -> Result<Rc<Segment>> {
        self.segments
            .get(&id)
            .cloned()
            .ok_or_else(|| MlxError::Unsupported(format!("segment {} is not stored", id.0)))
    }

    /// Takes the states at a position in.
    pub(super) fn insert_checkpoint(&mut self, checkpoint: Checkpoint) -> StoredSegment {
        let id = SegmentId(self.num_made);
        self.num_made += 1;
        let num_bytes = checkpoint.num_bytes();
        self.checkpoints.insert(id, Rc::new(checkpoint));
        StoredSegment { id, num_bytes }
    }

    pub(super) fn checkpoint(&self, id: SegmentId) -> Result<Rc<Checkpoint>> {
        self.checkpoints
            .get(&id)
            .cloned()
            .ok_or_else(|| MlxError::Unsupported(format!("checkpoint {} is not stored", id.0)))
    }

    pub(super) fn discard(&mut self, id: SegmentId) {
        self.segments.remove(&id);
        self.checkpoints.remove(&id);
    }

    /// Has the device make these copies when it comes to it, of so many bytes that nobody holds from now on.
    fn begin_copies<'a>(&mut self, copies: impl Iterator<Item = &'a Array>, num_bytes: u64) -> Result<()> {
        self.num_uncounted_bytes = self.num_uncounted_bytes.saturating_add(num_bytes);
        if self.num_uncounted_bytes <= self.max_uncounted_bytes {
            return Ok(mlx_rs::transforms::async_eval(copies)?);
        }
        // All before them are made then, too: the device computes in order.
        mlx_rs::transforms::eval(copies)?;
        self.num_uncounted_bytes = 0;
        Ok(())
    }

    /// Cuts a segment after its first `at` tokens. Both halves are copies that own their memory,
    /// so that dropping one frees it. Those who run on the whole are to be given the halves.
    pub(super) fn split(&mut self, id: SegmentId, at: usize) -> Result<(Rc<Segment>, Rc<Segment>)> {
        let whole = self.get(id)?;
        if at == 0 || at >= whole.num_tokens {
            return Err(MlxError::Unsupported(format!(
                "segment {} of {} tokens cannot be split after {at}",
                id.0, whole.num_tokens
            )));
        }
        let (middle, end) = (whole.first + at, whole.first + whole.num_tokens);
        let half = |range: Range<usize>| {
            whole.layers.iter().map(|kv| kv.slice(range.clone())?.compact()).collect::<Result<Vec<LayerKv>>>()
        };
        let (upper, lower) = (half(whole.first..middle)?, half(middle..end)?);
        let copies = upper.iter().chain(&lower).flat_map(|kv| kv.planes.arrays());
        self.begin_copies(copies, whole.num_bytes())?;
        let (first, num_tokens) = (whole.first, whole.num_tokens);
        self.discard(id);
        Ok((self.insert(first, at, upper), self.insert(middle, num_tokens - at, lower)))
    }

    /// Appends the bytes of a segment's tokens, counted from its first: for each layer its
    /// planes, `(H_kv, L, D)`, keys first.
    pub(super) fn export(&self, id: SegmentId, tokens: Range<usize>, bytes: &mut Vec<u8>) -> Result<()> {
        let segment = self.get(id)?;
        let positions = segment.first + tokens.start..segment.first + tokens.end;
        if tokens.start >= tokens.end || tokens.end > segment.num_tokens {
            return Err(MlxError::Unsupported(format!(
                "segment {} of {} tokens has no tokens {tokens:?}",
                id.0, segment.num_tokens
            )));
        }
        for kv in &segment.layers {
            // Only read: what is in order already need not be copied first.
            let kv = kv.slice(positions.clone())?;
            for plane in kv.planes.arrays() {
                sys::append_bytes(&plane.contiguous()?, bytes)?;
            }
        }
        Ok(())
    }

    /// Appends the bytes of a checkpoint: for each layer the convolution's tail, then the memory.
    pub(super) fn export_checkpoint(&self, id: SegmentId, bytes: &mut Vec<u8>) -> Result<()> {
        for state in &self.checkpoint(id)?.states {
            for array in state.arrays() {
                sys::append_bytes(&array.contiguous()?, bytes)?;
            }
        }
        Ok(())
    }

    /// Takes in what [`SegmentStore::export`] gave, or a part of it, if it is numbers; `layouts` are those of all
    /// layers that keep KV.
    pub(super) fn import(
        &mut self,
        exported: Exported<'_>,
        layouts: &[KvLayout],
        dtype: Dtype,
    ) -> Result<Rc<Segment>> {
        let Exported { bytes, num_bytes, num_run_tokens, skip, num_wanted, position } = exported;
        let wrong = |why: &str| MlxError::Unsupported(format!("stored KV cannot be taken in: {why}"));
        if skip > position {
            return Err(wrong("it begins before the prompt"));
        }
        let num_tokens = num_run_tokens.iter().try_fold(0_usize, |sum, num| sum.checked_add(*num));
        let num_tokens = num_tokens.ok_or_else(|| wrong("it is too long"))?;
        if num_wanted == 0 || skip.checked_add(num_wanted).is_none_or(|end| end > num_tokens) {
            return Err(wrong("it has fewer tokens"));
        }
        // Heads and their width in each plane of each layer.
        let shapes: Vec<(usize, usize)> = layouts
            .iter()
            .flat_map(|layout| layout.plane_dims().map(|head_dim| (layout.num_heads, head_dim)))
            .collect();
        // All planes, run by run; before anything of that size is allocated.
        let bytes_of = |&num_tokens: &usize, &(num_heads, head_dim): &(usize, usize)| {
            i32::try_from(num_tokens).ok()?;
            let width = num_heads.checked_mul(head_dim)?;
            width.checked_mul(num_tokens)?.checked_mul(sys::element_bytes(dtype))
        };
        let planes =
            |num: &usize| shapes.iter().map(|shape| bytes_of(num, shape)).collect::<Option<Vec<_>>>();
        let sizes = num_run_tokens.iter().map(planes).collect::<Option<Vec<_>>>();
        let sizes: Vec<usize> = sizes.ok_or_else(|| wrong("it is too long"))?.concat();
        if sizes.iter().try_fold(0_u64, |sum, &size| sum.checked_add(size as u64)) != Some(num_bytes) {
            return Err(wrong("it has another size"));
        }
        let num_planes = shapes.len();
        let are_numbers = AtomicBool::new(true);
        let arrays = read_shared(bytes, &sizes, |index, bytes| {
            are_numbers.fetch_and(all_finite_in(bytes, dtype), Relaxed);
            let (num_heads, head_dim) = shapes[index % num_planes];
            let length = num_run_tokens[index / num_planes] as i32;
            sys::array_of_bytes(bytes, &[1, num_heads as i32, length, head_dim as i32], dtype)
        })?;
        let mut arrays =
            arrays.ok_or_else(|| wrong("it ends early"))?.into_iter().map(Some).collect::<Vec<_>>();
        if !are_numbers.into_inner() {
            return Err(wrong("it is no numbers"));
        }
        let wanted = skip..skip + num_wanted;
        let mut layers = Vec::with_capacity(layouts.len());
        let mut plane = 0;
        for layout in layouts {
            let first_plane = plane;
            let planes = Planes::of_layout(layout, |_| {
                let runs = arrays.iter_mut().skip(plane).step_by(num_planes).filter_map(Option::take);
                plane += 1;
                joined(runs.zip(num_run_tokens), &wanted)
            })?;
            let joined_of = sizes.chunks(num_planes).flat_map(|run| &run[first_plane..plane]).sum::<usize>();
            self.begin_copies(planes.arrays(), joined_of as u64)?;
            layers.push(LayerKv { first: position, planes });
        }
        Ok(self.insert(position, num_wanted, layers))
    }

    /// Takes in what [`SegmentStore::export_checkpoint`] gave, if it is numbers; `like` are states of the same
    /// shapes.
    pub(super) fn import_checkpoint(
        &mut self,
        position: usize,
        bytes: &mut dyn Read,
        like: &[RecurrentState],
    ) -> Result<StoredSegment> {
        let wrong = || MlxError::Unsupported("a stored recurrent state cannot be taken in".to_owned());
        let mut reader = ArrayReader { from: bytes, bytes: Vec::new(), are_numbers: true };
        let mut next = |like: &Array| -> Result<Array> {
            reader.next(like.nbytes(), like.shape(), like.dtype())?.ok_or_else(wrong)
        };
        let states = like.iter().map(|state| state.map(&mut next)).collect::<Result<Vec<_>>>()?;
        if !reader.is_at_end() || !reader.are_numbers {
            return Err(wrong());
        }
        Ok(self.insert_checkpoint(Checkpoint { position, states }))
    }

    /// Whether a segment or checkpoint holds nothing but numbers, none of them infinite.
    pub(super) fn is_finite(&self, id: SegmentId) -> Result<bool> {
        let arrays: Vec<Array> = match self.checkpoints.get(&id) {
            Some(checkpoint) => checkpoint.states.iter().flat_map(|state| state.arrays()).cloned().collect(),
            None => self.get(id)?.layers.iter().flat_map(|kv| kv.planes.arrays()).cloned().collect(),
        };
        all_finite(&arrays)
    }

    /// Bytes of all stored segments and checkpoints.
    pub(super) fn num_bytes(&self) -> u64 {
        let segments: u64 = self.segments.values().map(|segment| segment.num_bytes()).sum();
        segments + self.checkpoints.values().map(|checkpoint| checkpoint.num_bytes()).sum::<u64>()
    }
}

/// The wanted tokens of runs `(1, H, L, D)` of so many tokens, as one compact array.
fn joined<'a>(runs: impl Iterator<Item = (Array, &'a usize)>, wanted: &Range<usize>) -> Result<Array> {
    let mut parts = Vec::new();
    let (mut first, mut is_cut) = (0, false);
    for (run, &num_tokens) in runs {
        let part = overlap(wanted, &(first..first + num_tokens));
        if part.len() == num_tokens {
            parts.push(run);
        } else if !part.is_empty() {
            is_cut = true;
            parts.push(sys::slice_axis(&run, 2, part.start - first, part.end - first)?);
        }
        first += num_tokens;
    }
    match parts.as_slice() {
        [only] if is_cut => compact(only),
        _ => concatenated(parts, 2),
    }
}

/// Arrays that lie one behind the other.
struct ArrayReader<'a> {
    from: &'a mut dyn Read,
    /// Those of one array.
    bytes: Vec<u8>,
    /// Whether all arrays so far are numbers.
    are_numbers: bool,
}

impl ArrayReader<'_> {
    /// The next array, of so many bytes; `None` where there are fewer.
    fn next(&mut self, num_bytes: usize, shape: &[i32], dtype: Dtype) -> Result<Option<Array>> {
        self.bytes.resize(num_bytes, 0);
        if self.from.read_exact(&mut self.bytes).is_err() {
            return Ok(None);
        }
        self.are_numbers &= all_finite_in(&self.bytes, dtype);
        Ok(Some(sys::array_of_bytes(&self.bytes, shape, dtype)?))
    }

    fn is_at_end(&mut self) -> bool {
        matches!(self.from.read(&mut [0]), Ok(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::ValueColumns;

    fn apart(num_heads: usize, head_dim: usize) -> KvLayout {
        KvLayout { num_heads, key_dim: head_dim, values: ValueColumns::Own(head_dim) }
    }

    fn import(num_run_tokens: &[usize], bytes: &[u8], wanted: Range<usize>) -> Result<Rc<Segment>> {
        let mut source = bytes;
        let exported = Exported {
            bytes: &mut source,
            num_bytes: bytes.len() as u64,
            num_run_tokens,
            skip: wanted.start,
            num_wanted: wanted.len(),
            position: wanted.start,
        };
        SegmentStore::default().import(exported, &[apart(1, 2), apart(1, 1)], Dtype::Float32)
    }

    /// An index says how many tokens an extent has; a hostile one may say anything.
    #[test]
    fn only_bytes_of_the_right_number_are_taken_in_and_nothing_larger_is_allocated() {
        // Three tokens: keys and values of two layers, of two and of one element each.
        let bytes: Vec<u8> = (0..3 * 2 * (2 + 1)).flat_map(|number| (number as f32).to_le_bytes()).collect();
        let segment = import(&[3], &bytes, 1..3).unwrap();
        assert_eq!((segment.first, segment.num_tokens, segment.num_bytes()), (1, 2, 2 * 2 * 3 * 4));
        let keys = segment.layers[1].planes.keys().to_vec_exact::<f32>().unwrap();
        assert_eq!(keys, [13.0, 14.0], "after the first layer's twelve");
        for num_tokens in [0, 2, 4, u32::MAX as usize, usize::MAX] {
            assert!(import(&[num_tokens], &bytes, 0..1).is_err(), "{num_tokens}");
        }
        assert!(import(&[3], &bytes[..bytes.len() - 1], 0..3).is_err());
        assert!(import(&[3], &bytes, 1..4).is_err());
        assert!(import(&[3], &bytes, 3..3).is_err());
        assert!(import(&[3, usize::MAX], &bytes, 0..1).is_err());
    }

    /// The file says that it is sound, whatever a program has written into it.
    #[test]
    fn what_is_no_number_is_not_taken_in() {
        let mut bytes: Vec<u8> = (0..18).flat_map(|number| (number as f32).to_le_bytes()).collect();
        let array = |width: usize| Array::from_slice(&vec![0.0_f32; 3 * width], &[1, 3, width as i32]);
        let like = [RecurrentState { conv_tail: array(2), memory: Some(array(4)) }];
        let import_state =
            |bytes: &[u8]| SegmentStore::default().import_checkpoint(7, &mut &bytes[..], &like).is_ok();
        assert!(import(&[3], &bytes, 0..3).is_ok() && import_state(&bytes));
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            bytes[4 * 7..4 * 8].copy_from_slice(&value.to_le_bytes());
            assert!(import(&[3], &bytes, 0..3).is_err() && !import_state(&bytes), "{value}");
        }
    }

    #[test]
    fn the_device_is_waited_for_only_where_much_is_copied() {
        let num_bytes = 2 * 6 * 4;
        for (max_uncounted_bytes, uncounted) in [
            (0, [0; 3]),
            (num_bytes, [num_bytes, 0, num_bytes]),
            (u64::MAX, [1, 2, 3].map(|n| n * num_bytes)),
        ] {
            let mut store = SegmentStore { max_uncounted_bytes, ..SegmentStore::default() };
            for num_uncounted in uncounted {
                // Not computed yet.
                let numbers = Array::from_slice(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[1, 1, 6, 1]);
                let planes = [1.0, 2.0].map(|more| numbers.add(Array::from_f32(more)).unwrap());
                let [keys, values] = planes;
                let whole = store.insert(4, 6, vec![LayerKv { first: 4, planes: Planes::new(keys, values) }]);
                let (upper, lower) = store.split(whole.id, 2).unwrap();
                assert_eq!(store.num_uncounted_bytes, num_uncounted);
                assert!(store.get(whole.id).is_err());
                let of_half = |half: &Segment| -> Vec<Vec<f32>> {
                    half.layers[0].planes.arrays().map(|plane| plane.to_vec_exact::<f32>().unwrap()).collect()
                };
                assert_eq!((upper.first, of_half(&upper)), (4, vec![vec![2.0, 3.0], vec![3.0, 4.0]]));
                let expected = vec![vec![4.0, 5.0, 6.0, 7.0], vec![5.0, 6.0, 7.0, 8.0]];
                assert_eq!((lower.first, of_half(&lower)), (6, expected));
            }
        }
    }

    #[test]
    fn any_tokens_of_any_runs_are_those_of_the_whole() {
        let latent = KvLayout { num_heads: 1, key_dim: 3, values: ValueColumns::OfKeys(2) };
        let layouts = [apart(2, 2), latent, apart(1, 1)];
        let mut store = SegmentStore::default();
        let mut base = 0;
        let layer = |layout: &KvLayout| {
            let planes = Planes::of_layout(layout, |head_dim| {
                base += 1000;
                let numbers = (0..layout.num_heads * 9 * head_dim).map(|n| (base + n) as f32);
                let shape = [1, layout.num_heads as i32, 9, head_dim as i32];
                Ok(Array::from_slice(&numbers.collect::<Vec<_>>(), &shape))
            });
            LayerKv { first: 0, planes: planes.unwrap() }
        };
        let whole = store.insert(0, 9, layouts.iter().map(layer).collect());
        let num_elements: usize = layouts.iter().map(KvLayout::num_elements).sum();
        assert_eq!(whole.num_bytes(), 9 * 4 * num_elements as u64);
        let exported = |tokens: Range<usize>| {
            let mut bytes = Vec::new();
            store.export(whole.id, tokens, &mut bytes).unwrap();
            bytes
        };
        for runs in [&[9][..], &[4, 5], &[1, 3, 5], &[3, 3, 3]] {
            let mut bytes = Vec::new();
            let mut first = 0;
            for &num_tokens in runs {
                bytes.extend(exported(first..first + num_tokens));
                first += num_tokens;
            }
            for (start, end) in (0..9).flat_map(|start| (start + 1..=9).map(move |end| (start, end))) {
                let mut source = bytes.as_slice();
                let exported_runs = Exported {
                    bytes: &mut source,
                    num_bytes: bytes.len() as u64,
                    num_run_tokens: runs,
                    skip: start,
                    num_wanted: end - start,
                    position: start,
                };
                let mut other = SegmentStore::default();
                let part = other.import(exported_runs, &layouts, Dtype::Float32).unwrap();
                let mut again = Vec::new();
                other.export(part.id, 0..end - start, &mut again).unwrap();
                assert!(again == exported(start..end), "tokens {start}..{end} of {runs:?}");
            }
        }
    }
}
