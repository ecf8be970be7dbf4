//! Threads with deep stacks, kept from one use to the next.
//!
//! Owns running what recurses over a stranger's data, or computes on it for longer than anybody knows: on a stack
//! that is deep enough, and for as long as its caller waits. What has not ended by then is left to itself, and only
//! so many of these may be at it. Lines that are many go to them together, which is `crew`'s. What is run is the
//! callers' business.

mod crew;

use std::{
    cell::Cell,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

pub(crate) use self::crew::for_each_line;
use crate::{machine_memory, mlx, panics, terminal::eprint_line};

/// Stack of the threads that are kept. Only what is used of it takes memory; address space it takes whole.
pub(crate) const KEPT_STACK_BYTES: usize = 128 << 20;

/// What callers wait at least, which is a thousand times what anything sensible takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What one line may take in all, beside what long texts may.
const LINE_PATIENCE: Duration = Duration::from_secs(20);

/// Jobs that nobody waits for any more and that may still run. With so many, others wait a while for one to end, as
/// these have no core to themselves; with so many more, others are not begun.
const MANY_LEFT_ALONE: usize = 8;
const MAX_LEFT_ALONE: usize = 64;

/// How long they wait.
const CROWD_PATIENCE: Duration = Duration::from_secs(1);

/// With less than this, and something at it for so long, that is what takes it.
const MIN_MEMORY_LEFT: u64 = 256 << 20;
const MIN_SUSPICIOUS_SLICES: u32 = 5;

/// A process that was stopped and goes on has waited no longer than this.
const WAIT_SLICE: Duration = Duration::from_millis(100);

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotDone {
    /// It has not ended within this time.
    TooLong(Duration),
    /// It was not begun, through no fault of its own; the reason.
    NotBegun(String),
    Panicked,
    /// The system starts no thread with so much stack.
    NoThread {
        stack_bytes: usize,
        reason: String,
    },
}

impl NotDone {
    /// All that is done for its line has taken so long.
    fn no_time_left(in_all: Duration) -> Self {
        Self::NotBegun(format!(
            "all that is rendered and tokenised for this line has taken {:.0} seconds",
            in_all.as_secs_f32()
        ))
    }

    /// What is told where the system starts no thread.
    pub(crate) fn no_thread_text(stack_bytes: usize, reason: &str) -> String {
        format!(
            "no thread with a stack of {} MiB can be started ({reason}): {RAISE_LIMITS}",
            stack_bytes >> 20
        )
    }

    fn crowded() -> Self {
        Self::NotBegun(
            "it was not begun: too many templates or texts of other lines have no end and take all processors; \
             leave those out"
                .to_owned(),
        )
    }
}

type Job = Box<dyn FnOnce() + Send>;

const KEPT_THREADS_LISTEN: &str = "a kept thread ends when nobody can send it anything";

/// Threads that have nothing to do, by what they take jobs from.
#[derive(Default)]
struct Pool {
    state: Mutex<State>,
    is_changed: Condvar,
}

#[derive(Default)]
struct State {
    idle: Vec<Sender<Job>>,
    num_kept: usize,
    num_left_alone: usize,
}

static POOL: Pool = Pool {
    state: Mutex::new(State { idle: Vec::new(), num_kept: 0, num_left_alone: 0 }),
    is_changed: Condvar::new(),
};

thread_local! {
    /// Stack of this thread, if it is one of these.
    static STACK_BYTES: Cell<usize> = const { Cell::new(0) };

    /// When the line was begun that this thread is at, and what it may take beyond what any line may.
    static LINE: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
}

/// What tells one thing to be run from others: where its caller has waited for it in vain, the same is not run again.
pub(crate) fn fingerprint(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

/// Does all that is to be done for one line: so much patience there is for all of it, in however many parts it comes
/// here.
pub(crate) fn for_one_line<T>(work: impl FnOnce() -> T) -> T {
    let outer = LINE.replace(Some((Instant::now(), Duration::ZERO)));
    let done = work();
    LINE.set(outer);
    done
}

/// Does something for a line that has had all its time.
#[cfg(test)]
pub(crate) fn for_an_overdue_line<T>(work: impl FnOnce() -> T) -> T {
    let begun = Instant::now().checked_sub(LINE_PATIENCE).expect("the clock is past this");
    let outer = LINE.replace(Some((begun, Duration::ZERO)));
    let done = work();
    LINE.set(outer);
    done
}

/// The patience for one part of a line, as far as there is any left for the line.
fn left_of_line(patience: Duration) -> Result<Duration, NotDone> {
    let Some((begun, beyond)) = LINE.get() else { return Ok(patience) };
    // A long text is waited for longer; a short one as often as it is looked at is not.
    let beyond = beyond.max(patience.saturating_sub(PATIENCE));
    LINE.set(Some((begun, beyond)));
    let in_all = LINE_PATIENCE + beyond;
    match in_all.saturating_sub(begun.elapsed()) {
        Duration::ZERO => Err(NotDone::no_time_left(in_all)),
        left => Ok(patience.min(left)),
    }
}

/// Runs something on a stack of at least this size, and waits so long for it; `fingerprint` is its own.
pub(crate) fn on_deep_stack<T: Send + 'static>(
    stack_bytes: usize,
    patience: Duration,
    fingerprint: u64,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NotDone> {
    if STACK_BYTES.get() >= stack_bytes {
        return crew::in_place(patience, fingerprint, work);
    }
    if let Some(patience) = crew::waited_in_vain(fingerprint) {
        return Err(NotDone::TooLong(patience));
    }
    let patience = left_of_line(patience)?;
    POOL.wait_for_those_left_alone()?;
    let (sender, receiver) = mpsc::channel();
    let is_left_alone = Arc::new(AtomicBool::new(false));
    let is_watched = Arc::clone(&is_left_alone);
    let job: Job = Box::new(move || {
        let outcome = panics::contained(work);
        if is_watched.swap(true, Ordering::AcqRel) {
            POOL.ended_alone();
        }
        // Nobody may be waiting any more.
        let _ = sender.send(outcome);
    });
    let thread = match stack_bytes <= KEPT_STACK_BYTES {
        true => Some(POOL.kept_thread()?),
        false => None,
    };
    match &thread {
        Some(thread) => thread.send(job).expect(KEPT_THREADS_LISTEN),
        None => start(stack_bytes, job)?,
    }
    match wait(&receiver, patience) {
        Ok(outcome) => {
            thread.into_iter().for_each(|thread| POOL.give_back(thread));
            outcome.map_err(|_| NotDone::Panicked)
        }
        // Its thread ends with it, since nobody has what it takes jobs from.
        Err(_) => {
            POOL.forget(thread);
            if !is_left_alone.swap(true, Ordering::AcqRel) {
                POOL.leave_alone();
            }
            Err(NotDone::TooLong(patience))
        }
    }
}

fn wait<T>(receiver: &Receiver<T>, mut patience: Duration) -> Result<T, RecvTimeoutError> {
    for num_slices in 1.. {
        let slice = patience.min(WAIT_SLICE);
        patience -= slice;
        match receiver.recv_timeout(slice) {
            Err(RecvTimeoutError::Timeout) if !patience.is_zero() => end_before_memory_does(num_slices),
            received => return received,
        }
    }
    Err(RecvTimeoutError::Timeout)
}

/// A list that a template doubles takes all memory within one step, which nothing can stop: the system would end
/// the process, or another, without a word.
fn end_before_memory_does(num_slices: u32) {
    let is_suspicious = num_slices >= MIN_SUSPICIOUS_SLICES;
    if is_suspicious && machine_memory::available_bytes().is_some_and(|left| left < MIN_MEMORY_LEFT) {
        eprint_line(
            "mlxbatch: error: a chat template or the tokenizer has used up nearly all memory for one line: the run \
             ends before the system ends it; what was answered is kept, and the same command with --resume goes on",
        );
        mlx::exit_at_once(1);
    }
}

/// What is to be done where the system starts no thread.
pub(crate) const RAISE_LIMITS: &str =
    "raise the limits on address space (`ulimit -v`) and on processes (`ulimit -u`), or free memory";

/// Says once that it is the machine, and not what was to be run: each of these is told with its own line as well.
fn tell_of_the_machine(stack_bytes: usize, reason: &str) {
    static IS_TOLD: AtomicBool = AtomicBool::new(false);
    if !IS_TOLD.swap(true, Ordering::Relaxed) {
        eprint_line(&format!(
            "mlxbatch: warning: the system starts no thread with a stack of {} MiB ({reason}), which some lines need: \
             they fail for no fault of their own; {RAISE_LIMITS}, and answer them with --resume --retry-errors",
            stack_bytes >> 20
        ));
    }
}

fn start(stack_bytes: usize, job: Job) -> Result<(), NotDone> {
    let run = move || {
        STACK_BYTES.set(stack_bytes);
        job();
    };
    let started = thread::Builder::new().name("deep stack".to_owned()).stack_size(stack_bytes).spawn(run);
    started.map(drop).map_err(|error| {
        let reason = error.to_string();
        tell_of_the_machine(stack_bytes, &reason);
        NotDone::NoThread { stack_bytes, reason }
    })
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Only whole changes are made, so that a panic elsewhere leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kept thread that has nothing to do: one that is idle, else a new one, else the next that is given back.
    fn kept_thread(&self) -> Result<Sender<Job>, NotDone> {
        let mut state = self.lock();
        loop {
            match Self::idle_or_new(&mut state) {
                Err(error) if state.num_kept == 0 => return Err(error),
                Err(_) => state = self.is_changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Ok(thread) => return Ok(thread),
            }
        }
    }

    /// The same where there is one at once.
    fn kept_thread_at_once(&self) -> Result<Sender<Job>, NotDone> {
        Self::idle_or_new(&mut self.lock())
    }

    fn idle_or_new(state: &mut State) -> Result<Sender<Job>, NotDone> {
        if let Some(thread) = state.idle.pop() {
            return Ok(thread);
        }
        let (sender, receiver) = mpsc::channel::<Job>();
        start(KEPT_STACK_BYTES, Box::new(move || receiver.into_iter().for_each(|job| job())))?;
        state.num_kept += 1;
        Ok(sender)
    }

    fn give_back(&self, thread: Sender<Job>) {
        self.lock().idle.push(thread);
        self.is_changed.notify_all();
    }

    /// A thread is kept no longer: it ends with what it is at.
    fn forget(&self, thread: Option<Sender<Job>>) {
        self.lock().num_kept -= usize::from(thread.is_some());
        self.is_changed.notify_all();
    }

    /// Notes that nobody waits any more for something that goes on.
    fn leave_alone(&self) {
        let mut state = self.lock();
        state.num_left_alone += 1;
        if state.num_left_alone == 1 {
            // It is as well if there is none: it only says what would come without a word.
            let _ = thread::Builder::new().name("watch".to_owned()).spawn(|| POOL.watch_those_left_alone());
        }
    }

    /// Watches what nobody waits for, which may go on taking memory.
    fn watch_those_left_alone(&self) {
        while self.lock().num_left_alone > 0 {
            thread::sleep(WAIT_SLICE);
            end_before_memory_does(u32::MAX);
        }
    }

    fn ended_alone(&self) {
        self.lock().num_left_alone -= 1;
        self.is_changed.notify_all();
    }

    /// Waits for one of many to end that nobody waits for; with too many, nothing is begun any more.
    fn wait_for_those_left_alone(&self) -> Result<(), NotDone> {
        let mut left = CROWD_PATIENCE;
        let mut state = self.lock();
        while state.num_left_alone >= MANY_LEFT_ALONE && !left.is_zero() {
            let (slice, started) = (left.min(WAIT_SLICE), Instant::now());
            state = self.is_changed.wait_timeout(state, slice).unwrap_or_else(PoisonError::into_inner).0;
            left -= started.elapsed().min(slice);
        }
        if state.num_left_alone >= MAX_LEFT_ALONE { Err(NotDone::crowded()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::thread::ThreadId;

    use super::*;

    /// Takes some 100 bytes of stack a level in every build.
    fn depth(levels: usize) -> usize {
        let kept = std::hint::black_box([levels; 8]);
        if levels == 0 { 0 } else { 1 + depth(std::hint::black_box(kept[0]) - 1) }
    }

    /// Two threads were started for each line that was rendered.
    #[test]
    fn threads_are_kept_and_what_is_run_on_one_stays_there() {
        let id = || thread::current().id();
        let ids: Vec<ThreadId> = (0..20)
            .map(|_| {
                let nested = on_deep_stack(1 << 20, PATIENCE, 0, move || {
                    (id(), on_deep_stack(KEPT_STACK_BYTES, PATIENCE, 0, id))
                });
                let (outer, inner) = nested.expect("a thread can be started");
                assert_eq!(inner.as_ref(), Ok(&outer));
                outer
            })
            .collect();
        // Tests beside this one may take a thread in between.
        let num_different = ids.iter().collect::<std::collections::HashSet<_>>().len();
        assert!(!ids.contains(&id()) && num_different < 10, "{ids:?}");
    }

    #[test]
    fn a_stack_is_as_deep_as_was_asked_for() {
        assert_eq!(on_deep_stack(KEPT_STACK_BYTES, PATIENCE, 0, || depth(500_000)), Ok(500_000));
        assert_eq!(on_deep_stack(2 * KEPT_STACK_BYTES, PATIENCE, 0, || depth(1_000_000)), Ok(1_000_000));
    }

    #[test]
    fn what_takes_too_long_is_left_alone_and_a_panic_is_told() {
        let (sender, receiver) = mpsc::channel::<()>();
        let patience = Duration::from_millis(1);
        let waiting = on_deep_stack(1 << 20, patience, 0, move || receiver.recv().is_ok());
        assert!(matches!(waiting, Err(NotDone::TooLong(_))), "{waiting:?}");
        drop(sender);
        let slow = || on_deep_stack(1 << 20, PATIENCE, 0, || thread::sleep(Duration::from_millis(5)));
        for_an_overdue_line(|| {
            assert_eq!(slow(), Err(NotDone::no_time_left(LINE_PATIENCE)));
            assert_eq!(for_one_line(slow), Ok(()));
            assert!(slow().is_err());
        });
        assert_eq!(slow(), Ok(()));
        let panicked = on_deep_stack(1 << 20, PATIENCE, 0, || std::panic::resume_unwind(Box::new("quietly")));
        assert_eq!(panicked.map(|()| 0), Err(NotDone::Panicked));
        assert_eq!(on_deep_stack(1 << 20, PATIENCE, 0, || 1), Ok(1), "others go on");
    }
}
