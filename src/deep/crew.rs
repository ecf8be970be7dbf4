//! Lines that go to deep threads together, so that none changes threads for each of its parts.
//!
//! Owns who does which line, watching the parts as long as they would be waited for one by one, and going through a
//! line again without the part that does not end. The threads are the pool's.

use std::{
    cell::{Cell, RefCell},
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use super::{Job, KEPT_THREADS_LISTEN, NotDone, POOL, WAIT_SLICE, end_before_memory_does, left_of_line};
use crate::{panics, threads::num_cores};

thread_local! {
    /// Where this thread tells what it is at, if it is of a crew.
    static POST: RefCell<Option<Arc<Post>>> = const { RefCell::new(None) };

    /// What was waited for in vain and for how long, while a line is gone through again.
    static IN_VAIN: Cell<Option<(u64, Duration)>> = const { Cell::new(None) };
}

/// What a thread is at, for its crew to see.
#[derive(Default)]
struct Post {
    line: AtomicUsize,
    at: Mutex<At>,
}

#[derive(Clone, Copy, Default)]
enum At {
    /// What takes no time.
    #[default]
    Between,
    /// What may have no end.
    Part { fingerprint: u64, patience: Duration, waited: Duration, num_looks: u32 },
    /// Nobody waits for it any more.
    LeftAlone,
}

impl Post {
    fn lock(&self) -> MutexGuard<'_, At> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_left_alone(&self) -> bool {
        matches!(*self.lock(), At::LeftAlone)
    }

    /// Looks after a while what it is at. What has taken too long is left alone; returns its fingerprint then, and
    /// how long it was waited for.
    fn look(&self) -> Option<(u64, Duration)> {
        let mut at = self.lock();
        let At::Part { fingerprint, patience, waited, num_looks } = &mut *at else { return None };
        // A process that was stopped and goes on has waited no longer than this.
        *waited += WAIT_SLICE;
        *num_looks += 1;
        if *waited < *patience {
            let num_looks = *num_looks;
            drop(at);
            end_before_memory_does(num_looks);
            return None;
        }
        let in_vain = (*fingerprint, *patience);
        *at = At::LeftAlone;
        Some(in_vain)
    }
}

/// How long the same was waited for in vain before, for the line that this thread goes through again.
pub(super) fn waited_in_vain(fingerprint: u64) -> Option<Duration> {
    IN_VAIN.get().filter(|(in_vain, _)| *in_vain == fingerprint).map(|(_, patience)| patience)
}

/// Does a part of a line on this thread, whose stack is deep enough.
pub(super) fn in_place<T>(
    patience: Duration,
    fingerprint: u64,
    work: impl FnOnce() -> T,
) -> Result<T, NotDone> {
    let post = POST.with_borrow(Option::clone);
    // A part of a part is waited for with it.
    let Some(post) = post.filter(|post| matches!(*post.lock(), At::Between)) else { return Ok(work()) };
    let patience = left_of_line(patience)?;
    POOL.wait_for_those_left_alone()?;
    *post.lock() = At::Part { fingerprint, patience, waited: Duration::ZERO, num_looks: 0 };
    let outcome = panics::contained(work);
    let mut at = post.lock();
    if matches!(*at, At::LeftAlone) {
        return Err(NotDone::TooLong(patience));
    }
    *at = At::Between;
    outcome.map_err(|_| NotDone::Panicked)
}

/// What a crew does.
struct Task<I, W> {
    lines: Vec<I>,
    work: W,
    next: AtomicUsize,
}

impl<I: Clone, T, W: Fn(I) -> T> Task<I, W> {
    fn claim(&self) -> Option<usize> {
        Some(self.next.fetch_add(1, Ordering::Relaxed)).filter(|line| *line < self.lines.len())
    }

    fn make(&self, line: usize) -> T {
        (self.work)(self.lines[line].clone())
    }
}

struct Member {
    thread: Sender<Job>,
    post: Arc<Post>,
}

