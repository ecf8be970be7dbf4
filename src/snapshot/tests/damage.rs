//! Files cut short and bits flipped: nothing wrong is ever believed, and nothing panics.

use super::*;
use crate::snapshot::index::{self, Source};

/// A file of several saves, so that it has both roots, several indexes and split extents.
fn written() -> (CacheFile, Vec<Vec<TokenId>>) {
    let file = place();
    let prompts: Vec<Vec<TokenId>> = (1..6).map(|question| prompt(question, 40)).collect();
    let mut snapshot = open_as(&file.path, READ_WRITE, recurrent_model("m")).expect("a new file");
    for some in prompts.chunks(2) {
        let some: Vec<&[TokenId]> = some.iter().map(Vec::as_slice).collect();
        save(&mut snapshot, &some).expect("it can be saved");
    }
    (file, prompts)
}

/// Opens whatever is there, restores what it says it has, and saves anew.
fn use_it(path: &Path, prompts: &[Vec<TokenId>], saves: bool) -> Option<usize> {
    let mut snapshot = match open_as(path, READ_WRITE, recurrent_model("m")) {
        Ok(snapshot) => snapshot,
        Err(SnapshotError::Foreign { .. } | SnapshotError::Newer { .. }) => return None,
        Err(error) => panic!("{error}"),
    };
    let restored = prompts.iter().map(|prompt| restore(&mut snapshot, prompt)).sum();
    if saves && snapshot.can_save() {
        let all: Vec<&[TokenId]> = prompts.iter().map(Vec::as_slice).collect();
        save(&mut snapshot, &all).expect("it can be saved");
        let mut healed = open_as(path, READ_WRITE, recurrent_model("m")).expect("it opens");
        for prompt in prompts {
            assert_eq!(restore(&mut healed, prompt), prompt.len());
        }
    }
    Some(restored)
}

#[test]
fn a_file_cut_anywhere_has_an_older_content_or_none() {
    let (file, prompts) = written();
    let whole = std::fs::read(&file.path).expect("the file is there");
    let cut = place();
    let mut outcomes = std::collections::BTreeSet::new();
    for num_bytes in (0..whole.len()).step_by(4096).chain([1, 15, 17, 36, whole.len() - 1, whole.len()]) {
        std::fs::write(&cut.path, &whole[..num_bytes]).expect("the file can be written");
        outcomes.extend(use_it(&cut.path, &prompts, true));
    }
    assert_eq!(outcomes.last(), Some(&(5 * 43)), "whole it has everything");
    assert!(outcomes.len() >= 3, "an older root serves where the latest is cut off: {outcomes:?}");
}

#[test]
fn flipped_bits_are_never_believed() {
    let (file, prompts) = written();
    let whole = std::fs::read(&file.path).expect("the file is there");
    let damaged = place();
    std::fs::write(&damaged.path, &whole).expect("the file can be written");
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    // Most of the file is padding: aim at where something is.
    let used: Vec<usize> = (0..whole.len()).filter(|place| whole[*place] != 0).collect();
    let mut num_whole = 0;
    for round in 0..10_000 {
        let place = if round % 4 == 0 { next(whole.len()) } else { used[next(used.len())] };
        let byte = whole[place] ^ (1 << next(8));
        write_byte(&damaged.path, place, byte);
        if use_it(&damaged.path, &prompts, false) == Some(5 * 43) {
            num_whole += 1;
        }
        write_byte(&damaged.path, place, whole[place]);
    }
    assert!(num_whole > 0 && num_whole < 10_000, "some flips matter and some do not: {num_whole}");
    assert_eq!(use_it(&damaged.path, &prompts, true), Some(5 * 43));
}

fn write_byte(path: &Path, place: usize, byte: u8) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("the file opens");
    file.write_all_at(&[byte], place as u64).expect("the byte can be written");
}

#[test]
fn bytes_swapped_between_extents_are_told_apart() {
    let (file, prompts) = written();
    let mut bytes = std::fs::read(&file.path).expect("the file is there");
    // Two extents of the same length, each sound in itself.
    let snapshot = open_as(&file.path, READ_WRITE, recurrent_model("m")).expect("it opens");
    let ends: Vec<Found> =
        prompts.iter().filter_map(|prompt| snapshot.find(prompt).last().cloned()).collect();
    let [first, second] = [0, 1].map(|end| ends[end].piece.extents()[0].offset as usize);
    let num_bytes = ends[0].piece.num_extent_bytes() as usize;
    let copy = bytes[first..first + num_bytes].to_vec();
    bytes.copy_within(second..second + num_bytes, first);
    bytes[second..second + num_bytes].copy_from_slice(&copy);
    std::fs::write(&file.path, &bytes).expect("the file can be written");
    assert_eq!(use_it(&file.path, &prompts, true), Some(2 * 3 + 3 * 43));
}

