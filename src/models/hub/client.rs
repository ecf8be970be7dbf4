//! Requests to a hub: what a repository holds, what a file is, a file's bytes from a given place.
//!
//! Owns URLs, headers and the meaning of the hub's answers. Makes each request once; trying again
//! is `download`'s business.

use std::thread::sleep;
use std::time::Duration;

use hf_hub::Repo;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body, BodyReader};

use super::listing::{Content, RepoListing, is_plain_hash, parse_listing};
use super::{AccessToken, HubError, HubOptions};
use crate::web::{self, is_transient_status};

const MAX_LISTING_BYTES: u64 = 64 << 20;
const MAX_LISTING_ATTEMPTS: u32 = 3;
const MAX_REDIRECTS: u32 = 10;

/// Why a request brought no bytes.
#[derive(Debug)]
pub(super) enum Failure {
    /// May work the next time.
    Transient(String),
    /// The server has no bytes from there on: what is here is too long, or already all.
    RangeRefused,
    Fatal(HubError),
}

/// A repository on a hub, seen by one user.
pub(super) struct Client {
    repo: Repo,
    agent: Agent,
    endpoint: String,
    token: Option<AccessToken>,
    retry_delay: Duration,
}

impl Client {
    pub(super) fn new(repo: Repo, options: &HubOptions) -> Self {
        // Redirects are followed by hand: where they lead to is told the token only if it is the hub itself.
        let agent = web::agent(0);
        let (endpoint, token) = (options.endpoint.clone(), options.token.clone());
        Self { repo, agent, endpoint, token, retry_delay: options.first_retry_delay }
    }

    /// The repository's name without the prefixes of the cache.
    pub(super) fn repo_id(&self) -> String {
        self.repo.url()
    }

