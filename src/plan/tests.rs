//! The plan against the sets of prefixes it stands for.

use std::collections::HashSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::tree::PrefixTree;
use super::*;

#[derive(Debug, Clone)]
struct Given {
    tokens: Vec<u32>,
    num_reusable: usize,
    boundaries: Vec<usize>,
    max_new_tokens: usize,
}

fn given(tokens: &[u32], max_new_tokens: usize) -> Given {
    Given {
        tokens: tokens.to_vec(),
        num_reusable: tokens.len().saturating_sub(1),
        boundaries: Vec::new(),
        max_new_tokens,
    }
}

fn views(given: &[Given]) -> Vec<PlanPrompt<'_>> {
    given
        .iter()
        .map(|given| PlanPrompt {
            tokens: &given.tokens,
            num_reusable: given.num_reusable,
            boundaries: &given.boundaries,
            max_new_tokens: given.max_new_tokens,
        })
        .collect()
}

fn plan(given: &[Given]) -> WindowPlan {
    WindowPlan::new(&views(given), &PlanOptions::default())
}

/// What may be shared of a prompt.
fn body(given: &Given) -> &[u32] {
    &given.tokens[..given.num_reusable]
}

/// The prompts that can use the first `position` tokens of a prompt.
fn users(all: &[Given], one: &Given, position: usize) -> Vec<usize> {
    let prefix = &body(one)[..position];
    (0..all.len()).filter(|&index| body(&all[index]).starts_with(prefix)).collect()
}

fn naive_positions(all: &[Given], index: usize) -> Vec<usize> {
    let one = &all[index];
    let length = body(one).len();
    let branches = all
        .iter()
        .enumerate()
        .filter(|(other, _)| *other != index)
        .map(|(_, other)| body(one).iter().zip(body(other)).take_while(|(a, b)| a == b).count());
    let mut positions: Vec<usize> = branches
        .chain(one.boundaries.iter().copied())
        .filter(|position| (1..=length).contains(position))
        .collect();
    positions.sort_unstable();
    positions.dedup();
    positions
}

fn num_distinct_prefixes<'a>(prompts: impl Iterator<Item = &'a [u32]>) -> usize {
    let prefixes: HashSet<&[u32]> =
        prompts.flat_map(|tokens| (1..=tokens.len()).map(|length| &tokens[..length])).collect();
    prefixes.len()
}

/// The most tokens in the union of the paths of `batch_size` neighbours, answers apart.
fn naive_live(all: &[Given], order: &[usize], batch_size: usize) -> usize {
    let of_batch = |batch: &[usize]| {
        let shared = num_distinct_prefixes(batch.iter().map(|&index| body(&all[index])));
        let own = batch
            .iter()
            .map(|&index| all[index].tokens.len() - body(&all[index]).len() + all[index].max_new_tokens);
        shared + own.sum::<usize>()
    };
    order.windows(batch_size.clamp(1, order.len().max(1))).map(of_batch).max().unwrap_or(0)
}

