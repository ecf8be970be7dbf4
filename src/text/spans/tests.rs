//! Spans of real templates' prompts, in the tokens of a small tokenizer.

use std::sync::Arc;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Map;

use super::*;
use crate::text::{ChatOptions, ChatPrompt};
use crate::text::{TextError, TextModel};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// A model with the chat template of that name.
fn model(template: &str) -> TextModel {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    std::fs::copy(fixture("tiny-llama/tokenizer.json"), dir.path().join("tokenizer.json")).expect("copied");
    let template = fixture(&format!("templates/{template}.jinja"));
    std::fs::copy(template, dir.path().join("chat_template.jinja")).expect("copied");
    TextModel::from_folder(dir.path()).expect("loads")
}

/// One entry of `renders.json`, as far as it is needed here.
#[derive(Deserialize)]
struct Case {
    template: String,
    case: String,
    messages: Vec<Value>,
    tools: Option<Value>,
    extra: Map<String, Value>,
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(fixture("templates/renders.json")).expect("the fixture is there");
    serde_json::from_str(&text).expect("the fixture is well-formed")
}

impl Case {
    fn request(&self) -> RenderRequest<'_> {
        RenderRequest {
            messages: &self.messages,
            tools: self.tools.as_ref(),
            add_generation_prompt: true,
            extra: &self.extra,
        }
    }
}

/// A conversation from roles and contents.
fn conversation(messages: &[(&str, &str)]) -> Vec<Value> {
    messages.iter().map(|(role, content)| json!({"role": role, "content": content})).collect()
}

/// The texts of the spans, with their tiers.
fn texts(model: &TextModel, messages: &[Value]) -> Vec<(String, Tier)> {
    let extra =
        Map::from_iter([("bos_token".to_owned(), json!("<s>")), ("eos_token".to_owned(), json!("</s>"))]);
    let request = RenderRequest { messages, tools: None, add_generation_prompt: true, extra: &extra };
    let full = model.render_chat(&request, &ChatOptions::default()).expect("renders");
    let ChatPrompt { tokens, spans, .. } =
        model.encode_chat_with_spans(&request, &ChatOptions::default()).expect("encodes");
    assert_eq!(spans.last().map(|span| span.end), Some(tokens.len()));
    let mut begin = 0;
    let mut parts = Vec::new();
    // The text itself, as decoding leaves special tokens out.
    let ranges = model.tokenizer().encode_with_ranges(&full, false).expect("encodes").1;
    for span in spans {
        let end = ranges.get(span.end).map_or(full.len(), |range| range.0);
        parts.push((full[begin..end].to_owned(), span.tier));
        begin = end;
    }
    parts
}

fn part(text: &str, tier: Tier) -> (String, Tier) {
    (text.to_owned(), tier)
}

#[test]
fn every_real_prompt_has_sound_spans_and_the_tokens_it_has_without() {
    let mut num_with_system = 0;
    let mut num_with_messages = 0;
    let mut num_cases = 0;
    for case in cases() {
        let name = format!("{} {}", case.template, case.case);
        let model = model(&case.template);
        let request = case.request();
        let ChatPrompt { tokens, spans, .. } = match (
            model.encode_chat(&request),
            model.encode_chat_with_spans(&request, &ChatOptions::default()),
        ) {
            (Ok(tokens), Ok(with_spans)) => {
                assert_eq!(tokens, with_spans.tokens, "{name}");
                with_spans
            }
            (Err(plain), Err(error)) => {
                assert_eq!(plain.to_string(), error.to_string(), "{name}");
                continue;
            }
            (plain, with_spans) => panic!("{name}: {plain:?}, with spans {with_spans:?}"),
        };
        assert_eq!(spans.last().map(|span| span.end), Some(tokens.len()), "{name}");
        for pair in spans.windows(2) {
            assert!(pair[0].end < pair[1].end && pair[0].tier >= pair[1].tier, "{name}: {spans:?}");
        }
        num_cases += 1;
        num_with_system += usize::from(spans[0].tier == Tier::System);
        num_with_messages +=
            usize::from(spans.iter().any(|span| span.tier == Tier::User && span.end < tokens.len()));
    }
    assert!(num_cases >= 250);
    assert!(num_with_system * 100 >= num_cases * 95, "{num_with_system} of {num_cases}");
    assert!(num_with_messages * 100 >= num_cases * 90, "{num_with_messages} of {num_cases}");
}

