//! Flags that say how an input is read, and how its rows become requests.
//!
//! Owns their values and what they come to together.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueEnum, ValueHint};

use super::values;
use crate::batch::{InputFormat, ReaderOptions, RowSettings, Rows, Selection, unescaped};

#[derive(Debug, Args)]
#[command(next_help_heading = "Input")]
#[group(skip)]
pub struct InputArgs {
    /// What the input holds; compression with gzip or zstd is found out
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = FormatArg::Auto)]
    pub input_format: FormatArg,

    /// Make each row a user's message by this Jinja template, such as 'Q: {{ question }}\nA:'
    ///
    /// Columns are variables; {{ row[\"a name\"] }} has those whose names are no words. \\n and \\t are a line end and
    /// a tab.
    #[arg(long, value_name = "TEMPLATE", group = "template_of_rows")]
    pub template: Option<String>,

    /// The same from a file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, group = "template_of_rows")]
    pub template_file: Option<PathBuf>,

    /// System prompt of each row, a template as well; @FILE reads it from a file
    #[arg(long, value_name = "TEXT|@FILE", requires = "template_of_rows")]
    pub system: Option<String>,

    /// Send what the template makes as raw text, for models without a chat template
    #[arg(long, requires = "template_of_rows", conflicts_with = "system")]
    pub raw_prompt: bool,

    /// Column that names each row [default: custom_id or id, else the line's number]
    #[arg(long, value_name = "COLUMN", requires = "template_of_rows")]
    pub id_column: Option<String>,

    /// Columns that are parameters of their row, such as max_tokens,temperature
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', requires = "template_of_rows")]
    pub parameters: Vec<String>,

    /// Answer the first N lines alone
    #[arg(long, value_name = "N", conflicts_with_all = ["range", "sample"])]
    pub limit: Option<u64>,

    /// Answer lines A up to B alone, counted from 0, without B; either may be left out
    #[arg(long, value_name = "A:B", value_parser = values::range, conflicts_with = "sample")]
    pub range: Option<(u64, Option<u64>)>,

    /// Answer N lines drawn at random, the same ones for the same --sample-seed
    #[arg(long, value_name = "N")]
    pub sample: Option<u64>,

    /// Seed of --sample
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, requires = "sample")]
    pub sample_seed: u64,
}

/// What an input holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// Parquet files by their content, tables where the name ends in .csv or .tsv, else JSON lines
    Auto,
    /// One JSON object per line
    Jsonl,
    /// A table whose first row has the names of its columns
    Csv,
    /// The same with tabs between columns
    Tsv,
}

impl InputArgs {
    /// How lines are read.
    pub fn options(&self) -> anyhow::Result<ReaderOptions> {
        let selection = match (self.limit, self.range, self.sample) {
            (Some(limit), ..) => Selection::Range(0, Some(limit)),
            (_, Some((start, end)), _) => Selection::Range(start, end),
            (.., Some(num)) => Selection::Sample(num, self.sample_seed),
            _ => Selection::All,
        };
        let format = match self.input_format {
            FormatArg::Auto => InputFormat::Auto,
            FormatArg::Jsonl => InputFormat::Jsonl,
            FormatArg::Csv => InputFormat::Csv,
            FormatArg::Tsv => InputFormat::Tsv,
        };
        Ok(ReaderOptions { selection, format, rows: self.rows()?.map(Arc::new), ..ReaderOptions::default() })
    }

    fn rows(&self) -> anyhow::Result<Option<Rows>> {
        let template = match (&self.template, &self.template_file) {
            (Some(template), _) => unescaped(template),
            (None, Some(path)) => template_text(path)
                .with_context(|| format!("cannot read --template-file {}", path.display()))?,
            (None, None) => return Ok(None),
        };
        let system = match self.system.as_deref().map(|system| (system, system.strip_prefix('@'))) {
            None => None,
            Some((_, Some(path))) => {
                let text = template_text(Path::new(path));
                Some(text.with_context(|| format!("cannot read --system @{path}"))?)
            }
            Some((system, None)) => Some(unescaped(system)),
        };
        let settings = RowSettings {
            template,
            system,
            is_raw: self.raw_prompt,
            id_column: self.id_column.clone(),
            parameters: self.parameters.clone(),
        };
        Rows::new(settings).map(Some).map_err(anyhow::Error::msg)
    }
}

/// Templates are a page or two.
const MAX_TEMPLATE_FILE_BYTES: u64 = 1 << 20;

/// Reads a template, from a pipe as well, and not without end.
fn template_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_TEMPLATE_FILE_BYTES + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MAX_TEMPLATE_FILE_BYTES {
        true => Err(io::Error::other(format!("it has more than {MAX_TEMPLATE_FILE_BYTES} bytes"))),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It took all memory.
    #[test]
    fn a_template_without_end_is_an_error() {
        let error = template_text(Path::new("/dev/zero")).expect_err("it has no end").to_string();
        assert_eq!(error, "it has more than 1048576 bytes");
        assert!(template_text(Path::new(file!())).expect("a file").starts_with("//!"));
    }
}
