//! Leaders and followers: announcing, waiting, storing, giving up.
//!
//! Owns the behaviour of pending nodes and of calls that come in the wrong order.

use super::*;
use Tier::{System, User};

const LEADER: OwnerId = OwnerId(1);
const OTHER: OwnerId = OwnerId(2);

fn caller() -> Caller {
    Caller::any_token(UNLIMITED)
}

fn announce(caller: &mut Caller, parent: Option<NodeId>, tokens: &[TokenId], owner: OwnerId) -> NodeId {
    match caller.cache.announce(Place { parent, tokens, tier: System }, owner).unwrap() {
        Inserted::New(node) => node,
        overlap => panic!("{overlap:?}"),
    }
}

#[test]
fn a_follower_waits_for_its_leader_and_resumes_from_what_it_stored() {
    let mut caller = caller();
    let shared = announce(&mut caller, None, &[1, 2, 3], LEADER);
    let rest = announce(&mut caller, Some(shared), &[4, 5], LEADER);

    let follower = caller.cache.find(&[1, 2, 3, 9]);
    assert_eq!((follower.pending(), follower.num_tokens), (Some(shared), 3));
    assert_eq!(caller.cache.resume(&follower), Resume::default());
    assert_eq!((caller.num_entries(), caller.num_bytes()), (0, 0), "nothing is held yet");

    let kv = caller.kv(3);
    caller.cache.fulfil(shared, kv, None).unwrap();
    let follower = caller.cache.find(&[1, 2, 3, 9]);
    assert_eq!((follower.pending(), caller.cache.resume(&follower).num_tokens), (None, 3));
    assert_eq!(follower.node_of(&caller.cache.resume(&follower)), Some(shared));

    // Another, which shares part of the rest too, sees that this part is on its way.
    let other = caller.cache.find(&[1, 2, 3, 4, 7]);
    assert_eq!(other.pending(), Some(rest));
    assert_eq!(caller.cache.resume(&other).num_tokens, 3, "or goes on from here without waiting");
}

#[test]
fn what_a_leader_gave_up_is_free_to_be_announced_again() {
    let mut caller = caller();
    let stored = announce(&mut caller, None, &[1, 2], LEADER);
    let kv = caller.kv(2);
    caller.cache.fulfil(stored, kv, None).unwrap();
    let given_up = announce(&mut caller, Some(stored), &[3], LEADER);
    let below = announce(&mut caller, Some(given_up), &[4], OTHER);
    announce(&mut caller, Some(given_up), &[5], LEADER);

    assert_eq!(caller.cache.cancel(LEADER), [OTHER], "whose announcement hung below");
    assert_eq!(caller.cache.find(&[1, 2, 3, 4]).num_tokens, 2, "what was stored stays");
    let kv = caller.kv(1);
    for gone in [given_up, below] {
        assert_eq!(caller.cache.fulfil(gone, kv, None), Err(CacheError::Stale(gone)));
    }
    assert_eq!(caller.cache.cancel(LEADER), []);
    assert_eq!(caller.cache.cancel(OTHER), []);

    let again = announce(&mut caller, Some(stored), &[3], OTHER);
    caller.cache.fulfil(again, kv, None).unwrap();
    assert_eq!(caller.hit(&[1, 2, 3]), 3);
}

#[test]
fn a_pending_node_is_no_victim_and_keeps_what_it_continues() {
    let mut caller = Caller::any_token(CacheLimits { max_bytes: 3, max_entries: None });
    let prefix = caller.store(&[1, 2], User);
    announce(&mut caller, Some(prefix), &[3], LEADER);
    caller.store(&[7, 8], User);
    assert_eq!((caller.hit(&[1, 2]), caller.hit(&[7, 8])), (2, 2));
    assert_eq!(caller.cache.usage().num_over_limit, 1);

    caller.cache.cancel(LEADER);
    caller.hit(&[7, 8]);
    caller.cache.make_room(0);
    assert_eq!((caller.hit(&[1, 2]), caller.hit(&[7, 8])), (0, 2));
}

#[test]
fn an_overlap_is_told_with_the_tokens_in_common() {
    let mut caller = caller();
    let node = caller.store(&[1, 2, 3], User);
    let kv = caller.kv(9);
    for (tokens, num_common) in [(&[1, 2, 3][..], 3), (&[1, 2, 3, 4], 3), (&[1, 9], 1), (&[1], 1)] {
        let place = Place { parent: None, tokens, tier: User };
        let overlap = Ok(Inserted::Overlaps { node, num_common });
        assert_eq!(caller.cache.insert(place, kv, None), overlap);
        assert_eq!(caller.cache.announce(place, LEADER), overlap);
    }
    assert_eq!((caller.cache.tree().num_nodes(), caller.num_bytes()), (1, 3));
    assert_eq!(caller.cache.cancel(LEADER), [], "a refused announcement leaves nothing behind");
}

