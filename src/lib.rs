//! Offline batch inference for local language models on Apple's MLX.
//!
//! A run reads JSONL conversations, computes them together in one running batch and writes one
//! JSONL result per input line. Imports point downward only, in this order:
//!
//! | module       | owns                                                                        |
//! |--------------|-----------------------------------------------------------------------------|
//! | [`cli`]      | flags and help, exactly as typed                                            |
//! | [`commands`] | one file per subcommand                                                     |
//! | [`batch`]    | request formats in, results out, progress and summary                       |
//! | [`text`]     | chat template, tokenizer, streaming decode, stop matching                   |
//! | [`plan`]     | tree of all prompts: order, cuts, forecast of what is shared                |
//! | [`engine`]   | sequences, scheduling, sampling parameters; decides, holds no tensors       |
//! | [`guide`]    | what an answer has to be: schemas and grammars → tokens that may come next  |
//! | [`cache`]    | radix tree of stored prefixes, tiers, limits, eviction; holds no tensors    |
//! | [`snapshot`] | the cache file: format, reading, saving, sharing between processes          |
//! | [`models`]   | model folder, hub and GGUF files → a layer description, weight names, adapters |
//! | [`mlx`]      | the only folder that names `mlx_rs`: weights, layers, attention, live KV    |
//! | `deep`       | threads with deep stacks, and how long what strangers wrote is waited for   |
//! | `jinja`      | templates that somebody else wrote, within limits of text, time and stack       |
//! | `json`       | JSON text with every digit                                                  |
//! | `small_file` | files of a few mebibytes that strangers wrote, and nothing else in their place  |
//! | `threads`    | work that several threads share                                             |
//! | `web`        | HTTP as hub downloads, inputs and outputs speak it                          |
//! | `machine_memory`, `terminal` | what the system tells: memory left, whether bars can be drawn |
//!
//! A line of the input is a job of one or more requests, whose record is one line (`commands::run`); the
//! engine knows requests alone, and what they want beside their next token. Where a conversation is played turn by
//! turn, the request of the next turn is made, planned and submitted when the answer before it is there: its prompt
//! is cut as if it were alone, and so does not depend on when that was.
//!
//! Several processes may answer one input, each a shard of it: which lines are whose follows from the lines alone
//! (`plan` cuts, `batch` knows whose they are), and their results are joined by what lies beside them.
//!
//! One seam, [`engine::Runner`], stands between `engine` and `mlx`, so scheduling is tested
//! without tensors.

pub mod batch;
pub mod cache;
pub mod cli;
pub mod commands;
mod deep;
pub mod engine;
pub mod guide;
mod jinja;
mod json;
mod machine_memory;
pub mod mlx;
pub mod models;
mod panics;
pub mod plan;
mod small_file;
pub mod snapshot;
#[doc(hidden)]
pub mod terminal;
pub mod text;
mod threads;
mod web;
