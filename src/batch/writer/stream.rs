//! Results into a pipe, a terminal or a device, in input order.
//!
//! Owns holding back what finished before its turn, in unnamed temporary files, so that memory
//! does not grow. A closed pipe ends the writing quietly.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_getfl};

use super::super::error::BatchError;
use super::super::paths::Inputs;
use super::order_index::{Extent, OrderIndex};
use super::published::simple_line;
use super::{Flow, Published, input_that_is};

pub(super) struct StreamOutput {
    /// Whether records become flat objects.
    pub is_simple: bool,
    out: File,
    name: String,
    /// Index of the result whose turn it is.
    next: u64,
    held: Option<Held>,
    num_results: u64,
    flow: Flow,
}

/// Results that finished before their turn.
struct Held {
    data: File,
    end: u64,
    index: OrderIndex,
    num_results: u64,
}

impl StreamOutput {
    /// Writes to standard output, past Rust's own buffer.
    ///
    /// With `>> input` a run would read its own results and never end: refused.
    pub fn stdout(inputs: &Inputs) -> Result<Self, BatchError> {
        let name = "<stdout>".to_owned();
        let out: File = match io::stdout().as_fd().try_clone_to_owned() {
            Ok(descriptor) => descriptor.into(),
            Err(source) => return Err(BatchError::WriteStream { name, source }),
        };
        if was_closed(&out) {
            return Err(BatchError::StdoutClosed);
        }
        match input_that_is(inputs, || out.metadata()) {
            Some(input) => Err(BatchError::OutputIsInput { output: "-".into(), input }),
            None => Ok(Self::new(out, name)),
        }
    }

    /// Writes to a FIFO or a device; waits for a FIFO's reader.
    pub fn open(path: &Path) -> Result<Self, BatchError> {
        match OpenOptions::new().write(true).open(path) {
            Ok(out) => Ok(Self::new(out, path.display().to_string())),
            Err(source) => Err(BatchError::CreateOutput { path: path.into(), source }),
        }
    }

    fn new(out: File, name: String) -> Self {
        Self { is_simple: false, out, name, next: 0, held: None, num_results: 0, flow: Flow::Open }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn write(&mut self, index: u64, line: &str) -> Result<Flow, BatchError> {
        let bytes = match self.is_simple {
            true => simple_line(line.as_bytes()).map_err(hold_error)?,
            false => [line.as_bytes(), b"\n"].concat(),
        };
        if self.flow == Flow::Closed {
            return Ok(Flow::Closed);
        }
        if index != self.next {
            self.hold(index, &bytes)?;
            return Ok(self.flow);
        }
        self.emit(&bytes)?;
        self.next += 1;
        while let Some(bytes) = self.take_held(self.next)? {
            self.emit(&bytes)?;
            self.next += 1;
        }
        Ok(self.flow)
    }

    /// Writes what is still held, passing over what never came.
    pub fn finish(mut self) -> Result<Published, BatchError> {
        while self.flow == Flow::Open && self.held.as_ref().is_some_and(|held| held.num_results > 0) {
            if let Some(bytes) = self.take_held(self.next)? {
                self.emit(&bytes)?;
            }
            self.next += 1;
        }
        Ok(Published { place: self.name, num_results: self.num_results, flow: self.flow })
    }

    fn emit(&mut self, bytes: &[u8]) -> Result<(), BatchError> {
        if self.flow == Flow::Closed {
            return Ok(());
        }
        match self.out.write_all(bytes) {
            Ok(()) => self.num_results += 1,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.flow = Flow::Closed,
            Err(source) => return Err(BatchError::WriteStream { name: self.name.clone(), source }),
        }
        Ok(())
    }

    fn hold(&mut self, index: u64, bytes: &[u8]) -> Result<(), BatchError> {
        if self.held.is_none() {
            self.held = Some(Held::create().map_err(hold_error)?);
        }
        let held = self.held.as_mut().expect("created just above");
        held.put(index, bytes).map_err(hold_error)
    }

    fn take_held(&mut self, index: u64) -> Result<Option<Vec<u8>>, BatchError> {
        match &mut self.held {
            Some(held) if held.num_results > 0 => held.take(index).map_err(hold_error),
            _ => Ok(None),
        }
    }
}

/// Whether standard output was closed when the process began: Rust's runtime puts `/dev/null` there, opened to be
/// read, too, as nobody opens it who means to throw results away.
fn was_closed(out: &File) -> bool {
    let is_null = match (out.metadata(), fs::metadata("/dev/null")) {
        (Ok(out), Ok(null)) => out.file_type().is_char_device() && out.rdev() == null.rdev(),
        _ => false,
    };
    is_null && fcntl_getfl(out).is_ok_and(|flags| flags.contains(OFlags::RDWR))
}

impl Held {
    fn create() -> io::Result<Self> {
        let folder = env::temp_dir();
        let index = OrderIndex::create_in(&folder)?;
        Ok(Self { data: tempfile::tempfile_in(&folder)?, end: 0, index, num_results: 0 })
    }

    fn put(&mut self, index: u64, bytes: &[u8]) -> io::Result<()> {
        self.data.write_all_at(bytes, self.end)?;
        let num_bytes = bytes.len() as u64;
        self.index.set(index, Extent { offset: self.end, num_bytes })?;
        self.end += num_bytes;
        self.num_results += 1;
        Ok(())
    }

    /// Takes a result out; callers ask for each index once.
    fn take(&mut self, index: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(extent) = self.index.get(index)? else { return Ok(None) };
        let mut bytes = vec![0; usize::try_from(extent.num_bytes).map_err(io::Error::other)?];
        self.data.read_exact_at(&mut bytes, extent.offset)?;
        self.num_results -= 1;
        if self.num_results == 0 {
            // Nothing of the data is needed any more: the disk space goes back.
            self.data.set_len(0)?;
            self.end = 0;
        }
        Ok(Some(bytes))
    }
}

fn hold_error(source: io::Error) -> BatchError {
    BatchError::Hold { folder: env::temp_dir(), source }
}
