//! A model repository on the Hugging Face hub, brought into the local cache.
//!
//! Owns the order of events: what is asked, what is fetched, when the cache must do. Requests are
//! `client`'s business, one file's download `download`'s, the cache layout `cache`'s.
//!
//! The crate hf-hub supplies the cache layout that Python's huggingface_hub shares. Its downloads are not used: version 0.5 appends to a partial file without
//! looking at what the server sent back, checks neither size nor hash, and fails on compressed
//! answers; version 1.0 cannot resume, and brings an async runtime with some 140 crates.

mod cache;
mod client;
mod download;
mod error;
mod listing;
mod options;
mod progress;

use std::collections::BTreeSet;
use std::path::PathBuf;

pub use error::HubError;
pub use options::{AccessToken, HubOptions};

use super::files::{self, INDEX_FILE};
use cache::RepoCache;
use client::Client;
use download::Downloader;
use listing::{RemoteFile, RepoListing};
use progress::Progress;

/// Whether a text is a hub's description of a repository, of which nothing unsafe is believed.
#[doc(hidden)]
pub fn is_listing(text: &str) -> bool {
    listing::parse_listing(text).is_ok_and(|listing| {
        let etags =
            listing.files.iter().filter_map(|file| file.content.as_ref()).map(|content| &*content.etag);
        etags.chain([listing.commit.as_str()]).all(listing::is_plain_hash)
    })
}

/// A complete copy of a repository's model files at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub dir: PathBuf,
    /// What the user should hear although there is a model: the hub could not be asked.
    pub warning: Option<String>,
}

/// Finds a repository's model files in the cache, or downloads what is not there yet.
///
/// Offline, and for a commit that is already whole in the cache, no connection is made.
pub fn fetch(repo: &str, options: &HubOptions) -> Result<Snapshot, HubError> {
    if options.cache_dir.as_os_str().is_empty() {
        return Err(HubError::NoCacheDir { repo: repo.to_string() });
    }
    let cache = RepoCache::new(repo, options)?;
    if options.offline {
        return match cache.complete_snapshot() {
            Ok(dir) => Ok(Snapshot { dir, warning: None }),
            Err(detail) => Err(HubError::Offline {
                repo: repo.to_string(),
                revision: cache.revision().to_string(),
                cache_dir: options.cache_dir.clone(),
                detail,
            }),
        };
    }
    if cache.revision_is_commit()
        && let Ok(dir) = cache.complete_snapshot()
    {
        return Ok(Snapshot { dir, warning: None });
    }
    let error = match fetch_online(&cache, options) {
        Ok(dir) => return Ok(Snapshot { dir, warning: None }),
        Err(error) => error,
    };
    match cache.complete_snapshot() {
        Ok(dir) if error.is_outage() => {
            let warning =
                format!("{error}; using the copy of {repo} in the cache, which may not be the newest");
            Ok(Snapshot { dir, warning: Some(warning) })
        }
        Ok(_) if error.is_refusal() => Err(HubError::RefusedButCached { refusal: Box::new(error) }),
        _ => Err(error),
    }
}

fn fetch_online(cache: &RepoCache, options: &HubOptions) -> Result<PathBuf, HubError> {
    let client = Client::new(cache.repo().clone(), options);
    let listing = client.listing()?;
    let names: BTreeSet<String> = listing.files.iter().map(|file| file.name.clone()).collect();
    let progress = Progress::new(options.quiet);
    let downloader =
        Downloader { client: &client, cache, commit: &listing.commit, progress: &progress, options };

    let has_index = names.contains(INDEX_FILE);
    if !has_index {
        // Known to fail before anything is fetched.
        check_needed(&names, None, &client)?;
    }
    // Small files first: a snapshot that has its weights then has everything else too, so a
    // download that was cut off never passes for a complete one.
    let small = listing.files.iter().filter(|file| is_small_model_file(&file.name));
    downloader.download_all(&small.collect::<Vec<_>>())?;

    let index = match has_index {
        true => {
            let path = cache.snapshot_dir(&listing.commit).join(INDEX_FILE);
            Some(files::read_index(&path).map_err(HubError::BadIndex)?)
        }
        false => None,
    };
    let needed = check_needed(&names, index.as_deref(), &client)?;
    downloader.download_all(&named_files(&listing, &needed))?;
    // The revision names the new commit only now that all of it is there; until then an offline
    // run goes on with the older one.
    cache.write_ref(&listing.commit)?;
    Ok(cache.snapshot_dir(&listing.commit))
}

/// Returns the weight files' names, or says what the repository lacks to be a model.
fn check_needed(
    names: &BTreeSet<String>,
    index: Option<&[String]>,
    client: &Client,
) -> Result<Vec<String>, HubError> {
    let needed = files::needed_files(names, index);
    if needed.missing.is_empty() {
        return Ok(needed.weights);
    }
    let gguf = names.iter().find(|name| name.ends_with(".gguf"));
    Err(HubError::NotAModel {
        repo: client.repo_id().to_string(),
        missing: needed.missing.join(", "),
        advice: match gguf {
            Some(name) => {
                format!(
                    "it holds GGUF files: download one, such as {name}, with all its parts if it has several, \
                     and give its path as --model"
                )
            }
            None => "take one in the MLX layout, such as those of mlx-community".to_string(),
        },
    })
}

/// Whether a file is configuration, tokenizer or template. Nothing that could be run as code
/// (.py) or unpickled (.bin, .pth) is ever asked for.
fn is_small_model_file(name: &str) -> bool {
    files::is_plain_name(name) && (name.ends_with(".json") || name.ends_with(".jinja"))
}

fn named_files<'a>(listing: &'a RepoListing, names: &[String]) -> Vec<&'a RemoteFile> {
    listing.files.iter().filter(|file| names.contains(&file.name)).collect()
}
