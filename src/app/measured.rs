//! A server of its own in this process, in a data folder that goes with it: what measurements are made on.
//!
//! **Invariant:** what is measured is a server as it is built to serve; only limits on one caller are lifted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use secrecy::SecretString;
use serde_json::{Value, json};

use super::backup::{BackupOrder, RestoreOrder, backup, restore};
use super::{Server, Settings};
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::domain::clock::Clock;
use crate::domain::ids::TenantId;
use crate::eval::bench::{Names, Recovery};
use crate::eval::client::Client;
use crate::eval::figures::milliseconds;
use crate::store::TenantReader;
use crate::store::backup::{Keep, Key, Seal, Tally};
use crate::tenancy::reauthorise;

/// Requests of one tenant in a second, and at once, while it is measured.
const UNLIMITED: u32 = 1_000_000;

/// The server, with what measures it.
pub(super) struct Measured {
    server: Server,
    settings: Settings,
    folders: Vec<PathBuf>,
    operators: Operators,
}

/// A tenant of a measured server.
pub(super) struct Tenant {
    /// Its identity.
    pub(super) id: TenantId,
    /// The key of its writer.
    pub(super) key: SecretString,
}

/// The operators' socket.
struct Operators {
    http: reqwest::Client,
    key: String,
}

impl Measured {
    /// Builds a server whose data is in `folder`, which must not be there yet.
    pub(super) async fn start(mut settings: Settings, folder: &Path) -> anyhow::Result<Self> {
        let folder = std::path::absolute(folder)?;
        anyhow::ensure!(!folder.exists(), "{} is there already", folder.display());
        settings.data_dir = folder.join("data");
        // Where a root parent puts what the database's user could not reach; goes with the folder.
        let relocation = std::env::temp_dir().join(format!("bulkhead-measured-{}", std::process::id()));
        settings.database.server.relocation.clone_from(&relocation);
        settings.http.address = ([127, 0, 0, 1], 0).into();
        // One server at a time has the configured one.
        settings.telemetry.metrics_address = None;
        settings.limits.tenant.requests_per_minute = UNLIMITED;
        settings.limits.address_requests_per_minute = UNLIMITED;
        let server = Server::build(settings.clone()).await?;
        let key = std::fs::read_to_string(settings.data_dir.join("secrets/operator.key"))?;
        let http = reqwest::Client::builder().unix_socket(settings.data_dir.join("admin.sock")).build()?;
        Ok(Self {
            server,
            settings,
            folders: vec![folder, relocation],
            operators: Operators { http, key: key.trim().to_owned() },
        })
    }

