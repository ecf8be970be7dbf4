//! The snapshot file, byte by byte, format version 2.
//!
//! Owns the fixed places of the file and their checks. What the index holds is `index`'s, who
//! writes when `saving`'s.
//!
//! ```text
//! offset     bytes
//!      0     4096   superblock: magic (16), format version (u32), checksum of both
//!   4096     4096   root A  ┐ generation, place and checksum of an index, bytes published,
//!   8192     4096   root B  ┘ and a checksum of the root itself
//!  16384            segments, states and indexes, each at a multiple of 16 KiB, in the order of their
//!                   writing; a segment's extents follow each other without a gap
//! ```
//!
//! All numbers are little-endian, all checksums XXH3-128. The magic's first byte is no ASCII, and it
//! holds both kinds of line end, so that damage by a text-mode transfer shows.
//!
//! The root of the higher generation whose index is sound is the file's content; the other is the one
//! before. A save writes extents and an index behind everything, syncs, writes the *older* root, and
//! syncs again: torn at any point, one root and its index are whole. Bytes that a root refers to are
//! never written again.
//!
//! An extent is what is read, verified and freed together: the KV of a run of up to 256 tokens, or a
//! recurrent state, as the runner gave it. KV lies plane by plane: for each attention layer in order keys
//! and then values, `(H_kv, L, D)` each for the run's `L` tokens, in the dtype of the identity. A state is,
//! for each recurrent layer, the convolution's tail `(K - 1, C)` and, if it has one, the memory
//! `(H, D_k, D_v)`. There is no header in it: the identity fixes all shapes, and the index has the tokens
//! and how many bytes each plane has of one token, so that planes may be as many and as wide as a model needs.
//!
//! A node of the index names the extents that its tokens lie in, and how many tokens of the first come
//! before its own: where an edge was cut, two nodes name one extent. It is in use while one does.
//!
//! Version 1 differs in two things: a segment is one extent of any length, and the index does not tell of
//! planes. Such a file is read as it is. The first save that changes it moves all that is in use to a new
//! file of version 2, where its extents stay as long as they are.

use xxhash_rust::xxh3::xxh3_128;

use super::SnapshotError;

/// The format that this program writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 2;

/// Tokens of an extent at most: enough that a checksum and a place in the index cost nothing beside it, and so
/// few that what is read, or kept, for the sake of one token is little.
pub const MAX_RUN_TOKENS: usize = 256;

/// Segments, states and indexes begin at multiples of this: the largest page of the platforms we run on.
pub const ALIGNMENT: u64 = 16 << 10;

const MAGIC: [u8; 16] = *b"\x89mlxbatch\r\n\x1a\n\0\0\0";
pub(super) const BLOCK_BYTES: usize = 4096;
const SUPERBLOCK_BYTES: usize = 16 + 4 + 16;
const ROOT_BYTES: usize = 8 * 4 + 16 + 16;

/// A checksum as it is stored.
pub type Checksum = [u8; 16];

/// XXH3-128 of these bytes.
pub(super) fn checksum(bytes: &[u8]) -> Checksum {
    xxh3_128(bytes).to_le_bytes()
}

/// The next multiple of [`ALIGNMENT`]; `None` where a file cannot be that long.
pub(super) fn aligned(offset: u64) -> Option<u64> {
    offset.checked_next_multiple_of(ALIGNMENT)
}

/// The first block of a file of this format.
pub(super) fn superblock() -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    block[..16].copy_from_slice(&MAGIC);
    block[16..20].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    let sum = checksum(&block[..20]);
    block[20..SUPERBLOCK_BYTES].copy_from_slice(&sum);
    block
}

/// What the first block says about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Of this version, which can be read.
    Ours(u32),
    /// Ours by its name, but the block is damaged.
    Damaged,
    Newer(u32),
    /// Something else; never to be touched.
    Foreign,
}

/// Judges the first block of a file, which may be cut short.
pub(super) fn kind_of(block: &[u8]) -> Kind {
    // A file of nothing, or of zeros, is what a full disk or a crash can leave of one of ours; but it
    // may as well be anybody's.
    let Some(magic) = block.get(..16) else { return Kind::Foreign };
    let (Some(version), Some(sum)) = (block.get(16..20), block.get(20..SUPERBLOCK_BYTES)) else {
        return if magic == MAGIC { Kind::Damaged } else { Kind::Foreign };
    };
    if magic != MAGIC {
        // One flipped bit in the magic of a file that is otherwise sound is damage.
        return if checksum(&[&MAGIC, version].concat()) == sum { Kind::Damaged } else { Kind::Foreign };
    }
    if checksum(&block[..20]) != sum {
        return Kind::Damaged;
    }
    match u32::from_le_bytes([version[0], version[1], version[2], version[3]]) {
        0 => Kind::Damaged,
        version if version <= FORMAT_VERSION => Kind::Ours(version),
        version => Kind::Newer(version),
    }
}

