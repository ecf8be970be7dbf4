//! What the engine has computed, and how long it took.
//!
//! Owns the counters of a run and the rates that follow from them. Printing them is the caller's
//! business.

use std::time::Duration;

/// Passes of one kind, added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassTotals {
    pub num_passes: usize,
    /// Prompt tokens computed.
    pub num_prompt_tokens: usize,
    /// Rows of a single token: one that was sampled, wasted ones included, or a prompt's last.
    pub num_decode_rows: usize,
    /// Those that fed a prompt's last token.
    pub num_last_rows: usize,
    /// Tokens sampled for a request that had ended meanwhile, and dropped.
    pub num_wasted_rows: usize,
    /// Time in which the oldest pass under way was of this kind, up to when its tokens were there.
    pub time: Duration,
}

impl PassTotals {
    fn add(&mut self, pass: &PassTotals) {
        self.num_passes += pass.num_passes;
        self.num_prompt_tokens += pass.num_prompt_tokens;
        self.num_decode_rows += pass.num_decode_rows;
        self.num_last_rows += pass.num_last_rows;
        self.num_wasted_rows += pass.num_wasted_rows;
        self.time += pass.time;
    }
}

/// Counters since the engine was made. Passes count when they are collected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that entered the running batch.
    pub num_admitted: usize,
    /// Prompt tokens of those requests.
    pub num_prompt_tokens: usize,
    /// Of those, tokens whose KV was there already.
    pub num_cached_tokens: usize,
    /// New tokens of all requests, end tokens included.
    pub num_generated_tokens: usize,
    /// Requests that ended because the model's logits were no numbers, be they for a token or for a score.
    pub num_without_token: usize,
    /// Choices that a guide had a say in, and the time that guides took for them on all cores together.
    pub num_guided_tokens: usize,
    pub guide_time: Duration,
    /// Most sequences in one pass.
    pub peak_rows: usize,
    /// Passes that computed prompt tokens; decoding rows may have been among them.
    pub prefill: PassTotals,
    /// Passes of decoding rows alone.
    pub decode: PassTotals,
    /// How long these take.
    pub decode_fit: PassFit,
}

/// How the time of passes depends on their rows: a line through those that were measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassFit {
    num_passes: u64,
    rows: u64,
    rows_squared: u64,
    nanos: u128,
    rows_by_nanos: u128,
}

/// Fewer say nothing.
const MIN_FITTED_PASSES: u64 = 16;

/// Nor do those whose rows differ from each other, by the standard deviation, by less of their mean.
const MIN_SPREAD: f64 = 0.2;

impl PassFit {
    fn add(&mut self, num_rows: usize, time: Duration) {
        let (rows, nanos) = (num_rows as u64, time.as_nanos());
        self.num_passes += 1;
        self.rows += rows;
        self.rows_squared += rows * rows;
        self.nanos += nanos;
        self.rows_by_nanos += u128::from(rows) * nanos;
    }

    /// Seconds that a pass of so many rows takes, by least squares; nothing where too little was measured.
    pub fn seconds_of(&self, num_rows: usize) -> Option<f64> {
        if self.num_passes < MIN_FITTED_PASSES {
            return None;
        }
        let num = self.num_passes as f64;
        let (mean_rows, mean_nanos) = (self.rows as f64 / num, self.nanos as f64 / num);
        let variance = self.rows_squared as f64 / num - mean_rows * mean_rows;
        if variance < (MIN_SPREAD * mean_rows).powi(2) {
            return None;
        }
        let covariance = self.rows_by_nanos as f64 / num - mean_rows * mean_nanos;
        // Neither a row nor a pass takes less than no time.
        let a_row = (covariance / variance).clamp(0.0, mean_nanos / mean_rows);
        let nanos = mean_nanos + a_row * (num_rows as f64 - mean_rows);
        (nanos > 0.0).then_some(nanos / 1e9)
    }
}

