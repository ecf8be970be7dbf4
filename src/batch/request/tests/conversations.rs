//! Conversations with turns to be generated, and the other forms that conversations are written in.

use super::*;
use crate::batch::{Choice, FinishReason};

fn chat(line: Value) -> Conversation {
    chat_of(parse(line).expect("a sound request"))
}

fn says(role: &str, text: &str) -> Value {
    json!({"role": role, "content": text})
}

/// An answer of this text.
fn answer(text: &str) -> Choice {
    Choice {
        text: text.to_owned(),
        finish_reason: FinishReason::Stop,
        stop_reason: None,
        logprobs: None,
        prompt_logprobs: None,
        turns: Vec::new(),
        reply: None,
    }
}

/// The messages of each turn, the answers before it being "A1", "A2" and so on.
fn played(chat: &Conversation) -> Vec<Vec<Value>> {
    let answers: Vec<Choice> = (1..chat.num_turns()).map(|turn| answer(&format!("A{turn}"))).collect();
    let answers: Vec<&Choice> = answers.iter().collect();
    (0..chat.num_turns()).map(|turn| chat.turn_after(&answers[..turn]).messages).collect()
}

/// It was an error, "the assistant message has no content".
#[test]
fn an_assistants_message_without_content_is_a_turn_to_be_generated() {
    let chat = chat(json!({"messages": [
        says("system", "S"), says("user", "U1"), {"role": "assistant", "content": null, "name": "n"},
        says("user", "U2"), says("assistant", "given"), says("user", "U3"),
        {"role": "assistant", "tool_calls": []}, says("user", "U4"),
    ]}));
    let (s, u1) = (says("system", "S"), says("user", "U1"));
    let a1 = json!({"role": "assistant", "name": "n", "content": "A1"});
    let second = [says("user", "U2"), says("assistant", "given"), says("user", "U3")];
    let turns = played(&chat);
    assert_eq!(turns[0], [s.clone(), u1.clone()]);
    assert_eq!(turns[1], [&[s, u1, a1], &second[..]].concat());
    assert_eq!(turns[2], [&turns[1][..], &[says("assistant", "A2"), says("user", "U4")]].concat());
    assert_eq!(turns.len(), 3);
}

#[test]
fn a_gap_at_the_end_asks_for_the_answer_that_is_asked_for_anyway() {
    let with = chat(json!({"messages": [says("user", "U"), {"role": "assistant", "content": null}]}));
    assert_eq!(with, chat(json!({"messages": [says("user", "U")]})));
    let with = chat(
        json!({"messages": [says("user", "U"), {"role": "assistant"}, says("user", "V"), {"role": "assistant"}]}),
    );
    assert_eq!(
        with,
        chat(json!({"messages": [says("user", "U"), {"role": "assistant"}, says("user", "V")]}))
    );
}

#[test]
fn turns_that_cannot_be_played_are_refused_by_name() {
    let gap = || json!({"role": "assistant", "content": null});
    let (u, v) = (says("user", "U"), says("user", "V"));
    let missing = |position: usize| ("missing_required_parameter", format!("messages[{position}].content"));
    assert_eq!(refused(parse(json!({"messages": [gap(), u]}))), missing(0));
    assert_eq!(refused(parse(json!({"messages": [gap()]}))), missing(0));
    assert_eq!(refused(parse(json!({"messages": [u, gap(), gap(), v]}))), missing(2));
    assert_eq!(refused(parse(json!({"messages": [u, {"role": "user", "content": null}]}))), missing(1));
    let with = |fields: Value| {
        let mut line = json!({"messages": [u, gap(), v]});
        line.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        parse(line)
    };
    assert_eq!(
        refused(with(json!({"prompt_logprobs": 1}))),
        ("unsupported_value", "prompt_logprobs".to_owned())
    );
    assert_eq!(refused(with(json!({"max_tokens": 0}))), ("invalid_value", "max_tokens".to_owned()));
    assert_eq!(
        refused(with(json!({"add_generation_prompt": false}))),
        ("unsupported_value", "add_generation_prompt".to_owned())
    );
    let ends_with_gap = json!({"messages": [u, gap()], "continue_final_message": true});
    assert_eq!(refused(parse(ends_with_gap)), ("invalid_value", "continue_final_message".to_owned()));
    with(json!({"n": 3, "logprobs": true, "top_logprobs": 2, "stop": "x", "response_format": {"type": "json_object"}}))
        .expect("each turn has them");
}

#[test]
fn where_the_prompt_ends_is_said_of_the_last_turn() {
    let chat = chat(json!({
        "messages": [says("user", "U"), {"role": "assistant"}, says("user", "V"), says("assistant", "It is")],
        "continue_final_message": true,
    }));
    let answer = answer("A1");
    assert_eq!(chat.turn_after(&[]).ending, PromptEnding::NewTurn);
    assert_eq!(chat.turn_after(&[&answer]).ending, PromptEnding::WithinLastMessage);
}

