//! Rows of a data set that become requests by a prompt template.
//!
//! Owns what of a row goes where: its prompt, its id, its parameters. Reading rows is `opened`'s business, checking
//! the requests `request`'s.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value, json};

use super::line_error::RequestError;
use crate::{
    deep::{NotDone, PATIENCE, fingerprint},
    jinja::{self, KEPT_FUEL},
};

const PROMPT: &str = "template";
const SYSTEM: &str = "system";
/// The whole row, for columns whose names are no words.
const ROW: &str = "row";
/// Work that one row may take: an instruction costs 1.
const FUEL: u64 = 10_000_000;

/// How rows become requests.
#[derive(Debug, Clone, Default)]
pub struct RowSettings {
    /// Jinja: the prompt of each row.
    pub template: String,
    /// The same: the system prompt, if there is one.
    pub system: Option<String>,
    /// Whether the prompt is raw text and no user's message.
    pub is_raw: bool,
    pub id_column: Option<String>,
    /// Columns that are parameters of their request.
    pub parameters: Vec<String>,
}

/// The same, compiled.
pub struct Rows {
    settings: RowSettings,
    environment: Environment<'static>,
    /// A row was waited for in vain, and no other is rendered.
    is_endless: AtomicBool,
}

/// Why a row was not rendered.
enum NotRendered {
    /// It has no such column.
    NoColumn(String),
    OutOfFuel,
    Failed(String),
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Rows {
    /// Compiles the templates; an error says which and where.
    pub fn new(settings: RowSettings) -> Result<Self, String> {
        let texts: Vec<(&'static str, String)> =
            [(PROMPT, Some(&settings.template)), (SYSTEM, settings.system.as_ref())]
                .into_iter()
                .filter_map(|(name, text)| Some((name, text?.clone())))
                .collect();
        let num_bytes = texts.iter().map(|(_, text)| text.len()).sum();
        let compiled = jinja::compile(num_bytes, PATIENCE, fingerprint(&texts), || environment(texts));
        let environment = compiled.map_err(|why| format!("--{PROMPT}: {}", why_not_done(why)))??;
        Ok(Self { settings, environment, is_endless: AtomicBool::new(false) })
    }

    /// What has a say in the answers, for the manifest of a run.
    pub fn described(&self) -> String {
        format!("{:?}", self.settings)
    }

    /// Makes a request of a row. Its id is there even where the rest is an error.
    pub(super) fn request_of(
        &self,
        row: &Map<String, Value>,
    ) -> (Map<String, Value>, Result<(), RequestError>) {
        let mut request = self.identity_of(row);
        let made = self.fill(row, &mut request);
        (request, made)
    }

    /// Of a row's request, its id alone.
    pub(super) fn identity_of(&self, row: &Map<String, Value>) -> Map<String, Value> {
        let mut request = Map::new();
        let id_columns = [self.settings.id_column.as_deref().unwrap_or("custom_id"), "id"];
        let num_columns = if self.settings.id_column.is_some() { 1 } else { 2 };
        if let Some(id) = id_columns[..num_columns].iter().find_map(|column| row.get(*column)) {
            request.insert("custom_id".to_owned(), id.clone());
        }
        request
    }

    fn fill(&self, row: &Map<String, Value>, request: &mut Map<String, Value>) -> Result<(), RequestError> {
        if let Some(column) = self.settings.id_column.as_ref().filter(|column| !row.contains_key(*column)) {
            return Err(RequestError::missing("--id-column", without(column, row)));
        }
        if let Some(metadata) = row.get("metadata") {
            request.insert("metadata".to_owned(), metadata.clone());
        }
        for column in &self.settings.parameters {
            // A row may leave a parameter to the flags.
            let value = row.get(column).filter(|value| !value.is_null() && **value != "");
            if let Some(value) = value {
                request.insert(column.clone(), as_json(value));
            }
        }
        let prompt = self.render(PROMPT, row)?;
        if self.settings.is_raw {
            request.insert("prompt".to_owned(), Value::String(prompt));
            return Ok(());
        }
        let mut messages = Vec::new();
        if self.settings.system.is_some() {
            messages.push(json!({"role": "system", "content": self.render(SYSTEM, row)?}));
        }
        messages.push(json!({"role": "user", "content": prompt}));
        request.insert("messages".to_owned(), Value::Array(messages));
        Ok(())
    }

    fn render(&self, name: &'static str, row: &Map<String, Value>) -> Result<String, RequestError> {
        let failed =
            |message: String| RequestError::bad_request("template_error", &format!("--{name}"), message);
        if self.is_endless.load(Ordering::Relaxed) {
            return Err(failed("it did not end in time for another row, and is not tried again".to_owned()));
        }
        let variables = Arc::new(row.clone());
        let rendered = match self.render_with(KEPT_FUEL, name, &variables) {
            Ok(Err(NotRendered::OutOfFuel)) => self.render_with(FUEL, name, &variables),
            rendered => rendered,
        };
        let rendered = rendered.map_err(|why| {
            if let NotDone::NoThread { stack_bytes, reason } = &why {
                return RequestError::machine(NotDone::no_thread_text(*stack_bytes, reason));
            }
            self.is_endless.fetch_or(matches!(why, NotDone::TooLong(_)), Ordering::Relaxed);
            failed(format!("cannot be rendered: {}", why_not_done(why)))
        })?;
        rendered.map_err(|why| match why {
            NotRendered::NoColumn(column) => failed(without(&column, row)),
            NotRendered::OutOfFuel => {
                failed("cannot be rendered: it computes without end or makes too much text".to_owned())
            }
            NotRendered::Failed(reason) => failed(format!("cannot be rendered: {reason}")),
        })
    }

    fn render_with(
        &self,
        fuel: u64,
        name: &'static str,
        row: &Arc<Map<String, Value>>,
    ) -> Result<Result<String, NotRendered>, NotDone> {
        let row = Arc::clone(row);
        let fingerprint = fingerprint(&(name, &*row));
        jinja::render(&self.environment, fuel, PATIENCE, fingerprint, move |environment| {
            let template = environment.get_template(name).map_err(|error| not_rendered(&error))?;
            template.render(variables_of(&row)).map_err(|error| {
                if error.kind() != ErrorKind::UndefinedError {
                    return not_rendered(&error);
                }
                let is_missing =
                    |name: &String| name != ROW && !row.contains_key(name) && jinja::is_own_variable(name);
                match template.undeclared_variables(false).into_iter().find(is_missing) {
                    Some(column) => NotRendered::NoColumn(column),
                    None => not_rendered(&error),
                }
            })
        })
    }
}

fn environment(texts: Vec<(&'static str, String)>) -> Result<Environment<'static>, String> {
    let mut environment = jinja::environment();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    for (name, text) in texts {
        environment.add_template_owned(name, jinja::guarded(&text)).map_err(|error| {
            let line = error.line().map_or_else(String::new, |line| format!(", line {line}"));
            format!("--{name}{line}: {}", told(&error))
        })?;
    }
    Ok(environment)
}

fn not_rendered(error: &minijinja::Error) -> NotRendered {
    match error.kind() {
        ErrorKind::OutOfFuel => NotRendered::OutOfFuel,
        _ => NotRendered::Failed(told(error)),
    }
}

/// Why a template was not compiled or a row not rendered to its end.
fn why_not_done(why: NotDone) -> String {
    match why {
        NotDone::TooLong(patience) => {
            format!("it has not ended within {:.0} seconds", patience.as_secs_f32())
        }
        NotDone::NotBegun(reason) => reason,
        NotDone::Panicked => "the template engine panicked".to_owned(),
        NotDone::NoThread { stack_bytes, reason } => NotDone::no_thread_text(stack_bytes, &reason),
    }
}

/// The columns, and the row that they are of.
fn variables_of(row: &Map<String, Value>) -> minijinja::Value {
    let columns: Vec<(&str, minijinja::Value)> =
        row.iter().map(|(name, value)| (name.as_str(), template_value(value))).collect();
    let whole = minijinja::Value::from_pairs(columns.iter().cloned());
    match row.contains_key(ROW) {
        true => whole,
        false => minijinja::Value::from_pairs(columns.into_iter().chain([(ROW, whole)])),
    }
}

fn template_value(value: &Value) -> minijinja::Value {
    match value {
        Value::Null => minijinja::Value::from(()),
        Value::Bool(truth) => minijinja::Value::from(*truth),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), ..) => minijinja::Value::from(number),
            (_, Some(number), _) => minijinja::Value::from(number),
            (.., Some(float)) if float.to_string() == number.to_string() => minijinja::Value::from(float),
            // As it is written, not as a float has it.
            _ => minijinja::Value::from(number.to_string()),
        },
        Value::String(text) => minijinja::Value::from(text.as_str()),
        Value::Array(items) => items.iter().map(template_value).collect(),
        Value::Object(members) => minijinja::Value::from_pairs(
            members.iter().map(|(name, value)| (name.clone(), template_value(value))),
        ),
    }
}

/// What a row says that has no such column.
fn without(column: &str, row: &Map<String, Value>) -> String {
    let names: Vec<&str> = row.keys().map(String::as_str).take(20).collect();
    format!("there is no column {column:?} in this row; it has {}", names.join(", "))
}

/// A cell of a table is text, also where it holds a number.
fn as_json(value: &Value) -> Value {
    match value {
        Value::String(text) => serde_json::from_str(text).unwrap_or_else(|_| value.clone()),
        value => value.clone(),
    }
}

fn told(error: &minijinja::Error) -> String {
    let kind = error.kind().to_string();
    error.detail().map_or(kind, str::to_owned)
}

/// What a template on a command line means by `\n`, `\t` and `\\`.
pub fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, letters.clone().next()) {
            ('\\', Some(escaped @ ('n' | 't' | '\\'))) => {
                letters.next();
                plain.push(match escaped {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                });
            }
            _ => plain.push(letter),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: Value) -> Map<String, Value> {
        let Value::Object(row) = value else { panic!("an object") };
        row
    }

    fn rows(template: &str) -> Rows {
        Rows::new(RowSettings { template: template.to_owned(), ..RowSettings::default() })
            .expect("it compiles")
    }

    #[test]
    fn a_row_becomes_a_request() {
        let settings = RowSettings {
            template: "Q: {{ question }}\n{% for o in options %}{{ loop.index }}) {{ o }}\n{% endfor %}A:"
                .into(),
            system: Some("Answer in {{ row['the language'] }}.".into()),
            id_column: Some("number".into()),
            parameters: vec!["max_tokens".into(), "stop".into(), "seed".into()],
            is_raw: false,
        };
        let given =
            row(json!({"question": "Why?", "options": ["a", "b"], "the language": "French", "number": 7,
            "max_tokens": "12", "stop": "end", "seed": "", "metadata": {"k": 1}}));
        let (request, made) = Rows::new(settings).expect("it compiles").request_of(&given);
        assert_eq!(made, Ok(()));
        assert_eq!(
            Value::Object(request),
            json!({"custom_id": 7, "metadata": {"k": 1}, "max_tokens": 12, "stop": "end", "messages": [
                {"role": "system", "content": "Answer in French."},
                {"role": "user", "content": "Q: Why?\n1) a\n2) b\nA:"}]})
        );
        let raw = RowSettings { template: "{{ a }}".into(), is_raw: true, ..RowSettings::default() };
        let (request, _) =
            Rows::new(raw).expect("it compiles").request_of(&row(json!({"a": "x", "id": "r"})));
        assert_eq!(Value::Object(request), json!({"custom_id": "r", "prompt": "x"}));
    }

    #[test]
    fn what_cannot_be_rendered_names_the_column_and_keeps_the_id() {
        let (request, made) =
            rows("{{ question }}").request_of(&row(json!({"id": "r", "query": "x", "n": 1})));
        assert_eq!(request["custom_id"], "r");
        let message = made.expect_err("there is no such column").message;
        assert_eq!(message, "--template: there is no column \"question\" in this row; it has id, query, n");
        let (_, made) =
            rows("{% for i in range(9999) %}{% for j in range(9999) %}{{ a }}{% endfor %}{% endfor %}")
                .request_of(&row(json!({"a": 1})));
        assert!(made.expect_err("it takes too much").message.contains("cannot be rendered"));
        let (_, made) = rows("{{ a ~ b }}").request_of(&row(json!({"a": 1})));
        assert!(made.expect_err("one is missing").message.contains("there is no column \"b\""));
        let error = Rows::new(RowSettings { template: "a\n{{ b".into(), ..RowSettings::default() });
        assert!(error.expect_err("it is unfinished").starts_with("--template, line 2: "));
    }

    /// A row was rendered on the reader's own stack, without a look at how long it takes and what text it makes.
    #[test]
    fn rows_are_rendered_within_the_limits_of_chat_templates() {
        for (template, cells) in [
            ("{{ a * 100000000 }}", json!({"a": "x".repeat(1000)})),
            ("{{ [a] * 100000 }}", json!({"a": "x".repeat(1_000_000)})),
            ("{{ [a] * 100000 ~ '' }}", json!({"a": "x".repeat(1_000_000)})),
            ("{% set n = namespace() %}{% set n.a = n %}{{ n }}", json!({"a": 1})),
        ] {
            let (_, made) = rows(template).request_of(&row(cells));
            let message = made.expect_err(template).message;
            assert!(message.starts_with("--template: cannot be rendered: "), "{template}: {message}");
        }
        let deep = format!("{}{{{{ a }}}}{}", "{% if a %}".repeat(100), "{% endif %}".repeat(100));
        assert!(rows(&deep).request_of(&row(json!({"a": "x"}))).1.is_ok());
    }

    #[test]
    fn a_command_line_writes_line_ends_with_a_backslash() {
        assert_eq!(unescaped(r"Q: {{ q }}\nA:\t\\n \x"), "Q: {{ q }}\nA:\t\\n \\x");
    }
}
