//! Another embedding model for a namespace: while it is filled everything goes on by the old one, the switch leaves
//! nothing out, and neighbours see nothing of it.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bulkhead::domain::ids::{ModelId, NamespaceName, TenantId};
use bulkhead::store::postgres::documents::OnExisting;
use bulkhead::store::postgres::ingest::{NewChunk, ProcessedDocument, SecondVectors};
use bulkhead::store::postgres::migrate;
use bulkhead::store::postgres::reembed::{ReembedTask, Switch};
use bulkhead::store::vector::VectorQuery;
use bulkhead::store::{CorpusWriter, ErrorKind, StoreError, TenantWriter};
use serde_json::{Value, json};

use crate::consistency::consistent;
use crate::database::MODEL;
use crate::deployment::{Harness, accept, chunk, document};
use crate::server::{PATIENCE, Tenant, TestServer, new_folder, text};

const SECOND: &str = "fedcba9876543210";

fn model(id: &str) -> ModelId {
    ModelId::parse(id).expect("a model")
}

/// What the second model makes of a text: 2 dimensions.
fn second(text: &str) -> Vec<f32> {
    let angle = f32::from(u8::try_from(text.len() % 200).expect("small"));
    vec![angle.cos(), angle.sin()]
}

/// Writes a document by the models of the handle; with the second one's vectors as well if they are wanted.
async fn write(
    harness: &Harness,
    corpus: &CorpusWriter,
    id: &str,
    chunks: Vec<NewChunk>,
    both: bool,
) -> Result<(), StoreError> {
    accept(corpus, &[document(id, &chunks[0].text)], OnExisting::Replace).await;
    let leased = harness.lease(corpus).await;
    let task = corpus.job_open(&leased).await.expect("opened").remove(0);
    let vectors: HashMap<_, _> = chunks.iter().map(|chunk| (chunk.chunk, second(&chunk.text))).collect();
    let processed = ProcessedDocument {
        job: task.job,
        lease: task.lease,
        document_id: task.document_id,
        version: task.version,
        title: None,
        chunks,
    };
    let also = both.then(|| SecondVectors { model: model(SECOND), vectors });
    corpus.documents_commit_with(&[processed], also.as_ref()).await.map(drop)
}

async fn open(writer: &TenantWriter) -> CorpusWriter {
    writer.corpus_require(&NamespaceName::default()).await.expect("opened").expect("reached")
}

async fn fill(corpus: &CorpusWriter, id: &str, most: usize) -> usize {
    let missing =
        corpus.reembed_missing(&model(id), None, i64::try_from(most).expect("few")).await.expect("listed");
    let vectors = missing.iter().map(|chunk| match id {
        SECOND => (chunk.chunk, second(&chunk.text)),
        _ => (chunk.chunk, crate::deployment::chunk(0, &chunk.text).embedding),
    });
    assert!(corpus.reembed_fill(&model(id), vectors.collect()).await.expect("filled"));
    missing.len()
}

async fn rows(harness: &Harness, tenant: TenantId) -> BTreeSet<String> {
    let mut superuser = harness.deployment.superuser().await;
    let rows: Vec<String> =
        sqlx::query_scalar("select e::text || ctid::text from chunk_embedding e where tenant_id = $1")
            .bind(tenant.0)
            .fetch_all(&mut superuser)
            .await
            .expect("rows");
    rows.into_iter().collect()
}

async fn models(harness: &Harness, tenant: TenantId) -> Vec<(String, i64)> {
    sqlx::query_as(
        "select model_id, count(*) from chunk_embedding where tenant_id = $1 group by model_id order by 1",
    )
    .bind(tenant.0)
    .fetch_all(&mut harness.deployment.superuser().await)
    .await
    .expect("models")
}

