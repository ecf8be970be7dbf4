//! Answers in the prompt cache: for the next turn of a conversation, which begins with them.
//!
//! Owns taking an answer's KV out of the runner and hanging it below its prompt. What a sequence has
//! stored of the prompt itself is [`super::prompts`]'.

use super::{Prefixes, Unconfirmed};
use crate::cache::{Claim, Inserted, NodeId, Place, ResumeRule, Tier};
use crate::engine::sequence::Sequence;
use crate::engine::{Runner, RunnerError, Stored, TokenId};

impl<R: Runner> Prefixes<R> {
    /// Whether there is a place for a running sequence's answer in the tree.
    pub(in crate::engine) fn can_keep_answer(&self, sequence: &Sequence) -> bool {
        !sequence.hold.is_detached() && sequence.may_keep_answer()
    }

    /// Takes what a sequence has computed after its path up to `end` out of the runner, for
    /// [`Prefixes::keep`] once its tokens are known. The sequence must not run on.
    ///
    /// Until then it counts against no limit: one pass at most.
    pub(in crate::engine) fn take_rest(
        &mut self,
        sequence: &Sequence,
        end: usize,
    ) -> Result<Option<Stored>, RunnerError> {
        let num_stored = sequence.hold.num_tokens();
        if !self.can_keep_answer(sequence) || end <= num_stored {
            return Ok(None);
        }
        self.runner.store(sequence.id, end - num_stored).map(Some)
    }

    /// Keeps the end of a sequence's tokens, `rest` from its path on, as an answer, if there is room
    /// and as far as it is not there already.
    pub(in crate::engine) fn keep(
        &mut self,
        sequence: &Sequence,
        rest: &[TokenId],
        mut stored: Stored,
    ) -> Result<(), RunnerError> {
        if !self.make_room_for(stored.num_bytes(), Claim::Spare) {
            self.discard(stored);
            return Ok(());
        }
        let hung = self.hang(sequence.hold.node, rest, &mut stored);
        let Ok(Some(node)) = hung else {
            self.discard(stored);
            return hung.map(drop);
        };
        self.note_stored(Unconfirmed::Node(node));
        self.persisted.num_unsaved_bytes += stored.segment.num_bytes;
        if sequence.request.answer_recurs.is_awaited() {
            self.cache.expect(node, self.now..=self.now)?;
        }
        self.make_room_for_leaf(node).map(drop)
    }

    /// Hangs what is new of an answer into the tree and returns its node; `None` where nothing is.
    ///
    /// What is left in `stored` then, and after an error, is the caller's to drop.
    fn hang(
        &mut self,
        mut parent: Option<NodeId>,
        mut rest: &[TokenId],
        stored: &mut Stored,
    ) -> Result<Option<NodeId>, RunnerError> {
        let needs_checkpoint = self.runner.resume_rule() == ResumeRule::Checkpoints;
        if needs_checkpoint && stored.checkpoint.is_none() {
            return Ok(None);
        }
        loop {
            let place = Place { parent, tokens: rest, tier: Tier::Assistant };
            let (node, num_common) = match self.cache.insert(place, stored.segment, stored.checkpoint)? {
                Inserted::New(node) => return Ok(Some(node)),
                Inserted::Overlaps { node, num_common } => (node, num_common),
            };
            // Requests with the same prompt have answers that begin alike: at least with the last
            // token of the prompt.
            let other = self.cache.tree().node(node);
            let is_pending = other.is_none_or(|node| node.segment().is_none());
            let is_split = other.is_some_and(|node| num_common < node.tokens().len());
            let is_all_there = num_common == rest.len();
            if is_pending || is_all_there && !needs_checkpoint {
                return Ok(None);
            }
            let common = if is_split { self.split(node, num_common)? } else { node };
            if is_all_there {
                // Its recurrent state may be new.
                let is_missing =
                    self.cache.tree().node(common).is_some_and(|node| node.checkpoint().is_none());
                let state = stored.checkpoint.take_if(|_| is_missing);
                state.map_or(Ok(()), |state| self.set_checkpoint(common, state))?;
                return Ok(None);
            }
            let (upper, lower) = self.runner.split(stored.segment.id, num_common)?;
            self.runner.discard(upper.id);
            stored.segment = lower;
            (parent, rest) = (Some(common), &rest[num_common..]);
        }
    }
}
