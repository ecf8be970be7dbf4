//! Streaming decode: the text of an answer, token by token, as soon as it is certain.
//!
//! Owns the promise that what has been given out never changes: no half characters, no space
//! that a later token would have moved, and in sum exactly the decode of all tokens at once.
//! Stop strings are `stop`'s business.

use super::bytes::{is_byte_fallback, push_token_bytes, take_certain};
use super::{TextError, Tokenizer};

/// A run of tokens that decode to no certain text is given out after this many, so that a
/// garbled answer cannot make each further token dearer than the one before.
const MAX_HELD_TOKENS: usize = 64;

/// Decodes one answer.
#[derive(Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    shows_special_tokens: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Every token is bytes by itself; these are the unfinished character's.
    Bytes(Vec<u8>),
    /// What a token decodes to depends on its neighbours.
    Window(Window),
}

/// The last tokens given out, which the next ones are decoded after, and those held back.
///
/// ```text
///     … given out and forgotten | context | held |
///                               tokens[..num_context]
/// ```
#[derive(Debug, Default)]
struct Window {
    tokens: Vec<u32>,
    num_context: usize,
    /// The text the context decodes to by itself.
    context_text: String,
}

impl StreamDecoder {
    /// Makes a decoder for a new answer.
    pub fn new(tokenizer: &Tokenizer, shows_special_tokens: bool) -> StreamDecoder {
        let state = match tokenizer.is_byte_level() {
            true => State::Bytes(Vec::new()),
            false => State::Window(Window::default()),
        };
        StreamDecoder { tokenizer: tokenizer.clone(), shows_special_tokens, state }
    }

    /// Whether this is a control token.
    pub fn is_special(&self, id: u32) -> bool {
        self.tokenizer.is_special(id)
    }

    /// The name of a token.
    pub fn name(&self, id: u32) -> Option<String> {
        self.tokenizer.token(id)
    }

    /// Takes the next token and returns the text that became certain, often none.
    ///
    /// Ids that no token has are left out, and special tokens where they do not show, as in
    /// [`Tokenizer::decode_with`].
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        // Left out here, or the window's context would be a token without text and a space that
        // the decoder strips from the front of a text would be stripped inside it.
        let is_shown = self.shows_special_tokens || !self.tokenizer.is_special(id);
        let Some(token) = self.tokenizer.token(id).filter(|_| is_shown) else {
            return Ok(String::new());
        };
        match &mut self.state {
            State::Bytes(bytes) => {
                push_token_bytes(&token, bytes);
                Ok(take_certain(bytes))
            }
            State::Window(_) if token.is_empty() => Ok(String::new()),
            State::Window(window) => {
                window.tokens.push(id);
                // A run of byte tokens is decoded as one: valid or all of it replaced.
                if is_byte_fallback(&token) {
                    return Ok(String::new());
                }
                window.take_text(&self.tokenizer, self.shows_special_tokens, false)
            }
        }
    }

    /// Ends the answer and returns the text held back; an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> Result<String, TextError> {
        match &mut self.state {
            State::Bytes(bytes) => Ok(String::from_utf8_lossy(&std::mem::take(bytes)).into_owned()),
            State::Window(window) => window.take_text(&self.tokenizer, self.shows_special_tokens, true),
        }
    }
}

impl Window {
    /// Decodes the window and gives out what the held tokens add to the context's text.
    fn take_text(
        &mut self,
        tokenizer: &Tokenizer,
        shows_special_tokens: bool,
        is_end: bool,
    ) -> Result<String, TextError> {
        let num_held = self.tokens.len() - self.num_context;
        if num_held == 0 {
            return Ok(String::new());
        }
        let text = tokenizer.decode_with(&self.tokens, shows_special_tokens)?;
        let is_certain =
            is_end || !text.ends_with(char::REPLACEMENT_CHARACTER) || num_held >= MAX_HELD_TOKENS;
        // Decoders that rewrite earlier text (WordPiece's clean-up) can make it shorter.
        let added = text.get(self.context_text.len()..).unwrap_or_default().to_owned();
        if !is_certain || (added.is_empty() && !is_end && num_held < MAX_HELD_TOKENS) {
            return Ok(String::new());
        }
        self.tokens.drain(..self.num_context);
        self.num_context = self.tokens.len();
        self.context_text = tokenizer.decode_with(&self.tokens, shows_special_tokens)?;
        Ok(added)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::testing::{byte_fallback, byte_level};

    /// Streams the tokens; returns the pieces, the last one from the end.
    fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
        stream_with(tokenizer, ids, false)
    }

