//! One file from the hub into the cache: resumed where it stopped, checked before it counts.
//!
//! Owns retries, the partial file and the proof that the bytes are the right ones. What a request
//! looks like is `client`'s business, where things lie `cache`'s.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::cache::{RepoCache, io_error};
use super::client::{Client, Failure};
use super::listing::{Content, RemoteFile};
use super::progress::{FileProgress, Progress};
use super::{HubError, HubOptions};

/// Attempts in a row that bring not one byte; any progress starts the count anew.
const MAX_FRUITLESS_ATTEMPTS: u32 = 5;
const BUFFER_BYTES: usize = 256 << 10;

/// Fetches files of one commit.
pub(super) struct Downloader<'a> {
    pub(super) client: &'a Client,
    pub(super) cache: &'a RepoCache,
    pub(super) commit: &'a str,
    pub(super) progress: &'a Progress,
    pub(super) options: &'a HubOptions,
}

impl Downloader<'_> {
    /// Makes sure that all of these files are in the snapshot, whole.
    pub(super) fn download_all(&self, files: &[&RemoteFile]) -> Result<(), HubError> {
        let mut pending = Vec::new();
        for file in files {
            let content = match &file.content {
                Some(content) => content.clone(),
                None => self.ask_content(&file.name)?,
            };
            if !self.is_in_snapshot(&file.name, &content) {
                pending.push((&file.name, content));
            }
        }
        if pending.is_empty() {
            return Ok(());
        }
        let num_bytes =
            pending.iter().filter_map(|(_, content)| content.size_bytes).fold(0, u64::saturating_add);
        self.progress.announce(&self.client.repo_id(), pending.len(), num_bytes, &self.options.cache_dir);
        for (name, content) in pending {
            self.download(name, &content)?;
            self.cache.link(&content.etag, self.commit, name)?;
        }
        Ok(())
    }

    fn ask_content(&self, name: &str) -> Result<Content, HubError> {
        let mut retries = Retries::new(self.options);
        loop {
            match self.client.content(self.commit, name) {
                Ok(content) => return Ok(content),
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::RangeRefused) => {
                    retries.pause(name, "a range refused that nobody asked for", 0)?
                }
                Err(Failure::Transient(reason)) => retries.pause(name, &reason, 0)?,
            }
        }
    }

    /// A commit's files never change, so a file of the right size is the right file: it was
    /// checked when it came.
    fn is_in_snapshot(&self, name: &str, content: &Content) -> bool {
        let path = self.cache.snapshot_dir(self.commit).join(name);
        fs::metadata(path).is_ok_and(|found| has_size(found.len(), content))
    }

    /// Brings one blob into the cache.
    ///
    /// Until it is whole and checked it has another name, so nobody can take a part for it.
    fn download(&self, name: &str, content: &Content) -> Result<(), HubError> {
        let _lock = self.cache.lock(&content.etag, || {
            self.progress.note(&format!("waiting for another process that downloads {name}"));
        })?;
        let blob = self.cache.blob_path(&content.etag);
        if fs::metadata(&blob).is_ok_and(|found| has_size(found.len(), content)) {
            return Ok(());
        }
        let mut part = PartFile::open(blob.with_extension("incomplete"))?;
        let mut shown = self.progress.start(name, content.size_bytes);
        let mut may_restart = true;
        loop {
            self.fill(name, content, &mut part, &mut shown)?;
            match part.verify(content)? {
                Ok(()) => break,
                // What an earlier run left may have been the damaged part: once more, from the start.
                Err(_) if may_restart => part.truncate()?,
                Err(found) => {
                    part.truncate()?;
                    let expected = content.etag.clone();
                    return Err(HubError::Damaged { file: name.to_string(), expected, found });
                }
            }
            may_restart = false;
        }
        part.persist(&blob)?;
        if hash_of(content).is_none() {
            shown.note(&format!(
                "{name} is unverified: the hub names no SHA-256 or git hash of it, and nothing else tells whether its \
                 bytes are right"
            ));
        }
        shown.finish();
        Ok(())
    }

    /// Fetches until the part is as long as the file is said to be, over any number of broken
    /// connections that each bring something.
    fn fill(
        &self,
        name: &str,
        content: &Content,
        part: &mut PartFile,
        shown: &mut FileProgress,
    ) -> Result<(), HubError> {
        let mut retries = Retries::new(self.options);
        // Without a size, an old part cannot be told from a whole file; begin anew.
        if content.size_bytes.is_none_or(|size| part.num_bytes > size) {
            part.truncate()?;
        }
        // A server without ranges sends the same bytes again: only more than ever is progress.
        let mut most_bytes = part.num_bytes;
        loop {
            shown.set(part.num_bytes);
            // Longer than announced is for the check to find: asking for more would not help.
            if content.size_bytes.is_some_and(|size| part.num_bytes >= size) {
                return Ok(());
            }
            let reason = match self.client.open(self.commit, name, part.num_bytes) {
                Ok((start, reader)) => {
                    if start == 0 {
                        part.truncate()?;
                    }
                    match part.append(reader, content.size_bytes, shown)? {
                        None if content.size_bytes.is_none_or(|size| size == part.num_bytes) => return Ok(()),
                        None => "the connection ended early".to_string(),
                        Some(reason) => reason,
                    }
                }
                Err(Failure::Fatal(error)) => return Err(error),
                Err(Failure::RangeRefused) => {
                    part.truncate()?;
                    "the server refused to go on in mid-file".to_string()
                }
                Err(Failure::Transient(reason)) => reason,
            };
            if part.num_bytes > most_bytes {
                most_bytes = part.num_bytes;
                retries = Retries::new(self.options);
            }
            shown.note(&format!("{name}: {reason}; trying again from byte {}", part.num_bytes));
            retries.pause(name, &reason, part.num_bytes)?;
        }
    }
}

