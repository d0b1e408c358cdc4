//! A queue of batches that serves tenants in turn, however much each has waiting.
//!
//! Deficit round robin (Shreedhar and Varghese, 1995): a tenant's turn is worth a fixed cost; what it does
//! not use is kept while it has work.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// What waits, by tenant.
#[derive(Debug)]
pub(super) struct FairQueue<K, T> {
    waiting: HashMap<K, Account<T>>,
    turns: VecDeque<K>,
    quantum: u64,
}

#[derive(Debug)]
struct Account<T> {
    items: VecDeque<(u64, T)>,
    credit: u64,
}

impl<K: Copy + Eq + Hash, T> FairQueue<K, T> {
    /// A queue in which each turn is worth `quantum`.
    pub(super) fn new(quantum: u64) -> Self {
        Self { waiting: HashMap::new(), turns: VecDeque::new(), quantum: quantum.max(1) }
    }

    /// Adds an item of this cost behind the tenant's others.
    pub(super) fn push(&mut self, tenant: K, cost: u64, item: T) {
        let quantum = self.quantum;
        let turns = &mut self.turns;
        let account = self.waiting.entry(tenant).or_insert_with(|| {
            turns.push_back(tenant);
            Account { items: VecDeque::new(), credit: quantum }
        });
        account.items.push_back((cost, item));
    }

    /// The next item: of the tenant whose turn it is, as long as its credit lasts.
    pub(super) fn pop(&mut self) -> Option<T> {
        loop {
            let tenant = *self.turns.front()?;
            let Some(account) = self.waiting.get_mut(&tenant) else {
                self.turns.pop_front();
                continue;
            };
            match account.items.front() {
                None => {
                    self.waiting.remove(&tenant);
                    self.turns.pop_front();
                }
                Some((cost, _)) if *cost > account.credit => {
                    account.credit += self.quantum;
                    self.turns.rotate_left(1);
                }
                Some((cost, _)) => {
                    account.credit -= cost;
                    return account.items.pop_front().map(|(_, item)| item);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_with_much_work_does_not_delay_one_with_little() {
        let mut queue = FairQueue::new(10);
        for n in 0..100 {
            queue.push('a', 10, ('a', n));
        }
        queue.push('b', 10, ('b', 0));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert!(order.iter().position(|item| item.0 == 'b').is_some_and(|at| at <= 2));
        assert_eq!(order.len(), 101);
    }

    #[test]
    fn an_item_dearer_than_a_turn_is_served_in_the_end() {
        let mut queue = FairQueue::new(1);
        queue.push('a', 1_000, 1);
        queue.push('b', 1, 2);
        assert_eq!(queue.pop(), Some(2));
        assert_eq!(queue.pop(), Some(1));
        assert_eq!(queue.pop(), None);
    }

    #[test]
    fn a_tenants_own_items_keep_their_order() {
        let mut queue = FairQueue::new(3);
        for n in 0..20 {
            queue.push(n % 2, 2, n);
        }
        let order: Vec<i32> = std::iter::from_fn(|| queue.pop()).collect();
        let evens: Vec<i32> = order.iter().copied().filter(|n| n % 2 == 0).collect();
        assert!(evens.is_sorted());
    }
}
