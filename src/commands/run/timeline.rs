//! The course of a run: its counters at moments a little apart.
//!
//! Owns how many moments are kept, which does not grow with the length of the run. What is drawn of them is the
//! report's business.

use std::time::Duration;

use serde_json::{Value, json};

/// As fine as they are at first.
const FIRST_SPACING: Duration = Duration::from_millis(50);

/// When there are so many, every second one is dropped.
const MAX_MOMENTS: usize = 400;

/// Where a run was at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Moment {
    /// Since the model was ready.
    pub at: Duration,
    pub num_done: u64,
    pub num_computed_tokens: u64,
    pub num_cached_tokens: u64,
    pub num_generated_tokens: u64,
    /// What the process had resident.
    pub memory_bytes: Option<u64>,
    /// What MLX's arrays held.
    pub array_bytes: Option<u64>,
    /// What the prompt cache held.
    pub cache_bytes: Option<u64>,
}

/// Moments of a run, ascending.
#[derive(Debug)]
pub(super) struct Timeline {
    moments: Vec<Moment>,
    spacing: Duration,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { moments: Vec::new(), spacing: FIRST_SPACING }
    }
}

impl Timeline {
    /// Whether the next moment is to be noted.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.moments.last().is_none_or(|last| now >= last.at + self.spacing)
    }

    /// Notes a moment, after all before it.
    pub(super) fn note(&mut self, moment: Moment) {
        self.moments.push(moment);
        if self.moments.len() >= MAX_MOMENTS {
            self.spacing *= 2;
            let mut place = 0;
            self.moments.retain(|_| {
                place += 1;
                place % 2 == 1
            });
        }
    }

    pub(super) fn moments(&self) -> &[Moment] {
        &self.moments
    }
}

impl Moment {
    pub(super) fn to_json(self) -> Value {
        json!({
            "seconds": self.at.as_secs_f64(),
            "num_done": self.num_done,
            "num_computed_tokens": self.num_computed_tokens,
            "num_cached_tokens": self.num_cached_tokens,
            "num_generated_tokens": self.num_generated_tokens,
            "memory_bytes": self.memory_bytes,
            "array_bytes": self.array_bytes,
            "cache_bytes": self.cache_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_stay_few_and_reach_from_beginning_to_end() {
        let mut timeline = Timeline::default();
        for step in 0..1_000_000u64 {
            let at = Duration::from_millis(10 * step);
            if timeline.is_due(at) {
                timeline.note(Moment { at, num_done: step, ..Moment::default() });
            }
        }
        let moments = timeline.moments();
        assert!((MAX_MOMENTS / 2 - 1..MAX_MOMENTS).contains(&moments.len()), "{}", moments.len());
        assert_eq!(moments[0].at, Duration::ZERO);
        assert!(moments.windows(2).all(|pair| pair[0].at < pair[1].at));
        assert!(moments[moments.len() - 1].num_done > 900_000);
    }
}
