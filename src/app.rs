//! The composition root: builds a server from its settings, runs it until it is stopped.

mod audit;
pub mod backup;
pub mod bench;
mod clock;
mod database;
pub mod doctor;
pub mod eval;
mod measured;
mod meters;
mod pulse;
mod services;
mod settings;
mod work;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
#[cfg(feature = "laboratory")]
use sqlx::postgres::PgConnectOptions;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use audit::Forwarder;
use pulse::{Pulse, Usages};
use services::Around;
pub use settings::{
    DatabaseSettings, GraphBackend, GraphSettings, Settings, VectorBackend, VectorIndexSettings,
};
use work::Background;
pub use work::while_working;

use crate::admin::{Administration, IndexKeeper, Upkeep};
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::ids::{IdSource, ModelId, SystemIds};
use crate::inference::{LanguageModel, Models};
use crate::jobs::graph_keeper::GraphKeeper;
use crate::jobs::orphans::OrphanSweep;
use crate::jobs::partitions;
use crate::jobs::projector::Projector;
use crate::jobs::stages::Stages;
use crate::retrieval::Engine;
use crate::store::Stores;
use crate::store::audit::Audit;
use crate::store::backup::is_unfinished;
use crate::store::layers::Calls;
use crate::store::postgres::Postgres;
#[cfg(feature = "laboratory")]
use crate::store::postgres::RoleAddresses;
use crate::store::postgres::administer::NewOperatorKey;
use crate::store::postgres::server::{DataLock, PrivateServer};
#[cfg(feature = "laboratory")]
use crate::store::qdrant::QdrantIndex;
use crate::store::qdrant_edge::EdgeIndex;
use crate::store::redis::RedisClient;
use crate::store::uploads::Uploads;
use crate::telemetry::{Metrics, Readiness};
use crate::tenancy::{
    ApiKey, Authenticator, Directory, KeyKind, KeyPepper, LimitSettings, TokenSigner, secret_file,
};
use crate::{http, telemetry};

/// The stores and what guards them, without any model: what operators' commands need when no server runs.
pub struct Foundation {
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
    /// Where identifiers come from.
    pub ids: Arc<dyn IdSource>,
    /// The stores.
    pub stores: Stores,
    /// Credentials.
    pub authenticator: Arc<Authenticator>,
    /// Keys of API keys' digests.
    pub pepper: Arc<KeyPepper>,
    /// Signs the server's own tokens.
    pub signer: Arc<TokenSigner>,
    /// The audit log.
    pub audit: Audit,
    forwarder: Option<Forwarder>,
    limits: LimitSettings,
    projector: Projector,
    graphs: Option<GraphKeeper>,
    upkeep: Upkeep,
    postgres: Postgres,
    index: Arc<EdgeIndex>,
    calls: Arc<Calls>,
    redis: Option<RedisClient>,
    private: Option<PrivateServer>,
    node: Uuid,
    #[cfg(feature = "laboratory")]
    laboratory: Laboratory,
    _lock: DataLock,
}

/// What tests reach behind a server's walls. Releases do not have this.
#[cfg(feature = "laboratory")]
#[derive(Clone)]
pub struct Laboratory {
    /// The shards.
    pub index: Arc<EdgeIndex>,
    /// The index in a Qdrant server, where there is one.
    pub qdrant: Option<QdrantIndex>,
    /// The database, for each role.
    pub addresses: RoleAddresses,
    /// The private database, for its superuser.
    pub superuser: Option<PgConnectOptions>,
    /// The embedding model.
    pub model: ModelId,
}

