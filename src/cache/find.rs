//! Lookup: how much of a prompt the tree knows, and from where a sequence can resume.
//!
//! Owns the walk down the tree and the two rules of resuming. Whether to wait for a pending node or
//! to resume above it is the caller's decision.
//!
//! A caller who keeps a [`Match`] has each token compared once, whatever happens to the tree meanwhile: what was
//! found holds as far as its nodes hang where they hung, since a node's edge changes only when it is split, and
//! then it hangs below the upper half.

use super::{Node, NodeId, PromptTree, TokenId};

/// Where a model can resume from stored KV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResumeRule {
    /// At any token: every layer's KV can be trimmed (full and sliding-window attention).
    AnyToken,
    /// Only where a checkpoint is held: some layers are recurrent.
    Checkpoints,
}

/// A node whose tokens all match the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub node: NodeId,
    /// Prompt tokens up to the node's end.
    pub end: usize,
    /// Not set: the node is pending.
    pub has_segment: bool,
    pub has_checkpoint: bool,
}

/// A node of which only the first tokens match the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial {
    pub node: NodeId,
    /// Matching tokens of the node's edge: at least one, fewer than all.
    pub num_tokens: usize,
    /// Not set: the node is pending.
    pub has_segment: bool,
}

/// How far a prompt runs along the tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Match {
    /// The nodes matched whole, from the root down. Below a pending node all are pending.
    pub path: Vec<Step>,
    /// The node in whose middle the match ends, if it ends in one.
    pub partial: Option<Partial>,
    /// Prompt tokens matched, partial and pending nodes included.
    pub num_tokens: usize,
}

/// The stored prefix that a sequence resumes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resume {
    /// Prompt tokens whose KV need not be computed.
    pub num_tokens: usize,
    /// How many steps of the match's path are used, all of them whole.
    pub num_nodes: usize,
    /// The node after them of which only the first tokens are used.
    pub partial: Option<Partial>,
}

impl Match {
    /// The first node on the way that is still being computed; a follower waits for it.
    pub fn pending(&self) -> Option<NodeId> {
        let whole = self.path.iter().find(|step| !step.has_segment).map(|step| step.node);
        whole.or_else(|| self.partial.filter(|partial| !partial.has_segment).map(|partial| partial.node))
    }

    /// The deepest point from which a sequence can resume now.
    pub fn resume(&self, rule: ResumeRule) -> Resume {
        let num_stored = self.path.iter().take_while(|step| step.has_segment).count();
        let num_nodes = match rule {
            ResumeRule::AnyToken => num_stored,
            ResumeRule::Checkpoints => {
                let deepest = self.path[..num_stored].iter().rposition(|step| step.has_checkpoint);
                deepest.map_or(0, |position| position + 1)
            }
        };
        let whole_tokens = self.path[..num_nodes].last().map_or(0, |step| step.end);
        // A pending node on the path comes before the partial one, which then is pending too.
        let partial = self.partial.filter(|partial| rule == ResumeRule::AnyToken && partial.has_segment);
        let num_tokens = whole_tokens + partial.map_or(0, |partial| partial.num_tokens);
        Resume { num_tokens, num_nodes, partial }
    }

    /// The node that `resume` ends in: the one to pin.
    pub fn node_of(&self, resume: &Resume) -> Option<NodeId> {
        let whole = || self.path.get(resume.num_nodes.checked_sub(1)?).map(|step| step.node);
        resume.partial.map(|partial| partial.node).or_else(whole)
    }
}

impl<P> PromptTree<P> {
    /// Follows `tokens` down the tree; linear in the tokens that match.
    pub fn find(&self, tokens: &[TokenId]) -> Match {
        let mut found = Match::default();
        self.find_again(&mut found, tokens);
        found
    }

    /// Brings up to date what was found of the same tokens before; linear in the nodes, and in the tokens that lie
    /// in new ones.
    pub fn find_again(&self, found: &mut Match, tokens: &[TokenId]) {
        let mut parent = None;
        let mut path = std::mem::take(&mut found.path).into_iter();
        for step in path.by_ref() {
            let Some(node) = self.child_of(parent, step.node) else { break };
            found.path.push(step_to(step.node, node));
            parent = Some(step.node);
        }
        found.num_tokens = found.path.last().map_or(0, |step| step.end);
        if let Some(partial) = found.partial.take()
            && let Some(node) = self.child_of(parent, partial.node)
        {
            found.num_tokens += partial.num_tokens;
            found.partial = Some(Partial { has_segment: node.segment().is_some(), ..partial });
            return;
        }
        while let Some(id) = tokens.get(found.num_tokens).and_then(|first| self.child(parent, *first)) {
            let node = self.linked(id);
            let num_common = common_prefix(node.tokens(), &tokens[found.num_tokens..]);
            #[cfg(test)]
            self.num_compared.set(self.num_compared.get() + num_common);
            found.num_tokens += num_common;
            if num_common < node.tokens().len() {
                let has_segment = node.segment().is_some();
                found.partial = Some(Partial { node: id, num_tokens: num_common, has_segment });
                break;
            }
            found.path.push(step_to(id, node));
            parent = Some(id);
        }
    }

    /// A node, if it is there and hangs below this one.
    fn child_of(&self, parent: Option<NodeId>, id: NodeId) -> Option<&Node<P>> {
        self.node(id).filter(|node| node.parent() == parent)
    }
}

fn step_to<P>(id: NodeId, node: &Node<P>) -> Step {
    let (has_segment, has_checkpoint) = (node.segment().is_some(), node.checkpoint().is_some());
    Step { node: id, end: node.end(), has_segment, has_checkpoint }
}

/// The number of tokens at the start of both.
pub fn common_prefix(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
