//! Answers in the prompt cache: for the next turn of a conversation, which begins with them.
//!
//! Owns taking an answer's KV out of the runner and hanging it below its prompt. What a sequence has
//! stored of the prompt itself is [`super::prompts`]'.

use super::{Prefixes, Unconfirmed, discard, make_room_for, make_room_for_leaf};
use crate::cache::{Claim, Inserted, NodeId, Place, ResumeRule, Tier};
use crate::engine::sequence::Sequence;
use crate::engine::{Runner, RunnerError, Stored, TokenId};

impl Prefixes {
    /// Whether there is a place for a sequence's answer in the tree.
    pub(in crate::engine) fn can_keep_answer(&self, sequence: &Sequence) -> bool {
        self.cache.is_some() && !sequence.hold.is_detached() && sequence.may_keep_answer()
    }

    /// Takes what a sequence has computed after its path up to `end` out of the runner, for
    /// [`Prefixes::keep`] once its tokens are known. The sequence must not run on.
    ///
    /// Until then it counts against no limit: one pass at most.
    pub(in crate::engine) fn take_rest(
        &self,
        runner: &mut impl Runner,
        sequence: &Sequence,
        end: usize,
    ) -> Result<Option<Stored>, RunnerError> {
        let num_stored = sequence.hold.num_tokens();
        if !self.can_keep_answer(sequence) || end <= num_stored {
            return Ok(None);
        }
        runner.store(sequence.id, end - num_stored).map(Some)
    }

    /// Keeps the end of a sequence's tokens, `rest` from its path on, as an answer, if there is room
    /// and as far as it is not there already.
    pub(in crate::engine) fn keep(
        &mut self,
        runner: &mut impl Runner,
        sequence: &Sequence,
        rest: &[TokenId],
        mut stored: Stored,
    ) -> Result<(), RunnerError> {
        let Some(cache) = &mut self.cache else { return Ok(()) };
        if !make_room_for(cache, runner, stored.num_bytes(), self.now, Claim::Spare) {
            discard(runner, stored);
            return Ok(());
        }
        let hung = self.hang(runner, sequence.hold.node, rest, &mut stored);
        let Ok(Some(node)) = hung else {
            discard(runner, stored);
            return hung.map(drop);
        };
        self.note_stored(Unconfirmed::Node(node));
        self.persisted.num_unsaved_bytes += stored.segment.num_bytes;
        let Some(cache) = &mut self.cache else { return Ok(()) };
        if sequence.request.answer_recurs.is_awaited() {
            cache.expect(node, self.now..=self.now)?;
        }
        make_room_for_leaf(cache, runner, node, self.now).map(drop)
    }

    /// Drops what [`Prefixes::take_rest`] took.
    pub(in crate::engine) fn drop_rest(&self, runner: &mut impl Runner, rest: Stored) {
        discard(runner, rest);
    }

    /// Hangs what is new of an answer into the tree and returns its node; `None` where nothing is.
    ///
    /// What is left in `stored` then, and after an error, is the caller's to drop.
    fn hang(
        &mut self,
        runner: &mut impl Runner,
        mut parent: Option<NodeId>,
        mut rest: &[TokenId],
        stored: &mut Stored,
    ) -> Result<Option<NodeId>, RunnerError> {
        let needs_checkpoint = self.rule == ResumeRule::Checkpoints;
        if needs_checkpoint && stored.checkpoint.is_none() {
            return Ok(None);
        }
        loop {
            let Some(cache) = &mut self.cache else { return Ok(None) };
            let place = Place { parent, tokens: rest, tier: Tier::Assistant };
            let (node, num_common) = match cache.insert(place, stored.segment, stored.checkpoint)? {
                Inserted::New(node) => return Ok(Some(node)),
                Inserted::Overlaps { node, num_common } => (node, num_common),
            };
            // Requests with the same prompt have answers that begin alike: at least with the last
            // token of the prompt.
            let other = cache.tree().node(node);
            let is_pending = other.is_none_or(|node| node.segment().is_none());
            let is_split = other.is_some_and(|node| num_common < node.tokens().len());
            let is_all_there = num_common == rest.len();
            if is_pending || is_all_there && !needs_checkpoint {
                return Ok(None);
            }
            let common = if is_split { self.split(runner, node, num_common)? } else { node };
            if is_all_there {
                self.add_checkpoint(runner, common, stored)?;
                return Ok(None);
            }
            let (upper, lower) = runner.split(stored.segment.id, num_common)?;
            runner.discard(upper.id);
            stored.segment = lower;
            (parent, rest) = (Some(common), &rest[num_common..]);
        }
    }

    /// Keeps only the recurrent state of an answer whose tokens are stored already.
    fn add_checkpoint(
        &mut self,
        runner: &mut impl Runner,
        node: NodeId,
        stored: &mut Stored,
    ) -> Result<(), RunnerError> {
        let Some(cache) = &mut self.cache else { return Ok(()) };
        let is_missing = cache.tree().node(node).is_some_and(|node| node.checkpoint().is_none());
        match stored.checkpoint.take_if(|_| is_missing) {
            Some(checkpoint) => self.set_checkpoint(runner, node, checkpoint),
            None => Ok(()),
        }
    }
}