impl Foundation {
    /// Opens the data folder, the database and the indexes of a model. Holds the data folder's lock until closed.
    ///
    /// # Errors
    /// Says which part could not be had and what to do.
    pub async fn open(settings: &Settings, model: &ModelId) -> anyhow::Result<Self> {
        let clock = clock::clock();
        let ids: Arc<dyn IdSource> = Arc::new(SystemIds(SystemClock));
        let lock = DataLock::acquire(&settings.data_dir)?;
        let data_dir = lock.data_dir().to_owned();
        anyhow::ensure!(
            !is_unfinished(&data_dir),
            "a restore into {} was broken off; run it again with --replace",
            data_dir.display()
        );
        let (private, reach) = database::reach(settings, &data_dir, &lock).await?;
        let calls = Arc::<Calls>::default();
        #[cfg(feature = "laboratory")]
        let addresses = reach.primary.clone();
        let postgres = database::open(settings, reach, model, &calls, (&clock, &ids)).await?;
        let shards = settings.vectors.edge();
        let index = Arc::new(EdgeIndex::new(data_dir.join("shards"), shards, Arc::clone(&clock))?);
        let uploads = Uploads::in_folder(&settings.uploads_in(&data_dir))?;
        let around = Around { settings, data_dir: &data_dir, calls: &calls, clock: &clock, ids: &ids };
        let services::Vectors { index: vectors, qdrant } = services::vectors(&around, &index, &postgres)?;
        let stores = services::with_graph(&around, Stores::new(postgres.clone(), vectors, uploads));
        let node = node(&data_dir, ids.as_ref())?;

        #[cfg(feature = "laboratory")]
        let superuser = private.as_ref().map(|server| server.superuser().database(&settings.database.name));
        let secrets = data_dir.join("secrets");
        let pepper_file = secrets.join("api-key-pepper");
        let pepper = KeyPepper::load_or_create(&pepper_file, ids.as_ref())?;
        let redis = services::redis(&around)?;
        let stores = services::with_caches(&around, &pepper, redis.as_ref(), stores);
        let signer = TokenSigner::load_or_create(
            &secrets.join("token-key.pem"),
            &settings.auth,
            Arc::clone(&clock),
            Arc::clone(&ids),
        )?;
        let directory: Arc<dyn Directory> = Arc::new(postgres.clone());
        let authenticator = Authenticator::new(
            directory,
            &settings.auth,
            Arc::clone(&clock),
            KeyPepper::load_or_create(&pepper_file, ids.as_ref())?,
            Some(&signer),
        )?;
        let audit_key =
            secret_file::load_or_create(&secrets.join("audit-key"), || hex::encode(ids.secret()).into())?;
        let audit_key = Sha256::digest(audit_key.expose_secret().as_bytes()).into();
        let (audit, forwarder) = Box::pin(audit::open(&around, &postgres, &audit_key)).await?;
        let operator_key = secrets.join("operator.key");
        first_operator(&stores, &audit, &operator_key, ids.as_ref(), &pepper).await?;
        let directory: Arc<dyn Directory> = Arc::new(postgres.clone());
        let projector = Projector::new(
            stores.clone(),
            Arc::clone(&directory),
            settings.projection.clone(),
            services::consumer(settings),
            Arc::clone(&clock),
        );
        let margin = Duration::from_secs(settings.orphans.margin_seconds);
        #[cfg(feature = "laboratory")]
        let in_qdrant = qdrant.clone();
        let placements = services::placements(&around, qdrant, &stores, &directory, &projector);
        let indexes = Arc::new(projector.clone());
        let graphs = services::graph_keeper(&around, &stores);
        let kept = graphs.clone().map(|graphs| Arc::new(graphs) as Arc<dyn IndexKeeper>);
        let upkeep =
            Upkeep { calls: Arc::clone(&calls), indexes, graphs: kept, directory, placements, margin };
        Ok(Self {
            clock,
            ids,
            stores,
            authenticator: Arc::new(authenticator),
            pepper: Arc::new(pepper),
            signer: Arc::new(signer),
            audit,
            forwarder,
            limits: settings.limits.clone(),
            projector,
            graphs,
            upkeep,
            postgres,
            index: Arc::clone(&index),
            calls,
            redis,
            private,
            node,
            #[cfg(feature = "laboratory")]
            laboratory: Laboratory { index, qdrant: in_qdrant, addresses, superuser, model: model.clone() },
            _lock: lock,
        })
    }

    /// What operators act through.
    #[must_use]
    pub fn administration(&self) -> Administration {
        Administration {
            stores: self.stores.clone(),
            audit: self.audit.clone(),
            signer: Arc::clone(&self.signer),
            pepper: Arc::clone(&self.pepper),
            clock: Arc::clone(&self.clock),
            ids: Arc::clone(&self.ids),
            limits: self.limits.clone(),
            upkeep: self.upkeep.clone(),
        }
    }

    /// Writes what is queued, flushes every shard, closes every connection, and stops the private database.
    ///
    /// # Errors
    /// When the private database does not stop.
    pub async fn close(self) -> anyhow::Result<()> {
        self.audit.flush().await;
        if let Some(forwarder) = &self.forwarder {
            Box::pin(forwarder.settle()).await;
        }
        self.index.close().await;
        self.postgres.close().await;
        if let Some(private) = self.private {
            private.stop().await?;
        }
        Ok(())
    }
}

