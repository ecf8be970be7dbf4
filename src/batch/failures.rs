//! Lines that failed, as a person reads of them.
//!
//! Owns which are told at once, the counts by code, and the examples that a report has. The records of the lines
//! say the same for programs.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::line_error::MACHINE_LIMIT;
use super::units::grouped;

/// So many are told at once; the rest is in the counts and in the output.
const NUM_TOLD: u64 = 5;

/// So many of each code are in a report.
const NUM_EXAMPLES: usize = 5;

/// Bytes of a message that a person reads.
const MAX_TOLD_BYTES: usize = 400;

/// Why a line failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: String,
    /// Names file, line and reason.
    pub message: String,
}

/// The lines of a run that failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failures {
    /// But those that are the machine's fault.
    num: u64,
    by_code: BTreeMap<String, OfCode>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct OfCode {
    num: u64,
    examples: Vec<String>,
}

impl Failures {
    /// Counts a line; returns the lines that are to be said of it at once.
    pub fn add(&mut self, failure: &Failure) -> Vec<String> {
        let message = shortened(&failure.message);
        let of_code = self.by_code.entry(failure.code.clone()).or_default();
        of_code.num += 1;
        if of_code.examples.len() < NUM_EXAMPLES {
            of_code.examples.push(message.clone());
        }
        // It is no news of another line.
        if failure.code == MACHINE_LIMIT {
            let told = "further lines that fail by what the machine allows are counted, and in the output";
            return if of_code.num == 1 { vec![message, told.to_owned()] } else { Vec::new() };
        }
        self.num += 1;
        match self.num {
            ..NUM_TOLD => vec![message],
            NUM_TOLD => vec![message, "further failures are counted, and in the output".to_owned()],
            _ => Vec::new(),
        }
    }

    /// `2 context_length_exceeded, 1 invalid_json`, the most frequent first; nothing where none failed.
    pub fn by_code(&self) -> Option<String> {
        let told: Vec<String> =
            self.each().map(|(code, num, _)| format!("{} {code}", grouped(num))).collect();
        (!told.is_empty()).then(|| told.join(", "))
    }

    /// Each code with its number of lines and the first messages, the most frequent first.
    pub fn each(&self) -> impl Iterator<Item = (&str, u64, &[String])> {
        let mut codes: Vec<_> = self.by_code.iter().collect();
        codes.sort_by_key(|(code, of_code)| (Reverse(of_code.num), *code));
        codes.into_iter().map(|(code, of_code)| (code.as_str(), of_code.num, of_code.examples.as_slice()))
    }

    /// For a report: codes with their number and the first messages.
    pub fn to_json(&self) -> Value {
        let codes = self.by_code.iter();
        codes
            .map(|(code, OfCode { num, examples })| (code.clone(), json!({"num": num, "examples": examples})))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

/// A message that fits on a few lines of a terminal; it may repeat what a request holds.
fn shortened(message: &str) -> String {
    if message.len() <= MAX_TOLD_BYTES {
        return message.to_owned();
    }
    let mut end = MAX_TOLD_BYTES;
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &message[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_told_and_all_are_counted() {
        let mut failures = Failures::default();
        assert_eq!(failures.by_code(), None);
        let told: Vec<Vec<String>> = (1..=8)
            .map(|line| {
                let code = if line % 3 == 0 { "invalid_json" } else { "invalid_value" };
                failures.add(&Failure { code: code.into(), message: format!("in.jsonl:{line}: no") })
            })
            .collect();
        assert_eq!(told[0], ["in.jsonl:1: no"]);
        assert_eq!((told[4].len(), told[4][0].as_str()), (2, "in.jsonl:5: no"));
        assert!(told[5..].iter().all(Vec::is_empty));
        assert_eq!(failures.by_code().as_deref(), Some("6 invalid_value, 2 invalid_json"));
        let report = failures.to_json();
        assert_eq!(
            report["invalid_json"],
            json!({"num": 2, "examples": ["in.jsonl:3: no", "in.jsonl:6: no"]})
        );
        assert_eq!(report["invalid_value"]["examples"].as_array().map(Vec::len), Some(5));
    }

    /// Each line told it as if it was that line's own, and took the place of what was.
    #[test]
    fn what_the_machine_is_at_fault_for_is_told_once() {
        let mut failures = Failures::default();
        let add = |failures: &mut Failures, code: &str| {
            failures.add(&Failure { code: code.into(), message: format!("in.jsonl:1: {code}") }).len()
        };
        assert_eq!(add(&mut failures, MACHINE_LIMIT), 2);
        assert!((0..9).all(|_| add(&mut failures, MACHINE_LIMIT) == 0));
        assert_eq!(add(&mut failures, "invalid_json"), 1);
        assert_eq!(failures.by_code().as_deref(), Some("10 machine_limit, 1 invalid_json"));
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let failure = Failure { code: "c".into(), message: "é".repeat(1000) };
        assert_eq!(Failures::default().add(&failure), ["é".repeat(200) + "…"]);
    }
}
