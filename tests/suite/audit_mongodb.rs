//! The audit log on MongoDB: what every log must do, by both ways into it, and what is this one's own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bulkhead::domain::audit::{AuditCursor, AuditDay, AuditEvent, AuditRecord, ChainFault};
use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{SystemIds, TenantId};
use bulkhead::store::audit::chain::{Chain, Link};
use bulkhead::store::audit::export::Times;
use bulkhead::store::audit::spool::{LEAST_BYTES, Spool};
use bulkhead::store::mongodb::settings::MongoSettings;
use bulkhead::store::mongodb::{MongoAudit, layers};
use bulkhead::store::postgres::audit::PostgresAudit;
use bulkhead::store::{AuditLog, ErrorKind, StoreError};
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::ClientOptions;
use mongodb::{Client, IndexModel};
use sqlx::Connection as _;

use crate::conformance_audit::{Damage, Ground, all, conforms, event, events, tenant};
use crate::database::Database;
use crate::mongodb::Mongo;
use crate::server::random;

/// PostgreSQL and MongoDB, and a spool for each server.
struct Place {
    database: Database,
    mongo: Mongo,
    by_spool: bool,
}

impl Place {
    async fn new(by_spool: bool) -> Self {
        // Another test may have installed it; either way there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mongo = tokio::task::spawn_blocking(Mongo::start).await.expect("MongoDB");
        Self { database: Database::start().await, mongo, by_spool }
    }

    fn spool(&self, node: &str) -> Arc<Spool> {
        let folder = self.database.folder().join("spools").join(node);
        Arc::new(Spool::open(&folder, LEAST_BYTES, &SystemIds(SystemClock)).expect("a spool"))
    }

    async fn open(&self, node: &str, spool: &Arc<Spool>) -> MongoAudit {
        let settings = MongoSettings {
            url: self.mongo.url.as_str().into(),
            database: self.mongo.database.clone(),
            ..Default::default()
        };
        let first = PostgresAudit::new(self.database.postgres.clone(), node);
        open(&settings, first, spool, 7).await
    }

    async fn server(&self, node: &str) -> Server {
        let spool = self.spool(node);
        Server { log: self.open(node, &spool).await, spool, by_spool: self.by_spool }
    }
}

/// One server's log, whose events are where they stay when `append` returns.
struct Server {
    log: MongoAudit,
    spool: Arc<Spool>,
    by_spool: bool,
}

async fn open(
    settings: &MongoSettings,
    first: PostgresAudit,
    spool: &Arc<Spool>,
    batch: usize,
) -> MongoAudit {
    let layers = layers(settings, Arc::default(), Arc::new(SystemClock));
    MongoAudit::open(settings, first, Arc::clone(spool), batch, layers).await.expect("a log")
}

fn spooled(spool: &Spool, event: &AuditEvent) {
    let record = serde_json::to_vec(&AuditRecord::new(event, "", 0)).expect("JSON");
    spool.append(&record).expect("room");
}

#[async_trait]
impl AuditLog for Server {
    fn name(&self) -> &'static str {
        self.log.name()
    }

    fn node(&self) -> &str {
        self.log.node()
    }

    async fn append(&self, tenant: Option<TenantId>, events: &[AuditEvent]) -> Result<(), StoreError> {
        if self.by_spool && events.iter().all(|event| event.tenant == tenant) {
            for event in events {
                spooled(&self.spool, event);
            }
        } else {
            self.log.append(tenant, events).await?;
        }
        self.log.forward().await
    }

    async fn page(
        &self,
        tenant: Option<TenantId>,
        after: Option<&AuditCursor>,
        limit: i64,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        self.log.page(tenant, after, limit).await
    }

    async fn chains(&self, tenant: Option<TenantId>) -> Result<Vec<Chain>, StoreError> {
        self.log.chains(tenant).await
    }

    async fn links(
        &self,
        tenant: Option<TenantId>,
        node: &str,
        range: (i64, i64),
        limit: i64,
    ) -> Result<Vec<Link>, StoreError> {
        self.log.links(tenant, node, range, limit).await
    }

    async fn span(
        &self,
        tenant: Option<TenantId>,
        node: &str,
        times: Times,
    ) -> Result<Option<(i64, i64)>, StoreError> {
        self.log.span(tenant, node, times).await
    }

    async fn days(&self, tenant: Option<TenantId>, times: Times) -> Result<Vec<AuditDay>, StoreError> {
        self.log.days(tenant, times).await
    }
}

