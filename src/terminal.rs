//! What a terminal is shown: whether lines can be drawn anew on it, and nothing that moves its cursor.
//!
//! Owns that question and the writing of lines on standard error, for people or as JSON. Names and texts come from
//! strangers' files; whatever is in them, it stays within its line.

use std::{
    borrow::Cow,
    env,
    io::{self, IsTerminal, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::{Value, json};

/// Characters of a line on standard error; what is longer holds somebody's whole file.
const MAX_SHOWN_CHARS: usize = 4000;

/// Whether every line on standard error is a JSON object.
static SPEAKS_JSON: AtomicBool = AtomicBool::new(false);

/// What lines begin with, and the events that they are in JSON.
const EVENTS: [(&str, &str); 4] = [
    ("mlxbatch: warning: ", "warning"),
    ("mlxbatch: failed: ", "failed"),
    ("mlxbatch: error: ", "error"),
    ("mlxbatch: ", "message"),
];

/// Has every line on standard error be a JSON object from now on, for programs that read them.
pub fn speak_json() {
    SPEAKS_JSON.store(true, Ordering::Relaxed);
}

/// Writes a line on standard error; nobody reading it is no reason to fail.
pub fn eprint_line(text: &str) {
    eprint_text(&format!("{}\n", shown(&bounded(text))));
}

/// Writes whole lines that belong together, in which nothing steers a terminal.
pub fn eprint_text(text: &str) {
    if SPEAKS_JSON.load(Ordering::Relaxed) {
        return eprint_event(&event_of(text));
    }
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Writes a JSON object on a line of its own.
pub fn eprint_event(event: &Value) {
    let _ = writeln!(io::stderr(), "{}", shown_json(&event.to_string()));
}

fn event_of(text: &str) -> Value {
    let text = text.trim();
    let known = EVENTS.iter().find_map(|(begin, event)| Some((*event, text.strip_prefix(begin)?)));
    let (event, text) = known.unwrap_or(("message", text));
    json!({"event": event, "text": text})
}

/// The beginning of a text that is far too long for a line, and its end, where as a rule the fix is told.
pub(crate) fn bounded(text: &str) -> Cow<'_, str> {
    let half = MAX_SHOWN_CHARS / 2;
    let Some((first_end, _)) = text.char_indices().nth(half) else { return text.into() };
    let last_start = text.char_indices().nth_back(half - 1).map_or(0, |(at, _)| at);
    if last_start <= first_end {
        return text.into();
    }
    format!("{} … {}", &text[..first_end], &text[last_start..]).into()
}

/// The text with characters that control a terminal, or turn the direction of what follows, as escapes.
pub fn shown(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_steering) {
        return text.into();
    }
    let escaped = text.chars().fold(String::with_capacity(text.len() + 16), |mut shown, char| {
        match is_steering(char) {
            true => shown.extend(char.escape_unicode()),
            false => shown.push(char),
        }
        shown
    });
    escaped.into()
}

/// The same of a text that may quote what somebody else wrote at any length.
pub fn shown_in_short(text: &str) -> String {
    shown(&bounded(text)).into_owned()
}

/// The same of several lines.
pub fn shown_lines(text: &str) -> String {
    text.split('\n').map(shown).collect::<Vec<_>>().join("\n")
}

/// The same of JSON text, which stays JSON: such characters are within its strings.
pub fn shown_json(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, char| {
        match char {
            '\n' => shown.push(char),
            char if is_steering(char) => shown += &format!("\\u{:04x}", u32::from(char)),
            char => shown.push(char),
        }
        shown
    })
}

fn is_steering(char: char) -> bool {
    char.is_control() && char != '\t' || matches!(char, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether bars may be drawn on standard error: else plain lines are written.
pub(crate) fn can_redraw() -> bool {
    let var = |name: &str| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    !SPEAKS_JSON.load(Ordering::Relaxed)
        && decide(io::stderr().is_terminal(), var("TERM").as_deref(), var("CI").as_deref())
}

/// Jobs of a CI often have a pseudo terminal, and their log is read as a file; there, and where a terminal
/// has no name or is "dumb", what is drawn anew comes out as garbage.
fn decide(is_terminal: bool, term: Option<&str>, ci: Option<&str>) -> bool {
    let is_capable = term.is_some_and(|term| !term.is_empty() && term != "dumb");
    let is_ci = ci.is_some_and(|ci| !["", "0", "false"].contains(&ci.to_ascii_lowercase().as_str()));
    is_terminal && is_capable && !is_ci
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value of three megabytes in a configuration was an error message of as many.
    #[test]
    fn what_others_wrote_at_length_is_shown_in_short() {
        let text = shown_in_short(&format!("in a.json: {}\u{1b}", "x".repeat(3 << 20)));
        assert!(text.starts_with("in a.json: xxx") && text.ends_with("xxx\\u{1b}"), "{}", text.len());
        assert!(text.chars().count() < 2 * MAX_SHOWN_CHARS);
    }

    #[test]
    fn what_steers_a_terminal_is_shown_as_an_escape() {
        assert_eq!(shown("tab\there, ü 🦀"), "tab\there, ü 🦀");
        assert_eq!(
            shown("a\u{1b}]0;title\u{7}b\r\nc\u{9b}2J"),
            "a\\u{1b}]0;title\\u{7}b\\u{d}\\u{a}c\\u{9b}2J"
        );
        assert_eq!(shown("\u{202e}gpj.exe"), "\\u{202e}gpj.exe");
        for num_chars in [0, 1, MAX_SHOWN_CHARS / 2, MAX_SHOWN_CHARS / 2 + 1, MAX_SHOWN_CHARS] {
            let text = "ü".repeat(num_chars);
            assert_eq!(bounded(&text), text);
        }
        let long = format!("a{}z", "ü".repeat(1_000_000));
        let bounded = bounded(&long);
        assert!(bounded.starts_with('a') && bounded.ends_with('z') && bounded.chars().count() < 4010);
        assert_eq!(shown_lines("a\u{8}\nb"), "a\\u{8}\nb");
        let value = serde_json::json!({"a": "\u{9b}2J\u{7f}ü\n\u{202e}"});
        let json = shown_json(&format!("{value:#}"));
        assert!(!json.contains(|char: char| char != '\n' && is_steering(char)), "{json:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).expect("still JSON"), value);
    }

    #[test]
    fn lines_are_events_by_how_they_begin() {
        let event = event_of("mlxbatch: warning: a \"b\"\n");
        assert_eq!(event.to_string(), r#"{"event":"warning","text":"a \"b\""}"#);
        assert_eq!(event_of("mlxbatch: error: a\n  hint: b\n")["text"], "a\n  hint: b");
        assert_eq!(event_of("downloading x\n"), json!({"event": "message", "text": "downloading x"}));
    }

    #[test]
    fn bars_are_for_capable_terminals_that_people_look_at() {
        assert!(decide(true, Some("xterm-256color"), None));
        assert!(!decide(false, Some("xterm-256color"), None));
        for term in [None, Some(""), Some("dumb")] {
            assert!(!decide(true, term, None), "{term:?}");
        }
        for (ci, is_ci) in [("true", true), ("1", true), ("woodpecker", true), ("false", false), ("", false)]
        {
            assert_eq!(decide(true, Some("xterm"), Some(ci)), !is_ci, "{ci:?}");
        }
    }
}
