//! Sequences, scheduling and sampling parameters: what runs in which forward pass.
//!
//! Owns every decision between a tokenised request and its last token. Holds no tensors (the
//! [`Runner`] does) and knows no text: stop strings are matched by the caller, which then calls
//! [`Engine::stop`].
//!
//! A pass packs one row for each decoding sequence and the prompts of new ones. A prompt is computed
//! in chunks, all but its last token, which is fed as the first decode row: so what is stored of a
//! prompt never depends on how it is answered, and a prompt that is wholly stored has one token left
//! to run. Chunks sample nothing.
//!
//! Each row says what it wants beside its KV: a token, perhaps by way of processors and with a report, or scores
//! of the prompt's own tokens. Scores come with the chunks, whose hidden rows they need: a request resumes at
//! most one token before the first that it scores, keeps nothing behind that in the cache, and where it wants no
//! answer takes no decode row. Processors are edits to a few logits, made anew for each step from the tokens
//! that are known; the one that is not yet, the step's input, is filled in on the device.
//!
//! A guided row's choice waits for its guide, which lives on the host and must know every token before. So in a
//! pass that has guided rows choosing is apart from computing: the pass is launched as ever, and while it is
//! under way the one before it is collected, masks are computed on all cores, and only then tokens are chosen.
//! No row waits for another's mask longer than for the pass itself, and the device does not run dry:
//!
//! ```text
//!   host    | launch 2 | collect 1 | masks of 2 | choose 2 | launch 3 | collect 2 | masks of 3 | choose 3
//!   device  | pass 2 ..................................... | choice 2 | pass 3 ...
//! ```
//!
//! Where the device computes by itself, the engine looks ahead: it launches a pass before it has read
//! the tokens of the pass before, which the runner feeds in on the device. Two steps, in which
//! request B gives its end token in pass 1:
//!
//! ```text
//!             step n                           step n + 1
//!   host    | launch 2 | wait for 1 | events | launch 3 | wait for 2 | events |
//!   device  | pass 1 ............|pass 2 ....................|pass 3 ..........
//!
//!   pass 1   A decode   B decode   C chunk        → A token, B finished (stop)
//!   pass 2   A decode   B decode   C decode       → A token, B's row is dropped, C's first token
//!   pass 3   A decode   D chunk    C decode       B's row went to D
//! ```
//!
//! An end token thus costs one wasted row. A request that reaches its length limit costs none: that
//! is known by count, so no pass is launched beyond it, and its row is free one pass earlier.
//!
//! With a prompt cache, what several prompts begin with is computed by the first of them and stored
//! as soon as it is launched. The others wait in line, passed over by those who need something else,
//! and resume on it, sharing its memory, as here D and E on a prefix P, with prompts P d₀ and P e₀:
//!
//! ```text
//!   pass 1   D chunk P                            E waits; P is stored, E may enter
//!   pass 2   D decode d₀   E decode e₀            → D's and E's first tokens
//! ```
//!
//! A request that goes on with the answer of another, which its caller awaits, comes ahead of all that wait, and
//! until it has begun that answer is kept as what a planned request uses.
//!
//! Chunks end where the plan says and a fixed number of tokens after that, never where timing says.

mod edits;
mod group;
mod guiding;
mod hold;
mod pass;
mod prefixes;
mod request;
mod runner;
mod sampling;
mod scheduler;
mod sequence;
mod stats;
mod step;
mod want;

#[cfg(test)]
pub(crate) mod fake_runner;
#[cfg(test)]
mod tests;

pub use crate::cache::TokenId;
pub use edits::{LogitEdits, Penalties, Seen};
pub use group::{Choice, Group, Input, Outcome, Scoring, Want};
pub use prefixes::PersistStats;
pub use request::{
    AnswerRecurs, Cut, Event, FinishReason, GenerationRequest, PromptPlan, RequestId, SubmitError,
    num_reusable,
};
pub use runner::{
    Exported, ImportError, Runner, RunnerError, SamplingParams, SegmentId, SequenceId, Stored, StoredSegment,
};
pub use sampling::{sampling_key, uniform};
pub use scheduler::Limits;
pub use stats::{PassFit, PassTotals, Stats};
pub use step::Engine;
pub use want::{MAX_TOP, Processors, Report, Score, TokenReport};
