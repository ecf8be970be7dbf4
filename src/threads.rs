//! Work that several threads share.
//!
//! Owns starting them, and passing on what they return or their panic. Who does which part is the
//! callers' business.

use std::{num::NonZeroUsize, panic, sync::LazyLock, thread};

/// Cores that this process may use.
pub(crate) fn num_cores() -> usize {
    // To ask the system takes longer than much of what is done here.
    static NUM_CORES: LazyLock<usize> =
        LazyLock::new(|| thread::available_parallelism().map_or(1, NonZeroUsize::get));
    *NUM_CORES
}

/// Runs the same work on this thread and on others, as many as there are cores but at most
/// `max_threads` together; returns what each has returned, this one's first.
pub(crate) fn on_threads<T: Send>(max_threads: usize, work: impl Fn() -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        // Where the system starts no more of them, fewer do the same work.
        let others: Vec<_> = (1..max_threads.min(num_cores()))
            .map_while(|_| thread::Builder::new().spawn_scoped(scope, &work).ok())
            .collect();
        let mut returned = vec![work()];
        for other in others {
            returned.push(other.join().unwrap_or_else(|panic| panic::resume_unwind(panic)));
        }
        returned
    })
}