#[test]
fn mt_benchs_turns_are_questions_that_are_answered_one_by_one() {
    let line = json!({"question_id": 81, "category": "writing", "turns": ["Q1", "Q2"], "temperature": 0});
    let request = parse(line.clone()).expect("a sound request");
    assert_eq!((request.head.custom_id.as_str(), request.head.form), ("81", Form::Chat));
    let turns = played(&chat_of(request));
    assert_eq!(turns[0], [says("user", "Q1")]);
    assert_eq!(turns[1], [says("user", "Q1"), says("assistant", "A1"), says("user", "Q2")]);

    let in_body = json!({"custom_id": "c", "url": "/v1/chat/completions", "body": line});
    let request = parse(in_body).expect("a sound request");
    assert_eq!(request.head.custom_id, "c");
    assert_eq!(played(&chat_of(request)), turns);
    let only = chat(json!({"turns": ["Q1"], "system": "S"}));
    assert_eq!((only.num_turns(), only.messages), (1, vec![says("system", "S"), says("user", "Q1")]));

    assert_eq!(refused(parse(json!({"turns": []}))), ("invalid_value", "turns".to_owned()));
    assert_eq!(refused(parse(json!({"turns": 2}))), ("invalid_type", "turns".to_owned()));
    assert_eq!(refused(parse(json!({"turns": ["a", 2]}))), ("invalid_type", "turns[1]".to_owned()));
    let both = json!({"messages": [says("user", "U")], "turns": ["a"]});
    assert_eq!(refused(parse(both)), ("invalid_value", "turns".to_owned()));
    assert_eq!(
        refused(parse(json!({"prompt": "p", "turns": ["a"]}))),
        ("invalid_value", "prompt".to_owned())
    );
    // A column of a data set.
    let counted = json!({"messages": [says("user", "U")], "turns": 1, "question_id": 7});
    assert_eq!(parse(counted).expect("a sound request").head.custom_id, "line-1");
}

#[test]
fn sharegpts_conversations_are_read_without_their_reference_answer() {
    let mut lines = Lines::new();
    let from = |from: &str, value: Value| json!({"from": from, "value": value});
    let talk = json!({"id": "s", "conversations": [
        from("system", json!("S")), from("human", json!("Q1")), from("gpt", json!("given")),
        from("Human", json!("Q2")), from("gpt", json!("reference")),
    ]});
    for _ in 0..2 {
        let mut line = talk.clone();
        line["id"] = json!(lines.line);
        let chat = chat_of(lines.parse(line.to_string()).expect("a sound request"));
        let expected =
            [says("system", "S"), says("user", "Q1"), says("assistant", "given"), says("user", "Q2")];
        assert_eq!((chat.num_turns(), &chat.messages[..]), (1, &expected[..]));
    }
    let warnings = lines.parser.warnings.texts();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("in.jsonl:1: ") && warnings[0].contains("reference answer"), "{warnings:?}");
    assert!(warnings[0].ends_with("; 2 times in all"), "{warnings:?}");

    let gaps = chat(json!({"conversations": [
        from("human", json!("Q1")), from("gpt", Value::Null), from("human", json!("Q2")), from("gpt", json!("reference")),
    ]}));
    assert_eq!(played(&gaps)[1], [says("user", "Q1"), says("assistant", "A1"), says("user", "Q2")]);
    let openai = chat(json!({"conversations": [says("user", "Q"), says("assistant", "reference")]}));
    assert_eq!(openai.messages, [says("user", "Q")]);
    let goes_on = json!({"conversations": [from("human", json!("Q")), from("gpt", json!("It"))],
                         "continue_final_message": true});
    assert_eq!(chat(goes_on).messages, [says("user", "Q"), says("assistant", "It")]);

    let param = |conversations: Value| refused(parse(json!({"conversations": conversations}))).1;
    assert_eq!(param(json!([from("narrator", json!("x"))])), "conversations[0].from");
    assert_eq!(param(json!([from("human", Value::Null)])), "conversations[0].value");
    assert_eq!(param(json!([from("human", json!(3))])), "conversations[0].value");
    assert_eq!(param(json!([from("gpt", json!("x"))])), "conversations");
    assert_eq!(param(json!([from("human", json!("x")), {"role": "user"}])), "conversations[1].content");
    let twice =
        json!({"system": "T", "conversations": [from("system", json!("S")), from("human", json!("Q"))]});
    assert_eq!(refused(parse(twice)).1, "system");
    assert_eq!(refused(parse(json!({"system": "T", "messages": [says("user", "U")]}))).1, "system");
}

/// A line of 4 MB took gigabytes.
#[test]
fn a_line_has_so_many_turns_and_no_more() {
    let gaps = (0..=MAX_CHOICES).flat_map(|_| [says("user", "U"), json!({"role": "assistant"})]);
    let gaps: Vec<Value> = gaps.collect();
    for line in [json!({"turns": vec!["a"; MAX_CHOICES + 1]}), json!({"messages": gaps})] {
        let error = parse(line).expect_err("there are too many");
        assert!(error.error.message().contains("one line may have 4096"), "{:?}", error.error);
    }
    assert_eq!(chat(json!({"turns": vec!["a"; MAX_CHOICES]})).num_turns(), MAX_CHOICES);
}
