//! The embedding model: a text's vector does not depend on what is embedded with it, before it or for whom.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{IdSource as _, SystemIds, TenantId};
#[cfg(feature = "laboratory")]
use bulkhead::inference::EmbedderError;
use bulkhead::inference::{Embedder, EmbeddingSettings};

fn embedder(model: &str) -> Embedder {
    embedder_of(model, &set_up().join("models"))
}

/// Where set-up puts what it brings.
fn set_up() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".local")
}

fn embedder_of(model: &str, model_dir: &Path) -> Embedder {
    let files = set_up();
    let settings = EmbeddingSettings {
        model: model.to_owned(),
        model_dir: model_dir.to_owned(),
        cache_dir: files.join("cache"),
        onnxruntime: files.join("vendor/onnxruntime/libonnxruntime.so"),
        max_tokens: 256,
        batch: 4,
        threads: 1,
        spinning: false,
        queue: 64,
        further: Vec::new(),
        vector_cache: None,
    };
    Embedder::load(&settings).expect("the model; run set-up")
}

async fn documents(embedder: &Embedder, tenant: TenantId, texts: Vec<String>) -> Vec<Vec<f32>> {
    let vectors = embedder.embed_documents(tenant, texts).await.expect("answered");
    vectors.into_iter().collect::<Result<_, _>>().expect("vectors")
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    std::iter::zip(a, b).map(|(a, b)| a * b).sum()
}

#[tokio::test]
async fn permuted_batches_of_many_tenants_give_each_text_its_own_vector() {
    // Of unequal length, so that what shares a run is padded; one of them is longer than the model reads.
    let texts: Vec<String> = (0..14)
        .map(|n| format!("Letter {n}: {} at pier {n}.", "the boats are green ".repeat(n * n % 23)))
        .chain(["word ".repeat(2000), "x".to_owned(), " ".to_owned()])
        .collect();
    for (model, least) in [("hashing", 0.999_999), ("all-MiniLM-L6-v2", 0.999_9)] {
        let embedder = embedder(model);
        let tenants = [(); 4].map(|()| TenantId(SystemIds(SystemClock).uuid()));
        let mut alone = Vec::new();
        for text in &texts {
            alone.extend(documents(&embedder, tenants[0], vec![text.clone()]).await);
        }
        let batches = (0..texts.len()).map(|turn| {
            let (embedder, texts, tenant) = (&embedder, &texts, tenants[turn % tenants.len()]);
            async move {
                let mut order: Vec<usize> = (0..texts.len()).collect();
                order.rotate_left(turn);
                if turn % 2 == 1 {
                    order.reverse();
                }
                let batch: Vec<String> = order.iter().map(|at| texts[*at].clone()).collect();
                let vectors = if turn % 3 == 0 {
                    embedder.embed_question(tenant, batch).await.expect("vectors")
                } else {
                    documents(embedder, tenant, batch).await
                };
                (order, vectors)
            }
        });
        for (order, vectors) in futures::future::join_all(batches).await {
            assert_eq!(vectors.len(), texts.len());
            for (at, vector) in std::iter::zip(order, &vectors) {
                let likeness = cosine(&alone[at], vector);
                assert!(likeness > least, "{model}: text {at} is {likeness} like itself");
            }
        }
        // The measure can fail: no text is so like another.
        for (a, b) in [(0, 1), (3, 9), (14, 15)] {
            assert!(cosine(&alone[a], &alone[b]) < least, "{model}: {a} and {b}");
        }
    }
}

#[tokio::test]
async fn a_busy_tenant_has_a_session_apart_from_the_others_and_the_same_vectors() {
    let embedder = embedder("all-MiniLM-L6-v2");
    let [busy, other] = [(); 2].map(|()| TenantId(SystemIds(SystemClock).uuid()));
    let ask = async |tenant| {
        let text = vec!["Which boats are green at the pier?".to_owned()];
        embedder.embed_question(tenant, text).await.expect("a vector")
    };
    let texts = || embedder.counts().map(|counts| (counts.session, counts.texts)).collect::<BTreeMap<_, _>>();
    let first = ask(busy).await;
    let begun = Instant::now();
    while texts().get("busy_tenants").is_none_or(|texts| *texts == 0) {
        assert_eq!(ask(busy).await, first);
        assert!(begun.elapsed() < Duration::from_mins(1), "no session of its own");
    }
    let before = texts();
    assert_eq!((ask(other).await, ask(busy).await), (first.clone(), first));
    let after = texts();
    assert_eq!(
        (after["questions"] - before["questions"], after["busy_tenants"] - before["busy_tenants"]),
        (1, 1)
    );
    assert!(embedder.is_alive());
}

#[tokio::test]
async fn a_model_whose_files_were_replaced_is_not_loaded_beside_the_one_that_runs() {
    let name = "all-MiniLM-L6-v2";
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join(name)).expect("a folder");
    for file in std::fs::read_dir(set_up().join("models").join(name)).expect("the model; run set-up") {
        let file = file.expect("a file").path();
        let to = folder.path().join(name).join(file.file_name().expect("a name"));
        std::fs::copy(file, to).expect("copied");
    }
    // How long it takes a session to be there, while the files are the same.
    let came = busy_session(&embedder_of(name, folder.path()), Duration::from_mins(1)).await;
    let usual = came.expect("a session");
    let embedder = embedder_of(name, folder.path());
    let tokenizer = folder.path().join(name).join("tokenizer.json");
    let replaced = std::fs::read_to_string(&tokenizer).expect("read") + "\n";
    std::fs::write(&tokenizer, replaced).expect("written");
    assert_eq!(busy_session(&embedder, 3 * usual + Duration::from_secs(1)).await, None);
}

