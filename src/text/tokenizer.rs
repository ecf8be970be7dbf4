//! The tokenizer: text to token ids and back.
//!
//! Owns loading it from a model folder and sharing it cheaply. Rebuilding one from GGUF metadata
//! is `gguf_tokenizer`'s, decoding a growing answer `stream`'s business.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokenizers::{DecoderWrapper, ModelWrapper};

use super::bytes::{byte_fallback, push_token_bytes};
use super::files::MAX_TOKENIZER_BYTES;
use super::tokenizer_config::TokenizerConfig;
use super::tokenizer_limits::{self, MAX_TOKEN_IDS};
use super::{TextError, bounds::Bound, gguf_tokenizer};
use crate::deep::{NotDone, PATIENCE, fingerprint, on_deep_stack};
use crate::guide::Vocabulary;
use crate::models::GgufHeader;
use crate::panics;
use crate::small_file;
use crate::threads::on_threads;

/// Stack for a splitting pattern, whose engine keeps its own.
const STACK_BYTES: usize = 4 << 20;

/// A mebibyte of text takes a second at the very most.
const PATIENCE_PER_MIB: Duration = Duration::from_secs(20);

/// Oniguruma gives up after ten million steps within one match, and the splitting patterns in
/// use take one for each character of a run of spaces.
const MAX_WHITESPACE_RUN: usize = 5_000_000;

/// Tokens of a vocabulary that a thread looks at together.
const TOKENS_A_TURN: usize = 1024;

/// Begin and end of a token in the text it was made from.
pub(super) type ByteRange = (usize, usize);

