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
use crate::cache::{Claim, Inserted, Match, NodeId, Place, ResumeRule, TokenId};
use crate::engine::sequence::Sequence;
use crate::engine::{
    Exported, GenerationRequest, ImportError, Runner, RunnerError, SegmentId, StoredSegment,
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
    /// Counts the changes to what the file has.
    version: u64,
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

/// Why a stored piece was not brought in.
#[derive(Debug)]
enum NotBroughtIn {
    /// Not this time; the file may be as good as ever.
    Unreadable,
    /// What this extent of the file is for is of no use, nor is what continues it.
    Damaged(Extent),
    Failed(RunnerError),
}

impl<E: Into<RunnerError>> From<E> for NotBroughtIn {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
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
    pub(in crate::engine) fn resumable_with_file(&self, sequence: &mut Sequence) -> Option<Resumable> {
        let num_here = self.resumable(sequence)?;
        Some(Resumable { num_here, num_with_file: num_here.max(self.num_in_file(sequence)) })
    }

    /// Prompt tokens that a sequence could resume with from the file alone.
    fn num_in_file(&self, sequence: &mut Sequence) -> usize {
        let Some(file) = self.file() else { return 0 };
        let version = self.persisted.version;
        let known = sequence.num_in_file.filter(|(known, _)| *known == version);
        let look_up = || (version, file.num_resumable(sequence.request.reusable()));
        sequence.num_in_file.insert(known.unwrap_or_else(look_up)).1
    }

    /// Brings in what a cache file has of a prompt and memory has not, over the limit if need be: the
    /// sequence enters next, or the caller makes room.
    ///
    /// Pieces that turn out to be damaged are left out, with all that continues them.
    pub(in crate::engine) fn bring_in(&mut self, sequence: &mut Sequence) -> Result<(), RunnerError> {
        loop {
            // What another sequence computes is waited for.
            let Some(Resumable { num_here, num_with_file }) = self.resumable_with_file(sequence) else {
                return Ok(());
            };
            if num_with_file <= num_here {
                return Ok(());
            }
            let Sequence { request, found, .. } = &mut *sequence;
            let brought_in = self.bring_in_pieces(request, found);
            let Some(snapshot) = &mut self.persisted.snapshot else { return Ok(()) };
            match &brought_in {
                Ok(last) => snapshot.mark_used(*last).map_err(told)?,
                Err(NotBroughtIn::Damaged(extent)) => {
                    // What it continues may be of use by itself.
                    snapshot.drop_damaged(*extent).map_err(told)?;
                    self.persisted.version += 1;
                    continue;
                }
                Err(_) => {}
            }
            self.expect(request, found)?;
            return match brought_in {
                Err(NotBroughtIn::Failed(error)) => Err(error),
                _ => Ok(()),
            };
        }
    }

    /// Brings in all pieces of a prompt that memory lacks, given what it has; returns the file's node at their end.
    fn bring_in_pieces(
        &mut self,
        request: &GenerationRequest,
        found: &mut Match,
    ) -> Result<NodeId, NotBroughtIn> {
        let tokens = request.reusable();
        let pieces = self.file().map_or_else(Vec::new, |file| file.find(tokens));
        let last = pieces.last().ok_or(NotBroughtIn::Unreadable)?;
        // What planned requests beside this one use may push out what is needed later.
        let claim_of = |piece: &Found| match request.plan.is_shared_up_to(piece.end) {
            true => Claim::Needed,
            false => Claim::Spare,
        };
        let mut buffer = RunBuffer::default();
        for piece in &pieces {
            self.cache.tree().find_again(found, tokens);
            self.bring_in_segment(&tokens[..piece.end], found, piece, claim_of(piece), &mut buffer)?;
        }
        if self.runner.resume_rule() == ResumeRule::Checkpoints
            && let Some(checkpoint) = &last.checkpoint
        {
            self.cache.tree().find_again(found, tokens);
            self.bring_in_checkpoint(last.end, found, checkpoint, claim_of(last))?;
        }
        Ok(last.node)
    }

    /// Puts a piece that ends the tokens below what memory has of them.
    fn bring_in_segment(
        &mut self,
        tokens: &[TokenId],
        here: &Match,
        found: &Found,
        claim: Claim,
        buffer: &mut RunBuffer,
    ) -> Result<(), NotBroughtIn> {
        let start = here.num_tokens;
        if start >= found.end {
            return Ok(());
        }
        if start < found.start {
            // What should come before it was evicted again: the limit has no room for so much.
            return Err(NotBroughtIn::Unreadable);
        }
        // Before there is anything that could be left behind: a cut may fail.
        let parent = self.node_at(here, start)?;
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
        })?;
        let place = Place { parent, tokens: &tokens[start..], tier: found.tier };
        match self.cache.insert(place, segment, None)? {
            Inserted::New(_) => {
                self.persisted.stats.num_restored_tokens += found.end - start;
                self.persisted.stats.num_restored_bytes += segment.num_bytes;
            }
            Inserted::Overlaps { .. } => self.runner.discard(segment.id),
        }
        Ok(())
    }

    /// Gives the node that ends after so many tokens the recurrent state there.
    fn bring_in_checkpoint(
        &mut self,
        end: usize,
        here: &Match,
        checkpoint: &Piece,
        claim: Claim,
    ) -> Result<(), NotBroughtIn> {
        let node = self.node_at(here, end)?.ok_or(NotBroughtIn::Unreadable)?;
        self.make_room_at(Some(node), checkpoint.num_extent_bytes(), claim)?;
        let state = self.read(checkpoint, &mut RunBuffer::default(), |runner, bytes| {
            runner.import_checkpoint(end, bytes)
        })?;
        self.replace_checkpoint(node, Some(state))?;
        self.persisted.stats.num_restored_bytes += state.num_bytes;
        Ok(())
    }

    /// Has the runner take in the bytes of a piece, and drops that again where they are not sound.
    fn read(
        &mut self,
        piece: &Piece,
        buffer: &mut RunBuffer,
        import: impl FnOnce(&mut R, &mut (dyn Read + Send)) -> Result<StoredSegment, ImportError>,
    ) -> Result<StoredSegment, NotBroughtIn> {
        let snapshot = self.persisted.snapshot.as_ref().ok_or(NotBroughtIn::Unreadable)?;
        let mut reader = snapshot.reader(piece, buffer).map_err(|_| NotBroughtIn::Unreadable)?;
        let imported = import(&mut self.runner, &mut reader);
        let finished = reader.finish();
        self.persisted.stats.num_read_bytes += finished.as_ref().copied().unwrap_or(0);
        let stored = imported.as_ref().ok().copied();
        let why_not = match (imported, finished) {
            (Ok(stored), Ok(_)) => {
                self.persisted.finite.insert(stored.id);
                return Ok(stored);
            }
            // The file's entry is none the worse for it.
            (Err(ImportError::Runner(_)), _) | (_, Err(ReadError::Io(_))) => NotBroughtIn::Unreadable,
            (_, Err(ReadError::Damaged(extent))) => NotBroughtIn::Damaged(extent),
            // All of it is no use, so its first extent is none.
            (Err(ImportError::WrongBytes(_)), Ok(_)) => piece
                .extents()
                .first()
                .map_or(NotBroughtIn::Unreadable, |first| NotBroughtIn::Damaged(*first)),
        };
        self.discard_all(stored);
        Err(why_not)
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
        persisted.version += 1;
        let report = saving.publish()?;
        persisted.num_unsaved_bytes = 0;
        Ok(report)
    }
}

fn told(error: SnapshotError) -> RunnerError {
    RunnerError(error.to_string())
}
