//! Changes to the logits of one row, as far as the host can say them.
//!
//! Owns turning a request's processors, and the tokens that it has so far, into a short list of edits. The
//! host knows every token of a sequence but the one that is the input of the step: that one may still be on
//! the device. So each edit that depends on it says how, and the runner fills it in there; nothing has to be
//! read back, and nothing of a sequence is kept on the device from step to step.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Processors, TokenId};

/// Changes to the logits of one row: what is added, then the penalties.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitEdits {
    /// Added to the logits of these tokens, each named once; negative infinity where a token is never to be
    /// chosen.
    pub added: Arc<[(TokenId, f32)]>,
    /// Not to be chosen this time.
    pub banned: Arc<[TokenId]>,
    /// Where the step's input token is the first of a pair, the second is not to be chosen.
    pub banned_after: Vec<(TokenId, TokenId)>,
    pub penalties: Option<Penalties>,
}

/// Penalties on the logits of tokens that are there already: those in `seen` and the step's input token,
/// whose own place counts beside what `seen` says of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Penalties {
    pub repetition: f32,
    pub presence: f32,
    pub frequency: f32,
    /// The tokens before the input token, each once.
    pub seen: Arc<Vec<Seen>>,
    /// Whether the input token is one of the answer's; else it is the prompt's last.
    pub input_is_new: bool,
}

/// How often there is a token before the step's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub token: TokenId,
    /// Times within what the repetition penalty looks at.
    pub num_recent: u32,
    /// Times in the answer.
    pub num_new: u32,
}

/// A request's processors at work.
#[derive(Debug)]
pub(super) struct Processing {
    processors: Processors,
    end_ids: Arc<[TokenId]>,
    added: Arc<[(TokenId, f32)]>,
    none: Arc<[TokenId]>,
    history: History,
}

impl Processing {
    /// `None` where nothing is changed, whatever the tokens are.
    pub fn of(processors: &Processors, end_ids: &Arc<[TokenId]>) -> Option<Self> {
        if processors.are_neutral() {
            return None;
        }
        let single = processors.bad_words.iter().filter(|word| word.len() == 1).map(|word| word[0]);
        let banned = processors.never.iter().copied().chain(single);
        let mut added: BTreeMap<TokenId, f32> = BTreeMap::new();
        for (token, bias) in
            processors.logit_bias.iter().copied().chain(banned.map(|token| (token, f32::NEG_INFINITY)))
        {
            *added.entry(token).or_default() += bias;
        }
        Some(Self {
            processors: processors.clone(),
            end_ids: Arc::clone(end_ids),
            added: added.into_iter().collect(),
            none: Arc::default(),
            history: History::default(),
        })
    }

    /// The edits of the step whose input is the token after `before`: the prompt, or all but its last token,
    /// and the new tokens so far but for the input. Each step must come after the one before.
    pub fn edits(&mut self, num_prompt_tokens: usize, before: Tokens<'_>) -> LogitEdits {
        let processors = &self.processors;
        let input = before.len();
        // The input is the prompt's last token, or a new one.
        let num_new_before = (input + 1).saturating_sub(num_prompt_tokens);
        let penalties = processors.has_penalties().then(|| {
            self.history.advance(num_prompt_tokens, before, processors.repetition_window);
            Penalties {
                // A window of nothing is a penalty on nothing.
                repetition: if processors.repetition_window == Some(0) {
                    1.0
                } else {
                    processors.repetition_penalty
                },
                presence: processors.presence_penalty,
                frequency: processors.frequency_penalty,
                seen: Arc::clone(&self.history.seen),
                input_is_new: input >= num_prompt_tokens,
            }
        });
        let is_early = num_new_before < processors.min_new_tokens;
        let banned_after = processors.bad_words.iter().filter_map(|word| {
            let [start @ .., input_token, last] = word.as_slice() else { return None };
            // All of the word but its last token is new, the input included.
            let is_armed = num_new_before > start.len() && before.ends_with(start);
            is_armed.then_some((*input_token, *last))
        });
        LogitEdits {
            added: Arc::clone(&self.added),
            banned: Arc::clone(if is_early { &self.end_ids } else { &self.none }),
            banned_after: banned_after.collect(),
            penalties,
        }
    }

    /// The tokens that cannot be chosen after these, all of which are known, whatever else is; end tokens that
    /// come too early are not among them.
    pub fn banned(&self, tokens: Tokens<'_>) -> Vec<TokenId> {
        let never = self.added.iter().filter(|(_, addend)| *addend == f32::NEG_INFINITY);
        let completed = self.processors.bad_words.iter().filter_map(|word| {
            let (last, start) = word.split_last().filter(|(_, start)| !start.is_empty())?;
            (tokens.new.ends_with(start)).then_some(*last)
        });
        never.map(|(token, _)| *token).chain(completed).collect()
    }
}

/// A sequence's first tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tokens<'a> {
    pub prompt: &'a [TokenId],
    pub new: &'a [TokenId],
}

impl Tokens<'_> {
    fn len(&self) -> usize {
        self.prompt.len() + self.new.len()
    }

    fn get(&self, index: usize) -> TokenId {
        if index < self.prompt.len() { self.prompt[index] } else { self.new[index - self.prompt.len()] }
    }

    fn ends_with(&self, end: &[TokenId]) -> bool {
        let first = self.len().checked_sub(end.len());
        first.is_some_and(|first| {
            end.iter().enumerate().all(|(place, token)| self.get(first + place) == *token)
        })
    }
}

