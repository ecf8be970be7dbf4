//! Rows that are attended in one pass over what each of them sees, and the arrays that they see it in.
//!
//! Owns having these computed, and finding the numbers in them as the loops of `strips` want them. Which rows
//! are attended so and what they see is `decode`'s and `run`'s business.

use std::ops::Range;

use mlx_rs::Array;

use super::{
    Attention, Result,
    partial::Partial,
    strips::{self, HeadShape, Part, Plane, Strip, StripRow},
};
use crate::mlx::{costs::Costs, error::MlxError, host::numbers_of, planes::Planes, sys};

/// Rows of one layer, in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct StripRows {
    /// `(S, H_kv, L, D)` each, in any order in memory but for D.
    planes: Vec<Planes>,
    /// In row-major order.
    partials: Vec<Partial>,
    rows: Vec<SeenByRow>,
}

/// What one row sees.
#[derive(Debug, Default)]
pub(super) struct SeenByRow {
    /// The row among the queries.
    pub query: usize,
    pub strips: Vec<SeenStrip>,
    /// Which partials, and which of their rows.
    pub parts: Vec<(PartialIndex, usize)>,
}

/// Tokens of one sequence in some planes.
#[derive(Debug)]
pub(super) struct SeenStrip {
    pub planes: PlanesIndex,
    /// Sequence among those in the planes.
    pub slot: usize,
    /// Tokens that are seen.
    pub tokens: Range<usize>,
}

/// Planes that were added.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlanesIndex(usize);

/// A partial that was added.
#[derive(Debug, Clone, Copy)]
pub(super) struct PartialIndex(usize);

impl StripRows {
    /// Adds planes `(S, H_kv, L, D)` of float32 that rows will see some of.
    pub(super) fn add_planes(&mut self, planes: Planes) -> PlanesIndex {
        self.planes.push(planes);
        PlanesIndex(self.planes.len() - 1)
    }

    /// Adds what rows make of other keys.
    pub(super) fn add_partial(&mut self, partial: &Partial) -> Result<PartialIndex> {
        self.partials.push(partial.in_order()?);
        Ok(PartialIndex(self.partials.len() - 1))
    }

    pub(super) fn add_row(&mut self, row: SeenByRow) {
        self.rows.push(row);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Attends the rows, whose scaled queries are among these, `(n, H_kv, G, D)`: numbers of `(B, H·D)`.
    pub(super) fn attend(&self, attention: &Attention<'_>, scaled: &Array) -> Result<Vec<f32>> {
        sys::compute(
            std::iter::once(scaled).chain(self.planes.iter().flat_map(Planes::arrays)).chain(
                self.partials.iter().flat_map(|partial| [&partial.max, &partial.sum, &partial.weighed]),
            ),
        )?;
        let spec = attention.spec;
        let shape = attention.head_shape();
        let planes = self.planes.iter().map(|planes| SlotPlanes::pair(planes, shape));
        let planes = planes.collect::<Result<Vec<_>>>()?;
        let partials = self.partials.iter().map(|partial| {
            Ok(Part {
                max: numbers_of(&partial.max)?,
                sum: numbers_of(&partial.sum)?,
                weighed: numbers_of(&partial.weighed)?,
            })
        });
        let partials = partials.collect::<Result<Vec<_>>>()?;
        let scaled = sys::in_order(scaled)?;
        let (queries, width) = (numbers_of(&scaled)?, spec.num_heads * spec.head_dim);
        let rows = self.rows.iter().map(|row| StripRow {
            queries: &queries[row.query * width..][..width],
            strips: row.strips.iter().map(|strip| strip_of(&planes[strip.planes.0], strip)).collect(),
            parts: row
                .parts
                .iter()
                .map(|(part, row)| part_of(&partials[part.0], *row, spec.num_heads))
                .collect(),
        });
        let rows: Vec<StripRow<'_>> = rows.collect();
        let sinks = attention.sinks.map(|sinks| sinks.numbers.as_slice());
        let num_tokens =
            self.rows.iter().flat_map(|row| &row.strips).map(|strip| strip.tokens.len()).sum::<usize>();
        let max_threads = Costs::of(attention.device)
            .loop_threads(num_tokens * spec.num_heads, shape.key_dim + shape.value_dim);
        Ok(strips::attend(&rows, shape, (spec.score_softcap, sinks), max_threads))
    }
}

/// The heads of several sequences.
pub(super) struct SlotPlanes<'a> {
    /// The first sequence's, with the others behind them.
    first: Plane<'a>,
    slot_step: usize,
}

impl<'a> SlotPlanes<'a> {
    /// Keys and values of a layer.
    pub(super) fn pair(planes: &'a Planes, shape: HeadShape) -> Result<(Self, Self)> {
        let values = Self::of(planes.value_rows(), shape.value_dim)?;
        Ok((Self::of(planes.keys(), shape.key_dim)?, values))
    }

    /// `(S, H_kv, L, D)`, of whose last axis so many are used.
    fn of(array: &'a Array, width: usize) -> Result<Self> {
        let (numbers, strides) = sys::strided_numbers(array)?;
        let [slot_step, head_step, token_step, 1] = strides[..] else {
            return Err(MlxError::Unsupported(format!("KV that lies in memory in steps of {strides:?}")));
        };
        // With one token it is any number.
        let token_step = if array.dim(2) == 1 { width } else { token_step };
        if token_step < width {
            return Err(MlxError::Unsupported(format!("KV whose tokens lie {token_step} numbers apart")));
        }
        Ok(Self { first: Plane { numbers, head_step, token_step }, slot_step })
    }

    pub(super) fn slot(&self, slot: usize) -> Plane<'a> {
        Plane { numbers: &self.first.numbers[slot * self.slot_step..], ..self.first }
    }
}

fn strip_of<'a>((keys, values): &(SlotPlanes<'a>, SlotPlanes<'a>), strip: &SeenStrip) -> Strip<'a> {
    Strip { keys: keys.slot(strip.slot), values: values.slot(strip.slot), tokens: strip.tokens.clone() }
}

/// One row of a partial, which holds all of `part`.
fn part_of<'a>(part: &Part<'a>, row: usize, num_heads: usize) -> Part<'a> {
    let value_dim = part.weighed.len() / part.max.len().max(1);
    let heads = row * num_heads..(row + 1) * num_heads;
    Part {
        max: &part.max[heads.clone()],
        sum: &part.sum[heads.clone()],
        weighed: &part.weighed[heads.start * value_dim..heads.end * value_dim],
    }
}