impl Stats {
    /// Prompt tokens computed in chunks.
    pub fn num_prefilled_tokens(&self) -> usize {
        self.prefill.num_prompt_tokens
    }

    /// Prompt tokens fed as the first decode row of their request, which is never cached. What is
    /// prefilled, what is cached and these are all prompt tokens, but for the last ones of requests that want
    /// no answer, which are not computed.
    pub fn num_last_tokens(&self) -> usize {
        self.prefill.num_last_rows + self.decode.num_last_rows
    }

    pub fn num_passes(&self) -> usize {
        self.prefill.num_passes + self.decode.num_passes
    }

    /// Tokens sampled for a request that had ended meanwhile: the price of lookahead.
    pub fn num_wasted_rows(&self) -> usize {
        self.prefill.num_wasted_rows + self.decode.num_wasted_rows
    }

    /// Prompt tokens per second, if any were computed.
    ///
    /// Decoding rows in the same passes are taken to cost as much as a prompt token each. They
    /// cost a little more (each has logits to compute), so the rate errs on the low side.
    pub fn prefill_tokens_per_second(&self) -> Option<f64> {
        let has_prompts = self.prefill.num_prompt_tokens > 0;
        let num_rows = self.prefill.num_prompt_tokens + self.prefill.num_decode_rows;
        has_prompts.then(|| rate(num_rows, self.prefill.time)).flatten()
    }

    /// New tokens per second, wasted ones aside, of the passes that did nothing but decode, if there were any.
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        rate(self.decode.num_decode_rows - self.decode.num_wasted_rows, self.decode.time)
    }

    /// Counts one collected pass.
    pub(crate) fn add_pass(&mut self, pass: &PassTotals) {
        let is_prefill = pass.num_prompt_tokens > 0;
        let totals = if is_prefill { &mut self.prefill } else { &mut self.decode };
        totals.add(pass);
        if !is_prefill {
            self.decode_fit.add(pass.num_decode_rows, pass.time);
        }
    }
}

fn rate(num_tokens: usize, time: Duration) -> Option<f64> {
    (num_tokens > 0 && !time.is_zero()).then(|| num_tokens as f64 / time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_from_the_passes_of_each_kind() {
        let mut stats = Stats::default();
        assert_eq!(stats.prefill_tokens_per_second(), None);
        assert_eq!(stats.decode_tokens_per_second(), None);

        let second = Duration::from_secs(1);
        let mixed =
            PassTotals { num_passes: 1, num_prompt_tokens: 96, num_decode_rows: 4, time: second, ..totals() };
        stats.add_pass(&mixed);
        assert_eq!(stats.prefill_tokens_per_second(), Some(100.0));
        assert_eq!(stats.decode_tokens_per_second(), None);

        let decode = PassTotals { num_passes: 1, num_decode_rows: 8, time: second / 4, ..totals() };
        stats.add_pass(&decode);
        stats.add_pass(&PassTotals { num_wasted_rows: 4, ..decode });
        assert_eq!(stats.decode_tokens_per_second(), Some(24.0));
        assert_eq!(stats.num_passes(), 3);
        assert_eq!(stats.num_prefilled_tokens(), 96);
        assert_eq!(stats.num_wasted_rows(), 4);
    }

    #[test]
    fn the_time_of_a_pass_is_a_line_through_those_that_were_measured() {
        let mut fit = PassFit::default();
        for pass in 0..32u64 {
            let rows = 4 + pass % 8;
            fit.add(rows as usize, Duration::from_micros(500 + 20 * rows));
        }
        let seconds = fit.seconds_of(20).expect("enough was measured");
        assert!((seconds - 900e-6).abs() < 1e-9, "{seconds}");
        let mut alike = PassFit::default();
        (0..100).for_each(|_| alike.add(8, Duration::from_micros(500)));
        assert_eq!(alike.seconds_of(16), None);
        assert_eq!(PassFit::default().seconds_of(1), None);
    }

    fn totals() -> PassTotals {
        PassTotals::default()
    }
}
