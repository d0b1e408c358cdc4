//! `bulkhead bench`: servers of its own in this process, measured, and the figures written down.

use std::path::{Path, PathBuf};

use anyhow::Context;
use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use super::measured::{Measured, machine, unless_interrupted};
use super::{GraphBackend, Settings, VectorBackend};
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::ids::TenantId;
use crate::eval::bench::{
    BenchError, Deployment, Listening, Names, Part, Plan, Recovery, Subject, compared, documents_below,
    profile, run,
};
use crate::eval::figures::{Row, lines, table};
use crate::inference::Embedder;
use crate::pipeline::chunk::{ChunkSettings, Chunker};
use crate::store::{AuditBackend, CacheBackend, TenantReader};
use crate::tenancy::LimitBackend;

/// Whose manner the measured documents imitate.
const SOURCE: &str = "demo";
/// The model that costs nothing.
const FREE: &str = "hashing";
/// Seconds after which the server without a model closes shards, so that tenants that rest need not be waited for.
const IDLE_SECONDS: u64 = 3;

#[async_trait]
impl Deployment for Measured {
    async fn tenant(&self, name: &str) -> Result<(TenantId, SecretString), BenchError> {
        let tenant = Self::tenant(self, name).await.map_err(failed)?;
        Ok((tenant.id, tenant.key))
    }

    async fn reader(&self, tenant: TenantId) -> Result<TenantReader, BenchError> {
        Self::reader(self, tenant).await.map_err(failed)
    }

    async fn row_security(&self, on: bool) -> Result<bool, BenchError> {
        Self::row_security(self, on).await.map_err(failed)
    }

    async fn recover(&self, key: SecretString, question: &str) -> Result<Recovery, BenchError> {
        Self::recover(self, key, question).await.map_err(failed)
    }

    async fn audited(&self, tenant: TenantId, events: usize, chunks: usize) -> Result<Vec<f64>, BenchError> {
        Self::audited(self, tenant, events, chunks).await.map_err(failed)
    }

    fn names(&self) -> Names {
        Self::names(self)
    }

    fn calls(&self, backend: &str) -> u64 {
        Self::calls(self, backend)
    }

    fn stages(&self) -> Vec<(&'static str, f64)> {
        Self::stages(self)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err wants it")]
fn failed(error: anyhow::Error) -> BenchError {
    BenchError::Deployment(format!("{error:#}"))
}

/// Measures the plan's parts, prints a table and writes the figures to `output`. Whether every target is reached.
///
/// # Errors
/// Says which part could not be had or measured.
pub async fn bench(settings: Settings, plan: &Plan, output: &Path) -> anyhow::Result<bool> {
    let source = documents_below(Path::new(SOURCE)).context("the demo's documents, which are imitated")?;
    let model = settings.embedding.model.clone();
    let (with_model, free): (Vec<_>, Vec<_>) = plan.parts.iter().partition(|part| part.wants_model());
    let mut rows = Vec::new();
    if !with_model.is_empty() {
        let plan = Plan { parts: with_model, ..plan.clone() };
        rows.extend(
            Box::pin(on_its_own(settings.clone(), async |subject| Ok(run(subject, &plan, &source).await?)))
                .await?,
        );
    }
    if !free.is_empty() {
        let mut settings = settings;
        FREE.clone_into(&mut settings.embedding.model);
        settings.vectors.idle_seconds = IDLE_SECONDS;
        let plan = Plan { parts: free, ..plan.clone() };
        if plan.has_services() {
            rows.extend(Box::pin(services(settings.clone(), &plan, &source)).await?);
        }
        if plan.parts != [Part::Services] {
            rows.extend(
                Box::pin(on_its_own(settings, async |subject| Ok(run(subject, &plan, &source).await?)))
                    .await?,
            );
        }
    }
    print!("{}", table(&rows));
    let figures = json!({
        "machine": machine(),
        "versions": {"bulkhead": env!("CARGO_PKG_VERSION"), "model": model},
        "date": SystemClock.now().to_rfc3339(),
        "rows": rows,
    });
    if let Some(folder) = output.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(output, serde_json::to_string_pretty(&figures)? + "\n")
        .with_context(|| output.display().to_string())?;
    eprintln!("written to {}", output.display());
    Ok(rows.iter().all(|row| row.holds))
}

/// The services, on a server of each profile; no rows, and said so, when none is configured.
async fn services(settings: Settings, plan: &Plan, source: &str) -> anyhow::Result<Vec<Row>> {
    let listening = listening(&settings);
    if listening.is_empty() {
        eprintln!("no service is configured, so that none is measured: `make services` prints how to");
        return Ok(Vec::new());
    }
    let mut without = settings.clone();
    without.vectors.backend = VectorBackend::Edge;
    without.audit.backend = AuditBackend::Postgres;
    without.limits.backend = LimitBackend::Memory;
    without.graph.backend = GraphBackend::Memory;
    without.cache.backend = CacheBackend::Off;
    let one = on_its_own(without, async |subject| Ok(profile(subject, plan, source, &[]).await?));
    let embedded = Box::pin(one).await?;
    let other = on_its_own(settings, async |subject| Ok(profile(subject, plan, source, &listening).await?));
    let services = Box::pin(other).await?;
    let rows = compared(&embedded, &services);
    eprint!("{}", lines(&rows));
    Ok(rows)
}

/// The services that these settings use, with their ports.
fn listening(settings: &Settings) -> Vec<Listening> {
    let mut urls = Vec::new();
    if settings.vectors.backend == VectorBackend::Qdrant {
        urls.push(("qdrant", settings.vectors.qdrant.url.clone()));
    }
    if settings.audit.backend == AuditBackend::Mongodb {
        urls.push(("mongodb", settings.audit.mongodb.url.expose_secret().to_owned()));
    }
    if settings.graph.backend == GraphBackend::Neo4j {
        urls.push(("neo4j", settings.graph.neo4j.url.clone()));
    }
    if settings.limits.backend == LimitBackend::Redis {
        urls.push(("redis", settings.redis.url.clone()));
    }
    let port = |url: &str| reqwest::Url::parse(url).ok()?.port();
    urls.iter().map(|(name, url)| Listening { name, port: port(url).unwrap_or_default() }).collect()
}

/// Has work done on a server of its own.
async fn on_its_own<T>(
    settings: Settings,
    work: impl AsyncFnOnce(&Subject<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let embedding = settings.embedding.clone();
    let embedder = tokio::task::spawn_blocking(move || Embedder::load(&embedding)).await??;
    let folder = PathBuf::from("target").join(format!("bench-{}", std::process::id()));
    let measured = Box::pin(Measured::start(settings, &folder)).await?;
    let done = unless_interrupted(async {
        let settings = measured.settings();
        let chunker = Chunker::new(
            &embedder.tokenizer(),
            ChunkSettings {
                max_tokens: settings.embedding.max_tokens,
                overlap_tokens: settings.ingestion.overlap_tokens,
                title_tokens: settings.ingestion.title_tokens,
            },
        )?;
        let subject = Subject {
            url: measured.url(),
            data_dir: settings.data_dir.clone(),
            deployment: &measured,
            embedder,
            embedding: settings.embedding.clone(),
            chunker,
            clock: measured.clock(),
        };
        work(&subject).await
    })
    .await;
    Box::pin(measured.stop()).await?;
    done
}
