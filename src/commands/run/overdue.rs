//! `--timeout`: which lines have had their time.
//!
//! Owns the order in which it runs out, which is that of entering the batch. What becomes of such a line is the
//! session's business.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Lines that have entered the batch, the first of them first.
#[derive(Debug, Default)]
pub(super) struct Overdue {
    timeout: Option<Duration>,
    entered: VecDeque<(Instant, u64)>,
}

impl Overdue {
    /// Without a timeout no line is ever late.
    pub(super) fn new(timeout: Option<Duration>) -> Self {
        Self { timeout, entered: VecDeque::new() }
    }

    /// Notes a line that enters the batch at this time, not before any noted earlier.
    pub(super) fn note(&mut self, line: u64, entered: Instant) {
        if self.timeout.is_some() {
            self.entered.push_back((entered, line));
        }
    }

    /// Takes the next line that is late, and how long it had; forgets those before it that are not open any more.
    pub(super) fn next(&mut self, now: Instant, is_open: impl Fn(u64) -> bool) -> Option<(u64, Duration)> {
        let timeout = self.timeout?;
        while self.entered.front().is_some_and(|(_, line)| !is_open(*line)) {
            self.entered.pop_front();
        }
        let (entered, line) = *self.entered.front()?;
        if now.saturating_duration_since(entered) < timeout {
            return None;
        }
        self.entered.pop_front();
        Some((line, timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_late_in_the_order_in_which_they_entered() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let mut overdue = Overdue::new(Some(3 * second));
        let late = |overdue: &mut Overdue, num_seconds| {
            overdue.next(begin + num_seconds * second, |line| line != 5).map(|(line, _)| line)
        };
        overdue.note(7, begin);
        overdue.note(5, begin);
        overdue.note(2, begin + second);
        assert_eq!(late(&mut overdue, 2), None);
        assert_eq!(late(&mut overdue, 3), Some(7));
        assert_eq!(late(&mut overdue, 3), None);
        assert_eq!(overdue.entered.len(), 1, "what is done is forgotten");
        assert_eq!(late(&mut overdue, 9), Some(2));
        let mut never = Overdue::new(None);
        never.note(7, begin);
        assert_eq!(late(&mut never, 9), None);
    }
}
