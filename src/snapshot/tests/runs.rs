//! Runs of tokens: what is read, kept, dropped and lost for the sake of some tokens of a long prompt.

use std::os::unix::fs::FileExt;

use super::*;
use crate::snapshot::{
    disk::Disk,
    format::MAX_RUN_TOKENS,
    index::{self, MAX_INDEX_BYTES, Source},
};

type Done = Result<(), SnapshotError>;

fn limited(num_bytes: usize) -> SnapshotOptions {
    SnapshotOptions { mode: CacheMode::ReadWrite, max_bytes: Some(num_bytes as u64) }
}

/// Saves a prompt cut at these places.
fn save_cut(
    snapshot: &mut Snapshot,
    tokens: &[TokenId],
    ends: &[usize],
) -> Result<SaveReport, SnapshotError> {
    let mut saving = snapshot.begin_save()?;
    add(&mut saving, tokens, ends, false)?;
    saving.publish()
}

fn num_file_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).expect("the file is there").len()
}

/// A piece counted as its share of an extent that stayed whole: of prompts with a long end that is used no
/// more the beginnings were kept, and with them all of the file. With a limit of 2 MB it grew past 12, and a
/// pruning that dropped nearly all tokens freed nothing.
#[test]
fn a_file_of_cut_prompts_stays_near_its_limit_and_pruning_frees_what_it_drops() -> Done {
    let file = place();
    // Prompts of 6,000 tokens, of which another run each uses the first 300: those are read as being in use.
    let num_prompts = 20;
    let max_tokens = 7_000;
    let mut snapshot = open_as(&file.path, limited(max_tokens * BYTES_PER_TOKEN), model("m"))?;
    let mut peak_bytes = 0;
    for question in 0..num_prompts {
        let long: Vec<TokenId> = (0..6_000).map(|place| question * 10_000 + place).collect();
        save_cut(&mut snapshot, &long, &[6_000])?;
        save_cut(&mut snapshot, &[&long[..300], &[9]].concat(), &[301])?;
        peak_bytes = peak_bytes.max(num_file_bytes(&file.path));
        let contents = Contents::read(&file.path)?;
        assert!(contents.used_bytes as usize <= max_tokens * BYTES_PER_TOKEN, "{}", contents.used_bytes);
        let entry_bytes: u64 = contents.entries.iter().map(|entry| entry.num_bytes).sum();
        assert_eq!(contents.used_bytes, entry_bytes, "each extent counts once");
    }
    let limit = (max_tokens * BYTES_PER_TOKEN) as u64;
    assert!(peak_bytes < limit * 2, "{peak_bytes} bytes for a limit of {limit}");

    let pruned = prune(&file.path, Pruning { max_bytes: Some(limit / 4), ..Pruning::default() })?;
    // One aligned place for each of the segments, and the index.
    let padding = (pruned.num_entries + 2) as u64 * format::ALIGNMENT;
    assert!(pruned.file_bytes <= limit / 4 + padding, "{pruned:?}");
    Ok(())
}

/// Each piece of a prompt that others had cut read the whole of it: 44 MB for 1.5 MB.
#[test]
fn pieces_that_follow_each_other_read_every_extent_once() -> Done {
    let file = place();
    let num_tokens = 3_000;
    let long: Vec<TokenId> = (0..num_tokens as TokenId).collect();
    let mut snapshot = open(&file.path)?;
    save_cut(&mut snapshot, &long, &[num_tokens])?;
    for end in (100..num_tokens).step_by(100) {
        save_cut(&mut snapshot, &[&long[..end], &[1 << 20]].concat(), &[end + 1])?;
    }
    let mut snapshot = open(&file.path)?;
    let pieces = snapshot.find(&long);
    assert_eq!(pieces.len(), 30);
    let num_alone: u64 = pieces.iter().map(|found| found.piece.num_extent_bytes()).sum();
    assert!(
        num_alone < 6 * (num_tokens * BYTES_PER_TOKEN) as u64,
        "a piece alone reads its runs: {num_alone}"
    );
    let mut buffer = RunBuffer::default();
    let mut num_read = 0;
    for found in &pieces {
        let mut reader = snapshot.reader(&found.piece, &mut buffer).expect("the file is open");
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut bytes).expect("the file is sound");
        num_read += reader.finish().expect("the file is sound");
        let mut alone = Vec::new();
        snapshot.read(&found.piece, &mut alone).expect("the file is sound");
        assert!(bytes == alone);
    }
    assert_eq!(num_read, (num_tokens * BYTES_PER_TOKEN) as u64);
    assert_eq!(restore(&mut snapshot, &long), num_tokens);
    Ok(())
}

