//! Threads that wait for the next piece of work by looking out for it, for a while.
//!
//! Owns them and their hand-over. To start a thread, or to wake one, takes longer than most of what a layer is made of;
//! who looks out has begun within a microsecond. A decode step has some hundred such pieces, one right after the
//! other. What takes milliseconds is for `crate::threads`.

use std::{
    any::Any,
    hint,
    ops::Range,
    panic::{self, AssertUnwindSafe},
    ptr,
    sync::{
        LazyLock, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use crate::threads::num_cores;

/// How long a thread looks out before it sleeps: longer than what lies between two products of a layer.
const PATIENCE: Duration = Duration::from_micros(300);

/// Looks between two times that whoever else needs the core may have it.
const LOOKS_A_TURN: usize = 256;

/// Runs the same work on this thread and on others, at most `max_threads` together; returns what each has returned,
/// this one's first. Others that have not begun when this one is through are not waited for.
///
/// One caller at a time has the others: who comes meanwhile, or from within such work, does it alone.
pub(in crate::mlx) fn on_team<T: Send>(max_threads: usize, work: impl Fn() -> T + Sync) -> Vec<T> {
    if max_threads <= 1 {
        return vec![work()];
    }
    let team = &*TEAM;
    let Ok(_turn) = team.turn.try_lock() else { return vec![work()] };
    let others_returned = Mutex::new(Vec::new());
    let work_of_others = || {
        let returned = work();
        others_returned.lock().unwrap_or_else(PoisonError::into_inner).push(returned);
    };
    let others = &team.hands[..team.hands.len().min(max_threads - 1)];
    let job =
        Job { work: &work_of_others, num_at_work: AtomicUsize::new(others.len()), panic: Mutex::new(None) };
    let handed_over = HandedOver { job: &job, others };
    let address = handed_over.address();
    for hand in others {
        hand.job.store(address, Ordering::SeqCst);
        if hand.is_asleep.load(Ordering::SeqCst) {
            hand.wake();
        }
    }
    let returned = work();
    // Here, or where `work` panics: nobody has the job any more.
    drop(handed_over);
    if let Some(panic) = job.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        panic::resume_unwind(panic);
    }
    let mut all = vec![returned];
    all.append(&mut others_returned.into_inner().unwrap_or_else(PoisonError::into_inner));
    all
}

/// Has tasks done one by one by this thread and others, at most `max_threads` together, each with what it has made for
/// itself.
pub(in crate::mlx) fn share_out<T, S>(
    max_threads: usize,
    tasks: impl Iterator<Item = T> + Send,
    prepared: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) + Sync,
) {
    let tasks = Mutex::new(tasks);
    let next = || tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
    on_team(max_threads, || {
        let mut prepared = prepared();
        while let Some(task) = next() {
            work(&mut prepared, task);
        }
    });
}

/// Parts of so many columns, one behind the other; the last one may have fewer.
pub(in crate::mlx) fn even_parts(num_columns: usize, columns_of_part: usize) -> Vec<Range<usize>> {
    let firsts = (0..num_columns).step_by(columns_of_part);
    firsts.map(|first| first..(first + columns_of_part).min(num_columns)).collect()
}

/// Of each part of the columns all rows; the parts are one behind the other, from the first column to the last.
pub(in crate::mlx) fn parts_of_rows<'a>(
    rows: &'a mut [f32],
    parts: &[Range<usize>],
) -> Vec<Vec<&'a mut [f32]>> {
    let num_columns = parts.last().map_or(0, |part| part.end).max(1);
    let num_rows = rows.len() / num_columns;
    let mut of_parts = Vec::new();
    of_parts.resize_with(parts.len(), || Vec::with_capacity(num_rows));
    for mut row in rows.chunks_exact_mut(num_columns) {
        for (of_part, part) in of_parts.iter_mut().zip(parts) {
            let (columns, others) = row.split_at_mut(part.len());
            of_part.push(columns);
            row = others;
        }
    }
    of_parts
}

/// On how many threads such work is done at most: as many as there are cores, or as the user lets the BLAS have.
pub(in crate::mlx) fn team_size() -> usize {
    *SIZE
}

/// Work that others do, too, on the stack of who waits for them.
struct Job<'a> {
    work: &'a (dyn Fn() + Sync),
    /// Those who have it or may yet take it.
    num_at_work: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A job that others may have; dropped, none has.
struct HandedOver<'a, 'job> {
    job: &'a Job<'job>,
    others: &'a [&'static Hand],
}