/// The system part of one conversation is that of every other with the same system message,
/// whatever headers, dates or tool descriptions the template adds.
#[test]
fn the_system_part_holds_the_system_prompt_and_is_shared() {
    for template in
        ["smollm2", "qwen3", "qwen2_5", "llama3_1", "gemma3", "phi3_5", "granite_4", "kimi_k2", "glm_4_6"]
    {
        let model = model(template);
        let system = "You are terse & <careful>.";
        let [one, two] = ["Hi!", "What is 2+2?"]
            .map(|user| texts(&model, &conversation(&[("system", system), ("user", user)])));
        assert_eq!(one[0], two[0], "{template}");
        assert_eq!(one[0].1, Tier::System, "{template}");
        assert!(one[0].0.contains(system) && !one[0].0.contains("Hi!"), "{template}: {}", one[0].0);
    }
}

#[test]
fn each_part_of_a_plain_conversation_is_a_span() {
    let messages =
        conversation(&[("system", "Be brief."), ("user", "One?"), ("assistant", "1."), ("user", "Two?")]);
    assert_eq!(
        texts(&model("smollm2"), &messages),
        [
            part("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n", Tier::System),
            part("One?<|im_end|>\n", Tier::User),
            part("<|im_start|>assistant\n1.<|im_end|>\n", Tier::User),
            part("<|im_start|>user\nTwo?<|im_end|>\n", Tier::User),
            part("<|im_start|>assistant\n", Tier::Assistant),
        ]
    );
}

#[test]
fn a_default_system_prompt_is_the_system_part() {
    let parts = texts(&model("smollm2"), &conversation(&[("user", "Hi")]));
    assert!(parts[0].0.contains("SmolLM") && parts[0].1 == Tier::System, "{parts:?}");
    assert_eq!(
        parts[1..],
        [part("Hi<|im_end|>\n", Tier::User), part("<|im_start|>assistant\n", Tier::Assistant),]
    );
}

/// Thinking and tool calls after the last user message are there until a user replies; then
/// templates drop the thinking, so nothing from there on is worth what the messages before are.
#[test]
fn what_follows_the_last_user_message_is_tier_assistant() {
    let call =
        json!([{"type": "function", "id": "c12345678", "function": {"name": "f", "arguments": {"x": 1}}}]);
    let messages = [
        json!({"role": "user", "content": "Call f."}),
        json!({"role": "assistant", "content": "", "reasoning_content": "f it is", "tool_calls": call}),
        json!({"role": "tool", "content": "42", "tool_call_id": "c12345678"}),
    ];
    let parts = texts(&model("qwen3"), &messages);
    let (header, rest) = parts.split_first().expect("there are spans");
    assert_eq!(header.1, Tier::System);
    assert_eq!(rest[0], part("Call f.<|im_end|>\n", Tier::User));
    assert!(rest[1].0.contains("f it is") && rest[1].0.contains("<tool_call>"), "{parts:?}");
    assert!(rest[2].0.contains("<tool_response>\n42"), "{parts:?}");
    assert!(rest[1..].iter().all(|part| part.1 == Tier::Assistant), "{parts:?}");
}

#[test]
fn developer_messages_are_part_of_the_system() {
    let messages = conversation(&[("developer", "Be brief."), ("user", "Hi")]);
    let parts = texts(&model("gpt_oss"), &messages);
    assert!(parts[0].0.contains("Be brief.") && parts[0].1 == Tier::System, "{parts:?}");
    assert_eq!(parts.iter().filter(|part| part.1 == Tier::System).count(), 1);
}

/// Sixteen messages of examples before each question: the boundaries within them must be the
/// same for all questions, and they are rendered once.
#[test]
fn examples_in_front_share_their_boundaries_and_their_renders() {
    let mut examples = Vec::new();
    for number in 0..8 {
        examples.push(json!({"role": "user", "content": format!("question {number}")}));
        examples.push(json!({"role": "assistant", "content": format!("answer {number}")}));
    }
    let model = model("qwen2_5");
    let asked = |question: &str| {
        let messages = [examples.as_slice(), &conversation(&[("user", question)])].concat();
        texts(&model, &messages)
    };
    let first = asked("why?");
    let num_shared = first.len() - 2;
    // The system part; messages 1, 2, 4, 8 and 16.
    assert_eq!(num_shared, 6);
    let num_renders = model.num_partial_renders();
    for number in 0..50 {
        let other = asked(&format!("{number}?"));
        assert_eq!(other[..num_shared], first[..num_shared]);
        assert_eq!(other[num_shared], part(&format!("<|im_start|>user\n{number}?<|im_end|>\n"), Tier::User));
    }
    assert_eq!(model.num_partial_renders(), num_renders + 50, "each question renders but its own end");
}

