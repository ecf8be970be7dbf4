//! The slab: what decoding rows have to themselves, side by side, in one array for each plane of each layer.
//!
//! Owns its columns, slots and growth. Which tokens are in it and which a row sees elsewhere is `cohort`'s
//! decision; a pass's rows as attention sees them are [`SlabRows`].
//!
//! ```text
//!   slot 0  |....tttttttttttt|    |   all rows end at the same column, so that a step writes one column
//!   slot 1  |..........tttttt|    |   of all rows in place, and there is room for the next few
//!   slot 2  |                |    |   a hole: its row has left, the next to join is copied there
//!   slot 3  |tttttttttttttttt|    |
//!                            end  capacity
//! ```

use std::{cell::RefCell, ops::Range};

use mlx_rs::{Array, Dtype, ops};

use super::{
    arrays::{Copying, padded_around, rows_of},
    device::ComputeDevice,
    error::{MlxError, Result},
    host::{is_for_host, made_by_host, numbers_of, zeros},
    kv::LayerKv,
    planes::Planes,
    sys,
};
use crate::engine::SequenceId;

/// Columns that are free after a move, at least; an eighth of those in use where that is more. A step in
/// so many moves all rows, and as much memory is without use at most.
const MIN_ROOM: usize = 16;

/// A sequence that has tokens in the slab, or will with its next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    sequence: SequenceId,
    /// Its last tokens, in as many columns before the end.
    num_tokens: usize,
}

/// What decoding rows have to themselves.
#[derive(Debug)]
pub(super) struct Slab {
    device: ComputeDevice,
    slots: Vec<Option<Slot>>,
    /// Columns in use, the same for all slots.
    end: usize,
    capacity: usize,
    /// `(S, H_kv, C, D)`; they come into being with the first tokens.
    layers: Vec<Planes>,
    /// Of the tokens as they come and go; layers may be held in float32.
    dtype: Option<Dtype>,
}

/// A row that joins: pieces of its KV one behind the other, one entry a layer each.
#[derive(Debug)]
pub(super) struct Joining<'a> {
    pub sequence: SequenceId,
    pub pieces: Vec<&'a [LayerKv]>,
    pub num_tokens: usize,
}

impl Slab {
    pub(super) fn new(device: ComputeDevice) -> Self {
        Self { device, slots: Vec::new(), end: 0, capacity: 0, layers: Vec::new(), dtype: None }
    }

    /// Sequences that have a slot.
    pub(super) fn sequences(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.slots.iter().flatten().map(|slot| slot.sequence)
    }

    /// Slot of a sequence.
    pub(super) fn slot_of(&self, sequence: SequenceId) -> Option<usize> {
        self.slots.iter().position(|slot| slot.is_some_and(|slot| slot.sequence == sequence))
    }

    /// How many of a sequence's last tokens are here; `None` where it has no slot.
    pub(super) fn num_tokens(&self, sequence: SequenceId) -> Option<usize> {
        self.slots.iter().flatten().find(|slot| slot.sequence == sequence).map(|slot| slot.num_tokens)
    }

    /// Slots that a pass of these sequences' rows reads: all up to the last of them.
    fn num_read(&self) -> usize {
        self.slots.iter().rposition(Option::is_some).map_or(0, |last| last + 1)
    }

    /// Makes a hole of a sequence's slot.
    pub(super) fn leave(&mut self, sequence: SequenceId) {
        if let Some(slot) = self.slot_of(sequence) {
            self.slots[slot] = None;
        }
        if self.slots.iter().all(Option::is_none) {
            *self = Self::new(self.device);
        }
    }