/// The identity of a data folder among others over the same database; made with the folder. Whoever copies a
/// folder without it being a move removes `node-id` from the copy: two servers of one identity free each other's
/// leases, and do work twice.
fn node(data_dir: &Path, ids: &dyn IdSource) -> anyhow::Result<Uuid> {
    let file = data_dir.join("node-id");
    let text = secret_file::load_or_create(&file, || ids.uuid().to_string().into())?;
    let node: Result<Uuid, _> = text.expose_secret().trim().parse();
    node.with_context(|| format!("{} does not hold an identity", file.display()))
}

/// Makes the first operator credential and writes it where the command line finds it.
async fn first_operator(
    stores: &Stores,
    audit: &Audit,
    file: &Path,
    ids: &dyn IdSource,
    pepper: &KeyPepper,
) -> anyhow::Result<()> {
    let made = || ApiKey::generate(KeyKind::Operator, ids).expose();
    let secret = secret_file::load_or_create(file, made)?;
    let key = ApiKey::parse(secret.expose_secret().trim())
        .with_context(|| format!("{} does not hold an operator's key", file.display()))?;
    let entry = AuditEntry::new(AuditKind::Admin, "operator.create", Decision::Allowed)
        .because("the first operator of this data folder")
        .with_ids([key.id()]);
    let first = NewOperatorKey { key_id: key.id(), digest: key.digest(pepper), name: "first" };
    Ok(stores.operator_require(audit.server_act(entry), first).await?)
}

/// A server that runs.
pub struct Server {
    address: SocketAddr,
    readiness: Arc<Readiness>,
    drain: Duration,
    stop: CancellationToken,
    http: http::Serving,
    background: Vec<JoinHandle<()>>,
    stages: Arc<Stages>,
    foundation: Foundation,
}

async fn load_models(settings: &Settings) -> anyhow::Result<Models> {
    // The provider of reqwest's and our own TLS; a second call in one process changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let embedding = settings.embedding.clone();
    Ok(tokio::task::spawn_blocking(move || Models::load(&embedding)).await??)
}

