//! What can go wrong between a repository's name and its files, and what to do about it.
//!
//! Owns the texts and the two classes that decide whether a cached copy may step in. Which answer
//! of the hub means which error is `client`'s business.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::models::files::FolderError;

/// Why a hub repository's files are not on this machine.
#[derive(Debug, Error)]
pub enum HubError {
    #[error(
        "neither HOME nor HF_HOME is set, so there is no place for {repo} that is yours alone: set HF_HOME, or give \
         --model a local folder"
    )]
    NoCacheDir { repo: String },
    #[error(
        "this run is offline (--offline or HF_HUB_OFFLINE) and needs {repo} at revision {revision} from the cache \
         {}, but {detail}; run once online to download it, or give --model a local folder",
        .cache_dir.display()
    )]
    Offline { repo: String, revision: String, cache_dir: PathBuf, detail: String },
    #[error(
        "the hub at {endpoint} cannot be reached ({reason}); check the connection, the proxy and HF_ENDPOINT, \
         or give --model a local folder"
    )]
    Unreachable { endpoint: String, reason: String },
    #[error(
        "the hub at {endpoint} shows no repository {repo} without a token: check the name, and if it is private \
         or gated, set HF_TOKEN to a token that may read it ({endpoint}/settings/tokens)"
    )]
    HiddenOrMissing { endpoint: String, repo: String },
    #[error(
        "there is no repository {repo} on {endpoint} that the token from {token_origin} may see; check the name"
    )]
    NoSuchRepo { endpoint: String, repo: String, token_origin: String },
    #[error(
        "{repo} has no revision {revision}; check --revision: a branch, a tag or a full commit, as listed at \
         {endpoint}/{repo}/commits/main"
    )]
    NoSuchRevision { endpoint: String, repo: String, revision: String },
    #[error(
        "the hub at {endpoint} does not accept the token from {token_origin}; make a new one \
         ({endpoint}/settings/tokens) and set HF_TOKEN to it, or remove it for a public repository"
    )]
    BadToken { endpoint: String, token_origin: String },
    #[error("{repo} is gated: accept its licence at {endpoint}/{repo} in a browser, then {token_advice}")]
    Gated { endpoint: String, repo: String, token_advice: String },
    #[error(
        "the hub refuses {repo} to the token from {token_origin} (403: {message}); give that token read access"
    )]
    Forbidden { repo: String, token_origin: String, message: String },
    #[error("{refusal}; the copy of the model in the cache can be used with --offline")]
    RefusedButCached { refusal: Box<HubError> },
    #[error("--revision {revision:?} is no name of a branch, a tag or a commit")]
    BadRevision { revision: String },
    #[error("the answer of {url} makes no sense ({reason}); check that HF_ENDPOINT is a model hub")]
    BadAnswer { url: String, reason: String },
    #[error("{url} answers {status} ({message})")]
    Status { url: String, status: u16, message: String },
    #[error("{repo} is not a model this program can read: no {missing} in it; {advice}")]
    NotAModel { repo: String, missing: String, advice: String },
    #[error(transparent)]
    BadIndex(FolderError),
    #[error(
        "the download of {file} broke off {num_attempts} times in a row, the last time with: {reason}; the part \
         that is here ({part_bytes} bytes) is kept, the same command goes on from there"
    )]
    Interrupted { file: String, num_attempts: u32, reason: String, part_bytes: u64 },
    #[error(
        "{file} arrived damaged twice (expected {expected}, got {found}) and was thrown away; a proxy or mirror on \
         the way may be at fault, check HF_ENDPOINT"
    )]
    Damaged { file: String, expected: String, found: String },
    #[error("cannot {action} {}: {source}; is HF_HOME on a disk with space that you may write to?", .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl HubError {
    /// Whether the hub could not be asked, or not to the end: an older complete copy may do.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Interrupted { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }

    /// Whether the hub said no: a cached copy may only be used when the user says so.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::HiddenOrMissing { .. }
                | Self::NoSuchRepo { .. }
                | Self::NoSuchRevision { .. }
                | Self::BadToken { .. }
                | Self::Gated { .. }
                | Self::Forbidden { .. }
        )
    }
}
