//! The models behind the traits that workers and projector use. Each statement or transaction is a message to the
//! database, a process of its own: it may be slow, the answer may be lost, and it may be carried out after whoever
//! sent it has died.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bulkhead::domain::Seq;
use bulkhead::domain::clock::Clock;
use bulkhead::domain::ids::{ChunkId, IdSource, JobId, ModelId, NamespaceId, TenantId};
use bulkhead::domain::limits::LimitOverrides;
use bulkhead::jobs::projector::{Projected, Source};
use bulkhead::jobs::worker::{Queue, Target};
use bulkhead::store::postgres::ingest::{Committed, ProcessedDocument, SecondVectors};
use bulkhead::store::postgres::jobs::{IngestTask, LeasedJob, Progress};
use bulkhead::store::postgres::leases::LeaseTerms;
use bulkhead::store::postgres::projection::{Changes, History};
use bulkhead::store::upkeep;
use bulkhead::store::vector::{Point, Position, VectorIndex};
use bulkhead::store::{ErrorKind, Partition, StoreError};
use bulkhead::tenancy::{
    Directory, DirectoryError, KeyRecord, OperatorRecord, Permit, TenantRecord, TenantState, Write,
};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::Broken;
use super::executor::{Process, World};
use super::index::ModelIndex;
use super::record::{Place, Record};

/// The process of the database, which does not end with a server.
pub const DATABASE: Process = 0;

/// A commit, as it was sent.
pub type Sent = (Place, Vec<ProcessedDocument>);

/// The database.
#[derive(Clone)]
pub struct Database {
    pub world: World,
    pub record: Arc<Mutex<Record>>,
    pub tenants: Arc<Mutex<BTreeMap<TenantId, TenantState>>>,
    /// One message in so many goes wrong; 0: none.
    pub faults: Arc<Mutex<u64>>,
    /// Every commit that was sent.
    pub sent: Arc<Mutex<Vec<Sent>>>,
}

impl Database {
    pub fn new(world: &World, broken: Option<Broken>) -> Self {
        let record = Record { broken, ..Record::default() };
        Self {
            world: world.clone(),
            record: Arc::new(Mutex::new(record)),
            tenants: Arc::default(),
            faults: Arc::default(),
            sent: Arc::default(),
        }
    }

    /// Has a transaction carried out.
    pub async fn ask<T: Send + 'static>(
        &self,
        operation: &'static str,
        transaction: impl FnOnce(&mut Record, &World) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let away = || Err(StoreError::new(ErrorKind::Unavailable, "postgres", operation, "away"));
        let one_in = *self.faults.lock();
        let fault = (one_in > 0 && self.world.one_in(one_in)).then(|| self.world.below(2));
        if fault == Some(0) {
            self.world.trace(|| format!("{operation}: away"));
            return away();
        }
        let (tell, told) = oneshot::channel();
        let (world, record) = (self.world.clone(), Arc::clone(&self.record));
        self.world.spawn(DATABASE, async move {
            world.delay().await;
            let done = transaction(&mut record.lock(), &world);
            world.delay().await;
            // Nobody may be there to hear it.
            let _ = tell.send(done);
        });
        let answer = told.await;
        if let (Ok(answer), None) = (answer, fault) {
            return Ok(answer);
        }
        self.world.trace(|| format!("{operation}: done, but the answer was lost"));
        away()
    }
}

#[async_trait]
impl Directory for Database {
    async fn key(&self, _: &str) -> Result<Option<KeyRecord>, DirectoryError> {
        Ok(None)
    }

    async fn operator(&self, _: &str) -> Result<Option<OperatorRecord>, DirectoryError> {
        Ok(None)
    }

    async fn tenant(&self, tenant: TenantId) -> Result<Option<TenantRecord>, DirectoryError> {
        let states = Arc::clone(&self.tenants);
        let state = self.ask("tenant.get", move |_, _| states.lock().get(&tenant).copied()).await;
        let state = state.map_err(|error| DirectoryError(Box::new(error)))?;
        Ok(state.map(|state| TenantRecord {
            tenant,
            slug: "tenant".into(),
            state,
            limits: LimitOverrides::default(),
        }))
    }

    async fn tenant_by_slug(&self, _: &str) -> Result<Option<TenantRecord>, DirectoryError> {
        Ok(None)
    }
}

/// The stores as one server has them.
#[derive(Clone)]
pub struct Handles {
    pub database: Database,
    pub index: Arc<ModelIndex>,
    pub model: ModelId,
}

/// A namespace as it stood when it was opened.
pub struct Opened {
    handles: Handles,
    partition: Partition,
    seq: Seq,
    /// All points, for the rebuild that does not look again.
    stale: Vec<Point>,
}

