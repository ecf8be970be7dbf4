//! A cache file of each format version, kept for ever: whoever changes the format has to go on reading them.
//!
//! Owns `fixtures/cache_v1.bin`, which nothing can make any more, and `cache_v2.bin`, which is made where there
//! is none, with MLXBATCH_BLESS=1 set; what is there is never made anew.

use std::path::{Path, PathBuf};

use mlxbatch::{
    cache::{Place, Tier},
    snapshot::{
        CacheMode, Contents, Identity, IdentityPart, Opening, Pruning, Snapshot, SnapshotError,
        SnapshotOptions, prune, verify,
    },
};

/// A system part with a question and its answer, and another question that leaves the first in its middle.
const FIRST: [u32; 9] = [1, 2, 3, 70_000, 11, 12, 13, 21, 22];
const SECOND: [u32; 7] = [1, 2, 3, 70_000, 11, 31, 32];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Of version 2: a document of several runs, which another question leaves within a run.
fn long() -> [Vec<u32>; 2] {
    let first: Vec<u32> = (0..600).map(|place| 100_000 + place).collect();
    let second = first[..300].iter().copied().chain(700_000..700_040).collect();
    [first, second]
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

fn make_v2(path: &Path) -> Result<(), SnapshotError> {
    let mut snapshot = open(path, CacheMode::ReadWrite)?;
    snapshot.expect_planes(vec![8]);
    for tokens in long() {
        let mut saving = snapshot.begin_save()?;
        let mut parent = None;
        let spans = [
            (0, 20, Tier::System),
            (20, tokens.len() - 5, Tier::User),
            (tokens.len() - 5, tokens.len(), Tier::Assistant),
        ];
        for (start, end, tier) in spans {
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

/// Reads what a file has of some tokens, which must be all of them and right.
fn read_all(path: &Path, tokens: &[u32]) -> Result<(), SnapshotError> {
    let snapshot = open(path, CacheMode::ReadOnly)?;
    let mut bytes = Vec::new();
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
    Ok(())
}

#[test]
fn a_file_of_version_1_is_read() -> Result<(), SnapshotError> {
    let path = fixture("cache_v1.bin");
    let contents = Contents::read(&path)?;
    assert_eq!(contents.format_version, 1);
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
    let verified = verify(&path, |_| {})?;
    assert_eq!((verified.num_extents, verified.damaged.len(), verified.num_damaged_entries), (8, 0, 0));
    let snapshot = open(&path, CacheMode::ReadOnly)?;
    assert!(matches!(snapshot.opening(), Opening::Restored { num_nodes: 5, num_tokens: 11, .. }));
    read_all(&path, &FIRST)?;
    read_all(&path, &SECOND)
}

#[test]
fn a_file_of_version_1_becomes_one_of_version_2_with_its_first_save() -> Result<(), SnapshotError> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("cache.bin");
    std::fs::copy(fixture("cache_v1.bin"), &path).expect("there is room");
    let mut snapshot = open(&path, CacheMode::ReadWrite)?;
    let mut saving = snapshot.begin_save()?;
    let place = Place { parent: None, tokens: &[9, 9, 9], tier: Tier::User };
    saving.add(place, |range, bytes| {
        bytes.extend(range.flat_map(|place| kv_of(9, place)));
        Ok(())
    })?;
    saving.publish()?;
    let contents = Contents::read(&path)?;
    assert_eq!((contents.format_version, contents.num_damaged, contents.num_tokens()), (2, 0, 11 + 3));
    read_all(&path, &FIRST)?;
    read_all(&path, &SECOND)?;
    // What is not changed stays as it is, and a pruning is a change.
    let other = folder.path().join("other.bin");
    std::fs::copy(fixture("cache_v1.bin"), &other).expect("there is room");
    open(&other, CacheMode::ReadWrite)?.begin_save()?.publish()?;
    assert_eq!(Contents::read(&other)?.format_version, 1);
    let pruned = prune(&other, Pruning { tier: Some(Tier::Assistant), ..Pruning::default() })?;
    assert_eq!((pruned.num_entries_before, pruned.num_entries), (5, 4));
    assert_eq!(Contents::read(&other)?.format_version, 2);
    read_all(&other, &FIRST[..7])
}

#[test]
fn a_file_of_version_2_is_read() -> Result<(), SnapshotError> {
    let path = fixture("cache_v2.bin");
    if std::env::var_os("MLXBATCH_BLESS").is_some() && !path.exists() {
        make_v2(&path)?;
    }
    let contents = Contents::read(&path)?;
    assert_eq!(contents.format_version, 2);
    let entries: Vec<(usize, usize, Tier, bool)> = contents
        .entries
        .iter()
        .map(|entry| (entry.tokens.len(), entry.end, entry.tier, entry.has_checkpoint))
        .collect();
    assert_eq!(
        entries,
        [
            (20, 20, Tier::System, true),
            (280, 300, Tier::User, false),
            (295, 595, Tier::User, true),
            (5, 600, Tier::Assistant, true),
            (35, 335, Tier::User, true),
            (5, 340, Tier::Assistant, true),
        ]
    );
    // The runs of a segment: 20; 256, 256 and 63; 5; 35; 5; and five states.
    let verified = verify(&path, |_| {})?;
    assert_eq!((verified.num_extents, verified.damaged.len(), verified.num_damaged_entries), (7 + 5, 0, 0));
    assert_eq!(contents.used_bytes, (600 + 40) * 8 + 5 * 8);
    long().iter().try_for_each(|tokens| read_all(&path, tokens))
}
