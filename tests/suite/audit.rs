//! The audit log on PostgreSQL: what is written stays, and what does not stay is noticed.

use std::sync::Arc;

use async_trait::async_trait;
use bulkhead::domain::audit::{AuditEntry, AuditEvent, AuditKind, ChainFault, ChainReport, Decision};
use bulkhead::domain::clock::{Clock as _, SystemClock};
use bulkhead::domain::ids::TenantId;
use bulkhead::store::postgres::audit::PostgresAudit;
use bulkhead::store::postgres::roles::Role;
use bulkhead::store::{Audit, AuditLog, AuditSettings};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _};
use uuid::Uuid;

use crate::conformance_audit::{Damage, Ground, conforms};
use crate::database::Database;
use crate::place::{code, connect};

fn event(tenant: Option<TenantId>, number: u64) -> AuditEvent {
    let entry = AuditEntry::new(AuditKind::Query, "query.create", Decision::Allowed)
        .with_ids([format!("chunk-{number}")])
        .because("a reason with \u{0} and \" and é")
        .of_query([3; 32]);
    AuditEvent { tenant, principal: "key:k1".to_owned(), at: SystemClock.now(), entry }
}

fn events(tenant: TenantId, count: u64) -> Vec<AuditEvent> {
    (0..count).map(|number| event(Some(tenant), number)).collect()
}

async fn only_report(log: &PostgresAudit, tenant: TenantId) -> ChainReport {
    let mut reports = log.verify(Some(tenant)).await.expect("examined");
    assert_eq!(reports.len(), 1, "{reports:?}");
    reports.remove(0)
}

async fn run(superuser: &mut PgConnection, statement: &str, tenant: TenantId) {
    let statement = statement.replace("$tenant", &format!("'{tenant}'"));
    let done = sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(superuser).await;
    assert!(done.unwrap_or_else(|error| panic!("{statement}: {error}")).rows_affected() > 0, "{statement}");
}

/// What is done to a chain of twelve events, and what is said of it afterwards.
const TAMPERINGS: [(&str, &str, Option<ChainFault>); 15] = [
    ("nothing", "select 1", None),
    (
        "a body",
        "update audit_event set body = replace(body, 'allowed', 'denied') where tenant_id = $tenant and number = 7",
        Some(ChainFault::Changed { number: 7 }),
    ),
    (
        "a body with a hash made to fit",
        "update audit_event set body = replace(body, 'allowed', 'denied'),
                 hash = sha256(previous || convert_to(replace(body, 'allowed', 'denied'), 'UTF8'))
             where tenant_id = $tenant and number = 7",
        Some(ChainFault::Changed { number: 8 }),
    ),
    (
        "the last body with a hash made to fit",
        "update audit_event set body = replace(body, 'allowed', 'denied'),
                 hash = sha256(previous || convert_to(replace(body, 'allowed', 'denied'), 'UTF8'))
             where tenant_id = $tenant and number = 12",
        Some(ChainFault::Head { number: 12 }),
    ),
    (
        "a time",
        "update audit_event set at = at - interval '1 day' where tenant_id = $tenant and number = 3",
        Some(ChainFault::Changed { number: 3 }),
    ),
    (
        "a kind",
        "update audit_event set kind = 'write' where tenant_id = $tenant and number = 3",
        Some(ChainFault::Changed { number: 3 }),
    ),
    (
        "one removed",
        "delete from audit_event where tenant_id = $tenant and number = 5",
        Some(ChainFault::Removed { number: 5 }),
    ),
    (
        "the first removed",
        "delete from audit_event where tenant_id = $tenant and number = 1",
        Some(ChainFault::Removed { number: 1 }),
    ),
    (
        "two in each other's place",
        "update audit_event set number = -number where tenant_id = $tenant and number in (4, 6);
             update audit_event set number = 10 + number where tenant_id = $tenant and number < 0",
        Some(ChainFault::Reordered { number: 4 }),
    ),
    (
        "one inserted between two, that links as it should",
        "update audit_event set number = -1 - number where tenant_id = $tenant and number >= 5;
             update audit_event set number = -number where tenant_id = $tenant and number < 0;
             insert into audit_event select tenant_id, node, 5, at, kind, replace(body, '\"number\":4', '\"number\":5'), hash,
                 sha256(hash || convert_to(replace(body, '\"number\":4', '\"number\":5'), 'UTF8'))
             from audit_event where tenant_id = $tenant and number = 4",
        Some(ChainFault::Inserted { number: 5 }),
    ),
    (
        "the end cut off",
        "delete from audit_event where tenant_id = $tenant and number > 9",
        Some(ChainFault::Truncated { number: 10 }),
    ),
    (
        "everything removed",
        "delete from audit_event where tenant_id = $tenant",
        Some(ChainFault::Truncated { number: 1 }),
    ),
    (
        "one inserted after the end",
        "insert into audit_event select tenant_id, node, 13, at, kind, body, hash, hash from audit_event
             where tenant_id = $tenant and number = 12",
        Some(ChainFault::Inserted { number: 13 }),
    ),
    (
        "the head removed",
        "delete from audit_head where tenant_id = $tenant",
        Some(ChainFault::Head { number: 12 }),
    ),
    (
        "the end cut off and the head moved back",
        "delete from audit_event where tenant_id = $tenant and number > 9;
             update audit_head set number = 9 where tenant_id = $tenant",
        Some(ChainFault::Head { number: 9 }),
    ),
];

