//! Prompts on stored prefixes: waiting, resuming, announcing, storing piece by piece.
//!
//! Owns the way of a prompt's prefix from lookup to storage. What follows the prompt is
//! [`super::answers`]'.
//!
//! Where recurrent layers need a checkpoint to resume, a stored path may lack one: the sequence
//! then computes those tokens once more for itself, and leaves the checkpoint behind where its plan
//! has others part from it and where it parts from the tree.

use super::{Prefixes, Unconfirmed};
use crate::cache::{Claim, Inserted, NodeId, OwnerId, Place, Step, Tier};
use crate::engine::hold::Piece;
use crate::engine::sequence::Sequence;
use crate::engine::{Cut, PromptPlan, Runner, RunnerError, Stored};

impl<R: Runner> Prefixes<R> {
    /// Prompt tokens that a sequence would resume with now; `None` if it should wait for another that is computing
    /// more of them.
    pub(in crate::engine) fn resumable(&self, sequence: &mut Sequence) -> Option<usize> {
        let Sequence { request, found, .. } = sequence;
        self.cache.tree().find_again(found, request.reusable());
        if found.pending().is_some() {
            return None;
        }
        let resume = self.cache.resume(found);
        let mut beyond = found.path.iter().skip(resume.num_nodes);
        if beyond.any(|step| self.awaited.contains_key(&step.node)) {
            return None;
        }
        Some(resume.num_tokens)
    }

    /// Begins a sequence on what is stored of its prompt and announces the rest; `first_order` is the
    /// lowest order of those that have not begun, this one included.
    ///
    /// Where that fails, nothing of it is left.
    pub(in crate::engine) fn admit(
        &mut self,
        sequence: &mut Sequence,
        first_order: u64,
    ) -> Result<(), RunnerError> {
        self.now = self.now.max(first_order);
        let begun = self.begin(sequence);
        if begun.is_err() {
            self.runner.release(sequence.id);
            // The error that came first is the one to tell.
            let _ = self.let_go(sequence);
        }
        begun
    }

    fn begin(&mut self, sequence: &mut Sequence) -> Result<(), RunnerError> {
        if !self.is_on {
            sequence.hold.push(0, Piece::Own);
            return Ok(());
        }
        let mut found = std::mem::take(&mut sequence.found);
        self.cache.tree().find_again(&mut found, sequence.request.reusable());
        if let Some(partial) = found.partial.take_if(|partial| partial.has_segment) {
            let node = self.split(partial.node, partial.num_tokens)?;
            let end = found.num_tokens;
            found.path.push(Step { node, end, has_segment: true, has_checkpoint: false });
        }
        let resume = self.cache.resume(&found);
        self.cache.record_hit(&found, &resume)?;
        let (path, recomputed) = found.path.split_at(resume.num_nodes);
        if let Some(last) = path.last() {
            let checkpoint = self.cache.tree().node(last.node).and_then(|node| node.checkpoint());
            let checkpoint = checkpoint.map(|held| held.id);
            let path = path.iter().map(|step| Ok(self.segment_of(step.node)?.id));
            let path = path.collect::<Result<Vec<_>, RunnerError>>()?;
            self.runner.resume(sequence.id, &path, checkpoint)?;
        }
        sequence.hold.push(resume.num_tokens, Piece::Resumed);
        if let Some(deepest) = found.path.last() {
            self.cache.pin(deepest.node)?;
            sequence.hold.node = Some(deepest.node);
        }
        for step in checkpoints_to_bring(recomputed, &sequence.request.plan) {
            sequence.hold.push(step.end, Piece::Stateless { node: step.node });
            self.awaited.insert(step.node, sequence.id);
        }
        self.take_over(sequence)?;
        self.announce(sequence)?;
        // Over the limit nothing stays that no sequence runs on, be it the only entry.
        self.make_room_for(0, Claim::Needed);
        Ok(())
    }

    /// Makes what a sequence has just resumed on its own, from the end, as far as the cache has no room for
    /// it and nobody else is known to use it: it is held as what the sequence computes itself would be.
    ///
    /// So a cache file is of use to prompts that do not all fit under the limit together.
    fn take_over(&mut self, sequence: &mut Sequence) -> Result<(), RunnerError> {
        let hold = &mut sequence.hold;
        if hold.next_due().is_some() {
            return Ok(());
        }
        let order = sequence.request.plan.order;
        // The halves of what was split may be all there is too much of.
        self.make_room_for(0, Claim::Spare);
        while let Some(id) = hold.node.filter(|_| self.cache.is_over_limit()) {
            let Some(node) = self.cache.tree().node(id) else { break };
            let has_others = node.expected().is_some_and(|expected| expected.last > order);
            if !node.is_leaf() || node.num_pins() > 1 || has_others {
                break;
            }
            hold.detach_from(node.end() - node.tokens().len());
            hold.node = node.parent();
            hold.node.map_or(Ok(()), |parent| self.cache.pin(parent))?;
            self.cache.unpin(id)?;
            self.remove(id)?;
        }
        Ok(())
    }