/// A model's tokenizer; clones share one copy.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    tokenizer: tokenizers::Tokenizer,
    special_ids: HashSet<u32>,
    num_vocab: usize,
    is_byte_level: bool,
    /// A token of plain text, if there is one: what others add to a text is seen behind it.
    anchor: Option<u32>,
    bound: Option<Bound>,
    /// The token that begins a text, if the model has one.
    bos: Option<(String, u32)>,
    warnings: Vec<String>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("num_vocab", &self.0.num_vocab).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads a folder's `tokenizer.json`, with what the files beside it say.
    pub fn from_folder(dir: &Path) -> Result<Tokenizer, TextError> {
        let path = dir.join("tokenizer.json");
        let json = match small_file::read(&path, MAX_TOKENIZER_BYTES) {
            Ok(json) => json,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(TextError::NoTokenizer { dir: dir.to_owned() });
            }
            Err(e) => return Err(TextError::io(&path, &e)),
        };
        let mut config = TokenizerConfig::read(dir)?;
        let mut tokenizer = load(&json, &path)?;
        contained(|| Ok(config.apply(&mut tokenizer))).map_err(|e| TextError::tokenizer(&path, e))??;
        let bos = config.special_tokens().get("bos_token").and_then(Value::as_str).map(str::to_owned);
        Tokenizer::new(tokenizer, &path, bos.as_deref(), config.into_warnings())
    }

    /// Rebuilds the tokenizer that a GGUF file's metadata describe.
    pub fn from_gguf(header: &GgufHeader) -> Result<Tokenizer, TextError> {
        let json = serde_json::to_vec(&gguf_tokenizer::tokenizer_json(header)?)
            .map_err(|e| TextError::tokenizer(header.path(), e))?;
        let bos = gguf_tokenizer::bos(header);
        Tokenizer::new(load(&json, header.path())?, header.path(), bos, Vec::new())
    }

    /// Loads the text of a `tokenizer.json`; `path` is for error messages.
    #[cfg(test)]
    pub(super) fn from_json(json: &[u8], path: &Path) -> Result<Tokenizer, TextError> {
        Tokenizer::new(load(json, path)?, path, None, Vec::new())
    }

    fn new(
        tokenizer: tokenizers::Tokenizer,
        path: &Path,
        bos: Option<&str>,
        warnings: Vec<String>,
    ) -> Result<Tokenizer, TextError> {
        let special_ids = tokenizer
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| tokenizer.get_added_vocabulary().is_special_token(&token.content))
            .map(|(id, _)| *id)
            .collect();
        let num_vocab = tokenizer.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        if num_vocab > MAX_TOKEN_IDS {
            let problem = format!("a token has id {}; ids are below {MAX_TOKEN_IDS}", num_vocab - 1);
            return Err(TextError::tokenizer(path, problem));
        }
        let is_byte_level = match tokenizer.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => true,
            Some(DecoderWrapper::Sequence(steps)) => {
                matches!(steps.get_decoders(), [DecoderWrapper::ByteLevel(_)])
            }
            _ => false,
        };
        let bos = bos.and_then(|text| Some((text.to_owned(), tokenizer.token_to_id(text)?)));
        let bound = Bound::of(&tokenizer);
        let anchor = ["a", "▁a", "the", "▁the"].iter().find_map(|token| tokenizer.token_to_id(token));
        Ok(Tokenizer(Arc::new(Inner {
            tokenizer,
            special_ids,
            num_vocab,
            is_byte_level,
            anchor,
            bound,
            bos,
            warnings,
        })))
    }

    /// Turns text into token ids.
    ///
    /// `add_special_tokens` lets the tokenizer put its own tokens around the text, usually a BOS
    /// in front: right for raw prompts, wrong for rendered chat templates, which write their own.
    /// A text that begins with the BOS token is taken to have all of them, as mlx-lm does.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TextError> {
        self.encoding(text, add_special_tokens, false).map(|encoding| encoding.get_ids().to_vec())
    }

    /// Turns text into the same token ids, and into the range of bytes that each comes from.
    /// Pieces of one character have that character's range, spaces at a token's ends may be left
    /// out of its, and tokens that are put around the text have an empty one.
    pub(super) fn encode_with_ranges(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<(Vec<u32>, Vec<ByteRange>), TextError> {
        let encoding = self.encoding(text, add_special_tokens, true)?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
    }

    /// Returns how many tokens a text has at least, told from its length; 0 where that is not known.
    pub fn min_tokens(&self, text: &str) -> usize {
        self.0.bound.as_ref().map_or(0, |bound| bound.min_tokens(text))
    }

    fn encoding(
        &self,
        text: &str,
        add_special_tokens: bool,
        with_ranges: bool,
    ) -> Result<tokenizers::Encoding, TextError> {
        let patience = PATIENCE + PATIENCE_PER_MIB * u32::try_from(text.len() >> 20).unwrap_or(u32::MAX);
        self.encoding_within(patience, text, add_special_tokens, with_ranges)
    }

    fn encoding_within(
        &self,
        patience: Duration,
        text: &str,
        add_special_tokens: bool,
        with_ranges: bool,
    ) -> Result<tokenizers::Encoding, TextError> {
        check_whitespace(text)?;
        let (tokenizer, text) = (Arc::clone(&self.0), text.to_owned());
        let encoded = on_deep_stack(STACK_BYTES, patience, fingerprint(&text), move || {
            tokenizer.encoding(&text, add_special_tokens, with_ranges)
        });
        encoded.unwrap_or_else(|why| {
            Err(match why {
                NotDone::TooLong(patience) => TextError::Encode(format!(
                    "that has not ended within {:.0} seconds: the tokenizer's own steps, or the pattern that it \
                     splits texts by, take no end on this one; shorten it, or its runs of one character",
                    patience.as_secs_f32()
                )),
                NotDone::NotBegun(reason) => TextError::Encode(reason),
                NotDone::Panicked => TextError::Encode("the tokenizer gave up".to_owned()),
                NotDone::NoThread { stack_bytes, reason } => TextError::NoThread { stack_bytes, reason },
            })
        })
    }

    /// Turns token ids into text, leaving out special tokens and ids that no token has.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        self.decode_with(ids, false)
    }

    /// Does the same, with or without special tokens.
    pub fn decode_with(&self, ids: &[u32], shows_special_tokens: bool) -> Result<String, TextError> {
        contained(|| self.0.tokenizer.decode(ids, !shows_special_tokens)).map_err(TextError::Decode)
    }

    /// Returns what is to be said about settings of the model's files that are not acted on.
    pub fn warnings(&self) -> &[String] {
        &self.0.warnings
    }

    /// Returns one more than the largest token id.
    pub fn num_vocab(&self) -> usize {
        self.0.num_vocab
    }

    /// Returns the id of a token given by its exact text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.0.tokenizer.token_to_id(token)
    }

    /// Returns the token of an id as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.0.tokenizer.id_to_token(id)
    }

    /// Whether the token is a control token that never shows in text.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.special_ids.contains(&id)
    }

    /// Returns the bytes that a token adds to a text, not always whole characters; a special token's are its
    /// name. Nothing of an id that no token has.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.token(id) else { return Vec::new() };
        if self.is_special(id) {
            return token.into_bytes();
        }
        if let Some(byte) = byte_fallback(&token) {
            return vec![byte];
        }
        if self.is_byte_level() {
            let mut bytes = Vec::new();
            push_token_bytes(&token, &mut bytes);
            return bytes;
        }
        // By itself a token loses what decoders strip from the front of a text.
        let decoded = |ids: &[u32]| self.decode(ids).unwrap_or_default();
        let anchor = self.0.anchor.as_slice();
        let with_anchor = decoded(&[anchor, &[id]].concat());
        match with_anchor.strip_prefix(decoded(anchor).as_str()) {
            Some(text) => text.as_bytes().to_vec(),
            None => decoded(&[id]).into_bytes(),
        }
    }

    /// Returns what each token adds to a text, for constraints to be matched against; those of `end_ids` end
    /// an answer. Done on all cores: a large vocabulary takes seconds on one.
    pub fn vocabulary(&self, end_ids: &[u32]) -> Vocabulary {
        let num_tokens = self.num_vocab();
        let next = AtomicUsize::new(0);
        let parts = on_threads(num_tokens.div_ceil(TOKENS_A_TURN), || {
            let mut parts = Vec::new();
            loop {
                let first = next.fetch_add(TOKENS_A_TURN, Ordering::Relaxed);
                if first >= num_tokens {
                    return parts;
                }
                let last = num_tokens.min(first + TOKENS_A_TURN);
                parts.push((first, (first..last).map(|id| self.guided_bytes(id as u32)).collect::<Vec<_>>()));
            }
        });
        let mut parts: Vec<_> = parts.into_iter().flatten().collect();
        parts.sort_unstable_by_key(|(first, _)| *first);
        Vocabulary {
            tokens: parts.into_iter().flat_map(|(_, tokens)| tokens).collect(),
            end_ids: end_ids.to_vec(),
            drops_first_space: self.drops_first_space(),
        }
    }

    /// The bytes that a token adds, or its name where no text has it.
    fn guided_bytes(&self, id: u32) -> Vec<u8> {
        if self.is_special(id) {
            Vocabulary::control(&self.token(id).unwrap_or_default())
        } else {
            self.token_bytes(id)
        }
    }

    /// Whether the space that a text's first token begins with is left out of it.
    fn drops_first_space(&self) -> bool {
        let spaced = ["▁a", "▁the"].iter().find_map(|token| self.token_id(token));
        spaced.is_some_and(|id| self.decode(&[id]).is_ok_and(|text| !text.starts_with(' ')))
    }

    /// Whether tokens are bytes in GPT-2's disguise, so that each decodes on its own.
    pub(super) fn is_byte_level(&self) -> bool {
        self.0.is_byte_level
    }
}

