//! Tenants, keys and operators: the statements of the control role.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::error::failed;
use super::pools::Lane;
use crate::domain::ids::{Slug, TenantId};
use crate::domain::limits::LimitOverrides;
use crate::store::error::StoreError;
use crate::store::handles::Stores;
use crate::tenancy::OperatorScope;

/// A tenant as operators see it.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct TenantView {
    /// The tenant.
    pub tenant_id: Uuid,
    /// Its name.
    pub name: String,
    /// Its short name in host names.
    pub slug: String,
    /// `active`, `suspended` or `deleted`.
    pub state: String,
}

/// An API key as its owner sees it. Never the secret.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct KeyView {
    /// Its public identifier.
    pub key_id: String,
    /// Its name.
    pub name: String,
    /// What it allows.
    pub roles: Vec<String>,
    /// The namespaces it is confined to; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Vec<String>>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it ends.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

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

fn view(row: &PgRow) -> Result<TenantView, sqlx::Error> {
    Ok(TenantView {
        tenant_id: row.try_get("tenant_id")?,
        name: row.try_get("name")?,
        slug: row.try_get("slug")?,
        state: row.try_get("state")?,
    })
}

fn with_limits(row: &PgRow) -> Result<(TenantView, LimitOverrides), sqlx::Error> {
    Ok((view(row)?, row.try_get::<Json<LimitOverrides>, _>("limits")?.0))
}

