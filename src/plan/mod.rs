//! The plan of a window of requests: what their prompts share, in which order they run, where
//! their prefill is cut.
//!
//! Owns the tree of all prompts and what follows from it alone. Works on token ids, knows neither
//! texts, tiers nor tensors; what is stored and for how long is decided by the engine, when the
//! time comes.
//!
//! A prompt's last token is never shared: it is fed as the sequence's first decode row, so that
//! a prompt which is cached whole still has a token to run. Nor are the tokens shared that are scored, and
//! the one before them: their hidden rows are needed. What two prompts share is therefore a common prefix
//! of their *reusable* tokens, and cuts lie at or before the end of these.
//!
//! ```text
//!  order  prompt (last token in brackets)      tree           cuts
//!    0    S Y S a b c d (x)                    SYS ─┬─ ab ─┬─ cd      3, 5
//!    1    S Y S a b (y)                             │      └─ ·       3, 5
//!    2    S Y S e (z)                               └─ e              3
//! ```

mod cuts;
mod forecast;
mod held;
mod new_tokens;
mod repeats;
mod split;
#[cfg(test)]
mod tests;
mod tree;

pub use forecast::SharedPrefix;
pub use held::num_unique_held;
pub use new_tokens::num_new_tokens;
pub use repeats::{Parting, Repeats, repeats};
pub use split::{Sketch, Sketcher, split};

use forecast::Forecast;
use tree::PrefixTree;

/// Requests that are planned together at most.
pub const MAX_WINDOW_REQUESTS: usize = 8192;

/// Prompt tokens that are planned together at most; the last request of a window may exceed it.
pub const MAX_WINDOW_TOKENS: usize = 16 << 20;

/// Whether a window is to be planned and run before more is read: memory stays bounded, however
/// long the input is.
pub fn window_is_full(num_requests: usize, num_tokens: usize) -> bool {
    num_requests >= MAX_WINDOW_REQUESTS || num_tokens >= MAX_WINDOW_TOKENS
}

/// What the plan needs to know of a request.
#[derive(Debug, Clone, Copy)]
pub struct PlanPrompt<'a> {
    /// The whole prompt.
    pub tokens: &'a [u32],
    /// How many of them, from the first, may be shared; less than there are.
    pub num_reusable: usize,
    /// Positions where prefill is cut whatever the other prompts are, such as the ends of spans;
    /// in any order, and ignored where nothing is left to be cut.
    pub boundaries: &'a [usize],
    /// Most tokens of the answer.
    pub max_new_tokens: usize,
}

impl<'a> PlanPrompt<'a> {
    fn reusable(&self) -> &'a [u32] {
        &self.tokens[..self.num_reusable.min(self.tokens.len())]
    }
}

/// What a plan depends on beside the prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanOptions {
    /// Place of the window's first request in the order of the run.
    pub first_order: u64,
    /// A branch point is a cut if this many tokens at least are saved by sharing what lies between
    /// it and the branch point above that is one. With 1, every branch point is a cut; more keeps
    /// prefill from being cut into single tokens where a few prompts begin with the same word.
    pub min_saved_tokens: usize,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self { first_order: 0, min_saved_tokens: 1 }
    }
}

/// A position at which a request's prefill is cut: KV up to here may be stored and shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Tokens of the prompt before the cut; at least 1, at most as many as are reusable.
    pub position: usize,
    /// Place in the order of the last request that uses the prefix which ends here.
    pub last_user_order: u64,
    /// Requests of the window that use this prefix, this one included; contiguous in the order.
    pub num_users: usize,
}

/// The plan of a window of requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowPlan {
    /// Indices of the prompts in the order in which they should run: depth-first over the tree.
    /// A conversation comes before those that continue it; among other siblings the longest work
    /// comes first, so that short requests fill the end of the run. Does not depend on the order of
    /// the input, but for prompts that are equal.
    pub order: Vec<usize>,
    /// The cuts of each prompt, ascending; indexed as the prompts are.
    pub cuts: Vec<Vec<Cut>>,
    pub num_prompt_tokens: usize,
    /// Distinct non-empty prefixes of the prompts: tokens that must be computed at least once. Those that
    /// several requests score are computed by each.
    pub num_unique_tokens: usize,
    /// The prefixes whose sharing saves most, those first.
    pub largest_shared: Vec<SharedPrefix>,
    forecast: Forecast,
}

impl WindowPlan {
    /// Plans a window.
    ///
    /// Sorting costs O(total tokens × log requests) in the worst case, the rest O(total tokens).
    pub fn new(prompts: &[PlanPrompt], options: &PlanOptions) -> Self {
        let tree = PrefixTree::new(prompts, options.min_saved_tokens);
        let cuts = prompts
            .iter()
            .enumerate()
            .map(|(index, prompt)| cuts::of_prompt(&tree, index, prompt, options.first_order))
            .collect();
        Self {
            cuts,
            num_prompt_tokens: prompts.iter().map(|prompt| prompt.tokens.len()).sum(),
            num_unique_tokens: tree.num_unique_tokens,
            largest_shared: forecast::largest_shared(&tree),
            forecast: Forecast::new(&tree, prompts),
            order: tree.order,
        }
    }

    /// Estimates the most tokens whose KV is held at once while `batch_size` neighbours in the
    /// order run together, each with its longest answer and shared prefixes held once.
    pub fn max_live_tokens(&self, batch_size: usize) -> usize {
        self.forecast.max_live_tokens(batch_size)
    }
}
