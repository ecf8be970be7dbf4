//! Lines cut into parts that several processes answer, each by itself.
//!
//! Owns the order in which lines that begin alike stand side by side, and where it is cut: so that no part has much
//! more work than another, and there where least is computed twice. Works on digests of beginnings, and so needs
//! neither a tokenizer nor all prompts in memory. The same lines are cut in the same way, whoever does it.
//!
//! ```text
//!  order   prompt       shared with the one before   parts of 2
//!    0     SYS a b c                0                   0
//!    1     SYS a b d                SYS a b             0
//!    2     SYS e f                  SYS                 1     <- SYS is computed by both
//!    3     SYS e g                  SYS e               1
//! ```

use std::io::{self, Write};

use xxhash_rust::xxh3::Xxh3;

/// Bytes of text that take about as long to compute as one token of an answer does at the least.
const BYTES_A_TOKEN: u64 = 4;

/// Beginnings of a prompt are told apart at so many bytes, and further in at a 32nd of where that is.
const MIN_STEP_BYTES: u64 = 64;

/// A part may have so many 64ths more work than it must where less is computed twice for it.
const SLACK_64THS: u64 = 3;

/// How far from an even cut it is worth to go, in bytes of work, for each byte that is not computed twice.
const DISTANCE_A_SAVED_BYTE: u64 = 8;

/// What the cutting needs to know of a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sketch {
    /// Digests of ever longer beginnings of what is computed for the line.
    beginnings: Box<[u64]>,
    num_bytes: u64,
    /// Most tokens of its answers.
    max_new_tokens: u64,
}

/// Takes a prompt as bytes, from its first, and makes its sketch.
pub struct Sketcher {
    hasher: Xxh3,
    beginnings: Vec<u64>,
    num_bytes: u64,
    /// Where the beginning that is being taken ends.
    end: u64,
}

impl Default for Sketcher {
    fn default() -> Self {
        Self { hasher: Xxh3::new(), beginnings: Vec::new(), num_bytes: 0, end: MIN_STEP_BYTES }
    }
}

impl Sketcher {
    /// Ends the prompt, whose answers have so many tokens at most.
    pub fn finish(self, max_new_tokens: u64) -> Sketch {
        Sketch { beginnings: self.beginnings.into(), num_bytes: self.num_bytes, max_new_tokens }
    }
}

impl Write for Sketcher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while let Some((these, behind)) = rest.split_at_checked((self.end - self.num_bytes) as usize) {
            self.hasher.update(these);
            self.beginnings.push(self.hasher.digest());
            (self.num_bytes, self.end) = (self.end, next_end(self.end));
            rest = behind;
        }
        self.hasher.update(rest);
        self.num_bytes += rest.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where the beginning ends that is the next longer one.
fn next_end(end: u64) -> u64 {
    end + MIN_STEP_BYTES.max(end / 32 / MIN_STEP_BYTES * MIN_STEP_BYTES)
}

/// Cuts lines into so many parts; returns the part of each, counted from 0. With fewer lines, some parts are empty.
pub fn split(sketches: &[Sketch], num_parts: u32) -> Vec<u32> {
    let mut order: Vec<usize> = (0..sketches.len()).collect();
    // Those that begin alike stand side by side; equal ones as they came.
    order.sort_by(|&one, &other| sketches[one].beginnings.cmp(&sketches[other].beginnings));
    let mut part_of = vec![0; sketches.len()];
    let row = Row::new(order.iter().map(|&line| &sketches[line]));
    let cuts = row.cuts(num_parts.max(1) as usize);
    for (part, range) in (0..).zip(cuts.windows(2)) {
        order[range[0]..range[1]].iter().for_each(|&line| part_of[line] = part);
    }
    part_of
}

/// The work of lines in their order, in bytes.
struct Row {
    /// The sum of the work of all lines before each, and of all; what a line shares with the one before it is none.
    before: Vec<u64>,
    /// What each line shares with the one before it: a part that begins with the line computes it once more.
    shared: Vec<u64>,
}

