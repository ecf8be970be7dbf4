//! Inputs and outputs on web servers, such as behind presigned URLs of an object store.
//!
//! Owns fetching an input whole before it is read, from where a connection broke off, and sending results away. What
//! follows a name's `?` may be a signature: messages never show it.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    thread::sleep,
    time::Duration,
};

use tempfile::TempDir;
use ureq::http::{HeaderMap, Response};

use super::error::BatchError;
use crate::web;

const MAX_REDIRECTS: u32 = 10;

/// Tries in a row that bring nothing new.
const MAX_TRIES: u32 = 5;

/// Before the second try; each wait is twice the one before.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// The name of a fetched file is no longer, so that every file system takes it.
const MAX_NAME_BYTES: usize = 100;

/// What is at a URL, as a file until nobody has it any more.
#[derive(Debug, Clone)]
pub struct Fetched {
    name: String,
    path: PathBuf,
    _folder: Arc<TempDir>,
}

impl PartialEq for Fetched {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for Fetched {}

impl Fetched {
    /// The URL without what may be secret.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fetches what is at a URL.
    pub(super) fn from_url(url: &str) -> Result<Self, BatchError> {
        let name = shown_url(url);
        let failed = |reason: String| BatchError::Fetch { name: shown_url(url), reason };
        let folder = tempfile::Builder::new().prefix("mlxbatch-").tempdir();
        let folder = folder.map_err(|error| failed(format!("no temporary folder can be made: {error}")))?;
        let path = folder.path().join(file_name(&name));
        let file = File::create_new(&path);
        let file = file.map_err(|error| failed(format!("{} cannot be made: {error}", path.display())))?;
        let download = Download { url, file, num_bytes: 0, tag: None };
        with_retries(download, FIRST_WAIT, |download| download.go_on()).map_err(failed)?;
        Ok(Self { name, path, _folder: Arc::new(folder) })
    }
}

/// Whether a name on the command line is a URL.
pub(crate) fn is_url(typed: &str) -> bool {
    ["https://", "http://"].iter().any(|scheme| {
        typed.get(..scheme.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(scheme))
    })
}

/// A URL as messages show it: without user and password, and without what follows `?` or `#`.
pub fn shown_url(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            format!("{scheme}://{}{path}", host.rsplit('@').next().unwrap_or_default())
        }
        None => url.to_owned(),
    }
}

/// The file name in a URL, as far as any file system takes it: its ending says what the input is.
fn file_name(shown: &str) -> String {
    let name = shown.rsplit('/').next().unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = name.chars().map(plain).collect();
    let name = &name[name.len().saturating_sub(MAX_NAME_BYTES)..];
    if name.trim_matches('.').is_empty() { "input.jsonl".to_owned() } else { name.to_owned() }
}

/// Why a try came to nothing.
enum Failure {
    /// May work the next time; whether this one has brought something.
    Transient {
        reason: String,
        has_brought_some: bool,
    },
    Fatal(String),
}

impl Failure {
    fn transient(error: impl ToString) -> Self {
        Self::Transient { reason: error.to_string(), has_brought_some: false }
    }
}

/// Tries until it works, or has failed too often in a row without bringing anything; the reason then.
fn with_retries<T>(
    mut work: T,
    first_wait: Duration,
    attempt: impl Fn(&mut T) -> Result<(), Failure>,
) -> Result<(), String> {
    let mut num_tries = 0;
    loop {
        match attempt(&mut work) {
            Ok(()) => return Ok(()),
            Err(Failure::Fatal(reason)) => return Err(reason),
            Err(Failure::Transient { reason, has_brought_some }) => {
                num_tries = if has_brought_some { 1 } else { num_tries + 1 };
                if num_tries >= MAX_TRIES {
                    return Err(format!("{reason}; given up after {MAX_TRIES} tries"));
                }
                sleep(first_wait * (1 << (num_tries - 1)));
            }
        }
    }
}

/// A file that grows with what is at a URL.
struct Download<'a> {
    url: &'a str,
    file: File,
    num_bytes: u64,
    /// What tells one state of the content from others, where the server names it.
    tag: Option<String>,
}

