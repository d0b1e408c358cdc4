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
}

impl Default for Known {
    fn default() -> Self {
        let purge = Some((0, 0));
        Self { head: None, empty: None, reached: Seq(0), is_removed: false, purge }
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

/// The lanes of all partitions, and a lock for the life of each collection.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: Spin<HashMap<Partition, Arc<Lane>>>,
    lives: Spin<HashMap<(TenantId, ModelId), Life>>,
}

impl Lanes {
    pub(super) fn lane(&self, partition: &Partition) -> Arc<Lane> {
        let mut lanes = self.lanes.lock();
        // Looked up before the key is cloned: most partitions are there.
        if let Some(lane) = lanes.get(partition) {
            return Arc::clone(lane);
        }
        Arc::clone(lanes.entry(partition.clone()).or_default())
    }

    /// Held for reading by whoever writes to a collection, and for writing by whoever deletes it.
    pub(super) fn life(&self, partition: &Partition) -> Arc<RwLock<()>> {
        let key = (partition.tenant(), partition.model().clone());
        Arc::clone(self.lives.lock().entry(key).or_default())
    }
}
