//! Conversations that are played turn by turn: answers are filled in as they come.
//!
//! Owns what the prompt of each turn is, and what of an answer the turns behind it read. Where answers are to be
//! filled in is found in `messages`; playing the turns is the run's business.

use serde_json::{Map, Value};

use super::super::record::Choice;
use super::{Conversation, PromptEnding};
use crate::text::Reply;

/// What follows an answer that is to be generated.
#[derive(Debug, Clone, PartialEq)]
pub struct LaterTurn {
    /// The assistant's message that the answer becomes: all of it but what the model says.
    pub gap: Map<String, Value>,
    /// Behind it, up to the next answer; at least one.
    pub messages: Vec<Value>,
}

impl Conversation {
    /// Answers that are to be generated.
    pub fn num_turns(&self) -> usize {
        self.later.len() + 1
    }

    /// The conversation up to the turn behind these answers, the first ones: with none of them, up to the first.
    pub fn turn_after(&self, answers: &[&Choice]) -> Conversation {
        let mut messages = self.messages.clone();
        for (turn, answer) in self.later.iter().zip(answers) {
            messages.push(answered(&turn.gap, answer));
            messages.extend(turn.messages.iter().cloned());
        }
        let is_last = answers.len() >= self.later.len();
        Conversation {
            messages,
            later: Vec::new(),
            tools: self.tools.clone(),
            expected_calls: self.expected_calls.clone(),
            template_kwargs: self.template_kwargs.clone(),
            template: self.template.clone(),
            ending: if is_last { self.ending } else { PromptEnding::NewTurn },
        }
    }
}

/// An answer as a message of its conversation: the one place that says what of it is read by later turns, which
/// is what a user who plays them by hand would send. Thinking is there, for templates that show it again.
fn answered(gap: &Map<String, Value>, answer: &Choice) -> Value {
    let mut message = gap.clone();
    match answer.reply.as_ref().map(Reply::to_message) {
        Some(Value::Object(told)) => {
            message.extend(told.into_iter().filter(|(name, value)| name != "content" || !value.is_null()));
        }
        _ => drop(message.insert("content".to_owned(), Value::String(answer.text.clone()))),
    }
    Value::Object(message)
}
