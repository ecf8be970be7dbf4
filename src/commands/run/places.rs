//! Whether two names are of one file, which need not be there yet.
//!
//! Owns that question and that nothing that a run writes is a file of its model. What else may not be one and the
//! same is said where it is opened.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::bail;

use crate::{
    batch::{OutputPath, manifest_path, partial_path, records_path},
    cli::RunArgs,
};

/// Whether both names are, or would be, of one file.
pub(super) fn is_same_file(path: &Path, other: &Path) -> bool {
    path == other || place_of(path).zip(place_of(other)).is_some_and(|(path, other)| path == other)
}

/// The one name of a file that need not be there yet; its folder must be.
fn place_of(path: &Path) -> Option<PathBuf> {
    if let Ok(place) = fs::canonicalize(path) {
        return Some(place);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Some(fs::canonicalize(folder).ok()?.join(path.file_name()?))
}

/// Checks that the run writes over none of these files, which its model consists of.
pub(super) fn check_model_is_spared(args: &RunArgs, model_files: &[PathBuf]) -> anyhow::Result<()> {
    let mut written: Vec<(&str, PathBuf)> = Vec::new();
    if let OutputPath::File(output) = &args.output {
        let partial = partial_path(output);
        written.extend([("--output", manifest_path(output)), ("--output", manifest_path(&partial))]);
        written.extend([partial, output.clone(), records_path(output)].map(|path| ("--output", path)));
    }
    written.extend(args.report.clone().map(|report| ("--report", report)));
    written.extend(args.report_html.clone().map(|page| ("--report-html", page)));
    for (flag, path) in written {
        if let Some(file) = model_files.iter().find(|file| is_same_file(&path, file)) {
            bail!("{flag} {} would overwrite the model's {}; choose another", path.display(), file.display());
        }
    }
    Ok(())
}
