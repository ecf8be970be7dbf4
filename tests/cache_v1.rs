//! A cache file of format version 1, kept for ever: whoever changes the format has to go on reading it.
//!
//! Owns `fixtures/cache_v1.bin`. A new one is made where there is none, with MLXBATCH_BLESS=1 set; the
//! one that is there is never made anew.

use std::path::{Path, PathBuf};

use mlxbatch::{
    cache::{Place, Tier},
    snapshot::{
        CacheMode, Contents, Identity, IdentityPart, Opening, Snapshot, SnapshotError, SnapshotOptions,
        verify,
    },
};

/// A system part with a question and its answer, and another question that leaves the first in its middle.
const FIRST: [u32; 9] = [1, 2, 3, 70_000, 11, 12, 13, 21, 22];
const SECOND: [u32; 7] = [1, 2, 3, 70_000, 11, 31, 32];

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/cache_v1.bin")
}

fn identity() -> Identity {
    Identity {
        model: "a model of long ago".to_owned(),
        needs_checkpoints: true,
        parts: vec![IdentityPart::new("weights", b"v1"), IdentityPart::new("precision", b"float32")],
        stamps: Vec::new(),
    }
}

fn open(path: &Path, mode: CacheMode) -> Result<Snapshot, SnapshotError> {
    Snapshot::open(path, SnapshotOptions { mode, max_bytes: None }, |_| Ok(identity()))
}

/// The made-up KV of one token, 8 bytes.
fn kv_of(token: u32, position: usize) -> [u8; 8] {
    (u64::from(token) << 32 | position as u64).to_le_bytes()
}

fn make(path: &Path) -> Result<(), SnapshotError> {
    let mut snapshot = open(path, CacheMode::ReadWrite)?;
    for tokens in [FIRST.as_slice(), &SECOND] {
        let mut saving = snapshot.begin_save()?;
        let mut parent = None;
        let spans = [(0, 4, Tier::System), (4, 7, Tier::User), (7, tokens.len(), Tier::Assistant)];
        for (start, end, tier) in spans.into_iter().filter(|(start, end, _)| start < end) {
            let place = Place { parent, tokens: &tokens[start..end], tier };
            parent = saving.add(place, |range, bytes| {
                bytes.extend(range.flat_map(|place| kv_of(tokens[start + place], start + place)));
                Ok(())
            })?;
            if let Some(node) = parent {
                saving.add_checkpoint(node, |bytes| {
                    bytes.extend((end as u64).to_le_bytes());
                    Ok(())
                })?;
            }
        }
        saving.publish()?;
    }
    Ok(())
}

#[test]
fn a_file_of_version_1_is_read() -> Result<(), SnapshotError> {
    if std::env::var_os("MLXBATCH_BLESS").is_some() && !path().exists() {
        make(&path())?;
    }
    let contents = Contents::read(&path())?;
    let entries: Vec<(&[u32], usize, Tier, bool)> = contents
        .entries
        .iter()
        .map(|entry| (entry.tokens.as_slice(), entry.end, entry.tier, entry.has_checkpoint))
        .collect();
    assert_eq!(
        entries,
        [
            (&[1, 2, 3, 70_000][..], 4, Tier::System, true),
            (&[11], 5, Tier::User, false),
            (&[12, 13], 7, Tier::User, true),
            (&[21, 22], 9, Tier::Assistant, true),
            (&[31, 32], 7, Tier::User, true),
        ]
    );
    let verified = verify(&path(), |_| {})?;
    assert_eq!((verified.num_extents, verified.damaged.len(), verified.num_damaged_entries), (8, 0, 0));

    let snapshot = open(&path(), CacheMode::ReadOnly)?;
    assert!(matches!(snapshot.opening(), Opening::Restored { num_nodes: 5, num_tokens: 11, .. }));
    let mut bytes = Vec::new();
    for tokens in [FIRST.as_slice(), &SECOND] {
        let found = snapshot.find(tokens);
        assert_eq!(found.last().map(|last| last.end), Some(tokens.len()));
        for piece in found {
            snapshot.read(&piece.piece, &mut bytes).expect("the fixture is sound");
            for (place, position) in piece.piece.tokens().zip(piece.tokens()) {
                assert_eq!(bytes[place * 8..place * 8 + 8], kv_of(tokens[position], position));
            }
            if let Some(checkpoint) = piece.checkpoint {
                snapshot.read(&checkpoint, &mut bytes).expect("the fixture is sound");
                assert_eq!(bytes, (piece.end as u64).to_le_bytes());
            }
        }
    }
    Ok(())
}
