//! Who goes next: the order in which entries are evicted.
//!
//! Owns the one eviction rule, over sorted sets, so that no choice looks at every entry. What counts
//! as an entry and how it is removed is [`super::PromptCache`]'s business.
//!
//! 1. Dead entries: no sequence can resume at them.
//! 2. Idle entries, which no planned request uses any more, by tier and recency as mlx-lm ranks them:
//!    the oldest of the first tier, least persistent first, that holds at least as many entries as
//!    the next tier.
//! 3. The newest entry, if it is idle: storing an answer for the next run must not push out what this
//!    run still needs.
//! 4. Planned entries, the one first whose next use is furthest in the future (Belady). Among those in
//!    use already that is the one with the latest last user, since the others are used through the
//!    deepest of them: what lies above is needed again only after the users of what lies below. For
//!    the same reason the shallowest goes first where both have the same users.
//! 5. The newest entry, if there is any other; alone it stays, over the limit.
//!
//! To store what nobody is known to use again, none of 4 and 5 goes.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use super::node::Expected;
use super::{NodeId, PerTier, Tier};

/// What bytes that are about to be stored may push out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Planned requests use them: whatever is not in use may go.
    Needed,
    /// Nobody is known to use them again: what planned requests use stays, and where that leaves no room
    /// nothing goes at all.
    Spare,
}

/// What decides about one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// The effective tier.
    pub(super) tier: Tier,
    pub(super) is_pinned: bool,
    /// No sequence can resume here or below.
    pub(super) is_dead: bool,
    pub(super) last_used: u64,
    pub(super) end: usize,
    pub(super) expected: Option<Expected>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    /// Pinned: not to be evicted.
    Held,
    Dead,
    Idle(Tier),
    Planned(Expected),
}

/// The order of last use; on one path the shallower entry counts as older.
type ByAge = (u64, usize, NodeId);
type ByFirst = (u64, u64, Reverse<usize>, NodeId);
type ByLast = (u64, Reverse<usize>, NodeId);

/// All entries in the order of their eviction.
#[derive(Debug, Clone, Default)]
pub(super) struct Ranking {
    entries: HashMap<NodeId, (Standing, Queue)>,
    num_entries: PerTier<usize>,
    dead: BTreeSet<ByAge>,
    idle: PerTier<BTreeSet<ByAge>>,
    by_first: BTreeSet<ByFirst>,
    by_last: BTreeSet<ByLast>,
    now: u64,
}

impl Ranking {
    /// The number of entries of that effective tier.
    pub(super) fn num_entries_of(&self, tier: Tier) -> usize {
        self.num_entries[tier]
    }

    /// The number of all entries.
    pub(super) fn num_entries(&self) -> usize {
        self.entries.len()
    }

    /// The place in the run that the ranking was last asked at.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Files an entry anew, or forgets it.
    pub(super) fn update(&mut self, id: NodeId, standing: Option<Standing>) {
        if self.entries.get(&id).map(|(old, _)| *old) == standing {
            return;
        }
        if let Some((old, queue)) = self.entries.remove(&id) {
            self.num_entries[old.tier] -= 1;
            self.unfile(id, &old, queue);
        }
        if let Some(new) = standing {
            let queue = self.queue_of(&new);
            self.num_entries[new.tier] += 1;
            self.entries.insert(id, (new, queue));
            self.file(id, &new, queue);
        }
    }

    /// Moves on in the run: requests before `now` are no planned users any more.
    pub(super) fn advance(&mut self, now: u64) {
        self.now = self.now.max(now);
        while let Some((_, _, id)) = self.by_last.first().copied().filter(|(last, _, _)| *last < self.now) {
            let (standing, queue) = self.entries[&id];
            self.unfile(id, &standing, queue);
            let queue = self.queue_of(&standing);
            self.entries.insert(id, (standing, queue));
            self.file(id, &standing, queue);
        }
    }

