//! One repository's folder in the cache that Python's huggingface_hub shares.
//!
//! Owns paths, links, refs and locks in it. Does no networking, and leaves to `files` what makes
//! a snapshot complete.
//!
//! ```text
//! models--owner--name/refs/main              the commit that the branch was at
//!                     blobs/<etag>           content; <etag>.incomplete while it is fetched
//!                     snapshots/<commit>/…   one link per file into blobs/
//! .locks/models--owner--name/<etag>.lock     held while a blob is fetched
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::listing::is_plain_hash;
use super::{HubError, HubOptions};
use crate::{models::files, small_file};

/// A ref holds a commit.
const MAX_REF_BYTES: u64 = 4096;

const DEFAULT_REVISION: &str = "main";

/// The cached side of one repository at one revision.
pub(super) struct RepoCache {
    repo: Repo,
    entry: CacheRepo,
    repo_dir: PathBuf,
    locks_dir: PathBuf,
}

impl RepoCache {
    pub(super) fn new(repo_id: &str, options: &HubOptions) -> Result<Self, HubError> {
        let revision = options.revision.as_deref().unwrap_or(DEFAULT_REVISION);
        // The revision becomes a path under refs/ and a part of a URL.
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.+@=".contains(&byte))
        };
        if !revision.split('/').all(plain) {
            return Err(HubError::BadRevision { revision: revision.to_string() });
        }
        let repo = Repo::with_revision(repo_id.to_string(), RepoType::Model, revision.to_string());
        // Links in the cache are relative to it, so it must not depend on the working folder.
        let cache_dir = std::path::absolute(&options.cache_dir)
            .map_err(|source| io_error("find", &options.cache_dir, source))?;
        let repo_dir = cache_dir.join(repo.folder_name());
        let locks_dir = cache_dir.join(".locks").join(repo.folder_name());
        let entry = Cache::new(cache_dir).repo(repo.clone());
        Ok(Self { repo, entry, repo_dir, locks_dir })
    }

    pub(super) fn repo(&self) -> &Repo {
        &self.repo
    }

    pub(super) fn revision(&self) -> &str {
        self.repo.revision()
    }

    /// Whether the revision is a full commit, whose files can never change.
    pub(super) fn revision_is_commit(&self) -> bool {
        self.revision().len() == 40 && self.revision().bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    pub(super) fn snapshot_dir(&self, commit: &str) -> PathBuf {
        self.entry.pointer_path(commit)
    }

    /// Returns the folder of the revision's newest complete snapshot, or says what it lacks.
    pub(super) fn complete_snapshot(&self) -> Result<PathBuf, String> {
        let commit = match small_file::read_text(&self.ref_path(), MAX_REF_BYTES) {
            Ok(text) => text.trim().to_string(),
            Err(_) => self.revision().to_string(),
        };
        let dir = self.snapshot_dir(&commit);
        if !is_plain_hash(&commit) || !dir.is_dir() {
            return Err(match self.repo_dir.is_dir() {
                true => "that revision has not been downloaded".to_string(),
                false => "it has never been downloaded".to_string(),
            });
        }
        match files::check_folder(&dir) {
            Ok(folder) => Ok(folder.dir),
            Err(error) => Err(format!("its copy is incomplete ({error})")),
        }
    }

    /// Records the commit that the revision stands for. A commit stands for itself.
    pub(super) fn write_ref(&self, commit: &str) -> Result<(), HubError> {
        if self.revision_is_commit() {
            return Ok(());
        }
        let path = self.ref_path();
        // A cache that cannot be written to will do as long as there is nothing to write.
        if small_file::read_text(&path, MAX_REF_BYTES).is_ok_and(|text| text.trim() == commit) {
            return Ok(());
        }
        let write = || -> io::Result<()> {
            let dir = path.parent().expect("a ref lies under refs/");
            fs::create_dir_all(dir)?;
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(commit.as_bytes())?;
            file.persist(&path)?;
            Ok(())
        };
        write().map_err(|source| io_error("write", &path, source))
    }

    /// The place of a blob; `etag` must be a plain hash.
    pub(super) fn blob_path(&self, etag: &str) -> PathBuf {
        self.entry.blob_path(etag)
    }

    /// Makes a file of a snapshot a link to its blob, replacing what was there.
    pub(super) fn link(&self, etag: &str, commit: &str, name: &str) -> Result<(), HubError> {
        let dir = self.snapshot_dir(commit);
        let path = dir.join(name);
        let link = || -> io::Result<()> {
            fs::create_dir_all(&dir)?;
            let target = Path::new("..").join("..").join("blobs").join(etag);
            // Renamed into place: another process may be making the same link.
            let link =
                tempfile::Builder::new().make_in(&dir, |new| std::os::unix::fs::symlink(&target, new))?;
            link.into_temp_path().persist(&path)?;
            Ok(())
        };
        link().map_err(|source| io_error("link", &path, source))
    }

    /// Takes the lock of one blob, waiting for another process that fetches the same one.
    ///
    /// `on_wait` is called once if there is someone to wait for. The lock ends with the file.
    pub(super) fn lock(&self, etag: &str, on_wait: impl FnOnce()) -> Result<File, HubError> {
        let path = self.locks_dir.join(format!("{etag}.lock"));
        let lock = || -> io::Result<File> {
            fs::create_dir_all(&self.locks_dir)?;
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            let locked = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => {
                    on_wait();
                    flock(&file, FlockOperation::LockExclusive)
                }
                result => result,
            };
            match locked {
                // Some network file systems know no locks. Two writers at once then cost a second
                // download, not a wrong file: the hash is checked.
                Err(Errno::NOLCK | Errno::NOTSUP | Errno::NOSYS) | Ok(()) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(file)
        };
        lock().map_err(|source| io_error("lock", &path, source))
    }

    fn ref_path(&self) -> PathBuf {
        self.repo_dir.join("refs").join(self.revision())
    }
}

