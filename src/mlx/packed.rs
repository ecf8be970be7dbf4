//! Tokens of several sequences one behind the other, as a pass has them.
//!
//! Owns the word for a prefill chunk among them. Which rows are whose is `live`'s business.

use crate::engine::SequenceId;

/// A prefill chunk in a pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct PassChunk {
    pub sequence: SequenceId,
    pub num_tokens: usize,
    /// Position of its first token.
    pub start: usize,
}
