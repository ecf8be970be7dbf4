//! What a run noticed but could live with, each said once.
//!
//! Owns collecting and counting. When they are printed is the command's business.

use std::collections::HashMap;

use crate::terminal::bounded;

/// More distinct warnings than this are only counted, so that odd input cannot fill memory.
const MAX_WARNINGS: usize = 50;

/// Collects warnings, one per key, and counts how often each came up.
#[derive(Debug, Default)]
pub struct Warnings {
    positions: HashMap<String, usize>,
    entries: Vec<Entry>,
    num_dropped: u64,
}

#[derive(Debug)]
struct Entry {
    text: String,
    num_times: u64,
}

impl Warnings {
    /// Adds a warning; a key that is known already is only counted.
    ///
    /// The text is made only for a new key.
    pub fn add(&mut self, key: &str, text: impl FnOnce() -> String) {
        if let Some(entry) = self.positions.get(key).and_then(|&position| self.entries.get_mut(position)) {
            entry.num_times += 1;
        } else if self.entries.len() < MAX_WARNINGS {
            self.positions.insert(key.to_owned(), self.entries.len());
            // Some quote what somebody else wrote.
            self.entries.push(Entry { text: bounded(&text()).into_owned(), num_times: 1 });
        } else {
            self.num_dropped += 1;
        }
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The texts, in the order they first came up.
    pub fn texts(&self) -> Vec<String> {
        let mut texts: Vec<String> = self
            .entries
            .iter()
            .map(|entry| match entry.num_times {
                1 => entry.text.clone(),
                n => format!("{}; {n} times in all", entry.text),
            })
            .collect();
        match self.num_dropped {
            0 => {}
            1 => texts.push("1 more warning of another kind".into()),
            n => texts.push(format!("{n} more warnings of other kinds")),
        }
        texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_said_once_with_its_count() {
        let mut warnings = Warnings::default();
        warnings.add("a", || "first".into());
        warnings.add("b", || "second".into());
        warnings.add("a", || unreachable!("a known key makes no text"));
        assert_eq!(warnings.texts(), ["first; 2 times in all", "second"]);
    }

    #[test]
    fn a_flood_of_kinds_is_counted_not_kept() {
        let mut warnings = Warnings::default();
        for number in 0..MAX_WARNINGS + 7 {
            warnings.add(&number.to_string(), || number.to_string());
        }
        let texts = warnings.texts();
        assert_eq!(texts.len(), MAX_WARNINGS + 1);
        assert_eq!(texts.last().map(String::as_str), Some("7 more warnings of other kinds"));
    }
}
