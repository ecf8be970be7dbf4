//! What happens to a prompt cache: engines come and go, with a cache file or without, and run parts of a batch.
//!
//! Owns drawing such lives and living them. What the answers are held to is the caller's business.

use std::path::Path;

use mlxbatch::{
    engine::Engine,
    mlx::{ComputeDevice, MlxRunner},
};

use super::conversations::{is_lucky, one_of};
use crate::common::{
    batch::{Batch, Numbers},
    runs::{AMPLE, Outcome, Setting, engine_of, engine_with_file, run_steps},
};

/// Where what was computed is stored.
#[derive(Debug, Clone, Copy)]
enum Store {
    Nowhere,
    InMemory { max_bytes: u64 },
    InFile { max_bytes: u64 },
}

/// What becomes of an engine after a run.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// It runs what comes next.
    GoesOn,
    /// It saves, and another one begins with the file.
    Saved,
    /// It is dropped after so many steps, or when it is done: what was not saved is lost.
    Killed { num_steps: usize },
}

/// One run of a life.
#[derive(Debug)]
pub struct Run {
    setting: Setting,
    /// The file is saved after so many steps, while sequences run.
    saved_after: Option<usize>,
    end: End,
}

/// Runs of parts of a batch, the last of them of all of it, on one kind of device.
#[derive(Debug)]
pub struct Life {
    store: Store,
    runs: Vec<Run>,
}

impl Life {
    pub fn random(
        numbers: &mut Numbers,
        device: ComputeDevice,
        num_prompts: usize,
        kv_bytes_per_token: u64,
    ) -> Self {
        let little = kv_bytes_per_token * numbers.within(100..=2500) as u64;
        let max_bytes = if is_lucky(numbers, 70) { AMPLE } else { little };
        let store = match numbers.within(0..=9) {
            0 => Store::Nowhere,
            1..=4 => Store::InMemory { max_bytes },
            _ => Store::InFile { max_bytes },
        };
        let num_runs = match store {
            Store::Nowhere => 1,
            _ if is_lucky(numbers, 20) => 1,
            _ => numbers.within(2..=3),
        };
        let runs = (1..=num_runs).map(|number| {
            let mut order: Vec<usize> = (0..num_prompts).collect();
            if number < num_runs {
                let percent = numbers.within(10..=50);
                order.retain(|_| is_lucky(numbers, percent));
            }
            if is_lucky(numbers, 50) {
                numbers.shuffle(&mut order);
            }
            let other_size = numbers.within(2..=40);
            let setting = Setting {
                device,
                batch_size: *one_of(numbers, &[1, 8, 8, 16, 32, 32, other_size]),
                lookahead: is_lucky(numbers, 50),
                prefill_chunk: *one_of(numbers, &[2048, 2048, 2048, 512, 512, 300, 150, 90]),
                max_copied_bytes: *one_of(numbers, &[u64::MAX, u64::MAX, little, 40_000]),
                order,
                // Nothing comes after the last run, nor outlives it.
                drops_private: number == num_runs
                    && !matches!(store, Store::InFile { .. })
                    && is_lucky(numbers, 30),
                plays_turns: is_lucky(numbers, 60),
            };
            let num_steps = numbers.within(1..=80);
            let kept = if matches!(store, Store::InFile { .. }) { 3 } else { 1 };
            let end = match numbers.within(1..=kept) {
                1 => End::GoesOn,
                2 => End::Saved,
                _ => End::Killed { num_steps },
            };
            let saved_after = is_lucky(numbers, 30).then_some(num_steps / 2);
            Run { setting, saved_after, end: if number == num_runs { End::Saved } else { end } }
        });
        Self { store, runs: runs.collect() }
    }

    fn engine(&self, model: &str, run: &Run, path: &Path) -> Engine<MlxRunner> {
        match self.store {
            Store::Nowhere => engine_of(model, &run.setting, None),
            Store::InMemory { max_bytes } => engine_of(model, &run.setting, Some(max_bytes)),
            Store::InFile { max_bytes } => engine_with_file(model, &run.setting, max_bytes, path),
        }
    }

    /// Lives it; `found` gets each run's answers.
    pub fn live(&self, model: &str, batch: &Batch, mut found: impl FnMut(&Run, &Outcome)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.cache");
        let mut engine: Option<Engine<MlxRunner>> = None;
        for run in &self.runs {
            let mut current = engine.take().unwrap_or_else(|| self.engine(model, run, &path));
            let mut save_after = run.saved_after.filter(|_| matches!(self.store, Store::InFile { .. }));
            let max_steps = if let End::Killed { num_steps } = run.end { num_steps } else { usize::MAX };
            let outcome = run_steps(&mut current, batch, &run.setting, max_steps, |engine, num_steps| {
                if save_after.take_if(|at| *at <= num_steps).is_some() {
                    engine.save_snapshot().unwrap();
                }
            });
            found(run, &outcome);
            match run.end {
                End::GoesOn => engine = Some(current),
                End::Saved if matches!(self.store, Store::InFile { .. }) => {
                    current.save_snapshot().unwrap();
                }
                End::Saved | End::Killed { .. } => {}
            }
        }
    }
}