impl Handles {
    pub async fn opened(&self, place: Place) -> Result<Option<Arc<Opened>>, StoreError> {
        let found = self.database.ask("namespace.get", move |record, _| {
            let seq = Seq(record.namespaces.get(&place)?.seq);
            let is_stale = record.broken == Some(Broken::RebuiltFromBefore);
            let stale = if is_stale { record.point_page(place, None, i64::MAX) } else { Vec::new() };
            Some((seq, stale))
        });
        let Some((seq, stale)) = found.await? else { return Ok(None) };
        let partition = Partition::for_laboratory(place.0, place.1, self.model.clone());
        Ok(Some(Arc::new(Opened { handles: self.clone(), partition, seq, stale })))
    }
}

impl Opened {
    /// One that is kept until it is old.
    pub fn now(handles: &Handles, place: Place) -> Self {
        let seq = handles.database.record.lock().namespaces.get(&place).map_or(0, |space| space.seq);
        let partition = Partition::for_laboratory(place.0, place.1, handles.model.clone());
        Self { handles: handles.clone(), partition, seq: Seq(seq), stale: Vec::new() }
    }

    pub fn place(&self) -> Place {
        (self.partition.tenant(), self.partition.namespace())
    }

    fn database(&self) -> &Database {
        &self.handles.database
    }
}

#[async_trait]
impl Source for Handles {
    async fn backlog(
        &self,
        consumer: &str,
        every: bool,
        after: Option<Place>,
        limit: i64,
    ) -> Result<Vec<Place>, StoreError> {
        let consumer = consumer.to_owned();
        let list =
            move |record: &mut Record, _: &World| record.projection_backlog(&consumer, every, after, limit);
        self.database.ask("projection.backlog", list).await
    }

    async fn open(
        &self,
        permit: &Permit<Write>,
        namespace: NamespaceId,
    ) -> Result<Option<Arc<dyn Projected>>, StoreError> {
        let opened = self.opened((permit.scope().tenant(), namespace)).await?;
        Ok(opened.map(|opened| opened as Arc<dyn Projected>))
    }
}

#[async_trait]
impl upkeep::Record for Opened {
    async fn seq_now(&self) -> Result<Option<Seq>, StoreError> {
        let place = self.place();
        let seq =
            move |record: &mut Record, _: &World| record.namespaces.get(&place).map(|space| Seq(space.seq));
        self.database().ask("namespace.get", seq).await
    }

    async fn consumer_hold(&self, consumer: &str, seq: Seq) -> Result<(), StoreError> {
        let (place, consumer) = (self.place(), consumer.to_owned());
        let hold = move |record: &mut Record, _: &World| record.consumer_hold(place, &consumer, seq);
        self.database().ask("consumer.hold", hold).await
    }

    async fn consumer_pass(&self, consumer: &str, seq: Seq) -> Result<(), StoreError> {
        let (place, consumer) = (self.place(), consumer.to_owned());
        let pass = move |record: &mut Record, world: &World| {
            record.consumer_pass(place, &consumer, seq, world.now());
        };
        self.database().ask("consumer.pass", pass).await
    }

    async fn point_page(&self, after: Option<ChunkId>, limit: i64) -> Result<Vec<Point>, StoreError> {
        if !self.stale.is_empty() {
            return Ok(if after.is_none() { self.stale.clone() } else { Vec::new() });
        }
        let place = self.place();
        let page = move |record: &mut Record, _: &World| record.point_page(place, after, limit);
        self.database().ask("point.page", page).await
    }
}

#[async_trait]
impl Projected for Opened {
    fn partition(&self) -> &Partition {
        &self.partition
    }

    /// Two statements, each of which sees what is committed when it begins.
    async fn history(&self, since: Seq, limit: i64) -> Result<History, StoreError> {
        const OPERATION: &str = "corpus.history";
        let (place, out_of_order) =
            (self.place(), self.database().record.lock().broken == Some(Broken::OutOfOrder));
        let removals =
            self.database().ask(OPERATION, move |record, _| record.removals(place, since, limit)).await?;
        let removals = match removals {
            Ok(removals) => removals,
            Err(history) => return Ok(history),
        };
        // The fault: what came last is told first, and with it that all is told.
        let (from, removals) = match removals.split_last() {
            Some((last, before)) if out_of_order && !before.is_empty() => {
                (Seq(last.0.0 - 1), vec![last.clone()])
            }
            _ => (since, removals),
        };
        let read = move |record: &mut Record, _: &World| record.changes(place, from, removals, limit);
        Ok(History::Changes(self.database().ask(OPERATION, read).await?))
    }

    async fn index_position(&self) -> Result<Option<Position>, StoreError> {
        self.handles.index.position(&self.partition).await
    }

    async fn index_apply(&self, changes: Changes) -> Result<(), StoreError> {
        self.handles.index.apply(&self.partition, changes.added, changes.removed, changes.through).await
    }

    async fn index_flush(&self, consumer: &str) -> Result<Seq, StoreError> {
        upkeep::flush(self, self.handles.index.as_ref(), &self.partition, consumer).await
    }

