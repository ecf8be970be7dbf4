//! The header of a GGUF model: its metadata, where its tensors lie, and whether that can be true.
//!
//! Owns reading and checking versions 2 and 3, in memory bounded by the file's own size, so that
//! a truncated or hostile file ends in a clear error; `split` joins the parts of a model in several
//! files. Bringing the tensors to the device is `mlx/`'s, what the keys mean their readers' business.

mod affine;
mod decode;
mod reader;
mod split;
mod types;
mod value;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use affine::{Affine, PART_SIZE, affine};
pub use decode::{Decode, decoder};
use reader::Reader;
pub use types::GgmlType;
pub use value::{GgufNumbers, GgufValue};

/// More than the largest header in use by a factor of ten; bounds memory on huge hostile files.
const MAX_HEADER_BYTES: u64 = 512 << 20;
/// ggml's own limit.
const MAX_DIMS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

/// Why a file cannot be used as a GGUF model.
#[derive(Debug, Clone, Error)]
pub enum GgufError {
    #[error("{}: cannot be read: {message}", path.display())]
    Io { path: PathBuf, message: String },
    #[error("{}: not a GGUF file (it does not start with \"GGUF\"): give --model a .gguf file", path.display())]
    NotGguf { path: PathBuf },
    #[error(
        "{}: GGUF version {version} is not supported, only 2 and 3 (little-endian): convert the model anew",
        path.display()
    )]
    Version { path: PathBuf, version: u32 },
    #[error("{}: damaged at byte {offset}: {problem}: download the file again", path.display())]
    Damaged { path: PathBuf, offset: u64, problem: String },
    #[error("{}: {problem}", path.display())]
    Unusable { path: PathBuf, problem: String },
}

/// Where one tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    pub name: String,
    /// Which of the header's files it lies in.
    pub file: usize,
    /// Row-major shape, slowest dimension first (the file stores it the other way round).
    pub shape: Vec<u64>,
    pub ggml_type: GgmlType,
    /// Position of the first byte in the file.
    pub offset_bytes: u64,
    pub num_bytes: u64,
}

/// The checked header of a GGUF file, or of all the files that a model is split into.
#[derive(Debug, Clone)]
pub struct GgufHeader {
    /// In order of their parts; one at least.
    files: Vec<PathBuf>,
    version: u32,
    alignment: u64,
    metadata: HashMap<String, GgufValue>,
    tensors: Vec<GgufTensor>,
}

impl GgufHeader {
    /// Reads the header and checks that every tensor lies inside its file. One part of several stands for
    /// all of them.
    pub fn read(path: &Path) -> Result<GgufHeader, GgufError> {
        split::joined(Self::read_file(path)?)
    }

    /// Reads one file, as if it were whole.
    fn read_file(path: &Path) -> Result<GgufHeader, GgufError> {
        let mut reader = Reader::open(path, MAX_HEADER_BYTES)?;
        if reader.len_bytes() < 4 || &reader.array::<4>("the magic")? != b"GGUF" {
            return Err(GgufError::NotGguf { path: path.to_owned() });
        }
        let version = reader.u32("the version")?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version { path: path.to_owned(), version });
        }
        let num_tensors = reader.u64("the number of tensors")?;
        let num_keys = reader.u64("the number of metadata keys")?;

        // A key takes at least its length, type and one byte of value: 13 bytes.
        reader.check_count(num_keys, 13, "metadata keys")?;
        let mut metadata = HashMap::new();
        for _ in 0..num_keys {
            let key = reader.string("a metadata key")?;
            let value = reader.value(&key)?;
            if metadata.insert(key.to_string(), value).is_some() {
                return Err(reader.damaged(format!("the key {key:?} appears twice")));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(GgufValue::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 30 => *n,
            Some(other) => {
                return Err(reader.damaged(format!("general.alignment is {other:?}, not a power of two")));
            }
        };

        // A tensor takes at least its name's length, dimension count, type and offset: 24 bytes.
        reader.check_count(num_tensors, 24, "tensors")?;
        let mut infos = Vec::new();
        for _ in 0..num_tensors {
            infos.push(TensorInfo::read(&mut reader)?);
        }
        let tensors = place(infos, &reader, alignment)?;
        Ok(GgufHeader { files: vec![path.to_owned()], version, alignment, metadata, tensors })
    }

    /// Returns the file that holds the metadata, which is the first.
    pub fn path(&self) -> &Path {
        &self.files[0]
    }

    /// Returns all files, in order of their parts.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Returns the format's version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Returns the alignment of tensor data, in bytes.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Returns the tensors in file order.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// Returns a key's value, whatever its type.
    pub fn value(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.get(key)
    }

    /// Returns all keys with their values, in no particular order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &GgufValue)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Returns a string key; `None` when it is missing or of another type.
    pub fn str(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            GgufValue::String(text) => Some(text),
            _ => None,
        }
    }

    /// Returns an integer key of any width that is not negative.
    pub fn u64(&self, key: &str) -> Option<u64> {
        match self.value(key)? {
            GgufValue::Unsigned(n) => Some(*n),
            GgufValue::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// Returns a floating-point key of either width.
    pub fn f32(&self, key: &str) -> Option<f32> {
        match self.value(key)? {
            GgufValue::Float(x) => Some(*x as f32),
            _ => None,
        }
    }

    /// Returns a boolean key.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.value(key)? {
            GgufValue::Bool(b) => Some(*b),
            _ => None,
        }
    }

    /// Returns a key that is an array of strings.
    pub fn strings(&self, key: &str) -> Option<&[Box<str>]> {
        match self.value(key)? {
            GgufValue::Strings(texts) => Some(texts),
            _ => None,
        }
    }

    /// Returns a key that is an array of floats, of either width.
    pub fn f32s(&self, key: &str) -> Option<Vec<f32>> {
        self.numbers(key, |value| match value {
            GgufValue::Float(x) => Some(x as f32),
            _ => None,
        })
    }

    /// Returns a key that is an array of integers of any width that all fit.
    pub fn i64s(&self, key: &str) -> Option<Vec<i64>> {
        self.numbers(key, |value| match value {
            GgufValue::Unsigned(n) => i64::try_from(n).ok(),
            GgufValue::Signed(n) => Some(n),
            _ => None,
        })
    }

    /// Returns a key that is an array of booleans.
    pub fn bools(&self, key: &str) -> Option<Vec<bool>> {
        self.numbers(key, |value| match value {
            GgufValue::Bool(b) => Some(b),
            _ => None,
        })
    }

    fn numbers<T>(&self, key: &str, convert: impl Fn(GgufValue) -> Option<T>) -> Option<Vec<T>> {
        match self.value(key)? {
            GgufValue::Numbers(numbers) => numbers.iter().map(convert).collect(),
            _ => None,
        }
    }
}

