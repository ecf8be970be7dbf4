//! What a window's sharing is worth: the prefixes that save most, the KV that is held at once.
//!
//! Owns the estimates that are shown to people or compared with budgets. They follow from the
//! tree alone; what a token takes in bytes is the caller's knowledge.

use std::cmp::Reverse;

use super::PlanPrompt;
use super::tree::{PrefixTree, ROOT};

/// How many shared prefixes a plan names.
const MAX_NAMED: usize = 10;

/// A prefix that several requests of a window share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedPrefix {
    pub num_tokens: usize,
    /// How many of its tokens belong to a shorter shared prefix as well.
    pub num_parent_tokens: usize,
    pub num_users: usize,
    /// Tokens that need not be computed since it is shared, beyond what sharing the shorter one
    /// saves: over all shared prefixes these add up to what the plan saves.
    pub num_saved_tokens: usize,
    /// Index of a prompt that begins with it.
    pub example: usize,
}

/// The shared prefixes that save most, those first.
pub(super) fn largest_shared(tree: &PrefixTree) -> Vec<SharedPrefix> {
    let mut shared = all_shared(tree);
    shared.sort_by_key(|prefix| {
        (Reverse(prefix.num_saved_tokens), prefix.num_tokens, tree.place_of[prefix.example])
    });
    shared.truncate(MAX_NAMED);
    shared
}

pub(super) fn all_shared(tree: &PrefixTree) -> Vec<SharedPrefix> {
    let below_root = tree.nodes.iter().skip(ROOT + 1);
    below_root
        .map(|node| {
            let num_parent_tokens = tree.nodes[node.parent].num_tokens;
            SharedPrefix {
                num_tokens: node.num_tokens,
                num_parent_tokens,
                num_users: node.num_users,
                num_saved_tokens: (node.num_users - 1) * (node.num_tokens - num_parent_tokens),
                example: tree.order[node.first_order],
            }
        })
        .collect()
}

/// The lengths of a window's requests in the order of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Forecast {
    requests: Vec<Lengths>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lengths {
    /// Tokens shared with the request before it in the order.
    num_shared: usize,
    /// Prompt and longest answer.
    num_total: usize,
}

impl Forecast {
    pub(super) fn new(tree: &PrefixTree, prompts: &[PlanPrompt]) -> Self {
        // Depth-first, what a request shares with any before it, it shares with its neighbour: the
        // deepest node on its path whose first user it is not.
        let lengths = tree.order.iter().enumerate().map(|(place, &index)| Lengths {
            num_shared: tree
                .path(index)
                .find(|node| node.first_order < place)
                .map_or(0, |node| node.num_tokens),
            num_total: prompts[index].tokens.len().saturating_add(prompts[index].max_new_tokens),
        });
        Self { requests: lengths.collect() }
    }

    /// The most tokens held at once by `batch_size` neighbours, shared prefixes held once.
    pub(super) fn max_live_tokens(&self, batch_size: usize) -> usize {
        let batch_size = batch_size.max(1);
        let mut num_live = 0usize;
        let mut max_live = 0;
        for (place, request) in self.requests.iter().enumerate() {
            num_live = num_live.saturating_add(request.num_total - request.num_shared);
            if let Some(left) = place.checked_sub(batch_size) {
                // What the one that leaves shares with its successor stays.
                let stays = self.requests[left + 1].num_shared;
                num_live = num_live.saturating_sub(self.requests[left].num_total - stays);
            }
            max_live = max_live.max(num_live);
        }
        max_live
    }
}
