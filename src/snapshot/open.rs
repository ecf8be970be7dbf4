//! An open snapshot: what it has of a prompt, and its bytes on demand.
//!
//! Owns opening and looking up. Reads the index only; an extent is read when it is asked for, which is
//! `extent`'s, and one that is damaged costs its subtree. Saving is `saving`'s.

use std::{
    collections::BTreeSet,
    io,
    ops::Range,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    Extent, FileStamp, Identity, Piece, SnapshotError,
    catalogue::Catalogue,
    disk::{Disk, Patience, failed},
    extent::{PieceReader, ReadError, RunBuffer, read_piece},
    format::{self, BLOCK_BYTES, FORMAT_VERSION, Kind, Root},
    index::{self, Index, MAX_INDEX_BYTES, Source},
};
use crate::{
    cache::{NodeId, TokenId},
    new_file::folder_of,
};

/// What a run may do with its cache file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMode {
    /// Restores and saves.
    ReadWrite,
    /// Restores, and leaves the file as it is.
    ReadOnly,
    /// Starts cold and replaces what the file holds, whatever model it is of.
    Refresh,
    /// Restores and saves, also where others own the file or may write to it.
    Unsafe,
}

/// How a snapshot is used.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotOptions {
    pub mode: CacheMode,
    /// `--persist-max-bytes`: KV that the file may hold.
    pub max_bytes: Option<u64>,
}

impl SnapshotOptions {
    /// Checksums tell damage, not whose the bytes are: that is for the file's owner and mode.
    pub(super) fn check_trust(self, disk: &Disk) -> Result<(), SnapshotError> {
        if matches!(self.mode, CacheMode::Unsafe | CacheMode::Refresh) {
            return Ok(());
        }
        let path = disk.path();
        match disk.why_not_trusted().map_err(|source| failed("look at", path, source))? {
            Some(why) => Err(SnapshotError::NotTrusted { path: path.to_path_buf(), why }),
            None => Ok(()),
        }
    }
}

/// What was found at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// There was no file, or an empty one.
    New,
    Restored {
        num_nodes: usize,
        num_tokens: usize,
        num_bytes: u64,
    },
    /// The file is of another model: a cold start, and nothing is saved.
    OtherModel {
        difference: String,
    },
    /// Nothing of the file could be used: a cold start, and the file is replaced.
    Damaged {
        reason: String,
    },
    /// The file was not looked at, as was asked for.
    Refreshed,
}

impl Opening {
    /// Why a run starts cold; `None` where something was restored.
    pub fn why_cold(&self) -> Option<String> {
        match self {
            Self::Restored { num_tokens: 1.., .. } => None,
            Self::Restored { .. } => Some("it holds nothing".to_owned()),
            Self::New => Some("there is no such file".to_owned()),
            Self::OtherModel { difference } => Some(format!("it is of another model: {difference}")),
            Self::Damaged { reason } => Some(format!("it is damaged: {reason}")),
            Self::Refreshed => Some("--cache-mode refresh starts cold".to_owned()),
        }
    }
}

/// A stored piece of a prompt.
#[derive(Debug, Clone)]
pub struct Found {
    pub node: NodeId,
    /// The prompt's tokens that it is the KV of.
    pub start: usize,
    pub end: usize,
    pub tier: crate::cache::Tier,
    pub piece: Piece,
    /// The recurrent state at the end.
    pub checkpoint: Option<Piece>,
}

impl Found {
    /// The prompt's tokens of which it has the KV.
    pub fn tokens(&self) -> Range<usize> {
        self.start..self.end
    }
}

/// A cache file in use.
#[derive(Debug)]
pub struct Snapshot {
    pub(super) path: PathBuf,
    pub(super) options: SnapshotOptions,
    pub(super) identity: Identity,
    pub(super) opening: Opening,
    /// Bytes of one token in each plane of an extent, in their order; none where they are not known.
    pub(super) plane_widths: Vec<u32>,
    /// The format version of the file that was opened.
    pub(super) version: u32,
    /// The longest index that a save may write.
    pub(super) max_index_bytes: usize,
    /// What the catalogue's extents are in; none before the first save of a new file.
    pub(super) disk: Option<Disk>,
    /// The root that the catalogue comes from.
    pub(super) generation: u64,
    pub(super) catalogue: Catalogue,
    /// Whether the catalogue differs from the index on disk, additions aside.
    pub(super) is_dirty: bool,
    /// Nodes that the run has used since the last save.
    pub(super) used: BTreeSet<NodeId>,
    /// Extents that turned out to be damaged since the last save: another process may not know.
    pub(super) damaged: Vec<Extent>,
    /// With others who write to the file.
    pub(super) patience: Patience,
    num_damaged: usize,
    older_because: Option<String>,
}

