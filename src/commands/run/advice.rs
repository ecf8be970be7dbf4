//! What would have made a run faster, told at its end from what was measured in it.
//!
//! Owns when that is worth a word. The measuring is the engine's.

use crate::{
    batch::{rate_text, size_text},
    engine::Stats,
};

/// A gain below this is not worth another run's time.
const MIN_GAIN: f64 = 1.2;

/// Nor is a faster decode worth a word where so little time goes into it.
const MIN_DECODE_SHARE: f64 = 0.25;

/// What a batch may be, and costs.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchLimits {
    pub batch_size: usize,
    /// The largest that the flag takes.
    pub max_batch_size: usize,
    pub kv_bytes_per_token: usize,
    /// KV that running sequences may have together; `None` sets no limit.
    pub max_kv_tokens: Option<usize>,
}

/// Says what a larger batch would have brought, where requests waited for a place in it.
pub(super) fn larger_batch(stats: &Stats, limits: BatchLimits) -> Option<String> {
    let BatchLimits { batch_size, max_batch_size, kv_bytes_per_token, max_kv_tokens } = limits;
    let larger = (2 * batch_size).min(max_batch_size).min(stats.num_admitted);
    if stats.peak_rows < batch_size || larger <= batch_size {
        return None;
    }
    let in_all = (stats.prefill.time + stats.decode.time).as_secs_f64();
    if stats.decode.time.as_secs_f64() < MIN_DECODE_SHARE * in_all {
        return None;
    }
    let speed = |num_rows: usize| Some(num_rows as f64 / stats.decode_fit.seconds_of(num_rows)?);
    let gain = speed(larger)? / speed(batch_size)?;
    // What is shared is held once, however many rows there are.
    let num_own =
        stats.num_prompt_tokens.saturating_sub(stats.num_cached_tokens) + stats.num_generated_tokens;
    let num_own_of_row = num_own.div_ceil(stats.num_admitted);
    let fits = max_kv_tokens.is_none_or(|max_tokens| {
        let num_of_row = (stats.num_prompt_tokens + stats.num_generated_tokens).div_ceil(stats.num_admitted);
        larger.saturating_mul(num_of_row) <= max_tokens
    });
    let more_bytes = (larger - batch_size) * num_own_of_row * kv_bytes_per_token;
    (gain >= MIN_GAIN && fits).then(|| {
        format!(
            "--batch-size {larger} would decode about {} times as fast, for about {} more",
            rate_text(gain),
            size_text(more_bytes as u64)
        )
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::PassTotals;

    /// Of passes that take so long, and so much longer for each row.
    fn stats(fixed_micros: u64, micros_a_row: u64, num_requests: usize) -> Stats {
        let mut stats = Stats {
            num_admitted: num_requests,
            num_prompt_tokens: 100 * num_requests,
            num_cached_tokens: 60 * num_requests,
            num_generated_tokens: 10 * num_requests,
            peak_rows: 16,
            ..Stats::default()
        };
        for pass in 0..40 {
            let num_decode_rows = if pass < 20 { 16 } else { 1 + pass % 16 };
            let time = Duration::from_micros(fixed_micros + micros_a_row * num_decode_rows as u64);
            stats.add_pass(&PassTotals { num_passes: 1, num_decode_rows, time, ..PassTotals::default() });
        }
        stats
    }

    const LIMITS: BatchLimits =
        BatchLimits { batch_size: 16, max_batch_size: 512, kv_bytes_per_token: 1 << 10, max_kv_tokens: None };

    #[test]
    fn a_larger_batch_is_advised_where_requests_waited_and_rows_cost_little() {
        // 32 rows take 1,320 µs, 16 take 1,160.
        let advice = larger_batch(&stats(1_000, 10, 100), LIMITS);
        let expected = "--batch-size 32 would decode about 1.8 times as fast, for about 800 KiB more";
        assert_eq!(advice.as_deref(), Some(expected));
        let few = larger_batch(&stats(1_000, 10, 20), LIMITS).expect("20 fit");
        assert!(few.starts_with("--batch-size 20 would decode about 1.2 times"), "{few}");
        assert_eq!(larger_batch(&stats(1_000, 10, 16), LIMITS), None, "nobody waited");
        assert_eq!(larger_batch(&stats(0, 100, 100), LIMITS), None, "rows cost all there is");
        let few_tokens = BatchLimits { max_kv_tokens: Some(3_000), ..LIMITS };
        assert_eq!(larger_batch(&stats(1_000, 10, 100), few_tokens), None, "there is no room");
        let at_most = BatchLimits { max_batch_size: 16, ..LIMITS };
        assert_eq!(larger_batch(&stats(1_000, 10, 100), at_most), None);
    }

    #[test]
    fn nothing_is_advised_from_passes_that_were_all_alike() {
        let mut stats = Stats { num_admitted: 100, peak_rows: 16, ..Stats::default() };
        let pass = PassTotals {
            num_passes: 1,
            num_decode_rows: 16,
            time: Duration::from_micros(100),
            ..Default::default()
        };
        (0..40).for_each(|_| stats.add_pass(&pass));
        assert_eq!(larger_batch(&stats, LIMITS), None);
    }
}
