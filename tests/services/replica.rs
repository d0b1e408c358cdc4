//! Whole servers that read from a standby what questions may read there.

use std::time::{Duration, Instant};

use bulkhead::store::postgres::roles::Role;
use serde_json::{Value, json};
use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use crate::Test;
use crate::clusters::{Cluster, Pair};
use crate::database::{NAME, connect};
use crate::whole::{PATIENCE, Tenant, UNLIMITED, Whole};

/// All of them.
pub fn tests() -> Vec<Test> {
    tests![
        a_question_reads_there_what_has_come_there_and_never_less_than_was_acknowledged,
        a_replica_that_is_away_or_no_longer_follows_holds_up_no_question,
        a_replica_that_was_ahead_of_the_promoted_server_is_not_read_from,
        a_replica_that_follows_the_promoted_server_is_read_from_again,
        the_policies_hold_on_the_replica,
    ]
}

const QUESTION: &str = "Who keeps the light at Pier Nine?";

/// Servers over a pair, whose standby is read from.
struct Ground {
    server: Whole,
    alice: Tenant,
    bob: Tenant,
    pair: Pair,
}

impl Ground {
    async fn new() -> Self {
        let pair = Pair::start().await;
        let settings = settings(&pair);
        Self::over(pair, &settings).await
    }

    /// With a third server, which is the one that is read from; any of the pair may be the primary.
    async fn with_third() -> (Self, Cluster) {
        let pair = Pair::start().await;
        let third = pair.third().await;
        let (url, replica) = (pair.url(), third.read_url());
        // Vectors are searched on the primary, so that nothing but the replica is in question.
        let settings = format!(
            "database.url = '{url}'\ndatabase.replica.url = '{replica}'\nvectors.backend = 'pgvector'\n{UNLIMITED}"
        );
        (Self::over(pair, &settings).await, third)
    }

    async fn over(pair: Pair, settings: &str) -> Self {
        let server = Whole::start(&pair.folder.0.join("server"), settings).await;
        let (alice, bob) = (server.tenant().await, server.tenant().await);
        for (tenant, word) in [(&alice, "Ottoline"), (&bob, "Barnaby")] {
            let text = format!("{word} keeps the light at Pier Nine.");
            assert_eq!(server.put(tenant, "light", &text).await.0, 200);
            server.processed(tenant, 1).await;
        }
        Self { server, alice, bob, pair }
    }

    /// Reads that ended so.
    async fn reads(&self, outcome: &str) -> f64 {
        let labels = ["backend=\"postgres-replica\"", &format!("outcome=\"{outcome}\"")];
        self.server.metric("bulkhead_store_calls_total", &labels).await
    }