impl Row {
    fn new<'a>(sketches: impl Iterator<Item = &'a Sketch>) -> Self {
        let mut ends = vec![0, MIN_STEP_BYTES];
        let (mut before, mut shared) = (vec![0_u64], Vec::new());
        let mut last: &[u64] = &[];
        let mut sum = 0_u64;
        for Sketch { beginnings, num_bytes, max_new_tokens } in sketches {
            let num_alike = beginnings.iter().zip(last).take_while(|(one, other)| one == other).count();
            while ends.len() <= num_alike {
                ends.push(next_end(ends[ends.len() - 1]));
            }
            let work =
                (num_bytes - ends[num_alike]).saturating_add(max_new_tokens.saturating_mul(BYTES_A_TOKEN));
            // A line without any work is one more line all the same.
            sum = sum.saturating_add(work.max(1));
            before.push(sum);
            shared.push(ends[num_alike]);
            last = beginnings;
        }
        Self { before, shared }
    }

    fn num_lines(&self) -> usize {
        self.shared.len()
    }

    fn shared_at(&self, line: usize) -> u64 {
        self.shared.get(line).copied().unwrap_or(0)
    }

    /// The work of a part. Not less with more lines, at either end.
    fn work(&self, start: usize, end: usize) -> u64 {
        match start < end {
            true => (self.before[end] - self.before[start]).saturating_add(self.shared[start]),
            false => 0,
        }
    }

    /// The end of the longest part from a line on that has so much work at most.
    fn farthest_end(&self, start: usize, max_work: u64) -> usize {
        let lines = self.before.len() - 1 - start;
        let fitting = partition_point(lines, |num| self.work(start, start + num + 1) <= max_work);
        start + fitting
    }

    /// The start of the longest part up to a line that has so much work at most.
    fn farthest_start(&self, end: usize, max_work: u64) -> usize {
        end - partition_point(end, |num| self.work(end - num - 1, end) <= max_work)
    }

    fn fits(&self, num_parts: usize, max_work: u64) -> bool {
        let mut start = 0;
        for _ in 0..num_parts {
            let end = self.farthest_end(start, max_work);
            if end == self.num_lines() {
                return true;
            }
            if end == start {
                return false;
            }
            start = end;
        }
        false
    }

    /// About what is computed once more at each cut.
    fn num_bytes_twice(&self, num_parts: usize, max_work: u64) -> u64 {
        let next = |&start: &usize| Some(self.farthest_end(start, max_work)).filter(|end| *end > start);
        let cuts = std::iter::successors(Some(0), next).skip(1).take(num_parts - 1);
        let shared: u64 = cuts.map(|cut| self.shared_at(cut)).fold(0, u64::saturating_add);
        shared / (num_parts as u64 - 1).max(1)
    }

    /// Where the parts begin, and where the last ends.
    fn cuts(&self, num_parts: usize) -> Vec<usize> {
        let num_lines = self.num_lines();
        let (mut low, mut high) = (0, self.work(0, num_lines));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.fits(num_parts, middle) { high = middle } else { low = middle + 1 }
        }
        let max_work = high.saturating_add(high / 64 * SLACK_64THS);

        // The earliest line at which each part may begin if those from it on are to hold all the rest.
        let mut earliest = vec![num_lines; num_parts + 1];
        for part in (0..num_parts).rev() {
            earliest[part] = self.farthest_start(earliest[part + 1], max_work);
        }
        let twice = self.num_bytes_twice(num_parts, max_work);
        let mut cuts = vec![0];
        for (part, &earliest) in earliest.iter().enumerate().take(num_parts).skip(1) {
            let start = cuts[part - 1];
            let latest = self.farthest_end(start, max_work);
            let num_left = (num_parts - part + 1) as u64;
            let left = self.work(start, num_lines).saturating_add(twice.saturating_mul(num_left - 1));
            let ideal = left / num_left;
            let places = earliest.max(start + 1).min(latest)..=latest;
            let best = places.min_by_key(|&end| {
                let distance = self.work(start, end).abs_diff(ideal);
                (self.shared_at(end).saturating_add(distance / DISTANCE_A_SAVED_BYTE), distance, end)
            });
            cuts.push(best.unwrap_or(latest));
        }
        cuts.push(num_lines);
        cuts
    }
}

