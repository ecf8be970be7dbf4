//! Every operation fails once, and the file is the old one or the new one.

use super::*;
use crate::snapshot::disk::faults;

const OLD: u32 = 1;
const NEW: u32 = 2;

/// What a save does to a file that holds `OLD`.
type Change = fn(&Path) -> Result<(), SnapshotError>;

fn add_new(path: &Path) -> Result<(), SnapshotError> {
    let mut snapshot = open(path)?;
    save(&mut snapshot, &[&prompt(OLD, 30), &prompt(NEW, 30)]).map(drop)
}

fn compact(path: &Path) -> Result<(), SnapshotError> {
    let mut snapshot = open(path)?;
    let mut saving = snapshot.begin_save()?;
    add(&mut saving, &prompt(NEW, 30), &[3, 33], false)?;
    saving.publish_compacted(true).map(drop)
}

fn save_twice(path: &Path) -> Result<(), SnapshotError> {
    let mut snapshot = open(path)?;
    // The first may fail, the second must then find its way.
    let first = save(&mut snapshot, &[&prompt(OLD, 30)]);
    save(&mut snapshot, &[&prompt(OLD, 30), &prompt(NEW, 30)])?;
    first.map(drop)
}

/// Fails the `n`-th operation of a change, for every `n`, and looks at what is left.
fn fail_each(has_old: bool, change: Change) {
    for (tears_writes, is_crash) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut num_failed = 0;
        loop {
            let file = place();
            if has_old {
                save(&mut open(&file.path).expect("a new file"), &[&prompt(OLD, 30)])
                    .expect("the old content");
            }
            faults::fail_after(num_failed, tears_writes, is_crash);
            let changed = change(&file.path);
            let num_operations = faults::end();
            let what = format!("operation {num_failed}, torn {tears_writes}, crash {is_crash}: {changed:?}");

            let mut left = open(&file.path).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(
                !matches!(left.opening(), Opening::Damaged { .. } | Opening::OtherModel { .. }),
                "{what}: {:?}",
                left.opening()
            );
            if has_old {
                assert_eq!(restore(&mut left, &prompt(OLD, 30)), 33, "{what}");
            }
            let new = restore(&mut left, &prompt(NEW, 30));
            assert!(new == 33 || new == if has_old { 3 } else { 0 }, "{what}: {new}");
            if changed.is_ok() {
                assert_eq!(new, 33, "{what}");
            }
            // And it can be gone on with.
            save(&mut left, &[&prompt(OLD, 30), &prompt(NEW, 30)])
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            let mut healed = open(&file.path).expect("it opens");
            assert_eq!(restore(&mut healed, &prompt(NEW, 30)), 33, "{what}");
            assert_eq!(restore(&mut healed, &prompt(OLD, 30)), 33, "{what}");
            let folder = file.path.parent().expect("the file is in a folder");
            let num_files = std::fs::read_dir(folder).expect("the folder can be read").count();
            assert_eq!(num_files, 1, "{what}: no temporary file is left");
            if num_operations <= num_failed {
                assert!(changed.is_ok(), "{what}: nothing has failed");
                break;
            }
            num_failed += 1;
        }
        assert!(num_failed > 8, "only {num_failed} operations");
    }
}

#[test]
fn in_a_first_save() {
    fail_each(false, add_new);
}

#[test]
fn in_a_save_that_adds() {
    fail_each(true, add_new);
}

#[test]
fn in_a_compaction() {
    fail_each(true, compact);
}

#[test]
fn in_a_save_that_another_follows() {
    fail_each(true, save_twice);
}

#[test]
fn a_failed_export_changes_nothing() {
    let file = place();
    let mut snapshot = open(&file.path).expect("a new file");
    save(&mut snapshot, &[&prompt(OLD, 30)]).expect("the old content");
    let mut saving = snapshot.begin_save().expect("a save");
    let place = Place { parent: None, tokens: &[7, 8], tier: Tier::User };
    assert!(saving.add(place, |_, _| Err("out of memory".to_owned())).is_err());
    drop(saving);
    save(&mut snapshot, &[&prompt(NEW, 30)]).expect("the next save goes on");
    let mut again = open(&file.path).expect("it opens");
    assert_eq!(restore(&mut again, &prompt(OLD, 30)), 33);
    assert_eq!(restore(&mut again, &prompt(NEW, 30)), 33);
}