    /// Takes rows in, which have no slot yet. Their tokens are copied.
    pub(super) fn join(&mut self, joining: &[Joining<'_>]) -> Result<()> {
        let Some(longest) = joining.iter().map(|row| row.num_tokens).max() else { return Ok(()) };
        let num_rows = self.sequences().count() + joining.len();
        if longest > self.end || num_rows > self.slots.len() {
            // Some more than there are, unless all come at once: they will not have been the last.
            let is_grown = num_rows > self.slots.len() && !self.slots.is_empty();
            let num_slots = if is_grown { num_rows + num_rows / 4 } else { self.slots.len().max(num_rows) };
            self.rebuild(num_slots, longest)?;
        }
        let mut holes: Vec<usize> =
            (0..self.slots.len()).filter(|&slot| self.slots[slot].is_none()).collect();
        holes.reverse();
        for row in joining {
            let slot = holes.pop().expect("there are as many slots as rows");
            self.slots[slot] = Some(Slot { sequence: row.sequence, num_tokens: row.num_tokens });
            self.copy_in(slot, row)?;
        }
        Ok(())
    }

    fn copy_in(&mut self, slot: usize, row: &Joining<'_>) -> Result<()> {
        let num_layers = row.pieces.iter().map(|piece| piece.len()).max().unwrap_or(0);
        for layer in 0..num_layers {
            if self.layers.len() <= layer {
                let like = &row.pieces.iter().find_map(|piece| piece.get(layer)).expect("one has this layer");
                let new = like.planes.map(|like| self.empty(like, like.dtype()))?;
                self.dtype = Some(like.planes.keys().dtype());
                self.layers.push(new);
            }
            let mut column = self.end - row.num_tokens;
            for kv in row.pieces.iter().map(|piece| &piece[layer]) {
                self.layers[layer].replace(&kv.planes, |plane, piece| {
                    let piece = piece.as_dtype(plane.dtype())?;
                    Ok(sys::set_at(plane, &[slot, 0, column, 0], &piece)?)
                })?;
                column += kv.num_tokens();
            }
        }
        Ok(())
    }

    /// A layer's plane without tokens; `like` is `(_, H_kv, …, D)`.
    fn empty(&self, like: &Array, dtype: Dtype) -> Result<Array> {
        let shape = [self.slots.len() as i32, like.dim(1), self.capacity as i32, like.dim(-1)];
        if is_for_host(like, self.device) {
            return Ok(zeros(&shape));
        }
        Ok(ops::zeros_dtype(&shape, dtype)?)
    }

    /// Moves all rows to an array with so many slots, without holes between them, with room for
    /// `num_tokens` before the end and for some steps after it.
    fn rebuild(&mut self, num_slots: usize, num_tokens: usize) -> Result<()> {
        let kept: Vec<usize> = (0..self.slots.len()).filter(|&slot| self.slots[slot].is_some()).collect();
        let used =
            kept.iter().filter_map(|&slot| self.slots[slot]).map(|slot| slot.num_tokens).max().unwrap_or(0);
        let end = used.max(num_tokens);
        let capacity = end + (end / 8).max(MIN_ROOM);
        let in_order = kept.iter().copied().eq(0..kept.len());
        let sources = Array::from_slice(
            &kept.iter().map(|&slot| slot as i32).collect::<Vec<_>>(),
            &[kept.len() as i32],
        );
        for planes in &mut self.layers {
            planes.replace_each(|plane| {
                if is_for_host(&plane, self.device) {
                    let columns = (self.end - used..self.end, end - used, capacity);
                    return moved_by_host(&plane, &kept, num_slots, columns);
                }
                let plane = sys::slice_axis(&plane, 2, self.end - used, self.end)?;
                let plane = if in_order {
                    sys::slice_axis(&plane, 0, 0, kept.len())?
                } else {
                    plane.take_axis(&sources, 0)?
                };
                Ok(padded_around(&plane, num_slots - kept.len(), (end - used, capacity - end))?)
            })?;
        }
        self.slots = kept.iter().map(|&slot| self.slots[slot]).collect();
        self.slots.resize(num_slots.max(kept.len()), None);
        self.end = end;
        self.capacity = capacity;
        Ok(())
    }

    /// Begins a step of all rows: the column that it fills counts from now on.
    pub(super) fn step(&mut self) -> Result<()> {
        if self.end == self.capacity {
            let num_rows = self.sequences().count();
            // Where most have left, so does the memory.
            let num_slots = if 2 * num_rows < self.slots.len() { num_rows } else { self.slots.len() };
            self.rebuild(num_slots.max(num_rows), 0)?;
        }
        self.end += 1;
        for slot in self.slots.iter_mut().flatten() {
            slot.num_tokens += 1;
        }
        Ok(())
    }

    /// Fills the step's column of one layer with the first of packed rows, planes of `(n, H_kv, D)`. Layers come in
    /// order. From now on the layer is held in float32 where it `is_wide`, and in the tokens' type where not.
    pub(super) fn fill(
        &mut self,
        layer: usize,
        packed: &Planes,
        rows: &SlabRows,
        is_wide: bool,
    ) -> Result<Planes> {
        let own = *self.dtype.get_or_insert(packed.keys().dtype());
        let dtype = if is_wide { Dtype::Float32 } else { own };
        if self.layers.len() <= layer {
            let empty = packed.map(|like| self.empty(like, dtype))?;
            self.layers.push(empty);
        }
        let (column, device) = (self.end - 1, self.device);
        let planes = &mut self.layers[layer];
        if planes.keys().dtype() != dtype {
            planes.replace_each(|plane| Ok(plane.as_dtype(dtype)?))?;
        }
        planes.replace(packed, |plane, packed| {
            if is_for_host(packed, device) && is_for_host(&plane, device) {
                return filled_by_host(plane, packed, &rows.slots, column);
            }
            let new = rows_of(packed, &(0..rows.slots.len()), packed.dim(0) as usize)?;
            let new = rows.by_slot(&new.as_dtype(dtype)?)?.expand_dims(2)?;
            Ok(sys::set_at(plane, &[0, 0, column, 0], &new)?)
        })?;
        Ok(planes.clone())
    }

    /// Bytes that layers held in float32 take beyond what they would in the tokens' type: now, and if all were.
    pub(super) fn widening_bytes(&self) -> (u64, u64) {
        let Some(dtype) = self.dtype else { return (0, 0) };
        let beyond = (sys::element_bytes(Dtype::Float32) - sys::element_bytes(dtype)) as u64;
        let arrays = || self.layers.iter().flat_map(Planes::arrays);
        let num_bytes = |array: &Array| array.size() as u64 * beyond;
        let wide = arrays().filter(|array| array.dtype() == Dtype::Float32);
        (wide.map(num_bytes).sum(), arrays().map(num_bytes).sum())
    }

    /// Some of a sequence's tokens, the first being the `skip`th it has here, as compact copies of every
    /// layer; `first` is the position of that one.
    pub(super) fn copy_out(
        &self,
        sequence: SequenceId,
        skip: usize,
        num_tokens: usize,
        first: usize,
        copying: Copying,
    ) -> Result<Vec<LayerKv>> {
        let Some(slot) = self.slot_of(sequence) else { return Ok(Vec::new()) };
        let held = self.slots[slot].map_or(0, |slot| slot.num_tokens);
        let start = self.end - held + skip;
        let pick = |plane: &Array| -> Result<Array> {
            let tokens = copying.tokens_of(plane, slot, start..start + num_tokens)?;
            Ok(tokens.as_dtype(self.dtype.unwrap_or(plane.dtype()))?)
        };
        let layer = |planes: &Planes| -> Result<LayerKv> { Ok(LayerKv { first, planes: planes.map(pick)? }) };
        self.layers.iter().map(layer).collect()
    }

    /// The rows of a pass, in this order: each with how many of its last tokens it sees here.
    pub(super) fn rows(&self, order: &[(SequenceId, usize)]) -> SlabRows {
        let slots: Vec<usize> = order.iter().filter_map(|(sequence, _)| self.slot_of(*sequence)).collect();
        let seen_from = order.iter().map(|(_, num_seen)| self.end - num_seen).collect();
        SlabRows::new(slots, seen_from, self.end, self.num_read())
    }
}

/// A plane `(S, H_kv, C, D)` with the first of packed rows, `(n, H_kv, D)`, in a column, each in its slot. They are
/// written in place: of what has been made of the plane all is computed.
fn filled_by_host(plane: Array, packed: &Array, slots: &[usize], column: usize) -> Result<Array> {
    let (num_heads, width, capacity) =
        (packed.dim(1) as usize, packed.dim(2) as usize, plane.dim(2) as usize);
    let packed = sys::in_order(packed)?;
    let rows = numbers_of(&packed)?;
    let filled = sys::changed_in_place(vec![plane], |plane| {
        for (&slot, row) in slots.iter().zip(rows.chunks_exact(num_heads * width)) {
            for (head, numbers) in row.chunks_exact(width).enumerate() {
                let first = ((slot * num_heads + head) * capacity + column) * width;
                plane[0][first..first + width].copy_from_slice(numbers);
            }
        }
    })?;
    Ok(filled.into_iter().next().expect("as many as were given"))
}

/// These slots of a plane `(S, H_kv, C, D)`, and as many empty ones as there are to be more, their columns moved to
/// another place among others.
fn moved_by_host(
    plane: &Array,
    kept: &[usize],
    num_slots: usize,
    (columns, first, capacity): (Range<usize>, usize, usize),
) -> Result<Array> {
    let &[_, num_heads, old_capacity, width] = plane.shape() else {
        return Err(MlxError::Unsupported(format!("a slab of shape {:?}", plane.shape())));
    };
    let shape = [num_slots.max(kept.len()) as i32, num_heads, capacity as i32, width];
    let [num_heads, old_capacity, width] = [num_heads, old_capacity, width].map(|size| size as usize);
    made_by_host([plane], &shape, |[old], new| {
        let heads =
            (0..kept.len()).flat_map(|index| (0..num_heads).map(move |head| kept[index] * num_heads + head));
        let moves = heads.zip(new.chunks_exact_mut(capacity * width));
        sys::share_out(
            sys::team_size(),
            moves,
            || (),
            |(), (head, new)| {
                let size = columns.len() * width;
                let old = &old[(head * old_capacity + columns.start) * width..][..size];
                new[first * width..][..size].copy_from_slice(old);
            },
        );
    })
}

/// A pass's decode rows in the slab, in the order in which the pass has them.
#[derive(Debug, Clone, Default)]
pub(super) struct SlabRows {
    /// Slot of each row.
    pub slots: Vec<usize>,
    /// First column that each row sees, windows aside.
    pub seen_from: Vec<usize>,
    /// Columns in use, this step's the last.
    pub end: usize,
    /// Slots that are read, from the first on.
    pub num_slots: usize,
    /// How rows and slots are brought in each other's order; `None` where row n is in slot n.
    pub order: Option<SlotOrder>,
    /// Masks that a layer has asked for; others see through the same windows.
    masks: RefCell<Vec<(Option<usize>, Dtype, SlabMask)>>,
}

/// First column that any row sees, and what hides the others' from there on to the end: 0 or -inf,
/// `(S', 1, 1, end - first)`; `None` where all see the same.
type SlabMask = (usize, Option<Array>);

/// Permutations between the rows of a pass and the slots.
#[derive(Debug, Clone)]
pub(super) struct SlotOrder {
    /// Row of each slot, `(S',)`; of a hole any.
    pub to_slots: Array,
    /// Slot of each row, `(B,)`.
    pub to_rows: Array,
}

impl SlabRows {
    /// Rows in these slots, each with the first column that it sees; `end` columns and `num_slots` slots are read.
    pub(super) fn new(slots: Vec<usize>, seen_from: Vec<usize>, end: usize, num_slots: usize) -> Self {
        let in_order = slots.iter().copied().eq(0..num_slots);
        let order = (!in_order).then(|| {
            let mut rows = vec![0; num_slots];
            for (row, &slot) in slots.iter().enumerate() {
                rows[slot] = row as i32;
            }
            let slots: Vec<i32> = slots.iter().map(|&slot| slot as i32).collect();
            SlotOrder {
                to_slots: Array::from_slice(&rows, &[rows.len() as i32]),
                to_rows: Array::from_slice(&slots, &[slots.len() as i32]),
            }
        });
        Self { slots, seen_from, end, num_slots, order, masks: RefCell::default() }
    }

