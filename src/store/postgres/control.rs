//! Tenants and keys as the control role reads them. [`super::administer`] changes them.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::error::failed;
use crate::domain::ids::TenantId;
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

pub(super) fn view(row: &PgRow) -> Result<TenantView, sqlx::Error> {
    Ok(TenantView {
        tenant_id: row.try_get("tenant_id")?,
        name: row.try_get("name")?,
        slug: row.try_get("slug")?,
        state: row.try_get("state")?,
    })
}

pub(super) fn with_limits(row: &PgRow) -> Result<(TenantView, LimitOverrides), sqlx::Error> {
    Ok((view(row)?, row.try_get::<Json<LimitOverrides>, _>("limits")?.0))
}

impl Stores {
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
}
