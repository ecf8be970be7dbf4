//! File operations of the snapshot, each of which can be made to fail in tests.
//!
//! Owns reading and writing at places, syncing, locking and replacing by name. What is written where
//! is `saving`'s business.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

use super::SnapshotError;
use crate::new_file::{create_beside, folder_of};

/// An open file.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    path: PathBuf,
}

impl Disk {
    /// Opens a file to read.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        faults::check(Operation::Open)?;
        Ok(Self { file: File::open(path)?, path: path.to_path_buf() })
    }

    /// Opens a file to write and waits until no other process writes to it, or for as long as there is patience.
    /// `None` where there is none.
    pub(super) fn lock(path: &Path, patience: &mut Patience) -> Result<Option<Self>, SnapshotError> {
        loop {
            let opened = faults::check(Operation::Open)
                .and_then(|()| OpenOptions::new().read(true).write(true).open(path));
            let file = match opened {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(failed("write to", path, source)),
            };
            faults::check(Operation::Lock).map_err(|source| failed("lock", path, source))?;
            wait_for_lock(&file, path, patience)?;
            let disk = Self { file, path: path.to_path_buf() };
            // While it waited, another writer may have put a new file under the name.
            if disk.is_at(path) {
                return Ok(Some(disk));
            }
        }
    }

    /// Who but its owner could have written to the file, or owns it in place of this process's user or the
    /// system's; in words. Its folder is not looked at: whoever may write there can put only files of their own in the
    /// file's place, and folders that a group may write to are many people's every one.
    pub(super) fn why_not_trusted(&self) -> io::Result<Option<String>> {
        let metadata = self.file.metadata()?;
        let (owner, user, mode) = (metadata.uid(), rustix::process::geteuid().as_raw(), metadata.mode());
        Ok(if owner != user && owner != 0 {
            Some(format!("belongs to the user with the number {owner}"))
        } else if mode & 0o022 != 0 {
            Some(format!("can be written by others (its mode is {:04o})", mode & 0o7777))
        } else {
            None
        })
    }

    /// Whether others can read what its prompts were.
    pub(super) fn is_readable_by_others(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.mode() & 0o044 != 0)
    }

    /// Lets other writers on; the file stays open to be read.
    pub(super) fn unlock(&self) -> io::Result<()> {
        faults::check(Operation::Lock)?;
        Ok(flock(&self.file, FlockOperation::Unlock)?)
    }

    /// Whether the name still stands for this file.
    fn is_at(&self, path: &Path) -> bool {
        let there = std::fs::metadata(path).map(|there| (there.dev(), there.ino()));
        there.is_ok_and(|there| self.inode().is_ok_and(|here| here == there))
    }

    /// Whether both are the same file, whatever it is called now.
    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        self.inode().is_ok_and(|here| other.inode().is_ok_and(|there| here == there))
    }

    fn inode(&self) -> io::Result<(u64, u64)> {
        let metadata = self.file.metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn num_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Fills `buffer` from `offset` on.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        faults::check(Operation::Read)?;
        self.file.read_exact_at(buffer, offset)
    }

    /// Reads up to `num_bytes` from the start of the file.
    pub(super) fn read_start(&self, num_bytes: usize) -> io::Result<Vec<u8>> {
        let num_there = usize::try_from(self.num_bytes()?).unwrap_or(usize::MAX);
        let mut bytes = vec![0; num_bytes.min(num_there)];
        self.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Some(num_bytes) = faults::write(bytes.len())? {
            self.file.write_all_at(&bytes[..num_bytes], offset)?;
            return Err(io::Error::other("injected: the write was cut short"));
        }
        self.file.write_all_at(bytes, offset)
    }

    /// Waits until all that was written is safe.
    pub(super) fn sync(&self) -> io::Result<()> {
        faults::check(Operation::Sync)?;
        self.file.sync_data()
    }

    /// A file without a name yet, readable by its owner only, in the folder of `path`.
    pub(super) fn create_beside(path: &Path) -> io::Result<NewDisk> {
        faults::check(Operation::Open)?;
        let named = create_beside(path, 0o600)?;
        // Not by its name: another process may tidy that away.
        let file = named.as_file().try_clone()?;
        Ok(NewDisk { disk: Self { file, path: path.to_path_buf() }, named })
    }
}

/// How long another process's lock is waited for. Whoever can read a file can hold its lock.
pub(super) struct Patience {
    pub(super) max: Duration,
    /// Hears, now and then, how long it has been; says whether to wait on.
    pub(super) on_wait: Box<dyn FnMut(Duration) -> bool + Send + Sync>,
}

impl Default for Patience {
    fn default() -> Self {
        Self { max: Duration::from_secs(30), on_wait: Box::new(|_| true) }
    }
}

