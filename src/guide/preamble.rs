//! What may come before what an answer is held to: thinking, which nothing constrains but its length.
//!
//! Owns where it begins and ends, by the bytes of the tokens: marks need be no tokens of their own. Which marks
//! a model has is `text/`'s to say, what comes behind it `following`'s business.

use std::sync::Arc;

use crate::cache::TokenId;

/// Thinking in front of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preamble {
    /// What begins it; an answer that begins otherwise has none.
    pub open: String,
    /// Whether the answer is within it from its first token on.
    pub is_open: bool,
    /// What ends it.
    pub close: String,
    /// How many tokens it may have; no bound where absent.
    pub max_tokens: Option<usize>,
    /// The tokens that close it when it has so many.
    pub forced_close: Arc<[TokenId]>,
}

/// Where an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At its beginning, with so many bytes of `open`.
    Before {
        num_matched: usize,
    },
    /// Within, with so many bytes of `close`.
    Within {
        num_tokens: usize,
        num_matched: usize,
    },
    /// So many of the closing tokens are there.
    Closing {
        num_forced: usize,
    },
    Behind,
}

/// An answer on its way through it.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    preamble: Arc<Preamble>,
    place: Place,
}

/// What the preamble says of the next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Demand {
    /// It may begin the preamble, or what comes behind it.
    MayOpen,
    /// It is part of the preamble.
    Free,
    /// It is this one.
    Forced(TokenId),
    /// It is behind the preamble.
    None,
}

impl Progress {
    pub(super) fn new(preamble: &Arc<Preamble>) -> Self {
        let place = match preamble.is_open {
            true => Place::Within { num_tokens: 0, num_matched: 0 },
            false => Place::Before { num_matched: 0 },
        };
        let mut progress = Self { preamble: Arc::clone(preamble), place };
        progress.close_if_due();
        progress
    }

    pub(super) fn demand(&self) -> Demand {
        match self.place {
            Place::Before { .. } => Demand::MayOpen,
            Place::Within { .. } => Demand::Free,
            Place::Closing { num_forced } => match self.preamble.forced_close.get(num_forced) {
                Some(token) => Demand::Forced(*token),
                None => Demand::None,
            },
            Place::Behind => Demand::None,
        }
    }

    /// Whether a token of these bytes goes on with what begins the preamble.
    pub(super) fn may_open_with(&self, bytes: &[u8]) -> bool {
        let Place::Before { num_matched } = self.place else { return false };
        let left = &self.preamble.open.as_bytes()[num_matched..];
        !bytes.is_empty() && (left.starts_with(bytes) || bytes.starts_with(left))
    }

    /// Whether part of what ends the preamble is there, so that a token may reach over its end.
    pub(super) fn is_closing(&self) -> bool {
        matches!(self.place, Place::Within { num_matched: 1.., .. })
    }

    /// Whether a token of these bytes ends the preamble and says more.
    pub(super) fn says_more(&self, bytes: &[u8]) -> bool {
        let Place::Within { mut num_matched, .. } = self.place else { return false };
        let close = self.preamble.close.as_bytes();
        for (place, byte) in bytes.iter().enumerate() {
            num_matched = matched(close, num_matched, *byte);
            if num_matched == close.len() {
                return !bytes[place + 1..].iter().all(u8::is_ascii_whitespace);
            }
        }
        false
    }

    /// Takes a token.
    pub(super) fn accept(&mut self, bytes: &[u8]) {
        match self.place {
            Place::Before { num_matched } => {
                let left = &self.preamble.open.as_bytes()[num_matched..];
                // Layout in front of it.
                if num_matched == 0 && !bytes.is_empty() && bytes.iter().all(u8::is_ascii_whitespace) {
                    return;
                }
                self.place = if bytes.starts_with(left) {
                    let behind = left.len();
                    self.place = Place::Within { num_tokens: 0, num_matched: 0 };
                    self.take_within(&bytes[behind..]);
                    self.place
                } else if left.starts_with(bytes) {
                    Place::Before { num_matched: num_matched + bytes.len() }
                } else {
                    Place::Behind
                };
            }
            Place::Within { num_tokens, num_matched } => {
                self.place = Place::Within { num_tokens: num_tokens + 1, num_matched };
                self.take_within(bytes);
            }
            Place::Closing { num_forced } => {
                let is_last = num_forced + 1 >= self.preamble.forced_close.len();
                self.place =
                    if is_last { Place::Behind } else { Place::Closing { num_forced: num_forced + 1 } };
            }
            Place::Behind => {}
        }
        self.close_if_due();
    }