/// How long a tenant asked without a pause until it had a session apart; `None`: for so long in vain.
async fn busy_session(embedder: &Embedder, patience: Duration) -> Option<Duration> {
    let tenant = TenantId(SystemIds(SystemClock).uuid());
    let begun = Instant::now();
    while begun.elapsed() < patience {
        let text = vec!["Which boats are green at the pier?".to_owned()];
        embedder.embed_question(tenant, text).await.expect("a vector");
        if embedder.counts().any(|counts| counts.session == "busy_tenants") {
            return Some(begun.elapsed());
        }
    }
    None
}

/// The same for a text on which the model fails: it has no vector, and everybody else has their own.
#[cfg(feature = "laboratory")]
#[tokio::test]
async fn a_text_that_the_model_fails_on_takes_no_others_vector() {
    let embedder = embedder("hashing");
    let [alice, bob] = [(); 2].map(|()| TenantId(SystemIds(SystemClock).uuid()));
    let texts: Vec<String> =
        (0..13).map(|n| format!("Letter {n}: {}", "green boats ".repeat(n % 5))).collect();
    let mut alone = Vec::new();
    for text in &texts {
        alone.extend(documents(&embedder, alice, vec![text.clone()]).await);
    }
    let faulty = |at: usize| at % 4 == 1;
    let mixed = texts.iter().enumerate().map(|(at, text)| {
        if faulty(at) { format!("{text} {}", bulkhead::inference::FAULTY) } else { text.clone() }
    });
    let (his, hers) = tokio::join!(
        documents(&embedder, bob, texts.clone()),
        embedder.embed_documents(alice, mixed.clone().collect())
    );
    assert_eq!(his, alone);
    let hers = hers.expect("answered");
    assert_eq!(hers.len(), texts.len());
    for (at, vector) in hers.into_iter().enumerate() {
        match vector {
            Ok(vector) => assert!(!faulty(at) && vector == alone[at], "{at}"),
            Err(error) => assert!(faulty(at) && matches!(error, EmbedderError::Model(_)), "{at}: {error}"),
        }
    }
    // A question is embedded whole or not at all.
    assert!(embedder.embed_question(alice, mixed.collect()).await.is_err());
}

/// And for documents that are processed together with such a one.
#[cfg(feature = "laboratory")]
#[tokio::test]
async fn a_document_that_the_model_fails_on_fails_alone_and_leaves_those_of_its_batch_their_own_words() {
    use serde_json::json;
    use sqlx::Connection as _;

    use crate::server::{server, text};

    let (alice, bob) = server().tenants().await;
    let names = ["Ottoline", "Barnaby", "Marguerite", "Ferdinand", "Philippa"];
    let places = ["pier", "mill", "quarry", "bakery", "school"];
    let sentence = |n: usize| format!("{} keeps the key of the {}.", names[n], places[n]);
    let sent = |faulty: Option<usize>| {
        let texts: Vec<String> = (0..names.len())
            .map(|n| match faulty {
                Some(at) if at == n => format!("{} {}", sentence(n), bulkhead::inference::FAULTY),
                _ => sentence(n),
            })
            .collect();
        let sources: Vec<String> = names.iter().map(|name| format!("{name}.txt")).collect();
        json!({"texts": texts, "file_sources": sources})
    };
    let (hers, his) = (sent(Some(2)), sent(None));
    let (hers, his) = tokio::join!(
        alice.writer.post("/documents/texts", &hers, 200),
        bob.writer.post("/documents/texts", &his, 200)
    );
    bob.reader.wait_processed(&text(&his, "track_id")).await;
    let ended = alice.reader.wait_ended(&text(&hers, "track_id")).await;
    for document in ended["documents"].as_array().expect("documents") {
        let failed = document["file_path"] == "Marguerite.txt";
        assert_eq!(document["status"], if failed { "failed" } else { "processed" }, "{document}");
        let says = document["error_msg"].as_str().unwrap_or_default();
        assert_eq!(says.starts_with("the embedding model failed"), failed, "{document}");
    }
    for tenant in [&alice, &bob] {
        for (n, place) in places.iter().enumerate() {
            let body = json!({"query": format!("Who keeps the key of the {place}?"), "mode": "naive", "chunk_top_k": 1});
            let found = tenant.reader.post("/query/data", &body, 200).await;
            let content = text(&found["data"]["chunks"][0], "content");
            assert_eq!(content == sentence(n), tenant.id == bob.id || n != 2, "{place}: {content}");
        }
    }
    // The others were not begun again on its account.
    let superuser = server().laboratory.superuser.as_ref().expect("a private database");
    let mut superuser = sqlx::postgres::PgConnection::connect_with(superuser).await.expect("connection");
    let attempts: Vec<(String, i32)> = sqlx::query_as(
        "select d.file_name, j.attempts from job j join document d using (tenant_id, namespace_id, document_id)
         where j.tenant_id = $1::uuid and j.attempts > 1",
    )
    .bind(&alice.id)
    .fetch_all(&mut superuser)
    .await
    .expect("read");
    assert_eq!(attempts, [("Marguerite.txt".to_owned(), 2)]);
}
