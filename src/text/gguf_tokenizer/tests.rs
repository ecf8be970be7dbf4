//! Tests of tokenizers rebuilt from small hand-made GGUF metadata.

use crate::models::gguf::testing::GgufFile;
use crate::text::Tokenizer;
use crate::text::bytes::char_of;

/// Byte-level metadata: all bytes, merges for "the" and " the", two added tokens.
fn byte_level_file(pre: &str) -> GgufFile {
    let mut tokens: Vec<String> = (0..=255u8).map(|b| char_of(b).to_string()).collect();
    tokens.extend(["th", "the", "Ġthe", "12", "<|im_end|>", "<tool_call>", "unused"].map(str::to_owned));
    let mut types = vec![1; tokens.len()];
    (types[260], types[261], types[262]) = (3, 3, 5);
    GgufFile::default()
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", pre)
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &types)
        .strings("tokenizer.ggml.merges", &["t h", "th e", "Ġ the", "1 2"])
}

fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text, true).expect("encodes");
    ids.into_iter().map(|id| tokenizer.token(id).expect("every id has a token")).collect()
}

#[test]
fn smollm_splits_digits_and_keeps_ids() {
    let tokenizer = Tokenizer::from_gguf(&byte_level_file("smollm").header()).expect("rebuilt");
    assert_eq!(pieces(&tokenizer, "the the12<|im_end|>"), ["the", "Ġthe", "1", "2", "<|im_end|>"]);
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(260));
    assert!(tokenizer.is_special(260) && tokenizer.is_special(261));
    assert_eq!(tokenizer.token_id("unused"), None);
}

#[test]
fn qwen2_composes_characters_and_shows_tool_calls() {
    let tokenizer = Tokenizer::from_gguf(&byte_level_file("qwen2").header()).expect("rebuilt");
    assert_eq!(pieces(&tokenizer, "e\u{301}"), ["Ã", "©"], "NFC makes one character of two");
    assert!(tokenizer.is_special(260) && !tokenizer.is_special(261));
    let ids = tokenizer.encode("<tool_call>the<|im_end|>", false).expect("encodes");
    assert_eq!(tokenizer.decode(&ids).expect("decodes"), "<tool_call>the");
}

#[test]
fn llama3_keeps_short_numbers_and_adds_bos() {
    let file = byte_level_file("llama-bpe").u32("tokenizer.ggml.bos_token_id", 260);
    let tokenizer = Tokenizer::from_gguf(&file.header()).expect("rebuilt");
    assert_eq!(pieces(&tokenizer, "12"), ["<|im_end|>", "12"]);
    let file = file.bool("tokenizer.ggml.add_bos_token", false);
    let tokenizer = Tokenizer::from_gguf(&file.header()).expect("rebuilt");
    assert_eq!(pieces(&tokenizer, "12"), ["12"]);
}

/// SentencePiece metadata: "▁the" by way of "▁t" and "he", a user-defined run of spaces.
fn sentence_piece_file() -> GgufFile {
    sentence_piece_file_of("llama")
}

fn sentence_piece_file_of(model: &str) -> GgufFile {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut types = vec![2, 3, 3];
    let mut scores = vec![0.0; 3];
    for byte in 0..=255u8 {
        tokens.push(format!("<0x{byte:02X}>"));
        types.push(6);
        scores.push(0.0);
    }
    let normal =
        [("▁t", -1.0), ("he", -2.0), ("▁the", -3.0), ("▁", -10.0), ("t", -11.0), ("h", -12.0), ("e", -13.0)];
    for (token, score) in normal {
        tokens.push(token.to_owned());
        types.push(1);
        scores.push(score);
    }
    tokens.push("  ".to_owned());
    types.push(4);
    scores.push(-1000.0);
    GgufFile::default()
        .str("tokenizer.ggml.model", model)
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &types)
        .f32s("tokenizer.ggml.scores", &scores)
        .u32("tokenizer.ggml.bos_token_id", 1)
}

#[test]
fn sentence_piece_merges_by_score_and_falls_back_to_bytes() {
    let tokenizer = Tokenizer::from_gguf(&sentence_piece_file().header()).expect("rebuilt");
    assert_eq!(pieces(&tokenizer, "the the"), ["<s>", "▁the", "▁the"]);
    assert_eq!(pieces(&tokenizer, "é"), ["<s>", "▁", "<0xC3>", "<0xA9>"]);
    let ids = tokenizer.encode("the é the", true).expect("encodes");
    assert_eq!(tokenizer.decode(&ids).expect("decodes"), "the é the");
}

/// `add_eos_token` was not read.
#[test]
fn bos_and_eos_are_put_around_once() {
    let file = sentence_piece_file().u32("tokenizer.ggml.eos_token_id", 2);
    let tokenizer = Tokenizer::from_gguf(&file.header()).expect("rebuilt");
    assert_eq!(pieces(&tokenizer, "<s>the"), ["<s>", "▁the"]);
    let file = file.bool("tokenizer.ggml.add_eos_token", true);
    let tokenizer = Tokenizer::from_gguf(&file.header()).expect("rebuilt");
    assert_eq!(pieces(&tokenizer, "the"), ["<s>", "▁the", "</s>"]);
}

