//! How durations are spread, in constant memory.
//!
//! Owns the bounds of the buckets: each is at most a sixty-fourth wider than it is long, so that a percentile is
//! within 1.6% of the true one.

use std::time::Duration;

/// Buckets of an octave, as a power of two.
const SUB_BITS: u32 = 6;

/// Counts of durations, by their length in microseconds.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// As many as the longest duration needs; a few thousand at most.
    counts: Vec<u64>,
    num: u64,
    max: Duration,
}

impl Histogram {
    pub(super) fn add(&mut self, time: Duration) {
        let bucket = bucket_of(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.num += 1;
        self.max = self.max.max(time);
    }

    pub(super) fn len(&self) -> u64 {
        self.num
    }

    /// The least duration that so many percent of all are not above; none where there are none.
    pub(super) fn percentile(&self, percent: u64) -> Duration {
        let rank = (u128::from(self.num) * u128::from(percent)).div_ceil(100);
        let mut num_below = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            num_below += u128::from(*count);
            if *count > 0 && num_below >= rank {
                return Duration::from_micros(last_of(bucket)).min(self.max);
            }
        }
        self.max
    }
}

fn bucket_of(number: u64) -> usize {
    // Below two octaves' worth of buckets every number has its own.
    let shift = (u64::BITS - number.leading_zeros()).saturating_sub(SUB_BITS + 1);
    ((u64::from(shift) << SUB_BITS) + (number >> shift)) as usize
}

/// The greatest number of a bucket.
fn last_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket >> SUB_BITS).saturating_sub(1);
    let first = bucket - (shift << SUB_BITS);
    (((u128::from(first) + 1) << shift) - 1).min(u128::from(u64::MAX)) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_number_is_in_its_bucket_and_the_bucket_is_narrow(number: u64) {
            let bucket = bucket_of(number);
            let last = last_of(bucket);
            prop_assert!(last >= number && last - number <= number / 64, "{} {}", number, last);
            prop_assert_eq!(bucket_of(last), bucket);
            prop_assert!(last == u64::MAX || bucket_of(last + 1) == bucket + 1);
        }

        #[test]
        fn a_percentile_is_near_the_true_one(mut times in prop::collection::vec(0u64..100_000_000, 1..200)) {
            let mut histogram = Histogram::default();
            times.iter().for_each(|time| histogram.add(Duration::from_micros(*time)));
            times.sort_unstable();
            for percent in [50, 90, 99, 100] {
                let place = (times.len() * percent).div_ceil(100) - 1;
                let (exact, told) = (times[place], histogram.percentile(percent as u64).as_micros() as u64);
                prop_assert!(told >= exact && told - exact <= exact / 64, "{} {} {}", percent, exact, told);
            }
            prop_assert_eq!(histogram.percentile(100).as_micros() as u64, times[times.len() - 1]);
        }
    }

    #[test]
    fn of_none_it_is_nothing() {
        assert_eq!(Histogram::default().percentile(99), Duration::ZERO);
    }
}
