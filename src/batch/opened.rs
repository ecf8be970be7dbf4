//! Inputs as streams of lines, however they are packed.
//!
//! Owns taking compression away, and tables: each of their rows becomes a JSON object on a line of its own, which
//! has the number of the line that the row begins on. Tables in Parquet files are `parquet`'s.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use serde_json::{Map, Value};

use super::lines::{DEFAULT_MAX_LINE_BYTES, start_of};
use super::shape::MAX_COLUMNS;
use super::zstd::{self, Frames};

/// What an input holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum InputFormat {
    /// As its name says, .csv and .tsv being tables, and a Parquet file by its content.
    #[default]
    Auto,
    /// One JSON object per line.
    Jsonl,
    /// A table whose first row has the names of its columns.
    Csv,
    /// The same with tabs.
    Tsv,
}

const GZIP: &[u8] = b"\x1f\x8b";

impl InputFormat {
    /// The byte between columns; none where the input is no table.
    fn delimiter(self, path: Option<&Path>) -> Option<u8> {
        let name = path.and_then(Path::file_name).map(|name| name.to_string_lossy().to_ascii_lowercase());
        let name = name.unwrap_or_default();
        let name = [".gz", ".zst"].iter().find_map(|packed| name.strip_suffix(packed)).unwrap_or(&name);
        match self {
            Self::Jsonl => None,
            Self::Csv => Some(b','),
            Self::Tsv => Some(b'\t'),
            Self::Auto if name.ends_with(".csv") => Some(b','),
            Self::Auto if name.ends_with(".tsv") => Some(b'\t'),
            Self::Auto => None,
        }
    }
}

/// Makes lines of what a stream holds; `path` is where it comes from, if that is a file.
pub(super) fn lines_of(
    source: impl BufRead + Send + 'static,
    format: InputFormat,
    path: Option<&Path>,
) -> io::Result<Box<dyn BufRead + Send>> {
    #[cfg(feature = "parquet")]
    let mut source = source;
    #[cfg(feature = "parquet")]
    if format == InputFormat::Auto && start_of(&mut source)?.starts_with(super::parquet::MAGIC) {
        return Ok(rows_as_lines(super::parquet::ParquetLines::open(&mut source, path)?));
    }
    let unpacked = unpacked(source)?;
    Ok(match format.delimiter(path) {
        None => unpacked,
        Some(delimiter) => rows_as_lines(Table::new(unpacked, delimiter)),
    })
}

/// The same of a stream that may be silent: nothing is read of it before the first line is asked for.
pub(super) fn lines_of_stream(
    source: impl BufRead + Send + 'static,
    format: InputFormat,
    path: Option<&Path>,
) -> Box<dyn BufRead + Send> {
    let path = path.map(Path::to_owned);
    Box::new(Deferred::Closed(Some(Box::new(move || lines_of(source, format, path.as_deref())))))
}

/// What is opened when it is first read.
enum Deferred {
    Closed(Option<Box<Opening>>),
    Open(Box<dyn BufRead + Send>),
}

type Opening = dyn FnOnce() -> io::Result<Box<dyn BufRead + Send>> + Send;

impl Deferred {
    fn opened(&mut self) -> io::Result<&mut (dyn BufRead + Send + 'static)> {
        if let Self::Closed(open) = self {
            let open = open.take().ok_or_else(|| io::Error::other("it could not be opened before"))?;
            *self = Self::Open(open()?);
        }
        match self {
            Self::Open(source) => Ok(&mut **source),
            Self::Closed(_) => unreachable!("it has just been opened"),
        }
    }
}

impl Read for Deferred {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.opened()?.read(buffer)
    }
}

impl BufRead for Deferred {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.opened()?.fill_buf()
    }

    fn consume(&mut self, num_bytes: usize) {
        if let Self::Open(source) = self {
            source.consume(num_bytes);
        }
    }
}