#[test]
fn gemma_adds_no_space_and_shows_its_user_tokens() {
    let file = sentence_piece_file()
        .str("general.architecture", "gemma3")
        .bool("tokenizer.ggml.add_space_prefix", false)
        .bool("tokenizer.ggml.add_bos_token", false);
    let tokenizer = Tokenizer::from_gguf(&file.header()).expect("rebuilt");
    assert_eq!(pieces(&tokenizer, "the  the"), ["t", "he", "▁▁", "t", "he"]);
    let ids = tokenizer.encode("the  the", true).expect("encodes");
    assert_eq!(tokenizer.decode(&ids).expect("decodes"), "the  the");
}

/// Gemma 4's files list merges, as theirs is no longer the order of the scores.
#[test]
fn listed_merges_come_before_scores_and_control_tokens_do_not_show() {
    let file = sentence_piece_file_of("gemma4")
        .str("general.architecture", "gemma4")
        .strings("tokenizer.ggml.merges", &["h e", "▁ t", "▁t he"])
        .bool("tokenizer.ggml.add_space_prefix", false);
    let tokenizer = Tokenizer::from_gguf(&file.header()).expect("rebuilt");
    assert_eq!(pieces(&tokenizer, " the"), ["<s>", "▁the"]);
    let unlisted = sentence_piece_file_of("gemma4");
    let error = Tokenizer::from_gguf(&unlisted.header()).expect_err("no merges").to_string();
    assert!(error.contains("tokenizer.ggml.merges"), "{error}");
}

#[test]
fn tokenizers_cut_digits_and_words_each_in_their_way() {
    for (pre, expected) in [
        ("refact", vec!["1", "2", "the"]),
        ("gpt-4o", vec!["12", "the"]),
        ("tekken", vec!["1", "2", "the"]),
        ("dbrx", vec!["12", "the"]),
        ("seed-coder", vec!["1", "2", "the"]),
        ("deepseek-v3", vec!["12", "the"]),
        ("deepseek-llm", vec!["12", "the"]),
        ("olmo", vec!["12", "the"]),
    ] {
        let tokenizer = Tokenizer::from_gguf(&byte_level_file(pre).header()).expect("rebuilt");
        assert_eq!(pieces(&tokenizer, "12the"), expected, "{pre}");
    }
}

#[test]
fn unusable_metadata_say_what_is_wrong() {
    let tokens = ["a", "b"];
    let refused = [
        ("no tokenizer", GgufFile::default().strings("tokenizer.ggml.tokens", &tokens)),
        ("tokenizer.ggml.tokens", GgufFile::default().str("tokenizer.ggml.model", "gpt2")),
        (
            "\"t5\"",
            GgufFile::default().str("tokenizer.ggml.model", "t5").strings("tokenizer.ggml.tokens", &tokens),
        ),
        ("\"chameleon\"", byte_level_file("chameleon")),
        (
            "scores",
            GgufFile::default()
                .str("tokenizer.ggml.model", "llama")
                .strings("tokenizer.ggml.tokens", &tokens),
        ),
        (
            "1 entries for 2 tokens",
            GgufFile::default()
                .str("tokenizer.ggml.model", "gpt2")
                .strings("tokenizer.ggml.tokens", &tokens)
                .i32s("tokenizer.ggml.token_type", &[1]),
        ),
        ("bos_token_id 999", byte_level_file("llama-bpe").u32("tokenizer.ggml.bos_token_id", 999)),
        ("unknown_token_id 999", sentence_piece_file().u32("tokenizer.ggml.unknown_token_id", 999)),
        (
            "token 1 is longer",
            GgufFile::default()
                .str("tokenizer.ggml.model", "llama")
                .strings("tokenizer.ggml.tokens", &["a".to_owned(), "b".repeat(5000)])
                .f32s("tokenizer.ggml.scores", &[0.0, 0.0]),
        ),
        (
            "two tokens",
            GgufFile::default()
                .str("tokenizer.ggml.model", "gpt2")
                .str("tokenizer.ggml.pre", "qwen2")
                .strings("tokenizer.ggml.tokens", &tokens)
                .strings("tokenizer.ggml.merges", &["ab"]),
        ),
        (
            "cannot be used",
            GgufFile::default()
                .str("tokenizer.ggml.model", "gpt2")
                .str("tokenizer.ggml.pre", "qwen2")
                .strings("tokenizer.ggml.tokens", &tokens)
                .strings("tokenizer.ggml.merges", &["a c"]),
        ),
    ];
    for (problem, file) in refused {
        let error = Tokenizer::from_gguf(&file.header()).expect_err(problem).to_string();
        assert!(error.contains(problem), "{error}");
    }
}
