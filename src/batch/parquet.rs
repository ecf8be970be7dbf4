//! Parquet files as lines of JSON, a row on each.
//!
//! Owns what a cell of each type is in JSON. What is no number, text, list or struct is text, as the file's own tools
//! print it; bytes are base64; a number that JSON does not have (NaN, the infinities) is null, as pandas writes it.

use std::fmt::Debug;
use std::fs::File;
use std::io::{self, BufRead};
use std::path::Path;

use base64::{Engine, prelude::BASE64_STANDARD};
use parquet::data_type::AsBytes;
use parquet::file::reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Number, Value};

use crate::panics::contained;

/// What a file of this kind begins with.
pub(super) const MAGIC: &[u8] = b"PAR1";

/// The rows of one file.
pub(super) struct ParquetLines {
    rows: RowIter<'static>,
}

impl ParquetLines {
    /// Opens `path` if it is a regular file; what comes from elsewhere is kept in a temporary file first, since what
    /// such a file holds is written at its end.
    pub fn open(source: &mut impl BufRead, path: Option<&Path>) -> io::Result<Self> {
        let regular = path.filter(|path| path.is_file());
        let file = match regular {
            Some(path) => File::open(path)?,
            None => {
                let mut file = tempfile::tempfile()?;
                io::copy(source, &mut file)?;
                file
            }
        };
        let reader = guarded(|| SerializedFileReader::new(file))?;
        let rows = guarded(|| Ok(RowIter::from_file_into(Box::new(reader))))?;
        Ok(Self { rows })
    }
}

impl Iterator for ParquetLines {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        // A time that no calendar has is a panic, too.
        let row = guarded(|| Ok(self.rows.next().transpose()?.map(object))).transpose()?;
        Some(row.map(|row| format!("{row}\n").into_bytes()))
    }
}

/// What the reader of such files makes of a damaged one: it may panic.
fn guarded<T>(read: impl FnOnce() -> parquet::errors::Result<T>) -> io::Result<T> {
    let told = match contained(read) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "its parts do not fit together".to_owned(),
    };
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("the Parquet file cannot be read: {told}")))
}

fn object(row: Row) -> Value {
    let members = row.into_columns().into_iter().map(|(name, field)| (name, json(field)));
    Value::Object(members.collect())
}

fn json(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(truth) => Value::Bool(truth),
        Field::Byte(number) => number.into(),
        Field::Short(number) => number.into(),
        Field::Int(number) => number.into(),
        Field::Long(number) => number.into(),
        Field::UByte(number) => number.into(),
        Field::UShort(number) => number.into(),
        Field::UInt(number) => number.into(),
        Field::ULong(number) => number.into(),
        // As short as it can be written, not with the digits that it has as a larger float.
        Field::Float16(number) => float(number.to_f32()),
        Field::Float(number) => float(number),
        Field::Double(number) => float(number),
        Field::Str(text) => Value::String(text),
        Field::Bytes(bytes) => Value::String(BASE64_STANDARD.encode(bytes.as_bytes())),
        Field::Group(row) => object(row),
        Field::ListInternal(list) => list.elements().iter().cloned().map(json).collect(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter().cloned();
            let members = entries.map(|(key, value)| match json(key) {
                Value::String(key) => (key, json(value)),
                key => (key.to_string(), json(value)),
            });
            Value::Object(members.collect::<Map<String, Value>>())
        }
        text => Value::String(text.to_string()),
    }
}

/// With a point in it, so that it is read as a float; nothing where it is none that JSON has.
fn float(number: impl Debug) -> Value {
    format!("{number:?}").parse::<Number>().map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn folder() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/parquet")
    }

    fn read(mut source: impl BufRead, path: Option<&Path>) -> io::Result<String> {
        let lines = ParquetLines::open(&mut source, path)?.collect::<io::Result<Vec<_>>>()?;
        Ok(String::from_utf8(lines.concat()).expect("JSON is text"))
    }

    fn rows(text: &str) -> Vec<Value> {
        text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
    }

    /// As pyarrow wrote them (scripts/make_parquet_fixture.py), from a file and from a pipe.
    #[test]
    fn rows_of_all_kinds_of_cells_are_what_was_written() {
        let expected = rows(&std::fs::read_to_string(folder().join("rows.jsonl")).expect("it is there"));
        for name in ["rows.zstd.parquet", "rows.snappy.parquet", "rows.lz4.parquet"] {
            let path = folder().join(name);
            let nothing = BufReader::new(io::empty());
            assert_eq!(rows(&read(nothing, Some(&path)).expect("it is sound")), expected, "{name}");
            let bytes = std::fs::read(&path).expect("it is there");
            assert_eq!(rows(&read(&bytes[..], None).expect("it is sound")), expected, "{name}, piped");
        }
    }

    #[test]
    fn a_damaged_file_is_an_error_or_other_rows() {
        let bytes = std::fs::read(folder().join("rows.snappy.parquet")).expect("it is there");
        for num_bytes in [4, 8, 12, bytes.len() / 2, bytes.len() - 1] {
            let told = read(&bytes[..num_bytes], None).expect_err("its end is missing").to_string();
            assert!(told.starts_with("the Parquet file cannot be read: "), "{told}");
        }
        for place in (4..bytes.len()).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[place] ^= 0x55;
            let _ = read(&damaged[..], None);
        }
    }
}
