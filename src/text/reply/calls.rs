//! The ways in which models write calls of tools.
//!
//! Owns their table, and finding calls among what else is said. The pieces that a way is made of are read by
//! `parts`.

use serde_json::Value;

use super::DraftCall;
use super::channels;
use super::literals::Dialect;
use super::parts::{Pair, Part, Reading, Typed};

/// One way of writing them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallSyntax {
    /// Its name as a setting, then others that other programs have for it.
    pub names: &'static [&'static str],
    /// What may stand around all calls.
    section: Option<(&'static str, &'static str)>,
    /// One call, or a list of them.
    parts: &'static [Part],
    /// Whether an answer that calls says nothing else, as nothing marks a call in it.
    is_whole_answer: bool,
    /// Whether the template takes ids of nine letters and no others.
    pub has_short_ids: bool,
}

const fn calls(names: &'static [&'static str], parts: &'static [Part]) -> CallSyntax {
    CallSyntax { names, section: None, parts, is_whole_answer: false, has_short_ids: false }
}

use Part::{Arguments, Braces, Calls, Id, Name, Optional, Pairs, Python, Text};

/// Members of XML, in Qwen3-Coder's way.
const QWEN_PAIR: Pair =
    Pair { open: "<parameter=", key_end: ">", value_open: &[("", Typed::BySchema)], close: "</parameter>" };

const GLM_PAIR: Pair = Pair {
    open: "<arg_key>",
    key_end: "</arg_key>",
    value_open: &[("<arg_value>", Typed::BySchema)],
    close: "</arg_value>",
};

const MINIMAX_PAIR: Pair = Pair {
    open: "<parameter name=\"",
    key_end: "\"",
    value_open: &[(">", Typed::BySchema)],
    close: "</parameter>",
};

const DSML_PAIR: Pair = Pair {
    open: "<｜DSML｜parameter name=\"",
    key_end: "\"",
    value_open: &[
        ("string=\"true\">", Typed::Text),
        ("string=\"false\">", Typed::Json),
        (">", Typed::BySchema),
    ],
    close: "</｜DSML｜parameter>",
};

const QWEN_FUNCTION_END: &str = "</function>";

