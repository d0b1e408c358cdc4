//! A server without a database: identity, bodies and problems can be tested, everything else answers 503.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actix_web::web::Data;
use async_trait::async_trait;
use parking_lot::Mutex;
use secrecy::ExposeSecret;
use sqlx::postgres::PgConnectOptions;
use uuid::Uuid;

use crate::admin::{IndexKeeper, Upkeep};
use crate::domain::Seq;
use crate::domain::audit::{AuditCursor, AuditDay, AuditEvent, AuditRecord};
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::ids::{ChunkId, IdSource, ModelId, SystemIds, TenantId};
use crate::domain::lexical::{LexicalSettings, Lexicon};
use crate::domain::limits::LimitOverrides;
use crate::http::{App, HttpSettings, Meters};
use crate::inference::{Embedder, EmbeddingSettings};
use crate::retrieval::Engine;
use crate::store::audit::chain::{Chain, Link};
use crate::store::audit::export::Times;
use crate::store::memory::MemoryRateLimiter;
use crate::store::postgres::examine::IndexExamined;
use crate::store::postgres::{PoolSettings, Postgres, RoleAddresses};
use crate::store::uploads::Uploads;
use crate::store::vector::{Entries, Found, Point, Position, Rebuild, VectorIndex, VectorQuery};
use crate::store::{Audit, AuditLog, AuditSettings, Corpus, ErrorKind, Partition, StoreError, Stores};
use crate::telemetry::{Metrics, Readiness};
use crate::tenancy::{
    ApiKey, AuthSettings, Authenticator, Directory, DirectoryError, KeyKind, KeyPepper, KeyRecord,
    LimitSettings, OperatorRecord, Role, TenantRecord, TenantState, TokenSigner,
};

pub(super) const ALICE: TenantId = TenantId(Uuid::from_u128(0xa));

/// One tenant with a key for each role, and an operator.
struct OneTenant {
    keys: Vec<(String, [u8; 32], Role)>,
    operator: (String, [u8; 32]),
    away: Arc<AtomicBool>,
}

impl OneTenant {
    fn check(&self) -> Result<(), DirectoryError> {
        if self.away.load(Ordering::Relaxed) { Err(DirectoryError("away".into())) } else { Ok(()) }
    }

    fn record() -> TenantRecord {
        let limits = LimitOverrides::default();
        TenantRecord { tenant: ALICE, slug: "alice".into(), state: TenantState::Active, limits }
    }
}

#[async_trait]
impl Directory for OneTenant {
    async fn key(&self, key_id: &str) -> Result<Option<KeyRecord>, DirectoryError> {
        self.check()?;
        let found = self.keys.iter().find(|(id, ..)| id == key_id);
        Ok(found.map(|(_, digest, role)| KeyRecord {
            tenant: Self::record(),
            digest: *digest,
            roles: vec![*role],
            namespaces: None,
            expires_at: None,
            revoked: false,
        }))
    }

    async fn operator(&self, key_id: &str) -> Result<Option<OperatorRecord>, DirectoryError> {
        self.check()?;
        let (id, digest) = &self.operator;
        Ok((id == key_id).then_some(OperatorRecord { digest: *digest, expires_at: None, revoked: false }))
    }

    async fn tenant(&self, tenant: TenantId) -> Result<Option<TenantRecord>, DirectoryError> {
        self.check()?;
        Ok((tenant == ALICE).then(Self::record))
    }

    async fn tenant_by_slug(&self, slug: &str) -> Result<Option<TenantRecord>, DirectoryError> {
        self.check()?;
        Ok((slug == "alice").then(Self::record))
    }
}

/// An audit log in memory.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) events: Mutex<Vec<(Option<TenantId>, AuditEvent)>>,
}

