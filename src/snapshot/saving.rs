//! Saving: what is new is appended, then the index is switched.
//!
//! Owns the order of writes that makes a crash harmless, merging with what other processes have saved,
//! and compaction. What there is to save is told by the engine, piece by piece.
//!
//! ```text
//! lock ─▶ reload, if others have saved ─▶ append extents ─▶ append index ─▶ sync ─▶ root ─▶ sync
//!                                                └─ too much garbage: copy what is in use into a new
//!                                                   file, sync, and give it the name ─▶ sync
//! ```

use std::{collections::BTreeMap, io, ops::Range};

use super::{
    CacheMode, Extent, Opening, Piece, Snapshot, SnapshotError,
    catalogue::Catalogue,
    disk::{Disk, NewDisk, failed, remove_leftovers},
    extent::{ReadError, read_extent},
    format::{self, ALIGNMENT, BLOCK_BYTES, Root},
    index,
    open::{Content, Sound, read_content, seconds_since_1970},
};
use crate::cache::{NodeId, Place, Tier};

/// A file is compacted when more than this share of it, in percent, is no longer in use.
const MAX_GARBAGE_PERCENT: u64 = 25;

/// Below this a file is not worth compacting.
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
    /// Writes at the next place; returns it.
    fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let too_long = || io::Error::other("the file would be too long");
        let offset = format::aligned(self.end.max(ALIGNMENT)).ok_or_else(too_long)?;
        self.disk.write_at(bytes, offset)?;
        self.end = offset.checked_add(bytes.len() as u64).ok_or_else(too_long)?;
        Ok(offset)
    }

    /// Writes an index and has it be the content of the file.
    fn publish(&mut self, index: &[u8], generation: u64) -> io::Result<()> {
        let index_offset = self.append(index)?;
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

/// A save under way; dropped before it is published, it has changed nothing.
#[derive(Debug)]
pub struct Saving<'a> {
    snapshot: &'a mut Snapshot,
    target: Target,
    catalogue: Catalogue,
    end: u64,
    next_generation: u64,
    is_changed: bool,
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
        let locked = match Disk::lock(&self.path)? {
            Some(locked) => locked,
            None => {
                self.create()?;
                Disk::lock(&self.path)?.ok_or_else(|| SnapshotError::NotThere { path: self.path.clone() })?
            }
        };
        remove_leftovers(&self.path);
        let now = seconds_since_1970();
        let end = locked.num_bytes().map_err(|source| failed("read", &self.path, source))?;
        let content = read_content(&locked, self.options.max_bytes)?;
        let (new, catalogue, end, next_generation) = match content {
            // What was damaged at the start may have been replaced since.
            Content::Sound(sound) if self.options.mode != CacheMode::Refresh => {
                let Sound { root, index, next_generation, .. } = *sound;
                if let Some(difference) = self.identity.difference(&index.identity) {
                    return Err(self.other_model(difference));
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
        let index = index::encode(&self.identity, &catalogue).map_err(SnapshotError::Export)?;
        let published = Appender { disk: &new.disk, end: ALIGNMENT }.publish(&index, 1);
        published.and_then(|()| new.put()).map(drop).map_err(|source| failed("create", &self.path, source))
    }

    /// A catalogue that another process has saved, with what this run has used marked in it, and
    /// without what this run has found to be damaged.
    fn with_own_findings(&self, mut other: Catalogue) -> Result<Catalogue, SnapshotError> {
        for extent in &self.damaged {
            other.drop_extent(extent)?;
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
    /// the file lacks.
    pub fn add(
        &mut self,
        place: Place<'_>,
        export: impl FnOnce(Range<usize>, &mut Vec<u8>) -> Result<(), String>,
    ) -> Result<Option<NodeId>, SnapshotError> {
        let Place { parent, tokens, tier } = place;
        let covered = self.catalogue.cover(parent, tokens)?;
        if covered.num_tokens == tokens.len() {
            return Ok(covered.node);
        }
        let rest = covered.num_tokens..tokens.len();
        let rest_tokens = &tokens[rest.clone()];
        let extent = self.write(rest_tokens.len(), |bytes| export(rest, bytes))?;
        self.report.num_new_tokens += rest_tokens.len();
        let place = Place { parent: covered.node, tokens: rest_tokens, tier };
        self.catalogue.hang(place, Piece::whole(extent, self.now), None)
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
        let extent = self.write(0, export)?;
        self.catalogue.set_checkpoint(node, Some(Piece::whole(extent, self.now)))
    }

    fn write(
        &mut self,
        num_tokens: usize,
        export: impl FnOnce(&mut Vec<u8>) -> Result<(), String>,
    ) -> Result<Extent, SnapshotError> {
        self.bytes.clear();
        export(&mut self.bytes).map_err(SnapshotError::Export)?;
        let mut appender = Appender { disk: self.target.disk(), end: self.end };
        let offset =
            appender.append(&self.bytes).map_err(|source| failed("write to", &self.snapshot.path, source))?;
        self.end = appender.end;
        self.is_changed = true;
        self.report.num_new_bytes += self.bytes.len() as u64;
        Ok(Extent {
            offset,
            num_bytes: self.bytes.len() as u64,
            num_tokens: u32::try_from(num_tokens).unwrap_or(u32::MAX),
            checksum: format::checksum(&self.bytes),
        })
    }

    /// Takes in all that another snapshot of the same model has and this one lacks.
    pub(super) fn add_all(&mut self, other: &Snapshot) -> Result<(), SnapshotError> {
        let Some(disk) = &other.disk else { return Ok(()) };
        let tree = other.catalogue.cache().tree();
        let mut places: BTreeMap<NodeId, NodeId> = BTreeMap::new();
        let mut copied: BTreeMap<u64, Option<Extent>> = BTreeMap::new();
        for id in tree.preorder() {
            let Some((node, &piece)) = tree.node(id).and_then(|node| Some((node, node.segment()?))) else {
                continue;
            };
            let parent = match node.parent() {
                None => None,
                Some(parent) => match places.get(&parent) {
                    None => continue,
                    known => known.copied(),
                },
            };
            let tokens = node.tokens();
            let covered = self.catalogue.cover(parent, tokens)?;
            let mut end = covered.node;
            if covered.num_tokens < tokens.len() {
                let Some(extent) = self.copy(disk, &piece, &mut copied)? else { continue };
                let rest = covered.num_tokens..tokens.len();
                self.report.num_new_tokens += rest.len();
                let piece = Piece { extent, ..piece.part(rest.clone()) };
                let place = Place { parent: covered.node, tokens: &tokens[rest], tier: node.tier() };
                end = self.catalogue.hang(place, piece, None)?;
            }
            let Some(end) = end else { continue };
            places.insert(id, end);
            let lacks_checkpoint =
                self.catalogue.cache().tree().node(end).is_some_and(|node| node.checkpoint().is_none());
            if let Some(checkpoint) = node.checkpoint().filter(|_| lacks_checkpoint)
                && let Some(extent) = self.copy(disk, checkpoint, &mut copied)?
            {
                self.catalogue.set_checkpoint(end, Some(Piece { extent, ..*checkpoint }))?;
            }
            self.catalogue.mark_used(end, piece.used_at)?;
        }
        Ok(())
    }

    /// Copies an extent of another file, once; `None` where it is damaged.
    fn copy(
        &mut self,
        from: &Disk,
        piece: &Piece,
        copied: &mut BTreeMap<u64, Option<Extent>>,
    ) -> Result<Option<Extent>, SnapshotError> {
        if let Some(known) = copied.get(&piece.extent.offset) {
            return Ok(*known);
        }
        let mut bytes = Vec::new();
        let extent = match read_extent(from, piece.extent, &mut bytes) {
            Ok(()) => Some(self.write(piece.extent.num_tokens as usize, |out| {
                out.append(&mut bytes);
                Ok(())
            })?),
            Err(ReadError::Damaged) => None,
            Err(ReadError::Io(source)) => return Err(failed("read", from.path(), source)),
        };
        copied.insert(piece.extent.offset, extent);
        Ok(extent)
    }

    /// Drops every entry for which `is_unwanted` says so, as long as nothing else hangs below it.
    pub(super) fn drop_leaves(
        &mut self,
        is_unwanted: impl Fn(Tier, u64) -> bool,
    ) -> Result<(), SnapshotError> {
        loop {
            let tree = self.catalogue.cache().tree();
            let is_due = |id: &NodeId| {
                let node = tree.node(*id).filter(|node| node.is_leaf());
                let used_at = node.and_then(|node| node.segment()).map(|piece| piece.used_at);
                node.zip(used_at).is_some_and(|(node, used_at)| is_unwanted(node.tier(), used_at))
            };
            let due: Vec<NodeId> = tree.preorder().into_iter().filter(is_due).collect();
            if due.is_empty() {
                return Ok(());
            }
            self.is_changed = true;
            for id in due {
                self.catalogue.remove(id)?;
            }
        }
    }

    /// Switches the file to what was added, within the limit of the file.
    pub fn publish(self) -> Result<SaveReport, SnapshotError> {
        self.publish_compacted(false)
    }

    /// Does what [`Saving::publish`] does and, if asked to, leaves no garbage.
    pub(super) fn publish_compacted(mut self, leaves_no_garbage: bool) -> Result<SaveReport, SnapshotError> {
        self.is_changed |= self.catalogue.keep_limit()? > 0;
        let extents = self.catalogue.extents();
        let num_bytes_used: u64 = extents.values().map(|extent| extent.num_bytes).sum();
        let garbage = self.end.saturating_sub(num_bytes_used + ALIGNMENT * (1 + extents.len() as u64));
        let is_wasteful = self.end > MIN_COMPACTED_BYTES && garbage > self.end / 100 * MAX_GARBAGE_PERCENT;
        let path = self.snapshot.path.clone();
        let io_error = |source| failed("write to", &path, source);
        if self.is_changed && (is_wasteful || leaves_no_garbage) {
            self.compact(&extents)?;
        }
        if self.is_changed {
            let index =
                index::encode(&self.snapshot.identity, &self.catalogue).map_err(SnapshotError::Export)?;
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

    /// Moves what is in use to a new file; what turns out to be damaged is left behind.
    fn compact(&mut self, extents: &BTreeMap<u64, Extent>) -> Result<(), SnapshotError> {
        let path = self.snapshot.path.clone();
        let new = new_file(&path)?;
        let mut appender = Appender { disk: &new.disk, end: ALIGNMENT };
        let mut moved = BTreeMap::new();
        for (&offset, &extent) in extents {
            match read_extent(self.target.disk(), extent, &mut self.bytes) {
                Ok(()) => {}
                Err(ReadError::Damaged) => continue,
                Err(ReadError::Io(source)) => return Err(failed("read", &path, source)),
            }
            let new_offset =
                appender.append(&self.bytes).map_err(|source| failed("compact", &path, source))?;
            moved.insert(offset, Extent { offset: new_offset, ..extent });
        }
        self.end = appender.end;
        self.catalogue.relocate(&moved)?;
        self.report.is_compacted = true;
        self.target.new = Some(new);
        Ok(())
    }
}
