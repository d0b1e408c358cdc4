//! Partitions of embeddings that come later than the schema: a model's, and a large namespace's own with its
//! index. The one place that composes their names and the statements on them.
//!
//! A model's partition is divided by `home`: one leaf that small namespaces share and that is searched exactly,
//! and a leaf for each large one, with an HNSW graph over its vectors alone. Rows move from the shared leaf a few
//! at a time, each move a transaction of its own, so that every reader finds each row exactly once.
//!
//! **Invariant:** what is made here has forced row-level security and a policy for each command before a row
//! can be in it; nobody but the backup is granted anything on it. Rows are reached through `chunk_embedding`.
//! **Invariant:** no index covers vectors of two namespaces but the shared leaf's, which are B-trees.

mod renew;

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};
use uuid::Uuid;

use super::Postgres;
use super::error::failed;
use super::transaction::Plans;
use crate::domain::ids::{ModelId, NamespaceId, TenantId};
use crate::store::error::StoreError;
use crate::store::handles::Stores;

/// How the database searches vectors, and when a namespace gets a partition of its own.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VectorSettings {
    /// Namespaces of this many chunks and more get a partition with an HNSW graph; smaller ones are searched
    /// exactly.
    pub own_partition_from_chunks: u64,
    /// Candidates that a search of such a graph keeps, 1 to 1,000.
    pub hnsw_candidates: u16,
    /// Rows that are moved into such a partition at once, while writers of the namespace wait.
    pub move_rows: u32,
    /// How often large namespaces without a partition, and partitions without a namespace, are looked for, seconds.
    pub sweep_seconds: u64,
}

impl Default for VectorSettings {
    fn default() -> Self {
        Self { own_partition_from_chunks: 100_000, hnsw_candidates: 400, move_rows: 1000, sweep_seconds: 15 }
    }
}

/// A large namespace whose embeddings of a model are not all in a partition of their own with a usable index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DuePartition {
    tenant: TenantId,
    namespace: NamespaceId,
    model: ModelId,
}

impl DuePartition {
    /// The tenant, for logs.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// The namespace, for logs.
    #[must_use]
    pub fn namespace(&self) -> NamespaceId {
        self.namespace
    }

    /// A uuid and a model's identity are hexadecimal digits by their types: at most 62 bytes with the index's ending.
    fn leaf(&self) -> String {
        format!("vectors_{}_{}", self.model.as_str(), self.namespace.0.simple())
    }
}

/// The most partitions that are listed at once.
const PAGE: i64 = 64;
/// pgvector's limit for a graph over `vector`.
const MAX_DIMENSION: i32 = 2000;
/// How long a change of the layout may wait for a lock, with others queueing behind it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// One change of the layout at a time.
const LAYOUT: &str = "select pg_advisory_xact_lock(hashtext('bulkhead partition'))";

