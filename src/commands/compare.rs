//! `mlxbatch compare`: whether two runs gave the same answers, and how many of them are right.
//!
//! Owns the comparison and its wording. What of an output line is its answer is `answers`' business, when an
//! answer is right `judge`'s.

mod answers;
mod judge;

use std::io::{self, Write};

use anyhow::bail;
use serde_json::{Value, json};

use self::answers::{Answers, Expected};
use self::judge::Judge;
use super::{Outcome, written};
use crate::{
    batch::{count_text, number_text},
    cli::CompareArgs,
};

/// Bytes of an answer that are shown.
const MAX_SHOWN_BYTES: usize = 160;

/// Compares the files.
pub fn compare(args: &CompareArgs) -> anyhow::Result<Outcome> {
    let judge = Judge::new(args)?;
    let first = Answers::read(&args.first)?;
    let second = args.second.as_deref().map(Answers::read).transpose()?;
    let expected = match (&args.expected, &args.data) {
        (Some(field), data) => Some(Expected::read(field, data.as_deref(), &first)?),
        (None, _) => None,
    };
    let scores: Vec<Score> = match &expected {
        None => Vec::new(),
        Some(expected) => {
            let files = [Some(&first), second.as_ref()];
            files.into_iter().flatten().map(|answers| Score::of(answers, expected, &judge)).collect()
        }
    };
    if let Some(score) = scores.iter().find(|score| score.num_judged() == 0) {
        bail!(
            "no line of {} has an expected answer; --expected names a field of the lines' metadata, or of the lines of \
             --data",
            score.name
        );
    }
    let agreement = second.as_ref().map(|second| Agreement::of(&first, second, &judge));
    let report = Report { first: &first, second: second.as_ref(), agreement, scores };
    let text = if args.json { format!("{:#}\n", report.to_json()) } else { report.to_text(args.show) };
    let mut stdout = io::stdout().lock();
    let outcome = written(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()), Outcome::Done)?;
    report.check(args)?;
    Ok(outcome)
}

/// How two files agree.
struct Agreement {
    num_both: usize,
    only_first: usize,
    only_second: usize,
    /// Ids of answers that differ, in the order of the first file.
    differing: Vec<String>,
}

impl Agreement {
    fn of(first: &Answers, second: &Answers, judge: &Judge) -> Self {
        let both: Vec<_> = first.iter().filter_map(|(id, one)| Some((id, one, second.get(id)?))).collect();
        let differs = |one: Option<&str>, other: Option<&str>| judge.taken(one) != judge.taken(other);
        let differing = both.iter().filter(|(_, one, other)| differs(one.as_deref(), other.as_deref()));
        Self {
            num_both: both.len(),
            only_first: first.len() - both.len(),
            only_second: second.len() - both.len(),
            differing: differing.map(|(id, ..)| (*id).to_owned()).collect(),
        }
    }

    fn share(&self) -> f64 {
        share(self.num_both - self.differing.len(), self.num_both)
    }
}

/// How many answers of a file are right.
struct Score {
    name: String,
    /// By id, in the order of the file: those with an expected answer.
    verdicts: Vec<(String, bool)>,
    /// Of them, lines that failed: they are wrong.
    num_failed: usize,
}

impl Score {
    fn of(answers: &Answers, expected: &Expected, judge: &Judge) -> Self {
        let judged: Vec<_> =
            answers.iter().filter_map(|(id, answer)| Some((id, answer, expected.get(id)?))).collect();
        let verdict = |answer: &Option<String>, expected: &str| {
            answer.as_deref().is_some_and(|answer| judge.is_right(answer, expected))
        };
        Self {
            name: answers.name.clone(),
            num_failed: judged.iter().filter(|(_, answer, _)| answer.is_none()).count(),
            verdicts: judged
                .iter()
                .map(|(id, answer, expected)| ((*id).to_owned(), verdict(answer, expected)))
                .collect(),
        }
    }

    fn num_judged(&self) -> usize {
        self.verdicts.len()
    }

    fn num_right(&self) -> usize {
        self.verdicts.iter().filter(|(_, is_right)| *is_right).count()
    }

    fn accuracy(&self) -> f64 {
        share(self.num_right(), self.num_judged())
    }

    /// The standard error of the accuracy, as lm-evaluation-harness computes it: with n - 1.
    fn standard_error(&self) -> f64 {
        let numbers: Vec<f64> =
            self.verdicts.iter().map(|(_, is_right)| f64::from(u8::from(*is_right))).collect();
        standard_error(&numbers)
    }

    /// By how much the other file is more accurate, and the standard error of that, question by question.
    fn gain_of(&self, other: &Score) -> (f64, f64) {
        let right: std::collections::HashMap<&str, bool> =
            self.verdicts.iter().map(|(id, is_right)| (id.as_str(), *is_right)).collect();
        let gain = |(id, is_right): &(String, bool)| {
            let before = *right.get(id.as_str())?;
            Some(f64::from(u8::from(*is_right)) - f64::from(u8::from(before)))
        };
        let gains: Vec<f64> = other.verdicts.iter().filter_map(gain).collect();
        (mean(&gains), standard_error(&gains))
    }

    fn to_json(&self) -> Value {
        json!({
            "file": self.name,
            "num_judged": self.num_judged(),
            "num_right": self.num_right(),
            "num_failed": self.num_failed,
            "accuracy": self.accuracy(),
            "standard_error": self.standard_error(),
        })
    }
}

struct Report<'a> {
    first: &'a Answers,
    second: Option<&'a Answers>,
    agreement: Option<Agreement>,
    scores: Vec<Score>,
}