#[tokio::test]
async fn a_namespace_switches_when_every_chunk_has_its_new_embedding_and_not_before() {
    let harness = Harness::new().await;
    migrate::add_models(&harness.deployment.addresses.owner, &[model(SECOND)]).await.expect("partition");
    let (alice, bob) = (harness.tenant().await, harness.tenant().await);
    let (writer, neighbour) = (harness.stores.background(&alice), harness.stores.background(&bob));
    let tenant = alice.scope().tenant();
    for writer in [&writer, &neighbour] {
        let corpus = open(writer).await;
        let chunks = (0..5).map(|n| chunk(n, &format!("boat {n} in the harbour")));
        write(&harness, &corpus, "boats", chunks.collect(), false).await.expect("written");
    }
    let untouched = rows(&harness, bob.scope().tenant()).await;

    let task = ReembedTask { namespace: None, model: model(SECOND), is_sweeping: false };
    let before = open(&writer).await;
    let namespace = writer.reembed_next(&task).await.expect("begun").expect("one to do");
    assert_eq!(namespace, before.partition().namespace());
    let corpus = open(&writer).await;
    assert_eq!(corpus.building(), Some(&model(SECOND)));
    assert_eq!(fill(&corpus, SECOND, 2).await, 2);
    assert_eq!(corpus.reembed_switch(&model(SECOND)).await.expect("tried"), Switch::Behind);
    // Whoever begins again goes on with the rest.
    assert_eq!(writer.reembed_next(&task).await.expect("begun"), Some(namespace));
    assert_eq!(corpus.reembed_missing(&model(SECOND), None, 100).await.expect("listed").len(), 3);

    // Meanwhile documents come, with and without the second model's vectors, and go.
    write(&harness, &corpus, "both", vec![chunk(0, "with both")], true).await.expect("written");
    write(&harness, &before, "one", vec![chunk(0, "with one")], false).await.expect("written");
    write(&harness, &corpus, "gone", vec![chunk(0, "soon gone")], true).await.expect("written");
    assert_eq!(corpus.documents_delete(&["gone".to_owned()]).await.expect("deleted").len(), 1);
    assert_eq!(fill(&corpus, SECOND, 100).await, 4);
    assert_eq!(fill(&corpus, SECOND, 100).await, 0, "nothing is filled twice");
    assert_eq!(models(&harness, tenant).await, [(MODEL.to_owned(), 7), (SECOND.to_owned(), 7)]);

    let late = open(&writer).await;
    let Switch::Done(seq) = corpus.reembed_switch(&model(SECOND)).await.expect("switched") else {
        panic!("it is complete")
    };
    let switched = open(&writer).await;
    assert_eq!((switched.seq(), switched.partition().model()), (seq, &model(SECOND)));
    assert_eq!(switched.building(), None);
    assert_eq!(writer.reembed_next(&task).await.expect("asked"), None, "all have switched");
    let query = VectorQuery { embedding: Some(second("boat 3 in the harbour")), terms: None, limit: 10 };
    let found = switched.chunk_search(&query).await.expect("searched").dense;
    assert_eq!(found.len(), 7);
    assert!((found[0].score - 1.0).abs() < 1e-6);
    // A question that was asked before finds what the old model found.
    let query =
        VectorQuery { embedding: Some(chunk(0, "boat 3 in the harbour").embedding), terms: None, limit: 1 };
    let found = late.chunk_search(&query).await.expect("searched").dense;
    assert!((found[0].score - 1.0).abs() < 1e-6);
    // A document whose vectors are the old model's alone is begun again; one with both is written.
    let refused = write(&harness, &before, "late", vec![chunk(0, "too late")], false).await;
    assert_eq!(refused.expect_err("refused").kind, ErrorKind::Conflict);
    harness.clock.advance(Duration::from_mins(11));
    write(&harness, &late, "late", vec![chunk(0, "in time")], true).await.expect("written");
    assert_eq!(models(&harness, tenant).await, [(MODEL.to_owned(), 7), (SECOND.to_owned(), 8)]);

    assert_eq!(writer.reembed_retired().await.expect("listed"), [namespace]);
    while !switched.reembed_sweep(3).await.expect("swept") {}
    assert_eq!(writer.reembed_retired().await.expect("listed"), []);
    assert_eq!(models(&harness, tenant).await, [(SECOND.to_owned(), 8)]);
    consistent(&mut harness.deployment.superuser().await, tenant).await;
    assert_eq!(rows(&harness, bob.scope().tenant()).await, untouched, "a neighbour's rows");

    // And back again.
    let task = ReembedTask { model: model(MODEL), ..task };
    assert_eq!(writer.reembed_next(&task).await.expect("begun"), Some(namespace));
    let corpus = open(&writer).await;
    assert_eq!(fill(&corpus, MODEL, 100).await, 8);
    assert!(matches!(corpus.reembed_switch(&model(MODEL)).await.expect("switched"), Switch::Done(_)));
    let back = open(&writer).await;
    while !back.reembed_sweep(100).await.expect("swept") {}
    assert_eq!(models(&harness, tenant).await, [(MODEL.to_owned(), 8)]);
    consistent(&mut harness.deployment.superuser().await, tenant).await;
    harness.close().await;
}

#[tokio::test]
async fn a_model_that_was_given_up_half_filled_leaves_nothing() {
    let harness = Harness::new().await;
    migrate::add_models(&harness.deployment.addresses.owner, &[model(SECOND)]).await.expect("partition");
    let permit = harness.tenant().await;
    let writer = harness.stores.background(&permit);
    let corpus = open(&writer).await;
    write(&harness, &corpus, "boats", (0..3).map(|n| chunk(n, &format!("boat {n}"))).collect(), false)
        .await
        .expect("written");
    let task = ReembedTask { namespace: None, model: model(SECOND), is_sweeping: false };
    writer.reembed_next(&task).await.expect("begun");
    assert_eq!(fill(&open(&writer).await, SECOND, 2).await, 2);
    // A third one takes its place, and the second may write no more.
    let third = ReembedTask { model: model("00000000000000aa"), ..task };
    writer.reembed_next(&third).await.expect("begun");
    assert!(!corpus.reembed_fill(&model(SECOND), Vec::new()).await.expect("asked"));
    assert_eq!(corpus.reembed_switch(&model(SECOND)).await.expect("asked"), Switch::Gone);
    while !corpus.reembed_sweep(10).await.expect("swept") {}
    assert_eq!(models(&harness, permit.scope().tenant()).await, [(MODEL.to_owned(), 3)]);
    // What is gone by itself is nobody's any more.
    harness.close().await;
}

