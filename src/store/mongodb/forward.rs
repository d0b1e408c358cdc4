//! What takes events to MongoDB: from PostgreSQL those that were written there first, and from the local spool.
//!
//! A batch is put into its place in the chain, inserted, and then anchored. Broken off anywhere and begun again, it is
//! the same batch at the same place, and what is there already stays as it is.
//!
//! **Invariant:** an anchor is moved after its events are there, and together with the spool's number that they reach.
//! **Invariant:** a record is passed in the spool when it is anchored, or counted as lost; no outage loses one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{BACKEND, MongoAudit};
use crate::domain::audit::AuditRecord;
use crate::domain::ids::TenantId;
use crate::store::audit::AuditLog as _;
use crate::store::audit::chain::{Tip, Walk};
use crate::store::audit::spool::{Batch, Spool, SpoolError};
use crate::store::error::{ErrorKind, StoreError};
use crate::store::postgres::audit_anchor::Anchor;

const OPERATION: &str = "audit.forward";
/// How often the spool is made safe from a loss of power. Half of what may be lost, for a disk that takes its time.
const SYNC: Duration = Duration::from_millis(500);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often PostgreSQL is asked which chains wait, beside those that this server wrote to.
const LOOK: Duration = Duration::from_mins(1);

/// Records of one chain with their numbers in the spool.
type Records = Vec<(i64, AuditRecord)>;

impl MongoAudit {
    /// Forwards until it is stopped; an outage is waited for.
    pub async fn run(self, stop: CancellationToken) {
        tokio::join!(self.keep_synced(&stop), self.keep_forwarding(&stop));
    }

