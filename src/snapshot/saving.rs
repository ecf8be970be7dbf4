//! Saving: what is new is appended, then the index is switched.
//!
//! Owns the order of writes that makes a crash harmless, merging with what other processes have saved,
//! and compaction. What there is to save is told by the engine, piece by piece; what is copied from another
//! file is `merging`'s.
//!
//! ```text
//! lock ─▶ reload, if others have saved ─▶ append extents ─▶ append index ─▶ sync ─▶ root ─▶ sync
//!                                                └─ too much garbage: copy what is in use into a new
//!                                                   file, sync, and give it the name ─▶ sync
//! ```

mod merging;

use std::{collections::BTreeMap, io, ops::Range};

use super::{
    CacheMode, Extent, Opening, Piece, Snapshot, SnapshotError,
    catalogue::Catalogue,
    disk::{Disk, NewDisk, failed},
    extent::{ReadError, read_extent},
    format::{self, ALIGNMENT, BLOCK_BYTES, FORMAT_VERSION, MAX_RUN_TOKENS, Root},
    index,
    open::{Content, OTHER_PLANES, Sound, read_content, seconds_since_1970},
};
use crate::{
    cache::{NodeId, Place, Tier},
    new_file::remove_leftovers,
};

/// A file is compacted when more than this share of it, in percent, is no longer in use.
const MAX_GARBAGE_PERCENT: u64 = 25;

/// Below this a file is not worth compacting, unless it may not even hold so much.
const MIN_COMPACTED_BYTES: u64 = 4 << 20;

/// What a save has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SaveReport {
    /// Tokens whose KV was written.
    pub num_new_tokens: usize,
    /// Bytes of KV and recurrent states that were written.
    pub num_new_bytes: u64,
    /// Tokens that the file holds now.
    pub num_tokens: usize,
    pub file_bytes: u64,
    /// Tokens that went since an index can be only so long.
    pub num_tokens_beyond_index: usize,
    pub is_compacted: bool,
}

/// Puts bytes behind each other.
#[derive(Debug)]
struct Appender<'a> {
    disk: &'a Disk,
    /// Where the next bytes may begin.
    end: u64,
}

impl Appender<'_> {
    /// Writes at the next place, or right behind what was written last; returns where.
    fn append(&mut self, bytes: &[u8], follows: bool) -> io::Result<u64> {
        let too_long = || io::Error::other("the file would be too long");
        let next = if follows { Some(self.end) } else { format::aligned(self.end.max(ALIGNMENT)) };
        let offset = next.ok_or_else(too_long)?;
        self.disk.write_at(bytes, offset)?;
        self.end = offset.checked_add(bytes.len() as u64).ok_or_else(too_long)?;
        Ok(offset)
    }

    /// Writes an index and has it be the content of the file.
    fn publish(&mut self, index: &[u8], generation: u64) -> io::Result<()> {
        let index_offset = self.append(index, false)?;
        self.disk.sync()?;
        let root = Root {
            generation,
            index_offset,
            index_bytes: index.len() as u64,
            published_bytes: self.end,
            index_checksum: format::checksum(index),
        };
        self.disk.write_at(&root.encode(), Root::offset(generation))?;
        self.disk.sync()
    }
}

/// Where a save writes to.
#[derive(Debug)]
struct Target {
    locked: Disk,
    /// A file that is to take the place of the locked one; without it, what is new goes behind what
    /// that one has.
    new: Option<NewDisk>,
}

impl Target {
    fn disk(&self) -> &Disk {
        self.new.as_ref().map_or(&self.locked, |new| &new.disk)
    }
}

/// How many extents do not follow another, and so begin at an aligned place.
fn num_aligned(extents: &BTreeMap<u64, Extent>) -> u64 {
    let mut end = None;
    let begins = |extent: &&Extent| end.replace(extent.offset + extent.num_bytes) != Some(extent.offset);
    extents.values().filter(begins).count() as u64
}

fn number(num_tokens: usize) -> u32 {
    u32::try_from(num_tokens).unwrap_or(u32::MAX)
}

/// A save under way; dropped before it is published, it has changed nothing.
#[derive(Debug)]
pub struct Saving<'a> {
    snapshot: &'a mut Snapshot,
    target: Target,
    catalogue: Catalogue,
    end: u64,
    next_generation: u64,
    is_changed: bool,
    /// The file is of an older format version: what changes is written anew.
    is_outdated: bool,
    now: u64,
    bytes: Vec<u8>,
    report: SaveReport,
}