/// Texts that are one chunk each.
async fn insert(tenant: &Tenant, count: usize) {
    let texts: Vec<String> =
        (0..count).map(|n| format!("The log of ship {n} names the island Varn{n}.")).collect();
    let names: Vec<String> = (0..count).map(|n| format!("ship-{n}.txt")).collect();
    let taken =
        tenant.writer.post("/documents/texts", &json!({"texts": texts, "file_sources": names}), 200).await;
    tenant.writer.wait_processed(&text(&taken, "track_id")).await;
}

async fn ask(tenant: &Tenant, question: &str) -> Value {
    let body = json!({"query": question, "mode": "naive", "chunk_top_k": 5});
    tenant.reader.post("/query/data", &body, 200).await
}

/// The models of which a tenant has shards.
fn shards(server: &TestServer, tenant: &Tenant) -> BTreeSet<String> {
    let folders = |path: &Path| -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(path).into_iter().flatten();
        entries.map(|entry| entry.expect("an entry").path()).collect()
    };
    let namespaces = folders(&server.data_dir.join("shards").join(&tenant.id));
    let models = namespaces.iter().flat_map(|namespace| folders(namespace));
    models.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect()
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn answers_and_writes_go_on_while_the_model_changes_and_a_neighbour_is_untouched() {
    let further = "embedding.model = 'hashing'
        embedding.further = ['hashing-64']
        ingestion.reembed_grace_seconds = 1
        ingestion.progress_chunks = 16";
    let server = tokio::task::spawn_blocking(move || TestServer::start(&new_folder("models"), further))
        .await
        .expect("a server");
    let (alice, bob) = server.tenants().await;
    tokio::join!(insert(&alice, 150), insert(&bob, 20));
    let material = |answer: &Value| answer["data"].clone();
    let untouched = material(&ask(&bob, "Which ship names Varn7?").await);
    until("shards", async || shards(&server, &alice).len() == 1 && shards(&server, &bob).len() == 1).await;
    let (old, of_bob) = (shards(&server, &alice), shards(&server, &bob));

    let operator = server.operator();
    let path = format!("/admin/tenants/{}/reembed", alice.id);
    let wanted = json!({"model": "hashing-64", "reason": "a test"});
    let unknown = json!({"model": "hashing-65", "reason": "a test"});
    let refused = operator.post(&path, &unknown, 422).await;
    assert!(refused.to_string().contains("hashing, hashing-64"), "{refused}");
    let done = AtomicBool::new(false);
    let writes = async {
        let mut number = 0;
        while !done.load(Ordering::Relaxed) {
            let id = format!("late-{number}");
            alice.writer.put_document(&id, &id, &format!("A late ship {number} names Quorl{number}.")).await;
            number += 1;
        }
        number
    };
    let questions = async {
        let mut number = 0;
        while !done.load(Ordering::Relaxed) {
            let ship = number % 150;
            let answer = ask(&alice, &format!("Which ship names the island Varn{ship}?")).await;
            let chunks = answer["data"]["chunks"].as_array().expect("chunks");
            let names = format!("Varn{ship}.");
            assert!(chunks.iter().any(|chunk| text(chunk, "content").contains(&names)), "{answer}");
            assert_eq!(answer["metadata"]["degraded"], json!([]), "{answer}");
            number += 1;
        }
        number
    };
    let change = async {
        let begun = operator.post(&path, &wanted, 202).await;
        assert_eq!(operator.post(&path, &wanted, 202).await["job_id"], begun["job_id"], "asked again");
        let other = json!({"model": "hashing-64", "namespace": "default", "reason": "a test"});
        operator.post(&path, &other, 409).await;
        let one = format!("{path}/{}", text(&begun, "job_id"));
        until("done", async || {
            let view = operator.get(&one, 200).await;
            assert_ne!(view["state"], "failed", "{view}");
            view["state"] == "done"
        })
        .await;
        done.store(true, Ordering::Relaxed);
        operator.get(&one, 200).await
    };
    let (written, asked, view) = tokio::join!(writes, questions, change);
    assert!(written > 0 && asked > 0 && view["total"].as_u64() >= Some(150), "{written} {asked} {view}");
    until("the new shard alone", async || {
        let now = shards(&server, &alice);
        now.len() == 1 && now != old
    })
    .await;
    until("answers of the new shard", async || ask(&alice, "Varn7").await["metadata"]["fallback"].is_null())
        .await;
    for number in 0..written {
        let answer = ask(&alice, &format!("Which ship names Quorl{number}?")).await;
        assert!(answer.to_string().contains(&format!("Quorl{number}.")), "{answer}");
    }
    assert_eq!(material(&ask(&bob, "Which ship names Varn7?").await), untouched);
    assert_eq!(shards(&server, &bob), of_bob);
    let nobody =
        operator.get(&format!("/admin/tenants/{}/reembed/{}", bob.id, text(&view, "job_id")), 404).await;
    assert!(!nobody.to_string().contains(&alice.id));
    tokio::task::spawn_blocking(move || server.stop()).await.expect("stopped");
}
