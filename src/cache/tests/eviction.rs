//! Which entry goes: tiers, pins, limits and what cannot be evicted.
//!
//! Owns the behaviour without a plan. What a plan changes is in `planned.rs`.

use super::*;
use Tier::{Assistant, System, User};

fn bytes(max_bytes: u64) -> Caller {
    Caller::any_token(CacheLimits { max_bytes, max_entries: None })
}

/// Stores entries of ten bytes each, which share nothing.
fn store_each(caller: &mut Caller, entries: &[(TokenId, Tier)]) -> Vec<NodeId> {
    entries.iter().map(|(token, tier)| caller.insert(&[*token; 10], *tier, false)).collect()
}

/// Evicts one entry of ten bytes and returns the prompts left, by their token.
fn left_after_one_eviction(entries: &[(TokenId, Tier)]) -> Vec<TokenId> {
    let mut caller = bytes(10 * entries.len() as u64 - 1);
    store_each(&mut caller, entries);
    caller.cache.make_room(0);
    entries.iter().map(|(token, _)| *token).filter(|token| caller.hit(&[*token; 10]) > 0).collect()
}

#[test]
fn the_least_persistent_tier_with_enough_entries_pays() {
    // Assistant entries are at least as many as user entries: the oldest of them goes.
    assert_eq!(left_after_one_eviction(&[(1, System), (2, User), (3, Assistant), (4, Assistant)]), [1, 2, 4]);
    assert_eq!(left_after_one_eviction(&[(3, Assistant), (2, User), (1, System)]), [2, 1]);
    // They are fewer: the user tier pays, if it holds as many as the system tier.
    assert_eq!(left_after_one_eviction(&[(1, System), (2, User), (3, User), (4, Assistant)]), [1, 3, 4]);
    // It holds fewer too: the system tier pays.
    let mostly_system = [(1, System), (2, System), (3, System), (4, User), (5, User), (6, Assistant)];
    assert_eq!(left_after_one_eviction(&mostly_system), [2, 3, 4, 5, 6]);
    // Empty tiers are passed over.
    assert_eq!(left_after_one_eviction(&[(1, System), (2, System)]), [2]);
    assert_eq!(left_after_one_eviction(&[(1, System), (2, User), (3, User)]), [1, 3]);
}

#[test]
fn only_leaves_go_so_an_answer_leaves_its_prompt_behind() {
    let mut caller = bytes(5);
    caller.store(&[1, 2], System);
    caller.store(&[1, 2, 3, 4], User);
    caller.store(&[1, 2, 3, 4, 5], Assistant);
    assert_eq!(caller.num_entries(), 1, "one path is one entry");

    // The answer went, not the user message and the system prompt which it hung below.
    caller.store(&[8], Assistant);
    assert_eq!((caller.hit(&[1, 2, 3, 4, 5]), caller.num_entries()), (4, 2));
    let evictions = caller.cache.usage().tiers;
    assert_eq!((evictions[Assistant].num_evictions, caller.cache.usage().num_evictions()), (1, 1));
}

#[test]
fn a_checkpoint_ranks_as_the_most_persistent_span_below_it() {
    let mut caller = Caller::new(UNLIMITED, ResumeRule::Checkpoints);
    let answer = caller.insert(&[1, 2], Assistant, true);
    let effective = |caller: &Caller| caller.cache.tree().node(answer).unwrap().effective_tier();
    assert_eq!(effective(&caller), Assistant);

    let next_turn = caller.insert(&[1, 2, 3], User, true);
    assert_eq!(effective(&caller), User);
    assert_eq!(caller.cache.tree().node(answer).unwrap().tier(), Assistant);
    assert_eq!(caller.cache.usage().tiers[User].num_entries, 2);

    caller.cache.remove(next_turn).unwrap();
    assert_eq!(effective(&caller), Assistant);
    assert_eq!(caller.cache.usage().tiers[Assistant].num_entries, 1);
}

#[test]
fn an_interior_checkpoint_goes_alone_and_a_leaf_goes_whole() {
    let mut caller = Caller::new(CacheLimits { max_bytes: 25, max_entries: None }, ResumeRule::Checkpoints);
    caller.insert(&[1, 2], User, true);
    caller.insert(&[1, 2, 3], Assistant, true);
    assert_eq!(caller.num_bytes(), 23);
    let answer = caller.insert(&[1, 2, 3, 4], Assistant, true);
    let dropped = caller.cache.make_room(0);
    // All three were used last when the third was stored, the shallowest of the assistant's first.
    assert_eq!(dropped.iter().map(|kv| kv.num_bytes).collect::<Vec<_>>(), [10]);
    assert_eq!((caller.hit(&[1, 2, 3]), caller.hit(&[1, 2, 3, 4])), (2, 4));

    assert_eq!(caller.cache.remove(answer).unwrap().len(), 2, "segment and checkpoint");
}

#[test]
fn where_only_checkpoints_serve_a_leaf_without_one_goes_first() {
    let mut caller = Caller::new(CacheLimits { max_bytes: 29, max_entries: None }, ResumeRule::Checkpoints);
    caller.insert(&[1, 2], Assistant, true);
    caller.insert(&[7, 7, 7], System, false);
    caller.insert(&[1, 2, 3], Assistant, true);
    let node = caller.insert(&[4, 5, 6, 7], Assistant, false);
    caller.cache.make_room(0);
    assert!(caller.cache.tree().node(node).is_some(), "it was stored just now");
    assert_eq!((caller.cache.find(&[7, 7, 7]).num_tokens, caller.hit(&[1, 2, 3])), (0, 3));
}

