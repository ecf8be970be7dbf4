//! JSONL input. See `entries.rs`.
#![no_main]

#[path = "../entries.rs"]
#[allow(dead_code)] // Each target uses its own part of this.
mod entries;

thread_local! {
    static FOLDER: entries::Folder = entries::Folder::new();
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| FOLDER.with(|folder| entries::jsonl_reader(folder, input)));
