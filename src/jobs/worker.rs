//! Workers: take jobs off the queue, tenant by tenant, and see them through.
//!
//! **Invariant:** work on a job stops when its lease is lost; what it computed is then thrown away.
//! **Invariant:** a tenant is looked up again before its work begins.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::projector::Projector;
use super::stages::Stages;
use crate::domain::clock::Clock;
use crate::domain::document::Status;
use crate::domain::ids::{JobId, TenantId};
use crate::pipeline::process::{Draft, Drafts, Pipeline, ProcessError};
use crate::store::postgres::ingest::ProcessedDocument;
use crate::store::postgres::jobs::{IngestTask, JobKind, LeasedJob, Progress};
use crate::store::{CorpusWriter, ErrorKind, StoreError, Stores};
use crate::tenancy::{self, Directory};

/// Bounds on background work.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IngestionSettings {
    /// Batches that are worked on at the same time.
    pub workers: usize,
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
}

/// The workers of a server.
#[derive(Clone)]
pub struct Workers {
    stores: Stores,
    directory: Arc<dyn Directory>,
    pipeline: Pipeline,
    projector: Projector,
    settings: Arc<IngestionSettings>,
    clock: Arc<dyn Clock>,
    wake: Arc<Notify>,
    stages: Arc<Stages>,
}

/// How long the dispatcher sleeps when nobody wakes it.
const POLL: Duration = Duration::from_millis(500);

impl Workers {
    /// Workers over these parts, woken by `wake` when a job was accepted.
    #[must_use]
    pub fn new(
        stores: Stores,
        directory: Arc<dyn Directory>,
        pipeline: Pipeline,
        projector: Projector,
        settings: IngestionSettings,
        clock: Arc<dyn Clock>,
        wake: Arc<Notify>,
    ) -> Self {
        let settings = Arc::new(settings);
        Self { stores, directory, pipeline, projector, settings, clock, wake, stages: Arc::default() }
    }

    /// Where the time goes.
    #[must_use]
    pub fn stages(&self) -> Arc<Stages> {
        Arc::clone(&self.stages)
    }