/// Where the current index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Root {
    pub generation: u64,
    pub index_offset: u64,
    pub index_bytes: u64,
    /// Bytes of the file that this root publishes, index included.
    pub published_bytes: u64,
    pub index_checksum: Checksum,
}

impl Root {
    /// Place of the root of a generation: they take turns.
    pub(super) fn offset(generation: u64) -> u64 {
        (1 + generation % 2) * BLOCK_BYTES as u64
    }

    pub(super) fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        let numbers = [self.generation, self.index_offset, self.index_bytes, self.published_bytes];
        for (place, number) in block.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        block[32..48].copy_from_slice(&self.index_checksum);
        let sum = checksum(&block[..48]);
        block[48..ROOT_BYTES].copy_from_slice(&sum);
        block
    }

    /// Reads a root's block; `None` where it is damaged or was never written.
    pub(super) fn decode(block: &[u8]) -> Option<Self> {
        let (content, sum) = (block.get(..48)?, block.get(48..ROOT_BYTES)?);
        if checksum(content) != sum {
            return None;
        }
        let number = |place: usize| -> Option<u64> {
            content.get(place * 8..place * 8 + 8)?.try_into().ok().map(u64::from_le_bytes)
        };
        let root = Self {
            generation: number(0)?,
            index_offset: number(1)?,
            index_bytes: number(2)?,
            published_bytes: number(3)?,
            index_checksum: content[32..48].try_into().ok()?,
        };
        let index_end = root.index_offset.checked_add(root.index_bytes)?;
        let is_sound = root.index_offset >= ALIGNMENT
            && root.index_offset.is_multiple_of(ALIGNMENT)
            && index_end <= root.published_bytes;
        is_sound.then_some(root)
    }
}

/// What is wrong with a file that is not of a kind that can be read.
pub(super) fn refuse(path: &std::path::Path, kind: Kind) -> Option<SnapshotError> {
    let path = path.to_path_buf();
    match kind {
        Kind::Ours(_) | Kind::Damaged => None,
        Kind::Foreign => Some(SnapshotError::Foreign { path }),
        Kind::Newer(version) => Some(SnapshotError::Newer { path, version }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_is_ours_and_each_kind_of_damage_is_told_apart() {
        let block = superblock();
        assert_eq!(kind_of(&block), Kind::Ours(FORMAT_VERSION));
        assert_eq!(kind_of(&block[..SUPERBLOCK_BYTES]), Kind::Ours(FORMAT_VERSION));
        assert_eq!(kind_of(&block[..20]), Kind::Damaged);
        assert_eq!(kind_of(&block[..10]), Kind::Foreign);
        assert_eq!(kind_of(b""), Kind::Foreign);
        assert_eq!(kind_of(&[0; BLOCK_BYTES]), Kind::Foreign);
        assert_eq!(kind_of(b"{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}"), Kind::Foreign);
        for bit in 0..SUPERBLOCK_BYTES * 8 {
            let mut damaged = block;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(kind_of(&damaged), Kind::Damaged, "bit {bit}");
        }
    }

    #[test]
    fn line_ends_changed_in_transfer_are_damage_or_foreign_and_never_ours() {
        let text = superblock().to_vec();
        let unix: Vec<u8> = text.iter().copied().filter(|byte| *byte != b'\r').collect();
        assert!(!matches!(kind_of(&unix), Kind::Ours(_)));
    }

    #[test]
    fn a_newer_version_is_told_by_its_number() {
        let mut block = superblock();
        block[16..20].copy_from_slice(&7_u32.to_le_bytes());
        let sum = checksum(&block[..20]);
        block[20..SUPERBLOCK_BYTES].copy_from_slice(&sum);
        assert_eq!(kind_of(&block), Kind::Newer(7));
    }

    #[test]
    fn roots_come_back_whole_and_no_flipped_bit_goes_unseen() {
        let root = Root {
            generation: 7,
            index_offset: 3 * ALIGNMENT,
            index_bytes: 99,
            published_bytes: 3 * ALIGNMENT + 99,
            index_checksum: [5; 16],
        };
        let block = root.encode();
        assert_eq!(Root::decode(&block), Some(root));
        assert_eq!(Root::decode(&[0; BLOCK_BYTES]), None);
        assert_eq!(Root::decode(&block[..20]), None);
        for bit in 0..ROOT_BYTES * 8 {
            let mut damaged = block;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Root::decode(&damaged), None, "bit {bit}");
        }
        let beyond = Root { published_bytes: 3 * ALIGNMENT, ..root };
        assert_eq!(Root::decode(&beyond.encode()), None, "an index cannot end beyond what is published");
    }
}
