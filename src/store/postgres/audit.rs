//! The audit log on PostgreSQL: rows that no role of the server may change or delete, chained by their hashes.
//!
//! The chain is that of [`crate::store::audit::chain`]. The row lock of a chain's head orders the writers: the task that
//! writes for everybody, and the transactions of `recorded.rs`, which change what their events tell of.
//!
//! **Invariant:** events and head change in one transaction.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::Postgres;
use super::error::failed;
use super::pools::Lane;
use super::session::RolePool;
use super::transaction::TenantTransaction;
use crate::domain::audit::{AuditCursor, AuditDay, AuditEvent, AuditRecord};
use crate::domain::ids::TenantId;
use crate::store::audit::AuditLog;
use crate::store::audit::chain::{Chain, Columns, GENESIS, Link, Tip};
use crate::store::audit::export::Times;
use crate::store::error::{ErrorKind, StoreError};

/// The audit log of one server in the database.
#[derive(Clone)]
pub struct PostgresAudit {
    postgres: Postgres,
    node: Arc<str>,
}

impl PostgresAudit {
    /// The log in this database; `node` names this server's chains and stays the same over restarts.
    #[must_use]
    pub fn new(postgres: Postgres, node: &str) -> Self {
        Self { postgres, node: node.into() }
    }

    /// What sees heads of every tenant.
    pub(super) fn dispatch(&self) -> &RolePool {
        &self.postgres.pools.dispatch
    }

    pub(super) async fn begin(&self, tenant: Option<TenantId>) -> Result<TenantTransaction, StoreError> {
        match tenant {
            Some(tenant) => self.postgres.begin(Lane::Audit, tenant).await,
            None => self.postgres.begin(Lane::Deployment, TenantId(Uuid::nil())).await,
        }
    }
}

/// The deployment's own events have the nil uuid.
pub(super) fn chain_of(tenant: Option<TenantId>) -> Uuid {
    tenant.map_or(Uuid::nil(), |tenant| tenant.0)
}

/// The columns of new events.
#[derive(Default)]
struct NewRows {
    numbers: Vec<i64>,
    ats: Vec<DateTime<Utc>>,
    kinds: Vec<&'static str>,
    bodies: Vec<String>,
    previous: Vec<Vec<u8>>,
    hashes: Vec<Vec<u8>>,
}

#[async_trait]
impl AuditLog for PostgresAudit {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn node(&self) -> &str {
        &self.node
    }

    async fn append(&self, tenant: Option<TenantId>, events: &[AuditEvent]) -> Result<(), StoreError> {
        if events.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin(tenant).await?;
        append_in(&mut tx, &self.node, tenant, events).await?;
        tx.commit().await
    }

    async fn page(
        &self,
        tenant: Option<TenantId>,
        after: Option<&AuditCursor>,
        limit: i64,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        const OPERATION: &str = "audit.page";
        let mut tx = self.begin(tenant).await?;
        let bodies: Vec<String> = sqlx::query_scalar(
            "select body from audit_event
             where tenant_id = $1 and (at, node, number) < (coalesce($2, 'infinity'::timestamptz), $3, $4)
             order by at desc, node desc, number desc limit $5",
        )
        .bind(chain_of(tenant))
        .bind(after.map(|cursor| cursor.at))
        .bind(after.map_or("", |cursor| &cursor.node))
        .bind(after.map_or(0, |cursor| cursor.number))
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        bodies.iter().map(|body| parsed(body, OPERATION)).collect()
    }

    async fn chains(&self, tenant: Option<TenantId>) -> Result<Vec<Chain>, StoreError> {
        const OPERATION: &str = "audit.chains";
        let mut tx = self.begin(tenant).await?;
        // One snapshot of heads and ends: what is written meanwhile is not examined.
        let rows = sqlx::query(
            "select coalesce(h.node, e.node) as node, h.number, h.hash, coalesce(e.last, 0) as last
             from (select node, number, hash from audit_head where tenant_id = $1) h
             full join (select node, max(number) as last from audit_event where tenant_id = $1 group by node) e
                 on e.node = h.node
             order by coalesce(h.node, e.node) collate \"C\"",
        )
        .bind(chain_of(tenant))
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        rows.iter().map(chain).collect::<Result<_, _>>().map_err(failed(OPERATION))
    }

    async fn links(
        &self,
        tenant: Option<TenantId>,
        node: &str,
        (after, until): (i64, i64),
        limit: i64,
    ) -> Result<Vec<Link>, StoreError> {
        const OPERATION: &str = "audit.links";
        let mut tx = self.begin(tenant).await?;
        let rows = sqlx::query(
            "select number, at, kind, body, previous, hash from audit_event
             where tenant_id = $1 and node = $2 and number > $3 and number <= $4 order by number limit $5",
        )
        .bind(chain_of(tenant))
        .bind(node)
        .bind(after)
        .bind(until)
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        rows.iter().map(stored).collect::<Result<_, _>>().map_err(failed(OPERATION))
    }