fn unpacked(mut source: impl BufRead + Send + 'static) -> io::Result<Box<dyn BufRead + Send>> {
    let start = start_of(&mut source)?;
    if start.starts_with(GZIP) {
        // Several members, as bgzip and pigz write.
        Ok(Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(source))))
    } else if start.starts_with(zstd::MAGIC) {
        Ok(Box::new(BufReader::new(Frames::new(source))))
    } else {
        Ok(Box::new(source))
    }
}

/// A longer row is a mistake as such a line is, such as a quotation mark that is never closed.
const MAX_ROW_BYTES: u64 = DEFAULT_MAX_LINE_BYTES as u64;

/// A source of rows, of which none is read without end.
struct RowSource<R> {
    source: R,
    num_left: u64,
}

impl<R: Read> Read for RowSource<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.num_left == 0 {
            let problem = format!(
                "a row of the table has more than {MAX_ROW_BYTES} bytes; a quotation mark may never be closed"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        let num_bytes = self.source.read(buffer)?;
        self.num_left = self.num_left.saturating_sub(num_bytes as u64);
        Ok(num_bytes)
    }
}

/// A table as lines of JSON.
struct Table<R> {
    reader: csv::Reader<RowSource<R>>,
    columns: Option<Vec<String>>,
    /// Lines that were written.
    num_lines: u64,
}

impl<R: Read> Table<R> {
    fn new(source: R, delimiter: u8) -> Self {
        let reader = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .has_headers(false)
            .flexible(true)
            .from_reader(RowSource { source, num_left: MAX_ROW_BYTES });
        Self { reader, columns: None, num_lines: 0 }
    }

    /// The lines up to the next row, and the row.
    fn next_lines(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut record = csv::StringRecord::new();
        self.reader.get_mut().num_left = MAX_ROW_BYTES;
        let has_row = self.reader.read_record(&mut record).map_err(|error| {
            let line =
                error.position().map_or_else(String::new, |position| format!("line {}: ", position.line()));
            match error.into_kind() {
                csv::ErrorKind::Io(error) => error,
                csv::ErrorKind::Utf8 { err, .. } => {
                    io::Error::new(io::ErrorKind::InvalidData, format!("{line}not valid UTF-8: {err}"))
                }
                kind => io::Error::new(io::ErrorKind::InvalidData, format!("{line}{kind:?}")),
            }
        })?;
        if !has_row {
            return Ok(None);
        }
        // The reader tells where it stood before blank lines; where it stands now is behind the row's own.
        let before = record.position().map_or(1, csv::Position::line);
        let num_within: usize = record.iter().map(|cell| cell.matches('\n').count()).sum();
        let line = before.max(self.reader.position().line().saturating_sub(num_within as u64 + 1));
        let mut text = Vec::new();
        // Up to the line that the row begins on; the row of names is one without a request.
        while self.num_lines + 1 < line {
            text.push(b'\n');
            self.num_lines += 1;
        }
        match &self.columns {
            None if record.len() > MAX_COLUMNS => {
                let problem =
                    format!("the table has {} columns; at most {MAX_COLUMNS} are read", record.len());
                return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
            }
            None => {
                let names = record.iter().map(|name| name.trim_start_matches('\u{feff}').trim().to_owned());
                self.columns = Some(names.collect());
            }
            Some(columns) => text.extend(row_text(columns, &record)),
        }
        text.push(b'\n');
        self.num_lines += 1;
        Ok(Some(text))
    }
}

impl<R: Read> Iterator for Table<R> {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_lines().transpose()
    }
}

/// A row as JSON. One with more or fewer cells than there are columns is no object, so that its line is an error.
fn row_text(columns: &[String], record: &csv::StringRecord) -> Vec<u8> {
    if record.len() != columns.len() {
        let told = format!("{} cells where the table has {} columns", record.len(), columns.len());
        return Value::String(told).to_string().into_bytes();
    }
    let cells = record.iter().map(|cell| Value::String(cell.to_owned()));
    let row: Map<String, Value> = columns.iter().cloned().zip(cells).collect();
    Value::Object(row).to_string().into_bytes()
}