#[tokio::test]
async fn tampering_is_found_and_named() {
    let database = Database::start().await;
    let log = PostgresAudit::new(database.postgres.clone(), "node-1");
    let mut superuser = database.superuser().await;
    for (index, (case, statement, fault)) in TAMPERINGS.iter().enumerate() {
        let tenant = TenantId(Uuid::from_u128(1 + index as u128));
        log.append(Some(tenant), &events(tenant, 8)).await.expect("appended");
        log.append(Some(tenant), &events(tenant, 4)).await.expect("appended");
        run(&mut superuser, statement, tenant).await;
        let report = only_report(&log, tenant).await;
        assert_eq!(report.fault, *fault, "{case}: {report:?}");
        assert_eq!(report.node, "node-1");
    }
    // An event taken over from a neighbour is foreign to the chain.
    let (from, to) = (TenantId(Uuid::from_u128(100)), TenantId(Uuid::from_u128(101)));
    for tenant in [from, to] {
        log.append(Some(tenant), &events(tenant, 1)).await.expect("appended");
    }
    run(
        &mut superuser,
        &format!(
            "delete from audit_event where tenant_id = $tenant; delete from audit_head where tenant_id = $tenant;
             insert into audit_head select $tenant, node, number, hash from audit_head where tenant_id = '{from}';
             insert into audit_event select $tenant, node, number, at, kind, body, previous, hash
             from audit_event where tenant_id = '{from}'"
        ),
        to,
    )
    .await;
    assert_eq!(only_report(&log, to).await.fault, Some(ChainFault::Changed { number: 1 }));
    assert_eq!(only_report(&log, from).await.fault, None);
    superuser.close().await.expect("closed");
    database.stop().await;
}

#[tokio::test]
async fn no_role_of_the_server_changes_or_deletes_an_event_or_sees_a_neighbours() {
    let database = Database::start().await;
    let log = PostgresAudit::new(database.postgres.clone(), "node-1");
    let (alice, bob) = (TenantId(Uuid::from_u128(1)), TenantId(Uuid::from_u128(2)));
    for tenant in [alice, bob] {
        log.append(Some(tenant), &events(tenant, 2)).await.expect("appended");
    }
    log.append(None, &[event(None, 0)]).await.expect("appended");
    for role in [Role::App, Role::Control, Role::Auth, Role::Dispatch] {
        let mut connection = connect(&database.server.address(role, "bulkhead")).await;
        for forbidden in [
            "update audit_event set kind = 'write'",
            "delete from audit_event",
            "truncate audit_event",
            "delete from audit_head",
            "delete from audit_anchor",
            "alter table audit_event disable row level security",
        ] {
            let statement = format!("set bulkhead.tenant = '{alice}'; {forbidden}");
            let refused = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await;
            assert_eq!(code(&refused.expect_err(forbidden)), "42501", "{role}: {forbidden}");
        }
    }
    let mut app = connect(&database.server.address(Role::App, "bulkhead")).await;
    for (tenant, seen) in [(alice, 2), (bob, 2), (TenantId(Uuid::nil()), 0)] {
        let set = format!("set bulkhead.tenant = '{tenant}'");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(&mut app).await.expect("set");
        let count: i64 =
            sqlx::query_scalar("select count(*) from audit_event").fetch_one(&mut app).await.expect("count");
        assert_eq!(count, seen, "{tenant}");
    }
    for tenant in [Uuid::nil(), alice.0] {
        let refused = foreign_head(&mut app, tenant).await;
        assert_eq!(code(&refused), "42501", "{tenant}");
    }
    assert!(log.append(Some(alice), &[event(Some(bob), 0)]).await.is_err());
    drop(app);
    database.stop().await;
}