#[test]
fn the_number_of_boundaries_grows_with_the_logarithm() {
    assert_eq!(chosen(1, 0, 1), [1]);
    assert_eq!(chosen(2, 1, 2), [2]);
    assert_eq!(chosen(4, 1, 4), [2, 3, 4]);
    assert_eq!(chosen(17, 0, 17), [1, 2, 4, 8, 16, 17]);
    assert_eq!(chosen(12, 1, 9), [2, 4, 8, 9, 11, 12]);
    assert_eq!(chosen(1, 1, 0), [0usize; 0]);
    assert!(chosen(1_000_000, 0, 999_999).len() <= 23);
}

/// Gemma's template raises where roles do not alternate, Qwen3's rewrites a turn with thinking
/// once it is an earlier one: no boundary there, and the others as ever.
#[test]
fn a_turn_that_is_rewritten_later_has_no_boundary() {
    let think = "<think>\nA long way of thinking about small numbers.\n</think>\n\n2";
    let messages = conversation(&[("user", "1+1?"), ("assistant", think), ("user", "2+2?")]);
    let parts = texts(&model("qwen3"), &messages);
    assert_eq!(
        parts[1..],
        [
            part("1+1?<|im_end|>\n", Tier::User),
            part("<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n", Tier::User),
            part("<|im_start|>assistant\n", Tier::Assistant),
        ]
    );
}

/// mlx-lm stored every answer, thinking included, and no later prompt ever began with it.
#[test]
fn an_answer_recurs_unless_the_template_rewrites_it() {
    let recurs = |template: &str, answer: &str| {
        let model = Arc::new(model(template));
        // Plain answers are remembered by their shape; these two come in between.
        ["It is not.", " Is it?\n", answer].map(|answer| {
            let tokens = model.tokenizer().encode(answer, false).expect("encodes");
            let recurs = || model.answer_recurs(None, &Map::new(), &tokens);
            let (asked, known) = (recurs(), recurs());
            assert_eq!(asked, known, "{answer:?}");
            asked
        })[2]
    };
    let think = "<think>\nHm.\n</think>\n\nIt is 2.";
    for (template, answer, expected) in [
        ("smollm2", "It is 2.", true),
        ("smollm2", think, true),
        ("qwen3", "It is 2.", true),
        ("qwen3", think, false),
        ("deepseek_r1_distill_qwen", think, false),
        ("gemma3", "It is 2.\n", true),
        ("gemma3", "\n\nIt is 2.", false),
    ] {
        assert_eq!(recurs(template, answer), expected, "{template}: {answer:?}");
    }
}

#[test]
fn tokens_over_a_boundary_are_behind_it() {
    let boundary = |end, tier| TextBoundary { end, tier };
    let span = |end, tier| Span { end, tier };
    let ranges = [(0, 3), (3, 5), (5, 5), (5, 9), (9, 12)];
    assert_eq!(
        spans_of(&[boundary(5, Tier::System), boundary(7, Tier::User), boundary(9, Tier::User)], &ranges),
        [span(3, Tier::System), span(4, Tier::User), span(5, Tier::Assistant)]
    );
    assert_eq!(spans_of(&[boundary(2, Tier::System)], &ranges), [span(5, Tier::User)]);
    assert_eq!(spans_of(&[boundary(20, Tier::User)], &ranges), [span(5, Tier::User)]);
    assert_eq!(spans_of(&[], &[]), []);
}

#[test]
fn the_system_part_ends_where_the_first_user_text_begins() {
    let span = |end, tier| Span { end, tier };
    let spans = [span(5, Tier::System), span(9, Tier::User), span(12, Tier::User), span(15, Tier::Assistant)];
    assert_eq!(system_end(&spans), Some(5));
    assert_eq!(system_end(&spans[..1]), None, "nothing comes behind it");
    assert_eq!(system_end(&Span::of_raw_prompt(7)), None);
}

#[test]
fn what_cannot_be_rendered_is_the_error_it_is_without_spans() {
    let extra = Map::new();
    let request = RenderRequest { messages: &[], tools: None, add_generation_prompt: true, extra: &extra };
    let error =
        model("smollm2").encode_chat_with_spans(&request, &ChatOptions::default()).expect_err("no messages");
    assert!(matches!(error, TextError::NoMessages));
    let bad = [json!({"role": "user", "content": 5})];
    let error = model("smollm2")
        .encode_chat_with_spans(&RenderRequest { messages: &bad, ..request }, &ChatOptions::default());
    assert!(matches!(error, Err(TextError::Message { index: 0, .. })));
}
