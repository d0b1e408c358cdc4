//! Back ends that are servers of their own, as far as the settings ask for them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::Foundation;
use super::settings::{DatabaseSettings, GraphBackend, Settings, VectorBackend};
use crate::domain::clock::Clock;
use crate::domain::ids::IdSource;
use crate::jobs::graph_keeper::GraphKeeper;
use crate::jobs::graphs::{GraphKicks, GraphProjector, GraphProjectorSettings};
use crate::jobs::placements::Mover;
use crate::jobs::projector::Projector;
use crate::retrieval::Engine;
use crate::retrieval::engine::OnBehind;
use crate::store::audit::AuditBackend;
use crate::store::ephemeral::Ephemeral;
use crate::store::layers::Calls;
use crate::store::memory::{MemoryCache, MemoryRateLimiter};
use crate::store::neo4j::Neo4jGraph;
use crate::store::postgres::collections::PostgresRegistry;
use crate::store::postgres::vector_index::RowIndex;
use crate::store::postgres::{Postgres, Reach};
use crate::store::qdrant::{NameKey, QdrantIndex, QdrantParts};
use crate::store::qdrant_edge::EdgeIndex;
use crate::store::redis::{RedisCache, RedisClient, RedisRateLimiter, RedisTenants};
use crate::store::vector::VectorIndex;
use crate::store::{Cache, CacheBackend, Caches, Corpus, Placements, RateLimiter, Stores};
use crate::telemetry::Metrics;
use crate::tenancy::{Directory, KeyPepper, LimitBackend, secret_file};

/// Servers that know the same API keys have the same pepper, and so count together and read each other's values.
const REDIS_KEYS: &str = "keys in Redis";

/// How long a count of requests is kept: limits are of a minute.
const COUNTED: Duration = Duration::from_mins(1);

/// What they are built from.
pub(super) struct Around<'a> {
    pub(super) settings: &'a Settings,
    pub(super) data_dir: &'a Path,
    pub(super) calls: &'a Arc<Calls>,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) ids: &'a Arc<dyn IdSource>,
}

/// The database, with a replica to read from where the settings name one.
pub(super) async fn replica(
    postgres: Postgres,
    reach: &Reach,
    settings: &Settings,
    calls: &Arc<Calls>,
) -> anyhow::Result<Postgres> {
    let Some(address) = &reach.replica else { return Ok(postgres) };
    let DatabaseSettings { replica, pools, .. } = &settings.database;
    let opened = postgres.with_replica(address, &replica.calls, pools, calls).await;
    opened.context("database.replica cannot be used")
}

/// The index of vectors that is used, and the same by its own type where tenants can be moved in it.
pub(super) struct Vectors {
    pub(super) index: Arc<dyn VectorIndex>,
    pub(super) qdrant: Option<QdrantIndex>,
}

/// The index of vectors that is used. Nothing is sent to it yet.
pub(super) fn vectors(
    around: &Around<'_>,
    shards: &Arc<EdgeIndex>,
    postgres: &Postgres,
) -> anyhow::Result<Vectors> {
    let settings = &around.settings.vectors;
    let alone = |index: Arc<dyn VectorIndex>| Ok(Vectors { index, qdrant: None });
    match settings.backend {
        VectorBackend::Edge => return alone(Arc::<EdgeIndex>::clone(shards)),
        VectorBackend::Pgvector => return alone(Arc::new(RowIndex::new(postgres.clone()))),
        VectorBackend::Qdrant => {}
    }
    let file = around.data_dir.join("secrets").join("collection-key");
    let key = secret_file::load_or_create(&file, || hex::encode(around.ids.secret()).into())?;
    let parts = QdrantParts {
        registry: Arc::new(PostgresRegistry::new(postgres.clone())),
        names: NameKey::new(&key),
        calls: Arc::clone(around.calls),
        clock: Arc::clone(around.clock),
        ids: Arc::clone(around.ids),
    };
    let index = QdrantIndex::new(settings.qdrant.clone(), &settings.edge(), parts);
    let index = index.context("Qdrant cannot be used")?;
    Ok(Vectors { index: Arc::new(index.clone()), qdrant: Some(index) })
}

/// The stores, with the index of graphs if one is used. Nothing is sent to it yet.
pub(super) fn with_graph(around: &Around<'_>, stores: Stores) -> Stores {
    let settings = &around.settings.graph;
    match settings.backend {
        GraphBackend::Memory => stores,
        GraphBackend::Neo4j => {
            let (calls, clock) = (Arc::clone(around.calls), Arc::clone(around.clock));
            stores.with_graph(Arc::new(Neo4jGraph::new(settings.neo4j.clone(), calls, clock)))
        }
    }
}

/// Has the indexes of a corpus brought up to date soon; and where the graphs' projector hears of it.
pub(super) fn kicks(settings: &Settings, projector: &Projector) -> (OnBehind, GraphKicks) {
    let (projector, kicks) = (projector.clone(), GraphKicks::new(settings.projection.queue));
    let graphs = kicks.clone();
    let kick = move |corpus: &Corpus| {
        projector.kick(corpus.partition());
        if corpus.has_graph_index() {
            graphs.kick(corpus.partition());
        }
    };
    (Arc::new(kick), kicks)
}

/// What compares the index of graphs with the record, if there is one.
pub(super) fn graph_keeper(around: &Around<'_>, stores: &Stores) -> Option<GraphKeeper> {
    stores.graph_name()?;
    Some(GraphKeeper::new(Arc::clone(around.ids), around.settings.graph.neo4j.write_chunks))
}

