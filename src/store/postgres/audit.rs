//! The audit log on PostgreSQL: rows that no role of the server may change or delete, chained by their hashes.
//!
//! An event's hash is SHA-256 of the hash before it and of the event's canonical text, which is kept as it was
//! hashed. A chain's head holds number and hash of its last event; its row lock orders the writers.
//!
//! **Invariant:** events and head change in one transaction.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::Postgres;
use super::error::failed;
use super::pools::Lane;
use super::transaction::TenantTransaction;
use crate::domain::audit::{AuditCursor, AuditEvent, AuditRecord, ChainFault, ChainReport, written};
use crate::domain::ids::TenantId;
use crate::store::audit::AuditLog;
use crate::store::error::{ErrorKind, StoreError};

/// Events read at once when a chain is examined.
const VERIFY_PAGE: i64 = 1000;
/// What the first event of a chain follows.
const GENESIS: [u8; 32] = [0; 32];

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

    async fn begin(&self, tenant: Option<TenantId>) -> Result<TenantTransaction, StoreError> {
        match tenant {
            Some(tenant) => self.postgres.begin(Lane::Audit, tenant).await,
            None => self.postgres.begin(Lane::Deployment, TenantId(Uuid::nil())).await,
        }
    }
}

/// The deployment's own events have the nil uuid.
fn chain_of(tenant: Option<TenantId>) -> Uuid {
    tenant.map_or(Uuid::nil(), |tenant| tenant.0)
}

fn link(previous: &[u8], body: &str) -> [u8; 32] {
    Sha256::new().chain_update(previous).chain_update(body.as_bytes()).finalize().into()
}

/// The columns of new events.
#[derive(Default)]
struct Columns {
    numbers: Vec<i64>,
    ats: Vec<DateTime<Utc>>,
    kinds: Vec<&'static str>,
    bodies: Vec<String>,
    previous: Vec<[u8; 32]>,
    hashes: Vec<[u8; 32]>,
}

#[async_trait]
impl AuditLog for PostgresAudit {
    fn name(&self) -> &'static str {
        "postgres"
    }

    async fn append(&self, tenant: Option<TenantId>, events: &[AuditEvent]) -> Result<(), StoreError> {
        const OPERATION: &str = "audit.append";
        if events.is_empty() {
            return Ok(());
        }
        let internal = |context: &str| StoreError::new(ErrorKind::Internal, "postgres", OPERATION, context);
        if events.iter().any(|event| event.tenant != tenant) {
            return Err(internal("an event of another chain"));
        }
        let mut tx = self.begin(tenant).await?;
        // Locks the head; the first event of a chain makes it.
        let (mut number, head): (i64, Vec<u8>) = sqlx::query_as(
            "insert into audit_head as h (tenant_id, node, number, hash) values ($1, $2, 0, $3)
             on conflict (tenant_id, node) do update set number = h.number returning number, hash",
        )
        .bind(chain_of(tenant))
        .bind(&*self.node)
        .bind(GENESIS.as_slice())
        .fetch_one(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        let mut hash: [u8; 32] = head.try_into().map_err(|_| internal("a hash is 32 bytes"))?;
        let mut columns = Columns::default();
        for event in events {
            number += 1;
            let record = AuditRecord::new(event, &self.node, number);
            let body = serde_json::to_string(&record)
                .map_err(|error| internal("an event cannot be written").with_source(error))?;
            columns.previous.push(hash);
            hash = link(&hash, &body);
            columns.hashes.push(hash);
            columns.numbers.push(number);
            columns.ats.push(event.at);
            columns.kinds.push(event.entry.kind.name());
            columns.bodies.push(body);
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
        .bind(&*self.node)
        .bind(&columns.numbers)
        .bind(&columns.ats)
        .bind(&columns.kinds)
        .bind(&columns.bodies)
        .bind(&columns.previous)
        .bind(&columns.hashes)
        .bind(number)
        .bind(hash.as_slice())
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        if done.rows_affected() != 1 {
            return Err(internal("the chain's head did not move"));
        }
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
        let damaged = |error| {
            StoreError::new(ErrorKind::Damaged, "postgres", OPERATION, "an event cannot be read")
                .with_source(error)
        };
        bodies.iter().map(|body| serde_json::from_str(body).map_err(damaged)).collect()
    }

    async fn verify(&self, tenant: Option<TenantId>) -> Result<Vec<ChainReport>, StoreError> {
        const OPERATION: &str = "audit.verify";
        let mut tx = self.begin(tenant).await?;
        // One snapshot of heads and ends: what is written meanwhile is not examined.
        let chains = sqlx::query(
            "select coalesce(h.node, e.node) as node, coalesce(h.number, 0) as number, h.hash,
                 coalesce(e.last, 0) as last
             from (select node, number, hash from audit_head where tenant_id = $1) h
             full join (select node, max(number) as last from audit_event where tenant_id = $1 group by node) e
                 on e.node = h.node
             order by 1",
        )
        .bind(chain_of(tenant))
        .fetch_all(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        let mut reports = Vec::with_capacity(chains.len());
        for row in &chains {
            let chain = Chain::read(row).map_err(failed(OPERATION))?;
            reports.push(self.examine(tenant, chain).await?);
        }
        Ok(reports)
    }
}

/// What a chain's head and its last row say.
struct Chain {
    node: String,
    number: i64,
    hash: Option<Vec<u8>>,
    last: i64,
}

impl Chain {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            node: row.try_get("node")?,
            number: row.try_get("number")?,
            hash: row.try_get("hash")?,
            last: row.try_get("last")?,
        })
    }

    /// What is wrong with the end of a chain whose events are all in order up to `number` with this hash.
    fn end_fault(&self, number: i64, hash: &[u8; 32]) -> Option<ChainFault> {
        match &self.hash {
            None => Some(ChainFault::Head { number }),
            Some(_) if number < self.number => Some(ChainFault::Truncated { number: number + 1 }),
            Some(_) if self.last > self.number => Some(ChainFault::Inserted { number: self.number + 1 }),
            Some(head) => (head != hash).then_some(ChainFault::Head { number }),
        }
    }
}

