//! [`VectorIndex`] on qdrant-edge: one on-disk shard for each partition, in this process.
//!
//! A shard is a cache of what PostgreSQL holds, with a record of how far it came. qdrant-edge does not replay
//! its log, so after a crash a shard is as its last flush left it, and the caller applies the changes behind
//! [`Position::durable`] once more. A shard that panics or cannot be read is put away, and the caller rebuilds it.
//!
//! **Invariant:** what the record calls durable was flushed before the record was written.
//! **Invariant:** a shard is opened once, used while pinned, and never closed in use.
//! **Invariant:** one writer at a time; searches go on beside it.
//! **Invariant:** a partition removed in this process does not come back.

mod fault;
mod index;
#[cfg(any(test, feature = "laboratory"))]
mod laboratory;
mod layout;
mod rebuild;
mod settings;
mod shard;
mod slot;
mod tags;
#[cfg(test)]
mod traps;
mod validate;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;

pub use self::index::EdgeIndex;
pub use self::layout::strangers;
pub use self::settings::EdgeSettings;

use self::fault::{BACKEND, Fault};
use self::index::{Inner, blocking};
use self::layout::{Layout, Watermark};
use self::rebuild::EdgeRebuild;
use self::shard::Shard;
use self::slot::{Reading, Served, Slot, State};
use super::error::{ErrorKind, StoreError};
use super::partition::Partition;
use super::vector::{Entries, Found, Point, Position, Rebuild, VectorIndex, VectorQuery};
use crate::domain::Seq;
use crate::domain::ids::{ChunkId, TenantId};

impl Inner {
    /// Searches; blocks.
    fn find(&self, partition: &Partition, served: &Served, query: VectorQuery) -> Result<Found, Fault> {
        // Before searching: what is applied meanwhile may be missed.
        let applied = served.position().applied;
        let mut found = Found { applied, ..Found::default() };
        let Some(shard) = served.shard.as_ref().filter(|_| query.limit > 0) else { return Ok(found) };
        let filter = self.filter(partition)?;
        if let Some(embedding) = query.embedding {
            found.dense = shard.nearest(filter.clone(), embedding, query.limit, &self.settings)?;
        }
        if let Some(terms) = query.terms.filter(|terms| !terms.indices.is_empty()) {
            found.lexical = shard.lexical(filter, terms, query.limit)?;
        }
        Ok(found)
    }

    /// What the folders say, read off the async threads.
    async fn listed<T: Send + 'static>(
        self: &Arc<Self>,
        operation: &'static str,
        list: impl FnOnce(&Layout) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(self);
        let listed = blocking(&self.searches, move || {
            list(&inner.layout).map_err(|error| Fault::from_io("listing the vector shards", &error))
        });
        listed.await.map_err(|fault| fault.into_store(operation))
    }

    #[cfg_attr(
        not(any(test, feature = "laboratory")),
        expect(clippy::unused_self, reason = "the laboratory can switch the filter off")
    )]
    fn filter(&self, partition: &Partition) -> Result<Option<qdrant_edge::Filter>, Fault> {
        #[cfg(any(test, feature = "laboratory"))]
        if self.filter_off.load(Ordering::Relaxed) {
            return Ok(None);
        }
        shard::only(partition).map(Some)
    }

    /// The served state with a shard that can take these points; made if there is none. The caller holds
    /// `writer`.
    async fn served_for(
        self: &Arc<Self>,
        slot: &Arc<Slot>,
        points: &[Point],
        operation: &'static str,
    ) -> Result<Reading, StoreError> {
        loop {
            let state = self.reading(slot).await.map_err(|fault| fault.into_store(operation))?;
            if slot.went_back.load(Ordering::Acquire) {
                return Err(went_back(operation));
            }
            let complete = match &*state {
                State::Removed => return Err(validate::removed(operation)),
                State::Served(served) => served.shard.is_some() || points.is_empty(),
                State::Unopened | State::Absent => false,
            };
            if complete {
                return Ok(state);
            }
            let is_absent = matches!(*state, State::Absent);
            drop(state);
            if is_absent {
                self.make_room().await;
            }
            let mut state = Arc::clone(&slot.state).write_owned().await;
            let dimension = points.first().map(|point| point.embedding.len());
            let (inner, slot) = (Arc::clone(self), Arc::clone(slot));
            let made = blocking(&self.writes, move || {
                inner.change(&mut state, |state| {
                    if matches!(state, State::Absent) {
                        *state = State::Served(Box::new(Served::empty()?));
                    }
                    if let (State::Served(served), Some(dimension)) = (state, dimension)
                        && served.shard.is_none()
                    {
                        inner.require_room()?;
                        let generation = slot.next_generation()?;
                        let path = inner
                            .layout
                            .create_generation(&slot.folder, generation)
                            .map_err(|error| Fault::from_io("making the folder of a vector shard", &error))?;
                        served.shard = Some(Shard::create(&path, dimension, &inner.settings)?);
                        served.generation = generation;
                    }
                    Ok(())
                })
            });
            made.await.map_err(|fault| fault.into_store(operation))?;
        }
    }
}