impl Snapshot {
    /// Begins a save: waits for other writers and takes in what they have added.
    pub fn begin_save(&mut self) -> Result<Saving<'_>, SnapshotError> {
        if let Opening::OtherModel { difference } = &self.opening {
            return Err(self.other_model(difference.clone()));
        }
        let locked = match Disk::lock(&self.path, &mut self.patience)? {
            Some(locked) => locked,
            None => {
                self.create()?;
                let locked = Disk::lock(&self.path, &mut self.patience)?;
                locked.ok_or_else(|| SnapshotError::NotThere { path: self.path.clone() })?
            }
        };
        // Another may have been put there since it was opened.
        self.options.check_trust(&locked)?;
        remove_leftovers(&self.path);
        let now = seconds_since_1970();
        let end = locked.num_bytes().map_err(|source| failed("read", &self.path, source))?;
        let content = read_content(&locked, self.options.max_bytes)?;
        let mut is_outdated = false;
        let (new, catalogue, end, next_generation) = match content {
            // What was damaged at the start may have been replaced since.
            Content::Sound(sound) if self.options.mode != CacheMode::Refresh => {
                let Sound { root, version, index, next_generation, .. } = *sound;
                is_outdated = version < FORMAT_VERSION;
                if let Some(difference) = self.identity.difference(&index.identity) {
                    return Err(self.other_model(difference));
                }
                if self.plane_widths.is_empty() {
                    self.plane_widths = index.plane_widths;
                } else if !index.plane_widths.is_empty() && index.plane_widths != self.plane_widths {
                    return Err(self.other_model(OTHER_PLANES.to_owned()));
                }
                let is_known = root.generation == self.generation
                    && self.disk.as_ref().is_some_and(|known| known.is_same_file(&locked));
                let catalogue =
                    if is_known { self.catalogue.clone() } else { self.with_own_findings(index.catalogue)? };
                (None, catalogue, end, next_generation)
            }
            _ => {
                let catalogue = Catalogue::new(self.options.max_bytes, self.identity.needs_checkpoints);
                (Some(new_file(&self.path)?), catalogue, ALIGNMENT, 1)
            }
        };
        let target = Target { locked, new };
        let is_changed = self.is_dirty || target.new.is_some();
        Ok(Saving {
            snapshot: self,
            target,
            catalogue,
            end,
            next_generation,
            is_changed,
            is_outdated,
            now,
            bytes: Vec::new(),
            report: SaveReport::default(),
        })
    }

    fn other_model(&self, difference: String) -> SnapshotError {
        SnapshotError::OtherModel { path: self.path.clone(), difference }
    }

    /// Makes an empty cache file, unless another process is faster.
    fn create(&self) -> Result<(), SnapshotError> {
        let new = new_file(&self.path)?;
        let catalogue = Catalogue::new(None, self.identity.needs_checkpoints);
        let index = index::encode(&self.identity, &self.plane_widths, &catalogue);
        let index = index.map_err(SnapshotError::Export)?;
        let published = Appender { disk: &new.disk, end: ALIGNMENT }.publish(&index, 1);
        published.and_then(|()| new.put()).map(drop).map_err(|source| failed("create", &self.path, source))
    }

    /// A catalogue that another process has saved, with what this run has used marked in it, and
    /// without what this run has found to be damaged.
    fn with_own_findings(&self, mut other: Catalogue) -> Result<Catalogue, SnapshotError> {
        for extent in &self.damaged {
            other.drop_extents(|known| known == extent)?;
        }
        let tree = self.catalogue.cache().tree();
        let mut used: Vec<(u64, NodeId)> =
            self.used.iter().filter_map(|id| tree.node(*id).map(|node| (node.last_used(), *id))).collect();
        used.sort_unstable();
        for (_, id) in used {
            let (found, _) = other.find(&self.catalogue.path_tokens(id));
            if let Some(step) = found.path.last() {
                other.mark_used(step.node, seconds_since_1970())?;
            }
        }
        Ok(other)
    }
}

/// A file with a first block and nothing else, beside `path`.
fn new_file(path: &std::path::Path) -> Result<NewDisk, SnapshotError> {
    let new = Disk::create_beside(path).map_err(|source| failed("create", path, source))?;
    let mut start = [0; 3 * BLOCK_BYTES];
    start[..BLOCK_BYTES].copy_from_slice(&format::superblock());
    new.disk.write_at(&start, 0).map_err(|source| failed("create", path, source))?;
    Ok(new)
}

