//! Heads of chains whose events are in another log, and the events that wait here to be forwarded there.
//!
//! **Invariant:** an anchor moves forward only, from where whoever moves it saw it; of two who do, one is refused.

use sqlx::Row as _;
use uuid::Uuid;

use super::audit::PostgresAudit;
use super::audit::chain_of;
use super::error::failed;
use crate::domain::audit::{AuditCursor, AuditRecord};
use crate::domain::ids::TenantId;
use crate::store::audit::AuditLog as _;
use crate::store::audit::chain::Tip;
use crate::store::error::{ErrorKind, StoreError};

/// Tenants whose events wait, at most so many at once.
const MAX_WAITING: i64 = 1000;

/// The head of a chain that is kept elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Anchor {
    /// Its last event that is known to be there.
    pub(in crate::store) tip: Tip,
    /// Up to which record of which spool it holds.
    pub(in crate::store) spooled: Option<(Uuid, i64)>,
}

impl Anchor {
    /// A chain of which nothing is there.
    const NONE: Self = Self { tip: Tip::START, spooled: None };
}

fn read(row: &sqlx::postgres::PgRow) -> Result<Anchor, StoreError> {
    const OPERATION: &str = "audit.anchor";
    let hash: Vec<u8> = row.try_get("hash").map_err(failed(OPERATION))?;
    let hash = hash
        .try_into()
        .map_err(|_| StoreError::new(ErrorKind::Damaged, "postgres", OPERATION, "a hash is 32 bytes"))?;
    let number = row.try_get("number").map_err(failed(OPERATION))?;
    let spool: Option<Uuid> = row.try_get("spool").map_err(failed(OPERATION))?;
    let position: i64 = row.try_get("position").map_err(failed(OPERATION))?;
    Ok(Anchor { tip: Tip { number, hash }, spooled: spool.map(|spool| (spool, position)) })
}

impl PostgresAudit {
    /// The anchors of a tenant's chains, by server.
    pub(in crate::store) async fn anchor_list(
        &self,
        tenant: Option<TenantId>,
    ) -> Result<Vec<(String, Anchor)>, StoreError> {
        const OPERATION: &str = "audit.anchor.list";
        let mut tx = self.begin(tenant).await?;
        let rows =
            sqlx::query("select node, number, hash, spool, position from audit_anchor where tenant_id = $1")
                .bind(chain_of(tenant))
                .fetch_all(&mut *tx)
                .await
                .map_err(failed(OPERATION))?;
        tx.commit().await?;
        rows.iter().map(|row| Ok((row.try_get("node").map_err(failed(OPERATION))?, read(row)?))).collect()
    }

    /// The anchor of one chain.
    pub(in crate::store) async fn anchor_get(
        &self,
        tenant: Option<TenantId>,
        node: &str,
    ) -> Result<Anchor, StoreError> {
        let mut tx = self.begin(tenant).await?;
        let row = sqlx::query(
            "select number, hash, spool, position from audit_anchor where tenant_id = $1 and node = $2",
        )
        .bind(chain_of(tenant))
        .bind(node)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("audit.anchor.get"))?;
        tx.commit().await?;
        row.as_ref().map_or(Ok(Anchor::NONE), read)
    }

    /// Moves an anchor from where it was seen. `Conflict` when it is elsewhere.
    pub(in crate::store) async fn anchor_move(
        &self,
        tenant: Option<TenantId>,
        node: &str,
        from: &Anchor,
        to: &Anchor,
    ) -> Result<(), StoreError> {
        const OPERATION: &str = "audit.anchor.move";
        let mut tx = self.begin(tenant).await?;
        let (spool, position) = to.spooled.map_or((None, 0), |(spool, position)| (Some(spool), position));
        let done = sqlx::query(
            "insert into audit_anchor as a (tenant_id, node, number, hash, spool, position)
             select $1, $2, $3, $4, $5, $6 where $7 = 0 or exists (
                 select from audit_anchor where tenant_id = $1 and node = $2)
             on conflict (tenant_id, node) do update
                 set number = $3, hash = $4, spool = $5, position = $6
                 where a.number = $7 and a.hash = $8",
        )
        .bind(chain_of(tenant))
        .bind(node)
        .bind(to.tip.number)
        .bind(to.tip.hash.as_slice())
        .bind(spool)
        .bind(position)
        .bind(from.tip.number)
        .bind(from.tip.hash.as_slice())
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        if done.rows_affected() != 1 {
            let words = "another server of this name moved the chain's anchor";
            return Err(StoreError::new(ErrorKind::Conflict, "postgres", OPERATION, words));
        }
        tx.commit().await
    }

    /// Chains of this server whose events are not all forwarded: tenants alone.
    pub(in crate::store) async fn waiting_list(&self) -> Result<Vec<Option<TenantId>>, StoreError> {
        let tenants: Vec<Uuid> = sqlx::query_scalar(
            "select h.tenant_id from audit_head h left join audit_anchor a using (tenant_id, node)
             where h.node = $1 and h.number > coalesce(a.number, 0) order by h.tenant_id limit $2",
        )
        .bind(self.node())
        .bind(MAX_WAITING)
        .fetch_all(self.dispatch())
        .await
        .map_err(failed("audit.waiting.list"))?;
        Ok(tenants.into_iter().map(|id| (!id.is_nil()).then_some(TenantId(id))).collect())
    }

    /// Events of a tenant that are not forwarded yet, as [`super::super::AuditLog::page`].
    pub(in crate::store) async fn waiting_page(
        &self,
        tenant: Option<TenantId>,
        after: Option<&AuditCursor>,
        limit: i64,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        const OPERATION: &str = "audit.waiting.page";
        let mut tx = self.begin(tenant).await?;
        let bodies: Vec<String> = sqlx::query_scalar(
            "select body from audit_event e
             where tenant_id = $1 and number > coalesce((select a.number from audit_anchor a
                     where a.tenant_id = $1 and a.node = e.node), 0)
                 and (at, node collate \"C\", number) < (coalesce($2, 'infinity'::timestamptz), $3, $4)
             order by at desc, node collate \"C\" desc, number desc limit $5",
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
        bodies.iter().map(|body| super::audit::parsed(body, OPERATION)).collect()
    }
}