    fn stream_with(tokenizer: &Tokenizer, ids: &[u32], shows_special_tokens: bool) -> Vec<String> {
        let mut decoder = StreamDecoder::new(tokenizer, shows_special_tokens);
        let mut pieces: Vec<String> = ids.iter().map(|id| decoder.push(*id).expect("decodes")).collect();
        pieces.push(decoder.finish().expect("decodes"));
        pieces
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let tokenizer = byte_level();
        let ids = tokenizer.encode("a🦀b", false).expect("encodes");
        assert_eq!(stream(&tokenizer, &ids), ["a", "", "", "", "🦀", "b", ""]);
        assert_eq!(stream(&tokenizer, &ids[..3]), ["a", "", "", "\u{fffd}"]);
    }

    #[test]
    fn byte_tokens_wait_for_the_end_of_their_run() {
        let tokenizer = byte_fallback();
        let ids = tokenizer.encode("a🦀b", false).expect("encodes");
        assert_eq!(stream(&tokenizer, &ids), ["a", "", "", "", "", "🦀b", ""]);
        assert_eq!(stream(&tokenizer, &ids[..5]).concat(), "a🦀");
        assert_eq!(stream(&tokenizer, &ids[..3]).concat(), "a\u{fffd}\u{fffd}");
    }

    /// The space in front of a whole text is stripped, the same space inside it is not; a window
    /// that starts after a special token would have stripped it there too.
    #[test]
    fn spaces_survive_special_tokens() {
        let tokenizer = byte_fallback();
        let id = |token: &str| tokenizer.token_id(token).expect("the token is there");
        let ids = [id("<s>"), id("▁a"), id("</s>"), id("▁a"), id("▁"), id("</s>"), id("b")];
        assert_eq!(stream(&tokenizer, &ids), ["", "a", "", " a", " ", "", "b", ""]);
        let spaces = [id("▁"), id("▁"), id("<s>"), id("▁a")];
        assert_eq!(stream(&tokenizer, &spaces).concat(), tokenizer.decode(&spaces).expect("decodes"));
    }

    /// A model that writes U+FFFD itself, or garbage, must not stall the stream.
    #[test]
    fn replacement_characters_do_not_pile_up() {
        let tokenizer = byte_fallback();
        let id = tokenizer.token_id("\u{fffd}").expect("the token is there");
        let pieces = stream(&tokenizer, &vec![id; 1000]);
        assert!(pieces.iter().all(|piece| piece.chars().count() <= MAX_HELD_TOKENS));
        assert_eq!(pieces.concat(), "\u{fffd}".repeat(1000));
    }

    fn check(tokenizer: &Tokenizer, ids: &[u32]) -> Result<(), TestCaseError> {
        let pieces = stream(tokenizer, ids);
        prop_assert_eq!(pieces.concat(), tokenizer.decode(ids).expect("decodes"));
        let pieces = stream_with(tokenizer, ids, true);
        prop_assert_eq!(pieces.concat(), tokenizer.decode_with(ids, true).expect("decodes"));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn texts_stream_to_themselves(text in "(\\PC|[a-c ]|🦀|é|\n){0,30}") {
            let tokenizer = byte_level();
            let ids = tokenizer.encode(&text, false).expect("encodes");
            let pieces = stream(&tokenizer, &ids);
            let num_broken = |text: &str| text.matches(char::REPLACEMENT_CHARACTER).count();
            prop_assert_eq!(pieces.iter().map(|piece| num_broken(piece)).sum::<usize>(), num_broken(&text));
            prop_assert_eq!(pieces.concat(), text);
        }

        /// Any tokens at all, as a model may choose them: special ones, broken characters, ids
        /// outside the vocabulary.
        #[test]
        fn any_tokens_stream_to_their_decode(ids in prop::collection::vec(
            prop_oneof![0..300u32, 240..=262u32, Just(3 + 0xf0), Just(3 + 0x9f)], 0..40)) {
            check(&byte_level(), &ids)?;
            check(&byte_fallback(), &ids)?;
        }
    }
}
