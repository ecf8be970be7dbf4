//! What an answer may be: constraints as requests give them, and which tokens may come next under one.
//!
//! Owns the use of llguidance: compiling schemas, expressions and grammars against a vocabulary, within
//! bounds of time and memory, and following an answer token by token on the host. Request fields are
//! `batch/`'s, the vocabulary `text/`'s, when tokens are known and masks are waited for the engine's
//! business.

mod compiler;
mod constraint;
mod following;
mod gbnf;
mod preamble;
mod token_set;
mod vocabulary;

pub use compiler::{Compiler, Pattern};
pub use constraint::{Constraint, JsonOptions};
pub use following::{Guide, Next};
pub use preamble::Preamble;
pub use token_set::TokenSet;
pub use vocabulary::Vocabulary;

#[cfg(test)]
mod tests;

use thiserror::Error;

use crate::terminal::shown_in_short;

/// Why an answer cannot be constrained, or cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GuideError {
    /// What llguidance says of the schema, expression or grammar.
    #[error("cannot be served: {0}")]
    NotServed(String),
    /// The machine starts no thread to compile it on.
    #[error("{0}")]
    NoThread(String),
    /// It was accepted, but following it has become too much, or led where no token goes on.
    #[error("the answer cannot go on under its constraint: {0}")]
    Stuck(String),
}

/// Where llguidance tells that it has panicked.
const PANIC: &str = "panic: ";

/// What llguidance says of something, in short: the rest is its own state, or somebody's whole grammar.
fn reason(error: impl std::fmt::Display) -> String {
    let told = error.to_string();
    let told = told.split("\n<").next().unwrap_or_default().trim();
    let told = shown_in_short(&told.split_whitespace().collect::<Vec<_>>().join(" "));
    match told.split_once(PANIC) {
        // Of the library's own code: no fault that could be mended by who reads it.
        Some((_, panic)) => {
            format!("llguidance gave up on it, which is a fault of its own ({panic}); say it otherwise")
        }
        None => told,
    }
}

#[cfg(test)]
mod reason_tests {
    use super::*;

    /// A panic's text stood there as if it was about the request, and an expression of ten megabytes was quoted whole.
    #[test]
    fn what_llguidance_says_is_wrapped_and_shortened() {
        assert_eq!(reason("unknown  name\n  at 3\n<state>\nx"), "unknown name at 3");
        let panicked = reason("panic: index out of bounds\n<backtrace>\nx\n</backtrace>");
        assert_eq!(
            panicked,
            "llguidance gave up on it, which is a fault of its own (index out of bounds); say it otherwise"
        );
        let long = reason(format!("invalid regex {}\u{1b} here", "a".repeat(10 << 20)));
        assert!(
            long.len() < 10_000 && long.starts_with("invalid regex aa") && long.ends_with("\\u{1b} here")
        );
    }
}
