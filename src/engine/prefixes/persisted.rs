//! Prefixes that a cache file has: brought in when a prompt needs them, saved when they are new.
//!
//! Owns the traffic between the prompt cache and the file. What the file is and how it is kept whole is
//! `snapshot`'s business, what bytes mean the runner's.
//!
//! Memory and file are two trees that may be cut at different places. What a prompt needs and memory
//! lacks is put below what memory has, whole pieces or the rest of one.

use std::{
    collections::{HashMap, HashSet},
    io::Read,
};

use super::{Prefixes, Unconfirmed};
use crate::cache::{Claim, Inserted, NodeId, Place, ResumeRule, TokenId};
use crate::engine::{
    Exported, GenerationRequest, ImportError, PromptPlan, Runner, RunnerError, SegmentId, StoredSegment,
};
use crate::snapshot::{Extent, Found, Piece, ReadError, RunBuffer, SaveReport, Snapshot, SnapshotError};

/// What is new is saved before it takes this share of the cache's limit: what is evicted, the oldest,
/// has then been saved.
const MAX_UNSAVED_SHARE: u64 = 4;

/// A cache file in use, and what was done with it.
#[derive(Debug, Default)]
pub(super) struct Persisted {
    snapshot: Option<Snapshot>,
    stats: PersistStats,
    /// Bytes stored since the last save.
    pub num_unsaved_bytes: u64,
    /// What is stored and known to be numbers.
    finite: HashSet<SegmentId>,
}

/// What was brought in from the cache file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PersistStats {
    pub num_restored_tokens: usize,
    pub num_restored_bytes: u64,
    /// Bytes read from the file for them.
    pub num_read_bytes: u64,
}

/// Prompt tokens that need not be computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) struct Resumable {
    /// Their KV is in memory.
    pub num_here: usize,
    /// It is there or in the cache file.
    pub num_with_file: usize,
}

/// What became of a stored piece that was to be brought in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BroughtIn {
    /// It is in memory.
    Yes,
    /// Not this time; the file may be as good as ever.
    Unreadable,
    /// The bytes of this extent are not what was saved.
    Damaged(Extent),
}

/// What became of all pieces of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prompted {
    /// They are in memory, up to the end of this node of the file.
    To(NodeId),
    Unreadable,
    /// What this extent of the file is for is of no use, nor is what continues it.
    Damaged(Extent),
}

impl<R: Runner> Prefixes<R> {
    /// Has prefixes come from a cache file too.
    pub(in crate::engine) fn attach(&mut self, snapshot: Snapshot) {
        self.persisted.snapshot = Some(snapshot);
    }

    pub(in crate::engine) fn snapshot(&self) -> Option<&Snapshot> {
        self.persisted.snapshot.as_ref()
    }

    /// The file, unless nothing can come from it since nothing is stored.
    fn file(&self) -> Option<&Snapshot> {
        self.snapshot().filter(|_| self.is_on)
    }

    pub(in crate::engine) fn persist_stats(&self) -> PersistStats {
        self.persisted.stats
    }

    /// Whether it is time to save, so that nothing is evicted that never was: the next pass may store
    /// `max_new_bytes`.
    pub(in crate::engine) fn has_much_unsaved(&self, max_new_bytes: u64) -> bool {
        let max_bytes = self.cache.limits().max_bytes;
        let share = max_bytes / MAX_UNSAVED_SHARE;
        let is_nearly_full =
            self.cache.tree().num_bytes() > max_bytes.saturating_sub(max_new_bytes.max(share));
        self.file().is_some() && is_nearly_full && self.persisted.num_unsaved_bytes > share
    }

    /// Prompt tokens that a sequence could resume with if it entered now, in memory and once what the file
    /// has is brought in; `None` if another is computing more of them.
    pub(in crate::engine) fn resumable_with_file(&self, reusable: &[TokenId]) -> Option<Resumable> {
        let num_here = self.resumable(reusable)?;
        let num_there = self.file().map_or(0, |file| file.num_resumable(reusable));
        Some(Resumable { num_here, num_with_file: num_here.max(num_there) })
    }

    /// Brings in what a cache file has of a prompt and memory has not, over the limit if need be: the
    /// request enters next, or the caller makes room.
    ///
    /// Pieces that turn out to be damaged are left out, with all that continues them.
    pub(in crate::engine) fn bring_in(&mut self, request: &GenerationRequest) -> Result<(), RunnerError> {
        let tokens = request.reusable();
        // Each round leaves out what is damaged, and what it continues may be of use by itself.
        while let Some(file) = self.file() {
            let here = self.cache.find(tokens);
            // What another sequence computes is waited for.
            if here.pending().is_some() || file.num_resumable(tokens) <= self.cache.resume(&here).num_tokens {
                return Ok(());
            }
            let pieces = file.find(tokens);
            let brought_in = self.bring_in_pieces(tokens, &pieces, &request.plan);
            if let Ok(Prompted::Damaged(extent)) = brought_in
                && let Some(snapshot) = &mut self.persisted.snapshot
            {
                snapshot.drop_damaged(extent).map_err(told)?;
                continue;
            }
            if let Ok(Prompted::To(node)) = brought_in
                && let Some(snapshot) = &mut self.persisted.snapshot
            {
                snapshot.mark_used(node).map_err(told)?;
            }
            self.expect(tokens, &request.plan)?;
            return brought_in.map(drop);
        }
        Ok(())
    }