impl Saving<'_> {
    /// Makes sure that the file will hold the KV of `tokens` below a node, and returns the node that
    /// ends with them.
    ///
    /// `export` appends the bytes of the tokens in a range to a buffer; it is asked only for what
    /// the file lacks, one run of tokens after the other.
    pub fn add(
        &mut self,
        place: Place<'_>,
        mut export: impl FnMut(Range<usize>, &mut Vec<u8>) -> Result<(), String>,
    ) -> Result<Option<NodeId>, SnapshotError> {
        let Place { parent, tokens, tier } = place;
        let covered = self.catalogue.cover(parent, tokens)?;
        if covered.num_tokens == tokens.len() {
            return Ok(covered.node);
        }
        let rest = covered.num_tokens..tokens.len();
        let rest_tokens = &tokens[rest.clone()];
        let mut extents = Vec::with_capacity(rest.len().div_ceil(MAX_RUN_TOKENS));
        for start in rest.clone().step_by(MAX_RUN_TOKENS) {
            let run = start..rest.end.min(start + MAX_RUN_TOKENS);
            extents.push(self.write(run.len(), !extents.is_empty(), |bytes| export(run, bytes))?);
        }
        // KV of no bytes has no place.
        extents.retain(|extent| extent.num_bytes > 0);
        self.report.num_new_tokens += rest_tokens.len();
        let place = Place { parent: covered.node, tokens: rest_tokens, tier };
        self.catalogue.hang(place, Piece::of(&extents, number(rest.len()), self.now), None)
    }

    /// Makes sure that the file will hold a recurrent state at a node's end.
    pub fn add_checkpoint(
        &mut self,
        node: NodeId,
        export: impl FnOnce(&mut Vec<u8>) -> Result<(), String>,
    ) -> Result<(), SnapshotError> {
        let has_one =
            self.catalogue.cache().tree().node(node).is_some_and(|node| node.checkpoint().is_some());
        if has_one {
            return Ok(());
        }
        let extent = self.write(0, false, export)?;
        self.catalogue.set_checkpoint(node, Some(Piece::state(extent, self.now)))
    }

    fn write(
        &mut self,
        num_tokens: usize,
        follows: bool,
        export: impl FnOnce(&mut Vec<u8>) -> Result<(), String>,
    ) -> Result<Extent, SnapshotError> {
        self.bytes.clear();
        export(&mut self.bytes).map_err(SnapshotError::Export)?;
        let token_bytes: u64 = self.snapshot.plane_widths.iter().map(|width| u64::from(*width)).sum();
        let num_bytes = self.bytes.len() as u64;
        if token_bytes > 0 && num_tokens > 0 && num_bytes != token_bytes.saturating_mul(num_tokens as u64) {
            return Err(SnapshotError::Export(format!(
                "{num_bytes} bytes for {num_tokens} tokens of {token_bytes} each"
            )));
        }
        let mut appender = Appender { disk: self.target.disk(), end: self.end };
        let appended = appender.append(&self.bytes, follows);
        let offset = appended.map_err(|source| failed("write to", &self.snapshot.path, source))?;
        self.end = appender.end;
        self.is_changed = true;
        self.report.num_new_bytes += self.bytes.len() as u64;
        Ok(Extent {
            offset,
            num_bytes: self.bytes.len() as u64,
            num_tokens: number(num_tokens),
            checksum: format::checksum(&self.bytes),
        })
    }

    /// Drops every entry for which `is_unwanted` says so, as long as nothing else hangs below it.
    pub(super) fn drop_leaves(
        &mut self,
        is_unwanted: impl Fn(Tier, u64) -> bool,
    ) -> Result<(), SnapshotError> {
        // What hangs below a node comes before it.
        for id in self.catalogue.cache().tree().preorder().into_iter().rev() {
            let node = self.catalogue.cache().tree().node(id).filter(|node| node.is_leaf());
            let used_at = node.and_then(|node| node.segment()).map(|piece| piece.used_at);
            if node.zip(used_at).is_some_and(|(node, used_at)| is_unwanted(node.tier(), used_at)) {
                self.is_changed = true;
                self.catalogue.remove(id)?;
            }
        }
        Ok(())
    }

    /// Switches the file to what was added, within the limit of the file.
    pub fn publish(self) -> Result<SaveReport, SnapshotError> {
        self.publish_compacted(false)
    }

    /// Does what [`Saving::publish`] does and, if asked to, leaves no garbage.
    pub(super) fn publish_compacted(mut self, leaves_no_garbage: bool) -> Result<SaveReport, SnapshotError> {
        self.is_changed |= self.catalogue.keep_limit()? > 0;
        // Before the extents that nobody needs are left behind.
        let mut index = self.encode_index()?;
        let extents = self.catalogue.extents();
        let num_bytes_used: u64 = extents.values().map(|extent| extent.num_bytes).sum();
        let garbage = self.end.saturating_sub(num_bytes_used + ALIGNMENT * (1 + num_aligned(&extents)));
        let least =
            self.snapshot.options.max_bytes.map_or(MIN_COMPACTED_BYTES, |max| max.min(MIN_COMPACTED_BYTES));
        let is_wasteful = self.end > least && garbage > self.end / 100 * MAX_GARBAGE_PERCENT;
        let path = self.snapshot.path.clone();
        let io_error = |source| failed("write to", &path, source);
        if self.is_changed && (is_wasteful || leaves_no_garbage || self.is_outdated) {
            self.compact(&extents)?;
            index = self.encode_index()?;
        }
        if self.is_changed {
            let mut appender = Appender { disk: self.target.disk(), end: self.end };
            appender.publish(&index, self.next_generation).map_err(io_error)?;
            self.end = appender.end;
        }
        let disk = match self.target.new {
            None => self.target.locked,
            Some(new) => new.replace().map_err(io_error)?,
        };
        // Published: an error from here on costs nothing but the lock, which goes with the file.
        let is_unlocked = disk.unlock().is_ok();
        let snapshot = self.snapshot;
        snapshot.disk = if is_unlocked { Some(disk) } else { Disk::open(&path).ok() };
        if self.is_changed {
            snapshot.generation = self.next_generation;
            snapshot.version = FORMAT_VERSION;
        }
        snapshot.catalogue = self.catalogue;
        snapshot.used.clear();
        snapshot.damaged.clear();
        snapshot.is_dirty = false;
        if snapshot.options.mode == CacheMode::Refresh {
            snapshot.options.mode = CacheMode::ReadWrite;
        }
        self.report.num_tokens = snapshot.num_tokens();
        self.report.file_bytes = self.end;
        Ok(self.report)
    }

    /// The index as bytes. Where it would be longer than one that is read, what goes first is left out.
    fn encode_index(&mut self) -> Result<Vec<u8>, SnapshotError> {
        if !self.is_changed {
            return Ok(Vec::new());
        }
        let Snapshot { identity, plane_widths, max_index_bytes, .. } = &*self.snapshot;
        loop {
            let index =
                index::encode(identity, plane_widths, &self.catalogue).map_err(SnapshotError::Export)?;
            let num_over = index.len().saturating_sub(*max_index_bytes) as u64;
            if num_over == 0 {
                return Ok(index);
            }
            // As many tokens of all as bytes are too many; again, should that not be enough.
            let num_tokens = self.catalogue.num_tokens() as u128;
            let num_to_drop = num_tokens * u128::from(num_over) / index.len() as u128;
            let num_dropped = self.catalogue.drop_first(num_to_drop as u64);
            let too_long = || SnapshotError::IndexTooLong { path: self.snapshot.path.clone() };
            self.report.num_tokens_beyond_index += num_dropped.ok_or_else(too_long)?;
        }
    }

    /// Moves what is in use to a new file; what turns out to be damaged is left behind.
    fn compact(&mut self, extents: &BTreeMap<u64, Extent>) -> Result<(), SnapshotError> {
        let path = self.snapshot.path.clone();
        let new = new_file(&path)?;
        let mut appender = Appender { disk: &new.disk, end: ALIGNMENT };
        let mut moved = BTreeMap::new();
        let mut end = None;
        for (&offset, &extent) in extents {
            match read_extent(self.target.disk(), extent, &mut self.bytes) {
                Ok(()) => {}
                Err(ReadError::Damaged(_)) => continue,
                Err(ReadError::Io(source)) => return Err(failed("read", &path, source)),
            }
            // What one segment has stays together.
            let new_offset = appender.append(&self.bytes, end == Some(offset));
            moved.insert(offset, new_offset.map_err(|source| failed("compact", &path, source))?);
            end = Some(offset + extent.num_bytes);
        }
        self.end = appender.end;
        self.catalogue.relocate(&moved)?;
        self.report.is_compacted = true;
        self.target.new = Some(new);
        Ok(())
    }
}