#[async_trait]
impl Ground for Place {
    async fn log(&self, node: &str) -> Arc<dyn AuditLog> {
        Arc::new(self.server(node).await)
    }

    async fn damage(&self, tenant: TenantId, damage: Damage) {
        let events = self.mongo.events().await;
        let at = |number: i64| doc! { "tenant": tenant.to_string(), "number": number };
        let renumber = async |from: i64, to: i64| {
            let done = events.update_one(at(from), doc! { "$set": { "number": to } }).await;
            assert_eq!(done.expect("changed").modified_count, 1);
        };
        match damage {
            Damage::Changed => {
                let mut changed = events.find_one(at(7)).await.expect("found").expect("one");
                let body = changed.get_str("body").expect("a text").replace("allowed", "denied");
                changed.insert("body", body);
                events.replace_one(at(7), changed).await.expect("changed");
            }
            Damage::Removed => {
                assert_eq!(events.delete_one(at(5)).await.expect("removed").deleted_count, 1);
            }
            Damage::Inserted => {
                let mut more = events.find_one(at(12)).await.expect("found").expect("one");
                let hash = more.get_str("hash").expect("a hash").to_owned();
                more.extend(doc! { "_id": format!("{tenant}/more"), "number": 13_i64, "previous": hash });
                events.insert_one(more).await.expect("inserted");
            }
            Damage::Reordered => {
                renumber(4, -4).await;
                renumber(6, 4).await;
                renumber(-4, 6).await;
            }
            Damage::Truncated => {
                let late = doc! { "tenant": tenant.to_string(), "number": { "$gt": 9_i64 } };
                assert_eq!(events.delete_many(late).await.expect("removed").deleted_count, 3);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_in_mongodb_conforms_for_what_is_awaited() {
    let place = Place::new(false).await;
    conforms(&place).await;
    place.database.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_in_mongodb_conforms_for_what_goes_through_the_spool() {
    let place = Place::new(true).await;
    conforms(&place).await;
    place.database.stop().await;
}

#[tokio::test]
async fn what_is_awaited_is_found_before_it_is_forwarded_and_once_after() {
    let place = Place::new(false).await;
    let (server, tenant) = (place.server("node-1").await, tenant());
    server.log.append(Some(tenant), &events(tenant, 0..20)).await.expect("appended");
    assert_eq!(all(&server.log, Some(tenant), 6).await.len(), 20, "in PostgreSQL");
    let waits = server.log.verify(Some(tenant)).await.expect("examined");
    assert_eq!((waits[0].events, waits[0].fault), (20, None));
    server.log.forward().await.expect("forwarded");
    server.log.append(Some(tenant), &events(tenant, 20..25)).await.expect("appended");
    assert_eq!(all(&server.log, Some(tenant), 6).await.len(), 25, "in both");
    let both = server.log.verify(Some(tenant)).await.expect("examined");
    assert_eq!((both.len(), both[0].events, both[0].fault), (1, 25, None));
    // Another process over the same database finds what waits.
    let other = place.server("node-1").await;
    other.log.look().await.expect("looked");
    other.log.forward().await.expect("forwarded");
    let count = place.mongo.events().await.count_documents(doc! { "tenant": tenant.to_string() }).await;
    assert_eq!(count.expect("counted"), 25);
    place.database.stop().await;
}

/// Forwards while no anchor can be moved, and is broken off there, as if the server had been killed.
async fn broken_off_before_the_anchor(place: &Place, server: &Server) {
    let mut superuser = place.database.superuser().await;
    let mut held = superuser.begin().await.expect("begun");
    sqlx::query("lock table audit_anchor in exclusive mode").execute(&mut *held).await.expect("locked");
    let forward = tokio::time::timeout(Duration::from_secs(2), server.log.forward());
    assert!(forward.await.is_err(), "it waits for the anchor");
    held.rollback().await.expect("unlocked");
    superuser.close().await.expect("closed");
}

#[tokio::test]
async fn a_batch_that_was_applied_without_anybody_hearing_of_it_is_not_applied_again() {
    let place = Place::new(true).await;
    let (server, tenant) = (place.server("node-1").await, tenant());
    let raw = place.mongo.events().await;
    let count = async || raw.count_documents(doc! { "tenant": tenant.to_string() }).await.expect("counted");
    server.append(Some(tenant), &events(tenant, 0..3)).await.expect("appended");
    for event in events(tenant, 3..6) {
        spooled(&server.spool, &event);
    }
    broken_off_before_the_anchor(&place, &server).await;
    assert_eq!(count().await, 6, "applied");
    drop(server);
    // The next server finds the same records, and further ones behind them.
    let server = place.server("node-1").await;
    server.append(Some(tenant), &events(tenant, 6..20)).await.expect("appended");
    assert_eq!(count().await, 20);
    server.log.append(Some(tenant), &events(tenant, 100..103)).await.expect("appended");
    broken_off_before_the_anchor(&place, &server).await;
    assert_eq!(count().await, 23, "applied");
    drop(server);
    let server = place.server("node-1").await;
    server.log.look().await.expect("looked");
    server.log.append(Some(tenant), &events(tenant, 103..105)).await.expect("appended");
    server.log.forward().await.expect("forwarded");
    let found = all(&server.log, Some(tenant), 100).await;
    let ids: BTreeSet<&str> = found.iter().map(|record| record.ids[0].as_str()).collect();
    assert_eq!((found.len(), ids.len(), count().await), (25, 25, 25), "{found:?}");
    for report in server.log.verify(Some(tenant)).await.expect("examined") {
        assert_eq!(report.fault, None, "{report:?}");
    }
    assert_eq!(server.spool.lost_count(), 0);
    place.database.stop().await;
}

#[tokio::test]
async fn records_that_are_read_again_after_their_anchor_moved_are_known() {
    let place = Place::new(true).await;
    let (server, tenant) = (place.server("node-1").await, tenant());
    server.append(Some(tenant), &events(tenant, 0..9)).await.expect("appended");
    drop(server);
    // What was passed is forgotten, as when power failed before it was written.
    std::fs::write(place.database.folder().join("spools/node-1/passed"), "").expect("written");
    let server = place.server("node-1").await;
    assert_eq!(server.spool.waiting(), 9);
    server.append(Some(tenant), &events(tenant, 9..10)).await.expect("appended");
    assert_eq!(all(&server.log, Some(tenant), 100).await.len(), 10);
    place.database.stop().await;
}

#[tokio::test]
async fn another_event_at_the_next_number_stops_that_chain_and_no_other() {
    let place = Place::new(true).await;
    let (server, alice, bob) = (place.server("node-1").await, tenant(), tenant());
    server.append(Some(alice), &events(alice, 0..2)).await.expect("appended");
    let raw = place.mongo.events().await;
    let last = doc! { "tenant": alice.to_string(), "number": 2_i64 };
    let mut planted = raw.find_one(last).await.expect("found").expect("one");
    planted.extend(doc! { "_id": format!("{alice}/planted"), "number": 3_i64 });
    raw.insert_one(planted).await.expect("planted");
    let more = [events(alice, 2..4), events(bob, 0..2)].concat();
    for event in &more {
        spooled(&server.spool, event);
    }
    server.log.forward().await.expect("the others are forwarded");
    assert_eq!(all(&server.log, Some(bob), 10).await.len(), 2);
    assert_eq!(server.spool.lost_count(), 2, "counted, and told with an error");
    let report = server.log.verify(Some(alice)).await.expect("examined").remove(0);
    assert_eq!(report.fault, Some(ChainFault::Inserted { number: 3 }));
    place.database.stop().await;
}

#[tokio::test]
async fn what_a_document_says_beside_its_text_or_twice_is_found_too() {
    let place = Place::new(false).await;
    let server = place.server("node-1").await;
    let raw = place.mongo.events().await;
    let cases: [(Document, ChainFault); 5] = [
        (doc! { "$set": { "kind": "write" } }, ChainFault::Changed { number: 2 }),
        (doc! { "$set": { "at": 7_i64 } }, ChainFault::Changed { number: 2 }),
        (doc! { "$set": { "body": { "$ne": Bson::Null } } }, ChainFault::Changed { number: 2 }),
        (doc! { "$set": { "more": true } }, ChainFault::Changed { number: 2 }),
        (doc! { "$unset": { "hash": "" } }, ChainFault::Changed { number: 2 }),
    ];
    for (change, fault) in cases {
        let tenant = tenant();
        server.append(Some(tenant), &events(tenant, 0..3)).await.expect("appended");
        let second = doc! { "tenant": tenant.to_string(), "number": 2_i64 };
        raw.update_one(second, change.clone()).await.expect("changed");
        let report = server.log.verify(Some(tenant)).await.expect("examined").remove(0);
        assert_eq!(report.fault, Some(fault), "{change}");
    }
    // Where no index keeps numbers unique any more.
    let tenant = tenant();
    server.append(Some(tenant), &events(tenant, 0..3)).await.expect("appended");
    raw.drop_indexes().await.expect("dropped");
    let second = doc! { "tenant": tenant.to_string(), "number": 2_i64 };
    let mut twice = raw.find_one(second).await.expect("found").expect("one");
    twice.insert("_id", format!("{tenant}/twice"));
    raw.insert_one(twice).await.expect("inserted");
    let report = server.log.verify(Some(tenant)).await.expect("examined").remove(0);
    assert_eq!(report.fault, Some(ChainFault::Inserted { number: 2 }));
    place.database.stop().await;
}

#[tokio::test]
async fn what_a_caller_wrote_is_never_an_operator() {
    let place = Place::new(true).await;
    let (server, alice, bob) = (place.server("node-1").await, tenant(), tenant());
    server.append(Some(bob), &events(bob, 0..3)).await.expect("appended");
    for hostile in [r#"{"$ne": null}"#, "$where", r"', $or: [{}], x: '", r#"{"$gt": ""}"#, "* : ? [ { } ]"] {
        let mut own = event(Some(alice), hostile);
        own.principal = hostile.to_owned();
        server.append(Some(alice), &[own]).await.expect("appended");
        let newest = server.log.page(Some(alice), None, 1).await.expect("a page").remove(0);
        assert_eq!((newest.principal.as_str(), newest.ids[0].as_str()), (hostile, hostile));
        // In every field that a caller of the log can state.
        let cursor = AuditCursor {
            at: "2999-01-01T00:00:00Z".parse().expect("a time"),
            node: hostile.to_owned(),
            number: i64::MAX,
        };
        let page = server.log.page(Some(alice), Some(&cursor), 100).await.expect("a page");
        assert!(page.iter().all(|record| record.tenant == Some(alice)));
        let chain = format!("{hostile}/queue");
        assert!(server.log.links(Some(alice), &chain, (0, 100), 100).await.expect("links").is_empty());
        let span = server.log.span(Some(alice), &chain, Times::default()).await.expect("a span");
        assert_eq!(span, None);
    }
    assert_eq!(all(&server.log, Some(bob), 100).await.len(), 3);
    place.database.stop().await;
}

#[tokio::test]
async fn a_server_that_is_away_is_an_error_in_time_and_nothing_is_lost() {
    let place = Place::new(true).await;
    let spool = place.spool("node-1");
    let settings = MongoSettings {
        // Nobody listens there.
        url: "mongodb://127.0.0.1:1/?directConnection=true".into(),
        deadline_ms: 300,
        ..Default::default()
    };
    let first = PostgresAudit::new(place.database.postgres.clone(), "node-1");
    let log = open(&settings, first, &spool, 10).await;
    let tenant = tenant();
    log.append(Some(tenant), &events(tenant, 0..2)).await.expect("PostgreSQL takes it");
    spooled(&spool, &event(Some(tenant), "2"));
    let begun = std::time::Instant::now();
    let error = log.forward().await.expect_err("nobody is there");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Timeout), "{error}");
    assert!(log.page(Some(tenant), None, 10).await.is_err());
    assert_eq!((spool.waiting(), spool.lost_count()), (1, 0));
    let there = place.open("node-1", &spool).await;
    there.look().await.expect("looked");
    there.forward().await.expect("forwarded");
    assert_eq!(all(&there, Some(tenant), 10).await.len(), 3);
    place.database.stop().await;
}

/// Makes an account that may do this with the events, and says where it logs in.
async fn account(place: &Place, client: &Client, name: &str, actions: &[&str]) -> String {
    let database = client.database(&place.mongo.database);
    let actions: Vec<String> = actions.iter().map(|action| (*action).to_owned()).collect();
    let resource = doc! { "db": &place.mongo.database, "collection": "audit_event" };
    let role = doc! {
        "createRole": name, "roles": [], "privileges": [{ "resource": resource, "actions": actions }],
    };
    database.run_command(role).await.expect("a role");
    let password = random(24);
    let user = doc! { "createUser": name, "pwd": &password, "roles": [name] };
    database.run_command(user).await.expect("an account");
    let options = ClientOptions::parse(&place.mongo.url).await.expect("an address");
    format!("mongodb://{name}:{password}@{}/{}", options.hosts[0], place.mongo.database)
}

#[tokio::test]
#[ignore = "only a real server has roles: MONGODB_URL, with an account that makes accounts"]
async fn the_roles_of_the_manual_suffice_and_neither_changes_nor_deletes() {
    let place = Place::new(true).await;
    let client = Client::with_uri_str(&place.mongo.url).await.expect("a client");
    let raw = place.mongo.events().await;
    for keys in [
        doc! { "tenant": 1, "node": 1, "number": 1 },
        doc! { "tenant": 1, "at": -1, "node": -1, "number": -1 },
    ] {
        raw.create_index(IndexModel::builder().keys(keys).build()).await.expect("an index");
    }
    let writer = account(&place, &client, "writer", &["insert"]).await;
    let reader = account(&place, &client, "reader", &["find"]).await;
    let file = place.database.folder().join("reader-url");
    std::fs::write(&file, &reader).expect("written");
    let settings = MongoSettings {
        url: writer.as_str().into(),
        reader_url_file: Some(file),
        database: place.mongo.database.clone(),
        ..Default::default()
    };
    let (spool, tenant) = (place.spool("node-1"), tenant());
    let first = PostgresAudit::new(place.database.postgres.clone(), "node-1");
    let log = open(&settings, first, &spool, 5).await;
    for event in events(tenant, 0..12) {
        spooled(&spool, &event);
    }
    log.forward().await.expect("forwarded");
    assert_eq!(all(&log, Some(tenant), 5).await.len(), 12);
    assert_eq!(log.verify(Some(tenant)).await.expect("examined")[0].fault, None);
    for url in [writer, reader] {
        let client = Client::with_uri_str(&url).await.expect("a client");
        let events = client.database(&place.mongo.database).collection::<Document>("audit_event");
        let own = doc! { "tenant": tenant.to_string() };
        assert!(events.update_many(own.clone(), doc! { "$set": { "kind": "write" } }).await.is_err());
        assert!(events.delete_many(own).await.is_err());
        assert!(events.drop().await.is_err());
    }
    place.database.stop().await;
}
