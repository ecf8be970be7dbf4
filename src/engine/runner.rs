//! The seam between the engine, which decides, and the tensors, which only `mlx/` holds.
//!
//! Owns what the engine may ask of a runner. The words of one forward pass are in `group`; what runs when is
//! the scheduler's business.

use std::io::Read;
use std::ops::Range;

use thiserror::Error;

use super::{Group, Outcome};
use crate::cache::ResumeRule;
use crate::guide::TokenSet;

/// Names a running sequence; never reused within a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Names a stored segment: the KV of one range of tokens. Never reused within a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u64);

/// A segment that the runner holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredSegment {
    pub id: SegmentId,
    /// Memory it holds.
    pub num_bytes: u64,
}

/// What a sequence has stored of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub segment: StoredSegment,
    /// The state of recurrent layers at the segment's end, for models that have some and where it
    /// is at hand.
    pub checkpoint: Option<StoredSegment>,
}

impl Stored {
    pub(super) fn num_bytes(&self) -> u64 {
        self.segment.num_bytes.saturating_add(self.checkpoint.map_or(0, |checkpoint| checkpoint.num_bytes))
    }
}

/// How the next token of one request is chosen; independent of what else is in the batch.
///
/// The filters apply in this order: temperature, `top_k`, `top_p`, `min_p`.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 means greedy: the most probable token, the filters unused.
    pub temperature: f32,
    /// Keeps the most probable tokens up to this total probability, and those as probable as the last of them;
    /// 1 keeps all.
    pub top_p: f32,
    /// Keeps this many most probable tokens, and those as probable as the last of them; 0 keeps all.
    pub top_k: u32,
    /// Drops tokens below this share of the most probable token's probability; 0 keeps all.
    pub min_p: f32,
    /// Key of the request's random numbers; the position of a token is the counter.
    pub key: u64,
}

impl SamplingParams {
    /// Whether the most probable token is always taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
}

/// The KV of some tokens as bytes, of which a part is to be taken in. The bytes may turn out not to be
/// sound when all are read; what was taken in is discarded then.
pub struct Exported<'a> {
    /// One exported run of tokens behind the other.
    pub bytes: &'a mut (dyn Read + Send),
    pub num_bytes: u64,
    /// Tokens of each run, in order.
    pub num_run_tokens: &'a [usize],
    /// The first of all these tokens that is wanted, and how many.
    pub skip: usize,
    pub num_wanted: usize,
    /// Position in the prompt of the first wanted token.
    pub position: usize,
}

/// Why a forward pass could not be computed.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct RunnerError(pub String);

impl RunnerError {
    /// Whether the system gave no memory for it, which is no fault of any request in it.
    pub fn is_of_memory(&self) -> bool {
        ["nable to allocate", "bad_alloc"].iter().any(|told| self.0.contains(told))
    }
}

/// Why stored bytes were not taken in.
#[derive(Debug, Error)]
pub enum ImportError {
    /// No model like this one has exported them: they are of no use, today or ever.
    #[error("{0}")]
    WrongBytes(String),
    /// They may be as good as any.
    #[error(transparent)]
    Runner(#[from] RunnerError),
}

/// Computes forward passes over packed tokens and holds each sequence's live KV.
///
/// Passes are launched in order and collected in the same order; a device that works
/// asynchronously may have two passes under way. A sequence comes into being with its first
/// group, or before that with [`Runner::resume`], and lives until it is released.
pub trait Runner {
    /// Starts one forward pass over the packed tokens of all groups.
    ///
    /// Each sequence appears in at most one group of a pass. A launch that fails leaves nothing to
    /// collect; the sequences in it are released next, whether or not they came into being.
    ///
    /// With guided groups among them no token of the pass is chosen yet: [`Runner::choose`] is next but for
    /// the collection of the pass before, and for releases.
    fn launch(&mut self, groups: &[Group]) -> Result<(), RunnerError>;

