//! An answer taken apart: thinking, what is said, and calls of tools.
//!
//! Owns what of an answer's text is which, for the ways in which models write them: two tables, of `thinking`
//! and of `calls`, and what reads them. Which way a model's is follows from its chat template (`trial`). When
//! an answer is over, and its record, are decided elsewhere.

mod calls;
mod channels;
mod literals;
mod parts;
#[cfg(test)]
mod tests;
mod thinking;
mod trial;
mod typed;

use std::sync::Arc;

use serde_json::{Value, json};

pub use self::calls::CallSyntax;
pub use self::thinking::ThinkingSyntax;

/// How a model's answers are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplySyntax {
    pub thinking: Option<&'static ThinkingSyntax>,
    pub calls: Option<&'static CallSyntax>,
}

/// What becomes of thinking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ShownThinking {
    /// It is told beside what is said.
    #[default]
    Apart,
    /// It stays in the text as the model writes it.
    Within,
    /// It is left out.
    LeftOut,
}

/// What the end of a prompt says of thinking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PromptThinking {
    /// The answer may begin with it.
    #[default]
    Unsaid,
    /// The answer begins within it.
    Open,
    /// It is over.
    Closed,
}

/// How an answer calls tools.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ExpectedCalls {
    /// In the model's own way, if it does.
    #[default]
    AsWritten,
    /// The answer is held to be a JSON list of `{"name", "parameters"}`.
    List,
    /// The answer is held to be the arguments of this function.
    Of(String),
    /// What looks like one is text.
    None,
}

/// An answer taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    /// What is said; `None` where the answer only calls tools.
    pub content: Option<String>,
    pub reasoning: Option<String>,
    pub calls: Vec<ToolCall>,
    /// How many bytes of the answer's text are thinking, its marks included.
    pub num_thinking_bytes: usize,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// The text of a JSON object.
    pub arguments: String,
}

/// Which of a line's answers is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Occasion {
    pub choice: usize,
    /// Its turn in a conversation that has several.
    pub turn: usize,
    /// Whether its prompt ends within thinking.
    pub begins_thinking: bool,
}

/// Takes the answers of one line apart.
#[derive(Debug, Clone, Default)]
pub struct ReplyReader {
    pub syntax: ReplySyntax,
    pub shown_thinking: ShownThinking,
    pub expected_calls: ExpectedCalls,
    /// The tools that may be called; calls are looked for where there are any.
    pub tools: Option<Arc<Value>>,
    /// Whether the answer is held to something that is no call: only what is marked as one is one.
    pub is_held: bool,
    /// What the ids of calls are made from.
    pub id_seed: [u8; 16],
}

/// A way of writing as the user asks for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Asked<T: 'static> {
    /// What the chat template tells.
    #[default]
    Auto,
    /// None: what would be taken apart stays text.
    None,
    Named(&'static T),
}

/// What the user asks for of all replies of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplySettings {
    pub thinking: Asked<ThinkingSyntax>,
    pub calls: Asked<CallSyntax>,
}

impl<T> Asked<T> {
    fn or(self, told: Option<&'static T>) -> Option<&'static T> {
        match self {
            Self::Auto => told,
            Self::None => None,
            Self::Named(syntax) => Some(syntax),
        }
    }
}

impl ReplySettings {
    /// The syntax of answers whose template tells this one.
    pub fn over(self, told: ReplySyntax) -> ReplySyntax {
        ReplySyntax { thinking: self.thinking.or(told.thinking), calls: self.calls.or(told.calls) }
    }
}

impl ReplySyntax {
    /// The texts by which parts of an answer are told from each other.
    pub fn marks(&self) -> impl Iterator<Item = &'static str> {
        let of_thinking = self.thinking.into_iter().flat_map(ThinkingSyntax::marks);
        of_thinking.chain(self.calls.into_iter().flat_map(CallSyntax::marks))
    }
}

impl Reply {
    /// The message that an answer is in a conversation that goes on.
    pub fn to_message(&self) -> Value {
        let mut message = json!({"role": "assistant", "content": self.content});
        if let Some(reasoning) = &self.reasoning {
            message["reasoning_content"] = json!(reasoning);
        }
        if !self.calls.is_empty() {
            message["tool_calls"] = self.calls.iter().map(ToolCall::to_json).collect();
        }
        message
    }
}

