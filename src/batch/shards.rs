//! Shards: the parts of an input that several processes answer, each without knowing of the others.
//!
//! Owns which lines are whose, which follows from the input alone, and what results say of the whole that they are a
//! part of. Where lines are cut is `plan`'s business, joining results `merging`'s.

use std::fmt;
use std::io::Write;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::BatchError;
use super::paths::Inputs;
use super::reader::{ReaderOptions, RequestReader};
use super::request::{Conversation, Prompt, Request};
use crate::plan::{Sketch, Sketcher, split};

/// Most shards of an input.
pub const MAX_SHARDS: u32 = 100_000;

/// One of so many shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// From 1 to the count.
    pub number: u32,
    pub count: u32,
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.count)
    }
}

/// What the results of a shard tell of the whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFacts {
    #[serde(flatten)]
    pub shard: Shard,
    /// Lines that the shard answers.
    pub num_lines: u64,
    /// Lines that all shards answer together.
    pub num_lines_of_all: u64,
    /// BLAKE3 over these, shortened, in hexadecimal digits.
    pub input: String,
    /// The same over whose each of them is.
    pub split: String,
}

impl fmt::Display for ShardFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard, num_lines, num_lines_of_all, split, .. } = self;
        write!(
            f,
            "{shard} ({num_lines} of {num_lines_of_all} lines, split {})",
            split.get(..8).unwrap_or(split)
        )
    }
}

/// The lines of an input and whose they are.
#[derive(Debug, Clone)]
pub struct Split {
    /// Of each line that is answered by anyone, counted from 0.
    part_of: Vec<u32>,
    count: u32,
    input: String,
}

impl Split {
    /// Reads the inputs and splits their lines; `max_tokens` is the limit on answers where a line is silent.
    pub fn of(
        inputs: &Inputs,
        options: &ReaderOptions,
        count: u32,
        max_tokens: u32,
    ) -> Result<Self, BatchError> {
        if let Some(stream) = inputs.stream() {
            return Err(BatchError::ShardOfStream { name: stream.name() });
        }
        let mut reader = RequestReader::open(inputs, ReaderOptions { shard: None, ..options.clone() })?;
        let mut sketches = Vec::new();
        let mut lines = blake3::Hasher::new();
        while let Some(read) = reader.next_request()? {
            let (digest, sketch) = match read {
                Ok(request) => (request.head.digest, sketch_of(&request, max_tokens)),
                Err(failed) => (failed.head.digest, Sketch::default()),
            };
            lines.update(&digest);
            sketches.push(sketch);
        }
        Ok(Self { part_of: split(&sketches, count), count, input: short_hex(&lines) })
    }

    /// The lines of one shard.
    pub fn shard(&self, number: u32) -> ShardLines {
        let mut lines = vec![0; self.part_of.len().div_ceil(64)];
        let mut split = blake3::Hasher::new();
        split.update(&self.count.to_le_bytes());
        let mut num_lines = 0;
        for (place, part) in self.part_of.iter().enumerate() {
            split.update(&part.to_le_bytes());
            if part + 1 == number {
                lines[place / 64] |= 1_u64 << (place % 64);
                num_lines += 1;
            }
        }
        let facts = ShardFacts {
            shard: Shard { number, count: self.count },
            num_lines,
            num_lines_of_all: self.part_of.len() as u64,
            input: self.input.clone(),
            split: short_hex(&split),
        };
        ShardLines { lines, facts }
    }
}

/// The lines of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardLines {
    /// A bit for each line that is answered by anyone.
    lines: Vec<u64>,
    pub facts: ShardFacts,
}

impl ShardLines {
    /// Whether a line is the shard's, of those that are answered by anyone.
    pub(super) fn has(&self, place: u64) -> bool {
        let word = usize::try_from(place / 64).ok().and_then(|word| self.lines.get(word));
        word.is_some_and(|word| word >> (place % 64) & 1 == 1)
    }
}

fn short_hex(hasher: &blake3::Hasher) -> String {
    hasher.finalize().to_hex()[..32].to_owned()
}

/// What of a request is computed, about in the order in which a chat template writes it.
fn sketch_of(request: &Request, max_tokens: u32) -> Sketch {
    let mut sketcher = Sketcher::default();
    let mut num_turns = 1;
    for prompt in &request.prompts {
        match prompt {
            Prompt::Text(text) => put(&mut sketcher, text.as_bytes()),
            Prompt::Tokens(tokens) => {
                tokens.iter().for_each(|token| put(&mut sketcher, &token.to_le_bytes()))
            }
            Prompt::Chat(chat) => {
                num_turns = chat.num_turns();
                put_chat(&mut sketcher, chat);
            }
        }
    }
    let num_answers = request.prompts.len() * request.options.num_choices * num_turns;
    let max_new_tokens = u64::from(request.params.max_tokens.unwrap_or(max_tokens));
    sketcher.finish(max_new_tokens.saturating_mul(num_answers as u64))
}

