//! Typed reading of a configuration's fields.
//!
//! Owns the checks of single values, whose messages name the field, and the memory of which fields were
//! asked for, so that none of the others is passed over. What a field means is the families' business,
//! except for rotary positions, which are `rope`'s.

use std::{cell::RefCell, collections::BTreeSet};

use serde_json::{Map, Value};

use crate::models::known_keys::{KeyRule, Unread};

/// No dimension of a real model comes near this; larger ones are damage.
const MAX_DIMENSION: u64 = 1 << 24;
/// Each layer keeps a frequency for every second one of these, before any weight is looked at.
pub(super) const MAX_HEAD_DIM: usize = 1 << 13;
pub(super) const MAX_LAYERS: u64 = 1 << 12;

/// Typed access to a JSON object; absent and null are the same.
pub(in crate::models) struct Fields<'a> {
    /// Where the object lies in the file; empty for the file's own.
    place: String,
    map: &'a Map<String, Value>,
    /// Where flags are looked for next.
    outer: Option<&'a Fields<'a>>,
    /// Names of all fields that were asked for, there or not.
    asked: RefCell<BTreeSet<String>>,
    unread: &'a RefCell<Unread>,
}

impl<'a> Fields<'a> {
    /// The fields of a whole file; what nobody asks for goes to `unread`.
    pub(in crate::models) fn of_file(map: &'a Map<String, Value>, unread: &'a RefCell<Unread>) -> Self {
        Self { place: String::new(), map, outer: None, asked: RefCell::default(), unread }
    }

    /// The fields of an object inside this one.
    pub(super) fn inside<'b>(&'b self, name: &str, map: &'b Map<String, Value>) -> Fields<'b> {
        let place = if self.place.is_empty() { name.to_owned() } else { format!("{}.{name}", self.place) };
        Fields { place, map, outer: Some(self), asked: RefCell::default(), unread: self.unread }
    }

    /// Where the object lies in the file, for messages.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// The object around this one.
    pub(super) fn outer(&self) -> Option<&'a Fields<'a>> {
        self.outer
    }

