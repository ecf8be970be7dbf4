//! Reading the small files of a model folder that may be absent.
//!
//! Owns the difference between "not there" and "there but unusable". What the files say belongs
//! to their readers.

use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;

use super::TextError;
use crate::small_file;

/// More than the largest of them in use by a factor of ten.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// The same of a `tokenizer.json`.
pub(super) const MAX_TOKENIZER_BYTES: u64 = 512 << 20;

/// Reads a text file; `None` when there is no such file.
pub(super) fn read_text(path: &Path) -> Result<Option<String>, TextError> {
    match small_file::read_text(path, MAX_FILE_BYTES) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(TextError::io(path, &e)),
    }
}

/// Reads a JSON file; `None` when there is no such file.
pub(super) fn read_json(path: &Path) -> Result<Option<Value>, TextError> {
    let Some(text) = read_text(path)? else {
        return Ok(None);
    };
    match crate::json::parse_python(&text) {
        Ok(value) => Ok(Some(value)),
        Err(e) => Err(TextError::Json { path: path.to_owned(), message: e.to_string() }),
    }
}

/// Returns the text of a special token, written as a string or as an added-token object.
pub(super) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}