impl Report<'_> {
    fn to_text(&self, num_shown: usize) -> String {
        let mut lines = Vec::new();
        if let (Some(agreement), Some(second)) = (&self.agreement, self.second) {
            let (one, other) = (&self.first.name, &second.name);
            let num_agreeing = agreement.num_both - agreement.differing.len();
            lines.push(format!(
                "{one} and {other}: {} in both",
                count_text(agreement.num_both as u64, "line")
            ));
            for (num, name) in [(agreement.only_first, one), (agreement.only_second, other)] {
                if num > 0 {
                    lines.push(format!("  missing    {} in {name} alone", count_text(num as u64, "line")));
                }
            }
            lines.push(format!(
                "  agree      {} of {}, {}",
                number_text(num_agreeing as u64),
                number_text(agreement.num_both as u64),
                percent(agreement.share())
            ));
        }
        for score in &self.scores {
            let failed = match score.num_failed {
                0 => String::new(),
                num_failed => format!("; {} of them failed", number_text(num_failed as u64)),
            };
            lines.push(format!(
                "  accuracy   {} ± {}: {} of {} in {}{failed}",
                percent(score.accuracy()),
                percent(score.standard_error()),
                number_text(score.num_right() as u64),
                number_text(score.num_judged() as u64),
                score.name
            ));
        }
        if let [one, other] = self.scores.as_slice() {
            let (gain, error) = one.gain_of(other);
            lines.push(format!("  gain       {:+.1} ± {:.1} percentage points", gain * 100.0, error * 100.0));
        }
        if let (Some(agreement), Some(second)) = (&self.agreement, self.second) {
            for id in agreement.differing.iter().take(num_shown) {
                lines.push(format!("{id:?}"));
                for answers in [self.first, second] {
                    lines.push(format!(
                        "  {}: {}",
                        answers.name,
                        shown(answers.get(id).and_then(Option::as_deref))
                    ));
                }
            }
            let num_more = agreement.differing.len().saturating_sub(num_shown);
            if num_more > 0 {
                lines.push(format!("{} more differ; --show shows more", number_text(num_more as u64)));
            }
        }
        lines.join("\n") + "\n"
    }

    fn to_json(&self) -> Value {
        let agreement = self.agreement.as_ref().map(|agreement| {
            json!({
                "num_both": agreement.num_both,
                "num_only_first": agreement.only_first,
                "num_only_second": agreement.only_second,
                "agreement": agreement.share(),
                "differing": agreement.differing,
            })
        });
        let gain = match self.scores.as_slice() {
            [one, other] => {
                let (gain, error) = one.gain_of(other);
                json!({"gain": gain, "standard_error": error})
            }
            _ => Value::Null,
        };
        let scores: Vec<Value> = self.scores.iter().map(Score::to_json).collect();
        json!({"agreement": agreement, "accuracy": scores, "gain": gain})
    }

    /// Fails where less is reached than is asked for.
    fn check(&self, args: &CompareArgs) -> anyhow::Result<()> {
        let least = args.min_accuracy.unwrap_or(0.0);
        if let Some(score) = self.scores.iter().find(|score| score.accuracy() < least) {
            bail!(
                "the accuracy of {} is {}, below --min-accuracy {}",
                score.name,
                percent(score.accuracy()),
                percent(least)
            );
        }
        if let (Some(least), Some(agreement)) = (args.min_agreement, &self.agreement)
            && (agreement.share() < least || agreement.num_both == 0)
        {
            bail!("{} agree, below --min-agreement {}", percent(agreement.share()), percent(least));
        }
        Ok(())
    }
}

/// An answer on one line, in quotes: it may hold anything.
fn shown(answer: Option<&str>) -> String {
    let Some(answer) = answer else { return "failed".to_owned() };
    let mut end = answer.len().min(MAX_SHOWN_BYTES);
    while !answer.is_char_boundary(end) {
        end -= 1;
    }
    let more = if end < answer.len() { "…" } else { "" };
    format!("{:?}{more}", &answer[..end])
}

fn share(num: usize, of: usize) -> f64 {
    if of == 0 { 0.0 } else { num as f64 / of as f64 }
}

fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

fn mean(numbers: &[f64]) -> f64 {
    if numbers.is_empty() { 0.0 } else { numbers.iter().sum::<f64>() / numbers.len() as f64 }
}

/// Of a mean: the sample's standard deviation over the root of its size.
fn standard_error(numbers: &[f64]) -> f64 {
    if numbers.len() < 2 {
        return 0.0;
    }
    let (mean, num) = (mean(numbers), numbers.len() as f64);
    let variance = numbers.iter().map(|number| (number - mean).powi(2)).sum::<f64>() / (num - 1.0);
    (variance / num).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standard_error_is_that_of_the_harness() {
        // 7 of 10: sqrt(0.21 / 9).
        let numbers: Vec<f64> = (0..10).map(|place| f64::from(u8::from(place < 7))).collect();
        assert!((standard_error(&numbers) - 0.152_752_5).abs() < 1e-6);
        assert_eq!((standard_error(&[1.0]), standard_error(&[])), (0.0, 0.0));
    }

    #[test]
    fn an_answer_is_shown_on_one_line() {
        assert_eq!(shown(Some("a\n\u{1b}[2J")), "\"a\\n\\u{1b}[2J\"");
        assert!(shown(Some(&"é".repeat(200))).ends_with("\"…"));
        assert_eq!(shown(None), "failed");
    }
}
