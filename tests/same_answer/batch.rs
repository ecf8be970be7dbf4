//! The prompts of the matrix, which share what prompts of a real batch share, and their plan.
//!
//! Owns the prompts and the counts that follow from them alone. Planning is done as `mlxbatch run`
//! does it; running is `runs`' business.

use std::collections::HashSet;

use mlxbatch::{
    cache::{ResumeRule, Tier},
    engine::{Cut, PromptPlan, Runner},
    plan::{PlanOptions, PlanPrompt, WindowPlan},
};

use super::{common::load, runs::Setting};

/// Tokens of the fixtures' vocabulary, the end token aside.
const NUM_TOKENS: u64 = 303;

/// New tokens of each request.
pub const NUM_NEW: usize = 10;

pub struct Prompt {
    pub tokens: Vec<u32>,
    /// Where its system part ends.
    system_end: Option<usize>,
}

pub struct Batch {
    pub prompts: Vec<Prompt>,
    /// Whether prompts are cut where each of their spans ends, and not behind the system part alone.
    has_checkpoints: bool,
}

/// SplitMix64: the same numbers in every run of the test.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn words(&mut self, num_words: usize) -> Vec<u32> {
        (0..num_words).map(|_| (self.next() % NUM_TOKENS) as u32).collect()
    }
}

/// The numbers below `num_prompts` in an order that looks random and never changes.
pub fn shuffled(num_prompts: usize) -> Vec<usize> {
    let mut numbers = Numbers(7);
    let mut order: Vec<usize> = (0..num_prompts).collect();
    for last in (1..num_prompts).rev() {
        order.swap(last, (numbers.next() % (last as u64 + 1)) as usize);
    }
    order
}

impl Batch {
    /// Two system parts, few-shot examples that branch below the first one, questions below those;
    /// equal prompts, prompts that are the beginning of others, and some that share nothing.
    pub fn new(model: &str) -> Self {
        let mut numbers = Numbers(1);
        let systems = [numbers.words(70), numbers.words(33)];
        let shots = [numbers.words(40), numbers.words(21), numbers.words(5)];
        let mut prompts = Vec::new();
        let mut add = |parts: &[&[u32]], system_end: Option<usize>| {
            prompts.push(Prompt { tokens: parts.concat(), system_end });
        };
        let (first, second) = (&systems[0][..], &systems[1][..]);
        for length in [9, 1, 26] {
            add(&[first, &shots[0], &shots[2], &numbers.words(length)], Some(first.len()));
            add(&[first, &shots[0], &numbers.words(length + 2)], Some(first.len()));
            add(&[first, &shots[1], &numbers.words(length + 1)], Some(first.len()));
            add(&[second, &numbers.words(length)], Some(second.len()));
            add(&[&numbers.words(length)], None);
        }
        let long = numbers.words(30);
        add(&[first, &shots[0], &long], Some(first.len()));
        add(&[first, &shots[0], &long[..14]], Some(first.len()));
        add(&[first, &shots[0], &long[..15]], Some(first.len()));
        add(&[first, &shots[0], &long], Some(first.len()));
        add(&[first, &shots[0]], Some(first.len()));
        add(&[first], None);
        add(&[&first[..20]], None);
        add(&[second, &shots[2]], Some(second.len()));
        add(&[second, &shots[2]], Some(second.len()));
        let has_checkpoints = load(model).resume_rule() == ResumeRule::Checkpoints;
        Self { prompts, has_checkpoints }
    }

    /// Prompt tokens that are computed in chunks where nothing is shared: all but the last of each.
    pub fn num_reusable(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.tokens.len() - 1).sum()
    }

    /// Those of them that are the same as another's are counted once.
    pub fn num_distinct(&self) -> usize {
        let reusable = self.prompts.iter().map(|prompt| &prompt.tokens[..prompt.tokens.len() - 1]);
        let prefixes: HashSet<&[u32]> =
            reusable.flat_map(|tokens| (1..=tokens.len()).map(move |end| &tokens[..end])).collect();
        prefixes.len()
    }

    /// Different prompts that others begin with whole. The last token of such a one is computed as the first
    /// decode row: where it has ended before those others begin, they find that token with its answer.
    pub fn num_continued(&self) -> usize {
        let is_continued = |tokens: &&[u32]| {
            let mut others = self.prompts.iter().map(|prompt| &prompt.tokens);
            others.any(|other| other.len() > tokens.len() && other.starts_with(tokens))
        };
        let prompts: HashSet<&[u32]> = self.prompts.iter().map(|prompt| prompt.tokens.as_slice()).collect();
        prompts.iter().copied().filter(is_continued).count()
    }

    /// Plans a run that has come to `first_order`.
    pub fn plan(&self, setting: &Setting, first_order: u64) -> Vec<(usize, PromptPlan)> {
        let order = &setting.order;
        let boundaries: Vec<Vec<usize>> = order
            .iter()
            .map(|&index| {
                let prompt = &self.prompts[index];
                let end = self.has_checkpoints.then_some(prompt.tokens.len());
                prompt.system_end.into_iter().chain(end).collect()
            })
            .collect();
        let prompts: Vec<PlanPrompt> = order
            .iter()
            .zip(&boundaries)
            .map(|(&index, boundaries)| PlanPrompt {
                tokens: &self.prompts[index].tokens,
                boundaries,
                max_new_tokens: NUM_NEW,
            })
            .collect();
        let plan = WindowPlan::new(&prompts, &PlanOptions { first_order, ..PlanOptions::default() });
        let planned = plan.order.iter().enumerate().map(|(place, &at)| {
            let system_end = self.prompts[order[at]].system_end.unwrap_or(0);
            let cuts = plan.cuts[at].iter().map(|cut| Cut {
                position: cut.position,
                tier: if cut.position <= system_end { Tier::System } else { Tier::User },
                users: (cut.last_user_order + 1).saturating_sub(cut.num_users as u64)..=cut.last_user_order,
            });
            let order_of_run = first_order + place as u64;
            let drops_private = setting.drops_private;
            (order[at], PromptPlan { order: order_of_run, cuts: cuts.collect(), drops_private })
        });
        planned.collect()
    }
}
