//! What eviction does with the future: planned users of this run before tiers and recency.
//!
//! Owns the behaviour of `expect` and of the place in the run that `make_room` is told.

use super::*;
use Tier::{Assistant, System, User};

fn bytes(max_bytes: u64) -> Caller {
    Caller::any_token(CacheLimits { max_bytes, max_entries: None })
}

fn is_there(caller: &Caller, node: NodeId) -> bool {
    caller.cache.tree().node(node).is_some()
}

#[test]
fn what_this_run_still_needs_outlives_a_more_persistent_tier() {
    let mut caller = bytes(6);
    let answer = caller.insert(&[1, 1], Assistant, false);
    caller.cache.expect(answer, 3..=3).unwrap();
    let system = caller.insert(&[2, 2], System, false);
    let next = caller.insert(&[3, 3, 3], User, false);
    caller.cache.make_room(3);
    assert!(is_there(&caller, answer) && !is_there(&caller, system) && is_there(&caller, next));

    // Once the run is past its last user, it ranks by tier again.
    let system = caller.insert(&[2, 2], System, false);
    caller.cache.make_room(4);
    assert!(!is_there(&caller, answer) && is_there(&caller, system) && is_there(&caller, next));
}

#[test]
fn among_planned_entries_the_one_used_furthest_in_the_future_goes() {
    let mut caller = bytes(6);
    let nodes = [(1, 5..=6), (2, 20..=20), (3, 0..=40)].map(|(token, users)| {
        let node = caller.insert(&[token; 2], Assistant, false);
        caller.cache.expect(node, users).unwrap();
        node
    });
    let next = caller.insert(&[9], Assistant, false);
    caller.cache.expect(next, 1..=1).unwrap();
    caller.cache.make_room(1);
    // The third has the latest last user, but its next one is at hand.
    assert_eq!(nodes.map(|node| is_there(&caller, node)), [true, false, true]);

    // Where the users of all have begun, the one that ends last goes.
    caller.cache.pin(next).unwrap();
    caller.cache.make_room_for(2, 5, Claim::Needed);
    assert_eq!(nodes.map(|node| is_there(&caller, node)), [true, false, false]);
}

#[test]
fn an_answer_for_the_next_run_does_not_push_out_what_this_run_needs() {
    // The prefix would have to be computed again for the next request, the answer serves none of them.
    let mut caller = bytes(5);
    let prefix = caller.insert(&[1, 2, 3], System, false);
    caller.cache.expect(prefix, 0..=9).unwrap();
    let answer = caller.insert(&[7, 7, 7], Assistant, false);
    caller.cache.make_room(2);
    assert!(is_there(&caller, prefix) && !is_there(&caller, answer));

    // A planned one that was stored just now does push out one needed later.
    let sooner = caller.insert(&[8, 8, 8], User, false);
    caller.cache.expect(sooner, 2..=3).unwrap();
    caller.cache.make_room(2);
    assert!(!is_there(&caller, prefix) && is_there(&caller, sooner));
}

#[test]
fn what_nobody_is_known_to_need_pushes_out_only_what_nobody_needs_and_nothing_in_vain() {
    // An answer emptied the cache to make room for itself, and was dropped where it found none.
    let mut caller = bytes(10);
    let prefix = caller.insert(&[1, 2, 3], System, false);
    caller.cache.expect(prefix, 5..=9).unwrap();
    let idle = [caller.insert(&[4, 4], User, false), caller.insert(&[5, 5], User, false)];
    let held = caller.insert(&[6, 6], User, false);
    caller.cache.pin(held).unwrap();
    for (num_bytes, num_left) in [(11, 2), (6, 2), (2, 1), (5, 0), (6, 0)] {
        let dropped = caller.cache.make_room_for(num_bytes, 2, Claim::Spare);
        assert_eq!(idle.iter().filter(|node| is_there(&caller, **node)).count(), num_left, "{num_bytes}");
        assert!(is_there(&caller, prefix) && is_there(&caller, held), "{num_bytes}: {dropped:?}");
        assert_eq!(caller.cache.has_room_for(num_bytes), [2, 5].contains(&num_bytes));
    }
    // What is needed sooner may have it all.
    caller.cache.make_room_for(6, 2, Claim::Needed);
    assert!(!is_there(&caller, prefix) && is_there(&caller, held));
}

#[test]
fn of_checkpoints_with_the_same_users_the_shallowest_is_redundant() {
    let mut caller = Caller::new(CacheLimits { max_bytes: 30, max_entries: None }, ResumeRule::Checkpoints);
    let upper = caller.insert(&[1, 2], System, true);
    let lower = caller.insert(&[1, 2, 3], User, true);
    caller.cache.expect(lower, 0..=5).unwrap();
    let next = caller.insert(&[9, 9, 9], Assistant, true);
    caller.cache.expect(next, 6..=6).unwrap();
    caller.cache.make_room(0);
    // The users resume from the lower one, so taking the upper one costs them nothing.
    let has_checkpoint = |node| caller.cache.tree().node(node).and_then(|node| node.checkpoint()).is_some();
    assert_eq!((has_checkpoint(upper), has_checkpoint(lower)), (false, true));
}

#[test]
fn users_are_told_to_all_nodes_above_and_kept_by_both_halves_of_a_split() {
    let mut caller = bytes(100);
    let upper = caller.store(&[1, 2, 3], System);
    let lower = caller.store(&[1, 2, 3, 4], User);
    caller.cache.expect(lower, 4..=6).unwrap();
    caller.cache.expect(upper, 2..=5).unwrap();
    let split = caller.split(upper, 1);
    let expected = |node| caller.cache.tree().node(node).and_then(|node| node.expected());
    assert_eq!(expected(split.upper), Some(Expected { first: 2, last: 6 }));
    assert_eq!(expected(split.lower), Some(Expected { first: 2, last: 6 }));
    assert_eq!(expected(lower), Some(Expected { first: 4, last: 6 }));
}

#[test]
fn users_of_the_past_do_not_make_later_ones_look_near() {
    let mut caller = bytes(100);
    let node = caller.store(&[1, 2, 3], System);
    caller.cache.expect(node, 0..=3).unwrap();
    caller.cache.make_room(10);
    caller.cache.expect(node, 90..=99).unwrap();
    let expected = caller.cache.tree().node(node).unwrap().expected();
    assert_eq!(expected, Some(Expected { first: 90, last: 99 }));
}
