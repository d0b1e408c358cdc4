//! A server: the real workers and projector over the models, in a process that can be killed between any two steps.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bulkhead::domain::clock::Clock;
use bulkhead::domain::document::{Parsed, Section};
use bulkhead::domain::ids::{ChunkId, IdSource, ModelId, NamespaceId, TenantId};
use bulkhead::inference::EmbedderError;
use bulkhead::jobs::projector::{Projector, ProjectorSettings};
use bulkhead::jobs::runtime::Runtime;
use bulkhead::jobs::worker::{IngestionSettings, Workers};
use bulkhead::pipeline::parse::ParseError;
use bulkhead::pipeline::process::{Draft, Drafts, Pipelines, ProcessError, Steps, UploadBytes};
use bulkhead::store::Partition;
use bulkhead::store::postgres::ingest::{Mentions, NewChunk};
use bulkhead::store::postgres::jobs::IngestTask;
use bulkhead::store::vector::{Terms, VectorIndex};
use bulkhead::tenancy::{Directory, authorise_purge, reauthorise};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::executor::{Inside, Process, World};
use super::handles::{Database, Handles};
use super::index::ModelIndex;

pub const MAX_ATTEMPTS: i32 = 3;

/// Whether a document with this content can never be read.
pub fn is_poison(token: &str) -> bool {
    token.ends_with('7')
}

/// How many chunks a document with this content has.
pub fn chunks_of(token: &str) -> usize {
    token.bytes().map(usize::from).sum::<usize>() % 4 + 1
}

pub struct Server {
    pub process: Process,
    pub node: Uuid,
    pub handles: Handles,
    /// `None` while it is down.
    pub running: Option<Running>,
}

pub struct Running {
    pub projector: Projector,
    pub wake: Arc<Notify>,
    pub stop: CancellationToken,
}

impl Server {
    pub fn new(database: &Database, process: Process, model: ModelId, index: ModelIndex) -> Self {
        let handles = Handles { database: database.clone(), index: Arc::new(index), model };
        Self { process, node: Uuid::from_u128(process as u128), handles, running: None }
    }

    pub fn start(&mut self) {
        let (world, database) = (self.handles.database.world.clone(), self.handles.database.clone());
        let clock: Arc<dyn Clock> = Arc::new(world.clone());
        let runtime: Arc<dyn Runtime> = Arc::new(Inside(world.clone(), self.process));
        let directory: Arc<dyn Directory> = Arc::new(database.clone());
        let beside = (Arc::clone(&clock), Arc::clone(&runtime));
        let (stop, wake) = (CancellationToken::new(), Arc::new(Notify::new()));
        let projector = Projector::over(
            Arc::new(self.handles.clone()),
            Arc::clone(&directory),
            projection(&world),
            &self.process.to_string(),
            beside.clone(),
        );
        let steps: Arc<dyn Steps> = Arc::new(Reading { world: world.clone(), database: database.clone() });
        let workers = Workers::over(
            Arc::new(self.handles.clone()),
            directory,
            Pipelines::new(vec![(self.handles.model.clone(), steps)]),
            projector.clone(),
            ingestion(&world),
            beside,
            Arc::clone(&wake),
            self.node,
        );
        world.trace(|| format!("server {} starts", self.process));
        let (node, run, until) = (self.node, projector.clone(), stop.clone());
        let first = world.clone();
        world.spawn(self.process, async move {
            // As a server does before it leases anything.
            while database.ask("lease.free", move |record, _| record.leases_free(node)).await.is_err() {
                first.sleep(Duration::from_millis(200)).await;
            }
            tokio::join!(workers.run(until.clone()), run.run(until));
        });
        world.spawn(self.process, sweep_orphans(self.handles.clone()));
        self.running = Some(Running { projector, wake, stop });
    }

    /// Ends the process between two steps.
    pub fn kill(&mut self) {
        let world = &self.handles.database.world;
        world.trace(|| format!("server {} is killed", self.process));
        self.running = None;
        world.kill(self.process);
        self.handles.index.crash();
    }
}

fn projection(world: &World) -> ProjectorSettings {
    ProjectorSettings {
        concurrent: 2,
        tenant_concurrent: 1,
        queue: 3,
        page: 2 + usize::try_from(world.below(5)).expect("small"),
        flush_points: 4 + world.below(8),
        flush_ms: 1000,
        sweep_ms: 1500,
        upkeep_ms: 2500,
        upkeep_page: 2,
        rest_ms: 200,
        longest_rest_ms: 3000,
    }
}

