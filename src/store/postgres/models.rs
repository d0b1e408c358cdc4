//! The models that a server has, and changes of a tenant's as operators see them.
//!
//! **Invariant:** operators order a change and see how far it has come in numbers; they read no row of a tenant's
//! documents.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::error::failed;
use super::reembed::EMBEDDING;
use crate::domain::ids::{ModelId, TenantId};
use crate::store::OperatorAct;
use crate::store::error::{ErrorKind, StoreError};
use crate::store::handles::Stores;
use crate::tenancy::OperatorScope;

/// A change of model as operators see it.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
pub struct ReembedView {
    /// The job that does it.
    pub job_id: Uuid,
    /// `queued`, `running`, `done` or `failed`.
    pub state: String,
    /// `embedding` until every namespace has switched; then `sweeping`, until the old model's rows are gone.
    pub stage: String,
    /// Chunks that have an embedding of the new model.
    pub done: i64,
    /// Chunks in all, 0 while unknown.
    pub total: i64,
    /// Why it failed.
    pub error: Option<String>,
    /// When it changed last.
    pub updated_at: DateTime<Utc>,
}

impl Stores {
    /// The identity of a model that this server has, by the name under which it is configured.
    #[must_use]
    pub fn model_named(&self, name: &str) -> Option<&ModelId> {
        self.postgres().models.iter().find(|(known, _)| known == name).map(|(_, id)| id)
    }

    /// The names of the models that this server has, the one for new namespaces first.
    #[must_use]
    pub fn model_names(&self) -> Vec<&str> {
        self.postgres().models.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Tenants with namespaces whose model this server does not have, at most `limit`.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn model_strangers(&self, limit: i64) -> Result<Vec<(TenantId, String)>, StoreError> {
        let known: Vec<&str> = self.postgres().models.iter().map(|(_, id)| id.as_str()).collect();
        let rows: Vec<(Uuid, String)> = sqlx::query_as(
            "select distinct tenant_id, model_id from namespace where not model_id = any($1) order by 1, 2 limit $2",
        )
        .bind(&known)
        .bind(limit)
        .fetch_all(&self.postgres().pools.dispatch)
        .await
        .map_err(failed("model.strangers"))?;
        Ok(rows.into_iter().map(|(tenant, model)| (TenantId(tenant), model)).collect())
    }

    /// Has a tenant's namespaces, or one of them, embedded by another model. One that is under way and wants the
    /// same is found again; one that wants something else is a `Conflict`. `None`: there is no such tenant.
    ///
    /// # Errors
    /// `Conflict`, `Unavailable` or `Timeout`; then nothing was ordered.
    pub async fn reembed_create(
        &self,
        act: OperatorAct,
        tenant: TenantId,
        namespace: Option<&str>,
        model: &ModelId,
    ) -> Result<Option<ReembedView>, StoreError> {
        const OPERATION: &str = "reembed.create";
        let postgres = self.postgres();
        let mut tx = postgres.control(Some(tenant)).await?;
        sqlx::query(
            "insert into job (tenant_id, job_id, namespace_id, kind, namespace, model_id, state, stage, cost, due_at,
                 created_at, updated_at)
             select tenant_id, $2, $3, 'reembed', $4, $5, 'queued', $6, 0, $7, $7, $7 from tenant
             where tenant_id = $1 and state <> 'deleted'
             on conflict (tenant_id) where kind = 'reembed' and state in ('queued', 'running') do nothing",
        )
        .bind(tenant.0)
        .bind(postgres.ids.uuid())
        .bind(Uuid::nil())
        .bind(namespace)
        .bind(model.as_str())
        .bind(EMBEDDING)
        .bind(postgres.clock.now())
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        let row = sqlx::query(
            "select job_id, state, stage, done, total, error, updated_at,
                 namespace is not distinct from $2 and model_id = $3 as same
             from job where tenant_id = $1 and kind = 'reembed' and state in ('queued', 'running')",
        )
        .bind(tenant.0)
        .bind(namespace)
        .bind(model.as_str())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        let Some(row) = row else { return Ok(None) };
        if !row.try_get::<bool, _>("same").map_err(failed(OPERATION))? {
            let words = "another change of model is under way";
            return Err(StoreError::new(ErrorKind::Conflict, "postgres", OPERATION, words));
        }
        let view = view(&row).map_err(failed(OPERATION))?;
        tx.commit(act.0.making(view.job_id)).await?;
        Ok(Some(view))
    }

    /// How far a change of model has come; `None` when the tenant has none of this identity.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn reembed_get(
        &self,
        _operator: &OperatorScope,
        tenant: TenantId,
        job: Uuid,
    ) -> Result<Option<ReembedView>, StoreError> {
        const OPERATION: &str = "reembed.get";
        let mut tx = self.postgres().control(Some(tenant)).await?;
        let row = sqlx::query(
            "select job_id, state, stage, done, total, error, updated_at
             from job where tenant_id = $1 and job_id = $2 and kind = 'reembed'",
        )
        .bind(tenant.0)
        .bind(job)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        row.as_ref().map(view).transpose().map_err(failed(OPERATION))
    }
}

fn view(row: &PgRow) -> Result<ReembedView, sqlx::Error> {
    Ok(ReembedView {
        job_id: row.try_get("job_id")?,
        state: row.try_get("state")?,
        stage: row.try_get("stage")?,
        done: row.try_get("done")?,
        total: row.try_get("total")?,
        error: row.try_get("error")?,
        updated_at: row.try_get("updated_at")?,
    })
}
