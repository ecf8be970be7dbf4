//! A sequence's guide at work: what may be chosen next, given all that was chosen.
//!
//! Owns when a guide begins, and what a request's other wishes leave of what it allows. What a constraint
//! allows is `guide`'s business; when all tokens before a choice are known, `step/passes`'.

use std::sync::Arc;
use std::time::Instant;

use super::TokenId;
use crate::guide::{Guide, GuideError, Next, Pattern, TokenSet};

/// A guide, from its pattern on.
#[derive(Debug)]
pub(super) struct Guiding {
    pattern: Pattern,
    /// There is none before the first token is chosen: those that wait take no memory.
    guide: Option<Guide>,
    end_ids: Arc<[TokenId]>,
    min_new_tokens: usize,
    num_accepted: usize,
}

impl Guiding {
    pub fn new(pattern: Pattern, end_ids: &Arc<[TokenId]>, min_new_tokens: usize) -> Self {
        Self { pattern, guide: None, end_ids: Arc::clone(end_ids), min_new_tokens, num_accepted: 0 }
    }

    /// What may be chosen now, but for `banned` tokens.
    pub fn next(&mut self, banned: &[TokenId]) -> Result<Next, GuideError> {
        let is_early = self.num_accepted < self.min_new_tokens;
        let end_ids = Arc::clone(&self.end_ids);
        let next = self.guide()?.next(&end_ids, is_early)?;
        let Next::OneOf(mut allowed) = next else { return Ok(next) };
        banned.iter().for_each(|token| allowed.remove(*token));
        if allowed.is_empty() {
            return Err(GuideError::Stuck("bad_words has all tokens that go on".to_owned()));
        }
        Ok(Next::OneOf(allowed))
    }

    /// Takes a token, which is no end token; returns whether the answer is over.
    pub fn accept(&mut self, token: TokenId) -> Result<bool, GuideError> {
        self.num_accepted += 1;
        self.guide()?.accept(token)
    }

    fn guide(&mut self) -> Result<&mut Guide, GuideError> {
        if self.guide.is_none() {
            self.guide = Some(self.pattern.begin()?);
        }
        Ok(self.guide.as_mut().expect("it has just begun"))
    }
}

/// What a guide says of one row, and how long that took.
pub(super) struct Guided {
    pub next: Result<Next, GuideError>,
    pub time: std::time::Duration,
}

impl Guided {
    pub fn of(guiding: &mut Guiding, banned: &[TokenId]) -> Self {
        let begun = Instant::now();
        let next = guiding.next(banned);
        Self { next, time: begun.elapsed() }
    }

    /// The tokens to choose from, if they are not all, or none.
    pub fn allowed(&self) -> Option<TokenSet> {
        match &self.next {
            Ok(Next::OneOf(allowed)) => Some(allowed.clone()),
            Ok(Next::Anything | Next::Nothing) | Err(_) => None,
        }
    }
}
