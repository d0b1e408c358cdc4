//! The audit log that the settings name.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;

use super::Settings;
use crate::domain::clock::Clock;
use crate::domain::ids::IdSource;
use crate::store::audit::spool::Spool;
use crate::store::audit::{Audit, AuditBackend};
use crate::store::layers::Calls;
use crate::store::mongodb::{MongoAudit, layers};
use crate::store::postgres::Postgres;
use crate::store::postgres::audit::PostgresAudit;
use crate::telemetry::Metrics;

/// What forwards to a log elsewhere.
pub(super) struct Forwarder {
    /// To be run.
    pub(super) log: MongoAudit,
    calls: Arc<Calls>,
}

/// The log, and what forwards to it, where something does.
pub(super) async fn open(
    settings: &Settings,
    data_dir: &Path,
    postgres: &Postgres,
    clock: Arc<dyn Clock>,
    ids: &dyn IdSource,
    key: &[u8; 32],
) -> anyhow::Result<(Audit, Option<Forwarder>)> {
    let first = PostgresAudit::new(postgres.clone(), &settings.node);
    let audit = settings.audit.clone();
    if audit.backend == AuditBackend::Postgres {
        return Ok((Audit::start(Arc::new(first), audit, clock, key), None));
    }
    let there = &settings.audit.mongodb;
    let spool = Spool::open(&data_dir.join("audit-spool"), there.spool_bytes, ids)
        .with_context(|| format!("{}/audit-spool cannot be used", data_dir.display()))?;
    let (spool, calls) = (Arc::new(spool), Arc::<Calls>::default());
    let around = layers(there, Arc::clone(&calls), Arc::clone(&clock));
    let log = MongoAudit::open(there, first, Arc::clone(&spool), audit.batch, around).await?;
    let audit = Audit::start(Arc::new(log.clone()), audit, clock, key).with_spool(spool);
    Ok((audit, Some(Forwarder { log, calls })))
}

impl Forwarder {
    /// Has its numbers on the page.
    pub(super) fn watched(&self, metrics: &Metrics) {
        let calls = Arc::clone(&self.calls);
        metrics.watch(move |page| calls.write(page));
    }

    /// Forwards what waits, at the end of a server or a command. What cannot be now stays where it is.
    pub(super) async fn settle(&self) {
        let settled = async {
            self.log.look().await?;
            self.log.forward().await
        };
        if let Err(error) = settled.await {
            tracing::warn!(%error, "audit events stay here until they can be forwarded");
        }
    }
}
