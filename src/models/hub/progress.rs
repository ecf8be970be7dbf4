//! What a person sees of a download, on standard error.
//!
//! Owns bars on a terminal and plain lines elsewhere. Nothing here can fail: a closed standard
//! error must not end a download.

use std::path::Path;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::terminal::{can_redraw, eprint_line, shown};

/// How downloads are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Quiet,
    Lines,
    Bars,
}

/// Shows one file's way into the cache.
pub(super) struct FileProgress {
    view: View,
}

enum View {
    Quiet,
    Lines { name: String, size_bytes: Option<u64>, num_bytes: u64 },
    Bar(ProgressBar),
}

impl Progress {
    /// Chooses bars for a terminal and plain lines for a log.
    pub(super) fn new(quiet: bool) -> Self {
        match (quiet, can_redraw()) {
            (true, _) => Self::Quiet,
            (false, true) => Self::Bars,
            (false, false) => Self::Lines,
        }
    }

    /// Says something that concerns the download.
    pub(super) fn note(self, message: &str) {
        if self != Self::Quiet {
            eprint_line(message);
        }
    }

    /// Says how much there is to fetch, and where it will lie.
    pub(super) fn announce(self, repo: &str, num_files: usize, num_bytes: u64, cache_dir: &Path) {
        let files = if num_files == 1 { "file" } else { "files" };
        let (size, dir) = (HumanBytes(num_bytes), cache_dir.display());
        self.note(&format!("fetching {num_files} {files} ({size}) of {repo} into {dir}"));
    }

    /// Begins to show a file; a size that nobody knows shows as bytes alone.
    pub(super) fn start(self, name: &str, size_bytes: Option<u64>) -> FileProgress {
        let view = match self {
            Self::Quiet => View::Quiet,
            Self::Lines => {
                if has_lines_on_its_way(size_bytes) {
                    eprint_line(&format!("downloading {name}"));
                }
                View::Lines { name: name.to_string(), size_bytes, num_bytes: 0 }
            }
            Self::Bars => {
                let template = match size_bytes {
                    Some(_) => "{msg} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                    None => "{msg} {bytes} {bytes_per_sec}",
                };
                let style = ProgressStyle::with_template(template).expect("the templates are well-formed");
                let bar = size_bytes.map_or_else(ProgressBar::no_length, ProgressBar::new);
                View::Bar(bar.with_style(style.progress_chars("=> ")).with_message(shown(name).into_owned()))
            }
        };
        FileProgress { view }
    }
}

impl FileProgress {
    /// Shows how many bytes are here.
    pub(super) fn set(&mut self, num_bytes: u64) {
        match &mut self.view {
            View::Quiet => {}
            View::Bar(bar) => bar.set_position(num_bytes),
            View::Lines { name, size_bytes, num_bytes: shown_bytes } => {
                let now = tenths(num_bytes, *size_bytes);
                if has_lines_on_its_way(*size_bytes) && now > tenths(*shown_bytes, *size_bytes) && now < 10 {
                    eprint_line(&format!("downloading {name}: {now}0% ({})", HumanBytes(num_bytes)));
                }
                *shown_bytes = num_bytes;
            }
        }
    }

    /// Says something about the file without tearing its bar apart.
    pub(super) fn note(&self, message: &str) {
        match &self.view {
            View::Quiet => {}
            View::Bar(bar) => bar.suspend(|| eprint_line(message)),
            View::Lines { .. } => eprint_line(message),
        }
    }

    /// Shows that the file is there.
    pub(super) fn finish(self) {
        match self.view {
            View::Quiet => {}
            View::Bar(bar) => bar.finish(),
            View::Lines { name, num_bytes, .. } => {
                eprint_line(&format!("downloaded {name} ({})", HumanBytes(num_bytes)));
            }
        }
    }
}

/// Whether a file is large enough for lines before it is there.
fn has_lines_on_its_way(size_bytes: Option<u64>) -> bool {
    const MIN_BYTES: u64 = 64 << 20;
    size_bytes.is_none_or(|size| size >= MIN_BYTES)
}

/// How many tenths of a file are here.
fn tenths(num_bytes: u64, size_bytes: Option<u64>) -> u64 {
    match size_bytes {
        Some(size) if size > 0 => num_bytes.min(size).saturating_mul(10) / size,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenths_hold_at_the_edges() {
        assert_eq!(tenths(5, Some(10)), 5);
        assert_eq!(tenths(0, Some(0)), 0);
        assert_eq!(tenths(99, Some(10)), 10);
        assert_eq!(tenths(99, None), 0);
    }

    #[test]
    fn both_kinds_of_bar_have_a_style() {
        for size_bytes in [None, Some(3)] {
            let mut bar = Progress::Bars.start("f", size_bytes);
            bar.set(2);
            bar.finish();
        }
    }
}
