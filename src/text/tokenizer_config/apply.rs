//! Changing a loaded tokenizer as its folder's settings ask.
//!
//! Owns the space in front of a text, the added tokens and what is put around a text. The steps
//! are taken apart as JSON, the form in which their crate documents them.

use std::collections::HashSet;

use serde_json::{Value, json};
use tokenizers::{AddedToken, ModelWrapper};

use super::TokenizerConfig;
use super::classes::{PrefixRule, means_the_file};
use crate::text::TextError;
use crate::text::files::token_text;

const SPACE: &str = "\u{2581}";

/// The splitting of Mistral's newer tokenizers, which were published with Llama's.
const MISTRAL_SPLIT: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's older tokenizers, with smaller vocabularies, are not of that kind.
const MIN_MISTRAL_SPLIT_VOCAB: usize = 100_001;
const MISTRAL_SPLIT_KINDS: &[&str] = &["mistral", "mistral3", "voxtral", "ministral", "pixtral"];

/// The steps that make a tokenizer, as lists.
struct Steps {
    normalizers: Vec<Value>,
    pre_tokenizers: Vec<Value>,
    processors: Vec<Value>,
    decoders: Vec<Value>,
}

impl TokenizerConfig {
    /// Changes the folder's tokenizer as the settings ask; what cannot be done is a warning.
    pub(in crate::text) fn apply(&mut self, tokenizer: &mut tokenizers::Tokenizer) -> Result<(), TextError> {
        let before = Steps::of(tokenizer);
        let mut steps = Steps::of(tokenizer);
        self.put_prefix(&mut steps, matches!(tokenizer.get_model(), ModelWrapper::BPE(_)));
        self.mend_mistral_split(&mut steps, tokenizer.get_vocab_size(true));
        let set = |error: String| self.unusable(error);
        if steps.normalizers != before.normalizers {
            let normalizer: Option<tokenizers::NormalizerWrapper> =
                read_steps("normalizers", steps.normalizers).map_err(set)?;
            tokenizer.with_normalizer(normalizer);
        }
        if steps.pre_tokenizers != before.pre_tokenizers {
            let pre_tokenizer: Option<tokenizers::PreTokenizerWrapper> =
                read_steps("pretokenizers", steps.pre_tokenizers).map_err(set)?;
            tokenizer.with_pre_tokenizer(pre_tokenizer);
        }
        if steps.decoders != before.decoders {
            let decoder: Option<tokenizers::DecoderWrapper> =
                read_steps("decoders", steps.decoders).map_err(set)?;
            tokenizer.with_decoder(decoder);
        }
        // After the normalizer, which added tokens may go through.
        self.add_tokens(tokenizer);
        if let Some(processors) = self.put_around(tokenizer, steps.processors)? {
            let processor: Option<tokenizers::PostProcessorWrapper> =
                read_steps("processors", processors).map_err(|error| self.unusable(error))?;
            tokenizer.with_post_processor(processor);
        }
        if self.flag("split_special_tokens") == Some(true) {
            tokenizer.set_encode_special_tokens(true);
        }
        if self.flag("clean_up_tokenization_spaces") == Some(true)
            && !matches!(tokenizer.get_model(), ModelWrapper::BPE(_))
        {
            // With BPE it takes away spaces that the model wrote; transformers 5 does not do it there.
            self.warn(
                "clean_up_tokenization_spaces is not acted on: answers keep the spaces before punctuation",
            );
        }
        Ok(())
    }

    /// Puts the space in front of a text, or not, as the class and its settings ask.
    fn put_prefix(&mut self, steps: &mut Steps, is_bpe: bool) {
        let asked = self.flag("add_prefix_space");
        let is_byte_level =
            steps.pre_tokenizers.iter().chain(&steps.decoders).any(|step| step["type"] == "ByteLevel");
        let rule = self.class.map_or(PrefixRule::File, |class| class.prefix);
        match rule {
            PrefixRule::Llama | PrefixRule::CodeLlama
                if is_bpe && !is_byte_level && !self.model.kind.as_deref().is_some_and(means_the_file) =>
            {
                // Where the file has none, its publisher wants none: no class knows better.
                if asked.is_none() && !steps.has_sentence_piece_prefix() {
                    return;
                }
                let scheme = match asked {
                    Some(false) => "never",
                    _ if rule == PrefixRule::Llama && self.flag("legacy") == Some(true) => "always",
                    _ => "first",
                };
                steps.put_sentence_piece_prefix(scheme);
            }
            PrefixRule::ByteLevel if is_byte_level => {
                if let Some(asked) = asked {
                    let bytes = steps.pre_tokenizers.iter_mut().filter(|step| step["type"] == "ByteLevel");
                    bytes.for_each(|step| step["add_prefix_space"] = asked.into());
                }
            }
            _ => {
                let has_prefix = steps.has_sentence_piece_prefix()
                    || steps.pre_tokenizers.iter().any(|step| step["add_prefix_space"] == true);
                if asked.is_some_and(|asked| asked != has_prefix) {
                    self.warn(format_args!(
                        "add_prefix_space is {}, but tokenizer.json says otherwise, and it counts for this class",
                        !has_prefix
                    ));
                }
            }
        }
    }

