//! Whole servers whose vectors are in a Qdrant server: asked, kept up, compared, cut off and put right again.
//!
//! Over a stand-in, since the tests stop and start it.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use qdrant_client::Qdrant;
use qdrant_client::qdrant::points_selector::PointsSelectorOneOf;
use qdrant_client::qdrant::{
    DeletePoints, PointsIdsList, PointsSelector, RetrievedPoint, ScrollPoints, WithPayloadSelector,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::place::connect;
use crate::qdrant_stand_in::StandIn;
use crate::server::{PATIENCE, Tenant, TestServer, new_folder};

const API_KEY: &str = "an API key of thirty-two letters";
const QUESTION: &str = "Who keeps the light at Pier Nine?";

/// A server over a stand-in of its own.
struct Ground {
    server: TestServer,
    base: PathBuf,
    folder: TempDir,
    stand_in: Mutex<Option<StandIn>>,
    port: u16,
}

fn settings(port: u16) -> String {
    format!(
        "embedding.model = 'hashing'
        orphans.every_seconds = 100000
        projection.longest_rest_ms = 1000
        vectors.backend = 'qdrant'
        vectors.qdrant.url = 'http://127.0.0.1:{port}'
        vectors.qdrant.api_key = '{API_KEY}'
        vectors.qdrant.calls.deadline_ms = 5000"
    )
}

impl Ground {
    async fn new(name: &'static str) -> Self {
        let folder = TempDir::new().expect("a folder");
        let base = new_folder(name);
        let (data, of) = (folder.path().to_owned(), base.clone());
        let start = move || {
            let stand_in = StandIn::start(&data, API_KEY, 0);
            let port = stand_in.port();
            (stand_in, port, TestServer::start(&of, &settings(port)))
        };
        let (stand_in, port, server) = tokio::task::spawn_blocking(start).await.expect("a server");
        Self { server, base, folder, stand_in: Mutex::new(Some(stand_in)), port }
    }

    fn kill(&self) {
        self.stand_in.lock().expect("a stand-in").take().expect("it runs").stop();
    }

    fn start_again(&self) {
        let stand_in = StandIn::start(self.folder.path(), API_KEY, self.port);
        *self.stand_in.lock().expect("a stand-in") = Some(stand_in);
    }

    fn collections(&self) -> Vec<String> {
        self.stand_in.lock().expect("a stand-in").as_ref().expect("it runs").collections()
    }

    fn raw(&self) -> Qdrant {
        let url = format!("http://127.0.0.1:{}", self.port);
        Qdrant::from_url(&url).api_key(API_KEY).skip_compatibility_check().build().expect("a client")
    }

    /// Points of a collection that a search can find.
    async fn points(&self, collection: &str) -> Vec<RetrievedPoint> {
        let request = ScrollPoints {
            collection_name: collection.to_owned(),
            limit: Some(1_000),
            with_payload: Some(WithPayloadSelector::from(true)),
            ..ScrollPoints::default()
        };
        let all = self.raw().scroll(request).await.expect("listed").result;
        all.into_iter().filter(|point| !point.payload.contains_key("kind")).collect()
    }

    async fn ask(&self, tenant: &Tenant) -> Value {
        let body = json!({"query": QUESTION, "mode": "naive", "chunk_top_k": 20});
        tenant.reader.post("/query/data", &body, 200).await
    }

    /// Asks until the index alone answers.
    async fn indexed(&self, tenant: &Tenant) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(tenant).await;
            if answer["metadata"]["fallback"] == Value::Null {
                return answer;
            }
            assert!(Instant::now() < until, "the index never answers: {answer}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn count(&self, query: &'static str) -> i64 {
        let superuser = self.server.laboratory.superuser.as_ref().expect("a private database");
        sqlx::query_scalar(query).fetch_one(&mut connect(superuser).await).await.expect("a count")
    }

    async fn stop(self) {
        let Self { server, stand_in, .. } = self;
        tokio::task::spawn_blocking(move || server.stop()).await.expect("stopped");
        drop(stand_in);
    }
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn contents(answer: &Value) -> String {
    answer["data"]["chunks"].to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_answered_from_it_and_what_is_deleted_is_gone() {
    let ground = Ground::new("qdrant").await;
    let (alice, bob) = ground.server.tenants().await;
    let health = alice.reader.get("/health", 200).await;
    assert_eq!(health["configuration"]["vectors"], "qdrant", "{health}");
    for (tenant, name) in [(&alice, "Ottoline"), (&bob, "Barnaby")] {
        for (id, text) in [("light", "keeps the light at Pier Nine."), ("rope", "mends the rope.")] {
            tenant.writer.put_document(id, "The guide", &format!("{name} {text}")).await;
        }
    }
    for (tenant, own, foreign) in [(&alice, "Ottoline", "Barnaby"), (&bob, "Barnaby", "Ottoline")] {
        let answer = contents(&ground.indexed(tenant).await);
        assert!(answer.contains(own) && !answer.contains(foreign), "{answer}");
    }
    assert_eq!(ground.collections().len(), 2, "one for each tenant");

    alice.writer.delete("/documents/light", &Value::Null, 200).await;
    let answer = contents(&ground.indexed(&alice).await);
    assert!(!answer.contains("Pier Nine"), "{answer}");
    let mut left = Vec::new();
    for collection in ground.collections() {
        left.push(ground.points(&collection).await.len());
    }
    left.sort_unstable();
    assert_eq!(left, [1, 2]);

    let path = format!("/admin/tenants/{}", bob.id);
    ground.server.operator().send("DELETE", &path, &json!({"reason": "a test"})).await;
    until("the deleted tenant's collection stays", async || ground.collections().len() == 1).await;
    until("the registry still names it", async || {
        ground.count("select count(*) from vector_collection").await == 1
    })
    .await;
    assert!(contents(&ground.indexed(&alice).await).contains("mends the rope"));
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_is_away_the_database_answers_and_afterwards_it_recovers_by_itself() {
    let ground = Ground::new("qdrant-away").await;
    let (alice, bob) = ground.server.tenants().await;
    alice.writer.put_document("light", "The guide", "Ottoline keeps the light at Pier Nine.").await;
    alice.writer.put_document("rope", "The guide", "Ottoline mends the rope.").await;
    bob.writer.put_document("light", "The guide", "Barnaby keeps the light.").await;
    ground.indexed(&alice).await;

    ground.kill();
    let answer = ground.ask(&alice).await;
    assert_eq!(answer["metadata"]["fallback"], "pgvector", "{answer}");
    assert!(contents(&answer).contains("Pier Nine"), "{answer}");
    // Written, deleted and asked during the outage.
    alice.writer.put_document("boat", "The guide", "Ottoline rows the boat to Pier Nine.").await;
    alice.writer.delete("/documents/light", &Value::Null, 200).await;
    let answer = ground.ask(&alice).await;
    assert_eq!(answer["metadata"]["fallback"], "pgvector", "{answer}");
    assert!(contents(&answer).contains("rows the boat") && !contents(&answer).contains("keeps the light"));
    // A tenant that is deleted meanwhile goes when the server is back.
    let path = format!("/admin/tenants/{}", bob.id);
    ground.server.operator().send("DELETE", &path, &json!({"reason": "a test"})).await;

    ground.start_again();
    let answer = contents(&ground.indexed(&alice).await);
    assert!(answer.contains("rows the boat") && !answer.contains("keeps the light"), "{answer}");
    until("the deleted tenant's collection stays", async || ground.collections().len() == 1).await;

    // Back with nothing at all.
    ground.kill();
    for entry in std::fs::read_dir(ground.folder.path()).expect("a folder") {
        std::fs::remove_dir_all(entry.expect("an entry").path()).expect("removed");
    }
    ground.start_again();
    let answer = contents(&ground.indexed(&alice).await);
    assert!(answer.contains("rows the boat"), "{answer}");
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_differs_is_found_and_written_anew() {
    let ground = Ground::new("qdrant-verify").await;
    let alice = ground.server.tenant("alice").await;
    for n in 0..5 {
        alice.writer.put_document(&format!("doc-{n}"), "Notes", &format!("The note of day {n}.")).await;
    }
    ground.indexed(&alice).await;
    let collection = ground.collections().remove(0);
    let lost = ground.points(&collection).await[0].id.clone().expect("an id");
    let selector = PointsSelectorOneOf::Points(PointsIdsList { ids: vec![lost] });
    let delete = DeletePoints {
        collection_name: collection.clone(),
        wait: Some(true),
        points: Some(PointsSelector { points_selector_one_of: Some(selector) }),
        ..DeletePoints::default()
    };
    ground.raw().delete_points(delete).await.expect("deleted");

    let path = format!("/admin/tenants/{}/verify", alice.id);
    let operator = ground.server.operator();
    let examined = async |repair: bool| {
        let report = operator.post(&path, &json!({"repair": repair, "reason": "a test"}), 200).await;
        report.to_string()
    };
    let report = examined(false).await;
    assert!(report.contains("missing_points"), "{report}");
    let report = examined(true).await;
    assert!(report.contains("\"repaired\":true"), "{report}");
    let report = examined(false).await;
    assert!(!report.contains("missing_points"), "{report}");
    let path = format!("/admin/tenants/{}/rebuild", alice.id);
    operator.post(&path, &json!({"reason": "a test"}), 200).await;
    let answer = ground.indexed(&alice).await;
    assert_eq!(answer["data"]["chunks"].as_array().map(Vec::len), Some(5), "{answer}");
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_over_the_same_folder_finds_its_collections() {
    let ground = Ground::new("qdrant-again").await;
    let alice = ground.server.tenant("alice").await;
    alice.writer.put_document("light", "The guide", "Ottoline keeps the light at Pier Nine.").await;
    ground.indexed(&alice).await;
    let before = ground.collections();
    let Ground { server, base, folder, stand_in, port } = ground;
    let of = base.clone();
    let again = move || {
        server.stop();
        TestServer::start(&of, &settings(port))
    };
    let server = tokio::task::spawn_blocking(again).await.expect("a server");
    let ground = Ground { server, base, folder, stand_in, port };
    let reader = ground.server.caller(&alice.admin_key.secret);
    let alice = Tenant { reader, ..alice };
    assert!(contents(&ground.indexed(&alice).await).contains("Pier Nine"));
    assert_eq!(ground.collections(), before);
    ground.stop().await;
}
