//! A small model hub on 127.0.0.1 that answers as the real one does, and fails where it is told to.
//!
//! Owns HTTP and the faults; what a client should make of them is the tests' business. Large
//! files are redirected to another host name, as the hub does with its content network.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

pub const REPO: &str = "owner/tiny";
/// What the repository was called before; the hub sends those who ask for it on.
pub const OLD_REPO: &str = "owner/old-name";
pub const COMMIT: &str = "1111111111111111111111111111111111111111";

/// What one request for bytes does instead of sending the whole file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Closes the connection after so many bytes of the answer's body.
    BreakAfter(usize),
    /// Answers with this status.
    Status(u16),
    /// Flips the last byte.
    Damage,
    /// Sends a byte too many.
    Lengthen,
}

/// What the hub holds and how it behaves; tests change it while it runs.
pub struct State {
    pub commit: String,
    pub files: Vec<(String, Vec<u8>)>,
    /// Who may see the repository at all; everybody if unset.
    pub private_to: Option<String>,
    /// Lists the files but refuses their content.
    pub gated: bool,
    /// Leaves sizes and hashes out of the listing, as some mirrors do.
    pub bare_listing: bool,
    pub knows_ranges: bool,
    /// Where large files are, if not under another name of this server.
    pub content_network: Option<String>,
    /// Faults of the coming requests for a file's bytes, first to last.
    pub faults: HashMap<String, Vec<Fault>>,
    /// Status of the coming requests for the listing, first to last.
    pub listing_faults: Vec<u16>,
    pub log: Vec<Request>,
    /// Body bytes sent for each file.
    pub num_sent_bytes: HashMap<String, usize>,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// The running hub; its thread ends with the test process.
pub struct Hub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    pub fn start(files: Vec<(String, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State {
            commit: COMMIT.to_string(),
            files,
            private_to: None,
            gated: false,
            bare_listing: false,
            knows_ranges: true,
            content_network: None,
            faults: HashMap::new(),
            listing_faults: Vec::new(),
            log: Vec::new(),
            num_sent_bytes: HashMap::new(),
        }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // A client that goes away is not the server's trouble.
                thread::spawn(move || answer(stream, port, &state));
            }
        });
        Self { endpoint: format!("http://127.0.0.1:{port}"), state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Returns the requests so far and forgets them.
    pub fn take_log(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().log)
    }
}

pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

fn git_hash(bytes: &[u8]) -> String {
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    context.update(format!("blob {}\0", bytes.len()).as_bytes());
    context.update(bytes);
    hex(context.finish().as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

fn etag(name: &str, bytes: &[u8]) -> String {
    if is_large(name) { sha256_hex(bytes) } else { git_hash(bytes) }
}

fn answer(stream: TcpStream, port: u16, state: &Mutex<State>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut lines = std::iter::from_fn(|| {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        Some(line.trim_end().to_string()).filter(|line| !line.is_empty())
    });
    let first = lines.next()?;
    let mut words = first.split(' ').map(str::to_string);
    let (method, path) = (words.next()?, words.next()?);
    let headers = lines
        .filter_map(|line| {
            line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_string()))
        })
        .collect();
    let request = Request { method, path, headers };
    let mut state = state.lock().unwrap();
    state.log.push(request.clone());
    let response = respond(&request, port, &mut state);
    drop(state);
    response.send(stream, request.method == "HEAD")
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    break_after: Option<usize>,
}

impl Reply {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), break_after: None }
    }

    fn refusal(status: u16, code: &str) -> Self {
        Self::new(status, "{}").with("X-Error-Code", code).with("X-Error-Message", "as told")
    }

    fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    fn send(self, mut stream: TcpStream, head_only: bool) -> Option<()> {
        let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", self.body.len()));
        stream.write_all(head.as_bytes()).ok()?;
        let sent = self.break_after.unwrap_or(self.body.len()).min(self.body.len());
        if !head_only {
            stream.write_all(&self.body[..sent]).ok()?;
        }
        stream.flush().ok()
    }
}

