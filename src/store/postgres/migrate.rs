//! What the owner does at start: migrations, and partitions of models. Its connection closes afterwards.

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};

use super::error::failed;
use super::partitions;
use crate::domain::ids::ModelId;
use crate::store::error::{ErrorKind, StoreError};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

/// The newest migration that this version knows.
#[must_use]
pub fn newest() -> i64 {
    MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
}

/// Brings the schema up to date and makes the model's partition of embeddings.
///
/// # Errors
/// `Unavailable` when the database cannot be reached, `Internal` when a migration fails.
pub async fn migrate(owner: &PgConnectOptions, model: &ModelId) -> Result<(), StoreError> {
    const OPERATION: &str = "migrate";
    let mut connection = owner.connect().await.map_err(failed(OPERATION))?;
    MIGRATIONS.run(&mut connection).await.map_err(|error| {
        StoreError::new(ErrorKind::Internal, "postgres", OPERATION, "a migration failed").with_source(error)
    })?;
    partitions::make_model(&mut connection, model).await.map_err(failed("partition.create"))?;
    connection.close().await.map_err(failed(OPERATION))
}

/// Makes the partitions of further models.
///
/// # Errors
/// `Unavailable` when the database cannot be reached.
pub async fn add_models(owner: &PgConnectOptions, models: &[ModelId]) -> Result<(), StoreError> {
    const OPERATION: &str = "partition.create";
    let mut connection = owner.connect().await.map_err(failed(OPERATION))?;
    for model in models {
        partitions::make_model(&mut connection, model).await.map_err(failed(OPERATION))?;
    }
    connection.close().await.map_err(failed(OPERATION))
}

/// Refuses a database in which a tenant could see another.
///
/// # Errors
/// `Foreign`, naming everything that is wrong; `Unavailable` when the database cannot be reached.
pub async fn require_isolation(owner: &PgConnectOptions) -> Result<(), StoreError> {
    const OPERATION: &str = "isolation.require";
    let mut connection = owner.connect().await.map_err(failed(OPERATION))?;
    let faults = isolation_faults(&mut connection).await.map_err(failed(OPERATION))?;
    connection.close().await.map_err(failed(OPERATION))?;
    if faults.is_empty() {
        return Ok(());
    }
    let faults: Vec<String> = faults.into_iter().map(|(fault, _)| fault).collect();
    Err(StoreError::new(ErrorKind::Foreign, "postgres", OPERATION, faults.join("; ")))
}

/// Every way in which a tenant could see another, each with the statement that mends it: a table without forced
/// row-level security or without a policy for each command, a policy that checks nothing or is not bound to the
/// tenant, a role that passes by it or owns what it should not, a view or function with the rights of its owner.
pub(super) async fn isolation_faults(
    connection: &mut PgConnection,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    sqlx::query_as(
        "select format('table %s: row-level security is not forced', c.relname),
             format('alter table %1$I enable row level security, force row level security', c.relname)
             from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
                 and c.relname <> '_sqlx_migrations' and not (c.relrowsecurity and c.relforcerowsecurity)
         union all
         select format('table %s: no policy for %s', c.relname, k.command),
             format('create policy own_%1$s on %2$I for %1$s to bulkhead_app, bulkhead_owner, bulkhead_control %3$s',
                 k.command, c.relname, k.rule)
             from pg_class c
             cross join (values
                 ('r', 'select', 'using (tenant_id = current_setting(''bulkhead.tenant'')::uuid)'),
                 ('a', 'insert', 'with check (tenant_id = current_setting(''bulkhead.tenant'')::uuid)'),
                 ('w', 'update', 'using (tenant_id = current_setting(''bulkhead.tenant'')::uuid) with check (tenant_id = current_setting(''bulkhead.tenant'')::uuid)'),
                 ('d', 'delete', 'using (tenant_id = current_setting(''bulkhead.tenant'')::uuid)')
                 ) k(code, command, rule)
             where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
                 and c.relname <> '_sqlx_migrations'
                 and not exists (select from pg_policy p where p.polrelid = c.oid and p.polcmd::text in (k.code, '*'))
         union all
         select format('role %s: passes by row-level security', rolname),
             format('alter role %I nosuperuser nobypassrls', rolname) from pg_roles
             where rolname in ('bulkhead_app', 'bulkhead_auth', 'bulkhead_dispatch', 'bulkhead_control')
                 and (rolsuper or rolbypassrls)
         union all
         select format('table %s: owned by %s', c.relname, r.rolname),
             format('alter table %I owner to bulkhead_owner', c.relname)
             from pg_class c join pg_roles r on r.oid = c.relowner
             where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
                 and r.rolname <> 'bulkhead_owner'
         union all
         select format('policy %s of %s: what is written is not checked', p.polname, c.relname),
             format('alter policy %I on %I with check (tenant_id = current_setting(''bulkhead.tenant'')::uuid)',
                 p.polname, c.relname)
             from pg_policy p join pg_class c on c.oid = p.polrelid
             where c.relnamespace = 'public'::regnamespace and p.polpermissive
                 and p.polcmd in ('a', 'w', '*') and p.polwithcheck is null
         union all
         select format('policy %s of %s: not bound to the tenant', p.polname, c.relname),
             format('alter policy %I on %I %s (tenant_id = current_setting(''bulkhead.tenant'')::uuid)',
                 p.polname, c.relname, e.part)
             from pg_policy p join pg_class c on c.oid = p.polrelid
             cross join lateral (values ('using', p.polqual), ('with check', p.polwithcheck)) e(part, rule)
             where c.relnamespace = 'public'::regnamespace and p.polpermissive and e.rule is not null
                 and (0::oid = any(p.polroles) or 'bulkhead_app'::regrole::oid = any(p.polroles))
                 and strpos(pg_get_expr(e.rule, p.polrelid), 'bulkhead.tenant') = 0
         union all
         select format('view %s: reads with the rights of its owner', c.relname),
             case c.relkind when 'm' then format('drop materialized view %I', c.relname)
                 else format('alter view %I set (security_invoker = true)', c.relname) end
             from pg_class c where c.relnamespace = 'public'::regnamespace
                 and (c.relkind = 'm' or c.relkind = 'v'
                      and not coalesce(c.reloptions::text[] && array['security_invoker=true', 'security_invoker=on'], false))
         union all
         select format('function %s: runs with the rights of its owner', p.proname),
             format('alter function %s security invoker', p.oid::regprocedure)
             from pg_proc p where p.pronamespace = 'public'::regnamespace and p.prosecdef",
    )
    .fetch_all(connection)
    .await
}
