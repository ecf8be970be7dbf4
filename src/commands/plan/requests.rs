//! What `mlxbatch plan --verbose` says of each request.
//!
//! Owns its line. What a request shares with those before it follows from the order of the plan.

use std::fmt::Write;

use crate::batch::number_text;
use crate::plan::PlanPrompt;
use crate::terminal::shown_in_short;

/// Whose a prompt is.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    /// The line's number, behind the file's where that is not the first.
    pub line: String,
    pub custom_id: String,
}

/// The titles of the columns.
pub(super) const TITLES: &str = "      line     prompt        new     answer  request\n";

/// A line for each prompt, in the order of the input: its tokens, those that it is the first to bring, and those that
/// its answer may have. `order` is the plan's, depth-first over the tree of the prompts.
pub(super) fn lines(owners: &[Owner], prompts: &[PlanPrompt], order: &[usize]) -> String {
    let num_new = num_new_tokens(prompts, order);
    let mut text = String::new();
    for ((owner, prompt), num_new) in owners.iter().zip(prompts).zip(num_new) {
        let numbers =
            [prompt.tokens.len(), num_new, prompt.max_new_tokens].map(|num| number_text(num as u64));
        let [num_tokens, num_new, max_new] = numbers;
        let id = shown_in_short(&owner.custom_id);
        let _ = writeln!(text, "{:>10} {num_tokens:>10} {num_new:>10} {max_new:>10}  {id}", owner.line);
    }
    text
}

/// How many tokens of each prompt none before it in the order has in the same place behind the same beginning.
fn num_new_tokens(prompts: &[PlanPrompt], order: &[usize]) -> Vec<usize> {
    let mut num_new: Vec<usize> = prompts.iter().map(|prompt| prompt.tokens.len()).collect();
    // Depth-first, so that nobody shares more with a prompt than its neighbour.
    for pair in order.windows(2) {
        let (before, prompt) = (&prompts[pair[0]], &prompts[pair[1]]);
        let reusable = |prompt: &PlanPrompt| prompt.num_reusable.min(prompt.tokens.len());
        let num_compared = reusable(before).min(reusable(prompt));
        let same = before.tokens[..num_compared].iter().zip(prompt.tokens).take_while(|(a, b)| a == b);
        num_new[pair[1]] -= same.count();
    }
    num_new
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::{PlanOptions, WindowPlan};

    #[test]
    fn a_request_has_a_line() {
        let owners =
            ["1", "2-7"].map(|line| Owner { line: line.to_owned(), custom_id: format!("é{line}\u{1b}") });
        let tokens: [&[u32]; 2] = [&[1, 2, 3, 4], &[1, 2, 5]];
        let prompts = tokens.map(|tokens| PlanPrompt {
            tokens,
            num_reusable: tokens.len() - 1,
            boundaries: &[],
            max_new_tokens: 1024,
        });
        let expected = "         1          4          4      1,024  é1\\u{1b}\n       2-7          3          1      1,024  é2-7\\u{1b}\n";
        assert_eq!(lines(&owners, &prompts, &[0, 1]), expected);
        assert_eq!(TITLES.find("request"), expected.find('é'));
    }

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