/// Each node that was opened, pruned or merged led all the way up: 200,000 of them took minutes.
#[test]
fn a_chain_of_a_hundred_thousand_nodes_is_as_soon_done_with_as_it_is_read() -> Result<(), SnapshotError> {
    const NUM_NODES: u32 = 100_000;
    let file = place();
    let mut snapshot = open(&file.path)?;
    save(&mut snapshot, &[&prompt(1, 20)])?;
    let mut nodes: Vec<NodeId> = Vec::new();
    for token in 0..NUM_NODES {
        let place = Place { parent: nodes.last().copied(), tokens: &[token], tier: Tier::User };
        nodes.extend(snapshot.catalogue.hang_unused(place, Piece::of(&[], 1, 0), None)?);
    }
    snapshot.catalogue.touch_all(&nodes)?;
    snapshot.is_dirty = true;
    snapshot.begin_save()?.publish()?;
    let opened = open(&file.path)?;
    assert_eq!(opened.num_resumable(&(0..NUM_NODES).collect::<Vec<_>>()), NUM_NODES as usize);
    assert_eq!(Contents::read(&file.path)?.entries[0].num_below, NUM_NODES as usize - 1);
    assert_eq!(verify(&file.path, |_| {})?.num_damaged_entries, 0);
    let merged = place();
    assert_eq!(merge(&[&file.path, &file.path], &merged.path)?.num_tokens, NUM_NODES as usize + 23);
    let pruning = Pruning { tier: Some(Tier::User), ..Pruning::default() };
    assert_eq!(prune(&file.path, pruning)?.num_entries, 1, "the system part");
    Ok(())
}

/// Both were copied, each with its own bytes: a small file became a large one.
#[test]
fn of_extents_that_overlap_one_counts_and_a_merge_makes_nothing_larger() -> Result<(), SnapshotError> {
    let file = place();
    let mut snapshot = open(&file.path)?;
    save(&mut snapshot, &[&prompt(1, 200)])?;
    let long = snapshot.find(&prompt(1, 200)).last().expect("it was saved").piece.extents()[0];
    // Further nodes whose KV is said to be a token further on each.
    let mut catalogue = snapshot.catalogue.clone();
    for number in 0..100_u32 {
        let moved = u64::from(number + 1) * BYTES_PER_TOKEN as u64;
        let extent =
            Extent { offset: long.offset + moved, num_bytes: long.num_bytes - moved, num_tokens: 1, ..long };
        let tokens = [5_000 + number];
        catalogue.hang(
            Place { parent: None, tokens: &tokens, tier: Tier::User },
            Piece::of(&[extent], 1, 0),
            None,
        )?;
    }
    let bytes = index::encode(&model("m"), &[], &catalogue).expect("it encodes");
    let source = Source { version: 2, published_bytes: 1 << 20, max_bytes: None };
    let decoded = index::decode(&bytes, source).expect("it decodes");
    assert_eq!(decoded.num_damaged, 100);
    assert_eq!(decoded.catalogue.extents(), snapshot.catalogue.extents());
    // One extent that many name is copied once.
    let mut named_often = snapshot.catalogue.clone();
    for token in 5_000..5_100 {
        let piece = Piece::of(&[long], long.num_tokens, 0);
        let tokens: Vec<TokenId> = (0..long.num_tokens).map(|place| token + place * 1000).collect();
        named_often.hang(Place { parent: None, tokens: &tokens, tier: Tier::User }, piece, None)?;
    }
    snapshot.catalogue = named_often;
    snapshot.is_dirty = true;
    snapshot.begin_save()?.publish()?;
    let merged = place();
    let report = merge(&[&file.path, &file.path], &merged.path)?;
    let before = std::fs::metadata(&file.path).expect("it is there").len();
    assert!(report.file_bytes <= 2 * before, "{} bytes became {}", before, report.file_bytes);
    Ok(())
}

/// 60 GB were asked for before anybody looked at the limit.
#[test]
fn an_index_that_is_said_to_be_huge_is_not_made_room_for() {
    let file = place();
    let mut snapshot = open(&file.path).expect("a new file");
    save(&mut snapshot, &[&prompt(1, 20)]).expect("it can be saved");
    let root = format::Root {
        generation: 99,
        index_offset: 1 << 20,
        index_bytes: 60 << 30,
        published_bytes: 61 << 30,
        index_checksum: [0; 16],
    };
    let handle = std::fs::OpenOptions::new().write(true).open(&file.path).expect("it opens");
    handle.set_len(61 << 30).expect("it takes no space");
    std::os::unix::fs::FileExt::write_all_at(&handle, &root.encode(), format::Root::offset(99))
        .expect("written");
    let opened = open(&file.path).expect("the older root is sound");
    assert!(
        opened.older_because().is_some_and(|reason| reason.contains("too long")),
        "{:?}",
        opened.older_because()
    );
    assert_eq!(opened.num_tokens(), 23);
}

#[test]
fn an_index_of_nonsense_costs_its_nodes_and_no_more_memory_than_the_file_has() {
    // Lengths far beyond the bytes that follow.
    for bytes in
        [&[0xfd; 64][..], &[0xff; 3000], &[0; 10], &[1, 97, 0, 253, 255, 255, 255, 255, 255, 255, 255, 255]]
    {
        for version in [1, 2] {
            let source = Source { version, published_bytes: 1 << 20, max_bytes: None };
            assert!(index::decode(bytes, source).is_err());
        }
    }
}
