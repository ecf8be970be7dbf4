//! The keys of random numbers: what the tokens of a choice are drawn with.
//!
//! Owns what tells choices, prompts, turns and lines apart. How a key and a place become a number is `engine`'s.

use super::Wanted;
use crate::batch::RequestHead;
use crate::engine::sampling_key;

/// What the random numbers of a prompt's choices follow from.
pub(super) struct ChoiceKeys<'a> {
    own_seed: Option<u64>,
    /// Of the request, else of the run.
    seed: Option<u64>,
    head: &'a RequestHead,
    /// The prompt's place in the line's list.
    position: u64,
    /// Answers of the conversation before it.
    num_turns_before: u64,
}

impl<'a> ChoiceKeys<'a> {
    pub(super) fn new(wanted: &Wanted, head: &'a RequestHead, position: u64, num_turns_before: u64) -> Self {
        Self { own_seed: wanted.own_seed, seed: wanted.params.seed, head, position, num_turns_before }
    }

    /// Choice k is drawn as the first one under a seed that is k more. A request's own seed alone makes its
    /// answer, each turn of a conversation as if it were the only one; the run's seed is told apart by the request's
    /// id, the prompt's place and the turn, so that equal prompts under one seed are drawn independently, in
    /// whatever order they stand.
    pub(super) fn of(&self, choice: u64) -> u64 {
        match self.own_seed {
            Some(seed) => sampling_key(seed.wrapping_add(choice), 0),
            None => {
                let mut hasher = blake3::Hasher::new();
                hasher.update(own_id(self.head).as_bytes());
                if self.position > 0 {
                    hasher.update(&[0]).update(&self.position.to_le_bytes());
                }
                if self.num_turns_before > 0 {
                    hasher.update(&[1]).update(&self.num_turns_before.to_le_bytes());
                }
                let id = hasher.finalize();
                let request_key = id.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
                sampling_key(self.seed.unwrap_or(0).wrapping_add(choice), request_key)
            }
        }
    }
}

/// What tells a request from others whatever these are: a made-up id steps aside where another line has that
/// id, and then ends in a number more.
fn own_id(head: &RequestHead) -> String {
    let made_up = head.file.made_up_id(head.line);
    let number = head.custom_id.strip_prefix(&made_up).and_then(|rest| rest.strip_prefix('-'));
    let is_made_up = number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
    if is_made_up { made_up } else { head.custom_id.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up id that stepped aside for another line's drew other tokens.
    #[test]
    fn what_is_drawn_does_not_depend_on_the_ids_of_other_lines() {
        let key_of = |custom_id: &str| {
            let head = RequestHead {
                index: 2,
                file: crate::batch::InputFile { number: 1, name: "in.jsonl".into() },
                line: 3,
                custom_id: custom_id.into(),
                digest: [0; 16],
                content_digest: [0; 16],
                form: crate::batch::Form::Text,
                metadata: None,
                input: None,
            };
            ChoiceKeys { own_seed: None, seed: None, head: &head, position: 0, num_turns_before: 0 }.of(0)
        };
        assert_eq!(key_of("line-3"), key_of("line-3-2"));
        assert_ne!(key_of("line-3"), key_of("line-30"));
        assert_ne!(key_of("line-3"), key_of("line-3-b"));
    }
}
