//! The audit log that the settings name.

use std::sync::Arc;

use anyhow::Context as _;

use super::services::Around;
use crate::store::audit::spool::Spool;
use crate::store::audit::{Audit, AuditBackend};
use crate::store::mongodb::{MongoAudit, layers};
use crate::store::postgres::Postgres;
use crate::store::postgres::audit::PostgresAudit;

/// What forwards to a log elsewhere.
pub(super) struct Forwarder {
    /// To be run.
    pub(super) log: MongoAudit,
}

/// The log, and what forwards to it, where something does.
pub(super) async fn open(
    around: &Around<'_>,
    postgres: &Postgres,
    key: &[u8; 32],
) -> anyhow::Result<(Audit, Option<Forwarder>)> {
    let Around { settings, data_dir, calls, clock, ids } = around;
    let first = PostgresAudit::new(postgres.clone(), &settings.node);
    let audit = settings.audit.clone();
    if audit.backend == AuditBackend::Postgres {
        return Ok((Audit::start(Arc::new(first), audit, Arc::clone(clock), key), None));
    }
    let there = &settings.audit.mongodb;
    let spool = Spool::open(&data_dir.join("audit-spool"), there.spool_bytes, ids.as_ref())
        .with_context(|| format!("{}/audit-spool cannot be used", data_dir.display()))?;
    let spool = Arc::new(spool);
    let calling = layers(there, Arc::clone(calls), Arc::clone(clock));
    let log = MongoAudit::open(there, first, Arc::clone(&spool), audit.batch, calling).await?;
    let audit = Audit::start(Arc::new(log.clone()), audit, Arc::clone(clock), key).with_spool(spool);
    Ok((audit, Some(Forwarder { log })))
}

impl Forwarder {
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
