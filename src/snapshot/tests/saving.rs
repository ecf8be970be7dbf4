//! What is saved comes back, and only what is new is written.

use super::*;

type Done = Result<(), SnapshotError>;

#[test]
fn a_first_run_starts_cold_and_the_second_has_all_of_it() -> Done {
    let file = place();
    let mut first = open(&file.path)?;
    assert_eq!(*first.opening(), Opening::New);
    assert_eq!(restore(&mut first, &prompt(1, 5)), 0);
    let report = save(&mut first, &[&prompt(1, 5), &prompt(2, 9)])?;
    assert_eq!((report.num_new_tokens, report.num_tokens), (3 + 5 + 9, 17));
    assert_eq!(report.num_new_bytes as usize, 17 * BYTES_PER_TOKEN);

    let mut second = open(&file.path)?;
    let Opening::Restored { num_nodes: 3, num_tokens: 17, .. } = second.opening() else {
        panic!("{:?}", second.opening())
    };
    assert_eq!(restore(&mut second, &prompt(1, 5)), 8);
    assert_eq!(restore(&mut second, &prompt(2, 9)), 12);
    // Longer, shorter and divergent prompts.
    assert_eq!(restore(&mut second, &[prompt(2, 9), vec![7, 7]].concat()), 12);
    assert_eq!(restore(&mut second, &prompt(2, 9)[..6]), 6);
    assert_eq!(restore(&mut second, &[&prompt(2, 9)[..7], &[8]].concat()), 7);
    assert_eq!(restore(&mut second, &[9, 9]), 0);
    assert_eq!(restore(&mut second, &[]), 0);
    // The run that saved has it too.
    assert_eq!(restore(&mut first, &prompt(1, 5)), 8);
    Ok(())
}

#[test]
fn a_save_of_nothing_new_writes_nothing() -> Done {
    let file = place();
    let mut snapshot = open(&file.path)?;
    save(&mut snapshot, &[&prompt(1, 5)])?;
    let before = std::fs::read(&file.path).expect("the file is there");
    let report = save(&mut snapshot, &[&prompt(1, 5)])?;
    assert_eq!((report.num_new_tokens, report.num_new_bytes), (0, 0));
    assert_eq!(std::fs::read(&file.path).expect("the file is there"), before);
    Ok(())
}

#[test]
fn published_bytes_are_never_written_again() -> Done {
    let file = place();
    let mut snapshot = open(&file.path)?;
    save(&mut snapshot, &[&prompt(1, 500)])?;
    let before = std::fs::read(&file.path).expect("the file is there");
    let report = save(&mut snapshot, &[&prompt(1, 500), &prompt(2, 4)])?;
    assert_eq!(report.num_new_bytes as usize, 4 * BYTES_PER_TOKEN);
    let after = std::fs::read(&file.path).expect("the file is there");
    let start = format::ALIGNMENT as usize;
    assert_eq!(before[start..], after[start..before.len()]);
    // Exactly one root has changed.
    let root = |bytes: &[u8], place: usize| bytes[place * 4096..(place + 1) * 4096].to_vec();
    let num_changed = [1, 2].iter().filter(|place| root(&before, **place) != root(&after, **place)).count();
    assert_eq!(num_changed, 1);
    Ok(())
}

#[test]
fn a_prompt_that_leaves_a_stored_edge_shares_its_bytes() -> Done {
    let file = place();
    let mut snapshot = open(&file.path)?;
    let (long, other) = (prompt(1, 40), [&prompt(1, 40)[..20], &[5, 5, 5]].concat());
    let mut saving = snapshot.begin_save()?;
    add(&mut saving, &long, &[43], false)?;
    add(&mut saving, &other, &[23], false)?;
    let report = saving.publish()?;
    assert_eq!(report.num_new_tokens, 43 + 3, "only the end is new");

    let mut again = open(&file.path)?;
    assert_eq!(restore(&mut again, &long), 43);
    assert_eq!(restore(&mut again, &other), 23);
    // What is cut anew in a later run is split once more, still without a byte written.
    let report = {
        let mut saving = again.begin_save()?;
        add(&mut saving, &long, &[7, 30, 43], false)?;
        saving.publish()?
    };
    assert_eq!(report.num_new_bytes, 0);
    assert_eq!(restore(&mut again, &long), 43);
    assert_eq!(restore(&mut open(&file.path)?, &other), 23);
    Ok(())
}