impl Stores {
    /// Large namespaces without a partition of their own, or whose partition was left half made.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn partitions_due(&self) -> Result<Vec<DuePartition>, StoreError> {
        const OPERATION: &str = "partition.due";
        let postgres = self.postgres();
        let from = i64::try_from(postgres.vectors.own_partition_from_chunks).unwrap_or(i64::MAX);
        let rows: Vec<(Uuid, Uuid, String)> = sqlx::query_as(
            "select n.tenant_id, n.namespace_id, m.model_id
             from namespace n cross join lateral unnest(array[n.model_id, n.building]) m(model_id)
             left join pg_class c on c.relname =
                 'vectors_' || m.model_id || '_' || replace(n.namespace_id::text, '-', '') || '_hnsw'
             left join pg_index i on i.indexrelid = c.oid
             where n.chunks >= $1 and m.model_id is not null and not coalesce(i.indisvalid, false)
             order by 1, 2, 3 limit $2",
        )
        .bind(from)
        .bind(PAGE)
        .fetch_all(&postgres.pools.dispatch)
        .await
        .map_err(failed(OPERATION))?;
        let due = |(tenant, namespace, model): (Uuid, Uuid, String)| {
            let model = ModelId::parse(&model).ok()?;
            Some(DuePartition { tenant: TenantId(tenant), namespace: NamespaceId(namespace), model })
        };
        Ok(rows.into_iter().filter_map(due).collect())
    }

    /// Gives a large namespace its partition: makes it, moves the rows, builds the index. Begun again, it goes on
    /// where it stopped. `false`: another server is at it, the namespace is gone, or there is nothing to index.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; every row is where it was or where it goes, and searches find it.
    pub async fn partition_make(&self, due: &DuePartition) -> Result<bool, StoreError> {
        let mut owner = Owner::connect(self.postgres()).await?;
        let made = match owner.lock(&due.leaf()).await {
            Ok(true) => owner.make(due, self.postgres().vectors.move_rows).await,
            Ok(false) => Ok(false),
            Err(error) => Err(error),
        };
        owner.close().await;
        made
    }

    /// Drops partitions whose namespace is gone or has left their model. Returns how many.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; to be called again.
    pub async fn partitions_drop_orphans(&self) -> Result<usize, StoreError> {
        let leaves = self.orphans(None).await?;
        if leaves.is_empty() {
            return Ok(0);
        }
        let mut owner = Owner::connect(self.postgres()).await?;
        let mut dropped = 0;
        let mut result = Ok(());
        for leaf in &leaves {
            result = self.drop_orphan(&mut owner, leaf).await.map(|done| dropped += usize::from(done));
            if result.is_err() {
                break;
            }
        }
        owner.close().await;
        result.map(|()| dropped)
    }

    /// Looks again once nobody can make the leaf a home: it may have become one since it was listed.
    async fn drop_orphan(&self, owner: &mut Owner, leaf: &str) -> Result<bool, StoreError> {
        if !owner.lock(leaf).await? || self.orphans(Some(leaf)).await?.is_empty() {
            return Ok(false);
        }
        owner.drop_leaf(leaf).await
    }

    /// Leaves that no namespace calls its home, or just this one.
    async fn orphans(&self, leaf: Option<&str>) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar(
            "select c.relname::text from pg_class c
             where c.relkind = 'r' and c.relnamespace = 'public'::regnamespace
                 and c.relname ~ '^vectors_[0-9a-f]{16}_[0-9a-f]{32}$' and ($1::text is null or c.relname = $1)
                 and not exists (
                     select from namespace n where n.namespace_id = substr(c.relname, 26)::uuid
                         and substr(c.relname, 9, 16) = any(n.homes))
             order by 1 limit $2",
        )
        .bind(leaf)
        .bind(PAGE)
        .fetch_all(&self.postgres().pools.dispatch)
        .await
        .map_err(failed("partition.orphans"))
    }
}

/// Makes a model's partition with its shared leaf, unless it is there.
pub(super) async fn make_model(connection: &mut PgConnection, model: &ModelId) -> Result<(), sqlx::Error> {
    let parent = format!("chunk_embedding_{}", model.as_str());
    let mut tx = connection.begin().await?;
    sqlx::query(LAYOUT).execute(&mut *tx).await?;
    let there: bool =
        sqlx::query_scalar("select to_regclass($1) is not null").bind(&parent).fetch_one(&mut *tx).await?;
    if !there {
        let statements = format!(
            "create table {parent} partition of chunk_embedding for values in ('{model}') partition by list (home);
             create table {parent}_shared partition of {parent} for values in ('{nil}');
             {storage} {secure_parent} {secure_shared}",
            model = model.as_str(),
            nil = Uuid::nil(),
            storage = storage(&format!("{parent}_shared")),
            secure_parent = secure(&parent),
            secure_shared = secure(&format!("{parent}_shared")),
        );
        sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *tx).await?;
    }
    tx.commit().await
}

/// A row of 384 dimensions and its terms stays inline.
fn storage(table: &str) -> String {
    format!(
        "alter table {table} set (toast_tuple_target = 8160);
         alter table {table} alter column embedding set storage main, alter column terms set storage main;"
    )
}

/// Row-level security of its own, though nobody is granted it directly.
fn secure(table: &str) -> String {
    let own = "tenant_id = current_setting('bulkhead.tenant')::uuid";
    format!(
        "alter table {table} enable row level security;
         alter table {table} force row level security;
         revoke all on {table} from public;
         grant select on {table} to bulkhead_backup;
         create policy own_select on {table} for select to bulkhead_owner using ({own});
         create policy own_insert on {table} for insert to bulkhead_owner with check ({own});
         create policy own_update on {table} for update to bulkhead_owner using ({own}) with check ({own});
         create policy own_delete on {table} for delete to bulkhead_owner using ({own});"
    )
}

/// The owner's connection, open for one task.
struct Owner {
    connection: PgConnection,
}

impl Owner {
    async fn connect(postgres: &Postgres) -> Result<Self, StoreError> {
        let connection = postgres.owner().await.map_err(failed("owner.connect"))?;
        Ok(Self { connection })
    }

