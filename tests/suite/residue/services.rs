//! The same with vectors in Qdrant, the audit log in MongoDB, limits and caches in Redis: a scan of all of them, and a receipt
//! that says what each held and holds.
//!
//! Over a stand-in for Qdrant, whose files are searched too.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use mongodb::bson::{Document, doc};
use qdrant_client::Qdrant;
use qdrant_client::qdrant::{ScrollPoints, WithPayloadSelector};
use redis::AsyncCommands as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Ground, Marks, in_files, marked};
use crate::mongodb::Mongo;
use crate::qdrant_stand_in::StandIn;
use crate::redis_server::RedisServer;
use crate::server::{PATIENCE, Tenant};

const API_KEY: &str = "an API key of thirty-two letters";

/// A server over all three services.
struct Services {
    ground: Ground,
    qdrant: StandIn,
    folder: TempDir,
    mongo: Mongo,
    redis: RedisServer,
}

impl Services {
    async fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        let data = folder.path().to_owned();
        let start = move || (StandIn::start(&data, API_KEY, 0), Mongo::start(), RedisServer::start());
        let (qdrant, mongo, redis) = tokio::task::spawn_blocking(start).await.expect("the services");
        let settings = format!(
            "vectors.backend = 'qdrant'
            vectors.qdrant.url = '{}'
            vectors.qdrant.api_key = '{API_KEY}'
            limits.backend = 'redis'
            cache.backend = 'redis'
            redis.url = '{}'
            {}",
            qdrant.url(),
            redis.url(),
            mongo.settings()
        );
        let ground = Ground::with(&settings).await;
        Self { ground, qdrant, folder, mongo, redis }
    }

    /// Points with a vector in each collection, and everything that is in it, as text.
    async fn points(&self) -> Vec<(String, usize, String)> {
        let client = Qdrant::from_url(&self.qdrant.url()).api_key(API_KEY).skip_compatibility_check();
        let client = client.build().expect("a client");
        let mut all = Vec::new();
        for name in self.qdrant.collections() {
            let request = ScrollPoints {
                collection_name: name.clone(),
                limit: Some(10_000),
                with_payload: Some(WithPayloadSelector::from(true)),
                ..ScrollPoints::default()
            };
            let Ok(answer) = client.scroll(request).await else { continue };
            let bare = answer.result.iter().filter(|point| !point.payload.contains_key("kind"));
            all.push((name, bare.count(), format!("{:?}", answer.result)));
        }
        all
    }

    /// Points with a vector that are a tenant's.
    async fn points_of(&self, tenant: &Tenant) -> usize {
        let all = self.points().await;
        all.iter().filter(|(_, _, text)| text.contains(&tenant.id)).map(|(_, count, _)| count).sum()
    }

    async fn events(&self) -> Vec<Document> {
        let found = self.mongo.events().await.find(doc! {}).await.expect("asked");
        found.try_collect().await.expect("read")
    }

    /// Keys, and their values where they are texts.
    async fn keys(&self, tenant: &Tenant) -> Vec<String> {
        let mut connection = self.redis.connection().await;
        connection.keys(format!("*{}*", tenant.id)).await.expect("keys")
    }

    async fn everything_in_redis(&self) -> String {
        let mut connection = self.redis.connection().await;
        let keys: Vec<String> = connection.keys("*").await.expect("keys");
        let mut all = String::new();
        for key in keys {
            let value: Option<Vec<u8>> = connection.get(&key).await.unwrap_or_default();
            let _ = writeln!(all, "{key} {}", String::from_utf8_lossy(&value.unwrap_or_default()));
        }
        all
    }

    /// None of these is in a point, an event, a key or a value, or in a file of Qdrant's.
    async fn nowhere(&self, needles: &[String], about: &str) {
        let points = self.points().await;
        let (events, redis) = (format!("{:?}", self.events().await), self.everything_in_redis().await);
        for needle in needles {
            for (name, _, text) in &points {
                assert!(!text.contains(needle), "{about}: {needle} in collection {name}");
            }
            assert!(!events.contains(needle), "{about}: {needle} in the audit log");
            assert!(!redis.contains(needle), "{about}: {needle} in Redis");
        }
        assert_eq!(in_files(self.folder.path(), needles), Vec::<String>::new(), "{about}: files of Qdrant");
    }

    async fn chunks(&self, tenant: &Tenant) -> usize {
        self.ground.chunks(tenant).await.len()
    }

    async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !holds().await {
            assert!(Instant::now() < until, "{what}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// What was written, but for a document's own name, which the audit log keeps, and its spool in the data folder.
fn texts(marks: &Marks) -> Vec<String> {
    marks.all.iter().filter(|needle| !needle.starts_with("id")).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_what_was_deleted_is_left_in_any_of_three_services() {
    let services = Services::new().await;
    let (alice, bob) = services.ground.server.tenants().await;
    let bobs = marked(&bob, "default").await;
    let first = marked(&alice, "default").await;
    services
        .until("all points are there", async || {
            services.points_of(&alice).await == services.chunks(&alice).await
                && services.points_of(&bob).await == services.chunks(&bob).await
        })
        .await;
    assert!(services.points_of(&alice).await > 0);
    services
        .nowhere(&texts(&first), "while it is there: nothing that was written is ever in a service")
        .await;

    alice.admin.delete("/documents", &Value::Null, 200).await;
    services.until("points of deleted documents stay", async || services.points_of(&alice).await == 0).await;
    services.ground.gone(&texts(&first), "documents").await;
    services.nowhere(&texts(&first), "documents").await;

    let second = marked(&alice, "default").await;
    services
        .until("all points are there", async || {
            services.points_of(&alice).await == services.chunks(&alice).await
        })
        .await;
    let points = services.points_of(&alice).await;
    let path = format!("/admin/tenants/{}", alice.id);
    services.ground.server.operator().delete(&path, &json!({"reason": "a test"}), 202).await;
    services.ground.gone(&texts(&second), "tenant").await;
    let receipt = services.ground.receipt(&alice).await;
    assert!(!services.keys(&bob).await.is_empty(), "a neighbour's are kept");
    assert_eq!(services.keys(&alice).await, Vec::<String>::new(), "none is left to expire");
    assert!(receipt.contains(" audit events in mongodb"), "{receipt}");
    let (_, counted) = receipt.split_once("; Redis ").expect("Redis is counted");
    let (before, _) = counted.split_once(", left 0; kept: ").expect(&receipt);
    assert!(before.parse::<u64>().is_ok_and(|before| before > 0), "{receipt}");
    let told = format!("points in qdrant {points}; left: rows 0, indexes 0, uploads 0");
    assert!(
        receipt.contains(&told) && receipt.contains("removed 1 indexes, 2 uploads"),
        "{told} in {receipt}"
    );
    services.nowhere(&texts(&second), "tenant").await;
    // Nothing at all of the tenant but its audit log.
    assert_eq!(services.qdrant.collections().len(), 1);
    assert_eq!(services.points_of(&alice).await, 0);
    assert_eq!(in_files(services.folder.path(), std::slice::from_ref(&alice.id)), Vec::<String>::new());
    let of_hers = |event: &&Document| format!("{event:?}").contains(&alice.id);
    services
        .until("its audit log is kept", async || {
            let events = services.events().await;
            events.iter().filter(of_hers).any(|event| format!("{event:?}").contains("tenant.purge"))
        })
        .await;

    // The neighbour's is all there.
    assert_eq!(services.points_of(&bob).await, services.chunks(&bob).await);
    for needle in &bobs.all {
        let files = services.ground.files(std::slice::from_ref(needle));
        assert!(
            !services.ground.rows(needle).await.is_empty() || !files.is_empty(),
            "{needle} of the neighbour"
        );
    }
    let Services { ground, qdrant, mongo, redis, .. } = services;
    tokio::task::spawn_blocking(move || ground.server.stop()).await.expect("stopped");
    drop((qdrant, mongo, redis));
}