fn respond(request: &Request, port: u16, state: &mut State) -> Reply {
    let authorization = request.header("authorization").unwrap_or_default().to_string();
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    if let Some(name) = path.strip_prefix("/cdn/") {
        return send_file(request, name, state);
    }
    if path.contains(OLD_REPO) {
        return Reply::new(307, "").with("Location", request.path.replace(OLD_REPO, REPO));
    }
    // As the hub does: a stranger is not told whether a repository exists.
    let refuses =
        |state: &State| state.private_to.as_ref().is_some_and(|to| authorization != format!("Bearer {to}"));
    if refuses(state) {
        return match authorization.is_empty() {
            true => Reply::refusal(401, "RepoNotFound"),
            false => Reply::refusal(404, "RepoNotFound"),
        };
    }
    if let Some(rest) = path.strip_prefix(&format!("/api/models/{REPO}/revision/")) {
        if !state.listing_faults.is_empty() {
            return Reply::new(state.listing_faults.remove(0), "busy");
        }
        if ![state.commit.as_str(), "main", "refs%2Fpr%2F5"].contains(&rest) {
            return Reply::refusal(404, "RevisionNotFound");
        }
        return listing(state, query.contains("blobs=true"));
    }
    let Some(name) = path.strip_prefix(&format!("/{REPO}/resolve/{}/", state.commit)) else {
        return match authorization.is_empty() {
            true => Reply::refusal(401, "RepoNotFound"),
            false => Reply::refusal(404, "RepoNotFound"),
        };
    };
    if state.gated {
        return Reply::refusal(if authorization.is_empty() { 401 } else { 403 }, "GatedRepo");
    }
    let Some((_, bytes)) = state.files.iter().find(|(known, _)| known == name) else {
        return Reply::refusal(404, "EntryNotFound");
    };
    if !is_large(name) {
        return send_file(request, name, state);
    }
    let network = state.content_network.clone().unwrap_or_else(|| format!("http://localhost:{port}"));
    Reply::new(302, "")
        .with("Location", format!("{network}/cdn/{name}?signature=x"))
        .with("X-Repo-Commit", &state.commit)
        .with("X-Linked-Size", bytes.len())
        .with("X-Linked-Etag", format!("\"{}\"", etag(name, bytes)))
}

fn listing(state: &State, with_blobs: bool) -> Reply {
    let siblings: Vec<_> = state
        .files
        .iter()
        .map(|(name, bytes)| match (with_blobs && !state.bare_listing, is_large(name)) {
            (false, _) => serde_json::json!({ "rfilename": name }),
            (true, false) => {
                serde_json::json!({ "rfilename": name, "size": bytes.len(), "blobId": git_hash(bytes) })
            }
            (true, true) => serde_json::json!({
                "rfilename": name, "size": bytes.len(), "blobId": git_hash(b"pointer"),
                "lfs": { "sha256": sha256_hex(bytes), "size": bytes.len(), "pointerSize": 7 }
            }),
        })
        .collect();
    Reply::new(200, serde_json::json!({ "sha": state.commit, "siblings": siblings }).to_string())
        .with("Content-Type", "application/json")
}

fn send_file(request: &Request, name: &str, state: &mut State) -> Reply {
    let Some((_, bytes)) = state.files.iter().find(|(known, _)| known == name).cloned() else {
        return Reply::refusal(404, "EntryNotFound");
    };
    let tag = format!("\"{}\"", etag(name, &bytes));
    if request.method == "HEAD" {
        return Reply::new(200, bytes).with("ETag", tag).with("X-Repo-Commit", &state.commit);
    }
    let fault = state.faults.get_mut(name).filter(|faults| !faults.is_empty()).map(|faults| faults.remove(0));
    let mut body = bytes.clone();
    let mut break_after = None;
    match fault {
        Some(Fault::Status(status)) => return Reply::new(status, "as told"),
        Some(Fault::Damage) => *body.last_mut().unwrap() ^= 1,
        Some(Fault::Lengthen) => body.push(0),
        Some(Fault::BreakAfter(num_bytes)) => break_after = Some(num_bytes),
        None => {}
    }
    let start = request
        .header("range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let mut reply = match start.filter(|_| state.knows_ranges) {
        Some(start) if start >= body.len() => return Reply::new(416, ""),
        Some(start) => Reply::new(206, &body[start..])
            .with("Content-Range", format!("bytes {start}-{}/{}", body.len() - 1, body.len())),
        None => Reply::new(200, body),
    };
    reply.break_after = break_after;
    let sent = break_after.unwrap_or(reply.body.len()).min(reply.body.len());
    *state.num_sent_bytes.entry(name.to_string()).or_default() += sent;
    reply.with("ETag", tag).with("Accept-Ranges", "bytes")
}
