//! Looking into cache files and looking after them, without a model.
//!
//! Owns what `mlxbatch cache` does: contents, verification, pruning, merging. Printing it is the
//! command's business.

use std::{collections::BTreeMap, path::Path};

use super::{
    CacheMode, Identity, SaveReport, Snapshot, SnapshotError, SnapshotOptions,
    extent::{ReadError, read_extent},
    open::{OTHER_PLANES, seconds_since_1970},
};
use crate::cache::{Payload, PerTier, Tier, TokenId};

/// Nothing is believed that is only looked at, whoever has written it.
const LOOK: SnapshotOptions = SnapshotOptions { mode: CacheMode::Unsafe, max_bytes: None };

/// One stored prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its own tokens, from its parent's end to its own.
    pub tokens: Vec<TokenId>,
    /// Prompt tokens up to its end.
    pub end: usize,
    pub tier: Tier,
    pub num_bytes: u64,
    pub has_checkpoint: bool,
    /// When a run last used it, in seconds since 1970.
    pub used_at: u64,
    /// Prefixes that continue it, all together.
    pub num_below: usize,
}

/// What a cache file holds.
#[derive(Debug, Clone)]
pub struct Contents {
    pub identity: Identity,
    /// The file's format version.
    pub format_version: u32,
    /// Each after the one that it continues.
    pub entries: Vec<Entry>,
    pub file_bytes: u64,
    /// Bytes of the file that KV and states take.
    pub used_bytes: u64,
    /// Entries of the index that made no sense.
    pub num_damaged: usize,
}

impl Contents {
    /// Reads a file's index.
    pub fn read(path: &Path) -> Result<Self, SnapshotError> {
        Ok(Self::of(&Snapshot::open_as_it_is(path, LOOK)?))
    }

    fn of(snapshot: &Snapshot) -> Self {
        let tree = snapshot.catalogue.cache().tree();
        let order = tree.preorder();
        let places: BTreeMap<_, _> = order.iter().enumerate().map(|(place, id)| (*id, place)).collect();
        let mut entries = Vec::with_capacity(order.len());
        let mut parents = Vec::with_capacity(order.len());
        for node in order.iter().filter_map(|id| tree.node(*id)) {
            let checkpoint_bytes = node.checkpoint().map_or(0, Payload::num_bytes);
            entries.push(Entry {
                tokens: node.tokens().to_vec(),
                end: node.end(),
                tier: node.tier(),
                num_bytes: node.segment().map_or(0, Payload::num_bytes) + checkpoint_bytes,
                has_checkpoint: node.checkpoint().is_some(),
                used_at: node.segment().map_or(0, |piece| piece.used_at),
                num_below: 0,
            });
            parents.push(node.parent().and_then(|parent| places.get(&parent).copied()));
        }
        // Children come after their parents, so from the end on every count is whole when it is used.
        for place in (0..entries.len()).rev() {
            if let Some(parent) = parents[place] {
                entries[parent].num_below += 1 + entries[place].num_below;
            }
        }
        let file_bytes = snapshot.disk.as_ref().and_then(|disk| disk.num_bytes().ok()).unwrap_or(0);
        Self {
            identity: snapshot.identity.clone(),
            format_version: snapshot.version,
            entries,
            file_bytes,
            used_bytes: snapshot.catalogue.extents().values().map(|extent| extent.num_bytes).sum(),
            num_damaged: snapshot.num_damaged(),
        }
    }

    pub fn num_tokens(&self) -> usize {
        self.entries.iter().map(|entry| entry.tokens.len()).sum()
    }

    /// Entries, tokens and bytes of each tier.
    pub fn tiers(&self) -> PerTier<(usize, usize, u64)> {
        let mut tiers = PerTier::default();
        for entry in &self.entries {
            let (num_entries, num_tokens, num_bytes): &mut (usize, usize, u64) = &mut tiers[entry.tier];
            *num_entries += 1;
            *num_tokens += entry.tokens.len();
            *num_bytes += entry.num_bytes;
        }
        tiers
    }
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    pub num_extents: usize,
    pub num_bytes: u64,
    /// Places of extents whose bytes have changed.
    pub damaged: Vec<u64>,
    /// Entries of the index that made no sense.
    pub num_damaged_entries: usize,
}

