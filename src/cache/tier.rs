//! How persistent a stored prefix is, and small tables with one value for each tier.
//!
//! Owns the order of the tiers. Which spans of a prompt get which tier is the caller's business,
//! what follows for eviction is [`super::ranking`]'s.

use std::ops::{Index, IndexMut};

/// How persistent a stored prefix is; a later tier is kept longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Answers. Most templates drop the thinking of earlier turns, so they are the least likely to
    /// be met again.
    Assistant,
    /// Everything between the system part and an answer.
    User,
    /// System prompts, tools and whatever else a template puts first.
    System,
}

impl Tier {
    /// Every tier, the least persistent first: the order of eviction.
    pub const ALL: [Tier; 3] = [Tier::Assistant, Tier::User, Tier::System];

    /// The tier's name as reports print it.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Assistant => "assistant",
            Tier::User => "user",
            Tier::System => "system",
        }
    }
}

/// One value for each tier.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PerTier<T>([T; 3]);

impl<T> PerTier<T> {
    /// Walks through the values, the least persistent tier first.
    pub fn iter(&self) -> impl Iterator<Item = (Tier, &T)> {
        Tier::ALL.into_iter().zip(&self.0)
    }
}

impl<T> Index<Tier> for PerTier<T> {
    type Output = T;

    fn index(&self, tier: Tier) -> &T {
        &self.0[tier as usize]
    }
}

impl<T> IndexMut<Tier> for PerTier<T> {
    fn index_mut(&mut self, tier: Tier) -> &mut T {
        &mut self.0[tier as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_stand_in_order_of_eviction_and_index_their_own_slot() {
        assert!(Tier::ALL.is_sorted());
        let mut table = PerTier::<usize>::default();
        for (number, tier) in Tier::ALL.into_iter().enumerate() {
            table[tier] = number;
        }
        assert_eq!(
            table.iter().map(|(tier, n)| (tier.name(), *n)).collect::<Vec<_>>(),
            [("assistant", 0), ("user", 1), ("system", 2)]
        );
    }
}
