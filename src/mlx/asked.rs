//! What a pass was asked for beside KV: tokens, reports, scores.
//!
//! Owns asking the decoder for no more logits than that takes, and telling each group what came of it. How a
//! token is chosen is `sampler`'s business, how probable it was `reports`'.

use std::collections::HashMap;
use std::ops::Range;

use mlx_rs::Array;

use super::{
    decoder::Decoder,
    error::Result,
    reports::Reports,
    sampler::{self, Choice, Chosen},
};
use crate::engine::{Group, Input, Outcome, Scoring, SequenceId, TokenReport, Want};
use crate::guide::TokenSet;

/// Logits of scored rows that are held at once.
const MAX_SCORED_LOGITS: usize = 1 << 23;

/// What will be read of a pass.
#[derive(Debug)]
pub(super) struct Asked {
    groups: Vec<OfGroup>,
    chosen: Option<Chosen>,
    /// On those chosen tokens that want one, in their order.
    reports: Option<Reports>,
    /// On the scored tokens of all groups, in their order and in parts.
    scores: Vec<Reports>,
}

#[derive(Debug, Clone, Copy)]
enum OfGroup {
    Nothing,
    Token { num_top: Option<u32> },
    Scores { num_tokens: usize, num_top: u32 },
}

/// The packed rows of a pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct PassRows<'a> {
    /// Each group's last row.
    pub last_row: &'a HashMap<SequenceId, usize>,
    /// `(T, hidden)`.
    pub hidden: &'a Array,
    /// The input tokens, `(T,)`.
    pub tokens: &'a Array,
}

impl Asked {
    /// Computes what the groups want, the guided ones among the tokens `allowed`, in their order, or any where
    /// there are none.
    pub(super) fn new(
        decoder: &Decoder,
        groups: &[Group],
        rows: &PassRows<'_>,
        allowed: &[Option<TokenSet>],
    ) -> Result<Self> {
        let PassRows { last_row, hidden, tokens } = *rows;
        let mut allowed = allowed.iter();
        let mut asked = Self { groups: Vec::new(), chosen: None, reports: None, scores: Vec::new() };
        let mut choices = Vec::new();
        let mut choice_rows = Vec::new();
        let mut scored = Vec::new();
        for group in groups {
            let row = last_row[&group.sequence];
            asked.groups.push(match &group.want {
                Want::Nothing => OfGroup::Nothing,
                Want::Token(choice) => {
                    let allowed = if choice.is_guided { allowed.next() } else { None };
                    let allowed = allowed.and_then(Option::as_ref);
                    choices.push(Choice { choice, position: group.start + num_inputs(group), allowed });
                    choice_rows.push(row as i32);
                    OfGroup::Token { num_top: choice.report.map(|report| report.num_top) }
                }
                Want::Scores(scoring) => {
                    scored.push((row, scoring));
                    OfGroup::Scores { num_tokens: scoring.targets.len(), num_top: scoring.num_top }
                }
            });
        }
        if !choices.is_empty() {
            asked.choose(decoder, &choices, &choice_rows, hidden, tokens)?;
        }
        if !scored.is_empty() {
            let max_rows = (MAX_SCORED_LOGITS / decoder.spec.vocab_size.max(1)).max(1);
            asked.score(decoder, &scored, hidden, max_rows)?;
        }
        Ok(asked)
    }

    fn choose(
        &mut self,
        decoder: &Decoder,
        choices: &[Choice<'_>],
        rows: &[i32],
        hidden: &Array,
        tokens: &Array,
    ) -> Result<()> {
        if choices.iter().all(Choice::needs_only_the_best) {
            self.chosen = Some(decoder.most_probable(hidden, rows)?);
            return Ok(());
        }
        let logits = decoder.logits(hidden, rows)?;
        let inputs = tokens.take_axis(Array::from_slice(rows, &[rows.len() as i32]), 0)?;
        let chosen = sampler::choose(decoder.ops(), &logits, choices, &inputs)?;
        let num_top_of = |choice: &Choice<'_>| choice.choice.report.map(|report| report.num_top);
        let reporting: Vec<u32> = (0..)
            .zip(choices)
            .filter(|(_, choice)| num_top_of(choice).is_some())
            .map(|(row, _)| row)
            .collect();
        if let Some(num_top) = choices.iter().filter_map(num_top_of).max() {
            let of_rows = |array: &Array| -> Result<Array> {
                if reporting.len() == choices.len() {
                    return Ok(array.clone());
                }
                Ok(array.take_axis(Array::from_slice(&reporting, &[reporting.len() as i32]), 0)?)
            };
            let (logits, tokens) = (of_rows(&logits)?, of_rows(&chosen.tokens)?);
            self.reports = Some(Reports::new(decoder.device(), &logits, &tokens, num_top as usize)?);
        }
        self.chosen = Some(chosen);
        Ok(())
    }

    /// Scores tokens after the last rows of groups, so many rows at a time.
    fn score(
        &mut self,
        decoder: &Decoder,
        scored: &[(usize, &Scoring)],
        hidden: &Array,
        max_rows: usize,
    ) -> Result<()> {
        let rows: Vec<i32> = scored.iter().flat_map(|(row, scoring)| rows_of(*row, scoring)).collect();
        let targets: Vec<u32> = scored.iter().flat_map(|(_, scoring)| &scoring.targets).copied().collect();
        let num_top = scored.iter().map(|(_, scoring)| scoring.num_top).max().unwrap_or_default();
        let is_in_parts = rows.len() > max_rows;
        for (rows, targets) in rows.chunks(max_rows).zip(targets.chunks(max_rows)) {
            let targets = Array::from_slice(targets, &[targets.len() as i32]);
            let logits = decoder.logits(hidden, rows)?;
            let reports = Reports::new(decoder.device(), &logits, &targets, num_top as usize)?;
            if is_in_parts {
                mlx_rs::transforms::eval(reports.arrays())?;
            }
            self.scores.push(reports);
        }
        Ok(())
    }

    /// The tokens chosen, `(B,)`, one for each group that wants one.
    pub(super) fn tokens(&self) -> Option<&Array> {
        self.chosen.as_ref().map(|chosen| &chosen.tokens)
    }

    /// What has to be computed.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let chosen = self.chosen.iter().flat_map(Chosen::arrays);
        chosen.chain(self.reports.iter().chain(&self.scores).flat_map(Reports::arrays))
    }

