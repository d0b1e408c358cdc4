//! Looks at the database for the person who runs it: what is wrong, why that matters, and the statement that mends it.
//!
//! It asks the checks of the start ([`super::bootstrap`], [`super::migrate`]) and, of the running database, what the
//! roles for it may know: catalogues as the owner, heads of jobs and histories as the dispatcher.
//!
//! **Invariant:** nothing is changed, and no row of a tenant is read but heads: identities, positions, states, counts.

use chrono::{DateTime, Duration, Utc};
use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions as _, Connection as _};
use uuid::Uuid;

use super::bootstrap::{survey, vector_is_accepted, version_is_accepted};
use super::migrate::isolation_faults;
use super::roles::Role;
use super::session::RolePool;
use super::{Postgres, RoleAddresses, connections};
use crate::domain::finding::{Finding, Report, RoleCount, Severity, TenantCount};
use crate::store::handles::Stores;
use crate::tenancy::OperatorScope;

/// Rows of a list that a report holds.
const LISTED: i64 = 10;
/// Transactions that an index may be behind its namespace.
const BEHIND: i64 = 1000;
/// How long an index that is behind may stand still.
const STANDS_STILL: Duration = Duration::minutes(10);
/// How far two clocks may be apart.
const CLOCKS_APART: Duration = Duration::seconds(5);
/// Indexes that are not led by the tenant, for what is looked up before a tenant is known.
const LOOKED_UP_FIRST: [&str; 2] = ["api_key_lookup", "tenant_slug"];

const AS_ADMINISTRATOR: &str = "As the database's administrator:";
const ISOLATION: &str =
    "A tenant could see or change another's rows; a server does not start on such a database.";

/// Looks at a database that no server of ours uses at the moment.
pub async fn diagnose(addresses: &RoleAddresses, now: impl Fn() -> DateTime<Utc>) -> Report {
    let mut report = Report::default();
    let connect = async |role: Role| {
        let address = if role == Role::Owner { &addresses.owner } else { &addresses.dispatch };
        address.connect().await.map_err(|error| refused(role, &error))
    };
    match connect(Role::Owner).await {
        Ok(mut owner) => {
            catalogues(&mut report, &mut owner, now).await;
            let _ = owner.close().await;
        }
        Err(finding) => report.findings.push(finding),
    }
    match connect(Role::Dispatch).await {
        Ok(connection) => {
            let _ = connection.close().await;
            let dispatch = connections::single(&addresses.dispatch);
            heads(&mut report, &dispatch).await;
            dispatch.pool.close().await;
        }
        Err(finding) => report.findings.push(finding),
    }
    report
}

impl Stores {
    /// The same for the database of this server, with the connections that tenants hold.
    pub async fn diagnose(&self, _operator: &OperatorScope) -> Report {
        let postgres = self.postgres();
        let mut report = Report::default();
        match postgres.owner().await {
            Ok(mut owner) => {
                catalogues(&mut report, &mut owner, || postgres.clock.now()).await;
                let _ = owner.close().await;
            }
            Err(error) => report.findings.push(refused(Role::Owner, &error)),
        }
        let dispatch = &postgres.pools.dispatch;
        match dispatch.reach().await {
            Ok(()) => heads(&mut report, dispatch).await,
            Err(error) => report.findings.push(refused(Role::Dispatch, &error)),
        }
        report.facts.tenant_connections = held(postgres);
        report
    }
}

/// Connections that tenants hold at this moment, the most first.
fn held(postgres: &Postgres) -> Vec<TenantCount> {
    let held = postgres.pools.held().into_iter();
    let mut held: Vec<TenantCount> =
        held.map(|(tenant, count)| TenantCount { tenant_id: tenant.0, count }).collect();
    held.sort_by_key(|held| (std::cmp::Reverse(held.count), held.tenant_id));
    held.truncate(usize::try_from(LISTED).unwrap_or_default());
    held
}