#[async_trait]
impl AuditLog for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn node(&self) -> &'static str {
        "node-1"
    }

    async fn append(&self, tenant: Option<TenantId>, events: &[AuditEvent]) -> Result<(), StoreError> {
        self.events.lock().extend(events.iter().map(|event| (tenant, event.clone())));
        Ok(())
    }

    async fn page(
        &self,
        _tenant: Option<TenantId>,
        _after: Option<&AuditCursor>,
        _limit: i64,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        Ok(Vec::new())
    }

    async fn chains(&self, _tenant: Option<TenantId>) -> Result<Vec<Chain>, StoreError> {
        Ok(Vec::new())
    }

    async fn links(
        &self,
        _tenant: Option<TenantId>,
        _node: &str,
        _range: (i64, i64),
        _limit: i64,
    ) -> Result<Vec<Link>, StoreError> {
        Ok(Vec::new())
    }

    async fn span(
        &self,
        _tenant: Option<TenantId>,
        _node: &str,
        _times: Times,
    ) -> Result<Option<(i64, i64)>, StoreError> {
        Ok(None)
    }

    async fn days(&self, _tenant: Option<TenantId>, _times: Times) -> Result<Vec<AuditDay>, StoreError> {
        Ok(Vec::new())
    }
}

/// An index that is never there.
struct NoIndex;

fn absent() -> StoreError {
    StoreError::new(ErrorKind::Unavailable, "none", "index", "absent")
}

#[async_trait]
impl VectorIndex for NoIndex {
    fn name(&self) -> &'static str {
        "none"
    }
    async fn search(&self, _at: &Partition, _query: &VectorQuery) -> Result<Option<Found>, StoreError> {
        Ok(None)
    }
    async fn position(&self, _at: &Partition) -> Result<Option<Position>, StoreError> {
        Ok(None)
    }
    async fn entries(
        &self,
        _at: &Partition,
        _from: Option<ChunkId>,
        _limit: usize,
    ) -> Result<Option<Entries>, StoreError> {
        Ok(None)
    }
    async fn apply(
        &self,
        _at: &Partition,
        _up: Vec<Point>,
        _gone: Vec<ChunkId>,
        _to: Seq,
    ) -> Result<(), StoreError> {
        Err(absent())
    }
    async fn flush(&self, _at: &Partition) -> Result<Seq, StoreError> {
        Err(absent())
    }
    async fn rebuild(&self, _at: &Partition) -> Result<Box<dyn Rebuild>, StoreError> {
        Err(absent())
    }
    async fn wants_rebuild(&self, _at: &Partition) -> bool {
        false
    }
    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        Ok(Vec::new())
    }
    async fn partitions(&self, _tenant: TenantId) -> Result<Vec<Partition>, StoreError> {
        Ok(Vec::new())
    }
    async fn remove(&self, _at: &Partition) -> Result<(), StoreError> {
        Ok(())
    }
}

#[async_trait]
impl IndexKeeper for NoIndex {
    async fn examine(&self, _corpus: &Corpus, _repair: bool) -> Result<IndexExamined, StoreError> {
        Err(absent())
    }
    async fn rebuild(&self, _corpus: &Corpus) -> Result<Seq, StoreError> {
        Err(absent())
    }
}

/// The server and what a test may look at.
pub(super) struct World {
    pub(super) data: Data<App>,
    pub(super) audit: Arc<Memory>,
    pub(super) directory_away: Arc<AtomicBool>,
    pub(super) reader: String,
    pub(super) writer: String,
    pub(super) admin: String,
    pub(super) operator: String,
    _folder: tempfile::TempDir,
}

