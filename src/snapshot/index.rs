//! The index of a snapshot file: identity and tree, as bincode.
//!
//! Owns the records and their checks: what comes from disk is believed only as far as it is
//! consistent, and decoding allocates no more than the file has bytes to justify.

use std::collections::BTreeMap;

use bincode::{Decode, Encode, config};

use super::{
    Extent, FileStamp, Identity, IdentityPart, Piece,
    catalogue::Catalogue,
    format::{ALIGNMENT, Checksum},
    identity::Digest,
};
use crate::cache::{NodeId, Place, Tier, TokenId};

#[derive(Encode, Decode)]
struct IndexRecord {
    model: String,
    needs_checkpoints: bool,
    parts: Vec<PartRecord>,
    stamps: Vec<StampRecord>,
    /// Each after its parent.
    nodes: Vec<NodeRecord>,
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
    /// Tokens of the extent before the node's.
    first: u32,
    segment: ExtentRecord,
    checkpoint: Option<ExtentRecord>,
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
    known: BTreeMap<u64, Extent>,
}

impl Extents {
    /// The extent, if it lies within what is published and all agree about what is there.
    ///
    /// Of two that begin at one place only one would be verified, and a compaction would give its
    /// bytes to both.
    fn checked(&mut self, record: &ExtentRecord) -> Option<Extent> {
        let ExtentRecord { offset, num_bytes, num_tokens, checksum } = *record;
        let is_inside = offset >= ALIGNMENT
            && offset.is_multiple_of(ALIGNMENT)
            && offset.checked_add(num_bytes).is_some_and(|end| end <= self.published_bytes);
        let extent = is_inside.then_some(Extent { offset, num_bytes, num_tokens, checksum })?;
        // One of no bytes has no place of its own.
        let known = if num_bytes == 0 { extent } else { *self.known.entry(offset).or_insert(extent) };
        (known == extent).then_some(extent)
    }
}

/// An index as read.
#[derive(Debug)]
pub(super) struct Index {
    pub identity: Identity,
    pub catalogue: Catalogue,
    /// Nodes that made no sense and were left out, with all below them.
    pub num_damaged: usize,
}

/// Writes identity and tree as bytes.
pub(super) fn encode(identity: &Identity, catalogue: &Catalogue) -> Result<Vec<u8>, String> {
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
            first: piece.first,
            segment: piece.extent.into(),
            checkpoint: node.checkpoint().map(|checkpoint| checkpoint.extent.into()),
        })
    };
    let index = IndexRecord {
        model: identity.model.clone(),
        needs_checkpoints: identity.needs_checkpoints,
        parts: identity
            .parts
            .iter()
            .map(|part| PartRecord { name: part.name.clone(), digest: part.digest })
            .collect(),
        stamps: identity.stamps.iter().map(stamp_record).collect(),
        nodes: order.iter().filter_map(record).collect(),
    };
    bincode::encode_to_vec(&index, config::standard()).map_err(|error| error.to_string())
}

fn stamp_record(stamp: &FileStamp) -> StampRecord {
    let FileStamp { path, num_bytes, inode, modified_ns, changed_ns, content } = *stamp;
    StampRecord { path, num_bytes, inode, modified_ns, changed_ns, content }
}

/// Reads an index of a file that publishes so many bytes; `max_bytes` limits the tree from then on.
pub(super) fn decode(bytes: &[u8], published_bytes: u64, max_bytes: Option<u64>) -> Result<Index, String> {
    let record = decode_record(bytes)?;
    let identity = Identity {
        model: record.model,
        needs_checkpoints: record.needs_checkpoints,
        parts: record
            .parts
            .into_iter()
            .map(|PartRecord { name, digest }| IdentityPart { name, digest })
            .collect(),
        stamps: record
            .stamps
            .into_iter()
            .map(|StampRecord { path, num_bytes, inode, modified_ns, changed_ns, content }| FileStamp {
                path,
                num_bytes,
                inode,
                modified_ns,
                changed_ns,
                content,
            })
            .collect(),
    };
    let mut catalogue = Catalogue::new(max_bytes, identity.needs_checkpoints);
    let mut extents = Extents { published_bytes, known: BTreeMap::new() };
    let mut ids: Vec<Option<NodeId>> = Vec::with_capacity(record.nodes.len());
    let mut uses: Vec<(u64, NodeId)> = Vec::with_capacity(record.nodes.len());
    for node in &record.nodes {
        let id = hang(&mut catalogue, node, &ids, &mut extents);
        uses.extend(id.map(|id| (node.recency, id)));
        ids.push(id);
    }
    uses.sort_unstable();
    for (_, id) in uses {
        catalogue.touch(id).map_err(|error| error.to_string())?;
    }
    let num_damaged = ids.iter().filter(|id| id.is_none()).count();
    Ok(Index { identity, catalogue, num_damaged })
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
    let extent = extents.checked(&node.segment)?;
    if node.first.checked_add(num_tokens)? > extent.num_tokens {
        return None;
    }
    let piece = Piece { extent, first: node.first, num_tokens, used_at: node.used_at };
    let checkpoint = match &node.checkpoint {
        None => None,
        Some(record) => {
            Some(Piece::whole(extents.checked(record).filter(|extent| extent.num_tokens == 0)?, node.used_at))
        }
    };
    catalogue.hang(Place { parent, tokens: &node.tokens, tier }, piece, checkpoint).ok()?
}

/// Decodes with the smallest limit that an honest index of this size stays under: records take up to
/// some ten times their encoded size in memory.
fn decode_record(bytes: &[u8]) -> Result<IndexRecord, String> {
    fn limited<const LIMIT: usize>(bytes: &[u8]) -> Result<IndexRecord, String> {
        let config = config::standard().with_limit::<LIMIT>();
        let (record, num_read) =
            bincode::decode_from_slice(bytes, config).map_err(|error| error.to_string())?;
        if num_read != bytes.len() {
            return Err(format!("{} bytes are left over", bytes.len() - num_read));
        }
        Ok(record)
    }
    let read = match bytes.len().next_power_of_two().trailing_zeros() {
        ..=10 => limited::<0x4000>,
        11..=12 => limited::<0x1_0000>,
        13..=14 => limited::<0x4_0000>,
        15..=16 => limited::<0x10_0000>,
        17..=18 => limited::<0x40_0000>,
        19..=20 => limited::<0x100_0000>,
        21..=22 => limited::<0x400_0000>,
        23..=24 => limited::<0x1000_0000>,
        25..=26 => limited::<0x4000_0000>,
        27..=28 => limited::<0x1_0000_0000>,
        _ => return Err(format!("an index of {} bytes is beyond all measure", bytes.len())),
    };
    read(bytes)
}