    /// Adds the tokens that the settings name, with their properties.
    fn add_tokens(&mut self, tokenizer: &mut tokenizers::Tokenizer) {
        let mut tokens: Vec<AddedToken> = Vec::new();
        let mut known: HashSet<String> =
            tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
        let is_older_form = self.entries.get("added_tokens_decoder").is_none_or(Value::is_null);
        for token in self.added_tokens.values() {
            // The older form does not know a token's properties, tokenizer.json does.
            if !(is_older_form && known.contains(&token.content)) {
                let is_named = self.special_tokens.values().any(|text| *text == token.content.as_str());
                tokens.push(token.clone().special(token.special || is_named));
            }
        }
        known.extend(tokens.iter().map(|token| token.content.clone()));
        let more = ["additional_special_tokens", "extra_special_tokens"].map(|key| self.entries.get(key));
        let more = more.into_iter().flatten().filter_map(Value::as_array).flatten().filter_map(token_text);
        let named = self.special_tokens.values().filter_map(Value::as_str).chain(more);
        for text in named {
            if !text.is_empty() && known.insert(text.to_owned()) {
                tokens.push(AddedToken::from(text, true));
            }
        }

        let max_added = tokenizer.get_added_tokens_decoder().keys().max().map_or(0, |id| *id as usize + 1);
        let mut next_id = max_added.max(tokenizer.get_vocab_size(false));
        let mut without_weights = Vec::new();
        tokens.retain(|token| {
            if tokenizer.token_to_id(&token.content).is_some() {
                return true;
            }
            let has_weights = self.model.vocab_size.is_none_or(|size| next_id < size);
            if has_weights {
                next_id += 1;
            } else {
                without_weights.push(token.content.clone());
            }
            has_weights
        });
        // Even without tokens: those of the file are looked for anew behind the normalizer.
        tokenizer.add_tokens(&tokens);

        // Padding is never written, so it may well have no weights.
        let pad = self.special_tokens.get("pad_token").and_then(Value::as_str);
        without_weights.retain(|token| Some(token.as_str()) != pad);
        if !without_weights.is_empty() {
            self.warn(format_args!(
                "{} is not in the model's vocabulary: it is plain text to it",
                without_weights.join(", ")
            ));
        }
        let moved: Vec<String> = self
            .added_tokens
            .iter()
            .filter_map(|(id, token)| {
                let found = tokenizer.token_to_id(&token.content).filter(|found| found != id)?;
                Some(format!("{} has id {found}, not {id}", token.content))
            })
            .collect();
        if !moved.is_empty() {
            self.warn(format_args!("tokenizer.json disagrees about added tokens: {}", moved.join(", ")));
        }
    }