impl Snapshot {
    /// Opens a cache file; `identify` says what model the run is of, given what weight files the cache
    /// knows.
    ///
    /// What is no cache file, or one of a newer format, is an error. Everything else is a start, warm
    /// or cold: see [`Snapshot::opening`].
    pub fn open<E: From<SnapshotError>>(
        path: &Path,
        options: SnapshotOptions,
        identify: impl FnOnce(&[FileStamp]) -> Result<Identity, E>,
    ) -> Result<Self, E> {
        let path = &followed(path);
        let (disk, content) = read_file(path, options)?;
        let stamps = match &content {
            // Whoever wrote a file that is not believed may have written what weights digest to, too.
            Content::Sound(sound) if options.mode != CacheMode::Refresh => {
                sound.index.identity.stamps.as_slice()
            }
            _ => &[],
        };
        let identity = identify(stamps)?;
        let mut snapshot = Self::empty(path, options, identity);
        match content {
            _ if options.mode == CacheMode::Refresh => snapshot.opening = Opening::Refreshed,
            Content::None | Content::Empty => {}
            Content::Damaged(reason) => snapshot.opening = Opening::Damaged { reason },
            Content::Sound(sound) => match snapshot.identity.difference(&sound.index.identity) {
                Some(difference) => snapshot.opening = Opening::OtherModel { difference },
                None => snapshot.take(disk, *sound),
            },
        }
        Ok(snapshot)
    }

    /// Finds out early whether a file can be used at all, without a model.
    pub fn check(path: &Path, options: SnapshotOptions) -> Result<(), SnapshotError> {
        read_file(path, options).map(drop)
    }

    /// Opens a cache file whatever model it is of; there must be one. A save keeps it under the limit.
    pub(super) fn open_as_it_is(path: &Path, options: SnapshotOptions) -> Result<Self, SnapshotError> {
        let path_buf = || path.to_path_buf();
        let path = &followed(path);
        let read = match read_file(path, options) {
            // Without a file, its folder is of no interest.
            Err(SnapshotError::NoFolder { .. }) => (None, Content::None),
            read => read?,
        };
        match read {
            (_, Content::None) => Err(SnapshotError::NotThere { path: path_buf() }),
            (_, Content::Empty) => Err(SnapshotError::Foreign { path: path_buf() }),
            (_, Content::Damaged(reason)) => Err(SnapshotError::Damaged { path: path_buf(), reason }),
            (disk, Content::Sound(sound)) => {
                let identity = sound.index.identity.clone();
                let mut snapshot = Self::empty(path, options, identity);
                snapshot.take(disk, *sound);
                Ok(snapshot)
            }
        }
    }

    fn empty(path: &Path, options: SnapshotOptions, identity: Identity) -> Self {
        Self {
            path: path.to_path_buf(),
            options,
            opening: Opening::New,
            plane_widths: Vec::new(),
            version: FORMAT_VERSION,
            max_index_bytes: MAX_INDEX_BYTES,
            disk: None,
            generation: 0,
            catalogue: Catalogue::new(options.max_bytes, identity.needs_checkpoints),
            identity,
            is_dirty: false,
            used: BTreeSet::new(),
            damaged: Vec::new(),
            patience: Patience::default(),
            num_damaged: 0,
            older_because: None,
        }
    }

    fn take(&mut self, disk: Option<Disk>, Sound { root, version, index, older_because, .. }: Sound) {
        self.older_because = older_because;
        self.version = version;
        self.plane_widths = index.plane_widths;
        self.is_dirty = index.identity.stamps != self.identity.stamps || index.num_damaged > 0;
        self.num_damaged = index.num_damaged;
        self.catalogue = index.catalogue;
        let tree = self.catalogue.cache().tree();
        self.opening = Opening::Restored {
            num_nodes: tree.num_nodes(),
            num_tokens: self.num_tokens(),
            num_bytes: tree.num_bytes(),
        };
        self.disk = disk;
        self.generation = root.generation;
    }

