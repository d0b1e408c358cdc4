//! The embedding model: a text's vector does not depend on what is embedded with it, before it or for whom.

use std::path::Path;

use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{IdSource as _, SystemIds, TenantId};
use bulkhead::inference::{Embedder, EmbeddingSettings};

fn embedder(model: &str) -> Embedder {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join(".local");
    let settings = EmbeddingSettings {
        model: model.to_owned(),
        model_dir: files.join("models"),
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
            alone.extend(embedder.embed_documents(tenants[0], vec![text.clone()]).await.expect("a vector"));
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
                    embedder.embed_question(tenant, batch).await
                } else {
                    embedder.embed_documents(tenant, batch).await
                };
                (order, vectors.expect("vectors"))
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