impl Stores {
    /// Makes a tenant. `None`: the slug is taken.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn tenant_create(
        &self,
        _operator: &OperatorScope,
        name: &str,
        slug: &Slug,
    ) -> Result<Option<TenantView>, StoreError> {
        let postgres = self.postgres();
        let row = sqlx::query(
            "insert into tenant (tenant_id, name, slug, state, created_at, updated_at)
             values ($1, $2, $3, 'active', $4, $4)
             on conflict (slug) where state <> 'deleted' do nothing returning tenant_id, name, slug, state",
        )
        .bind(postgres.ids.uuid())
        .bind(name)
        .bind(slug.as_str())
        .bind(postgres.clock.now())
        .fetch_optional(&postgres.pools.control)
        .await
        .map_err(failed("tenant.create"))?;
        row.as_ref().map(view).transpose().map_err(failed("tenant.create"))
    }

    /// A page of tenants that are not deleted, by identity.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn tenant_list(
        &self,
        _operator: &OperatorScope,
        after: Option<TenantId>,
        limit: i64,
    ) -> Result<Vec<TenantView>, StoreError> {
        let postgres = self.postgres();
        let rows = sqlx::query(
            "select tenant_id, name, slug, state from tenant
             where tenant_id > $1 and state <> 'deleted' order by tenant_id limit $2",
        )
        .bind(after.map_or(Uuid::nil(), |tenant| tenant.0))
        .bind(limit)
        .fetch_all(&postgres.pools.control)
        .await
        .map_err(failed("tenant.list"))?;
        rows.iter().map(view).collect::<Result<_, _>>().map_err(failed("tenant.list"))
    }

    /// One tenant, deleted ones included, and the limits that were set for it.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn tenant_get(
        &self,
        _operator: &OperatorScope,
        tenant: TenantId,
    ) -> Result<Option<(TenantView, LimitOverrides)>, StoreError> {
        let postgres = self.postgres();
        let row = sqlx::query("select tenant_id, name, slug, state, limits from tenant where tenant_id = $1")
            .bind(tenant.0)
            .fetch_optional(&postgres.pools.control)
            .await
            .map_err(failed("tenant.get"))?;
        row.as_ref().map(with_limits).transpose().map_err(failed("tenant.get"))
    }

    /// Sets limits of a tenant: numbers by name, null to take one back. `None`: there is none, or it is deleted.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn tenant_set_limits(
        &self,
        _operator: &OperatorScope,
        tenant: TenantId,
        changes: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Option<(TenantView, LimitOverrides)>, StoreError> {
        let postgres = self.postgres();
        let row = sqlx::query(
            "update tenant set limits = jsonb_strip_nulls(limits || $2), updated_at = $3
             where tenant_id = $1 and state <> 'deleted' returning tenant_id, name, slug, state, limits",
        )
        .bind(tenant.0)
        .bind(Json(changes))
        .bind(postgres.clock.now())
        .fetch_optional(&postgres.pools.control)
        .await
        .map_err(failed("tenant.limits"))?;
        row.as_ref().map(with_limits).transpose().map_err(failed("tenant.limits"))
    }

    /// Suspends or resumes a tenant. `None`: there is none, or it is deleted.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn tenant_set_suspended(
        &self,
        _operator: &OperatorScope,
        tenant: TenantId,
        suspended: bool,
    ) -> Result<Option<TenantView>, StoreError> {
        let postgres = self.postgres();
        let row = sqlx::query(
            "update tenant set state = $2, updated_at = $3 where tenant_id = $1 and state <> 'deleted'
             returning tenant_id, name, slug, state",
        )
        .bind(tenant.0)
        .bind(if suspended { "suspended" } else { "active" })
        .bind(postgres.clock.now())
        .fetch_optional(&postgres.pools.control)
        .await
        .map_err(failed("tenant.suspend"))?;
        row.as_ref().map(view).transpose().map_err(failed("tenant.suspend"))
    }

    /// Deletes a tenant: refused from now on, its keys gone, a job for the rest. `None`: there is none.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then nothing was changed.
    pub async fn tenant_delete(
        &self,
        _operator: &OperatorScope,
        tenant: TenantId,
    ) -> Result<Option<(TenantView, Uuid)>, StoreError> {
        const OPERATION: &str = "tenant.delete";
        let postgres = self.postgres();
        let now = postgres.clock.now();
        let job = postgres.ids.uuid();
        let mut tx = postgres.begin(Lane::Deployment, tenant).await?;
        let row = sqlx::query(
            "update tenant set state = 'deleted', updated_at = $2 where tenant_id = $1 and state <> 'deleted'
             returning tenant_id, name, slug, state",
        )
        .bind(tenant.0)
        .bind(now)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        let Some(row) = row else { return Ok(None) };
        sqlx::query("delete from api_key where tenant_id = $1")
            .bind(tenant.0)
            .execute(&mut *tx)
            .await
            .map_err(failed(OPERATION))?;
        sqlx::query(
            "insert into job (tenant_id, job_id, namespace_id, kind, state, cost, due_at, created_at, updated_at)
             values ($1, $2, $3, 'purge_tenant', 'queued', 0, $4, $4, $4)",
        )
        .bind(tenant.0)
        .bind(job)
        .bind(Uuid::nil())
        .bind(now)
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await?;
        Ok(Some((view(&row).map_err(failed(OPERATION))?, job)))
    }

    /// Stores a tenant's new key. `false`: there is no such tenant, or it is deleted.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn key_create(
        &self,
        _operator: &OperatorScope,
        tenant: TenantId,
        key: &NewKey,
    ) -> Result<bool, StoreError> {
        let postgres = self.postgres();
        let done = sqlx::query(
            "insert into api_key (tenant_id, key_id, digest, name, roles, namespaces, created_at, expires_at)
             select tenant_id, $2, $3, $4, $5, $6, $7, $8 from tenant where tenant_id = $1 and state <> 'deleted'
             for share",
        )
        .bind(tenant.0)
        .bind(&key.key_id)
        .bind(key.digest.as_slice())
        .bind(&key.name)
        .bind(&key.roles)
        .bind(&key.namespaces)
        .bind(postgres.clock.now())
        .bind(key.expires_at)
        .execute(&postgres.pools.control)
        .await
        .map_err(failed("key.create"))?;
        Ok(done.rows_affected() == 1)
    }

    /// A tenant's keys, newest first, without secrets.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn key_list(
        &self,
        _operator: &OperatorScope,
        tenant: TenantId,
    ) -> Result<Vec<KeyView>, StoreError> {
        const OPERATION: &str = "key.list";
        let rows = sqlx::query(
            "select key_id, name, roles, namespaces, created_at, expires_at, revoked_at from api_key
             where tenant_id = $1 order by created_at desc, key_id limit 1000",
        )
        .bind(tenant.0)
        .fetch_all(&self.postgres().pools.control)
        .await
        .map_err(failed(OPERATION))?;
        let key = |row: &PgRow| {
            Ok(KeyView {
                key_id: row.try_get("key_id")?,
                name: row.try_get("name")?,
                roles: row.try_get("roles")?,
                namespaces: row.try_get("namespaces")?,
                created_at: row.try_get("created_at")?,
                expires_at: row.try_get("expires_at")?,
                revoked_at: row.try_get("revoked_at")?,
            })
        };
        rows.iter().map(key).collect::<Result<_, sqlx::Error>>().map_err(failed(OPERATION))
    }

    /// Revokes a key. `false`: the tenant has none of this identifier. Revoking again changes nothing.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn key_revoke(
        &self,
        _operator: &OperatorScope,
        tenant: TenantId,
        key_id: &str,
    ) -> Result<bool, StoreError> {
        let postgres = self.postgres();
        let done = sqlx::query(
            "update api_key set revoked_at = coalesce(revoked_at, $3) where tenant_id = $1 and key_id = $2",
        )
        .bind(tenant.0)
        .bind(key_id)
        .bind(postgres.clock.now())
        .execute(&postgres.pools.control)
        .await
        .map_err(failed("key.revoke"))?;
        Ok(done.rows_affected() == 1)
    }

    /// Stores an operator's credential unless it is stored already. Only whoever can write the data folder
    /// gets here without one.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn operator_require(
        &self,
        key_id: &str,
        digest: [u8; 32],
        name: &str,
    ) -> Result<(), StoreError> {
        let postgres = self.postgres();
        sqlx::query(
            "insert into operator_key (key_id, digest, name, created_at) values ($1, $2, $3, $4)
             on conflict (key_id) do nothing",
        )
        .bind(key_id)
        .bind(digest.as_slice())
        .bind(name)
        .bind(postgres.clock.now())
        .execute(&postgres.pools.control)
        .await
        .map_err(failed("operator.require"))?;
        Ok(())
    }
}