#[test]
fn a_damaged_run_costs_what_comes_from_there_on() -> Done {
    let file = place();
    let long: Vec<TokenId> = (0..1_000).collect();
    save_cut(&mut open(&file.path)?, &long, &[1_000])?;
    let extents = open(&file.path)?.find(&long)[0].piece.extents().to_vec();
    assert_eq!(extents.iter().map(|extent| extent.num_tokens).collect::<Vec<_>>(), [256, 256, 256, 232]);
    assert!(extents.windows(2).all(|pair| pair[0].offset + pair[0].num_bytes == pair[1].offset));
    let disk = std::fs::File::options().write(true).open(&file.path).expect("the file opens");
    disk.write_all_at(&[0xa5; 3], extents[2].offset + 100).expect("it can be written");

    let merged = place();
    let report = merge(&[&file.path, &file.path], &merged.path)?;
    assert_eq!(report.num_tokens, 2 * MAX_RUN_TOKENS, "what is sound is taken over");
    assert_eq!(restore(&mut open(&merged.path)?, &long), 2 * MAX_RUN_TOKENS);

    let mut snapshot = open(&file.path)?;
    assert_eq!(restore(&mut snapshot, &long), 0, "one piece, which is damaged");
    assert_eq!(restore(&mut snapshot, &long), 2 * MAX_RUN_TOKENS, "and what of it is not");
    let report = save_cut(&mut snapshot, &long, &[1_000])?;
    assert_eq!(report.num_new_tokens, 1_000 - 2 * MAX_RUN_TOKENS);
    assert_eq!(restore(&mut open(&file.path)?, &long), 1_000);
    Ok(())
}

#[test]
fn cut_prompts_come_back_from_a_compacted_and_from_a_merged_file() -> Done {
    let (file, merged) = (place(), place());
    let long: Vec<TokenId> = (0..1_500).collect();
    let other = [&long[..700], &[7; 400]].concat();
    let mut snapshot = open(&file.path)?;
    save_cut(&mut snapshot, &long, &[300, 1_500])?;
    save_cut(&mut snapshot, &other, &[1_100])?;
    let before = num_file_bytes(&file.path);
    prune(&file.path, Pruning { older_than_seconds: Some(3600), ..Pruning::default() })?;
    let mut saving = snapshot.begin_save()?;
    add(&mut saving, &[5, 5, 5], &[3], false)?;
    saving.publish_compacted(true)?;
    assert!(num_file_bytes(&file.path) <= before + format::ALIGNMENT);
    merge(&[&file.path, &file.path], &merged.path)?;
    for path in [&file.path, &merged.path] {
        let mut again = open(path)?;
        assert_eq!(restore(&mut again, &long), 1_500);
        assert_eq!(restore(&mut again, &other), 1_100);
        let contents = Contents::read(path)?;
        assert_eq!(contents.used_bytes as usize, (1_500 + 400 + 3) * BYTES_PER_TOKEN);
        assert!(verify(path, |_| {})?.damaged.is_empty());
    }
    Ok(())
}

