//! `bulkhead verify` and `rebuild`: every fault that can be planted is found by its name, and put right while others
//! write.

use std::collections::BTreeMap;
use std::fs::{self, FileTimes};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bulkhead::domain::ids::{ChunkId, TenantId};
use bulkhead::store::Partition;
use bulkhead::store::vector::{Point, Terms, VectorIndex as _};
use serde_json::{Value, json};
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use crate::place::connect;
use crate::server::{PATIENCE, Tenant, TestServer, new_folder, random_id, text};

const SETTINGS: &str = "embedding.model = 'hashing'
    orphans.every_seconds = 100000
    orphans.margin_seconds = 3600";

struct Ground {
    base: PathBuf,
    server: TestServer,
}

impl Ground {
    async fn new(name: &str) -> Self {
        let base = new_folder(name);
        let folder = base.clone();
        let start = move || TestServer::start(&folder, SETTINGS);
        let server = tokio::task::spawn_blocking(start).await.expect("a server");
        Self { base, server }
    }

    async fn superuser(&self) -> PgConnection {
        connect(self.server.laboratory.superuser.as_ref().expect("a private database")).await
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        program(&self.base, arguments).await
    }

    async fn partition(&self, tenant: &Tenant) -> Partition {
        let tenant = TenantId(tenant.id.parse().expect("an id"));
        self.server.laboratory.index.partitions(tenant).await.expect("listed").remove(0)
    }

    async fn stop(self) {
        let server = self.server;
        tokio::task::spawn_blocking(move || server.stop()).await.expect("stopped");
    }
}

