//! Reading an extent: its bytes in order, and whether they are those that were saved.
//!
//! Owns verification. Bytes are handed on before all of them are verified, so that an extent is never
//! held twice in memory: what was made of them counts only once [`ExtentReader::finish`] has said so.

use std::io::{self, Read};

use xxhash_rust::xxh3::Xxh3;

use super::{Extent, disk::Disk};

/// Why an extent was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("its bytes have changed")]
    Damaged,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The bytes of an extent, from first to last.
pub struct ExtentReader<'a> {
    disk: &'a Disk,
    extent: Extent,
    num_read: u64,
    hasher: Xxh3,
    /// Why the last read failed.
    failure: Option<ReadError>,
}

impl<'a> ExtentReader<'a> {
    pub(super) fn new(disk: &'a Disk, extent: Extent) -> Self {
        Self { disk, extent, num_read: 0, hasher: Xxh3::new(), failure: None }
    }

    /// Says whether all bytes were read and are those that were saved.
    pub fn finish(self) -> Result<(), ReadError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let is_sound = self.num_read == self.extent.num_bytes
            && self.hasher.digest128().to_le_bytes() == self.extent.checksum;
        if is_sound { Ok(()) } else { Err(ReadError::Damaged) }
    }
}

impl Read for ExtentReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let num_left = usize::try_from(self.extent.num_bytes - self.num_read).unwrap_or(usize::MAX);
        let num_bytes = num_left.min(buffer.len());
        if num_bytes == 0 {
            return Ok(0);
        }
        let buffer = &mut buffer[..num_bytes];
        if let Err(error) = self.disk.read_at(buffer, self.extent.offset + self.num_read) {
            let told = io::Error::from(error.kind());
            // A file that was cut is as good as one whose bytes have changed.
            self.failure = Some(match error.kind() {
                io::ErrorKind::UnexpectedEof => ReadError::Damaged,
                _ => ReadError::Io(error),
            });
            return Err(told);
        }
        self.hasher.update(buffer);
        self.num_read += num_bytes as u64;
        Ok(num_bytes)
    }
}

/// Reads and verifies a whole extent.
pub(super) fn read_extent(disk: &Disk, extent: Extent, bytes: &mut Vec<u8>) -> Result<(), ReadError> {
    bytes.resize(usize::try_from(extent.num_bytes).map_err(io::Error::other)?, 0);
    let mut reader = ExtentReader::new(disk, extent);
    // Why it failed, if it did, the reader knows.
    let _ = reader.read_exact(bytes);
    reader.finish()
}