fn went_back(operation: &'static str) -> StoreError {
    let words = "the index went back after a failure: ask for its position and go on from there";
    StoreError::new(ErrorKind::Conflict, BACKEND, operation, words)
}

#[async_trait]
impl VectorIndex for EdgeIndex {
    fn name(&self) -> &'static str {
        BACKEND
    }

    async fn search(&self, partition: &Partition, query: &VectorQuery) -> Result<Option<Found>, StoreError> {
        const OPERATION: &str = "vector.search";
        let inner = &self.inner;
        let slot = inner.slot(partition);
        let state = inner.reading(&slot).await.map_err(|fault| fault.into_store(OPERATION))?;
        let State::Served(served) = &*state else { return Ok(None) };
        if let Some(shard) = &served.shard {
            validate::query(query, shard.dimension()).map_err(|words| validate::invalid(OPERATION, words))?;
        }
        let query = query.clone();
        let found = if served.points() <= inner.settings.inline_points {
            inner.find(partition, served, query).inspect_err(|fault| served.note(fault))
        } else {
            let (inner, partition) = (Arc::clone(inner), partition.clone());
            let searches = Arc::clone(&inner.searches);
            let run = move || match &*state {
                State::Served(served) => {
                    inner.find(&partition, served, query).inspect_err(|fault| served.note(fault))
                }
                _ => Err(Fault::Refused("the shard was closed".into())),
            };
            blocking(&searches, run).await
        };
        found.map(Some).map_err(|fault| fault.into_store(OPERATION))
    }

    async fn position(&self, partition: &Partition) -> Result<Option<Position>, StoreError> {
        let slot = self.inner.slot(partition);
        let state = self.inner.reading(&slot).await.map_err(|fault| fault.into_store("vector.position"))?;
        let position = match &*state {
            State::Served(served) => Some(served.position()),
            _ => None,
        };
        slot.acknowledge(position.map_or(Seq(0), |position| position.applied));
        Ok(position)
    }

    async fn entries(
        &self,
        partition: &Partition,
        from: Option<ChunkId>,
        limit: usize,
    ) -> Result<Option<Entries>, StoreError> {
        const OPERATION: &str = "vector.entries";
        let inner = &self.inner;
        let slot = inner.slot(partition);
        let state = inner.reading(&slot).await.map_err(|fault| fault.into_store(OPERATION))?;
        let listed = blocking(&inner.searches, move || match &*state {
            State::Served(served) => {
                let shard = served.shard.as_ref();
                shard.map_or_else(|| Ok(Entries::default()), |shard| shard.entries(from, limit)).map(Some)
            }
            _ => Ok(None),
        });
        listed.await.map_err(|fault| fault.into_store(OPERATION))
    }

    async fn apply(
        &self,
        partition: &Partition,
        mut upserts: Vec<Point>,
        deletes: Vec<ChunkId>,
        through: Seq,
    ) -> Result<(), StoreError> {
        const OPERATION: &str = "vector.apply";
        validate::points(&upserts, None).map_err(|words| validate::invalid(OPERATION, words))?;
        let gone: HashSet<_> = deletes.iter().copied().collect();
        upserts.retain(|point| !gone.contains(&point.chunk));
        let inner = &self.inner;
        let slot = inner.slot(partition);
        let writer = Arc::clone(&slot.writer).lock_owned().await;
        let state = inner.served_for(&slot, &upserts, OPERATION).await?;
        let State::Served(served) = &*state else { return Err(went_back(OPERATION)) };
        if through <= served.position().applied {
            return Ok(());
        }
        let dimension = served.shard.as_ref().map(Shard::dimension);
        validate::points(&upserts, dimension).map_err(|words| validate::invalid(OPERATION, words))?;
        let call = Arc::clone(inner);
        let applied = blocking(&inner.writes, move || {
            let _writer = writer;
            let State::Served(served) = &*state else { return Ok(()) };
            call.require_room()?;
            let now = call.clock.now().timestamp_millis();
            served
                .apply(&slot.partition, &upserts, &deletes, through, now)
                .inspect_err(|fault| served.note(fault))?;
            slot.reached(through);
            Ok(())
        });
        applied.await.map_err(|fault| fault.into_store(OPERATION))
    }

    async fn flush(&self, partition: &Partition) -> Result<Seq, StoreError> {
        const OPERATION: &str = "vector.flush";
        let inner = &self.inner;
        let slot = inner.slot(partition);
        let writer = Arc::clone(&slot.writer).lock_owned().await;
        let state = inner.reading(&slot).await.map_err(|fault| fault.into_store(OPERATION))?;
        let (call, folder) = (Arc::clone(inner), slot.folder.clone());
        let flushed = blocking(&inner.writes, move || {
            let State::Served(served) = &*state else { return Ok((Seq(0), false, writer)) };
            let run = || {
                let seq = served.flush(&call.layout, &folder)?;
                let Some(shard) = &served.shard else { return Ok((seq, false)) };
                if shard.optimize(&call.settings)? {
                    shard.flush()?;
                }
                Ok((seq, shard::log_bytes(shard.path()) > call.settings.log_bound()))
            };
            let (seq, is_long) = run().inspect_err(|fault| served.note(fault))?;
            Ok((seq, is_long, writer))
        });
        let (seq, is_long, writer) = flushed.await.map_err(|fault| fault.into_store(OPERATION))?;
        if is_long {
            // Opening cuts the log.
            let state = Arc::clone(&slot.state).write_owned().await;
            inner.close(Arc::clone(&slot), state, false).await;
            drop(writer);
            inner.reading(&slot).await.map_err(|fault| fault.into_store(OPERATION))?;
        }
        Ok(seq)
    }

    async fn rebuild(&self, partition: &Partition) -> Result<Box<dyn Rebuild>, StoreError> {
        const OPERATION: &str = "vector.rebuild";
        let slot = self.inner.slot(partition);
        let busy = |_| StoreError::new(ErrorKind::Conflict, BACKEND, OPERATION, "a rebuild is under way");
        let one = Arc::clone(&slot.rebuilding).try_lock_owned().map_err(busy)?;
        // Opened first, whatever comes of it: that deletes leftovers and puts away what is damaged.
        if let Ok(state) = self.inner.reading(&slot).await
            && matches!(*state, State::Removed)
        {
            return Err(validate::removed(OPERATION));
        }
        let inner = Arc::clone(&self.inner);
        let begun = blocking(&self.inner.writes, move || {
            inner.require_room()?;
            EdgeRebuild::begin(&inner, &slot, one)
        });
        let rebuild = begun.await.map_err(|fault| fault.into_store(OPERATION))?;
        Ok(Box::new(rebuild))
    }

    async fn wants_rebuild(&self, partition: &Partition) -> bool {
        let inner = Arc::clone(&self.inner);
        let slot = inner.slot(partition);
        let state = Arc::clone(&slot.state).read_owned().await;
        if matches!(*state, State::Absent | State::Removed) {
            return false;
        }
        let looked = blocking(&self.inner.searches, move || {
            let (generation, deleted_since) = match &*state {
                State::Served(served) => (served.generation, served.deleted_since()),
                _ => match layout::read_watermark(&slot.folder) {
                    Ok(Some(Watermark { generation, deleted_since, .. })) => (generation, deleted_since),
                    _ => return Ok(false),
                },
            };
            let purge_after = i64::try_from(inner.settings.purge_after_seconds).unwrap_or(i64::MAX);
            let age = |since: i64| inner.clock.now().timestamp_millis().saturating_sub(since) / 1000;
            let is_due = deleted_since.is_some_and(|since| age(since) >= purge_after);
            let log = shard::log_bytes(&slot.folder.join(generation.to_string()));
            // Flushing cuts it at the bound itself; that it could not be cut is the last resort's case.
            Ok(is_due || log > 4 * inner.settings.log_bound())
        });
        looked.await.unwrap_or(false)
    }

    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        self.inner.listed("vector.tenants", Layout::tenants).await
    }

    async fn partitions(&self, tenant: TenantId) -> Result<Vec<Partition>, StoreError> {
        self.inner.listed("vector.partitions", move |layout| layout.partitions(tenant)).await
    }

    async fn remove(&self, partition: &Partition) -> Result<(), StoreError> {
        self.inner.discard(partition, State::Removed).await.map_err(|fault| fault.into_store("vector.remove"))
    }

    async fn retire(&self, partition: &Partition) -> Result<(), StoreError> {
        self.inner.discard(partition, State::Absent).await.map_err(|fault| fault.into_store("vector.retire"))
    }
}
