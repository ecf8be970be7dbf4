//! Which files of a folder make up a model, and whether they are all there.
//!
//! Owns the rules for choosing weight files (index, single file, numbered shards) and the check
//! of a model folder. Where a folder comes from is `source`'s and `hub`'s business; what is
//! inside the files is read elsewhere.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::small_file;

/// More than the largest list of shards in use by a factor of five.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Lists the shards of a model whose weights are split.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

const CONFIG_FILE: &str = "config.json";
const TOKENIZER_FILE: &str = "tokenizer.json";
const SINGLE_FILE: &str = "model.safetensors";

/// Why a folder cannot be used as a model.
#[derive(Debug, Error)]
pub enum FolderError {
    #[error("model folder {}: {} not there; {}", .dir.display(), missing_clause(.missing), missing_advice(.missing))]
    Missing { dir: PathBuf, missing: Vec<String> },
    #[error("{}: {reason}; fetch the file again, the model cannot be read without it", .path.display())]
    BadIndex { path: PathBuf, reason: String },
    #[error("cannot read {}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A complete model folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    pub dir: PathBuf,
    /// The weight files, in order of name; at least one.
    pub weights: Vec<PathBuf>,
}

/// What must be fetched or found for a model, judged by file names alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needed {
    /// Names of the weight files, sorted.
    pub weights: Vec<String>,
    /// Names, or descriptions where there is no name, of what is needed but not listed.
    pub missing: Vec<String>,
}

/// Checks that a folder holds a whole model and lists its weight files.
pub fn check_folder(dir: &Path) -> Result<ModelFolder, FolderError> {
    let mut names = BTreeSet::new();
    let io_error = |source| FolderError::Io { path: dir.to_path_buf(), source };
    for entry in std::fs::read_dir(dir).map_err(io_error)? {
        let entry = entry.map_err(io_error)?;
        // Hub snapshots are links into a blob store: a link whose target is gone is a missing file.
        if entry.path().is_file() {
            names.extend(entry.file_name().into_string());
        }
    }
    let index = if names.contains(INDEX_FILE) { Some(read_index(&dir.join(INDEX_FILE))?) } else { None };
    let needed = needed_files(&names, index.as_deref());
    if !needed.missing.is_empty() {
        return Err(FolderError::Missing { dir: dir.to_path_buf(), missing: needed.missing });
    }
    let weights = needed.weights.iter().map(|name| dir.join(name)).collect();
    Ok(ModelFolder { dir: dir.to_path_buf(), weights })
}

/// Reads the names of the shards that an index file lists, sorted and without repetition.
pub fn read_index(path: &Path) -> Result<Vec<String>, FolderError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::HashMap<String, String>,
    }
    let bad = |reason: String| FolderError::BadIndex { path: path.to_path_buf(), reason };
    let text = small_file::read_text(path, MAX_INDEX_BYTES)
        .map_err(|source| FolderError::Io { path: path.to_path_buf(), source })?;
    let index: Index = serde_json::from_str(&text).map_err(|e| bad(format!("not a shard index: {e}")))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    if shards.is_empty() {
        return Err(bad("lists no weights".to_string()));
    }
    // The names become paths: one that leaves the folder would read, or fetch, anything.
    match shards.iter().find(|name| !is_plain_name(name) || !name.ends_with(".safetensors")) {
        Some(name) => Err(bad(format!("names {name:?}, which is not a .safetensors file beside it"))),
        None => Ok(shards.into_iter().collect()),
    }
}

/// Chooses the weight files among the names in a folder and says what a model still lacks.
///
/// With an index, exactly its shards count; some repositories also ship the same weights in a
/// second layout, which would otherwise be loaded (or downloaded) twice.
pub fn needed_files(names: &BTreeSet<String>, index: Option<&[String]>) -> Needed {
    let mut needed = Needed::default();
    for name in [CONFIG_FILE, TOKENIZER_FILE] {
        if !names.contains(name) {
            needed.missing.push(name.to_string());
        }
    }
    needed.weights = match index {
        Some(shards) => shards.to_vec(),
        None if names.contains(SINGLE_FILE) => vec![SINGLE_FILE.to_string()],
        None => unindexed_weights(names),
    };
    needed.missing.extend(needed.weights.iter().filter(|name| !names.contains(*name)).cloned());
    if needed.weights.is_empty() {
        needed.missing.push("weights (*.safetensors)".to_string());
    }
    needed
}

/// Whether a name stays in its own folder when it is joined to it.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0'])
}

/// Takes all safetensors files and completes numbered series: a copy that stopped after the
/// second of three shards would otherwise pass for a model of two.
fn unindexed_weights(names: &BTreeSet<String>) -> Vec<String> {
    let present = names.iter().filter(|name| name.ends_with(".safetensors") && is_plain_name(name));
    let mut weights = BTreeSet::new();
    for name in present {
        weights.insert(name.clone());
        if let Some((prefix, num_shards, width)) = parse_shard_name(name) {
            weights.extend(
                (1..=num_shards)
                    .map(|shard| format!("{prefix}-{shard:0width$}-of-{num_shards:0width$}.safetensors")),
            );
        }
    }
    weights.into_iter().collect()
}