    /// What came of each group.
    pub(super) fn read(self) -> Result<Vec<Outcome>> {
        let tokens = self.chosen.as_ref().map(Chosen::read).transpose()?.unwrap_or_default();
        let mut tokens = tokens.into_iter();
        let mut reports = self.reports.map(Reports::read).transpose()?.unwrap_or_default().into_iter();
        let scores = self.scores.into_iter().map(Reports::read).collect::<Result<Vec<_>>>()?;
        let mut scores = scores.into_iter().flatten();
        let cut = |mut report: TokenReport, num_top: u32| {
            report.top.truncate(num_top as usize);
            report
        };
        let outcome = |group: OfGroup| match group {
            OfGroup::Nothing => Outcome::Nothing,
            OfGroup::Token { num_top } => {
                let report = num_top.map(|num_top| Some(cut(reports.next()??, num_top)));
                match (tokens.next().flatten(), report) {
                    (Some(token), None) => Outcome::Token(token, None),
                    (Some(token), Some(Some(report))) => Outcome::Token(token, Some(Box::new(report))),
                    (None, _) | (_, Some(None)) => Outcome::NotNumbers,
                }
            }
            OfGroup::Scores { num_tokens, num_top } => {
                // All of them are taken, whatever they are.
                let of_group: Vec<Option<TokenReport>> = scores.by_ref().take(num_tokens).collect();
                let of_group = of_group.into_iter().map(|report| Some(cut(report?, num_top)));
                of_group.collect::<Option<Vec<_>>>().map_or(Outcome::NotNumbers, Outcome::Scores)
            }
        };
        Ok(self.groups.into_iter().map(outcome).collect())
    }
}

/// The packed rows after which a group's targets stand.
fn rows_of(last_row: usize, scoring: &Scoring) -> Range<i32> {
    let end = last_row as i32 + 1;
    end - scoring.targets.len() as i32..end
}

fn num_inputs(group: &Group) -> usize {
    match &group.input {
        Input::Prompt(tokens) => tokens.len(),
        Input::Last(_) | Input::Sampled => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::mlx::{ComputeDevice, ComputeDtype, LoadedModel, WeightSource};
    use crate::models::read_config;

    fn decoder(device: ComputeDevice) -> Decoder {
        let folder = Path::new("fixtures/tiny-llama");
        let spec = read_config(&folder.join("config.json")).unwrap();
        let weights = WeightSource::Safetensors(vec![folder.join("model.safetensors")]);
        LoadedModel::load(&spec, &weights, device, ComputeDtype::Float32).unwrap().into_decoder()
    }

    /// What is held at once is bounded, so a long prompt's scores come in parts, cut anywhere.
    #[test]
    fn scores_are_the_same_in_however_many_parts() {
        for device in ComputeDevice::KINDS {
            let decoder = decoder(device);
            let width = decoder.spec.hidden_size as i32;
            let hidden: Vec<f32> = (0..40 * width).map(|index| (index as f32 * 0.37).sin()).collect();
            let hidden = Array::from_slice(&hidden, &[40, width]);
            let scoring = |targets: &[u32], num_top| Scoring { targets: targets.to_vec(), num_top };
            let (short, long) = (scoring(&[7, 300], 0), scoring(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 3));
            let scores_of = |max_rows: usize| {
                let groups = [(2, 0), (9, 3)];
                let groups = groups.map(|(num_tokens, num_top)| OfGroup::Scores { num_tokens, num_top });
                let mut asked =
                    Asked { groups: groups.to_vec(), chosen: None, reports: None, scores: Vec::new() };
                asked.score(&decoder, &[(30, &short), (12, &long)], &hidden, max_rows).unwrap();
                assert_eq!(asked.scores.len(), 11_usize.div_ceil(max_rows));
                let scores = |outcome| match outcome {
                    Outcome::Scores(reports) => reports,
                    _ => panic!("{outcome:?}"),
                };
                asked.read().unwrap().into_iter().map(scores).collect::<Vec<_>>()
            };
            let whole = scores_of(11);
            assert_eq!(whole.iter().map(Vec::len).collect::<Vec<_>>(), [2, 9]);
            assert!(whole[0].iter().all(|report| report.top.is_empty()));
            for max_rows in [1, 2, 5, 10] {
                for (found, expected) in scores_of(max_rows).iter().flatten().zip(whole.iter().flatten()) {
                    assert_eq!((found.token, found.rank), (expected.token, expected.rank), "{max_rows}");
                    assert!((found.log_probability - expected.log_probability).abs() < 1e-5);
                    let tokens = |report: &TokenReport| -> Vec<u32> {
                        report.top.iter().map(|(token, _)| *token).collect()
                    };
                    assert_eq!(tokens(found), tokens(expected));
                }
            }
        }
    }
}
