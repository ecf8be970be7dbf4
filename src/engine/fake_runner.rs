//! A runner without a model, for tests: the next token is a hash of all tokens so far.
//!
//! Owns the checks of the [`Runner`] contract and of the limits on every pass; a token at a wrong
//! position, twice or missing changes every later token. What is stored is kept by `store`. Which
//! answers are right is for the tests to say, by way of [`next_token`].

mod model;
mod store;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Read;

use crate::cache::ResumeRule;
use crate::guide::TokenSet;

pub(crate) use model::{VOCAB_SIZE, best, logits, report};
use store::Store;
pub(crate) use store::{BYTES_PER_CHECKPOINT, BYTES_PER_TOKEN, EXPORTED_BYTES_PER_TOKEN};

use super::{
    Choice, Exported, Group, ImportError, Input, Limits, Outcome, Runner, RunnerError, SamplingParams,
    SegmentId, SequenceId, Stored, StoredSegment, TokenId, Want,
};

/// Greedy parameters with a key, which the fake model puts into its hash.
pub(crate) fn greedy(key: u64) -> SamplingParams {
    SamplingParams { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, key }
}

/// Which calls of the runner fail, each counted from 0.
#[derive(Debug, Clone, Default)]
pub(crate) struct Failures {
    pub launch: Option<usize>,
    /// No launch succeeds.
    pub every_launch: bool,
    pub collect: Option<usize>,
    pub choose: Option<usize>,
    /// Counts `resume`, `store`, `split`, export and import together.
    pub cache_call: Option<usize>,
    /// In this collection there is no token for the first row.
    pub no_token: Option<usize>,
    /// Whatever was computed after this token are no numbers.
    pub poison: Option<TokenId>,
    /// Every collection comes back an outcome short.
    pub loses_tokens: bool,
}

/// Computes nothing, remembers everything; panics where the engine breaks the contract.
#[derive(Debug)]
pub(crate) struct FakeRunner {
    limits: Limits,
    rule: ResumeRule,
    live: HashMap<SequenceId, Live>,
    store: Store,
    /// Bytes of segments that were discarded while sequences ran on them: alive until those are released.
    outlived: HashMap<SegmentId, u64>,
    released: HashSet<SequenceId>,
    under_way: VecDeque<Vec<Outcome>>,
    /// The guided groups of the latest pass, whose tokens are to be chosen.
    unchosen: Vec<Unchosen>,
    num_launched: usize,
    num_collected: usize,
    num_choices: usize,
    num_cache_calls: usize,
    /// Every pass launched.
    pub passes: Vec<Vec<Group>>,
    /// How often each prompt prefix was computed in a chunk, by its tokens.
    pub prefilled: HashMap<Vec<TokenId>, usize>,
    /// Most passes that were under way at once.
    pub peak_under_way: usize,
    pub failures: Failures,
}

#[derive(Debug, Default)]
struct Live {
    /// Tokens in the KV.
    tokens: Vec<TokenId>,
    /// The stored segments that it runs on.
    path: Vec<SegmentId>,
    /// Those of the tokens that lie in them.
    num_path_tokens: usize,
    /// Those of them that were there when it began.
    num_resumed_tokens: usize,
    sampled: Option<TokenId>,
    /// The latest pass it was in.
    last_pass: usize,
    /// That pass was launched before the one before it was collected.
    is_ahead: bool,
    /// That pass failed.
    is_lost: bool,
    /// It has stored some of what it has decoded, or not all of what it has prefilled.
    is_over: bool,
}

/// A guided group of the latest pass.
#[derive(Debug)]
struct Unchosen {
    sequence: SequenceId,
    /// Its place among the pass's groups.
    place: usize,
    /// All tokens before its choice.
    tokens: Vec<TokenId>,
    choice: Choice,
}

impl FakeRunner {
    pub(crate) fn new(limits: Limits) -> Self {
        FakeRunner {
            limits,
            rule: ResumeRule::AnyToken,
            live: HashMap::new(),
            store: Store::default(),
            outlived: HashMap::new(),
            released: HashSet::new(),
            under_way: VecDeque::new(),
            unchosen: Vec::new(),
            num_launched: 0,
            num_collected: 0,
            num_choices: 0,
            num_cache_calls: 0,
            passes: Vec::new(),
            prefilled: HashMap::new(),
            peak_under_way: 0,
            failures: Failures::default(),
        }
    }

    /// Has the model resume by that rule; with [`ResumeRule::Checkpoints`] it has recurrent layers.
    pub(crate) fn with_rule(self, rule: ResumeRule) -> Self {
        FakeRunner { rule, ..self }
    }

    /// Bytes of everything stored.
    pub(crate) fn num_stored_bytes(&self) -> u64 {
        self.store.num_bytes()
    }