/// All of them; the first counts that reads what a template writes.
pub const ALL: &[CallSyntax] = &[
    calls(&["harmony", "openai", "gpt_oss"], &[Text(channels::MESSAGE)]),
    calls(&["hermes", "qwen25", "json"], &[Text("<tool_call>"), Calls, Optional("</tool_call>")]),
    calls(
        &["qwen3_coder", "qwen3_xml", "qwen3_coder_xml", "nemotron_nano_v3"],
        &[
            Optional("<tool_call>"),
            Text("<function="),
            Name(&[">"]),
            Text(">"),
            Pairs(&QWEN_PAIR),
            Text(QWEN_FUNCTION_END),
            Optional("</tool_call>"),
        ],
    ),
    calls(
        &["glm", "glm45", "glm47"],
        &[
            Text("<tool_call>"),
            Name(&["\n", "<arg_key>", "</tool_call>"]),
            Pairs(&GLM_PAIR),
            Text("</tool_call>"),
        ],
    ),
    CallSyntax {
        section: Some(("<seed:tool_call>", "</seed:tool_call>")),
        ..calls(
            &["seed_oss"],
            &[Text("<function="), Name(&[">"]), Text(">"), Pairs(&QWEN_PAIR), Text(QWEN_FUNCTION_END)],
        )
    },
    CallSyntax {
        section: Some(("<minimax:tool_call>", "</minimax:tool_call>")),
        ..calls(
            &["minimax_m2", "minimax"],
            &[
                Text("<invoke name=\""),
                Name(&["\""]),
                Text("\""),
                Text(">"),
                Pairs(&MINIMAX_PAIR),
                Text("</invoke>"),
            ],
        )
    },
    CallSyntax {
        section: Some(("<｜DSML｜function_calls>", "</｜DSML｜function_calls>")),
        ..calls(
            &["deepseek_v32", "deepseek_v3_2"],
            &[
                Text("<｜DSML｜invoke name=\""),
                Name(&["\""]),
                Text("\""),
                Text(">"),
                Pairs(&DSML_PAIR),
                Text("</｜DSML｜invoke>"),
            ],
        )
    },
    CallSyntax {
        section: Some(("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")),
        ..calls(
            &["deepseek_v3", "deepseek_r1"],
            &[
                Text("<｜tool▁call▁begin｜>"),
                Text("function"),
                Text("<｜tool▁sep｜>"),
                Name(&["\n"]),
                Text("```json"),
                Arguments,
                Text("```"),
                Optional("<｜tool▁call▁end｜>"),
            ],
        )
    },
    CallSyntax {
        section: Some(("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")),
        ..calls(
            &["deepseek_v31", "deepseek_v3_1"],
            &[
                Text("<｜tool▁call▁begin｜>"),
                Name(&["<｜tool▁sep｜>"]),
                Text("<｜tool▁sep｜>"),
                Arguments,
                Optional("<｜tool▁call▁end｜>"),
            ],
        )
    },
    CallSyntax {
        section: Some(("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")),
        ..calls(
            &["kimi_k2", "kimi"],
            &[
                Text("<|tool_call_begin|>"),
                Id("<|tool_call_argument_begin|>"),
                Text("<|tool_call_argument_begin|>"),
                Arguments,
                Optional("<|tool_call_end|>"),
            ],
        )
    },
    CallSyntax { has_short_ids: true, ..calls(&["mistral"], &[Text("[TOOL_CALLS]"), Calls]) },
    CallSyntax {
        has_short_ids: true,
        ..calls(
            &["mistral_args", "mistral_v11"],
            &[
                Text("[TOOL_CALLS]"),
                Name(&["[CALL_ID]", "[ARGS]", "{"]),
                Part::OptionalId("[CALL_ID]", &["[ARGS]", "{"]),
                Optional("[ARGS]"),
                Arguments,
            ],
        )
    },
    calls(
        &["gemma4"],
        &[
            Text("<|tool_call>"),
            Text("call:"),
            Name(&["{"]),
            Braces(&Dialect::GEMMA_4),
            Optional("<tool_call|>"),
        ],
    ),
    calls(
        &["functiongemma", "function_gemma"],
        &[
            Text("<start_function_call>"),
            Text("call:"),
            Name(&["{"]),
            Braces(&Dialect::FUNCTION_GEMMA),
            Optional("<end_function_call>"),
        ],
    ),
    calls(&["lfm2"], &[Text("<|tool_call_start|>"), Python, Optional("<|tool_call_end|>")]),
    calls(&["olmo3"], &[Text("<function_calls>"), Python, Optional("</function_calls>")]),
    calls(&["nemotron"], &[Text("<TOOLCALL>"), Calls, Optional("</TOOLCALL>")]),
    calls(&["cohere"], &[Text("<|START_ACTION|>"), Calls, Optional("<|END_ACTION|>")]),
    calls(&["granite"], &[Text("<|tool_call|>"), Calls, Optional("<|/tool_call|>")]),
    calls(&["phi4_mini", "phi4_mini_json"], &[Text("functools"), Calls]),
    CallSyntax {
        is_whole_answer: true,
        ..calls(&["llama3_json", "llama4_json", "llama"], &[Optional("<|python_tag|>"), Calls, Optional(";")])
    },
    CallSyntax {
        is_whole_answer: true,
        ..calls(
            &["pythonic", "llama4_pythonic", "llama3_pythonic"],
            &[Optional("<|python_start|>"), Python, Optional("<|python_end|>")],
        )
    },
];