/// Splits `model-00001-of-00003.safetensors` into its prefix, number of shards and digits.
fn parse_shard_name(name: &str) -> Option<(&str, usize, usize)> {
    // No model has more shards; a name that says so must not make the list of names explode.
    const MAX_NUM_SHARDS: usize = 10_000;
    let (rest, total) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (prefix, shard) = rest.rsplit_once('-')?;
    let all_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if shard.len() != total.len() || !all_digits(shard) || !all_digits(total) {
        return None;
    }
    let num_shards = total.parse().ok().filter(|num| (1..=MAX_NUM_SHARDS).contains(num))?;
    Some((prefix, num_shards, total.len()))
}

fn missing_clause(missing: &[String]) -> String {
    const MAX_NAMED: usize = 5;
    let named = missing.iter().take(MAX_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let rest = match missing.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        num => format!(" and {num} more"),
    };
    format!("{named}{rest} {}", if missing.len() == 1 { "is" } else { "are" })
}

fn missing_advice(missing: &[String]) -> &'static str {
    if missing.iter().any(|name| name == CONFIG_FILE) {
        "--model takes a folder in the Hugging Face or MLX layout: config.json, tokenizer.json and \
         *.safetensors"
    } else if missing.iter().any(|name| name == TOKENIZER_FILE) {
        "copy tokenizer.json from the original model's repository into it (tokenizer.model alone is not read)"
    } else {
        "copy or download the missing files into it"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| name.to_string()).collect()
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    const INDEX: &str = r#"{"metadata":{},"weight_map":{
        "a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors",
        "c":"model-00001-of-00002.safetensors"}}"#;

    #[test]
    fn an_indexed_folder_lists_exactly_its_shards() {
        let dir = folder(&[
            ("config.json", "{}"),
            ("tokenizer.json", "{}"),
            (INDEX_FILE, INDEX),
            ("model-00001-of-00002.safetensors", ""),
            ("model-00002-of-00002.safetensors", ""),
            ("consolidated.safetensors", ""),
        ]);
        let model = check_folder(dir.path()).unwrap();
        let expected = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        assert_eq!(model.weights, expected.map(|name| dir.path().join(name)));
    }

    #[test]
    fn a_missing_shard_is_named() {
        let dir = folder(&[
            ("config.json", "{}"),
            ("tokenizer.json", "{}"),
            (INDEX_FILE, INDEX),
            ("model-00001-of-00002.safetensors", ""),
        ]);
        let message = check_folder(dir.path()).unwrap_err().to_string();
        assert!(message.contains("model-00002-of-00002.safetensors is not there"), "{message}");
        assert!(!message.contains("00001"), "{message}");
    }

    #[test]
    fn everything_missing_is_named_at_once() {
        let dir = folder(&[("notes.txt", "")]);
        let message = check_folder(dir.path()).unwrap_err().to_string();
        for part in ["config.json", "tokenizer.json", "*.safetensors"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_folder_without_tokenizer_json_says_where_to_get_it() {
        let dir = folder(&[("config.json", "{}"), ("model.safetensors", ""), ("tokenizer.model", "")]);
        let message = check_folder(dir.path()).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json is not there; copy tokenizer.json"), "{message}");
    }

    #[test]
    fn a_single_file_is_preferred_and_any_safetensors_file_will_do() {
        let base = ["config.json", "tokenizer.json"];
        let with = |more: &[&str]| needed_files(&names(&[&base[..], more].concat()), None);
        assert_eq!(with(&["model.safetensors", "other.safetensors"]).weights, ["model.safetensors"]);
        assert_eq!(with(&["weights.00.safetensors"]).weights, ["weights.00.safetensors"]);
        assert_eq!(with(&["pytorch_model.bin"]).missing, ["weights (*.safetensors)"]);
    }

    #[test]
    fn a_numbered_series_without_an_index_must_be_whole() {
        let needed =
            needed_files(&names(&["config.json", "tokenizer.json", "m-00002-of-00003.safetensors"]), None);
        assert_eq!(needed.missing, ["m-00001-of-00003.safetensors", "m-00003-of-00003.safetensors"]);
        // Not a series, or an absurd one: taken as it is.
        for odd in ["m-1-of-x.safetensors", "m-00001-of-99999.safetensors", "m-0-of-0.safetensors"] {
            assert_eq!(needed_files(&names(&["config.json", "tokenizer.json", odd]), None).weights, [odd]);
        }
    }

    #[test]
    fn an_index_cannot_point_outside_its_folder() {
        for name in ["../secret.safetensors", "/etc/x.safetensors", "a\\\\b.safetensors", "modeling.py", ""] {
            let dir = folder(&[(INDEX_FILE, &format!(r#"{{"weight_map":{{"a":"{name}"}}}}"#))]);
            let message = check_folder(dir.path()).unwrap_err().to_string();
            assert!(message.contains(INDEX_FILE), "{name}: {message}");
        }
    }

    #[test]
    fn a_broken_index_names_the_file() {
        for text in ["{", "[]", r#"{"weight_map":{}}"#, r#"{"weight_map":{"a":3}}"#] {
            let dir = folder(&[(INDEX_FILE, text)]);
            let message = check_folder(dir.path()).unwrap_err().to_string();
            assert!(message.contains(INDEX_FILE), "{text}: {message}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_dangling_link_is_a_missing_file() {
        let dir = folder(&[("config.json", "{}"), ("tokenizer.json", "{}")]);
        std::os::unix::fs::symlink("nowhere", dir.path().join("model.safetensors")).unwrap();
        assert!(matches!(check_folder(dir.path()), Err(FolderError::Missing { .. })));
    }
}