fn refused(role: Role, error: &sqlx::Error) -> Finding {
    let why = "The server connects as this role and does not start without it.";
    let mend = "A start corrects the roles of the private database. For one of yours, see that it runs, that the folder \
                `secrets` is the one that belongs to it, and that the role may log in.";
    Finding::new(Severity::Error, "database.role", format!("{role} cannot connect: {error}"), why, mend)
}

/// Notes that a check could not be made.
fn failed(report: &mut Report, check: &str, error: &sqlx::Error) {
    report.skip(check, format!("the database refuses to say: {error}"));
}

/// What the catalogues say, to the owner.
async fn catalogues(report: &mut Report, owner: &mut PgConnection, now: impl Fn() -> DateTime<Utc>) {
    versions(report, owner).await;
    roles(report, owner).await;
    match isolation_faults(owner).await {
        Ok(faults) => report.findings.extend(faults.into_iter().map(|(fault, statement)| {
            Finding::new(Severity::Error, "database.isolation", fault, ISOLATION, AS_ADMINISTRATOR)
                .typing(statement)
        })),
        Err(error) => failed(report, "database.isolation", &error),
    }
    grants(report, owner).await;
    indexes(report, owner).await;
    clock(report, owner, now).await;
    connections(report, owner).await;
}

async fn versions(report: &mut Report, owner: &mut PgConnection) {
    const CHECK: &str = "database.version";
    let leaks = "Older releases leak: planner statistics or error texts tell of rows that a policy hides, or functions \
                 that are needed are missing.";
    match survey::version(owner).await {
        Ok(version) => {
            if !version_is_accepted(version.number) {
                let what = format!("PostgreSQL {} is below 15.14, 16.10, 17.6 and 18.0", version.text);
                let mend = "Install the newest release of its major version; the data stays as it is.";
                report.findings.push(Finding::new(Severity::Error, CHECK, what, leaks, mend));
            }
            report.facts.postgresql = Some(version.text);
        }
        Err(error) => failed(report, CHECK, &error),
    }
    match survey::vector_installed(owner).await {
        Ok(found) => {
            if !found.as_deref().is_some_and(vector_is_accepted) {
                let what = match &found {
                    Some(found) => format!("pgvector {found} is below 0.8.0"),
                    None => "the extension vector is not in the database".to_owned(),
                };
                let finding = Finding::new(
                    Severity::Error,
                    CHECK,
                    what,
                    leaks,
                    "Install pgvector 0.8.0 or newer on the server; then, as the database's administrator:",
                );
                let statement = match found {
                    Some(_) => "alter extension vector update",
                    None => "create extension vector schema public",
                };
                report.findings.push(finding.typing(statement));
            }
            report.facts.pgvector = found;
        }
        Err(error) => failed(report, CHECK, &error),
    }
    let durable =
        sqlx::query_scalar::<_, bool>("select current_setting('fsync')::bool").fetch_one(owner).await;
    if matches!(durable, Ok(false)) {
        report.findings.push(Finding::new(
            Severity::Warning,
            "database.durable",
            "what is committed does not survive a crash of the machine (fsync is off)",
            "After a loss of power the database may be damaged beyond repair.",
            "Set database.server.durable = true (fsync = on in a database of yours) and start again.",
        ));
    }
}

