//! A plan for tests, worked out by comparing every prompt with every other.
//!
//! Owns what a planner owes the engine: order, cuts and users. The real one is as right and faster.

use std::collections::BTreeSet;

use super::*;
use crate::cache::Tier;

/// Puts requests in depth-first order and gives each its plan; positions that are multiples of
/// `boundary` are cut as well, as if messages ended there.
pub(super) fn plan(requests: &mut [(GenerationRequest, Interruption)], first_order: u64, boundary: usize) {
    requests.sort_by(|(a, _), (b, _)| (a.reusable(), &a.prompt).cmp(&(b.reusable(), &b.prompt)));
    let prompts: Vec<Vec<TokenId>> =
        requests.iter().map(|(request, _)| request.reusable().to_vec()).collect();
    for (index, (request, _)) in requests.iter_mut().enumerate() {
        let prompt = &prompts[index];
        let others = prompts.iter().enumerate().filter(|(other, _)| *other != index);
        let mut positions: BTreeSet<usize> = others
            .map(|(_, other)| prompt.iter().zip(other).take_while(|(a, b)| a == b).count())
            .chain((boundary..=prompt.len()).step_by(boundary))
            .collect();
        positions.remove(&0);
        let cut = |position: usize| {
            let users: Vec<u64> = (first_order..)
                .zip(&prompts)
                .filter(|(_, other)| other.starts_with(&prompt[..position]))
                .map(|(order, _)| order)
                .collect();
            let (first, last) = (users[0], users[users.len() - 1]);
            assert_eq!((last - first) as usize + 1, users.len(), "users stand side by side");
            Cut { position, tier: Tier::ALL[position % 3], users: first..=last }
        };
        request.plan = PromptPlan {
            order: first_order + index as u64,
            cuts: positions.into_iter().map(cut).collect(),
            drops_private: false,
        };
    }
}

/// How many different prefixes the prompts have, their last tokens left out.
pub(super) fn num_distinct_prefixes(requests: &[(GenerationRequest, Interruption)]) -> usize {
    let prompts = requests.iter().map(|(request, _)| request.reusable());
    let prefixes = prompts.flat_map(|prompt| (1..=prompt.len()).map(|end| &prompt[..end]));
    prefixes.collect::<BTreeSet<_>>().len()
}
