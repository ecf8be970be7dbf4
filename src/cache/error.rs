//! What can go wrong between the tree and its caller.
//!
//! Owns the errors of the prompt cache. All are mistakes in the order of calls, none comes from a
//! user's input: a run reports them as internal errors and goes on without the cache.

use thiserror::Error;

use super::NodeId;

/// A call that the prompt cache had to refuse; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CacheError {
    #[error("prompt cache: {0:?} was removed meanwhile; look the prompt up again")]
    Stale(NodeId),
    #[error("prompt cache: a node needs at least one token; there is nothing to store for an empty prefix")]
    NoTokens,
    #[error("prompt cache: {0:?} is still being computed; wait until it is fulfilled or cancel its owner")]
    Pending(NodeId),
    #[error("prompt cache: {0:?} holds its segment already; only a node announced as pending is fulfilled")]
    NotPending(NodeId),
    #[error("prompt cache: {0:?} has nodes below it; only leaves are removed")]
    HasChildren(NodeId),
    #[error("prompt cache: a running sequence uses {0:?}; unpin it first")]
    Pinned(NodeId),
    #[error("prompt cache: {0:?} is not pinned; every unpin needs a pin before it")]
    NotPinned(NodeId),
    #[error("prompt cache: {node:?} cannot be split at {at}; its {num_tokens} tokens allow 1 to one less")]
    SplitOutside { node: NodeId, at: usize, num_tokens: usize },
}
