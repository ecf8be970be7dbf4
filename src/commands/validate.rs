//! `mlxbatch validate`: reads and checks a file of requests, without a model.
//!
//! Owns the report. The checks are those of a run, by the same reader; what only a model can tell
//! (a prompt over the context length, a template that refuses) is not checked here. Constraints on answers are
//! compiled as for a model whose tokens are single bytes.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};

use super::{Outcome, find_inputs, written};
use crate::batch::{AnswerConstraint, InputPath, Prompt, Request, RequestError, RequestReader, count_text};
use crate::cli::ValidateArgs;
use crate::guide::{Compiler, Constraint, GuideError, Vocabulary};
use crate::terminal::{self, eprint_line};

/// Checks a file: problems and counts on standard output, warnings on standard error.
pub fn validate(args: &ValidateArgs) -> anyhow::Result<Outcome> {
    let inputs = find_inputs(&args.input, args.quiet)?;
    let mut reader = RequestReader::open(&inputs, args.rows.options()?)?;
    let mut report = Report::default();
    let mut stdout = BufWriter::new(io::stdout().lock());
    // Whoever types requests into a terminal sees each problem at once.
    let is_live = inputs.all().contains(&InputPath::Stdin);

    let constraints = Constraints::default();
    while let Some(item) = reader.next_request()? {
        let (code, message) = match item {
            Err(failed) => (failed.error.code(), failed.error.message().to_owned()),
            Ok(request) => match constraints.check(&request) {
                Ok(()) => {
                    report.num_turns += num_turns(&request);
                    continue;
                }
                Err(error) => (error.code, error.at(&request.head.file.name, request.head.line).message),
            },
        };
        report.add(code);
        let mut shown = writeln!(stdout, "{}", terminal::shown(&message));
        if is_live {
            shown = shown.and_then(|()| stdout.flush());
        }
        if shown.is_err() {
            return written(shown, Outcome::SomeFailed);
        }
    }
    report.num_requests = reader.num_requests();

    if !args.quiet {
        for warning in reader.warnings().texts() {
            eprint_line(&format!("mlxbatch: warning: {warning}"));
        }
        if report.num_requests == 0 {
            eprint_line(&format!("mlxbatch: warning: {} holds no requests", reader.name()));
        }
        let shown = writeln!(stdout, "{}: {}", terminal::shown(&reader.name()), report.text());
        if shown.is_err() {
            return written(shown, report.outcome());
        }
    }
    written(stdout.flush(), report.outcome())
}

/// What constraints are compiled with, once there is one.
#[derive(Debug, Default)]
struct Constraints(OnceCell<Result<Compiler, GuideError>>);

impl Constraints {
    fn check(&self, request: &Request) -> Result<(), RequestError> {
        let Some(AnswerConstraint { param, constraint }) = &request.options.constraint else { return Ok(()) };
        // It may name tokens, which only a model has.
        if matches!(&**constraint, Constraint::Grammar(text) if text.contains('<')) {
            return Ok(());
        }
        let compiler = self.0.get_or_init(|| Compiler::new(Vocabulary::of_bytes()));
        let checked = compiler
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|compiler| compiler.pattern(Some(constraint), None));
        checked.map(drop).map_err(|error| RequestError::of_constraint(param, &error))
    }
}

fn num_turns(request: &Request) -> u64 {
    match &request.prompts[..] {
        [Prompt::Chat(chat)] => chat.num_turns() as u64,
        _ => 1,
    }
}

#[derive(Debug, Default)]
struct Report {
    num_requests: u64,
    /// Of the sound ones: turns of conversations, and all else as one each.
    num_turns: u64,
    num_by_code: BTreeMap<&'static str, u64>,
}

impl Report {
    fn add(&mut self, code: &'static str) {
        *self.num_by_code.entry(code).or_default() += 1;
    }

    fn outcome(&self) -> Outcome {
        if self.num_by_code.is_empty() { Outcome::Done } else { Outcome::SomeFailed }
    }

    /// `12 requests, 3 with problems (2 invalid_json, 1 invalid_value)`
    fn text(&self) -> String {
        let num_problems: u64 = self.num_by_code.values().sum();
        let mut requests = count_text(self.num_requests, "request");
        if self.num_turns > self.num_requests - num_problems {
            requests += &format!(" with {}", count_text(self.num_turns, "turn"));
        }
        match (self.num_requests, num_problems) {
            (0, _) => requests,
            (1, 0) => format!("{requests}, ok"),
            (_, 0) => format!("{requests}, all ok"),
            _ => {
                let kinds: Vec<_> =
                    self.num_by_code.iter().map(|(code, num)| format!("{num} {code}")).collect();
                format!("{requests}, {num_problems} with problems ({})", kinds.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_counts_by_kind() {
        let mut report = Report { num_requests: 1, ..Report::default() };
        assert_eq!((report.text().as_str(), report.outcome()), ("1 request, ok", Outcome::Done));
        report = Report { num_requests: 2, num_turns: 5, ..report };
        assert_eq!(report.text(), "2 requests with 5 turns, all ok");
        report.num_requests = 12;
        for code in ["invalid_value", "invalid_json", "invalid_json"] {
            report.add(code);
        }
        assert_eq!(report.text(), "12 requests, 3 with problems (2 invalid_json, 1 invalid_value)");
        assert_eq!(report.outcome(), Outcome::SomeFailed);
    }
}