/// Counts fruitless attempts and waits longer after each.
struct Retries<'a> {
    options: &'a HubOptions,
    num_attempts: u32,
}

impl<'a> Retries<'a> {
    fn new(options: &'a HubOptions) -> Self {
        Self { options, num_attempts: 0 }
    }

    fn pause(&mut self, file: &str, reason: &str, part_bytes: u64) -> Result<(), HubError> {
        self.num_attempts += 1;
        if self.num_attempts >= MAX_FRUITLESS_ATTEMPTS {
            return Err(HubError::Interrupted {
                file: file.to_string(),
                num_attempts: self.num_attempts,
                reason: reason.to_string(),
                part_bytes,
            });
        }
        sleep(self.options.first_retry_delay.saturating_mul(1 << (self.num_attempts - 1)));
        Ok(())
    }
}

/// The bytes of a blob that are here so far.
struct PartFile {
    path: PathBuf,
    file: File,
    num_bytes: u64,
}

impl PartFile {
    fn open(path: PathBuf) -> Result<Self, HubError> {
        let open = || -> io::Result<(File, u64)> {
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir)?;
            }
            let mut file =
                OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
            let num_bytes = file.seek(SeekFrom::End(0))?;
            Ok((file, num_bytes))
        };
        let (file, num_bytes) = open().map_err(|source| io_error("write", &path, source))?;
        Ok(Self { path, file, num_bytes })
    }

    fn truncate(&mut self) -> Result<(), HubError> {
        let truncate = self.file.set_len(0).and_then(|()| self.file.rewind());
        self.num_bytes = 0;
        truncate.map_err(|source| io_error("write", &self.path, source))
    }

    /// Appends what a connection brings; returns why it broke, if it did.
    ///
    /// Takes one byte more than is expected at most: enough to see that the file is too long.
    fn append(
        &mut self,
        reader: impl Read,
        size_bytes: Option<u64>,
        shown: &mut FileProgress,
    ) -> Result<Option<String>, HubError> {
        let max_bytes =
            size_bytes.map_or(u64::MAX, |size| size.saturating_sub(self.num_bytes).saturating_add(1));
        let mut reader = reader.take(max_bytes);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let num_read = match reader.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(num_read) => num_read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Some(error.to_string())),
            };
            let bytes = buffer.get(..num_read).expect("a reader fills no more than the buffer");
            self.file.write_all(bytes).map_err(|source| io_error("write", &self.path, source))?;
            self.num_bytes += bytes.len() as u64;
            shown.set(self.num_bytes);
        }
    }

    /// Compares length and hash with what the hub announced; the inner error is what was found.
    fn verify(&mut self, content: &Content) -> Result<Result<(), String>, HubError> {
        if !has_size(self.num_bytes, content) {
            return Ok(Err(format!("{} bytes", self.num_bytes)));
        }
        let Some(hash) = hash_of(content) else { return Ok(Ok(())) };
        let mut context = match hash {
            Hash::Sha256 => Context::new(&SHA256),
            Hash::Git => {
                // What git calls the hash of a blob covers a header too.
                let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                context.update(format!("blob {}\0", self.num_bytes).as_bytes());
                context
            }
        };
        let mut hash = || -> io::Result<()> {
            self.file.rewind()?;
            let mut buffer = vec![0; BUFFER_BYTES];
            loop {
                match self.file.read(&mut buffer)? {
                    0 => return Ok(()),
                    num_read => context.update(buffer.get(..num_read).unwrap_or_default()),
                }
            }
        };
        hash().map_err(|source| io_error("read", &self.path, source))?;
        let digest = context.finish();
        let found: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(if found.eq_ignore_ascii_case(&content.etag) { Ok(()) } else { Err(found) })
    }

    /// Gives the checked part its final name, once it is safely on disk.
    fn persist(self, blob: &Path) -> Result<(), HubError> {
        let persist = self.file.sync_all().and_then(|()| fs::rename(&self.path, blob));
        persist.map_err(|source| io_error("write", blob, source))
    }
}

/// The hashes that a hub names files by.
enum Hash {
    Sha256,
    Git,
}

/// Which hash a file's name is; a mirror's own version name says nothing about the bytes.
fn hash_of(content: &Content) -> Option<Hash> {
    match content.etag.len() {
        64 => Some(Hash::Sha256),
        40 => Some(Hash::Git),
        _ => None,
    }
}

fn has_size(num_bytes: u64, content: &Content) -> bool {
    content.size_bytes.is_none_or(|size| size == num_bytes)
}
