//! One migrated server for all tests that only need tenants of their own. It runs while a test holds it, in a
//! thread with a runtime of its own, since a test's runtime ends with the test.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bulkhead::domain::Seq;
use bulkhead::domain::clock::{Clock, SystemClock};
use bulkhead::domain::document::Status;
use bulkhead::domain::ids::{
    ChunkId, DocumentId, IdSource as _, JobId, ModelId, NamespaceName, SystemIds, TenantId,
};
use bulkhead::domain::limits::Limits;
use bulkhead::store::postgres::documents::{Acceptance, Content, NewDocument, OnExisting};
use bulkhead::store::postgres::ingest::{Committed, Mentions, NewChunk, ProcessedDocument};
use bulkhead::store::postgres::jobs::LeasedJob;
use bulkhead::store::postgres::leases::LeaseTerms;
use bulkhead::store::postgres::roles::Role;
use bulkhead::store::postgres::{PoolSettings, Postgres, RoleAddresses, migrate};
use bulkhead::store::uploads::Uploads;
use bulkhead::store::vector::{
    Entries, Entry, Found, Point, Position, Rebuild, Terms, VectorIndex, VectorQuery,
};
use bulkhead::store::{CorpusWriter, ErrorKind, Partition, StoreError, Stores};
use bulkhead::tenancy::{Permit, Write, reauthorise};
use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tempfile::TempDir;
use uuid::Uuid;

use crate::database::MODEL;
use crate::place::{Place, connect};

static SHARED: Mutex<Weak<Deployment>> = Mutex::new(Weak::new());
static TENANTS: AtomicU32 = AtomicU32::new(0);

/// A running server with a migrated database, shared by tests.
pub struct Deployment {
    pub addresses: RoleAddresses,
    superuser: PgConnectOptions,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    pub uploads: TempDir,
}

impl Deployment {
    /// The one that runs, or a new one.
    pub fn get() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let fresh = Arc::new(Self::start());
            *shared = Arc::downgrade(&fresh);
            fresh
        })
    }

    fn start() -> Self {
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            runtime.expect("runtime").block_on(async move {
                let place = Place::new();
                let server = place.start().await;
                server.bootstrap("bulkhead").await.expect("bootstrap");
                let addresses = server.addresses("bulkhead");
                let model = ModelId::parse(MODEL).expect("model");
                migrate::migrate(&addresses.owner, &model).await.expect("migrated");
                let superuser = server.superuser().database("bulkhead");
                tell.send((addresses, superuser)).expect("the test waits");
                // An error means that the last holder is gone, which is what is waited for.
                let _ = stopped.await;
                server.stop().await.expect("stopped");
            });
        });
        let (addresses, superuser) = told.recv().expect("the server starts");
        let uploads = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("folder");
        Self { addresses, superuser, stop: Some(stop), thread: Some(thread), uploads }
    }

    /// A connection that no policy binds.
    pub async fn superuser(&self) -> PgConnection {
        connect(&self.superuser).await
    }

    /// A plain connection of a role.
    pub async fn role(&self, role: Role) -> PgConnection {
        let options = match role {
            Role::Owner => &self.addresses.owner,
            Role::App => &self.addresses.app,
            Role::Auth => &self.addresses.auth,
            Role::Dispatch => &self.addresses.dispatch,
            Role::Control => &self.addresses.control,
            Role::Backup => panic!("no login outside a backup"),
        };
        connect(options).await
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the server did not stop");
        }
    }
}

/// A clock that a test moves.
#[derive(Debug, Clone)]
pub struct FakeClock {
    now: Arc<Mutex<DateTime<Utc>>>,
    begun: DateTime<Utc>,
}

impl FakeClock {
    pub fn advance(&self, by: Duration) {
        *self.now.lock().expect("clock") += chrono::Duration::from_std(by).expect("duration");
    }

    pub fn set_back(&self, by: Duration) {
        *self.now.lock().expect("clock") -= chrono::Duration::from_std(by).expect("duration");
    }
}

impl Clock for FakeClock {
    fn now(&self) -> DateTime<Utc> {
        *self.now.lock().expect("clock")
    }

    /// The machine's own, and what the test moved it forwards by.
    fn instant(&self) -> Instant {
        Instant::now() + (self.now() - self.begun).to_std().unwrap_or_default()
    }
}

/// Pool sizes for a test: as many connections for one tenant as there are.
pub fn pools(connections: u32) -> PoolSettings {
    PoolSettings {
        query_connections: connections,
        ingest_connections: connections,
        tenant_query_connections: connections,
        tenant_ingest_connections: connections,
        acquire_timeout_ms: 5000,
    }
}

/// A test's own view of the deployment: stores whose pools belong to the test's runtime.
pub struct Harness {
    pub postgres: Postgres,
    pub stores: Stores,
    pub clock: FakeClock,
    pub index: Arc<MemoryIndex>,
    // Last: the pools go before the server.
    pub deployment: Arc<Deployment>,
}

impl Harness {
    pub async fn new() -> Self {
        Self::with(&pools(4), |_| ()).await
    }

