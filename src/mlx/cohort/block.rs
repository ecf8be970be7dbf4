//! Rows side by side: what consecutive decode rows have to themselves as one array a layer.
//!
//! Owns which rows are worth it and their padding and masks. When rows are put side by side and taken
//! apart is the parent's decision.

use std::{collections::HashMap, ops::Range};

use mlx_rs::Array;

use super::MAX_JOINED_TOKENS;
use crate::mlx::{
    arrays::{concatenated, padded},
    attention::RowsKv,
    error::Result,
    kv::LayerKv,
    sys,
};

/// What consecutive rows have to themselves, side by side: one operation serves them all.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) rows: Range<usize>,
    /// Positions of each row's tokens.
    positions: Vec<Vec<usize>>,
    /// Keys and values of each layer, `(n, H_kv, L, D)`, rows padded with zeros to the longest.
    layers: Vec<(Array, Array)>,
    /// By window, for the positions that the rows were last at.
    masks: HashMap<Option<usize>, (Vec<usize>, Option<Array>)>,
}

/// A piece of one row, one entry a layer.
pub(super) type Row<'a> = &'a [LayerKv];

/// Runs of rows of which padding makes not much more than they are.
pub(super) fn groups(lengths: &[usize]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut num_tokens = 0;
    for (row, &length) in lengths.iter().enumerate() {
        if length == 0 || length > MAX_JOINED_TOKENS {
            continue;
        }
        if let Some(group) = groups.last_mut().filter(|group| group.end == row) {
            let longest = lengths[group.start..=row].iter().max().copied().unwrap_or(0);
            let num_padded = longest * (row + 1 - group.start);
            if num_padded <= (num_tokens + length) / 4 * 5 {
                group.end = row + 1;
                num_tokens += length;
                continue;
            }
        }
        groups.push(row..row + 1);
        num_tokens = length;
    }
    groups
}

/// Bytes of rows of these lengths side by side, `like` being one of them.
pub(super) fn padded_bytes(lengths: &[usize], like: Row<'_>) -> u64 {
    let num_tokens = lengths.iter().max().copied().unwrap_or(0) * lengths.len();
    let bytes_per_token = like.first().map_or(0, |first| {
        let num_bytes: u64 = like.iter().map(LayerKv::num_bytes).sum();
        num_bytes / first.num_tokens().max(1) as u64
    });
    num_tokens as u64 * bytes_per_token
}

impl Block {
    /// Puts rows side by side: each one's stored pieces, then what it has computed and not stored, which
    /// becomes a view of its row and takes no memory of its own any more.
    pub(super) fn new(rows: Range<usize>, stored: &[Vec<Row<'_>>], own: &mut [Vec<LayerKv>]) -> Result<Self> {
        let pieces_of = |layer: usize, own: &[Vec<LayerKv>]| -> Vec<Vec<LayerKv>> {
            let stored = stored.iter().map(|row| row.iter().map(move |layers| layers[layer].clone()));
            stored.zip(own).map(|(stored, own)| stored.chain(own.get(layer).cloned()).collect()).collect()
        };
        let num_layers = stored[0].first().map_or(own[0].len(), |layers| layers.len());
        let positions: Vec<Vec<usize>> = pieces_of(0, own)
            .iter()
            .map(|row| row.iter().flat_map(|kv| kv.first..kv.end()).collect())
            .collect();
        let width = positions.iter().map(Vec::len).max().unwrap_or(0);
        let mut layers = Vec::with_capacity(num_layers);
        for layer in 0..num_layers {
            let mut keys = Vec::with_capacity(rows.len());
            let mut values = Vec::with_capacity(rows.len());
            for row in pieces_of(layer, own) {
                let kv = LayerKv::joined(row.iter())?;
                keys.push(padded(&kv.keys, 2, width, 0.0)?);
                values.push(padded(&kv.values, 2, width, 0.0)?);
            }
            let (keys, values) = (concatenated(keys, 0)?, concatenated(values, 0)?);
            // Layer by layer, so that no more than a layer is there twice.
            mlx_rs::transforms::async_eval([&keys, &values])?;
            for (row, own) in own.iter_mut().enumerate() {
                let Some(kv) = own.get_mut(layer) else { continue };
                let end = positions[row].len();
                let view = |side: &Array| -> Result<Array> {
                    Ok(sys::slice_axis(
                        &sys::slice_axis(side, 0, row, row + 1)?,
                        2,
                        end - kv.num_tokens(),
                        end,
                    )?)
                };
                *kv = LayerKv { first: kv.first, keys: view(&keys)?, values: view(&values)? };
            }
            mlx_rs::transforms::async_eval(
                own.iter().filter_map(|own| own.get(layer)).flat_map(|kv| [&kv.keys, &kv.values]),
            )?;
            layers.push((keys, values));
        }
        Ok(Self { rows, positions, layers, masks: HashMap::new() })
    }

    /// One layer's KV as rows at these positions see it; `positions` are all rows'.
    pub(super) fn kv(&mut self, layer: usize, positions: &[usize], window: Option<usize>) -> RowsKv {
        let (keys, values) = self.layers[layer].clone();
        // Without a window the rows' positions do not matter.
        let at = if window.is_some() { positions[self.rows.clone()].to_vec() } else { Vec::new() };
        if self.masks.get(&window).is_none_or(|(known, _)| *known != at) {
            self.masks.insert(window, (at.clone(), self.mask(&at, window)));
        }
        RowsKv { rows: self.rows.clone(), keys, values, mask: self.masks[&window].1.clone() }
    }

    fn mask(&self, at: &[usize], window: Option<usize>) -> Option<Array> {
        let width = self.positions.iter().map(Vec::len).max().unwrap_or(0);
        let mut mask = Vec::with_capacity(self.positions.len() * width);
        for (row, positions) in self.positions.iter().enumerate() {
            let oldest = window.map_or(0, |window| (at[row] + 1).saturating_sub(window));
            mask.extend(positions.iter().map(|&key| if key < oldest { f32::NEG_INFINITY } else { 0.0 }));
            mask.resize((row + 1) * width, f32::NEG_INFINITY);
        }
        let hides = mask.iter().any(|&hidden| hidden < 0.0);
        hides.then(|| Array::from_slice(&mask, &[self.positions.len() as i32, 1, 1, width as i32]))
    }
}
