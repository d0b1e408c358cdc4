//! What operators decide about tenants, keys and their own credentials: the changing statements of the control role.
//!
//! **Invariant:** each change takes an act, and is committed with it or not at all.

use chrono::{DateTime, Utc};
use sqlx::Postgres;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::types::Json;
use uuid::Uuid;

use super::control::{TenantView, view, with_limits};
use super::error::failed;
use crate::domain::ids::{Slug, TenantId};
use crate::domain::limits::LimitOverrides;
use crate::store::audit::act::Act;
use crate::store::error::{ErrorKind, StoreError};
use crate::store::handles::Stores;
use crate::store::placement::Placement;
use crate::store::{OperatorAct, ServerAct};

/// A new key, to be stored.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Its public identifier.
    pub key_id: String,
    /// Keyed SHA-256 of its secret.
    pub digest: [u8; 32],
    /// Its name.
    pub name: String,
    /// What it allows.
    pub roles: Vec<String>,
    /// The namespaces it is confined to; `None`: all.
    pub namespaces: Option<Vec<String>>,
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
}

/// An operator's new credential, to be stored.
#[derive(Debug, Clone, Copy)]
pub struct NewOperatorKey<'a> {
    /// Its public identifier.
    pub key_id: &'a str,
    /// Keyed SHA-256 of its secret.
    pub digest: [u8; 32],
    /// Its name.
    pub name: &'a str,
}

impl Stores {
    /// Makes a change, and commits it with its act. `None`: there was nothing to change, and nothing is recorded.
    async fn decide<T>(
        &self,
        (operation, act): (&'static str, Act),
        tenant: Option<TenantId>,
        change: Query<'_, Postgres, PgArguments>,
        read: impl FnOnce(&PgRow) -> Result<T, sqlx::Error>,
    ) -> Result<Option<T>, StoreError> {
        let mut tx = self.postgres().control(tenant).await?;
        let row = change.fetch_optional(&mut *tx).await.map_err(failed(operation))?;
        let Some(row) = row else { return Ok(None) };
        let changed = read(&row).map_err(failed(operation))?;
        tx.commit(act).await?;
        Ok(Some(changed))
    }

    /// Makes a tenant. `None`: the slug is taken.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then none was made.
    pub async fn tenant_create(
        &self,
        act: OperatorAct,
        name: &str,
        slug: &Slug,
    ) -> Result<Option<TenantView>, StoreError> {
        let tenant = TenantId(self.postgres().ids.uuid());
        let made = sqlx::query(
            "insert into tenant (tenant_id, name, slug, state, created_at, updated_at)
             values ($1, $2, $3, 'active', $4, $4)
             on conflict (slug) where state <> 'deleted' do nothing returning tenant_id, name, slug, state",
        )
        .bind(tenant.0)
        .bind(name)
        .bind(slug.as_str())
        .bind(self.postgres().clock.now());
        self.decide(("tenant.create", act.0), Some(tenant), made, view).await
    }

    /// Sets limits of a tenant: numbers by name, null to take one back. `None`: there is none, or it is deleted.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then they are as before.
    pub async fn tenant_set_limits(
        &self,
        act: OperatorAct,
        tenant: TenantId,
        changes: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Option<(TenantView, LimitOverrides)>, StoreError> {
        let set = sqlx::query(
            "update tenant set limits = jsonb_strip_nulls(limits || $2), updated_at = $3
             where tenant_id = $1 and state <> 'deleted' returning tenant_id, name, slug, state, limits",
        )
        .bind(tenant.0)
        .bind(Json(changes))
        .bind(self.postgres().clock.now());
        self.decide(("tenant.limits", act.0), Some(tenant), set, with_limits).await
    }

    /// Suspends or resumes a tenant. `None`: there is none, or it is deleted.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then it is as before.
    pub async fn tenant_set_suspended(
        &self,
        act: OperatorAct,
        tenant: TenantId,
        suspended: bool,
    ) -> Result<Option<TenantView>, StoreError> {
        let set = sqlx::query(
            "update tenant set state = $2, updated_at = $3 where tenant_id = $1 and state <> 'deleted'
             returning tenant_id, name, slug, state",
        )
        .bind(tenant.0)
        .bind(if suspended { "suspended" } else { "active" })
        .bind(self.postgres().clock.now());
        self.decide(("tenant.suspend", act.0), Some(tenant), set, view).await
    }

    /// Deletes a tenant: refused from now on, its keys gone, a job for the rest. `None`: there is none.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then nothing was changed.
    pub async fn tenant_delete(
        &self,
        act: OperatorAct,
        tenant: TenantId,
    ) -> Result<Option<(TenantView, Uuid)>, StoreError> {
        let job = self.postgres().ids.uuid();
        let deleted = sqlx::query(
            "with gone as (
                 update tenant set state = 'deleted', updated_at = $2
                 where tenant_id = $1 and state <> 'deleted' returning tenant_id, name, slug, state
             ), keys as (
                 delete from api_key where tenant_id in (select tenant_id from gone)
             ), purge as (
                 insert into job
                     (tenant_id, job_id, namespace_id, kind, state, cost, due_at, created_at, updated_at)
                 select tenant_id, $3, $4, 'purge_tenant', 'queued', 0, $2, $2, $2 from gone
             )
             select tenant_id, name, slug, state from gone",
        )
        .bind(tenant.0)
        .bind(self.postgres().clock.now())
        .bind(job)
        .bind(Uuid::nil());
        let act = ("tenant.delete", act.0.making(job));
        Ok(self.decide(act, Some(tenant), deleted, view).await?.map(|tenant| (tenant, job)))
    }

    /// Stores a tenant's new key. `false`: there is no such tenant, or it is deleted.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then it is not stored.
    pub async fn key_create(
        &self,
        act: OperatorAct,
        tenant: TenantId,
        key: &NewKey,
    ) -> Result<bool, StoreError> {
        let stored = sqlx::query(
            "insert into api_key (tenant_id, key_id, digest, name, roles, namespaces, created_at, expires_at)
             select tenant_id, $2, $3, $4, $5, $6, $7, $8 from tenant where tenant_id = $1 and state <> 'deleted'
             for share returning key_id",
        )
        .bind(tenant.0)
        .bind(&key.key_id)
        .bind(key.digest.as_slice())
        .bind(&key.name)
        .bind(&key.roles)
        .bind(&key.namespaces)
        .bind(self.postgres().clock.now())
        .bind(key.expires_at);
        Ok(self.decide(("key.create", act.0), Some(tenant), stored, nothing).await?.is_some())
    }

    /// Revokes a key. `false`: the tenant has none of this identifier. Revoking again changes nothing.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then it is as before.
    pub async fn key_revoke(
        &self,
        act: OperatorAct,
        tenant: TenantId,
        key_id: &str,
    ) -> Result<bool, StoreError> {
        let revoked = sqlx::query(
            "update api_key set revoked_at = coalesce(revoked_at, $3) where tenant_id = $1 and key_id = $2
             returning key_id",
        )
        .bind(tenant.0)
        .bind(key_id)
        .bind(self.postgres().clock.now());
        Ok(self.decide(("key.revoke", act.0), Some(tenant), revoked, nothing).await?.is_some())
    }

    /// Stores another operator's credential.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then it is not stored.
    pub async fn operator_create(&self, act: OperatorAct, key: NewOperatorKey<'_>) -> Result<(), StoreError> {
        if self.operator_store(act.0, key).await? {
            return Ok(());
        }
        let words = "another credential has this identifier";
        Err(StoreError::new(ErrorKind::Conflict, "postgres", "operator.create", words))
    }

    /// Stores the first operator's credential unless it is stored already. Only whoever can write the data folder
    /// gets here, without being an operator.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn operator_require(&self, act: ServerAct, key: NewOperatorKey<'_>) -> Result<(), StoreError> {
        self.operator_store(act.0, key).await.map(drop)
    }

