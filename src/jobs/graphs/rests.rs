//! Namespaces that rest since their runs failed, each longer after each failure.
//!
//! **Invariant:** a success ends all memory of failures.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Place;

#[derive(Debug, Clone, Copy)]
struct Rest {
    failures: u32,
    until: Instant,
}

/// Who rests.
#[derive(Debug)]
pub(super) struct Rests {
    /// Beyond so many, a failure is forgotten at once, and the sweep's own period is the rest.
    most: usize,
    /// After the first failure, doubled each time, and the longest.
    rest: (Duration, Duration),
    of: Mutex<BTreeMap<Place, Rest>>,
}

impl Rests {
    pub(super) fn new(most: usize, rest: (Duration, Duration)) -> Self {
        Self { most, rest, of: Mutex::default() }
    }

    /// Whether it rests.
    pub(super) fn has(&self, place: Place, now: Instant) -> bool {
        self.of.lock().get(&place).is_some_and(|rest| now < rest.until)
    }

    /// Notes a failure; returns how long it rests.
    pub(super) fn begin(&self, place: Place, now: Instant) -> Duration {
        let (first, longest) = self.rest;
        let mut of = self.of.lock();
        if of.len() >= self.most {
            // Those whose rest is long over were not tried again: they lag no more, or are gone.
            of.retain(|_, rest| now < rest.until + longest);
        }
        let failures = of.get(&place).map_or(0, |rest| rest.failures);
        let pause = first.saturating_mul(1 << failures.min(16)).min(longest);
        if of.len() < self.most || of.contains_key(&place) {
            of.insert(place, Rest { failures: failures.saturating_add(1), until: now + pause });
        }
        pause
    }

    /// Notes a success; returns whether it had failed before.
    pub(super) fn end(&self, place: Place) -> bool {
        self.of.lock().remove(&place).is_some()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::{NamespaceId, TenantId};

    const REST: (Duration, Duration) = (Duration::from_millis(500), Duration::from_mins(1));

    fn place(number: u128) -> Place {
        (TenantId(Uuid::from_u128(number)), NamespaceId(Uuid::nil()))
    }

    #[test]
    fn each_failure_rests_longer_a_success_ends_it_and_nobody_else_rests() {
        let (rests, now) = (Rests::new(8, REST), Instant::now());
        let pauses: Vec<u128> = (0..20).map(|_| rests.begin(place(1), now).as_millis()).collect();
        assert_eq!((&pauses[..4], pauses[19]), (&[500, 1000, 2000, 4000][..], 60_000));
        assert!(rests.has(place(1), now) && !rests.has(place(1), now + REST.1));
        assert!(!rests.has(place(2), now));
        assert!(rests.end(place(1)) && !rests.end(place(1)));
        assert!(!rests.has(place(1), now));
        assert_eq!(rests.begin(place(1), now), REST.0);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (rests, now) = (Rests::new(8, REST), Instant::now());
        for number in 0..1000 {
            rests.begin(place(number), now);
            assert!(rests.of.lock().len() <= 8);
        }
        rests.begin(place(5000), now + 2 * REST.1);
        assert!(rests.has(place(5000), now + 2 * REST.1), "there is room for it again");
    }
}
