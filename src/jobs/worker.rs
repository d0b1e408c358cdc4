//! Workers: take jobs off the queue, tenant by tenant, and see them through.
//!
//! **Invariant:** work on a job stops when its lease is lost; what it computed is then thrown away.
//! **Invariant:** a tenant is looked up again before its work begins.

mod purge;
mod queue;
mod reembed;
mod vectors;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;
use uuid::Uuid;

use super::places::{Place, Places};
use super::projector::Projector;
use super::runtime::{Runtime, TokioRuntime};
use super::stages::Stages;
use crate::config::crash_point;
use crate::domain::clock::Clock;
use crate::domain::document::Status;
use crate::domain::ids::{JobId, TenantId};
use crate::pipeline::process::{Attempts, Drafts, Pipelines, ProcessError, Steps};
use crate::store::postgres::ingest::ProcessedDocument;
use crate::store::postgres::jobs::{IngestTask, JobKind, LeasedJob, Progress};
use crate::store::postgres::leases::LeaseTerms;
use crate::store::{Audit, ErrorKind, StoreError, Stores};
use crate::tenancy::{self, Directory};
use purge::TenantJobs;
pub use queue::{Queue, Target};

/// Bounds on background work.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IngestionSettings {
    /// Batches that are worked on at the same time.
    pub workers: usize,
    /// Batches of one tenant whose files are read at the same time.
    pub tenant_parsers: usize,
    /// Documents in a batch, at most.
    pub batch_documents: i64,
    /// Bytes of source in a batch after which no further document is added.
    pub batch_bytes: i64,
    /// Chunks that are embedded between two reports of progress.
    pub progress_chunks: usize,
    /// How often a job is begun before it fails.
    pub max_attempts: i32,
    /// Seconds after which a job whose worker fell silent is given to another.
    pub lease_seconds: u64,
    /// Chunks of one document, at most.
    pub max_chunks: usize,
    /// Tokens of a sentence that is repeated at the start of the next chunk; 0: no overlap.
    pub overlap_tokens: usize,
    /// Tokens of a title that the model sees.
    pub title_tokens: usize,
    /// Seconds from a change of model until the old model's rows go: no question that began before it still runs.
    pub reembed_grace_seconds: u64,
}

impl IngestionSettings {
    /// Files that are read at the same time, over all tenants.
    #[must_use]
    pub fn parsers(&self) -> usize {
        self.workers.max(self.tenant_parsers + 1)
    }
}

/// The workers of a server.
#[derive(Clone)]
pub struct Workers {
    queue: Arc<dyn Queue>,
    /// `None` over a queue that holds no jobs about whole tenants.
    whole: Option<TenantJobs>,
    directory: Arc<dyn Directory>,
    pipelines: Pipelines,
    projector: Projector,
    settings: Arc<IngestionSettings>,
    clock: Arc<dyn Clock>,
    runtime: Arc<dyn Runtime>,
    wake: Arc<Notify>,
    node: Uuid,
    slots: Arc<Semaphore>,
    places: Places,
    stages: Arc<Stages>,
}

/// Jobs that were leased together.
struct Batch {
    jobs: Vec<LeasedJob>,
    turn: Turn,
}

/// What a batch holds while it is worked on. One that reads files gives its slot up meanwhile.
struct Turn {
    slot: Option<OwnedSemaphorePermit>,
    place: Option<Place>,
    stop: CancellationToken,
}

/// How long to wait before a store that is away is told again.
const REST: Duration = Duration::from_millis(500);

/// How long the dispatcher sleeps when nobody wakes it.
const POLL: Duration = Duration::from_millis(500);
/// How long documents wait for a model that the server does not have, before it is looked again.
const WITHOUT_MODEL: Duration = Duration::from_secs(30);

impl Workers {
    /// Workers over these parts, woken by `wake` when a job was accepted. `node` names the data folder whose
    /// lock this server holds.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "each is a part of the server, made once")]
    pub fn new(
        stores: Stores,
        directory: Arc<dyn Directory>,
        pipelines: Pipelines,
        projector: Projector,
        settings: IngestionSettings,
        clock: Arc<dyn Clock>,
        wake: Arc<Notify>,
        node: Uuid,
        audit: Audit,
    ) -> Self {
        let (queue, runtime) = (Arc::new(stores.clone()), Arc::new(TokioRuntime));
        let over = Self::over(queue, directory, pipelines, projector, settings, (clock, runtime), wake, node);
        Self { whole: Some(TenantJobs { stores, audit }), ..over }
    }

