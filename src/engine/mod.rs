//! Sequences, scheduling and sampling parameters: what runs in which forward pass.
//!
//! Owns every decision between a tokenised request and its last token. Holds no tensors (the
//! [`Runner`] does) and knows no text: stop strings are matched by the caller, which then calls
//! [`Engine::stop`].
//!
//! A pass packs one row for each decoding sequence and the prompts of new ones. Where the device
//! computes by itself, the engine looks ahead: it launches a pass before it has read the tokens of
//! the pass before, which the runner feeds in on the device. Two steps, in which request B gives
//! its end token in pass 1:
//!
//! ```text
//!             step n                           step n + 1
//!   host    | launch 2 | wait for 1 | events | launch 3 | wait for 2 | events |
//!   device  | pass 1 ............|pass 2 ....................|pass 3 ..........
//!
//!   pass 1   A decode   B decode   C prefill      → A token, B finished (stop), C token
//!   pass 2   A decode   B decode   C decode       → A token, B's row is dropped, C token
//!   pass 3   A decode   D prefill  C decode       B's row went to D
//! ```
//!
//! An end token thus costs one wasted row. A request that reaches its length limit costs none: that
//! is known by count, so no pass is launched beyond it, and its row is free one pass earlier.

mod pass;
mod prefixes;
mod request;
mod runner;
mod sampling;
mod scheduler;
mod sequence;
mod stats;
mod step;

#[cfg(test)]
pub(crate) mod fake_runner;
#[cfg(test)]
mod tests;

pub use crate::cache::TokenId;
pub use request::{Cut, Event, FinishReason, GenerationRequest, PromptPlan, RequestId, SubmitError};
pub use runner::{
    Group, Input, Runner, RunnerError, SamplingParams, SegmentId, SequenceId, Stored, StoredSegment,
};
pub use sampling::{sampling_key, uniform};
pub use scheduler::Limits;
pub use stats::{PassTotals, Stats};
pub use step::Engine;