    /// Stored segments and checkpoints whose values were lost with a failed pass.
    pub(crate) fn num_lost(&self) -> usize {
        self.store.num_lost()
    }

    /// Sequences that own KV.
    pub(crate) fn num_live(&self) -> usize {
        self.live.len()
    }

    /// Tokens whose KV sequences have to themselves, beside what is stored.
    pub(crate) fn num_own_tokens(&self) -> usize {
        self.live.values().map(|live| live.tokens.len() - live.num_path_tokens).sum()
    }

    /// Bytes of all KV and states in memory: what is stored, what was discarded while sequences run on it,
    /// and what these have to themselves.
    pub(crate) fn num_alive_bytes(&self) -> u64 {
        let outlived: u64 = self.outlived.values().sum();
        self.store.num_bytes() + outlived + self.num_own_tokens() as u64 * BYTES_PER_TOKEN
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Prompt tokens computed in chunks.
    pub(crate) fn num_prefilled(&self) -> usize {
        self.prefilled.values().sum()
    }

    fn run_group(&mut self, group: &Group) -> Outcome {
        assert!(!self.released.contains(&group.sequence), "a group of a released sequence: {group:?}");
        let live = self.live.entry(group.sequence).or_default();
        assert!(!live.is_lost, "a group of a sequence whose pass failed: {group:?}");
        assert!(!live.is_over, "runs on after its end was stored: {group:?}");
        assert_eq!(group.start, live.tokens.len(), "starts elsewhere than its KV ends: {group:?}");
        live.last_pass = self.num_launched;
        live.is_ahead = !self.under_way.is_empty();
        match &group.input {
            Input::Prompt(tokens) => {
                assert!(!tokens.is_empty(), "an empty chunk: {group:?}");
                assert_eq!(live.sampled, None, "a chunk after a sampled token: {group:?}");
                for token in tokens {
                    live.tokens.push(*token);
                    *self.prefilled.entry(live.tokens.clone()).or_default() += 1;
                }
            }
            Input::Last(token) => {
                assert!(matches!(group.want, Want::Token(_)), "a decode row that does not sample: {group:?}");
                assert_eq!(live.sampled, None, "a last prompt token after a sampled one: {group:?}");
                live.tokens.push(*token);
            }
            Input::Sampled => {
                assert!(matches!(group.want, Want::Token(_)), "a decode row that does not sample: {group:?}");
                live.tokens.push(live.sampled.expect("a decode row has a sampled token to feed"));
            }
        }
        let is_poisoned = self.failures.poison.is_some_and(|poison| live.tokens.contains(&poison));
        let outcome = match &group.want {
            Want::Nothing => Outcome::Nothing,
            _ if is_poisoned => Outcome::NotNumbers,
            Want::Token(choice) => choose(&live.tokens, choice, None),
            Want::Scores(scoring) => {
                let first = live.tokens.len() + 1 - scoring.targets.len();
                let before = (first..).map(|end| &live.tokens[..end]);
                let report = |(before, target): (&[TokenId], &TokenId)| {
                    report(&logits(before, &greedy(0)), *target, scoring.num_top)
                };
                assert!(!scoring.targets.is_empty(), "nothing to score: {group:?}");
                assert!(first > group.start, "scores after a position that it does not compute: {group:?}");
                Outcome::Scores(before.zip(&scoring.targets).map(report).collect())
            }
        };
        live.sampled = match (&group.want, &outcome) {
            (Want::Token(_), Outcome::Token(token, _)) => Some(*token),
            (Want::Token(_), _) => Some(0),
            _ => None,
        };
        outcome
    }

    fn check_limits(&self, groups: &[Group]) {
        let num_prompt_tokens: usize = groups
            .iter()
            .map(|group| match &group.input {
                Input::Prompt(tokens) => tokens.len(),
                Input::Last(_) | Input::Sampled => 0,
            })
            .sum();
        let num_kv_tokens = self.live.values().map(|live| live.tokens.len() - live.num_resumed_tokens).sum();
        assert!(num_prompt_tokens <= self.limits.prefill_chunk.get(), "{num_prompt_tokens} prompt tokens");
        assert!(self.limits.fits(num_kv_tokens), "{num_kv_tokens} tokens in the KV");
        assert!(self.live.len() <= self.limits.max_batch_size.get(), "{} rows", self.live.len());
        assert!(self.under_way.len() <= 2, "{} passes under way", self.under_way.len());
    }

    /// The values of a pass, and of all that was launched on top of it, are lost.
    fn lose(&mut self, pass: usize) {
        self.store.lose(pass);
        for live in self.live.values_mut() {
            live.is_lost |= live.last_pass >= pass;
        }
    }

    /// What was imported, if it is numbers.
    fn sound(&mut self, imported: Option<StoredSegment>) -> Result<StoredSegment, ImportError> {
        let wrong = || ImportError::WrongBytes("of something else".to_owned());
        let imported = imported.ok_or_else(wrong)?;
        if self.is_finite(imported.id)? {
            return Ok(imported);
        }
        self.store.discard(imported.id);
        Err(wrong())
    }

    fn cache_call(&mut self, name: &str) -> Result<(), RunnerError> {
        let number = self.num_cache_calls;
        self.num_cache_calls += 1;
        if self.failures.cache_call == Some(number) {
            return Err(RunnerError(format!("{name} is out of memory")));
        }
        Ok(())
    }
}

impl Runner for FakeRunner {
    fn launch(&mut self, groups: &[Group]) -> Result<(), RunnerError> {
        let number = self.passes.len();
        self.passes.push(groups.to_vec());
        assert!(!groups.is_empty(), "an empty pass");
        let sequences: HashSet<SequenceId> = groups.iter().map(|group| group.sequence).collect();
        assert_eq!(sequences.len(), groups.len(), "a sequence twice in a pass: {groups:?}");
        if self.failures.every_launch || self.failures.launch == Some(number) {
            return Err(RunnerError(format!("launch {number} is out of memory")));
        }
        assert!(self.unchosen.is_empty(), "a pass before the tokens of the last one are chosen: {groups:?}");
        let outcomes = groups.iter().map(|group| self.run_group(group)).collect();
        for (place, group) in groups.iter().enumerate() {
            if let Want::Token(choice) = &group.want
                && choice.is_guided
            {
                let tokens = self.live[&group.sequence].tokens.clone();
                let choice = choice.clone();
                self.unchosen.push(Unchosen { sequence: group.sequence, place, tokens, choice });
            }
        }
        self.under_way.push_back(outcomes);
        self.num_launched += 1;
        self.peak_under_way = self.peak_under_way.max(self.under_way.len());
        self.check_limits(groups);
        Ok(())
    }

