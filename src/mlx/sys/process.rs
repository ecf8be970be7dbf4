//! The process: its end, its signals, its memory, and files mapped into it.

/// Maps a whole file read-only.
pub(in crate::mlx) fn map_file(path: &std::path::Path) -> std::io::Result<memmap2::Mmap> {
    let file = std::fs::File::open(path)?;
    // SAFETY: the map is only read, through checked parsers; a file that another process changes
    // meanwhile can give wrong bytes, which those parsers treat as any bad input.
    unsafe { memmap2::Mmap::map(&file) }
}

/// Has a part of a mapped file no longer count as this process's memory, until it is read again.
pub(in crate::mlx) fn forget_pages(map: &memmap2::Mmap, first_byte: u64, num_bytes: u64) {
    let (Ok(first), Ok(len)) = (usize::try_from(first_byte), usize::try_from(num_bytes)) else { return };
    if first.checked_add(len).is_none_or(|end| end > map.len()) {
        return;
    }
    // SAFETY: nobody writes to the map, so what is read again is what the file has. Should it fail, the pages stay.
    let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, first, len) };
}

/// Ends the process without any clean-up, which may be waiting for a computation under way.
pub(in crate::mlx) fn exit_at_once(code: u8) -> ! {
    // SAFETY: `_exit` may be called at any time from any thread.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Has a write beyond the limit on the size of files fail, which is told, in place of ending the process.
pub(in crate::mlx) fn ignore_file_size_signal() {
    // SAFETY: no handler is set; the signal's disposition is the process's own.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Most memory this process has had resident so far, in bytes.
pub(in crate::mlx) fn peak_resident_bytes() -> u64 {
    // SAFETY: `getrusage` fills the zeroed struct it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        if libc::getrusage(libc::RUSAGE_SELF, &mut usage) != 0 {
            return 0;
        }
        usage
    };
    let maximum = u64::try_from(usage.ru_maxrss).unwrap_or(0);
    // Linux counts KiB, macOS bytes.
    if cfg!(target_os = "macos") { maximum } else { maximum.saturating_mul(1024) }
}
