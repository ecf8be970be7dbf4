//! Conversations that are played turn by turn: the engine's request for each turn behind the first.
//!
//! Owns what is kept of the line for that. What the prompt of a turn is `batch/` says, how one is prepared the parent
//! module; when it is time the session knows.

use std::sync::Arc;

use super::{ChoiceKeys, PreparedRequest, Preparer, Wanted, text_bytes};
use crate::{
    batch::{Choice, Conversation, Prompt, RequestError, RequestHead},
    deep::for_one_line,
    text::{Notice, TextModel},
};

/// A conversation with several turns to be generated, each of which is prepared when the answer before it is there.
#[derive(Debug)]
pub(in crate::commands) struct Dialogue {
    pub(super) chat: Conversation,
    pub(super) wanted: Wanted,
}

impl Dialogue {
    pub(in crate::commands) fn num_turns(&self) -> usize {
        self.chat.num_turns()
    }

    /// Bytes of its texts.
    pub(in crate::commands) fn num_bytes(&self) -> usize {
        let later = self.chat.later.iter().flat_map(|turn| &turn.messages);
        self.chat.messages.iter().chain(later).map(text_bytes).sum()
    }
}

/// Takes the conversation out of the prompts if it has several turns, and leaves that of its first turn there.
pub(super) fn take_dialogue(prompts: &mut [Prompt]) -> Option<Conversation> {
    let [Prompt::Chat(chat)] = prompts else { return None };
    if chat.num_turns() == 1 {
        return None;
    }
    let first = chat.turn_after(&[]);
    Some(std::mem::replace(chat, first))
}

impl Preparer {
    /// Prepares the turn of a choice that follows these answers, at least one; what the template has passed over
    /// comes with it.
    pub(in crate::commands) fn next_turn(
        &self,
        text: &Arc<TextModel>,
        head: &RequestHead,
        dialogue: &Dialogue,
        choice: usize,
        answers: &[&Choice],
    ) -> Result<(PreparedRequest, Vec<Notice>), RequestError> {
        let Dialogue { chat, wanted } = dialogue;
        let prompt = Prompt::Chat(chat.turn_after(answers));
        let mut notices = Vec::new();
        let mut request = for_one_line(|| self.first_choice(text, "messages", prompt, wanted, &mut notices))?;
        let generation = &mut request.generation;
        generation.sampling.key = ChoiceKeys::new(wanted, head, 0, answers.len() as u64).of(choice as u64);
        if answers.len() + 1 < chat.num_turns() {
            generation.answer_recurs = std::mem::take(&mut generation.answer_recurs).awaited();
        }
        Ok((request, notices))
    }
}
