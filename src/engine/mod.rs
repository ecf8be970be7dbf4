//! Sequences, scheduling and sampling parameters: what runs in which forward pass.
//!
//! Owns every decision between a tokenised request and its last token. Holds no tensors (the
//! [`Runner`] does) and knows no text: stop strings are matched by the caller, which then calls
//! `Engine::stop`.

mod runner;

pub use runner::{Group, Input, Runner, RunnerError, SamplingParams, SequenceId, TokenId};
