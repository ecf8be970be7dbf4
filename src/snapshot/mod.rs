//! The prompt cache on disk: `--persist-cache FILE`.
//!
//! Owns the file: its format, what it holds, reading, saving, compaction, and sharing it between
//! processes. Knows tokens, tiers and bytes, never tensors: what the bytes of an extent mean is the
//! runner's business, when to bring in and when to save the engine's.
//!
//! ```text
//!   Snapshot ── finds, reads ──▶ Catalogue: the tree of prefixes, each a Piece of some Extents
//!      │
//!      └─ begin_save ──▶ Saving: lock, reload, add what is new, publish
//! ```
//!
//! A snapshot is opened by reading its index; tensors are read and verified when a prompt needs
//! them. Saving appends what is new and then switches to a new index, so that a crash at any moment
//! leaves the old content or the new; see [`format`] for how. Writers take a lock and merge with what
//! others have added meanwhile, readers take none: published bytes never change, and a file that is
//! rewritten replaces the old one by name only.

mod catalogue;
mod disk;
mod error;
mod extent;
pub mod format;
mod identity;
mod index;
mod maintain;
mod open;
mod piece;
mod saving;
#[cfg(test)]
mod tests;

pub use error::SnapshotError;
pub use extent::{PieceReader, ReadError, RunBuffer};
pub use identity::{FileStamp, Identity, IdentityPart};
pub use maintain::{Contents, Entry, Pruned, Pruning, Verified, merge, prune, verify};
pub use open::{CacheMode, Found, Opening, Snapshot, SnapshotOptions};
pub use piece::{Extent, Piece};
pub use saving::{SaveReport, Saving};
