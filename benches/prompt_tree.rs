//! Cost of the prompt cache itself: lookup, insertion and eviction of 10,000 prompts of 4,000 tokens.
//!
//! Owns the prompts and the table. Run it with `cargo bench --bench prompt_tree`, or with two numbers
//! for other sizes: `cargo bench --bench prompt_tree -- 2000 8000`. Linear cost shows in columns that
//! stay level from row to row, as they are of one token; the first table grows the number of prompts,
//! the second their length.

use std::time::{Duration, Instant};

use mlxbatch::cache::{
    CacheLimits, Inserted, NodeId, Payload, Place, PromptCache, ResumeRule, Tier, TokenId, reusable,
};

const PROMPTS_PER_PREFIX: usize = 100;

#[derive(Clone, Copy)]
struct Kv(u64);

impl Payload for Kv {
    fn num_bytes(&self) -> u64 {
        self.0
    }
}

/// A prompt whose first half is shared with its group and whose second half is its own.
fn prompt(number: usize, num_tokens: usize) -> Vec<TokenId> {
    let mut state = 0;
    (0..num_tokens)
        .map(|position| {
            let seed = if position < num_tokens / 2 { number / PROMPTS_PER_PREFIX } else { number };
            // SplitMix64: what it is does not matter, only that prompts leave each other at once.
            state += 1;
            let mut mixed = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(state);
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed >> 48) as TokenId
        })
        .collect()
}

/// Stores what is new of a prompt, as the engine does after a prefill.
fn store(cache: &mut PromptCache<Kv>, tokens: &[TokenId], order: u64) {
    let mut parent: Option<NodeId> = None;
    let mut rest = tokens;
    while !rest.is_empty() {
        let place = Place { parent, tokens: rest, tier: Tier::User };
        match cache.insert(place, Kv(rest.len() as u64), None).expect("the parent is pinned by nobody else") {
            Inserted::New(_) => break,
            Inserted::Overlaps { node, num_common } => {
                let num_tokens = cache.tree().node(node).expect("it was named just now").tokens().len();
                parent = Some(node);
                if num_common < num_tokens {
                    let halves = (Kv(num_common as u64), Kv((num_tokens - num_common) as u64));
                    let split = cache.split(node, num_common, halves).expect("within the edge");
                    parent = Some(split.upper);
                }
                rest = &rest[num_common..];
            }
        }
    }
    cache.make_room(order);
}

#[derive(Default)]
struct Costs {
    insert: Duration,
    hit: Duration,
    miss: Duration,
    evict: Duration,
    num_evictions: usize,
}

/// Measures one size: every prompt is stored, found again, and looked up with another second half.
fn measure(num_prompts: usize, num_tokens: usize) -> Costs {
    let mut costs = Costs::default();
    let unlimited = CacheLimits { max_bytes: u64::MAX, max_entries: None };
    let mut cache = PromptCache::new(unlimited, ResumeRule::AnyToken);
    for number in 0..num_prompts {
        let prompt = prompt(number, num_tokens);
        let begun = Instant::now();
        store(&mut cache, reusable(&prompt), number as u64);
        costs.insert += begun.elapsed();
    }
    for number in 0..num_prompts {
        let mut prompt = prompt(number, num_tokens);
        costs.hit += find(&mut cache, reusable(&prompt), num_tokens - 1);
        // Leaves the tree one token before its end, in the middle of an edge.
        let position = num_tokens - 2;
        prompt[position] ^= 1 << 20;
        costs.miss += find(&mut cache, reusable(&prompt), position);
    }
    let entries: usize = cache.usage().tiers.iter().map(|(_, tier)| tier.num_entries).sum();
    assert_eq!(entries, num_prompts);

    // The same with room for a tenth.
    let max_entries = Some(num_prompts.div_ceil(10));
    let mut cache = PromptCache::new(CacheLimits { max_entries, ..unlimited }, ResumeRule::AnyToken);
    for number in 0..num_prompts {
        let prompt = prompt(number, num_tokens);
        let begun = Instant::now();
        store(&mut cache, reusable(&prompt), number as u64);
        costs.evict += begun.elapsed();
    }
    costs.num_evictions = cache.usage().num_evictions();
    costs
}

fn find(cache: &mut PromptCache<Kv>, tokens: &[TokenId], num_expected: usize) -> Duration {
    let begun = Instant::now();
    let found = cache.find(tokens);
    let resume = cache.resume(&found);
    cache.record_hit(&found, &resume).expect("nothing was removed meanwhile");
    let elapsed = begun.elapsed();
    assert_eq!(resume.num_tokens, num_expected);
    elapsed
}

fn print_row(num_prompts: usize, num_tokens: usize) {
    let costs = measure(num_prompts, num_tokens);
    let nanos = |time: Duration| time.as_secs_f64() * 1e9 / (num_prompts * num_tokens) as f64;
    println!(
        "{num_prompts:>9} {num_tokens:>8} {:>12.3} {:>12.3} {:>12.3} {:>14.3} {:>10}",
        nanos(costs.insert),
        nanos(costs.hit),
        nanos(costs.miss),
        nanos(costs.evict),
        costs.num_evictions,
    );
}

fn main() {
    // Cargo passes `--bench`; numbers are ours.
    let mut sizes = std::env::args().skip(1).filter_map(|argument| argument.parse::<usize>().ok());
    let num_prompts = sizes.next().unwrap_or(10_000).max(8);
    let num_tokens = sizes.next().unwrap_or(4_000).max(32);
    println!("nanoseconds per token; half of each prompt is shared by {PROMPTS_PER_PREFIX} of them");
    println!(
        "{:>9} {:>8} {:>12} {:>12} {:>12} {:>14} {:>10}",
        "prompts", "tokens", "insert", "find", "diverging", "insert + evict", "evictions"
    );
    for share in [8, 4, 2, 1] {
        print_row(num_prompts / share, num_tokens);
    }
    println!();
    for share in [8, 4, 2, 1] {
        print_row(num_prompts / 8, num_tokens / share);
    }
}
