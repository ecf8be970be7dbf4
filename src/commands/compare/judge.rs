//! When an answer is right.
//!
//! Owns the kinds of match, and what of an answer is looked at.

use std::sync::LazyLock;

use anyhow::Context;
use regex::Regex;

use crate::cli::{CompareArgs, MatchArg};

/// Judges answers in one way.
pub(super) struct Judge {
    kind: MatchArg,
    /// What is taken out of answers, and of what is expected.
    extract: Option<Regex>,
}

impl Judge {
    pub(super) fn new(args: &CompareArgs) -> anyhow::Result<Self> {
        let extract = args.extract.as_deref().map(Regex::new).transpose();
        Ok(Self { kind: args.kind, extract: extract.context("--extract is no regular expression")? })
    }

    /// What of an answer counts.
    pub(super) fn taken<'a>(&self, answer: Option<&'a str>) -> Option<&'a str> {
        answer.map(|answer| self.extracted(answer))
    }

    pub(super) fn is_right(&self, answer: &str, expected: &str) -> bool {
        let answer = self.extracted(answer);
        match self.kind {
            MatchArg::Exact => answer.trim() == self.extracted(expected).trim(),
            MatchArg::Contains => answer.contains(expected.trim()),
            MatchArg::Choice => choice(answer).is_some_and(|letter| choice(expected) == Some(letter)),
            // What cannot be matched is matched by nothing.
            MatchArg::Regex => Regex::new(expected).is_ok_and(|expected| expected.is_match(answer)),
        }
    }

    /// The first group of the last match, or all of the match; the whole text where nothing matches.
    fn extracted<'a>(&self, text: &'a str) -> &'a str {
        let found = self.extract.as_ref().and_then(|extract| extract.captures_iter(text).last());
        found.and_then(|found| found.get(1).or(found.get(0))).map_or(text, |found| found.as_str())
    }
}

/// How answers name what they choose, the surest first: `B`, `(B)`, `the answer is B`, `B. because`, and at last any
/// letter that stands alone; A and I are words, too.
const CHOICES: [&str; 6] = [
    r"^\W*([A-Za-z0-9])\W*$",
    r"\(([A-Za-z0-9])\)",
    r"(?:[Aa]nswer|[Cc]hoice|[Oo]ption)(?:\s+is)?\s*:?\s*[*(]*([A-Z0-9])\b",
    r"^\W*([A-Z0-9])[).:,\n]",
    r"\b([B-HJ-Z0-9])\b",
    r"\b([AI])\b",
];

/// The letter or number that an answer chooses.
fn choice(text: &str) -> Option<char> {
    static PATTERNS: LazyLock<[Regex; 6]> =
        LazyLock::new(|| CHOICES.map(|pattern| Regex::new(pattern).expect("the patterns are sound")));
    let found = PATTERNS.iter().find_map(|pattern| pattern.captures(text)?.get(1));
    found.and_then(|found| found.as_str().chars().next()).map(|letter| letter.to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_right(kind: MatchArg, extract: Option<&str>, answer: &str, expected: &str) -> bool {
        let extract = extract.map(|extract| Regex::new(extract).expect("it is an expression"));
        Judge { kind, extract }.is_right(answer, expected)
    }

    #[test]
    fn each_kind_of_match() {
        use MatchArg::{Choice, Contains, Exact, Regex};
        for (kind, extract, answer, expected, verdict) in [
            (Exact, None, " Paris\n", "Paris", true),
            (Exact, None, "Paris.", "Paris", false),
            (Contains, None, "It is Paris.", "Paris", true),
            (Choice, None, "B", "B", true),
            (Choice, None, "(B) because", "B", true),
            (Choice, None, "The answer is C.", "B", false),
            (Choice, None, "b", "B", true),
            (Choice, None, "I think it is B", "B", true),
            (Choice, None, "A good question. Option D", "D", true),
            (Choice, None, "**B.** Since", "B", true),
            (Choice, None, "A", "A", true),
            (Choice, None, "2", "2", true),
            (Choice, None, "nothing", "B", false),
            (Regex, None, "about 42 km", "^about \\d+", true),
            (Regex, None, "42 km", "^about \\d+", false),
            (Regex, None, "x", "(", false),
            (Exact, Some("#### (-?[0-9,.]+)"), "2 + 3 = 5\n#### 5", "so\n#### 5", true),
            (Exact, Some("#### (-?[0-9,.]+)"), "#### 4\n#### 5", "5", true),
            (Exact, Some("[0-9]+"), "first 4, then 5", "5", true),
            (Exact, Some("#### ([0-9]+)"), "no number", "5", false),
        ] {
            assert_eq!(
                is_right(kind, extract, answer, expected),
                verdict,
                "{kind:?} {answer:?} {expected:?}"
            );
        }
    }
}