impl CallSyntax {
    /// The syntax of a name.
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|syntax| syntax.names.contains(&name))
    }

    /// The names under which they can be asked for, each with its other names.
    pub fn all_names() -> impl Iterator<Item = &'static [&'static str]> {
        ALL.iter().map(|syntax| syntax.names)
    }

    pub(super) fn marks(&'static self) -> impl Iterator<Item = &'static str> {
        let section = self.section.into_iter().flat_map(|(open, close)| [open, close]);
        section.chain(self.parts.iter().flat_map(Part::marks)).filter(|mark| mark.len() > 1)
    }

    /// The text that no answer has but for a call, if there is one.
    pub(super) fn sign(&self) -> Option<&'static str> {
        match (self.is_whole_answer, self.section, self.starts().next()) {
            (true, ..) => None,
            (false, Some((open, _)), _) => Some(open),
            (false, None, start) => start,
        }
    }

    /// What a call begins with.
    fn starts(&self) -> impl Iterator<Item = &'static str> {
        let num_optional = self.parts.iter().take_while(|part| matches!(part, Optional(_))).count();
        let starts = self.parts.iter().take(num_optional + 1);
        starts.filter_map(|part| match part {
            Text(text) | Optional(text) => Some(*text),
            _ => None,
        })
    }

    /// Takes the calls out of a text; what is malformed stays in it. With `marked_only` a call that no mark tells
    /// from text is text.
    pub(super) fn read(
        &self,
        text: &str,
        tools: Option<&Value>,
        marked_only: bool,
    ) -> (String, Vec<DraftCall>) {
        if self.is_whole_answer && marked_only {
            return (text.to_owned(), Vec::new());
        }
        if self.is_whole_answer {
            let calls = self.read_block(text, tools).filter(|(_, length)| text[*length..].trim().is_empty());
            let calls =
                calls.map(|(calls, _)| calls).filter(|calls| calls.iter().all(|call| has_tool(tools, call)));
            return match calls {
                Some(calls) => (String::new(), calls),
                None => (text.to_owned(), Vec::new()),
            };
        }
        let (mut said, mut found) = (String::new(), Vec::new());
        let mut rest = text;
        while let Some((start, mark)) = self.next_start(rest) {
            match self.read_block(&rest[start..], tools) {
                Some((calls, length)) => {
                    said.push_str(&rest[..start]);
                    found.extend(calls);
                    rest = &rest[start + length..];
                    // What parts calls from each other and from the rest says nothing.
                    said.truncate(said.trim_end().len());
                    if said.is_empty() || rest.trim().is_empty() {
                        rest = rest.trim_start();
                    }
                }
                None => {
                    let end = start + mark.len();
                    said.push_str(&rest[..end]);
                    rest = &rest[end..];
                }
            }
        }
        said.push_str(rest);
        match self.read_bare(text, tools).filter(|_| found.is_empty() && !marked_only) {
            Some(calls) => (String::new(), calls),
            None => (said, found),
        }
    }

    /// Reads an answer that is nothing but JSON of calls, without their marks or in a block of code: small models
    /// write it where their template shows marks. To be no answer in JSON it has to name tools that there are.
    fn read_bare(&self, text: &str, tools: Option<&Value>) -> Option<Vec<DraftCall>> {
        const FENCE: &str = "```";
        if !self.parts.contains(&Calls) {
            return None;
        }
        let text = text.trim();
        let fenced = text.strip_prefix(FENCE).and_then(|text| text.strip_suffix(FENCE));
        let json = fenced.map_or(text, |fenced| fenced.strip_prefix("json").unwrap_or(fenced)).trim();
        let calls = super::parts::calls_of_json(json)?;
        calls.iter().all(|call| has_tool(tools, call)).then_some(calls)
    }

    /// Where the next call may begin, and with what.
    fn next_start(&self, text: &str) -> Option<(usize, &'static str)> {
        let section = self.section.map(|(open, _)| open);
        let found =
            section.into_iter().chain(self.starts()).filter_map(|mark| Some((text.find(mark)?, mark)));
        found.min_by_key(|(start, mark)| (*start, usize::MAX - mark.len()))
    }

    /// Reads calls that stand at the beginning of a text, in their section or by themselves; returns them and
    /// how much of the text they are.
    pub(super) fn read_block(&self, text: &str, tools: Option<&Value>) -> Option<(Vec<DraftCall>, usize)> {
        let mut reading = Reading::new(text, tools);
        let section = self.section.filter(|(open, _)| reading.take(open));
        let mut end = 0;
        while reading.read(self.parts) {
            end = reading.at();
            if !self.is_whole_answer && section.is_none() {
                break;
            }
        }
        if end == 0 {
            return None;
        }
        reading.go_back_to(end);
        if let Some((_, close)) = section {
            let is_closed = reading.take(close);
            if !is_closed && !reading.is_at_end() {
                return None;
            }
        }
        let end = reading.at();
        Some((reading.into_calls(), end))
    }
}

/// Whether a call is of one of these tools.
fn has_tool(tools: Option<&Value>, call: &DraftCall) -> bool {
    tools.and_then(Value::as_array).is_some_and(|tools| {
        tools
            .iter()
            .any(|tool| super::typed::function_of(tool).get("name").is_some_and(|name| *name == *call.name))
    })
}