impl Server {
    /// Loads the models, opens the stores, and listens.
    ///
    /// # Errors
    /// Says which part could not be had and what to do.
    pub async fn build(settings: Settings) -> anyhow::Result<Self> {
        telemetry::memory::give_back_when_idle();
        let models = load_models(&settings).await?;
        let language_model = LanguageModel::new(&settings.language_model)?;
        let mut foundation = Box::pin(Foundation::open(&settings, &models.active().info().id)).await?;
        let (alarms, webhook) = work::alarms(&settings, &mut foundation)?;
        let Foundation { clock, ids, stores, audit, .. } = &foundation;
        work::tell_of_strangers(&foundation, &settings.embedding.model).await?;
        let stop = CancellationToken::new();
        work::take_up(&foundation).await?;
        let Background { workers, projector, lexicon, wake } =
            Background::new(&settings, &foundation, &models)?;
        let telemetry = &settings.telemetry;
        let metrics = Metrics::new(telemetry.named_tenants, telemetry.remembered_tenants, Arc::clone(clock));
        let metrics = Arc::new(metrics);
        let pulse = Pulse {
            postgres: foundation.postgres.clone(),
            stores: stores.clone(),
            models: models.clone(),
            readiness: Arc::default(),
            usages: Usages::default(),
            tenants: telemetry.remembered_tenants,
        };
        let readiness = Arc::clone(&pulse.readiness);
        let parts = meters::Parts {
            postgres: foundation.postgres.clone(),
            index: Arc::clone(&foundation.index),
            calls: Arc::clone(&foundation.calls),
            audit: audit.clone(),
            projector: projector.clone(),
            stages: workers.stages(),
            models: models.clone(),
            readiness: Arc::clone(&readiness),
            usages: Arc::clone(&pulse.usages),
        };
        meters::watch(&metrics, parts);
        metrics.watch(move |page| alarms.write(page));
        let caches = stores.caches().clone();
        metrics.watch(move |page| caches.write(page));
        let forwarder = foundation.forwarder.as_ref();
        pulse.beat().await;
        let directory: Arc<dyn Directory> = Arc::new(foundation.postgres.clone());
        let orphans = OrphanSweep::new(stores.clone(), directory, settings.orphans, Arc::clone(clock));
        let (kick, graph_kicks) = services::kicks(&settings, &projector);
        let engine = Engine::new(
            models.clone(),
            lexicon,
            settings.retrieval.clone(),
            Arc::clone(clock),
            Arc::clone(&kick),
        );
        let graphs = services::graph_projector(&settings, &foundation, &engine, graph_kicks);
        let app = http::App {
            stores: stores.clone(),
            authenticator: Arc::clone(&foundation.authenticator),
            signer: Arc::clone(&foundation.signer),
            pepper: Arc::clone(&foundation.pepper),
            session_ttl: settings.auth.session_ttl.as_secs(),
            audit: audit.clone(),
            engine,
            embedder: models.active().clone(),
            language_model,
            clock: Arc::clone(clock),
            ids: Arc::clone(ids),
            meters: http::Meters::new(&settings.http),
            limits: settings.http.clone(),
            rates: services::rates(&settings, &foundation, &metrics)?,
            quotas: settings.limits.clone(),
            started: clock.instant(),
            configuration: services::configuration(&settings, foundation.private.is_some(), stores),
            wake,
            upkeep: foundation.upkeep.clone(),
            on_change: kick,
            node: settings.node.clone(),
            metrics,
            metrics_address: telemetry.metrics_address,
            readiness: Arc::clone(&readiness),
        };
        let http = http::serve(Arc::new(app), Some(&settings.data_dir.join("admin.sock")))?;
        let address = http.address();
        let partitions = partitions::keep(stores.clone(), work::partition_sweep(&settings), stop.clone());
        let stages = workers.stages();
        let mut background = vec![
            tokio::spawn(workers.run(stop.clone())),
            tokio::spawn(projector.run(stop.clone())),
            tokio::spawn(partitions),
            tokio::spawn(orphans.run(stop.clone())),
            tokio::spawn(pulse.run(stop.clone())),
            tokio::spawn(foundation.postgres.clone().follow_primary(stop.clone())),
            tokio::spawn(EdgeIndex::clone(&foundation.index).close_idle(stop.clone())),
        ];
        background.extend(graphs.map(|graphs| tokio::spawn(graphs.run(stop.clone()))));
        background.extend(forwarder.map(|forwarder| tokio::spawn(forwarder.log.clone().run(stop.clone()))));
        background.extend(webhook.map(|webhook| tokio::spawn(webhook.run(stop.clone()))));
        tracing::info!(%address, "Bulkhead answers");
        let drain = Duration::from_secs(settings.http.drain_seconds);
        Ok(Self { address, readiness, drain, stop, http, background, stages, foundation })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where metrics are served.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.http.metrics_address()
    }

    /// What is behind its walls.
    #[cfg(feature = "laboratory")]
    #[must_use]
    pub fn laboratory(&self) -> Laboratory {
        self.foundation.laboratory.clone()
    }

    /// Stops in order: not ready any more, moves are given up, no new connections, requests that run end, then the work
    /// in the background, then the stores.
    ///
    /// # Errors
    /// When the private database does not stop.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.readiness.stop();
        tokio::time::sleep(self.drain).await;
        // Requests wait for moves, which may take as long as a tenant is large.
        if let Some(placements) = &self.foundation.upkeep.placements {
            placements.end().await;
        }
        self.http.stop().await;
        self.stop.cancel();
        for task in self.background {
            task.await?;
        }
        self.foundation.close().await
    }
}

/// Runs a server until it is told to stop by SIGINT or SIGTERM.
///
/// # Errors
/// As [`Server::build`] and [`Server::stop`].
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    // The provider of reqwest's and our own TLS; a second call in one process changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let traces = telemetry::start(&settings.telemetry, &settings.node)?;
    // Connections, shards and the database's pools each take some; the usual soft limit is meant for less.
    let files =
        rlimit::increase_nofile_limit(u64::MAX).context("the limit on open files cannot be raised")?;
    tracing::debug!(files, "open files at once");
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let server = Server::build(settings).await?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("stopping");
    let stopped = server.stop().await;
    if let Some(traces) = traces {
        tokio::task::spawn_blocking(move || traces.finish()).await?;
    }
    stopped
}