    /// The object itself; nothing that is read from it here counts as asked for.
    pub(super) fn map(&self) -> &'a Map<String, Value> {
        self.map
    }

    /// Accounts for the fields that nobody has asked for so far, by the first of the tables that knows
    /// each.
    pub(in crate::models) fn account(&self, tables: &[&[KeyRule]]) -> Result<(), String> {
        let place = if self.place.is_empty() { String::new() } else { format!("{}.", self.place) };
        let entries = self.map.iter().map(|(key, value)| (key.as_str(), value));
        let asked = self.asked.borrow();
        self.unread.borrow_mut().account(&place, entries, |key| asked.contains(key), tables)
    }

    #[cfg(test)]
    pub(super) fn asked(&self) -> BTreeSet<String> {
        self.asked.borrow().clone()
    }

    pub(in crate::models) fn get(&self, name: &str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(name.to_owned());
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub(in crate::models) fn integer(
        &self,
        name: &str,
        default: Option<u64>,
        min: u64,
        max: u64,
    ) -> Result<usize, String> {
        let number = match self.get(name) {
            Some(value) => value
                .as_u64()
                .ok_or_else(|| format!("'{name}' must be a positive whole number, got {value}"))?,
            None => default.ok_or_else(|| format!("'{name}' is missing"))?,
        };
        if number < min || number > max {
            return Err(format!("'{name}' must lie between {min} and {max}, got {number}"));
        }
        Ok(number as usize)
    }

    pub(super) fn dimension(&self, name: &str, default: Option<u64>) -> Result<usize, String> {
        self.integer(name, default, 1, MAX_DIMENSION)
    }

    /// Rows of the embedding, which may stand beside the `text_config` too.
    pub(super) fn vocab_size(&self, default: Option<u64>) -> Result<usize, String> {
        let around = self.outer.filter(|outer| outer.get("vocab_size").is_some());
        let Some(around) = around else { return self.dimension("vocab_size", default) };
        let around = around.dimension("vocab_size", None)?;
        let inner = self.dimension("vocab_size", Some(around as u64))?;
        if inner != around {
            return Err(format!(
                "'vocab_size' and 'text_config.vocab_size' contradict each other: {around} and {inner}; remove \
                 the wrong one"
            ));
        }
        Ok(inner)
    }

    pub(in crate::models) fn optional_number(&self, name: &str) -> Result<Option<f64>, String> {
        self.get(name)
            .map(|value| value.as_f64().ok_or_else(|| format!("'{name}' must be a number, got {value}")))
            .transpose()
    }

    pub(in crate::models) fn number(&self, name: &str, default: Option<f64>) -> Result<f64, String> {
        self.optional_number(name)?.or(default).ok_or_else(|| format!("'{name}' is missing"))
    }

    /// The cap of `cap * tanh(x / cap)`, which must be a positive number as an f32 too.
    pub(super) fn softcap(&self, name: &str) -> Result<Option<f32>, String> {
        match self.optional_number(name)?.map(|cap| (cap, cap as f32)) {
            None => Ok(None),
            Some((_, cap)) if cap > 0.0 && cap.is_finite() => Ok(Some(cap)),
            Some((cap, _)) => Err(format!("'{name}' must be positive, got {cap}")),
        }
    }

    /// A positive number to multiply with, which must be one as an f32 too.
    pub(super) fn factor(&self, name: &str, default: Option<f64>) -> Result<f32, String> {
        let factor = self.number(name, default)? as f32;
        if factor > 0.0 && factor.is_finite() && (1.0 / factor).is_finite() {
            Ok(factor)
        } else {
            Err(format!("'{name}' must be positive, got {factor}"))
        }
    }

    /// A flag, which may stand in the object around this one instead.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, String> {
        Ok(self.optional_flag(name)?.unwrap_or(default))
    }

    pub(in crate::models) fn optional_flag(&self, name: &str) -> Result<Option<bool>, String> {
        match (self.own_flag(name)?, self.outer) {
            (None, Some(outer)) => outer.own_flag(name),
            (found, _) => Ok(found),
        }
    }

    /// A flag of this object alone.
    pub(in crate::models) fn own_flag(&self, name: &str) -> Result<Option<bool>, String> {
        self.get(name)
            .map(|value| {
                value.as_bool().ok_or_else(|| format!("'{name}' must be true or false, got {value}"))
            })
            .transpose()
    }

    /// An object one level down; `None` where absent.
    pub(in crate::models) fn nested(&self, name: &str) -> Result<Option<Fields<'_>>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(self.inside(name, map))),
            Some(other) => Err(format!("'{name}' must be an object, got {other}")),
        }
    }

    /// A number to keep norms away from division by zero.
    pub(super) fn epsilon(&self, name: &str, default: Option<f64>) -> Result<f32, String> {
        let eps = self.number(name, default)?;
        if eps > 0.0 && eps < 1.0 {
            Ok(eps as f32)
        } else {
            Err(format!("'{name}' must lie between 0 and 1, got {eps}"))
        }
    }

    /// Heads of queries and of keys and values.
    pub(super) fn heads(&self, default_kv_heads: Option<u64>) -> Result<(usize, usize), String> {
        let num_heads = self.dimension("num_attention_heads", None)?;
        let num_kv_heads = self.dimension("num_key_value_heads", default_kv_heads)?;
        Self::check_heads(num_heads, num_kv_heads)?;
        Ok((num_heads, num_kv_heads))
    }

    pub(super) fn check_heads(num_heads: usize, num_kv_heads: usize) -> Result<(), String> {
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(format!(
                "'num_attention_heads' ({num_heads}) must be a multiple of 'num_key_value_heads' ({num_kv_heads})"
            ));
        }
        Ok(())
    }

    /// `head_dim`, by default an equal share of the hidden size.
    pub(super) fn head_dim(&self, hidden_size: usize, num_heads: usize) -> Result<usize, String> {
        match self.get("head_dim") {
            None => Self::split_evenly(hidden_size, num_heads),
            Some(_) => self.dimension("head_dim", None),
        }
    }

    pub(super) fn split_evenly(hidden_size: usize, num_heads: usize) -> Result<usize, String> {
        if !hidden_size.is_multiple_of(num_heads) {
            return Err(format!(
                "'hidden_size' ({hidden_size}) must be a multiple of 'num_attention_heads' ({num_heads})"
            ));
        }
        Ok(hidden_size / num_heads)
    }

    /// What `layer_types` says of each layer, by the names in `known`; `None` where it is absent.
    pub(super) fn layer_types<T: Copy, const N: usize>(
        &self,
        num_layers: usize,
        known: [(&str, T); N],
    ) -> Result<Option<Vec<T>>, String> {
        self.of_layers("layer_types", num_layers, known)
    }

    /// What a list of names says of each layer, by those in `known`; `None` where it is absent.
    pub(super) fn of_layers<T: Copy, const N: usize>(
        &self,
        name: &str,
        num_layers: usize,
        known: [(&str, T); N],
    ) -> Result<Option<Vec<T>>, String> {
        let types = match self.get(name) {
            None => return Ok(None),
            Some(Value::Array(types)) if types.len() == num_layers => types,
            Some(_) => {
                return Err(format!(
                    "'{name}' must be a list with one entry for each of {num_layers} layers"
                ));
            }
        };
        let meant = |(index, kind): (usize, &Value)| {
            known.iter().find(|(name, _)| kind.as_str() == Some(name)).map(|(_, meant)| *meant).ok_or_else(
                || {
                    let names = known.map(|(name, _)| name).join(" or ");
                    format!("'{name}' entry {index} must be {names}, got {kind}")
                },
            )
        };
        types.iter().enumerate().map(meant).collect::<Result<_, _>>().map(Some)
    }

    /// A width of heads that rotary positions can be applied to.
    pub(super) fn check_head_dim(head_dim: usize) -> Result<(), String> {
        if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
            return Err(format!(
                "'head_dim' must be even for rotary positions and at most {MAX_HEAD_DIM}, got {head_dim}"
            ));
        }
        Ok(())
    }

    /// Whether the head is the embedding matrix; where nothing is said, the weights decide.
    pub(super) fn tied_head(&self) -> Result<Option<bool>, String> {
        self.optional_flag("tie_word_embeddings")
    }
}