#[test]
fn a_split_gives_the_replaced_segment_back() {
    let mut caller = caller();
    let node = caller.insert(&[1, 2, 3, 4, 5], User, true);
    caller.insert(&[1, 2, 3, 4, 5, 6], User, false);
    let original = *caller.cache.tree().node(node).unwrap().segment().unwrap();
    let split = caller.split(node, 2);
    assert_eq!(split.replaced, original);

    let tree = caller.cache.tree();
    let (upper, lower) = (tree.node(split.upper).unwrap(), tree.node(split.lower).unwrap());
    assert_eq!((upper.tokens(), lower.tokens()), (&[1, 2][..], &[3, 4, 5][..]));
    assert_eq!((upper.end(), lower.end()), (2, 5));
    assert_eq!(upper.children().collect::<Vec<_>>(), [split.lower]);
    assert_eq!((upper.checkpoint(), lower.checkpoint().is_some()), (None, true), "a state is of its end");
    assert_eq!((upper.last_used(), upper.tier()), (lower.last_used(), User));
    assert_eq!(caller.hit(&[1, 2, 3, 4, 5, 6]), 6);
}

#[test]
fn calls_in_the_wrong_order_are_refused_and_change_nothing() {
    let mut caller = caller();
    let kv = caller.kv(1);
    let stored = caller.store(&[1, 2], User);
    let pending = announce(&mut caller, Some(stored), &[3, 3], LEADER);
    let below = announce(&mut caller, Some(pending), &[4], LEADER);
    let cache = &mut caller.cache;

    assert_eq!(cache.fulfil(stored, kv, None), Err(CacheError::NotPending(stored)));
    assert_eq!(cache.fulfil(below, kv, None), Err(CacheError::Pending(pending)), "from the root down");
    let place = Place { parent: Some(pending), tokens: &[5], tier: User };
    assert_eq!(cache.insert(place, kv, None), Err(CacheError::Pending(pending)));
    assert_eq!(cache.split(pending, 1, (kv, kv)), Err(CacheError::Pending(pending)));
    assert_eq!(cache.set_checkpoint(pending, Some(kv)), Err(CacheError::Pending(pending)));
    assert_eq!(cache.replace_segment(pending, kv), Err(CacheError::Pending(pending)));
    assert_eq!(cache.remove(stored), Err(CacheError::Pending(pending)));
    for at in [0, 2, 3] {
        let outside = CacheError::SplitOutside { node: stored, at, num_tokens: 2 };
        assert_eq!(cache.split(stored, at, (kv, kv)), Err(outside));
    }
    assert_eq!(cache.unpin(stored), Err(CacheError::NotPinned(stored)));

    assert_eq!((cache.tree().num_nodes(), cache.usage().num_bytes), (3, 2));
    let found = cache.find(&[1, 2, 3, 3, 4]);
    assert_eq!((found.num_tokens, found.path.len(), found.pending()), (5, 3, Some(pending)));
}

#[test]
fn a_segment_read_from_disk_takes_the_place_of_its_name() {
    let mut caller = caller();
    let node = caller.store(&[1, 2], User);
    let (old, new) = (*caller.cache.tree().node(node).unwrap().segment().unwrap(), caller.kv(50));
    assert_eq!(caller.cache.replace_segment(node, new), Ok(old));
    assert_eq!((caller.num_bytes(), caller.cache.usage().peak_bytes), (50, 50));
}

#[test]
fn a_damaged_node_goes_with_all_below_it() {
    let mut caller = caller();
    caller.store(&[1, 2], System);
    let damaged = caller.store(&[1, 2, 3], User);
    caller.store(&[1, 2, 3, 4], User);
    let pinned = caller.insert(&[1, 2, 3, 5, 6], User, true);
    caller.cache.pin(pinned).unwrap();
    assert_eq!(caller.cache.remove(damaged), Err(CacheError::Pinned(pinned)));

    caller.cache.unpin(pinned).unwrap();
    let dropped = caller.cache.remove(damaged).unwrap();
    assert_eq!(dropped.iter().map(|kv| kv.num_bytes).sum::<u64>(), 1 + 1 + 2 + 10);
    assert_eq!((caller.hit(&[1, 2, 3, 4]), caller.num_bytes()), (2, 2));
    assert_eq!(caller.cache.remove(damaged), Err(CacheError::Stale(damaged)));
}

#[test]
fn a_hit_on_a_match_that_has_gone_stale_is_refused() {
    let mut caller = caller();
    let node = caller.store(&[1, 2], System);
    let found = caller.cache.find(&[1, 2]);
    let resume = caller.cache.resume(&found);
    caller.cache.remove(node).unwrap();
    assert_eq!(caller.cache.record_hit(&found, &resume), Err(CacheError::Stale(node)));
    assert_eq!(caller.cache.usage().num_cached_tokens(), 0);
}
