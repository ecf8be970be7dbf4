//! The index of a snapshot file: identity and tree, as bincode.
//!
//! Owns the records and their checks: what comes from disk is believed only as far as it is
//! consistent, and decoding allocates no more than the file has bytes to justify. Both ways an index is at
//! most [`MAX_INDEX_BYTES`] long: what is written is read.

use std::collections::BTreeMap;

use bincode::{Decode, Encode, config};

use super::{
    Extent, FileStamp, Identity, IdentityPart, Piece,
    catalogue::Catalogue,
    format::{ALIGNMENT, Checksum},
    identity::Digest,
};
use crate::cache::{NodeId, Place, Tier, TokenId};

/// The longest index there can be.
pub(super) const MAX_INDEX_BYTES: usize = 256 << 20;

#[derive(Encode, Decode)]
struct IndexRecord {
    header: HeaderRecord,
    /// Bytes of one token in each plane of an extent, in their order; none where they are not known.
    plane_widths: Vec<u32>,
    /// Each after its parent.
    nodes: Vec<NodeRecord>,
}

/// The index of a file of format version 1.
#[derive(Decode)]
struct IndexRecordV1 {
    header: HeaderRecord,
    nodes: Vec<NodeRecordV1>,
}

#[derive(Encode, Decode)]
struct HeaderRecord {
    model: String,
    needs_checkpoints: bool,
    parts: Vec<PartRecord>,
    stamps: Vec<StampRecord>,
}

#[derive(Encode, Decode)]
struct PartRecord {
    name: String,
    digest: Digest,
}

#[derive(Encode, Decode)]
struct StampRecord {
    path: Digest,
    num_bytes: u64,
    inode: u64,
    modified_ns: i64,
    changed_ns: i64,
    content: Digest,
}

#[derive(Encode, Decode)]
struct NodeRecord {
    /// One more than the parent's place in the list; 0 below the root.
    parent: u32,
    /// 0 assistant, 1 user, 2 system.
    tier: u8,
    /// Place in the order of last use.
    recency: u64,
    used_at: u64,
    tokens: Vec<TokenId>,
    /// Tokens of the first extent before the node's.
    first: u32,
    /// Where its tokens are; none where KV is no bytes.
    extents: Vec<ExtentRecord>,
    checkpoint: Option<ExtentRecord>,
}

#[derive(Decode)]
struct NodeRecordV1 {
    parent: u32,
    tier: u8,
    recency: u64,
    used_at: u64,
    tokens: Vec<TokenId>,
    first: u32,
    segment: ExtentRecord,
    checkpoint: Option<ExtentRecord>,
}

impl From<NodeRecordV1> for NodeRecord {
    fn from(node: NodeRecordV1) -> Self {
        let NodeRecordV1 { parent, tier, recency, used_at, tokens, first, segment, checkpoint } = node;
        let (first, extents) = if segment.num_bytes == 0 { (0, Vec::new()) } else { (first, vec![segment]) };
        Self { parent, tier, recency, used_at, tokens, first, extents, checkpoint }
    }
}

#[derive(Encode, Decode)]
struct ExtentRecord {
    offset: u64,
    num_bytes: u64,
    num_tokens: u32,
    checksum: Checksum,
}

impl From<Extent> for ExtentRecord {
    fn from(extent: Extent) -> Self {
        let Extent { offset, num_bytes, num_tokens, checksum } = extent;
        Self { offset, num_bytes, num_tokens, checksum }
    }
}

/// The extents that an index has named so far.
struct Extents {
    published_bytes: u64,
    /// Of one token; 0 where it is not known.
    token_bytes: u64,
    known: BTreeMap<u64, Extent>,
}

