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
    /// Prompt tokens of one pass at most; prompts are cut at its multiples.
    pub prefill_chunk: NonZeroUsize,
    /// Tokens that the KV of all running sequences may grow to; `None` sets no limit.
    ///
    /// A request is admitted only when its prompt and its longest possible answer fit, so a
    /// running sequence never has to be thrown out. From a budget in bytes it is that budget
    /// divided by the KV bytes of one token.
    pub max_batch_tokens: Option<usize>,
    /// Launches a pass before the tokens of the one before it are read. Good for a device that
    /// computes while the host goes on; the price is a wasted row where a sequence ends early.
    pub lookahead: bool,
}

impl Limits {
    /// Whether KV for `num_tokens` fits into the budget.
    pub(super) fn fits(&self, num_tokens: usize) -> bool {
        self.max_batch_tokens.is_none_or(|max| num_tokens <= max)
    }
}

/// The work of the next pass.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Waiting sequences that enter the running batch, from the front of the line.
    pub num_admitted: usize,
    /// Index and work of each sequence in the pass. The indices count the running sequences
    /// first and then go on with the admitted ones.
    pub work: Vec<(usize, Work)>,
}

/// Composes the next pass.
///
/// Every decoding sequence gets its row. Prompts then share the pass, first in, first out, while
/// their chunks together stay within `prefill_chunk` tokens; a waiting sequence is admitted when
/// its first chunk, a row and its whole KV fit. Nobody overtakes: the first that does not fit ends
/// the pass. Nobody starves: the oldest prompt always fits, because no chunk is larger than
/// `prefill_chunk`, no request larger than the KV budget, and running sequences end.
pub(super) fn compose(
    limits: &Limits,
    running: impl ExactSizeIterator<Item = Counts>,
    waiting: impl Iterator<Item = Counts>,
) -> Plan {
    let prefill_chunk = limits.prefill_chunk.get();
    let mut room = PrefillRoom { max_tokens: prefill_chunk };
    let mut num_rows = 0;
    let mut num_kv_tokens = 0usize;
    let mut decodes = Vec::new();
    let mut prefills = Vec::new();

    let num_running = running.len();
    for (index, counts) in running.enumerate() {
        if counts.is_running() {
            num_rows += 1;
            num_kv_tokens = num_kv_tokens.saturating_add(counts.max_kv_tokens);
        }
        match counts.next_work(prefill_chunk) {
            Some(Work::Prefill(range)) if room.take(range.len()) => {
                prefills.push((index, Work::Prefill(range)));
            }
            Some(Work::Decode) => decodes.push((index, Work::Decode)),
            Some(Work::Prefill(_)) | None => {}
        }
    }

    let mut num_admitted = 0;
    for counts in waiting {
        let Some(Work::Prefill(range)) = counts.next_work(prefill_chunk) else { break };
        let num_kv_after = num_kv_tokens.saturating_add(counts.max_kv_tokens);
        let has_row = num_rows < limits.max_batch_size.get();
        if !has_row || !limits.fits(num_kv_after) || !room.take(range.len()) {
            break;
        }
        num_rows += 1;
        num_kv_tokens = num_kv_after;
        prefills.push((num_running + num_admitted, Work::Prefill(range)));
        num_admitted += 1;
    }

    decodes.append(&mut prefills);
    Plan { num_admitted, work: decodes }
}

/// Prompt tokens that a pass may still take in.
struct PrefillRoom {
    max_tokens: usize,
}

