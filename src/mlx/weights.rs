//! Weight files → named arrays, each handed out once.
//!
//! Owns reading safetensors and the account of which names were used: a missing name and a stray
//! one are both errors. What a name means is the decoder's and `models/`'s business.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use mlx_rs::Array;

use super::{
    error::{MlxError, Result},
    sys,
};
use crate::models::WeightNames;

/// Named arrays of a model that the decoder has not taken yet.
#[derive(Debug)]
pub(super) struct Weights {
    arrays: HashMap<String, Array>,
    prefix: String,
}

impl Weights {
    /// Opens safetensors files; tensors are read when they are evaluated.
    ///
    /// Headers and lengths are checked first, since MLX reads data lazily and on its own threads,
    /// where a short file could not be reported.
    pub(super) fn from_safetensors(files: &[PathBuf], names: &WeightNames) -> Result<Self> {
        let mut arrays = HashMap::new();
        for file in files {
            check_safetensors(file)?;
            let loaded = Array::load_safetensors(file)
                .map_err(|error| weight_file_error(file, format!("MLX cannot read it: {error}")))?;
            for (name, array) in loaded {
                let name = names.canonical(&name);
                if arrays.insert(name.clone(), array).is_some() {
                    return Err(weight_file_error(file, format!("'{name}' is in another weight file too")));
                }
            }
        }
        Ok(Self::from_arrays(arrays, names))
    }

    /// Takes over arrays that are already named as the decoder asks for them.
    pub(super) fn from_arrays(arrays: HashMap<String, Array>, names: &WeightNames) -> Self {
        Self { arrays, prefix: names.prefix.clone() }
    }

    /// The weights not taken yet, under their full names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Array)> {
        self.arrays.iter().map(|(name, array)| (name.as_str(), array))
    }

    /// Whether the weight called `name` is there and not taken yet.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.arrays.contains_key(&self.full_name(name))
    }

    /// Hands out a weight, which must have the given shape.
    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Array> {
        let array = self.take_any_shape(name)?;
        let found: Vec<usize> = array.shape().iter().map(|&dim| dim as usize).collect();
        if found != shape {
            return Err(MlxError::Weights(format!(
                "'{}' has shape {found:?}, expected {shape:?}",
                self.full_name(name)
            )));
        }
        Ok(array)
    }

    /// Hands out a weight whose shape the caller checks.
    pub(super) fn take_any_shape(&mut self, name: &str) -> Result<Array> {
        let full_name = self.full_name(name);
        self.arrays.remove(&full_name).ok_or_else(|| MlxError::Weights(format!("'{full_name}' is missing")))
    }

    /// Forgets a weight that is known to be a copy of another.
    pub(super) fn drop_duplicate(&mut self, name: &str) {
        let full_name = self.full_name(name);
        self.arrays.remove(&full_name);
    }

    /// Checks that nothing was left over that the decoder does not know.
    pub(super) fn finish(self, names: &WeightNames) -> Result<()> {
        let stray: BTreeSet<&String> = self.arrays.keys().filter(|name| !names.is_ignored(name)).collect();
        match stray.first() {
            None => Ok(()),
            Some(first) => Err(MlxError::Weights(format!(
                "'{first}' is not part of this model type{}",
                match stray.len() {
                    1 => String::new(),
                    count => format!(", nor are {} more weights", count - 1),
                }
            ))),
        }
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

fn weight_file_error(path: &Path, reason: String) -> MlxError {
    MlxError::WeightFile { path: path.display().to_string(), reason }
}

/// Checks that a safetensors file has a sound header and all the bytes it speaks of.
fn check_safetensors(path: &Path) -> Result<()> {
    let bytes =
        sys::map_file(path).map_err(|error| weight_file_error(path, format!("cannot be read: {error}")))?;
    safetensors::SafeTensors::deserialize(&bytes).map(drop).map_err(|error| {
        weight_file_error(path, format!("is damaged or not complete ({error}); fetch it again"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> WeightNames {
        WeightNames { ignored_prefixes: vec!["vision.".to_owned()], ..WeightNames::default() }
    }

    fn weights(list: &[&str]) -> Weights {
        let arrays =
            list.iter().map(|name| ((*name).to_owned(), Array::from_slice(&[1.0f32, 2.0], &[2]))).collect();
        Weights::from_arrays(arrays, &names())
    }

    #[test]
    fn missing_stray_and_misshapen_weights_are_named() {
        let mut missing = weights(&[]);
        assert!(missing.take("a.weight", &[2]).unwrap_err().to_string().contains("'a.weight' is missing"));
        let mut misshapen = weights(&["a.weight"]);
        let message = misshapen.take("a.weight", &[3]).unwrap_err().to_string();
        assert!(message.contains("[2]") && message.contains("[3]"), "{message}");
        let stray = weights(&["b", "c", "vision.x"]).finish(&names()).unwrap_err().to_string();
        assert!(stray.contains("'b'") && stray.contains("1 more"), "{stray}");
        assert!(weights(&["vision.x", "layers.0.rotary_emb.inv_freq"]).finish(&names()).is_ok());
    }

    #[test]
    fn a_file_cut_at_any_place_is_an_error_and_never_read() {
        let folder = tempfile::tempdir().unwrap();
        let whole = std::fs::read("fixtures/tiny-qwen2/model.safetensors").unwrap();
        let path = folder.path().join("model.safetensors");
        for length in (0..whole.len()).step_by(4999).chain([7, 8, 9, whole.len() - 1]) {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = Weights::from_safetensors(std::slice::from_ref(&path), &names()).unwrap_err();
            assert!(error.to_string().contains("model.safetensors"), "{error}");
        }
    }
}
