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
//! | `new_file`   | files that are given their name once they are whole                         |
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
//! Words, one for each thing:
//!
//! | word                   | means                                                                         |
//! |------------------------|-------------------------------------------------------------------------------|
//! | prefill, decode        | to compute a prompt's KV; one token of each running sequence                  |
//! | pass, chunk, row       | one forward pass; what it computes of one prompt; one token of it             |
//! | weights                | the model's parameters; those of attention are always softmax weights         |
//! | block                  | one layer of the decoder; rows computed together are a row block              |
//! | segment                | the stored KV of one run of tokens, in all layers                             |
//! | checkpoint             | the states of recurrent layers at one position; never the model's weights     |
//! | path                   | the stored segments that a sequence runs on, from position 0                  |
//! | own                    | of a sequence's KV: what it has computed after its path and not stored        |
//! | slab, piece            | what decode rows have each to themselves, side by side; what several see       |
//! | cohort                 | decode rows that see the same pieces                                          |
//! | private                | of a planned piece of a prompt: no other request begins with it               |
//! | hold                   | what a sequence has pinned in the prompt cache and is yet to store            |
//! | held                   | what stays in memory for running sequences beyond the prompt cache's limit     |
//! | rest                   | the KV of an answer that was stored before its last tokens are known           |
//! | host                   | the program's own threads: what they make of arrays, MLX's device does not       |
//! | team                   | threads of the host that look out for a share of a loop or a product           |
//! | cache file             | what `--persist-cache` names; its content, once opened, is the snapshot        |
//! | restore, save          | from the cache file into memory; from memory into the cache file              |
//! | admit, retire, evict   | into the running batch; out of it; out of the prompt cache                    |
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
mod new_file;
mod panics;
pub mod plan;
mod small_file;
pub mod snapshot;
#[doc(hidden)]
pub mod terminal;
pub mod text;
mod threads;
mod web;
