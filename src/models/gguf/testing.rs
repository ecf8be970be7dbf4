//! Writes small GGUF files for tests, byte by byte and independently of the reader.
//!
//! Owns nothing but the test files' layout; compiled for tests only.

use std::io::Write;

use tempfile::NamedTempFile;

use super::GgufHeader;

/// A GGUF file being put together.
#[derive(Default)]
pub(crate) struct GgufFile {
    keys: Vec<u8>,
    num_keys: u64,
    infos: Vec<u8>,
    num_tensors: u64,
    data: Vec<u8>,
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl GgufFile {
    /// Adds a key of a type given by its code and the value's bytes.
    pub(crate) fn raw(mut self, key: &str, code: u32, value: &[u8]) -> Self {
        text(&mut self.keys, key);
        self.keys.extend(code.to_le_bytes());
        self.keys.extend(value);
        self.num_keys += 1;
        self
    }

    pub(crate) fn str(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        self.raw(key, 8, &bytes)
    }

    pub(crate) fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[value.into()])
    }

    pub(crate) fn strings<S: AsRef<str>>(self, key: &str, values: &[S]) -> Self {
        let mut bytes = Vec::new();
        bytes.extend(8u32.to_le_bytes());
        bytes.extend((values.len() as u64).to_le_bytes());
        for value in values {
            text(&mut bytes, value.as_ref());
        }
        self.raw(key, 9, &bytes)
    }

    pub(crate) fn i32s(self, key: &str, values: &[i32]) -> Self {
        self.numbers(key, 5, values.iter().map(|v| v.to_le_bytes()))
    }

    pub(crate) fn f32s(self, key: &str, values: &[f32]) -> Self {
        self.numbers(key, 6, values.iter().map(|v| v.to_le_bytes()))
    }

    fn numbers(self, key: &str, code: u32, values: impl ExactSizeIterator<Item = [u8; 4]>) -> Self {
        let mut bytes = Vec::new();
        bytes.extend(code.to_le_bytes());
        bytes.extend((values.len() as u64).to_le_bytes());
        values.for_each(|value| bytes.extend(value));
        self.raw(key, 9, &bytes)
    }

    /// Adds a tensor; `dims` are as the file has them, fastest first.
    pub(crate) fn tensor(mut self, name: &str, code: u32, dims: &[u64], data: &[u8]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        text(&mut self.infos, name);
        self.infos.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| self.infos.extend(dim.to_le_bytes()));
        self.infos.extend(code.to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(data);
        self.num_tensors += 1;
        self
    }

    /// Returns the whole file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(self.num_tensors.to_le_bytes());
        out.extend(self.num_keys.to_le_bytes());
        out.extend(&self.keys);
        out.extend(&self.infos);
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }

    /// Writes the file out and reads its header back.
    pub(crate) fn header(&self) -> GgufHeader {
        let file = write(&self.bytes());
        GgufHeader::read(file.path()).expect("the test file is well-formed")
    }
}

/// Writes bytes to a temporary file.
pub(crate) fn write(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a temporary file can be made");
    file.write_all(bytes).expect("a temporary file can be written");
    file
}
