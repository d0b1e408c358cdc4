//! The last line, over a whole server: points that do not belong into a shard, with the shard's own filter on and off.

use bulkhead::domain::audit::{AuditKind, Decision};
use bulkhead::domain::clock::{Clock as _, SystemClock};
use bulkhead::domain::ids::{ChunkId, IdSource as _, NamespaceId, SystemIds, TenantId};
use bulkhead::store::Partition;
use bulkhead::store::vector::{Point, Terms};
use hmac::{Hmac, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use sqlx::Row as _;
use sqlx::postgres::PgConnection;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use crate::audit_trail::Trail;
use crate::oracle::assert_without;
use crate::place::connect;
use crate::receiver::Receiver;
use crate::server::{Answer, PATIENCE, Tenant, TestServer, new_folder, random, text};

const QUESTION: &str = "Who keeps the light at Pier Nine?";

/// A server of its own, whose filter a test may switch off, with two tenants.
struct Ground {
    server: TestServer,
    trail: Trail,
    alice: Tenant,
    bob: Tenant,
    /// Words of Bob's documents, and the ids of his chunks.
    bobs: Vec<String>,
}

impl Ground {
    async fn new(name: &'static str, further: &str) -> Self {
        let further = format!("embedding.model = 'hashing'\n{further}");
        let start = move || TestServer::start(&new_folder(name), &further);
        let server = tokio::task::spawn_blocking(start).await.expect("a server");
        let (alice, bob) = server.tenants().await;
        let word = random(24);
        for (tenant, word) in [(&alice, "Ottoline"), (&bob, word.as_str())] {
            for (id, text) in [
                ("light", format!("{word} keeps the light at Pier Nine.")),
                ("rope", format!("{word} keeps the rope at Pier Nine, and nobody knows why.")),
                ("boat", format!("The boat of {word} is green.")),
            ] {
                tenant.writer.put_document(id, "The guide", &text).await;
            }
        }
        let trail = Trail::of(&server);
        let mut ground = Self { server, trail, alice, bob, bobs: vec![word] };
        for tenant in [&ground.alice, &ground.bob] {
            ground.indexed(tenant).await;
        }
        let his = ground.points(&ground.bob).await;
        ground.bobs.extend(his.iter().map(|point| point.chunk.to_string()));
        ground.bobs.push(ground.bob.id.clone());
        ground
    }

    async fn database(&self) -> PgConnection {
        connect(self.server.laboratory.superuser.as_ref().expect("a private database")).await
    }

    /// Waits until the index alone answers.
    async fn indexed(&self, tenant: &Tenant) {
        let until = Instant::now() + PATIENCE;
        while self.ask(tenant, 20).await.json()["metadata"]["fallback"] != Value::Null {
            assert!(Instant::now() < until, "the index never answers");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn partition(&self, tenant: &Tenant) -> Partition {
        let id = TenantId(tenant.id.parse().expect("an id"));
        let namespace = sqlx::query_scalar("select namespace_id from namespace where tenant_id = $1")
            .bind(id.0)
            .fetch_one(&mut self.database().await)
            .await
            .expect("a namespace");
        Partition::for_laboratory(id, NamespaceId(namespace), self.server.laboratory.model.clone())
    }

    /// What the record holds of a tenant for an index.
    async fn points(&self, tenant: &Tenant) -> Vec<Point> {
        let id: uuid::Uuid = tenant.id.parse().expect("an id");
        let rows = sqlx::query(
            "select chunk_id, version, embedding::text as embedding, split_part(terms::text, '/', 1) as terms
             from chunk_embedding where tenant_id = $1",
        )
        .bind(id)
        .fetch_all(&mut self.database().await)
        .await
        .expect("embeddings");
        let list = |text: String| -> Vec<String> {
            let inside = text.trim_matches(['[', ']', '{', '}']).to_owned();
            inside.split(',').filter(|item| !item.is_empty()).map(str::to_owned).collect()
        };
        rows.into_iter()
            .map(|row| {
                let mut terms = Terms { indices: Vec::new(), values: Vec::new() };
                for entry in list(row.get("terms")) {
                    let (index, value) = entry.split_once(':').expect("a term");
                    terms.indices.push(index.parse::<u32>().expect("an index") - 1);
                    terms.values.push(value.parse().expect("a weight"));
                }
                let embedding = list(row.get("embedding"));
                Point {
                    chunk: ChunkId(row.get("chunk_id")),
                    version: row.get("version"),
                    embedding: embedding.iter().map(|x| x.parse().expect("a number")).collect(),
                    terms,
                }
            })
            .collect()
    }

    async fn plant(&self, tag: &Partition, point: Point) {
        let index = &self.server.laboratory.index;
        index.laboratory_plant(&self.partition(&self.alice).await, tag, point).await.expect("planted");
    }

    async fn ask(&self, tenant: &Tenant, chunks: u32) -> Answer {
        let body = json!({"query": QUESTION, "mode": "naive", "chunk_top_k": chunks});
        tenant.reader.send("POST", "/query/data", &body).await
    }

    /// The tenant's question in every mode and on every surface.
    async fn everywhere(&self, tenant: &Tenant) -> Vec<(String, Answer)> {
        let mut answers = Vec::new();
        for mode in ["naive", "local", "global", "hybrid", "mix"] {
            for path in ["/query", "/query/data", "/query/stream"] {
                let body = json!({"query": QUESTION, "mode": mode, "include_chunk_content": true});
                answers.push((format!("{path} {mode}"), tenant.reader.send("POST", path, &body).await));
            }
        }
        for path in ["/v1/chat/completions", "/api/chat"] {
            for stream in [false, true] {
                let messages = json!([{"role": "user", "content": QUESTION}]);
                let body = json!({"model": "default", "messages": messages, "stream": stream});
                answers.push((
                    format!("{path}, stream {stream}"),
                    tenant.reader.send("POST", path, &body).await,
                ));
            }
        }
        answers
    }

    fn without_bob(&self, about: &str, answer: &Answer) {
        assert_without(answer.all(), self.bobs.iter().map(String::as_str), about);
    }

    async fn alarms(&self, chain: Option<&str>) -> Vec<bulkhead::domain::audit::AuditRecord> {
        let mut records = self.trail.since(chain, "").await;
        records.retain(|record| record.kind == AuditKind::Alarm);
        records
    }

    async fn end(self) {
        self.trail.verify(Some(&self.alice.id)).await;
        self.trail.verify(None).await;
        self.trail.close().await;
        tokio::task::spawn_blocking(move || self.server.stop()).await.expect("stopped");
    }
}

fn chunk_ids(answer: &Answer) -> Vec<String> {
    let chunks = answer.json()["data"]["chunks"].as_array().expect("chunks").clone();
    chunks.iter().map(|chunk| text(chunk, "chunk_id")).collect()
}

#[tokio::test]
async fn a_foreign_point_stops_the_request_with_an_alarm_and_not_another_word() {
    let ground = Ground::new("foreign", "").await;
    let (alice, bob) = (&ground.alice, &ground.bob);
    let before = chunk_ids(&ground.ask(alice, 20).await);
    let bobs = ground.partition(bob).await;
    for point in ground.points(bob).await {
        ground.plant(&bobs, point).await;
    }
    // The shard's filter holds: the points are there, and nobody sees them.
    for (about, answer) in ground.everywhere(alice).await {
        assert_eq!(answer.status, 200, "{about}: {}", answer.text());
        ground.without_bob(&about, &answer);
    }
    assert_eq!(ground.alarms(Some(&alice.id)).await, []);

    ground.server.laboratory.index.laboratory_filter_off(true);
    let mut said = Vec::new();
    let stopped = ground.everywhere(alice).await;
    for (about, answer) in &stopped {
        assert_eq!((answer.status, &answer.json()["slug"]), (500, &json!("isolation-alarm")), "{about}");
        ground.without_bob(about, answer);
        assert_eq!(answer.headers["cache-control"], "private, no-store");
        said.push(text(&answer.json(), "detail"));
        for word in ["chunk", "shard", "index", "partition", "foreign", "row"] {
            assert!(!answer.text().to_lowercase().contains(word), "{word} in {about}: {}", answer.text());
        }
    }
    said.dedup();
    assert_eq!(said.len(), 1, "the words are fixed");
    // Each was an alarm in both logs; the tenant's own does not name anybody.
    for chain in [Some(alice.id.as_str()), None] {
        let alarms = ground.alarms(chain).await;
        assert_eq!(alarms.len(), stopped.len(), "{chain:?}: {alarms:?}");
        for alarm in alarms {
            assert_eq!((alarm.decision, alarm.reason.as_str()), (Decision::Denied, "isolation-alarm"));
            assert!(alarm.principal.starts_with("key:") && alarm.ids.is_empty());
            assert_eq!(alarm.asked_for.is_empty(), chain.is_some());
        }
    }
    let failed = |record: &bulkhead::domain::audit::AuditRecord| {
        record.kind == AuditKind::Query && record.decision == Decision::Failed
    };
    let until = Instant::now() + PATIENCE;
    loop {
        let questions = ground.trail.since(Some(&alice.id), "").await.into_iter().filter(failed).count();
        if questions == stopped.len() {
            break;
        }
        assert!(Instant::now() < until, "{questions} of {} questions are in the log", stopped.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The neighbour, in whose shard nothing was planted, is not concerned; neither is what needs no index.
    assert_eq!(ground.ask(bob, 20).await.status, 200);
    alice.reader.get("/graph/label/list", 200).await;
    assert_eq!(ground.alarms(Some(&bob.id)).await, []);

    ground.server.laboratory.index.laboratory_filter_off(false);
    assert_eq!(chunk_ids(&ground.ask(alice, 20).await), before);
    ground.end().await;
}

#[tokio::test]
async fn an_alarm_reaches_the_webhook_signed_and_without_text_though_the_receiver_fails_at_first() {
    const SECRET: &str = "a secret of the test's own";
    let receiver = Receiver::answering(&[500, 429]);
    let folder = tempfile::tempdir().expect("a folder");
    let secret = folder.path().join("secret");
    std::fs::write(&secret, SECRET).expect("written");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).expect("closed");
    let further = format!(
        "node = 'harbour-1'\ntelemetry.metrics_address = '127.0.0.1:0'\n\
         telemetry.webhook.url = '{}/hook'\ntelemetry.webhook.secret_file = '{}'\n",
        receiver.url,
        secret.display()
    );
    let ground = Ground::new("webhook", &further).await;
    let (alice, bob) = (&ground.alice, &ground.bob);
    let bobs = ground.partition(bob).await;
    for point in ground.points(bob).await {
        ground.plant(&bobs, point).await;
    }
    ground.server.laboratory.index.laboratory_filter_off(true);
    assert_eq!(ground.ask(alice, 20).await.status, 500);
    // A stream that has begun when the alarm comes tells it as its last line, and raises it all the same.
    let stream = json!({"query": QUESTION, "mode": "naive", "include_progress": true});
    let streamed = alice.reader.send("POST", "/query/stream", &stream).await;
    assert!(streamed.status == 200 && streamed.text().contains("isolation-alarm"), "{}", streamed.text());
    ground.without_bob("a stream", &streamed);
    assert_eq!(ground.alarms(Some(&alice.id)).await.len(), 2);

    // The first is tried three times, then the second comes.
    let sent = receiver.at_least(4).await;
    assert_eq!(sent.len(), 4);
    let bodies: Vec<Value> =
        sent.iter().map(|sent| serde_json::from_slice(&sent.body).expect("JSON")).collect();
    let ids: Vec<&str> = bodies.iter().filter_map(|body| body["id"].as_str()).collect();
    assert!(ids[0] == ids[1] && ids[1] == ids[2] && ids[2] != ids[3], "{ids:?}");
    for (sent, body) in std::iter::zip(&sent, &bodies) {
        let fields: Vec<&str> = body.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(fields, ["id", "kind", "at", "node", "tenant_id", "action", "rows"]);
        assert_eq!((&body["kind"], &body["tenant_id"]), (&json!("request_stopped"), &json!(alice.id)));
        assert_eq!((&body["node"], &body["action"]), (&json!("harbour-1"), &json!("request.stopped")));
        assert_without(body.to_string(), ground.bobs.iter().map(String::as_str), "an alarm");
        let signature = &sent.headers["x-bulkhead-signature"];
        let (time, digest) =
            signature.strip_prefix("t=").and_then(|rest| rest.split_once(",v1=")).expect("both");
        let mut own = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("a key");
        own.update(time.as_bytes());
        own.update(b".");
        own.update(&sent.body);
        assert_eq!(hex::encode(own.finalize().into_bytes()), digest);
        let age = SystemClock.now().timestamp() - time.parse::<i64>().expect("seconds");
        assert!((0..120).contains(&age), "{age}");
    }
    let url = format!("{}/metrics", ground.server.metrics.as_ref().expect("metrics"));
    let until = Instant::now() + PATIENCE;
    loop {
        let page = reqwest::get(&url).await.expect("an answer").text().await.expect("a page");
        assert!(page.contains("bulkhead_alarms_total{kind=\"request_stopped\"} 2"), "{page}");
        if page.contains("bulkhead_webhook_alarms_total{outcome=\"delivered\"} 2") {
            break;
        }
        assert!(Instant::now() < until, "{page}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ground.end().await;
}

#[tokio::test]
async fn a_foreign_point_that_may_be_dropped_is_counted_marked_and_answered_for_by_the_database() {
    let ground = Ground::new("dropped", "retrieval.on_foreign_row = 'drop'").await;
    let (alice, bob) = (&ground.alice, &ground.bob);
    let before = chunk_ids(&ground.ask(alice, 20).await);
    let bobs = ground.partition(bob).await;
    let planted = ground.points(bob).await;
    for point in planted.clone() {
        ground.plant(&bobs, point).await;
    }
    // A namespace of Alice's own that is not this one is as foreign.
    let own = ground.partition(alice).await;
    let elsewhere = NamespaceId(SystemIds(SystemClock).uuid());
    let elsewhere =
        Partition::for_laboratory(own.tenant(), elsewhere, ground.server.laboratory.model.clone());
    let ids = SystemIds(SystemClock);
    let stray = Point { chunk: ChunkId(ids.uuid()), ..planted[0].clone() };
    ground.plant(&elsewhere, stray).await;
    ground.server.laboratory.index.laboratory_filter_off(true);

    let answer = ground.ask(alice, 20).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(chunk_ids(&answer), before, "what was displaced is there again");
    let metadata = &answer.json()["metadata"];
    assert_eq!(metadata["degraded"], json!(["foreign_rows_dropped"]));
    assert_eq!(metadata["fallback"], "pgvector");
    ground.without_bob("/query/data", &answer);
    // Four points, by meaning and by words: each row that came back is counted.
    let question = |record: &bulkhead::domain::audit::AuditRecord| {
        record.kind == AuditKind::Query && record.rows_dropped > 0
    };
    let question = ground.trail.find(Some(&alice.id), question).await;
    assert_eq!((question.decision, &question.ids), (Decision::Allowed, &before));
    assert!(question.rows_dropped >= 4, "{question:?}");
    for chain in [Some(alice.id.as_str()), None] {
        let alarms = ground.alarms(chain).await;
        assert_eq!(alarms.len(), 1, "{alarms:?}");
        assert_eq!(alarms[0].rows_dropped, question.rows_dropped);
        assert!(alarms[0].ids.is_empty());
    }
    let answers = ground.everywhere(alice).await;
    for (about, answer) in &answers {
        assert_eq!(answer.status, 200, "{about}: {}", answer.text());
        assert!(answer.text().contains("Ottoline"), "{about}: {}", answer.text());
        ground.without_bob(about, answer);
    }
    assert_eq!(ground.alarms(Some(&alice.id)).await.len(), 1 + answers.len());
    ground.end().await;
}

#[tokio::test]
async fn a_stale_point_is_trimmed_counted_and_its_place_filled_without_an_alarm() {
    let ground = Ground::new("stale", "retrieval.candidates = 4").await;
    let alice = &ground.alice;
    let before = chunk_ids(&ground.ask(alice, 2).await);
    assert_eq!(before.len(), 2);
    let own = ground.partition(alice).await;
    let points = ground.points(alice).await;
    let best = points.iter().find(|point| point.chunk.to_string() == before[0]).expect("the best").clone();
    // Of chunks that are gone, as like the question as the best one; and the best one of another version.
    for _ in 0..5 {
        let gone = ChunkId(SystemIds(SystemClock).uuid());
        ground.plant(&own, Point { chunk: gone, ..best.clone() }).await;
    }
    ground.plant(&own, Point { version: best.version + 1, ..best }).await;
    for _ in 0..2 {
        let answer = ground.ask(alice, 2).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(chunk_ids(&answer), before, "the places of what was trimmed are filled");
        assert_eq!(answer.json()["metadata"]["fallback"], "pgvector");
        assert_eq!(answer.json()["metadata"]["degraded"], json!([]), "stale is not foreign");
    }
    let until = Instant::now() + PATIENCE;
    loop {
        let mut dropped = ground.trail.since(Some(&alice.id), "").await;
        dropped.retain(|record| record.rows_dropped > 0);
        if dropped.len() == 2 {
            assert!(dropped.iter().all(|record| record.rows_dropped == 4), "{dropped:?}");
            break;
        }
        assert!(Instant::now() < until, "{dropped:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(ground.alarms(Some(&alice.id)).await, []);
    ground.end().await;
}