fn put_chat(sketcher: &mut Sketcher, chat: &Conversation) {
    put(sketcher, chat.template.as_deref().unwrap_or_default().as_bytes());
    chat.template_kwargs.iter().for_each(|(name, value)| {
        put(sketcher, name.as_bytes());
        put_json(sketcher, value);
    });
    chat.tools.iter().for_each(|tools| put_json(sketcher, tools));
    let later = chat.later.iter().flat_map(|turn| &turn.messages);
    chat.messages.iter().chain(later).for_each(|message| put_json(sketcher, message));
}

fn put(sketcher: &mut Sketcher, bytes: &[u8]) {
    sketcher.write_all(bytes).expect("a sketcher takes everything");
}

fn put_json(sketcher: &mut Sketcher, value: &Value) {
    serde_json::to_writer(sketcher, value).expect("a sketcher takes everything");
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::batch::paths::InputPath;
    use crate::batch::selection::Selection;

    /// Questions on three documents, some ids missing, one given twice, some lines that are none.
    fn write_input(folder: &std::path::Path) -> Inputs {
        let line = |number: usize| match number % 10 {
            7 => "nonsense\n".to_owned(),
            8 => "\n".to_owned(),
            _ => {
                let document = ["ebb", "flood", "slack"][number % 3].repeat(300);
                let mut line = json!({"messages": [{"role": "system", "content": document},
                    {"role": "user", "content": format!("Question {number}?")}], "max_tokens": 8});
                if number.is_multiple_of(4) {
                    line["id"] = json!(format!("r{}", number / 8));
                }
                format!("{line}\n")
            }
        };
        let names = [("a.jsonl", 0..40), ("b.jsonl", 40..60)];
        let inputs = names.map(|(name, numbers)| {
            fs::write(folder.join(name), numbers.map(line).collect::<String>()).expect("there is room");
            InputPath::File(folder.join(name))
        });
        Inputs::find(&inputs).expect("they are there")
    }

    /// Place, id and problem of each line.
    fn read(inputs: &Inputs, options: ReaderOptions) -> Vec<(String, String, String)> {
        let mut reader = RequestReader::open(inputs, options).expect("the files are there");
        let mut lines = Vec::new();
        while let Some(read) = reader.next_request().expect("files can be read") {
            let (head, problem) = match read {
                Ok(request) => (request.head, String::new()),
                Err(failed) => (failed.head, failed.error.message().to_owned()),
            };
            assert_eq!(head.index, lines.len() as u64);
            lines.push((head.file.line_name(head.line), head.custom_id, problem));
        }
        lines
    }

    #[test]
    fn shards_are_the_whole_with_the_same_ids_and_errors() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let inputs = write_input(folder.path());
        for selection in [Selection::All, Selection::Range(5, Some(31))] {
            let options = ReaderOptions { selection, ..ReaderOptions::default() };
            let whole = read(&inputs, options.clone());
            assert!(whole.iter().any(|(.., problem)| problem.contains("was used by an earlier line")));
            let split = Split::of(&inputs, &options, 4, 100).expect("files can be split");
            let mut joined = Vec::new();
            for number in 1..=4 {
                // Each process splits by itself.
                let split = Split::of(&inputs, &options, 4, 100).expect("files can be split");
                let lines = split.shard(number);
                let facts = lines.facts.clone();
                let part = read(&inputs, ReaderOptions { shard: Some(Arc::new(lines)), ..options.clone() });
                assert_eq!(
                    (facts.num_lines, facts.num_lines_of_all),
                    (part.len() as u64, whole.len() as u64)
                );
                joined.extend(part);
            }
            let place = |line: &(String, String, String)| whole.iter().position(|other| other == line);
            joined.sort_by_key(place);
            assert_eq!(joined, whole);
            assert_eq!(split.shard(1).facts.split, split.shard(2).facts.split);
        }
    }

    #[test]
    fn a_document_has_its_lines_in_one_shard_and_a_change_is_another_split() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let inputs = write_input(folder.path());
        let split = |count, max_tokens| {
            Split::of(&inputs, &ReaderOptions::default(), count, max_tokens).expect("files can be split")
        };
        let options = |split: &Split, number| ReaderOptions {
            shard: Some(Arc::new(split.shard(number))),
            ..ReaderOptions::default()
        };
        let three = split(3, 100);
        let sizes: Vec<usize> = (1..=3).map(|number| read(&inputs, options(&three, number)).len()).collect();
        // Those that are errors take no time, and are in one of them.
        assert!(sizes.iter().all(|size| (13..=26).contains(size)), "{sizes:?}");
        let before = three.shard(1).facts;
        assert_ne!(split(4, 100).shard(1).facts.split, before.split);
        fs::write(folder.path().join("b.jsonl"), "{\"prompt\": \"other\"}\n").expect("there is room");
        assert_ne!(split(3, 100).shard(1).facts.input, before.input);
    }

    #[test]
    fn what_can_be_read_once_is_not_split() {
        let error =
            Split::of(&InputPath::Stdin.into(), &ReaderOptions::default(), 2, 1).expect_err("it is a stream");
        assert!(error.to_string().contains("--shard needs files"), "{error}");
    }
}
