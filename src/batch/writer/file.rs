//! Results into a regular file that appears whole.
//!
//! Owns `OUTPUT.partial`, which is valid JSONL at any moment, and its publication as OUTPUT: a
//! rename where the results finished in input order, else a copy in order through the index on
//! disk. Holds a lock on the partial file, so that two runs cannot take each other's. The manifest beside
//! it lets a later run go on from it; what that keeps is found by `earlier`.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::super::error::BatchError;
use super::super::input_lines::LineSpace;
use super::super::paths::Inputs;
use super::super::reader::RequestReader;
use super::earlier::{Earlier, Kept, Resume};
use super::manifest::Manifest;
use super::order_index::{Extent, OrderIndex};
use super::published::PublishedForm;
use super::{Flow, Published, input_that_is, is_same_file};
use crate::new_file::{create_beside, folder_of, remove_leftovers};

/// How many results of earlier, killed runs are kept beside the output.
const MAX_LEFTOVERS: u32 = 10_000;

pub(super) struct FileOutput {
    output: PathBuf,
    partial_path: PathBuf,
    partial: File,
    /// Length of the partial file up to its last complete line.
    end: u64,
    index: OrderIndex,
    num_results: u64,
    /// One past the index written last, while all came in ascending order and nothing else is in the file.
    next_in_order: Option<u64>,
    /// What is to become of the partial file is done.
    is_settled: bool,
    /// What the records become at last.
    pub form: PublishedForm,
}

impl FileOutput {
    /// Opens the partial file. What an earlier run has left in it is kept aside, unless this one goes on from
    /// there.
    pub fn create(
        output: PathBuf,
        inputs: &Inputs,
        goes_on: bool,
    ) -> Result<(Self, Vec<String>), BatchError> {
        let folder = folder_of(&output);
        if !folder.is_dir() {
            return Err(BatchError::OutputFolderMissing { folder: folder.into(), output });
        }
        let partial_path = partial_path(&output);
        let is_input = |path: &Path| input_that_is(inputs, || fs::metadata(path));
        let ours = [output.clone(), partial_path.clone(), records_path(&output)];
        if let Some(input) = ours.iter().find_map(|path| is_input(path)) {
            return Err(BatchError::OutputIsInput { output, input });
        }
        let mut warnings = Vec::new();
        let mut partial = open_partial(&partial_path)?;
        // What was to become the output of a run that was killed over it.
        remove_leftovers(&output);
        if has_content(&partial) && !goes_on {
            let aside = move_aside(&partial_path)?;
            warnings.push(format!(
                "{} held results of a run that did not end; they are now in {}. --resume goes on from there \
                 instead",
                partial_path.display(),
                aside.display()
            ));
            partial = open_partial(&partial_path)?;
        }
        let index = OrderIndex::create_in(folder)
            .map_err(|source| BatchError::CreateOutput { path: folder.join("a temporary file"), source })?;
        let file = Self {
            output,
            partial_path,
            partial,
            end: 0,
            index,
            num_results: 0,
            next_in_order: Some(0),
            is_settled: false,
            form: PublishedForm::default(),
        };
        Ok((file, warnings))
    }

    /// Says what the results will be made with, before the first of them.
    pub fn begin(&mut self, manifest: &Manifest) -> Result<(), BatchError> {
        let path = manifest_path(&self.partial_path);
        let written = manifest.write(&path, &self.output);
        written.map_err(|source| BatchError::CreateOutput { path, source })
    }

    /// Takes over what an earlier run has left: in the partial file, else, where that run has ended, in OUTPUT
    /// or, if that has other than records, in OUTPUT.records.
    /// `reader` reads the inputs from their start.
    pub fn resume(
        &mut self,
        manifest: &Manifest,
        resume: Resume,
        reader: &mut RequestReader,
        space: &LineSpace,
    ) -> Result<Kept, BatchError> {
        // One without results tells of a run that has begun all the same: what is in OUTPUT is older.
        let is_partial = has_content(&self.partial) || manifest_path(&self.partial_path).exists();
        let published = self.published_records();
        let left = if is_partial { self.partial_path.clone() } else { published };
        if left != self.output && !left.exists() && has_results(&self.output) && !resume.is_forced {
            // Its records are gone, and what it has cannot be held to the lines that it answers.
            let manifest = manifest_path(&left);
            let source = io::ErrorKind::NotFound.into();
            return Err(BatchError::NoManifest { manifest, results: self.output.clone(), source });
        }
        if has_results(&left) {
            self.check_manifest(manifest, &left, resume)?;
            if !is_partial {
                let copied = File::open(&left).and_then(|mut from| io::copy(&mut from, &mut &self.partial));
                copied.map_err(|source| self.not_written(source))?;
            }
        }
        let kept = self.keep(&left, resume, reader, space);
        if kept.is_err() && !is_partial {
            // It is still where it was.
            self.partial.set_len(0).map_err(|source| self.not_written(source))?;
        }
        let (kept, end) = kept?;
        // A line that a kill has cut off.
        self.partial.set_len(end).map_err(|source| self.not_written(source))?;
        self.end = end;
        self.num_results = kept.num_kept();
        // What is not kept is in the file all the same, so publishing takes a copy.
        self.next_in_order = (end == 0).then_some(0);
        self.begin(manifest)?;
        Ok(kept)
    }