impl std::fmt::Debug for Patience {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Patience").field("max", &self.max).finish_non_exhaustive()
    }
}

fn wait_for_lock(file: &File, path: &Path, patience: &mut Patience) -> Result<(), SnapshotError> {
    const PAUSE: Duration = Duration::from_millis(50);
    let started = Instant::now();
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let waited = started.elapsed();
                if waited >= patience.max || !(patience.on_wait)(waited) {
                    return Err(SnapshotError::Locked {
                        path: path.to_path_buf(),
                        seconds: waited.as_secs(),
                    });
                }
                thread::sleep(PAUSE);
            }
            Err(error) => return Err(failed("lock", path, error.into())),
        }
    }
}

/// A file that is not in its place yet; goes away unless it is put there.
#[derive(Debug)]
pub(super) struct NewDisk {
    pub disk: Disk,
    named: tempfile::NamedTempFile,
}

impl NewDisk {
    /// Puts the file in its place, where none may be. Returns `None` where there is one.
    pub(super) fn put(self) -> io::Result<Option<Disk>> {
        faults::check(Operation::Rename)?;
        match self.named.persist_noclobber(&self.disk.path) {
            Ok(_) => {}
            // Another is there, or it has come, and the lock on it has let somebody tidy up.
            Err(error)
                if matches!(error.error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error.error),
        }
        sync_folder(&self.disk.path)?;
        Ok(Some(self.disk))
    }

    /// Puts the file in place of one that is locked: whoever waits for that lock finds out that the
    /// name now stands for another file.
    pub(super) fn replace(self) -> io::Result<Disk> {
        faults::check(Operation::Rename)?;
        self.named.persist(&self.disk.path).map_err(|error| error.error)?;
        sync_folder(&self.disk.path)?;
        Ok(self.disk)
    }
}

/// Makes a new name safe.
fn sync_folder(path: &Path) -> io::Result<()> {
    faults::check(Operation::Sync)?;
    File::open(folder_of(path))?.sync_all()
}

/// An error of the file system, with what was tried.
pub(super) fn failed(action: &'static str, path: &Path, source: io::Error) -> SnapshotError {
    SnapshotError::Io { action, path: path.to_path_buf(), source }
}

/// What can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "only tests look at it"))]
pub(super) enum Operation {
    Open,
    Lock,
    Read,
    Sync,
    Rename,
}

#[cfg(not(test))]
mod faults {
    use super::{Operation, io};

    #[inline]
    pub(super) fn check(_: Operation) -> io::Result<()> {
        Ok(())
    }

    /// How many bytes of a write are written before it fails; `None` for a write that does not.
    #[inline]
    pub(super) fn write(_: usize) -> io::Result<Option<usize>> {
        Ok(None)
    }
}

/// Failures on demand, for the thread that asks for them.
#[cfg(test)]
pub(super) mod faults {
    use std::cell::Cell;

    use super::{Operation, io};

    #[derive(Debug, Clone, Copy)]
    struct Plan {
        num_before: usize,
        /// A failing write writes half of its bytes first.
        tears_writes: bool,
        /// From the failing operation on, none succeeds: the machine is gone.
        is_crash: bool,
    }

    thread_local! {
        static PLAN: Cell<Option<Plan>> = const { Cell::new(None) };
        static NUM_DONE: Cell<usize> = const { Cell::new(0) };
    }

    /// Has the operation after `num_before` others fail.
    pub(in crate::snapshot) fn fail_after(num_before: usize, tears_writes: bool, is_crash: bool) {
        NUM_DONE.set(0);
        PLAN.set(Some(Plan { num_before, tears_writes, is_crash }));
    }

    /// Ends the failures and returns how many operations there were.
    pub(in crate::snapshot) fn end() -> usize {
        PLAN.set(None);
        NUM_DONE.get()
    }

    fn is_due() -> Option<Plan> {
        let plan = PLAN.get()?;
        let done = NUM_DONE.get();
        NUM_DONE.set(done + 1);
        (done == plan.num_before || plan.is_crash && done > plan.num_before).then_some(plan)
    }

    pub(super) fn check(operation: Operation) -> io::Result<()> {
        match is_due() {
            Some(_) => Err(io::Error::other(format!("injected: {operation:?} failed"))),
            None => Ok(()),
        }
    }

    pub(super) fn write(num_bytes: usize) -> io::Result<Option<usize>> {
        match is_due() {
            Some(plan) if plan.tears_writes => Ok(Some(num_bytes / 2)),
            Some(_) => Err(io::Error::other("injected: Write failed")),
            None => Ok(None),
        }
    }
}