    /// Rows' elements, the first axis, in the order of slots.
    pub(super) fn by_slot(&self, rows: &Array) -> Result<Array> {
        Ok(match &self.order {
            Some(order) => rows.take_axis(&order.to_slots, 0)?,
            None => rows.clone(),
        })
    }

    /// Slots' elements, the first axis, in the order of rows.
    pub(super) fn by_row(&self, slots: &Array) -> Result<Array> {
        Ok(match &self.order {
            Some(order) => slots.take_axis(&order.to_rows, 0)?,
            None => slots.clone(),
        })
    }

    /// First column that each row sees through a window.
    pub(super) fn seen_through(&self, window: Option<usize>) -> Vec<usize> {
        let outside = window.map_or(0, |window| self.end.saturating_sub(window));
        self.seen_from.iter().map(|&first| first.max(outside)).collect()
    }

    /// What a window hides.
    pub(super) fn mask(&self, window: Option<usize>, dtype: Dtype) -> Result<SlabMask> {
        let mut masks = self.masks.borrow_mut();
        let known = masks.iter().find(|(of_window, of_dtype, _)| (*of_window, *of_dtype) == (window, dtype));
        if let Some((_, _, mask)) = known {
            return Ok(mask.clone());
        }
        let mask = self.new_mask(window, dtype)?;
        masks.push((window, dtype, mask.clone()));
        Ok(mask)
    }

    fn new_mask(&self, window: Option<usize>, dtype: Dtype) -> Result<SlabMask> {
        let seen = self.seen_through(window);
        let first = seen.iter().copied().min().unwrap_or(0);
        if seen.iter().all(|&from| from == first) {
            return Ok((first, None));
        }
        let width = self.end - first;
        let mut mask = vec![0.0_f32; self.num_slots * width];
        for (&slot, &from) in self.slots.iter().zip(&seen) {
            mask[slot * width..][..from - first].fill(f32::NEG_INFINITY);
        }
        let shape = [self.num_slots as i32, 1, 1, width as i32];
        Ok((first, Some(Array::from_slice(&mask, &shape).as_dtype(dtype)?)))
    }
}

#[cfg(test)]
mod tests;