#[test]
fn a_pinned_node_stays_and_all_above_it_keep_their_segments() {
    let mut caller = bytes(6);
    let node = caller.store(&[1, 2, 3], Assistant);
    caller.cache.pin(node).unwrap();
    caller.cache.pin(node).unwrap();
    caller.store(&[4, 5, 6], Assistant);
    caller.store(&[7, 8, 9], Assistant);
    assert_eq!((caller.hit(&[1, 2, 3]), caller.hit(&[4, 5, 6])), (3, 0));
    assert_eq!(caller.cache.remove(node), Err(CacheError::Pinned(node)));

    caller.cache.unpin(node).unwrap();
    caller.hit(&[7, 8, 9]);
    caller.store(&[4, 5, 6], Assistant);
    assert_eq!(caller.hit(&[1, 2, 3]), 3, "one of two pins is left");

    caller.cache.unpin(node).unwrap();
    caller.hit(&[4, 5, 6]);
    caller.store(&[7, 8, 9], Assistant);
    assert_eq!(caller.cache.tree().node(node).map(Node::num_pins), None);
    assert_eq!(caller.cache.unpin(node), Err(CacheError::Stale(node)));
}

#[test]
fn pins_stay_with_the_lower_half_of_a_split_node() {
    // A sequence remembers the node it resumed from by its id. Had the upper half taken a pin over,
    // nobody would ever take it back.
    let mut caller = bytes(3);
    let node = caller.store(&[1, 2, 3], Assistant);
    caller.cache.pin(node).unwrap();
    let split = caller.split(node, 1);
    assert_eq!(split.lower, node);
    caller.cache.make_room_for(3, 0, Claim::Needed);
    assert_eq!(caller.hit(&[1, 2, 3]), 3);

    caller.cache.unpin(node).unwrap();
    assert_eq!(caller.cache.unpin(node), Err(CacheError::NotPinned(node)));
    caller.cache.make_room_for(3, 0, Claim::Needed);
    assert_eq!((caller.hit(&[1, 2, 3]), caller.num_bytes()), (0, 0));
    assert!(caller.cache.tree().node(split.upper).is_none());
}

#[test]
fn a_single_entry_over_the_limit_is_kept_and_reported() {
    let mut caller = bytes(5);
    caller.store(&[1, 2], Assistant);
    caller.store(&[9; 8], Assistant);
    assert_eq!((caller.hit(&[1, 2]), caller.hit(&[9; 8])), (0, 8));
    assert!(caller.cache.is_over_limit());
    assert_eq!(caller.cache.usage().num_over_limit, 1);

    // It is the first to go when something else is stored.
    caller.store(&[1, 2], Assistant);
    assert_eq!((caller.hit(&[1, 2]), caller.hit(&[9; 8])), (2, 0));
    assert!(!caller.cache.is_over_limit());
    assert_eq!(caller.cache.usage().num_over_limit, 1);
}

#[test]
fn the_newest_entry_goes_last_where_all_others_are_in_use() {
    let mut caller = bytes(5);
    let busy = caller.store(&[1, 2, 3], System);
    caller.cache.pin(busy).unwrap();
    caller.store(&[7, 8, 9], Assistant);
    assert_eq!((caller.hit(&[7, 8, 9]), caller.num_bytes()), (0, 3));
    assert_eq!(caller.cache.usage().num_over_limit, 0);
}

#[test]
fn entry_limits_hold_after_every_insertion() {
    // mlx-lm evicts one entry at most for the count limit.
    let mut caller = Caller::any_token(CacheLimits { max_entries: Some(2), ..UNLIMITED });
    store_each(&mut caller, &[(1, Assistant), (2, Assistant), (3, Assistant), (4, Assistant)]);
    assert_eq!(caller.cache.make_room(0).len(), 2);
    assert_eq!((caller.num_entries(), caller.hit(&[3; 10]), caller.hit(&[4; 10])), (2, 10, 10));
}

#[test]
fn usage_tells_bytes_and_hits_by_tier() {
    let mut caller = bytes(100);
    caller.store(&[1, 2], System);
    caller.store(&[1, 2, 3, 4, 5], User);
    caller.store(&[1, 2, 3, 4, 5, 6], Assistant);
    assert_eq!(caller.hit(&[1, 2, 3, 9]), 3);
    assert_eq!(caller.hit(&[1, 2, 3, 4, 5, 6, 7]), 6);
    let usage = caller.cache.usage();
    let by_tier = |of: fn(&TierUsage) -> usize| Tier::ALL.map(|tier| of(&usage.tiers[tier]));
    assert_eq!(by_tier(|tier| tier.num_cached_tokens), [1, 4, 4]);
    assert_eq!(by_tier(|tier| tier.num_bytes as usize), [1, 3, 2]);
    assert_eq!(by_tier(|tier| tier.num_entries), [1, 0, 0]);
    assert_eq!((usage.num_cached_tokens(), usage.num_bytes, usage.peak_bytes), (9, 6, 6));
}