impl HandedOver<'_, '_> {
    fn address(&self) -> *mut Job<'static> {
        ptr::from_ref(self.job).cast_mut().cast()
    }
}

impl Drop for HandedOver<'_, '_> {
    fn drop(&mut self) {
        let address = self.address();
        for hand in self.others {
            let none = ptr::null_mut();
            if hand.job.compare_exchange(address, none, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                self.job.num_at_work.fetch_sub(1, Ordering::Release);
            }
        }
        let mut num_looks = 0;
        while self.job.num_at_work.load(Ordering::Acquire) > 0 {
            look_again(&mut num_looks);
        }
    }
}

fn look_again(num_looks: &mut usize) {
    *num_looks += 1;
    if num_looks.is_multiple_of(LOOKS_A_TURN) {
        thread::yield_now();
    } else {
        hint::spin_loop();
    }
}

struct Team {
    turn: Mutex<()>,
    hands: Vec<&'static Hand>,
}

/// One of the other threads.
struct Hand {
    /// What it is to do next, if there is anything.
    job: AtomicPtr<Job<'static>>,
    is_asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

static TEAM: LazyLock<Team> = LazyLock::new(|| {
    // Where the system starts no more of them, fewer do the same work.
    let hands = (1..*SIZE).map_while(|_| Hand::start()).collect();
    Team { turn: Mutex::new(()), hands }
});

/// The user's settings for the BLAS count for all products.
static SIZE: LazyLock<usize> = LazyLock::new(|| {
    let setting = ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"].into_iter().find_map(|name| {
        let number: usize = std::env::var(name).ok()?.trim().parse().ok()?;
        (number > 0).then_some(number)
    });
    setting.map_or(num_cores(), |number| number.min(num_cores()))
});

impl Hand {
    fn start() -> Option<&'static Self> {
        // They live as long as the process.
        let hand: &'static Self = Box::leak(Box::new(Self {
            job: AtomicPtr::new(ptr::null_mut()),
            is_asleep: AtomicBool::new(false),
            thread: OnceLock::new(),
        }));
        let started = thread::Builder::new().name("mlxbatch-team".to_owned()).spawn(|| hand.serve()).ok()?;
        let _ = hand.thread.set(started.thread().clone());
        Some(hand)
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn serve(&self) -> ! {
        loop {
            let (since, mut num_looks) = (Instant::now(), 0);
            let job = loop {
                let job = self.job.swap(ptr::null_mut(), Ordering::AcqRel);
                if !job.is_null() {
                    break job;
                }
                look_again(&mut num_looks);
                if num_looks.is_multiple_of(LOOKS_A_TURN) && since.elapsed() > PATIENCE {
                    self.sleep();
                }
            };
            // SAFETY: who handed it over keeps it until all that took it have said that they are through, which
            // this does last.
            let job = unsafe { &*job };
            if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(job.work)) {
                *job.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
            }
            job.num_at_work.fetch_sub(1, Ordering::Release);
        }
    }

    /// Until there is something to do.
    fn sleep(&self) {
        self.is_asleep.store(true, Ordering::SeqCst);
        // Who hands something over after this look finds that it sleeps.
        while self.job.load(Ordering::SeqCst).is_null() {
            thread::park();
        }
        self.is_asleep.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(numbers: &AtomicUsize, end: usize) -> usize {
        let mut num_taken = 0;
        while numbers.fetch_add(1, Ordering::Relaxed) < end {
            num_taken += 1;
        }
        num_taken
    }

    #[test]
    fn all_of_the_work_is_done_once_however_often_and_whether_they_sleep() {
        for turn in 0..3000 {
            if turn % 500 == 0 {
                thread::sleep(3 * PATIENCE);
            }
            let next = AtomicUsize::new(0);
            let taken = on_team(4, || count(&next, turn));
            assert_eq!(taken.iter().sum::<usize>(), turn);
        }
    }

    #[test]
    fn callers_from_several_threads_and_from_within_do_not_wait_for_each_other() {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let next = AtomicUsize::new(0);
                        let all = on_team(3, || on_team(3, || count(&next, 100)));
                        assert_eq!(all.into_iter().flatten().sum::<usize>(), 100);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_is_passed_on_and_the_next_work_is_done_all_the_same() {
        for _ in 0..50 {
            let panicked = panic::catch_unwind(|| on_team(2, || panic!("on purpose")));
            assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"on purpose"));
            let next = AtomicUsize::new(0);
            assert_eq!(on_team(2, || count(&next, 10)).iter().sum::<usize>(), 10);
        }
    }
}