#[test]
fn planes_are_kept_with_the_file_and_others_are_another_model() -> Done {
    let file = place();
    let mut snapshot = open(&file.path)?;
    snapshot.expect_planes(vec![40, 8]);
    save(&mut snapshot, &[&prompt(1, 5)])?;
    let mut same = open(&file.path)?;
    same.expect_planes(vec![40, 8]);
    assert_eq!(restore(&mut same, &prompt(1, 5)), 8);
    let mut other = open(&file.path)?;
    other.expect_planes(vec![24, 24]);
    assert!(matches!(other.opening(), Opening::OtherModel { .. }) && !other.can_save());
    assert_eq!(restore(&mut other, &prompt(1, 5)), 0);
    // What is exported has to be of that size.
    let mut saving = same.begin_save()?;
    let place = Place { parent: None, tokens: &[7, 8], tier: Tier::User };
    let short = |range: std::ops::Range<usize>, bytes: &mut Vec<u8>| {
        bytes.extend(vec![0; range.len() * 47]);
        Ok(())
    };
    assert!(matches!(saving.add(place, short), Err(SnapshotError::Export(_))));
    Ok(())
}

/// A save wrote an index of any length, and reading refused one of more than 256 MiB: all was lost.
#[test]
fn an_index_is_never_longer_than_one_that_is_read() -> Done {
    let file = place();
    let mut snapshot = open(&file.path)?;
    let prompts: Vec<Vec<TokenId>> = (1..40).map(|question| prompt(question, 40)).collect();
    let all: Vec<&[TokenId]> = prompts.iter().map(Vec::as_slice).collect();
    save(&mut snapshot, &all[..20])?;
    let max_bytes = 3_000;
    snapshot.max_index_bytes = max_bytes;
    let report = save(&mut snapshot, &all)?;
    assert!(report.num_tokens_beyond_index > 0 && report.num_tokens > 0, "{report:?}");
    assert_eq!(report.num_tokens + report.num_tokens_beyond_index, 3 + 39 * 40);
    let num_index_bytes = {
        let bytes = std::fs::read(&file.path).expect("the file is there");
        let roots = [1, 2].map(|place| format::Root::decode(&bytes[place * 4096..]));
        let latest = roots.into_iter().flatten().max_by_key(|root| root.generation);
        latest.expect("there is a root").index_bytes as usize
    };
    assert!(num_index_bytes <= max_bytes && num_index_bytes > max_bytes / 2, "{num_index_bytes}");
    // What was used last is there, what was used first is not.
    let mut again = open(&file.path)?;
    assert_eq!(again.num_tokens(), report.num_tokens);
    assert_eq!(restore(&mut again, &prompts[38]), 43);
    assert_eq!(restore(&mut again, &prompts[0]), 3);
    // Where not even an empty one is short enough, the file stays as it was.
    snapshot.max_index_bytes = 10;
    let before = std::fs::read(&file.path).expect("the file is there");
    let refused = save(&mut snapshot, &[&prompt(50, 5)]);
    assert!(matches!(refused, Err(SnapshotError::IndexTooLong { .. })), "{refused:?}");
    assert_eq!(restore(&mut open(&file.path)?, &prompts[38]), 43);
    let after = std::fs::read(&file.path).expect("the file is there");
    assert!(after[..3 * 4096] == before[..3 * 4096], "its roots are the same");
    Ok(())
}

#[test]
fn both_ways_there_is_one_limit_of_an_index() {
    let source = Source { version: 2, published_bytes: 0, max_bytes: None };
    let told = |num_bytes: usize| index::decode(&vec![0xff; num_bytes], source).expect_err("it is nonsense");
    assert!(told(MAX_INDEX_BYTES + 1).contains("beyond all measure"));
    assert!(!told(1000).contains("beyond all measure"));
    let file = place();
    assert_eq!(open(&file.path).expect("a new file").max_index_bytes, MAX_INDEX_BYTES);
    assert!(Disk::open(&file.path).is_err(), "nothing is made before a save");
}
