//! `bulkhead bench`: servers of its own in this process, measured, and the figures written down.

use std::path::{Path, PathBuf};

use anyhow::Context;
use async_trait::async_trait;
use secrecy::SecretString;
use serde_json::json;

use super::Settings;
use super::measured::{Measured, machine, unless_interrupted};
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::ids::TenantId;
use crate::eval::bench::{BenchError, Deployment, Plan, Recovery, Subject, documents_below, run};
use crate::eval::figures::{Row, table};
use crate::inference::Embedder;
use crate::pipeline::chunk::{ChunkSettings, Chunker};
use crate::store::TenantReader;

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
        rows.extend(Box::pin(measure(settings.clone(), &plan, &source)).await?);
    }
    if !free.is_empty() {
        let mut settings = settings;
        FREE.clone_into(&mut settings.embedding.model);
        settings.vectors.idle_seconds = IDLE_SECONDS;
        let plan = Plan { parts: free, ..plan.clone() };
        rows.extend(Box::pin(measure(settings, &plan, &source)).await?);
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

/// Measures some parts on a server of their own.
async fn measure(settings: Settings, plan: &Plan, source: &str) -> anyhow::Result<Vec<Row>> {
    let embedding = settings.embedding.clone();
    let embedder = tokio::task::spawn_blocking(move || Embedder::load(&embedding)).await??;
    let folder = PathBuf::from("target").join(format!("bench-{}", std::process::id()));
    let measured = Box::pin(Measured::start(settings, &folder)).await?;
    let rows = unless_interrupted(async {
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
        Ok(run(&subject, plan, source).await?)
    })
    .await;
    Box::pin(measured.stop()).await?;
    rows
}
