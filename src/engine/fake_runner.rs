//! A runner without a model, for tests: the next token is a hash of all tokens so far.
//!
//! Owns the checks of the [`Runner`] contract and of the limits on every pass; a token at a wrong
//! position, twice or missing changes every later token. Which answers are right is for the tests
//! to say, by way of [`next_token`].

use std::collections::{HashMap, HashSet, VecDeque};

use crate::cache::ResumeRule;

use super::{
    Group, Input, Limits, Runner, RunnerError, SamplingParams, SegmentId, SequenceId, Stored, StoredSegment,
    TokenId,
};

/// Tokens that the fake model knows; few, so that end tokens come up.
pub(crate) const VOCAB_SIZE: u32 = 13;

/// Greedy parameters with a key, which the fake model puts into its hash.
pub(crate) fn greedy(key: u64) -> SamplingParams {
    SamplingParams { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, key }
}

/// The fake model's token after `tokens`.
pub(crate) fn next_token(tokens: &[TokenId], sampling: &SamplingParams) -> TokenId {
    let mix = |hash: u64, value: u64| (hash ^ value).wrapping_mul(0x0100_0000_01b3).rotate_left(23);
    let hash = tokens
        .iter()
        .fold(mix(0xcbf2_9ce4_8422_2325, sampling.key), |hash, &token| mix(hash, u64::from(token) + 1));
    u32::try_from((hash >> 7) % u64::from(VOCAB_SIZE)).expect("less than a u32")
}

/// Bytes of one token's fake KV.
pub(crate) const BYTES_PER_TOKEN: u64 = 10;

/// Computes nothing, remembers everything; panics where the engine breaks the contract.
#[derive(Debug)]
pub(crate) struct FakeRunner {
    limits: Limits,
    live: HashMap<SequenceId, Live>,
    /// Stored segments: the tokens from position 0 up to the segment's end, and where it begins.
    segments: HashMap<SegmentId, (Vec<TokenId>, usize)>,
    num_segments: u64,
    released: HashSet<SequenceId>,
    under_way: VecDeque<Vec<TokenId>>,
    num_collected: usize,
    /// Every pass launched.
    pub passes: Vec<Vec<Group>>,
    /// Most passes that were under way at once.
    pub peak_under_way: usize,
    /// The launch with this number fails, counted from 0.
    pub failing_launch: Option<usize>,
    /// The collection with this number fails, counted from 0.
    pub failing_collect: Option<usize>,
    /// Every collection comes back a token short.
    pub loses_tokens: bool,
}

#[derive(Debug, Default)]
struct Live {
    /// Tokens in the KV.
    tokens: Vec<TokenId>,
    /// Those of them that lie in stored segments.
    num_path_tokens: usize,
    sampled: Option<TokenId>,
}

impl FakeRunner {
    pub(crate) fn new(limits: Limits) -> Self {
        FakeRunner {
            limits,
            live: HashMap::new(),
            segments: HashMap::new(),
            num_segments: 0,
            released: HashSet::new(),
            under_way: VecDeque::new(),
            num_collected: 0,
            passes: Vec::new(),
            peak_under_way: 0,
            failing_launch: None,
            failing_collect: None,
            loses_tokens: false,
        }
    }

    fn insert_segment(&mut self, tokens: Vec<TokenId>, first: usize) -> StoredSegment {
        let id = SegmentId(self.num_segments);
        self.num_segments += 1;
        let num_bytes = (tokens.len() - first) as u64 * BYTES_PER_TOKEN;
        self.segments.insert(id, (tokens, first));
        StoredSegment { id, num_bytes }
    }

    /// Bytes of all stored segments.
    pub(crate) fn num_stored_bytes(&self) -> u64 {
        self.segments.values().map(|(tokens, first)| (tokens.len() - first) as u64 * BYTES_PER_TOKEN).sum()
    }

    /// Sequences that own KV.
    pub(crate) fn num_live(&self) -> usize {
        self.live.len()
    }

    fn run_group(&mut self, group: &Group) -> Option<TokenId> {
        assert!(!self.released.contains(&group.sequence), "a group of a released sequence: {group:?}");
        let live = self.live.entry(group.sequence).or_default();
        assert_eq!(group.start, live.tokens.len(), "starts elsewhere than its KV ends: {group:?}");
        match &group.input {
            Input::Prompt(tokens) => {
                assert!(!tokens.is_empty(), "an empty chunk: {group:?}");
                assert_eq!(live.sampled, None, "a chunk after a sampled token: {group:?}");
                live.tokens.extend(tokens);
            }
            Input::Last(token) => {
                assert!(group.sample.is_some(), "a decode row that does not sample: {group:?}");
                assert_eq!(live.sampled, None, "a last prompt token after a sampled one: {group:?}");
                live.tokens.push(*token);
            }
            Input::Sampled => {
                assert!(group.sample.is_some(), "a decode row that does not sample: {group:?}");
                live.tokens.push(live.sampled.expect("a decode row has a sampled token to feed"));
            }
        }
        live.sampled = group.sample.as_ref().map(|sampling| next_token(&live.tokens, sampling));
        live.sampled
    }