/// How many numbers from 0 up to `num` are so, where those that are come first.
fn partition_point(num: usize, is_so: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, num);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_so(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sketch(pieces: &[&str], max_new_tokens: u64) -> Sketch {
        let mut sketcher = Sketcher::default();
        pieces.iter().for_each(|piece| sketcher.write_all(piece.as_bytes()).expect("it takes all"));
        sketcher.finish(max_new_tokens)
    }

    /// What all parts compute, and the most that one does.
    fn work_of(sketches: &[Sketch], part_of: &[u32], num_parts: u32) -> (u64, u64) {
        let works = (0..num_parts).map(|part| {
            let mut lines: Vec<&Sketch> =
                sketches.iter().zip(part_of).filter(|(_, of)| **of == part).map(|(line, _)| line).collect();
            lines.sort_by(|one, other| one.beginnings.cmp(&other.beginnings));
            let row = Row::new(lines.into_iter());
            row.work(0, row.num_lines())
        });
        works.fold((0, 0), |(sum, most), work| (sum + work, most.max(work)))
    }

    #[test]
    fn a_sketch_does_not_depend_on_the_pieces_that_bytes_come_in() {
        let text = "x".repeat(9_999);
        let whole = sketch(&[&text], 3);
        assert_eq!(sketch(&[&text[..1], &text[1..64], &text[64..5_000], "", &text[5_000..]], 3), whole);
        // Every 64 bytes at first: a long prompt has few more.
        assert_eq!(whole.beginnings.len(), 64 + 33);
        assert_eq!(sketch(&["short"], 0).beginnings.len(), 0);
    }

    #[test]
    fn documents_stay_whole_where_parts_are_cut_between_them() {
        let documents = ["a", "b", "c", "d"].map(|letter| letter.repeat(4_000));
        // In the order of a file that goes round.
        let lines: Vec<Sketch> = (0..40)
            .map(|number| sketch(&[&documents[number % 4], &format!("{number} {}", "q".repeat(100))], 20))
            .collect();
        for num_parts in [2, 4] {
            let part_of = split(&lines, num_parts);
            assert_eq!(work_of(&lines, &part_of, num_parts).0, work_of(&lines, &[0; 40], 1).0);
            for number in 4..40 {
                assert_eq!(part_of[number], part_of[number - 4], "line {number} of {num_parts}");
            }
        }
    }

    #[test]
    fn what_all_share_is_computed_once_a_part_and_the_rest_is_even() {
        let lines: Vec<Sketch> =
            (0..100).map(|number| sketch(&[&"s".repeat(2_800), &format!("{number:>200}")], 64)).collect();
        let part_of = split(&lines, 8);
        let sizes: Vec<usize> = (0..8).map(|part| part_of.iter().filter(|of| **of == part).count()).collect();
        assert!(sizes.iter().all(|size| (12..=13).contains(size)), "{sizes:?}");
        let alone = work_of(&lines, &[0; 100], 1).0;
        assert!(work_of(&lines, &part_of, 8).0 <= alone + 7 * 2_944);
    }

    #[test]
    fn a_long_answer_weighs_as_much_as_many_short_ones() {
        let mut lines: Vec<Sketch> = (0..10).map(|number| sketch(&[&format!("{number}")], 10)).collect();
        lines.push(sketch(&["long"], 100));
        let part_of = split(&lines, 2);
        assert!(part_of[..10].iter().all(|part| *part != part_of[10]), "{part_of:?}");
    }

    #[test]
    fn no_lines_and_fewer_lines_than_parts_are_split_too() {
        assert_eq!(split(&[], 8), Vec::<u32>::new());
        let mut parts = split(&[sketch(&["a"], 1), sketch(&["b"], 1), Sketch::default()], 8);
        assert!(parts.iter().all(|part| *part < 8));
        parts.sort_unstable();
        parts.dedup();
        assert_eq!(parts.len(), 3);
        assert_eq!(split(&vec![Sketch::default(); 5], 1), [0; 5]);
    }

    proptest! {
        #[test]
        fn no_part_has_much_more_work_than_it_must(
            lines in prop::collection::vec((0_usize..4, 0_usize..3, 0_u64..300), 0..60),
            num_parts in 1_u32..9,
        ) {
            let lines: Vec<Sketch> = lines
                .iter()
                .map(|(one, two, new)| sketch(&[&one.to_string().repeat(500), &two.to_string().repeat(300)], *new))
                .collect();
            let part_of = split(&lines, num_parts);
            prop_assert_eq!(part_of.len(), lines.len());
            prop_assert!(part_of.iter().all(|part| *part < num_parts));
            prop_assert_eq!(&split(&lines, num_parts), &part_of);
            let (all, most) = work_of(&lines, &part_of, num_parts);
            let (alone, _) = work_of(&lines, &vec![0; lines.len()], 1);
            let longest = lines.iter().map(|line| line.num_bytes + 4 * line.max_new_tokens + 1).max().unwrap_or(0);
            // A part must have its share or a line; what is shared is at most 800 bytes a part.
            let must = (alone / u64::from(num_parts)).max(longest) + 800 + longest;
            prop_assert!(most <= must + must * SLACK_64THS / 64, "{most} of {alone} in {num_parts}, must {must}");
            prop_assert!(all <= alone + 800 * u64::from(num_parts - 1));
        }
    }
}