    /// With these pool sizes, and addresses changed by `detour`.
    pub async fn with(settings: &PoolSettings, detour: impl FnOnce(&mut RoleAddresses)) -> Self {
        let deployment = tokio::task::spawn_blocking(Deployment::get).await.expect("the deployment is there");
        let mut addresses = deployment.addresses.clone();
        detour(&mut addresses);
        // Whole microseconds, as the database keeps them.
        let now = DateTime::from_timestamp(SystemClock.now().timestamp(), 0).expect("time");
        let clock = FakeClock { now: Arc::new(Mutex::new(now)), begun: now };
        let model = ModelId::parse(MODEL).expect("model");
        let ids = Arc::new(SystemIds(SystemClock));
        let postgres = Postgres::new(&addresses, settings, model, Arc::new(clock.clone()), ids);
        let index = Arc::new(MemoryIndex::default());
        let uploads = Uploads::in_folder(deployment.uploads.path()).expect("uploads");
        let stores = Stores::new(postgres.clone(), Arc::clone(&index) as Arc<dyn VectorIndex>, uploads);
        Self { postgres, stores, clock, index, deployment }
    }

    /// A new active tenant, and the authority of its jobs.
    pub async fn tenant(&self) -> Permit<Write> {
        let id = SystemIds(SystemClock).uuid();
        let slug = format!("tenant-{}", TENANTS.fetch_add(1, Ordering::Relaxed));
        sqlx::query(
            "insert into tenant (tenant_id, name, slug, state, created_at, updated_at)
             values ($1, $2, $2, 'active', now(), now())",
        )
        .bind(id)
        .bind(slug)
        .execute(&mut self.deployment.superuser().await)
        .await
        .expect("tenant");
        let permit = reauthorise(&self.postgres, TenantId(id), "test").await.expect("directory");
        permit.expect("active")
    }

    /// The tenant's default namespace, made when it is missing.
    pub async fn corpus(&self, permit: &Permit<Write>) -> CorpusWriter {
        self.namespace(permit, "default").await
    }

    /// A namespace of the tenant, made when it is missing.
    pub async fn namespace(&self, permit: &Permit<Write>, name: &str) -> CorpusWriter {
        let name = NamespaceName::parse(name).expect("name");
        let opened = self.stores.background(permit).corpus_require(&name).await.expect("opened");
        opened.expect("reached")
    }

    /// Leases what is due for a tenant, ten minutes long.
    pub async fn lease(&self, corpus: &CorpusWriter) -> Vec<LeasedJob> {
        let leased = self.stores.job_lease(corpus.partition().tenant(), terms(100, i64::MAX)).await;
        leased.expect("leased")
    }

    /// Accepts a version of a document, and makes it answer with these chunks.
    pub async fn put(&self, corpus: &CorpusWriter, id: &str, chunks: Vec<NewChunk>) -> Committed {
        accept(corpus, &[document(id, &chunks[0].text)], OnExisting::Replace).await;
        let leased = self.lease(corpus).await;
        let tasks = corpus.job_open(&leased).await.expect("opened");
        assert_eq!(tasks.len(), 1, "one document waits");
        let processed = ProcessedDocument {
            job: tasks[0].job,
            lease: tasks[0].lease,
            document_id: tasks[0].document_id.clone(),
            version: tasks[0].version,
            title: None,
            chunks,
        };
        corpus.documents_commit(&[processed]).await.expect("committed")
    }

    pub async fn close(self) {
        self.postgres.close().await;
        let deployment = self.deployment;
        tokio::task::spawn_blocking(move || drop(deployment)).await.expect("let go");
    }
}

/// How long tests lease jobs.
pub const LEASE: Duration = Duration::from_mins(10);

/// Leases of so many jobs and bytes, for the test's own node.
pub fn terms(jobs: i64, bytes: i64) -> LeaseTerms {
    LeaseTerms { jobs, bytes, time: LEASE, uploads: true, node: Uuid::from_u128(1) }
}

/// A document of this id with this text; its name and hash follow from them.
pub fn document(id: &str, text: &str) -> NewDocument {
    NewDocument {
        document_id: DocumentId::parse(id).expect("id"),
        title: Some(format!("Title of {id}")),
        file_name: format!("{id}.txt"),
        metadata: serde_json::json!({}),
        content: Content::Text(text.to_owned()),
        content_hash: Sha256::digest(text).into(),
        content_length: text.len() as u64,
        summary: text.chars().take(40).collect(),
    }
}

/// A chunk with this text, whose vector and terms follow from it: one term for each word.
pub fn chunk(ordinal: i32, text: &str) -> NewChunk {
    let digest = Sha256::digest(text);
    let mut embedding: Vec<f32> = digest[..8].iter().map(|byte| f32::from(*byte) - 127.5).collect();
    let length = embedding.iter().map(|x| x * x).sum::<f32>().sqrt();
    for x in &mut embedding {
        *x /= length;
    }
    // As long as what the hashing model makes of a question.
    embedding.resize(384, 0.0);
    let mut terms = BTreeMap::new();
    for word in text.split_whitespace() {
        *terms.entry(term(word)).or_insert(0.0) += 1.0;
    }
    NewChunk {
        chunk: ChunkId(SystemIds(SystemClock).uuid()),
        ordinal,
        heading: None,
        text: text.to_owned(),
        tokens: i32::try_from(text.split_whitespace().count()).expect("short"),
        text_hash: digest[..16].try_into().expect("16 bytes"),
        embedding,
        terms: Terms { indices: terms.keys().copied().collect(), values: terms.into_values().collect() },
        mentions: Mentions {
            keys: vec![i64::from(term(text))],
            names: vec![text.to_owned()],
            kinds: vec!["concept".to_owned()],
            counts: vec![1],
        },
    }
}