    async fn span(
        &self,
        tenant: Option<TenantId>,
        node: &str,
        times: Times,
    ) -> Result<Option<(i64, i64)>, StoreError> {
        const OPERATION: &str = "audit.span";
        let mut tx = self.begin(tenant).await?;
        let (first, last): (Option<i64>, Option<i64>) = sqlx::query_as(
            "select min(number), max(number) from audit_event
             where tenant_id = $1 and node = $2 and at >= coalesce($3, '-infinity'::timestamptz)
                 and at < coalesce($4, 'infinity'::timestamptz)",
        )
        .bind(chain_of(tenant))
        .bind(node)
        .bind(times.since)
        .bind(times.until)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        Ok(first.zip(last))
    }

    async fn days(&self, tenant: Option<TenantId>, times: Times) -> Result<Vec<AuditDay>, StoreError> {
        const OPERATION: &str = "audit.days";
        let mut tx = self.begin(tenant).await?;
        let days: Vec<(String, String, i64)> = sqlx::query_as(
            "select to_char(at at time zone 'UTC', 'YYYY-MM-DD') as day, kind, count(*) from audit_event
             where tenant_id = $1 and at >= coalesce($2, '-infinity'::timestamptz)
                 and at < coalesce($3, 'infinity'::timestamptz)
             group by 1, 2 order by 1, 2",
        )
        .bind(chain_of(tenant))
        .bind(times.since)
        .bind(times.until)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        Ok(days.into_iter().map(|(day, kind, events)| AuditDay { day, kind, events }).collect())
    }
}

/// Puts events at the end of one chain, in order, inside a transaction that shows the chain's tenant.
///
/// The head is locked until that transaction ends, and whoever records anything of this tenant waits for it.
///
/// # Errors
/// `Unavailable`, `Timeout` or `Conflict`; then the transaction cannot go on.
pub(super) async fn append_in(
    tx: &mut TenantTransaction,
    node: &str,
    tenant: Option<TenantId>,
    events: &[AuditEvent],
) -> Result<(), StoreError> {
    const OPERATION: &str = "audit.append";
    let internal = |context: &str| StoreError::new(ErrorKind::Internal, "postgres", OPERATION, context);
    if events.iter().any(|event| event.tenant != tenant) {
        return Err(internal("an event of another chain"));
    }
    // Locks the head; the first event of a chain makes it.
    let (number, head): (i64, Vec<u8>) = sqlx::query_as(
        "insert into audit_head as h (tenant_id, node, number, hash) values ($1, $2, 0, $3)
         on conflict (tenant_id, node) do update set number = h.number returning number, hash",
    )
    .bind(chain_of(tenant))
    .bind(node)
    .bind(GENESIS.as_slice())
    .fetch_one(&mut **tx)
    .await
    .map_err(failed(OPERATION))?;
    let mut tip = Tip { number, hash: head.try_into().map_err(|_| internal("a hash is 32 bytes"))? };
    let mut rows = NewRows::default();
    for event in events {
        let sealed = tip.seal(node, AuditRecord::new(event, "", 0), "postgres")?;
        rows.numbers.push(sealed.number);
        rows.ats.push(event.at);
        rows.kinds.push(event.entry.kind.name());
        rows.bodies.push(sealed.body);
        rows.previous.push(sealed.previous);
        rows.hashes.push(sealed.hash);
    }
    let done = sqlx::query(
        "with written as (
             insert into audit_event (tenant_id, node, number, at, kind, body, previous, hash)
             select $1, $2, number, at, kind, body, previous, hash
             from unnest($3::bigint[], $4::timestamptz[], $5::text[], $6::text[], $7::bytea[], $8::bytea[])
                 as n(number, at, kind, body, previous, hash))
         update audit_head set number = $9, hash = $10 where tenant_id = $1 and node = $2",
    )
    .bind(chain_of(tenant))
    .bind(node)
    .bind(&rows.numbers)
    .bind(&rows.ats)
    .bind(&rows.kinds)
    .bind(&rows.bodies)
    .bind(&rows.previous)
    .bind(&rows.hashes)
    .bind(tip.number)
    .bind(tip.hash.as_slice())
    .execute(&mut **tx)
    .await
    .map_err(failed(OPERATION))?;
    if done.rows_affected() != 1 {
        return Err(internal("the chain's head did not move"));
    }
    Ok(())
}

/// An event's text, read again.
pub(super) fn parsed(body: &str, operation: &'static str) -> Result<AuditRecord, StoreError> {
    serde_json::from_str(body).map_err(|error| {
        StoreError::new(ErrorKind::Damaged, "postgres", operation, "an event cannot be read")
            .with_source(error)
    })
}

/// What a chain's head and its last row say.
fn chain(row: &PgRow) -> Result<Chain, sqlx::Error> {
    let head: (Option<i64>, Option<Vec<u8>>) = (row.try_get("number")?, row.try_get("hash")?);
    Ok(Chain { node: row.try_get("node")?, head: head.0.zip(head.1), last: row.try_get("last")? })
}

/// An event as it is stored.
fn stored(row: &PgRow) -> Result<Link, sqlx::Error> {
    Ok(Link {
        number: row.try_get("number")?,
        body: row.try_get("body")?,
        previous: row.try_get("previous")?,
        hash: row.try_get("hash")?,
        columns: Some(Columns { at: row.try_get("at")?, kind: row.try_get("kind")? }),
    })
}
