//! What the results of a run were made with: the file beside them that a later run compares itself with.
//!
//! Owns its form and the words for a difference. What the facts are is the run's to say; whether the input's
//! lines are still the same is told by the results themselves, see `earlier`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::shards::ShardFacts;
use crate::new_file::create_beside;
use crate::small_file;

/// Far more than a run has to say.
const MAX_BYTES: u64 = 1 << 20;

/// Facts that the answers of a run depend on, by the name that messages give them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Manifest(BTreeMap<String, Fact>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fact {
    /// Something that can be told in a message.
    Said(String),
    /// Something that can only be compared.
    Digest(String),
    /// What part of the input was answered.
    Shard(ShardFacts),
}

const SHARD: &str = "--shard";

impl Manifest {
    /// What a run with --template says its rows became requests by.
    pub const ROWS: &'static str = "rows";

    /// Notes a setting as it is typed or printed.
    pub fn say(&mut self, name: &str, value: impl Into<String>) {
        self.0.insert(name.to_owned(), Fact::Said(value.into()));
    }

    /// Notes something by its digest, in hexadecimal digits.
    pub fn digest(&mut self, name: &str, digest: impl Into<String>) {
        self.0.insert(name.to_owned(), Fact::Digest(digest.into()));
    }

    /// Notes that the results are those of a part of the input alone.
    /// Whether a run has said something by this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub fn set_shard(&mut self, facts: ShardFacts) {
        self.0.insert(SHARD.to_owned(), Fact::Shard(facts));
    }

    /// The part of the input that the results are of, if they are of one.
    pub fn shard(&self) -> Option<&ShardFacts> {
        self.0.values().find_map(|fact| match fact {
            Fact::Shard(facts) => Some(facts),
            _ => None,
        })
    }

    /// The same for results of the whole.
    pub fn without_shard(mut self) -> Self {
        self.0.retain(|_, fact| !matches!(fact, Fact::Shard(_)));
        self
    }

    /// What is noted by its digest, and that.
    pub fn digests(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(name, fact)| match fact {
            Fact::Digest(digest) => Some((name.as_str(), digest.as_str())),
            _ => None,
        })
    }

    /// What is no longer as `earlier` has it, each in a few words.
    pub(in crate::batch) fn differences(&self, earlier: &Self) -> Vec<String> {
        let mut names: Vec<&String> = self.0.keys().chain(earlier.0.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let told = |fact: Option<&Fact>| match fact {
            Some(Fact::Said(value)) => value.clone(),
            Some(Fact::Shard(facts)) => facts.to_string(),
            _ => "not set".to_owned(),
        };
        let differs = names.into_iter().filter(|name| self.0.get(*name) != earlier.0.get(*name));
        differs
            .map(|name| match (earlier.0.get(name), self.0.get(name)) {
                (Some(Fact::Digest(_)), _) | (_, Some(Fact::Digest(_))) => {
                    format!("the {name} changed")
                }
                (was, is) => format!("{name} was {}, is {}", told(was), told(is)),
            })
            .collect()
    }

    pub fn read(path: &Path) -> io::Result<Self> {
        serde_json::from_slice(&small_file::read(path, MAX_BYTES)?).map_err(io::Error::other)
    }

    /// Writes it whole or not at all, beside the output that it goes with.
    pub(in crate::batch) fn write(&self, path: &Path, output: &Path) -> io::Result<()> {
        let mut file = create_beside(output, 0o666)?;
        serde_json::to_writer_pretty(&mut file, self).map_err(io::Error::other)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::batch::shards::Shard;

    #[test]
    fn what_changed_is_named_and_comes_back_from_disk() {
        let mut earlier = Manifest::default();
        earlier.say("--temperature", "0");
        earlier.say("--top-p", "0.9");
        earlier.digest("weights", "ab12");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.jsonl.partial.manifest");
        earlier.write(&path, &path).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), earlier);
        assert_eq!(earlier.differences(&earlier), Vec::<String>::new());

        let mut now = Manifest::default();
        let facts = |number| {
            let shard = Shard { number, count: 8 };
            let digests = ("ab".repeat(16), "cd".repeat(16));
            ShardFacts { shard, num_lines: 3, num_lines_of_all: 20, input: digests.0, split: digests.1 }
        };
        let mut part = earlier.clone();
        part.set_shard(facts(2));
        part.write(&path, &path).unwrap();
        let read = Manifest::read(&path).unwrap();
        assert_eq!(read.shard(), Some(&facts(2)));
        let mut other = read.clone();
        other.set_shard(facts(3));
        let told =
            ["--shard was 2/8 (3 of 20 lines, split cdcdcdcd), is 3/8 (3 of 20 lines, split cdcdcdcd)"];
        assert_eq!(other.differences(&read), told);
        assert_eq!(read.without_shard(), earlier);

        now.say("--temperature", "0.7");
        now.digest("weights", "ab13");
        assert_eq!(
            now.differences(&earlier),
            ["--temperature was 0, is 0.7", "--top-p was 0.9, is not set", "the weights changed"]
        );
        fs::write(&path, "{").unwrap();
        assert!(Manifest::read(&path).is_err());
    }
}
