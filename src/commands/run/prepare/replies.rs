//! How the answers of a line are taken apart, and what they are held to.
//!
//! Owns putting together what the user's flags, the chat template and the request say of thinking, calls and
//! constraints. What each of them means is `text/reply`'s and `guide`'s business.

use std::sync::Arc;

use super::{Preparer, Wanted};
use crate::{
    batch::{AnswerConstraint, AnswerOptions, Prompt, RequestError, RequestHead},
    guide::{Pattern, Preamble},
    text::{ExpectedCalls, Notice, PromptThinking, ReplyReader, ShownThinking, TextModel},
};

impl Preparer {
    /// What takes the answers apart: those of conversations alone.
    pub(super) fn reader(
        &self,
        text: &TextModel,
        head: &RequestHead,
        prompts: &[Prompt],
        options: &AnswerOptions,
        notices: &mut Vec<Notice>,
    ) -> Option<ReplyReader> {
        let Some(Prompt::Chat(chat)) = prompts.first() else { return None };
        let syntax = self.reply.over(text.reply_syntax(chat.template.as_deref()));
        let are_written = chat.tools.is_some() && chat.expected_calls == ExpectedCalls::AsWritten;
        if are_written && syntax.calls.is_none() {
            notices.push(Notice {
                key: "calls are not read".to_owned(),
                text: "tools: how this model writes calls of tools is not told by its chat template, so they stay in the \
                       text; --tool-parser names the way"
                    .to_owned(),
            });
        }
        Some(ReplyReader {
            syntax,
            shown_thinking: options.shown_thinking,
            expected_calls: chat.expected_calls.clone(),
            tools: chat.tools.clone(),
            is_held: options.constraint.is_some() && chat.expected_calls == ExpectedCalls::AsWritten,
            id_seed: head.content_digest,
        })
    }
}

/// The thinking in front of an answer that is held to something, or whose thinking is.
pub(super) fn preamble(
    text: &TextModel,
    wanted: &Wanted,
    prompt: PromptThinking,
) -> Result<Option<Preamble>, RequestError> {
    let budget = wanted.params.thinking_budget;
    let Some(syntax) = wanted.thinking else {
        return match budget {
            None => Ok(None),
            Some(_) => {
                let reason = "how this model writes its thinking is not told by its chat template, so it cannot be limited; \
                              --reasoning-parser names the way";
                Err(RequestError::unsupported("thinking_budget", reason))
            }
        };
    };
    let constraint = wanted.options.constraint.as_ref();
    // Then thinking is part of the text, and the text is what it has to be from its beginning on.
    if let (ShownThinking::Within, Some(constraint)) = (wanted.options.shown_thinking, constraint) {
        return match budget {
            None => Ok(None),
            Some(_) => {
                let reason = format!(
                    "thinking that is part of the text cannot be limited where `{}` says what the text is; leave one of \
                     them out",
                    constraint.param
                );
                Err(RequestError::invalid("thinking_budget", reason))
            }
        };
    }
    let is_asked_for = budget.is_some() || constraint.is_some();
    if !is_asked_for || prompt == PromptThinking::Closed {
        return Ok(None);
    }
    let forced_close = text.tokenizer().encode(syntax.forced_close, false);
    let forced_close =
        forced_close.map_err(|error| RequestError::unsupported("thinking_budget", error.to_string()))?;
    Ok(Some(Preamble {
        open: syntax.open.to_owned(),
        is_open: prompt == PromptThinking::Open,
        close: syntax.close.to_owned(),
        max_tokens: budget.map(|num_tokens| num_tokens as usize),
        forced_close: Arc::from(forced_close),
    }))
}

/// What an answer is held to.
pub(super) fn pattern(
    text: &TextModel,
    asked: Option<&AnswerConstraint>,
    preamble: Option<Preamble>,
) -> Result<Option<Pattern>, RequestError> {
    if asked.is_none() && preamble.is_none() {
        return Ok(None);
    }
    let param = asked.map_or("thinking_budget", |asked| asked.param.as_str());
    let pattern = text.pattern(asked.map(|asked| &asked.constraint), preamble);
    pattern.map(Some).map_err(|error| RequestError::of_constraint(param, &error))
}
