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

/// Why an answer cannot be constrained, or cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GuideError {
    /// What llguidance says of the schema, expression or grammar.
    #[error("cannot be served: {0}")]
    NotServed(String),
    /// It was accepted, but following it has become too much, or led where no token goes on.
    #[error("the answer cannot go on under its constraint: {0}")]
    Stuck(String),
}

/// The first line of what llguidance says: the rest is its own state.
fn reason(error: impl std::fmt::Display) -> String {
    let told = error.to_string();
    let told = told.split("\n<").next().unwrap_or_default().trim();
    told.split_whitespace().collect::<Vec<_>>().join(" ")
}