impl Extents {
    /// The extent, if it lies within what is published and all agree about what is there.
    ///
    /// Of two that overlap, a compaction would give the same bytes to both.
    fn checked(&mut self, record: &ExtentRecord) -> Option<Extent> {
        let ExtentRecord { offset, num_bytes, num_tokens, checksum } = *record;
        let extent = Extent { offset, num_bytes, num_tokens, checksum };
        let end = offset.checked_add(num_bytes)?;
        if offset < ALIGNMENT || end > self.published_bytes {
            return None;
        }
        // One of no bytes has no place of its own.
        if num_bytes == 0 {
            return Some(extent);
        }
        let before = self.known.range(..=offset).next_back().map(|(_, before)| *before);
        if let Some(before) = before.filter(|before| before.offset + before.num_bytes > offset) {
            return (before == extent).then_some(extent);
        }
        if self.known.range(offset..end).next().is_some() {
            return None;
        }
        self.known.insert(offset, extent);
        Some(extent)
    }

    /// An extent of KV.
    fn run(&mut self, record: &ExtentRecord) -> Option<Extent> {
        let is_run = record.num_tokens > 0 && record.num_bytes > 0;
        let expected = u64::from(record.num_tokens).checked_mul(self.token_bytes)?;
        let is_of_its_size = self.token_bytes == 0 || record.num_bytes == expected;
        (is_run && is_of_its_size).then(|| self.checked(record)).flatten()
    }

    /// An extent of a recurrent state.
    fn state(&mut self, record: &ExtentRecord) -> Option<Extent> {
        (record.num_tokens == 0).then(|| self.checked(record)).flatten()
    }
}

/// An index as read.
#[derive(Debug)]
pub(super) struct Index {
    pub identity: Identity,
    pub plane_widths: Vec<u32>,
    pub catalogue: Catalogue,
    /// Nodes that made no sense and were left out, with all below them.
    pub num_damaged: usize,
}

/// Writes identity and tree as bytes.
pub(super) fn encode(
    identity: &Identity,
    plane_widths: &[u32],
    catalogue: &Catalogue,
) -> Result<Vec<u8>, String> {
    let tree = catalogue.cache().tree();
    let order = tree.preorder();
    let places: std::collections::HashMap<NodeId, u32> =
        order.iter().zip(1..).map(|(id, place)| (*id, place)).collect();
    let record = |id: &NodeId| {
        let node = tree.node(*id)?;
        let piece = node.segment()?;
        Some(NodeRecord {
            parent: node.parent().map_or(Some(0), |parent| places.get(&parent).copied())?,
            tier: node.tier() as u8,
            recency: node.last_used(),
            used_at: piece.used_at,
            tokens: node.tokens().to_vec(),
            first: piece.tokens().start as u32,
            extents: piece.extents().iter().map(|extent| (*extent).into()).collect(),
            checkpoint: node.checkpoint().and_then(|state| state.extents().first()).map(|e| (*e).into()),
        })
    };
    let header = HeaderRecord {
        model: identity.model.clone(),
        needs_checkpoints: identity.needs_checkpoints,
        parts: identity
            .parts
            .iter()
            .map(|part| PartRecord { name: part.name.clone(), digest: part.digest })
            .collect(),
        stamps: identity.stamps.iter().map(stamp_record).collect(),
    };
    let index = IndexRecord {
        header,
        plane_widths: plane_widths.to_vec(),
        nodes: order.iter().filter_map(record).collect(),
    };
    bincode::encode_to_vec(&index, config::standard()).map_err(|error| error.to_string())
}

fn stamp_record(stamp: &FileStamp) -> StampRecord {
    let FileStamp { path, num_bytes, inode, modified_ns, changed_ns, content } = *stamp;
    StampRecord { path, num_bytes, inode, modified_ns, changed_ns, content }
}

/// Where an index comes from, and what it may hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    /// The file's format version.
    pub version: u32,
    /// What the file publishes.
    pub published_bytes: u64,
    /// Limits the tree from then on.
    pub max_bytes: Option<u64>,
}

