//! Answers in the prompt cache: for the next turn of a conversation, which begins with them.
//!
//! Owns taking an answer's KV out of the runner and hanging it below its prompt. What a sequence has
//! stored of the prompt itself is [`super::prompts`]'.

use super::{Prefixes, Unconfirmed, discard, discard_all, make_room, make_room_for_leaf};
use crate::cache::{Inserted, NodeId, Place, ResumeRule, Tier};
use crate::engine::sequence::Sequence;
use crate::engine::{Runner, RunnerError, Stored, TokenId};

impl Prefixes {
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
        let hold = &sequence.hold;
        if self.cache.is_none() || hold.is_detached || end <= hold.num_tokens {
            return Ok(None);
        }
        runner.store(sequence.id, end - hold.num_tokens).map(Some)
    }

    /// Keeps the end of a sequence's tokens, `rest` from its path on, as an answer, if there is room
    /// and as far as it is not there already.
    pub(in crate::engine) fn keep(
        &mut self,
        runner: &mut impl Runner,
        sequence: &Sequence,
        mut rest: &[TokenId],
        mut stored: Stored,
    ) -> Result<(), RunnerError> {
        let needs_checkpoint = self.rule == ResumeRule::Checkpoints;
        if needs_checkpoint && stored.checkpoint.is_none() {
            discard(runner, stored);
            return Ok(());
        }
        let mut parent = sequence.hold.node;
        loop {
            let Some(cache) = &mut self.cache else { return Ok(()) };
            let place = Place { parent, tokens: rest, tier: Tier::Assistant };
            let (node, num_common) = match cache.insert(place, stored.segment, stored.checkpoint)? {
                Inserted::New(node) => {
                    make_room_for_leaf(cache, runner, node, self.now)?;
                    self.note_stored(Unconfirmed::Node(node));
                    return Ok(());
                }
                Inserted::Overlaps { node, num_common } => (node, num_common),
            };
            // Requests with the same prompt have answers that begin alike: at least with the last
            // token of the prompt.
            let other = cache.tree().node(node);
            let is_pending = other.is_none_or(|node| node.segment().is_none());
            let num_other = other.map_or(0, |node| node.tokens().len());
            let is_all_there = num_common == rest.len();
            if is_pending || is_all_there && !needs_checkpoint {
                discard(runner, stored);
                return Ok(());
            }
            let common = if num_common < num_other { self.split(runner, node, num_common)? } else { node };
            if is_all_there {
                return self.keep_checkpoint(runner, common, stored);
            }
            match runner.split(stored.segment.id, num_common) {
                Ok((upper, lower)) => {
                    runner.discard(upper.id);
                    stored.segment = lower;
                }
                Err(error) => {
                    discard(runner, stored);
                    return Err(error);
                }
            }
            (parent, rest) = (Some(common), &rest[num_common..]);
        }
    }

    /// Drops what [`Prefixes::take_rest`] took.
    pub(in crate::engine) fn drop_rest(&self, runner: &mut impl Runner, rest: Stored) {
        discard(runner, rest);
    }

    /// Keeps only the recurrent state of an answer whose tokens are stored already.
    fn keep_checkpoint(
        &mut self,
        runner: &mut impl Runner,
        node: NodeId,
        stored: Stored,
    ) -> Result<(), RunnerError> {
        let has_one = |node| self.cache.as_ref()?.tree().node(node)?.checkpoint();
        if has_one(node).is_some() {
            discard(runner, stored);
            return Ok(());
        }
        runner.discard(stored.segment.id);
        self.note_stored(Unconfirmed::Checkpoint(node));
        let Some(cache) = &mut self.cache else { return Ok(()) };
        discard_all(runner, cache.set_checkpoint(node, stored.checkpoint)?);
        make_room(cache, runner, self.now);
        if cache.is_over_limit() && cache.tree().node(node).is_some() {
            discard_all(runner, cache.set_checkpoint(node, None)?);
        }
        Ok(())
    }
}
