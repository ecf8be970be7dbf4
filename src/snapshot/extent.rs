//! Reading the extents of a piece: their bytes in order, and whether they are those that were saved.
//!
//! Owns verification. Bytes are handed on before all of them are verified, so that a piece is never held
//! twice in memory: what was made of them counts only once [`PieceReader::finish`] has said so.

use std::io::{self, Read};

use xxhash_rust::xxh3::Xxh3;

use super::{Extent, Piece, disk::Disk, format::MAX_RUN_TOKENS};

/// Why a piece was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("its bytes have changed")]
    Damaged(Extent),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The bytes of an extent that ends within the next piece, so that pieces that follow each other are read
/// without reading any extent twice.
#[derive(Debug, Default)]
pub struct RunBuffer {
    extent: Option<Extent>,
    bytes: Vec<u8>,
}

/// The bytes of a piece's extents, from first to last.
pub struct PieceReader<'a> {
    disk: &'a Disk,
    piece: Piece,
    buffer: &'a mut RunBuffer,
    /// The extent that is read next, and how much of it was.
    index: usize,
    num_read: u64,
    hasher: Xxh3,
    /// Bytes that came from the disk.
    num_disk_bytes: u64,
    /// Why the last read failed.
    failure: Option<ReadError>,
}

impl<'a> PieceReader<'a> {
    pub(super) fn new(disk: &'a Disk, piece: &Piece, buffer: &'a mut RunBuffer) -> Self {
        Self {
            disk,
            piece: piece.clone(),
            buffer,
            index: 0,
            num_read: 0,
            hasher: Xxh3::new(),
            num_disk_bytes: 0,
            failure: None,
        }
    }

    /// Says whether all bytes were read and are those that were saved, and how many came from the disk.
    pub fn finish(mut self) -> Result<u64, ReadError> {
        self.pass_whole_extents();
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => match self.piece.extents().get(self.index) {
                Some(unread) => Err(ReadError::Damaged(*unread)),
                None => Ok(self.num_disk_bytes),
            },
        }
    }

    /// Whether the piece after this one begins in its last extent.
    fn is_continued(&self) -> bool {
        let last = self.piece.extents().last();
        last.is_some_and(|last| last.num_tokens as usize <= MAX_RUN_TOKENS)
            && self.piece.tokens().end < self.piece.num_extent_tokens()
    }

    /// Verifies what is read to its end, and goes on to the next extent.
    fn pass_whole_extents(&mut self) {
        while self.failure.is_none()
            && let Some(&extent) =
                self.piece.extents().get(self.index).filter(|e| e.num_bytes == self.num_read)
        {
            if self.buffer.extent != Some(extent) {
                let sum = std::mem::take(&mut self.hasher).digest128().to_le_bytes();
                if sum != extent.checksum {
                    self.failure = Some(ReadError::Damaged(extent));
                    return;
                }
                if self.keeps(self.index) {
                    self.buffer.extent = Some(extent);
                }
            }
            (self.index, self.num_read) = (self.index + 1, 0);
        }
    }

    fn keeps(&self, index: usize) -> bool {
        index + 1 == self.piece.extents().len() && self.is_continued()
    }

    fn read_from_disk(&mut self, extent: Extent, buffer: &mut [u8]) -> io::Result<()> {
        if let Err(error) = self.disk.read_at(buffer, extent.offset + self.num_read) {
            let told = io::Error::from(error.kind());
            // A file that was cut is as good as one whose bytes have changed.
            self.failure = Some(match error.kind() {
                io::ErrorKind::UnexpectedEof => ReadError::Damaged(extent),
                _ => ReadError::Io(error),
            });
            return Err(told);
        }
        self.hasher.update(buffer);
        self.num_disk_bytes += buffer.len() as u64;
        if self.keeps(self.index) {
            if self.num_read == 0 {
                *self.buffer = RunBuffer::default();
            }
            self.buffer.bytes.extend_from_slice(buffer);
        }
        Ok(())
    }
}

impl Read for PieceReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.pass_whole_extents();
        if self.failure.is_some() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let Some(&extent) = self.piece.extents().get(self.index) else { return Ok(0) };
        let num_left = usize::try_from(extent.num_bytes - self.num_read).unwrap_or(usize::MAX);
        let num_bytes = num_left.min(buffer.len());
        if num_bytes == 0 {
            return Ok(0);
        }
        let buffer = &mut buffer[..num_bytes];
        let start = self.num_read as usize;
        match self.buffer.bytes.get(start..start + num_bytes).filter(|_| self.buffer.extent == Some(extent)) {
            Some(known) => buffer.copy_from_slice(known),
            None => self.read_from_disk(extent, buffer)?,
        }
        self.num_read += num_bytes as u64;
        Ok(num_bytes)
    }
}

/// Reads and verifies the extents of a piece.
pub(super) fn read_piece(disk: &Disk, piece: &Piece, bytes: &mut Vec<u8>) -> Result<(), ReadError> {
    bytes.resize(usize::try_from(piece.num_extent_bytes()).map_err(io::Error::other)?, 0);
    let mut buffer = RunBuffer::default();
    let mut reader = PieceReader::new(disk, piece, &mut buffer);
    // Why it failed, if it did, the reader knows.
    let _ = reader.read_exact(bytes);
    reader.finish().map(drop)
}

/// Reads and verifies an extent.
pub(super) fn read_extent(disk: &Disk, extent: Extent, bytes: &mut Vec<u8>) -> Result<(), ReadError> {
    read_piece(disk, &Piece::of(&[extent], extent.num_tokens, 0), bytes)
}