    async fn index_rebuild(&self, consumer: &str, page: i64) -> Result<Seq, StoreError> {
        let index = self.handles.index.as_ref();
        upkeep::rebuild(self, index, &self.partition, (consumer, page), self.seq).await
    }

    async fn index_forget(&self) -> Result<bool, StoreError> {
        upkeep::forget(self, self.handles.index.as_ref(), &self.partition).await
    }

    async fn index_wants_rebuild(&self) -> bool {
        self.handles.index.wants_rebuild(&self.partition).await
    }
}

#[async_trait]
impl Queue for Handles {
    async fn backlog(&self, limit: i64) -> Result<Vec<TenantId>, StoreError> {
        let list = self.database.ask("job.backlog", |record, world| record.job_backlog(world.now())).await?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Ok(list.into_iter().take(limit).collect())
    }

    async fn lease(&self, tenant: TenantId, terms: LeaseTerms) -> Result<Vec<LeasedJob>, StoreError> {
        let lease = move |record: &mut Record, world: &World| {
            let leased = record.job_lease(tenant, terms, world.now(), world.uuid());
            for job in &leased {
                let (id, node) = (super::short(job.job.0), terms.node.as_u128());
                world.trace(|| format!("server {node} leases {id}, attempt {}", job.attempts));
            }
            leased
        };
        self.database.ask("job.lease", lease).await
    }

    async fn release(&self, jobs: &[LeasedJob], delay: Duration) -> Result<(), StoreError> {
        let jobs = jobs.to_vec();
        let put = move |record: &mut Record, world: &World| record.put_back(&jobs, delay, 1, world.now());
        self.database.ask("job.release", put).await
    }

    async fn retry(&self, jobs: &[LeasedJob], delay: Duration) -> Result<(), StoreError> {
        let jobs = jobs.to_vec();
        let put = move |record: &mut Record, world: &World| record.put_back(&jobs, delay, 0, world.now());
        self.database.ask("job.retry", put).await
    }

    async fn open(
        &self,
        permit: &Permit<Write>,
        namespace: NamespaceId,
    ) -> Result<Option<Arc<dyn Target>>, StoreError> {
        let opened = self.opened((permit.scope().tenant(), namespace)).await?;
        Ok(opened.map(|opened| opened as Arc<dyn Target>))
    }
}

#[async_trait]
impl Target for Opened {
    fn partition(&self) -> &Partition {
        &self.partition
    }

    fn building(&self) -> Option<&ModelId> {
        None
    }

    async fn job_open(&self, jobs: &[LeasedJob]) -> Result<Vec<IngestTask>, StoreError> {
        let (place, jobs) = (self.place(), jobs.to_vec());
        self.database().ask("job.open", move |record, _| record.job_open(place, &jobs)).await
    }

    async fn job_progress(
        &self,
        jobs: &[(JobId, Uuid)],
        progress: Progress,
        lease_time: Duration,
    ) -> Result<Vec<JobId>, StoreError> {
        let (place, jobs, stage) = (self.place(), jobs.to_vec(), progress.stage.name());
        let note = move |record: &mut Record, world: &World| {
            record.job_progress(place, &jobs, stage, world.now() + lease_time)
        };
        self.database().ask("job.progress", note).await
    }

    async fn job_fail(&self, job: JobId, lease: Uuid, reason: &str) -> Result<(), StoreError> {
        let (place, reason) = (self.place(), reason.to_owned());
        let fail = move |record: &mut Record, world: &World| {
            world.trace(|| format!("job {} fails: {reason}", super::short(job.0)));
            record.job_fail(place, job, lease, &reason);
        };
        self.database().ask("job.fail", fail).await
    }

    async fn upload_get(&self, _: Uuid) -> Result<Option<Bytes>, StoreError> {
        Ok(None)
    }

    async fn embedding_list(&self, _: &[String]) -> Result<HashMap<[u8; 16], Vec<f32>>, StoreError> {
        self.database().ask("embedding.list", |_, _| HashMap::new()).await
    }

    async fn documents_commit(
        &self,
        documents: &[ProcessedDocument],
        _: Option<&SecondVectors>,
    ) -> Result<Committed, StoreError> {
        let (place, documents, opened) = (self.place(), documents.to_vec(), self.seq);
        self.database().sent.lock().push((place, documents.clone()));
        let commit = move |record: &mut Record, world: &World| {
            let committed = record.documents_commit(place, &documents, opened, world.now());
            world.trace(|| {
                let jobs: Vec<String> = committed.jobs.iter().map(|job| super::short(job.0)).collect();
                format!(
                    "commit of {} at {}: {jobs:?} of {}",
                    super::short(place.1.0),
                    committed.seq,
                    documents.len()
                )
            });
            committed
        };
        self.database().ask("document.commit", commit).await
    }
}
