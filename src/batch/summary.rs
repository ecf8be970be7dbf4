//! What a run counted, and the lines that say so at its end.
//!
//! Owns the counters and their wording. Who counts is the run; who prints is the command.

use std::time::Duration;

use super::failures::Failures;
use super::rates::Outlook;
use super::units::{counted, duration, grouped, rate, size};
use crate::cache::{CacheUsage, TierUsage};

/// The counters of a run, at any moment of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunStats {
    /// Requests in the input, where that is known beforehand.
    pub num_total: Option<u64>,
    /// Requests answered.
    pub num_ok: u64,
    /// Lines that got an error.
    pub num_failed: u64,
    /// Why, as far as it was this run's.
    pub failures: Failures,
    /// Those of both that an earlier run has left.
    pub num_kept: u64,
    /// Prompt tokens so far, counted as they are computed or taken from the cache.
    pub num_prompt_tokens: u64,
    /// Those of them whose KV came from the cache.
    pub num_cached_tokens: u64,
    /// Distinct prompt tokens of all that was planned: what has to be computed at least, with nothing cached
    /// before; known at the end.
    pub num_unique_tokens: Option<u64>,
    pub num_generated_tokens: u64,
    /// Of the whole input, once it is known.
    pub outlook: Option<Outlook>,
    /// What the prompt cache has done, if there is one; known at the end.
    pub cache: Option<CacheUsage>,
    /// Speed of the forward passes that prefill.
    pub prefill_tokens_per_second: Option<f64>,
    /// Speed of the forward passes that only decode; an answer's first token is not theirs.
    pub decode_tokens_per_second: Option<f64>,
    /// Time since the run began, loading included.
    pub wall: Duration,
    pub peak_memory_bytes: Option<u64>,
    /// What the weights have taken of it.
    pub weight_bytes: u64,
    /// What all of it may take, where that is limited by a flag.
    pub max_memory_bytes: Option<u64>,
}

impl RunStats {
    /// Requests that have their output line.
    pub fn num_done(&self) -> u64 {
        self.num_ok.saturating_add(self.num_failed)
    }

