//! Chat templates: messages to the prompt text the model was trained on.
//!
//! Owns where a model's template comes from and the variables it sees. A template is data that
//! came with a model: what it may call and how much it may compute is `jinja`'s business, how a
//! request's messages are put into the form templates expect is `messages`' and `calls`'.

mod calls;
mod jinja;
mod json;
mod messages;
mod numbers;
mod passed_over;
pub(super) mod special_tokens;

#[cfg(test)]
mod calls_tests;

#[cfg(test)]
mod render_tests;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::{Map, Value, json};

use self::calls::{CallForm, Probe, Shown};
use self::jinja::Program;
use self::messages::ContentForm;
pub use self::passed_over::Notice;
use self::passed_over::Reads;
use super::TextError;
use super::files::{read_json, read_text};
use crate::models::GgufHeader;

/// What a chat template is rendered for.
#[derive(Debug, Clone, Copy)]
pub struct RenderRequest<'a> {
    /// Messages in the OpenAI form.
    pub messages: &'a [Value],
    /// The list of tools, if the request has any.
    pub tools: Option<&'a Value>,
    /// Whether the prompt ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Further template variables, such as `enable_thinking`; they win over special tokens.
    pub extra: &'a Map<String, Value>,
}

/// A model's chat template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    default: Variant,
    /// The template that some models have for requests with tools.
    tool_use: Option<Variant>,
    /// `bos_token`, `eos_token` and the like.
    special_tokens: Map<String, Value>,
    /// The text of both.
    source: String,
}

#[derive(Debug)]
struct Variant {
    program: Program,
    content_form: ContentForm,
    /// Forms of tool calls, the likeliest first; never empty.
    call_forms: Vec<CallForm>,
    reads: Reads,
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// What the template has passed over.
    pub notices: Vec<Notice>,
}

/// A template's text and where it came from.
struct Source {
    origin: String,
    text: String,
}

#[derive(Default)]
struct Sources {
    default: Option<Source>,
    tool_use: Option<Source>,
}

impl ChatTemplate {
    /// Loads a model folder's template; `None` when the model has none.
    ///
    /// The first of these that has one wins: `chat_template.jinja`, `tokenizer_config.json` (a
    /// string, or a list of named templates), `chat_template.json`.
    pub fn from_folder(dir: &Path) -> Result<Option<ChatTemplate>, TextError> {
        let tokenizer_config = read_json(&dir.join("tokenizer_config.json"))?;
        let mut sources = Sources::default();
        if let Some(text) = read_text(&dir.join("chat_template.jinja"))? {
            sources.default = Some(Source::new(dir.join("chat_template.jinja").display(), &text));
            let named = dir.join("additional_chat_templates").join("tool_use.jinja");
            sources.tool_use = read_text(&named)?.map(|text| Source::new(named.display(), &text));
        } else {
            let chat_template = dir.join("chat_template.json");
            for (path, value) in [
                (dir.join("tokenizer_config.json"), tokenizer_config.clone()),
                (chat_template.clone(), read_json(&chat_template)?),
            ] {
                if let Some(value) = value.as_ref().and_then(|value| value.get("chat_template")) {
                    sources = Sources::from_json(path.display(), value);
                }
                if sources.default.is_some() {
                    break;
                }
            }
        }
        let special_tokens = special_tokens::from_folder(dir)?;
        ChatTemplate::compile(sources, special_tokens)
    }

    /// Loads the template in a GGUF file's metadata; `None` when there is none.
    pub fn from_gguf(header: &GgufHeader) -> Result<Option<ChatTemplate>, TextError> {
        let source = |key: &str| {
            let origin = format!("{}: {key}", header.path().display());
            header.str(key).map(|text| Source::new(origin, text))
        };
        let sources = Sources {
            default: source("tokenizer.chat_template"),
            tool_use: source("tokenizer.chat_template.tool_use"),
        };
        ChatTemplate::compile(sources, special_tokens::from_gguf(header))
    }

    /// Compiles a template that is no file's; `origin` says in error messages where it came from.
    pub fn from_text(
        origin: &str,
        text: &str,
        special_tokens: Map<String, Value>,
    ) -> Result<ChatTemplate, TextError> {
        let default = Variant::new(&Source::new(origin, text), &special_tokens)?;
        Ok(ChatTemplate { default, tool_use: None, special_tokens, source: text.to_owned() })
    }

    fn compile(
        sources: Sources,
        special_tokens: Map<String, Value>,
    ) -> Result<Option<ChatTemplate>, TextError> {
        let Some(default) = sources.default else {
            return Ok(None);
        };
        let mut source = default.text.clone();
        source.extend(sources.tool_use.iter().map(|tool_use| tool_use.text.as_str()));
        let default = Variant::new(&default, &special_tokens)?;
        let tool_use = sources.tool_use.map(|source| Variant::new(&source, &special_tokens)).transpose()?;
        Ok(Some(ChatTemplate { default, tool_use, special_tokens, source }))
    }

    /// Renders a request's messages, as far as the template shows them.
    pub fn render(&self, request: &RenderRequest) -> Result<String, TextError> {
        let variant = self.variant(request)?;
        variant.render(&self.special_tokens, request, variant.call_forms[0])
    }