    /// Where it answers.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Its settings.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where it has the time from.
    pub(super) fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.server.foundation.clock)
    }

    /// Makes a tenant and the key of its writer, as an operator does.
    pub(super) async fn tenant(&self, name: &str) -> anyhow::Result<Tenant> {
        let made =
            self.operators.call("/admin/tenants", &json!({"name": name, "reason": "measuring"})).await?;
        let id = made["tenant_id"].as_str().context("no tenant_id")?.to_owned();
        let key = json!({"name": "measuring", "roles": ["writer"], "reason": "measuring"});
        let made = self.operators.call(&format!("/admin/tenants/{id}/keys"), &key).await?;
        let key = made["api_key"].as_str().context("no api_key")?;
        Ok(Tenant { id: TenantId(id.parse()?), key: key.into() })
    }

    /// A tenant's data, past the API.
    pub(super) async fn reader(&self, tenant: TenantId) -> anyhow::Result<TenantReader> {
        let foundation = &self.server.foundation;
        let permit = reauthorise(&foundation.postgres, tenant, "measuring").await?;
        Ok(foundation.stores.reader(&permit.context("the tenant is not active")?))
    }

    /// Switches row-level security on or off in a private database, where the build can.
    #[cfg(feature = "laboratory")]
    pub(super) async fn row_security(&self, on: bool) -> anyhow::Result<bool> {
        use crate::store::postgres::laboratory::row_security;
        let Some(superuser) = self.server.laboratory().superuser else { return Ok(false) };
        row_security(&superuser, on).await?;
        Ok(true)
    }

    /// A release cannot switch it.
    #[cfg(not(feature = "laboratory"))]
    #[expect(clippy::unused_async, reason = "the laboratory's switches")]
    pub(super) async fn row_security(&self, _on: bool) -> anyhow::Result<bool> {
        Ok(false)
    }

    /// Takes a backup of this server, makes a data folder of it beside it, and starts a server over that, until it
    /// has answered the holder of a key.
    pub(super) async fn recover(&self, key: SecretString, question: &str) -> anyhow::Result<Recovery> {
        let (settings, folder, clock) = (self.settings.clone(), self.folders[0].clone(), self.clock());
        let question = json!({"query": question});
        // A server is built where it is, and not handed from thread to thread.
        let threads = tokio::runtime::Handle::current();
        let work = move || threads.block_on(recover(settings, &folder, clock.as_ref(), key, &question));
        tokio::task::spawn_blocking(work).await?
    }

    /// Writes events of questions, each after the other; the milliseconds that a caller waits for each.
    pub(super) async fn audited(
        &self,
        tenant: TenantId,
        events: usize,
        chunks: usize,
    ) -> anyhow::Result<Vec<f64>> {
        let foundation = &self.server.foundation;
        let permit = reauthorise(&foundation.postgres, tenant, "measuring").await?;
        let permit = permit.context("the tenant is not active")?;
        let (scope, audit, clock) = (permit.scope(), &foundation.audit, &foundation.clock);
        let mut times = Vec::with_capacity(events);
        for at in 0..events {
            let begun = clock.instant();
            let entry = AuditEntry::new(AuditKind::Query, "query.data", Decision::Allowed)
                .of_query(audit.query_hash(scope, &format!("Who keeps archive {at}?")))
                .with_ids((0..chunks).map(|_| foundation.ids.uuid().to_string()));
            audit.record(scope, entry).await;
            times.push(milliseconds(clock.instant().duration_since(begun)));
        }
        audit.flush().await;
        Ok(times)
    }

    /// What it keeps its data in.
    pub(super) fn names(&self) -> Names {
        let foundation = &self.server.foundation;
        Names { vectors: foundation.stores.vectors_name(), audit: foundation.audit.name() }
    }

    /// Calls of a service so far.
    pub(super) fn calls(&self, backend: &str) -> u64 {
        self.server.foundation.calls.made(backend)
    }

    /// Seconds that ingestion has spent in each stage, over all workers.
    pub(super) fn stages(&self) -> Vec<(&'static str, f64)> {
        let times = self.server.stages.read();
        let seconds = |microseconds: u64| Duration::from_micros(microseconds).as_secs_f64();
        vec![
            ("reading, cutting, entities, terms", seconds(times.analysis_us)),
            ("embedding", seconds(times.embedding_us)),
            ("writing", seconds(times.commit_us)),
        ]
    }

    /// Stops the server and removes its folder.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.server.stop().await?;
        for folder in self.folders.iter().filter(|folder| folder.exists()) {
            std::fs::remove_dir_all(folder)
                .with_context(|| format!("{} cannot be removed", folder.display()))?;
        }
        Ok(())
    }
}

impl Operators {
    async fn call(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.http.post(format!("http://operators{path}")).bearer_auth(&self.key).json(body);
        Ok(request.send().await?.error_for_status()?.json().await?)
    }
}

/// Runs to its end, unless somebody interrupts.
pub(super) async fn unless_interrupted<T>(
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        done = work => done,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    }
}

/// Processor and number of cores, as far as they can be told.
pub(super) fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!("{}, {cores} cores", name.unwrap_or("unknown processor"))
}

/// The most memory that this process has held, MiB; absent where it cannot be told.
pub(super) fn peak_memory_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1024)
}

async fn recover(
    mut settings: Settings,
    folder: &Path,
    clock: &dyn Clock,
    key: SecretString,
    question: &Value,
) -> anyhow::Result<Recovery> {
    let passphrase: SecretString = "measured".into();
    let place = folder.join("archives").to_str().context("a path of text")?.to_owned();
    let begun = clock.instant();
    let seal = Seal::Passphrase(passphrase.clone());
    let order = BackupOrder { to: place.clone(), seal, keep: Keep::default() };
    let done = backup(&settings, order, Tally::default()).await?;
    let taken = clock.instant();
    settings.data_dir = folder.join("restored");
    let key_of_archive = Some(Key::Passphrase(passphrase));
    let order =
        RestoreOrder { from: place, archive: None, key: key_of_archive, replace: false, check: false };
    restore(&settings, order, Tally::default()).await?;
    let restored = clock.instant();
    let server = Server::build(settings).await?;
    let client = Client::new(&format!("http://{}", server.address()), key, "default");
    let answer = client.post("/query/data", question).await?;
    let answered = clock.instant();
    server.stop().await?;
    let chunks = answer["data"]["chunks"].as_array().map_or(0, Vec::len);
    anyhow::ensure!(chunks > 0, "what was restored does not answer");
    Ok(Recovery {
        backup: taken - begun,
        restore: restored - taken,
        start: answered - restored,
        bytes: done.taken.archive.bytes,
    })
}
