//! How byte-level tokenizers cut text before merging, by the names that llama.cpp has for them.
//!
//! Owns the table of `tokenizer.ggml.pre`. Expressions are the publishers' own, as their `tokenizer.json` have
//! them: llama.cpp's are adapted to what its engine knows.

use serde_json::{Value, json};

/// How a named tokenizer cuts text, and what it does to it before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Split {
    names: &'static [&'static str],
    cut: Cut,
    /// Whether characters are composed first (NFC).
    composes: bool,
    /// Whether a piece that is a token is that token, whatever merges make of it.
    pub ignores_merges: bool,
    /// Whether BOS is put in front where the file does not say.
    pub adds_bos: bool,
}

#[derive(Debug, Clone, Copy)]
enum Cut {
    /// GPT-2's words.
    Words,
    /// Each digit by itself, then GPT-2's words.
    DigitsAndWords,
    /// By one expression after the other.
    By(&'static [&'static str]),
}

const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As `QWEN2`, with up to three digits; GPT-4's.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SEED: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_V3: &[&str] = &[
    r"\p{N}{1,3}",
    "[一-龥\u{3040}-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
];

/// DeepSeek-V2; letters and marks are listed one by one.
const DEEPSEEK_V2: &[&str] = &[
    r"[\r\n]",
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    r"[一-龥ࠀ-一가-퟿]+",
    r"\p{N}+",
];

const PLAIN: Split =
    Split { names: &[], cut: Cut::Words, composes: false, ignores_merges: false, adds_bos: false };

const SPLITS: &[Split] = &[
    Split { names: &["gpt-2", "exaone4"], ..PLAIN },
    // SmolLM, StarCoder, Granite, EXAONE 3.
    Split { names: &["smollm", "starcoder", "refact", "exaone"], cut: Cut::DigitsAndWords, ..PLAIN },
    // OLMo 1, OLMoE.
    Split { names: &["olmo"], composes: true, ..PLAIN },
    Split {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        cut: Cut::By(&[QWEN2]),
        composes: true,
        ..PLAIN
    },
    Split {
        names: &["llama-bpe", "llama3", "llama-v3", "lfm2"],
        cut: Cut::By(&[LLAMA3]),
        ignores_merges: true,
        adds_bos: true,
        ..PLAIN
    },
    // Llama 3's without BOS: SmolLM3.
    Split { names: &["smaug-bpe"], cut: Cut::By(&[LLAMA3]), ignores_merges: true, ..PLAIN },
    // Phi-4, OLMo 2 and 3; GLM-4.
    Split { names: &["dbrx", "glm4", "chatglm-bpe"], cut: Cut::By(&[LLAMA3]), ..PLAIN },
    // gpt-oss, Phi-4-mini, Llama 4.
    Split { names: &["gpt-4o", "llama4"], cut: Cut::By(&[GPT4O]), ignores_merges: true, ..PLAIN },
    // Mistral Nemo and later.
    Split { names: &["tekken"], cut: Cut::By(&[TEKKEN]), ignores_merges: true, adds_bos: true, ..PLAIN },
    // Seed-OSS.
    Split { names: &["seed-coder"], cut: Cut::By(&[SEED]), ..PLAIN },
    Split { names: &["deepseek-llm"], cut: Cut::By(DEEPSEEK_V2), ..PLAIN },
    Split { names: &["deepseek-v3"], cut: Cut::By(DEEPSEEK_V3), ..PLAIN },
];

impl Split {
    /// The one of this name.
    pub(super) fn of(name: &str) -> Option<&'static Self> {
        SPLITS.iter().find(|split| split.names.contains(&name))
    }

    /// All names, for messages.
    pub(super) fn known_names() -> String {
        SPLITS.iter().flat_map(|split| split.names).copied().collect::<Vec<_>>().join(", ")
    }

    pub(super) fn normalizer(&self) -> Value {
        if self.composes { json!({"type": "NFC"}) } else { Value::Null }
    }

    pub(super) fn pre_tokenizer(&self) -> Value {
        let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "pretokenizers": steps});
        match self.cut {
            Cut::Words => byte_level_step(false, true, true),
            Cut::DigitsAndWords => sequence(vec![
                json!({"type": "Digits", "individual_digits": true}),
                byte_level_step(false, true, true),
            ]),
            Cut::By(expressions) => {
                let by = |expression: &&str| {
                    json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated",
                           "invert": false})
                };
                let steps = expressions.iter().map(by).chain([byte_level_step(false, false, false)]);
                sequence(steps.collect())
            }
        }
    }
}

/// The step from bytes to the characters that stand for them.
pub(super) fn byte_level_step(add_prefix_space: bool, trim_offsets: bool, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": trim_offsets,
           "use_regex": use_regex})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without what is about places in the text, which nobody asks for.
    fn without_offsets(mut step: Value) -> Value {
        if let Some(step) = step.as_object_mut() {
            step.remove("trim_offsets");
            step.values_mut().for_each(|part| *part = without_offsets(part.take()));
        }
        if let Some(steps) = step.as_array_mut() {
            steps.iter_mut().for_each(|step| *step = without_offsets(step.take()));
        }
        step
    }

    #[test]
    fn published_tokenizers_cut_as_their_names_say() {
        for (name, file) in [("smollm", "smollm2"), ("qwen2", "qwen3"), ("llama-bpe", "llama3_1")] {
            let text = std::fs::read_to_string(format!("fixtures/tokenizers/{file}.json")).unwrap();
            let published: Value = serde_json::from_str(&text).unwrap();
            let split = Split::of(name).unwrap();
            let steps = without_offsets(published["pre_tokenizer"].clone());
            assert_eq!(without_offsets(split.pre_tokenizer()), steps, "{name}");
            assert_eq!(split.normalizer(), published["normalizer"], "{name}");
            assert_eq!(split.ignores_merges, published["model"]["ignore_merges"] == true, "{name}");
        }
    }

    #[test]
    fn each_name_is_of_one_tokenizer() {
        let names: Vec<&str> = SPLITS.iter().flat_map(|split| split.names).copied().collect();
        for name in &names {
            assert_eq!(names.iter().filter(|other| *other == name).count(), 1, "{name}");
        }
        assert!(Split::of("chameleon").is_none() && Split::known_names().contains("tekken"));
    }
}
