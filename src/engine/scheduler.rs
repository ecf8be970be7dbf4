//! Which sequences compute what in the next pass.
//!
//! Owns the limits of the running batch and the rule that fills it, from counts and budgets alone.
//! Sequences change elsewhere, tokens and time are not looked at: the same counts always give the
//! same pass.

use std::num::NonZeroUsize;

use super::sequence::{Counts, Work};

/// The size of the running batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that may own a row of the batch at once.
    pub max_batch_size: NonZeroUsize,
    /// Prompt tokens of one pass at most; what of a prompt lies between two cuts of its plan is cut at the
    /// multiples of it.
    pub prefill_chunk: NonZeroUsize,
    /// Tokens that the KV of all running sequences may grow to; `None` sets no limit.
    ///
    /// A request is admitted only when its prompt and its longest possible answer fit, so a
    /// running sequence never has to be thrown out. From a budget in bytes it is that budget
    /// divided by the KV bytes of one token.
    pub max_batch_tokens: Option<usize>,
    /// KV of one token: stored prefixes that running sequences keep beyond the prompt cache's limit count
    /// against that budget, too.
    pub kv_bytes_per_token: u64,
    /// Launches a pass before the tokens of the one before it are read. Good for a device that
    /// computes while the host goes on; the price is a wasted row where a sequence ends early.
    pub lookahead: bool,
    /// Bytes brought in from a cache file for one pass, beyond which nobody else enters it: as prompts
    /// are computed in chunks, rows that could run do not wait for all that are to join them.
    pub max_restored_bytes: u64,
}

impl Limits {
    /// Whether KV for `num_tokens` fits into the budget.
    pub(super) fn fits(&self, num_tokens: usize) -> bool {
        self.max_batch_tokens.is_none_or(|max| num_tokens <= max)
    }
}

/// Composes one pass.
///
/// Every decoding sequence gets its row. Prompts then share the pass, first in, first out, while
/// their chunks together stay within `prefill_chunk` tokens; a waiting sequence is admitted when
/// its first work, a row and its own KV fit. Nobody overtakes one that does not fit: that ends the
/// pass. Nobody starves: the oldest prompt always fits, because no chunk is larger than
/// `prefill_chunk`, no request larger than the KV budget, and running sequences end.
pub(super) struct Composer<'a> {
    limits: &'a Limits,
    num_sequences: usize,
    num_rows: usize,
    num_kv_tokens: usize,
    /// What is held beside it for running sequences; where there is none, all of it can go.
    num_held_tokens: usize,
    /// Prompt tokens that the pass may still take in.
    num_prefill_left: usize,
    decodes: Vec<(usize, Work)>,
    prefills: Vec<(usize, Work)>,
}

impl<'a> Composer<'a> {
    /// Starts with the sequences that run already.
    pub fn new(limits: &'a Limits, running: impl Iterator<Item = Counts>) -> Self {
        let mut composer = Composer {
            limits,
            num_sequences: 0,
            num_rows: 0,
            num_kv_tokens: 0,
            num_held_tokens: 0,
            num_prefill_left: limits.prefill_chunk.get(),
            decodes: Vec::new(),
            prefills: Vec::new(),
        };
        for counts in running {
            composer.add(counts);
        }
        composer
    }

    /// Notes how many tokens running sequences have held for them beside their own KV.
    pub fn set_held(&mut self, num_tokens: usize) {
        self.num_held_tokens = num_tokens;
    }

    /// Whether the batch has a row for another sequence.
    pub fn has_free_row(&self) -> bool {
        self.num_rows < self.limits.max_batch_size.get()
    }

    /// Whether a sequence that is to enter has its place in this pass.
    pub fn has_place(&self, counts: &Counts) -> bool {
        let num_prefill_tokens = match counts.next_work(self.limits.prefill_chunk.get()) {
            Some(Work::Prefill(range)) => range.len(),
            Some(Work::Decode) | None => 0,
        };
        let num_held_tokens = if self.num_sequences > 0 { self.num_held_tokens } else { 0 };
        let num_taken = self.num_kv_tokens.saturating_add(num_held_tokens);
        self.has_free_row()
            && num_prefill_tokens <= self.num_prefill_left
            && self.limits.fits(num_taken.saturating_add(counts.max_kv_tokens))
    }