/// What keeps the index of graphs up, if there is one, and through which it is asked.
pub(super) fn graph_projector(
    settings: &Settings,
    foundation: &Foundation,
    engine: &Engine,
    kicks: GraphKicks,
) -> Option<GraphProjector> {
    let held = foundation.graphs.as_ref()?.held();
    let projection = &settings.projection;
    let bounds = GraphProjectorSettings {
        write_chunks: settings.graph.neo4j.write_chunks,
        sweep: Duration::from_millis(settings.graph.sweep_ms),
        upkeep: Duration::from_millis(settings.graph.upkeep_ms),
        page: settings.graph.page,
        concurrent: projection.concurrent,
        tenant_concurrent: projection.tenant_concurrent,
        queue: projection.queue,
        rest: (Duration::from_millis(projection.rest_ms), Duration::from_millis(projection.longest_rest_ms)),
    };
    let directory: Arc<dyn Directory> = Arc::new(foundation.postgres.clone());
    let around = (foundation.stores.clone(), directory, foundation.audit.clone());
    let passing = (Arc::clone(&foundation.clock), Arc::clone(&foundation.ids));
    Some(GraphProjector::new(around, engine.clone(), passing, bounds, (kicks, held)))
}

/// What moves tenants' vectors between placements, where there are two.
pub(super) fn placements(
    around: &Around<'_>,
    qdrant: Option<QdrantIndex>,
    stores: &Stores,
    directory: &Arc<dyn Directory>,
    projector: &Projector,
) -> Option<Arc<dyn Placements>> {
    let kept = (projector.clone(), around.settings.projection.clone());
    let mover = Mover::new(qdrant?, stores.clone(), Arc::clone(directory), kept, Arc::clone(around.clock));
    Some(Arc::new(mover))
}

/// As whom this server follows the history. Shards are its own; the index in a Qdrant server or in the database is
/// that of all servers, and what one of them has seen to the others need not. A node's name has no colon.
pub(super) fn consumer(settings: &Settings) -> &str {
    match settings.vectors.backend {
        VectorBackend::Edge => &settings.node,
        VectorBackend::Pgvector => ":pgvector",
        VectorBackend::Qdrant => ":qdrant",
    }
}

/// What `/health` tells a caller about the back ends that are active.
pub(super) fn configuration(settings: &Settings, private: bool, stores: &Stores) -> serde_json::Value {
    serde_json::json!({
        "database": if private { "PostgreSQL, private" } else { "PostgreSQL, as configured" },
        "vectors": stores.vectors_name(),
        "graph": stores.graph_name().unwrap_or("PostgreSQL, in memory"),
        "audit": if settings.audit.backend == AuditBackend::Mongodb { "MongoDB" } else { "PostgreSQL" },
        "cache": stores.caches().name(),
        "limits": settings.limits.backend.name(),
        "embedding": settings.embedding.model,
        "language_model": if settings.language_model.url.is_empty() { "none" } else { &settings.language_model.model },
    })
}

/// The connection to Redis that all of its uses share; `None` when nothing is set to be there.
pub(super) fn redis(around: &Around<'_>) -> anyhow::Result<Option<RedisClient>> {
    let Around { settings, calls, clock, .. } = around;
    let used =
        settings.limits.backend == LimitBackend::Redis || settings.cache.backend == CacheBackend::Redis;
    let client = used.then(|| RedisClient::new(&settings.redis, Arc::clone(calls), Arc::clone(clock)));
    Ok(client.transpose()?)
}

/// The stores, with what keeps things that were computed, and with all from which a deleted tenant's entries would
/// otherwise go by themselves.
pub(super) fn with_caches(
    around: &Around<'_>,
    pepper: &KeyPepper,
    redis: Option<&RedisClient>,
    stores: Stores,
) -> Stores {
    let (settings, clock) = (around.settings.cache, Arc::clone(around.clock));
    let mut ephemeral: Vec<Arc<dyn Ephemeral>> = Vec::new();
    if let Some(redis) = redis {
        // Counts of limits are among its keys, whether anything else is or not.
        let kept = if settings.backend == CacheBackend::Redis { settings.longest() } else { Duration::ZERO };
        ephemeral.push(Arc::new(RedisTenants::new(redis.clone(), kept.max(COUNTED))));
    }
    let cache: Option<Arc<dyn Cache>> = match (settings.backend, redis) {
        (CacheBackend::Memory, _) => {
            let memory = Arc::new(MemoryCache::new(&settings, Arc::clone(&clock)));
            ephemeral.push(Arc::<MemoryCache>::clone(&memory));
            Some(memory)
        }
        (CacheBackend::Redis, Some(redis)) => {
            Some(Arc::new(RedisCache::new(redis.clone(), &pepper.derived(REDIS_KEYS))))
        }
        (CacheBackend::Off | CacheBackend::Redis, _) => None,
    };
    let stores = stores.with_ephemeral(ephemeral);
    match cache {
        Some(cache) => stores.with_caches(Caches::new(cache, settings, clock, Arc::clone(around.ids))),
        None => stores,
    }
}

/// What counts requests, with its numbers on the page of metrics.
pub(super) fn rates(
    settings: &Settings,
    foundation: &Foundation,
    metrics: &Metrics,
) -> anyhow::Result<Arc<dyn RateLimiter>> {
    let clock = Arc::clone(&foundation.clock);
    let limits = &settings.limits;
    if limits.backend == LimitBackend::Memory {
        return Ok(Arc::new(MemoryRateLimiter::new(limits.remembered, clock)));
    }
    let redis = foundation.redis.clone().context("Redis is not connected to")?;
    let secret = foundation.pepper.derived(REDIS_KEYS);
    let rates = RedisRateLimiter::new(redis, &secret, limits.local_share, limits.remembered, clock);
    let rates = Arc::new(rates);
    let watched = Arc::clone(&rates);
    metrics.watch(move |page| watched.write(page));
    Ok(rates)
}
