//! A prompt cache without a tree: a list of stored runs of tokens, searched from end to end.
//!
//! Owns the plain statement of what the cache should do, against which random operations compare it.
//! Shares no code with it.

use super::*;

/// A stored or announced run of tokens, named by the whole prefix up to its end.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Run {
    pub id: NodeId,
    pub prefix: Vec<TokenId>,
    /// Where its own tokens begin.
    pub start: usize,
    pub segment: Option<Kv>,
    pub checkpoint: Option<Kv>,
    pub owner: Option<OwnerId>,
    pub tier: Tier,
    pub last_used: u64,
    pub num_pins: usize,
    pub users: Option<(u64, u64)>,
}

#[derive(Clone)]
pub(super) struct Model {
    pub runs: Vec<Run>,
    pub rule: ResumeRule,
    pub limits: CacheLimits,
    pub newest: Option<NodeId>,
    pub now: u64,
    pub num_evictions: usize,
    pub num_over_limit: usize,
    clock: u64,
}

impl Model {
    pub(super) fn new(limits: CacheLimits, rule: ResumeRule) -> Self {
        Self {
            runs: Vec::new(),
            rule,
            limits,
            newest: None,
            now: 0,
            num_evictions: 0,
            num_over_limit: 0,
            clock: 0,
        }
    }

    pub(super) fn get(&self, id: NodeId) -> &Run {
        self.runs.iter().find(|run| run.id == id).expect("the test names runs it knows")
    }

    pub(super) fn get_mut(&mut self, id: NodeId) -> &mut Run {
        self.runs.iter_mut().find(|run| run.id == id).expect("the test names runs it knows")
    }

    /// What hangs below a run, itself not included.
    pub(super) fn below(&self, id: NodeId) -> Vec<NodeId> {
        let top = self.get(id);
        let is_below = |run: &&Run| run.id != id && run.prefix.starts_with(&top.prefix);
        self.runs.iter().filter(is_below).map(|run| run.id).collect()
    }

    /// The run and all above it.
    fn path(&self, id: NodeId) -> Vec<NodeId> {
        let bottom = self.get(id);
        let is_above = |run: &&Run| bottom.prefix.starts_with(&run.prefix);
        self.runs.iter().filter(is_above).map(|run| run.id).collect()
    }

    pub(super) fn is_leaf(&self, id: NodeId) -> bool {
        self.below(id).is_empty()
    }

    /// Matching tokens, whole runs in order, and the run in whose middle the match ends.
    pub(super) fn find(&self, tokens: &[TokenId]) -> (usize, Vec<NodeId>, Option<(NodeId, usize)>) {
        let common = |run: &Run| run.prefix.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let num_tokens = self.runs.iter().map(common).max().unwrap_or(0);
        let mut whole: Vec<&Run> = self.runs.iter().filter(|run| common(run) == run.prefix.len()).collect();
        whole.sort_by_key(|run| run.prefix.len());
        let ends_in =
            |run: &&Run| common(run) == num_tokens && run.start < num_tokens && num_tokens < run.prefix.len();
        let partial = self.runs.iter().find(ends_in).map(|run| (run.id, num_tokens - run.start));
        (num_tokens, whole.iter().map(|run| run.id).collect(), partial)
    }

    pub(super) fn touch(&mut self, id: NodeId) {
        self.clock += 1;
        for id in self.path(id) {
            self.get_mut(id).last_used = self.clock;
        }
    }

    pub(super) fn add(&mut self, run: Run) {
        let (id, is_stored) = (run.id, run.segment.is_some());
        self.runs.push(run);
        self.touch(id);
        if is_stored {
            self.newest = Some(id);
        }
    }

    pub(super) fn split(&mut self, at: usize, split: SplitNode<Kv>, halves: (Kv, Kv)) {
        let lower = self.get_mut(split.lower);
        let mut upper = lower.clone();
        lower.segment = Some(halves.1);
        lower.start += at;
        upper.prefix.truncate(lower.start);
        upper.id = split.upper;
        upper.segment = Some(halves.0);
        upper.checkpoint = None;
        upper.num_pins = 0;
        self.runs.push(upper);
    }

    pub(super) fn expect(&mut self, id: NodeId, users: (u64, u64)) {
        let now = self.now;
        for id in self.path(id) {
            let run = self.get_mut(id);
            let known = run.users.filter(|(_, last)| *last >= now).unwrap_or(users);
            run.users = Some((known.0.min(users.0), known.1.max(users.1)));
        }
    }

    /// Removes an owner's announcements and all that others announced below them.
    pub(super) fn cancel(&mut self, owner: OwnerId) -> Vec<OwnerId> {
        let own: Vec<NodeId> =
            self.runs.iter().filter(|run| run.owner == Some(owner)).map(|run| run.id).collect();
        let gone: Vec<NodeId> = own.iter().flat_map(|id| [vec![*id], self.below(*id)].concat()).collect();
        let mut others: Vec<OwnerId> =
            gone.iter().filter_map(|id| self.get(*id).owner).filter(|other| *other != owner).collect();
        others.sort();
        others.dedup();
        self.runs.retain(|run| !gone.contains(&run.id));
        others
    }

