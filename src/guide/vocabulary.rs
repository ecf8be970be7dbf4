//! A vocabulary as bytes, in the form that grammars are matched against.
//!
//! Owns the trie of all tokens. What bytes a token adds to a text is the tokenizer's to say.

use std::sync::Arc;

use llguidance::toktrie::{INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use crate::cache::TokenId;

/// What a text token adds to an answer, and which tokens are none.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    /// The bytes of each token, by its id; none where there is no such token. A control token, which no text
    /// has, is [`Vocabulary::control`].
    pub tokens: Vec<Vec<u8>>,
    /// Tokens that end an answer.
    pub end_ids: Vec<TokenId>,
    /// Whether the space that an answer begins with is not part of its text.
    pub drops_first_space: bool,
}

impl Vocabulary {
    /// The form of a control token of this name.
    pub fn control(name: &str) -> Vec<u8> {
        [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat()
    }

    /// Every byte by itself: whatever can be said with this vocabulary can be said with any that is whole.
    pub fn of_bytes() -> Self {
        Self { tokens: (0..=255u8).map(|byte| vec![byte]).collect(), ..Self::default() }
    }

    pub(super) fn into_environment(self) -> TokEnv {
        let known = |id: &&TokenId| (**id as usize) < self.tokens.len();
        let end_ids: Vec<TokenId> = self.end_ids.iter().filter(known).copied().collect();
        let first_end = end_ids.first().copied().unwrap_or(INVALID_TOKEN);
        let trie = TokTrie::from(&TokRxInfo::new(self.tokens.len() as u32, first_end), &self.tokens);
        let trie = if end_ids.is_empty() { trie } else { trie.with_eos_tokens(&end_ids) };
        Arc::new(Environment(trie))
    }
}

/// The trie alone: how the model splits a text that is forced is the model's choice.
struct Environment(TokTrie);

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.0.greedy_tokenize(bytes)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