    /// Finds which results of the partial file, which come from `left`, are kept; and where the last of all ends.
    fn keep(
        &mut self,
        left: &Path,
        resume: Resume,
        reader: &mut RequestReader,
        space: &LineSpace,
    ) -> Result<(Kept, u64), BatchError> {
        let earlier = Earlier::read(&self.partial, left, folder_of(&self.output), space)?;
        let index = &mut self.index;
        let kept = earlier.keep(&self.partial, reader, resume, |line, extent| index.set(line, extent))?;
        Ok((kept, earlier.end))
    }

    fn check_manifest(&self, manifest: &Manifest, left: &Path, resume: Resume) -> Result<(), BatchError> {
        if resume.is_forced {
            return Ok(());
        }
        let path = manifest_path(left);
        let earlier = Manifest::read(&path).map_err(|source| BatchError::NoManifest {
            manifest: path,
            results: left.into(),
            source,
        })?;
        let differences = manifest.differences(&earlier);
        if differences.is_empty() {
            return Ok(());
        }
        Err(BatchError::RunChanged { results: left.into(), differences })
    }

    fn not_written(&self, source: io::Error) -> BatchError {
        BatchError::WriteOutput { path: self.partial_path.clone(), num_kept: self.num_results, source }
    }

    pub fn partial_path(&self) -> &Path {
        &self.partial_path
    }

    pub fn write(&mut self, index: u64, line: &str) -> Result<(), BatchError> {
        self.append(index, line).map_err(|source| {
            // A line cut short by a full disk would spoil the file; a device cannot be cut.
            let _ = self.partial.set_len(self.end);
            BatchError::WriteOutput { path: self.partial_path.clone(), num_kept: self.num_results, source }
        })
    }

    fn append(&mut self, index: u64, line: &str) -> io::Result<()> {
        let bytes = [line.as_bytes(), b"\n"].concat();
        self.partial.write_all(&bytes)?;
        let num_bytes = bytes.len() as u64;
        self.index.set(index, Extent { offset: self.end, num_bytes })?;
        self.end += num_bytes;
        self.num_results += 1;
        self.next_in_order = self.next_in_order.filter(|&next| index >= next).map(|_| index + 1);
        Ok(())
    }

    /// Makes the results OUTPUT, in order.
    pub fn publish(mut self, keeps_manifest: bool) -> Result<Published, BatchError> {
        let is_partial_left = self.move_to_output().map_err(|source| BatchError::Publish {
            output: self.output.clone(),
            partial: self.partial_path.clone(),
            num_kept: self.num_results,
            source,
        })?;
        self.is_settled = true;
        // The results are safe: what becomes of records and manifest is not worth an error.
        let records = self.published_records();
        let (from, to) = (manifest_path(&self.partial_path), manifest_path(&records));
        let _ = if keeps_manifest { fs::rename(&from, &to) } else { fs::remove_file(&to) };
        let _ = fs::remove_file(&from);
        if !self.form.is_plain() && !keeps_manifest {
            let _ = fs::remove_file(&records);
        }
        if is_partial_left {
            let is_kept = keeps_manifest && !self.form.is_plain();
            let _ = if is_kept {
                fs::rename(&self.partial_path, &records)
            } else {
                fs::remove_file(&self.partial_path)
            };
        }
        Ok(self.published_at(&self.output))
    }

    /// Leaves the results where they are. Where there are none, the empty file tells a later run that this one
    /// had begun, lest it takes an older OUTPUT for what this one has left.
    pub fn keep_partial(mut self) -> Result<Published, BatchError> {
        self.is_settled = manifest_path(&self.partial_path).exists() && self.output.exists();
        Ok(self.published_at(&self.partial_path))
    }

    pub fn output(&self) -> &Path {
        &self.output
    }

