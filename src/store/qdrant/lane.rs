//! What this process knows of each partition: a cache of its head, and what a caller was told.
//!
//! **Locks**, in this order: `writer`, then the collection's `life`, then `known`, which nobody holds while it waits.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex as Spin;
use tokio::sync::{Mutex, RwLock};

use super::wire::Head;
use crate::domain::Seq;
use crate::domain::ids::{ModelId, TenantId};
use crate::store::partition::Partition;

/// What is known of a partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    /// The head as it was last read or written.
    pub(super) head: Option<Head>,
    /// How far it has come without a point, as long as there is no collection to write that to. A start without it
    /// costs a rebuild from nothing.
    pub(super) empty: Option<Seq>,
    /// The highest position that a caller could know.
    pub(super) reached: Seq,
    /// It is gone for good; identifiers are never reused.
    pub(super) is_removed: bool,
    /// When there is something to purge, seconds of Unix time: the first of it, and the last. What an earlier process
    /// left is due at once.
    pub(super) purge: Option<(i64, i64)>,
    /// Since when a generation was seen that is not served yet, or never will be, seconds of Unix time.
    pub(super) draft: Option<i64>,
}

impl Default for Known {
    fn default() -> Self {
        let purge = Some((0, 0));
        Self { head: None, empty: None, reached: Seq(0), is_removed: false, purge, draft: None }
    }
}

/// One partition.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Held by whoever writes.
    pub(super) writer: Mutex<()>,
    /// Held by the one rebuild.
    pub(super) rebuilding: Arc<Mutex<()>>,
    known: Spin<Known>,
}

impl Lane {
    pub(super) fn known(&self) -> Known {
        *self.known.lock()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known.lock());
    }

    /// A caller has learnt where the index stands and goes on from there.
    pub(super) fn acknowledge(&self, seq: Seq) {
        self.known.lock().reached = seq;
    }

    /// There is something to purge from this time on.
    pub(super) fn soil(&self, at: i64) {
        let mut known = self.known.lock();
        let (first, last) = known.purge.unwrap_or((at, at));
        known.purge = Some((first, last.max(at)));
    }

    /// What was due at this time is purged.
    pub(super) fn purged(&self, now: i64) {
        let mut known = self.known.lock();
        known.purge = known.purge.filter(|(_, last)| *last > now).map(|(_, last)| (last, last));
    }
}

/// Held for reading while a collection is used, for writing while it is made or removed.
type Life = Arc<RwLock<()>>;

/// The lanes of partitions, and a lock for the life of each collection.
///
/// **Invariant:** what somebody holds is never forgotten, so there is one lane and one lock for all who hold it.
#[derive(Debug)]
pub(super) struct Lanes {
    /// Beyond so many, those are forgotten that nobody holds: the server and the record know all that they say.
    most: usize,
    of_partitions: Spin<HashMap<Partition, Arc<Lane>>>,
    lives: Spin<HashMap<(TenantId, ModelId), Life>>,
}

impl Lanes {
    pub(super) fn new(most: usize) -> Self {
        Self { most, of_partitions: Spin::default(), lives: Spin::default() }
    }

    pub(super) fn lane(&self, partition: &Partition) -> Arc<Lane> {
        let mut lanes = self.of_partitions.lock();
        // Looked up before the key is cloned: most partitions are there.
        if let Some(lane) = lanes.get(partition) {
            return Arc::clone(lane);
        }
        if lanes.len() >= self.most {
            // That a partition is gone for good is known for longest: the record knows it, and whoever is late is not
            // told by it.
            let mut removed = self.most / 2;
            lanes.retain(|_, lane| {
                let is_kept = lane.known().is_removed && removed > 0;
                removed -= usize::from(is_kept);
                is_kept || Arc::strong_count(lane) > 1
            });
        }
        Arc::clone(lanes.entry(partition.clone()).or_default())
    }

    /// Held for reading by whoever writes to a collection, and for writing by whoever deletes it or serves another.
    pub(super) fn life(&self, partition: &Partition) -> Arc<RwLock<()>> {
        let key = (partition.tenant(), partition.model().clone());
        let mut lives = self.lives.lock();
        if let Some(life) = lives.get(&key) {
            return Arc::clone(life);
        }
        if lives.len() >= self.most {
            lives.retain(|_, life| Arc::strong_count(life) > 1);
        }
        Arc::clone(lives.entry(key).or_default())
    }

    /// Forgets the heads of a tenant's partitions of one model: another collection is served.
    pub(super) fn forget_heads(&self, tenant: TenantId, model: &ModelId) {
        let lanes = self.of_partitions.lock();
        let own = lanes.iter().filter(|(of, _)| of.tenant() == tenant && of.model() == model);
        own.for_each(|(_, lane)| lane.change(|known| known.head = None));
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::ids::NamespaceId;

    #[test]
    fn lanes_are_bounded_and_those_in_use_stay_the_same() {
        let lanes = Lanes::new(8);
        let model = ModelId::parse("00112233445566ff").expect("a model");
        let of = |number: u128| {
            Partition::new(TenantId(Uuid::from_u128(number)), NamespaceId(Uuid::nil()), model.clone())
        };
        let (held, life) = (lanes.lane(&of(0)), lanes.life(&of(0)));
        lanes.lane(&of(1)).change(|known| known.is_removed = true);
        for number in 2..1000 {
            lanes.lane(&of(number));
            lanes.life(&of(number));
            assert!(lanes.of_partitions.lock().len() <= 8 && lanes.lives.lock().len() <= 8);
        }
        assert!(Arc::ptr_eq(&held, &lanes.lane(&of(0))) && Arc::ptr_eq(&life, &lanes.life(&of(0))));
        assert!(lanes.lane(&of(1)).known().is_removed, "it is remembered while there is room");
        for number in 2000..3000 {
            lanes.lane(&of(number)).change(|known| known.is_removed = true);
            assert!(lanes.of_partitions.lock().len() <= 8, "and not beyond");
        }
    }
}
