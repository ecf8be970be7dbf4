//! Bounded little-endian reading of a GGUF header.
//!
//! Owns the rule that nothing is allocated before the file is known to be long enough to hold
//! it. What the values mean, and tensors, belong to the parent module.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::value::Scalar;
use super::{GgufError, GgufNumbers, GgufValue};

/// Arrays of arrays of arrays have no use; the limit keeps recursion off the stack's end.
const MAX_ARRAY_DEPTH: u32 = 4;

const TYPE_STRING: u32 = 8;
const TYPE_ARRAY: u32 = 9;

/// A position in a file of known length.
pub(super) struct Reader {
    path: PathBuf,
    source: BufReader<File>,
    offset_bytes: u64,
    len_bytes: u64,
    max_header_bytes: u64,
}

impl Reader {
    /// Opens a regular file; the header may take at most `max_header_bytes` of it.
    pub(super) fn open(path: &Path, max_header_bytes: u64) -> Result<Reader, GgufError> {
        let io = |e: std::io::Error| GgufError::Io { path: path.to_owned(), message: e.to_string() };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(GgufError::Io { path: path.to_owned(), message: "not a regular file".to_owned() });
        }
        let source = BufReader::with_capacity(1 << 16, file);
        let len_bytes = metadata.len();
        Ok(Reader { path: path.to_owned(), source, offset_bytes: 0, len_bytes, max_header_bytes })
    }

    /// Returns how far the header has been read.
    pub(super) fn offset_bytes(&self) -> u64 {
        self.offset_bytes
    }

    /// Returns the file's length.
    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Makes the error for something wrong at the current position.
    pub(super) fn damaged(&self, problem: String) -> GgufError {
        GgufError::Damaged { path: self.path.clone(), offset: self.offset_bytes, problem }
    }

    /// Makes the error for something that no other copy of the file would mend.
    pub(super) fn unusable(&self, problem: String) -> GgufError {
        GgufError::Unusable { path: self.path.clone(), problem }
    }

    /// Fails unless `count` things of at least `min_bytes` each can still follow.
    pub(super) fn check_count(&self, count: u64, min_bytes: u64, what: &str) -> Result<(), GgufError> {
        let left = self.len_bytes.min(self.max_header_bytes).saturating_sub(self.offset_bytes);
        if count.checked_mul(min_bytes).is_some_and(|bytes| bytes <= left) {
            return Ok(());
        }
        if left == self.len_bytes.saturating_sub(self.offset_bytes) {
            Err(self.damaged(format!("{count} {what} cannot fit into the {left} bytes that are left")))
        } else {
            let max = self.max_header_bytes;
            Err(self.damaged(format!("with {count} {what} the header is larger than {max} bytes")))
        }
    }

    /// Reads that many bytes, after checking that the file has them.
    fn bytes(&mut self, num_bytes: u64, what: &str) -> Result<Vec<u8>, GgufError> {
        self.check_count(num_bytes, 1, &format!("bytes of {what}"))?;
        let len = usize::try_from(num_bytes).map_err(|_| self.damaged(format!("{what} is too long")))?;
        let mut bytes = vec![0; len];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    /// Reads a fixed number of bytes.
    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8], what: &str) -> Result<(), GgufError> {
        let num_bytes = bytes.len() as u64;
        if num_bytes > self.len_bytes.saturating_sub(self.offset_bytes) {
            return Err(self.damaged(format!("the file ends inside {what}")));
        }
        self.source
            .read_exact(bytes)
            .map_err(|e| GgufError::Io { path: self.path.clone(), message: e.to_string() })?;
        // No overflow: the sum was just shown to be at most the file's length.
        self.offset_bytes += num_bytes;
        Ok(())
    }

    /// Reads an unsigned 32-bit number.
    pub(super) fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// Reads an unsigned 64-bit number.
    pub(super) fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Reads a length and that many bytes of UTF-8.
    pub(super) fn string(&mut self, what: &str) -> Result<Box<str>, GgufError> {
        let num_bytes = self.u64(what)?;
        let bytes = self.bytes(num_bytes, what)?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(text.into_boxed_str()),
            Err(_) => Err(self.damaged(format!("{what} is not UTF-8"))),
        }
    }

    /// Reads a value's type and the value.
    pub(super) fn value(&mut self, key: &str) -> Result<GgufValue, GgufError> {
        let what = format!("the value of {key:?}");
        let code = self.u32(&what)?;
        self.value_of_type(code, &what, 0)
    }

    fn value_of_type(&mut self, code: u32, what: &str, depth: u32) -> Result<GgufValue, GgufError> {
        if code == TYPE_STRING {
            return self.string(what).map(GgufValue::String);
        }
        if code == TYPE_ARRAY {
            return self.array_value(what, depth + 1);
        }
        let Some(kind) = Scalar::from_code(code) else {
            return Err(self.damaged(format!("{what} has the unknown type {code}")));
        };
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..kind.num_bytes()];
        self.fill(bytes, what)?;
        Ok(kind.decode(bytes).expect("the slice has the kind's width"))
    }

    fn array_value(&mut self, what: &str, depth: u32) -> Result<GgufValue, GgufError> {
        if depth > MAX_ARRAY_DEPTH {
            return Err(self.damaged(format!("{what} is nested more than {MAX_ARRAY_DEPTH} arrays deep")));
        }
        let code = self.u32(what)?;
        let count = self.u64(what)?;
        if let Some(kind) = Scalar::from_code(code) {
            let width = kind.num_bytes() as u64;
            self.check_count(count, width, &format!("elements of {what}"))?;
            // No overflow: check_count has multiplied the same numbers.
            let bytes = self.bytes(count * width, what)?;
            return Ok(GgufValue::Numbers(GgufNumbers { kind, bytes }));
        }
        match code {
            TYPE_STRING => {
                self.check_count(count, 8, &format!("strings of {what}"))?;
                let mut texts = Vec::new();
                for _ in 0..count {
                    texts.push(self.string(what)?);
                }
                Ok(GgufValue::Strings(texts))
            }
            TYPE_ARRAY => {
                self.check_count(count, 12, &format!("arrays of {what}"))?;
                let mut arrays = Vec::new();
                for _ in 0..count {
                    arrays.push(self.array_value(what, depth + 1)?);
                }
                Ok(GgufValue::Nested(arrays))
            }
            _ => Err(self.damaged(format!("{what} is an array of the unknown type {code}"))),
        }
    }
}
