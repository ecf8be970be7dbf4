//! Tokens that come again behind different beginnings: what no prefix cache shares as the prompts are.
//!
//! Owns finding them and where the prompts part. What to say about it is the caller's business.

use std::collections::HashSet;

use super::PlanPrompt;
use crate::cache::common_prefix;

/// So many tokens in a row have to be the same: the headers of templates come again everywhere.
const MIN_REPEATED_TOKENS: usize = 24;

/// Places that are remembered at most; what comes again of later ones is not seen.
const MAX_PLACES: usize = 4 << 20;

/// What comes again in a window of prompts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repeats {
    /// Tokens that have to be computed although another prompt has them in the same order of words, behind another
    /// beginning.
    pub num_tokens: usize,
    /// The prompt with most of them.
    pub example: Option<Parting>,
}

/// Where a prompt parts from those that were computed before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parting {
    /// Its place among the prompts.
    pub prompt: usize,
    pub position: usize,
}

/// Finds what comes again; `order` is that of the plan, in which neighbours share most.
pub fn repeats(prompts: &[PlanPrompt], order: &[usize]) -> Repeats {
    let mut found = Repeats::default();
    let mut most = 0;
    let mut places: HashSet<u64> = HashSet::new();
    let mut before: &[u32] = &[];
    for &prompt in order {
        let tokens = prompts[prompt].tokens;
        let position = common_prefix(before, tokens);
        before = tokens;
        let hashes: Vec<u64> = hashes(&tokens[position..]).collect();
        let mut num_repeated = 0;
        let mut end = 0;
        for (start, hash) in hashes.iter().enumerate() {
            if places.contains(hash) {
                num_repeated += start + MIN_REPEATED_TOKENS - end.max(start);
                end = start + MIN_REPEATED_TOKENS;
            }
        }
        if places.len() < MAX_PLACES {
            places.extend(hashes);
        }
        found.num_tokens += num_repeated;
        if num_repeated > most {
            most = num_repeated;
            found.example = Some(Parting { prompt, position });
        }
    }
    found
}

/// A hash of the tokens from each place on, rolled from one place to the next (Karp and Rabin, 1987).
fn hashes(tokens: &[u32]) -> impl Iterator<Item = u64> {
    const BASE: u64 = 0x9e37_79b9_7f4a_7c15;
    let leaving = BASE.wrapping_pow(MIN_REPEATED_TOKENS as u32);
    let mut hash = 0u64;
    // One more than the token: zeros would not count.
    let number = |token: u32| u64::from(token) + 1;
    tokens.iter().enumerate().filter_map(move |(place, &token)| {
        hash = hash.wrapping_mul(BASE).wrapping_add(number(token));
        if let Some(first) = place.checked_sub(MIN_REPEATED_TOKENS) {
            hash = hash.wrapping_sub(leaving.wrapping_mul(number(tokens[first])));
        }
        (place + 1 >= MIN_REPEATED_TOKENS).then_some(hash)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(prompts: &[Vec<u32>]) -> Repeats {
        let prompts: Vec<PlanPrompt> = prompts
            .iter()
            .map(|tokens| PlanPrompt {
                tokens,
                num_reusable: tokens.len() - 1,
                boundaries: &[],
                max_new_tokens: 1,
            })
            .collect();
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by_key(|&prompt| prompts[prompt].tokens);
        repeats(&prompts, &order)
    }

    #[test]
    fn what_comes_again_behind_another_beginning_is_counted_once_a_prompt() {
        let text: Vec<u32> = (100..180).collect();
        let behind = |beginning: &[u32]| [beginning, &text].concat();
        let apart = found(&[behind(&[1, 2, 3]), behind(&[1, 2, 4]), behind(&[7])]);
        assert_eq!(apart.num_tokens, 2 * text.len());
        assert_eq!(apart.example, Some(Parting { prompt: 1, position: 2 }));
        // Behind the same beginning it is shared, and what is short comes again everywhere.
        assert_eq!(found(&[behind(&[1]), behind(&[1]), behind(&[1])]), Repeats::default());
        let short = |number: u32| [&[number][..], &text[..MIN_REPEATED_TOKENS - 1], &[number]].concat();
        assert_eq!(found(&[short(1), short(2), short(3)]), Repeats::default());
        assert_eq!(found(&[]), Repeats::default());
    }

    #[test]
    fn a_part_of_a_text_counts_as_far_as_it_is_the_same() {
        let text: Vec<u32> = (100..180).collect();
        let other = [&[5, 6, 7][..], &text[20..60], &[8; 30]].concat();
        let whole = [&[1][..], &text].concat();
        // Within one prompt nothing is computed for another.
        assert_eq!(found(&[whole, other]).num_tokens, 40);
        assert_eq!(found(&[[3u32; 100].to_vec()]).num_tokens, 0);
    }
}