async fn roles(report: &mut Report, owner: &mut PgConnection) {
    const CHECK: &str = "database.role";
    let names: Vec<String> = Role::ALL.iter().map(|role| role.name().to_owned()).collect();
    let rows = match survey::roles(owner, &names).await {
        Ok(rows) => rows,
        Err(error) => return failed(report, CHECK, &error),
    };
    let why = "Each role may do one thing, so that a mistake of the program meets a refusal of the database.";
    let mend = "A start of the server corrects it where it may; else, as the database's administrator:";
    for role in Role::ALL {
        let Some(row) = rows.iter().find(|row| row.name == role.name()) else {
            let what = format!("role {role}: it is not there");
            report.findings.push(Finding::new(
                Severity::Error,
                CHECK,
                what,
                why,
                "A start of the server makes it.",
            ));
            continue;
        };
        let corrections = row.corrections(role);
        if !corrections.is_empty() {
            let what = format!("role {role}: not as it should be, which is {}", corrections.join(" "));
            let statement = format!("alter role {role} {}", corrections.join(" "));
            report.findings.push(Finding::new(Severity::Error, CHECK, what, why, mend).typing(statement));
        }
        for of in &row.member_of {
            let what = format!("role {role}: a member of {of}, whose rights it has");
            let statement = format!("revoke \"{of}\" from {role}");
            let finding = Finding::new(Severity::Error, CHECK, what, why, AS_ADMINISTRATOR);
            report.findings.push(finding.typing(statement));
        }
        if row.settings != survey::wanted_settings(role) {
            let what = format!("role {role}: sessions start with {}", row.settings.join(", "));
            let why = "Its statements may run for ever, or stop too early.";
            report.findings.push(Finding::new(
                Severity::Warning,
                CHECK,
                what,
                why,
                "A start of the server corrects it.",
            ));
        }
    }
}

/// Rights that no role should have, whatever tables there are.
async fn grants(report: &mut Report, owner: &mut PgConnection) {
    const CHECK: &str = "database.grants";
    let found: Result<Vec<(String, String)>, _> = sqlx::query_as(
        "select format('%s may %s %s', coalesce(r.rolname, 'everybody'), lower(g.privilege_type), c.relname),
             format('revoke %s on %I from %s', lower(g.privilege_type), c.relname,
                 coalesce(quote_ident(r.rolname), 'public'))
         from pg_class c cross join lateral aclexplode(c.relacl) g left join pg_roles r on r.oid = g.grantee
         where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm')
             and g.grantee <> c.relowner and case coalesce(r.rolname, '')
                 when 'bulkhead_backup' then g.privilege_type <> 'SELECT'
                 when 'bulkhead_app' then g.privilege_type not in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
                     or c.relname in ('tenant', 'api_key', 'operator_key', '_sqlx_migrations')
                     or c.relname = 'audit_event' and g.privilege_type in ('UPDATE', 'DELETE')
                     or c.relname = 'audit_head' and g.privilege_type = 'DELETE'
                 when 'bulkhead_control' then g.privilege_type not in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
                     or c.relname in ('document', 'document_version', 'chunk', 'chunk_embedding', 'chunk_mention',
                         'term_frequency', 'namespace', 'idempotency', 'outbox', 'consumer', '_sqlx_migrations')
                     or c.relname = 'audit_event' and g.privilege_type in ('UPDATE', 'DELETE')
                 when 'bulkhead_dispatch' then not (c.relname = 'outbox' and g.privilege_type = 'DELETE')
                 else true end
         order by 1",
    )
    .fetch_all(owner)
    .await;
    let why = "A mistake of the program in this role's hands would reach rows that it has no business with.";
    match found {
        Ok(rows) => report.findings.extend(rows.into_iter().map(|(what, statement)| {
            Finding::new(Severity::Error, CHECK, what, why, AS_ADMINISTRATOR).typing(statement)
        })),
        Err(error) => failed(report, CHECK, &error),
    }
}

/// An index as the catalogue has it.
#[derive(sqlx::FromRow)]
struct Index {
    name: String,
    table: String,
    unique: bool,
    approximate: bool,
    valid: bool,
}

/// Whether PostgreSQL named it for the time in which it builds an index beside another: `_ccnew` is the one that was
/// not finished, `_ccold` the one that was to be dropped.
fn is_left_by_a_rebuild(index: &str) -> bool {
    let name = index.trim_end_matches(|c: char| c.is_ascii_digit());
    name.ends_with("_ccnew") || name.ends_with("_ccold")
}

