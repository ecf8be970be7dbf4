//! When the cache answers instead of the hub, and when it must not.
//!
//! Owns offline runs, outages, revisions and runs side by side.

use std::fs;

use mlxbatch::models::hub::{HubError, HubOptions, fetch};

use crate::server::{COMMIT, Fault, REPO};
use crate::{SHARD_1, SHARD_2, SHARD_BYTES, assert_says, assert_shards, setup, shard, sharded_model};

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
fn a_refused_repository_is_not_silently_taken_from_the_cache() {
    let setup = setup(sharded_model());
    setup.fetch().unwrap();
    setup.hub.state().private_to = Some("hf_right".to_string());
    assert_says(&setup.fetch().unwrap_err(), &["HF_TOKEN", "can be used with --offline"]);
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
