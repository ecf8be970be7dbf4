//! What saving and restoring a cache file cost, against `cp` of the same bytes: `cargo bench --bench
//! cache_file`.
//!
//! Owns the figures that need no model: the file's own work, on synthetic KV. Ratios within one run are
//! what counts; `cp` and the cache file take turns on the same disk. CACHE_FILE_BENCH_FOLDER names
//! another folder than the system's temporary one; some 9 GiB have to fit.

use std::{
    error::Error,
    fs,
    hint::black_box,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use mlxbatch::{
    cache::{Place, Tier},
    snapshot::{CacheMode, Identity, IdentityPart, SaveReport, Snapshot, SnapshotError, SnapshotOptions},
};

const NUM_PROMPTS: u32 = 1000;
const TOKENS_PER_PROMPT: u32 = 64;
const ROUNDS: usize = 3;

type Done<T> = Result<T, Box<dyn Error>>;

fn main() -> Done<()> {
    let folder = match std::env::var_os("CACHE_FILE_BENCH_FOLDER") {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let path = |name: &str| folder.path().join(name);
    println!("{NUM_PROMPTS} prefixes of {TOKENS_PER_PROMPT} tokens each, medians of {ROUNDS}\n");

    let (gib, copy) = (path("1GiB.bin"), path("copy.bin"));
    let (mut saves, mut copies, mut reads, mut additions) = (vec![], vec![], vec![], vec![]);
    let mut saved = SaveReport::default();
    for _ in 0..ROUNDS {
        remove(&gib);
        let started = Instant::now();
        saved = save(&gib, 0..NUM_PROMPTS, 1 << 20)?;
        saves.push(started.elapsed());

        remove(&copy);
        let started = Instant::now();
        let copied = Command::new("cp").arg(&gib).arg(&copy).status()?;
        fs::File::open(&copy)?.sync_all()?;
        copies.push(started.elapsed());
        assert!(copied.success(), "cp has failed");

        let started = Instant::now();
        restore(&gib)?;
        reads.push(started.elapsed());

        let started = Instant::now();
        save(&gib, 0..NUM_PROMPTS + NUM_PROMPTS / 100, 1 << 20)?;
        additions.push(started.elapsed());
    }
    let kv_bytes = u64::from(NUM_PROMPTS) << 20;
    let (whole, cp) = (median(&saves), median(&copies));
    println!("save 1 GiB      {:>9}  {}", ms(whole), bar(ratio(whole, cp), 2.0, "x cp and sync"));
    println!(
        "restore 1 GiB   {:>9}  {}",
        ms(median(&reads)),
        bar(ratio(median(&reads), cp), 2.0, "x cp and sync")
    );
    let addition = median(&additions);
    println!(
        "save 1% more    {:>9}  {}",
        ms(addition),
        bar(ratio(addition, whole), 0.05, "of saving it all")
    );
    let size = saved.file_bytes as f64 / kv_bytes as f64;
    println!("file size       {:>9}  {}", "", bar(size, 1.05, "x its KV"));

    remove(&gib);
    remove(&copy);
    let (small, large) = (path("64MiB.bin"), path("4GiB.bin"));
    save(&small, 0..NUM_PROMPTS, 64 << 10)?;
    save(&large, 0..NUM_PROMPTS, 4 << 20)?;
    let (mut small_opens, mut large_opens) = (vec![], vec![]);
    for _ in 0..101 {
        for (path, opens) in [(&small, &mut small_opens), (&large, &mut large_opens)] {
            let started = Instant::now();
            black_box(open(path)?);
            opens.push(started.elapsed());
        }
    }
    let (small, large) = (median(&small_opens), median(&large_opens));
    println!("open 64 MiB     {:>9}", ms(small));
    println!(
        "open 4 GiB      {:>9}  {}",
        ms(large),
        bar(ratio(large, small), 1.5, "x 64 MiB with as many prefixes")
    );
    Ok(())
}

fn open(path: &Path) -> Result<Snapshot, SnapshotError> {
    let identity = Identity {
        model: "synthetic".to_owned(),
        needs_checkpoints: false,
        parts: vec![IdentityPart::new("weights", b"none")],
        stamps: Vec::new(),
    };
    let options = SnapshotOptions { mode: CacheMode::ReadWrite, max_bytes: None };
    Snapshot::open(path, options, |_| Ok(identity))
}

/// A prompt with a first token of its own.
fn prompt(number: u32) -> Vec<u32> {
    (0..TOKENS_PER_PROMPT).map(|place| number * TOKENS_PER_PROMPT + place).collect()
}

/// Saves prompts of so many bytes each; those that the file has cost nothing.
fn save(path: &Path, prompts: std::ops::Range<u32>, num_bytes: usize) -> Result<SaveReport, SnapshotError> {
    let mut snapshot = open(path)?;
    let kv: Vec<u8> = (0..num_bytes).map(|place| (place * 31 % 251) as u8).collect();
    let mut saving = snapshot.begin_save()?;
    for number in prompts {
        let tokens = prompt(number);
        saving.add(Place { parent: None, tokens: &tokens, tier: Tier::User }, |_, bytes| {
            bytes.extend_from_slice(&kv);
            Ok(())
        })?;
    }
    saving.publish()
}

/// Reads and verifies everything.
fn restore(path: &Path) -> Done<()> {
    let snapshot = open(path)?;
    let mut bytes = Vec::new();
    for number in 0..NUM_PROMPTS {
        for found in snapshot.find(&prompt(number)) {
            snapshot.read(&found.piece, &mut bytes)?;
            black_box(&bytes);
        }
    }
    Ok(())
}

fn remove(path: &PathBuf) {
    // It need not be there.
    let _ = fs::remove_file(path);
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn bar(measured: f64, limit: f64, what: &str) -> String {
    format!("{measured:.3} {what} (at most {limit}: {})", if measured <= limit { "pass" } else { "FAIL" })
}
