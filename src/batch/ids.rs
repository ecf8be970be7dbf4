//! The ids of requests: given ones, and those made up for lines that give none.
//!
//! Owns that no two lines of an input have one id. A given id is never changed, as results are
//! joined by it; a made-up one, `line-<number>`, steps aside for a given one, also for one that
//! comes later: a regular file is looked through for those as soon as an id has to be made up.
//! From a pipe what comes later is not known; such an id is kept, and the two lines are named.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use super::lines::{Content, LineReader};
use super::partial_json::find_id;
use super::reader::DEFAULT_MAX_LINE_BYTES;

const MADE_UP: &str = "line-";

/// Whose a given id is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    Own,
    /// An earlier line has given it.
    Taken,
    /// It was made up for this line, which gave none.
    MadeUpFor(u64),
}

/// The ids seen so far: 128 bits of each id's digest, however long the id.
#[derive(Debug, Default)]
pub(super) struct Ids {
    given: HashSet<u128>,
    made_up: HashMap<u128, u64>,
    lookahead: Lookahead,
}

/// Which given ids look like made-up ones, in the whole file.
#[derive(Debug, Default)]
enum Lookahead {
    /// A stream that can be read only once.
    #[default]
    Impossible,
    Possible(PathBuf),
    /// The numbers in them.
    Done(HashSet<u64>),
}

impl Ids {
    /// For a regular file, which can be read twice.
    pub fn of_file(path: &Path) -> Self {
        Self { lookahead: Lookahead::Possible(path.to_owned()), ..Self::default() }
    }

    /// Takes an id that a line gives.
    pub fn claim(&mut self, id: &str) -> Claim {
        let digest = digest(id);
        let maker = self.made_up.get(&digest);
        match (self.given.insert(digest), maker) {
            (false, _) => Claim::Taken,
            (true, Some(line)) => Claim::MadeUpFor(*line),
            (true, None) => Claim::Own,
        }
    }

    /// Makes an id up that no other line has.
    pub fn make_up(&mut self, line: u64) -> String {
        let plain = format!("{MADE_UP}{line}");
        let mut id = plain.clone();
        let mut is_taken = self.given_anywhere().contains(&line);
        for number in 2.. {
            if !is_taken && !self.given.contains(&digest(&id)) && !self.made_up.contains_key(&digest(&id)) {
                break;
            }
            is_taken = false;
            id = format!("{plain}-{number}");
        }
        self.made_up.insert(digest(&id), line);
        id
    }

    fn given_anywhere(&mut self) -> &HashSet<u64> {
        if let Lookahead::Possible(path) = &self.lookahead {
            // A file that cannot be read gives its error where its lines are read.
            self.lookahead = Lookahead::Done(given_numbers(path).unwrap_or_default());
        }
        static NONE: std::sync::LazyLock<HashSet<u64>> = std::sync::LazyLock::new(HashSet::new);
        match &self.lookahead {
            Lookahead::Done(numbers) => numbers,
            Lookahead::Impossible | Lookahead::Possible(_) => &NONE,
        }
    }
}

fn given_numbers(path: &Path) -> io::Result<HashSet<u64>> {
    let source = BufReader::with_capacity(1 << 18, File::open(path)?);
    let mut lines = LineReader::new(source, DEFAULT_MAX_LINE_BYTES);
    let mut numbers = HashSet::new();
    while let Some(line) = lines.next_line()? {
        let Content::Bytes(bytes) = line.content else { continue };
        if bytes.windows(MADE_UP.len() + 1).any(|window| window == b"\"line-") {
            let id = find_id(bytes);
            numbers.extend(id.as_deref().and_then(|id| id.strip_prefix(MADE_UP)?.parse::<u64>().ok()));
        }
    }
    Ok(numbers)
}

fn digest(id: &str) -> u128 {
    let mut bytes = [0; 16];
    blake3::Hasher::new().update(id.as_bytes()).finalize_xof().fill(&mut bytes);
    u128::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_up_id_steps_aside_for_one_that_was_given() {
        let mut ids = Ids::default();
        assert_eq!(ids.claim("line-2"), Claim::Own);
        assert_eq!(ids.make_up(2), "line-2-2");
        assert_eq!(ids.make_up(3), "line-3");
        assert_eq!(ids.claim("line-2"), Claim::Taken);
        // Too late in a stream: the line that follows keeps what it gives.
        assert_eq!(ids.claim("line-3"), Claim::MadeUpFor(3));
        assert_eq!(ids.claim("line-2-2"), Claim::MadeUpFor(2));
    }

    #[test]
    fn in_a_file_also_for_one_that_comes_later() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = folder.path().join("in.jsonl");
        let lines = "{}\n{}\n{\"id\": \"line-1\"}\n{\"prompt\": \"\\\"line-2\", \"custom_id\": \"b\"}\n";
        std::fs::write(&path, lines).expect("there is room");
        let mut ids = Ids::of_file(&path);
        assert_eq!((ids.make_up(1), ids.make_up(2)), ("line-1-2".into(), "line-2".into()));
        assert_eq!(ids.claim("line-1"), Claim::Own);
    }
}
