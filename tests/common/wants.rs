//! What a prompt may want beside its answer, and what that comes to by a formula.
//!
//! Owns the formulas, which know a model's logits and nothing else; asking for them is `runs`' business.

use std::sync::{Arc, OnceLock};

use mlxbatch::engine::{Processors, Report, Score, TokenReport};
use mlxbatch::guide::{Compiler, Constraint, Next, Pattern, Preamble, Vocabulary};
use mlxbatch::mlx::MlxRunner;

use super::batch::{Batch, Numbers};

/// How far a log-probability may be off.
pub const MAX_ERROR: f32 = 1e-3;

#[derive(Debug, Clone, Default)]
pub struct Wants {
    pub processors: Processors,
    pub guide: Option<Pattern>,
    pub report: Option<Report>,
    pub score: Option<Score>,
}

impl Wants {
    /// Something for some prompts, and nothing for the others.
    pub fn random(numbers: &mut Numbers, num_prompt_tokens: usize) -> Self {
        let mut is_lucky = |percent: usize| numbers.within(1..=100) <= percent;
        let (has_processors, has_report, has_score) = (is_lucky(30), is_lucky(20), is_lucky(25));
        let num_top = numbers.within(0..=20) as u32;
        let from = numbers.within(1..=num_prompt_tokens.max(2) - 1);
        let mut processors = if has_processors { processors(numbers) } else { Processors::default() };
        let guide = (numbers.within(1..=100) <= 20).then(|| endless_pattern(numbers.within(0..=5)));
        if guide.is_some() {
            // So that there is always something to choose.
            (processors.never, processors.bad_words) = Default::default();
        }
        Self {
            processors,
            guide,
            report: has_report.then_some(Report { num_top }),
            score: (has_score && num_prompt_tokens > 1).then_some(Score { from, num_top }),
        }
    }
}

fn processors(numbers: &mut Numbers) -> Processors {
    let mut penalty = |most: usize| match numbers.within(0..=2) {
        0 => numbers.within(0..=most) as f32 / 10.0,
        _ => 0.0,
    };
    let (repetition, presence, frequency) = (1.0 + penalty(8), penalty(15), penalty(9));
    let window = numbers.within(0..=40);
    let mut words = |most: usize| {
        let count = numbers.within(0..=most);
        numbers.words(count)
    };
    let biased: Vec<(u32, f32)> = words(3).into_iter().map(|token| (token, 1.5)).collect();
    let (never, single, double) = (words(4), words(3), words(60));
    let bad = single.chunks(1).chain(double.chunks(2)).map(<[u32]>::to_vec);
    Processors {
        repetition_penalty: repetition,
        repetition_window: (window > 20).then_some(window),
        presence_penalty: presence,
        frequency_penalty: frequency,
        logit_bias: biased.into(),
        min_new_tokens: numbers.within(0..=4),
        bad_words: bad.collect::<Vec<_>>().into(),
        never: never.into(),
    }
}

/// A constraint under which an answer can always go on, whatever the tokens of the model are in truth: here
/// each is a letter.
fn endless_pattern(number: usize) -> Pattern {
    static PATTERNS: OnceLock<Vec<Pattern>> = OnceLock::new();
    let patterns = PATTERNS.get_or_init(|| {
        let tokens = (0..303u32).map(|token| vec![b'a' + (token % 26) as u8]).collect();
        let compiler = Compiler::new(Vocabulary { tokens, ..Vocabulary::default() }).unwrap();
        let expressions = ["[a-m]*", "(ab?[c-z]{2})*", "([a-e]+|[f-z]{3})*"];
        let constraints = expressions.map(|expression| Arc::new(Constraint::Regex(expression.to_owned())));
        let pattern = |constraint, preamble| compiler.pattern(constraint, preamble).unwrap();
        let mut patterns: Vec<Pattern> =
            constraints.iter().map(|constraint| pattern(Some(constraint), None)).collect();
        // With thinking in front, which is as good as any other tokens.
        let thinking = |is_open, max_tokens| Preamble {
            open: "a".into(),
            is_open,
            close: "xy".into(),
            max_tokens,
            // A closing token might be one that the request has banned.
            forced_close: Arc::from([]),
        };
        patterns.push(pattern(Some(&constraints[0]), Some(thinking(true, Some(7)))));
        patterns.push(pattern(Some(&constraints[2]), Some(thinking(false, None))));
        patterns.push(pattern(None, Some(thinking(true, Some(3)))));
        patterns
    });
    patterns[number].clone()
}