impl Download<'_> {
    /// Fetches what is missing.
    fn go_on(&mut self) -> Result<(), Failure> {
        let mut request = web::agent(MAX_REDIRECTS).get(self.url);
        if self.num_bytes > 0 {
            request = request.header("Range", format!("bytes={}-", self.num_bytes));
            if let Some(tag) = &self.tag {
                request = request.header("If-Range", tag);
            }
        }
        let response = request.call().map_err(failure)?;
        let status = response.status().as_u16();
        match status {
            200 => self.begin_anew(response.headers())?,
            206 if range_start(response.headers()) == Some(self.num_bytes) => {}
            206 => {
                return Err(Failure::Fatal("the server sends another part than it was asked for".to_owned()));
            }
            // All of it was there when the connection broke.
            416 if self.num_bytes > 0 => return Ok(()),
            _ => return Err(refusal(&response)),
        }
        let expected = response.body().content_length().map(|length| self.num_bytes + length);
        let before = self.num_bytes;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 64 << 10];
        let broken = |reason: String, now: u64| {
            let reason = format!("the connection broke off after {now} bytes: {reason}");
            Failure::Transient { reason, has_brought_some: now > before }
        };
        loop {
            let num_read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(num_read) => num_read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(error.to_string(), self.num_bytes)),
            };
            let written = self.file.write_all(&buffer[..num_read]);
            written.map_err(|error| {
                Failure::Fatal(format!(
                    "it cannot be held in {}: {error}; TMPDIR names another folder",
                    std::env::temp_dir().display()
                ))
            })?;
            self.num_bytes += num_read as u64;
        }
        match expected {
            Some(expected) if self.num_bytes < expected => {
                Err(broken(format!("there are {expected}"), self.num_bytes))
            }
            _ => Ok(()),
        }
    }

    /// The server sends all of it, although a part may be there.
    fn begin_anew(&mut self, headers: &HeaderMap) -> Result<(), Failure> {
        let tag = headers.get("etag").and_then(|tag| tag.to_str().ok());
        // A weak tag stands for other bytes, too.
        self.tag = tag.filter(|tag| !tag.starts_with("W/")).map(str::to_owned);
        if self.num_bytes > 0 {
            self.num_bytes = 0;
            let emptied = self.file.set_len(0).and_then(|()| io::Seek::rewind(&mut self.file));
            emptied.map_err(|error| Failure::Fatal(error.to_string()))?;
        }
        Ok(())
    }
}

/// Where the part of an answer begins.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get("content-range")?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

fn failure(error: ureq::Error) -> Failure {
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => Failure::Fatal(format!("it is no URL: {error}")),
        ureq::Error::TooManyRedirects | ureq::Error::RedirectFailed => Failure::Fatal(error.to_string()),
        error => Failure::transient(error),
    }
}

fn refusal(response: &Response<ureq::Body>) -> Failure {
    let status = response.status();
    let code = status.as_u16();
    let why = match code {
        401 | 403 => ": a signed URL holds for a while only, and for one method (GET or PUT)",
        404 => ": nothing is there",
        _ => "",
    };
    let reason = format!("the server answers {status}{why}");
    match web::is_transient_status(code) {
        true => Failure::transient(reason),
        false => Failure::Fatal(reason),
    }
}

/// Sends a file to a URL by PUT, as presigned URLs take it.
pub fn upload(path: &Path, url: &str) -> Result<(), BatchError> {
    upload_with(path, url, FIRST_WAIT)
}

