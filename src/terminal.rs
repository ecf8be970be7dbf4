//! Whether standard error is a terminal on which lines can be drawn anew.
//!
//! Owns that one question, for everything that shows how far it is.

use std::{
    env,
    io::{self, IsTerminal},
};

/// Whether bars may be drawn on standard error: else plain lines are written.
pub(crate) fn can_redraw() -> bool {
    let var = |name: &str| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    decide(io::stderr().is_terminal(), var("TERM").as_deref(), var("CI").as_deref())
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
