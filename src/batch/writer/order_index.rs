//! Where each result lies in a data file, kept on disk.
//!
//! Owns a table of fixed-size entries in an unnamed temporary file, so that memory does not grow
//! with the number of results. What the data file is, its owner knows.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;

const ENTRY_BYTES: u64 = 16;

/// The place of one result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub offset: u64,
    /// Never 0: an entry of zeros is one that was not written.
    pub num_bytes: u64,
}

/// A table from index to extent.
pub(super) struct OrderIndex {
    table: File,
}

impl OrderIndex {
    /// Makes an empty table in a folder; it vanishes with the process.
    pub fn create_in(folder: &Path) -> io::Result<Self> {
        Ok(Self { table: tempfile::tempfile_in(folder)? })
    }

    pub fn set(&mut self, index: u64, extent: Extent) -> io::Result<()> {
        let mut entry = [0; ENTRY_BYTES as usize];
        entry[..8].copy_from_slice(&extent.offset.to_le_bytes());
        entry[8..].copy_from_slice(&extent.num_bytes.to_le_bytes());
        self.table.write_all_at(&entry, position(index)?)
    }

    pub fn get(&self, index: u64) -> io::Result<Option<Extent>> {
        let mut entry = [0; ENTRY_BYTES as usize];
        match self.table.read_exact_at(&mut entry, position(index)?) {
            Ok(()) => Ok(decode(&entry)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Calls `visit` with all extents in the order of their indices.
    pub fn for_each(&mut self, mut visit: impl FnMut(Extent) -> io::Result<()>) -> io::Result<()> {
        self.table.rewind()?;
        let mut entries = BufReader::with_capacity(1 << 16, &self.table);
        let mut entry = [0; ENTRY_BYTES as usize];
        loop {
            match entries.read_exact(&mut entry) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
            if let Some(extent) = decode(&entry) {
                visit(extent)?;
            }
        }
    }
}

fn position(index: u64) -> io::Result<u64> {
    index.checked_mul(ENTRY_BYTES).ok_or_else(|| io::Error::other("more results than a file can index"))
}

fn decode(entry: &[u8; ENTRY_BYTES as usize]) -> Option<Extent> {
    let entry = u128::from_le_bytes(*entry);
    let extent = Extent { offset: entry as u64, num_bytes: (entry >> 64) as u64 };
    (extent.num_bytes > 0).then_some(extent)
}