async fn foreign_head(app: &mut PgConnection, tenant: Uuid) -> sqlx::Error {
    sqlx::query("insert into audit_head (tenant_id, node, number, hash) values ($1, 'n', 0, sha256(''))")
        .bind(tenant)
        .execute(app)
        .await
        .expect_err("the row is not the tenant's own")
}

/// The log in a database of the test's own.
struct InPostgres(Database);

#[async_trait]
impl Ground for InPostgres {
    async fn log(&self, node: &str) -> Arc<dyn AuditLog> {
        Arc::new(PostgresAudit::new(self.0.postgres.clone(), node))
    }

    async fn damage(&self, tenant: TenantId, damage: Damage) {
        let statement = match damage {
            Damage::Changed => {
                "update audit_event set body = replace(body, 'allowed', 'denied')
                 where tenant_id = $tenant and number = 7"
            }
            Damage::Removed => "delete from audit_event where tenant_id = $tenant and number = 5",
            Damage::Inserted => {
                "insert into audit_event select tenant_id, node, 13, at, kind, body, hash, hash from audit_event
                 where tenant_id = $tenant and number = 12"
            }
            Damage::Reordered => {
                "update audit_event set number = -number where tenant_id = $tenant and number in (4, 6);
                 update audit_event set number = 10 + number where tenant_id = $tenant and number < 0"
            }
            Damage::Truncated => "delete from audit_event where tenant_id = $tenant and number > 9",
        };
        run(&mut self.0.superuser().await, statement, tenant).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_in_postgresql_conforms() {
    let ground = InPostgres(Database::start().await);
    conforms(&ground).await;
    ground.0.stop().await;
}

#[tokio::test]
async fn more_events_than_a_page_of_examination_are_examined() {
    let database = Database::start().await;
    let (log, tenant) =
        (PostgresAudit::new(database.postgres.clone(), "node-1"), TenantId(Uuid::from_u128(1)));
    log.append(Some(tenant), &events(tenant, 2100)).await.expect("appended");
    let report = only_report(&log, tenant).await;
    assert_eq!((report.events, report.fault), (2100, None));
    database.stop().await;
}

#[tokio::test]
async fn what_is_recorded_together_is_written_in_few_transactions() {
    let database = Database::start().await;
    let log: Arc<dyn AuditLog> = Arc::new(PostgresAudit::new(database.postgres.clone(), "node-1"));
    let audit = Audit::start(Arc::clone(&log), AuditSettings::default(), Arc::new(SystemClock), &[1; 32]);
    let (alice, bob) = (database.tenant("alice").await, database.tenant("bob").await);
    let hash = audit.query_hash(alice.scope(), "a secret question");
    let entry = || AuditEntry::new(AuditKind::Query, "query.create", Decision::Allowed).of_query(hash);
    let clock = std::time::Instant::now();
    for _ in 0..1000 {
        audit.record(alice.scope(), entry()).await;
        audit.record(bob.scope(), entry()).await;
    }
    audit.flush().await;
    println!("2000 queued events: {:?}", clock.elapsed());
    let clock = std::time::Instant::now();
    let refusals = (0..500)
        .map(|_| audit.record_server(AuditEntry::new(AuditKind::Admin, "server.start", Decision::Allowed)));
    for written in futures::future::join_all(refusals).await {
        written.expect("written");
    }
    println!("500 events at once, each awaited: {:?}", clock.elapsed());
    assert_eq!(audit.counts().written, 2500);
    for (tenant, events) in
        [(Some(alice.scope().tenant()), 1000), (Some(bob.scope().tenant()), 1000), (None, 500)]
    {
        let reports = log.verify(tenant).await.expect("examined");
        assert_eq!((reports[0].events, reports[0].fault), (events, None));
    }
    let mut superuser = database.superuser().await;
    // A transaction's rows share its identifier.
    let transactions: i64 = sqlx::query_scalar("select count(distinct xmin::text) from audit_event")
        .fetch_one(&mut superuser)
        .await
        .expect("count");
    assert!(transactions < 40, "{transactions} transactions");
    let leaked: i64 =
        sqlx::query_scalar("select count(*) from audit_event where body like '%secret question%'")
            .fetch_one(&mut superuser)
            .await
            .expect("count");
    assert_eq!(leaked, 0);
    superuser.close().await.expect("closed");
    database.stop().await;
}
