//! Renders of the beginnings of conversations, kept for the conversations that share them.
//!
//! Owns their keys and the bound on their memory. What is rendered is the caller's choice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::text::RenderRequest;

/// Texts of one generation are no longer together than this, unless a single one is.
const MAX_GENERATION_BYTES: usize = 8 << 20;

/// Nor are there more of them: failed and short renders take memory too.
const MAX_GENERATION_ENTRIES: usize = 4096;

/// Names a render: a digest of everything that goes into it.
pub(super) type Key = [u8; 32];

/// The keys of one request's beginnings.
pub(super) struct Keys {
    /// By the number of messages, from none.
    digests: Vec<Key>,
    /// The same for probes, which end where the request does.
    probe_kind: u8,
}

impl Keys {
    pub(super) fn new(request: &RenderRequest) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut digests = Vec::with_capacity(request.messages.len() + 1);
        digests.push(add_json(&mut hasher, &(request.tools, request.extra)));
        for message in request.messages {
            digests.push(add_json(&mut hasher, message));
        }
        Self { digests, probe_kind: 1 + u8::from(request.add_generation_prompt) }
    }

    /// The key of the first messages, rendered without the answer's header.
    pub(super) fn of_messages(&self, num_messages: usize) -> Key {
        self.key(num_messages, 0)
    }

    /// The key of the first messages with a probe behind them.
    pub(super) fn of_probe(&self, num_messages: usize) -> Key {
        self.key(num_messages, self.probe_kind)
    }

    fn key(&self, num_messages: usize, kind: u8) -> Key {
        *blake3::keyed_hash(&self.digests[num_messages], &[kind]).as_bytes()
    }
}

/// Adds a value to the digest of those before it; JSON shows where each ends.
fn add_json(hasher: &mut blake3::Hasher, value: &impl Serialize) -> Key {
    serde_json::to_writer(&mut *hasher, value).expect("JSON values have string keys, and a hasher takes all");
    *hasher.finalize().as_bytes()
}

/// Texts by key, in two generations: when the young one is full, the old one is dropped, so that
/// what is in use stays and memory is bounded.
#[derive(Debug, Default)]
pub(in crate::text) struct PartialRenders(Mutex<Generations>);

/// What a render gave; nothing where the template refused.
type Rendered = Option<Arc<String>>;

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Key, Rendered>,
    old: HashMap<Key, Rendered>,
    num_young_bytes: usize,
}

impl PartialRenders {
    /// Returns the text of a key, rendering it if it is not there.
    pub(super) fn get_or_render(&self, key: Key, render: impl FnOnce() -> Option<String>) -> Rendered {
        let known = self.lock().get(&key);
        known.unwrap_or_else(|| {
            let rendered = render().map(Arc::new);
            self.lock().insert(key, rendered.clone());
            rendered
        })
    }

    /// How many renders are held.
    #[cfg(test)]
    pub(in crate::text) fn len(&self) -> usize {
        let held = self.lock();
        held.young.len() + held.old.len()
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        // Only whole changes are made, so that a panic elsewhere leaves nothing half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn get(&mut self, key: &Key) -> Option<Rendered> {
        if let Some(rendered) = self.young.get(key) {
            return Some(rendered.clone());
        }
        let rendered = self.old.remove(key)?;
        self.insert(*key, rendered.clone());
        Some(rendered)
    }

    fn insert(&mut self, key: Key, rendered: Rendered) {
        let num_bytes = rendered.as_ref().map_or(0, |text| text.len());
        let num_young_bytes = self.num_young_bytes.saturating_add(num_bytes);
        if num_young_bytes > MAX_GENERATION_BYTES || self.young.len() >= MAX_GENERATION_ENTRIES {
            self.old = std::mem::take(&mut self.young);
            self.num_young_bytes = num_bytes;
        } else {
            self.num_young_bytes = num_young_bytes;
        }
        self.young.insert(key, rendered);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::{Map, Value, json};

    use super::*;

    fn key(number: usize) -> Key {
        *blake3::hash(&number.to_le_bytes()).as_bytes()
    }

    #[test]
    fn what_is_in_use_stays_and_memory_is_bounded() {
        let renders = PartialRenders::default();
        let text = "x".repeat(MAX_GENERATION_BYTES / 8);
        let mut num_renders = 0;
        for number in 1..100 {
            for number in [0, number] {
                let rendered = renders.get_or_render(key(number), || {
                    num_renders += 1;
                    Some(text.clone())
                });
                assert_eq!(rendered.map(|text| text.len()), Some(MAX_GENERATION_BYTES / 8));
            }
            assert!(renders.len() <= 16);
        }
        assert_eq!(num_renders, 100, "each once, although the first is older than all others");
    }

    #[test]
    fn failures_are_remembered_and_bounded_too() {
        let renders = PartialRenders::default();
        for number in 0..3 * MAX_GENERATION_ENTRIES {
            assert_eq!(renders.get_or_render(key(number), || None), None);
        }
        let last = key(3 * MAX_GENERATION_ENTRIES - 1);
        assert_eq!(renders.get_or_render(last, || unreachable!("it is known to fail")), None);
        assert!(renders.len() <= 2 * MAX_GENERATION_ENTRIES);
    }

    #[test]
    fn a_text_over_the_limit_is_held_until_the_next() {
        let renders = PartialRenders::default();
        for number in 0..10 {
            renders.get_or_render(key(number), || Some("x".repeat(MAX_GENERATION_BYTES + 1)));
            assert!(renders.len() <= 2);
        }
    }

    #[test]
    fn keys_tell_apart_all_that_a_rendering_sees() {
        let message = |text: &str| json!({"role": "user", "content": text});
        let (a, b) = ([message("a"), message("b")], [message("a"), message("c")]);
        let tools = json!([{"type": "function"}]);
        let (none, extra) = (Map::new(), Map::from_iter([("k".to_owned(), Value::Bool(true))]));
        let keys = |messages, tools, extra, add_generation_prompt| {
            Keys::new(&RenderRequest { messages, tools, add_generation_prompt, extra })
        };
        let first = keys(&a, None, &none, true);
        assert_eq!(first.of_messages(1), keys(&b, None, &none, false).of_messages(1));
        let distinct = HashSet::from([
            first.of_messages(0),
            first.of_messages(1),
            first.of_messages(2),
            first.of_probe(1),
            keys(&b, None, &none, true).of_messages(2),
            keys(&a, Some(&tools), &none, true).of_messages(1),
            keys(&a, None, &extra, true).of_messages(1),
            keys(&a, None, &none, false).of_probe(1),
        ]);
        assert_eq!(distinct.len(), 8);
    }
}
