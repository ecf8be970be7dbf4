//! How much of a window's prompts is held already, elsewhere.
//!
//! Owns counting it by distinct tokens, as the plan counts what is unique. Where it is held is the
//! caller's knowledge.

use crate::cache::common_prefix;

/// Distinct tokens of the prompts that are held, where of each prompt so many first tokens are.
pub fn num_unique_held(prompts: &[(&[u32], usize)]) -> usize {
    let mut sorted = prompts.to_vec();
    sorted.sort_unstable();
    let mut num_held = 0;
    for (place, (tokens, held)) in sorted.iter().enumerate() {
        let next = sorted.get(place + 1).map_or(&[][..], |(next, _)| *next);
        // What the next prompt, in this order, begins with too is counted there.
        num_held += held.saturating_sub(common_prefix(tokens, next));
    }
    num_held
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_tokens_that_are_held_count_once() {
        assert_eq!(num_unique_held(&[]), 0);
        assert_eq!(num_unique_held(&[(&[1, 2, 3], 0)]), 0);
        assert_eq!(num_unique_held(&[(&[1, 2, 3], 2)]), 2);
        assert_eq!(num_unique_held(&[(&[1, 2, 3], 2), (&[1, 2, 4, 5], 3), (&[7], 1)]), 2 + 1 + 1);
        assert_eq!(num_unique_held(&[(&[1, 2, 3], 3), (&[1, 2, 3], 3)]), 3);
        assert_eq!(num_unique_held(&[(&[1, 2], 2), (&[1, 2, 3], 3)]), 3);
    }
}
