//! One answer under its constraint.
//!
//! Owns which tokens may come next, and when the answer is over. Choosing one is the sampler's business.

use std::fmt;

use llguidance::Matcher;

use super::{GuideError, TokenSet, reason};
use crate::cache::TokenId;

/// What llguidance says where no token is allowed.
const NO_TOKEN: &str = "NoExtensionBias";

/// Follows one answer.
pub struct Guide(Matcher);

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guide").field("is_over", &self.0.is_stopped()).finish_non_exhaustive()
    }
}

/// What may come next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// One of these tokens, at least one.
    OneOf(TokenSet),
    /// Nothing: the answer is whole.
    Nothing,
}

impl Guide {
    pub(super) fn new(matcher: Matcher) -> Self {
        Self(matcher)
    }

    /// The tokens that may come next. An end token of `end_ids` is one of them where the answer may be over,
    /// unless `is_early`, which gives way where nothing else could come; another of the vocabulary's own end
    /// tokens is none.
    pub fn next(&mut self, end_ids: &[TokenId], is_early: bool) -> Result<Next, GuideError> {
        let stuck = |error| GuideError::Stuck(reason(error));
        let is_whole = self.0.is_stopped() || self.0.is_accepting().map_err(stuck)?;
        let own_ends = self.0.tok_env().map_err(stuck)?.tok_trie().eos_tokens().to_vec();
        let mut allowed = match self.0.compute_mask_or_eos() {
            Ok(mask) => TokenSet::of_words(mask.as_slice().to_vec()),
            // An empty set.
            Err(error) if error.to_string().starts_with(NO_TOKEN) => TokenSet::default(),
            Err(error) => return Err(stuck(error)),
        };
        for token in own_ends.iter().filter(|token| !end_ids.contains(token)) {
            allowed.remove(*token);
        }
        // A token of text that the request has end its answer ends it only where it is whole. A grammar may ask
        // for an end token itself.
        let ends_here = |token: &&TokenId| {
            !is_early && (is_whole || own_ends.contains(token) && allowed.contains(**token))
        };
        let ends: Vec<TokenId> = end_ids.iter().filter(ends_here).copied().collect();
        end_ids.iter().for_each(|token| allowed.remove(*token));
        ends.into_iter().for_each(|token| allowed.insert(token));
        if allowed.is_empty() && is_early && is_whole {
            end_ids.iter().for_each(|token| allowed.insert(*token));
        }
        match (allowed.is_empty(), is_whole) {
            (false, _) => Ok(Next::OneOf(allowed)),
            (true, true) => Ok(Next::Nothing),
            (true, false) => {
                Err(GuideError::Stuck("the model's vocabulary has no token that goes on".to_owned()))
            }
        }
    }

    /// Takes the next token, which is no end token; returns whether the answer is over with it.
    pub fn accept(&mut self, token: TokenId) -> Result<bool, GuideError> {
        self.0.consume_token(token).map_err(|error| GuideError::Stuck(reason(error)))?;
        Ok(self.0.is_stopped())
    }
}