/// Does something with each of the lines, on deep threads, as many as there are cores; returns what came of them in
/// their order. What is run by `on_deep_stack` meanwhile stays where it is, and is waited for no longer than there.
pub(crate) fn for_each_line<I, T>(lines: Vec<I>, work: impl Fn(I) -> T + Send + Sync + 'static) -> Vec<T>
where
    I: Clone + Send + Sync + 'static,
    T: Send + 'static,
{
    let mut made: Vec<Option<T>> = lines.iter().map(|_| None).collect();
    let mut num_left = lines.len();
    let task = Arc::new(Task { lines, work, next: AtomicUsize::new(0) });
    let (sender, receiver) = mpsc::channel::<(usize, thread::Result<T>)>();
    let join = || -> Option<Member> {
        let thread = POOL.kept_thread_at_once().ok()?;
        let post = Arc::new(Post::default());
        let (task, sender, at) = (Arc::clone(&task), sender.clone(), Arc::clone(&post));
        let job: Job = Box::new(move || {
            POST.set(Some(Arc::clone(&at)));
            while let Some(line) = task.claim() {
                at.line.store(line, Ordering::Relaxed);
                let outcome = panic::catch_unwind(AssertUnwindSafe(|| task.make(line)));
                if at.is_left_alone() {
                    POOL.ended_alone();
                    break;
                }
                // Nobody may be waiting any more, where another line's panic goes on.
                let _ = sender.send((line, outcome));
            }
            POST.set(None);
        });
        thread.send(job).expect(KEPT_THREADS_LISTEN);
        Some(Member { thread, post })
    };
    let mut crew: Vec<Member> = (0..num_left.min(num_cores())).map_while(|_| join()).collect();
    let mut last_look = Instant::now();
    while num_left > 0 {
        let received = match crew.is_empty() {
            true => receiver.try_recv().ok(),
            false => receiver.recv_timeout(WAIT_SLICE).ok(),
        };
        if let Some((line, outcome)) = received {
            made[line] = Some(outcome.unwrap_or_else(|panic| panic::resume_unwind(panic)));
            num_left -= 1;
        } else if crew.is_empty() {
            // Where the system starts no such thread, what needs one says so.
            let line = task.claim().expect("what others have claimed they have made");
            made[line] = Some(task.make(line));
            num_left -= 1;
        }
        if last_look.elapsed() < WAIT_SLICE {
            continue;
        }
        let overdue: Vec<_> = crew.iter().map(|member| member.post.look()).collect();
        for (index, in_vain) in overdue.into_iter().enumerate().rev() {
            if in_vain.is_none() {
                continue;
            }
            let Member { thread, post } = crew.swap_remove(index);
            POOL.forget(Some(thread));
            POOL.leave_alone();
            crew.extend(join());
            let line = post.line.load(Ordering::Relaxed);
            let outer = IN_VAIN.replace(in_vain);
            made[line] = Some(task.make(line));
            IN_VAIN.set(outer);
            num_left -= 1;
        }
        last_look = Instant::now();
    }
    crew.into_iter().for_each(|member| POOL.give_back(member.thread));
    made.into_iter().map(|made| made.expect("none is left")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{PATIENCE, on_deep_stack};
    use super::*;

    const STACK_BYTES: usize = 1 << 20;

    #[test]
    fn lines_come_in_their_order_and_their_parts_stay_on_one_thread() {
        let id = || thread::current().id();
        let made = for_each_line((0..200).collect(), move |line: usize| {
            let part = || on_deep_stack(STACK_BYTES, PATIENCE, 0, id).expect("it ends");
            (line, [part(), part(), id()])
        });
        let here = id();
        for (index, (line, ids)) in made.into_iter().enumerate() {
            assert_eq!(line, index);
            assert!(ids.iter().all(|id| *id == ids[0] && *id != here), "{ids:?}");
        }
        assert!(for_each_line(Vec::<u8>::new(), |line| line).is_empty());
    }

    /// Each would be waited for once more, and leave two threads alone.
    #[test]
    fn a_part_without_end_fails_its_own_line_and_is_not_run_twice() {
        static NUM_RUNS: AtomicUsize = AtomicUsize::new(0);
        let (sender, receiver) = mpsc::channel::<()>();
        let receiver = Arc::new(Mutex::new(receiver));
        let made = for_each_line((0..40).collect(), move |line: u64| {
            let quick = on_deep_stack(STACK_BYTES, PATIENCE, line, move || line);
            let receiver = Arc::clone(&receiver);
            let slow = on_deep_stack(STACK_BYTES, WAIT_SLICE, 100 + line, move || {
                if line % 20 == 7 {
                    NUM_RUNS.fetch_add(1, Ordering::Relaxed);
                    let _ = receiver.lock().map(|receiver| receiver.recv());
                }
                line
            });
            (quick, slow)
        });
        drop(sender);
        for (line, (quick, slow)) in (0..).zip(made) {
            assert_eq!(quick, Ok(line));
            assert_eq!(slow.is_ok(), line % 20 != 7, "{line}: {slow:?}");
        }
        assert_eq!(NUM_RUNS.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_part_that_panics_is_told_and_a_line_that_does_is_passed_on() {
        let made = for_each_line((0..4).collect(), |line: usize| {
            on_deep_stack(STACK_BYTES, PATIENCE, 0, move || assert!(line != 2, "quietly"))
        });
        assert_eq!(made, [Ok(()), Ok(()), Err(NotDone::Panicked), Ok(())]);
        let passed_on = panics::contained(|| {
            for_each_line(vec![1], |line: i32| -> i32 {
                panic::resume_unwind(Box::new(format!("at {line}")))
            })
        });
        assert_eq!(passed_on, Err("at 1".to_owned()));
    }
}
