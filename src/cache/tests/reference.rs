//! What mlx-lm's own tests of `PromptTrie` and `LRUPromptCache` pin, case by case, in our words.
//!
//! Owns the agreement with the reference. Where a test asserts a deliberate difference, it says so;
//! the table in the module docs gives the reasons.

use super::*;
use Tier::{Assistant, User};

fn entries(max_entries: usize) -> Caller {
    Caller::any_token(CacheLimits { max_entries: Some(max_entries), ..UNLIMITED })
}

fn tokens(runs: &[(TokenId, usize)]) -> Vec<TokenId> {
    runs.iter().flat_map(|(token, num)| std::iter::repeat_n(*token, *num)).collect()
}

#[test]
fn a_conversation_grows_diverges_and_is_found_at_each_step() {
    let mut caller = entries(10);
    let first = tokens(&[(10, 24)]);
    assert_eq!(caller.hit(&first), 0, "nothing is stored yet");
    caller.store(&first, Assistant);

    // The stored prompt is a strict prefix of this one: a shorter entry, still there after the hit.
    let second = tokens(&[(10, 24), (20, 5)]);
    assert_eq!(caller.hit(&second), 24);
    assert_eq!(caller.num_entries(), 1);

    // Storing the continuation leaves one entry, the prefix being part of it.
    let third = tokens(&[(10, 24), (20, 5), (30, 3)]);
    caller.store(&third, Assistant);
    assert_eq!(caller.num_entries(), 1);
    assert_eq!(caller.num_bytes(), 32);

    // A prompt that leaves the stored one in its middle gets what both have in common.
    let diverged = tokens(&[(10, 24), (20, 2), (40, 8)]);
    assert_eq!(caller.hit(&diverged), 26);
    assert_eq!(caller.num_entries(), 1);

    // Stored, it is an entry of its own; only its own tokens cost memory (differs).
    caller.store(&diverged, Assistant);
    assert_eq!(caller.num_entries(), 2);
    assert_eq!(caller.num_bytes(), 40);
    assert_eq!((caller.hit(&diverged), caller.hit(&third)), (34, 32));
}

#[test]
fn lookups_find_exact_shorter_longer_and_divergent_entries() {
    let mut caller = entries(2);
    caller.store(&[1, 2], Assistant);
    caller.store(&[2, 3], Assistant);

    assert_eq!(caller.hit(&[1, 2]), 2, "exact");
    assert_eq!(caller.hit(&[1]), 1, "longer, trimmed");
    assert_eq!(caller.hit(&[1, 3, 4]), 1, "divergent");
    assert_eq!(caller.hit(&[2, 3, 4]), 2, "shorter");
    assert_eq!(caller.hit(&[2, 4, 5]), 1, "divergent");
    assert_eq!(caller.hit(&[3, 1, 2]), 0, "a prefix and no other place");
}

#[test]
fn an_exact_hit_leaves_one_token_to_run() {
    let mut caller = entries(2);
    let prompt = [1, 2, 3];
    caller.store(reusable(&prompt), Assistant);
    assert_eq!(caller.hit(reusable(&prompt)), prompt.len() - 1);
    // The next turn begins with the whole prompt: it runs the one token, and what follows.
    assert_eq!(caller.hit(reusable(&[1, 2, 3, 4, 5])), 2);
}

#[test]
fn a_prefix_of_one_token_is_found() {
    // mlx-lm asks for an index above zero, and so misses it (differs).
    let mut caller = entries(2);
    caller.store(&[7], Assistant);
    assert_eq!(caller.hit(&[7, 8, 9]), 1);
}

#[test]
fn the_oldest_entry_goes_where_one_is_too_many() {
    let mut caller = entries(2);
    caller.store(&[1, 2], Assistant);
    caller.store(&[2, 3], Assistant);
    // Storing again what is there makes it the newest.
    caller.store(&[1, 2], Assistant);
    caller.store(&[2, 3], Assistant);
    caller.store(&[3, 4], Assistant);
    assert_eq!((caller.hit(&[1, 2]), caller.num_entries()), (0, 2));

    // One user and two assistant entries: the older of the two goes.
    caller.store(&[4, 5], User);
    assert_eq!((caller.hit(&[2, 3]), caller.hit(&[3, 4]), caller.hit(&[4, 5])), (0, 2, 2));
}

#[test]
fn assistant_entries_do_not_push_out_a_user_entry() {
    let mut caller = entries(2);
    caller.store(&[3, 4], Assistant);
    caller.store(&[4, 5], User);
    caller.store(&[5, 6], Assistant);
    caller.store(&[6, 7], Assistant);
    assert_eq!((caller.hit(&[5, 6]), caller.hit(&[6, 7]), caller.hit(&[4, 5])), (0, 2, 2));
}

#[test]
fn a_hit_refreshes_recency() {
    // In mlx-lm the first one stored goes, although it was used last (differs).
    let mut caller = entries(2);
    caller.store(&[1, 2], Assistant);
    caller.store(&[2, 3], Assistant);
    assert_eq!(caller.hit(&[1, 2]), 2);
    caller.store(&[3, 4], Assistant);
    assert_eq!((caller.hit(&[1, 2]), caller.hit(&[2, 3])), (2, 0));
}

#[test]
fn storing_a_longer_prompt_makes_its_prefix_redundant() {
    let mut caller = entries(10);
    caller.store(&[1, 2], Assistant);
    assert_eq!((caller.num_entries(), caller.num_bytes()), (1, 2));
    caller.store(&[1, 2, 3], Assistant);
    assert_eq!((caller.num_entries(), caller.num_bytes()), (1, 3));
}

