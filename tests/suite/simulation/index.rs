//! A vector index as a model: what is applied, what a crash leaves of it, and the ways in which calls go wrong.
//!
//! It passes the conformance suite that real shards pass, as far as that asks for no vectors.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bulkhead::domain::Seq;
use bulkhead::domain::ids::{ChunkId, TenantId};
use bulkhead::store::vector::{
    Entries, Entry, Found, Hit, Point, Position, Rebuild, VectorIndex, VectorQuery,
};
use bulkhead::store::{ErrorKind, Partition, StoreError};
use parking_lot::Mutex;

use super::Broken;
use super::executor::World;
use super::record::Place;

type Points = BTreeMap<ChunkId, i64>;

/// What is on disk of one partition.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    pub points: Points,
    /// The watermark; `None`: there is no index.
    pub durable: Option<Seq>,
    deleted_since: Option<Duration>,
}

/// One partition: its files, and what the process knows.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "what a process knows of a shard, each by itself")]
pub struct Slot {
    pub disk: Disk,
    /// What is served: points, and up to where they were applied.
    pub open: Option<(Points, Seq)>,
    reached: Seq,
    went_back: bool,
    removed: bool,
    rebuilding: bool,
    /// A flush is under way, for which whoever closes the shard waits.
    flushing: bool,
}

/// The indexes of one server.
pub struct ModelIndex {
    world: World,
    slots: Arc<Mutex<BTreeMap<Place, (Partition, Slot)>>>,
    /// One call in so many goes wrong; 0: none.
    faults: Arc<AtomicU64>,
    /// Rises with every call that may change something.
    revision: Arc<AtomicU64>,
    broken: Option<Broken>,
}

/// How a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Nothing was done.
    Refused,
    /// It panicked half way; the shard is closed, and opens again as it was flushed.
    Panicked,
    /// It was carried out, and the answer came too late.
    Late,
    /// The files cannot be read; they are put away.
    Damaged,
}

fn failed(kind: ErrorKind, operation: &'static str, words: &str) -> StoreError {
    StoreError::new(kind, "model", operation, words)
}

impl Slot {
    /// Opens what is on disk, if it is not open.
    fn settle(&mut self) {
        if self.open.is_none() {
            self.open = self.disk.durable.map(|durable| (self.disk.points.clone(), durable));
            let at = self.open.as_ref().map_or(Seq(0), |(_, applied)| *applied);
            self.went_back |= at < self.reached;
        }
    }

    fn acknowledge(&mut self, seq: Seq) {
        (self.reached, self.went_back) = (seq, false);
    }

    fn suffer(&mut self, fault: Fault) {
        match fault {
            Fault::Panicked => self.open = None,
            Fault::Damaged => (self.open, self.disk, self.went_back) = (None, Disk::default(), true),
            Fault::Refused | Fault::Late => {}
        }
    }
}

impl Fault {
    fn tell(self, operation: &'static str) -> StoreError {
        match self {
            Self::Refused => failed(ErrorKind::Unavailable, operation, "the disk is full"),
            Self::Panicked => failed(ErrorKind::Unavailable, operation, "the call was given up"),
            Self::Late => failed(ErrorKind::Timeout, operation, "the deadline passed"),
            Self::Damaged => failed(ErrorKind::Damaged, operation, "the shard panicked"),
        }
    }
}

impl ModelIndex {
    pub fn new(world: &World, broken: Option<Broken>) -> Self {
        Self {
            world: world.clone(),
            slots: Arc::default(),
            faults: Arc::default(),
            revision: Arc::default(),
            broken,
        }
    }

    pub fn set_faults(&self, one_in: u64) {
        self.faults.store(one_in, Ordering::Relaxed);
    }

    /// The process ended: what is not on disk is gone.
    pub fn crash(&self) {
        for (_, slot) in self.slots.lock().values_mut() {
            *slot = Slot { disk: slot.disk.clone(), ..Slot::default() };
        }
    }

    /// Looks at every partition.
    pub fn each(&self, mut look: impl FnMut(Place, &Slot)) {
        self.slots.lock().iter().for_each(|(place, (_, slot))| look(*place, slot));
    }

    fn fault(&self) -> Option<Fault> {
        let one_in = self.faults.load(Ordering::Relaxed);
        if one_in == 0 || !self.world.one_in(one_in) {
            return None;
        }
        Some(
            [Fault::Refused, Fault::Panicked, Fault::Late, Fault::Damaged]
                [usize::try_from(self.world.below(4)).ok()?],
        )
    }

    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    fn with<T>(&self, partition: &Partition, act: impl FnOnce(&mut Slot) -> T) -> T {
        let place = (partition.tenant(), partition.namespace());
        self.revision.fetch_add(1, Ordering::Relaxed);
        let mut slots = self.slots.lock();
        let (_, slot) = slots.entry(place).or_insert_with(|| (partition.clone(), Slot::default()));
        act(slot)
    }

