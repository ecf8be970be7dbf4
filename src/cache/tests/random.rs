//! Random operations over a vocabulary of two, against the naive model.
//!
//! Owns the generator and the comparison: 500 runs of 200 operations are 100,000 rounds, with every
//! invariant checked after each.

use proptest::prelude::*;
use proptest::sample::Index;

use super::invariants;
use super::model::{Model, Run};
use super::*;

#[derive(Debug, Clone)]
enum Op {
    Find(Vec<TokenId>),
    Store { tokens: Vec<TokenId>, tier: Tier, has_checkpoint: bool },
    Announce { tokens: Vec<TokenId>, tier: Tier, owner: OwnerId },
    Fulfil(Index, bool),
    Cancel(OwnerId),
    Pin(Index),
    Unpin(Index),
    Expect(Index, u64, u64),
    Split(Index, Index),
    Checkpoint(Index, bool),
    Remove(Index),
    MakeRoom { advance: u64 },
    MakeRoomFor { num_bytes: u64, claim: Claim },
    UseStale(Index),
}

fn any_op() -> impl Strategy<Value = Op> {
    let tokens = || prop::collection::vec(0..2u32, 1..14);
    let tier = || prop::sample::select(Tier::ALL.to_vec());
    let owner = || (0..3u64).prop_map(OwnerId);
    let index = any::<Index>;
    prop_oneof![
        4 => tokens().prop_map(Op::Find),
        8 => (tokens(), tier(), any::<bool>())
            .prop_map(|(tokens, tier, has_checkpoint)| Op::Store { tokens, tier, has_checkpoint }),
        3 => (tokens(), tier(), owner()).prop_map(|(tokens, tier, owner)| Op::Announce { tokens, tier, owner }),
        3 => (index(), any::<bool>()).prop_map(|(node, has_checkpoint)| Op::Fulfil(node, has_checkpoint)),
        1 => owner().prop_map(Op::Cancel),
        2 => index().prop_map(Op::Pin),
        3 => index().prop_map(Op::Unpin),
        3 => (index(), 0..12u64, 0..6u64).prop_map(|(node, first, num)| Op::Expect(node, first, num)),
        1 => (index(), index()).prop_map(|(node, at)| Op::Split(node, at)),
        2 => (index(), any::<bool>()).prop_map(|(node, is_set)| Op::Checkpoint(node, is_set)),
        1 => index().prop_map(Op::Remove),
        6 => (0..3u64).prop_map(|advance| Op::MakeRoom { advance }),
        2 => (0..30u64, any::<bool>()).prop_map(|(num_bytes, is_spare)| {
            let claim = if is_spare { Claim::Spare } else { Claim::Needed };
            Op::MakeRoomFor { num_bytes, claim }
        }),
        1 => index().prop_map(Op::UseStale),
    ]
}

/// The cache and the model, to which every operation is done alike.
struct Pair {
    caller: Caller,
    model: Model,
    stale: Vec<NodeId>,
    /// What was found of these tokens at some time.
    found: Vec<(Vec<TokenId>, Match)>,
}

impl Pair {
    fn new(limits: CacheLimits, rule: ResumeRule) -> Self {
        let (caller, model) = (Caller::new(limits, rule), Model::new(limits, rule));
        Self { caller, model, stale: Vec::new(), found: Vec::new() }
    }

    fn pick(&self, index: &Index) -> Option<NodeId> {
        (!self.model.runs.is_empty()).then(|| index.get(&self.model.runs).id)
    }

    fn split(&mut self, node: NodeId, at: usize) -> NodeId {
        let num_tokens = self.model.get(node).prefix.len() - self.model.get(node).start;
        let halves = (self.caller.kv(at), self.caller.kv(num_tokens - at));
        let split = self.caller.cache.split(node, at, halves).unwrap();
        assert_eq!(Some(split.replaced), self.model.get(node).segment);
        self.model.split(at, split, halves);
        split.upper
    }