#[test]
fn a_prefix_that_cannot_be_trimmed_to_stays_an_entry() {
    let mut caller = Caller::new(UNLIMITED, ResumeRule::Checkpoints);
    caller.insert(&[1, 2], User, true);
    caller.insert(&[1, 2, 3], Assistant, true);
    assert_eq!(caller.num_entries(), 2);
    assert_eq!(caller.hit(&[1, 2, 4]), 2, "shorter");
    assert_eq!(caller.hit(&[1, 2, 3]), 3, "exact");
    assert_eq!(caller.hit(&[1]), 0, "longer, which cannot be trimmed");
}

#[test]
fn there_is_nothing_to_store_or_find_for_an_empty_prompt() {
    // mlx-lm keeps an entry for it (differs).
    let mut caller = entries(10);
    let kv = caller.kv(4);
    let place = Place { parent: None, tokens: reusable(&[]), tier: Assistant };
    assert_eq!(caller.cache.insert(place, kv, None), Err(CacheError::NoTokens));
    assert_eq!(caller.cache.announce(place, OwnerId(1)), Err(CacheError::NoTokens));
    assert_eq!((caller.num_entries(), caller.num_bytes()), (0, 0));

    caller.store(&[1], Assistant);
    assert_eq!(caller.hit(&[]), 0);
    assert_eq!(caller.cache.find(&[]), Match { path: vec![], partial: None, num_tokens: 0 });
    assert_eq!(caller.hit(&[1]), 1, "and the lookup disturbs nothing");
    assert_eq!(reusable(&[9]), &[0u32; 0], "a prompt of one token has no prefix to store");
}

#[test]
fn bytes_are_limited_the_oldest_going_first() {
    let mut caller = Caller::any_token(CacheLimits { max_bytes: 10, max_entries: Some(100) });
    for start in [10, 20, 30, 40] {
        caller.store(&[start, start + 1, start + 2], Assistant);
    }
    assert_eq!((caller.num_entries(), caller.num_bytes()), (3, 9));
    assert_eq!(caller.hit(&[10, 11, 12]), 0);

    // Shrinking on demand, as `trim_to` does: room for three more leaves at most seven bytes.
    caller.cache.make_room_for(3, 0, Claim::Needed);
    assert_eq!((caller.num_entries(), caller.num_bytes()), (2, 6));
    assert_eq!((caller.hit(&[20, 21, 22]), caller.hit(&[30, 31, 32])), (0, 3));
}

#[test]
fn of_two_longer_entries_either_serves_as_they_share_the_prefix() {
    // The trie's tests pin that the shortest longer entry is taken, the last one at a tie. Here both
    // hang below the one node that holds the prefix, so there is nothing to choose.
    for (one, other) in [(&[1, 2, 3, 4][..], &[1, 5, 6][..]), (&[1, 2, 3], &[1, 4, 5])] {
        let mut caller = entries(10);
        caller.store(one, Assistant);
        caller.store(other, Assistant);
        assert_eq!(caller.hit(&[1]), 1);
        let found = caller.cache.find(&[1]);
        assert_eq!((found.num_tokens, found.path.len(), found.partial), (1, 1, None));
    }
}

/// Stores entries that share nothing, one for each letter, and returns the order they are evicted in.
fn eviction_order(tiers: &str) -> Vec<usize> {
    let mut caller = Caller::any_token(CacheLimits { max_bytes: tiers.len() as u64, max_entries: None });
    let mut left: Vec<NodeId> = Vec::new();
    for (number, letter) in tiers.chars().enumerate() {
        let tier = match letter {
            'a' => Assistant,
            'u' => User,
            _ => Tier::System,
        };
        left.push(caller.insert(&[number as TokenId], tier, false));
    }
    let is_gone = |caller: &Caller, number: &usize| caller.cache.tree().node(left[*number]).is_none();
    let mut order: Vec<usize> = Vec::new();
    for num_bytes in 1..=tiers.len() as u64 {
        assert_eq!(caller.cache.make_room_for(num_bytes, 0, Claim::Needed).len(), 1);
        let new: Vec<usize> =
            (0..tiers.len()).filter(|number| is_gone(&caller, number) && !order.contains(number)).collect();
        order.extend(new);
    }
    order
}

#[test]
fn entries_are_evicted_in_the_order_that_mlx_lm_pops_them() {
    // Pushed to and popped from `CacheOrder` of mlx-lm 0.32.2: a for assistant, u for user, s for system.
    let popped = [
        ("uausaasausas", [1, 4, 5, 3, 0, 7, 6, 2, 10, 9, 8, 11]),
        ("aaauuaaasuas", [0, 1, 2, 5, 6, 3, 7, 4, 10, 8, 9, 11]),
        ("aasssassuaaa", [0, 1, 5, 9, 10, 11, 2, 3, 4, 6, 8, 7]),
        ("uusuauuauuaa", [0, 1, 3, 4, 5, 7, 6, 10, 8, 11, 9, 2]),
        ("aassussuuaaa", [0, 1, 9, 2, 4, 10, 3, 7, 11, 5, 8, 6]),
        ("asssssaasusu", [0, 6, 1, 2, 3, 4, 5, 9, 7, 8, 11, 10]),
        ("ssaasssssaas", [2, 3, 9, 10, 0, 1, 4, 5, 6, 7, 8, 11]),
        ("suusssssussu", [0, 3, 4, 5, 1, 6, 2, 7, 8, 9, 11, 10]),
        ("auaauaauuuaa", [0, 2, 3, 1, 5, 4, 6, 7, 10, 8, 11, 9]),
    ];
    for (tiers, expected) in popped {
        assert_eq!(eviction_order(tiers), expected, "{tiers}");
    }
}
