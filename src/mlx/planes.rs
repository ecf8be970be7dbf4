//! The arrays of keys and values of one layer.
//!
//! Owns which there are, as the layer's `KvLayout` says: keys and values, or keys alone, of which the values are the
//! first columns. What their axes are is the callers' business, but for the last, a head's width.

use mlx_rs::{Array, Dtype};

use super::{error::Result, sys};
use crate::models::{KvLayout, ValueColumns};

/// Keys and values of one layer. A clone shares their memory.
#[derive(Debug, Clone)]
pub(super) struct Planes {
    keys: Array,
    values: Values,
}

#[derive(Debug, Clone)]
enum Values {
    Own(Array),
    /// So many columns of the keys, from the first on.
    OfKeys(usize),
}

impl Planes {
    /// Keys and values apart.
    pub(super) fn new(keys: Array, values: Array) -> Self {
        Self { keys, values: Values::Own(values) }
    }

    /// Keys whose first `value_dim` columns are the values.
    pub(super) fn within_keys(keys: Array, value_dim: usize) -> Self {
        Self { keys, values: Values::OfKeys(value_dim) }
    }

    /// Planes of this layout, each made with the width of its heads.
    pub(super) fn of_layout(layout: &KvLayout, mut make: impl FnMut(usize) -> Result<Array>) -> Result<Self> {
        let keys = make(layout.key_dim)?;
        Ok(match layout.values {
            ValueColumns::Own(value_dim) => Self::new(keys, make(value_dim)?),
            ValueColumns::OfKeys(value_dim) => Self::within_keys(keys, value_dim),
        })
    }

    /// All arrays, the keys first.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let own = match &self.values {
            Values::Own(values) => Some(values),
            Values::OfKeys(_) => None,
        };
        std::iter::once(&self.keys).chain(own)
    }

    pub(super) fn keys(&self) -> &Array {
        &self.keys
    }

    /// The values, as a view where they are within the keys.
    pub(super) fn values(&self) -> Result<Array> {
        Ok(match &self.values {
            Values::Own(values) => values.clone(),
            Values::OfKeys(value_dim) => sys::slice_axis(&self.keys, self.keys.ndim() - 1, 0, *value_dim)?,
        })
    }

    /// The array in whose rows the values come first.
    pub(super) fn value_rows(&self) -> &Array {
        match &self.values {
            Values::Own(values) => values,
            Values::OfKeys(_) => &self.keys,
        }
    }

    /// Another array made of each.
    pub(super) fn map(&self, mut each: impl FnMut(&Array) -> Result<Array>) -> Result<Self> {
        let keys = each(&self.keys)?;
        let values = match &self.values {
            Values::Own(values) => Values::Own(each(values)?),
            Values::OfKeys(value_dim) => Values::OfKeys(*value_dim),
        };
        Ok(Self { keys, values })
    }

    /// The same numbers in another type.
    pub(super) fn of_dtype(&self, dtype: Dtype) -> Result<Self> {
        self.map(|plane| Ok(plane.as_dtype(dtype)?))
    }

    /// One array made of the same of each of several planes, at least one, which are of one layout.
    pub(super) fn zipped(
        several: &[&Self],
        mut each: impl FnMut(&[&Array]) -> Result<Array>,
    ) -> Result<Self> {
        let arrays: Vec<Vec<&Array>> = several.iter().map(|planes| planes.arrays().collect()).collect();
        let mut index = 0;
        several[0].map(|_| {
            let same: Vec<&Array> = arrays.iter().map(|arrays| arrays[index]).collect();
            index += 1;
            each(&same)
        })
    }

    /// Replaces each array by one made of it and of the same of `other`. Not held here meanwhile: what nobody holds is
    /// written in place.
    pub(super) fn replace(
        &mut self,
        other: &Self,
        mut each: impl FnMut(Array, &Array) -> Result<Array>,
    ) -> Result<()> {
        let mut others = other.arrays();
        self.replace_each(|plane| each(plane, others.next().expect("planes of one layout")))
    }

    /// Replaces each array by one made of it, in the same way.
    pub(super) fn replace_each(&mut self, mut each: impl FnMut(Array) -> Result<Array>) -> Result<()> {
        let own = match &mut self.values {
            Values::Own(values) => Some(values),
            Values::OfKeys(_) => None,
        };
        for plane in std::iter::once(&mut self.keys).chain(own) {
            let old = std::mem::replace(plane, Array::from_int(0));
            *plane = each(old)?;
        }
        Ok(())
    }
}