async fn indexes(report: &mut Report, owner: &mut PgConnection) {
    const CHECK: &str = "database.index";
    // A partition of one namespace may have a graph of its own: it can hold no other tenant's rows.
    let found: Result<Vec<Index>, _> = sqlx::query_as(
        "select c.relname::text as name, t.relname::text as \"table\", i.indisunique as \"unique\",
             a.amname <> 'btree' as approximate, i.indisvalid as valid
         from pg_index i
         join pg_attribute k on k.attrelid = i.indrelid and k.attname = 'tenant_id'
         join pg_class c on c.oid = i.indexrelid join pg_class t on t.oid = i.indrelid join pg_am a on a.oid = c.relam
         where t.relnamespace = 'public'::regnamespace and c.relname <> all($1)
             and (not i.indisvalid or i.indkey[0] <> k.attnum
                 and not (a.amname <> 'btree' and t.relname ~ '^vectors_[0-9a-f]{16}_[0-9a-f]{32}$'))
         order by 1",
    )
    .bind(LOOKED_UP_FIRST.map(str::to_owned).to_vec())
    .fetch_all(owner)
    .await;
    let rows = match found {
        Ok(rows) => rows,
        Err(error) => return failed(report, CHECK, &error),
    };
    for Index { name: index, table, unique, approximate, valid } in rows {
        let (severity, what, why, statement) = if valid {
            let why = match (unique, approximate) {
                (true, _) => "A refused insert tells a tenant that another has such a row.",
                (_, true) => "What a tenant finds depends on the rows of others.",
                _ => "A tenant's search passes over the rows of others, and takes longer the more they have.",
            };
            let severity = if unique || approximate { Severity::Error } else { Severity::Warning };
            (severity, "not led by the tenant", why, format!("drop index {index}"))
        } else if is_left_by_a_rebuild(&index) {
            let why = "The database keeps it up with each write, and another index does its work.";
            let statement = format!("drop index concurrently {index}");
            (Severity::Warning, "left by a rebuild that broke off", why, statement)
        } else {
            let why = "The database keeps it and does not use it; what it is for is slow.";
            (Severity::Warning, "not valid", why, format!("reindex index {index}"))
        };
        let what = format!("index {index} of {table}: {what}");
        report.findings.push(Finding::new(severity, CHECK, what, why, AS_ADMINISTRATOR).typing(statement));
    }
}

async fn clock(report: &mut Report, owner: &mut PgConnection, now: impl Fn() -> DateTime<Utc>) {
    const CHECK: &str = "database.clock";
    let before = now();
    let theirs = sqlx::query_scalar::<_, DateTime<Utc>>("select clock_timestamp()").fetch_one(owner).await;
    let apart = match theirs {
        Ok(theirs) => (theirs - now()).max(before - theirs),
        Err(error) => return failed(report, CHECK, &error),
    };
    if apart > CLOCKS_APART {
        report.findings.push(
            Finding::new(
                Severity::Error,
                CHECK,
                format!("this machine's clock and the database's are {} s apart", apart.num_seconds()),
                "Leases, tokens and keys end too early or too late, and several servers take each other's jobs.",
                "Set both by the network's time.",
            )
            .typing("timedatectl set-ntp true"),
        );
    }
}

async fn connections(report: &mut Report, owner: &mut PgConnection) {
    const CHECK: &str = "database.connections";
    let found: Result<Vec<(String, i64)>, _> = sqlx::query_as(
        "select usename::text, count(*) from pg_stat_activity
         where datname = current_database() and usename is not null and pid <> pg_backend_pid()
         group by usename order by 2 desc, 1",
    )
    .fetch_all(&mut *owner)
    .await;
    let most: Result<(i64, i64), _> = sqlx::query_as(
        "select current_setting('max_connections')::bigint,
             (select count(*) from pg_stat_activity where backend_type = 'client backend')",
    )
    .fetch_one(owner)
    .await;
    match (found, most) {
        (Ok(rows), Ok((most, all))) => {
            if all * 5 >= most * 4 {
                let what = format!("{all} of {most} connections are in use");
                let why = "When none is left, requests are answered 503.";
                let mend = "Raise database.server.max_connections (max_connections of a database of yours), or lower \
                            [database.pools]; facts.connections tells whose they are.";
                report.findings.push(Finding::new(Severity::Warning, CHECK, what, why, mend));
            }
            report.facts.connections =
                rows.into_iter().map(|(role, count)| RoleCount { role, count }).collect();
            report.facts.max_connections = Some(most);
        }
        (Err(error), _) | (_, Err(error)) => failed(report, CHECK, &error),
    }
}