#[test]
fn recurrent_models_resume_where_a_state_was_saved() -> Done {
    let file = place();
    let mut snapshot = open_as(&file.path, READ_WRITE, recurrent_model("r"))?;
    let tokens = prompt(1, 20);
    let mut saving = snapshot.begin_save()?;
    add(&mut saving, &tokens, &[3, 10, 23], true)?;
    saving.publish()?;
    let mut again = open_as(&file.path, READ_WRITE, recurrent_model("r"))?;
    assert_eq!(restore(&mut again, &tokens), 23);
    assert_eq!(restore(&mut again, &tokens[..22]), 10, "there is no state after 22 tokens");
    assert_eq!(restore(&mut again, &tokens[..9]), 3);
    // A state is added to a prefix that lacked one.
    let other = prompt(2, 9);
    let mut saving = again.begin_save()?;
    add(&mut saving, &other, &[12], false)?;
    saving.publish()?;
    assert_eq!(restore(&mut again, &other), 3);
    let mut saving = again.begin_save()?;
    add(&mut saving, &other, &[12], true)?;
    let report = saving.publish()?;
    assert_eq!((report.num_new_tokens, report.num_new_bytes), (0, 200));
    assert_eq!(restore(&mut open_as(&file.path, READ_WRITE, recurrent_model("r"))?, &other), 12);
    Ok(())
}

#[test]
fn another_model_is_told_by_what_differs_and_its_file_stays_as_it_is() -> Done {
    let file = place();
    save(&mut open(&file.path)?, &[&prompt(1, 5)])?;
    let before = std::fs::read(&file.path).expect("the file is there");
    let mut other = open_as(&file.path, READ_WRITE, model("other"))?;
    assert_eq!(*other.opening(), Opening::OtherModel { difference: "weights differs".to_owned() });
    assert!(!other.can_save());
    assert_eq!(restore(&mut other, &prompt(1, 5)), 0);
    assert!(matches!(save(&mut other, &[&prompt(1, 5)]), Err(SnapshotError::OtherModel { .. })));
    assert_eq!(std::fs::read(&file.path).expect("the file is there"), before);

    // A refresh replaces it.
    let refresh = SnapshotOptions { mode: CacheMode::Refresh, max_bytes: None };
    let mut fresh = open_as(&file.path, refresh, model("other"))?;
    assert_eq!(*fresh.opening(), Opening::Refreshed);
    save(&mut fresh, &[&prompt(2, 5)])?;
    save(&mut fresh, &[&prompt(2, 5), &prompt(3, 5)])?;
    let mut again = open_as(&file.path, READ_WRITE, model("other"))?;
    assert_eq!(restore(&mut again, &prompt(1, 5)), 3);
    assert_eq!(restore(&mut again, &prompt(2, 5)), 8, "the second save of a refresh adds to the first");
    assert_eq!(restore(&mut again, &prompt(3, 5)), 8);
    Ok(())
}

#[test]
fn read_only_files_are_read_and_reading_takes_no_right_to_write() -> Done {
    let file = place();
    save(&mut open(&file.path)?, &[&prompt(1, 5)])?;
    let read_only = SnapshotOptions { mode: CacheMode::ReadOnly, max_bytes: None };
    let mut snapshot = open_as(&file.path, read_only, model("m"))?;
    assert!(!snapshot.can_save());
    assert_eq!(restore(&mut snapshot, &prompt(1, 5)), 8);
    // A cold start where there is nothing, not even a folder.
    let nowhere = file.path.join("no/folder/cache.bin");
    assert!(open_as(&file.path.with_extension("none"), read_only, model("m")).is_ok());
    assert!(open_as(&nowhere, READ_WRITE, model("m")).is_err());
    Ok(())
}

