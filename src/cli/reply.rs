//! Flags that say how a model writes its answers.
//!
//! Owns their values and the part of their help that lists them, from the tables in `text`.

use crate::text::{Asked, CallSyntax, ReplySettings, ThinkingSyntax};

/// A value of --reasoning-parser.
#[derive(Debug, Clone, Copy)]
pub struct Thinking(Asked<ThinkingSyntax>);

/// A value of --tool-parser.
#[derive(Debug, Clone, Copy)]
pub struct Calls(Asked<CallSyntax>);

impl super::ReplyArgs {
    pub fn settings(&self) -> ReplySettings {
        ReplySettings { thinking: self.reasoning_parser.0, calls: self.tool_parser.0 }
    }

    /// Those that the user has set.
    pub fn as_flags(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let thinking = told(self.reasoning_parser.0, |syntax| syntax.names[0]);
        let calls = told(self.tool_parser.0, |syntax| syntax.names[0]);
        [("--reasoning-parser", thinking), ("--tool-parser", calls)]
            .into_iter()
            .filter_map(|(flag, name)| Some((flag, name?)))
    }
}

fn told<T>(asked: Asked<T>, name: impl Fn(&'static T) -> &'static str) -> Option<&'static str> {
    match asked {
        Asked::Auto => None,
        Asked::None => Some("none"),
        Asked::Named(syntax) => Some(name(syntax)),
    }
}

pub(super) fn thinking(text: &str) -> Result<Thinking, String> {
    asked(text, ThinkingSyntax::named, ThinkingSyntax::all_names).map(Thinking)
}

pub(super) fn calls(text: &str) -> Result<Calls, String> {
    asked(text, CallSyntax::named, CallSyntax::all_names).map(Calls)
}

fn asked<T, Names: Iterator<Item = &'static [&'static str]>>(
    text: &str,
    named: impl Fn(&str) -> Option<&'static T>,
    all_names: impl Fn() -> Names,
) -> Result<Asked<T>, String> {
    match text {
        "auto" => Ok(Asked::Auto),
        "none" => Ok(Asked::None),
        name => named(name).map(Asked::Named).ok_or_else(|| {
            let names: Vec<&str> = all_names().map(|names| names[0]).collect();
            format!("use auto, none or one of {}", names.join(", "))
        }),
    }
}

pub(super) fn thinking_help() -> String {
    let what = "How the model writes its thinking, which becomes `reasoning_content`: auto, none or a name\n\n\
                auto goes by the chat template, none leaves it in the text.";
    help(what, ThinkingSyntax::all_names())
}

pub(super) fn calls_help() -> String {
    let what = "How the model writes calls of tools, which become `tool_calls`: auto, none or a name\n\n\
                auto goes by what the chat template writes of a call, none leaves calls in the text.";
    help(what, CallSyntax::all_names())
}

/// Names, with those that other programs have for the same.
fn help(what: &str, all_names: impl Iterator<Item = &'static [&'static str]>) -> String {
    let names = all_names.map(|names| match names {
        [name] => (*name).to_owned(),
        [name, others @ ..] => format!("{name} ({})", others.join(", ")),
        [] => String::new(),
    });
    format!("{what} Names, with other programs' for the same: {}", names.collect::<Vec<_>>().join(", "))
}