    fn trace(&self, partition: &Partition, what: impl FnOnce() -> String) {
        self.world.trace(|| format!("index of {}: {}", super::short(partition.namespace().0), what()));
    }
}

#[async_trait]
impl VectorIndex for ModelIndex {
    fn name(&self) -> &'static str {
        "model"
    }

    async fn search(&self, partition: &Partition, query: &VectorQuery) -> Result<Option<Found>, StoreError> {
        self.world.delay().await;
        if self.fault().is_some() && !self.with(partition, |slot| slot.flushing) {
            self.with(partition, |slot| slot.suffer(Fault::Panicked));
            self.trace(partition, || "a search panicked".to_owned());
            return Err(Fault::Panicked.tell("vector.search"));
        }
        Ok(self.with(partition, |slot| {
            slot.settle();
            let (points, applied) = slot.open.as_ref()?;
            let hit = |(chunk, version): (&ChunkId, &i64)| Hit {
                tenant: partition.tenant(),
                namespace: partition.namespace(),
                chunk: *chunk,
                version: *version,
                score: 1.0,
            };
            let dense = points.iter().map(hit).take(query.limit).collect();
            Some(Found { dense, lexical: Vec::new(), applied: *applied })
        }))
    }

    async fn position(&self, partition: &Partition) -> Result<Option<Position>, StoreError> {
        self.world.delay().await;
        if self.fault() == Some(Fault::Refused) {
            return Err(Fault::Refused.tell("vector.position"));
        }
        Ok(self.with(partition, |slot| {
            slot.settle();
            let position = slot.open.as_ref().map(|(_, applied)| Position {
                applied: *applied,
                durable: slot.disk.durable.unwrap_or(Seq(0)),
            });
            slot.acknowledge(position.map_or(Seq(0), |position| position.applied));
            position
        }))
    }

    /// Whole: a model has no pages.
    async fn entries(
        &self,
        partition: &Partition,
        _: Option<ChunkId>,
        _: usize,
    ) -> Result<Option<Entries>, StoreError> {
        self.world.delay().await;
        Ok(self.with(partition, |slot| {
            slot.settle();
            let (points, _) = slot.open.as_ref()?;
            let entry = |(chunk, version): (&ChunkId, &i64)| Entry {
                tenant: partition.tenant(),
                namespace: partition.namespace(),
                chunk: *chunk,
                version: *version,
            };
            Some(Entries { list: points.iter().map(entry).collect(), next: None })
        }))
    }

    async fn apply(
        &self,
        partition: &Partition,
        upserts: Vec<Point>,
        deletes: Vec<ChunkId>,
        through: Seq,
    ) -> Result<(), StoreError> {
        const OPERATION: &str = "vector.apply";
        self.world.delay().await;
        let fault = self.fault();
        let now = self.world.elapsed();
        let applied = self.with(partition, |slot| {
            slot.settle();
            if slot.removed || slot.went_back {
                return Err(failed(ErrorKind::Conflict, OPERATION, "it went back, or was removed"));
            }
            let (points, applied) = slot.open.get_or_insert_default();
            if through <= *applied {
                return Ok(());
            }
            if fault == Some(Fault::Refused) {
                return Err(Fault::Refused.tell(OPERATION));
            }
            let half = if fault == Some(Fault::Panicked) { upserts.len() / 2 } else { upserts.len() };
            points.extend(upserts.iter().take(half).map(|point| (point.chunk, point.version)));
            if fault != Some(Fault::Panicked) {
                points.retain(|chunk, _| !deletes.contains(chunk));
                *applied = through;
                slot.reached = slot.reached.max(through);
            }
            if slot.disk.durable.is_none() {
                // An index without a watermark is none, to whoever opens it next.
                slot.disk.points.clear();
            }
            if !deletes.is_empty() {
                slot.disk.deleted_since.get_or_insert(now);
            }
            fault.map_or(Ok(()), |fault| {
                slot.suffer(fault);
                Err(fault.tell(OPERATION))
            })
        });
        self.trace(partition, || {
            let (came, went) = (upserts.len(), deletes.len());
            format!("apply +{came} -{went} through {through}: {}", super::outcome(&applied))
        });
        self.world.delay().await;
        applied
    }

    async fn flush(&self, partition: &Partition) -> Result<Seq, StoreError> {
        const OPERATION: &str = "vector.flush";
        self.world.delay().await;
        let position = self.with(partition, |slot| {
            slot.settle();
            slot.open.as_ref().map(|(_, applied)| (*applied, slot.disk.durable))
        });
        if let Some((applied, durable)) = position
            && durable == Some(applied)
        {
            return Ok(applied);
        }
        let fault = self.fault();
        if let Some(fault) = fault.filter(|fault| *fault != Fault::Late) {
            self.with(partition, |slot| slot.suffer(fault));
            self.trace(partition, || format!("flush: {fault:?}"));
            return Err(fault.tell(OPERATION));
        }
        let Some((points, applied)) = self.with(partition, |slot| {
            slot.settle();
            slot.open.clone()
        }) else {
            return Ok(Seq(0));
        };
        let is_first = self.broken == Some(Broken::WatermarkFirst);
        let write = |slot: &mut Slot, mark: bool| {
            slot.flushing = mark == is_first;
            let is_there = !slot.removed && slot.open.is_some();
            if is_there && mark {
                slot.disk.durable = Some(applied);
            } else if is_there {
                slot.disk.points.clone_from(&points);
            }
        };
        // A crash may come between the two.
        self.with(partition, |slot| write(slot, is_first));
        self.world.delay().await;
        self.with(partition, |slot| write(slot, !is_first));
        self.trace(partition, || format!("flush: durable through {applied}"));
        if fault.is_some() { Err(Fault::Late.tell(OPERATION)) } else { Ok(applied) }
    }

    async fn rebuild(&self, partition: &Partition) -> Result<Box<dyn Rebuild>, StoreError> {
        self.world.delay().await;
        let begun = self.with(partition, |slot| {
            slot.settle();
            let free = !slot.removed && !slot.rebuilding;
            slot.rebuilding |= free;
            free
        });
        if !begun {
            return Err(failed(ErrorKind::Conflict, "vector.rebuild", "another runs, or it was removed"));
        }
        self.trace(partition, || "a rebuild begins".to_owned());
        Ok(Box::new(Draft {
            index: Self {
                world: self.world.clone(),
                slots: Arc::clone(&self.slots),
                faults: Arc::clone(&self.faults),
                revision: Arc::clone(&self.revision),
                broken: self.broken,
            },
            partition: partition.clone(),
            points: Points::new(),
        }))
    }

    async fn wants_rebuild(&self, partition: &Partition) -> bool {
        let now = self.world.elapsed();
        let old = |since: Duration| now >= since + Duration::from_secs(20);
        self.with(partition, |slot| !slot.removed && slot.disk.deleted_since.is_some_and(old))
    }

    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        let mut tenants: Vec<TenantId> = self.slots.lock().keys().map(|(tenant, _)| *tenant).collect();
        tenants.dedup();
        Ok(tenants)
    }

    async fn partitions(&self, tenant: TenantId) -> Result<Vec<Partition>, StoreError> {
        let slots = self.slots.lock();
        let own = slots.values().filter(|(partition, slot)| {
            partition.tenant() == tenant && (slot.open.is_some() || slot.disk.durable.is_some())
        });
        Ok(own.map(|(partition, _)| partition.clone()).collect())
    }

    async fn remove(&self, partition: &Partition) -> Result<(), StoreError> {
        self.world.delay().await;
        let fault = self.fault();
        self.with(partition, |slot| {
            (slot.open, slot.removed) = (None, true);
            if fault.is_none() {
                slot.disk = Disk::default();
            }
        });
        self.trace(partition, || format!("removed{}", fault.map_or("", |_| ", but for its files")));
        fault.map_or(Ok(()), |_| Err(Fault::Refused.tell("vector.remove")))
    }
}