    fn bring_in_pieces(
        &mut self,
        tokens: &[TokenId],
        pieces: &[Found],
        plan: &PromptPlan,
    ) -> Result<Prompted, RunnerError> {
        let Some(last) = pieces.last() else { return Ok(Prompted::Unreadable) };
        // What planned requests beside this one use may push out what is needed later.
        let claim_of = |found: &Found| match plan.is_shared_up_to(found.end) {
            true => Claim::Needed,
            false => Claim::Spare,
        };
        let mut buffer = RunBuffer::default();
        for found in pieces {
            let tokens = &tokens[..found.end];
            match self.bring_in_segment(tokens, found, claim_of(found), &mut buffer)? {
                BroughtIn::Yes => {}
                BroughtIn::Unreadable => return Ok(Prompted::Unreadable),
                BroughtIn::Damaged(extent) => return Ok(Prompted::Damaged(extent)),
            }
        }
        if self.runner.resume_rule() == ResumeRule::Checkpoints
            && let Some(checkpoint) = &last.checkpoint
        {
            match self.bring_in_checkpoint(&tokens[..last.end], checkpoint, claim_of(last))? {
                BroughtIn::Yes => {}
                BroughtIn::Unreadable => return Ok(Prompted::Unreadable),
                BroughtIn::Damaged(extent) => return Ok(Prompted::Damaged(extent)),
            }
        }
        Ok(Prompted::To(last.node))
    }

    /// Puts a piece that ends the tokens below what memory has of them.
    fn bring_in_segment(
        &mut self,
        tokens: &[TokenId],
        found: &Found,
        claim: Claim,
        buffer: &mut RunBuffer,
    ) -> Result<BroughtIn, RunnerError> {
        let here = self.cache.find(tokens);
        let start = here.num_tokens;
        if start >= found.end {
            return Ok(BroughtIn::Yes);
        }
        if start < found.start {
            // What should come before it was evicted again: the limit has no room for so much.
            return Ok(BroughtIn::Unreadable);
        }
        // Before there is anything that could be left behind: a cut may fail.
        let parent = self.end_of(tokens)?;
        let piece = found.piece.part(start - found.start..found.end - found.start);
        let num_wanted = piece.tokens().len();
        let bytes_per_token = piece.num_extent_bytes() / piece.num_extent_tokens().max(1) as u64;
        self.make_room_at(parent, bytes_per_token.saturating_mul(num_wanted as u64), claim)?;
        let runs = piece.extents().iter().map(|extent| extent.num_tokens as usize);
        let num_run_tokens: Vec<usize> =
            if piece.extents().is_empty() { vec![num_wanted] } else { runs.collect() };
        let segment = self.read(&piece, buffer, |runner, bytes| {
            runner.import(Exported {
                bytes,
                num_bytes: piece.num_extent_bytes(),
                num_run_tokens: &num_run_tokens,
                skip: piece.tokens().start,
                num_wanted,
                position: start,
            })
        });
        let segment = match self.numbers(&piece, segment)? {
            Ok(segment) => segment,
            Err(why_not) => return Ok(why_not),
        };
        let place = Place { parent, tokens: &tokens[start..], tier: found.tier };
        match self.cache.insert(place, segment, None)? {
            Inserted::New(_) => {
                self.persisted.stats.num_restored_tokens += found.end - start;
                self.persisted.stats.num_restored_bytes += segment.num_bytes;
            }
            Inserted::Overlaps { .. } => self.runner.discard(segment.id),
        }
        Ok(BroughtIn::Yes)
    }

    /// Gives the node that ends with the tokens the recurrent state there.
    fn bring_in_checkpoint(
        &mut self,
        tokens: &[TokenId],
        checkpoint: &Piece,
        claim: Claim,
    ) -> Result<BroughtIn, RunnerError> {
        let node = self.end_of(tokens)?;
        self.make_room_at(node, checkpoint.num_extent_bytes(), claim)?;
        let mut buffer = RunBuffer::default();
        let state =
            self.read(checkpoint, &mut buffer, |runner, bytes| runner.import_checkpoint(tokens.len(), bytes));
        let state = match self.numbers(checkpoint, state)? {
            Ok(state) => state,
            Err(why_not) => return Ok(why_not),
        };
        let Some(node) = node else {
            self.runner.discard(state.id);
            return Ok(BroughtIn::Unreadable);
        };
        self.replace_checkpoint(node, Some(state))?;
        self.persisted.stats.num_restored_bytes += state.num_bytes;
        Ok(BroughtIn::Yes)
    }

