//! What the classes of tokenizers by name do with settings.
//!
//! Owns the table of the classes that matter and the kinds of models for which a class's name is
//! known to be wrong. Facts from transformers 5.23 (`models/*/tokenization_*.py`,
//! `models/auto/tokenization_auto.py`); which classes know `add_bos_token` from 4.57.

/// A class of tokenizers that does more than load `tokenizer.json`.
#[derive(Debug)]
pub(super) struct Class {
    name: &'static str,
    pub(super) prefix: PrefixRule,
    /// Whether it puts BOS and EOS around a text as `add_bos_token` and `add_eos_token` say.
    pub(super) knows_bos_and_eos: bool,
    /// The special tokens where no file names them.
    pub(super) special_tokens: &'static [(&'static str, &'static str)],
}

/// How a class puts a space in front of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PrefixRule {
    /// As `tokenizer.json` says.
    File,
    /// SentencePiece's, put right where `legacy` is not true.
    Llama,
    /// SentencePiece's, always put right.
    CodeLlama,
    /// The byte-level step's.
    ByteLevel,
}

const LLAMA_TOKENS: &[(&str, &str)] = &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")];
const GPT2_TOKENS: &[(&str, &str)] =
    &[("unk_token", "<|endoftext|>"), ("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>")];
const QWEN_TOKENS: &[(&str, &str)] =
    &[("unk_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")];

const CLASSES: &[Class] = &[
    class("LlamaTokenizer", PrefixRule::Llama, true, LLAMA_TOKENS),
    class("CodeLlamaTokenizer", PrefixRule::CodeLlama, true, LLAMA_TOKENS),
    class(
        "GemmaTokenizer",
        PrefixRule::File,
        true,
        &[("unk_token", "<unk>"), ("bos_token", "<bos>"), ("eos_token", "<eos>"), ("pad_token", "<pad>")],
    ),
    class(
        "CohereTokenizer",
        PrefixRule::ByteLevel,
        true,
        &[
            ("unk_token", "<UNK>"),
            ("bos_token", "<BOS_TOKEN>"),
            ("eos_token", "<|END_OF_TURN_TOKEN|>"),
            ("pad_token", "<PAD>"),
        ],
    ),
    class("GPT2Tokenizer", PrefixRule::ByteLevel, false, GPT2_TOKENS),
    class("GPTNeoXTokenizer", PrefixRule::ByteLevel, false, GPT2_TOKENS),
    class("Qwen2Tokenizer", PrefixRule::ByteLevel, false, QWEN_TOKENS),
    class("Qwen3_5Tokenizer", PrefixRule::ByteLevel, false, QWEN_TOKENS),
];

const fn class(
    name: &'static str,
    prefix: PrefixRule,
    knows_bos_and_eos: bool,
    special_tokens: &'static [(&'static str, &'static str)],
) -> Class {
    Class { name, prefix, knows_bos_and_eos, special_tokens }
}

impl Class {
    /// Finds a class by its name, with or without the `Fast` of older files; `None` for classes
    /// that load `tokenizer.json` and do no more.
    pub(super) fn by_name(name: &str) -> Option<&'static Class> {
        let name = name.strip_suffix("Fast").unwrap_or(name);
        CLASSES.iter().find(|class| class.name == name)
    }
}

/// Kinds of models whose files often say LlamaTokenizer while their `tokenizer.json` is meant as
/// it is.
const MEAN_THE_FILE: &[&str] = &[
    "arctic",
    "aria",
    "chatlm",
    "ernie4_5",
    "ernie4_5_moe",
    "flex_olmo",
    "fuyu",
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "gpt_bigcode",
    "granite",
    "granitemoe",
    "granitemoehybrid",
    "granitemoeshared",
    "h2ovl_chat",
    "hyperclovax",
    "internlm2",
    "internlm3",
    "iquestcoder",
    "jamba",
    "kimi_k25",
    "kimi_linear",
    "llava",
    "llava_next",
    "mimo_v2_flash",
    "minicpm3",
    "minicpmv",
    "minimax_m2",
    "ministral",
    "ministral3",
    "mistral",
    "mistral3",
    "mistral_large4",
    "mixtral",
    "molmo",
    "molmo2",
    "nemotron",
    "olmo2",
    "olmo3",
    "olmo_hybrid",
    "opencua",
    "persimmon",
    "phi3",
    "phi3_v",
    "phimoe",
    "pixtral",
    "qwen2",
    "qwen3_5",
    "qwen3_5_moe",
    "smolvlm",
    "stablelm",
    "step3_vl",
    "vipllava",
    "voxtral",
];

/// Whether a model of this kind means its `tokenizer.json` as it is, whatever class is named.
pub(super) fn means_the_file(kind: &str) -> bool {
    MEAN_THE_FILE.contains(&kind)
}
