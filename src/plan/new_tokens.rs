//! What each prompt brings that none before it has.

use super::PlanPrompt;
use crate::cache::common_prefix;

/// How many tokens of each prompt none before it in the order has in the same place behind the same beginning; `order`
/// is that of the plan, in which neighbours share most.
pub fn num_new_tokens(prompts: &[PlanPrompt], order: &[usize]) -> Vec<usize> {
    let mut num_new: Vec<usize> = prompts.iter().map(|prompt| prompt.tokens.len()).collect();
    for pair in order.windows(2) {
        num_new[pair[1]] -= common_prefix(prompts[pair[0]].reusable(), prompts[pair[1]].reusable());
    }
    num_new
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::{PlanOptions, WindowPlan};

    proptest! {
        #[test]
        fn new_tokens_are_those_that_no_earlier_prompt_has(
            tokens in prop::collection::vec(prop::collection::vec(0_u32..3, 1..9), 0..12)
        ) {
            let prompts: Vec<PlanPrompt> = tokens
                .iter()
                .map(|tokens| PlanPrompt {
                    tokens,
                    num_reusable: tokens.len() - 1,
                    boundaries: &[],
                    max_new_tokens: 1,
                })
                .collect();
            let order = WindowPlan::new(&prompts, &PlanOptions::default()).order;
            let num_new = num_new_tokens(&prompts, &order);
            for (place, &index) in order.iter().enumerate() {
                let tokens = prompts[index].tokens;
                let reusable = |tokens: &[u32]| tokens[..tokens.len() - 1].to_vec();
                let shared = order[..place].iter().map(|&before| {
                    reusable(tokens).iter().zip(&reusable(prompts[before].tokens)).take_while(|(a, b)| a == b).count()
                });
                prop_assert_eq!(num_new[index], tokens.len() - shared.max().unwrap_or(0));
            }
        }
    }
}
