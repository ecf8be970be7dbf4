//! One running request's answer: tokens in, final text out.
//!
//! Owns joining streaming decode and stop strings. When the model itself is at its end, and
//! everything about running it, is decided elsewhere.

use super::{StopMatcher, Stopped, StreamDecoder, TextError, Tokenizer};

/// An answer that grows token by token.
#[derive(Debug)]
pub struct Answer {
    decoder: StreamDecoder,
    matcher: StopMatcher,
    shown: AnswerText,
    text: String,
    /// Bytes of the text that were certain after each token.
    ends: Vec<usize>,
    /// Control tokens that the text shows.
    control: Vec<u32>,
    is_stopped: bool,
}

/// What is part of an answer's text; by default neither stops nor special tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AnswerText {
    /// Whether the stop string that ends an answer is part of it.
    pub includes_stop: bool,
    pub shows_special_tokens: bool,
    /// Stop strings are looked for only in what comes behind so many tokens.
    pub min_tokens: usize,
}

impl Answer {
    /// Begins an answer that ends at the first of the stop strings.
    pub fn new(tokenizer: &Tokenizer, stops: &[String], shown: AnswerText) -> Answer {
        Answer {
            decoder: StreamDecoder::new(tokenizer, shown.shows_special_tokens),
            matcher: StopMatcher::new(stops),
            shown,
            text: String::new(),
            ends: Vec::new(),
            control: Vec::new(),
            is_stopped: false,
        }
    }

    /// Takes the next token; `Some` when a stop string is complete and the request is to be
    /// stopped. Tokens that come after that, already under way, are ignored.
    pub fn push(&mut self, id: u32) -> Result<Option<Stopped>, TextError> {
        if self.is_stopped {
            return Ok(None);
        }
        if self.shown.shows_special_tokens && self.decoder.is_special(id) && !self.control.contains(&id) {
            self.control.push(id);
        }
        let text = self.decoder.push(id)?;
        let stopped = if self.ends.len() < self.shown.min_tokens {
            self.text.push_str(&text);
            None
        } else {
            self.take(&text)
        };
        self.ends.push(self.text.len());
        Ok(stopped)
    }

    /// Ends the answer: what was held back is added to the text, unless a stop string is found
    /// there at last.
    pub fn finish(&mut self) -> Result<Option<Stopped>, TextError> {
        if self.is_stopped {
            return Ok(None);
        }
        let text = self.decoder.finish()?;
        let stopped = self.take(&text);
        if stopped.is_none() {
            self.text.push_str(&self.matcher.finish());
            self.is_stopped = true;
        }
        Ok(stopped)
    }

    /// Returns the text that is certain; all of it once finished or stopped.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Consumes the answer and returns its text.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Returns how many tokens were taken, including those of the stop string.
    pub fn num_tokens(&self) -> usize {
        self.ends.len()
    }

    /// Returns how many tokens begin within the first so many bytes of the text.
    pub fn num_tokens_within(&self, num_bytes: usize) -> usize {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).filter(|(start, _)| *start < num_bytes).count()
    }

    /// Returns the names of the control tokens that the text shows.
    pub fn control_names(&self) -> Vec<String> {
        self.control.iter().filter_map(|id| self.decoder.name(*id)).collect()
    }

    fn take(&mut self, text: &str) -> Option<Stopped> {
        let (released, stopped) = self.matcher.push(text);
        self.text.push_str(&released);
        self.is_stopped = stopped.is_some();
        if let Some(stopped) = stopped.as_ref().filter(|_| self.shown.includes_stop) {
            self.text.push_str(&stopped.stop);
        }
        stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::testing::{byte_fallback, byte_level};

    #[test]
    fn an_answer_without_stops_is_the_decode_of_its_tokens() {
        let tokenizer = byte_level();
        let ids = tokenizer.encode("the 🦀 <|end|>the", false).expect("encodes");
        let mut answer = Answer::new(&tokenizer, &[], AnswerText::default());
        for id in &ids {
            assert_eq!(answer.push(*id).expect("decodes"), None);
        }
        assert_eq!(answer.finish().expect("decodes"), None);
        assert_eq!((answer.num_tokens(), answer.text()), (ids.len(), "the 🦀 the"));
    }

    #[test]
    fn a_stop_across_tokens_ends_it_and_later_tokens_are_ignored() {
        let tokenizer = byte_level();
        let mut answer = Answer::new(&tokenizer, &["🦀.".to_owned()], AnswerText::default());
        let ids = tokenizer.encode("a🦀b🦀.c", false).expect("encodes");
        let stops: Vec<bool> = ids.iter().map(|id| answer.push(*id).expect("decodes").is_some()).collect();
        assert_eq!(stops.iter().position(|stopped| *stopped), Some(10));
        assert_eq!(answer.finish().expect("decodes"), None);
        assert_eq!((answer.num_tokens(), answer.text()), (11, "a🦀b"));
        assert_eq!(answer.into_text(), "a🦀b");
    }

    /// Byte tokens are held until their run ends, so a stop string at the very end of an answer
    /// comes out only when it is finished.
    #[test]
    fn a_stop_in_the_last_held_text_is_found_at_the_end() {
        let tokenizer = byte_fallback();
        let mut answer = Answer::new(&tokenizer, &["🦀".to_owned()], AnswerText::default());
        for id in tokenizer.encode("ab🦀", false).expect("encodes") {
            assert_eq!(answer.push(id).expect("decodes"), None);
        }
        let stopped = answer.finish().expect("decodes").expect("the stop string is there");
        assert_eq!((stopped.stop.as_str(), answer.text()), ("🦀", "ab"));
    }

    #[test]
    fn stops_and_special_tokens_are_shown_where_that_is_asked_for() {
        let tokenizer = byte_level();
        let ids = tokenizer.encode("a<|end|>b🦀.c", false).expect("encodes");
        let text = |includes_stop, shows_special_tokens| {
            let shown = AnswerText { includes_stop, shows_special_tokens, min_tokens: 0 };
            let mut answer = Answer::new(&tokenizer, &["🦀".to_owned()], shown);
            ids.iter().for_each(|id| drop(answer.push(*id).expect("decodes")));
            answer.into_text()
        };
        assert_eq!([text(false, false), text(true, false)], ["ab", "ab🦀"]);
        assert_eq!([text(false, true), text(true, true)], ["a<|end|>b", "a<|end|>b🦀"]);
    }

    #[test]
    fn a_stop_among_the_least_tokens_is_none() {
        let tokenizer = byte_level();
        let ids = tokenizer.encode("abcabc", false).expect("encodes");
        let text = |min_tokens| {
            let shown = AnswerText { min_tokens, ..AnswerText::default() };
            let mut answer = Answer::new(&tokenizer, &["bc".to_owned()], shown);
            ids.iter().for_each(|id| drop(answer.push(*id).expect("decodes")));
            answer.finish().expect("decodes");
            answer.into_text()
        };
        assert_eq!([0, 1, 2, 4, 6].map(text), ["a", "a", "abca", "abca", "abcabc"]);
    }
}
