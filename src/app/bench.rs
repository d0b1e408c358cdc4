//! `bulkhead bench`: a server of its own in this process, measured, and the figures written down.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::{Server, Settings};
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::ids::TenantId;
use crate::eval::bench::{Plan, Row, Subject, documents_below, run};
use crate::inference::Embedder;
use crate::pipeline::chunk::{ChunkSettings, Chunker};
use crate::tenancy::reauthorise;

/// Whose manner the measured documents imitate.
const SOURCE: &str = "demo";
/// Where the figures go.
const FIGURES: &str = "target/bench.json";

/// Measures, prints a table and writes the figures. Whether every target is reached.
///
/// # Errors
/// Says which part could not be had or measured.
pub async fn bench(mut settings: Settings) -> anyhow::Result<bool> {
    let folder = std::path::absolute(PathBuf::from("target").join(format!("bench-{}", std::process::id())))?;
    settings.data_dir = folder.join("data");
    settings.http.address = ([127, 0, 0, 1], 0).into();
    // One caller asks as fast as it is answered.
    settings.limits.tenant.requests_per_minute = 10_000_000;
    settings.limits.address_requests_per_minute = 10_000_000;
    let source = documents_below(Path::new(SOURCE))?;
    let embedding = settings.embedding.clone();
    let embedder = tokio::task::spawn_blocking(move || Embedder::load(&embedding)).await??;
    let server = Server::build(settings.clone()).await?;
    let measured = measure(&server, &settings, embedder.clone(), &source).await;
    server.stop().await?;
    std::fs::remove_dir_all(&folder).context("the measured server's folder cannot be removed")?;
    let rows = measured?;
    print(&rows);
    let figures = json!({
        "machine": machine(),
        "versions": {
            "bulkhead": env!("CARGO_PKG_VERSION"),
            "model": embedder.info().name,
            "model_id": embedder.info().id.as_str(),
        },
        "date": SystemClock.now().to_rfc3339(),
        "rows": rows,
    });
    std::fs::write(FIGURES, serde_json::to_string_pretty(&figures)? + "\n").context(FIGURES)?;
    eprintln!("written to {FIGURES}");
    Ok(rows.iter().all(|row| row.holds))
}

async fn measure(
    server: &Server,
    settings: &Settings,
    embedder: Embedder,
    source: &str,
) -> anyhow::Result<Vec<Row>> {
    let (tenant, key) = tenant(&settings.data_dir).await.context("no tenant could be made")?;
    let foundation = &server.foundation;
    let permit = reauthorise(&foundation.postgres, tenant, "bench").await?;
    let permit = permit.context("the tenant is not active")?;
    let chunker = Chunker::new(
        &embedder.tokenizer(),
        ChunkSettings {
            max_tokens: settings.embedding.max_tokens,
            overlap_tokens: settings.ingestion.overlap_tokens,
            title_tokens: settings.ingestion.title_tokens,
        },
    )?;
    let subject = Subject {
        url: format!("http://{}", server.address()),
        key,
        embedder,
        embedding: settings.embedding.clone(),
        chunker,
        reader: foundation.stores.reader(&permit),
        clock: Arc::clone(&foundation.clock),
    };
    Ok(run(&subject, &Plan::default(), source).await?)
}

/// Makes a tenant and the key of its writer, as an operator does.
async fn tenant(data_dir: &Path) -> anyhow::Result<(TenantId, SecretString)> {
    let operator = std::fs::read_to_string(data_dir.join("secrets/operator.key"))?;
    let http = reqwest::Client::builder().unix_socket(data_dir.join("admin.sock")).build()?;
    let call = async |path: String, body: Value| -> anyhow::Result<Value> {
        let request = http.post(format!("http://operators{path}")).bearer_auth(operator.trim()).json(&body);
        Ok(request.send().await?.error_for_status()?.json().await?)
    };
    let made = call("/admin/tenants".to_owned(), json!({"name": "Bench", "reason": "measuring"})).await?;
    let id = made["tenant_id"].as_str().context("no tenant_id")?.to_owned();
    let key = json!({"name": "bench", "roles": ["writer"], "reason": "measuring"});
    let made = call(format!("/admin/tenants/{id}/keys"), key).await?;
    let key = made["api_key"].as_str().context("no api_key")?;
    Ok((TenantId(id.parse()?), key.into()))
}

fn print(rows: &[Row]) {
    println!("{:<44} {:>9} {:>7} {:>9}  holds", "row", "value", "unit", "target");
    for row in rows {
        let holds = if row.holds { "yes" } else { "NO" };
        println!("{:<44} {:>9.3} {:>7} {:>9.2}  {holds}", row.row, row.value, row.unit, row.target);
    }
}

/// Processor and number of cores, as far as they can be told.
fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!("{}, {cores} cores", name.unwrap_or("unknown processor"))
}
