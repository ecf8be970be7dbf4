//! Weight files → named arrays, each handed out once.
//!
//! Owns reading safetensors and the account of which names were used: a missing name and a stray
//! one are both errors. What a name means is the decoder's and `models/`'s business.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use mlx_rs::{Array, Dtype};

use super::{
    error::{MlxError, Result},
    publishers, sys,
};
use crate::models::{Fold, FoldFactors, PublisherFormat, WeightNames};

/// What belongs to a matrix, each with an entry for each of its outputs, and whether its name may be bare.
const SUFFIXES: [(&str, bool); 6] = [
    ("weight", false),
    ("weight", true),
    ("scales", false),
    ("biases", false),
    ("bias", false),
    ("bias", true),
];

/// What belongs to a matrix that an adapter updates, `(r, inputs)`, `(outputs, r)` and `(outputs,)`, or with the number
/// of experts before; the first is the same for all parts of a matrix.
pub(super) const UPDATE_DOWN: &str = "lora_a";
pub(super) const UPDATE_UP: &str = "lora_b";
pub(super) const UPDATE_MAGNITUDE: &str = "lora_m";
const UPDATE_SUFFIXES: [(&str, bool); 3] =
    [(UPDATE_DOWN, false), (UPDATE_UP, false), (UPDATE_MAGNITUDE, false)];

/// Everything that belongs to a matrix.
fn suffixes() -> impl Iterator<Item = (&'static str, bool)> {
    SUFFIXES.into_iter().chain(UPDATE_SUFFIXES)
}

/// Named arrays of a model that the decoder has not taken yet.
#[derive(Debug)]
pub(super) struct Weights {
    arrays: HashMap<String, Array>,
    /// Whether affine groups may be of 16 numbers, as GGUF files have them and MLX does not.
    pub has_small_groups: bool,
}

impl Weights {
    /// Opens safetensors files; tensors are read when they are evaluated.
    pub(super) fn from_safetensors(
        files: &[PathBuf],
        names: &WeightNames,
        format: Option<PublisherFormat>,
    ) -> Result<Self> {
        let mut arrays = HashMap::new();
        for file in files {
            for (name, array) in load_file(file)? {
                let name = names.canonical(&name);
                if arrays.insert(name.clone(), array).is_some() {
                    return Err(weight_file_error(file, format!("'{name}' is in another weight file too")));
                }
            }
        }
        if let Some(format) = format {
            publishers::convert(&mut arrays, format)?;
        }
        Ok(Self::from_arrays(arrays))
    }

    /// Takes over arrays that are already named as the decoder asks for them.
    pub(super) fn from_arrays(arrays: HashMap<String, Array>) -> Self {
        Self { arrays, has_small_groups: false }
    }

