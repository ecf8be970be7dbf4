//! Tests of the snapshot file as a whole.
//!
//! Owns what they share: a model whose KV is a function of the tokens so far, so that wrong bytes are
//! told from right ones, whatever was saved, split, merged, torn or flipped in between.

mod damage;
mod faults;
mod maintenance;
mod runs;
mod saving;
mod sharing;

use std::path::{Path, PathBuf};

use super::*;
use crate::cache::{NodeId, Place, Tier, TokenId};

/// Bytes of one token's KV: a few, so that files are small.
const BYTES_PER_TOKEN: usize = 48;

pub(super) fn model(name: &str) -> Identity {
    Identity {
        model: name.to_owned(),
        needs_checkpoints: false,
        parts: vec![IdentityPart::new("weights", name.as_bytes())],
        stamps: Vec::new(),
    }
}

pub(super) fn recurrent_model(name: &str) -> Identity {
    Identity { needs_checkpoints: true, ..model(name) }
}

pub(super) const READ_WRITE: SnapshotOptions =
    SnapshotOptions { mode: CacheMode::ReadWrite, max_bytes: None };

/// A cache file in a folder of its own.
pub(super) struct CacheFile {
    _folder: tempfile::TempDir,
    pub path: PathBuf,
}

pub(super) fn place() -> CacheFile {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("cache.bin");
    CacheFile { _folder: folder, path }
}

pub(super) fn open(path: &Path) -> Result<Snapshot, SnapshotError> {
    open_as(path, READ_WRITE, model("m"))
}

pub(super) fn open_as(
    path: &Path,
    options: SnapshotOptions,
    identity: Identity,
) -> Result<Snapshot, SnapshotError> {
    Snapshot::open(path, options, |_| Ok(identity))
}

/// The KV of the last of some tokens: depends on all of them.
fn kv_of(tokens: &[TokenId]) -> [u8; BYTES_PER_TOKEN] {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes);
    let mut kv = [0; BYTES_PER_TOKEN];
    hasher.finalize_xof().fill(&mut kv);
    kv
}

/// The recurrent state after some tokens.
fn state_of(tokens: &[TokenId]) -> Vec<u8> {
    kv_of(tokens).iter().rev().copied().cycle().take(200).collect()
}

/// Adds a path of nodes that end at these positions; with `has_states` each has a recurrent state.
pub(super) fn add(
    saving: &mut Saving<'_>,
    tokens: &[TokenId],
    ends: &[usize],
    has_states: bool,
) -> Result<(), SnapshotError> {
    let mut parent: Option<NodeId> = None;
    let mut start = 0;
    for (index, &end) in ends.iter().enumerate() {
        let tier = [Tier::System, Tier::User, Tier::Assistant][index.min(2)];
        let node = saving.add(Place { parent, tokens: &tokens[start..end], tier }, |range, bytes| {
            for position in range {
                bytes.extend(kv_of(&tokens[..start + position + 1]));
            }
            Ok(())
        })?;
        if has_states && let Some(node) = node {
            saving.add_checkpoint(node, |bytes| {
                bytes.extend(state_of(&tokens[..end]));
                Ok(())
            })?;
        }
        parent = node;
        start = end;
    }
    Ok(())
}

/// Saves whole prompts, each as one node below the first three tokens.
pub(super) fn save(snapshot: &mut Snapshot, prompts: &[&[TokenId]]) -> Result<SaveReport, SnapshotError> {
    let has_states = snapshot.identity.needs_checkpoints;
    let mut saving = snapshot.begin_save()?;
    for prompt in prompts {
        add(
            &mut saving,
            prompt,
            &[3.min(prompt.len()), prompt.len()][usize::from(prompt.len() <= 3)..],
            has_states,
        )?;
    }
    saving.publish()
}

/// Reads all that is found of a prompt and panics where it is wrong; returns how many tokens came back.
pub(super) fn restore(snapshot: &mut Snapshot, tokens: &[TokenId]) -> usize {
    let mut bytes = Vec::new();
    let mut num_restored = 0;
    for found in snapshot.find(tokens) {
        match snapshot.read(&found.piece, &mut bytes) {
            Ok(()) => {}
            Err(ReadError::Damaged(extent)) => {
                snapshot.drop_damaged(extent).expect("what was found can be dropped");
                break;
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(bytes.len(), found.piece.num_extent_tokens() * BYTES_PER_TOKEN);
        let wanted = found.piece.tokens();
        assert_eq!(wanted.len(), found.tokens().len(), "a piece has as many tokens as it stands for");
        for (place, position) in wanted.zip(found.tokens()) {
            let kv = &bytes[place * BYTES_PER_TOKEN..(place + 1) * BYTES_PER_TOKEN];
            assert_eq!(kv, kv_of(&tokens[..=position]), "the KV of token {position} of {tokens:?}");
        }
        num_restored = found.end;
        if let Some(checkpoint) = &found.checkpoint
            && snapshot.read(checkpoint, &mut bytes).is_ok()
        {
            assert_eq!(bytes, state_of(&tokens[..found.end]), "the state after {:?}", &tokens[..found.end]);
        }
    }
    num_restored
}

/// A prompt of a system part that all share and a question of its own.
pub(super) fn prompt(question: TokenId, num_tokens: usize) -> Vec<TokenId> {
    let own = (0..num_tokens as TokenId).map(|place| 1000 + question * 100 + place);
    [1, 2, 3].into_iter().chain(own).collect()
}
