//! Which lines of an input are answered.
//!
//! Owns limits, ranges and samples over the lines that are not blank.

use std::collections::BTreeSet;

/// Lines as a user chooses them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Selection {
    #[default]
    All,
    /// From the first up to the second, counted from 0.
    Range(u64, Option<u64>),
    /// So many, drawn by a seed.
    Sample(u64, u64),
}

/// The same, once it is known how many lines there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Selected {
    Range(u64, Option<u64>),
    These(BTreeSet<u64>),
}

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Answered,
    Skipped,
    /// Nor is any line behind it answered.
    End,
}

impl Selection {
    /// Of so many lines; `None` where that is not known and would have to be.
    pub(super) fn of(self, num_lines: Option<u64>) -> Option<Selected> {
        match self {
            Self::All => Some(Selected::Range(0, None)),
            Self::Range(start, end) => Some(Selected::Range(start, end)),
            Self::Sample(num, seed) => {
                num_lines.map(|num_lines| Selected::These(drawn(num, seed, num_lines)))
            }
        }
    }
}

impl Selected {
    pub(super) fn fate(&self, place: u64) -> Fate {
        match self {
            Self::Range(start, _) if place < *start => Fate::Skipped,
            Self::Range(_, Some(end)) if place >= *end => Fate::End,
            Self::Range(..) => Fate::Answered,
            Self::These(places) if places.contains(&place) => Fate::Answered,
            Self::These(places) if places.last().is_none_or(|last| place > *last) => Fate::End,
            Self::These(_) => Fate::Skipped,
        }
    }

    /// How many of so many lines.
    pub(super) fn num_of(&self, num_lines: u64) -> u64 {
        match self {
            Self::Range(start, end) => end.unwrap_or(num_lines).min(num_lines).saturating_sub(*start),
            Self::These(places) => places.len() as u64,
        }
    }
}

/// Draws places without putting any back (Floyd's algorithm, Communications of the ACM 30(9), 1987).
fn drawn(num: u64, seed: u64, num_lines: u64) -> BTreeSet<u64> {
    let mut places = BTreeSet::new();
    let mut hasher_seed = seed;
    for last in num_lines.saturating_sub(num)..num_lines {
        // Of 128 bits: the same share of them for each place, but for 2^-64.
        let mut hasher = blake3::Hasher::new();
        hasher.update(&hasher_seed.to_le_bytes()).update(&last.to_le_bytes());
        let bits = hasher.finalize();
        let number = u64::from_le_bytes(bits.as_bytes()[..8].try_into().expect("eight bytes"));
        let place = ((u128::from(number) * u128::from(last + 1)) >> 64) as u64;
        hasher_seed = hasher_seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        if !places.insert(place) {
            places.insert(last);
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(selection: Selection, num_lines: u64) -> Vec<u64> {
        let selected = selection.of(Some(num_lines)).expect("it is known");
        let taken: Vec<u64> = (0..num_lines)
            .take_while(|place| selected.fate(*place) != Fate::End)
            .filter(|place| selected.fate(*place) == Fate::Answered)
            .collect();
        assert_eq!(taken.len() as u64, selected.num_of(num_lines));
        taken
    }

    #[test]
    fn each_selection_takes_what_it_says() {
        assert_eq!(taken(Selection::All, 3), [0, 1, 2]);
        assert_eq!(taken(Selection::Range(0, Some(2)), 3), [0, 1]);
        assert_eq!(taken(Selection::Range(2, Some(9)), 4), [2, 3]);
        assert_eq!(taken(Selection::Range(1, None), 3), [1, 2]);
        assert_eq!(taken(Selection::Range(5, None), 3), [0; 0]);
        assert_eq!(taken(Selection::Sample(9, 1), 3), [0, 1, 2]);
        assert_eq!(taken(Selection::Sample(0, 1), 3), [0; 0]);
        assert_eq!(Selection::Sample(2, 1).of(None), None);
    }

    #[test]
    fn a_sample_follows_from_its_seed_and_every_line_is_as_likely() {
        assert_eq!(taken(Selection::Sample(10, 7), 1000), taken(Selection::Sample(10, 7), 1000));
        assert_ne!(taken(Selection::Sample(10, 7), 1000), taken(Selection::Sample(10, 8), 1000));
        let mut counts = [0_u32; 10];
        for seed in 0..2000 {
            taken(Selection::Sample(3, seed), 10).into_iter().for_each(|place| counts[place as usize] += 1);
        }
        assert!(counts.iter().all(|count| (500..700).contains(count)), "{counts:?}");
    }
}
