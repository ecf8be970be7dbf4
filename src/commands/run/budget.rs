//! What a run may take of the memory that there is: KV of running sequences, copies of it, stored prefixes.
//!
//! Owns how it is divided, with `--max-memory` and without. How much there is, and what weights and passes take, is
//! found out elsewhere; keeping to it is the engine's business.

use anyhow::bail;

use crate::{
    batch::{enough_text, size_text},
    commands::memory_needs::MemoryNeeds,
};

/// Limit of the prompt cache on machines that do not tell their memory.
const DEFAULT_CACHE_BYTES: u64 = 1 << 30;

/// Tokens of KV that a run under `--max-memory` has to have room for at least.
const MIN_KV_TOKENS: u64 = 256;

/// Memory as it is when the weights are loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    /// What the machine, and all limits on the process, leave; `None` where that is not known.
    pub free_bytes: Option<u64>,
    /// What this process has taken.
    pub taken_bytes: u64,
    /// What it may take in all, by `--max-memory`.
    pub max_bytes: Option<u64>,
}

/// How it is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Tokens whose KV running sequences may have; `None` sets no limit.
    pub max_kv_tokens: Option<usize>,
    /// KV that may be there twice, to decode faster.
    pub max_copied_bytes: u64,
    pub max_cache_bytes: u64,
}

impl Budget {
    /// Divides memory between what sequences run on and what is kept; `asked_cache_bytes` is what a flag says of the
    /// latter. Fails where `--max-memory` leaves room for nothing.
    pub(super) fn of(
        memory: Memory,
        needs: &MemoryNeeds,
        kv_bytes_per_token: u64,
        asked_cache_bytes: Option<u64>,
    ) -> anyhow::Result<Self> {
        let Some(max_bytes) = memory.max_bytes else {
            return Ok(Self::of_machine(memory, needs, kv_bytes_per_token, asked_cache_bytes));
        };
        let needed = needs.beside().saturating_add(MIN_KV_TOKENS.saturating_mul(kv_bytes_per_token));
        if max_bytes < memory.taken_bytes.saturating_add(needed) {
            bail!(
                "--max-memory {} is too little: weights and program take {}, a pass at this --batch-size and \
                 --prefill-chunk {} beside KV; give at least {}, or lower these",
                size_text(max_bytes),
                size_text(memory.taken_bytes),
                size_text(needs.beside()),
                enough_text(memory.taken_bytes.saturating_add(needed))
            );
        }
        let allowed = max_bytes - memory.taken_bytes;
        let left = memory.free_bytes.map_or(allowed, |free| free.min(allowed)).saturating_sub(needs.beside());
        // What runs goes before what is kept.
        let max_cache_bytes = asked_cache_bytes.unwrap_or(left / 32).min(left / 4);
        let left = left - max_cache_bytes;
        Ok(Self {
            max_kv_tokens: Some(tokens_in(left / 10 * 7, kv_bytes_per_token)),
            max_copied_bytes: left / 10,
            max_cache_bytes,
        })
    }

    /// Most of what is left is for sequences that run. Stored prefixes that the run still needs stay beyond their
    /// limit; it is what nobody may ask for again that it bounds.
    fn of_machine(
        memory: Memory,
        needs: &MemoryNeeds,
        kv_bytes_per_token: u64,
        asked_cache_bytes: Option<u64>,
    ) -> Self {
        let free_bytes = memory.free_bytes.map(|free| free.saturating_sub(needs.state_bytes));
        Self {
            max_kv_tokens: free_bytes.map(|free| tokens_in(free / 10 * 7, kv_bytes_per_token)),
            // Beside what sequences run on; rows that find no room are decoded one by one.
            max_copied_bytes: free_bytes.map_or(u64::MAX, |free| free / 10),
            max_cache_bytes: asked_cache_bytes
                .unwrap_or_else(|| free_bytes.map_or(DEFAULT_CACHE_BYTES, |free| free / 32)),
        }
    }
}

fn tokens_in(num_bytes: u64, kv_bytes_per_token: u64) -> usize {
    usize::try_from(num_bytes / kv_bytes_per_token.max(1)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    const NEEDS: MemoryNeeds =
        MemoryNeeds { weight_bytes: 500 * MIB, state_bytes: 10 * MIB, working_bytes: 90 * MIB };

    fn budget(max: Option<u64>, free: Option<u64>, cache: Option<u64>) -> anyhow::Result<Budget> {
        let memory = Memory { free_bytes: free, taken_bytes: 500 * MIB, max_bytes: max };
        Budget::of(memory, &NEEDS, 1000, cache)
    }

    #[test]
    fn without_a_limit_it_is_the_machines_memory_that_is_divided() {
        let told = budget(None, Some(330 * MIB), None).expect("there is room");
        assert_eq!(told.max_kv_tokens, Some((224 * MIB / 1000) as usize));
        assert_eq!((told.max_copied_bytes, told.max_cache_bytes), (32 * MIB, 10 * MIB));
        let unknown = budget(None, None, Some(7)).expect("there is room");
        assert_eq!((unknown.max_kv_tokens, unknown.max_cache_bytes), (None, 7));
    }

    #[test]
    fn under_a_limit_all_parts_together_stay_below_it() {
        for (max, free, cache) in
            [(700, 9_000, None), (1_000, 9_000, Some(800)), (9_000, 700, None), (605, 9_000, Some(0))]
        {
            let told =
                budget(Some(max * MIB), Some(free * MIB), cache.map(|mib| mib * MIB)).expect("there is room");
            let kv_bytes = told.max_kv_tokens.expect("it is limited") as u64 * 1000;
            let all = kv_bytes + told.max_copied_bytes + told.max_cache_bytes + NEEDS.beside();
            assert!(all <= (max - 500).min(free) * MIB, "{told:?}");
            assert!(told.max_cache_bytes <= cache.unwrap_or(u64::MAX / MIB) * MIB);
            assert!(kv_bytes > 0 && told.max_cache_bytes < kv_bytes, "{told:?}");
        }
    }

    #[test]
    fn a_limit_that_leaves_nothing_says_what_is_needed() {
        let error = budget(Some(600 * MIB), Some(9_000 * MIB), None).expect_err("no room for KV");
        let told = error.to_string();
        for part in
            ["--max-memory 600 MiB is too little", "take 500 MiB", "100 MiB beside KV", "at least 601 MiB"]
        {
            assert!(told.contains(part), "{told}");
        }
    }
}
