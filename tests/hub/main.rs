//! Models from a hub: downloads (`download`), the cache (`cache`), refusals (`access`).
//!
//! Owns the model and the set-up that the tests share. Each test has a hub of its own on 127.0.0.1
//! (`server`) and a cache of its own.

mod access;
mod cache;
mod download;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mlxbatch::models::hub::{HubError, HubOptions, Snapshot, fetch};
use server::{Fault, Hub, REPO};

const SHARD_1: &str = "model-00001-of-00002.safetensors";
const SHARD_2: &str = "model-00002-of-00002.safetensors";
const SHARD_BYTES: usize = 200_000;

fn shard(seed: usize) -> Vec<u8> {
    (0..SHARD_BYTES).map(|at| ((at * 31 + at / 251 + seed) % 253) as u8).collect()
}

/// A repository as they are: two shards, the same weights again in other layouts, code, a picture.
fn sharded_model() -> Vec<(String, Vec<u8>)> {
    let index = format!(r#"{{"metadata":{{}},"weight_map":{{"a":"{SHARD_1}","b":"{SHARD_2}"}}}}"#);
    let texts = [
        (".gitattributes", "x"),
        ("README.md", "# tiny"),
        ("chat_template.jinja", "{{ messages }}"),
        ("config.json", r#"{"model_type":"llama"}"#),
        ("modeling_x.py", "import os"),
        ("tokenizer.json", "{}"),
        ("tokenizer.model", "x"),
        ("pytorch_model.bin", "pickle"),
        ("consolidated.00.pth", "pickle"),
        ("onnx/config.json", "{}"),
        ("../../../escaped.json", "{}"),
        ("model.safetensors.index.json", &index),
    ];
    let mut files: Vec<_> =
        texts.iter().map(|(name, text)| (name.to_string(), text.as_bytes().to_vec())).collect();
    files.push(("consolidated.safetensors".to_string(), shard(7)));
    files.push((SHARD_1.to_string(), shard(1)));
    files.push((SHARD_2.to_string(), shard(2)));
    files
}

struct Setup {
    hub: Hub,
    home: tempfile::TempDir,
    options: HubOptions,
}

/// Starts a hub and reads the options as a run would, from its address and an empty HF_HOME.
fn setup(files: Vec<(String, Vec<u8>)>) -> Setup {
    let hub = Hub::start(files);
    let home = tempfile::tempdir().unwrap();
    let mut options = HubOptions::from_vars(|name| match name {
        "HF_ENDPOINT" => Some(format!("{}/", hub.endpoint)),
        "HF_HOME" => Some(home.path().to_str().unwrap().to_string()),
        _ => None,
    });
    options.first_retry_delay = Duration::from_millis(1);
    options.quiet = true;
    Setup { hub, home, options }
}

impl Setup {
    fn fetch(&self) -> Result<Snapshot, HubError> {
        fetch(REPO, &self.options)
    }

    fn repo_dir(&self) -> PathBuf {
        self.home.path().join("hub/models--owner--tiny")
    }

    fn fault(&self, name: &str, faults: &[Fault]) {
        self.hub.state().faults.insert(name.to_string(), faults.to_vec());
    }

    /// Ranges asked of a file's bytes, in order; "" where the whole file was asked for.
    fn ranges(&self, name: &str) -> Vec<String> {
        let log = self.hub.take_log();
        let of_file = log.iter().filter(|request| request.path.starts_with(&format!("/cdn/{name}")));
        of_file.map(|request| request.header("range").unwrap_or_default().to_string()).collect()
    }

    fn num_sent_bytes(&self, name: &str) -> usize {
        self.hub.state().num_sent_bytes.get(name).copied().unwrap_or(0)
    }
}

fn assert_shards(dir: &Path) {
    assert!(fs::read(dir.join(SHARD_1)).unwrap() == shard(1), "the first shard differs");
    assert!(fs::read(dir.join(SHARD_2)).unwrap() == shard(2), "the second shard differs");
}

fn assert_says(error: &HubError, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}
