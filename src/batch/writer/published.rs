//! What the records of a run become when they are published as a file: their format, and whether it is packed.
//!
//! Owns both, and that a table's columns are those of all its rows. Records come in order from their file; where
//! they lie is `file`'s business.

use std::io::{self, Write};
use std::path::Path;

use flate2::{Compression, write::GzEncoder};
use serde_json::{Map, Value};

use super::super::error::BatchError;
use super::super::shape::{Columns, OutputFormat, flat};

/// How a file of results is published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PublishedForm {
    format: OutputFormat,
    is_gzip: bool,
}

impl PublishedForm {
    /// By the format that is asked for and the file's name.
    pub fn of(format: OutputFormat, output: &Path) -> Result<Self, BatchError> {
        let ending = output.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
        match ending.as_deref() {
            Some("zst") => Err(BatchError::WritesNoZstd { output: output.into() }),
            ending => Ok(Self { format, is_gzip: ending == Some("gz") }),
        }
    }

    /// Whether the records are published as they are.
    pub fn is_plain(self) -> bool {
        self == Self::default()
    }

    /// Writes what the records become; `for_each` hands out all of them in order, as often as it is called.
    pub fn write(
        self,
        mut for_each: impl FnMut(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>,
        to: &mut dyn Write,
    ) -> io::Result<()> {
        let mut columns = Columns::default();
        if self.format == OutputFormat::Csv {
            for_each(&mut |line| columns.add(&flat_of(line)?))?;
        }
        if !self.is_gzip {
            return self.write_records(&mut for_each, &columns, to);
        }
        let mut packed = GzEncoder::new(to, Compression::default());
        self.write_records(&mut for_each, &columns, &mut packed)?;
        packed.finish().map(drop)
    }

    fn write_records(
        self,
        for_each: &mut impl FnMut(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>,
        columns: &Columns,
        to: &mut dyn Write,
    ) -> io::Result<()> {
        match self.format {
            OutputFormat::Openai => for_each(&mut |line| to.write_all(line)),
            OutputFormat::Simple => for_each(&mut |line| to.write_all(&simple_line(line)?)),
            OutputFormat::Csv => {
                let mut table = csv::Writer::from_writer(to);
                table.write_record(columns.names())?;
                for_each(&mut |line| Ok(table.write_record(columns.row(&flat_of(line)?))?))?;
                table.flush()
            }
        }
    }
}

/// A record's line as that of a flat object.
pub(super) fn simple_line(line: &[u8]) -> io::Result<Vec<u8>> {
    let mut simple = Value::from(flat_of(line)?).to_string().into_bytes();
    simple.push(b'\n');
    Ok(simple)
}

fn flat_of(line: &[u8]) -> io::Result<Map<String, Value>> {
    Ok(flat(&serde_json::from_slice(line).map_err(io::Error::other)?))
}
