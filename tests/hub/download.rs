//! What is fetched, how a broken connection is taken up again, what damaged bytes lead to.
//!
//! Owns the way of the bytes; when nothing is fetched at all is `cache`'s business.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use mlxbatch::models::hub::{HubError, HubOptions, fetch};
use mlxbatch::models::{ModelFiles, ModelSource};

use crate::server::{COMMIT, Fault, REPO, sha256_hex};
use crate::{SHARD_1, SHARD_2, SHARD_BYTES, assert_says, assert_shards, setup, shard, sharded_model};

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

    let written = fs::metadata(setup.repo_dir().join("refs/main")).unwrap().ino();

    // The second run asks once whether there is something newer, and fetches nothing.
    setup.hub.take_log();
    assert_eq!(ModelSource::resolve(REPO, &setup.options).unwrap(), expected);
    let paths: Vec<_> = setup.hub.take_log().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, [format!("/api/models/{REPO}/revision/main?blobs=true")]);
    // Nor does it write anything: a shared cache may be read-only.
    assert_eq!(fs::metadata(setup.repo_dir().join("refs/main")).unwrap().ino(), written);
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
fn a_file_longer_than_announced_is_not_taken_either() {
    let setup = setup(sharded_model());
    setup.fault(SHARD_1, &[Fault::Lengthen]);
    setup.fault(SHARD_2, &[Fault::Lengthen, Fault::Lengthen]);
    let error = setup.fetch().unwrap_err();
    assert!(matches!(error, HubError::Damaged { .. }), "{error}");
    assert_says(&error, &[SHARD_2, &format!("got {} bytes", SHARD_BYTES + 1)]);
    setup.fault(SHARD_2, &[]);
    assert_shards(&setup.fetch().unwrap().dir);
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
fn a_mirror_that_lists_only_names_is_asked_for_each_file() {
    let setup = setup(sharded_model());
    setup.hub.state().bare_listing = true;
    setup.fault(SHARD_1, &[Fault::BreakAfter(9), Fault::Damage]);
    assert_shards(&setup.fetch().unwrap().dir);
    assert!(setup.repo_dir().join("blobs").join(sha256_hex(&shard(1))).exists());
    assert!(setup.hub.take_log().iter().any(|request| request.method == "HEAD"));
}
