//! Slots with generations: where the tree keeps its nodes.
//!
//! Owns slot reuse, and that the id of a removed value never finds the value which took its slot.
//! What the values are is the tree's business.

/// Names a node of the prompt cache; goes stale when the node is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    index: u32,
    generation: u32,
}

#[derive(Debug, Clone)]
struct Slot<T> {
    /// Counts removals, so that ids given out before the last one are refused.
    generation: u32,
    value: Option<T>,
}

/// A vector of values with a free list.
#[derive(Debug, Clone)]
pub(super) struct Arena<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Arena<T> {
    pub(super) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, value: T) -> NodeId {
        let index = self.free.pop().unwrap_or_else(|| {
            let index = u32::try_from(self.slots.len()).expect("2^32 nodes do not fit in memory");
            self.slots.push(Slot { generation: 0, value: None });
            index
        });
        let slot = &mut self.slots[index as usize];
        slot.value = Some(value);
        NodeId { index, generation: slot.generation }
    }

    pub(super) fn get(&self, id: NodeId) -> Option<&T> {
        let slot = self.slots.get(id.index as usize).filter(|slot| slot.generation == id.generation)?;
        slot.value.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: NodeId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)?;
        slot.value.as_mut()
    }

    pub(super) fn remove(&mut self, id: NodeId) -> Option<T> {
        let slot = self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_id_never_finds_the_value_that_took_its_slot() {
        let mut arena = Arena::new();
        let (a, b) = (arena.insert("a"), arena.insert("b"));
        assert_eq!(arena.remove(a), Some("a"));
        assert_eq!(arena.remove(a), None);

        let c = arena.insert("c");
        assert_eq!(c.index, a.index, "the slot is used again");
        assert_eq!(arena.get(a), None);
        assert_eq!(arena.get_mut(a), None);
        assert_eq!(arena.remove(a), None);
        assert_eq!((arena.get(b), arena.get(c), arena.len()), (Some(&"b"), Some(&"c"), 2));
    }

    #[test]
    fn an_id_of_another_arena_is_refused_and_not_a_panic() {
        let mut other = Arena::new();
        let ids = [other.insert(0), other.insert(1)];
        assert_eq!(Arena::<i32>::new().get(ids[1]), None);
    }
}
