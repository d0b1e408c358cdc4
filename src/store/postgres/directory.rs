//! The directory of tenants and keys, read by a role that sees credential columns only.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use uuid::Uuid;

use super::Postgres;
use crate::domain::ids::{NamespaceName, TenantId};
use crate::domain::limits::LimitOverrides;
use crate::tenancy::directory::{
    Directory, DirectoryError, KeyRecord, OperatorRecord, TenantRecord, TenantState,
};
use crate::tenancy::scope::Role;

fn away(error: sqlx::Error) -> DirectoryError {
    DirectoryError(Box::new(error))
}

fn tenant(row: &PgRow) -> Result<TenantRecord, sqlx::Error> {
    Ok(TenantRecord {
        tenant: TenantId(row.try_get::<Uuid, _>("tenant_id")?),
        slug: row.try_get::<String, _>("slug")?.into(),
        limits: row.try_get::<Json<LimitOverrides>, _>("limits")?.0,
        state: match row.try_get::<&str, _>("state")? {
            "active" => TenantState::Active,
            "suspended" => TenantState::Suspended,
            _ => TenantState::Deleted,
        },
    })
}

fn digest(row: &PgRow) -> Result<[u8; 32], sqlx::Error> {
    row.try_get::<Vec<u8>, _>("digest")?
        .try_into()
        .map_err(|_| sqlx::Error::Decode("a digest is 32 bytes".into()))
}

/// A name in the store that this server does not know is left out: the key then allows less, never more.
fn key(row: &PgRow) -> Result<KeyRecord, sqlx::Error> {
    let roles: Vec<String> = row.try_get("roles")?;
    let namespaces: Option<Vec<String>> = row.try_get("namespaces")?;
    Ok(KeyRecord {
        tenant: tenant(row)?,
        digest: digest(row)?,
        roles: roles.iter().filter_map(|name| Role::from_name(name)).collect(),
        namespaces: namespaces
            .map(|names| names.iter().filter_map(|name| NamespaceName::parse(name).ok()).collect()),
        expires_at: row.try_get("expires_at")?,
        revoked: row.try_get::<Option<DateTime<Utc>>, _>("revoked_at")?.is_some(),
    })
}

#[async_trait]
impl Directory for Postgres {
    async fn key(&self, key_id: &str) -> Result<Option<KeyRecord>, DirectoryError> {
        let row = sqlx::query(
            "select t.tenant_id, t.slug, t.state, t.limits, k.digest, k.roles, k.namespaces, k.expires_at, k.revoked_at
             from api_key k join tenant t using (tenant_id) where k.key_id = $1",
        )
        .bind(key_id)
        .fetch_optional(&self.pools.auth)
        .await
        .map_err(away)?;
        row.as_ref().map(key).transpose().map_err(away)
    }

    async fn operator(&self, key_id: &str) -> Result<Option<OperatorRecord>, DirectoryError> {
        let row = sqlx::query("select digest, expires_at, revoked_at from operator_key where key_id = $1")
            .bind(key_id)
            .fetch_optional(&self.pools.auth)
            .await
            .map_err(away)?;
        let record = |row: &PgRow| {
            Ok(OperatorRecord {
                digest: digest(row)?,
                expires_at: row.try_get("expires_at")?,
                revoked: row.try_get::<Option<DateTime<Utc>>, _>("revoked_at")?.is_some(),
            })
        };
        row.as_ref().map(record).transpose().map_err(away)
    }

    async fn tenant(&self, id: TenantId) -> Result<Option<TenantRecord>, DirectoryError> {
        let row = sqlx::query("select tenant_id, slug, state, limits from tenant where tenant_id = $1")
            .bind(id.0)
            .fetch_optional(&self.pools.auth)
            .await
            .map_err(away)?;
        row.as_ref().map(tenant).transpose().map_err(away)
    }

    async fn tenant_by_slug(&self, slug: &str) -> Result<Option<TenantRecord>, DirectoryError> {
        let row = sqlx::query(
            "select tenant_id, slug, state, limits from tenant where slug = $1 and state <> 'deleted'",
        )
        .bind(slug)
        .fetch_optional(&self.pools.auth)
        .await
        .map_err(away)?;
        row.as_ref().map(tenant).transpose().map_err(away)
    }
}