    /// Works until told to stop, then waits for the batches that run.
    pub async fn run(self, stop: CancellationToken) {
        let slots = Arc::new(Semaphore::new(self.settings.workers.max(1)));
        let running = TaskTracker::new();
        let mut turns: HashMap<TenantId, u64> = HashMap::new();
        let mut turn = 0;
        loop {
            let slot = tokio::select! {
                () = stop.cancelled() => break,
                slot = Arc::clone(&slots).acquire_owned() => slot,
            };
            let Ok(slot) = slot else { break };
            let leased = match self.next_batch(&mut turns, &mut turn).await {
                Ok(leased) => leased,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the queue cannot be read");
                    Vec::new()
                }
            };
            if leased.is_empty() {
                drop(slot);
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep(POLL) => {}
                }
                continue;
            }
            let workers = self.clone();
            running.spawn(async move {
                workers.batch(&leased).await;
                drop(slot);
                workers.wake.notify_one();
            });
        }
        running.close();
        running.wait().await;
    }

    /// Jobs of the tenant that was served least recently.
    async fn next_batch(
        &self,
        turns: &mut HashMap<TenantId, u64>,
        turn: &mut u64,
    ) -> Result<Vec<LeasedJob>, StoreError> {
        let mut backlog = self.stores.job_backlog(256).await?;
        turns.retain(|tenant, _| backlog.iter().any(|waiting| waiting.tenant == *tenant));
        backlog.sort_by_key(|waiting| turns.get(&waiting.tenant).copied().unwrap_or(0));
        for waiting in backlog {
            *turn += 1;
            turns.insert(waiting.tenant, *turn);
            let settings = &self.settings;
            let leased = self
                .stores
                .job_lease(waiting.tenant, settings.batch_documents, settings.batch_bytes, self.lease_time())
                .await?;
            if !leased.is_empty() {
                return Ok(leased);
            }
        }
        Ok(Vec::new())
    }

    fn lease_time(&self) -> Duration {
        Duration::from_secs(self.settings.lease_seconds)
    }

    async fn batch(&self, jobs: &[LeasedJob]) {
        let Some(first) = jobs.first() else { return };
        let done = match first.kind {
            JobKind::Ingest => self.ingest(jobs).await,
            JobKind::PurgeTenant => self.purge(first).await,
        };
        if let Err(error) = done {
            let tenant = first.tenant;
            tracing::warn!(%tenant, error = &error as &dyn std::error::Error, "a batch is put back");
            let delay = Duration::from_secs(1 << first.attempts.clamp(0, 6));
            if let Err(error) = self.stores.job_release(jobs, delay).await {
                tracing::warn!(%tenant, error = &error as &dyn std::error::Error, "its leases must run out");
            }
        }
    }

    async fn purge(&self, job: &LeasedJob) -> Result<(), ProcessError> {
        let permit = tenancy::authorise_purge(self.directory.as_ref(), job.tenant).await.map_err(away)?;
        let Some(permit) = permit else {
            self.stores.job_release(std::slice::from_ref(job), Duration::from_hours(1)).await?;
            return Ok(());
        };
        let writer = self.stores.background(&permit);
        let rows = writer.tenant_purge().await?;
        writer.job_forget(job.job).await?;
        tracing::info!(tenant = %job.tenant, rows, "a deleted tenant's data is gone");
        Ok(())
    }

    async fn ingest(&self, jobs: &[LeasedJob]) -> Result<(), ProcessError> {
        let Some(first) = jobs.first() else { return Ok(()) };
        let permit =
            tenancy::reauthorise(self.directory.as_ref(), first.tenant, "ingestion").await.map_err(away)?;
        let Some(permit) = permit else {
            // Suspended: its work waits. Deleted: the purge takes its jobs.
            self.stores.job_release(jobs, Duration::from_secs(5)).await?;
            return Ok(());
        };
        let writer = self.stores.background(&permit);
        let Some(corpus) = writer.corpus_writer(first.namespace).await? else { return Ok(()) };
        let (spent, fresh): (Vec<&LeasedJob>, Vec<&LeasedJob>) =
            jobs.iter().partition(|job| job.attempts > self.settings.max_attempts);
        for job in spent {
            let reason = format!("given up after {} attempts that did not end", self.settings.max_attempts);
            corpus.job_fail(job.job, job.lease, &reason).await?;
        }
        let fresh: Vec<LeasedJob> = fresh.into_iter().cloned().collect();
        let tasks = corpus.job_open(&fresh).await?;
        let held =
            Held { workers: self, corpus: &corpus, jobs: tasks.iter().map(|t| (t.job, t.lease)).collect() };
        crash_point("opened");

        let mut watch = self.stages.watch(self.clock.as_ref());
        let mut documents = Vec::with_capacity(tasks.len());
        for task in tasks {
            match held.keep(Status::Parsing, self.drafts(&corpus, &task)).await {
                Ok(drafts) => documents.push((task, drafts)),
                Err(error) => self.task_failed(&corpus, &fresh, &task, error).await?,
            }
        }
        crash_point("analysed");
        watch.analysed();
        let replaced: Vec<String> = documents
            .iter()
            .filter(|(task, _)| task.replaces)
            .map(|(task, _)| task.document_id.clone())
            .collect();
        let known = corpus.embedding_list(&replaced).await?;
        self.embed(&held, &mut documents, &known).await?;
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
        corpus.documents_commit(&documents).await?;
        watch.committed(documents.iter().map(|document| document.chunks.len()).sum());
        crash_point("committed");
        self.projector.kick(&corpus);

        Ok(())
    }

    async fn drafts(&self, corpus: &CorpusWriter, task: &IngestTask) -> Result<Drafts, ProcessError> {
        let parsed = self.pipeline.read(corpus, task).await?;
        self.pipeline.analyse(corpus.partition().namespace(), task.title.clone(), parsed).await
    }

    /// Embeds the chunks of a batch, those of like length together, and reports now and then.
    async fn embed(
        &self,
        held: &Held<'_>,
        documents: &mut [(IngestTask, Drafts)],
        known: &HashMap<[u8; 16], Vec<f32>>,
    ) -> Result<(), ProcessError> {
        let mut drafts: Vec<&mut Draft> =
            documents.iter_mut().flat_map(|(_, drafts)| drafts.chunks.iter_mut()).collect();
        drafts.sort_by_key(|draft| draft.model_text.len());
        let total = i64::try_from(drafts.len()).unwrap_or(i64::MAX);
        let begun = self.clock.instant();
        let mut reported = begun;
        let mut done = 0;
        for slice in drafts.chunks_mut(self.settings.progress_chunks.max(1)) {
            let size = i64::try_from(slice.len()).unwrap_or(i64::MAX);
            self.pipeline.embed(held.corpus.partition().tenant(), slice, known).await?;
            done += size;
            let now = self.clock.instant();
            if now.duration_since(reported) >= Duration::from_millis(500) {
                reported = now;
                #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
                let rate = done as f32 / now.duration_since(begun).as_secs_f32();
                if held.report(Progress { stage: Status::Processing, done, total, rate }).await? == 0 {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Ends a task that cannot succeed; puts one back that may.
    async fn task_failed(
        &self,
        corpus: &CorpusWriter,
        jobs: &[LeasedJob],
        task: &IngestTask,
        error: ProcessError,
    ) -> Result<(), ProcessError> {
        let job = jobs.iter().find(|job| job.job == task.job);
        let attempts = job.map_or(self.settings.max_attempts, |job| job.attempts);
        tracing::info!(job = %task.job, attempts, error = &error as &dyn std::error::Error, "a document was not processed");
        if error.is_permanent() || attempts >= self.settings.max_attempts {
            corpus.job_fail(task.job, task.lease, &error.to_string()).await?;
        } else if let Some(job) = job {
            let delay = Duration::from_secs(1 << attempts.clamp(0, 6));
            self.stores.job_release(std::slice::from_ref(job), delay).await?;
        }
        Ok(())
    }
}

/// The leases of a batch while it is worked on.
struct Held<'a> {
    workers: &'a Workers,
    corpus: &'a CorpusWriter,
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
        let mut beat = tokio::time::interval(self.workers.lease_time() / 4);
        beat.tick().await;
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = beat.tick() => {
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

/// A named place at which a test kills the process. Releases do nothing here.
fn crash_point(name: &str) {
    #[cfg(feature = "laboratory")]
    if std::env::var("BULKHEAD_CRASH_AT").is_ok_and(|at| at == name) {
        std::process::abort();
    }
    let _ = name;
}
