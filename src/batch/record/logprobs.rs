//! Log-probabilities as clients read them: the chat shape, the completions shape and vLLM's for prompts.
//!
//! Owns these three shapes, how a token that is no whole character is written, and where a token stands in
//! its choice's text. Which tokens are told of, and what of them, is decided above.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::batch::request::Form;

/// The least that is told: JSON has no infinity. vLLM's number.
const MIN_LOG_PROBABILITY: f32 = -9999.0;

/// A token and what it says.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub id: u32,
    /// Not always whole characters.
    pub bytes: Vec<u8>,
}

/// How probable a token was.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    pub log_probability: f32,
    /// 1 is the most probable token.
    pub rank: u32,
    /// The most probable tokens, those first.
    pub top: Vec<(Token, f32)>,
}

/// A token of a choice's text.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    pub token: Token,
    /// Nothing of a prompt's token that was not asked for or that nothing comes before.
    pub scored: Option<Scored>,
}

/// The `logprobs` of a choice with this text.
pub(super) fn logprobs(form: Form, text: &str, tokens: &[TokenLogprob]) -> Value {
    match form {
        Form::Chat => json!({"content": tokens.iter().map(chat_entry).collect::<Vec<_>>(), "refusal": null}),
        Form::Text => completions_shape(text, tokens),
    }
}

/// vLLM's `prompt_logprobs`: by token id, the prompt's own token first.
pub(super) fn prompt_logprobs(tokens: &[TokenLogprob]) -> Value {
    let entry = |entry: &TokenLogprob| {
        let Some(scored) = &entry.scored else { return Value::Null };
        let own = (&entry.token, scored.log_probability, scored.rank);
        let top = scored.top.iter().zip(1..).map(|((token, number), rank)| (token, *number, rank));
        let mut fields = Map::new();
        for (token, number, rank) in std::iter::once(own).chain(top) {
            let fields_of = || {
                let text = String::from_utf8_lossy(&token.bytes);
                json!({"logprob": told(number), "rank": rank, "decoded_token": text})
            };
            fields.entry(token.id.to_string()).or_insert_with(fields_of);
        }
        Value::Object(fields)
    };
    Value::Array(tokens.iter().map(entry).collect())
}

#[derive(Serialize)]
struct ChatToken<'a> {
    token: String,
    logprob: f32,
    bytes: &'a [u8],
}

impl<'a> ChatToken<'a> {
    fn new(token: &'a Token, log_probability: f32) -> Self {
        let text = String::from_utf8_lossy(&token.bytes).into_owned();
        Self { token: text, logprob: told(log_probability), bytes: &token.bytes }
    }
}

fn chat_entry(entry: &TokenLogprob) -> Value {
    let log_probability = entry.scored.as_ref().map_or(MIN_LOG_PROBABILITY, |scored| scored.log_probability);
    let top = entry.scored.iter().flat_map(|scored| &scored.top);
    let top: Vec<ChatToken> = top.map(|(token, number)| ChatToken::new(token, *number)).collect();
    let ChatToken { token, logprob, bytes } = ChatToken::new(&entry.token, log_probability);
    json!({"token": token, "logprob": logprob, "bytes": bytes, "top_logprobs": top})
}

fn completions_shape(text: &str, tokens: &[TokenLogprob]) -> Value {
    let mut offsets = Offsets { text, num_bytes: 0 };
    let mut names = Vec::with_capacity(tokens.len());
    let mut numbers = Vec::with_capacity(tokens.len());
    let mut tops = Vec::with_capacity(tokens.len());
    let mut places = Vec::with_capacity(tokens.len());
    for TokenLogprob { token, scored } in tokens {
        names.push(name_of(&token.bytes));
        numbers.push(scored.as_ref().map(|scored| told(scored.log_probability)));
        tops.push(scored.as_ref().map(|scored| {
            // The chosen token is among them, also where it is none of the most probable.
            let own = (token, scored.log_probability);
            let mut top: Map<String, Value> = Map::new();
            for (token, number) in scored.top.iter().map(|(token, number)| (token, *number)).chain([own]) {
                top.entry(name_of(&token.bytes)).or_insert_with(|| json!(told(number)));
            }
            top
        }));
        places.push(offsets.of(&token.bytes));
    }
    json!({"tokens": names, "token_logprobs": numbers, "top_logprobs": tops, "text_offset": places})
}

/// OpenAI's way to write a token that is no text by itself: `bytes:\xf0\x9f`.
fn name_of(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |name, byte| name + &format!("\\x{byte:02x}")),
    }
}

fn told(log_probability: f32) -> f32 {
    log_probability.max(MIN_LOG_PROBABILITY)
}

/// Where tokens stand in a text that they make up, in characters. Those that do not show, such as special
/// tokens, stand where the next one does.
struct Offsets<'a> {
    text: &'a str,
    num_bytes: usize,
}

