//! Models from a hub: downloads, broken connections, the cache, refusals.
//!
//! Runs against a hub of its own on 127.0.0.1 (`server`), each test with its own hub and cache.

mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mlxbatch::models::hub::{AccessToken, HubError, HubOptions, Snapshot, fetch};
use mlxbatch::models::{ModelFiles, ModelSource, SourceError};
use server::{COMMIT, Fault, Hub, REPO, sha256_hex};

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

#[test]
fn a_sharded_model_is_downloaded_into_the_layout_python_shares() {
    let setup = setup(sharded_model());
    let dir = setup.repo_dir().join("snapshots").join(COMMIT);
    let expected = ModelFiles::Folder {
        dir: dir.clone(),
        name: REPO.to_string(),
        weights: vec![dir.join(SHARD_1), dir.join(SHARD_2)],
    };
    assert_eq!(ModelSource::resolve(REPO, &setup.options).unwrap(), expected);
    assert_shards(&dir);
    assert_eq!(fs::read_to_string(setup.repo_dir().join("refs/main")).unwrap(), COMMIT);
    let link = fs::read_link(dir.join(SHARD_1)).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(sha256_hex(&shard(1))));

    // The second run asks once whether there is something newer, and fetches nothing.
    setup.hub.take_log();
    assert_eq!(ModelSource::resolve(REPO, &setup.options).unwrap(), expected);
    let paths: Vec<_> = setup.hub.take_log().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, [format!("/api/models/{REPO}/revision/main?blobs=true")]);
}

#[test]
fn only_what_a_model_needs_is_asked_for() {
    let setup = setup(sharded_model());
    setup.fetch().unwrap();
    let prefix = format!("/{REPO}/resolve/{COMMIT}/");
    let log = setup.hub.take_log();
    let mut asked: Vec<_> = log.iter().filter_map(|request| request.path.strip_prefix(&prefix)).collect();
    asked.sort_unstable();
    let needed = [
        "chat_template.jinja",
        "config.json",
        SHARD_1,
        SHARD_2,
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(asked, needed);
    assert!(!setup.home.path().join("escaped.json").exists());
}

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let setup = setup(sharded_model());
    setup.fault(
        SHARD_2,
        &[Fault::BreakAfter(70_000), Fault::Status(503), Fault::BreakAfter(0), Fault::BreakAfter(1)],
    );
    let snapshot = setup.fetch().unwrap();
    assert_shards(&snapshot.dir);
    let ranges = setup.ranges(SHARD_2);
    assert_eq!(ranges, ["", "bytes=70000-", "bytes=70000-", "bytes=70000-", "bytes=70001-"]);
    assert_eq!(setup.num_sent_bytes(SHARD_2), SHARD_BYTES);
}

#[test]
fn an_interrupted_run_leaves_no_half_model_and_the_next_one_goes_on() {
    let setup = setup(sharded_model());
    let never_again = [Fault::BreakAfter(0); 8];
    setup.fault(SHARD_2, &[&[Fault::BreakAfter(120_000)][..], &never_again].concat());
    let error = setup.fetch().unwrap_err();
    assert!(matches!(error, HubError::Interrupted { part_bytes: 120_000, .. }), "{error}");
    assert_says(&error, &[SHARD_2, "goes on from there"]);
    let blobs = setup.repo_dir().join("blobs");
    assert!(!blobs.join(sha256_hex(&shard(2))).exists());
    let offline = HubOptions { offline: true, ..setup.options.clone() };
    assert!(matches!(fetch(REPO, &offline), Err(HubError::Offline { .. })));

    setup.fault(SHARD_2, &[]);
    setup.hub.take_log();
    assert_shards(&setup.fetch().unwrap().dir);
    assert_eq!(setup.ranges(SHARD_2), ["bytes=120000-"]);
    assert_eq!(setup.num_sent_bytes(SHARD_1), SHARD_BYTES, "the first shard was whole already");
    let left: Vec<_> = fs::read_dir(&blobs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("incomplete")), "{left:?}");
}

#[test]
fn a_server_without_ranges_starts_over_instead_of_doubling_the_beginning() {
    // hf-hub 0.5 appends whatever comes to the partial file: an answer of 200 to a request for a
    // range gave a file of the beginning, then the whole.
    let setup = setup(sharded_model());
    setup.hub.state().knows_ranges = false;
    setup.fault(SHARD_1, &[Fault::BreakAfter(50_000)]);
    assert_shards(&setup.fetch().unwrap().dir);
    assert_eq!(setup.ranges(SHARD_1), ["", "bytes=50000-"]);
}

#[test]
fn a_server_that_never_gets_further_is_given_up() {
    let setup = setup(sharded_model());
    setup.hub.state().knows_ranges = false;
    setup.fault(SHARD_1, &[Fault::BreakAfter(50_000); 20]);
    assert!(matches!(setup.fetch(), Err(HubError::Interrupted { .. })));
    assert!(setup.ranges(SHARD_1).len() < 20);
}