    /// The weights not taken yet, under their full names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Array)> {
        self.arrays.iter().map(|(name, array)| (name.as_str(), array))
    }

    /// Whether they are as the publisher of a model with convolutions has them, and not as MLX converts them: the
    /// layout tells, `(channels, 1, kernel)` or `(channels, kernel, 1)`.
    pub(super) fn are_published(&self) -> bool {
        let is_published = |(name, array): (&str, &Array)| {
            name.ends_with("conv1d.weight") && array.ndim() == 3 && array.dim(-1) != 1
        };
        self.iter().any(is_published)
    }

    /// Multiplies the outputs of all matrices whose names end so.
    pub(super) fn fold(&mut self, fold: &Fold) -> Result<()> {
        self.multiply_outputs(fold, "weight", |factor| factor)
    }

    /// The same of what an adapter adds to them.
    pub(super) fn fold_updates(&mut self, fold: &Fold) -> Result<()> {
        self.multiply_outputs(fold, UPDATE_UP, |factor| factor)?;
        // It is a norm.
        self.multiply_outputs(fold, UPDATE_MAGNITUDE, f32::abs)
    }

    fn multiply_outputs(&mut self, fold: &Fold, suffix: &str, factor_of: fn(f32) -> f32) -> Result<()> {
        let ending = format!("{}.{suffix}", fold.ending);
        for (name, array) in self.arrays.iter_mut().filter(|(name, _)| name.ends_with(&ending)) {
            let factors: Vec<f32> = match &fold.factors {
                FoldFactors::All(factor) => vec![factor_of(*factor)],
                FoldFactors::Runs(runs) => runs
                    .iter()
                    .flat_map(|(num_rows, factor)| std::iter::repeat_n(factor_of(*factor), *num_rows))
                    .collect(),
            };
            let is_number = matches!(array.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16);
            let fits = [1, 2].contains(&array.ndim()) && [1, array.dim(0)].contains(&(factors.len() as i32));
            if !is_number || !fits {
                return Err(MlxError::Weights(format!(
                    "'{name}' of shape {:?} cannot be multiplied by the configuration's {} factors",
                    array.shape(),
                    factors.len()
                )));
            }
            let shape = [&[factors.len() as i32], &vec![1; array.ndim() - 1][..]].concat();
            let factors = Array::from_slice(&factors, &shape);
            *array = array.as_dtype(Dtype::Float32)?.multiply(factors)?;
        }
        Ok(())
    }

    /// Whether the weight called `name` is there and not taken yet.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.arrays.contains_key(name)
    }

    /// Whether there is a matrix at this path, whose name may be bare.
    pub(super) fn has_matrix(&self, path: &str) -> bool {
        self.contains(path) || self.contains(&format!("{path}.weight"))
    }

    /// Hands out a weight, which must have the given shape and be floating-point numbers.
    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Array> {
        let array = self.take_any_shape(name)?;
        let found: Vec<usize> = array.shape().iter().map(|&dim| dim as usize).collect();
        if found != shape {
            return Err(MlxError::Weights(format!("'{name}' has shape {found:?}, expected {shape:?}")));
        }
        if !matches!(array.dtype(), Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16) {
            return Err(MlxError::Weights(format!(
                "'{name}' has numbers of type {:?}, expected float32, float16 or bfloat16",
                array.dtype()
            )));
        }
        Ok(array)
    }

    /// Hands out a weight whose shape the caller checks.
    pub(super) fn take_any_shape(&mut self, name: &str) -> Result<Array> {
        self.arrays.remove(name).ok_or_else(|| MlxError::Weights(format!("'{name}' is missing")))
    }

    /// Puts an array under a name that is not taken.
    pub(super) fn insert(&mut self, name: String, array: Array) -> Result<()> {
        match self.arrays.insert(name.clone(), array) {
            None => Ok(()),
            Some(_) => Err(MlxError::Adapter(format!("'{name}' is there twice"))),
        }
    }

    /// Puts a weight in the place of the one called `name`, which must be there and have its shape, where that is not
    /// quantised: all that belongs to it then goes.
    pub(super) fn replace(&mut self, name: &str, array: Array) -> Result<()> {
        let Some(before) = self.arrays.remove(name) else {
            return Err(MlxError::Adapter(format!("'{name}' is not among the model's weights")));
        };
        let path = name.strip_suffix(".weight").unwrap_or(name);
        if self.contains(&format!("{path}.scales")) {
            for part in ["scales", "biases", "global_scale"] {
                self.arrays.remove(&format!("{path}.{part}"));
            }
        } else if before.shape() != array.shape() {
            return Err(MlxError::Adapter(format!(
                "'{name}' has shape {:?}, and the model's has {:?}",
                array.shape(),
                before.shape()
            )));
        }
        self.arrays.insert(name.to_owned(), array);
        Ok(())
    }

    /// Copies all that belongs to a matrix, as handles, in place of what belongs to another.
    pub(super) fn copy_matrix(&mut self, path: &str, new_path: &str) {
        for part in ["weight", "scales", "biases", "global_scale"] {
            self.arrays.remove(&format!("{new_path}.{part}"));
            if let Some(array) = self.arrays.get(&format!("{path}.{part}")).cloned() {
                self.arrays.insert(format!("{new_path}.{part}"), array);
            }
        }
    }

    /// Forgets a weight that is known to be a copy of another.
    pub(super) fn drop_duplicate(&mut self, name: &str) {
        self.arrays.remove(name);
    }

    /// Forgets all that belongs to a matrix that nobody needs.
    pub(super) fn drop_matrix(&mut self, path: &str) {
        for (suffix, bare) in suffixes() {
            self.take_of(path, suffix, bare);
        }
    }

    /// Gives all that belongs to a matrix another path, where it is there.
    pub(super) fn rename(&mut self, path: &str, new_path: &str) {
        for (suffix, bare) in suffixes() {
            if let Some(array) = self.take_of(path, suffix, bare) {
                self.arrays.insert(format!("{new_path}.{suffix}"), array);
            }
        }
    }

    /// Cuts a matrix that is several matrices in one, where it is there, along the `axis` of its outputs: each part
    /// gets the rows that are listed for it, and all that belongs to them.
    pub(super) fn cut(&mut self, path: &str, axis: i32, parts: &[(String, Vec<i32>)]) -> Result<()> {
        let num_rows: usize = parts.iter().map(|(_, rows)| rows.len()).sum();
        for (suffix, bare) in suffixes() {
            let Some(array) = self.take_of(path, suffix, bare) else { continue };
            if suffix == UPDATE_DOWN {
                for (part, _) in parts {
                    self.arrays.insert(format!("{part}.{suffix}"), array.clone());
                }
                continue;
            }
            if array.ndim() <= axis as usize || array.dim(axis) as usize != num_rows {
                return Err(MlxError::Weights(format!(
                    "'{}' has shape {:?}, expected {num_rows} on axis {axis}",
                    path,
                    array.shape()
                )));
            }
            for (part, rows) in parts {
                let rows = Array::from_slice(rows, &[rows.len() as i32]);
                let part = format!("{part}.{suffix}");
                if self.arrays.insert(part.clone(), array.take_axis(rows, axis)?).is_some() {
                    return Err(MlxError::Weights(format!(
                        "'{part}' is there beside '{path}', which holds it"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Puts matrices of the same shape on top of each other, with all that belongs to them, where the first is there.
    pub(super) fn stack(&mut self, path: &str, count: usize, one: impl Fn(usize) -> String) -> Result<()> {
        for (suffix, bare) in suffixes() {
            let Some(first) = self.take_of(&one(0), suffix, bare) else { continue };
            let mut arrays = vec![first];
            for index in 1..count {
                let array = self
                    .take_of(&one(index), suffix, bare)
                    .ok_or_else(|| MlxError::Weights(format!("'{}.{suffix}' is missing", one(index))))?;
                if array.shape() != arrays[0].shape() {
                    return Err(MlxError::Weights(format!(
                        "'{}.{suffix}' has shape {:?}, and that of expert 0 has {:?}",
                        one(index),
                        array.shape(),
                        arrays[0].shape()
                    )));
                }
                arrays.push(array);
            }
            let stacked = mlx_rs::ops::stack(&arrays, 0)?;
            // So that what it is made of is not kept beside it.
            stacked.eval()?;
            self.arrays.insert(format!("{path}.{suffix}"), stacked);
        }
        Ok(())
    }

    /// Exchanges the last two axes of the matrices at `path`, where they are there.
    pub(super) fn transpose(&mut self, path: &str) -> Result<()> {
        let array = self.take_of(path, "weight", true).or_else(|| self.take_of(path, "weight", false));
        if let Some(array) = array {
            self.arrays.insert(format!("{path}.weight"), array.swap_axes(-1, -2)?);
        }
        Ok(())
    }

    /// What belongs to the matrix at `path` under this suffix. The weights of experts may lack it, and their biases
    /// end in `_bias`: `bare`.
    fn take_of(&mut self, path: &str, suffix: &str, bare: bool) -> Option<Array> {
        let name = match (suffix, bare) {
            ("weight", true) => path.to_owned(),
            ("bias", true) => format!("{path}_bias"),
            _ => format!("{path}.{suffix}"),
        };
        self.arrays.remove(&name)
    }

    /// Checks that nothing was left over that the decoder does not know.
    pub(super) fn finish(self, names: &WeightNames) -> Result<()> {
        let is_stray =
            |(name, array): &(&String, &Array)| !names.is_ignored(name) && !adds_nothing(name, array);
        let stray: BTreeSet<&String> = self.arrays.iter().filter(is_stray).map(|(name, _)| name).collect();
        let of_update = |name: &&&String| {
            UPDATE_SUFFIXES
                .iter()
                .any(|(suffix, _)| name.strip_suffix(suffix).is_some_and(|path| path.ends_with('.')))
        };
        if let Some(path) = stray.iter().find(of_update).and_then(|name| name.rsplit_once('.')) {
            return Err(MlxError::Adapter(format!(
                "it updates '{}', which is no linear layer of this model (updates of embeddings are not served)",
                path.0
            )));
        }
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
}

/// Whether a weight is a bias of zeros, which AutoGPTQ wrote for matrices that have none.
fn adds_nothing(name: &str, array: &Array) -> bool {
    let numbers = || {
        let wide = array.as_dtype(Dtype::Float32).ok()?.contiguous().ok()?;
        wide.eval().ok()?;
        wide.to_vec_exact::<f32>().ok()
    };
    name.ends_with(".bias") && numbers().is_some_and(|numbers| numbers.iter().all(|number| *number == 0.0))
}

pub(super) fn weight_file_error(path: &Path, reason: String) -> MlxError {
    MlxError::WeightFile { path: path.display().to_string(), reason }
}

/// Opens a safetensors file; tensors are read when they are evaluated.
///
/// Header and length are checked first, since MLX reads data lazily and on its own threads, where a short file could
/// not be reported.
pub(super) fn load_file(path: &Path) -> Result<HashMap<String, Array>> {
    check_safetensors(path)?;
    Array::load_safetensors(path)
        .map_err(|error| weight_file_error(path, format!("MLX cannot read it: {error}")))
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
    use crate::models::BlockNames;

    fn names() -> WeightNames {
        WeightNames::new(BlockNames::PLAIN)
    }

    fn weights(list: &[&str]) -> Weights {
        let arrays =
            list.iter().map(|name| ((*name).to_owned(), Array::from_slice(&[1.0f32, 2.0], &[2]))).collect();
        Weights::from_arrays(arrays)
    }

    #[test]
    fn missing_stray_and_misshapen_weights_are_named() {
        let mut missing = weights(&[]);
        assert!(missing.take("a.weight", &[2]).unwrap_err().to_string().contains("'a.weight' is missing"));
        let mut misshapen = weights(&["a.weight"]);
        let message = misshapen.take("a.weight", &[3]).unwrap_err().to_string();
        assert!(message.contains("[2]") && message.contains("[3]"), "{message}");
        let zeros = Array::from_slice(&[0.0f32; 3], &[3]);
        assert!(Weights::from_arrays(HashMap::from([("a.bias".to_owned(), zeros)])).finish(&names()).is_ok());
        assert!(weights(&["a.bias"]).finish(&names()).is_err());
        let stray = weights(&["b", "c", "visual.x"]).finish(&names()).unwrap_err().to_string();
        assert!(stray.contains("'b'") && stray.contains("1 more"), "{stray}");
        assert!(weights(&["visual.x", "layers.0.rotary_emb.inv_freq"]).finish(&names()).is_ok());
    }

    #[test]
    fn a_file_cut_at_any_place_is_an_error_and_never_read() {
        let folder = tempfile::tempdir().unwrap();
        let whole = std::fs::read("fixtures/tiny-qwen2/model.safetensors").unwrap();
        let path = folder.path().join("model.safetensors");
        for length in (0..whole.len()).step_by(4999).chain([7, 8, 9, whole.len() - 1]) {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = Weights::from_safetensors(std::slice::from_ref(&path), &names(), None).unwrap_err();
            assert!(error.to_string().contains("model.safetensors"), "{error}");
        }
    }
}
