//! `--shard`: which part of the input this process answers, as typed or as the engine that started it says.
//!
//! Owns the table of variables by which engines tell their tasks apart. What a shard is, `batch` knows.

use std::env;

use crate::batch::{MAX_SHARDS, Shard};

/// How an engine tells its tasks which of how many they are.
struct Engine {
    name: &'static str,
    index: &'static str,
    /// The first index: a number, or the variable that has it.
    first: First,
    /// The variable that has the step between indices, if that may be other than 1.
    step: Option<&'static str>,
    count: Count,
}

enum First {
    Is(u64),
    In(&'static str),
}

enum Count {
    /// Without this variable the other one says nothing.
    In(&'static str),
    /// The last index.
    UpTo(&'static str),
    /// Where this variable is not set, `auto/N` has it.
    MaybeIn(&'static str),
    /// Always.
    Untold,
}

const fn counted(name: &'static str, index: &'static str, first: u64, count: &'static str) -> Engine {
    Engine { name, index, first: First::Is(first), step: None, count: Count::In(count) }
}

const fn perhaps_counted(name: &'static str, index: &'static str, count: &'static str) -> Engine {
    Engine { name, index, first: First::Is(0), step: None, count: Count::MaybeIn(count) }
}

/// By the engines' own manuals.
const ENGINES: &[Engine] = &[
    Engine {
        name: "Slurm arrays",
        index: "SLURM_ARRAY_TASK_ID",
        first: First::In("SLURM_ARRAY_TASK_MIN"),
        step: Some("SLURM_ARRAY_TASK_STEP"),
        count: Count::In("SLURM_ARRAY_TASK_COUNT"),
    },
    counted("Slurm's srun", "SLURM_PROCID", 0, "SLURM_NTASKS"),
    perhaps_counted("Kubernetes", "JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
    Engine {
        name: "Grid Engine",
        index: "SGE_TASK_ID",
        first: First::In("SGE_TASK_FIRST"),
        step: Some("SGE_TASK_STEPSIZE"),
        count: Count::UpTo("SGE_TASK_LAST"),
    },
    perhaps_counted("AWS Batch", "AWS_BATCH_JOB_ARRAY_INDEX", "AWS_BATCH_JOB_ARRAY_SIZE"),
    counted("Google Batch", "BATCH_TASK_INDEX", 0, "BATCH_TASK_COUNT"),
    counted("Cloud Run", "CLOUD_RUN_TASK_INDEX", 0, "CLOUD_RUN_TASK_COUNT"),
    counted("GitLab", "CI_NODE_INDEX", 1, "CI_NODE_TOTAL"),
    counted("CircleCI", "CIRCLE_NODE_INDEX", 0, "CIRCLE_NODE_TOTAL"),
    counted("Buildkite", "BUILDKITE_PARALLEL_JOB", 0, "BUILDKITE_PARALLEL_JOB_COUNT"),
    counted("Open MPI", "OMPI_COMM_WORLD_RANK", 0, "OMPI_COMM_WORLD_SIZE"),
    counted("torchrun", "RANK", 0, "WORLD_SIZE"),
    Engine {
        name: "GNU parallel",
        index: "PARALLEL_SEQ",
        first: First::Is(1),
        step: None,
        count: Count::Untold,
    },
];

/// Parses `3/8`, `auto` or `auto/8`.
pub(super) fn parse(text: &str) -> Result<Shard, String> {
    parse_with(text, |name| env::var(name).ok().filter(|value| !value.is_empty()))
}

fn parse_with(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Shard, String> {
    let (which, count) = match text.split_once('/') {
        Some((which, count)) => (which, Some(count)),
        None => (text, None),
    };
    let count = count.map(|count| match count.trim().parse::<u32>() {
        Ok(count @ 1..=MAX_SHARDS) => Ok(count),
        _ => Err(format!("{count:?} is no number of shards, which is from 1 to {MAX_SHARDS}")),
    });
    let count = count.transpose()?;
    if which == "auto" {
        return told_by_engine(count, variable);
    }
    let Some(count) = count else {
        return Err("give the shard and how many there are, such as 3/8, or auto".into());
    };
    match which.trim().parse::<u32>() {
        Ok(number) if (1..=count).contains(&number) => Ok(Shard { number, count }),
        Ok(_) => Err(format!("of {count} shards the first is 1/{count} and the last {count}/{count}")),
        Err(_) => Err("give the shard and how many there are, such as 3/8, or auto".into()),
    }
}

/// Asks all engines: one may have been started by another, as a task of one process.
fn told_by_engine(count: Option<u32>, variable: impl Fn(&str) -> Option<String>) -> Result<Shard, String> {
    let mut told: Vec<(&Engine, Shard)> = Vec::new();
    let mut untold = None;
    for engine in ENGINES {
        // A batch script of Slurm has the number of its process, and no count of these.
        let is_counted = engine.count.needed().is_none_or(|name| variable(name).is_some());
        let Some(index) = variable(engine.index).filter(|_| is_counted) else { continue };
        match engine.shard(&index, count, &variable)? {
            Some(shard) => told.push((engine, shard)),
            None => untold = untold.or(Some(engine)),
        }
    }
    let several: Vec<&(&Engine, Shard)> = told.iter().filter(|(_, shard)| shard.count > 1).collect();
    match (&several[..], &told[..]) {
        ([], [(engine, only), ..]) if untold.is_none() => match count {
            Some(count @ 2..) => Err(format!(
                "{} of {} says that this is the only task, and not one of {count}: name the shard itself",
                engine.index, engine.name
            )),
            _ => Ok(*only),
        },
        ([(engine, shard), others @ ..], _) => match others.iter().find(|(_, other)| other != shard) {
            Some((other, theirs)) => Err(format!(
                "{} says {shard} by {}, {} says {theirs} by {}: name the shard itself",
                engine.name, engine.index, other.name, other.index
            )),
            None => Ok(*shard),
        },
        _ => Err(match untold {
            Some(Engine { name, index, .. }) => {
                format!("{index} of {name} is set, but not how many shards there are: say so, as in auto/8")
            }
            None => format!(
                "none of the variables is set by which an engine tells its tasks apart: {}; name the shard, as in 3/8",
                ENGINES.iter().map(Engine::variables).collect::<Vec<_>>().join(", ")
            ),
        }),
    }
}

impl Count {
    /// The variable without which an engine says nothing.
    fn needed(&self) -> Option<&'static str> {
        match self {
            Self::In(name) | Self::UpTo(name) => Some(name),
            Self::MaybeIn(_) | Self::Untold => None,
        }
    }
}

impl Engine {
    /// What has to be set.
    fn variables(&self) -> String {
        match self.count.needed() {
            Some(count) => format!("{} and {count}", self.index),
            None => self.index.to_owned(),
        }
    }

    /// What it says; nothing where it does not tell how many shards there are.
    fn shard(
        &self,
        index: &str,
        count: Option<u32>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Shard>, String> {
        let number_in = |name: &'static str| -> Result<Option<u64>, String> {
            let Some(text) = variable(name) else { return Ok(None) };
            // Where there is no array, Grid Engine says so in a word.
            match text.trim() {
                "undefined" => Ok(None),
                text => text.parse().map(Some).map_err(|_| format!("{name} is {text:?}, which is no number")),
            }
        };
        let Some(index_number) = number_in(self.index)? else { return Ok(None) };
        let first = match self.first {
            First::Is(first) => first,
            First::In(name) => number_in(name)?.unwrap_or(1),
        };
        let step = self.step.map(number_in).transpose()?.flatten().unwrap_or(1).max(1);
        let told = match self.count {
            Count::In(name) | Count::MaybeIn(name) => number_in(name)?,
            Count::UpTo(name) => number_in(name)?.map(|last| last.saturating_sub(first) / step + 1),
            Count::Untold => None,
        };
        // The only task of its kind: where there are others, it is another engine that knows of them.
        if told == Some(1) {
            return Ok(Some(Shard { number: 1, count: 1 }));
        }
        let count = match (count.map(u64::from), told) {
            (Some(count), Some(told)) if count != told => {
                return Err(format!(
                    "{} says that there are {told} tasks, not {count}: name the shard itself",
                    self.name
                ));
            }
            (count, told) => match count.or(told) {
                Some(count) => count,
                None => return Ok(None),
            },
        };
        let place = index_number
            .checked_sub(first)
            .filter(|distance| distance % step == 0)
            .map(|distance| distance / step);
        match place {
            Some(place) if place < count && count <= u64::from(MAX_SHARDS) => {
                Ok(Some(Shard { number: place as u32 + 1, count: count as u32 }))
            }
            _ => Err(format!(
                "{} of {} is {index}, which is none of {count} from {first} on: the indices must follow each other",
                self.index, self.name
            )),
        }
    }
}

/// The variables of `auto`, for the help.
pub(super) fn help() -> String {
    let engines: Vec<String> =
        ENGINES.iter().map(|engine| format!("{} ({})", engine.index, engine.name)).collect();
    format!(
        "Lines that begin alike go to the same shard, and shards have about the same work; which lines are whose \
         follows from the input, from parameters of its lines, --max-tokens and the flags under Input, so that all \
         processes agree without talking. Give each an output of its own, and join these with `mlxbatch merge`.\n\n\
         auto takes number and count from the engine that has started this process: {}. auto/8 has the count where \
         the engine does not tell it. See mlxbatch-pipelines(7).",
        engines.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, variables: &[(&str, &str)]) -> Result<String, String> {
        let find = |name: &str| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
        };
        parse_with(text, find).map(|shard| shard.to_string())
    }

    #[test]
    fn a_shard_is_typed_as_number_and_count() {
        assert_eq!(parsed("3/8", &[]).as_deref(), Ok("3/8"));
        assert_eq!(parsed("1/1", &[]).as_deref(), Ok("1/1"));
        for (text, said) in [
            ("9/8", "the first is 1/8 and the last 8/8"),
            ("0/8", "the first is 1/8"),
            ("3", "such as 3/8"),
            ("x/8", "such as 3/8"),
            ("-1/8", "such as 3/8"),
            ("1/0", "from 1 to"),
            ("1/x", "no number of shards"),
            ("1/100001", "from 1 to 100000"),
            (
                "auto",
                "SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, SLURM_PROCID and SLURM_NTASKS, JOB_COMPLETION_INDEX",
            ),
        ] {
            let error = parsed(text, &[]).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn each_engine_tells_its_tasks_apart_in_its_own_way() {
        let slurm = [
            ("SLURM_ARRAY_TASK_ID", "14"),
            ("SLURM_ARRAY_TASK_MIN", "10"),
            ("SLURM_ARRAY_TASK_STEP", "2"),
            ("SLURM_ARRAY_TASK_COUNT", "4"),
            // The one task of the array's job.
            ("SLURM_PROCID", "0"),
            ("SLURM_NTASKS", "1"),
        ];
        assert_eq!(parsed("auto", &slurm).as_deref(), Ok("3/4"));
        // With the count given, each task of the array was taken for the first of four by its one process.
        assert_eq!(parsed("auto/4", &slurm).as_deref(), Ok("3/4"));
        // Nor where Slurm does not say how many processes there are.
        assert_eq!(parsed("auto/4", &slurm[..5]).as_deref(), Ok("3/4"));
        assert_eq!(parsed("auto", &[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")]).as_deref(), Ok("1/1"));
        assert_eq!(
            parsed("auto", &[("JOB_COMPLETION_INDEX", "7"), ("JOB_COMPLETIONS", "8")]).as_deref(),
            Ok("8/8")
        );
        assert_eq!(parsed("auto/8", &[("JOB_COMPLETION_INDEX", "0")]).as_deref(), Ok("1/8"));
        assert_eq!(parsed("auto/8", &[("PARALLEL_SEQ", "8")]).as_deref(), Ok("8/8"));
        assert_eq!(parsed("auto", &[("CI_NODE_INDEX", "2"), ("CI_NODE_TOTAL", "2")]).as_deref(), Ok("2/2"));
        let grid_engine = [
            ("SGE_TASK_ID", "5"),
            ("SGE_TASK_FIRST", "1"),
            ("SGE_TASK_LAST", "9"),
            ("SGE_TASK_STEPSIZE", "2"),
        ];
        assert_eq!(parsed("auto", &grid_engine).as_deref(), Ok("3/5"));
        // A job that is no array, in a task of an engine that says which it is.
        let both = [("SGE_TASK_ID", "undefined"), ("RANK", "1"), ("WORLD_SIZE", "2")];
        assert_eq!(parsed("auto", &both).as_deref(), Ok("2/2"));
    }

    #[test]
    fn what_an_engine_leaves_open_or_says_otherwise_is_an_error_that_names_it() {
        for (text, variables, said) in [
            ("auto", &[("JOB_COMPLETION_INDEX", "0")][..], "JOB_COMPLETION_INDEX of Kubernetes is set"),
            ("auto", &[("PARALLEL_SEQ", "3")], "as in auto/8"),
            ("auto", &[("RANK", "3")], "none of the variables is set"),
            // Task 3 of an array, which is started again alone: its place is not known any more.
            (
                "auto/8",
                &[
                    ("SLURM_ARRAY_TASK_ID", "3"),
                    ("SLURM_ARRAY_TASK_MIN", "3"),
                    ("SLURM_ARRAY_TASK_COUNT", "1"),
                    ("SLURM_PROCID", "0"),
                ],
                "says that this is the only task, and not one of 8: name the shard itself",
            ),
            ("auto/8", &[("RANK", "1"), ("WORLD_SIZE", "2")], "torchrun says that there are 2 tasks, not 8"),
            (
                "auto/8",
                &[("PARALLEL_SEQ", "9")],
                "PARALLEL_SEQ of GNU parallel is 9, which is none of 8 from 1 on",
            ),
            (
                "auto",
                &[
                    ("SLURM_ARRAY_TASK_ID", "9"),
                    ("SLURM_ARRAY_TASK_MIN", "1"),
                    ("SLURM_ARRAY_TASK_COUNT", "4"),
                ],
                "the indices must follow each other",
            ),
            ("auto", &[("RANK", "x"), ("WORLD_SIZE", "2")], "RANK is \"x\", which is no number"),
            (
                "auto",
                &[("CI_NODE_INDEX", "1"), ("CI_NODE_TOTAL", "2"), ("RANK", "1"), ("WORLD_SIZE", "2")],
                "GitLab says 1/2 by CI_NODE_INDEX, torchrun says 2/2 by RANK",
            ),
        ] {
            let error = parsed(text, variables).expect_err(said);
            assert!(error.contains(said), "{error}");
        }
    }
}
