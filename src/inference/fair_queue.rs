//! A queue of batches that serves tenants in turn, however much each has waiting.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996): a batch may begin when its tenant's last one would have been
//! done if tenants were served side by side; the earliest goes first. Whoever had nothing done lately is next.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;

/// What waits, by tenant.
#[derive(Debug)]
pub(super) struct FairQueue<K, T> {
    waiting: HashMap<K, VecDeque<(u64, T)>>,
    /// Tenants that wait, by the start of their first item, and among equals as they came.
    order: BTreeSet<(u64, u64, K)>,
    /// When the last items of tenants that wait for nothing end.
    ends: HashMap<K, u64>,
    /// How many ends there are when those that are over are forgotten.
    forget_at: usize,
    /// The start of the item that was served last, in costs.
    now: u64,
    arrivals: u64,
}

/// The least of that.
const ENDS: usize = 1024;

impl<K: Copy + Eq + Hash + Ord, T> FairQueue<K, T> {
    /// An empty queue.
    pub(super) fn new() -> Self {
        Self {
            waiting: HashMap::new(),
            order: BTreeSet::new(),
            ends: HashMap::new(),
            forget_at: ENDS,
            now: 0,
            arrivals: 0,
        }
    }

    /// Adds an item of this cost behind the tenant's others.
    pub(super) fn push(&mut self, tenant: K, cost: u64, item: T) {
        if let Some(items) = self.waiting.get_mut(&tenant) {
            items.push_back((cost, item));
            return;
        }
        let start = self.ends.remove(&tenant).unwrap_or_default().max(self.now);
        self.waiting.insert(tenant, VecDeque::from([(cost, item)]));
        self.enqueue(tenant, start);
    }

    /// The next item.
    pub(super) fn pop(&mut self) -> Option<T> {
        let (start, _, tenant) = self.order.pop_first()?;
        self.now = start;
        let items = self.waiting.get_mut(&tenant)?;
        let (cost, item) = items.pop_front()?;
        let end = start.saturating_add(cost.max(1));
        if items.is_empty() {
            self.waiting.remove(&tenant);
            if self.ends.len() >= self.forget_at {
                self.ends.retain(|_, end| *end > start);
                // Twice as many as are not over, so that each is looked at about once.
                self.forget_at = ENDS.max(2 * self.ends.len());
            }
            self.ends.insert(tenant, end);
        } else {
            self.enqueue(tenant, end);
        }
        Some(item)
    }

    fn enqueue(&mut self, tenant: K, start: u64) {
        self.arrivals += 1;
        self.order.insert((start, self.arrivals, tenant));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_with_much_work_does_not_delay_one_with_little() {
        let mut queue = FairQueue::new();
        for n in 0..100 {
            queue.push('a', 10, ('a', n));
        }
        queue.push('b', 10, ('b', 0));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert!(order.iter().position(|item| item.0 == 'b').is_some_and(|at| at <= 2));
        assert_eq!(order.len(), 101);
    }

    #[test]
    fn whoever_asks_one_thing_after_the_other_waits_for_one_of_a_tenant_that_always_has_more() {
        let mut queue = FairQueue::new();
        for _ in 0..4 {
            queue.push('a', 70, 'a');
        }
        let mut behind = 0;
        for _ in 0..50 {
            queue.push('b', 70, 'b');
            let mut before = 0;
            while queue.pop() == Some('a') {
                queue.push('a', 70, 'a');
                before += 1;
            }
            behind = behind.max(before);
        }
        assert!(behind <= 2, "{behind}");
    }

    #[test]
    fn tenants_that_come_and_go_do_not_starve_one_that_waits() {
        let mut queue = FairQueue::new();
        queue.push('a', 1_000, 'a');
        queue.push('a', 1_000, 'a');
        for name in ['b', 'c'] {
            queue.push(name, 10, name);
        }
        let mut served = 0;
        for _ in 0..1_000 {
            let Some(name) = queue.pop() else { break };
            match name {
                'a' => served += 1,
                name => queue.push(name, 10, name),
            }
        }
        assert_eq!(served, 2);
    }

    #[test]
    fn a_dear_item_is_served_in_its_turn_and_its_tenant_waits_afterwards() {
        let mut queue = FairQueue::new();
        queue.push('a', 1_000, 1);
        queue.push('a', 1, 2);
        queue.push('b', 1, 3);
        assert_eq!([queue.pop(), queue.pop(), queue.pop(), queue.pop()], [Some(1), Some(3), Some(2), None]);
    }

    #[test]
    fn tenants_that_are_done_are_forgotten() {
        let mut queue = FairQueue::new();
        for tenant in 0..10 * ENDS as u64 {
            queue.push(tenant, 1, ());
            // Time goes on by somebody else's work.
            queue.push(u64::MAX, 2, ());
            assert!(queue.pop().is_some() && queue.pop().is_some());
        }
        assert!(queue.ends.len() <= 2 * ENDS && queue.waiting.is_empty(), "{}", queue.ends.len());
    }

    #[test]
    fn a_tenants_own_items_keep_their_order() {
        let mut queue = FairQueue::new();
        for n in 0..20 {
            queue.push(n % 2, 2, n);
        }
        let order: Vec<i32> = std::iter::from_fn(|| queue.pop()).collect();
        let evens: Vec<i32> = order.iter().copied().filter(|n| n % 2 == 0).collect();
        assert!(evens.is_sorted());
    }
}
