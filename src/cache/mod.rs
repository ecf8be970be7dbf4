//! The prompt cache: the prefixes stored for reuse, and which of them stay.
//!
//! Owns the radix tree of prompts, the tiers, the limits and the one eviction rule. Generic over what
//! it stores: it sees names and sizes of KV, never tensors, and leaves computing, copying and freeing
//! to its caller.
//!
//! # The tree
//!
//! A node stands for a run of tokens below one prefix. It holds the KV of exactly those tokens (its
//! *segment*) and, for recurrent models, the state at its end (its *checkpoint*). Where a new prompt
//! leaves an edge in its middle, the node is split and the segment with it; each half owns its copy:
//!
//! ```text
//!   before                     [ You are a cook. Soup? ]
//!
//!   split, then insert         [ You are a cook. ]            upper: a new id
//!                                ├── [ Soup? ]                lower: keeps id, pins, children
//!                                └── [ Bread? ]               inserted
//! ```
//!
//! Edges are compressed, yet a node may have one child only: spans of different tiers end at
//! different nodes.
//!
//! # Storing a prompt
//!
//! Only what [`reusable`] returns is looked up and stored. [`PromptCache::insert`] hangs tokens below
//! a whole node. It answers [`Inserted::Overlaps`] where a child begins alike: the caller goes on
//! below that child if it matches whole, and otherwise has its segment split and tells
//! [`PromptCache::split`]. Several requests with one prefix compute it once: the first announces it
//! ([`PromptCache::announce`]) and stores it later ([`PromptCache::fulfil`]), the others see in
//! [`Match::pending`] that they should wait. Below a pending node there are only pending ones.
//!
//! # Entries and eviction
//!
//! An *entry* is what eviction can take: a leaf, or the checkpoint of a node that others continue. An
//! interior segment never goes, as all below it would be lost. A node counts under its *effective
//! tier*, the most persistent of any span that ends in its subtree. The order is told in
//! `ranking.rs`; [`PromptCache::make_room`] applies it.
//!
//! # Where this differs from mlx-lm
//!
//! The reference is `LRUPromptCache` of mlx-lm 0.32 with its `PromptTrie` and `CacheOrder`.
//!
//! | mlx-lm                                              | here                                          | why |
//! |-----------------------------------------------------|-----------------------------------------------|-----|
//! | every entry owns a copy of its whole prefix         | a shared prefix is one node                   | a prefix's memory is paid once |
//! | storing a trimmable entry deletes its own prefixes  | they become interior nodes                    | the same entries are left to count, and nothing is deleted that a longer one needs |
//! | an exact hit returns the whole prompt               | the last token is neither stored nor found    | the model needs one token to run on; every path then computes the same shapes |
//! | a stored prefix of one token is not found           | it is                                         | it was an off-by-one |
//! | a longer entry is trimmed where all layers allow it | the same, inside any edge                     | any longer entry serves; which one does not matter, as they share the node |
//! | models with a sliding window or state: exact or shorter entries only | windows resume anywhere, recurrent layers at checkpoints | the tree holds every token's KV |
//! | finding a longer entry copies the rest at each step | lookup and insertion are linear in the prompt | long divergent suffixes were quadratic |
//! | a hit does not refresh recency                      | it refreshes the whole path                   | what is used is what to keep |
//! | inserting again replaces the entry                  | the caller is told that it is there           | equal prefixes have equal KV; the older copy may be in use |
//! | an entry may be stored for an empty prompt          | refused                                       | there is no KV to store |
//! | tiers rank entries, prefix and answer as one        | spans of a prompt are nodes with their own tier | an evicted answer leaves its system prompt |
//! | at most one entry goes for the count limit at an insert | as many as it takes, before it            | limits hold at every moment |
//! | the entry just stored can be its own victim         | it goes last, and stays when it is alone      | storing what is dropped at once is wasted work |
//! | an insertion evicts whatever comes first            | what nobody is known to need again takes only what nobody needs, and nothing where that is not enough | an answer must not empty the cache to be dropped after all |
//! | knows no future                                     | planned users come before tiers               | within a run the future is known |
//! | entries in use can be evicted                       | pinned nodes cannot                           | their memory would not be freed |

mod arena;
mod change;
mod error;
mod find;
mod node;
mod prompt_cache;
mod ranking;
mod tier;
mod tree;
mod usage;

#[cfg(test)]
mod tests;

use arena::Arena;

pub use arena::NodeId;
pub use change::{Inserted, Place, SplitNode};
pub use error::CacheError;
pub use find::{Match, Partial, Resume, ResumeRule, Step, common_prefix};
pub use node::{Expected, Node, OwnerId};
pub use prompt_cache::{CacheLimits, PromptCache};
pub use ranking::Claim;
pub use tier::{PerTier, Tier};
pub use tree::PromptTree;
pub use usage::{CacheUsage, TierUsage};

/// Index of a token in the model's vocabulary.
pub type TokenId = u32;

/// What the caller stores: a name for KV that it holds itself.
pub trait Payload: Clone {
    /// The bytes that dropping it would free.
    fn num_bytes(&self) -> u64;
}

/// The part of a prompt that is looked up and stored: all but its last token, which is run.
pub fn reusable(prompt: &[TokenId]) -> &[TokenId] {
    prompt.split_last().map_or(&[], |(_, rest)| rest)
}
