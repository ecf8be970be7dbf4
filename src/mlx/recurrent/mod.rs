//! Recurrent layers: mixers that keep a state of fixed size instead of keys and values.
//!
//! Owns their arithmetic. What a state is, and whose are whose, is the business of `states`.

mod blocks;
mod causal_conv;
mod delta_decays;
mod delta_rule;
mod gated_delta;
mod mamba2;
mod short_conv;
mod state_space;
mod state_step;

use mlx_rs::Array;

use self::{gated_delta::GatedDelta, mamba2::Mamba2, short_conv::ShortConv};
use super::{
    block_pass::BlockPass,
    error::Result,
    loader::Loader,
    states::{RecurrentState, RowOwners},
};
use crate::models::RecurrentSpec;

/// The mixer of one recurrent layer.
#[derive(Debug)]
pub(super) enum RecurrentMixer {
    GatedDelta(Box<GatedDelta>),
    ShortConv(Box<ShortConv>),
    Mamba2(Box<Mamba2>),
}

impl RecurrentMixer {
    /// Loads the weights below `block_path`.
    pub(super) fn load(loader: &mut Loader<'_>, block_path: &str, spec: &RecurrentSpec) -> Result<Self> {
        Ok(match spec {
            RecurrentSpec::GatedDelta(spec) => {
                Self::GatedDelta(Box::new(GatedDelta::load(loader, block_path, *spec)?))
            }
            RecurrentSpec::ShortConv(spec) => {
                Self::ShortConv(Box::new(ShortConv::load(loader, block_path, *spec)?))
            }
            RecurrentSpec::Mamba2(spec) => Self::Mamba2(Box::new(Mamba2::load(loader, block_path, *spec)?)),
        })
    }

    /// The state of one sequence before its first token.
    pub(super) fn initial_state(&self) -> Result<RecurrentState> {
        match self {
            Self::GatedDelta(layer) => layer.initial_state(),
            Self::ShortConv(layer) => layer.initial_state(),
            Self::Mamba2(layer) => layer.initial_state(),
        }
    }

    /// Mixes the packed, normed rows `(T, hidden)` and moves their sequences' states on.
    pub(super) fn forward(
        &self,
        normed: &Array,
        state_index: usize,
        pass: &mut BlockPass<'_>,
    ) -> Result<Array> {
        let ops = pass.ops;
        let rows = RowOwners { num_decode: pass.rows.decode_positions.len(), chunks: &pass.rows.chunks };
        let states = &mut pass.live.states;
        match self {
            Self::GatedDelta(layer) => {
                layer.forward(normed, ops, |mix| states.advance(state_index, rows, mix))
            }
            Self::ShortConv(layer) => layer.forward(normed, |mix| states.advance(state_index, rows, mix)),
            Self::Mamba2(layer) => layer.forward(normed, ops, |mix| states.advance(state_index, rows, mix)),
        }
    }
}
