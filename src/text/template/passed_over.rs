//! What a template leaves out of a prompt although the request has it.
//!
//! Owns what is said about tools, template variables and fields of messages that a template does
//! not look at: they change nothing, which whoever wrote them does not expect. Calls and results
//! that do not show are errors, see `calls`.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::RenderRequest;

/// Renders that are spent on finding out which fields of a line's messages its template reads, and fields that are
/// named.
const MAX_TRIALS: usize = 64;
const MAX_NAMED: usize = 32;

/// Something to be said once for all lines that it is true of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The same for all of its kind.
    pub key: String,
    pub text: String,
}

impl Notice {
    pub(super) fn text_beside_a_call() -> Self {
        Self {
            key: "text beside a call".to_owned(),
            text:
                "messages: the model's chat template passes over what an assistant says beside its tool calls"
                    .to_owned(),
        }
    }
}

/// Fields of a message that say where it belongs, and have said it when the roles are known.
const LINKS: [&str; 4] = ["role", "content", "tool_calls", "tool_call_id"];

/// What is known of a template beforehand.
#[derive(Debug)]
pub(super) struct Reads {
    /// Everything in the template's text that may be a variable.
    words: HashSet<String>,
    /// Whether it shows tools without further variables.
    shows_tools: bool,
}

impl Reads {
    /// `render` renders messages with a list of tools.
    pub(super) fn of(source: &str, render: impl Fn(&[Value], &Value) -> Option<String>) -> Reads {
        const PROBE: &str = "probetoolname";
        let is_break = |c: char| !(c.is_alphanumeric() || c == '_');
        let tools = json!([{"type": "function", "function": {
            "name": PROBE, "description": "d", "parameters": {"type": "object", "properties": {}}}}]);
        let user = json!({"role": "user", "content": "Hi"});
        let system = json!({"role": "system", "content": "S"});
        let shows = |messages: &[Value]| render(messages, &tools).is_some_and(|text| text.contains(PROBE));
        Reads {
            words: source.split(is_break).map(str::to_owned).collect(),
            shows_tools: shows(std::slice::from_ref(&user)) || shows(&[system, user.clone()]),
        }
    }

    /// What of a request is not to be seen in `rendered`; `render` renders it with changes.
    pub(super) fn passed_over(
        &self,
        request: &RenderRequest,
        rendered: &str,
        render: impl Fn(&RenderRequest) -> Option<String>,
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        if let Some(name) = self.hidden_tool(request, rendered, &render) {
            notices.push(Notice {
                key: "tools that the template does not show".to_owned(),
                text: format!(
                    "tools: the model's chat template does not show the tool {name:?}; the model will not know it"
                ),
            });
        }
        let unread = request.extra.keys().filter(|name| !self.words.contains(name.as_str()));
        notices.extend(unread.map(|name| Notice {
            key: format!("template variable {name}"),
            text: format!("the model's chat template does not read {name:?}, which changes nothing"),
        }));
        let names = unusual_fields(request.messages);
        let mut trials = Trials { request, rendered, render: &render, num_left: MAX_TRIALS };
        let mut unread = Vec::new();
        trials.find_unread(&names, &mut unread);
        notices.extend(unread.iter().take(MAX_NAMED).map(|name| Notice {
            key: format!("message field {name}"),
            text: format!(
                "messages: the model's chat template passes over the field {name:?} of a message, which changes nothing"
            ),
        }));
        if unread.len() > MAX_NAMED || trials.num_left == 0 {
            notices.push(Notice {
                key: "many message fields".to_owned(),
                text: format!(
                    "messages: they have {} fields that are not usual, of which the model's chat template may pass over \
                     more than are named",
                    names.len()
                ),
            });
        }
        notices
    }

    fn hidden_tool(
        &self,
        request: &RenderRequest,
        rendered: &str,
        render: impl Fn(&RenderRequest) -> Option<String>,
    ) -> Option<String> {
        let tools = request.tools?.as_array()?;
        let names =
            tools.iter().filter_map(|tool| tool.get("function").unwrap_or(tool).get("name")?.as_str());
        let mut names = names.peekable();
        let first = (*names.peek()?).to_owned();
        // A name may stand in the conversation although the tool does not.
        let shows_none = || {
            let without = render(&RenderRequest { tools: Some(&Value::Null), ..*request });
            without.as_deref() == Some(rendered)
        };
        if !self.shows_tools && shows_none() {
            return Some(first);
        }
        names.find(|name| !rendered.contains(name)).map(str::to_owned)
    }
}

