//! Where a request's prefill is cut.
//!
//! Owns putting branch points and the request's own boundaries together, and who uses the prefix
//! that ends at each. What is stored at a cut is the engine's business.

use super::tree::{Node, PrefixTree};
use super::{Cut, PlanPrompt};

/// The cuts of the prompt at `index`, ascending.
pub(super) fn of_prompt(tree: &PrefixTree, index: usize, prompt: &PlanPrompt, first_order: u64) -> Vec<Cut> {
    let mut path: Vec<&Node> = tree.path(index).collect();
    path.reverse();
    let mut positions: Vec<usize> =
        path.iter().filter(|node| node.is_cut()).map(|node| node.num_tokens).collect();
    positions.extend(prompt.boundaries.iter().copied().filter(|end| (1..=prompt.num_reusable).contains(end)));
    positions.sort_unstable();
    positions.dedup();

    let mut below = path.into_iter().peekable();
    positions
        .into_iter()
        .map(|position| {
            // The users of a position on an edge are those of the node below it.
            while below.next_if(|node| node.num_tokens < position).is_some() {}
            let (first, num_users) =
                below.peek().map_or((tree.place_of[index], 1), |node| (node.first_order, node.num_users));
            let last_user_order = first_order.saturating_add((first + num_users - 1) as u64);
            Cut { position, last_user_order, num_users }
        })
        .collect()
}
