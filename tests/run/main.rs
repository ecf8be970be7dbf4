//! `mlxbatch run` on the real binary with tiny models: what a user sees, gets and keeps.
//!
//! Owns the promises about files, exit codes and messages, one topic a file. That the numbers are
//! right is `golden.rs`'s business; parts have their unit tests beside the code.

mod adapters;
mod answers;
mod bad_lines;
mod cache_command;
mod clients;
mod compare;
mod constraints;
mod datasets;
mod failures;
mod formats;
mod forms;
mod gguf;
mod gguf_architectures;
mod hostile_configs;
mod hostile_files;
mod jobs;
mod kill;
mod logprobs;
mod memory;
mod model_files;
mod not_numbers;
mod outputs;
mod persist;
mod persist_troubles;
mod precedence;
mod processors;
mod prompts;
mod replies;
mod reports;
mod resume;
mod shards;
mod signals;
mod streams;
mod support;
mod turns;