    /// Prompt tokens that were really computed.
    pub fn num_prefilled_tokens(&self) -> u64 {
        self.num_prompt_tokens.saturating_sub(self.num_cached_tokens)
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Complete,
    /// Before its end, by Ctrl-C or a limit of time; `can_resume` says whether a later run can go on from what was
    /// done.
    Interrupted {
        can_resume: bool,
        why: &'static str,
    },
}

/// The lines at the end of a run; `place` is where the results are.
pub fn summary(stats: &RunStats, ending: Ending, place: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let done = match (stats.num_total, ending) {
        (Some(num_total), Ending::Interrupted { .. }) => {
            format!("{} of {}", grouped(stats.num_done()), counted(num_total, "request"))
        }
        _ => counted(stats.num_done(), "request"),
    };
    let outcome = match stats.num_failed {
        0 if ending == Ending::Complete => "all ok".into(),
        0 => format!("{} ok", grouped(stats.num_ok)),
        num_failed => format!("{} ok, {} failed", grouped(stats.num_ok), grouped(num_failed)),
    };
    let verb = match ending {
        Ending::Complete => "done".to_owned(),
        Ending::Interrupted { why, .. } => format!("done when {why}"),
    };
    let outcome = if stats.num_done() == 0 { String::new() } else { format!(": {outcome}") };
    let kept = match stats.num_kept {
        0 => String::new(),
        num_kept => format!("; {} of them earlier", grouped(num_kept)),
    };
    lines.push(format!("{done} {verb} in {}{outcome}{kept}", duration(stats.wall)));
    lines.extend(stats.failures.by_code().map(|codes| format!("  failed     {codes}")));

    if stats.num_prompt_tokens > 0 {
        let unique = match stats.num_unique_tokens {
            Some(num_unique) if num_unique < stats.num_prompt_tokens && ending == Ending::Complete => {
                format!(", {} of them unique", grouped(num_unique))
            }
            _ => String::new(),
        };
        let computed = match stats.num_cached_tokens {
            0 => String::new(),
            num_cached => {
                format!(
                    "; {} computed, {} cached",
                    grouped(stats.num_prefilled_tokens()),
                    grouped(num_cached)
                )
            }
        };
        lines.push(format!(
            "  prompt     {}{unique}{computed}{}",
            counted(stats.num_prompt_tokens, "token"),
            speed(stats.prefill_tokens_per_second)
        ));
    }
    lines.extend(stats.cache.as_ref().and_then(cached));
    if stats.num_generated_tokens > 0 {
        lines.push(format!(
            "  generated  {}{}",
            counted(stats.num_generated_tokens, "token"),
            speed(stats.decode_tokens_per_second)
        ));
    }
    if let Some(num_bytes) = stats.peak_memory_bytes {
        lines.push(format!("  memory     {}", memory(stats, num_bytes)));
    }
    match ending {
        Ending::Interrupted { can_resume: true, .. } if stats.num_done() == 0 => {
            lines.push(format!("  results    none; {place} is as it was"));
        }
        _ => lines.push(format!("  results    {place}")),
    }
    if let Ending::Interrupted { can_resume, .. } = ending {
        let missing = match stats.num_total.map(|num_total| num_total.saturating_sub(stats.num_done())) {
            Some(num_missing) => counted(num_missing, "request"),
            None => "the rest of the input".to_owned(),
        };
        let how = if can_resume { "; the same command with --resume goes on" } else { "" };
        lines.push(format!("  missing    {missing}{how}"));
    }
    lines
}

/// The peak, what of it were weights, and whether it stayed within its limit.
fn memory(stats: &RunStats, peak_bytes: u64) -> String {
    let weights = match stats.weight_bytes {
        0 => String::new(),
        weight_bytes => format!(
            ": {} weights, {} KV, working memory and the rest",
            size(weight_bytes),
            size(peak_bytes.saturating_sub(weight_bytes))
        ),
    };
    let limit = match stats.max_memory_bytes {
        None => String::new(),
        Some(max) if peak_bytes <= max => format!("; within {} (--max-memory)", size(max)),
        Some(max) => format!("; beyond {} (--max-memory)", size(max)),
    };
    format!("{} at its peak{weights}{limit}", size(peak_bytes))
}

/// What came from the prompt cache and what had to go, if anything did.
fn cached(usage: &CacheUsage) -> Option<String> {
    let (num_cached, num_evictions) = (usage.num_cached_tokens() as u64, usage.num_evictions() as u64);
    if num_cached == 0 && num_evictions == 0 {
        return None;
    }
    let entries = match num_evictions {
        1 => "1 entry".to_owned(),
        _ => format!("{} entries", grouped(num_evictions)),
    };
    let beyond = if usage.num_over_limit > 0 { ", beyond its limit, as all of it was in use" } else { "" };
    Some(format!(
        "  cached     {}{}; {entries} evicted{}; {} at its peak{beyond}",
        counted(num_cached, "token"),
        by_tier(usage, |tier| tier.num_cached_tokens),
        by_tier(usage, |tier| tier.num_evictions),
        size(usage.peak_bytes)
    ))
}

/// A counter by tier, as far as it is not 0; the most persistent tier first, as prompts begin with it.
fn by_tier(usage: &CacheUsage, counter: impl Fn(&TierUsage) -> usize) -> String {
    let counts = usage.tiers.iter().map(|(tier, usage)| (tier, counter(usage) as u64));
    let mut tiers: Vec<String> = counts
        .filter(|(_, count)| *count > 0)
        .map(|(tier, count)| format!("{} {}", grouped(count), tier.name()))
        .collect();
    tiers.reverse();
    if tiers.is_empty() { String::new() } else { format!(": {}", tiers.join(", ")) }
}

fn speed(tokens_per_second: Option<f64>) -> String {
    tokens_per_second.map_or_else(String::new, |speed| format!(", {} tokens/s", rate(speed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Tier;

    #[test]
    fn a_whole_run_in_six_lines() {
        let mut usage = CacheUsage { peak_bytes: 210 << 20, ..CacheUsage::default() };
        usage.tiers[Tier::System].num_cached_tokens = 328;
        usage.tiers[Tier::User].num_cached_tokens = 1_072;
        let stats = RunStats {
            num_total: Some(110),
            num_ok: 108,
            num_failed: 2,
            failures: Failures::default(),
            num_kept: 0,
            num_prompt_tokens: 13_400,
            num_cached_tokens: 1_400,
            num_unique_tokens: Some(11_900),
            num_generated_tokens: 7_000,
            cache: Some(usage),
            prefill_tokens_per_second: Some(200.0),
            decode_tokens_per_second: Some(100.0),
            outlook: None,
            wall: Duration::from_secs(135),
            peak_memory_bytes: Some(1 << 30),
            weight_bytes: 600 << 20,
            max_memory_bytes: Some(2 << 30),
        };
        assert_eq!(
            summary(&stats, Ending::Complete, "out.jsonl"),
            [
                "110 requests done in 2m 15s: 108 ok, 2 failed",
                "  prompt     13,400 tokens, 11,900 of them unique; 12,000 computed, 1,400 cached, 200 tokens/s",
                "  cached     1,400 tokens: 328 system, 1,072 user; 0 entries evicted; 210 MiB at its peak",
                "  generated  7,000 tokens, 100 tokens/s",
                "  memory     1.0 GiB at its peak: 600 MiB weights, 424 MiB KV, working memory and the rest; within 2.0 \
                 GiB (--max-memory)",
                "  results    out.jsonl",
            ]
        );
    }

    #[test]
    fn one_is_singular_and_nothing_is_left_out() {
        let one = RunStats {
            num_ok: 1,
            num_prompt_tokens: 1,
            num_generated_tokens: 1,
            wall: Duration::from_secs(1),
            ..RunStats::default()
        };
        assert_eq!(
            summary(&one, Ending::Complete, "<stdout>"),
            [
                "1 request done in 1.0s: all ok",
                "  prompt     1 token",
                "  generated  1 token",
                "  results    <stdout>"
            ]
        );
        let none = RunStats { num_total: Some(7), ..RunStats::default() };
        assert_eq!(
            summary(&none, Ending::Interrupted { can_resume: true, why: "interrupted" }, "o"),
            [
                "0 of 7 requests done when interrupted in 0.0s",
                "  results    none; o is as it was",
                "  missing    7 requests; the same command with --resume goes on"
            ]
        );
    }

    /// An interrupted run that had no errors so far was told as "all ok".
    #[test]
    fn all_ok_is_said_of_a_whole_run_only() {
        let some = RunStats { num_total: Some(7), num_ok: 3, num_kept: 2, ..RunStats::default() };
        assert_eq!(
            summary(&some, Ending::Interrupted { can_resume: true, why: "interrupted" }, "o.partial"),
            [
                "3 of 7 requests done when interrupted in 0.0s: 3 ok; 2 of them earlier",
                "  results    o.partial",
                "  missing    4 requests; the same command with --resume goes on"
            ]
        );
        let of_a_pipe = RunStats { num_total: None, num_ok: 1, num_failed: 1, ..RunStats::default() };
        assert_eq!(
            summary(&of_a_pipe, Ending::Interrupted { can_resume: false, why: "interrupted" }, "<stdout>"),
            [
                "2 requests done when interrupted in 0.0s: 1 ok, 1 failed",
                "  results    <stdout>",
                "  missing    the rest of the input"
            ]
        );
    }

    #[test]
    fn a_cache_that_did_nothing_is_not_mentioned_and_one_that_only_evicted_is() {
        let mut stats = RunStats { cache: Some(CacheUsage::default()), ..RunStats::default() };
        assert_eq!(summary(&stats, Ending::Complete, "o").len(), 2);
        let mut usage = CacheUsage { peak_bytes: 3 << 20, ..CacheUsage::default() };
        usage.tiers[Tier::Assistant].num_evictions = 1;
        stats.cache = Some(usage);
        assert_eq!(
            summary(&stats, Ending::Complete, "o")[1],
            "  cached     0 tokens; 1 entry evicted: 1 assistant; 3 MiB at its peak"
        );
        usage.num_over_limit = 2;
        usage.tiers[Tier::System].num_evictions = 3;
        stats.cache = Some(usage);
        assert_eq!(
            summary(&stats, Ending::Complete, "o")[1],
            "  cached     0 tokens; 4 entries evicted: 3 system, 1 assistant; 3 MiB at its peak, beyond its \
             limit, as all of it was in use"
        );
    }
}
