//! A set of tokens, one bit each.
//!
//! Owns the packing, which is the one that masks are computed in and that the device reads: bit `t % 32` of
//! word `t / 32`.

use crate::cache::TokenId;

/// A set of tokens of a vocabulary; what is beyond its words is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenSet(Vec<u32>);

impl TokenSet {
    pub fn of_words(words: Vec<u32>) -> Self {
        Self(words)
    }

    /// The first so many tokens.
    pub fn first(num_tokens: usize) -> Self {
        let mut words = vec![u32::MAX; num_tokens / 32];
        words.extend((!num_tokens.is_multiple_of(32)).then(|| (1 << (num_tokens % 32)) - 1));
        Self(words)
    }

    pub fn words(&self) -> &[u32] {
        &self.0
    }

    pub fn contains(&self, token: TokenId) -> bool {
        self.0.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    pub fn insert(&mut self, token: TokenId) {
        let place = token as usize / 32;
        if place >= self.0.len() {
            self.0.resize(place + 1, 0);
        }
        self.0[place] |= 1 << (token % 32);
    }

    pub fn remove(&mut self, token: TokenId) {
        if let Some(word) = self.0.get_mut(token as usize / 32) {
            *word &= !(1 << (token % 32));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Its tokens, ascending.
    pub fn iter(&self) -> impl Iterator<Item = TokenId> + '_ {
        (0..).zip(&self.0).flat_map(|(place, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(place * 32 + bit)
            })
        })
    }
}

impl FromIterator<TokenId> for TokenSet {
    fn from_iter<I: IntoIterator<Item = TokenId>>(tokens: I) -> Self {
        let mut set = Self::default();
        tokens.into_iter().for_each(|token| set.insert(token));
        set
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_a_set_holds(
            tokens in prop::collection::btree_set(0..200u32, 0..40),
            removed in prop::collection::btree_set(0..300u32, 0..40),
        ) {
            let mut set: TokenSet = tokens.iter().copied().collect();
            removed.iter().for_each(|token| set.remove(*token));
            let expected: BTreeSet<u32> = tokens.difference(&removed).copied().collect();
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), expected.iter().copied().collect::<Vec<_>>());
            prop_assert!((0..300).all(|token| set.contains(token) == expected.contains(&token)));
            prop_assert_eq!(set.is_empty(), expected.is_empty());
            let all = TokenSet::first(tokens.len());
            prop_assert_eq!(all.iter().collect::<Vec<_>>(), (0..tokens.len() as u32).collect::<Vec<_>>());
        }
    }
}
