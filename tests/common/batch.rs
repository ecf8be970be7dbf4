//! Prompts that share what prompts of a real batch share, and their plan.
//!
//! Owns the counts that follow from the prompts alone. Planning is done as `mlxbatch run` does it; which
//! prompts there are is each test's business, running them `runs`'.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use mlxbatch::{
    cache::Tier,
    engine::{Cut, PromptPlan, num_reusable},
    plan::{PlanOptions, PlanPrompt, WindowPlan},
};

use super::{runs::Setting, wants::Wants};

/// Tokens of the fixtures' vocabulary, the end token aside.
const NUM_TOKENS: u64 = 303;

pub struct Prompt {
    pub tokens: Vec<u32>,
    /// Where its spans end, ascending, and of which tier they are.
    pub spans: Vec<(usize, Tier)>,
    pub max_new_tokens: usize,
    /// New tokens after which the caller has seen enough, as when a stop string is found.
    pub stopped_after: Option<usize>,
    /// The prompt whose answer it goes on with, by its place in the batch.
    pub follows: Option<usize>,
    pub wants: Wants,
}

pub struct Batch {
    pub prompts: Vec<Prompt>,
    pub end_ids: Arc<[u32]>,
    /// Whether prompts are cut where each of their spans ends, and not behind the system part alone.
    pub has_checkpoints: bool,
}

/// SplitMix64: the same numbers in every run of a test.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in the range, which is not empty.
    pub fn within(&mut self, range: std::ops::RangeInclusive<usize>) -> usize {
        range.start() + (self.next() % (range.end() - range.start() + 1) as u64) as usize
    }

    pub fn words(&mut self, num_words: usize) -> Vec<u32> {
        (0..num_words).map(|_| (self.next() % NUM_TOKENS) as u32).collect()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, (self.next() % (last as u64 + 1)) as usize);
        }
    }
}

impl Prompt {
    /// How many of its tokens may come from the cache.
    pub fn num_reusable(&self) -> usize {
        num_reusable(self.tokens.len(), self.wants.score.as_ref())
    }

    /// The tier of the span that a position ends or lies in.
    fn tier_at(&self, position: usize) -> Tier {
        let span = self.spans.iter().find(|(end, _)| *end >= position);
        span.map_or(Tier::User, |(_, tier)| *tier)
    }

    fn boundaries(&self, has_checkpoints: bool) -> Vec<usize> {
        let is_one = |(_, tier): &&(usize, Tier)| has_checkpoints || *tier == Tier::System;
        self.spans.iter().filter(is_one).map(|(end, _)| *end).collect()
    }
}

impl Batch {
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

    /// The prompts of a run that are submitted when the answer they go on with is there, by the one that has it.
    pub fn followers(&self, setting: &Setting) -> HashMap<usize, Vec<usize>> {
        let mut followers: HashMap<usize, Vec<usize>> = HashMap::new();
        let places: HashSet<usize> = setting.order.iter().copied().filter(|_| setting.plays_turns).collect();
        for &index in &setting.order {
            if let Some(before) = self.prompts[index].follows.filter(|before| places.contains(before)) {
                followers.entry(before).or_default().push(index);
            }
        }
        followers
    }

    /// Plans a run that has come to `first_order`.
    pub fn plan(&self, setting: &Setting, first_order: u64) -> Vec<(usize, PromptPlan)> {
        let order = &setting.order;
        let boundaries: Vec<Vec<usize>> =
            order.iter().map(|&index| self.prompts[index].boundaries(self.has_checkpoints)).collect();
        let prompts: Vec<PlanPrompt> = order
            .iter()
            .zip(&boundaries)
            .map(|(&index, boundaries)| PlanPrompt {
                tokens: &self.prompts[index].tokens,
                num_reusable: self.prompts[index].num_reusable(),
                boundaries,
                max_new_tokens: self.prompts[index].max_new_tokens,
            })
            .collect();
        let plan = WindowPlan::new(&prompts, &PlanOptions { first_order, ..PlanOptions::default() });
        let planned = plan.order.iter().enumerate().map(|(place, &at)| {
            let prompt = &self.prompts[order[at]];
            let cuts = plan.cuts[at].iter().map(|cut| Cut {
                position: cut.position,
                tier: prompt.tier_at(cut.position),
                users: (cut.last_user_order + 1).saturating_sub(cut.num_users as u64)..=cut.last_user_order,
            });
            let order_of_run = first_order + place as u64;
            let drops_private = setting.drops_private;
            (order[at], PromptPlan { order: order_of_run, cuts: cuts.collect(), drops_private })
        });
        planned.collect()
    }
}
