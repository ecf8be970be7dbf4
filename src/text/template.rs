//! Chat templates: messages to the prompt text the model was trained on.
//!
//! Owns where a model's template comes from and the variables it sees. A template is data that
//! came with a model: what it may call and how much it may compute is `jinja`'s business, how a
//! request's messages are put into the form templates expect is `messages`'.

mod jinja;
mod json;
mod messages;
mod special_tokens;

#[cfg(test)]
mod render_tests;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::{Map, Value, json};

use self::jinja::Program;
use self::messages::ContentForm;
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
}

#[derive(Debug)]
struct Variant {
    program: Program,
    content_form: ContentForm,
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
        let special_tokens = special_tokens::from_folder(dir, tokenizer_config.as_ref())?;
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

    fn compile(
        sources: Sources,
        special_tokens: Map<String, Value>,
    ) -> Result<Option<ChatTemplate>, TextError> {
        let Some(default) = sources.default else {
            return Ok(None);
        };
        let default = Variant::new(&default, &special_tokens)?;
        let tool_use = sources.tool_use.map(|source| Variant::new(&source, &special_tokens)).transpose()?;
        Ok(Some(ChatTemplate { default, tool_use, special_tokens }))
    }

    /// Renders a request's messages.
    pub fn render(&self, request: &RenderRequest) -> Result<String, TextError> {
        if request.messages.is_empty() {
            return Err(TextError::NoMessages);
        }
        let variant = match (&self.tool_use, request.tools) {
            (Some(tool_use), Some(_)) => tool_use,
            _ => &self.default,
        };
        let messages = messages::prepare(request.messages, variant.content_form)?;
        variant.program.render(variables(&self.special_tokens, &messages, request))
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
        let mut content_form = ContentForm::probe(|messages| {
            let request =
                RenderRequest { messages: &[], tools: None, add_generation_prompt: true, extra: &Map::new() };
            program.render(variables(special_tokens, messages, &request)).ok()
        });
        content_form.knows_developer =
            ["'developer'", "\"developer\""].iter().any(|role| source.text.contains(role));
        Ok(Variant { program, content_form })
    }
}

/// Puts together what the template sees, as transformers does: what is fixed wins over the
/// request's own variables, those over special tokens.
fn variables(special_tokens: &Map<String, Value>, messages: &[Value], request: &RenderRequest) -> Value {
    let mut variables = special_tokens.clone();
    variables.extend(request.extra.iter().map(|(name, value)| (name.clone(), value.clone())));
    // Absent tools and documents are None in Python: defined, and false.
    variables.entry("documents").or_insert(Value::Null);
    variables.insert("messages".to_owned(), json!(messages));
    variables.insert("tools".to_owned(), request.tools.cloned().unwrap_or_default());
    variables.insert("add_generation_prompt".to_owned(), json!(request.add_generation_prompt));
    Value::Object(variables)
}