    /// Workers over any queue of documents and any runtime, whose time is the clock's.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "each is a part of the server, made once")]
    pub fn over(
        queue: Arc<dyn Queue>,
        directory: Arc<dyn Directory>,
        pipelines: Pipelines,
        projector: Projector,
        settings: IngestionSettings,
        (clock, runtime): (Arc<dyn Clock>, Arc<dyn Runtime>),
        wake: Arc<Notify>,
        node: Uuid,
    ) -> Self {
        let slots = Arc::new(Semaphore::new(settings.workers.max(1)));
        let places = Places::new(settings.parsers(), settings.tenant_parsers);
        Self {
            queue,
            whole: None,
            directory,
            pipelines,
            projector,
            settings: Arc::new(settings),
            clock,
            runtime,
            wake,
            node,
            slots,
            places,
            stages: Arc::default(),
        }
    }

    /// Where the time goes.
    #[must_use]
    pub fn stages(&self) -> Arc<Stages> {
        Arc::clone(&self.stages)
    }

    /// Works until told to stop, then waits for the batches that run.
    pub async fn run(self, stop: CancellationToken) {
        let running = TaskTracker::new();
        let mut turns: HashMap<TenantId, u64> = HashMap::new();
        let mut turn = 0;
        loop {
            let slot = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                slot = Arc::clone(&self.slots).acquire_owned() => slot,
            };
            let Ok(slot) = slot else { break };
            let leased = match self.next_batch(&mut turns, &mut turn).await {
                Ok(leased) => leased,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the queue cannot be read");
                    None
                }
            };
            let Some((jobs, place)) = leased else {
                drop(slot);
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    () = self.wake.notified() => {}
                    () = self.runtime.sleep(POLL) => {}
                }
                continue;
            };
            let batch = Batch { jobs, turn: Turn { slot: Some(slot), place, stop: stop.clone() } };
            let workers = self.clone();
            let tenant = batch.jobs.first().map(|job| job.tenant);
            let span = tracing::error_span!("jobs.batch", tenant = tenant.map(tracing::field::display));
            let run = async move {
                workers.batch(batch).await;
                workers.wake.notify_one();
            };
            self.runtime.spawn(&running, Box::pin(run.instrument(span)));
        }
        running.close();
        running.wait().await;
    }

    /// Jobs of the tenant that was served least recently, with a place if they read files.
    async fn next_batch(
        &self,
        turns: &mut HashMap<TenantId, u64>,
        turn: &mut u64,
    ) -> Result<Option<(Vec<LeasedJob>, Option<Place>)>, StoreError> {
        let mut backlog = self.queue.backlog(256).await?;
        turns.retain(|tenant, _| backlog.contains(tenant));
        backlog.sort_by_key(|tenant| turns.get(tenant).copied().unwrap_or(0));
        for tenant in backlog {
            *turn += 1;
            turns.insert(tenant, *turn);
            let place = self.places.take(tenant);
            let terms = LeaseTerms {
                jobs: self.settings.batch_documents,
                bytes: self.settings.batch_bytes,
                time: self.lease_time(),
                uploads: place.is_some(),
                node: self.node,
            };
            let leased = self.queue.lease(tenant, terms).await?;
            if !leased.is_empty() {
                let place = place.filter(|_| leased.iter().any(|job| job.upload));
                return Ok(Some((leased, place)));
            }
        }
        Ok(None)
    }

    fn lease_time(&self) -> Duration {
        Duration::from_secs(self.settings.lease_seconds)
    }

    async fn batch(&self, batch: Batch) {
        let Batch { jobs, mut turn } = batch;
        let Some(first) = jobs.first() else { return };
        let done = match (first.kind, &self.whole) {
            (JobKind::Ingest, _) => self.ingest(&jobs, &mut turn).await,
            (JobKind::PurgeTenant, Some(whole)) => self.purge(whole, first).await,
            (JobKind::Reembed, Some(whole)) => self.reembed(&whole.stores, first).await,
            (_, None) => {
                let words = "a job about a whole tenant in a queue of documents";
                Err(StoreError::new(ErrorKind::Internal, "worker", "job.begin", words).into())
            }
        };
        if let Err(error) = done {
            let tenant = first.tenant;
            tracing::warn!(%tenant, error = &error as &dyn std::error::Error, "a batch is put back");
            self.put_back(&jobs, &turn.stop, &error).await;
        }
    }

    /// Puts a batch back, again and again while the database is away: what this server holds nobody else frees.
    /// Told to stop, it leaves that to the next server over this folder.
    async fn put_back(&self, jobs: &[LeasedJob], stop: &CancellationToken, error: &ProcessError) {
        let begun = self.clock.instant();
        while let Err(error) = self.put_back_once(jobs, error).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "leases cannot be given up yet");
            let ran_out = self.clock.instant().duration_since(begun) >= self.lease_time();
            if ran_out || stop.is_cancelled() {
                return;
            }
            self.runtime.sleep(REST).await;
        }
    }

    async fn put_back_once(&self, jobs: &[LeasedJob], error: &ProcessError) -> Result<(), StoreError> {
        let attempts = jobs.first().map_or(0, |job| job.attempts);
        let delay = Duration::from_secs(1 << attempts.clamp(0, 6));
        match error.attempts() {
            Attempts::Unbounded => self.queue.release(jobs, delay).await,
            _ => self.queue.retry(jobs, delay).await,
        }
    }

    async fn ingest(&self, jobs: &[LeasedJob], turn: &mut Turn) -> Result<(), ProcessError> {
        let Some(first) = jobs.first() else { return Ok(()) };
        let permit =
            tenancy::reauthorise(self.directory.as_ref(), first.tenant, "ingestion").await.map_err(away)?;
        let Some(permit) = permit else {
            // Suspended: its work waits. Deleted: the purge takes its jobs.
            self.queue.release(jobs, Duration::from_secs(5)).await?;
            return Ok(());
        };
        let Some(corpus) = self.queue.open(&permit, first.namespace).await? else { return Ok(()) };
        let corpus = corpus.as_ref();
        let model = corpus.partition().model();
        let Some(pipeline) = self.pipelines.get(model) else {
            tracing::warn!(tenant = %first.tenant, model = model.as_str(),
                "documents wait for a model that this server does not have");
            self.queue.release(jobs, WITHOUT_MODEL).await?;
            return Ok(());
        };
        let (spent, fresh): (Vec<&LeasedJob>, Vec<&LeasedJob>) =
            jobs.iter().partition(|job| job.attempts > self.settings.max_attempts);
        for job in spent {
            let reason = format!("given up after {} attempts that did not end", self.settings.max_attempts);
            corpus.job_fail(job.job, job.lease, &reason).await?;
            self.stages.failed();
        }
        let fresh: Vec<LeasedJob> = fresh.into_iter().cloned().collect();
        let tasks = corpus.job_open(&fresh).await?;
        let held = Held { workers: self, corpus, jobs: tasks.iter().map(|t| (t.job, t.lease)).collect() };
        crash_point("opened");

        let mut watch = self.stages.watch(self.clock.as_ref());
        let mut documents = Vec::with_capacity(tasks.len());
        if turn.place.is_some() {
            // Files may take their time, which is not a worker's.
            turn.slot = None;
        }
        for task in tasks {
            let drafts = tokio::select! {
                biased;
                drafts = held.keep(Status::Parsing, drafts(pipeline, corpus, &task)) => drafts,
                () = turn.stop.cancelled(), if turn.place.is_some() => {
                    return Ok(self.queue.release(&fresh, Duration::ZERO).await?);
                }
            };
            match drafts {
                Ok(drafts) => documents.push((task, drafts)),
                Err(error) => self.task_failed(corpus, &fresh, &task, &error).await?,
            }
        }
        if turn.slot.is_none() && !documents.is_empty() {
            let slot = Arc::clone(&self.slots).acquire_owned();
            turn.slot = held.keep(Status::Parsing, async { Ok(slot.await.ok()) }).await?;
        }
        turn.place = None;
        crash_point("analysed");
        watch.analysed();
        let replaced: Vec<String> = documents
            .iter()
            .filter(|(task, _)| task.replaces)
            .map(|(task, _)| task.document_id.clone())
            .collect();
        let known = corpus.embedding_list(&replaced).await?;
        // From the last, so that the places of those before stay what they are.
        let Some(failed) = self.embed(&held, pipeline, &mut documents, &known, &turn.stop).await? else {
            return Ok(self.queue.release(&fresh, Duration::ZERO).await?);
        };
        for (at, error) in failed.into_iter().rev() {
            let (task, _) = documents.remove(at);
            self.task_failed(corpus, &fresh, &task, &error.into()).await?;
        }
        let second = held.keep(Status::Processing, self.second_vectors(corpus, &documents)).await?;
        crash_point("embedded");
        watch.embedded();

        let documents: Vec<ProcessedDocument> = documents
            .into_iter()
            .map(|(task, drafts)| ProcessedDocument {
                job: task.job,
                lease: task.lease,
                document_id: task.document_id,
                version: task.version,
                title: drafts.title,
                chunks: drafts.chunks.into_iter().map(|draft| draft.chunk).collect(),
            })
            .collect();
        if documents.is_empty() {
            return Ok(());
        }
        corpus.documents_commit(&documents, second.as_ref()).await?;
        watch.committed(documents.len(), documents.iter().map(|document| document.chunks.len()).sum());
        crash_point("committed");
        self.projector.kick(corpus.partition());

        Ok(())
    }

    /// Ends a task that cannot succeed; puts one back that may.
    async fn task_failed(
        &self,
        corpus: &dyn Target,
        jobs: &[LeasedJob],
        task: &IngestTask,
        error: &ProcessError,
    ) -> Result<(), ProcessError> {
        let job = jobs.iter().find(|job| job.job == task.job);
        let attempts = job.map_or(self.settings.max_attempts, |job| job.attempts);
        let most = error.attempts().bound(self.settings.max_attempts);
        tracing::info!(job = %task.job, attempts, error = error as &dyn std::error::Error, "a document was not processed");
        if most.is_some_and(|most| attempts >= most) {
            corpus.job_fail(task.job, task.lease, &error.to_string()).await?;
            self.stages.failed();
        } else if let Some(job) = job {
            self.put_back_once(std::slice::from_ref(job), error).await?;
        }
        Ok(())
    }
}