    /// Goes to where `tokens` leave the tree; `None` where that is within a pending node.
    fn descend(&mut self, tokens: &[TokenId]) -> Option<(Option<NodeId>, usize)> {
        let (num_tokens, whole, partial) = self.model.find(tokens);
        let parent = match partial {
            Some((node, _)) if self.model.get(node).owner.is_some() => return None,
            Some((node, at)) => Some(self.split(node, at)),
            None => whole.last().copied(),
        };
        Some((parent, num_tokens))
    }

    fn insert(&mut self, tokens: &[TokenId], tier: Tier, has_checkpoint: bool, owner: Option<OwnerId>) {
        let Some((parent, start)) = self.descend(tokens) else { return };
        let parent_is_pending = parent.is_some_and(|parent| self.model.get(parent).owner.is_some());
        let place = Place { parent, tokens: &tokens[start..], tier };
        let segment = self.caller.kv(tokens.len() - start);
        let checkpoint = has_checkpoint.then(|| self.caller.kv(10));
        let cache = &mut self.caller.cache;
        let inserted = match owner {
            Some(owner) => cache.announce(place, owner),
            None => cache.insert(place, segment, checkpoint),
        };
        if place.tokens.is_empty() {
            return assert_eq!(inserted, Err(CacheError::NoTokens));
        }
        if parent_is_pending && owner.is_none() {
            return assert!(matches!(inserted, Err(CacheError::Pending(_))));
        }
        let Ok(Inserted::New(id)) = inserted else { panic!("{inserted:?}") };
        let (segment, checkpoint) = if owner.is_some() { (None, None) } else { (Some(segment), checkpoint) };
        let prefix = tokens.to_vec();
        let (last_used, num_pins, users) = (0, 0, None);
        self.model.add(Run {
            id,
            prefix,
            start,
            segment,
            checkpoint,
            owner,
            tier,
            last_used,
            num_pins,
            users,
        });
        // What begins alike is refused.
        let kv = self.caller.kv(1);
        let overlap = self.caller.cache.insert(place, kv, None);
        if !parent_is_pending {
            assert_eq!(overlap, Ok(Inserted::Overlaps { node: id, num_common: place.tokens.len() }));
        }
    }

    fn find(&mut self, tokens: &[TokenId]) {
        let found = self.caller.cache.find(tokens);
        for (tokens, before) in &mut self.found {
            self.caller.cache.tree().find_again(before, tokens);
            assert_eq!(*before, self.caller.cache.find(tokens), "{tokens:?}");
        }
        self.found.push((tokens.to_vec(), found.clone()));
        let (num_tokens, whole, partial) = self.model.find(tokens);
        assert_eq!(found.num_tokens, num_tokens);
        assert_eq!(found.path.iter().map(|step| step.node).collect::<Vec<_>>(), whole);
        assert_eq!(found.partial.map(|partial| (partial.node, partial.num_tokens)), partial);

        let on_way = whole.iter().copied().chain(partial.map(|(node, _)| node));
        let stored: Vec<NodeId> =
            on_way.clone().take_while(|id| self.model.get(*id).segment.is_some()).collect();
        assert_eq!(found.pending(), on_way.clone().nth(stored.len()));
        let last = match self.model.rule {
            ResumeRule::AnyToken => stored.last().copied(),
            ResumeRule::Checkpoints => stored
                .iter()
                .copied()
                .rfind(|id| self.model.get(*id).checkpoint.is_some() && whole.contains(id)),
        };
        let resume = self.caller.cache.resume(&found);
        assert_eq!(found.node_of(&resume), last);
        assert_eq!(resume.num_tokens, last.map_or(0, |id| self.model.get(id).prefix.len().min(num_tokens)));

        let before = self.caller.cache.usage().num_cached_tokens();
        self.caller.cache.record_hit(&found, &resume).unwrap();
        assert_eq!(self.caller.cache.usage().num_cached_tokens() - before, resume.num_tokens);
        if let Some(last) = last {
            self.model.touch(last);
        }
    }

    fn make_room(&mut self, advance: u64) {
        self.model.now += advance;
        let dropped = self.caller.cache.make_room(self.model.now);
        assert_eq!(dropped, self.model.make_room(0, self.model.newest, Claim::Needed));
        let is_alone = self.model.entries().len() == 1;
        assert!(!self.model.is_over_limit(0) || self.all_is_in_use() || is_alone);
    }