/// Reads every extent and compares its checksum; `on_progress` hears of the bytes read.
pub fn verify(path: &Path, mut on_progress: impl FnMut(u64)) -> Result<Verified, SnapshotError> {
    let snapshot = Snapshot::open_as_it_is(path, LOOK)?;
    let mut verified = Verified { num_damaged_entries: snapshot.num_damaged(), ..Verified::default() };
    let mut bytes = Vec::new();
    for extent in snapshot.catalogue.extents().into_values() {
        let Some(disk) = &snapshot.disk else { break };
        match read_extent(disk, extent, &mut bytes) {
            Ok(()) => {}
            Err(ReadError::Damaged(_)) => verified.damaged.push(extent.offset),
            Err(ReadError::Io(source)) => return Err(super::disk::failed("read", path, source)),
        }
        verified.num_extents += 1;
        verified.num_bytes += extent.num_bytes;
        on_progress(extent.num_bytes);
    }
    Ok(verified)
}

/// What is to go from a cache file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pruning {
    /// KV that may stay; beyond it, what would be evicted first goes.
    pub max_bytes: Option<u64>,
    /// Entries of this tier go, but for those that others continue.
    pub tier: Option<Tier>,
    /// Entries that no run has used for so many seconds go.
    pub older_than_seconds: Option<u64>,
}

/// What a pruning has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    pub num_entries_before: usize,
    pub num_entries: usize,
    pub bytes_before: u64,
    pub file_bytes: u64,
}

/// Drops entries and compacts the file.
pub fn prune(path: &Path, pruning: Pruning) -> Result<Pruned, SnapshotError> {
    let options = SnapshotOptions { mode: CacheMode::ReadWrite, max_bytes: pruning.max_bytes };
    let mut snapshot = Snapshot::open_as_it_is(path, options)?;
    let before = Contents::of(&snapshot);
    let oldest = pruning.older_than_seconds.map(|seconds| seconds_since_1970().saturating_sub(seconds));
    let mut saving = snapshot.begin_save()?;
    saving.drop_leaves(|tier, used_at| {
        pruning.tier == Some(tier) || oldest.is_some_and(|oldest| used_at < oldest)
    })?;
    let report = saving.publish_compacted(true)?;
    Ok(Pruned {
        num_entries_before: before.entries.len(),
        num_entries: snapshot.catalogue.cache().tree().num_nodes(),
        bytes_before: before.file_bytes,
        file_bytes: report.file_bytes,
    })
}

/// Makes one cache file of two of the same model; `output` must not exist, or is added to.
pub fn merge(inputs: &[&Path], output: &Path) -> Result<SaveReport, SnapshotError> {
    let options = SnapshotOptions { mode: CacheMode::ReadWrite, max_bytes: None };
    let mut sources = Vec::with_capacity(inputs.len());
    for path in inputs {
        sources.push(Snapshot::open_as_it_is(path, options)?);
    }
    let Some((first, others)) = sources.split_first() else { return Ok(SaveReport::default()) };
    let refused = |one: &Snapshot, other: &Snapshot, difference: String| {
        Err(SnapshotError::CannotMerge { path: one.path.clone(), other: other.path.clone(), difference })
    };
    // Whose planes all others have to be like: a file that holds nothing has none.
    let with_planes = sources.iter().find(|source| !source.plane_widths.is_empty()).unwrap_or(first);
    for other in others {
        if let Some(difference) = first.identity.difference(&other.identity) {
            return refused(first, other, difference);
        }
        if !other.plane_widths.is_empty() && with_planes.plane_widths != other.plane_widths {
            return refused(with_planes, other, OTHER_PLANES.to_owned());
        }
    }
    let plane_widths = with_planes.plane_widths.clone();
    let mut merged =
        Snapshot::open(output, first.options, |_| Ok::<_, SnapshotError>(first.identity.clone()))?;
    if merged.plane_widths.is_empty() {
        merged.plane_widths = plane_widths;
    }
    let mut saving = merged.begin_save()?;
    for source in &sources {
        saving.add_all(source)?;
    }
    saving.publish()
}