/// How often a sequence has each token.
#[derive(Debug, Default)]
struct History {
    /// Shared with groups under way, which are gone when the next step is made.
    seen: Arc<Vec<Seen>>,
    places: HashMap<TokenId, usize>,
    num_tokens: usize,
}

impl History {
    /// Counts the tokens that were added since the last time.
    fn advance(&mut self, num_prompt_tokens: usize, tokens: Tokens<'_>, window: Option<usize>) {
        let seen = Arc::make_mut(&mut self.seen);
        // The input token takes one place of the window.
        let num_recent = window.map_or(usize::MAX, |window| window.saturating_sub(1));
        for index in self.num_tokens..tokens.len() {
            let token = tokens.get(index);
            let place = *self.places.entry(token).or_insert_with(|| {
                seen.push(Seen { token, num_recent: 0, num_new: 0 });
                seen.len() - 1
            });
            seen[place].num_recent += 1;
            seen[place].num_new += u32::from(index >= num_prompt_tokens);
            if let Some(left) = (index + 1).checked_sub(num_recent).filter(|left| *left > 0) {
                let place = self.places[&tokens.get(left - 1)];
                seen[place].num_recent -= 1;
            }
        }
        self.num_tokens = tokens.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processing(processors: Processors) -> Processing {
        Processing::of(&processors, &[9, 8].into()).expect("it changes something")
    }

    #[test]
    fn neutral_processors_cost_nothing() {
        assert!(Processing::of(&Processors::default(), &[1].into()).is_none());
    }

    #[test]
    fn tokens_are_counted_by_where_they_are_and_forgotten_by_the_window() {
        let prompt = [1, 2, 1, 3];
        let new = [3, 1, 1, 4];
        for window in [None, Some(0), Some(1), Some(2), Some(3), Some(5), Some(100)] {
            let penalties =
                Processors { presence_penalty: 1.0, repetition_window: window, ..Default::default() };
            let mut processing = processing(penalties);
            for input in 3..=7 {
                // Lookahead may leave out steps, but never goes back.
                if input == 5 {
                    continue;
                }
                let known = Tokens { prompt: &prompt[..input.min(4)], new: &new[..input.saturating_sub(4)] };
                let edits = processing.edits(4, known);
                let penalties = edits.penalties.unwrap();
                assert_eq!(penalties.input_is_new, input >= 4);
                let all: Vec<u32> = prompt.iter().chain(&new).copied().collect();
                let first = window.map_or(0, |window| (input + 1).saturating_sub(window.max(1)));
                let count = |range: std::ops::Range<usize>, token| {
                    all[range.start.min(range.end)..range.end].iter().filter(|&&other| other == token).count()
                        as u32
                };
                for token in 0..5 {
                    let seen = penalties.seen.iter().filter(|seen| seen.token == token).collect::<Vec<_>>();
                    assert!(seen.len() <= 1, "each once");
                    let found = seen.first().map_or((0, 0), |seen| (seen.num_recent, seen.num_new));
                    assert_eq!(
                        found,
                        (count(first..input, token), count(4..input, token)),
                        "{window:?} {input}"
                    );
                }
            }
        }
    }

    #[test]
    fn biases_and_bans_of_one_token_are_one_edit() {
        let processors = Processors {
            logit_bias: [(5, 1.5), (2, -1.0), (5, 0.25)].into(),
            never: [7, 2].into(),
            bad_words: [vec![4], vec![], vec![1, 4]].into(),
            ..Default::default()
        };
        let never = f32::NEG_INFINITY;
        let edits = processing(processors).edits(1, Tokens { prompt: &[], new: &[] });
        assert_eq!(*edits.added, [(2, never), (4, never), (5, 1.75), (7, never)]);
        assert!(edits.banned.is_empty() && edits.banned_after.is_empty() && edits.penalties.is_none());
    }

    #[test]
    fn end_tokens_are_banned_until_there_are_enough_tokens() {
        let mut processing = processing(Processors { min_new_tokens: 2, ..Default::default() });
        let mut banned =
            |new: &[TokenId], prompt: &[TokenId]| processing.edits(2, Tokens { prompt, new }).banned.to_vec();
        assert_eq!(banned(&[], &[1]), [9, 8], "before the first");
        assert_eq!(banned(&[], &[1, 2]), [9, 8], "before the second");
        assert!(banned(&[5], &[1, 2]).is_empty());
    }

    #[test]
    fn the_last_token_of_a_bad_word_is_banned_where_all_else_of_it_may_be_there() {
        let words = [vec![3, 4], vec![1, 3, 5], vec![3, 3, 6], vec![2, 7]];
        let mut processing = processing(Processors { bad_words: words.into(), ..Default::default() });
        let mut after =
            |prompt: &[TokenId], new: &[TokenId]| processing.edits(2, Tokens { prompt, new }).banned_after;
        // The prompt's tokens are no part of a word.
        assert_eq!(after(&[1], &[]), []);
        assert_eq!(after(&[1, 3], &[]), [(3, 4), (2, 7)]);
        assert_eq!(after(&[1, 3], &[1]), [(3, 4), (3, 5), (2, 7)]);
        assert_eq!(after(&[1, 3], &[1, 3]), [(3, 4), (3, 6), (2, 7)]);
    }
}