/// What the dispatcher sees of all tenants: positions, states, counts.
async fn heads(report: &mut Report, dispatch: &RolePool) {
    largest(report, dispatch).await;
    behind(report, dispatch).await;
    jobs(report, dispatch).await;
}

async fn largest(report: &mut Report, dispatch: &RolePool) {
    let found: Result<Vec<(Uuid, i64)>, _> = sqlx::query_as(
        "select tenant_id, sum(chunks)::bigint from namespace group by tenant_id having sum(chunks) > 0
         order by 2 desc, 1 limit $1",
    )
    .bind(LISTED)
    .fetch_all(dispatch)
    .await;
    match found {
        Ok(rows) => report.facts.largest_tenants = counts(rows),
        Err(error) => failed(report, "database.largest", &error),
    }
}

fn counts(rows: Vec<(Uuid, i64)>) -> Vec<TenantCount> {
    rows.into_iter().map(|(tenant_id, count)| TenantCount { tenant_id, count }).collect()
}

async fn behind(report: &mut Report, dispatch: &RolePool) {
    const CHECK: &str = "indexes.behind";
    let found: Result<Vec<(Uuid, Uuid, i64)>, _> = sqlx::query_as(
        "select n.tenant_id, n.namespace_id, n.seq - coalesce(min(c.seq), 0) from namespace n
         left join consumer c using (tenant_id, namespace_id)
         group by n.tenant_id, n.namespace_id, n.seq
         having n.seq - coalesce(min(c.seq), 0) > $1
             or n.seq > min(c.seq) and max(c.updated_at) < clock_timestamp() - $2::bigint * interval '1 second'
         order by 3 desc, 1, 2 limit $3",
    )
    .bind(BEHIND)
    .bind(STANDS_STILL.num_seconds())
    .bind(LISTED)
    .fetch_all(dispatch)
    .await;
    match found {
        Ok(rows) => report.findings.extend(rows.into_iter().map(|(tenant, namespace, count)| {
            let what = format!("the index of namespace {namespace} of tenant {tenant} is {count} changes behind");
            let why = "Questions are answered rightly, and slowly: the database searches what the index lacks.";
            let mend = "It follows by itself while a server runs. If it does not, the server's log says why; a shard that is \
                        moved away while no server runs is written anew.";
            Finding::new(Severity::Warning, CHECK, what, why, mend)
        })),
        Err(error) => failed(report, CHECK, &error),
    }
}

async fn jobs(report: &mut Report, dispatch: &RolePool) {
    const CHECK: &str = "jobs.failed";
    let found: Result<Vec<(Uuid, i64)>, _> = sqlx::query_as(
        "select tenant_id, count(*) from job where state = 'failed' and due_at > clock_timestamp() - interval '1 day'
         group by tenant_id order by 2 desc, 1 limit $1",
    )
    .bind(LISTED)
    .fetch_all(dispatch)
    .await;
    match found {
        Ok(rows) => report.findings.extend(rows.into_iter().map(|(tenant, count)| {
            let what = format!("{count} jobs of tenant {tenant} that were due in the last day failed");
            let why = "These documents, or their new versions, cannot be found.";
            let mend = "The tenant sees each document's reason (GET /documents/{id}, error_msg) and tries them again with \
                        POST /documents/reprocess_failed.";
            Finding::new(Severity::Warning, CHECK, what, why, mend)
        })),
        Err(error) => failed(report, CHECK, &error),
    }
}
