//! From input file to output file through the library, with answers made up by the test.
//!
//! Owns the promise that every request line gets exactly one output line, in input order, however
//! the answers come in. What a model makes of the requests is not looked at here.

use std::fs;
use std::path::Path;

use mlxbatch::batch::{
    Choice, Completion, FinishReason, InputPath, Inputs, OutputPath, Prompt, ReaderOptions, Record,
    RequestReader, ResultWriter, Served, TokenCounts, count_requests,
};
use serde_json::Value;

const INPUT: &str = r#"{"id": "chat", "messages": [{"role": "user", "content": "Hi"}], "metadata": {"n": 1}}

{"prompt": "Once"}
{"id": "chat", "prompt": "again"}
nonsense
{"custom_id": "last", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "Hi"}]}}
"#;

/// Reads everything, then writes the records in the order in which `pick` takes them out.
fn run(folder: &Path, pick: impl Fn(&mut Vec<Record>) -> Record) -> String {
    let input = Inputs::from(InputPath::File(folder.join("in.jsonl")));
    let output = folder.join("out.jsonl");
    let served = Served { model: "made-up".into(), created: 1, is_repeatable: false };

    let mut reader = RequestReader::open(&input, ReaderOptions::default()).unwrap();
    let mut writer = ResultWriter::create(&OutputPath::File(output.clone()), &input, false).unwrap();
    let mut records = Vec::new();
    while let Some(item) = reader.next_request().unwrap() {
        records.push(match item {
            Ok(request) => {
                let answer = |prompt: &Prompt| Choice {
                    text: match prompt {
                        Prompt::Chat(chat) => format!("{} heard", chat.messages.len()),
                        Prompt::Text(text) => format!("{text} upon a time"),
                        Prompt::Tokens(ids) => format!("{} read", ids.len()),
                    },
                    finish_reason: FinishReason::Stop,
                    stop_reason: None,
                    logprobs: None,
                    prompt_logprobs: None,
                    reply: None,
                    turns: Vec::new(),
                };
                let completion = Completion {
                    choices: request.prompts.iter().map(answer).collect(),
                    usage: TokenCounts {
                        num_prompt_tokens: 3,
                        num_completion_tokens: 2,
                        ..TokenCounts::default()
                    },
                };
                Record::success(&request.head, &completion, &served)
            }
            Err(failed) => Record::failed(&failed),
        });
    }
    assert_eq!(count_requests(&input, &ReaderOptions::default()).unwrap(), Some(reader.num_requests()));
    while !records.is_empty() {
        assert_eq!(writer.write(&pick(&mut records)).unwrap(), mlxbatch::batch::Flow::Open);
    }
    assert_eq!(writer.finish(false).unwrap().num_results, 5);
    fs::read_to_string(output).unwrap()
}

#[test]
fn each_line_has_its_output_line_in_order_whoever_finishes_first() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("in.jsonl"), INPUT).unwrap();
    let in_order = run(folder, |records| records.remove(0));
    let lines: Vec<Value> = in_order.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let column = |pointer: &str| -> Vec<Value> {
        lines.iter().map(|line| line.pointer(pointer).cloned().unwrap_or(Value::Null)).collect()
    };
    assert_eq!(column("/id"), ["batch_req_1", "batch_req_3", "batch_req_4", "batch_req_5", "batch_req_6"]);
    assert_eq!(column("/custom_id"), ["chat", "line-3", "chat", "line-5", "last"]);
    let statuses = column("/response/status_code");
    assert_eq!(statuses, [200.into(), 200.into(), 400.into(), Value::Null, 200.into()]);
    assert_eq!(column("/error/code")[3], "invalid_json");
    assert_eq!(column("/response/body/choices/0/text")[1], "Once upon a time");
    assert_eq!(column("/response/body/choices/0/message/content")[4], "1 heard");
    assert_eq!(column("/metadata/n")[0], 1);

    // The same input gives the same bytes, ids included.
    assert_eq!(run(folder, |records| records.pop().unwrap()), in_order);
    assert_eq!(run(folder, |records| records.swap_remove(0)), in_order);
}
