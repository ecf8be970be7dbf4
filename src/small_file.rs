//! Files of a few mebibytes that strangers may have written: read whole, or not at all.
//!
//! Owns that nothing else is read for one: a pipe or a device, which may have no end and may have no beginning,
//! or what is far larger than such a file is. What the files say is their readers' business.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Reads a regular file of at most so many bytes.
pub(crate) fn read(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let num_bytes = file.metadata()?.len();
    let too_long = || io::Error::other(format!("it is too large: at most {max_bytes} bytes are read"));
    if num_bytes > max_bytes {
        return Err(too_long());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(num_bytes).map_err(io::Error::other)?);
    // It may grow meanwhile, and files of some systems tell no length.
    file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_long());
    }
    Ok(bytes)
}

/// Reads such a file as text.
pub(crate) fn read_text(path: &Path, max_bytes: u64) -> io::Result<String> {
    let bytes = read(path, max_bytes)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))
}

/// Opens a regular file to read; waits for nobody.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is a folder, a pipe or a device, not a file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_or_has_no_end_is_not_read() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("small"), "text").expect("there is room");
        assert_eq!(read_text(&path("small"), 4).expect("it is small enough"), "text");
        assert!(read(&path("small"), 3).expect_err("too large").to_string().contains("at most 3 bytes"));
        std::fs::write(path("binary"), [0xff]).expect("there is room");
        assert!(read_text(&path("binary"), 9).expect_err("no text").to_string().contains("UTF-8"));
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO can be made");
        for odd in [path("fifo"), "/dev/zero".into(), folder.path().into()] {
            let error = read(&odd, 9).expect_err("no regular file").to_string();
            assert!(error.contains("not a file"), "{error}");
        }
        assert_eq!(read(&path("none"), 9).expect_err("nothing there").kind(), io::ErrorKind::NotFound);
    }
}