    pub(super) fn num_bytes(&self) -> u64 {
        let held =
            |run: &Run| [run.segment, run.checkpoint].iter().flatten().map(|kv| kv.num_bytes).sum::<u64>();
        self.runs.iter().map(held).sum()
    }

    fn tier_of(&self, id: NodeId) -> Tier {
        let tiers = self.below(id).into_iter().map(|below| self.get(below).tier);
        tiers.max().map_or(self.get(id).tier, |tier| tier.max(self.get(id).tier))
    }

    /// What eviction could take something of, pins aside.
    pub(super) fn entries(&self) -> Vec<NodeId> {
        let is_entry =
            |run: &&Run| run.segment.is_some() && (self.is_leaf(run.id) || run.checkpoint.is_some());
        self.runs.iter().filter(is_entry).map(|run| run.id).collect()
    }

    pub(super) fn is_over_limit(&self, num_bytes: u64) -> bool {
        let max_entries = self.limits.max_entries.unwrap_or(usize::MAX);
        self.num_bytes() + num_bytes > self.limits.max_bytes || self.entries().len() > max_entries
    }

    /// The order of eviction, as `ranking.rs` tells it.
    fn victim(&self, newest: Option<NodeId>, claim: Claim) -> Option<NodeId> {
        let entries = self.entries();
        let free: Vec<&Run> =
            entries.iter().map(|id| self.get(*id)).filter(|run| run.num_pins == 0).collect();
        let is_dead = |run: &Run| self.rule == ResumeRule::Checkpoints && run.checkpoint.is_none();
        let is_planned = |run: &Run| !is_dead(run) && run.users.is_some_and(|(_, last)| last >= self.now);
        let is_idle = |run: &Run| !is_dead(run) && !is_planned(run);
        let others = || free.iter().copied().filter(|run| Some(run.id) != newest);
        let oldest = |runs: Vec<&Run>| {
            runs.into_iter().min_by_key(|run| (run.last_used, run.prefix.len(), run.id)).map(|run| run.id)
        };
        let spare_newest = |is_in: &dyn Fn(&Run) -> bool| {
            free.iter()
                .find(|run| Some(run.id) == newest && is_in(run) && entries.len() > 1)
                .map(|run| run.id)
        };

        if let Some(dead) = oldest(others().filter(|run| is_dead(run)).collect()) {
            return Some(dead);
        }
        let idle = |tier| -> Vec<&Run> {
            others().filter(|run| is_idle(run) && self.tier_of(run.id) == tier).collect()
        };
        let count = |tier| entries.iter().filter(|id| self.tier_of(**id) == tier).count();
        let (assistant, user, system) = (Tier::Assistant, Tier::User, Tier::System);
        let tier = if !idle(assistant).is_empty() && count(assistant) >= count(user) {
            assistant
        } else if !idle(user).is_empty() && count(user) >= count(system) {
            user
        } else if !idle(system).is_empty() {
            system
        } else if !idle(assistant).is_empty() {
            assistant
        } else {
            user
        };
        if let Some(idle) = oldest(idle(tier)) {
            return Some(idle);
        }
        if let Some(newest) = spare_newest(&|run| !is_planned(run)) {
            return Some(newest);
        }
        if claim == Claim::Spare {
            return None;
        }
        let planned = others().filter(|run| is_planned(run));
        let furthest = planned.max_by_key(|run| {
            let (first, last) = run.users.unwrap_or_default();
            (first.max(self.now), last, std::cmp::Reverse(run.prefix.len()), run.id)
        });
        furthest.map(|run| run.id).or_else(|| spare_newest(&is_planned))
    }

    pub(super) fn make_room(&mut self, num_bytes: u64, newest: Option<NodeId>, claim: Claim) -> Vec<Kv> {
        let mut dropped = Vec::new();
        while self.is_over_limit(num_bytes) {
            let Some(id) = self.victim(newest, claim) else {
                self.num_over_limit += usize::from(self.is_over_limit(0));
                break;
            };
            self.evict(id, &mut dropped);
        }
        dropped
    }

    pub(super) fn make_room_for(&mut self, num_bytes: u64, claim: Claim) -> Vec<Kv> {
        if claim == Claim::Spare && self.is_over_limit(num_bytes) {
            let mut without = self.clone();
            while let Some(id) = without.victim(None, claim) {
                without.evict(id, &mut Vec::new());
            }
            if without.num_bytes() + num_bytes > self.limits.max_bytes {
                return Vec::new();
            }
        }
        self.make_room(num_bytes, None, claim)
    }

    fn evict(&mut self, id: NodeId, dropped: &mut Vec<Kv>) {
        self.num_evictions += 1;
        if self.is_leaf(id) {
            dropped.extend([self.get(id).segment, self.get(id).checkpoint].into_iter().flatten());
            self.runs.retain(|run| run.id != id);
        } else {
            dropped.extend(self.get_mut(id).checkpoint.take());
        }
    }
}