/// Looks for fields that change nothing where they are left out, many at once.
struct Trials<'a, R> {
    request: &'a RenderRequest<'a>,
    rendered: &'a str,
    render: &'a R,
    /// Each takes a render.
    num_left: usize,
}

impl<R: Fn(&RenderRequest) -> Option<String>> Trials<'_, R> {
    fn find_unread<'n>(&mut self, names: &[&'n str], unread: &mut Vec<&'n str>) {
        if names.is_empty() || self.num_left == 0 {
            return;
        }
        self.num_left -= 1;
        let left_out: HashSet<&str> = names.iter().copied().collect();
        let messages: Vec<Value> =
            self.request.messages.iter().map(|message| without(message, &left_out)).collect();
        let changed = (self.render)(&RenderRequest { messages: &messages, ..*self.request });
        if changed.as_deref() == Some(self.rendered) {
            unread.extend(names);
        } else if names.len() > 1 {
            let (first, second) = names.split_at(names.len() / 2);
            self.find_unread(first, unread);
            self.find_unread(second, unread);
        }
    }
}

fn unusual_fields(messages: &[Value]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    let mut known: HashSet<&str> = HashSet::new();
    for message in messages {
        let is_result = message.get("role").is_some_and(|role| role == "tool");
        for (name, value) in message.as_object().into_iter().flatten() {
            let is_usual = LINKS.contains(&name.as_str()) || (is_result && name == "name");
            if !is_usual && !value.is_null() && known.insert(name) {
                names.push(name);
            }
        }
    }
    names
}

fn without(message: &Value, names: &HashSet<&str>) -> Value {
    let mut message = message.clone();
    if let Some(fields) = message.as_object_mut() {
        fields.retain(|name, _| !names.contains(name.as_str()));
    }
    message
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use serde_json::Map;

    use super::*;

    /// A message of 50,000 fields was rendered as often, which took hours.
    #[test]
    fn however_many_fields_there_are_few_renders_tell_which_are_read() {
        let extra = Map::new();
        let passed_over = |num_fields: usize, read: &[usize]| {
            let mut message = json!({"role": "user", "content": "Hi"});
            (0..num_fields).for_each(|field| message[format!("f{field}")] = json!("v"));
            let messages = [message];
            let request = RenderRequest {
                messages: &messages,
                tools: None,
                add_generation_prompt: true,
                extra: &extra,
            };
            let num_renders = Cell::new(0);
            let render = |request: &RenderRequest| {
                num_renders.set(num_renders.get() + 1);
                let there =
                    read.iter().filter(|field| request.messages[0].get(format!("f{field}")).is_some());
                Some(there.count().to_string())
            };
            let reads = Reads::of("", |_, _| None);
            let rendered = render(&request).expect("it renders");
            let notices = reads.passed_over(&request, &rendered, render);
            assert!(num_renders.get() <= 1 + MAX_TRIALS);
            notices.into_iter().map(|notice| notice.key).collect::<Vec<_>>()
        };
        assert_eq!(passed_over(0, &[]), [""; 0]);
        assert_eq!(passed_over(1, &[0]), [""; 0]);
        assert_eq!(passed_over(3, &[1]), ["message field f0", "message field f2"]);
        assert_eq!(passed_over(3, &[]), ["message field f0", "message field f1", "message field f2"]);
        assert_eq!(passed_over(3, &[0, 1, 2]), [""; 0]);
        for read in [&[][..], &[7, 40_000], &(0..1000).collect::<Vec<_>>()] {
            let keys = passed_over(50_000, read);
            assert!(keys.len() <= MAX_NAMED + 1, "{}", keys.len());
            assert_eq!(keys.last().map(String::as_str), Some("many message fields"));
        }
    }
}