    /// Returns the steps that put BOS and EOS around a text, if the settings ask for others than
    /// those there are.
    fn put_around(
        &mut self,
        tokenizer: &tokenizers::Tokenizer,
        processors: Vec<Value>,
    ) -> Result<Option<Vec<Value>>, TextError> {
        let asked = ["add_bos_token", "add_eos_token"].map(|key| self.flag(key));
        if asked == [None, None] {
            return Ok(None);
        }
        let around = tokenizer.encode("", true).map_err(|error| self.unusable(error))?.get_ids().to_vec();
        let tokens = ["bos_token", "eos_token"].map(|name| {
            let text = self.special_tokens.get(name).and_then(Value::as_str)?;
            Some((text.to_owned(), tokenizer.token_to_id(text)?))
        });
        let has = |token: &Option<(String, u32)>, end: Option<&u32>| {
            token.as_ref().is_some_and(|(_, id)| end == Some(id))
        };
        let [bos, eos] = &tokens;
        // One and the same token may be both.
        let has_bos = has(bos, around.first());
        let found = [has_bos, has(eos, around.get(usize::from(has_bos)..).unwrap_or_default().last())];
        let wanted = [asked[0].unwrap_or(found[0]), asked[1].unwrap_or(found[1])];
        if wanted == found {
            return Ok(None);
        }
        if !self.class.is_some_and(|class| class.knows_bos_and_eos) {
            for ((key, asked), found) in ["add_bos_token", "add_eos_token"].iter().zip(asked).zip(found) {
                if asked.is_some_and(|asked| asked != found) {
                    self.warn(format_args!(
                        "{key} is {}, but tokenizer.json says otherwise, and it counts for this class",
                        !found
                    ));
                }
            }
            return Ok(None);
        }
        let mut single = Vec::new();
        let mut ids = serde_json::Map::new();
        for (index, (wanted, token)) in wanted.into_iter().zip(&tokens).enumerate() {
            if index == 1 {
                single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
            }
            match token {
                Some((text, id)) if wanted => {
                    single.push(json!({"SpecialToken": {"id": text, "type_id": 0}}));
                    ids.insert(text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}));
                }
                None if asked[index] == Some(true) => {
                    let name = ["add_bos_token", "add_eos_token"][index];
                    self.warn(format_args!("{name} is true, but the vocabulary has no such token"));
                }
                _ => {}
            }
        }
        if wanted[1] && eos.is_some() {
            self.warn("add_eos_token is true: raw prompts end with the token that ends an answer");
        }
        // What is there beside the template moves positions only.
        let mut processors = processors;
        processors.retain(|step| step["type"] == "ByteLevel");
        let pair = [single.clone(), vec![json!({"Sequence": {"id": "B", "type_id": 1}})]].concat();
        processors.push(
            json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": ids}),
        );
        Ok(Some(processors))
    }

    /// Mends the splitting that some models of Mistral were published with, where the settings ask.
    fn mend_mistral_split(&mut self, steps: &mut Steps, vocab_size: usize) {
        let is_newer =
            |version: &str| version.split('.').next().and_then(|n| n.parse().ok()).unwrap_or(0) >= 5;
        let concerns = vocab_size >= MIN_MISTRAL_SPLIT_VOCAB
            && self.model.kind.as_deref().is_some_and(|kind| MISTRAL_SPLIT_KINDS.contains(&kind))
            && !self.model.transformers_version.as_deref().is_some_and(is_newer);
        let split = steps.pre_tokenizers.first_mut().filter(|step| step["type"] == "Split");
        let Some(split) = split.filter(|split| concerns && split["pattern"]["Regex"] != MISTRAL_SPLIT) else {
            if self.flag("fix_mistral_regex") == Some(true) && !concerns {
                self.warn(
                    "fix_mistral_regex changes nothing for this model, whose splitting is as published",
                );
            }
            return;
        };
        if self.flag("fix_mistral_regex") == Some(true) {
            *split = json!({"type": "Split", "pattern": {"Regex": MISTRAL_SPLIT}, "behavior": "Isolated",
                            "invert": false});
        } else {
            self.warn(
                "the model was published with a wrong splitting of texts, which is kept as in transformers: \
                 \"fix_mistral_regex\": true mends it",
            );
        }
    }
}

impl Steps {
    fn of(tokenizer: &tokenizers::Tokenizer) -> Steps {
        Steps {
            normalizers: steps_of(tokenizer.get_normalizer(), "normalizers"),
            pre_tokenizers: steps_of(tokenizer.get_pre_tokenizer(), "pretokenizers"),
            processors: steps_of(tokenizer.get_post_processor(), "processors"),
            decoders: steps_of(tokenizer.get_decoder(), "decoders"),
        }
    }

    fn has_sentence_piece_prefix(&self) -> bool {
        self.normalizers.iter().any(|step| step["type"] == "Prepend" && step["prepend"] == SPACE)
            || self
                .pre_tokenizers
                .iter()
                .any(|step| step["type"] == "Metaspace" && step["prepend_scheme"] != "never")
    }

    /// Has spaces made visible, and one put in front, by the one step that knows where a text begins.
    fn put_sentence_piece_prefix(&mut self, scheme: &str) {
        self.normalizers.retain(|step| {
            !(step["type"] == "Prepend" && step["prepend"] == SPACE
                || step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == SPACE)
        });
        self.pre_tokenizers.retain(|step| step["type"] != "Metaspace");
        self.pre_tokenizers.insert(
            0,
            json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": false}),
        );
        if self.decoders.is_empty() || self.decoders.iter().any(|step| step["type"] == "Metaspace") {
            self.decoders = vec![
                json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
                json!({"type": "ByteFallback"}),
                json!({"type": "Fuse"}),
            ];
        }
        self.decoders.retain(|step| step["type"] != "Strip");
        if scheme != "never" {
            self.decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
    }
}

/// Returns a step's parts, or itself, as JSON.
fn steps_of(step: Option<&impl serde::Serialize>, parts: &str) -> Vec<Value> {
    // They were read from JSON: there is nothing in them that it has not.
    let step = step.map_or(Value::Null, |step| serde_json::to_value(step).unwrap_or_default());
    match step {
        Value::Null => Vec::new(),
        mut sequence if sequence["type"] == "Sequence" => match sequence[parts].take() {
            Value::Array(steps) => steps,
            _ => Vec::new(),
        },
        step => vec![step],
    }
}

/// Makes one step of several.
fn read_steps<T: serde::de::DeserializeOwned>(parts: &str, steps: Vec<Value>) -> Result<Option<T>, String> {
    let step = match <[Value; 1]>::try_from(steps) {
        Ok([step]) => step,
        Err(steps) if steps.is_empty() => return Ok(None),
        Err(steps) => {
            let mut sequence = json!({"type": "Sequence"});
            sequence[parts] = steps.into();
            sequence
        }
    };
    serde_json::from_value(step).map(Some).map_err(|error| error.to_string())
}
