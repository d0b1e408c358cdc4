//! Back ends that are servers of their own, as far as the settings ask for them.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::Foundation;
use super::settings::{Settings, VectorBackend};
use crate::domain::clock::Clock;
use crate::domain::ids::IdSource;
use crate::store::audit::AuditBackend;
use crate::store::layers::Calls;
use crate::store::memory::MemoryRateLimiter;
use crate::store::postgres::Postgres;
use crate::store::postgres::collections::PostgresRegistry;
use crate::store::qdrant::{NameKey, QdrantIndex, QdrantParts};
use crate::store::qdrant_edge::EdgeIndex;
use crate::store::redis::{RedisClient, RedisRateLimiter};
use crate::store::vector::VectorIndex;
use crate::store::{RateLimiter, Stores};
use crate::telemetry::Metrics;
use crate::tenancy::{LimitBackend, secret_file};

/// What they are built from.
pub(super) struct Around<'a> {
    pub(super) settings: &'a Settings,
    pub(super) data_dir: &'a Path,
    pub(super) calls: &'a Arc<Calls>,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) ids: &'a Arc<dyn IdSource>,
}

/// The index of vectors that is used. Nothing is sent to it yet.
pub(super) fn vectors(
    around: &Around<'_>,
    shards: &Arc<EdgeIndex>,
    postgres: &Postgres,
) -> anyhow::Result<Arc<dyn VectorIndex>> {
    let settings = &around.settings.vectors;
    if settings.backend == VectorBackend::Edge {
        return Ok(Arc::<EdgeIndex>::clone(shards));
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
    Ok(Arc::new(index.context("Qdrant cannot be used")?))
}

/// As whom this server follows the history. Shards are its own; a Qdrant server's index is that of all servers, and
/// what one of them has projected the others need not. A node's name has no colon.
pub(super) fn consumer(settings: &Settings) -> &str {
    match settings.vectors.backend {
        VectorBackend::Edge => &settings.node,
        VectorBackend::Qdrant => ":qdrant",
    }
}

/// What `/health` tells a caller about the back ends that are active.
pub(super) fn configuration(settings: &Settings, private: bool, stores: &Stores) -> serde_json::Value {
    serde_json::json!({
        "database": if private { "PostgreSQL, private" } else { "PostgreSQL, as configured" },
        "vectors": stores.vectors_name(),
        "graph": "PostgreSQL, in memory",
        "audit": if settings.audit.backend == AuditBackend::Mongodb { "MongoDB" } else { "PostgreSQL" },
        "cache": "in process",
        "limits": settings.limits.backend.name(),
        "embedding": settings.embedding.model,
        "language_model": if settings.language_model.url.is_empty() { "none" } else { &settings.language_model.model },
    })
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
    let redis = RedisClient::new(&settings.redis, Arc::clone(&foundation.calls), Arc::clone(&clock))?;
    // Servers that know the same API keys have the same pepper, and so count together.
    let secret = foundation.pepper.derived("keys in Redis");
    let rates = RedisRateLimiter::new(redis, &secret, limits.local_share, limits.remembered, clock);
    let rates = Arc::new(rates);
    let watched = Arc::clone(&rates);
    metrics.watch(move |page| watched.write(page));
    Ok(rates)
}
