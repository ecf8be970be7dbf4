//! Ctrl-C: the first asks the run to end cleanly, the second ends the process at once.
//!
//! Owns the signal handler and the flag it sets. Looking at the flag between steps is the run's
//! duty. SIGTERM and SIGHUP count as Ctrl-C.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;

use crate::mlx;

/// What shells report for a process that Ctrl-C has ended.
pub const EXIT_CODE: u8 = 130;

/// Tells whether the user wants the run to end.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    num_signals: Arc<AtomicUsize>,
}

impl Interrupt {
    /// Takes over the process's signals; once per process.
    pub fn install() -> anyhow::Result<Self> {
        let interrupt = Self::default();
        let handler = interrupt.clone();
        ctrlc::set_handler(move || match handler.note_signal() {
            Reaction::EndCleanly => {
                let _ = writeln!(
                    io::stderr(),
                    "\nmlxbatch: stopping and keeping what is done; press Ctrl-C again to stop at once"
                );
            }
            Reaction::Abort => mlx::exit_at_once(EXIT_CODE),
        })
        .context("cannot set up the handling of Ctrl-C")?;
        Ok(interrupt)
    }

    /// Whether Ctrl-C has been pressed.
    pub fn is_set(&self) -> bool {
        self.num_signals.load(Ordering::Relaxed) > 0
    }

    fn note_signal(&self) -> Reaction {
        match self.num_signals.fetch_add(1, Ordering::Relaxed) {
            0 => Reaction::EndCleanly,
            _ => Reaction::Abort,
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
        assert!(!seen_by_the_run.is_set());
        assert_eq!(interrupt.note_signal(), Reaction::EndCleanly);
        assert!(seen_by_the_run.is_set());
        assert_eq!(interrupt.note_signal(), Reaction::Abort);
    }
}