impl Offsets<'_> {
    fn of(&mut self, token: &[u8]) -> usize {
        let mut rest = &self.text.as_bytes()[self.num_bytes..];
        // Bytes that were no character.
        while !rest.starts_with(token) && rest.starts_with("\u{fffd}".as_bytes()) {
            rest = &rest["\u{fffd}".len()..];
        }
        // A text's first space is not always written.
        let unspaced = token.strip_prefix(b" ").filter(|_| self.num_bytes == 0).unwrap_or(token);
        let shown = if rest.starts_with(token) { token } else { unspaced };
        let is_shown = rest.starts_with(shown);
        if is_shown {
            self.num_bytes = self.text.len() - rest.len();
        }
        let start = self.num_bytes;
        if is_shown {
            self.num_bytes += shown.len();
        }
        // A token that begins within a character stands where that does.
        let bytes = self.text.as_bytes();
        let is_start = |byte: &&u8| **byte & 0xc0 != 0x80;
        let num_started = bytes[..start].iter().filter(is_start).count();
        let is_within = bytes.get(start).is_some_and(|byte| !is_start(&byte));
        num_started - usize::from(is_within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(bytes: &[u8]) -> Token {
        Token { id: bytes.iter().map(|byte| u32::from(*byte)).sum(), bytes: bytes.to_vec() }
    }

    fn scored(bytes: &[u8], log_probability: f32, top: &[(&[u8], f32)]) -> TokenLogprob {
        let top = top.iter().map(|(bytes, number)| (token(bytes), *number)).collect();
        TokenLogprob { token: token(bytes), scored: Some(Scored { log_probability, rank: 2, top }) }
    }

    #[test]
    fn a_chat_tells_of_each_token_its_bytes_and_what_else_was_likely() {
        let tokens = [
            scored(b"Hi", -0.5, &[(b"Hi", -0.5), (b"\xf0\x9f", -2.0)]),
            scored(b"!", f32::NEG_INFINITY, &[]),
        ];
        assert_eq!(
            logprobs(Form::Chat, "Hi!", &tokens),
            json!({"refusal": null, "content": [
                {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": [
                    {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]},
                    {"token": "\u{fffd}", "logprob": -2.0, "bytes": [240, 159]},
                ]},
                {"token": "!", "logprob": -9999.0, "bytes": [33], "top_logprobs": []},
            ]})
        );
    }

    #[test]
    fn a_completion_tells_it_in_four_lists_with_the_chosen_token_in_the_third() {
        let first = TokenLogprob { token: token(b"<s>"), scored: None };
        let tokens = [
            first,
            scored(b"a", -3.0, &[(b"b", -0.5)]),
            scored(b"\xf0\x9f", -1.0, &[(b"\xf0\x9f", -1.0)]),
            scored(b"\xa6\x80", -1.5, &[]),
            scored(b"c", -2.0, &[]),
            scored(b"</s>", -2.5, &[]),
        ];
        assert_eq!(
            logprobs(Form::Text, "a🦀c", &tokens),
            json!({
                "tokens": ["<s>", "a", "bytes:\\xf0\\x9f", "bytes:\\xa6\\x80", "c", "</s>"],
                "token_logprobs": [null, -3.0, -1.0, -1.5, -2.0, -2.5],
                "top_logprobs": [null, {"b": -0.5, "a": -3.0}, {"bytes:\\xf0\\x9f": -1.0},
                                 {"bytes:\\xa6\\x80": -1.5}, {"c": -2.0}, {"</s>": -2.5}],
                "text_offset": [0, 0, 1, 1, 2, 3],
            })
        );
    }

    #[test]
    fn offsets_are_found_behind_lost_spaces_and_broken_characters() {
        let offsets = |text: &str, tokens: &[&[u8]]| {
            let tokens: Vec<_> = tokens.iter().map(|bytes| scored(bytes, 0.0, &[])).collect();
            logprobs(Form::Text, text, &tokens)["text_offset"].clone()
        };
        assert_eq!(offsets("ab c", &[b" a", b"b", b" c"]), json!([0, 1, 2]));
        assert_eq!(offsets("a\u{fffd}b", &[b"a", b"\xf0", b"b"]), json!([0, 1, 2]));
        assert_eq!(offsets("", &[b"x"]), json!([0]));
    }

    #[test]
    fn a_prompts_tokens_are_told_as_vllm_does() {
        let first = TokenLogprob { token: Token { id: 1, bytes: b"<s>".to_vec() }, scored: None };
        let mut second = scored(b"a", -3.0, &[(b"b", -0.5), (b"a", -3.0)]);
        second.token.id = 7;
        let top = &mut second.scored.as_mut().expect("it is scored").top;
        (top[0].0.id, top[1].0.id) = (8, 7);
        assert_eq!(
            prompt_logprobs(&[first, second]),
            json!([null, {
                "7": {"logprob": -3.0, "rank": 2, "decoded_token": "a"},
                "8": {"logprob": -0.5, "rank": 1, "decoded_token": "b"},
            }])
        );
    }
}