impl PostgresAudit {
    async fn examine(&self, tenant: Option<TenantId>, chain: Chain) -> Result<ChainReport, StoreError> {
        const OPERATION: &str = "audit.verify";
        // Without a head everything that is there is examined.
        let end = if chain.hash.is_some() { chain.number } else { chain.last };
        let (mut number, mut hash, mut fault) = (0, GENESIS, None);
        'chain: while number < end {
            let mut tx = self.begin(tenant).await?;
            let rows = sqlx::query(
                "select number, at, kind, body, previous, hash from audit_event
                 where tenant_id = $1 and node = $2 and number > $3 and number <= $4 order by number limit $5",
            )
            .bind(chain_of(tenant))
            .bind(&chain.node)
            .bind(number)
            .bind(end)
            .bind(VERIFY_PAGE)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed(OPERATION))?;
            tx.commit().await?;
            if rows.is_empty() {
                break;
            }
            for row in &rows {
                let event = Stored::read(row).map_err(failed(OPERATION))?;
                if event.number != number + 1 {
                    fault = Some(ChainFault::Removed { number: number + 1 });
                    break 'chain;
                }
                if !event.follows(&hash, tenant, &chain.node) {
                    fault = Some(ChainFault::Changed { number: event.number });
                    break 'chain;
                }
                number = event.number;
                hash = link(&hash, &event.body);
            }
        }
        let fault = fault.or_else(|| chain.end_fault(number, &hash));
        Ok(ChainReport { node: chain.node, events: number, head: hex::encode(hash), fault })
    }
}

/// An event as it is stored.
struct Stored {
    number: i64,
    at: DateTime<Utc>,
    kind: String,
    body: String,
    previous: Vec<u8>,
    hash: Vec<u8>,
}

impl Stored {
    fn read(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            number: row.try_get("number")?,
            at: row.try_get("at")?,
            kind: row.try_get("kind")?,
            body: row.try_get("body")?,
            previous: row.try_get("previous")?,
            hash: row.try_get("hash")?,
        })
    }

    /// Whether this is what was written after `previous`: linked, unchanged, and its columns say what its text says.
    fn follows(&self, previous: &[u8; 32], tenant: Option<TenantId>, node: &str) -> bool {
        if self.previous != previous || self.hash != link(previous, &self.body) {
            return false;
        }
        serde_json::from_str::<AuditRecord>(&self.body).is_ok_and(|record| {
            record.number == self.number
                && record.node == node
                && record.tenant == tenant
                && record.kind.name() == self.kind
                && record.at == written(self.at)
        })
    }
}