    /// Asks which files the repository holds at its revision, and which commit that is.
    pub(super) fn listing(&self) -> Result<RepoListing, HubError> {
        let mut attempt = 1;
        loop {
            match self.listing_once() {
                Err(HubError::Status { status, .. })
                    if attempt < MAX_LISTING_ATTEMPTS && is_transient_status(status) =>
                {
                    sleep(self.retry_delay.saturating_mul(attempt));
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    fn listing_once(&self) -> Result<RepoListing, HubError> {
        let url = format!("{}/api/{}", self.endpoint, self.repo.api_url());
        let mut response = self.get(&format!("{url}?blobs=true"), 0).map_err(|failure| match failure {
            Failure::Fatal(error) => error,
            Failure::Transient(reason) => unreachable_hub(&self.endpoint, reason),
            Failure::RangeRefused => unreachable_hub(&self.endpoint, "a range was refused".to_string()),
        })?;
        if !response.status().is_success() {
            return Err(self.refusal(&url, &response));
        }
        let text = response
            .body_mut()
            .with_config()
            .limit(MAX_LISTING_BYTES)
            .read_to_string()
            .map_err(|error| unreachable_hub(&self.endpoint, error.to_string()))?;
        parse_listing(&text).map_err(|reason| HubError::BadAnswer { url, reason })
    }

    /// Asks for a file's hash and size without its bytes, for mirrors whose listing lacks them.
    pub(super) fn content(&self, commit: &str, name: &str) -> Result<Content, Failure> {
        let mut url = self.file_url(commit, name);
        for _ in 0..=MAX_REDIRECTS {
            // Redirects are followed by hand: the hub itself names the hash of the bytes, the
            // host it sends us to does not.
            let response = self.authorized(&url, self.agent.head(&url)).call().map_err(transient)?;
            let headers = response.headers();
            let status = response.status();
            let location = header(headers, "location").unwrap_or_default();
            if status.is_redirection() && location.starts_with('/') && !location.starts_with("//") {
                url = format!("{}{location}", origin_of(&url));
                continue;
            }
            if !status.is_success() && !status.is_redirection() {
                return Err(self.failure(&url, &response));
            }
            let bad = |reason: &str| {
                Failure::Fatal(HubError::BadAnswer { url: url.clone(), reason: reason.to_string() })
            };
            let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag"));
            let etag = clean_etag(etag.ok_or_else(|| bad("no ETag"))?);
            if !is_plain_hash(etag) {
                return Err(bad("an ETag that is no hash"));
            }
            let own_length = if status.is_success() { header(headers, "content-length") } else { None };
            let size = header(headers, "x-linked-size").or(own_length);
            return Ok(Content {
                etag: etag.to_string(),
                size_bytes: size.and_then(|text| text.parse().ok()),
            });
        }
        Err(Failure::Fatal(HubError::BadAnswer { url, reason: "too many redirects".to_string() }))
    }

    /// Opens a file's bytes; returns where they begin: at `start`, or at 0 where the server knows
    /// no ranges.
    pub(super) fn open(
        &self,
        commit: &str,
        name: &str,
        start: u64,
    ) -> Result<(u64, BodyReader<'static>), Failure> {
        let url = self.file_url(commit, name);
        let response = self.get(&url, start)?;
        match response.status().as_u16() {
            200 => Ok((0, response.into_body().into_reader())),
            206 => {
                // A range other than the one asked for would be spliced into the wrong place.
                let range = header(response.headers(), "content-range").unwrap_or_default();
                let first =
                    range.strip_prefix("bytes ").and_then(|rest| rest.split_once('-')?.0.parse().ok());
                match first == Some(start) {
                    true => Ok((start, response.into_body().into_reader())),
                    false => Err(Failure::Transient(format!("asked for byte {start}, got range {range:?}"))),
                }
            }
            416 => Err(Failure::RangeRefused),
            _ => Err(self.failure(&url, &response)),
        }
    }

    /// The file at a commit, not at a branch: all files of a snapshot belong together.
    fn file_url(&self, commit: &str, name: &str) -> String {
        let repo = self.repo.url();
        format!("{}/{repo}/resolve/{commit}/{}", self.endpoint, encode_name(name))
    }

    /// Asks for bytes from `start` on, wherever the hub says that they are: large files are served by another
    /// host, under a signed address.
    fn get(&self, url: &str, start: u64) -> Result<Response<Body>, Failure> {
        let mut next = url.to_string();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.authorized(&next, self.agent.get(&next));
            if start > 0 {
                request = request.header("range", format!("bytes={start}-"));
            }
            let response = request.call().map_err(transient)?;
            let location = header(response.headers(), "location");
            match location.filter(|_| response.status().is_redirection()) {
                Some(location) => next = joined(&next, location),
                None => return Ok(response),
            }
        }
        let (url, reason) = (url.to_string(), "too many redirects".to_string());
        Err(Failure::Fatal(HubError::BadAnswer { url, reason }))
    }

    /// Shows the token to the hub, and to nobody else: another port may be another's.
    fn authorized<B>(&self, url: &str, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        let is_hub = origin_of(url).eq_ignore_ascii_case(origin_of(&self.endpoint));
        match self.token.as_ref().filter(|_| is_hub) {
            Some(token) => request.header("authorization", format!("Bearer {}", token.secret)),
            None => request,
        }
    }

    fn failure(&self, url: &str, response: &Response<Body>) -> Failure {
        match self.refusal(url, response) {
            HubError::Status { status, message, .. } if is_transient_status(status) => {
                Failure::Transient(format!("status {status}: {message}"))
            }
            error => Failure::Fatal(error),
        }
    }

    /// Says what a status that is no success means to the user.
    ///
    /// The hub answers 401, not 404, where a repository may exist but not for this user; the
    /// header x-error-code tells the cases apart where there is one.
    fn refusal(&self, url: &str, response: &Response<Body>) -> HubError {
        let status = response.status();
        let code = header(response.headers(), "x-error-code").unwrap_or_default();
        let message = header(response.headers(), "x-error-message")
            .or(status.canonical_reason())
            .unwrap_or("no reason given")
            .to_string();
        let endpoint = self.endpoint.clone();
        let repo = self.repo_id();
        let token_origin = self.token.as_ref().map(|token| token.origin.clone());
        match (status.as_u16(), code, token_origin) {
            (401 | 403, "GatedRepo", token_origin) => HubError::Gated {
                endpoint,
                repo,
                token_advice: match token_origin {
                    Some(origin) => format!("use a token of the same account (now: the one from {origin})"),
                    None => "set HF_TOKEN to a token of the same account".to_string(),
                },
            },
            (404, "RevisionNotFound", _) => {
                HubError::NoSuchRevision { endpoint, repo, revision: self.repo.revision().to_string() }
            }
            (404, "EntryNotFound", _) => HubError::Status { url: url.to_string(), status: 404, message },
            (401 | 403 | 404, _, None) => HubError::HiddenOrMissing { endpoint, repo },
            (401, "RepoNotFound", Some(token_origin)) | (404, _, Some(token_origin)) => {
                HubError::NoSuchRepo { endpoint, repo, token_origin }
            }
            (401, _, Some(token_origin)) => HubError::BadToken { endpoint, token_origin },
            (403, _, Some(token_origin)) => HubError::Forbidden { repo, token_origin, message },
            (status, _, _) => HubError::Status { url: url.to_string(), status, message },
        }
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn clean_etag(etag: &str) -> &str {
    etag.trim_start_matches("W/").trim_matches('"')
}

/// Scheme, host and port as they are written.
fn origin_of(url: &str) -> &str {
    let after_scheme = url.find("://").map_or(0, |at| at + "://".len());
    let path = url.get(after_scheme..).and_then(|rest| rest.find(['/', '?', '#', '\\']));
    path.and_then(|length| url.get(..after_scheme + length)).unwrap_or(url)
}

/// The address that a redirect from `url` names.
fn joined(url: &str, location: &str) -> String {
    if location.contains("://") {
        return location.to_string();
    }
    if location.starts_with("//") {
        let scheme = url.split("//").next().unwrap_or_default();
        return format!("{scheme}{location}");
    }
    if location.starts_with('/') {
        return format!("{}{location}", origin_of(url));
    }
    // Beside what was asked for.
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let folder = path.rfind('/').filter(|at| *at >= origin_of(url).len()).map_or(path, |at| &path[..at]);
    format!("{folder}/{location}")
}

fn encode_name(name: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    name.bytes()
        .map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn transient(error: ureq::Error) -> Failure {
    Failure::Transient(error.to_string())
}

fn unreachable_hub(endpoint: &str, reason: String) -> HubError {
    HubError::Unreachable { endpoint: endpoint.to_string(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_and_put_together() {
        assert_eq!(origin_of("http://127.0.0.1:80/a/b?c=http://x/"), "http://127.0.0.1:80");
        assert_eq!(origin_of("https://hub"), "https://hub");
        assert_eq!(origin_of("https://hub?x=/"), "https://hub");
        assert_eq!(joined("https://hub:1/a/b?c", "https://x/y"), "https://x/y");
        assert_eq!(joined("https://hub:1/a/b?c", "//x:2/y"), "https://x:2/y");
        assert_eq!(joined("https://hub:1/a/b?c=/d", "/y?z"), "https://hub:1/y?z");
        assert_eq!(joined("https://hub:1/a/b?c=/d", "y"), "https://hub:1/a/y");
        assert_eq!(joined("https://hub", "y"), "https://hub/y");
        assert_eq!(encode_name("a b?#%é.json"), "a%20b%3F%23%25%C3%A9.json");
        assert_eq!(clean_etag("W/\"abc\""), "abc");
    }
}