fn windows() -> impl Strategy<Value = Vec<Given>> {
    // Some are scored from some token on.
    let one = (vec(0u32..2, 0..9), vec(0usize..10, 0..3), 0usize..3, 0usize..20);
    let one = one.prop_map(|(tokens, boundaries, max_new_tokens, num_reusable)| Given {
        num_reusable: num_reusable.min(tokens.len().saturating_sub(1)),
        tokens,
        boundaries,
        max_new_tokens,
    });
    vec(one, 0..14)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_plan_is_what_the_sets_of_prefixes_say(all in windows(), first_order in 0u64..100) {
        let plan = WindowPlan::new(&views(&all), &PlanOptions { first_order, ..PlanOptions::default() });

        let mut sorted = plan.order.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, (0..all.len()).collect::<Vec<_>>());
        prop_assert_eq!(plan.num_prompt_tokens, all.iter().map(|given| given.tokens.len()).sum::<usize>());
        let num_unique = num_distinct_prefixes(all.iter().map(|given| given.tokens.as_slice()));
        prop_assert_eq!(plan.num_unique_tokens, num_unique);

        let place = |index: usize| plan.order.iter().position(|&at| at == index).expect("a permutation");
        for (index, cuts) in plan.cuts.iter().enumerate() {
            let positions: Vec<usize> = cuts.iter().map(|cut| cut.position).collect();
            prop_assert_eq!(positions, naive_positions(&all, index));
            for cut in cuts {
                let mut places: Vec<usize> =
                    users(&all, &all[index], cut.position).into_iter().map(place).collect();
                places.sort_unstable();
                let (first, last) = (places[0], places[places.len() - 1]);
                prop_assert_eq!(cut.num_users, places.len());
                prop_assert_eq!(last - first + 1, places.len(), "users are neighbours");
                prop_assert_eq!(cut.last_user_order, first_order + last as u64);
            }
        }
        for batch_size in [1, 2, 5, 100] {
            prop_assert_eq!(plan.max_live_tokens(batch_size), naive_live(&all, &plan.order, batch_size));
        }
    }

    /// Who computes a prefix and who waits for it must agree on where it ends.
    #[test]
    fn branch_points_that_save_little_are_cuts_for_none_of_their_users(
        mut all in windows(),
        min_saved_tokens in 1usize..12,
    ) {
        all.iter_mut().for_each(|given| given.boundaries.clear());
        let every = plan(&all);
        let some = WindowPlan::new(&views(&all), &PlanOptions { min_saved_tokens, ..PlanOptions::default() });
        prop_assert_eq!(&some.order, &every.order);
        for index in 0..all.len() {
            let mut above = 0;
            for cut in &every.cuts[index] {
                let is_worth_it = (cut.num_users - 1) * (cut.position - above) >= min_saved_tokens;
                prop_assert_eq!(some.cuts[index].contains(cut), is_worth_it);
                above = if is_worth_it { cut.position } else { above };
                for user in users(&all, &all[index], cut.position) {
                    prop_assert_eq!(some.cuts[user].contains(cut), is_worth_it);
                }
            }
            prop_assert!(some.cuts[index].len() <= every.cuts[index].len());
        }
    }

    #[test]
    fn shared_prefixes_add_up_to_what_is_saved(all in windows()) {
        let views = views(&all);
        let tree = PrefixTree::new(&views, 1);
        let shared = forecast::all_shared(&tree);
        for prefix in &shared {
            let example = &all[prefix.example];
            prop_assert_eq!(prefix.num_users, users(&all, example, prefix.num_tokens).len());
            prop_assert!(prefix.num_users >= 2 && prefix.num_tokens > prefix.num_parent_tokens);
        }
        let num_saved: usize = shared.iter().map(|prefix| prefix.num_saved_tokens).sum();
        let num_body: usize = all.iter().map(|given| body(given).len()).sum();
        prop_assert_eq!(num_saved, num_body - num_distinct_prefixes(all.iter().map(body)));
    }

    /// Law 1: lines in any order give the same run, so the plan must not see their order.
    #[test]
    fn the_order_of_the_input_does_not_matter(all in windows(), rotation in 0usize..14) {
        let mut rotated = all.clone();
        rotated.rotate_left(rotation.min(all.len()));
        let run = |all: &[Given]| -> Vec<(Vec<u32>, usize)> {
            let order = plan(all).order;
            order.into_iter().map(|index| (all[index].tokens.clone(), all[index].max_new_tokens)).collect()
        };
        prop_assert_eq!(run(&all), run(&rotated));
    }
}

