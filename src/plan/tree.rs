//! The tree of a window's prompts.
//!
//! Owns sorting, common prefixes, the nodes and the depth-first order. A node is a prefix that at
//! least two requests use, held as its length and the interval of the order that its users are;
//! what a single request has alone is no node.

use std::cmp::Reverse;
use std::collections::HashSet;

use super::PlanPrompt;
use crate::cache::common_prefix;

/// A prefix with several users.
#[derive(Debug)]
pub(super) struct Node {
    pub num_tokens: usize,
    /// The root is its own parent.
    pub parent: usize,
    /// Place of the first user in the order of the window.
    pub first_order: usize,
    pub num_users: usize,
    /// The deepest position up to here at which prefill is cut, itself or one above.
    cut_at: usize,
    /// One of its users.
    example: usize,
    /// As sorted, each with its work; emptied when the order is made.
    children: Vec<(Child, Work)>,
    work: Work,
}

impl Node {
    /// Whether prefill is cut where this prefix ends.
    pub(super) fn is_cut(&self) -> bool {
        self.cut_at == self.num_tokens
    }
}

#[derive(Debug, Clone, Copy)]
enum Child {
    Node(usize),
    Prompt(usize),
}

/// How long a request keeps its place in the running batch. Answers take most of the time, so
/// their limits are compared first; a node has the longest work of its users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Work {
    max_new_tokens: usize,
    num_prompt_tokens: usize,
}

/// All prefixes that requests of a window share.
#[derive(Debug)]
pub(super) struct PrefixTree {
    /// The first is the root, the empty prefix.
    pub nodes: Vec<Node>,
    /// The deepest node on each prompt's path.
    pub node_of: Vec<usize>,
    /// Prompts in depth-first order.
    pub order: Vec<usize>,
    /// The place of each prompt in that order.
    pub place_of: Vec<usize>,
    pub num_unique_tokens: usize,
}

pub(super) const ROOT: usize = 0;

impl PrefixTree {
    pub(super) fn new(prompts: &[PlanPrompt], min_saved_tokens: usize) -> Self {
        let mut sorted: Vec<usize> = (0..prompts.len()).collect();
        // By what can be shared first: those who share a prefix stand side by side then.
        sorted.sort_by_key(|&index| {
            let prompt = &prompts[index];
            (prompt.reusable(), prompt.tokens, Reverse(prompt.max_new_tokens))
        });

        let mut builder = Builder::new(prompts.len());
        let mut shared_before = 0;
        for (place, &index) in sorted.iter().enumerate() {
            let prompt = &prompts[index];
            let next = sorted.get(place + 1).map_or(&[][..], |&next| prompts[next].reusable());
            // Sorted, a prompt's longest common prefix with any later one is that with the next.
            let shared_after = common_prefix(prompt.reusable(), next);
            let work = Work { max_new_tokens: prompt.max_new_tokens, num_prompt_tokens: prompt.tokens.len() };
            builder.add(index, work, shared_before, shared_after);
            shared_before = shared_after;
        }
        builder.finish(prompts, num_unique_tokens(prompts), min_saved_tokens)
    }

    /// The nodes on a prompt's path below the root, deepest first.
    pub(super) fn path(&self, index: usize) -> impl Iterator<Item = &Node> {
        let mut at = self.node_of[index];
        std::iter::from_fn(move || {
            let node = (at != ROOT).then(|| &self.nodes[at])?;
            at = node.parent;
            Some(node)
        })
    }
}

/// Builds the tree from prompts in sorted order: the nodes that a further prompt can still join
/// are the path to the last one, kept on a stack.
struct Builder {
    nodes: Vec<Node>,
    node_of: Vec<usize>,
    /// From the root down, ever deeper; never empty.
    open: Vec<usize>,
}

impl Builder {
    fn new(num_prompts: usize) -> Self {
        let mut builder = Self { nodes: Vec::new(), node_of: vec![ROOT; num_prompts], open: Vec::new() };
        builder.open_node(0);
        builder
    }

    /// Adds the next prompt, of which so many tokens are shared with the one before and after it.
    fn add(&mut self, index: usize, work: Work, shared_before: usize, shared_after: usize) {
        self.close_below(shared_before);
        if shared_after > self.nodes[self.top()].num_tokens {
            self.open_node(shared_after);
        }
        let top = self.top();
        self.node_of[index] = top;
        self.join(top, Child::Prompt(index), 1, work);
    }