    /// Renders a request's messages in the form in which the template shows their tool calls and
    /// results; an error where it shows them in none. Says what else the template passes over.
    pub fn render_whole(&self, request: &RenderRequest) -> Result<Rendered, TextError> {
        let variant = self.variant(request)?;
        let (text, form, shown) = variant.render_shown(&self.special_tokens, request)?;
        let render = |request: &RenderRequest| variant.render(&self.special_tokens, request, form).ok();
        let mut notices = variant.reads.passed_over(request, &text, render);
        if shown == Shown::WithoutText {
            notices.push(Notice::text_beside_a_call());
        }
        Ok(Rendered { text, notices })
    }

    /// The template's text, that of its variant for tools behind it.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    fn variant(&self, request: &RenderRequest) -> Result<&Variant, TextError> {
        if request.messages.is_empty() {
            return Err(TextError::NoMessages);
        }
        Ok(match (&self.tool_use, request.tools) {
            (Some(tool_use), Some(_)) => tool_use,
            _ => &self.default,
        })
    }
}

impl Source {
    fn new(origin: impl ToString, text: &str) -> Source {
        Source { origin: origin.to_string(), text: text.to_owned() }
    }
}

impl Sources {
    /// Reads a string, or a list of `{"name": …, "template": …}`.
    fn from_json(origin: impl std::fmt::Display, value: &Value) -> Sources {
        let named = |name: &str| {
            let list = value.as_array()?;
            let entry = list.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(name))?;
            let text = entry.get("template")?.as_str()?;
            Some(Source::new(format!("{origin}: chat_template {name:?}"), text))
        };
        match value.as_str() {
            Some(text) => Sources {
                default: Some(Source::new(format!("{origin}: chat_template"), text)),
                tool_use: None,
            },
            None => Sources { default: named("default"), tool_use: named("tool_use") },
        }
    }
}

impl Variant {
    fn new(source: &Source, special_tokens: &Map<String, Value>) -> Result<Variant, TextError> {
        let program = Program::compile(&source.origin, &source.text)?;
        Ok(Variant::of_program(program, &source.text, special_tokens))
    }

    /// Finds out what a template takes, by rendering small conversations.
    fn of_program(program: Program, source: &str, special_tokens: &Map<String, Value>) -> Variant {
        let extra = Map::new();
        let render = |messages: &[Value], tools: Option<&Value>| {
            let request = RenderRequest { messages: &[], tools, add_generation_prompt: true, extra: &extra };
            program.render(variables(special_tokens, messages, &request)).ok()
        };
        let mut content_form = ContentForm::probe(|messages| render(messages, None));
        content_form.knows_developer =
            ["'developer'", "\"developer\""].iter().any(|role| source.contains(role));
        let call_forms = CallForm::by_trial(|messages, form| {
            render(&messages::prepare(messages, content_form, form).ok()?, None)
        });
        let reads = Reads::of(source, |messages, tools| {
            render(&messages::prepare(messages, content_form, call_forms[0]).ok()?, Some(tools))
        });
        Variant { program, content_form, call_forms, reads }
    }

    fn render(
        &self,
        special_tokens: &Map<String, Value>,
        request: &RenderRequest,
        form: CallForm,
    ) -> Result<String, TextError> {
        let messages = messages::prepare(request.messages, self.content_form, form)?;
        self.program.render(variables(special_tokens, &messages, request))
    }

    /// Renders in the form that shows most of the calls and results: all of them, and the text
    /// beside them if any form shows that.
    fn render_shown(
        &self,
        special_tokens: &Map<String, Value>,
        request: &RenderRequest,
    ) -> Result<(String, CallForm, Shown), TextError> {
        let render = |form| self.render(special_tokens, request, form);
        let usual = self.call_forms[0];
        let Some(probe) = Probe::of(request.messages) else {
            return Ok((render(usual)?, usual, Shown::Whole));
        };
        let probe_request = RenderRequest { messages: &probe.messages, ..*request };
        let mut best: Option<(Shown, CallForm)> = None;
        for &form in &self.call_forms {
            let shown = probe.judge(self.render(special_tokens, &probe_request, form).ok().as_deref());
            if best.is_none_or(|(best, _)| shown < best) {
                best = Some((shown, form));
            }
            if shown == Shown::Whole {
                break;
            }
        }
        let (shown, form) = best.unwrap_or((Shown::Failed, usual));
        // What the template itself says against a conversation says more.
        let text = render(form)?;
        let part = match shown {
            Shown::Whole | Shown::WithoutText | Shown::Distorted => return Ok((text, form, shown)),
            Shown::NotAll(part) => part,
            Shown::Failed => 0,
        };
        let (index, what) = probe.describe(part);
        let problem = format!(
            "the model's chat template does not show {what}, so the model would answer without it; \
             write it into the message's text, or use a model whose template has a place for it"
        );
        Err(TextError::Message { index, problem })
    }
}

/// Puts together what the template sees, as transformers does: what is fixed wins over the
/// request's own variables, those over special tokens.
fn variables(special_tokens: &Map<String, Value>, messages: &[Value], request: &RenderRequest) -> Value {
    let mut variables = special_tokens.clone();
    variables.extend(request.extra.iter().map(|(name, value)| (name.clone(), value.clone())));
    // Absent tools and documents are None in Python: defined, and false.
    variables.entry("documents").or_insert(Value::Null);
    variables.insert("messages".to_owned(), Value::Array(messages.to_vec()));
    variables.insert("tools".to_owned(), request.tools.cloned().unwrap_or_default());
    variables.insert("add_generation_prompt".to_owned(), json!(request.add_generation_prompt));
    Value::Object(variables)
}
