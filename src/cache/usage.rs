//! What the prompt cache holds and what it has done.
//!
//! Owns the counters that reports print. Keeping them up to date is [`super::PromptCache`]'s
//! business.

use super::PerTier;

/// Counters of one tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TierUsage {
    /// Bytes held for tokens of the tier's spans.
    pub num_bytes: u64,
    /// What eviction could take, under the most persistent tier that depends on it.
    pub num_entries: usize,
    /// Entries evicted since the cache was made.
    pub num_evictions: usize,
    /// Prompt tokens served since the cache was made.
    pub num_cached_tokens: usize,
}

/// Counters of the prompt cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheUsage {
    pub tiers: PerTier<TierUsage>,
    pub num_bytes: u64,
    /// The most bytes held at any moment.
    pub peak_bytes: u64,
    /// How often a limit could not be kept, because all was in use or a single entry was over it.
    pub num_over_limit: usize,
}

impl CacheUsage {
    /// Prompt tokens served from the cache.
    pub fn num_cached_tokens(&self) -> usize {
        self.tiers.iter().map(|(_, tier)| tier.num_cached_tokens).sum()
    }

    /// Entries evicted.
    pub fn num_evictions(&self) -> usize {
        self.tiers.iter().map(|(_, tier)| tier.num_evictions).sum()
    }
}
