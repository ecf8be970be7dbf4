//! The fuzz targets over their kept corpora and some thousand mutations of each file.
//!
//! Owns the mutations and the watch over memory: no input has more allocated than a small multiple of
//! its size. With FUZZ_SECONDS in the environment, as `make fuzz` has it, each target goes on for so long from
//! another seed; what it finds goes into `fixtures/corpus/`, and is tried here for ever after.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

#[path = "fuzz/entries.rs"]
mod entries;

use entries::{
    Folder, adapter, cache_file, cache_file_of, config, gguf, hub_listing, jsonl_reader, safetensors,
    template, tokenizer_config,
};

/// Buffers of a fixed size that reading and counting lines have.
const READ_BUFFERS: usize = 2 << 20;

/// Counts what a thread has allocated and not freed yet.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(num_bytes: isize) {
    // A thread that ends has no counters any more.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + num_bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are the system's.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most bytes that were allocated at once while something was done.
fn peak_of(work: impl FnOnce()) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    work();
    usize::try_from(PEAK.get() - before).unwrap_or(0)
}

fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/corpus").join(name);
    let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(folder)
        .expect("the corpus is there")
        .map(|entry| entry.expect("an entry can be read").path())
        .map(|path| (path.display().to_string(), fs::read(&path).expect("the file can be read")))
        .collect();
    files.sort();
    assert!(files.len() >= 4, "a corpus of {} files", files.len());
    files
}

/// Seeded changes of bytes, as a fuzzer makes them.
struct Mutator(u64);

impl Mutator {
    fn below(&mut self, num: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % num.max(1) as u64) as usize
    }

    /// Changes a few places; `other` lends pieces.
    fn mutate(&mut self, bytes: &[u8], other: &[u8]) -> Vec<u8> {
        const LOUD: [u8; 8] = [0, 1, 0x7f, 0x80, 0xfb, 0xfc, 0xfd, 0xff];
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            let place = self.below(bytes.len());
            match self.below(7) {
                0 => bytes.truncate(place),
                1 => bytes.insert(place, LOUD[self.below(LOUD.len())]),
                2 if !bytes.is_empty() => drop(bytes.remove(place)),
                3 => {
                    let start = self.below(other.len());
                    let end = (start + self.below(40)).min(other.len());
                    bytes.splice(place..place, other[start..end].iter().copied());
                }
                4 => {
                    let end = (place + self.below(8)).min(bytes.len());
                    bytes[place..end].fill(LOUD[self.below(LOUD.len())]);
                }
                5 if !bytes.is_empty() => bytes[place] = LOUD[self.below(LOUD.len())],
                _ if !bytes.is_empty() => bytes[place] ^= 1 << self.below(8),
                _ => {}
            }
        }
        bytes
    }
}

/// Tries all files of a corpus and mutations of each; `max_bytes` is what an input may have allocated on the thread
/// that tries it.
fn try_all(name: &str, num_mutations: usize, entry: fn(&Folder, &[u8]), max_bytes: impl Fn(&[u8]) -> usize) {
    let folder = Folder::new();
    let files = corpus(name);
    let check = |file: &str, input: &[u8]| {
        let tried = || peak_of(|| entry(&folder, input));
        let peak = std::panic::catch_unwind(std::panic::AssertUnwindSafe(tried));
        let is_good = peak.as_ref().is_ok_and(|peak| *peak <= max_bytes(input));
        if !is_good {
            // An abort leaves nothing but what was written before.
            let kept = std::env::temp_dir().join(format!("mlxbatch-fuzz-{name}"));
            fs::write(&kept, input).expect("there is room");
            panic!("{peak:?} bytes for {} of {file} changed to what is in {}", input.len(), kept.display());
        }
    };
    let try_from = |seed: u64| {
        let mut mutator = Mutator(seed);
        for (place, (file, bytes)) in files.iter().enumerate() {
            check(file, bytes);
            let mut changed = bytes.clone();
            for round in 0..num_mutations {
                // Changes pile up for a while, then begin anew.
                let base = if round % 20 == 0 { bytes } else { &changed };
                changed = mutator.mutate(base, &files[(place + round) % files.len()].1);
                check(file, &changed);
            }
        }
    };
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    try_from(seed);
    if let Some(seconds) = std::env::var("FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok()) {
        let started = Instant::now();
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        seed = time.as_nanos() as u64 | 1;
        while started.elapsed() < Duration::from_secs(seconds) {
            println!("{name}: seed {seed}");
            try_from(seed);
            seed = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
        }
    }
}

#[test]
fn no_cache_file_makes_a_panic_or_takes_more_memory_than_some_times_its_size() {
    try_all("cache_file", 2000, cache_file, |input| (1 << 20) + 20 * cache_file_of(input).len());
}

#[test]
fn no_jsonl_input_makes_a_panic_or_takes_more_memory_than_some_times_its_size() {
    try_all("jsonl", 3000, jsonl_reader, |input| READ_BUFFERS + 20 * input.len());
}

/// Buffers and fixtures that an entry has whatever its input is.
const FIXED: usize = 64 << 20;

#[test]
fn no_gguf_file_makes_a_panic() {
    try_all("gguf", 1500, gguf, |input| FIXED + 100 * input.len());
}

#[test]
fn no_weight_file_makes_a_panic() {
    try_all("safetensors", 1500, safetensors, |input| FIXED + 100 * input.len());
}

#[test]
fn no_configuration_makes_a_panic() {
    try_all("config", 1500, config, |input| FIXED + 100 * input.len());
}

#[test]
fn no_adapter_makes_a_panic() {
    try_all("adapter", 150, adapter, |input| FIXED + 100 * input.len());
}

#[test]
fn no_tokenizer_config_makes_a_panic() {
    try_all("tokenizer_config", 60, tokenizer_config, |input| FIXED + 100 * input.len());
}

#[test]
fn no_chat_template_makes_a_panic_or_computes_without_end() {
    try_all("template", 300, template, |input| FIXED + 100 * input.len());
}

#[test]
fn no_listing_of_a_hub_makes_a_panic() {
    try_all("hub_listing", 3000, hub_listing, |input| FIXED + 100 * input.len());
}

#[test]
fn the_corpus_gets_past_the_checksums() {
    let holds_something = |(_, bytes): &&(String, Vec<u8>)| {
        let path = tempfile::NamedTempFile::new().expect("a file can be made").into_temp_path();
        fs::write(&path, cache_file_of(bytes)).expect("there is room");
        mlxbatch::snapshot::Contents::read(&path).is_ok_and(|contents| !contents.entries.is_empty())
    };
    let num_sound = corpus("cache_file").iter().filter(holds_something).count();
    assert!(num_sound >= 3, "{num_sound} files of the corpus hold something");
}
