//! One answer under its constraint.
//!
//! Owns which tokens may come next, and when the answer is over. Choosing one is the sampler's business, where
//! thinking in front of the answer ends `preamble`'s.

use std::fmt;

use llguidance::Matcher;
use llguidance::toktrie::{TokEnv, TokTrie};

use super::preamble::{Demand, Progress};
use super::{GuideError, TokenSet, reason};
use crate::cache::TokenId;

/// What llguidance says where no token is allowed.
const NO_TOKEN: &str = "NoExtensionBias";

/// Follows one answer.
pub struct Guide {
    environment: TokEnv,
    /// Of what the answer is held to, if anything. While a preamble may still begin, it has followed what may be
    /// the answer itself.
    matcher: Option<Matcher>,
    /// Whether the tokens so far can be the answer's beginning.
    is_answer: bool,
    /// The thinking in front of the answer, until it is over.
    progress: Option<Progress>,
}

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guide").field("progress", &self.progress).finish_non_exhaustive()
    }
}

/// What may come next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Any token.
    Anything,
    /// One of these tokens, at least one.
    OneOf(TokenSet),
    /// Nothing: the answer is whole.
    Nothing,
}

impl Guide {
    pub(super) fn new(environment: TokEnv, matcher: Option<Matcher>, progress: Option<Progress>) -> Self {
        Self { environment, matcher, is_answer: true, progress }
    }

    /// The tokens that may come next. An end token of `end_ids` is one of them where the answer may be over,
    /// unless `is_early`, which gives way where nothing else could come; another of the vocabulary's own end
    /// tokens is none.
    pub fn next(&mut self, end_ids: &[TokenId], is_early: bool) -> Result<Next, GuideError> {
        let demand = self.progress.as_ref().map_or(Demand::None, Progress::demand);
        match demand {
            Demand::Forced(token) => Ok(Next::OneOf(TokenSet::from_iter([token]))),
            Demand::None => self.next_of_answer(end_ids, is_early),
            Demand::Free => Ok(self.next_of_thinking(end_ids, is_early)),
            Demand::MayOpen => self.next_at_beginning(end_ids, is_early),
        }
    }

    /// Takes the next token, which is no end token; returns whether the answer is over with it.
    pub fn accept(&mut self, token: TokenId) -> Result<bool, GuideError> {
        let demand = self.progress.as_ref().map_or(Demand::None, Progress::demand);
        if let Some(progress) = &mut self.progress {
            progress.accept(bytes_of(&self.environment, token));
        }
        match demand {
            Demand::None => self.accept_of_answer(token),
            Demand::Free | Demand::Forced(_) => Ok(false),
            Demand::MayOpen => self.accept_at_beginning(token),
        }
    }

    fn next_of_answer(&mut self, end_ids: &[TokenId], is_early: bool) -> Result<Next, GuideError> {
        let Some(matcher) = &mut self.matcher else { return Ok(self.next_of_thinking(end_ids, is_early)) };
        let stuck = |error| GuideError::Stuck(reason(error));
        let is_whole = matcher.is_stopped() || matcher.is_accepting().map_err(stuck)?;
        let own_ends = self.environment.tok_trie().eos_tokens().to_vec();
        let mut allowed = match matcher.compute_mask_or_eos() {
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

    /// Where an answer is to follow, thinking does not end it, nor begin it within its own last token.
    fn next_of_thinking(&self, end_ids: &[TokenId], is_early: bool) -> Next {
        let is_held = self.matcher.is_some();
        if !is_held && !is_early {
            return Next::Anything;
        }
        let trie = self.environment.tok_trie();
        let mut allowed = TokenSet::first(trie.vocab_size());
        let own_ends = trie.eos_tokens().iter().filter(|_| is_held);
        end_ids.iter().chain(own_ends).for_each(|token| allowed.remove(*token));
        if let Some(progress) = self.progress.as_ref().filter(|progress| is_held && progress.is_closing()) {
            let says_more = |token: &TokenId| progress.says_more(bytes_of(&self.environment, *token));
            (0..trie.vocab_size() as TokenId).filter(says_more).for_each(|token| allowed.remove(token));
        }
        Next::OneOf(allowed)
    }

    fn next_at_beginning(&mut self, end_ids: &[TokenId], is_early: bool) -> Result<Next, GuideError> {
        if self.matcher.is_none() {
            return Ok(self.next_of_thinking(end_ids, is_early));
        }
        let mut allowed = match self.is_answer {
            true => match self.next_of_answer(end_ids, is_early)? {
                Next::OneOf(allowed) => allowed,
                other => return Ok(other),
            },
            false => TokenSet::default(),
        };
        if let Some(progress) = &self.progress {
            let opens = |token: &TokenId| progress.may_open_with(bytes_of(&self.environment, *token));
            let num_tokens = self.environment.tok_trie().vocab_size() as TokenId;
            (0..num_tokens).filter(opens).for_each(|token| allowed.insert(token));
        }
        if allowed.is_empty() {
            let reason = "the model's vocabulary cannot say what begins its thinking".to_owned();
            return Err(GuideError::Stuck(reason));
        }
        Ok(Next::OneOf(allowed))
    }

    fn accept_of_answer(&mut self, token: TokenId) -> Result<bool, GuideError> {
        let Some(matcher) = &mut self.matcher else { return Ok(false) };
        matcher.consume_token(token).map_err(|error| GuideError::Stuck(reason(error)))?;
        Ok(matcher.is_stopped())
    }

    /// A token may be the answer's or the preamble's; the answer begins anew where the preamble did begin.
    fn accept_at_beginning(&mut self, token: TokenId) -> Result<bool, GuideError> {
        let Some(matcher) = &mut self.matcher else { return Ok(false) };
        let stuck = |error| GuideError::Stuck(reason(error));
        if self.is_answer {
            self.is_answer = matcher.validate_tokens(&[token]).map_err(stuck)? == 1;
            if self.is_answer {
                matcher.consume_token(token).map_err(stuck)?;
            }
        }
        let demand = self.progress.as_ref().map_or(Demand::None, Progress::demand);
        match demand {
            Demand::None if self.is_answer => Ok(matcher.is_stopped()),
            Demand::None => Err(GuideError::Stuck("what was chosen begins no answer".to_owned())),
            Demand::MayOpen => Ok(self.is_answer && matcher.is_stopped()),
            Demand::Free | Demand::Forced(_) => {
                matcher.reset().map_err(stuck)?;
                Ok(false)
            }
        }
    }
}

/// What a token says; a control token says its name.
fn bytes_of(environment: &TokEnv, token: TokenId) -> &[u8] {
    let bytes = environment.tok_trie().token(token);
    bytes.strip_prefix(&[TokTrie::SPECIAL_TOKEN_MARKER]).unwrap_or(bytes)
}