impl PrefillRoom {
    /// Takes in a chunk if it fits; after the first that does not, no other may overtake it.
    fn take(&mut self, num_tokens: usize) -> bool {
        let left = self.max_tokens.checked_sub(num_tokens);
        self.max_tokens = left.unwrap_or(0);
        left.is_some()
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
            lookahead: true,
        }
    }

    fn counts(num_prompt_tokens: usize, state: State) -> Counts {
        Counts { num_prompt_tokens, max_kv_tokens: num_prompt_tokens + 10, state }
    }

    fn plan(limits: &Limits, running: &[Counts], waiting: &[Counts]) -> Plan {
        compose(limits, running.iter().copied(), waiting.iter().copied())
    }

    const DECODING: State = State::Decoding { num_sampled: 1 };

    #[test]
    fn decoding_rows_run_beside_whole_prompts_that_share_a_chunk() {
        let running = [counts(5, DECODING), counts(5, State::Draining), counts(7, DECODING)];
        let waiting = [counts(30, State::Waiting), counts(34, State::Waiting), counts(1, State::Waiting)];
        let plan = plan(&limits(8, 64, None), &running, &waiting);
        assert_eq!(plan.num_admitted, 2);
        assert_eq!(
            plan.work,
            [(0, Work::Decode), (2, Work::Decode), (3, Work::Prefill(0..30)), (4, Work::Prefill(0..34))]
        );
    }

    #[test]
    fn a_long_prompt_is_cut_and_its_last_piece_shares_a_pass() {
        let running = [counts(100, State::Prefilling { position: 64 })];
        let waiting = [counts(28, State::Waiting), counts(2, State::Waiting)];
        let plan = plan(&limits(8, 64, None), &running, &waiting);
        assert_eq!(plan.work, [(0, Work::Prefill(64..100)), (1, Work::Prefill(0..28))]);
    }

    #[test]
    fn a_small_prompt_does_not_overtake_one_that_has_to_wait() {
        let waiting = [counts(40, State::Waiting), counts(30, State::Waiting), counts(1, State::Waiting)];
        assert_eq!(plan(&limits(8, 64, None), &[], &waiting).work, [(0, Work::Prefill(0..40))]);
        // The same where KV is what the first one lacks.
        let running = [counts(40, DECODING)];
        assert_eq!(plan(&limits(8, 64, Some(99)), &running, &waiting).num_admitted, 0);
        assert_eq!(plan(&limits(8, 64, Some(100)), &running, &waiting).num_admitted, 1);
    }

    #[test]
    fn a_draining_sequence_has_given_back_its_row_and_its_kv() {
        let waiting = [counts(40, State::Waiting)];
        let limits = limits(1, 64, Some(50));
        assert_eq!(plan(&limits, &[counts(40, DECODING)], &waiting).num_admitted, 0);
        assert_eq!(plan(&limits, &[counts(40, State::Draining)], &waiting).num_admitted, 1);
    }

    #[test]
    fn nothing_to_do_is_an_empty_plan() {
        assert_eq!(plan(&limits(4, 64, None), &[counts(4, State::Draining)], &[]), Plan::default());
    }

    /// What can be in the running batch under some limits, and a line behind it.
    fn any_batch() -> impl Strategy<Value = (Limits, Vec<Counts>, Vec<Counts>)> {
        let state = prop_oneof![
            Just(DECODING),
            Just(State::Draining),
            (1usize..40).prop_map(|position| State::Prefilling { position })
        ];
        let running = prop::collection::vec((1usize..40, state), 0..8);
        let waiting = prop::collection::vec(1usize..40, 0..8);
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
                (limits, running, waiting.into_iter().map(|n| counts(n, State::Waiting)).collect())
            },
        )
    }

    proptest! {
        #[test]
        fn every_pass_keeps_the_budgets_and_leaves_nothing_idle((limits, running, waiting) in any_batch()) {
            let plan = plan(&limits, &running, &waiting);
            let all: Vec<Counts> = running.iter().chain(&waiting).copied().collect();
            let chunk = limits.prefill_chunk.get();

            let admitted = &waiting[..plan.num_admitted];
            let in_batch = || running.iter().filter(|c| c.is_running()).chain(admitted);
            let num_kv: usize = in_batch().map(|c| c.max_kv_tokens).sum();
            prop_assert!(in_batch().count() <= limits.max_batch_size.get());
            prop_assert!(limits.fits(num_kv));

            let mut num_prefill_tokens = 0;
            let mut prefills = Vec::new();
            for (index, work) in &plan.work {
                if let Work::Prefill(range) = work {
                    prop_assert!(!range.is_empty() && range.end <= all[*index].num_prompt_tokens);
                    prop_assert!(range.end % chunk == 0 || range.end == all[*index].num_prompt_tokens);
                    num_prefill_tokens += range.len();
                    prefills.push(*index);
                }
            }
            prop_assert!(num_prefill_tokens <= chunk);

            // Every decoding row is there; prompts come in order, without gaps.
            let decodes = plan.work.iter().filter(|(_, work)| *work == Work::Decode).count();
            prop_assert_eq!(decodes, running.iter().filter(|c| c.state == DECODING).count());
            let prompts: Vec<usize> = (0..all.len())
                .filter(|&i| matches!(all[i].state, State::Prefilling { .. } | State::Waiting))
                .collect();
            prop_assert_eq!(&prefills[..], &prompts[..prefills.len()]);

            // The next in line is left out only for want of a row, of KV or of room in the pass.
            if let Some(&next) = prompts.get(prefills.len()) {
                let Some(Work::Prefill(range)) = all[next].next_work(chunk) else { panic!("a prompt") };
                let is_waiting = all[next].state == State::Waiting;
                prop_assert!(
                    num_prefill_tokens + range.len() > chunk
                        || is_waiting && in_batch().count() == limits.max_batch_size.get()
                        || is_waiting && !limits.fits(num_kv + all[next].max_kv_tokens)
                );
            }
        }
    }
}
