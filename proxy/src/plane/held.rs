//! The process's budget for bodies held in memory: without one, a crowd of large requests ends in the OOM killer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many bytes all held bodies may have together.
#[derive(Clone, Debug)]
pub struct HeldBytes {
    limit: u64,
    held: Arc<AtomicU64>,
}

impl HeldBytes {
    /// `limit` in bytes, of the whole process.
    pub fn new(limit: u64) -> Self {
        Self { limit, held: Arc::new(AtomicU64::new(0)) }
    }

    /// Bytes held now.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Starts a hold of nothing; [`Hold::grow`] takes from the budget.
    pub fn hold(&self) -> Hold {
        Hold { budget: self.clone(), bytes: 0 }
    }
}

/// A share of the budget, given back on drop.
#[derive(Debug)]
pub struct Hold {
    budget: HeldBytes,
    bytes: u64,
}

impl Hold {
    /// Takes `more` bytes. `false` when the budget does not have them; nothing is taken then.
    #[must_use]
    pub fn grow(&mut self, more: u64) -> bool {
        self.take(more, self.budget.limit)
    }

    /// As [`grow`](Self::grow), for what can be done without: `false`, too, when half of the budget would be exceeded. The
    /// rest is for what must be held.
    #[must_use]
    pub fn grow_if_spare(&mut self, more: u64) -> bool {
        self.take(more, self.budget.limit / 2)
    }

    fn take(&mut self, more: u64, limit: u64) -> bool {
        let taken = self.budget.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(more).filter(|sum| *sum <= limit)
        });
        if taken.is_ok() {
            self.bytes = self.bytes.saturating_add(more);
        }
        taken.is_ok()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_never_exceed_the_budget_and_give_back() {
        let budget = HeldBytes::new(10);
        let (mut one, mut two) = (budget.hold(), budget.hold());
        assert!(one.grow(6) && !two.grow(5) && two.grow(4) && !one.grow(1));
        drop(one);
        assert_eq!(budget.held(), 4);
        assert!(two.grow(6) && !two.grow(u64::MAX));
    }

    #[test]
    fn what_can_be_done_without_leaves_half_to_what_must_be_held() {
        let budget = HeldBytes::new(10);
        let (mut copy, mut body) = (budget.hold(), budget.hold());
        assert!(copy.grow_if_spare(4) && !copy.grow_if_spare(2) && copy.grow_if_spare(1));
        assert!(body.grow(5) && !body.grow(1));
        drop(copy);
        assert!(!body.grow_if_spare(1) && body.grow(5));
    }
}