    /// `false`: there is one of this identifier.
    async fn operator_store(&self, act: Act, key: NewOperatorKey<'_>) -> Result<bool, StoreError> {
        let stored = sqlx::query(
            "insert into operator_key (key_id, digest, name, created_at) values ($1, $2, $3, $4)
             on conflict (key_id) do nothing returning key_id",
        )
        .bind(key.key_id)
        .bind(key.digest.as_slice())
        .bind(key.name)
        .bind(self.postgres().clock.now());
        Ok(self.decide(("operator.create", act), None, stored, nothing).await?.is_some())
    }

    /// Notes where a tenant's vectors are to be: those that will come, and those that are moved then. `false`: there is
    /// no such tenant, or it is deleted.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then it is as before.
    pub async fn placement_choose(
        &self,
        act: OperatorAct,
        tenant: TenantId,
        placement: Placement,
    ) -> Result<bool, StoreError> {
        let chosen = sqlx::query(
            "insert into vector_placement (tenant_id, placement, chosen_at)
             select tenant_id, $2, $3 from tenant where tenant_id = $1 and state <> 'deleted' for share
             on conflict (tenant_id) do update set placement = excluded.placement, chosen_at = excluded.chosen_at
             returning tenant_id",
        )
        .bind(tenant.0)
        .bind(placement.name())
        .bind(self.postgres().clock.now());
        Ok(self.decide(("placement.choose", act.0), Some(tenant), chosen, nothing).await?.is_some())
    }
}

/// Reads nothing of a row: that it is there says enough.
#[expect(clippy::unnecessary_wraps, reason = "as those that read something")]
fn nothing(_: &PgRow) -> Result<(), sqlx::Error> {
    Ok(())
}