    /// Asks until a read ended so, each time with the right answer.
    async fn asked_until(&self, outcome: &str) {
        let (before, end) = (self.reads(outcome).await, Instant::now() + PATIENCE);
        loop {
            for (tenant, own, other) in
                [(&self.alice, "Ottoline", "Barnaby"), (&self.bob, "Barnaby", "Ottoline")]
            {
                let found = self.server.found(tenant, QUESTION).await;
                assert!(found.contains(own) && !found.contains(other), "{found}");
            }
            if self.reads(outcome).await > before {
                return;
            }
            assert!(Instant::now() < end, "no read of the replica is {outcome}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn settings(pair: &Pair) -> String {
    let (url, read_url) = (pair.primary.url(), pair.standby.read_url());
    format!("database.url = '{url}'\ndatabase.replica.url = '{read_url}'\n{UNLIMITED}")
}

/// Has all documents of a tenant erased.
async fn clear(server: &Whole, tenant: &Tenant) {
    let cleared = server.request("DELETE", "/documents", tenant).send().await.expect("an answer");
    assert!(cleared.status().is_success(), "{:?}", cleared.text().await);
    let end = Instant::now() + PATIENCE;
    loop {
        let counts = server.request("GET", "/documents/status_counts", tenant).send().await;
        let counts: Value = counts.expect("an answer").json().await.expect("JSON");
        if counts["status_counts"]["all"].as_u64().unwrap_or_default() == 0 {
            return;
        }
        assert!(Instant::now() < end, "not erased: {counts}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_question_reads_there_what_has_come_there_and_never_less_than_was_acknowledged() {
    let ground = Ground::new().await;
    ground.asked_until("ok").await;
    let folder = ground.pair.folder.0.join("second");
    let second = ground.server.beside(&folder, &settings(&ground.pair)).await;

    ground.pair.standby.run("select pg_wal_replay_pause()").await;
    // Written through one server and asked of both, at once.
    let put = ground
        .server
        .put(&ground.alice, "keeper", "Mehitabel keeps the light at Pier Nine on Sundays.")
        .await;
    assert_eq!(put.0, 200);
    ground.server.processed(&ground.alice, 2).await;
    for server in [&ground.server, &second] {
        let found = server.found(&ground.alice, QUESTION).await;
        assert!(found.contains("Mehitabel") && found.contains("Ottoline"), "{found}");
    }
    ground.asked_until("conflict").await;
    // What was erased is in no answer, though the replica still has it.
    clear(&second, &ground.alice).await;
    for server in [&ground.server, &second] {
        let found = server.found(&ground.alice, QUESTION).await;
        assert!(!found.contains("Ottoline") && !found.contains("Mehitabel"), "{found}");
    }
    let held = "select count(*) from chunk";
    let held: i64 = sqlx::query_scalar(held)
        .fetch_one(&mut ground.pair.standby.superuser().await)
        .await
        .expect("a count");
    assert!(held >= 2, "the replica is behind: {held}");

    ground.pair.standby.run("select pg_wal_replay_resume()").await;
    let put = ground.server.put(&ground.alice, "light", "Ottoline keeps the light at Pier Nine.").await;
    assert_eq!(put.0, 200);
    ground.server.processed(&ground.alice, 1).await;
    ground.asked_until("ok").await;
    second.stop().await;
    ground.server.stop().await;
}

async fn a_replica_that_is_away_or_no_longer_follows_holds_up_no_question() {
    let mut ground = Ground::new().await;
    ground.asked_until("ok").await;
    ground.pair.primary.run("alter system set synchronous_standby_names = ''").await;
    ground.pair.primary.run("select pg_reload_conf()").await;
    ground.pair.standby.kill();
    for _ in 0..5 {
        let started = Instant::now();
        assert!(ground.server.found(&ground.alice, QUESTION).await.contains("Ottoline"));
        // The deadline of a read, and two seconds for a busy machine.
        assert!(started.elapsed() < Duration::from_millis(2500), "{:?}", started.elapsed());
    }
    ground.pair.standby.start().await;
    ground.asked_until("ok").await;
    // One that takes writes of its own is nobody's replica any more.
    ground.pair.standby.promote();
    let put = ground
        .server
        .put(&ground.alice, "keeper", "Mehitabel keeps the light at Pier Nine on Sundays.")
        .await;
    assert_eq!(put.0, 200);
    ground.server.processed(&ground.alice, 2).await;
    let before = ground.reads("ok").await;
    for _ in 0..5 {
        assert!(ground.server.found(&ground.alice, QUESTION).await.contains("Mehitabel"));
    }
    assert!((ground.reads("ok").await - before).abs() < f64::EPSILON, "it was read from");
    ground.server.stop().await;
}

/// Asks through the change of the primary until the answer has this word.
async fn found_in_the_end(ground: &Ground, word: &str) {
    let end = Instant::now() + PATIENCE;
    let body = json!({"query": QUESTION, "mode": "mix", "chunk_top_k": 20});
    loop {
        let (status, _, answer) = ground.server.post("/query/data", &ground.alice, &body).await;
        if status == 200 && answer["data"]["chunks"].to_string().contains(word) {
            return;
        }
        assert!(Instant::now() < end, "{word} is not found: {status}: {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn a_replica_that_was_ahead_of_the_promoted_server_is_not_read_from() {
    let (mut ground, mut third) = Ground::with_third().await;
    ground.asked_until("ok").await;
    // What comes now reaches the replica, and not the server that will be promoted.
    ground.pair.standby.kill();
    clear(&ground.server, &ground.alice).await;
    let lost = "Mehitabel keeps the light at Pier Nine on Sundays.";
    assert_eq!(ground.server.put(&ground.alice, "keeper", lost).await.0, 200);
    let end = Instant::now() + PATIENCE;
    let mut replica = third.superuser().await;
    let reached = async |replica: &mut PgConnection| -> bool {
        let reached =
            "select bool_or(text like '%Mehitabel%') and not bool_or(text like '%Ottoline%') from chunk";
        let reached: Option<bool> = sqlx::query_scalar(reached).fetch_one(replica).await.expect("an answer");
        reached.unwrap_or_default()
    };
    while !reached(&mut replica).await {
        assert!(Instant::now() < end, "it does not follow");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ground.pair.primary.kill();
    ground.pair.standby.start().await;
    ground.pair.standby.promote();

    // The promoted one never heard of it. The replica has, and stays as it is.
    found_in_the_end(&ground, "Ottoline").await;
    let before = ground.reads("ok").await;
    for _ in 0..5 {
        let found = ground.server.found(&ground.alice, QUESTION).await;
        assert!(found.contains("Ottoline") && !found.contains("Mehitabel"), "{found}");
    }
    let anew = "Philippa keeps the light at Pier Nine on Mondays.";
    assert_eq!(ground.server.put(&ground.alice, "anew", anew).await.0, 200);
    ground.server.processed(&ground.alice, 2).await;
    let found = ground.server.found(&ground.alice, QUESTION).await;
    assert!(found.contains("Ottoline") && found.contains("Philippa"), "{found}");
    assert!((ground.reads("ok").await - before).abs() < f64::EPSILON, "it was read from");
    assert!(reached(&mut replica).await, "it is where it was");
    drop(replica);

    // Made anew from the promoted one, it is a replica again.
    third.kill();
    third.copy(&ground.pair.standby);
    third.start().await;
    ground.asked_until("ok").await;
    ground.server.stop().await;
}

async fn a_replica_that_follows_the_promoted_server_is_read_from_again() {
    let (mut ground, third) = Ground::with_third().await;
    ground.asked_until("ok").await;
    ground.pair.primary.kill();
    ground.pair.standby.promote();
    third.follow(&ground.pair.standby).await;
    found_in_the_end(&ground, "Ottoline").await;
    // It tells its timeline once that is in its control file, for which nobody waits here.
    let end = Instant::now() + PATIENCE;
    let mut replica = third.superuser().await;
    loop {
        ground.pair.standby.run("checkpoint").await;
        third.run("checkpoint").await;
        let timeline = "select timeline_id from pg_control_checkpoint()";
        if sqlx::query_scalar::<_, i32>(timeline).fetch_one(&mut replica).await.expect("a timeline") == 2 {
            break;
        }
        assert!(Instant::now() < end, "it does not follow");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ground.asked_until("ok").await;
    ground.server.stop().await;
}

async fn the_policies_hold_on_the_replica() {
    let ground = Ground::new().await;
    ground.asked_until("ok").await;
    let app = ground.pair.standby.administrator().username(Role::App.name()).database(NAME);
    let mut app = connect(&app).await;
    let run = async |app: &mut PgConnection, statement: &str| -> Result<i64, sqlx::Error> {
        let rows = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).fetch_all(app).await?;
        Ok(rows.last().map_or(0, |row| row.get::<i64, _>(0)))
    };
    let code = |error: &sqlx::Error| {
        let code = error.as_database_error().and_then(DatabaseError::code);
        code.map(std::borrow::Cow::into_owned).unwrap_or_default()
    };
    let refused = run(&mut app, "select count(*) from chunk").await.expect_err("nobody is no tenant");
    assert_eq!(code(&refused), "42704", "an unknown setting: {refused}");
    for tenant in [&ground.alice, &ground.bob] {
        let begin = format!("begin; select set_config('bulkhead.tenant', '{}', true)", tenant.id);
        sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut app).await.expect("begun");
        assert_eq!(run(&mut app, "select count(*) from chunk").await.expect("rows"), 1, "its own");
        let refused = run(&mut app, "delete from chunk").await.expect_err("it only reads");
        assert_eq!(code(&refused), "25006", "{refused}");
        run(&mut app, "rollback").await.expect("ended");
    }
    let refused = run(&mut app, "select count(*) from chunk").await.expect_err("nobody is no tenant");
    assert_eq!(code(&refused), "22P02", "an empty setting is no tenant: {refused}");
    ground.server.stop().await;
}
