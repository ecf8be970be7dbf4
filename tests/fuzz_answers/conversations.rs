//! Random conversations as people's files have them: about long documents that many lines share.
//!
//! Owns what is asked. Every length is drawn around the engine's thresholds and beyond them: segments that
//! are attended once for all rows (64 tokens), rows that are joined (512) and row blocks (256), the tail (64
//! steps), windows (16), chunks. What is answered is the caller's business.

use std::{ops::RangeInclusive, sync::Arc};

use mlxbatch::cache::Tier;

use crate::common::{
    batch::{Batch, Numbers, Prompt},
    wants::Wants,
};

/// Longest prompt; the fixtures know 4,096 positions.
const MAX_PROMPT_TOKENS: usize = 1600;

/// Whole prompts by parts, of which others are made.
struct Parts {
    /// What most prompts of the batch begin with, or nothing.
    system: Vec<u32>,
    documents: Vec<Vec<u32>>,
    /// Instructions and few-shot examples.
    blocks: Vec<Vec<u32>>,
}

/// Whether something comes true that does so many times in a hundred.
pub fn is_lucky(numbers: &mut Numbers, percent: usize) -> bool {
    numbers.within(1..=100) <= percent
}

/// One of several.
pub fn one_of<'a, T>(numbers: &mut Numbers, all: &'a [T]) -> &'a T {
    &all[numbers.within(0..=all.len() - 1)]
}

impl Parts {
    fn random(numbers: &mut Numbers) -> Self {
        let several = |numbers: &mut Numbers, most: usize, lengths: RangeInclusive<usize>| -> Vec<Vec<u32>> {
            let count = numbers.within(1..=most);
            let lengths: Vec<usize> = (0..count).map(|_| numbers.within(lengths.clone())).collect();
            lengths.into_iter().map(|length| numbers.words(length)).collect()
        };
        let num_words = if is_lucky(numbers, 60) { numbers.within(5..=150) } else { 0 };
        let system = numbers.words(num_words);
        let most = if is_lucky(numbers, 60) { 1 } else { 3 };
        let longest = if is_lucky(numbers, 25) { 900 } else { 450 };
        Self {
            system,
            documents: several(numbers, most, 250..=longest),
            blocks: several(numbers, 3, 20..=200),
        }
    }

    /// A question about a document, perhaps cut short, with blocks of instructions before or behind it.
    fn question(&self, numbers: &mut Numbers) -> Prompt {
        let mut prompt = Prompt {
            tokens: Vec::new(),
            spans: Vec::new(),
            max_new_tokens: 1,
            stopped_after: None,
            follows: None,
            wants: Wants::default(),
        };
        if !self.system.is_empty() && is_lucky(numbers, 90) {
            prompt.extend(&self.system, Tier::System);
        }
        let mut parts: Vec<&[u32]> = Vec::new();
        if is_lucky(numbers, 90) {
            let document = one_of(numbers, &self.documents);
            let end = if is_lucky(numbers, 30) { numbers.within(1..=document.len()) } else { document.len() };
            parts.push(&document[..end]);
        }
        let num_blocks = *one_of(numbers, &[0, 1, 1, 1, 2, 2]);
        for _ in 0..num_blocks {
            let block = one_of(numbers, &self.blocks).as_slice();
            if is_lucky(numbers, 90) { parts.push(block) } else { parts.insert(0, block) }
        }
        let mut turn = parts.concat();
        let num_words = numbers.within(1..=60);
        turn.extend(numbers.words(num_words));
        prompt.extend(&turn, Tier::User);
        prompt
    }
}

impl Prompt {
    fn extend(&mut self, tokens: &[u32], tier: Tier) {
        self.tokens.extend(tokens);
        self.spans.push((self.tokens.len(), tier));
    }

    /// Its beginning.
    fn cut_short(&self, end: usize) -> Self {
        let mut spans: Vec<(usize, Tier)> = self.spans.iter().copied().filter(|span| span.0 < end).collect();
        spans.push((end, self.spans.iter().find(|span| span.0 >= end).map_or(Tier::User, |span| span.1)));
        Self { tokens: self.tokens[..end].to_vec(), spans, wants: Wants::default(), follows: None, ..*self }
    }
}

/// Makes up a batch. `answer` is asked for the answer to each prompt, as later turns begin with earlier
/// answers; their answers come with the batch.
pub fn conversations(
    numbers: &mut Numbers,
    has_checkpoints: bool,
    mut answer: impl FnMut(&Batch) -> Vec<u32>,
) -> (Batch, Vec<Vec<u32>>) {
    let parts = Parts::random(numbers);
    let end_ids: Arc<[u32]> = if is_lucky(numbers, 50) { numbers.words(6).into() } else { Arc::from([]) };
    let (mut prompts, mut answers) = (Vec::<Prompt>::new(), Vec::<Vec<u32>>::new());
    let most = if is_lucky(numbers, 25) { 40 } else { 24 };
    let num_prompts = numbers.within(12..=most);
    while prompts.len() < num_prompts {
        let earlier = numbers.within(0..=prompts.len().max(1) - 1);
        let kind = if prompts.is_empty() { 0 } else { numbers.within(0..=99) };
        let mut prompt = match kind {
            0..74 => parts.question(numbers),
            // The same again, or its beginning.
            74..78 => prompts[earlier].cut_short(prompts[earlier].tokens.len()),
            78..82 => {
                let end = numbers.within(1..=prompts[earlier].tokens.len());
                prompts[earlier].cut_short(end)
            }
            // The next turn: after the answer, or after what a template leaves of it.
            82..97 => {
                let (before, answered) = (&prompts[earlier], &answers[earlier]);
                let mut prompt = before.cut_short(before.tokens.len());
                let is_whole = is_lucky(numbers, 70);
                let kept = if is_whole { answered.len() } else { numbers.within(0..=answered.len()) };
                prompt.extend(&answered[..kept], Tier::Assistant);
                let most = if is_lucky(numbers, 30) { 300 } else { 60 };
                let num_words = numbers.within(1..=most);
                prompt.extend(&numbers.words(num_words), Tier::User);
                prompt.follows = Some(earlier);
                prompt
            }
            _ => {
                let mut prompt = parts.question(numbers).cut_short(1);
                let num_words = numbers.within(0..=300);
                prompt.extend(&numbers.words(num_words), Tier::User);
                prompt
            }
        };
        if prompt.tokens.len() > MAX_PROMPT_TOKENS {
            continue;
        }
        // Few, or so many that the tail is moved meanwhile.
        prompt.max_new_tokens =
            if is_lucky(numbers, 94) { numbers.within(1..=9) } else { numbers.within(66..=80) };
        let stop = numbers.within(1..=8);
        prompt.stopped_after = is_lucky(numbers, 10).then_some(stop);
        prompt.wants = Wants::random(numbers, prompt.tokens.len());
        // Half of those that are scored want nothing else.
        if prompt.wants.score.is_some() && is_lucky(numbers, 50) {
            prompt.max_new_tokens = 0;
        }
        let alone = Batch { prompts: vec![prompt], end_ids: Arc::clone(&end_ids), has_checkpoints };
        answers.push(answer(&alone));
        prompts.extend(alone.prompts);
    }
    (Batch { prompts, end_ids, has_checkpoints }, answers)
}
