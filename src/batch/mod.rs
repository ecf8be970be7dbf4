//! Request formats in, results out, progress and summary.
//!
//! Owns the JSONL on both sides of a run: reading and checking lines, the output line's shape,
//! getting results onto disk in input order, the schemas of both, and what is said on standard error meanwhile. Knows
//! neither templates, tokens nor models; what to answer is decided above.

mod error;
mod failures;
mod ids;
mod input_lines;
mod json_values;
mod lead_in;
mod line_error;
mod lines;
mod merging;
mod opened;
#[cfg(feature = "parquet")]
mod parquet;
mod partial_json;
mod paths;
mod progress;
mod rates;
mod reader;
mod record;
mod remote;
mod request;
mod rows;
mod schemas;
mod selection;
mod shape;
mod shards;
mod source;
mod summary;
mod units;
mod warnings;
mod writer;
mod zstd;

pub use error::BatchError;
pub use failures::{Failure, Failures};
pub use line_error::{FailedLine, LineError, RequestError};
pub use lines::{DEFAULT_MAX_LINE_BYTES, MAX_RECORD_BYTES, read_record_line};
pub use merging::{MergeError, MergeOptions, Merged, merge};
pub use opened::InputFormat;
pub use paths::{InputFile, InputPath, Inputs, OutputPath, find_files};
pub use progress::{Progress, ProgressKind};
pub use rates::Outlook;
pub use reader::{NextRequest, ReaderOptions, RequestReader, count_requests};
pub use record::{
    Choice, Completion, FinishReason, Record, Scored, Served, StopReason, Token, TokenCounts, TokenLogprob,
    Turn,
};
pub(crate) use remote::is_url;
pub use remote::{shown_url, upload};
pub use request::{
    AnswerConstraint, AnswerOptions, Conversation, Form, LaterTurn, MAX_CHOICES, PENALTY_RANGE, Prompt,
    PromptEnding, REPETITION_PENALTY_RANGE, Request, RequestHead, RequestParams, SERVED, ServedField,
    ServedGroup, ignored_fields, refused_fields,
};
pub use rows::{RowSettings, Rows, unescaped};
pub use schemas::{input_schema, output_schema, report_schema};
pub use selection::Selection;
pub use shape::OutputFormat;
pub use shards::{MAX_SHARDS, Shard, ShardFacts, ShardLines, Split};
pub use summary::{Ending, RunStats, summary};
pub use units::{
    counted as count_text, duration as duration_text, enough as enough_text, grouped as number_text,
    rate as rate_text, size as size_text,
};
pub use warnings::Warnings;
pub use writer::{
    Flow, Kept, Manifest, Published, ResultWriter, Resume, manifest_path, partial_path, records_path,
};