impl ToolCall {
    /// The form of OpenAI's API.
    pub fn to_json(&self) -> Value {
        let function = json!({"name": self.name, "arguments": self.arguments});
        json!({"id": self.id, "type": "function", "function": function})
    }
}

/// An answer before its calls have ids and its texts are cleaned.
#[derive(Debug, Default)]
struct Draft {
    content: String,
    reasoning: String,
    calls: Vec<DraftCall>,
    num_thinking_bytes: usize,
}

/// A call as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct DraftCall {
    /// Where the model gives it one.
    id: Option<String>,
    name: String,
    arguments: String,
}

impl ReplyReader {
    /// Takes an answer's text apart. `control` are the names of control tokens that the text shows and a reader is
    /// not to see.
    pub fn read(&self, text: &str, occasion: Occasion, control: &[String]) -> Reply {
        let clean = |text: &str| control.iter().fold(text.to_owned(), |text, name| text.replace(name, ""));
        let draft = self.draft(text, occasion.begins_thinking);
        let calls = draft.calls.into_iter().enumerate().map(|(place, call)| ToolCall {
            id: call.id.unwrap_or_else(|| self.made_up_id(occasion, place)),
            name: call.name,
            arguments: call.arguments,
        });
        let calls: Vec<ToolCall> = calls.collect();
        let content = clean(&draft.content);
        let reasoning = Some(clean(&draft.reasoning)).filter(|text| !text.is_empty());
        Reply {
            content: (calls.is_empty() || !content.is_empty()).then_some(content),
            reasoning: reasoning.filter(|_| self.shown_thinking == ShownThinking::Apart),
            calls,
            num_thinking_bytes: draft.num_thinking_bytes,
        }
    }

    /// How thinking is written, where it is parted from what is said.
    pub fn thinking(&self) -> Option<&'static ThinkingSyntax> {
        self.syntax.thinking.filter(|_| self.shown_thinking != ShownThinking::Within)
    }

    fn draft(&self, text: &str, begins_thinking: bool) -> Draft {
        let tools = self.tools.as_deref();
        let calls = self.syntax.calls.filter(|_| tools.is_some());
        let calls = calls.filter(|_| self.expected_calls == ExpectedCalls::AsWritten);
        let thinking = self.thinking();
        if self.syntax.marks().any(|mark| mark == channels::MESSAGE) {
            return self.held_to_calls(channels::read(text, thinking.is_some(), calls.is_some()));
        }
        let split = thinking.map(|syntax| syntax.split(text, begins_thinking));
        let mut draft = Draft { content: text.to_owned(), ..Draft::default() };
        if let Some(split) = split {
            draft.reasoning = split.thinking.to_owned();
            draft.content = split.said.to_owned();
            draft.num_thinking_bytes = split.num_bytes;
        }
        if let Some(syntax) = calls {
            (draft.content, draft.calls) = syntax.read(&draft.content, tools, self.is_held);
        }
        self.held_to_calls(draft)
    }

    /// Reads what the answer was held to, where that is calls; one that was cut short stays text.
    fn held_to_calls(&self, mut draft: Draft) -> Draft {
        let calls = match &self.expected_calls {
            ExpectedCalls::AsWritten | ExpectedCalls::None => None,
            ExpectedCalls::List => parts::calls_of_json(draft.content.trim()),
            ExpectedCalls::Of(name) => parts::arguments_of_json(draft.content.trim())
                .map(|arguments| vec![DraftCall { id: None, name: name.clone(), arguments }]),
        };
        if let Some(calls) = calls {
            draft.content.clear();
            draft.calls = calls;
        }
        draft
    }

    /// An id that follows from the line alone; some templates take nine letters and no others.
    fn made_up_id(&self, occasion: Occasion, place: usize) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.id_seed);
        for number in [occasion.choice, occasion.turn, place] {
            hasher.update(&(number as u64).to_le_bytes());
        }
        let hex = hasher.finalize().to_hex();
        match self.syntax.calls.is_some_and(|syntax| syntax.has_short_ids) {
            true => hex[..9].to_owned(),
            false => format!("call_{}", &hex[..24]),
        }
    }
}