    /// Announces the rest of a prompt, cut where its plan says, up to the first piece that is private.
    ///
    /// Private pieces are announced one by one, each when the one before is stored: so each can go again
    /// by itself where there is no room for it.
    fn announce(&mut self, sequence: &mut Sequence) -> Result<(), RunnerError> {
        let Sequence { id, request, hold, .. } = sequence;
        if hold.is_detached() {
            return Ok(());
        }
        let (plan, tokens) = (&request.plan, request.reusable());
        let whole = Cut { position: tokens.len(), tier: Tier::User, users: plan.order..=plan.order };
        let mut parent = hold.node;
        let mut start = parent.and_then(|node| self.cache.tree().node(node)).map_or(0, |node| node.end());
        for cut in plan.cuts.iter().chain([&whole]) {
            let end = cut.position;
            if end <= start || end > tokens.len() {
                continue;
            }
            let is_private = cut.is_private();
            if is_private && plan.drops_private {
                hold.push(tokens.len(), Piece::Own);
                break;
            }
            let place = Place { parent, tokens: &tokens[start..end], tier: cut.tier };
            let Inserted::New(node) = self.cache.announce(place, OwnerId(id.0))? else {
                // Another, outside the plan, was faster.
                hold.push(tokens.len(), Piece::Own);
                break;
            };
            let claim = if is_private { Claim::Spare } else { Claim::Needed };
            hold.push(end, Piece::Due { node, claim });
            if is_private {
                break;
            }
            self.cache.expect(node, cut.users.clone())?;
            (parent, start) = (Some(node), end);
        }
        Ok(())
    }

    /// Stores what a sequence has announced, as far as it is launched.
    pub(in crate::engine) fn reached(
        &mut self,
        sequence: &mut Sequence,
        position: usize,
    ) -> Result<(), RunnerError> {
        while let Some((end, piece)) = sequence.hold.next_due().filter(|(end, _)| *end <= position) {
            let stored = self.runner.store(sequence.id, end - sequence.hold.num_tokens())?;
            match piece {
                Piece::Due { node, claim } => self.fulfil(sequence, node, claim, stored)?,
                Piece::Stateless { node } => self.bring_checkpoint(sequence, node, stored)?,
                _ => unreachable!("what is due is no {piece:?}"),
            }
        }
        Ok(())
    }

    /// Gives an announced node what was stored for it. What the cache does not keep stays in memory as the
    /// sequence's own as long as that runs.
    fn fulfil(
        &mut self,
        sequence: &mut Sequence,
        node: NodeId,
        claim: Claim,
        stored: Stored,
    ) -> Result<(), RunnerError> {
        self.note_stored(Unconfirmed::Node(node));
        let is_private = claim == Claim::Spare;
        if !self.make_room_for(stored.num_bytes(), claim) && is_private {
            sequence.hold.stored(Piece::Own);
            // Nothing else of it is announced: the private piece is the last.
            self.withdraw(sequence.id);
            self.discard(stored);
            // What it would have continued is an entry by itself again.
            self.make_room();
            return Ok(());
        }
        self.cache.fulfil(node, stored.segment, stored.checkpoint)?;
        self.persisted.num_unsaved_bytes += stored.segment.num_bytes;
        if is_private && !self.make_room_for_leaf(node)? {
            sequence.hold.stored(Piece::Own);
            return Ok(());
        }
        sequence.hold.stored(Piece::Kept);
        self.cache.pin(node)?;
        if let Some(before) = sequence.hold.node.replace(node) {
            self.cache.unpin(before)?;
        }
        if is_private {
            return self.announce(sequence);
        }
        self.make_room();
        Ok(())
    }

    /// Gives a stored node the recurrent state at its end. The KV that came with it is the
    /// sequence's own copy of what the tree has.
    fn bring_checkpoint(
        &mut self,
        sequence: &mut Sequence,
        node: NodeId,
        stored: Stored,
    ) -> Result<(), RunnerError> {
        sequence.hold.stored(Piece::ComputedTwice);
        self.awaited.remove(&node);
        self.runner.discard(stored.segment.id);
        stored.checkpoint.map_or(Ok(()), |checkpoint| self.set_checkpoint(node, checkpoint))
    }
}

/// The nodes, of those whose tokens are computed once more, that are worth a checkpoint.
fn checkpoints_to_bring<'a>(recomputed: &'a [Step], plan: &'a PromptPlan) -> impl Iterator<Item = &'a Step> {
    let is_shared = |step: &Step| plan.cuts.iter().any(|cut| cut.position == step.end && !cut.is_private());
    let last = recomputed.len().saturating_sub(1);
    let chosen = recomputed.iter().enumerate();
    chosen.filter(move |(index, step)| *index == last || is_shared(step)).map(|(_, step)| step)
}