    fn choose(&mut self, allowed: Vec<Option<TokenSet>>) -> Result<(), RunnerError> {
        let unchosen = std::mem::take(&mut self.unchosen);
        assert!(!unchosen.is_empty(), "nothing is to be chosen");
        assert_eq!(unchosen.len(), allowed.len(), "one set of tokens for each guided group");
        let number = self.num_choices;
        self.num_choices += 1;
        if self.failures.choose == Some(number) {
            self.under_way.pop_back();
            self.num_collected += 1;
            self.lose(self.num_launched - 1);
            return Err(RunnerError(format!("choice {number} is out of memory")));
        }
        let outcomes = self.under_way.back_mut().expect("a pass is under way");
        for (Unchosen { sequence, place, tokens, choice }, allowed) in unchosen.into_iter().zip(allowed) {
            if outcomes[place] == Outcome::NotNumbers {
                continue;
            }
            outcomes[place] = choose(&tokens, &choice, allowed.as_ref());
            if let (Outcome::Token(token, _), Some(live)) = (&outcomes[place], self.live.get_mut(&sequence)) {
                live.sampled = Some(*token);
            }
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<Vec<Outcome>, RunnerError> {
        let mut outcomes = self.under_way.pop_front().expect("a pass is under way");
        if self.under_way.is_empty() && !self.unchosen.is_empty() {
            // Only to be rid of it, after the pass before it has failed.
            self.unchosen.clear();
            self.lose(self.num_collected);
            self.num_collected += 1;
            return Err(RunnerError("its tokens are not chosen".to_owned()));
        }
        if self.failures.loses_tokens {
            outcomes.pop();
        }
        let number = self.num_collected;
        self.num_collected += 1;
        if self.failures.collect == Some(number) {
            self.lose(number);
            return Err(RunnerError(format!("pass {number} is out of memory")));
        }
        if self.failures.no_token == Some(number)
            && let Some(outcome) = outcomes.iter_mut().find(|outcome| matches!(outcome, Outcome::Token(..)))
        {
            *outcome = Outcome::NotNumbers;
        }
        Ok(outcomes)
    }

    fn resume(
        &mut self,
        sequence: SequenceId,
        path: &[SegmentId],
        checkpoint: Option<SegmentId>,
    ) -> Result<(), RunnerError> {
        self.cache_call("resume")?;
        assert!(!path.is_empty(), "{sequence:?} resumes on nothing");
        let tokens = self.store.tokens_of(path);
        if self.rule == ResumeRule::Checkpoints {
            let checkpoint = checkpoint.expect("a model with recurrent layers resumes at a checkpoint");
            assert_eq!(self.store.checkpoint(checkpoint), tokens, "the checkpoint at the path's end");
        }
        let live = Live {
            path: path.to_vec(),
            num_path_tokens: tokens.len(),
            num_resumed_tokens: tokens.len(),
            tokens,
            ..Live::default()
        };
        assert!(self.live.insert(sequence, live).is_none(), "{sequence:?} is begun twice");
        Ok(())
    }

    fn store(&mut self, sequence: SequenceId, num_tokens: usize) -> Result<Stored, RunnerError> {
        self.cache_call("store")?;
        let live = self.live.get_mut(&sequence).expect("a live sequence stores");
        let (first, end) = (live.num_path_tokens, live.num_path_tokens + num_tokens);
        assert!(num_tokens > 0 && end <= live.tokens.len(), "stores {num_tokens} tokens that are not there");
        assert!(!live.is_over, "{sequence:?} stores its end twice");
        live.num_path_tokens = end;
        live.is_over = end < live.tokens.len() || live.sampled.is_some();
        let tokens = live.tokens[..end].to_vec();
        let num_beyond = live.tokens.len() - end;
        let has_state =
            self.rule == ResumeRule::Checkpoints && (num_beyond == 0 || num_beyond == 1 && live.is_ahead);
        let pass = self.num_launched.checked_sub(1);
        let checkpoint = has_state.then(|| self.store.insert_checkpoint(tokens.clone(), pass));
        let segment = self.store.insert_segment(tokens, first, pass);
        live.path.push(segment.id);
        Ok(Stored { segment, checkpoint })
    }

    fn split(
        &mut self,
        segment: SegmentId,
        at: usize,
    ) -> Result<(StoredSegment, StoredSegment), RunnerError> {
        self.cache_call("split")?;
        let (upper, lower) = self.store.split(segment, at);
        for live in self.live.values_mut() {
            if let Some(place) = live.path.iter().position(|id| *id == segment) {
                live.path.splice(place..=place, [upper.id, lower.id]);
            }
        }
        Ok((upper, lower))
    }

    fn plane_widths(&self) -> Vec<u32> {
        vec![EXPORTED_BYTES_PER_TOKEN]
    }

    fn export(
        &mut self,
        segment: SegmentId,
        tokens: std::ops::Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), RunnerError> {
        self.cache_call("export")?;
        self.store.export(segment, tokens, self.num_collected, bytes);
        Ok(())
    }

    fn export_checkpoint(&mut self, checkpoint: SegmentId, bytes: &mut Vec<u8>) -> Result<(), RunnerError> {
        self.cache_call("export")?;
        self.store.export_checkpoint(checkpoint, self.num_collected, bytes);
        Ok(())
    }

    fn import(&mut self, exported: Exported<'_>) -> Result<StoredSegment, ImportError> {
        self.cache_call("import")?;
        let imported = self.store.import(exported);
        self.sound(imported)
    }

    fn import_checkpoint(
        &mut self,
        position: usize,
        bytes: &mut dyn Read,
    ) -> Result<StoredSegment, ImportError> {
        self.cache_call("import")?;
        let imported = self.store.import_checkpoint(position, bytes);
        self.sound(imported)
    }

    fn resume_rule(&self) -> ResumeRule {
        self.rule
    }

    fn is_finite(&mut self, stored: SegmentId) -> Result<bool, RunnerError> {
        let poison = self.failures.poison;
        Ok(!poison
            .is_some_and(|poison| self.store.computed(stored, self.num_collected).tokens.contains(&poison)))
    }

    fn discard(&mut self, segment: SegmentId) {
        let num_bytes = self.store.discard(segment);
        if self.live.values().any(|live| live.path.contains(&segment)) {
            self.outlived.insert(segment, num_bytes);
        }
    }

    fn release(&mut self, sequence: SequenceId) {
        assert!(self.released.insert(sequence), "{sequence:?} is released twice");
        self.live.remove(&sequence);
        self.outlived.retain(|id, _| self.live.values().any(|live| live.path.contains(id)));
    }
}

/// The token after these, as it is asked for.
fn choose(tokens: &[TokenId], choice: &Choice, allowed: Option<&TokenSet>) -> Outcome {
    let raw = logits(tokens, &choice.sampling);
    let mut edited = raw.clone();
    if let Some(edits) = &choice.edits {
        model::edit(&mut edited, edits, *tokens.last().expect("a step has an input"));
    }
    for token in 0..VOCAB_SIZE {
        if allowed.is_some_and(|allowed| !allowed.contains(token)) {
            edited[token as usize] = f32::NEG_INFINITY;
        }
    }
    let token = best(&edited);
    Outcome::Token(token, choice.report.map(|wanted| Box::new(report(&raw, token, wanted.num_top))))
}