    async fn keep_synced(&self, stop: &CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(SYNC)).await.is_some() {
            if let Err(error) = self.on_spool(Spool::sync).await {
                tracing::error!(%error, source = ?error.source, "audit events are not safe from a loss of power");
            }
        }
    }

    async fn keep_forwarding(&self, stop: &CancellationToken) {
        let (mut pause, mut looked) = (FIRST_PAUSE, None);
        let mut wait = Duration::ZERO;
        while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
            if looked.is_none_or(|looked: tokio::time::Instant| looked.elapsed() >= LOOK) {
                match self.look().await {
                    Ok(()) => looked = Some(tokio::time::Instant::now()),
                    Err(error) => tracing::warn!(%error, "which audit events wait is not known"),
                }
            }
            match self.forward().await {
                Ok(()) => {
                    if pause > FIRST_PAUSE {
                        tracing::info!("audit events are forwarded again");
                    }
                    (wait, pause) = (self.inner.every, FIRST_PAUSE);
                }
                Err(error) => {
                    let waiting = self.inner.spool.waiting();
                    tracing::warn!(waiting, %error, source = ?error.source, "audit events wait to be forwarded");
                    (wait, pause) = (pause, (pause * 2).min(LONGEST_PAUSE));
                }
            }
        }
    }

    /// Finds out what was left waiting: by an earlier run, or by a command beside it.
    ///
    /// # Errors
    /// As PostgreSQL's.
    pub async fn look(&self) -> Result<(), StoreError> {
        let waiting = self.inner.first.waiting_list().await?;
        self.inner.waiting.lock().extend(waiting);
        Ok(())
    }

    /// Forwards what waits now.
    ///
    /// # Errors
    /// As MongoDB's and PostgreSQL's; then the rest waits, and nothing is lost.
    pub async fn forward(&self) -> Result<(), StoreError> {
        let _turn = self.inner.turn.lock().await;
        let waiting: Vec<_> = self.inner.waiting.lock().iter().copied().collect();
        for tenant in waiting {
            // Before, so that what is written meanwhile is looked at again.
            self.inner.waiting.lock().remove(&tenant);
            match self.forward_first(tenant).await {
                Err(error) if is_passing(&error) => {
                    self.inner.waiting.lock().insert(tenant);
                    return Err(error);
                }
                // They stay in PostgreSQL's chain.
                Err(error) => stuck(tenant, 0, &error),
                Ok(()) => {}
            }
        }
        let batch = self.inner.batch;
        let read = move |spool: &Spool| spool.sync().and_then(|()| spool.read(batch));
        while let Some(batch) = self.on_spool(read).await? {
            self.forward_batch(&batch).await?;
            self.on_spool(move |spool| spool.pass(&batch)).await?;
        }
        Ok(())
    }

    /// Copies what a tenant's chain in PostgreSQL has beyond its anchor.
    async fn forward_first(&self, tenant: Option<TenantId>) -> Result<(), StoreError> {
        let (first, node) = (&self.inner.first, self.inner.first.node());
        loop {
            let anchor = first.anchor_get(tenant, node).await?;
            let limit = i64::try_from(self.inner.batch).unwrap_or(i64::MAX);
            let links = first.links(tenant, node, (anchor.tip.number, i64::MAX), limit).await?;
            let mut walk = Walk::from(anchor.tip, tenant, node);
            if links.is_empty() {
                return Ok(());
            }
            if !links.iter().all(|event| walk.take(event)) {
                let words = "the chain in PostgreSQL does not go on from its anchor";
                return Err(StoreError::new(ErrorKind::Damaged, BACKEND, OPERATION, words));
            }
            self.inner.events.of(tenant).insert(node, &links).await?;
            let moved = Anchor { tip: walk.tip(), ..anchor };
            first.anchor_move(tenant, node, &anchor, &moved).await?;
        }
    }

    /// Puts the records of a batch into their chains.
    async fn forward_batch(&self, batch: &Batch) -> Result<(), StoreError> {
        if batch.damaged > 0 {
            tracing::error!(records = batch.damaged, "audit events in the spool cannot be read and are lost");
        }
        let mut chains: BTreeMap<Option<TenantId>, Records> = BTreeMap::new();
        for (number, record) in &batch.records {
            match serde_json::from_slice::<AuditRecord>(record) {
                Ok(record) => {
                    let number = i64::try_from(*number).unwrap_or(i64::MAX);
                    chains.entry(record.tenant).or_default().push((number, record));
                }
                Err(error) => {
                    self.inner.spool.lost(1);
                    tracing::error!(%error, "an audit event in the spool cannot be read and is lost");
                }
            }
        }
        for (tenant, records) in chains {
            let count = records.len() as u64;
            match self.forward_records(tenant, records).await {
                Err(error) if is_passing(&error) => return Err(error),
                Err(error) => {
                    self.inner.spool.lost(count);
                    stuck(tenant, count, &error);
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    async fn forward_records(&self, tenant: Option<TenantId>, records: Records) -> Result<(), StoreError> {
        let (spool, queue) = (self.inner.spool.id(), self.inner.queue.as_str());
        let anchor = self.inner.first.anchor_get(tenant, queue).await?;
        let held = anchor.spooled.filter(|(held, _)| *held == spool).map_or(0, |(_, position)| position);
        let (mut tip, mut position, mut links): (Tip, i64, Vec<_>) = (anchor.tip, held, Vec::new());
        for (number, record) in records.into_iter().filter(|(number, _)| *number > held) {
            links.push(tip.seal(queue, record, BACKEND)?);
            position = number;
        }
        if links.is_empty() {
            return Ok(());
        }
        self.inner.events.of(tenant).insert(queue, &links).await?;
        let moved = Anchor { tip, spooled: Some((spool, position)) };
        self.inner.first.anchor_move(tenant, queue, &anchor, &moved).await
    }

    /// Work on the spool's files, off the threads that serve.
    async fn on_spool<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Spool) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let spool = Arc::clone(&self.inner.spool);
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
            let words = "the spool's files cannot be used";
            StoreError::new(ErrorKind::Unavailable, BACKEND, OPERATION, words).with_source(source)
        };
        let done = tokio::task::spawn_blocking(move || work(&spool)).await;
        done.map_err(|error| failed(error.into()))?.map_err(|error| failed(error.into()))
    }
}

/// Whether the same may succeed later, perhaps after somebody mended something: all but what is damaged.
fn is_passing(error: &StoreError) -> bool {
    error.kind != ErrorKind::Damaged
}

fn stuck(tenant: Option<TenantId>, lost: u64, error: &StoreError) {
    tracing::error!(
        tenant = tenant.map(tracing::field::display), lost, %error, source = ?error.source,
        "a chain of the audit log in MongoDB cannot go on; run `bulkhead audit verify`, then give this server another \
         name (`node`), under which it begins new chains"
    );
}