#[test]
fn damaged_bytes_are_fetched_again_and_never_kept() {
    let setup = setup(sharded_model());
    setup.fault(SHARD_1, &[Fault::Damage]);
    setup.fault("config.json", &[Fault::Damage]);
    let snapshot = setup.fetch().unwrap();
    assert_shards(&snapshot.dir);
    assert_eq!(fs::read_to_string(snapshot.dir.join("config.json")).unwrap(), r#"{"model_type":"llama"}"#);
}

#[test]
fn a_file_that_is_damaged_twice_is_an_error() {
    let setup = setup(sharded_model());
    setup.fault(SHARD_1, &[Fault::Damage, Fault::Damage]);
    let error = setup.fetch().unwrap_err();
    assert!(matches!(error, HubError::Damaged { .. }), "{error}");
    assert_says(&error, &[SHARD_1, &sha256_hex(&shard(1))]);
    assert!(!setup.repo_dir().join("snapshots").join(COMMIT).join(SHARD_1).exists());
}

#[test]
fn a_part_left_by_something_else_does_not_end_up_in_the_model() {
    let setup = setup(sharded_model());
    let blobs = setup.repo_dir().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    let part = |seed: usize| blobs.join(sha256_hex(&shard(seed))).with_extension("incomplete");
    fs::write(part(1), vec![0; 1000]).unwrap();
    fs::write(part(2), vec![0; SHARD_BYTES + 1]).unwrap();
    assert_shards(&setup.fetch().unwrap().dir);
}

#[test]
fn offline_runs_make_no_connection() {
    let setup = setup(sharded_model());
    let offline = HubOptions { offline: true, ..setup.options.clone() };
    let error = fetch(REPO, &offline).unwrap_err();
    assert_says(
        &error,
        &[REPO, "offline", "--offline or HF_HUB_OFFLINE", "never been downloaded", "run once online"],
    );
    assert!(setup.hub.take_log().is_empty());

    let online = setup.fetch().unwrap();
    setup.hub.take_log();
    assert_eq!(fetch(REPO, &offline).unwrap(), online);
    let other = HubOptions { revision: Some("v2".to_string()), ..offline.clone() };
    assert_says(&fetch(REPO, &other).unwrap_err(), &["v2", "that revision has not been downloaded"]);
    fs::remove_file(online.dir.join(SHARD_2)).unwrap();
    assert_says(&fetch(REPO, &offline).unwrap_err(), &["incomplete", SHARD_2]);
    assert!(setup.hub.take_log().is_empty());
}

#[test]
fn an_unreachable_hub_is_a_warning_with_a_cached_model_and_an_error_without() {
    let setup = setup(sharded_model());
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = HubOptions { endpoint: format!("http://{closed}"), ..setup.options.clone() };
    let error = fetch(REPO, &options).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
    assert_says(&error, &[&options.endpoint, "HF_ENDPOINT"]);

    let online = setup.fetch().unwrap();
    let cached = fetch(REPO, &options).unwrap();
    assert_eq!(cached.dir, online.dir);
    let warning = cached.warning.unwrap();
    assert!(warning.contains(&options.endpoint) && warning.contains("in the cache"), "{warning}");
}

#[test]
fn a_busy_hub_is_asked_again_and_then_the_cache_is() {
    let setup = setup(sharded_model());
    setup.hub.state().listing_faults = vec![503, 429];
    let online = setup.fetch().unwrap();
    assert_eq!(online.warning, None);
    setup.hub.state().listing_faults = vec![503; 9];
    let cached = setup.fetch().unwrap();
    assert_eq!(cached.dir, online.dir);
    assert!(cached.warning.unwrap().contains("503"));
}

#[test]
fn a_private_repository_needs_a_token_and_the_token_stays_with_the_hub() {
    let mut setup = setup(sharded_model());
    setup.hub.state().private_to = Some("hf_right".to_string());
    let error = setup.fetch().unwrap_err();
    assert!(matches!(error, HubError::HiddenOrMissing { .. }), "{error}");
    assert_says(&error, &[REPO, "HF_TOKEN", "private"]);

    setup.options.token = Some(AccessToken::new("hf_wrong", "HF_TOKEN"));
    let error = setup.fetch().unwrap_err();
    assert!(matches!(error, HubError::NoSuchRepo { .. }), "{error}");
    assert!(!error.to_string().contains("hf_wrong"));

    setup.options.token = Some(AccessToken::new("hf_right", "HF_TOKEN"));
    setup.hub.take_log();
    assert_shards(&setup.fetch().unwrap().dir);
    let (elsewhere, at_hub): (Vec<_>, Vec<_>) =
        setup.hub.take_log().into_iter().partition(|request| request.path.starts_with("/cdn/"));
    assert!(!at_hub.is_empty() && !elsewhere.is_empty());
    for request in at_hub {
        assert_eq!(request.header("authorization"), Some("Bearer hf_right"), "{}", request.path);
    }
    for request in elsewhere {
        assert_eq!(request.header("authorization"), None, "{}", request.path);
    }
}

#[test]
fn a_refused_repository_is_not_silently_taken_from_the_cache() {
    let setup = setup(sharded_model());
    setup.fetch().unwrap();
    setup.hub.state().private_to = Some("hf_right".to_string());
    assert_says(&setup.fetch().unwrap_err(), &["HF_TOKEN", "can be used with --offline"]);
}

#[test]
fn a_gated_repository_says_where_to_accept_its_licence() {
    let mut setup = setup(sharded_model());
    setup.hub.state().gated = true;
    let page = format!("{}/{REPO}", setup.hub.endpoint);
    assert_says(&setup.fetch().unwrap_err(), &["gated", &page, "set HF_TOKEN"]);
    setup.options.token = Some(AccessToken::new("hf_any", "the token file"));
    assert_says(&setup.fetch().unwrap_err(), &["gated", &page, "same account", "the token file"]);
}

#[test]
fn an_unknown_repository_and_a_wrong_revision_are_told_apart() {
    let mut setup = setup(sharded_model());
    let error = ModelSource::resolve("owner/no-such", &setup.options).unwrap_err();
    assert!(matches!(error, SourceError::Hub { .. }), "{error}");
    assert!(error.to_string().contains("owner/no-such") && error.to_string().contains("check the name"));

    setup.options.revision = Some("no-such".to_string());
    assert_says(&setup.fetch().unwrap_err(), &["no revision no-such", "--revision"]);
}

#[test]
fn revisions_with_a_slash_and_full_commits_work() {
    let mut setup = setup(sharded_model());
    setup.options.revision = Some("refs/pr/5".to_string());
    let branch = setup.fetch().unwrap();
    assert_eq!(fs::read_to_string(setup.repo_dir().join("refs/refs/pr/5")).unwrap(), COMMIT);
    // A commit cannot change: once it is here, nobody is asked.
    setup.hub.take_log();
    setup.options.revision = Some(COMMIT.to_string());
    assert_eq!(setup.fetch().unwrap(), branch);
    assert!(setup.hub.take_log().is_empty());
}

#[test]
fn a_new_commit_fetches_what_changed_and_counts_only_when_whole() {
    let setup = setup(sharded_model());
    let old = setup.fetch().unwrap();
    let new_commit = "2".repeat(40);
    {
        let mut state = setup.hub.state();
        state.commit = new_commit.clone();
        state.files.retain(|(name, _)| name != SHARD_2);
        state.files.push((SHARD_2.to_string(), shard(3)));
        state.faults.insert(SHARD_2.to_string(), vec![Fault::BreakAfter(0); 9]);
        state.num_sent_bytes.clear();
    }
    let meanwhile = setup.fetch().unwrap();
    assert_eq!(meanwhile.dir, old.dir);
    assert!(meanwhile.warning.unwrap().contains(SHARD_2));
    assert_shards(&old.dir);

    setup.fault(SHARD_2, &[]);
    let new = setup.fetch().unwrap();
    assert!(new.dir.ends_with(&new_commit), "{}", new.dir.display());
    assert!(fs::read(new.dir.join(SHARD_2)).unwrap() == shard(3), "the new shard differs");
    assert_eq!(setup.num_sent_bytes(SHARD_1), 0, "the first shard did not change");
}

#[test]
fn a_mirror_that_lists_only_names_is_asked_for_each_file() {
    let setup = setup(sharded_model());
    setup.hub.state().bare_listing = true;
    setup.fault(SHARD_1, &[Fault::BreakAfter(9), Fault::Damage]);
    assert_shards(&setup.fetch().unwrap().dir);
    assert!(setup.repo_dir().join("blobs").join(sha256_hex(&shard(1))).exists());
    assert!(setup.hub.take_log().iter().any(|request| request.method == "HEAD"));
}

#[test]
fn a_repository_that_is_no_model_is_refused_before_the_download() {
    let files = |names: &[&str]| names.iter().map(|name| (name.to_string(), b"{}".to_vec())).collect();
    let cases: [(&[&str], &[&str]); 3] = [
        (
            &["config.json", "tokenizer.json", "tiny.Q4_0.gguf"],
            &["*.safetensors", "tiny.Q4_0.gguf", "--model"],
        ),
        (&["config.json", "model.safetensors"], &["no tokenizer.json"]),
        (
            &["config.json", "tokenizer.json", "a-00001-of-00002.safetensors"],
            &["no a-00002-of-00002.safetensors"],
        ),
    ];
    for (names, parts) in cases {
        let setup = setup(files(names));
        assert_says(&setup.fetch().unwrap_err(), parts);
        assert_eq!(setup.hub.take_log().len(), 1, "only the listing is asked for");
    }
}

#[test]
fn an_endpoint_that_is_no_hub_is_named() {
    let setup = setup(sharded_model());
    setup.hub.state().commit = "../..".to_string();
    assert_says(&setup.fetch().unwrap_err(), &["makes no sense", "HF_ENDPOINT"]);
}

#[test]
fn runs_that_start_together_download_once() {
    let setup = setup(sharded_model());
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| setup.fetch().unwrap())).collect();
        for run in runs {
            assert_shards(&run.join().unwrap().dir);
        }
    });
    assert_eq!(setup.num_sent_bytes(SHARD_1), SHARD_BYTES);
    assert_eq!(setup.num_sent_bytes(SHARD_2), SHARD_BYTES);
}