    /// Tells how the model's KV lies: the bytes of one token in each plane, in their order. A file whose KV
    /// lies otherwise is as good as another model's.
    pub fn expect_planes(&mut self, widths: Vec<u32>) {
        if !self.plane_widths.is_empty() && self.plane_widths != widths {
            self.opening = Opening::OtherModel { difference: OTHER_PLANES.to_owned() };
            self.catalogue = Catalogue::new(self.options.max_bytes, self.identity.needs_checkpoints);
            self.disk = None;
        }
        self.plane_widths = widths;
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was found at the start.
    pub fn opening(&self) -> &Opening {
        &self.opening
    }

    /// Whether what is computed may be saved here at all.
    pub fn can_save(&self) -> bool {
        self.options.mode != CacheMode::ReadOnly && !matches!(self.opening, Opening::OtherModel { .. })
    }

    /// Prefixes that were left out because their bytes or their place in the index were damaged.
    pub fn num_damaged(&self) -> usize {
        self.num_damaged
    }

    /// Why an older content of the file was taken, if the latest could not be read.
    pub fn older_because(&self) -> Option<&str> {
        self.older_because.as_deref()
    }

    /// Tokens that the file holds the KV of.
    pub fn num_tokens(&self) -> usize {
        self.catalogue.num_tokens()
    }

    /// How many of these tokens a sequence could resume with.
    pub fn num_resumable(&self, tokens: &[TokenId]) -> usize {
        self.catalogue.find(tokens).1.num_tokens
    }

    /// The stored pieces of these tokens up to where a sequence could resume, in order.
    pub fn find(&self, tokens: &[TokenId]) -> Vec<Found> {
        let (found, resume) = self.catalogue.find(tokens);
        let tree = self.catalogue.cache().tree();
        let mut pieces = Vec::with_capacity(resume.num_nodes + 1);
        let mut start = 0;
        for step in found.path.iter().take(resume.num_nodes) {
            let Some((node, piece)) = tree.node(step.node).and_then(|node| Some((node, node.segment()?)))
            else {
                return pieces;
            };
            let (tier, piece, checkpoint) = (node.tier(), piece.clone(), node.checkpoint().cloned());
            pieces.push(Found { node: step.node, start, end: step.end, tier, piece, checkpoint });
            start = step.end;
        }
        if let Some(partial) = resume.partial
            && let Some((node, piece)) =
                tree.node(partial.node).and_then(|node| Some((node, node.segment()?)))
        {
            pieces.push(Found {
                node: partial.node,
                start,
                end: start + partial.num_tokens,
                tier: node.tier(),
                piece: piece.part(0..partial.num_tokens),
                checkpoint: None,
            });
        }
        pieces
    }

    /// Begins to read the extents of a piece, all of each. What the buffer has of the piece before is not
    /// read again.
    pub fn reader<'a>(
        &'a self,
        piece: &Piece,
        buffer: &'a mut RunBuffer,
    ) -> Result<PieceReader<'a>, ReadError> {
        Ok(PieceReader::new(self.open_disk()?, piece, buffer))
    }

    /// Reads the extents of a piece, all of each, and verifies them.
    pub fn read(&self, piece: &Piece, bytes: &mut Vec<u8>) -> Result<(), ReadError> {
        read_piece(self.open_disk()?, piece, bytes)
    }

    fn open_disk(&self) -> io::Result<&Disk> {
        self.disk.as_ref().ok_or_else(|| io::Error::other("the cache file is not open"))
    }

    /// Has `on_wait` be told how long the lock of another process has been waited for, and say whether to go on.
    pub fn on_wait(&mut self, on_wait: impl FnMut(Duration) -> bool + Send + Sync + 'static) {
        self.patience.on_wait = Box::new(on_wait);
    }

    /// Whether others than its owner can read the file, and so what the prompts were.
    pub fn is_readable_by_others(&self) -> bool {
        self.disk.as_ref().is_some_and(Disk::is_readable_by_others)
    }

    /// Notes that a run uses a node.
    pub fn mark_used(&mut self, node: NodeId) -> Result<(), SnapshotError> {
        self.is_dirty = true;
        self.used.insert(node);
        self.catalogue.mark_used(node, seconds_since_1970())
    }

    /// Leaves out from now on what an extent whose bytes cannot be used was for: prefixes from there on, with
    /// all below them, or a recurrent state.
    pub fn drop_damaged(&mut self, extent: Extent) -> Result<(), SnapshotError> {
        self.num_damaged += 1;
        self.is_dirty = true;
        self.damaged.push(extent);
        self.catalogue.drop_extents(|other| *other == extent)
    }
}

/// What sets apart a model whose KV has other planes.
pub(super) const OTHER_PLANES: &str = "the layout of its KV differs";

/// What a file turned out to hold.
#[derive(Debug)]
pub(super) enum Content {
    /// No file.
    None,
    /// A file of no bytes, as `touch` makes.
    Empty,
    Damaged(String),
    Sound(Box<Sound>),
}

/// A file's current content.
#[derive(Debug)]
pub(super) struct Sound {
    pub root: Root,
    /// The file's format version.
    pub version: u32,
    pub index: Index,
    /// Why the latest content could not be read and this is an older one.
    pub older_because: Option<String>,
    /// The generation that a save writes: its root takes the place of the one that is not in use.
    pub next_generation: u64,
}