    fn check_limits(&self, groups: &[Group]) {
        let num_prompt_tokens: usize = groups
            .iter()
            .map(|group| match &group.input {
                Input::Prompt(tokens) => tokens.len(),
                Input::Last(_) | Input::Sampled => 0,
            })
            .sum();
        let num_kv_tokens = self.live.values().map(|live| live.tokens.len()).sum();
        assert!(num_prompt_tokens <= self.limits.prefill_chunk.get(), "{num_prompt_tokens} prompt tokens");
        assert!(self.limits.fits(num_kv_tokens), "{num_kv_tokens} tokens in the KV");
        assert!(self.live.len() <= self.limits.max_batch_size.get(), "{} rows", self.live.len());
        assert!(self.under_way.len() <= 2, "{} passes under way", self.under_way.len());
    }
}

impl Runner for FakeRunner {
    fn launch(&mut self, groups: &[Group]) -> Result<(), RunnerError> {
        let number = self.passes.len();
        self.passes.push(groups.to_vec());
        assert!(!groups.is_empty(), "an empty pass");
        let sequences: HashSet<SequenceId> = groups.iter().map(|group| group.sequence).collect();
        assert_eq!(sequences.len(), groups.len(), "a sequence twice in a pass: {groups:?}");
        if self.failing_launch == Some(number) {
            return Err(RunnerError(format!("launch {number} is out of memory")));
        }
        let tokens = groups.iter().filter_map(|group| self.run_group(group)).collect();
        self.under_way.push_back(tokens);
        self.peak_under_way = self.peak_under_way.max(self.under_way.len());
        self.check_limits(groups);
        Ok(())
    }

    fn collect(&mut self) -> Result<Vec<TokenId>, RunnerError> {
        let mut tokens = self.under_way.pop_front().expect("a pass is under way");
        if self.loses_tokens {
            tokens.pop();
        }
        let number = self.num_collected;
        self.num_collected += 1;
        if self.failing_collect == Some(number) {
            return Err(RunnerError(format!("pass {number} is out of memory")));
        }
        Ok(tokens)
    }

    fn resume(
        &mut self,
        sequence: SequenceId,
        path: &[SegmentId],
        _checkpoint: Option<SegmentId>,
    ) -> Result<(), RunnerError> {
        let mut tokens: Vec<TokenId> = Vec::new();
        for id in path {
            let (segment, first) = self.segments.get(id).expect("a path of stored segments");
            assert_eq!(*first, tokens.len(), "segments follow each other");
            assert_eq!(segment[..*first], tokens[..], "a segment lies on one path only");
            tokens = segment.clone();
        }
        let live = Live { num_path_tokens: tokens.len(), tokens, sampled: None };
        assert!(self.live.insert(sequence, live).is_none(), "{sequence:?} is begun twice");
        Ok(())
    }

    fn store(&mut self, sequence: SequenceId, num_tokens: usize) -> Result<Stored, RunnerError> {
        let live = self.live.get_mut(&sequence).expect("a live sequence stores");
        let (first, end) = (live.num_path_tokens, live.num_path_tokens + num_tokens);
        assert!(num_tokens > 0 && end <= live.tokens.len(), "stores {num_tokens} tokens that are not there");
        let tokens = live.tokens[..end].to_vec();
        live.num_path_tokens = end;
        Ok(Stored { segment: self.insert_segment(tokens, first), checkpoint: None })
    }

    fn split(
        &mut self,
        segment: SegmentId,
        at: usize,
    ) -> Result<(StoredSegment, StoredSegment), RunnerError> {
        let (tokens, first) = self.segments.remove(&segment).expect("a stored segment is split");
        assert!(at > 0 && first + at < tokens.len(), "a split leaves two halves");
        let upper = self.insert_segment(tokens[..first + at].to_vec(), first);
        let lower = self.insert_segment(tokens, first + at);
        Ok((upper, lower))
    }

    fn resume_rule(&self) -> ResumeRule {
        ResumeRule::AnyToken
    }

    fn discard(&mut self, segment: SegmentId) {
        assert!(self.segments.remove(&segment).is_some(), "{segment:?} is discarded twice");
    }

    fn release(&mut self, sequence: SequenceId) {
        assert!(self.released.insert(sequence), "{sequence:?} is released twice");
        self.live.remove(&sequence);
    }
}