    fn make_room_for(&mut self, num_bytes: u64, claim: Claim) {
        let dropped = self.caller.cache.make_room_for(num_bytes, self.model.now, claim);
        assert_eq!(dropped, self.model.make_room_for(num_bytes, claim));
        let is_over_limit = self.model.is_over_limit(num_bytes);
        assert!(!is_over_limit || self.all_is_in_use() || claim == Claim::Spare);
    }

    fn all_is_in_use(&self) -> bool {
        self.model.entries().iter().all(|id| self.model.get(*id).num_pins > 0)
    }

    fn on_node(&mut self, op: &Op, id: NodeId) {
        let run = self.model.get(id).clone();
        let is_leaf = self.model.is_leaf(id);
        match op {
            Op::Fulfil(_, has_checkpoint) => {
                let segment = self.caller.kv(run.prefix.len() - run.start);
                let checkpoint = has_checkpoint.then(|| self.caller.kv(10));
                let fulfilled = self.caller.cache.fulfil(id, segment, checkpoint);
                let waits = self.model.runs.iter().any(|above| {
                    above.owner.is_some() && above.id != id && run.prefix.starts_with(&above.prefix)
                });
                assert_eq!(fulfilled.is_ok(), run.owner.is_some() && !waits);
                if fulfilled.is_ok() {
                    let run = self.model.get_mut(id);
                    (run.segment, run.checkpoint, run.owner) = (Some(segment), checkpoint, None);
                    self.model.touch(id);
                    self.model.newest = Some(id);
                }
            }
            Op::Pin(_) => {
                self.caller.cache.pin(id).unwrap();
                self.model.get_mut(id).num_pins += 1;
            }
            Op::Unpin(_) => {
                let unpinned = self.caller.cache.unpin(id);
                assert_eq!(unpinned.is_ok(), run.num_pins > 0);
                self.model.get_mut(id).num_pins = run.num_pins.saturating_sub(1);
            }
            Op::Expect(_, first, num) => {
                let users = (self.model.now + first, self.model.now + first + num);
                self.caller.cache.expect(id, users.0..=users.1).unwrap();
                self.model.expect(id, users);
            }
            Op::Split(_, at) => {
                let num_tokens = run.prefix.len() - run.start;
                if run.owner.is_none() && num_tokens > 1 {
                    self.split(id, 1 + at.index(num_tokens - 1));
                }
            }
            Op::Checkpoint(_, is_set) => {
                let checkpoint = is_set.then(|| self.caller.kv(10));
                let old = self.caller.cache.set_checkpoint(id, checkpoint);
                assert_eq!(old.ok(), run.owner.is_none().then_some(run.checkpoint));
                if run.owner.is_none() {
                    self.model.get_mut(id).checkpoint = checkpoint;
                    self.model.newest = if *is_set { Some(id) } else { self.model.newest };
                }
            }
            Op::Remove(_) => {
                let removed = self.caller.cache.remove(id);
                if is_leaf && run.num_pins == 0 && run.owner.is_none() {
                    let held = run.segment.into_iter().chain(run.checkpoint);
                    assert_eq!(removed, Ok(held.collect()));
                    self.model.runs.retain(|run| run.id != id);
                } else if let Ok(removed) = removed {
                    let gone = [vec![id], self.model.below(id)].concat();
                    let gone: Vec<Run> = gone.iter().map(|id| self.model.get(*id).clone()).collect();
                    assert!(gone.iter().all(|run| run.num_pins == 0 && run.owner.is_none()));
                    let num_held = gone.iter().map(|run| 1 + usize::from(run.checkpoint.is_some()));
                    assert_eq!(removed.len(), num_held.sum::<usize>());
                    self.model.runs.retain(|run| !gone.contains(run));
                }
            }
            other => unreachable!("{other:?} names no node"),
        }
    }