/// Where a link leads to, so that what replaces the file does not replace the link.
fn followed(path: &Path) -> PathBuf {
    let is_link = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    let target = is_link.then(|| std::fs::canonicalize(path).ok()).flatten();
    target.unwrap_or_else(|| path.to_path_buf())
}

/// Opens a file and reads its index.
pub(super) fn read_file(
    path: &Path,
    options: SnapshotOptions,
) -> Result<(Option<Disk>, Content), SnapshotError> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if std::fs::symlink_metadata(path).is_ok() {
                let what = "a link to a file that does not exist";
                return Err(SnapshotError::NotAFile { path: path.to_path_buf(), what });
            }
            let folder = folder_of(path);
            return if folder.is_dir() || options.mode == CacheMode::ReadOnly {
                Ok((None, Content::None))
            } else {
                Err(SnapshotError::NoFolder { folder: folder.to_path_buf() })
            };
        }
        Err(source) => return Err(failed("open the cache file", path, source)),
        Ok(metadata) if metadata.is_dir() => {
            return Err(SnapshotError::NotAFile { path: path.to_path_buf(), what: "a folder" });
        }
        Ok(metadata) if !metadata.is_file() => {
            return Err(SnapshotError::NotAFile { path: path.to_path_buf(), what: "a device or a pipe" });
        }
        Ok(_) => {}
    }
    let disk = Disk::open(path).map_err(|source| failed("open the cache file", path, source))?;
    options.check_trust(&disk)?;
    let content = read_content(&disk, options.max_bytes)?;
    Ok((Some(disk), content))
}

/// Reads the index of an open file: that of the latest root that is whole.
pub(super) fn read_content(disk: &Disk, max_bytes: Option<u64>) -> Result<Content, SnapshotError> {
    let path = disk.path().to_path_buf();
    let io_error = |source| failed("read the cache file", &path, source);
    let start = disk.read_start(3 * BLOCK_BYTES).map_err(io_error)?;
    if start.is_empty() {
        return Ok(Content::Empty);
    }
    // After the roots: what others publish meanwhile makes the file longer than it was before.
    let num_bytes = disk.num_bytes().map_err(io_error)?;
    let kind = format::kind_of(&start);
    if let Some(error) = format::refuse(&path, kind) {
        return Err(error);
    }
    let Kind::Ours(version) = kind else {
        return Ok(Content::Damaged("its first bytes have changed".to_owned()));
    };
    let block = |place: usize| Root::decode(start.get(place * BLOCK_BYTES..)?);
    let mut roots: Vec<Root> = [block(1), block(2)].into_iter().flatten().collect();
    roots.sort_by_key(|root| std::cmp::Reverse(root.generation));
    let latest = roots.first().map_or(0, |root| root.generation);
    let mut reason = "neither of its roots is whole".to_owned();
    for root in roots {
        let source = Source { version, published_bytes: root.published_bytes, max_bytes };
        match read_index(disk, &root, num_bytes, source) {
            Ok(index) => {
                let mut next_generation = latest + 1;
                if next_generation % 2 == root.generation % 2 {
                    next_generation += 1;
                }
                let older_because = (root.generation < latest).then_some(reason);
                return Ok(Content::Sound(Box::new(Sound {
                    root,
                    version,
                    index,
                    older_because,
                    next_generation,
                })));
            }
            Err(IndexError::Damaged(why)) => reason = format!("its index cannot be read: {why}"),
            // Not a reason to take an older one for the latest.
            Err(IndexError::Io(source)) => return Err(io_error(source)),
        }
    }
    Ok(Content::Damaged(reason))
}

/// Why an index was not read.
enum IndexError {
    Damaged(String),
    Io(io::Error),
}

fn read_index(disk: &Disk, root: &Root, num_bytes: u64, source: Source) -> Result<Index, IndexError> {
    let damaged = |why: &str| IndexError::Damaged(why.to_owned());
    if root.published_bytes > num_bytes {
        return Err(damaged("the file was cut short"));
    }
    let num_index_bytes = usize::try_from(root.index_bytes).ok().filter(|num| *num <= MAX_INDEX_BYTES);
    let num_index_bytes = num_index_bytes.ok_or_else(|| damaged("it is too long"))?;
    let mut bytes = vec![0; num_index_bytes];
    disk.read_at(&mut bytes, root.index_offset).map_err(IndexError::Io)?;
    if format::checksum(&bytes) != root.index_checksum {
        return Err(damaged("its bytes have changed"));
    }
    index::decode(&bytes, source).map_err(IndexError::Damaged)
}

pub(super) fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