async fn drafts(
    pipeline: &dyn Steps,
    corpus: &dyn Target,
    task: &IngestTask,
) -> Result<Drafts, ProcessError> {
    let upload = async {
        match task.upload {
            Some(upload) => corpus.upload_get(upload).await,
            None => Ok(None),
        }
    };
    let parsed = pipeline.read(task, Box::pin(upload)).await?;
    pipeline.analyse(corpus.partition().namespace(), task.title.clone(), parsed).await
}

/// The leases of a batch while it is worked on.
struct Held<'a> {
    workers: &'a Workers,
    corpus: &'a dyn Target,
    jobs: Vec<(JobId, Uuid)>,
}

impl Held<'_> {
    /// Reports progress, which extends the leases; returns how many are still held.
    async fn report(&self, progress: Progress) -> Result<usize, StoreError> {
        let held = self.corpus.job_progress(&self.jobs, progress, self.workers.lease_time()).await?;
        Ok(held.len())
    }

    /// Keeps the leases alive while something takes its time.
    async fn keep<T>(
        &self,
        stage: Status,
        work: impl Future<Output = Result<T, ProcessError>>,
    ) -> Result<T, ProcessError> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.workers.runtime.sleep(self.workers.lease_time() / 4) => {
                    self.report(Progress { stage, done: 0, total: 0, rate: 0.0 }).await?;
                }
            }
        }
    }
}

fn away(error: tenancy::DirectoryError) -> ProcessError {
    StoreError::new(ErrorKind::Unavailable, "postgres", "tenant.get", "the directory cannot be read")
        .with_source(error)
        .into()
}