/// Runs the program with the settings of the server in this folder.
pub async fn program(base: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
    command.args(arguments).arg("--config").arg(base.join("settings.toml"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    tokio::task::spawn_blocking(move || command.output().expect("it starts")).await.expect("it ends")
}

/// What a comparison found of a tenant: count by kind, and whether it was put right.
fn found(report: &Value, tenant: &str) -> BTreeMap<String, (i64, bool)> {
    let findings = report["findings"].as_array().expect("findings").iter();
    let own = findings.filter(|finding| finding["tenant"] == tenant);
    own.map(|finding| {
        let state = (finding["count"].as_i64().expect("a count"), finding["repaired"] == true);
        (text(finding, "finding"), state)
    })
    .collect()
}

fn report(output: &Output, code: i32) -> Value {
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{complaint} {}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Puts, replaces and deletes documents until it is told to stop.
pub async fn write(tenant: &Tenant, stop: &AtomicBool) -> usize {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        for n in 0..4 {
            let words = format!("Round {round} of the boat number {n} to the island of Skarn.");
            tenant.writer.put_document(&format!("boat-{n}"), "Boats", &words).await;
        }
        tenant.writer.delete(&format!("/documents/boat-{}", round % 4), &Value::Null, 200).await;
        round += 1;
    }
    round
}

/// Until what is written is in the index, too.
async fn settled(ground: &Ground, tenant: &Tenant) {
    let until = std::time::Instant::now() + PATIENCE;
    let id: Uuid = tenant.id.parse().expect("an id");
    loop {
        let lag: i64 = sqlx::query_scalar(
            "select coalesce(sum(n.seq - coalesce(c.seq, 0)), 0)::bigint from namespace n
             left join consumer c using (tenant_id, namespace_id) where n.tenant_id = $1",
        )
        .bind(id)
        .fetch_one(&mut ground.superuser().await)
        .await
        .expect("lag");
        if lag == 0 {
            return;
        }
        assert!(std::time::Instant::now() < until, "the index does not follow");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn execute(connection: &mut PgConnection, statement: &'static str, tenant: Uuid) {
    let done = sqlx::query(statement).bind(tenant).execute(connection).await.expect(statement);
    assert!(done.rows_affected() > 0, "{statement}");
}

async fn plant_in_index(ground: &Ground, alice: &Tenant, bob: &Tenant, chunks: &[Uuid]) {
    let (own, other) = (ground.partition(alice).await, ground.partition(bob).await);
    let point = |chunk: Uuid, version| {
        let mut embedding = vec![0.0; 384];
        embedding[0] = 1.0;
        Point { chunk: ChunkId(chunk), version, embedding, terms: Terms::default() }
    };
    let index = &ground.server.laboratory.index;
    index.laboratory_lose(&own, ChunkId(chunks[0])).await.expect("lost");
    index.laboratory_plant(&own, &own, point(chunks[1], 99)).await.expect("planted");
    index.laboratory_plant(&own, &own, point(Uuid::from_u128(1), 1)).await.expect("planted");
    index.laboratory_plant(&own, &other, point(Uuid::from_u128(2), 1)).await.expect("planted");
}

async fn plant_in_rows(ground: &Ground, tenant: Uuid) {
    let mut superuser = ground.superuser().await;
    for statement in [
        "update namespace set chunks = chunks + 7 where tenant_id = $1",
        "update tenant_usage set documents = documents + 3, bytes = bytes - 5 where tenant_id = $1",
        "delete from chunk_embedding e using chunk c where e.tenant_id = $1 and c.tenant_id = $1
             and e.chunk_id = c.chunk_id and c.document_id = 'doc-5'",
        "insert into chunk_embedding (tenant_id, namespace_id, model_id, chunk_id, version, seq, embedding, terms)
         select e.tenant_id, e.namespace_id, e.model_id, gen_random_uuid(), e.version, e.seq, e.embedding, e.terms
         from chunk_embedding e join chunk c using (tenant_id, namespace_id, chunk_id)
         where e.tenant_id = $1 and c.document_id = 'doc-6'",
        "update audit_event set body = replace(body, 'tenant.create', 'tenant.delete')
         where tenant_id = $1 and number = 1",
    ] {
        execute(&mut superuser, statement, tenant).await;
    }
}

fn plant_in_files(ground: &Ground, tenant: &str) {
    let uploads = ground.server.data_dir.join("uploads").join(tenant);
    let namespace = fs::read_dir(&uploads).expect("uploads").next().expect("one").expect("one").path();
    let upload = fs::read_dir(&namespace).expect("files").next().expect("one").expect("one").path();
    fs::remove_file(upload).expect("lost");
    let stray = fs::File::create(namespace.join(random_id())).expect("stray");
    let old = SystemTime::now() - Duration::from_hours(2);
    stray.set_times(FileTimes::new().set_modified(old)).expect("old");
    fs::File::create(namespace.join(random_id())).expect("young, which is left alone");
    let index = ground.server.data_dir.join("shards").join(tenant).join(random_id()).join("00112233445566ff");
    fs::create_dir_all(index).expect("an index of nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_planted_fault_is_found_by_its_name_and_put_right_under_writes() {
    let ground = Ground::new("verify").await;
    let (alice, bob) = ground.server.tenants().await;
    for tenant in [&alice, &bob] {
        for n in 0..10 {
            let words = format!("The lamp number {n} of Osterkai was lit by {}.", tenant.slug);
            tenant.writer.put_document(&format!("doc-{n}"), "Lamps", &words).await;
        }
        let sent =
            tenant.writer.upload("bells.md", b"# Bells\n\nThe bell of Osterkai was cast in 1897.").await;
        tenant.writer.wait_processed(&text(&sent.json(), "track_id")).await;
        settled(&ground, tenant).await;
    }
    let sound = report(&ground.run(&["verify", "--json"]).await, 0);
    assert_eq!((&sound["findings"], &sound["points"]), (&json!([]), &json!(22)), "{sound}");

    let id: Uuid = alice.id.parse().expect("an id");
    let chunks: Vec<Uuid> =
        sqlx::query_scalar("select chunk_id from chunk where tenant_id = $1 order by document_id")
            .bind(id)
            .fetch_all(&mut ground.superuser().await)
            .await
            .expect("chunks");
    plant_in_index(&ground, &alice, &bob, &chunks[..2]).await;
    plant_in_rows(&ground, id).await;
    plant_in_files(&ground, &alice.id);
    let wrong = report(&ground.run(&["verify", "--json"]).await, 3);
    let expected = BTreeMap::from(
        [
            // One was lost, one is an embedding that never was in the index.
            ("missing_points", 2),
            ("wrong_versions", 1),
            // One was planted, one lost its embedding.
            ("extra_points", 2),
            ("foreign_points", 1),
            ("missing_embeddings", 1),
            ("extra_embeddings", 1),
            ("wrong_chunk_count", 7),
            ("wrong_document_count", 3),
            ("wrong_byte_count", 5),
            ("stray_uploads", 1),
            ("stray_indexes", 1),
            ("lost_uploads", 1),
            ("audit_changed", 1),
        ]
        .map(|(kind, count)| (kind.to_owned(), (count, false))),
    );
    assert_eq!(found(&wrong, &alice.slug), expected);
    assert_eq!(found(&wrong, &bob.slug), BTreeMap::new(), "a neighbour has nothing to do with it");
    assert_eq!(wrong["left"], 13);

    let stop = Arc::new(AtomicBool::new(false));
    let writing = {
        let (alice, stop) = (alice.clone(), Arc::clone(&stop));
        tokio::spawn(async move { write(&alice, &stop).await })
    };
    let repaired = report(&ground.run(&["verify", "--tenant", &alice.slug, "--repair", "--json"]).await, 3);
    let repaired = found(&repaired, &alice.slug);
    for kind in expected.keys() {
        let is_mended = repaired.get(kind).is_none_or(|(_, repaired)| *repaired);
        assert_eq!(
            is_mended,
            !["lost_uploads", "audit_changed"].contains(&kind.as_str()),
            "{kind}: {repaired:?}"
        );
    }
    let left = report(&ground.run(&["verify", "--tenant", &alice.slug, "--json"]).await, 3);
    let beyond_repair = ["audit_changed", "lost_uploads"].map(|kind| (kind.to_owned(), (1, false)));
    assert_eq!(
        found(&left, &alice.slug),
        BTreeMap::from(beyond_repair),
        "the rest was put right, while others write"
    );
    let until = std::time::Instant::now() + PATIENCE;
    while alice.reader.get("/documents/doc-5", 200).await["status"] != "processed" {
        assert!(std::time::Instant::now() < until, "it is processed again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.store(true, Ordering::Relaxed);
    assert!(writing.await.expect("no panic") > 0, "there were writes meanwhile");
    for n in 0..10 {
        let found = alice.reader.query(&format!("Which lamp is number {n} of Osterkai?")).await;
        let words = format!("number {n} of Osterkai was lit by {}", alice.slug);
        assert!(found.to_string().contains(&words), "{n}: {found}");
    }
    let mut superuser = ground.superuser().await;
    crate::consistency::consistent(&mut superuser, TenantId(id)).await;
    ground.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn indexes_are_written_anew_under_questions_and_writes_and_without_a_server() {
    let ground = Ground::new("rebuild").await;
    let (alice, bob) = ground.server.tenants().await;
    for tenant in [&alice, &bob] {
        for n in 0..6 {
            let words = format!("The pilot number {n} of Varnhold is known to {}.", tenant.slug);
            tenant.writer.put_document(&format!("doc-{n}"), "Pilots", &words).await;
        }
        settled(&ground, tenant).await;
    }
    let generation = |tenant: &Tenant| {
        let root = ground.server.data_dir.join("shards").join(&tenant.id);
        let one =
            |path: PathBuf| fs::read_dir(path).expect("a folder").next().expect("one").expect("one").path();
        let mark: Value =
            serde_json::from_slice(&fs::read(one(one(root)).join("watermark.json")).expect("a mark"))
                .expect("JSON");
        mark["generation"].as_u64().expect("a number")
    };
    let (alices, bobs) = (generation(&alice), generation(&bob));
    let stop = Arc::new(AtomicBool::new(false));
    let working = {
        let (alice, stop) = (alice.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            let asking = async {
                let mut asked = 0;
                while !stop.load(Ordering::Relaxed) {
                    let found = alice.reader.query("Who is pilot number 3 of Varnhold?").await;
                    assert!(found.to_string().contains("number 3 of Varnhold"), "{found}");
                    asked += 1;
                }
                asked
            };
            tokio::join!(asking, write(&alice, &stop))
        })
    };
    for _ in 0..3 {
        let rebuilt = report(&ground.run(&["rebuild", "--tenant", &alice.slug, "--json"]).await, 0);
        assert_eq!(rebuilt.as_array().map(Vec::len), Some(1), "{rebuilt}");
    }
    stop.store(true, Ordering::Relaxed);
    let (asked, written) = working.await.expect("every answer was whole");
    assert!(asked > 0 && written > 0);
    assert!(generation(&alice) >= alices + 3, "each is a new generation");
    assert_eq!(generation(&bob), bobs, "nobody else's is touched");
    report(&ground.run(&["verify", "--json"]).await, 0);

    let nowhere = ground.run(&["rebuild", "--tenant", &alice.slug, "--namespace", "nowhere"]).await;
    assert_eq!(nowhere.status.code(), Some(1));
    let (base, slug) = (ground.base.clone(), alice.slug.clone());
    ground.stop().await;
    // The same commands, by themselves.
    let rebuilt = report(&program(&base, &["rebuild", "--all", "--json"]).await, 0);
    assert_eq!(rebuilt.as_array().map(Vec::len), Some(2), "{rebuilt}");
    let sound = report(&program(&base, &["verify", "--json"]).await, 0);
    assert_eq!((&sound["tenants"], &sound["findings"]), (&json!(2), &json!([])), "{sound}");
    let one = ["verify", "--tenant", &slug, "--namespace", "default", "--json"];
    assert_eq!(report(&program(&base, &one).await, 0)["namespaces"], 1);
}