impl Inner {
    fn encoding(
        &self,
        text: &str,
        add_special_tokens: bool,
        with_ranges: bool,
    ) -> Result<tokenizers::Encoding, TextError> {
        let tokenizer = &self.tokenizer;
        let encode = |add_special_tokens: bool| {
            contained(|| match with_ranges {
                true => tokenizer.encode(text, add_special_tokens),
                false => tokenizer.encode_fast(text, add_special_tokens),
            })
            .map_err(TextError::Encode)
        };
        if let Some((bos, bos_id)) = self.bos.as_ref().filter(|_| add_special_tokens)
            && text.starts_with(bos.as_str())
        {
            let as_written = encode(false)?;
            // Where special tokens are split, its text is not the token.
            if as_written.get_ids().first() == Some(bos_id) {
                return Ok(as_written);
            }
        }
        encode(add_special_tokens)
    }
}

/// Loads the text of a `tokenizer.json` without leftovers of training.
fn load(json: &[u8], path: &Path) -> Result<tokenizers::Tokenizer, TextError> {
    tokenizer_limits::check(json).map_err(|problem| TextError::tokenizer(path, problem))?;
    let mut tokenizer = contained(|| tokenizers::Tokenizer::from_bytes(json))
        .map_err(|message| TextError::tokenizer(path, message))?;
    // Prompts are neither cut nor padded.
    tokenizer.with_truncation(None).map_err(|e| TextError::tokenizer(path, e))?;
    tokenizer.with_padding(None);
    // Nor are merges left out by chance.
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        tokenizer.with_model(bpe);
    }
    Ok(tokenizer)
}