    /// What was read, if it is numbers: nothing else was ever saved, whatever its checksum says.
    fn numbers(
        &mut self,
        piece: &Piece,
        read: Result<StoredSegment, BroughtIn>,
    ) -> Result<Result<StoredSegment, BroughtIn>, RunnerError> {
        let Ok(stored) = read else { return Ok(read) };
        if self.runner.is_finite(stored.id)? {
            self.persisted.finite.insert(stored.id);
            return Ok(read);
        }
        self.runner.discard(stored.id);
        Ok(Err(piece.extents().first().map_or(BroughtIn::Unreadable, |extent| BroughtIn::Damaged(*extent))))
    }

    /// Makes a node end where what memory has of the tokens ends.
    fn end_of(&mut self, tokens: &[TokenId]) -> Result<Option<NodeId>, RunnerError> {
        let here = self.cache.find(tokens);
        Ok(match here.partial {
            Some(partial) => Some(self.split(partial.node, partial.num_tokens)?),
            None => here.path.last().map(|step| step.node),
        })
    }

    /// Has the runner take in the bytes of a piece, and drops that again where they are not sound.
    fn read(
        &mut self,
        piece: &Piece,
        buffer: &mut RunBuffer,
        import: impl FnOnce(&mut R, &mut (dyn Read + Send)) -> Result<StoredSegment, ImportError>,
    ) -> Result<StoredSegment, BroughtIn> {
        let snapshot = self.persisted.snapshot.as_ref().ok_or(BroughtIn::Unreadable)?;
        let mut reader = snapshot.reader(piece, buffer).map_err(|_| BroughtIn::Unreadable)?;
        let imported = import(&mut self.runner, &mut reader);
        let finished = reader.finish();
        self.persisted.stats.num_read_bytes += finished.as_ref().copied().unwrap_or(0);
        match (imported, finished) {
            (Ok(segment), Ok(_)) => Ok(segment),
            // The file's entry is none the worse for it.
            (Err(ImportError::Runner(_)), _) | (Err(_), Err(ReadError::Io(_))) => Err(BroughtIn::Unreadable),
            (imported, Err(ReadError::Damaged(extent))) => {
                if let Ok(segment) = imported {
                    self.runner.discard(segment.id);
                }
                Err(BroughtIn::Damaged(extent))
            }
            (Ok(segment), Err(ReadError::Io(_))) => {
                self.runner.discard(segment.id);
                Err(BroughtIn::Unreadable)
            }
            (Err(ImportError::WrongBytes(_)), _) => Err(piece
                .extents()
                .first()
                .map_or(BroughtIn::Unreadable, |extent| BroughtIn::Damaged(*extent))),
        }
    }

    /// Saves what memory has and the file lacks.
    pub(in crate::engine) fn save(&mut self) -> Result<SaveReport, SnapshotError> {
        let Self { runner, cache, persisted, is_on, .. } = self;
        let Some(snapshot) = persisted.snapshot.as_mut().filter(|_| *is_on) else {
            return Ok(SaveReport::default());
        };
        // What passes under way compute may yet fail.
        let unconfirmed: HashSet<Unconfirmed> = self.unconfirmed.iter().flatten().copied().collect();
        let mut saving = snapshot.begin_save()?;
        let tree = cache.tree();
        let mut ends: HashMap<NodeId, NodeId> = HashMap::new();
        let known = std::mem::take(&mut persisted.finite);
        let finite = &mut persisted.finite;
        let mut is_finite = |runner: &mut R, id: SegmentId| -> Result<bool, SnapshotError> {
            let is_finite = known.contains(&id)
                || runner.is_finite(id).map_err(|error| SnapshotError::Export(error.to_string()))?;
            finite.extend(is_finite.then_some(id));
            Ok(is_finite)
        };
        for id in tree.preorder() {
            let Some((node, segment)) = tree.node(id).and_then(|node| Some((node, *node.segment()?))) else {
                continue;
            };
            if unconfirmed.contains(&Unconfirmed::Node(id)) {
                continue;
            }
            let parent = match node.parent().map(|parent| ends.get(&parent).copied()) {
                // Its parent is not saved yet, so nor is it.
                Some(None) => continue,
                Some(saved) => saved,
                None => None,
            };
            // Of no use to the next run, nor is what continues it.
            if !is_finite(runner, segment.id)? {
                continue;
            }
            let place = Place { parent, tokens: node.tokens(), tier: node.tier() };
            let end = saving.add(place, |tokens, bytes| {
                runner.export(segment.id, tokens, bytes).map_err(|error| error.to_string())
            })?;
            let Some(end) = end else { continue };
            ends.insert(id, end);
            let checkpoint =
                node.checkpoint().filter(|_| !unconfirmed.contains(&Unconfirmed::Checkpoint(id)));
            if let Some(checkpoint) = checkpoint
                && is_finite(runner, checkpoint.id)?
            {
                saving.add_checkpoint(end, |bytes| {
                    runner.export_checkpoint(checkpoint.id, bytes).map_err(|error| error.to_string())
                })?;
            }
        }
        let report = saving.publish()?;
        self.persisted.num_unsaved_bytes = 0;
        Ok(report)
    }
}

fn told(error: SnapshotError) -> RunnerError {
    RunnerError(error.to_string())
}