#[test]
fn the_example_of_the_module_docs() {
    let system = [1, 2, 3];
    let prompt = |rest: &[u32]| given(&[&system, rest].concat(), 8);
    let all = [prompt(&[20, 9]), prompt(&[10, 11, 9]), prompt(&[10, 11, 12, 13, 9])];
    let plan = plan(&all);
    assert_eq!(plan.order, [2, 1, 0]);
    let cut = |position, last_user_order, num_users| Cut { position, last_user_order, num_users };
    assert_eq!(
        plan.cuts,
        [vec![cut(3, 2, 3)], vec![cut(3, 2, 3), cut(5, 1, 2)], vec![cut(3, 2, 3), cut(5, 1, 2)]]
    );
    assert_eq!((plan.num_prompt_tokens, plan.num_unique_tokens), (19, 3 + 2 + 3 + 1 + 2));
    let named: Vec<_> =
        plan.largest_shared.iter().map(|shared| (shared.num_tokens, shared.num_saved_tokens)).collect();
    assert_eq!(named, [(3, 6), (5, 2)]);
}

/// Equal prompts share all but the token that each must run for itself.
#[test]
fn equal_prompts_share_all_but_their_last_token() {
    let all = [given(&[1, 2, 3], 4), given(&[1, 2, 3], 4)];
    let plan = plan(&all);
    let cut = Cut { position: 2, last_user_order: 1, num_users: 2 };
    assert_eq!(plan.cuts, [vec![cut], vec![cut]]);
    assert_eq!(plan.num_unique_tokens, 3);
    assert_eq!(plan.max_live_tokens(2), 2 + 2 * (1 + 4));
}

#[test]
fn among_siblings_the_longest_work_is_first_and_groups_stay_together() {
    let all = [
        given(&[1, 1, 1, 1, 0], 10),
        given(&[2, 0], 10),
        given(&[2, 2, 2, 2, 2, 2, 0], 10),
        given(&[3, 0], 500),
    ];
    assert_eq!(plan(&all).order, [3, 2, 1, 0]);
}

#[test]
fn prompts_without_tokens_are_planned_too() {
    let all = [given(&[], 1), given(&[7], 1), given(&[], 1)];
    let plan = plan(&all);
    assert_eq!((plan.order.len(), plan.num_prompt_tokens, plan.num_unique_tokens), (3, 1, 1));
    assert!(plan.cuts.iter().all(Vec::is_empty) && plan.largest_shared.is_empty());
    assert_eq!(WindowPlan::new(&[], &PlanOptions::default()).max_live_tokens(4), 0);
}

/// A conversation that grows line by line is a path as deep as it has lines; nothing recurses.
#[test]
fn a_path_of_thousands_of_nodes_is_no_problem() {
    let all: Vec<Given> = (1..=3000).map(|length| given(&vec![5; length], 1)).collect();
    let plan = plan(&all);
    assert_eq!(plan.num_unique_tokens, 3000);
    assert_eq!(plan.cuts[2999].len(), 2998);
    assert_eq!(plan.cuts[2999][0], Cut { position: 1, last_user_order: 2999, num_users: 2999 });
    // Each before those that continue it.
    assert_eq!(plan.order, (0..3000).collect::<Vec<_>>());
}

#[test]
fn a_window_is_full_at_either_limit() {
    assert!(!window_is_full(MAX_WINDOW_REQUESTS - 1, MAX_WINDOW_TOKENS - 1));
    assert!(window_is_full(MAX_WINDOW_REQUESTS, 0));
    assert!(window_is_full(0, MAX_WINDOW_TOKENS));
}

#[test]
fn a_conversation_comes_before_those_that_continue_it() {
    // The longest came first, so an answer was never there in time for the prompt that has it.
    let turns = [given(&[1, 2, 3, 4, 5, 6, 7, 8], 9), given(&[1, 2, 3], 1), given(&[1, 2, 3, 4, 5], 5)];
    // The last one ends where the first turn does, but nobody continues it.
    let other = [given(&[1, 2, 9, 9, 9], 7), given(&[1, 2, 3], 4), given(&[1, 2, 4], 2)];
    assert_eq!(plan(&[turns.as_slice(), &other].concat()).order, [4, 1, 2, 0, 3, 5]);
}