#[test]
fn only_the_owner_can_read_a_cache_file() -> Done {
    use std::os::unix::fs::PermissionsExt;
    let file = place();
    save(&mut open(&file.path)?, &[&prompt(1, 5)])?;
    let mode = std::fs::metadata(&file.path).expect("the file is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    Ok(())
}

#[test]
fn what_is_no_cache_file_is_refused_and_not_touched() {
    let file = place();
    for content in [&b"{\"messages\": []}\n"[..], &[0; 50_000], b"x"] {
        std::fs::write(&file.path, content).expect("the file can be written");
        assert!(matches!(open(&file.path), Err(SnapshotError::Foreign { .. })));
        assert_eq!(std::fs::read(&file.path).expect("the file is there"), content);
    }
    let folder = file.path.parent().expect("the file is in a folder");
    assert!(matches!(open(folder), Err(SnapshotError::NotAFile { .. })));
    assert!(matches!(open(Path::new("/dev/null")), Err(SnapshotError::NotAFile { .. })));
}

#[test]
fn an_empty_file_is_taken_for_a_new_one() -> Done {
    let file = place();
    std::fs::write(&file.path, "").expect("the file can be written");
    let mut snapshot = open(&file.path)?;
    assert_eq!(*snapshot.opening(), Opening::New);
    save(&mut snapshot, &[&prompt(1, 5)])?;
    assert_eq!(restore(&mut open(&file.path)?, &prompt(1, 5)), 8);
    Ok(())
}

#[test]
fn a_file_of_a_newer_format_is_refused_by_its_number() -> Done {
    let file = place();
    save(&mut open(&file.path)?, &[&prompt(1, 5)])?;
    let mut bytes = std::fs::read(&file.path).expect("the file is there");
    bytes[16..20].copy_from_slice(&3_u32.to_le_bytes());
    let sum = format::checksum(&bytes[..20]);
    bytes[20..36].copy_from_slice(&sum);
    std::fs::write(&file.path, &bytes).expect("the file can be written");
    assert!(matches!(open(&file.path), Err(SnapshotError::Newer { version: 3, .. })));
    Ok(())
}

#[test]
fn the_limit_holds_and_what_others_continue_stays() -> Done {
    let file = place();
    let limit = |tokens: usize| SnapshotOptions {
        mode: CacheMode::ReadWrite,
        max_bytes: Some((tokens * BYTES_PER_TOKEN) as u64),
    };
    let mut snapshot = open_as(&file.path, limit(60), model("m"))?;
    let mut saving = snapshot.begin_save()?;
    for question in 1..6 {
        add(&mut saving, &prompt(question, 20), &[3, 13, 23], false)?;
    }
    let report = saving.publish()?;
    assert!(report.num_tokens <= 60, "{report:?}");
    let mut again = open(&file.path)?;
    let restored: Vec<usize> = (1..6).map(|question| restore(&mut again, &prompt(question, 20))).collect();
    assert!(restored.iter().all(|num_tokens| *num_tokens >= 3), "{restored:?}");
    assert!(restored[4] >= 13 && restored.contains(&3), "the oldest goes first: {restored:?}");

    // Not even one fits: nothing is kept, and that is no error.
    let mut tight = open_as(&file.path, limit(1), model("m"))?;
    save(&mut tight, &[&prompt(7, 20)])?;
    assert_eq!(open(&file.path)?.num_tokens(), 0);
    Ok(())
}

#[test]
fn garbage_is_given_back() -> Done {
    let file = place();
    let max_bytes = Some(3 << 20);
    let options = SnapshotOptions { mode: CacheMode::ReadWrite, max_bytes };
    let mut snapshot = open_as(&file.path, options, model("m"))?;
    let mut was_compacted = false;
    for question in 0..40 {
        let report = save(&mut snapshot, &[&prompt(question, 10_000)])?;
        was_compacted |= report.is_compacted;
        assert!(report.file_bytes < 5 << 20, "{report:?}");
        assert_eq!(restore(&mut snapshot, &prompt(question, 10_000)), 10_003);
    }
    assert!(was_compacted);
    assert_eq!(restore(&mut open(&file.path)?, &prompt(39, 10_000)), 10_003);
    Ok(())
}

#[test]
fn opening_reads_no_tensors() -> Done {
    let file = place();
    save(&mut open(&file.path)?, &[&prompt(1, 500)])?;
    // With all of its KV gone the file still opens; only reading finds out.
    let index_offset = {
        let bytes = std::fs::read(&file.path).expect("the file is there");
        let roots = [1, 2].map(|place| format::Root::decode(&bytes[place * 4096..]));
        roots.iter().flatten().map(|root| root.index_offset).max().expect("there is a root") as usize
    };
    let mut bytes = std::fs::read(&file.path).expect("the file is there");
    bytes[3 * 16384..index_offset].fill(0);
    bytes[2 * 16384..2 * 16384 + 10].fill(0xaa);
    std::fs::write(&file.path, &bytes).expect("the file can be written");
    let mut damaged = open(&file.path)?;
    assert!(matches!(damaged.opening(), Opening::Restored { num_tokens: 503, .. }));
    assert!(restore(&mut damaged, &prompt(1, 500)) <= 3);
    assert_eq!(damaged.num_damaged(), 1);
    // Saving it anew heals the file.
    save(&mut damaged, &[&prompt(1, 500)])?;
    assert_eq!(restore(&mut open(&file.path)?, &prompt(1, 500)), 503);
    Ok(())
}