    /// The entry to evict next, `newest` being the one just stored.
    pub(super) fn victim(&self, newest: Option<NodeId>, claim: Claim) -> Option<NodeId> {
        let newest = newest.and_then(|id| Some((id, self.entries.get(&id)?.1)));
        let newest_id = newest.map(|(id, _)| id);
        // Alone, the newest stays.
        let is_spared = |queue: Queue| self.num_entries() == 1 || queue == Queue::Held;
        let newest_if = |is_planned: bool| {
            let (id, queue) = newest?;
            (!is_spared(queue) && matches!(queue, Queue::Planned(_)) == is_planned).then_some(id)
        };
        let unplanned = self.unplanned(newest).or_else(|| newest_if(false));
        match claim {
            Claim::Spare => unplanned,
            Claim::Needed => unplanned.or_else(|| self.furthest(newest_id)).or_else(|| newest_if(true)),
        }
    }

    /// The first entry but the newest that no planned request uses.
    fn unplanned(&self, newest: Option<(NodeId, Queue)>) -> Option<NodeId> {
        let newest_id = newest.map(|(id, _)| id);
        let first =
            |ages: &BTreeSet<ByAge>| ages.iter().map(|(_, _, id)| *id).find(|id| Some(*id) != newest_id);
        let idle_tier = || self.idle_tier(newest.map(|(_, queue)| queue));
        first(&self.dead).or_else(|| first(&self.idle[idle_tier()?]))
    }

    /// All entries that neither a running nor a planned request uses; those that go first among the first.
    pub(super) fn all_unplanned(&self) -> impl Iterator<Item = NodeId> {
        let idle = Tier::ALL.into_iter().flat_map(|tier| &self.idle[tier]);
        self.dead.iter().chain(idle).map(|(_, _, id)| *id)
    }

    /// The tier whose oldest idle entry goes first.
    fn idle_tier(&self, newest_queue: Option<Queue>) -> Option<Tier> {
        let has_idle = |tier: &Tier| {
            let num_kept = usize::from(newest_queue == Some(Queue::Idle(*tier)));
            self.idle[*tier].len() > num_kept
        };
        let is_balanced = |(tier, next): &(Tier, Tier)| {
            has_idle(tier) && self.num_entries[*tier] >= self.num_entries[*next]
        };
        let steps = Tier::ALL.into_iter().zip(Tier::ALL.into_iter().skip(1));
        steps
            .into_iter()
            .find(is_balanced)
            .map(|(tier, _)| tier)
            // Where counting rules out all but the last tier, that one pays; where it has nothing to
            // give because all of it is in use, the least persistent one does.
            .or_else(|| Some(Tier::System).filter(has_idle))
            .or_else(|| Tier::ALL.into_iter().find(has_idle))
    }

    /// The planned entry whose next use is furthest away.
    fn furthest(&self, newest: Option<NodeId>) -> Option<NodeId> {
        let mut not_begun = self.by_first.iter().rev().take_while(|(first, ..)| *first > self.now);
        let not_begun = not_begun.find(|(.., id)| Some(*id) != newest).map(|(.., id)| *id);
        not_begun.or_else(|| self.by_last.iter().rev().map(|(_, _, id)| *id).find(|id| Some(*id) != newest))
    }

    fn queue_of(&self, standing: &Standing) -> Queue {
        match standing.expected.filter(|expected| expected.last >= self.now) {
            _ if standing.is_pinned => Queue::Held,
            _ if standing.is_dead => Queue::Dead,
            Some(expected) => Queue::Planned(expected),
            None => Queue::Idle(standing.tier),
        }
    }

    fn file(&mut self, id: NodeId, standing: &Standing, queue: Queue) {
        let Standing { last_used, end, .. } = *standing;
        match queue {
            Queue::Held => {}
            Queue::Dead => drop(self.dead.insert((last_used, end, id))),
            Queue::Idle(tier) => drop(self.idle[tier].insert((last_used, end, id))),
            Queue::Planned(Expected { first, last }) => {
                self.by_first.insert((first, last, Reverse(end), id));
                self.by_last.insert((last, Reverse(end), id));
            }
        }
    }

    fn unfile(&mut self, id: NodeId, standing: &Standing, queue: Queue) {
        let Standing { last_used, end, .. } = *standing;
        match queue {
            Queue::Held => {}
            Queue::Dead => drop(self.dead.remove(&(last_used, end, id))),
            Queue::Idle(tier) => drop(self.idle[tier].remove(&(last_used, end, id))),
            Queue::Planned(Expected { first, last }) => {
                self.by_first.remove(&(first, last, Reverse(end), id));
                self.by_last.remove(&(last, Reverse(end), id));
            }
        }
    }
}
