//! What the hub refuses, and what the user is told to do about it.
//!
//! Owns tokens, gates, wrong names and repositories that are no models.

use mlxbatch::models::hub::{AccessToken, HubError, fetch};
use mlxbatch::models::{ModelSource, SourceError};

use crate::server::{Hub, OLD_REPO, REPO};
use crate::{assert_says, assert_shards, setup, sharded_model};

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

/// Another port of the hub's own host is somebody else's server, and was sent the token.
#[test]
fn a_redirect_to_another_port_does_not_carry_the_token() {
    let (mut setup, other) = (setup(sharded_model()), Hub::start(sharded_model()));
    setup.hub.state().content_network = Some(other.endpoint.clone());
    setup.hub.state().private_to = Some("hf_right".to_string());
    setup.options.token = Some(AccessToken::new("hf_right", "HF_TOKEN"));
    assert_shards(&setup.fetch().unwrap().dir);
    let log = other.take_log();
    assert!(!log.is_empty());
    assert!(log.iter().all(|request| request.header("authorization").is_none()), "{log:?}");
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
fn a_renamed_private_repository_is_followed_with_the_token() {
    let mut setup = setup(sharded_model());
    setup.hub.state().private_to = Some("hf_right".to_string());
    setup.options.token = Some(AccessToken::new("hf_right", "HF_TOKEN"));
    // With and without hashes in the listing: the latter asks for each file's first.
    for bare_listing in [false, true] {
        setup.hub.state().bare_listing = bare_listing;
        setup.options.cache_dir = setup.home.path().join(format!("cache-{bare_listing}"));
        assert_shards(&fetch(OLD_REPO, &setup.options).unwrap().dir);
    }
}
