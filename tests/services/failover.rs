//! Whole servers over a primary and its standby.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{ModelId, SystemIds};
use bulkhead::store::error::{ErrorKind, Retry};
use bulkhead::store::postgres::replica::ReplicaSettings;
use bulkhead::store::postgres::{PoolSettings, Postgres, Reach, RoleAddresses};
use sqlx::postgres::PgConnection;

use crate::Test;
use crate::clusters::{Cluster, Pair};
use crate::whole::{PATIENCE, Tenant, UNLIMITED, Whole};

/// All of them.
pub fn tests() -> Vec<Test> {
    tests![
        a_promoted_standby_is_used_by_itself_and_has_all_that_was_acknowledged,
        an_old_primary_that_comes_back_is_not_written_to,
        what_only_the_owner_may_do_is_put_off_while_no_server_is_the_primary,
    ]
}

async fn count(connection: &mut PgConnection, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(connection).await.expect("a count")
}

/// Sends documents until the primary was lost and one is taken in again; the names of those that were acknowledged.
async fn write_until_it_goes_on(server: &Whole, tenant: &Tenant, names: &str) -> BTreeSet<String> {
    let (mut acknowledged, mut refused) = (BTreeSet::new(), 0);
    let end = Instant::now() + PATIENCE;
    for at in 0.. {
        let name = format!("{names}-{at}");
        match server.put(tenant, &name, &format!("Buoy {at} lies off {names}.")).await {
            (200, _) => drop(acknowledged.insert(name)),
            (503, true) => refused += 1,
            other => panic!("neither taken nor put off: {other:?}"),
        }
        if refused > 0 && acknowledged.len() > 5 && acknowledged.contains(&format!("{names}-{at}")) {
            return acknowledged;
        }
        assert!(Instant::now() < end, "{refused} were refused and {} taken", acknowledged.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    unreachable!("it counts for ever");
}

/// Everything that was acknowledged is there once.
async fn all_are_there(connection: &mut PgConnection, acknowledged: &BTreeSet<String>) {
    let names: Vec<&String> = acknowledged.iter().collect();
    let there = "select count(distinct file_name) from document_version where file_name = any($1)";
    let there: i64 =
        sqlx::query_scalar(there).bind(&names).fetch_one(&mut *connection).await.expect("a count");
    assert_eq!(usize::try_from(there).expect("a count"), names.len(), "acknowledged, and there");
    let end = Instant::now() + PATIENCE;
    while count(connection, "select count(*) from job where state in ('queued', 'running')").await > 0 {
        assert!(Instant::now() < end, "jobs stay");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(count(connection, "select count(*) from job where state = 'failed'").await, 0);
}

async fn a_promoted_standby_is_used_by_itself_and_has_all_that_was_acknowledged() {
    let mut pair = Pair::start().await;
    let settings = format!("database.url = '{}'\n{UNLIMITED}", pair.url());
    let server = Whole::start(&pair.folder.0.join("server"), &settings).await;
    let (alice, bob) = (server.tenant().await, server.tenant().await);
    for (tenant, word) in [(&alice, "Ottoline"), (&bob, "Barnaby")] {
        assert_eq!(
            server.put(tenant, "light", &format!("{word} keeps the light at Pier Nine.")).await.0,
            200
        );
        server.processed(tenant, 1).await;
    }
    let acknowledged = async { write_until_it_goes_on(&server, &alice, "pier-ten").await };
    let change = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        pair.primary.kill();
        tokio::time::sleep(Duration::from_secs(3)).await;
        pair.standby.promote();
    };
    let (acknowledged, ()) = tokio::join!(acknowledged, change);
    all_are_there(&mut pair.standby.superuser().await, &acknowledged).await;
    for (tenant, own, other) in [(&alice, "Ottoline", "Barnaby"), (&bob, "Barnaby", "Ottoline")] {
        let found = server.found(tenant, "Who keeps the light at Pier Nine?").await;
        assert!(found.contains(own) && !found.contains(other), "{found}");
    }
    // What an operator does goes there too.
    server.tenant().await;
    server.stop().await;
}

async fn an_old_primary_that_comes_back_is_not_written_to() {
    const DOCUMENTS: &str = "select count(*) from document_version";
    let mut pair = Pair::start().await;
    let settings = format!("database.url = '{}'\n{UNLIMITED}", pair.url());
    let server = Whole::start(&pair.folder.0.join("server"), &settings).await;
    let tenant = server.tenant().await;
    assert_eq!(server.put(&tenant, "light", "Ottoline keeps the light at Pier Nine.").await.0, 200);
    server.processed(&tenant, 1).await;
    // It is promoted while the old one still runs, which would take writes.
    pair.primary.run("alter system set synchronous_standby_names = ''").await;
    pair.primary.run("select pg_reload_conf()").await;
    pair.standby.promote();
    let end = Instant::now() + PATIENCE;
    let at_new = async || {
        let mut promoted = pair.standby.superuser().await;
        let seen = "select count(*) from pg_stat_activity where usename = 'bulkhead_app'";
        count(&mut promoted, seen).await > 0
    };
    while !at_new().await {
        let _status = server.put(&tenant, "meanwhile", "A text of the meantime.").await;
        assert!(Instant::now() < end, "the promoted one is not used");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Connections of before may be in use until now; none is given out again.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut old = pair.primary.superuser().await;
    let before = count(&mut old, DOCUMENTS).await;
    for at in 0..10 {
        assert_eq!(server.put(&tenant, &format!("after-{at}"), &format!("Buoy {at}.")).await.0, 200);
    }
    assert_eq!(count(&mut old, DOCUMENTS).await, before, "written to the old one");
    drop(old);
    // The promoted one leaves for a while: better none than the old one.
    let taken = count(&mut pair.standby.superuser().await, DOCUMENTS).await;
    pair.standby.kill();
    let end = Instant::now() + Duration::from_secs(8);
    while Instant::now() < end {
        let (status, again) = server.put(&tenant, "lost", "Nobody takes this.").await;
        assert_eq!((status, again), (503, true));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(count(&mut pair.primary.superuser().await, DOCUMENTS).await, before);
    pair.standby.start().await;
    let end = Instant::now() + PATIENCE;
    while server.put(&tenant, "again", "It is back.").await.0 != 200 {
        assert!(Instant::now() < end, "it is not used again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(count(&mut pair.standby.superuser().await, DOCUMENTS).await > taken);
    server.stop().await;
}

async fn what_only_the_owner_may_do_is_put_off_while_no_server_is_the_primary() {
    let mut pair = Pair::start().await;
    pair.primary.kill();
    let all = |cluster: &Cluster| {
        let [owner, app, auth, dispatch, control] = std::array::from_fn(|_| cluster.administrator());
        RoleAddresses { owner, app, auth, dispatch, control }
    };
    let pools = PoolSettings {
        query_connections: 2,
        ingest_connections: 2,
        tenant_query_connections: 1,
        tenant_ingest_connections: 1,
        acquire_timeout_ms: 1000,
    };
    let (standby, gone) = (all(&pair.standby), all(&pair.primary));
    // Whichever is asked last.
    for (primary, other) in [(&standby, &gone), (&gone, &standby)] {
        let reach = Reach { others: vec![other.clone()], ..Reach::from(primary) };
        let model = ModelId::parse("0123456789abcdef").expect("a model");
        let (clock, ids) = (Arc::new(SystemClock), Arc::new(SystemIds(SystemClock)));
        let postgres = Postgres::new(reach, &pools, model, clock, ids);
        let calls = ReplicaSettings::default().calls;
        let opened = postgres.with_replica(&standby.app, &calls, &pools, &Arc::default()).await;
        let error = opened.err().expect("nobody is the primary");
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        assert!(matches!(error.retry, Retry::After(_)) && error.context.contains("primary"), "{error}");
    }
}
