//! What `mlxbatch plan --verbose` says of each request.
//!
//! Owns its line. What a request shares with those before it is `plan/`'s knowledge.

use std::fmt::Write;

use crate::batch::number_text;
use crate::plan::{PlanPrompt, num_new_tokens};
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
