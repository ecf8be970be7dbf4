//! Looking into cache files and looking after them.

use super::*;

type Done = Result<(), SnapshotError>;

/// A file with a system part, two questions and an answer.
fn written() -> Result<CacheFile, SnapshotError> {
    let file = place();
    let mut snapshot = open(&file.path)?;
    let mut saving = snapshot.begin_save()?;
    add(&mut saving, &prompt(1, 20), &[3, 13, 23], false)?;
    add(&mut saving, &prompt(2, 10), &[3, 13], false)?;
    saving.publish()?;
    Ok(file)
}

#[test]
fn contents_name_every_prefix_with_what_continues_it() -> Done {
    let file = written()?;
    let contents = Contents::read(&file.path)?;
    let entries: Vec<(usize, usize, Tier, usize)> = contents
        .entries
        .iter()
        .map(|entry| (entry.tokens.len(), entry.end, entry.tier, entry.num_below))
        .collect();
    assert_eq!(
        entries,
        [
            (3, 3, Tier::System, 3),
            (10, 13, Tier::User, 1),
            (10, 23, Tier::Assistant, 0),
            (10, 13, Tier::User, 0)
        ]
    );
    assert_eq!(contents.num_tokens(), 33);
    assert_eq!(contents.used_bytes as usize, 33 * BYTES_PER_TOKEN);
    assert_eq!(contents.tiers()[Tier::User], (2, 20, (20 * BYTES_PER_TOKEN) as u64));
    assert_eq!(contents.identity, model("m"));
    assert!(matches!(Contents::read(&file.path.with_extension("none")), Err(SnapshotError::NotThere { .. })));
    Ok(())
}

#[test]
fn verification_names_the_damaged_extent() -> Done {
    let file = written()?;
    assert!(verify(&file.path, |_| {})?.damaged.is_empty());
    let found = open(&file.path)?.find(&prompt(2, 10));
    let offset = found.last().expect("it is there").piece.extents()[0].offset;
    let mut bytes = std::fs::read(&file.path).expect("the file is there");
    bytes[offset as usize + 5] ^= 1;
    std::fs::write(&file.path, bytes).expect("the file can be written");
    let mut num_read = 0;
    let verified = verify(&file.path, |num_bytes| num_read += num_bytes)?;
    assert_eq!(verified.damaged, [offset]);
    assert_eq!((verified.num_extents, verified.num_bytes), (4, num_read));
    Ok(())
}

#[test]
fn pruning_by_tier_age_and_size() -> Done {
    let file = written()?;
    let pruned = prune(&file.path, Pruning { tier: Some(Tier::Assistant), ..Pruning::default() })?;
    assert_eq!((pruned.num_entries_before, pruned.num_entries), (4, 3));
    assert!(pruned.file_bytes < pruned.bytes_before);
    assert_eq!(restore(&mut open(&file.path)?, &prompt(1, 20)), 13);
    // Nothing is as old as that.
    let pruned = prune(&file.path, Pruning { older_than_seconds: Some(3600), ..Pruning::default() })?;
    assert_eq!(pruned.num_entries, 3);
    // The system part is not a leaf: it stays as long as a question does.
    let pruned = prune(&file.path, Pruning { tier: Some(Tier::System), ..Pruning::default() })?;
    assert_eq!(pruned.num_entries, 3);
    let max_bytes = Some(13 * BYTES_PER_TOKEN as u64);
    let pruned = prune(&file.path, Pruning { max_bytes, ..Pruning::default() })?;
    assert_eq!(pruned.num_entries, 2);
    let pruned = prune(&file.path, Pruning { max_bytes: Some(0), ..Pruning::default() })?;
    assert_eq!(pruned.num_entries, 0);
    assert!(open(&file.path).is_ok());
    Ok(())
}

#[test]
fn a_merged_file_has_what_both_have_and_states_too() -> Done {
    let (one, two, merged) = (place(), place(), place());
    let recurrent = || recurrent_model("r");
    save(&mut open_as(&one.path, READ_WRITE, recurrent())?, &[&prompt(1, 20), &prompt(2, 20)])?;
    // Overlaps in the middle of an edge.
    let other = [&prompt(2, 20)[..9], &[4, 4, 4]].concat();
    save(&mut open_as(&two.path, READ_WRITE, recurrent())?, &[&prompt(3, 20), &other])?;
    let report = merge(&[&one.path, &two.path], &merged.path)?;
    assert_eq!(report.num_tokens, 3 + 3 * 20 + 3);
    let mut all = open_as(&merged.path, READ_WRITE, recurrent())?;
    for tokens in [&prompt(1, 20), &prompt(2, 20), &prompt(3, 20), &other] {
        assert_eq!(restore(&mut all, tokens), tokens.len());
    }
    // Into a file that is there, which is added to; and of different models, which is refused.
    merge(&[&one.path, &merged.path], &two.path)?;
    assert_eq!(restore(&mut open_as(&two.path, READ_WRITE, recurrent())?, &prompt(1, 20)), 23);
    save(&mut open(&merged.path.with_extension("other"))?, &[&prompt(1, 5)])?;
    let refused = merge(&[&one.path, &merged.path.with_extension("other")], &merged.path);
    let told = refused.expect_err("they are of different models").to_string();
    let names = [&one.path, &merged.path.with_extension("other")].map(|path| path.display().to_string());
    assert!(
        told.starts_with(&format!("{} and {} are caches of different models (", names[0], names[1])),
        "{told}"
    );
    Ok(())
}
