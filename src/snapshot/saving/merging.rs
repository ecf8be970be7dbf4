//! Taking over what another cache file has.
//!
//! Owns which of its extents are copied, each once and as far as they are sound. Where they go in the file
//! is [`super`]'s.

use std::collections::BTreeMap;

use super::Saving;
use crate::{
    cache::{NodeId, Place},
    snapshot::{
        Extent, Piece, Snapshot, SnapshotError,
        disk::{Disk, failed},
        extent::{ReadError, read_extent},
    },
};

/// What was copied from another file.
#[derive(Debug, Default)]
struct Copied {
    /// By the places there; `None` what is damaged.
    places: BTreeMap<u64, Option<Extent>>,
    /// Where the last copy ended, there and here.
    end: Option<(u64, u64)>,
}

impl Saving<'_> {
    /// Takes in all that another snapshot of the same model has and this one lacks.
    pub(in crate::snapshot) fn add_all(&mut self, other: &Snapshot) -> Result<(), SnapshotError> {
        let Some(disk) = &other.disk else { return Ok(()) };
        let tree = other.catalogue.cache().tree();
        let mut places: BTreeMap<NodeId, NodeId> = BTreeMap::new();
        let mut copied = Copied::default();
        let mut used = Vec::new();
        for id in tree.preorder() {
            let Some((node, piece)) = tree.node(id).and_then(|node| Some((node, node.segment()?))) else {
                continue;
            };
            let parent = match node.parent() {
                None => None,
                Some(parent) => match places.get(&parent) {
                    None => continue,
                    known => known.copied(),
                },
            };
            let tokens = node.tokens();
            let covered = self.catalogue.cover(parent, tokens)?;
            let mut end = covered.node;
            if covered.num_tokens < tokens.len() {
                let rest = piece.part(covered.num_tokens..tokens.len());
                let extents = self.copy(disk, &rest, &mut copied)?;
                // Up to where it is sound.
                let is_lost = |extent: &Extent| copied.places.get(&extent.offset) == Some(&None);
                let num_sound = rest.num_tokens_before(is_lost);
                let num_tokens = num_sound.unwrap_or(rest.tokens().len());
                if num_tokens > 0 {
                    self.report.num_new_tokens += num_tokens;
                    let tokens = &tokens[covered.num_tokens..covered.num_tokens + num_tokens];
                    let place = Place { parent: covered.node, tokens, tier: node.tier() };
                    end = self.catalogue.hang_unused(
                        place,
                        rest.part(0..num_tokens).copied_to(&extents),
                        None,
                    )?;
                }
                if num_sound.is_some() {
                    continue;
                }
            }
            let Some(end) = end else { continue };
            places.insert(id, end);
            let lacks_checkpoint =
                self.catalogue.cache().tree().node(end).is_some_and(|node| node.checkpoint().is_none());
            if let Some(state) = node.checkpoint().filter(|_| lacks_checkpoint) {
                let extents = self.copy(disk, state, &mut copied)?;
                if extents.len() == state.extents().len() {
                    self.catalogue.set_checkpoint(end, Some(state.copied_to(&extents)))?;
                }
            }
            self.catalogue.set_used(end, piece.used_at)?;
            used.push(end);
        }
        self.catalogue.touch_all(&used)
    }

    /// Copies the extents of a piece of another file, each once, as far as they are sound.
    fn copy(
        &mut self,
        from: &Disk,
        piece: &Piece,
        copied: &mut Copied,
    ) -> Result<Vec<Extent>, SnapshotError> {
        let mut extents = Vec::with_capacity(piece.extents().len());
        for extent in piece.extents() {
            if let Some(known) = copied.places.get(&extent.offset) {
                let Some(known) = known else { break };
                extents.push(*known);
                continue;
            }
            let mut bytes = Vec::new();
            let follows = copied.end == Some((extent.offset, self.end));
            let place = match read_extent(from, *extent, &mut bytes) {
                Ok(()) => Some(self.write(extent.num_tokens as usize, follows, |out| {
                    out.append(&mut bytes);
                    Ok(())
                })?),
                Err(ReadError::Damaged(_)) => None,
                Err(ReadError::Io(source)) => return Err(failed("read", from.path(), source)),
            };
            copied.places.insert(extent.offset, place);
            copied.end = place.map(|_| (extent.offset + extent.num_bytes, self.end));
            let Some(place) = place else { break };
            extents.push(place);
        }
        Ok(extents)
    }
}