/// A word's number.
pub fn term(word: &str) -> u32 {
    let digest = Sha256::digest(word);
    u32::from_be_bytes(digest[..4].try_into().expect("4 bytes")) % 1_000_000_000
}

/// Accepts documents under a fixed track.
pub async fn accept(corpus: &CorpusWriter, documents: &[NewDocument], existing: OnExisting) -> Acceptance {
    corpus.documents_accept(documents, existing, "track-1", &Limits::default()).await.expect("accepted")
}

/// What an acceptance of one document says of its job.
pub fn only_job(acceptance: &Acceptance) -> Option<JobId> {
    match acceptance {
        Acceptance::Accepted(accepted) if accepted.len() == 1 => accepted[0].job,
        other => panic!("one document was accepted, not {other:?}"),
    }
}

/// The state that the store tells of a document.
pub async fn status(corpus: &CorpusWriter, id: &str) -> Option<Status> {
    let id = DocumentId::parse(id).expect("id");
    corpus.document_get(&id).await.expect("read").map(|row| row.status)
}

#[derive(Debug, Default, Clone)]
struct MemoryPartition {
    points: BTreeMap<ChunkId, Point>,
    applied: Seq,
}

/// An index in memory that answers nothing and keeps what was applied.
#[derive(Debug, Default)]
pub struct MemoryIndex(Mutex<HashMap<Partition, MemoryPartition>>);

impl MemoryIndex {
    /// The chunks that the index holds.
    pub fn chunks(&self, partition: &Partition) -> Vec<ChunkId> {
        let partitions = self.0.lock().expect("index");
        partitions.get(partition).map(|part| part.points.keys().copied().collect()).unwrap_or_default()
    }
}

#[async_trait]
impl VectorIndex for MemoryIndex {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn search(&self, _: &Partition, _: &VectorQuery) -> Result<Option<Found>, StoreError> {
        Ok(None)
    }

    async fn position(&self, partition: &Partition) -> Result<Option<Position>, StoreError> {
        let partitions = self.0.lock().expect("index");
        Ok(partitions.get(partition).map(|part| Position { applied: part.applied, durable: part.applied }))
    }

    async fn entries(
        &self,
        partition: &Partition,
        from: Option<ChunkId>,
        limit: usize,
    ) -> Result<Option<Entries>, StoreError> {
        let partitions = self.0.lock().expect("index");
        let Some(part) = partitions.get(partition) else { return Ok(None) };
        let from = from.unwrap_or(ChunkId(Uuid::nil()));
        let mut points = part.points.range(from..);
        let entry = |point: &Point| Entry {
            tenant: partition.tenant(),
            namespace: partition.namespace(),
            chunk: point.chunk,
            version: point.version,
        };
        let list = points.by_ref().take(limit).map(|(_, point)| entry(point)).collect();
        Ok(Some(Entries { list, next: points.next().map(|(chunk, _)| *chunk) }))
    }

    async fn apply(
        &self,
        partition: &Partition,
        upserts: Vec<Point>,
        deletes: Vec<ChunkId>,
        through: Seq,
    ) -> Result<(), StoreError> {
        let mut partitions = self.0.lock().expect("index");
        let part = partitions.entry(partition.clone()).or_default();
        part.points.extend(upserts.into_iter().map(|point| (point.chunk, point)));
        for chunk in deletes {
            part.points.remove(&chunk);
        }
        part.applied = through;
        Ok(())
    }

    async fn flush(&self, partition: &Partition) -> Result<Seq, StoreError> {
        Ok(self.0.lock().expect("index").get(partition).map(|part| part.applied).unwrap_or_default())
    }

    async fn rebuild(&self, _: &Partition) -> Result<Box<dyn Rebuild>, StoreError> {
        Err(StoreError::new(ErrorKind::Unavailable, "memory", "rebuild", "no test rebuilds this index"))
    }

    async fn wants_rebuild(&self, _: &Partition) -> bool {
        false
    }

    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        Ok(self.0.lock().expect("index").keys().map(Partition::tenant).collect())
    }

    async fn partitions(&self, tenant: TenantId) -> Result<Vec<Partition>, StoreError> {
        let partitions = self.0.lock().expect("index");
        Ok(partitions.keys().filter(|partition| partition.tenant() == tenant).cloned().collect())
    }

    async fn remove(&self, partition: &Partition) -> Result<(), StoreError> {
        self.0.lock().expect("index").remove(partition);
        Ok(())
    }
}
