//! Which keys of a model's files change nothing here, and what becomes of the others.
//!
//! Owns the rule that no key is passed over in silence: it is read, or a table says that it changes
//! nothing, or at which values, or a warning names it. The tables lie beside the readers of their files;
//! which keys are read only these know.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Longer lists of names help nobody.
const MAX_NAMES: usize = 12;
/// Values beyond this are cut when they are shown.
const MAX_SHOWN_CHARS: usize = 60;

/// What is known of one key that is not read.
#[derive(Debug, Clone, Copy)]
pub struct KeyRule {
    /// The whole key, or its beginning followed by `*`.
    pub key: &'static str,
    pub effect: Effect,
}

/// A row of a table.
pub const fn rule(key: &'static str, effect: Effect) -> KeyRule {
    KeyRule { key, effect }
}

/// What a key that is not read would do.
#[derive(Debug, Clone, Copy)]
pub enum Effect {
    /// Is read, but not by the reader of the rest of the file; says by whom.
    ReadBy(&'static str),
    /// Changes no answer, whatever its value; says why.
    Nothing(&'static str),
    /// Changes no answer at these values. At any other the answer would be wrong: says what it would do.
    ErrorUnless(&'static [Plain], &'static str),
    /// Changes no answer at these values. At any other answers are worth having but not quite what the
    /// publisher would get: says what it would do.
    WarningUnless(&'static [Plain], &'static str),
}

/// A value that a table can name. Null counts as absent everywhere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Plain {
    Bool(bool),
    Number(f64),
    Text(&'static str),
    /// A list, object or text without content.
    Empty,
}

impl Plain {
    fn is(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Bool(meant), Value::Bool(found)) => meant == *found,
            (Self::Number(meant), Value::Number(found)) => found.as_f64() == Some(meant),
            (Self::Text(meant), Value::String(found)) => meant == found,
            (Self::Empty, Value::Array(list)) => list.is_empty(),
            (Self::Empty, Value::Object(object)) => object.is_empty(),
            (Self::Empty, Value::String(text)) => text.is_empty(),
            _ => false,
        }
    }
}

/// Which keys there are that nobody has read, and what is to be said of them.
///
/// Files and their parts are accounted for one after the other; what is to be said comes out together.
#[derive(Debug, Default)]
pub struct Unread {
    /// Keys that change answers, as `'key' = value (what it does)`.
    warned: BTreeSet<String>,
    unknown: BTreeSet<String>,
}

impl Unread {
    /// Looks at the `entries` that `is_read` denies, with the first of the `tables` that knows a key.
    ///
    /// `place` is put before the keys, such as `text_config.`. The error names the first key that would make
    /// answers wrong, its value and what it would do.
    pub fn account<'a>(
        &mut self,
        place: &str,
        entries: impl IntoIterator<Item = (&'a str, &'a Value)>,
        is_read: impl Fn(&str) -> bool,
        tables: &[&[KeyRule]],
    ) -> Result<(), String> {
        // In order of name, so that the same file gives the same words.
        let entries: BTreeMap<&str, &Value> =
            entries.into_iter().filter(|(key, value)| !value.is_null() && !is_read(key)).collect();
        for (key, value) in entries {
            let named = || format!("'{place}{key}' = {}", shown(value));
            match rule_of(key, tables).map(|rule| rule.effect) {
                None => drop(self.unknown.insert(format!("'{place}{key}'"))),
                Some(Effect::ReadBy(_) | Effect::Nothing(_)) => {}
                Some(Effect::ErrorUnless(neutral, what)) => {
                    if !neutral.iter().any(|plain| plain.is(value)) {
                        return Err(format!("{} is not supported: {what}", named()));
                    }
                }
                Some(Effect::WarningUnless(neutral, what)) => {
                    if !neutral.iter().any(|plain| plain.is(value)) {
                        self.warned.insert(format!("{} ({what})", named()));
                    }
                }
            }
        }
        Ok(())
    }

    /// The first key that no table knows.
    pub fn unknown(&self) -> Option<&str> {
        self.unknown.first().map(String::as_str)
    }

    /// The warnings about the file at `path`: at most one of either kind.
    pub fn warnings(&self, path: &str) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.warned.is_empty() {
            warnings.push(format!(
                "{path}: not acted on, so that answers may differ from the publisher's: {}",
                joined(&self.warned)
            ));
        }
        if !self.unknown.is_empty() {
            warnings.push(format!(
                "{path}: not known to mlxbatch, and not looked at: {}; answers are right only if nothing \
                 depends on them",
                joined(&self.unknown)
            ));
        }
        warnings
    }
}

fn rule_of<'a>(key: &str, tables: &[&'a [KeyRule]]) -> Option<&'a KeyRule> {
    tables.iter().flat_map(|table| table.iter()).find(|rule| match rule.key.strip_suffix('*') {
        Some(beginning) => key.starts_with(beginning),
        None => key == rule.key,
    })
}

fn joined(names: &BTreeSet<String>) -> String {
    let shown = names.iter().take(MAX_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MAX_NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TABLE: &[KeyRule] = &[
        KeyRule { key: "use_cache", effect: Effect::Nothing("there is always one") },
        KeyRule { key: "_*", effect: Effect::Nothing("private") },
        KeyRule {
            key: "num_beams",
            effect: Effect::ErrorUnless(&[Plain::Number(1.0)], "searches several answers"),
        },
        KeyRule {
            key: "bad_words",
            effect: Effect::WarningUnless(&[Plain::Empty, Plain::Bool(false)], "forbids words"),
        },
    ];

    fn account(file: Value) -> Result<Vec<String>, String> {
        let mut unread = Unread::default();
        let entries = file.as_object().expect("an object").iter().map(|(key, value)| (key.as_str(), value));
        unread.account("", entries, |key| key == "read", &[TABLE])?;
        Ok(unread.warnings("a.json"))
    }

    #[test]
    fn what_is_read_or_changes_nothing_is_not_worth_a_word() {
        let file = json!({"read": 1, "use_cache": false, "_private": "x", "num_beams": 1.0, "bad_words": [],
            "unknown": null});
        assert_eq!(account(file).unwrap(), Vec::<String>::new());
        assert_eq!(account(json!({"bad_words": false, "num_beams": null})).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_value_that_makes_answers_wrong_is_an_error_with_key_and_value() {
        let error = account(json!({"num_beams": 4})).unwrap_err();
        assert_eq!(error, "'num_beams' = 4 is not supported: searches several answers");
    }

    #[test]
    fn the_rest_is_two_warnings_at_most() {
        let warnings = account(json!({"bad_words": ["x".repeat(99)], "new_b": 1, "new_a": {}})).unwrap();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(
            warnings[0].starts_with("a.json: not acted on") && warnings[0].contains("'bad_words' = [\"xxx")
        );
        assert!(warnings[0].contains('…') && warnings[0].contains("forbids words"), "{}", warnings[0]);
        assert!(warnings[1].contains("'new_a', 'new_b'"), "{}", warnings[1]);
        let many: Value = (0..20).map(|index| (format!("key{index:02}"), json!(1))).collect();
        assert!(account(many).unwrap()[0].contains("'key11' and 8 more"));
    }
}