/// A tensor's entry as the file states it, its place not checked yet.
struct TensorInfo {
    name: String,
    shape: Vec<u64>,
    ggml_type: GgmlType,
    /// Relative to the start of the data section, which is known once all entries are read.
    relative_bytes: u64,
    num_bytes: u64,
}

impl TensorInfo {
    fn read(reader: &mut Reader) -> Result<TensorInfo, GgufError> {
        let name = reader.string("a tensor's name")?.into_string();
        let num_dims = reader.u32("a tensor's number of dimensions")?;
        if num_dims == 0 || num_dims > MAX_DIMS {
            return Err(reader.damaged(format!("tensor {name:?} has {num_dims} dimensions, not 1 to 4")));
        }
        let mut shape = Vec::new();
        for _ in 0..num_dims {
            shape.push(reader.u64("a tensor's dimension")?);
        }
        let code = reader.u32("a tensor's type")?;
        let relative_bytes = reader.u64("a tensor's offset")?;
        let Some(ggml_type) = GgmlType::from_code(code) else {
            return Err(reader.unusable(format!(
                "tensor {name:?} is of the unknown type {code}; use another quantisation of this model"
            )));
        };
        let Some(num_bytes) = ggml_type.tensor_bytes(&shape) else {
            return Err(reader.damaged(format!(
                "tensor {name:?} of type {} cannot have the dimensions {shape:?}",
                ggml_type.name()
            )));
        };
        shape.reverse();
        Ok(TensorInfo { name, shape, ggml_type, relative_bytes, num_bytes })
    }
}

/// Turns relative places into absolute ones and checks them against the file's length.
fn place(infos: Vec<TensorInfo>, reader: &Reader, alignment: u64) -> Result<Vec<GgufTensor>, GgufError> {
    let data_start = reader
        .offset_bytes()
        .checked_next_multiple_of(alignment)
        .ok_or_else(|| reader.damaged("the data section starts past every file's end".to_owned()))?;
    let mut names = HashSet::new();
    let mut tensors = Vec::new();
    for info in infos {
        let TensorInfo { name, shape, ggml_type, relative_bytes, num_bytes } = info;
        if !names.insert(name.clone()) {
            return Err(reader.damaged(format!("tensor {name:?} appears twice")));
        }
        if relative_bytes % alignment != 0 {
            return Err(reader.damaged(format!("tensor {name:?} is not aligned to {alignment} bytes")));
        }
        let offset_bytes = data_start.checked_add(relative_bytes);
        match offset_bytes.and_then(|start| start.checked_add(num_bytes)) {
            Some(end) if end <= reader.len_bytes() => {}
            _ => {
                return Err(reader.damaged(format!(
                    "tensor {name:?} ({num_bytes} bytes, {relative_bytes} bytes into the data) ends past the \
                     file's {} bytes: the file is truncated",
                    reader.len_bytes()
                )));
            }
        }
        let offset_bytes = offset_bytes.expect("the sum with the size was checked just above");
        tensors.push(GgufTensor { name, file: 0, shape, ggml_type, offset_bytes, num_bytes });
    }
    Ok(tensors)
}
