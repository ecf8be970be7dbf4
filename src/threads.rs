//! Work that several threads share.
//!
//! Owns starting them, and passing on what they return or their panic. Who does which part is the
//! callers' business.

use std::{
    io,
    num::NonZeroUsize,
    panic,
    sync::{LazyLock, Mutex, mpsc},
    thread,
};

/// Cores that this process may use.
pub(crate) fn num_cores() -> usize {
    // To ask the system takes longer than much of what is done here.
    static NUM_CORES: LazyLock<usize> =
        LazyLock::new(|| thread::available_parallelism().map_or(1, NonZeroUsize::get));
    *NUM_CORES
}

/// Checks that so many more threads can be started, by starting them.
pub(crate) fn can_start(num_threads: usize) -> io::Result<()> {
    let (hold, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    thread::scope(|scope| {
        let start = |_| {
            let builder = thread::Builder::new().stack_size(64 << 10);
            // All of them are there until the last has been started.
            builder.spawn_scoped(scope, || held.lock().is_ok_and(|held| held.recv().is_ok())).map(drop)
        };
        let started = (0..num_threads).try_for_each(start);
        drop(hold);
        started
    })
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