    /// Where records are kept beside or as OUTPUT.
    fn published_records(&self) -> PathBuf {
        if self.form.is_plain() { self.output.clone() } else { records_path(&self.output) }
    }

    fn published_at(&self, path: &Path) -> Published {
        Published { place: path.display().to_string(), num_results: self.num_results, flow: Flow::Open }
    }

    /// Returns whether the partial file is still there.
    fn move_to_output(&mut self) -> io::Result<bool> {
        let is_output = self.next_in_order.is_some() && self.form.is_plain();
        if is_output {
            self.partial.sync_all()?;
            fs::rename(&self.partial_path, &self.output)?;
        } else {
            self.write_in_order()?;
        }
        // Makes the rename itself durable; some file systems cannot, and then it is done already.
        let _ = File::open(folder_of(&self.output)).and_then(|folder| folder.sync_all());
        Ok(!is_output)
    }

    fn write_in_order(&mut self) -> io::Result<()> {
        let ordered = create_beside(&self.output, 0o666)?;
        let mut writer = BufWriter::with_capacity(1 << 16, ordered.as_file());
        let (partial, index, num_results) = (&self.partial, &mut self.index, self.num_results);
        let mut buffer = Vec::new();
        let for_each = |take: &mut dyn FnMut(&[u8]) -> io::Result<()>| {
            let mut num_copied = 0;
            index.for_each(|extent| {
                num_copied += 1;
                take(read_extent(partial, extent, &mut buffer)?)
            })?;
            assert_eq!(num_copied, num_results, "each index is written once");
            Ok(())
        };
        self.form.write(for_each, &mut writer)?;
        writer.flush()?;
        drop(writer);
        ordered.as_file().sync_all()?;
        ordered.persist(&self.output).map_err(|error| error.error)?;
        Ok(())
    }
}

impl Drop for FileOutput {
    /// Leaves no empty file behind a run that failed before its first result.
    fn drop(&mut self) {
        if !self.is_settled && !has_content(&self.partial) {
            let _ = fs::remove_file(&self.partial_path);
            let _ = fs::remove_file(manifest_path(&self.partial_path));
        }
    }
}

fn read_extent<'b>(from: &File, extent: Extent, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
    let num_bytes = usize::try_from(extent.num_bytes).map_err(io::Error::other)?;
    buffer.resize(num_bytes, 0);
    from.read_exact_at(buffer, extent.offset)?;
    Ok(buffer)
}

fn open_partial(path: &Path) -> Result<File, BatchError> {
    let failed = |source| BatchError::CreateOutput { path: path.into(), source };
    loop {
        // Never truncated: an earlier run's results may be in it. Never through a link, which leads to what is
        // not the output's, nor to a pipe, which would wait for a reader.
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = match options.open(path) {
            Err(_) if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) => {
                return Err(BatchError::PartialNotAFile { partial: path.into() });
            }
            opened => opened.map_err(failed)?,
        };
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(BatchError::PartialNotAFile { partial: path.into() });
        }
        // File systems without locks are served too, without this protection.
        if flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK) {
            return Err(BatchError::OutputInUse { partial: path.into() });
        }
        // Between opening and locking, its owner may have published it: then this is OUTPUT now.
        if is_same_file(file.metadata(), fs::metadata(path)) {
            return Ok(file);
        }
    }
}

fn has_content(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() > 0)
}

fn has_results(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() > 0)
}

fn move_aside(partial: &Path) -> Result<PathBuf, BatchError> {
    let failed = |to: PathBuf, source| BatchError::MoveAside { from: partial.into(), to, source };
    for number in 1..=MAX_LEFTOVERS {
        let aside = with_suffix(partial, &format!(".{number}"));
        if fs::symlink_metadata(&aside).is_ok() {
            continue;
        }
        return match fs::rename(partial, &aside) {
            Ok(()) => {
                // Without it the results are as good, only not to be gone on from.
                let _ = fs::rename(manifest_path(partial), manifest_path(&aside));
                Ok(aside)
            }
            Err(source) => Err(failed(aside, source)),
        };
    }
    let source = io::Error::other("every name up to here is taken; remove what you do not need");
    Err(failed(with_suffix(partial, &format!(".{MAX_LEFTOVERS}")), source))
}

/// Where the results of a run lie until they are published as its output.
pub fn partial_path(output: &Path) -> PathBuf {
    with_suffix(output, ".partial")
}

/// Where the records of a run are kept whose output has another form.
pub fn records_path(output: &Path) -> PathBuf {
    with_suffix(output, ".records")
}

/// Where it is noted what results were made with.
pub fn manifest_path(results: &Path) -> PathBuf {
    with_suffix(results, ".manifest")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