/// A model's logits after `text`, the new tokens of a prompt at its end, as its processors have them.
pub fn processed(runner: &mut MlxRunner, batch: &Batch, index: usize, text: &[u32]) -> Vec<f32> {
    let prompt = &batch.prompts[index];
    let new = &text[prompt.tokens.len()..];
    let Processors { repetition_penalty, repetition_window, presence_penalty, frequency_penalty, .. } =
        prompt.wants.processors;
    let Processors { logit_bias, min_new_tokens, bad_words, never, .. } = &prompt.wants.processors;
    let recent = &text[text.len() - repetition_window.unwrap_or(text.len()).min(text.len())..];
    let mut logits = runner.next_logits(text).unwrap();
    for (token, logit) in (0..).zip(&mut logits) {
        *logit += logit_bias.iter().filter(|(other, _)| *other == token).map(|(_, bias)| bias).sum::<f32>();
        let completes = |word: &Vec<u32>| {
            word.split_last().is_some_and(|(last, start)| *last == token && new.ends_with(start))
        };
        if never.contains(&token)
            || new.len() < *min_new_tokens && batch.end_ids.contains(&token)
            || bad_words.iter().any(completes)
        {
            *logit = f32::NEG_INFINITY;
        }
        if recent.contains(&token) {
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
        }
        let num_new = new.iter().filter(|other| **other == token).count();
        *logit -= frequency_penalty * num_new as f32;
        *logit -= if num_new > 0 { presence_penalty } else { 0.0 };
    }
    if let Some(pattern) = &prompt.wants.guide {
        let mut guide = pattern.begin().unwrap();
        new.iter().for_each(|token| assert!(!guide.accept(*token).unwrap(), "it is over"));
        let allowed = match guide.next(&batch.end_ids, new.len() < *min_new_tokens).unwrap() {
            Next::Anything => return logits,
            Next::OneOf(allowed) => allowed,
            Next::Nothing => panic!("nothing may follow {new:?}"),
        };
        let forbidden = (0..).zip(&mut logits).filter(|(token, _)| !allowed.contains(*token));
        forbidden.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
    }
    logits
}

/// What is wrong with a report, if anything, given the log-probabilities of all tokens.
pub fn fault(report: &TokenReport, all: &[f32], num_top: u32) -> Option<String> {
    let own = all[report.token as usize];
    let is_off = |found: f32, expected: f32| (found - expected).abs() > MAX_ERROR;
    if is_off(report.log_probability, own) {
        return Some(format!("{} is {}, not {own}", report.token, report.log_probability));
    }
    // Tokens that are nearly as probable may stand on either side.
    let num_above = |margin: f32| all.iter().filter(|other| **other > own + margin).count();
    let ranks = num_above(2.0 * MAX_ERROR) + 1..=num_above(-2.0 * MAX_ERROR) + 1;
    if !ranks.contains(&(report.rank as usize)) {
        return Some(format!("the rank of {} is {}, not {ranks:?}", report.token, report.rank));
    }
    let mut falling = all.to_vec();
    falling.sort_by(|left, right| right.total_cmp(left));
    falling.truncate(num_top as usize);
    if report.top.len() != falling.len() {
        return Some(format!("{} tokens at the top, not {}", report.top.len(), falling.len()));
    }
    let mut places = report.top.iter().zip(&falling);
    places.find_map(|(&(token, found), &expected)| {
        (is_off(found, expected) || is_off(found, all[token as usize]))
            .then(|| format!("at the top {token} is {found}, not {expected}"))
    })
}

/// What is wrong with the reports on a prompt's answer and with its scores, if anything: each is held to what
/// the model says of the text before it, computed at once and by itself.
pub fn faults(
    runner: &mut MlxRunner,
    batch: &Batch,
    index: usize,
    reports: &[TokenReport],
    scores: &[TokenReport],
) -> Vec<String> {
    let prompt = &batch.prompts[index];
    let mut faults = Vec::new();
    let mut hold = |report: &TokenReport, before: &[u32], num_top: u32, what: &str| {
        let all = runner.next_log_probabilities(before).unwrap();
        faults.extend(fault(report, &all, num_top).map(|fault| format!("{what}: {fault}")));
    };
    if let Some(Report { num_top }) = prompt.wants.report {
        let mut text = prompt.tokens.clone();
        for report in reports {
            hold(report, &text, num_top, "report");
            text.push(report.token);
        }
    }
    if let Some(Score { from, num_top }) = prompt.wants.score {
        for (position, report) in (from..).zip(scores) {
            assert_eq!(report.token, prompt.tokens[position]);
            hold(report, &prompt.tokens[..position], num_top, "score");
        }
    }
    faults
}