    /// Adds the next sequence: the running ones first, then those that enter.
    pub fn add(&mut self, counts: Counts) {
        let index = self.num_sequences;
        self.num_sequences += 1;
        if counts.is_running() {
            self.num_rows += 1;
            self.num_kv_tokens = self.num_kv_tokens.saturating_add(counts.max_kv_tokens);
        }
        match counts.next_work(self.limits.prefill_chunk.get()) {
            Some(Work::Decode) => self.decodes.push((index, Work::Decode)),
            Some(Work::Prefill(range)) => match self.num_prefill_left.checked_sub(range.len()) {
                Some(left) => {
                    self.num_prefill_left = left;
                    self.prefills.push((index, Work::Prefill(range)));
                }
                // After the first that does not fit, no other may overtake it.
                None => self.num_prefill_left = 0,
            },
            None => {}
        }
    }

    /// Index and work of each sequence in the pass, decode rows first.
    pub fn into_work(mut self) -> Vec<(usize, Work)> {
        self.decodes.append(&mut self.prefills);
        self.decodes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::sequence::State;
    use super::*;

    fn limits(max_batch_size: usize, prefill_chunk: usize, max_batch_tokens: Option<usize>) -> Limits {
        Limits {
            max_batch_size: NonZeroUsize::new(max_batch_size).unwrap(),
            prefill_chunk: NonZeroUsize::new(prefill_chunk).unwrap(),
            max_batch_tokens,
            kv_bytes_per_token: 1,
            lookahead: true,
            max_restored_bytes: u64::MAX,
        }
    }

    fn counts(num_prefill_tokens: usize, state: State) -> Counts {
        Counts {
            num_prefill_tokens,
            next_cut: usize::MAX,
            last_cut: 0,
            max_kv_tokens: num_prefill_tokens + 10,
            state,
        }
    }

    const START: State = State::Prefilling { position: 0 };
    const DECODING: State = State::Decoding { num_sampled: 1 };

    /// The pass, and how many of those that wait enter it.
    fn plan(limits: &Limits, running: &[Counts], waiting: &[Counts]) -> (usize, Vec<(usize, Work)>) {
        let mut composer = Composer::new(limits, running.iter().copied());
        let entering = waiting.iter().take_while(|counts| {
            let has_place = composer.has_place(counts);
            if has_place {
                composer.add(**counts);
            }
            has_place
        });
        (entering.count(), composer.into_work())
    }

    #[test]
    fn decoding_rows_run_beside_whole_prompts_that_share_a_chunk() {
        let running = [counts(5, DECODING), counts(5, State::Draining), counts(7, DECODING)];
        let waiting = [counts(30, START), counts(34, START), counts(1, START)];
        let (num_admitted, work) = plan(&limits(8, 64, None), &running, &waiting);
        assert_eq!(num_admitted, 2);
        assert_eq!(
            work,
            [(0, Work::Decode), (2, Work::Decode), (3, Work::Prefill(0..30)), (4, Work::Prefill(0..34))]
        );
    }

    #[test]
    fn a_long_prompt_is_cut_and_its_last_piece_shares_a_pass() {
        let running = [counts(100, State::Prefilling { position: 64 })];
        let waiting = [counts(28, START), counts(2, START)];
        let (_, work) = plan(&limits(8, 64, None), &running, &waiting);
        assert_eq!(work, [(0, Work::Prefill(64..100)), (1, Work::Prefill(0..28))]);
    }

    #[test]
    fn a_small_prompt_does_not_overtake_one_that_has_to_wait() {
        let waiting = [counts(40, START), counts(30, START), counts(1, START)];
        assert_eq!(plan(&limits(8, 64, None), &[], &waiting).1, [(0, Work::Prefill(0..40))]);
        // The same where KV is what the first one lacks.
        let running = [counts(40, DECODING)];
        assert_eq!(plan(&limits(8, 64, Some(99)), &running, &waiting).0, 0);
        assert_eq!(plan(&limits(8, 64, Some(100)), &running, &waiting).0, 1);
    }

    #[test]
    fn a_wholly_stored_prompt_enters_as_a_decode_row_even_where_prefill_is_full() {
        let waiting = [counts(64, START), counts(30, State::Decoding { num_sampled: 0 })];
        let (num_admitted, work) = plan(&limits(8, 64, None), &[], &waiting);
        assert_eq!((num_admitted, work), (2, vec![(1, Work::Decode), (0, Work::Prefill(0..64))]));
    }

    #[test]
    fn a_draining_sequence_has_given_back_its_row_and_its_kv() {
        let waiting = [counts(40, START)];
        let limits = limits(1, 64, Some(50));
        assert_eq!(plan(&limits, &[counts(40, DECODING)], &waiting).0, 0);
        assert_eq!(plan(&limits, &[counts(40, State::Draining)], &waiting).0, 1);
    }

    #[test]
    fn nothing_to_do_is_an_empty_pass() {
        assert_eq!(plan(&limits(4, 64, None), &[counts(4, State::Draining)], &[]), (0, Vec::new()));
    }

    /// What can be in the running batch under some limits, and a line behind it.
    fn any_batch() -> impl Strategy<Value = (Limits, Vec<Counts>, Vec<Counts>)> {
        let state = prop_oneof![
            Just(DECODING),
            Just(State::Draining),
            (1usize..40).prop_map(|position| State::Prefilling { position })
        ];
        let running = prop::collection::vec((1usize..40, state), 0..8);
        let waiting = prop::collection::vec((1usize..40, 1usize..40), 0..8);
        (running, waiting, 0usize..4, 1usize..16, prop::option::of(0usize..200)).prop_map(
            |(running, waiting, num_free, prefill_chunk, num_kv_left)| {
                let running: Vec<Counts> = running
                    .into_iter()
                    .map(|(num_left, state)| match state {
                        State::Prefilling { position } => counts(position + num_left, state),
                        _ => counts(num_left, state),
                    })
                    .collect();
                let rows = running.iter().filter(|c| c.is_running());
                let num_rows = rows.clone().count();
                let num_kv: usize = rows.map(|c| c.max_kv_tokens).sum();
                let limits = limits(
                    (num_rows + num_free).max(1),
                    prefill_chunk,
                    num_kv_left.map(|left| num_kv + left),
                );
                let waiting = waiting
                    .into_iter()
                    .map(|(num_tokens, next_cut)| Counts { next_cut, ..counts(num_tokens, START) });
                (limits, running, waiting.collect())
            },
        )
    }

    proptest! {
        #[test]
        fn every_pass_keeps_the_budgets_and_leaves_nothing_idle((limits, running, waiting) in any_batch()) {
            let (num_admitted, work) = plan(&limits, &running, &waiting);
            let all: Vec<Counts> = running.iter().chain(&waiting).copied().collect();
            let chunk = limits.prefill_chunk.get();

            let admitted = &waiting[..num_admitted];
            let in_batch = || running.iter().filter(|c| c.is_running()).chain(admitted);
            let num_kv: usize = in_batch().map(|c| c.max_kv_tokens).sum();
            prop_assert!(in_batch().count() <= limits.max_batch_size.get());
            prop_assert!(limits.fits(num_kv));

            let mut num_prefill_tokens = 0;
            let mut prefills = Vec::new();
            for (index, work) in &work {
                if let Work::Prefill(range) = work {
                    let counts = all[*index];
                    prop_assert!(!range.is_empty() && range.end <= counts.num_prefill_tokens);
                    prop_assert!([counts.num_prefill_tokens, counts.next_cut].contains(&range.end) || range.end % chunk == 0);
                    num_prefill_tokens += range.len();
                    prefills.push(*index);
                }
            }
            prop_assert!(num_prefill_tokens <= chunk);

            // Every decoding row is there; prompts come in order, without gaps.
            let decodes = work.iter().filter(|(_, work)| *work == Work::Decode).count();
            prop_assert_eq!(decodes, running.iter().filter(|c| c.state == DECODING).count());
            let prompts: Vec<usize> =
                (0..all.len()).filter(|&i| matches!(all[i].state, State::Prefilling { .. })).collect();
            prop_assert_eq!(&prefills[..], &prompts[..prefills.len()]);

            // The next in line is left out only for want of a row, of KV or of room in the pass.
            if let Some(&next) = prompts.get(prefills.len()) {
                let Some(Work::Prefill(range)) = all[next].next_work(chunk) else { panic!("a prompt") };
                let is_waiting = next >= running.len();
                prop_assert!(
                    num_prefill_tokens + range.len() > chunk
                        || is_waiting && in_batch().count() == limits.max_batch_size.get()
                        || is_waiting && !limits.fits(num_kv + all[next].max_kv_tokens)
                );
            }
        }
    }
}