/// A generation being written.
struct Draft {
    index: ModelIndex,
    partition: Partition,
    points: Points,
}

#[async_trait]
impl Rebuild for Draft {
    async fn add(&mut self, points: Vec<Point>) -> Result<(), StoreError> {
        self.index.world.delay().await;
        if let Some(fault) = self.index.fault() {
            return Err(fault.tell("vector.rebuild.add"));
        }
        self.points.extend(points.iter().map(|point| (point.chunk, point.version)));
        Ok(())
    }

    async fn finish(self: Box<Self>, through: Seq) -> Result<(), StoreError> {
        const OPERATION: &str = "vector.rebuild.finish";
        self.index.world.delay().await;
        let fault = self.index.fault();
        if let Some(fault) = fault.filter(|fault| *fault != Fault::Late) {
            return Err(fault.tell(OPERATION));
        }
        self.index.with(&self.partition, |slot| {
            if slot.removed {
                return Err(failed(ErrorKind::Conflict, OPERATION, "it was removed"));
            }
            slot.disk = Disk { points: self.points.clone(), durable: Some(through), deleted_since: None };
            slot.open = Some((self.points.clone(), through));
            slot.acknowledge(through);
            Ok(())
        })?;
        self.index.trace(&self.partition, || format!("a new generation through {through}"));
        fault.map_or(Ok(()), |fault| Err(fault.tell(OPERATION)))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        self.index.with(&self.partition, |slot| slot.rebuilding = false);
    }
}
