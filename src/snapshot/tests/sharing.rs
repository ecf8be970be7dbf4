//! Several processes, here threads with files of their own, on one cache file.

use std::thread;

use super::*;

#[test]
fn writers_add_to_each_other() -> Result<(), SnapshotError> {
    let file = place();
    let (mut one, mut two) = (open(&file.path)?, open(&file.path)?);
    save(&mut one, &[&prompt(1, 10)])?;
    save(&mut two, &[&prompt(2, 10)])?;
    // The second has taken in what the first had added.
    assert_eq!(restore(&mut two, &prompt(1, 10)), 13);
    assert_eq!(restore(&mut one, &prompt(2, 10)), 3, "the first looks again when it saves");
    let report = save(&mut one, &[&prompt(1, 10), &prompt(3, 10)])?;
    assert_eq!(report.num_new_tokens, 10);
    let mut all = open(&file.path)?;
    for question in 1..4 {
        assert_eq!(restore(&mut all, &prompt(question, 10)), 13);
    }
    Ok(())
}

#[test]
fn a_reader_keeps_what_it_has_opened_whatever_becomes_of_the_file() -> Result<(), SnapshotError> {
    let file = place();
    save(&mut open(&file.path)?, &[&prompt(1, 10)])?;
    let mut reader = open(&file.path)?;
    // Compacted, pruned of what the reader wants, replaced, deleted.
    prune(&file.path, Pruning { tier: Some(Tier::User), ..Pruning::default() })?;
    assert_eq!(restore(&mut reader, &prompt(1, 10)), 13);
    let refresh = SnapshotOptions { mode: CacheMode::Refresh, max_bytes: None };
    save(&mut open_as(&file.path, refresh, model("other"))?, &[&prompt(2, 10)])?;
    assert_eq!(restore(&mut reader, &prompt(1, 10)), 13);
    assert!(matches!(save(&mut reader, &[&prompt(1, 10)]), Err(SnapshotError::OtherModel { .. })));
    std::fs::remove_file(&file.path).expect("the file can be removed");
    assert_eq!(restore(&mut reader, &prompt(1, 10)), 13);
    // A save makes a new file, of what the run has.
    save(&mut reader, &[&prompt(3, 10)])?;
    assert_eq!(restore(&mut open(&file.path)?, &prompt(3, 10)), 13);
    Ok(())
}

/// Checksums are no signature: whoever owns a file can have written anything into it. Only root can give one away,
/// so that others see the half about the mode.
#[test]
fn a_file_of_another_user_is_neither_read_nor_saved_to() -> Result<(), SnapshotError> {
    use std::os::unix::fs::PermissionsExt;
    let file = place();
    save(&mut open(&file.path)?, &[&prompt(1, 10)])?;
    let mut opened_before = open(&file.path)?;
    let why = match std::os::unix::fs::chown(&file.path, Some(4321), None) {
        Ok(()) => "belongs to the user with the number 4321",
        Err(_) => {
            let mode = std::fs::Permissions::from_mode(0o660);
            std::fs::set_permissions(&file.path, mode).expect("it is ours");
            "can be written by others (its mode is 0660)"
        }
    };
    for mode in [CacheMode::ReadWrite, CacheMode::ReadOnly] {
        let refused = open_as(&file.path, SnapshotOptions { mode, max_bytes: None }, model("m"));
        assert!(refused.is_err_and(|error| error.to_string().contains(why)));
    }
    assert!(opened_before.begin_save().is_err_and(|error| error.to_string().contains(why)));
    assert!(merge(&[&file.path, &file.path], &file.path.with_extension("merged")).is_err());
    // Looking is free, and so is replacing it.
    assert_eq!(Contents::read(&file.path)?.num_tokens(), 13);
    let believed = SnapshotOptions { mode: CacheMode::Unsafe, max_bytes: None };
    assert_eq!(restore(&mut open_as(&file.path, believed, model("m"))?, &prompt(1, 10)), 13);
    let refresh = SnapshotOptions { mode: CacheMode::Refresh, max_bytes: None };
    save(&mut open_as(&file.path, refresh, model("m"))?, &[&prompt(2, 10)])?;
    assert_eq!(restore(&mut open(&file.path)?, &prompt(2, 10)), 13);
    Ok(())
}

/// Anybody who can read the file can keep its lock.
#[test]
fn a_lock_is_waited_for_only_so_long() -> Result<(), SnapshotError> {
    let file = place();
    let mut snapshot = open(&file.path)?;
    save(&mut snapshot, &[&prompt(1, 10)])?;
    let held = std::fs::File::open(&file.path).expect("it is there");
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).expect("nobody else has it");
    snapshot.patience.max = std::time::Duration::from_millis(60);
    let has_waited = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = std::sync::Arc::clone(&has_waited);
    snapshot.on_wait(move |_| {
        told.store(true, std::sync::atomic::Ordering::Relaxed);
        true
    });
    let error = save(&mut snapshot, &[&prompt(2, 10)]).expect_err("it is never let go").to_string();
    assert!(error.contains("has kept the lock") && error.contains("fuser"), "{error}");
    assert!(has_waited.load(std::sync::atomic::Ordering::Relaxed));
    drop(held);
    save(&mut snapshot, &[&prompt(2, 10)])?;
    assert_eq!(restore(&mut open(&file.path)?, &prompt(2, 10)), 13);
    Ok(())
}

