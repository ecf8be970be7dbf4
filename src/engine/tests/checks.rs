//! What has to hold of the prompt cache whenever nobody is looking.
//!
//! Owns the checks after every step and at the end of a run. Which prefixes should be there is for
//! the runs to say.

use super::super::fake_runner::{BYTES_PER_CHECKPOINT, BYTES_PER_TOKEN};
use super::*;

/// After every step: the cache counts what the runner holds, and is over its limits only where all
/// of it is in use or a single entry is over them alone.
pub(super) fn after_step(engine: &mut Engine<FakeRunner>) {
    assert_eq!(engine.runner().num_lost(), 0, "what a failed pass was to compute is still stored");
    let (num_stored_bytes, num_rest_bytes) = (engine.runner().num_stored_bytes(), engine.num_rest_bytes());
    let Some(usage) = engine.cache_usage() else { return assert_eq!(num_stored_bytes, 0) };
    assert_eq!(num_stored_bytes, usage.num_bytes + num_rest_bytes, "the cache counts what is stored");

    let runner = engine.runner();
    let max_batch_tokens = runner.limits().max_batch_tokens.unwrap_or(usize::MAX) as u64;
    // A batch has its tokens, and room beside them for the states that its rows go on from.
    let num_state_bytes = runner.limits().max_batch_size.get() as u64 * BYTES_PER_CHECKPOINT;
    let num_alive_bytes = runner.num_alive_bytes() - num_rest_bytes;
    let cache = engine.cache_mut().expect("it has usage");
    let max_bytes = cache
        .limits()
        .max_bytes
        .saturating_add(max_batch_tokens.saturating_mul(BYTES_PER_TOKEN))
        .saturating_add(num_state_bytes);
    assert!(num_alive_bytes <= max_bytes, "{num_alive_bytes} bytes are alive, and {max_bytes} are allowed");
    if cache.is_over_limit() {
        let entries: Vec<_> =
            cache.tree().preorder().into_iter().filter_map(|id| cache.tree().node(id)).collect();
        let is_entry = |node: &&&crate::cache::Node<_>| {
            node.segment().is_some() && (node.is_leaf() || node.checkpoint().is_some())
        };
        let num_entries = entries.iter().filter(is_entry).count();
        let num_free = entries.iter().filter(is_entry).filter(|node| node.num_pins() == 0).count();
        assert!(num_free == 0 || num_entries == 1, "{num_free} of {num_entries} entries could go");
        assert!(usage.num_over_limit > 0, "it is told");
    }
}

/// When all has ended: nothing runs, waits or is held, and everything that is stored can go.
pub(super) fn at_the_end(engine: &mut Engine<FakeRunner>) {
    assert!(engine.is_idle());
    assert_eq!(engine.runner().num_live(), 0, "KV is left behind");
    assert_eq!(engine.num_rest_bytes(), 0, "an answer is left behind");
    let num_stored_bytes = engine.runner().num_stored_bytes();
    let Some(cache) = engine.cache_mut() else { return };
    let mut dropped = Vec::new();
    for id in cache.tree().preorder() {
        // It may have gone with the one above it.
        let Some(node) = cache.tree().node(id) else { continue };
        assert_eq!(node.num_pins(), 0, "a node is held for ever");
        assert_eq!(node.owner(), None, "a node is announced for ever");
        dropped.extend(cache.remove(id).expect("nothing below it is held or announced"));
    }
    assert_eq!(dropped.iter().map(|segment| segment.num_bytes).sum::<u64>(), num_stored_bytes);
}