/// Reads an index.
pub(super) fn decode(bytes: &[u8], source: Source) -> Result<Index, String> {
    let Source { version, published_bytes, max_bytes } = source;
    let IndexRecord { header, plane_widths, nodes } = if version == 1 {
        let IndexRecordV1 { header, nodes } = decode_record(bytes)?;
        let nodes = nodes.into_iter().map(NodeRecord::from).collect();
        IndexRecord { header, plane_widths: Vec::new(), nodes }
    } else {
        decode_record(bytes)?
    };
    let identity = identity_of(header);
    let token_bytes = plane_widths.iter().map(|width| u64::from(*width)).sum();
    let mut catalogue = Catalogue::new(max_bytes, identity.needs_checkpoints);
    let mut extents = Extents { published_bytes, token_bytes, known: BTreeMap::new() };
    let mut ids: Vec<Option<NodeId>> = Vec::with_capacity(nodes.len());
    let mut uses: Vec<(u64, NodeId)> = Vec::with_capacity(nodes.len());
    for node in &nodes {
        let id = hang(&mut catalogue, node, &ids, &mut extents);
        uses.extend(id.map(|id| (node.recency, id)));
        ids.push(id);
    }
    uses.sort_unstable();
    let uses: Vec<NodeId> = uses.into_iter().map(|(_, id)| id).collect();
    catalogue.touch_all(&uses).map_err(|error| error.to_string())?;
    let num_damaged = ids.iter().filter(|id| id.is_none()).count();
    Ok(Index { identity, plane_widths, catalogue, num_damaged })
}

fn identity_of(header: HeaderRecord) -> Identity {
    let HeaderRecord { model, needs_checkpoints, parts, stamps } = header;
    let stamp = |StampRecord { path, num_bytes, inode, modified_ns, changed_ns, content }| FileStamp {
        path,
        num_bytes,
        inode,
        modified_ns,
        changed_ns,
        content,
    };
    Identity {
        model,
        needs_checkpoints,
        parts: parts.into_iter().map(|PartRecord { name, digest }| IdentityPart { name, digest }).collect(),
        stamps: stamps.into_iter().map(stamp).collect(),
    }
}

/// Puts a node into the tree, if all about it makes sense.
fn hang(
    catalogue: &mut Catalogue,
    node: &NodeRecord,
    ids: &[Option<NodeId>],
    extents: &mut Extents,
) -> Option<NodeId> {
    let parent = match node.parent.checked_sub(1) {
        None => None,
        Some(place) => Some((*ids.get(place as usize)?)?),
    };
    let tier = *Tier::ALL.get(node.tier as usize)?;
    let num_tokens = u32::try_from(node.tokens.len()).ok()?;
    let runs = node.extents.iter().map(|extent| extents.run(extent)).collect::<Option<Vec<Extent>>>()?;
    let piece = Piece::checked(runs, node.first, num_tokens, node.used_at)?;
    let checkpoint = match &node.checkpoint {
        None => None,
        Some(record) => Some(Piece::state(extents.state(record)?, node.used_at)),
    };
    catalogue.hang_unused(Place { parent, tokens: &node.tokens, tier }, piece, checkpoint).ok()?
}

/// Decodes with the smallest limit that an honest index of this size stays under: records take up to
/// some ten times their encoded size in memory.
fn decode_record<R: Decode<()>>(bytes: &[u8]) -> Result<R, String> {
    fn limited<const LIMIT: usize, R: Decode<()>>(bytes: &[u8]) -> Result<R, String> {
        let config = config::standard().with_limit::<LIMIT>();
        let (record, num_read) =
            bincode::decode_from_slice(bytes, config).map_err(|error| error.to_string())?;
        if num_read != bytes.len() {
            return Err(format!("{} bytes are left over", bytes.len() - num_read));
        }
        Ok(record)
    }
    if bytes.len() > MAX_INDEX_BYTES {
        return Err(format!("an index of {} bytes is beyond all measure", bytes.len()));
    }
    let read = match bytes.len().next_power_of_two().trailing_zeros() {
        ..=10 => limited::<0x4000, R>,
        11..=12 => limited::<0x1_0000, R>,
        13..=14 => limited::<0x4_0000, R>,
        15..=16 => limited::<0x10_0000, R>,
        17..=18 => limited::<0x40_0000, R>,
        19..=20 => limited::<0x100_0000, R>,
        21..=22 => limited::<0x400_0000, R>,
        23..=24 => limited::<0x1000_0000, R>,
        25..=26 => limited::<0x4000_0000, R>,
        _ => limited::<0x1_0000_0000, R>,
    };
    read(bytes)
}