    fn finish(
        mut self,
        prompts: &[PlanPrompt],
        num_unique_tokens: usize,
        min_saved_tokens: usize,
    ) -> PrefixTree {
        self.close_below(0);
        let order = self.depth_first(prompts, min_saved_tokens);
        let mut place_of = vec![0; order.len()];
        for (place, &index) in order.iter().enumerate() {
            place_of[index] = place;
        }
        PrefixTree { nodes: self.nodes, node_of: self.node_of, order, place_of, num_unique_tokens }
    }

    fn top(&self) -> usize {
        *self.open.last().expect("the root is never closed")
    }

    fn open_node(&mut self, num_tokens: usize) {
        let id = self.nodes.len();
        let parent = self.open.last().copied().unwrap_or(ROOT);
        self.nodes.push(Node {
            num_tokens,
            parent,
            first_order: 0,
            num_users: 0,
            cut_at: 0,
            example: 0,
            children: Vec::new(),
            work: Work::default(),
        });
        self.open.push(id);
    }

    /// Closes nodes deeper than `depth`; the last one closed hangs from a node of that depth.
    fn close_below(&mut self, depth: usize) {
        while self.nodes[self.top()].num_tokens > depth {
            let id = self.top();
            self.open.pop();
            if self.nodes[self.top()].num_tokens < depth {
                self.open_node(depth);
            }
            let parent = self.top();
            self.nodes[id].parent = parent;
            let (num_users, work) = (self.nodes[id].num_users, self.nodes[id].work);
            self.join(parent, Child::Node(id), num_users, work);
        }
    }

    fn join(&mut self, parent: usize, child: Child, num_users: usize, work: Work) {
        let example = self.example_of(child);
        let parent = &mut self.nodes[parent];
        parent.example = example;
        parent.children.push((child, work));
        parent.num_users += num_users;
        parent.work = parent.work.max(work);
    }

    /// The prompts among a node's children that others of them begin with whole: all of such a prompt but
    /// its last token is the node's prefix.
    fn continued(
        &self,
        prompts: &[PlanPrompt],
        num_tokens: usize,
        children: &[(Child, Work)],
    ) -> HashSet<usize> {
        let next_token = |index: usize| prompts[index].tokens.get(num_tokens).copied();
        let ends_here = |child: &Child| match *child {
            Child::Prompt(index) => (prompts[index].tokens.len() == num_tokens + 1).then_some(index),
            Child::Node(_) => None,
        };
        let ending: Vec<usize> = children.iter().filter_map(|(child, _)| ends_here(child)).collect();
        if ending.is_empty() {
            return HashSet::new();
        }
        let going_on = children.iter().filter(|(child, _)| ends_here(child).is_none());
        let going_on: HashSet<Option<u32>> =
            going_on.map(|(child, _)| next_token(self.example_of(*child))).collect();
        ending.into_iter().filter(|&index| going_on.contains(&next_token(index))).collect()
    }

    fn example_of(&self, child: Child) -> usize {
        match child {
            Child::Prompt(index) => index,
            Child::Node(id) => self.nodes[id].example,
        }
    }

    /// Orders the prompts: those that others continue before these, whose text may hold the answers to
    /// them; other siblings by falling work and then as sorted. On the way down decides which nodes are
    /// cuts.
    fn depth_first(&mut self, prompts: &[PlanPrompt], min_saved_tokens: usize) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.node_of.len());
        let mut stack = vec![Child::Node(ROOT)];
        while let Some(child) = stack.pop() {
            match child {
                Child::Prompt(index) => order.push(index),
                Child::Node(id) => {
                    let cut_above = self.nodes[self.nodes[id].parent].cut_at;
                    let node = &mut self.nodes[id];
                    let num_saved =
                        (node.num_users.saturating_sub(1)).saturating_mul(node.num_tokens - cut_above);
                    node.cut_at = if num_saved >= min_saved_tokens { node.num_tokens } else { cut_above };
                    node.first_order = order.len();
                    let num_tokens = node.num_tokens;
                    let mut children = std::mem::take(&mut node.children);
                    let continued = self.continued(prompts, num_tokens, &children);
                    children.sort_by_key(|&(child, work)| {
                        (!matches!(child, Child::Prompt(index) if continued.contains(&index)), Reverse(work))
                    });
                    stack.extend(children.into_iter().rev().map(|(child, _)| child));
                }
            }
        }
        order
    }
}

/// Distinct non-empty prefixes of the prompts.
fn num_unique_tokens(prompts: &[PlanPrompt]) -> usize {
    let mut sorted: Vec<&[u32]> = prompts.iter().map(|prompt| prompt.tokens).collect();
    sorted.sort_unstable();
    let shared_with_next: usize = sorted.windows(2).map(|pair| common_prefix(pair[0], pair[1])).sum();
    sorted.iter().map(|tokens| tokens.len()).sum::<usize>() - shared_with_next
}