    fn take_within(&mut self, bytes: &[u8]) {
        let Place::Within { num_matched, .. } = &mut self.place else { return };
        let close = self.preamble.close.as_bytes();
        for byte in bytes {
            *num_matched = matched(close, *num_matched, *byte);
            if *num_matched == close.len() {
                self.place = Place::Behind;
                return;
            }
        }
    }

    fn close_if_due(&mut self) {
        let Place::Within { num_tokens, .. } = self.place else { return };
        if self.preamble.max_tokens.is_some_and(|max| num_tokens >= max) {
            self.place = match self.preamble.forced_close.is_empty() {
                true => Place::Behind,
                false => Place::Closing { num_forced: 0 },
            };
        }
    }
}

/// How many bytes of a mark a text ends with, once this byte is there and so many were.
fn matched(mark: &[u8], num_matched: usize, byte: u8) -> usize {
    // Marks are short: what is there is looked through anew.
    let so_far = [&mark[..num_matched], &[byte]].concat();
    (0..=so_far.len()).rev().find(|length| so_far.ends_with(&mark[..*length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preamble(is_open: bool, max_tokens: Option<usize>) -> Progress {
        Progress::new(&Arc::new(Preamble {
            open: "<think>".into(),
            is_open,
            close: "</think>".into(),
            max_tokens,
            forced_close: Arc::from([7, 8]),
        }))
    }

    /// What is demanded after each of the tokens, in one letter each.
    fn demands(mut progress: Progress, tokens: &[&str]) -> String {
        let letter = |progress: &Progress| match progress.demand() {
            Demand::MayOpen => 'o',
            Demand::Free => 'f',
            Demand::Forced(token) => char::from_digit(token, 10).unwrap_or('?'),
            Demand::None => '-',
        };
        let mut letters = letter(&progress).to_string();
        for token in tokens {
            progress.accept(token.as_bytes());
            letters.push(letter(&progress));
        }
        letters
    }

    #[test]
    fn it_begins_and_ends_with_its_marks_however_they_are_split() {
        assert_eq!(demands(preamble(false, None), &["<think>", "a", "</think>", "{"]), "off--");
        assert_eq!(
            demands(preamble(false, None), &["<th", "ink>\n", "a.</", "thin", "k>\n", "{"]),
            "oofff--"
        );
        assert_eq!(demands(preamble(true, None), &["a", "<", "</", "<", "/think>", "x"]), "fffff--");
        assert_eq!(demands(preamble(false, None), &["{", "<think>"]), "o--");
        assert_eq!(demands(preamble(false, None), &["<t", "ag>"]), "oo-");
        assert_eq!(demands(preamble(false, None), &["\n", "<think>"]), "oof");
    }

    #[test]
    fn it_is_closed_when_it_has_its_tokens() {
        assert_eq!(demands(preamble(true, Some(2)), &["a", "b", "\n", "</think>", "x"]), "ff78--");
        assert_eq!(demands(preamble(true, Some(0)), &["\n", "</think>"]), "78-");
        assert_eq!(demands(preamble(false, Some(0)), &["<think>", "\n", "</think>"]), "o78-");
        assert_eq!(demands(preamble(false, Some(1)), &["x", "y"]), "o--");
        assert_eq!(demands(preamble(true, Some(3)), &["a", "</think>", "b", "c", "d"]), "ff----");
    }

    #[test]
    fn a_token_that_reaches_over_the_end_is_told() {
        let mut progress = preamble(true, None);
        progress.accept(b"</think");
        assert!(progress.is_closing());
        assert!(progress.says_more(b">{") && !progress.says_more(b">") && !progress.says_more(b">\n\n"));
        assert!(!progress.says_more(b"x"));
    }
}
