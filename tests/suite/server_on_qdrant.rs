//! Whole servers whose vectors are in a Qdrant server: asked, kept up, compared, cut off and put right again.
//!
//! Over a stand-in, since the tests stop and start it.

mod erasure;
mod overtaken;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use qdrant_client::Qdrant;
use qdrant_client::qdrant::points_selector::PointsSelectorOneOf;
use qdrant_client::qdrant::{
    DeletePoints, NamedVectors, PointId, PointStruct, PointsIdsList, PointsSelector, RetrievedPoint,
    ScrollPoints, UpsertPointsBuilder, WithPayloadSelector,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::place::connect;
use crate::qdrant_stand_in::StandIn;
use crate::server::{PATIENCE, Tenant, TestServer, new_folder, text};

const API_KEY: &str = "an API key of thirty-two letters";
const QUESTION: &str = "Who keeps the light at Pier Nine?";
/// How many documents are written again and again while a tenant is moved.
const LINES: usize = 12;

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

/// What a comparison found, how many of each; and the digests of the record and of the index.
fn examined(report: &Value) -> (BTreeMap<String, i64>, [Value; 2]) {
    let findings = report["namespace"]["findings"].as_array().expect("findings").iter();
    let found = findings.map(|one| (text(one, "kind"), one["count"].as_i64().expect("a count"))).collect();
    let stores = report["namespace"]["stores"].as_array().expect("stores");
    assert_eq!((&stores[0]["store"], &stores[1]["store"]), (&json!("postgres"), &json!("qdrant")));
    let digest = |of: &Value| json!([of["count"], of["digest"]]);
    (found, [digest(&stores[0]), digest(&stores[1])])
}

/// Has a point missing, one of another version, and one that no chunk has.
async fn plant(ground: &Ground, collection: &str) {
    let points = ground.points(collection).await;
    let id = |at: usize| points[at].id.clone().expect("an id");
    let selector = PointsSelectorOneOf::Points(PointsIdsList { ids: vec![id(0)] });
    let delete = DeletePoints {
        collection_name: collection.to_owned(),
        wait: Some(true),
        points: Some(PointsSelector { points_selector_one_of: Some(selector) }),
        ..DeletePoints::default()
    };
    ground.raw().delete_points(delete).await.expect("deleted");
    let dense = NamedVectors::default().add_vector("dense", vec![1.0; 384]);
    let mut wrong = points[1].payload.clone();
    wrong.insert("version".to_owned(), 99.into());
    let extra = PointId::from("0190a0a0-0000-7000-8000-000000000001");
    let planted = [(id(1), wrong), (extra, points[2].payload.clone())];
    let planted = planted.map(|(id, payload)| PointStruct::new(id, dense.clone(), payload));
    let upsert = UpsertPointsBuilder::new(collection, planted.to_vec()).wait(true);
    ground.raw().upsert_points(upsert).await.expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_differs_is_found_by_its_digest_and_mended() {
    let ground = Ground::new("qdrant-verify").await;
    let (alice, bob) = ground.server.tenants().await;
    bob.writer.put_document("doc", "Notes", "The note of another.").await;
    ground.indexed(&bob).await;
    let bobs = ground.collections().remove(0);
    for n in 0..5 {
        alice.writer.put_document(&format!("doc-{n}"), "Notes", &format!("The note of day {n}.")).await;
    }
    ground.indexed(&alice).await;
    let collection = ground.collections().into_iter().find(|name| *name != bobs).expect("her own");
    let operator = ground.server.operator();
    let verify = async |tenant: &Tenant, repair: bool| {
        let path = format!("/admin/tenants/{}/verify", tenant.id);
        operator.post(&path, &json!({"repair": repair, "reason": "a test"}), 200).await
    };
    let (found, [record, index]) = examined(&verify(&alice, false).await);
    assert_eq!((found, &record), (BTreeMap::new(), &index));
    assert_eq!(record[0], 5);

    plant(&ground, &collection).await;
    let (found, [rows, planted]) = examined(&verify(&alice, false).await);
    let expected = ["missing_points", "wrong_versions", "extra_points"].map(|kind| (kind.to_owned(), 1));
    assert_eq!(found, BTreeMap::from(expected));
    assert_eq!(rows, record);
    // As many as there should be, and not the same.
    assert_eq!(planted[0], 5);
    assert_ne!(planted, record);
    let report = verify(&alice, true).await;
    let (_, [rows, mended]) = examined(&report);
    assert_eq!((&rows, &mended), (&record, &record), "{report}");
    let findings = report["namespace"]["findings"].as_array().expect("findings");
    assert!(findings.iter().all(|finding| finding["repaired"] == true), "{report}");
    for tenant in [&alice, &bob] {
        let (found, [rows, index]) = examined(&verify(tenant, false).await);
        assert_eq!((found, rows), (BTreeMap::new(), index));
    }

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

/// Asks and writes until it is told to stop; how many questions were answered.
/// Asks and writes until it is done; returns how often it asked. The documents are always the same few: with more of them
/// each move would take longer, in which still more were written.
async fn busy(tenant: &Tenant, name: &str, foreign: &str, is_done: &AtomicBool) -> usize {
    let write = async {
        let mut round = 0;
        while !is_done.load(Ordering::Acquire) {
            let text = format!("{name} wrote line {round} of Pier Nine.");
            tenant.writer.put_document(&format!("line-{}", round % LINES), "Log", &text).await;
            if round % 3 == 2 {
                let path = format!("/documents/line-{}", (round - 1) % LINES);
                tenant.writer.delete(&path, &Value::Null, 200).await;
            }
            round += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ask = async {
        let mut asked = 0;
        while !is_done.load(Ordering::Acquire) {
            let body = json!({"query": QUESTION, "mode": "naive", "chunk_top_k": 100});
            let answer = contents(&tenant.reader.post("/query/data", &body, 200).await);
            for n in 0..20 {
                let own = format!("{name} keeps the light {n} at Pier Nine");
                assert!(answer.contains(&own), "{own} is missing in {answer}");
            }
            assert!(!answer.contains(foreign), "{answer}");
            asked += 1;
        }
        asked
    };
    tokio::join!(write, ask).1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_moved_while_it_asks_and_writes_and_no_answer_is_wrong_or_short() {
    let ground = Ground::new("qdrant-moves").await;
    let (alice, bob) = ground.server.tenants().await;
    for (tenant, name) in [(&alice, "Ottoline"), (&bob, "Barnaby")] {
        for n in 0..20 {
            let text = format!("{name} keeps the light {n} at Pier Nine.");
            tenant.writer.put_document(&format!("light-{n}"), "The guide", &text).await;
        }
        ground.indexed(tenant).await;
    }
    let operator = ground.server.operator();
    let place = async |tenant: &Tenant, to: &str| {
        let path = format!("/admin/tenants/{}/placement", tenant.id);
        operator.post(&path, &json!({"placement": to, "reason": "a test"}), 200).await
    };
    place(&bob, "shared").await;
    let is_done = AtomicBool::new(false);
    let moves = async {
        for to in ["shared", "own", "shared", "shared", "own"] {
            let placed = place(&alice, to).await;
            for moved in placed["moved"].as_array().expect("what was moved") {
                assert!(moved["points"].as_u64() >= Some(20), "{placed}");
                assert_eq!(moved["checksum"].as_str().map(str::len), Some(64), "{placed}");
            }
        }
        is_done.store(true, Ordering::Release);
    };
    let (asked, of_bob, ()) = tokio::join!(
        busy(&alice, "Ottoline", "Barnaby", &is_done),
        busy(&bob, "Barnaby", "Ottoline", &is_done),
        moves
    );
    assert!(asked > 5 && of_bob > 5, "{asked} and {of_bob} questions");
    for tenant in [&alice, &bob] {
        ground.indexed(tenant).await;
        let path = format!("/admin/tenants/{}/verify", tenant.id);
        let body = json!({"repair": false, "namespace": "default", "reason": "a test"});
        let report = operator.post(&path, &body, 200).await;
        assert_eq!(report["namespace"]["findings"], json!([]), "{report}");
    }
    let collections = ground.collections();
    assert_eq!(collections.len(), 2, "hers and the shared one");
    // In the shared one there is nothing of hers but marks.
    let mut tenants = std::collections::BTreeSet::new();
    for collection in &collections {
        let points = ground.points(collection).await;
        let of: std::collections::BTreeSet<String> =
            points.iter().filter_map(|point| point.payload["tenant"].as_str().cloned()).collect();
        assert_eq!(of.len(), 1, "{of:?}");
        tenants.extend(of);
    }
    assert_eq!(tenants, [alice.id.clone(), bob.id.clone()].into());
    assert_eq!(ground.count("select count(*) from consumer where consumer like '%move'").await, 0);

    // Deleted, a tenant leaves nothing findable in the shared one either.
    let path = format!("/admin/tenants/{}", bob.id);
    operator.send("DELETE", &path, &json!({"reason": "a test"})).await;
    until("the deleted tenant's points stay", async || {
        let mut left = 0;
        for collection in ground.collections() {
            let points = ground.points(&collection).await;
            left += points.iter().filter(|point| point.payload["tenant"].as_str() == Some(&bob.id)).count();
        }
        left == 0
    })
    .await;
    assert_eq!(ground.count("select count(*) from vector_placement").await, 1);
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_shared_collection_without_the_filter_the_post_filter_raises_the_alarm() {
    let ground = Ground::new("qdrant-shared").await;
    let (alice, bob) = ground.server.tenants().await;
    let operator = ground.server.operator();
    for (tenant, name) in [(&alice, "Ottoline"), (&bob, "Barnaby")] {
        // Chosen before there is anything.
        let path = format!("/admin/tenants/{}/placement", tenant.id);
        let placed = operator.post(&path, &json!({"placement": "shared", "reason": "a test"}), 200).await;
        assert_eq!(placed["moved"], json!([]), "{placed}");
        // The same but for the name, so that each is among the other's nearest.
        for n in 0..3 {
            let text = format!("{name} keeps the light {n} at Pier Nine.");
            tenant.writer.put_document(&format!("light-{n}"), "The guide", &text).await;
        }
    }
    for (tenant, own, foreign) in [(&alice, "Ottoline", "Barnaby"), (&bob, "Barnaby", "Ottoline")] {
        let answer = contents(&ground.indexed(tenant).await);
        assert!(answer.contains(own) && !answer.contains(foreign), "{answer}");
    }
    assert_eq!(ground.collections().len(), 1);
    let index = ground.server.laboratory.qdrant.as_ref().expect("vectors are in Qdrant");
    index.laboratory_filter_off(true);
    for (tenant, foreign) in [(&alice, "Barnaby"), (&bob, "Ottoline")] {
        let body = json!({"query": QUESTION, "mode": "naive", "chunk_top_k": 20});
        let answer = tenant.reader.send("POST", "/query/data", &body).await;
        assert_eq!(answer.status, 500, "{}", answer.text());
        assert!(answer.text().contains("isolation-alarm") && !answer.all().contains(foreign));
    }
    index.laboratory_filter_off(false);
    ground.indexed(&alice).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_in_the_middle_of_a_move_serves_the_placement_before_or_after() {
    let folder = TempDir::new().expect("a folder");
    let data = folder.path().to_owned();
    let stand_in =
        tokio::task::spawn_blocking(move || StandIn::start(&data, API_KEY, 0)).await.expect("started");
    let url = stand_in.url();
    let environment = |crash: Option<&'static str>| {
        let mut all = vec![
            ("BULKHEAD__VECTORS__BACKEND", "qdrant"),
            ("BULKHEAD__VECTORS__QDRANT__URL", url.as_str()),
            ("BULKHEAD__VECTORS__QDRANT__API_KEY", API_KEY),
        ];
        all.extend(crash.map(|point| ("BULKHEAD_CRASH_AT", point)));
        all
    };
    let ground = crate::crashes::child::Ground::new("hashing").await;
    let server = ground.start_with(&environment(None)).await;
    let texts: Vec<String> =
        (0..12).map(|n| format!("Ledger {n} of Port Varnel speaks of quorvzim.")).collect();
    let names: Vec<String> = (0..12).map(|n| format!("ledger-{n}.txt")).collect();
    let body = json!({"texts": texts, "file_sources": names});
    ground.try_post(&server, "/documents/texts", &body, "").await.expect("accepted");
    ground.settled(&server).await;
    // Processed is not yet projected: a collection that holds nothing would go with the next sweep.
    let answered_by_qdrant = async |server: &crate::crashes::child::Running| {
        let end = Instant::now() + Duration::from_mins(1);
        loop {
            let body = json!({"query": "Who speaks of quorvzim?", "mode": "naive"});
            let answer = ground.try_post(server, "/query/data", &body, "").await.expect("an answer");
            if answer["metadata"]["fallback"].is_null() {
                return;
            }
            assert!(Instant::now() < end, "Qdrant does not answer: {}", answer["metadata"]);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    answered_by_qdrant(&server).await;
    server.kill();
    let path = format!("/admin/tenants/{}/placement", ground.tenant);
    let body = json!({"placement": "shared", "reason": "a test"});
    for point in ["vectors-copied", "vectors-moved", "vectors-switched"] {
        let mut server = ground.start_with(&environment(Some(point))).await;
        // The operators' socket may come a moment after the callers'.
        let end = Instant::now() + Duration::from_mins(1);
        while !server.has_ended() {
            let answered = ground.operate("POST", &path, &body).await;
            assert!(answered.is_none() && Instant::now() < end, "{point} was passed: {answered:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        drop(server);
        assert_eq!(stand_in.collections().len(), 2, "{point}");
        let server = ground.start_with(&environment(None)).await;
        answered_by_qdrant(&server).await;
        let found = ground.found(&server, "quorvzim").await;
        assert!(found.len() == 12 && found.values().all(|count| *count == 1), "{point}: {found:?}");
        server.kill();
    }
    // The last of them was switched: what it left behind goes with the next or with the sweep, and there is nothing to
    // move.
    let server = ground.start_with(&environment(None)).await;
    answered_by_qdrant(&server).await;
    let placed = ground.operate("POST", &path, &body).await.expect("an answer");
    assert_eq!(placed["moved"], json!([]), "{placed}");
    assert_eq!(stand_in.collections().len(), 1);
    assert_eq!(ground.found(&server, "quorvzim").await.len(), 12);
    server.kill();
    tokio::task::spawn_blocking(move || drop(stand_in)).await.expect("stopped");
}