    /// Has the tokens of the latest pass chosen: `allowed` has for each of its guided groups, in their order,
    /// the tokens to choose from, or nothing where its token is of no use any more.
    ///
    /// Where that fails the pass leaves nothing to collect; the sequences in it are released next.
    fn choose(&mut self, allowed: Vec<Option<TokenSet>>) -> Result<(), RunnerError>;

    /// Waits for the oldest launched pass that is not collected yet and returns what came of each of its
    /// groups, in their order.
    ///
    /// A pass that fails here counts as collected; the sequences in it are released next.
    fn collect(&mut self) -> Result<Vec<Outcome>, RunnerError>;

    /// Begins a sequence on stored segments, which follow each other from position 0; nothing is
    /// copied, and nothing is freed while it runs. Models with recurrent layers take up the state
    /// at the path's end from `checkpoint`.
    fn resume(
        &mut self,
        sequence: SequenceId,
        path: &[SegmentId],
        checkpoint: Option<SegmentId>,
    ) -> Result<(), RunnerError>;

    /// Tells up to which position a sequence will prefill, before its first group; so room can be made once for all
    /// of it. It changes no answer.
    fn expect_prefill(&mut self, _sequence: SequenceId, _end: usize) {}

    /// Stores the first `num_tokens` tokens that a sequence has computed after its path.
    ///
    /// Of a sequence that prefills this is all it has computed, and the segment becomes the end of
    /// its path. Of one that has ended it may be less; nothing but `release` may follow. With
    /// recurrent layers there is a checkpoint where the segment ends at the last computed position, or one
    /// before it where the step in between was launched ahead of the tokens of the one before.
    ///
    /// Passes may be under way that compute what is stored; where one fails, it is discarded.
    fn store(&mut self, sequence: SequenceId, num_tokens: usize) -> Result<Stored, RunnerError>;

    /// Cuts a stored segment after its first `at` tokens into two that own their memory. The whole
    /// is discarded with that, and sequences that run on it run on the halves: paths stay a tree. After an
    /// error it is still there. The device is not waited for, be the whole computed or not.
    fn split(&mut self, segment: SegmentId, at: usize)
    -> Result<(StoredSegment, StoredSegment), RunnerError>;

    /// Whether all that a stored segment or checkpoint holds are numbers, none of them infinite. The
    /// pass that computes it must have been collected.
    fn is_finite(&mut self, stored: SegmentId) -> Result<bool, RunnerError>;

    /// Forgets a stored segment or checkpoint; its memory is freed once no sequence runs on it.
    fn discard(&mut self, segment: SegmentId);

    /// Bytes of one token in each plane of exported KV, in the order of the planes.
    fn plane_widths(&self) -> Vec<u32>;

    /// Appends the bytes of some tokens of a stored segment, counted from its first, to `bytes`: plane by
    /// plane. The pass that computes them must have been collected.
    fn export(
        &mut self,
        segment: SegmentId,
        tokens: Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), RunnerError>;

    /// Appends the bytes of a stored checkpoint to `bytes`.
    fn export_checkpoint(&mut self, checkpoint: SegmentId, bytes: &mut Vec<u8>) -> Result<(), RunnerError>;

    /// Takes in what was exported run by run, by this process or another that ran the same model; what are no
    /// finite numbers was not. Passes under way are not waited for.
    fn import(&mut self, exported: Exported<'_>) -> Result<StoredSegment, ImportError>;

    /// Takes in an exported checkpoint: the state after the tokens before `position`.
    fn import_checkpoint(
        &mut self,
        position: usize,
        bytes: &mut dyn Read,
    ) -> Result<StoredSegment, ImportError>;

    /// Where this model can resume from stored KV.
    fn resume_rule(&self) -> ResumeRule;

    /// Drops a sequence's KV. Passes under way may still compute its rows, and their tokens are
    /// still collected.
    fn release(&mut self, sequence: SequenceId);
}
