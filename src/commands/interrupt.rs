//! Ctrl-C: the first asks a run under way to end cleanly, the second ends the process at once.
//!
//! Owns the signal handler and the flag it sets. While nothing is computed yet, there is nothing
//! to keep, and the first ends the process too. Looking at the flag between steps is the run's
//! duty. SIGTERM and SIGHUP count as Ctrl-C.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Context;

use crate::{batch::manifest_path, mlx, terminal::eprint_text};

/// What shells report for a process that Ctrl-C has ended.
pub const EXIT_CODE: u8 = 130;

/// Tells whether the user wants the run to end.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    num_signals: AtomicUsize,
    /// Whether a run is under way that looks at the flag.
    is_heeded: AtomicBool,
    /// Where the run's results will be; a file without any is removed with the process.
    results: Option<PathBuf>,
}

impl Interrupt {
    /// Takes over the process's signals; once per process.
    ///
    /// `results` is the file that a run has opened for its first result.
    pub fn install(results: Option<&Path>) -> anyhow::Result<Self> {
        let results = results.map(Path::to_path_buf);
        let interrupt = Self { state: Arc::new(State { results, ..State::default() }) };
        let handler = interrupt.clone();
        ctrlc::set_handler(move || match handler.note_signal() {
            Reaction::EndCleanly => {
                // Behind the ^C that terminals show.
                eprint_text(
                    "\nmlxbatch: stopping and keeping what is done; press Ctrl-C again to stop at once\n",
                );
            }
            Reaction::Abort => {
                handler.remove_empty_results();
                mlx::exit_at_once(EXIT_CODE);
            }
        })
        .context("cannot set up the handling of Ctrl-C")?;
        Ok(interrupt)
    }

    /// Promises that [`is_set`](Self::is_set) is looked at from now on.
    pub fn heed(&self) {
        self.state.is_heeded.store(true, Ordering::Relaxed);
    }

    /// Whether Ctrl-C has been pressed.
    pub fn is_set(&self) -> bool {
        self.state.num_signals.load(Ordering::Relaxed) > 0
    }

    fn note_signal(&self) -> Reaction {
        let is_first = self.state.num_signals.fetch_add(1, Ordering::Relaxed) == 0;
        let is_heeded = self.state.is_heeded.load(Ordering::Relaxed);
        if is_first && is_heeded { Reaction::EndCleanly } else { Reaction::Abort }
    }

    fn remove_empty_results(&self) {
        let Some(path) = &self.state.results else { return };
        // With a manifest it tells a later run that this one had begun.
        let is_empty = fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0);
        if is_empty && !manifest_path(path).exists() {
            let _ = fs::remove_file(path);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Reaction {
    EndCleanly,
    Abort,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_asks_and_the_second_ends() {
        let interrupt = Interrupt::default();
        let seen_by_the_run = interrupt.clone();
        seen_by_the_run.heed();
        assert!(!seen_by_the_run.is_set());
        assert_eq!(interrupt.note_signal(), Reaction::EndCleanly);
        assert!(seen_by_the_run.is_set());
        assert_eq!(interrupt.note_signal(), Reaction::Abort);
    }

    /// Ctrl-C during a download or a load left an empty OUTPUT.partial behind.
    #[test]
    fn a_signal_that_nobody_heeds_ends_at_once_and_leaves_no_empty_file() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        let results = Some(file.path().to_path_buf());
        let interrupt = Interrupt { state: Arc::new(State { results, ..State::default() }) };
        assert_eq!(interrupt.note_signal(), Reaction::Abort);
        fs::write(file.path(), "a result\n").expect("there is room");
        interrupt.remove_empty_results();
        assert!(file.path().exists());
        fs::write(file.path(), "").expect("there is room");
        interrupt.remove_empty_results();
        assert!(!file.path().exists());
    }
}