#[test]
fn two_writers_and_four_readers_at_once() {
    let file = place();
    save(&mut open(&file.path).expect("a new file"), &[&prompt(0, 10)]).expect("it can be saved");
    let path = file.path.as_path();
    thread::scope(|scope| {
        for writer in 0..2 {
            scope.spawn(move || {
                let mut snapshot = open(path).expect("it opens");
                for round in 0..25 {
                    let question = 1 + writer * 100 + round;
                    if round % 8 == 7 {
                        let mut saving = snapshot.begin_save().expect("a save");
                        add(&mut saving, &prompt(question, 10), &[3, 13], false).expect("it can be added");
                        saving.publish_compacted(true).expect("it can be published");
                    } else {
                        save(&mut snapshot, &[&prompt(question, 10)]).expect("it can be saved");
                    }
                    // Its own, and the other's of before its last save.
                    assert_eq!(restore(&mut snapshot, &prompt(question, 10)), 13);
                }
            });
        }
        for _ in 0..4 {
            scope.spawn(move || {
                for round in 0..100 {
                    let mut snapshot = open(path).expect("it opens");
                    assert!(
                        matches!(snapshot.opening(), Opening::Restored { .. }),
                        "{:?}",
                        snapshot.opening()
                    );
                    assert_eq!(restore(&mut snapshot, &prompt(0, 10)), 13, "what was published stays");
                    let question = 1 + round % 25;
                    assert!([3, 13].contains(&restore(&mut snapshot, &prompt(question, 10))));
                }
            });
        }
    });
    let mut all = open(path).expect("it opens");
    for question in (1..26).chain(101..126) {
        assert_eq!(restore(&mut all, &prompt(question, 10)), 13, "question {question}");
    }
}

/// The length of the file was asked for before its roots were read: what was saved in between lay
/// behind that length and was taken for cut off, and the run that had opened it so replaced the file.
#[test]
fn a_file_is_sound_though_it_grows_while_it_is_opened() {
    let file = place();
    let path = file.path.as_path();
    let mut snapshot = open(path).expect("a new file");
    save(&mut snapshot, &[&prompt(0, 10)]).expect("it can be saved");
    thread::scope(|scope| {
        // More readers than cores, so that they are interrupted at any place.
        let readers = [(); 8].map(|()| {
            scope.spawn(|| {
                for _ in 0..300 {
                    let snapshot = open(path).expect("it opens");
                    let opening = snapshot.opening();
                    assert!(matches!(opening, Opening::Restored { .. }), "{opening:?}");
                    assert_eq!(snapshot.older_because(), None);
                }
            })
        });
        for question in 1.. {
            if readers.iter().all(thread::ScopedJoinHandle::is_finished) {
                break;
            }
            save(&mut snapshot, &[&prompt(question % 20, 10)]).expect("it can be saved");
            snapshot.is_dirty = true;
        }
    });
}

#[test]
fn what_has_taken_the_place_of_a_damaged_file_meanwhile_is_added_to() -> Result<(), SnapshotError> {
    let file = place();
    save(&mut open(&file.path)?, &[&prompt(1, 10)])?;
    let mut bytes = std::fs::read(&file.path).expect("the file can be read");
    bytes[4096..3 * 4096].fill(0);
    std::fs::write(&file.path, &bytes).expect("its roots can be damaged");
    let (mut one, mut two) = (open(&file.path)?, open(&file.path)?);
    assert!(matches!(one.opening(), Opening::Damaged { .. }), "{:?}", one.opening());
    save(&mut one, &[&prompt(2, 10)])?;
    save(&mut two, &[&prompt(3, 10)])?;
    let mut all = open(&file.path)?;
    for (question, num_tokens) in [(1, 3), (2, 13), (3, 13)] {
        assert_eq!(restore(&mut all, &prompt(question, 10)), num_tokens, "question {question}");
    }
    Ok(())
}

#[test]
fn writers_that_start_together_make_one_file() {
    for _ in 0..20 {
        let file = place();
        let path = file.path.as_path();
        thread::scope(|scope| {
            for question in 1..5 {
                scope.spawn(move || {
                    let mut snapshot = open(path).expect("it opens");
                    save(&mut snapshot, &[&prompt(question, 5)]).expect("it can be saved");
                });
            }
        });
        let mut all = open(path).expect("it opens");
        for question in 1..5 {
            assert_eq!(restore(&mut all, &prompt(question, 5)), 8);
        }
    }
}

#[test]
fn what_a_run_has_used_counts_as_used_though_others_have_saved_meanwhile() -> Result<(), SnapshotError> {
    let file = place();
    save(&mut open(&file.path)?, &[&prompt(1, 10), &prompt(2, 10)])?;
    let mut one = open(&file.path)?;
    let node = one.find(&prompt(1, 10)).last().expect("it is there").node;
    one.mark_used(node)?;
    save(&mut open(&file.path)?, &[&prompt(3, 10)])?;
    save(&mut one, &[&prompt(4, 10)])?;
    // With room for three questions, the one that nobody has used since goes.
    let max_bytes = Some((3 + 3 * 10) * BYTES_PER_TOKEN as u64);
    prune(&file.path, Pruning { max_bytes, ..Pruning::default() })?;
    let mut left = open(&file.path)?;
    assert_eq!(restore(&mut left, &prompt(1, 10)), 13);
    assert_eq!(restore(&mut left, &prompt(2, 10)), 3);
    Ok(())
}

/// A new file was opened a second time by its name, and whoever held the lock might have tidied that
/// away in between: of writers that start together one now and then could not save.
#[test]
fn a_new_file_is_made_though_another_process_tidies_up() {
    use crate::{new_file::remove_leftovers, snapshot::disk::Disk};
    let file = place();
    let path = file.path.as_path();
    let is_done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                remove_leftovers(path);
            }
        });
        let num_failed = (0..3000).filter(|_| Disk::create_beside(path).is_err()).count();
        is_done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(num_failed, 0);
    });
}