/// A database where nobody listens.
fn nowhere() -> RoleAddresses {
    let nowhere = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(1);
    RoleAddresses {
        owner: nowhere.clone(),
        app: nowhere.clone(),
        auth: nowhere.clone(),
        dispatch: nowhere.clone(),
        control: nowhere,
    }
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(HttpSettings::default())
    }

    pub(super) fn with(limits: HttpSettings) -> Self {
        Self::limited(limits, LimitSettings::default())
    }

    pub(super) fn limited(limits: HttpSettings, quotas: LimitSettings) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let ids: Arc<dyn IdSource> = Arc::new(SystemIds(SystemClock));
        let pepper = || KeyPepper::new([7; 32]);
        let tenant = |role| {
            let key = ApiKey::generate(KeyKind::Tenant, ids.as_ref());
            (key.expose().expose_secret().to_owned(), (key.id().to_owned(), key.digest(&pepper()), role))
        };
        let (reader, reader_record) = tenant(Role::Reader);
        let (writer, writer_record) = tenant(Role::Writer);
        let (admin, admin_record) = tenant(Role::TenantAdmin);
        let operator = ApiKey::generate(KeyKind::Operator, ids.as_ref());
        let away = Arc::new(AtomicBool::new(false));
        let directory: Arc<dyn Directory> = Arc::new(OneTenant {
            keys: vec![reader_record, writer_record, admin_record],
            operator: (operator.id().to_owned(), operator.digest(&pepper())),
            away: Arc::clone(&away),
        });
        let auth = AuthSettings::default();
        let signer = TokenSigner::load_or_create(
            &folder.path().join("key"),
            &auth,
            Arc::clone(&clock),
            Arc::clone(&ids),
        )
        .expect("a signer");
        let authenticator =
            Authenticator::new(Arc::clone(&directory), &auth, Arc::clone(&clock), pepper(), Some(&signer))
                .expect("an authenticator");
        let addresses = nowhere();
        let pools = PoolSettings {
            query_connections: 1,
            ingest_connections: 1,
            tenant_query_connections: 1,
            tenant_ingest_connections: 1,
            acquire_timeout_ms: 50,
        };
        let model = ModelId::parse("0123456789abcdef").expect("a model");
        let postgres = Postgres::new(&addresses, &pools, model, Arc::clone(&clock), Arc::clone(&ids));
        let uploads = Uploads::in_folder(&folder.path().join("uploads")).expect("a folder");
        let memory = Arc::new(Memory::default());
        let log: Arc<dyn AuditLog> = Arc::<Memory>::clone(&memory);
        let embedder = Embedder::load(&hashing()).expect("the model's tokenizer; `make setup` brings it");
        let ready = Readiness::default();
        ready.note(true);
        let app = App {
            engine: Engine::new(
                embedder.clone(),
                Arc::new(Lexicon::new(LexicalSettings::default())),
                crate::http::query::usual::settings(),
                Arc::clone(&clock),
                Arc::new(|_| ()),
            ),
            stores: Stores::new(postgres, Arc::new(NoIndex), uploads),
            authenticator: Arc::new(authenticator),
            signer: Arc::new(signer),
            pepper: Arc::new(pepper()),
            session_ttl: 3600,
            embedder,
            language_model: None,
            audit: Audit::start(log, AuditSettings::default(), Arc::clone(&clock), &[1; 32]),
            meters: Meters::new(&limits),
            rates: Arc::new(MemoryRateLimiter::new(1000, Arc::clone(&clock))),
            quotas,
            clock,
            ids,
            limits,
            node: "test".to_owned(),
            started: Instant::now(),
            configuration: serde_json::json!({}),
            wake: Arc::default(),
            upkeep: Upkeep {
                calls: Arc::default(),
                indexes: Arc::new(NoIndex),
                graphs: None,
                directory,
                placements: None,
                margin: Duration::ZERO,
            },
            on_change: Arc::new(|_| ()),
            metrics: Arc::new(Metrics::new(2, 10, Arc::new(SystemClock))),
            metrics_address: None,
            readiness: Arc::new(ready),
        };
        Self {
            data: Data::new(app),
            audit: memory,
            directory_away: away,
            reader,
            writer,
            admin,
            operator: operator.expose().expose_secret().to_owned(),
            _folder: folder,
        }
    }

    /// Until what is known of keys is asked for again.
    pub(super) async fn outlive_the_lookup() {
        tokio::time::sleep(Duration::from_millis(900)).await;
    }
}

/// A model that costs nothing.
fn hashing() -> EmbeddingSettings {
    let files = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".local");
    EmbeddingSettings {
        model: "hashing".to_owned(),
        further: Vec::new(),
        model_dir: files.join("models"),
        cache_dir: files.join("cache"),
        onnxruntime: files.join("none"),
        max_tokens: 256,
        batch: 8,
        threads: 1,
        spinning: false,
        queue: 8,
        vector_cache: None,
    }
}