    /// Keeps other servers off a leaf until this connection is closed. `false`: one is at it.
    async fn lock(&mut self, leaf: &str) -> Result<bool, StoreError> {
        sqlx::query_scalar("select pg_try_advisory_lock(hashtextextended($1, 11))")
            .bind(leaf)
            .fetch_one(&mut self.connection)
            .await
            .map_err(failed("partition.lock"))
    }

    async fn close(mut self) {
        // Closing returns before the session has ended, and whoever is next would find its lock taken.
        let unlocked = sqlx::query("select pg_advisory_unlock_all()").execute(&mut self.connection).await;
        if let Err(error) = unlocked.map(drop).and(self.connection.close().await) {
            tracing::debug!(error = &error as &dyn std::error::Error, "the owner's connection broke off");
        }
    }

    /// Begins as a tenant: the owner is bound by the policies too.
    async fn begin(&mut self, tenant: TenantId) -> Result<sqlx::Transaction<'_, sqlx::Postgres>, StoreError> {
        // A uuid has no character that could end the literal.
        let begin = format!(
            "begin; select set_config('bulkhead.tenant', '{tenant}', true), \
             set_config('lock_timeout', '{}', true)",
            LOCK_TIMEOUT.as_millis()
        );
        self.connection.begin_with(AssertSqlSafe(begin)).await.map_err(failed("owner.begin"))
    }

    async fn make(&mut self, due: &DuePartition, rows: u32) -> Result<bool, StoreError> {
        const OPERATION: &str = "partition.make";
        let leaf = due.leaf();
        if !self.attached(&leaf).await? {
            // What a drop that was cut short left.
            self.drop_leaf(&leaf).await?;
        }
        if !self.attach(due, &leaf).await? {
            return Ok(false);
        }
        while self.move_rows(due, rows).await? > 0 {}
        sqlx::raw_sql(AssertSqlSafe(format!("analyze {leaf}")))
            .execute(&mut self.connection)
            .await
            .map_err(failed(OPERATION))?;
        let mut tx = self.begin(due.tenant).await?;
        let dimension: Option<i32> =
            sqlx::query_scalar(AssertSqlSafe(format!("select vector_dims(embedding) from {leaf} limit 1")))
                .fetch_optional(&mut *tx)
                .await
                .map_err(failed(OPERATION))?;
        tx.commit().await.map_err(failed(OPERATION))?;
        match dimension {
            Some(dimension) if dimension <= MAX_DIMENSION => self.index(&leaf, dimension).await,
            _ => Ok(false),
        }
    }

    async fn attached(&mut self, leaf: &str) -> Result<bool, StoreError> {
        sqlx::query_scalar(
            "select exists (select from pg_inherits where inhrelid = to_regclass($1) and not inhdetachpending)",
        )
        .bind(leaf)
        .fetch_one(&mut self.connection)
        .await
        .map_err(failed("partition.make"))
    }

    /// Makes the leaf, empty, and has the namespace's writers write into it from now on. `false`: the namespace is
    /// gone or has left the model.
    ///
    /// Attaching takes no lock that a reader or writer of the model's other leaves would wait for, and looks at no
    /// row: the leaf is empty and its bounds overlap no other's.
    async fn attach(&mut self, due: &DuePartition, leaf: &str) -> Result<bool, StoreError> {
        const OPERATION: &str = "partition.attach";
        let there = self.attached(leaf).await?;
        let (tenant, namespace, model) = (due.tenant, due.namespace, due.model.as_str());
        let mut tx = self.begin(tenant).await?;
        sqlx::query(LAYOUT).execute(&mut *tx).await.map_err(failed(OPERATION))?;
        let known = sqlx::query(
            "update namespace set homes = array_append(array_remove(homes, $3), $3)
             where tenant_id = $1 and namespace_id = $2 and $3 in (model_id, building)",
        )
        .bind(tenant.0)
        .bind(namespace.0)
        .bind(model)
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        if known.rows_affected() == 0 {
            return Ok(false);
        }
        if !there {
            let statements = format!(
                "create table {leaf} (like chunk_embedding including defaults,
                     check (tenant_id = '{tenant}' and namespace_id = '{namespace}' and model_id = '{model}'));
                 {storage} {secure}
                 alter table chunk_embedding_{model} attach partition {leaf} for values in ('{namespace}')",
                storage = storage(leaf),
                secure = secure(leaf),
            );
            sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *tx).await.map_err(failed(OPERATION))?;
        }
        tx.commit().await.map_err(failed(OPERATION))?;
        Ok(true)
    }

    /// Moves some rows from the shared leaf. Holds the namespace's row, as its writers do, so that no row is
    /// deleted while it moves.
    async fn move_rows(&mut self, due: &DuePartition, rows: u32) -> Result<u64, StoreError> {
        const OPERATION: &str = "partition.move";
        let mut tx = self.begin(due.tenant).await?;
        sqlx::query("select from namespace where tenant_id = $1 and namespace_id = $2 for update")
            .bind(due.tenant.0)
            .bind(due.namespace.0)
            .execute(&mut *tx)
            .await
            .map_err(failed(OPERATION))?;
        let moved = sqlx::query(
            "update chunk_embedding set home = $2
             where tenant_id = $1 and namespace_id = $2 and model_id = $3 and home = $5 and chunk_id in (
                 select chunk_id from chunk_embedding
                 where tenant_id = $1 and namespace_id = $2 and model_id = $3 and home = $5
                 order by chunk_id limit $4)",
        )
        .bind(due.tenant.0)
        .bind(due.namespace.0)
        .bind(due.model.as_str())
        .bind(i64::from(rows.max(1)))
        .bind(Uuid::nil())
        .execute(&mut *tx)
        .await
        .map_err(failed(OPERATION))?;
        tx.commit().await.map_err(failed(OPERATION))?;
        Ok(moved.rows_affected())
    }

    /// Builds the graph while reads and writes go on.
    async fn index(&mut self, leaf: &str, dimension: i32) -> Result<bool, StoreError> {
        const OPERATION: &str = "partition.index";
        let valid: Option<bool> =
            sqlx::query_scalar("select indisvalid from pg_index where indexrelid = to_regclass($1)")
                .bind(format!("{leaf}_hnsw"))
                .fetch_optional(&mut self.connection)
                .await
                .map_err(failed(OPERATION))?;
        if valid == Some(true) {
            return Ok(true);
        }
        if valid == Some(false) {
            // Left by a build that was cut short.
            let drop = format!("drop index concurrently if exists {leaf}_hnsw");
            sqlx::raw_sql(AssertSqlSafe(drop))
                .execute(&mut self.connection)
                .await
                .map_err(failed(OPERATION))?;
        }
        let create = format!(
            "create index concurrently {leaf}_hnsw on {leaf}
             using hnsw ((embedding::vector({dimension})) vector_ip_ops) with (m = 16, ef_construction = 128)"
        );
        sqlx::raw_sql(AssertSqlSafe(create))
            .execute(&mut self.connection)
            .await
            .map_err(failed(OPERATION))?;
        Ok(true)
    }

    /// Drops a leaf that no namespace calls its home. `false`: it was not there.
    ///
    /// Detaching concurrently waits for those who read the model's partition instead of making them wait.
    async fn drop_leaf(&mut self, leaf: &str) -> Result<bool, StoreError> {
        const OPERATION: &str = "partition.drop";
        let parent: Option<(Option<String>, Option<bool>)> = sqlx::query_as(
            "select h.inhparent::regclass::text, h.inhdetachpending
             from pg_class c left join pg_inherits h on h.inhrelid = c.oid where c.oid = to_regclass($1)",
        )
        .bind(leaf)
        .fetch_optional(&mut self.connection)
        .await
        .map_err(failed(OPERATION))?;
        let Some((parent, pending)) = parent else { return Ok(false) };
        if let Some(parent) = parent {
            let how = if pending == Some(true) { "finalize" } else { "concurrently" };
            let detach = format!("alter table {parent} detach partition {leaf} {how}");
            sqlx::raw_sql(AssertSqlSafe(detach))
                .execute(&mut self.connection)
                .await
                .map_err(failed(OPERATION))?;
        }
        let drop = format!("drop table if exists {leaf}");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut self.connection).await.map_err(failed(OPERATION))?;
        Ok(true)
    }
}

impl Postgres {
    /// How a namespace of so many chunks is searched: a large one through a graph of its own, once it has one.
    pub(super) fn search_plans(&self, chunks: u64) -> Plans {
        if chunks >= self.vectors.own_partition_from_chunks {
            Plans::Graph { candidates: self.vectors.hnsw_candidates }
        } else {
            Plans::Usual
        }
    }
}

impl VectorSettings {
    /// What is wrong with the settings.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut require = |holds: bool, fault: &str| {
            if !holds {
                faults.push(format!("database.vectors.{fault}"));
            }
        };
        require(self.own_partition_from_chunks >= 1, "own_partition_from_chunks: at least 1");
        require((1..=1000).contains(&self.hnsw_candidates), "hnsw_candidates: 1 to 1000");
        require((1..=100_000).contains(&self.move_rows), "move_rows: 1 to 100000");
        require(self.sweep_seconds >= 1, "sweep_seconds: at least 1");
        faults
    }
}