/// Runs code of the tokenizers crate, which panics on some damaged files, and where a splitting
/// pattern, which comes with the model, takes too many steps on a text, which comes with a request.
fn contained<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    // Nothing of ours is half-changed when it unwinds: the closures only read.
    match panics::contained(run) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(message) => Err(format!("the tokenizer gave up ({message})")),
    }
}

fn check_whitespace(text: &str) -> Result<(), TextError> {
    if has_long_whitespace_run(text) {
        return Err(TextError::Encode(format!(
            "it has more than {MAX_WHITESPACE_RUN} spaces in a row: shorten it"
        )));
    }
    Ok(())
}

fn has_long_whitespace_run(text: &str) -> bool {
    text.len() > MAX_WHITESPACE_RUN
        && text.split(|c: char| !c.is_whitespace()).any(|run| run.chars().count() > MAX_WHITESPACE_RUN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_broken_tokenizer_says_which_file() {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let error = Tokenizer::from_folder(dir.path()).expect_err("nothing there");
        assert!(matches!(error, TextError::NoTokenizer { .. }), "{error}");
        std::fs::write(dir.path().join("tokenizer.json"), "{\"version\": \"1.0\"").expect("written");
        let error = Tokenizer::from_folder(dir.path()).expect_err("broken").to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
    }

    /// Pieces of characters have their bytes, special tokens their name, and no piece loses its space.
    #[test]
    fn tokens_bytes_make_up_the_text() {
        use crate::text::testing::{byte_fallback, byte_level};
        for tokenizer in [byte_level(), byte_fallback()] {
            let bytes = |text: &str| -> Vec<u8> {
                let ids = tokenizer.encode(text, false).expect("encodes");
                ids.iter().flat_map(|id| tokenizer.token_bytes(*id)).collect()
            };
            let found = String::from_utf8(bytes("ab a 🦀b")).expect("whole characters");
            assert_eq!(found.trim_start(), "ab a 🦀b");
        }
        let tokenizer = byte_level();
        let end = tokenizer.token_id("<|end|>").expect("the token is there");
        assert_eq!(
            (tokenizer.token_bytes(end), tokenizer.token_bytes(9999)),
            (b"<|end|>".to_vec(), Vec::new())
        );
        let space = byte_fallback().token_id("▁a").expect("the token is there");
        assert_eq!(byte_fallback().token_bytes(space), b" a");
    }

    /// Constraints are matched against these bytes: what they spell is what an answer's text is.
    #[test]
    fn the_vocabulary_spells_texts_and_tells_control_tokens() {
        use crate::text::testing::{byte_fallback, byte_level};
        for (tokenizer, end, drops_first_space) in
            [(byte_level(), "<|end|>", false), (byte_fallback(), "</s>", true)]
        {
            let end_id = tokenizer.token_id(end).expect("the token is there");
            let vocabulary = tokenizer.vocabulary(&[end_id]);
            assert_eq!(
                (vocabulary.tokens.len(), &vocabulary.end_ids),
                (tokenizer.num_vocab(), &vec![end_id])
            );
            assert_eq!(vocabulary.drops_first_space, drops_first_space);
            assert_eq!(vocabulary.tokens[end_id as usize], Vocabulary::control(end));
            let ids = tokenizer.encode("a the 🦀", false).expect("encodes");
            let spelt: Vec<u8> = ids.iter().flat_map(|id| vocabulary.tokens[*id as usize].clone()).collect();
            let text = String::from_utf8(spelt).expect("whole characters");
            assert_eq!(&text[usize::from(drops_first_space)..], tokenizer.decode(&ids).expect("decodes"));
        }
    }

    #[test]
    fn special_tokens_are_found_and_left_out_of_text() {
        let tokenizer = crate::text::testing::byte_level();
        let id = tokenizer.token_id("<|end|>").expect("the special token is there");
        assert!(tokenizer.is_special(id));
        assert_eq!(tokenizer.token(id).as_deref(), Some("<|end|>"));
        assert_eq!(tokenizer.num_vocab(), id as usize + 2);
        let mut ids = tokenizer.encode("héllo<|end|> you", false).expect("encodes");
        assert!(ids.contains(&id));
        ids.push(9_999_999);
        assert_eq!(tokenizer.decode(&ids).expect("decodes"), "héllo you");
    }

    /// A tokenizer.json saved after training may ask for truncation to the training length and
    /// padding to it; taking that literally would silently cut prompts.
    #[test]
    fn truncation_and_padding_of_the_file_are_ignored() {
        let mut json = crate::text::testing::byte_level_json();
        json["truncation"] = serde_json::json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = serde_json::json!({"strategy": {"Fixed": 64}, "direction": "Right",
            "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
        let tokenizer =
            Tokenizer::from_json(json.to_string().as_bytes(), Path::new("t.json")).expect("loads");
        let ids = tokenizer.encode("abcdef", false).expect("encodes");
        assert_eq!(tokenizer.decode(&ids).expect("decodes"), "abcdef");
        assert_eq!(ids.len(), 6);
    }

    /// A merge shorter than the model's `continuing_subword_prefix`, or a post-processor that names a
    /// token it does not define, made the tokenizers crate panic.
    #[test]
    fn a_damaged_file_is_an_error_and_no_panic() {
        let load =
            |json: &serde_json::Value| Tokenizer::from_json(json.to_string().as_bytes(), Path::new("t.json"));
        let mut json = crate::text::testing::byte_level_json();
        json["model"]["continuing_subword_prefix"] = "a longer prefix".into();
        let error = load(&json).expect_err("no merge has that prefix").to_string();
        assert!(error.contains("t.json") && error.contains("gave up"), "{error}");

        let mut json = crate::text::testing::byte_level_json();
        json["post_processor"] = serde_json::json!({"type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "none", "type_id": 0}}], "special_tokens": {}});
        let error = load(&json).expect("loads").encode("th", true).expect_err("no such token");
        assert!(error.to_string().contains("gave up"), "{error}");
    }

    /// Twelve million spaces made the regex engine give up, and the tokenizers crate panic.
    #[test]
    fn long_runs_of_spaces_are_refused_not_fatal() {
        let tokenizer = crate::text::testing::byte_level();
        let error = tokenizer.encode(&" ".repeat(MAX_WHITESPACE_RUN + 1), false).expect_err("too long a run");
        assert!(error.to_string().contains("spaces in a row"), "{error}");
        assert!(tokenizer.encode(&" a".repeat(1000), false).is_ok());
    }

    /// Each word alone is within the engine's limits, and all of them took minutes.
    #[test]
    fn a_pattern_that_takes_its_time_on_every_word_is_waited_for_so_long() {
        let mut json = crate::text::testing::byte_level_json();
        json["pre_tokenizer"] = serde_json::json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": false},
            json["pre_tokenizer"].clone()]});
        let tokenizer =
            Tokenizer::from_json(json.to_string().as_bytes(), Path::new("t.json")).expect("loads");
        let text = format!("{} ", "a".repeat(20)).repeat(60);
        let error = tokenizer.encoding_within(Duration::from_millis(1), &text, false, false);
        let error = error.expect_err("it takes seconds").to_string();
        assert!(error.contains("has not ended within") && error.contains("pattern"), "{error}");
        assert_eq!(tokenizer.encode("th", false).expect("still usable"), [256]);
    }

    /// The same with any pattern: one that takes exponential time on this text.
    #[test]
    fn a_pattern_that_gives_up_is_an_error() {
        let mut json = crate::text::testing::byte_level_json();
        json["pre_tokenizer"] = serde_json::json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": false},
            json["pre_tokenizer"].clone()]});
        let tokenizer =
            Tokenizer::from_json(json.to_string().as_bytes(), Path::new("t.json")).expect("loads");
        let error = tokenizer.encode(&"a".repeat(60), false).expect_err("it gives up").to_string();
        assert!(error.contains("gave up"), "{error}");
        assert_eq!(tokenizer.encode("th", false).expect("still usable"), [256]);
    }
}
