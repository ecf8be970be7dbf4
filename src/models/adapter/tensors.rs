//! Names and shapes of the tensors in a safetensors file.
//!
//! Owns reading the header alone, with limits on its size. Tensors are read, and the file's length checked, in `mlx/`.

use std::{collections::BTreeMap, os::unix::fs::FileExt, path::Path};

use safetensors::{Dtype, tensor::Metadata};

use crate::small_file;

/// Shapes by name.
pub(super) type Tensors = BTreeMap<String, Vec<usize>>;

/// What the library of the format allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Reads the header of the file at `path`; the error says what is wrong with the file, without its name.
pub(super) fn read(path: &Path) -> Result<Tensors, String> {
    let file = small_file::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            "is not there; an adapter's weights are read from safetensors alone, as its program writes them by default"
                .to_owned()
        }
        _ => format!("cannot be read: {error}"),
    })?;
    let damaged =
        |what: &dyn std::fmt::Display| format!("is damaged or not complete ({what}); fetch it again");
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0).map_err(|error| damaged(&error))?;
    let num_bytes = u64::from_le_bytes(length);
    let num_in_file = file.metadata().map_err(|error| damaged(&error))?.len();
    if num_bytes > MAX_HEADER_BYTES.min(num_in_file) {
        return Err(damaged(&format!("a header of {num_bytes} bytes")));
    }
    let mut header = vec![0; num_bytes as usize];
    file.read_exact_at(&mut header, 8).map_err(|error| damaged(&error))?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| damaged(&error))?;
    let mut tensors = Tensors::new();
    for (name, info) in metadata.tensors() {
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(format!(
                "'{name}' has numbers of type {:?}, expected float32, float16 or bfloat16",
                info.dtype
            ));
        }
        if info.shape.contains(&0) {
            return Err(format!("'{name}' of shape {:?} is empty", info.shape));
        }
        tensors.insert(name, info.shape.clone());
    }
    Ok(tensors)
}
