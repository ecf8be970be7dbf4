//! The process: its end, its signals, its memory, and files mapped into it.

/// Maps a whole file read-only.
pub(in crate::mlx) fn map_file(path: &std::path::Path) -> std::io::Result<memmap2::Mmap> {
    let file = std::fs::File::open(path)?;
    // SAFETY: the map is only read, through checked parsers; a file that another process changes
    // meanwhile can give wrong bytes, which those parsers treat as any bad input.
    unsafe { memmap2::Mmap::map(&file) }
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
