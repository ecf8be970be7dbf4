//! The states of recurrent layers: of fixed size, valid at exactly one position, handles to immutable arrays, so
//! that a checkpoint is a clone.
//!
//! Owns what a state is and whose are whose while sequences run. What a layer does to one is `recurrent`'s.

mod live_states;
mod state;

pub(super) use live_states::{LiveStates, Mixed, RowGroup, RowOwners};
pub(super) use state::RecurrentState;