/// Makes one stream of the lines that rows become.
fn rows_as_lines(
    rows: impl Iterator<Item = io::Result<Vec<u8>>> + Send + 'static,
) -> Box<dyn BufRead + Send> {
    Box::new(BufReader::new(RowLines { rows, pending: Cursor::new(Vec::new()) }))
}

struct RowLines<I> {
    rows: I,
    pending: Cursor<Vec<u8>>,
}

impl<I: Iterator<Item = io::Result<Vec<u8>>>> Read for RowLines<I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let num_bytes = self.pending.read(buffer)?;
            if num_bytes > 0 || buffer.is_empty() {
                return Ok(num_bytes);
            }
            match self.rows.next() {
                None => return Ok(0),
                Some(lines) => self.pending = Cursor::new(lines?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(bytes: Vec<u8>, format: InputFormat, name: &str) -> io::Result<String> {
        let mut text = String::new();
        lines_of(Cursor::new(bytes), format, Some(Path::new(name)))?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn a_table_has_a_line_for_each_row_where_the_row_begins() {
        let table = "\u{feff}id,question\n1,\"What,\nwhy?\"\n\n2,é\n3\n";
        let expected = "\n{\"id\":\"1\",\"question\":\"What,\\nwhy?\"}\n\n\n{\"id\":\"2\",\"question\":\"é\"}\n\
                        \"1 cells where the table has 2 columns\"\n";
        assert_eq!(read(table.into(), InputFormat::Auto, "a.csv").expect("it is a table"), expected);
        let tabs = "id\tq\n1\ta,b\n";
        let expected = "\n{\"id\":\"1\",\"q\":\"a,b\"}\n";
        assert_eq!(read(tabs.into(), InputFormat::Auto, "a.TSV").expect("it is a table"), expected);
        assert_eq!(read(tabs.into(), InputFormat::Tsv, "a").expect("it is a table"), expected);
        assert_eq!(read(tabs.into(), InputFormat::Jsonl, "a.tsv").expect("it is text"), tabs);
    }

    /// A packed table of a few megabytes took all memory.
    #[test]
    fn a_row_without_end_and_too_many_columns_are_errors() {
        let endless = io::Cursor::new(b"a\n\"".to_vec()).chain(io::repeat(b'x'));
        let error = lines_of(BufReader::new(endless), InputFormat::Csv, None)
            .and_then(|mut lines| lines.read_to_string(&mut String::new()))
            .expect_err("it has no end");
        assert!(error.to_string().contains("more than 67108864 bytes"), "{error}");
        let wide = "a,".repeat(MAX_COLUMNS + 1);
        let error = read(wide.into(), InputFormat::Csv, "x").expect_err("it is too wide");
        assert!(error.to_string().contains("at most 100000 are read"), "{error}");
    }

    #[test]
    fn compression_is_told_by_content() {
        let packed = |text: &str| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(text.as_bytes()).expect("into memory");
            encoder.finish().expect("into memory")
        };
        let two_members = [packed("{\"a\": 1}\n"), packed("{\"b\": 2}\n")].concat();
        let lines = "{\"a\": 1}\n{\"b\": 2}\n";
        assert_eq!(read(two_members.clone(), InputFormat::Auto, "x").expect("it unpacks"), lines);
        let zstd =
            ruzstd::encoding::compress_to_vec(lines.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(read(zstd, InputFormat::Auto, "x").expect("it unpacks"), lines);
        assert_eq!(
            read(packed("a\n1\n"), InputFormat::Auto, "x.csv.gz").expect("it unpacks"),
            "\n{\"a\":\"1\"}\n"
        );
        let cut = two_members[..two_members.len() - 9].to_vec();
        assert!(read(cut, InputFormat::Auto, "x").is_err());
    }
}