fn ingestion(world: &World) -> IngestionSettings {
    IngestionSettings {
        workers: 2,
        tenant_parsers: 2,
        batch_documents: 1 + i64::try_from(world.below(4)).expect("small"),
        batch_bytes: 1000,
        progress_chunks: 2,
        max_attempts: MAX_ATTEMPTS,
        lease_seconds: 8,
        max_chunks: 100,
        overlap_tokens: 0,
        title_tokens: 0,
        reembed_grace_seconds: 0,
    }
}

/// What `jobs::orphans` does to indexes, more often.
async fn sweep_orphans(handles: Handles) {
    loop {
        handles.database.world.sleep(Duration::from_secs(10)).await;
        for tenant in handles.index.tenants().await.unwrap_or_default() {
            let active = reauthorise(&handles.database, tenant, "orphans").await;
            let deleted = authorise_purge(&handles.database, tenant).await;
            if !matches!((active, deleted), (Ok(Some(_)), _) | (_, Ok(Some(_)))) {
                continue;
            }
            for partition in handles.index.partitions(tenant).await.unwrap_or_default() {
                if let Ok(None) = handles.opened((tenant, partition.namespace())).await {
                    // What could not be removed is found again.
                    let _ = handles.index.remove(&partition).await;
                }
            }
        }
    }
}

/// Reading documents, with its troubles: slow ones, unreadable ones, a parser that hangs.
struct Reading {
    world: World,
    database: Database,
}

#[async_trait]
impl Steps for Reading {
    async fn read(&self, task: &IngestTask, _: UploadBytes<'_>) -> Result<Parsed, ProcessError> {
        {
            let record = self.database.record.lock();
            let job = record.jobs.get(&task.job).filter(|job| job.lease == Some(task.lease));
            if let Some(job) = job.filter(|job| job.attempts > MAX_ATTEMPTS) {
                self.world
                    .violation(|| format!("{} is begun for the {}th time", task.document_id, job.attempts));
            }
        }
        let token = task.body.clone().unwrap_or_default();
        let seconds = if self.world.one_in(12) { 3 + self.world.below(20) } else { 0 };
        self.world.sleep(Duration::from_millis(seconds * 1000 + self.world.below(30))).await;
        if is_poison(&token) {
            return Err(ParseError::Empty.into());
        }
        if *self.database.faults.lock() > 0 && self.world.one_in(30) {
            return Err(ParseError::Timeout { seconds: 1 }.into());
        }
        let section = Section { text: token, ..Section::default() };
        Ok(Parsed { sections: vec![section], ..Parsed::default() })
    }

    async fn analyse(
        &self,
        _: NamespaceId,
        title: Option<String>,
        parsed: Parsed,
    ) -> Result<Drafts, ProcessError> {
        self.world.delay().await;
        let token = parsed.sections.into_iter().next().map(|section| section.text).unwrap_or_default();
        let draft = |ordinal: usize| Draft {
            model_text: token.clone(),
            chunk: NewChunk {
                chunk: ChunkId(self.world.uuid()),
                ordinal: i32::try_from(ordinal).expect("small"),
                heading: None,
                text: token.clone(),
                tokens: 1,
                text_hash: [0; 16],
                embedding: Vec::new(),
                terms: Terms::default(),
                mentions: Mentions::default(),
            },
        };
        Ok(Drafts { title, chunks: (0..chunks_of(&token)).map(draft).collect() })
    }

    async fn embed(
        &self,
        _: TenantId,
        _: &mut [&mut Draft],
        _: &HashMap<[u8; 16], Vec<f32>>,
    ) -> Result<Vec<(usize, EmbedderError)>, ProcessError> {
        self.world.delay().await;
        Ok(Vec::new())
    }

    async fn embed_again(
        &self,
        _: TenantId,
        _: &[(Option<&str>, Option<&str>, &str)],
    ) -> Result<Vec<Vec<f32>>, ProcessError> {
        Ok(Vec::new())
    }
}

/// Opens a namespace and waits until its index is there. A failure is the projector's to repair.
pub async fn project(handles: &Handles, projector: &Projector, partition: &Partition) {
    if let Ok(Some(opened)) = handles.opened((partition.tenant(), partition.namespace())).await {
        let _ = projector.project_from(opened).await;
    }
}