pub(super) fn io_error(action: &'static str, path: &Path, source: io::Error) -> HubError {
    HubError::Io { action, path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(dir: &Path, revision: Option<&str>) -> Result<RepoCache, HubError> {
        let mut options = HubOptions::from_vars(|_| None);
        options.cache_dir = dir.to_path_buf();
        options.revision = revision.map(str::to_string);
        RepoCache::new("owner/name", &options)
    }

    #[test]
    fn a_revision_cannot_leave_the_cache() {
        for revision in ["../x", "a/../b", "/etc", "", "a b", "a//b", "x?y", ".hidden"] {
            let result = cache(Path::new("/c"), Some(revision));
            assert!(matches!(result, Err(HubError::BadRevision { .. })), "{revision:?}");
        }
        for revision in ["main", "refs/pr/5", "v1.0", "release/2.0+x"] {
            assert!(cache(Path::new("/c"), Some(revision)).is_ok(), "{revision:?}");
        }
    }

    #[test]
    fn what_python_downloaded_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("models--owner--name");
        let snapshot = repo.join("snapshots/abc123");
        for folder in [repo.join("blobs"), repo.join("refs"), snapshot.clone()] {
            fs::create_dir_all(folder).unwrap();
        }
        let cache = cache(dir.path(), None).unwrap();
        fs::write(repo.join("refs/main"), "abc123").unwrap();
        for (name, missing) in [
            ("config.json", "config.json"),
            ("tokenizer.json", "tokenizer.json"),
            ("model.safetensors", "*.safetensors"),
        ] {
            assert!(cache.complete_snapshot().unwrap_err().contains(missing), "{name}");
            fs::write(repo.join("blobs").join(name), "{}").unwrap();
            cache.link(name, "abc123", name).unwrap();
        }
        assert_eq!(cache.complete_snapshot().unwrap(), snapshot);
        assert_eq!(fs::read_to_string(snapshot.join("config.json")).unwrap(), "{}");
    }

    #[test]
    fn a_ref_that_names_no_commit_is_no_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let refs = dir.path().join("models--owner--name/refs");
        fs::create_dir_all(&refs).unwrap();
        fs::create_dir_all(dir.path().join("models--owner--name/snapshots")).unwrap();
        for text in ["", "..", "../..", "abc"] {
            fs::write(refs.join("main"), text).unwrap();
            assert!(cache(dir.path(), None).unwrap().complete_snapshot().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_lock_keeps_a_second_holder_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), None).unwrap();
        let first = cache.lock("e", || panic!("nobody else holds it")).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let cache = &cache;
            scope.spawn(move || cache.lock("e", || sender.send(()).unwrap()).unwrap());
            // The second holder says that it waits, and gets the lock once it is free.
            receiver.recv().unwrap();
            drop(first);
        });
    }
}