    fn apply(&mut self, op: &Op) {
        let before: Vec<NodeId> = self.model.runs.iter().map(|run| run.id).collect();
        match op {
            Op::Find(tokens) => self.find(tokens),
            Op::Store { tokens, tier, has_checkpoint } => self.insert(tokens, *tier, *has_checkpoint, None),
            Op::Announce { tokens, tier, owner } => self.insert(tokens, *tier, false, Some(*owner)),
            Op::Cancel(owner) => assert_eq!(self.caller.cache.cancel(*owner), self.model.cancel(*owner)),
            Op::MakeRoom { advance } => self.make_room(*advance),
            Op::MakeRoomFor { num_bytes, claim } => self.make_room_for(*num_bytes, *claim),
            Op::UseStale(index) => {
                if let Some(id) = (!self.stale.is_empty()).then(|| *index.get(&self.stale)) {
                    assert_eq!(self.caller.cache.pin(id), Err(CacheError::Stale(id)));
                    assert_eq!(self.caller.cache.touch(id), Err(CacheError::Stale(id)));
                }
            }
            Op::Fulfil(index, _)
            | Op::Pin(index)
            | Op::Unpin(index)
            | Op::Expect(index, ..)
            | Op::Split(index, _)
            | Op::Checkpoint(index, _)
            | Op::Remove(index) => {
                if let Some(id) = self.pick(index) {
                    self.on_node(op, id);
                }
            }
        }
        let is_live = |id: &NodeId| self.model.runs.iter().any(|run| run.id == *id);
        self.stale.extend(before.iter().filter(|id| !is_live(id)));
    }

    fn compare(&self) {
        let tree = self.caller.cache.tree();
        assert_eq!(tree.num_nodes(), self.model.runs.len());
        for run in &self.model.runs {
            let node = tree.node(run.id).expect("the model still has it");
            assert_eq!(node.tokens(), &run.prefix[run.start..]);
            assert_eq!((node.segment(), node.checkpoint()), (run.segment.as_ref(), run.checkpoint.as_ref()));
            assert_eq!((node.owner(), node.tier(), node.num_pins()), (run.owner, run.tier, run.num_pins));
            assert_eq!(node.last_used(), run.last_used);
            assert_eq!(node.expected().map(|users| (users.first, users.last)), run.users);
        }
        let usage = self.caller.cache.usage();
        assert_eq!(usage.num_bytes, self.model.num_bytes());
        assert_eq!(usage.num_evictions(), self.model.num_evictions);
        assert_eq!(usage.num_over_limit, self.model.num_over_limit);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_cache_does_what_a_plain_list_does(
        max_bytes in 20..120u64,
        max_entries in prop::option::of(1..8usize),
        rule in prop::sample::select(vec![ResumeRule::AnyToken, ResumeRule::Checkpoints]),
        ops in prop::collection::vec(any_op(), 200),
    ) {
        let mut pair = Pair::new(CacheLimits { max_bytes, max_entries }, rule);
        for op in &ops {
            pair.apply(op);
            pair.compare();
            invariants::check(&pair.caller.cache, rule, pair.model.now);
        }
    }
}

proptest! {
    #[test]
    fn touching_many_is_touching_each_in_turn(
        prompts in prop::collection::vec(prop::collection::vec(0..3u32, 1..12), 1..20),
        touched in prop::collection::vec(any::<Index>(), 0..30),
    ) {
        let fill = || {
            let mut caller = Caller::any_token(UNLIMITED);
            let nodes: Vec<NodeId> =
                prompts.iter().map(|prompt| caller.insert(prompt, Tier::User, false)).collect();
            (caller, nodes)
        };
        let ((mut one_by_one, nodes), (mut at_once, _)) = (fill(), fill());
        let touched: Vec<NodeId> = touched.iter().map(|index| *index.get(&nodes)).collect();
        for node in &touched {
            one_by_one.cache.touch(*node).unwrap();
        }
        at_once.cache.touch_all(&touched).unwrap();
        let times = |caller: &Caller| {
            let tree = caller.cache.tree();
            tree.preorder().into_iter().map(|id| tree.linked(id).last_used()).collect::<Vec<_>>()
        };
        prop_assert_eq!(times(&one_by_one), times(&at_once));
        // And in the ranking.
        while let Some(evicted) = one_by_one.cache.evict_first() {
            prop_assert_eq!(at_once.cache.evict_first(), Some(evicted));
        }
    }
}
