//! The prefixes that many prompts share, added up over the windows of a file, as people are shown them.
//!
//! Owns which are named and how they nest. What is shared within a window is `plan/`'s knowledge.

use std::{cmp::Reverse, collections::HashMap};

use serde_json::{Value, json};

use super::text_head::text_head;
use crate::{plan::SharedPrefix, text::Tokenizer};

/// So many are named.
const MAX_NAMED: usize = 10;

/// A shared prefix and how its own part begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NamedPrefix {
    pub num_tokens: u64,
    /// Its first tokens that belong to a shorter shared prefix.
    pub num_parent_tokens: u64,
    pub num_users: u64,
    pub num_saved_tokens: u64,
    /// The text after those first tokens.
    pub text: String,
    /// The longest other prefix among those named that it begins with, by its place among them.
    pub parent: Option<usize>,
}

impl NamedPrefix {
    /// For programs.
    pub(super) fn json(&self) -> Value {
        json!({
            "num_tokens": self.num_tokens,
            "num_users": self.num_users,
            "num_saved_tokens": self.num_saved_tokens,
            "text_from_token": self.num_parent_tokens,
            "text": self.text,
        })
    }
}

/// Those of all windows.
#[derive(Debug, Default)]
pub(super) struct SharedPrefixes {
    /// By the digest of their tokens: the same prefix may be shared in several windows. A few for
    /// each window, and so for thousands of requests.
    by_digest: HashMap<blake3::Hash, Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    named: NamedPrefix,
    /// Other prefixes that it begins with, by their lengths.
    ancestors: HashMap<blake3::Hash, u64>,
}

impl SharedPrefixes {
    /// Adds what the prompts of a window share; `tokens_of` has their tokens by their index.
    pub(super) fn add<'t>(
        &mut self,
        shared: &[SharedPrefix],
        tokens_of: impl Fn(usize) -> &'t [u32],
        tokenizer: &Tokenizer,
    ) {
        let prefixes: Vec<(&SharedPrefix, &[u32], blake3::Hash)> = shared
            .iter()
            .map(|prefix| {
                let tokens = &tokens_of(prefix.example)[..prefix.num_tokens];
                (prefix, tokens, digest(tokens))
            })
            .collect();
        for (prefix, tokens, digest) in &prefixes {
            let entry = self.by_digest.entry(*digest).or_insert_with(|| Shared {
                named: NamedPrefix {
                    num_tokens: prefix.num_tokens as u64,
                    num_parent_tokens: prefix.num_parent_tokens as u64,
                    text: text_head(tokenizer, &tokens[prefix.num_parent_tokens..]),
                    ..NamedPrefix::default()
                },
                ancestors: HashMap::new(),
            });
            entry.named.num_users += prefix.num_users as u64;
            entry.named.num_saved_tokens += prefix.num_saved_tokens as u64;
            let shorter = prefixes
                .iter()
                .filter(|(_, other, _)| other.len() < tokens.len() && tokens.starts_with(other));
            entry.ancestors.extend(shorter.map(|(_, other, digest)| (*digest, other.len() as u64)));
        }
    }

    /// Those that save most, the first of them first.
    pub(super) fn largest(&self) -> Vec<NamedPrefix> {
        let mut shared: Vec<(&blake3::Hash, &Shared)> = self.by_digest.iter().collect();
        shared.sort_by(|(_, a), (_, b)| {
            let key = |shared: &Shared| (Reverse(shared.named.num_saved_tokens), shared.named.num_tokens);
            key(a).cmp(&key(b)).then_with(|| a.named.text.cmp(&b.named.text))
        });
        shared.truncate(MAX_NAMED);
        let parent_of = |child: &Shared| {
            let named = shared.iter().enumerate();
            let above = named.filter_map(|(place, (digest, _))| Some((*child.ancestors.get(digest)?, place)));
            above.max().map(|(_, place)| place)
        };
        shared
            .iter()
            .map(|(_, shared)| NamedPrefix { parent: parent_of(shared), ..shared.named.clone() })
            .collect()
    }
}

fn digest(tokens: &[u32]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for token in tokens {
        hasher.update(&token.to_le_bytes());
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::plan::{PlanOptions, PlanPrompt, WindowPlan};

    fn largest_of(windows: &[&[&[u32]]]) -> Vec<NamedPrefix> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama");
        let tokenizer = Tokenizer::from_folder(&folder).expect("the fixture loads");
        let mut shared = SharedPrefixes::default();
        for prompts in windows {
            let planned = prompts.iter().map(|tokens| PlanPrompt {
                tokens,
                num_reusable: tokens.len() - 1,
                boundaries: &[],
                max_new_tokens: 5,
            });
            let plan = WindowPlan::new(&planned.collect::<Vec<_>>(), &PlanOptions::default());
            shared.add(&plan.largest_shared, |index| prompts[index], &tokenizer);
        }
        shared.largest()
    }

    #[test]
    fn a_prefix_of_several_windows_is_one_prefix() {
        let window: &[&[u32]] = &[&[1, 2, 3, 4], &[1, 2, 3, 5], &[9, 9]];
        let figures = |named: &[NamedPrefix]| -> Vec<(u64, u64, u64)> {
            named.iter().map(|named| (named.num_tokens, named.num_users, named.num_saved_tokens)).collect()
        };
        assert_eq!(figures(&largest_of(&[window])), [(3, 2, 3)]);
        assert_eq!(figures(&largest_of(&[window, &[], window])), [(3, 4, 6)]);
        assert_eq!(largest_of(&[]), []);
    }

    #[test]
    fn prefixes_nest_under_the_longest_that_is_named() {
        let window: &[&[u32]] =
            &[&[1, 2, 3, 4, 4], &[1, 2, 3, 4, 5], &[1, 2, 6, 6, 7], &[1, 2, 6, 6, 8], &[1, 2, 9], &[7, 7]];
        let named = largest_of(&[window]);
        let shape: Vec<(u64, Option<usize>)> =
            named.iter().map(|named| (named.num_tokens, named.parent)).collect();
        assert_eq!(shape, [(2, None), (4, Some(0)), (4, Some(0))], "{named:?}");
    }
}
