//! Whole servers behind a `PgBouncer` in transaction mode, where tenants take turns on the same sessions.

use std::time::{Duration, Instant};

use bulkhead::store::postgres::roles::Role;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use crate::Test;
use crate::database::{Database, NAME, connect};
use crate::pgbouncer_server::PgBouncer;
use crate::whole::{PATIENCE, Tenant, UNLIMITED, Whole};

/// All of them.
pub fn tests() -> Vec<Test> {
    tests![
        one_session_serves_a_then_b_then_nobody_and_shows_nobody_a_row,
        a_server_takes_in_and_answers_for_two_tenants_over_two_sessions,
        callers_who_hang_up_leave_no_transaction_open_and_nobody_anothers_answer,
        a_pgbouncer_that_is_killed_costs_503_until_it_is_back,
        the_owner_and_administrators_cannot_go_through_it,
    ]
}

/// A server behind a `PgBouncer`.
struct Ground {
    server: Whole,
    pgbouncer: PgBouncer,
    database: Database,
}

impl Ground {
    /// With so many sessions for each role.
    async fn new(sessions: u32) -> Self {
        let database = Database::start().await;
        let direct = format!("database.url = '{}'\n{UNLIMITED}", database.url());
        // Makes roles and database; PgBouncer is told their verifiers.
        Whole::start(&database.folder.0.join("server"), &direct).await.stop().await;
        let pgbouncer = PgBouncer::start(&database, sessions).await;
        let pooled = format!("{direct}\ndatabase.pooler.url = '{}'", pgbouncer.url());
        let server = Whole::start(&database.folder.0.join("server"), &pooled).await;
        Self { server, pgbouncer, database }
    }

    /// Two tenants with a document each, which one question finds.
    async fn tenants(&self) -> [Tenant; 2] {
        let tenants = [self.server.tenant().await, self.server.tenant().await];
        for (tenant, word) in tenants.iter().zip(WORDS) {
            assert_eq!(self.server.put(tenant, "light", &text(word)).await.0, 200);
        }
        for tenant in &tenants {
            self.server.processed(tenant, 1).await;
        }
        tenants
    }

    /// Each finds its own word, and never the other's.
    async fn each_finds_its_own(&self, tenants: &[Tenant; 2]) {
        for (tenant, (own, other)) in tenants.iter().zip([(WORDS[0], WORDS[1]), (WORDS[1], WORDS[0])]) {
            let found = self.server.found(tenant, QUESTION).await;
            assert!(found.contains(own) && !found.contains(other), "{found}");
        }
    }

    /// A connection of the app role's own through `PgBouncer`.
    async fn app(&self) -> PgConnection {
        let secrets = bulkhead::store::postgres::secrets::RoleSecrets::load_or_create(
            &self.server.data_dir.join("secrets"),
            &bulkhead::store::postgres::secrets::SystemEntropy,
        );
        let secret = secrecy::ExposeSecret::expose_secret(secrets.expect("secrets").of(Role::App)).to_owned();
        let app =
            self.database.server.superuser().username(Role::App.name()).password(&secret).database(NAME);
        connect(&self.pgbouncer.before(app)).await
    }

    async fn stop(self) {
        self.server.stop().await;
        drop(self.pgbouncer);
        self.database.stop().await;
    }
}

const QUESTION: &str = "Who keeps the light at Pier Nine?";
const WORDS: [&str; 2] = ["Ottoline", "Barnaby"];

fn text(word: &str) -> String {
    format!("{word} keeps the light at Pier Nine. It was lit in 1890 and burns whale oil.")
}

async fn run(connection: &mut PgConnection, statement: &str) -> Result<i64, sqlx::Error> {
    let rows = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).fetch_all(connection).await?;
    Ok(rows.last().map_or(0, |row| row.get::<i64, _>(0)))
}

async fn pid(connection: &mut PgConnection) -> i64 {
    run(connection, "select pg_backend_pid()::bigint").await.expect("a session")
}

async fn one_session_serves_a_then_b_then_nobody_and_shows_nobody_a_row() {
    let ground = Ground::new(1).await;
    let tenants = ground.tenants().await;
    let mut sessions = Vec::new();
    for tenant in &tenants {
        let mut app = ground.app().await;
        let begin = format!("begin; select set_config('bulkhead.tenant', '{}', true)", tenant.id);
        sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut app).await.expect("begun");
        let rows = run(&mut app, "select count(*) from chunk").await.expect("rows");
        assert_eq!(rows, 1, "its own, and not the other's");
        sessions.push(pid(&mut app).await);
        run(&mut app, "commit").await.expect("ended");
    }
    let mut nobody = ground.app().await;
    sessions.push(pid(&mut nobody).await);
    assert!(sessions.iter().all(|session| *session == sessions[0]), "one session: {sessions:?}");
    for table in ["chunk", "document", "namespace", "chunk_embedding", "job"] {
        let refused = run(&mut nobody, &format!("select count(*) from {table}")).await;
        let refused = refused.expect_err("nobody is no tenant");
        let code = refused.as_database_error().and_then(DatabaseError::code);
        assert_eq!(code.as_deref(), Some("22P02"), "an empty setting is no tenant: {refused}");
    }
    // Nor did the server leave anything else in it.
    let left = "select count(*) from pg_prepared_statements";
    assert_eq!(run(&mut nobody, left).await.expect("counted"), 0, "statements");
    let set = "select count(*) from pg_settings where source = 'session'
        and name not in ('application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings')";
    assert_eq!(run(&mut nobody, set).await.expect("counted"), 0, "settings");
    assert_eq!(pid(&mut nobody).await, sessions[0]);
    ground.each_finds_its_own(&tenants).await;
    nobody.close().await.expect("closed");
    ground.stop().await;
}

