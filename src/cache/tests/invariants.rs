//! What holds of a prompt cache at every moment.
//!
//! Owns the checks of structure, bytes and counts; they look at the tree and at nothing that is kept
//! beside it for speed, except to compare.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Panics where something that always holds does not.
pub(super) fn check(cache: &PromptCache<Kv>, rule: ResumeRule, now: u64) {
    let tree = cache.tree();
    let order = tree.preorder();
    assert_eq!(order.len(), tree.num_nodes(), "nodes that the root does not lead to");
    assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), order.len(), "a node with two parents");

    let mut num_bytes = PerTier::<u64>::default();
    let mut num_entries = PerTier::<usize>::default();
    let mut pending: BTreeMap<OwnerId, BTreeSet<NodeId>> = BTreeMap::new();
    let mut effective: BTreeMap<NodeId, Tier> = BTreeMap::new();
    // Children before their parents.
    for id in order.iter().rev() {
        let node = tree.node(*id).expect("preorder names live nodes");
        check_links(tree, *id, node, now);

        let below = node.children().map(|child| effective[&child]).max();
        let tier = below.map_or(node.tier(), |below| below.max(node.tier()));
        assert_eq!(node.effective_tier(), tier);
        effective.insert(*id, tier);

        match (node.segment(), node.owner()) {
            (Some(segment), None) => {
                let checkpoint_bytes = node.checkpoint().map_or(0, Kv::num_bytes);
                num_bytes[node.tier()] += segment.num_bytes() + checkpoint_bytes;
                num_entries[tier] += usize::from(node.is_leaf() || node.checkpoint().is_some());
            }
            (None, Some(owner)) => {
                assert!(node.checkpoint().is_none());
                pending.entry(owner).or_default().insert(*id);
            }
            both => panic!("a node is stored or pending: {both:?}"),
        }
    }
    let usage = cache.usage();
    for tier in Tier::ALL {
        assert_eq!(usage.tiers[tier].num_bytes, num_bytes[tier], "{tier:?}");
        assert_eq!(usage.tiers[tier].num_entries, num_entries[tier], "{tier:?}");
    }
    assert_eq!(usage.num_bytes, num_bytes.iter().map(|(_, num)| num).sum::<u64>());
    assert!(usage.peak_bytes >= usage.num_bytes);

    let announced = tree.announced.iter().map(|(owner, ids)| (*owner, ids.iter().copied().collect()));
    assert_eq!(announced.collect::<BTreeMap<OwnerId, BTreeSet<NodeId>>>(), pending);
    check_find(cache, rule, &order);
}

fn check_links(tree: &PromptTree<Kv>, id: NodeId, node: &Node<Kv>, now: u64) {
    assert!(!node.tokens().is_empty(), "an edge without tokens");
    let parent = node.parent().map(|parent| tree.node(parent).expect("a parent is live"));
    assert_eq!(tree.child(node.parent(), node.tokens()[0]), Some(id), "filed under its first token");
    assert_eq!(node.end(), parent.map_or(0, Node::end) + node.tokens().len());
    let mut child_tiers = PerTier::<usize>::default();
    for child in node.children().map(|child| tree.node(child).expect("a child is live")) {
        assert_eq!(child.parent(), Some(id));
        child_tiers[child.effective_tier()] += 1;
    }
    assert_eq!(node.child_tiers, child_tiers);
    if let Some(parent) = parent {
        assert!(parent.last_used() >= node.last_used(), "a path is used from the root");
        assert!(parent.owner().is_none() || node.owner().is_some(), "stored below pending");
        if let Some(users) = node.expected().filter(|users| users.last >= now) {
            let above = parent.expected().expect("users of a node use all above it");
            assert!(above.first <= users.first && users.last <= above.last);
        }
    }
}

/// Every node finds its own way back, and only stored nodes are resumed from.
fn check_find(cache: &PromptCache<Kv>, rule: ResumeRule, order: &[NodeId]) {
    for id in order {
        let tree = cache.tree();
        let mut path: Vec<&Node<Kv>> = Vec::new();
        let mut next = Some(*id);
        while let Some(node) = next.and_then(|id| tree.node(id)) {
            path.push(node);
            next = node.parent();
        }
        path.reverse();
        let tokens: Vec<TokenId> = path.iter().flat_map(|node| node.tokens()).copied().collect();
        let found = cache.find(&tokens);
        assert_eq!((found.num_tokens, found.partial), (tokens.len(), None));
        assert_eq!(found.path.last().map(|step| step.node), Some(*id));

        let stored = path.iter().take_while(|node| node.segment().is_some());
        let usable = stored.filter(|node| rule == ResumeRule::AnyToken || node.checkpoint().is_some());
        let resume = cache.resume(&found);
        assert_eq!(resume.num_tokens, usable.map(|node| node.end()).last().unwrap_or(0));
    }
}
