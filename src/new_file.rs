//! Files that are given their name once they are whole.
//!
//! Owns what they are called until then, and that what a killed process has left of one is found again. What is
//! written into them is their makers' business.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
};

use tempfile::NamedTempFile;

/// Makes a file in the folder of `path`, with what permissions the process's umask leaves of `mode`, that is to
/// take the place of `path` or of one that goes with it; it goes away unless it does.
pub(crate) fn create_beside(path: &Path, mode: u32) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(&prefix(path))
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(folder_of(path))
}

/// Removes what killed processes have left beside `path`; for who holds the lock that their likes hold, too.
pub(crate) fn remove_leftovers(path: &Path) {
    let prefix = prefix(path);
    let Ok(entries) = fs::read_dir(folder_of(path)) else { return };
    for entry in entries.flatten() {
        if entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
            // It takes space and does no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The folder that a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn prefix(path: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(".new-");
    prefix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_process_left_goes_and_nothing_else_does() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("out.jsonl");
        let left = create_beside(&path, 0o600).expect("there is room").keep().expect("it stays").1;
        let others = ["out.jsonl", ".out.jsonl", ".out.jsonl.new", ".other.new-x", "out.jsonl.new-x"];
        for name in others {
            fs::write(folder.path().join(name), "text").expect("there is room");
        }
        assert_eq!(fs::metadata(&left).expect("it is there").permissions().mode() & 0o777, 0o600);
        remove_leftovers(&path);
        assert!(!left.exists());
        assert!(others.iter().all(|name| folder.path().join(name).exists()));
        // Names that are no text, and folders that are not there, are no harm.
        remove_leftovers(Path::new("/no such folder/out.jsonl"));
        remove_leftovers(Path::new(std::ffi::OsStr::from_bytes(b"\xff.jsonl")));
    }
}