fn upload_with(path: &Path, url: &str, first_wait: Duration) -> Result<(), BatchError> {
    let send = |(): &mut ()| {
        let file = File::open(path).map_err(|error| Failure::Fatal(error.to_string()))?;
        let is_empty = fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0);
        // A redirect would have to be sent the file anew.
        let request = web::agent(0).put(url).header("Content-Type", "application/octet-stream");
        let sent = if is_empty { request.send_empty() } else { request.send(file) };
        let response = sent.map_err(failure)?;
        if response.status().is_success() { Ok(()) } else { Err(refusal(&response)) }
    };
    let failed = |reason| BatchError::Upload { path: path.to_owned(), name: shown_url(url), reason };
    with_retries((), first_wait, send).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        net::TcpListener,
        sync::mpsc::{self, Receiver},
        thread,
    };

    use super::*;

    const TEXT: &str = "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n";

    /// A server that answers one request after the other so, closing the connection after each; what it was sent.
    fn server(answers: Vec<Vec<u8>>) -> (String, Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let url =
            format!("http://me:pw@{}/data/in.jsonl?signature=secret", listener.local_addr().expect("bound"));
        let (sender, requests) = mpsc::channel();
        thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().expect("somebody asks");
                let mut reader = BufReader::new(stream.try_clone().expect("cloned"));
                let mut request = String::new();
                while !request.ends_with("\r\n\r\n") {
                    if reader.read_line(&mut request).expect("a request") == 0 {
                        break;
                    }
                }
                let length = request.lines().find_map(|line| {
                    line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok()
                });
                let mut body = vec![0; length.unwrap_or(0)];
                reader.read_exact(&mut body).expect("the body");
                let _ = sender.send(request + &String::from_utf8_lossy(&body));
                stream.write_all(&answer).expect("sent");
            }
        });
        (url, requests)
    }

    fn answer(head: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n{body}").into_bytes()
    }

    fn fetched(answers: Vec<Vec<u8>>) -> (Result<String, String>, Vec<String>) {
        let (url, requests) = server(answers);
        let fetched = Fetched::from_url(&url).map_err(|error| error.to_string());
        let text = fetched.map(|fetched| {
            assert!(fetched.path().ends_with("in.jsonl"));
            assert!(fetched.name().ends_with("/data/in.jsonl") && !fetched.name().contains("pw"));
            fs::read_to_string(fetched.path()).expect("it is there")
        });
        (text, requests.try_iter().collect())
    }

    #[test]
    fn an_input_is_fetched_from_where_the_connection_broke_off() {
        let (start, rest) = TEXT.split_at(20);
        let length = TEXT.len();
        let broken = answer(&format!("200 OK\r\nContent-Length: {length}\r\nETag: \"v1\""), start);
        let busy = answer("503 Busy\r\nContent-Length: 0", "");
        let range = format!("206 Partial Content\r\nContent-Length: {}", rest.len());
        let range = format!("{range}\r\nContent-Range: bytes 20-{}/{length}", length - 1);
        let (text, requests) = fetched(vec![busy, broken, answer(&range, rest)]);
        assert_eq!(text.as_deref(), Ok(TEXT));
        let last = requests[2].to_ascii_lowercase();
        assert!(last.contains("range: bytes=20-") && last.contains("if-range: \"v1\""), "{last}");
    }

    #[test]
    fn what_has_changed_meanwhile_is_fetched_anew() {
        let whole = format!("200 OK\r\nContent-Length: {}", TEXT.len());
        let old =
            answer(&format!("200 OK\r\nContent-Length: {}\r\nETag: \"v1\"", TEXT.len()), "{\"old\": 1}");
        let (text, _) = fetched(vec![old, answer(&whole, TEXT)]);
        assert_eq!(text.as_deref(), Ok(TEXT));
    }

    #[test]
    fn a_refusal_is_told_without_the_signature() {
        for (head, told) in [
            ("403 Forbidden\r\nContent-Length: 0", "403 Forbidden: a signed URL holds for a while only"),
            ("404 Not Found\r\nContent-Length: 0", "404 Not Found: nothing is there"),
        ] {
            let (text, requests) = fetched(vec![answer(head, "")]);
            let error = text.expect_err("it is refused");
            assert!(error.contains(told) && error.contains("/data/in.jsonl"), "{error}");
            assert!(!error.contains("secret") && !error.contains("pw@"), "{error}");
            assert!(requests[0].starts_with("GET /data/in.jsonl?signature=secret "), "{}", requests[0]);
        }
    }

    #[test]
    fn results_are_sent_whole_and_again_where_the_server_is_busy() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("out.jsonl");
        fs::write(&path, TEXT).expect("there is room");
        let answers = ["503 Busy", "200 OK"].map(|head| answer(&format!("{head}\r\nContent-Length: 0"), ""));
        let (url, requests) = server(answers.to_vec());
        upload_with(&path, &url, Duration::from_millis(1)).expect("the second is taken");
        let requests: Vec<String> = requests.iter().take(2).collect();
        for request in requests {
            assert!(request.starts_with("PUT /data/in.jsonl?signature=secret ") && request.ends_with(TEXT));
        }
        let (url, _requests) = server(vec![answer("403 Forbidden\r\nContent-Length: 0", "")]);
        let error =
            upload_with(&path, &url, Duration::from_millis(1)).expect_err("it is refused").to_string();
        assert!(error.contains("403") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn urls_are_shown_and_stored_by_what_is_no_secret() {
        assert!(
            is_url("https://a/b") && is_url("HTTP://a") && !is_url("httpx://a") && !is_url("a/https://b")
        );
        assert_eq!(shown_url("https://u:p@h.org:8080/a/b.csv.gz?X-Sig=1#f"), "https://h.org:8080/a/b.csv.gz");
        assert_eq!(shown_url("https://h.org/~a@b/c"), "https://h.org/~a@b/c");
        assert_eq!(file_name("https://h.org/a/b.csv.gz"), "b.csv.gz");
        assert_eq!(file_name("https://h.org/a/ä b%20.jsonl"), "__b_20.jsonl");
        for none in ["https://h.org/", "https://h.org/a/..", "https://h.org/."] {
            assert_eq!(file_name(none), "input.jsonl");
        }
        assert_eq!(file_name(&format!("https://h/{}.csv", "x".repeat(300))).len(), MAX_NAME_BYTES);
    }
}
