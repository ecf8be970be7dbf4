//! The ids of requests: given ones, and those made up for lines that give none.
//!
//! Owns that no two lines of all inputs have one id. A given id is never changed, as results are
//! joined by it; a made-up one, `line-<number>`, steps aside for a given one, also for one that
//! comes later: files are looked through for those as soon as an id has to be made up.
//! From a pipe what comes later is not known; such an id is kept, and the two lines are named.

use std::collections::{HashMap, HashSet};

use super::error::BatchError;
use super::input_lines::for_each_input;
use super::lines::{Content, DEFAULT_MAX_LINE_BYTES, LineReader};
use super::opened::InputFormat;
use super::partial_json::find_id;
use super::paths::{InputFile, Inputs};

/// What made-up ids begin with: those of the first input, and of the others.
const MADE_UP: [&str; 2] = ["line-", "file-"];

/// Whether it looks like one that was made up.
pub(super) fn is_like_made_up(id: &str) -> bool {
    MADE_UP.iter().any(|begin| id.starts_with(begin))
}

/// Whose a given id is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Claim {
    Own,
    /// An earlier line has given it.
    Taken,
    /// It was made up for this line, which gave none.
    MadeUpFor(String),
}

/// The ids seen so far: 128 bits of each id's digest, however long the id.
#[derive(Debug, Default)]
pub(super) struct Ids {
    given: HashSet<u128>,
    /// The line that each was made up for.
    made_up: HashMap<u128, (u32, u64)>,
    lookahead: Lookahead,
}

/// Which given ids look like made-up ones, in all inputs.
#[derive(Debug, Default)]
enum Lookahead {
    /// A stream that can be read only once.
    #[default]
    Impossible,
    Possible(Inputs, InputFormat),
    Done(HashSet<u128>),
}

impl InputFile {
    /// The id of a line that gives none, where no other line has it.
    pub fn made_up_id(&self, line: u64) -> String {
        match self.number {
            0 | 1 => format!("line-{line}"),
            number => format!("file-{number}-line-{line}"),
        }
    }
}

impl Ids {
    /// For files, which can be read twice.
    pub fn of_files(inputs: &Inputs, format: InputFormat) -> Self {
        Self { lookahead: Lookahead::Possible(inputs.clone(), format), ..Self::default() }
    }

    /// Takes an id that a line gives.
    pub fn claim(&mut self, id: &str) -> Claim {
        let digest = digest(id);
        let maker = self.made_up.get(&digest);
        match (self.given.insert(digest), maker) {
            (false, _) => Claim::Taken,
            (true, Some((1, line))) => Claim::MadeUpFor(format!("line {line}")),
            (true, Some((file, line))) => Claim::MadeUpFor(format!("line {line} of input {file}")),
            (true, None) => Claim::Own,
        }
    }

    /// Makes an id up that no other line has.
    pub fn make_up(&mut self, file: &InputFile, line: u64) -> String {
        let plain = file.made_up_id(line);
        let mut id = plain.clone();
        for number in 2.. {
            let digest = digest(&id);
            let is_taken = self.given_anywhere().contains(&digest)
                || self.given.contains(&digest)
                || self.made_up.contains_key(&digest);
            if !is_taken {
                break;
            }
            id = format!("{plain}-{number}");
        }
        self.made_up.insert(digest(&id), (file.number, line));
        id
    }

    fn given_anywhere(&mut self) -> &HashSet<u128> {
        if let Lookahead::Possible(inputs, format) = &self.lookahead {
            // A file that cannot be read gives its error where its lines are read.
            self.lookahead = Lookahead::Done(given_like_made_up(inputs, *format).unwrap_or_default());
        }
        static NONE: std::sync::LazyLock<HashSet<u128>> = std::sync::LazyLock::new(HashSet::new);
        match &self.lookahead {
            Lookahead::Done(digests) => digests,
            Lookahead::Impossible | Lookahead::Possible(..) => &NONE,
        }
    }
}

fn given_like_made_up(inputs: &Inputs, format: InputFormat) -> Result<HashSet<u128>, BatchError> {
    let mut digests = HashSet::new();
    let is_there = |bytes: &[u8]| {
        let starts = bytes.windows(6).filter(|window| window[0] == b'"');
        let mut starts = starts.map(|window| &window[1..]);
        starts.any(|start| MADE_UP.iter().any(|made_up| made_up.as_bytes() == start))
    };
    for_each_input(inputs, format, |_, source| {
        let mut lines = LineReader::new(source, DEFAULT_MAX_LINE_BYTES);
        while let Some(line) = lines.next_line()? {
            let Content::Bytes(bytes) = line.content else { continue };
            if is_there(bytes) {
                let id = find_id(bytes).filter(|id| MADE_UP.iter().any(|made_up| id.starts_with(made_up)));
                digests.extend(id.as_deref().map(digest));
            }
        }
        Ok(())
    })?;
    Ok(digests)
}

/// Tells ids apart.
pub(super) fn digest(id: &str) -> u128 {
    let mut bytes = [0; 16];
    blake3::Hasher::new().update(id.as_bytes()).finalize_xof().fill(&mut bytes);
    u128::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::paths::InputPath;

    fn file(number: u32) -> InputFile {
        InputFile { number, name: "in.jsonl".into() }
    }

    #[test]
    fn a_made_up_id_steps_aside_for_one_that_was_given() {
        let mut ids = Ids::default();
        assert_eq!(ids.claim("line-2"), Claim::Own);
        assert_eq!(ids.make_up(&file(1), 2), "line-2-2");
        assert_eq!(ids.make_up(&file(1), 3), "line-3");
        assert_eq!(ids.make_up(&file(2), 3), "file-2-line-3");
        assert_eq!(ids.claim("line-2"), Claim::Taken);
        // Too late in a stream: the line that follows keeps what it gives.
        assert_eq!(ids.claim("line-3"), Claim::MadeUpFor("line 3".into()));
        assert_eq!(ids.claim("line-2-2"), Claim::MadeUpFor("line 2".into()));
        assert_eq!(ids.claim("file-2-line-3"), Claim::MadeUpFor("line 3 of input 2".into()));
    }

    #[test]
    fn in_files_also_for_one_that_comes_later() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let path = |name: &str| InputPath::File(folder.path().join(name));
        let lines = "{}\n{}\n{\"id\": \"line-1\"}\n{\"prompt\": \"\\\"line-2\", \"custom_id\": \"b\"}\n";
        std::fs::write(folder.path().join("in.jsonl"), lines).expect("there is room");
        std::fs::write(
            folder.path().join("more.jsonl"),
            "{}\n{\"id\": \"file-2-line-1\"}\n{\"id\": \"line-4\"}\n",
        )
        .expect("there is room");
        let inputs = Inputs::find(&[path("in.jsonl"), path("more.jsonl")]).expect("they are there");
        let mut ids = Ids::of_files(&inputs, InputFormat::Auto);
        assert_eq!(
            (ids.make_up(&file(1), 1), ids.make_up(&file(1), 2)),
            ("line-1-2".into(), "line-2".into())
        );
        assert_eq!(
            (ids.make_up(&file(1), 4), ids.make_up(&file(2), 1)),
            ("line-4-2".into(), "file-2-line-1-2".into())
        );
        assert_eq!(ids.claim("line-1"), Claim::Own);
    }
}