async fn a_server_takes_in_and_answers_for_two_tenants_over_two_sessions() {
    let ground = Ground::new(2).await;
    let tenants = ground.tenants().await;
    let more = (0..40).map(|at| {
        let tenant = &tenants[at % 2];
        let words = format!("Buoy {at} of {} was painted in week {at}.", WORDS[at % 2]);
        let server = &ground.server;
        async move { server.put(tenant, &format!("buoy-{at}"), &words).await.0 }
    });
    for status in futures::future::join_all(more).await {
        assert_eq!(status, 200);
    }
    for tenant in &tenants {
        ground.server.processed(tenant, 21).await;
    }
    futures::future::join_all((0..20).map(|_| ground.each_finds_its_own(&tenants))).await;
    let sessions = "select count(*) from pg_stat_activity where usename = 'bulkhead_app'";
    let sessions: i64 = sqlx::query_scalar(sessions)
        .fetch_one(&mut ground.database.superuser().await)
        .await
        .expect("a count");
    assert!((1..=2).contains(&sessions), "{sessions}");
    // Erasing goes through it as well.
    let gone = ground.server.request("DELETE", "/documents", &tenants[0]).send().await.expect("an answer");
    assert!(gone.status().is_success(), "{}", gone.text().await.unwrap_or_default());
    let end = Instant::now() + PATIENCE;
    while ground.server.found(&tenants[0], QUESTION).await.contains(WORDS[0]) {
        assert!(Instant::now() < end, "it is still found");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(ground.server.found(&tenants[1], QUESTION).await.contains(WORDS[1]));
    ground.stop().await;
}

async fn callers_who_hang_up_leave_no_transaction_open_and_nobody_anothers_answer() {
    let ground = Ground::new(2).await;
    let tenants = ground.tenants().await;
    for round in 0..10 {
        let asked = (0..30_u64).map(|at| {
            let tenant = &tenants[usize::try_from(at % 2).expect("small")];
            let question = ground.server.found(tenant, QUESTION);
            // From before the question is sent until its answer is being written.
            tokio::time::timeout(Duration::from_micros(300 * at + 37 * round), question)
        });
        let answers = futures::future::join_all(asked).await;
        for (at, answer) in answers.into_iter().enumerate() {
            let Ok(found) = answer else { continue };
            assert!(found.contains(WORDS[at % 2]) && !found.contains(WORDS[(at + 1) % 2]), "{found}");
        }
    }
    ground.each_finds_its_own(&tenants).await;
    let open =
        "select count(*) from pg_stat_activity where usename = 'bulkhead_app' and state like 'idle in%'";
    let mut superuser = ground.database.superuser().await;
    let end = Instant::now() + Duration::from_secs(10);
    while sqlx::query_scalar::<_, i64>(open).fetch_one(&mut superuser).await.expect("a count") > 0 {
        assert!(Instant::now() < end, "a transaction stays open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ground.stop().await;
}

async fn a_pgbouncer_that_is_killed_costs_503_until_it_is_back() {
    let mut ground = Ground::new(2).await;
    let tenants = ground.tenants().await;
    ground.pgbouncer.process.kill();
    let end = Instant::now() + PATIENCE;
    loop {
        let (status, again) = ground.server.put(&tenants[0], "meanwhile", "A text.").await;
        if status == 503 {
            assert!(again, "it says when to come again");
            break;
        }
        assert!(Instant::now() < end, "answered {status} without a database");
    }
    ground.pgbouncer.restart();
    let end = Instant::now() + PATIENCE;
    while ground.server.put(&tenants[0], "afterwards", "A text about the pier.").await.0 != 200 {
        assert!(Instant::now() < end, "it is not used again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ground.server.processed(&tenants[0], 2).await;
    ground.each_finds_its_own(&tenants).await;
    ground.stop().await;
}

async fn the_owner_and_administrators_cannot_go_through_it() {
    let ground = Ground::new(1).await;
    let administrator = ground.database.server.superuser();
    for options in
        [administrator.clone().database(NAME), administrator.username(Role::Owner.name()).database(NAME)]
    {
        let refused = PgConnection::connect_with(&ground.pgbouncer.before(options)).await;
        assert!(refused.is_err(), "its users are four roles");
    }
    ground.stop().await;
}
