//! Functions that run for every chunk or every question, each by itself: `make bench-micro`.
//!
//! What a change of one of them is worth; what the server costs as a whole, `bulkhead bench` tells.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on has failed")]
#![expect(clippy::cast_precision_loss, reason = "small numbers")]
#![expect(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;
use std::sync::Arc;

use bulkhead::domain::Seq;
use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{ChunkId, ModelId, NamespaceId, TenantId};
use bulkhead::domain::lexical::{LexicalSettings, Lexicon};
use bulkhead::domain::names::{NameHasher, names};
use bulkhead::domain::words::sentences;
use bulkhead::eval::bench::documents_below;
use bulkhead::eval::passages::Passages;
use bulkhead::pipeline::chunk::{ChunkSettings, Chunker};
use bulkhead::pipeline::parse::parse_text;
use bulkhead::retrieval::fusion::{FusionSettings, fuse};
use bulkhead::retrieval::graph::{Graph, GraphChunk, WalkSettings};
use bulkhead::store::memory::MemoryRateLimiter;
use bulkhead::store::partition::Partition;
use bulkhead::store::qdrant_edge::{EdgeIndex, EdgeSettings};
use bulkhead::store::redis::{RedisClient, RedisRateLimiter, RedisSettings};
use bulkhead::store::vector::{Point, Terms, VectorIndex, VectorQuery};
use bulkhead::store::{RateKey, RateLimiter};
use bulkhead::tenancy::Principal;
use criterion::{Criterion, criterion_group, criterion_main};
use tokenizers::Tokenizer;
use uuid::Uuid;

/// Chunks of a corpus.
const CHUNKS: usize = 5000;
/// Numbers of a vector.
const DIMENSION: usize = 384;
/// Hits of a ranking.
const HITS: usize = 200;
/// The tokenizer that `make setup` brings.
const TOKENIZER: &str = ".local/models/all-MiniLM-L6-v2/tokenizer.json";

fn passages() -> Passages {
    Passages::new(&documents_below("demo".as_ref()).unwrap(), 7).unwrap()
}

/// A vector of unit length that depends on `n` alone.
fn vector(n: usize) -> Vec<f32> {
    let mut state = n as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / 16_777_216.0 - 0.5
    };
    let raw: Vec<f32> = (0..DIMENSION).map(|_| next()).collect();
    let length = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
    raw.into_iter().map(|x| x / length).collect()
}

fn chunk(n: usize) -> ChunkId {
    ChunkId(Uuid::from_u128(n as u128))
}

fn text(c: &mut Criterion) {
    let document = passages().next(1200);
    let parsed = parse_text(&document);
    let mut tokenizer = Tokenizer::from_file(TOKENIZER).unwrap();
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).unwrap();
    let settings = ChunkSettings { max_tokens: 256, overlap_tokens: 32, title_tokens: 32 };
    let chunker = Chunker::new(&tokenizer, settings).unwrap();
    c.bench_function("chunk a document of 1200 words", |b| {
        b.iter(|| chunker.chunk(parsed.title.as_deref(), black_box(&parsed.sections)).unwrap());
    });
    let lexicon = Lexicon::new(LexicalSettings::default());
    c.bench_function("terms of a document of 1200 words", |b| {
        b.iter(|| lexicon.document_terms(black_box(&document)));
    });
}

fn ranking(c: &mut Criterion) {
    let list = |from: u128| -> Vec<(Uuid, f32)> {
        (0..HITS as u128).map(|n| (Uuid::from_u128(from + n), 1.0 / (n as f32 + 1.0))).collect()
    };
    let (dense, lexical) = (list(0), list(HITS as u128 / 2));
    c.bench_function("fuse two rankings of 200", |b| {
        b.iter(|| fuse(black_box(&dense), &lexical, &FusionSettings::default()));
    });

    let hasher = NameHasher::new(&[7; 16]);
    let mut passages = passages();
    let chunks = (0..CHUNKS).map(|n| {
        let text = passages.next(60);
        GraphChunk {
            chunk: chunk(n),
            document: n.to_string(),
            title: None,
            heading: None,
            names: sentences(&text).flat_map(names).map(|name| hasher.key(&name.key)).collect(),
            concepts: text.split(' ').filter(|word| word.len() > 8).map(|word| hasher.key(word)).collect(),
            text,
            embedding: vector(n),
        }
    });
    let graph = Graph::build(Seq(1), hasher, chunks);
    let passage = passages.next(60);
    let question = passages.question(&passage);
    let fused: Vec<(ChunkId, f32)> = (0..HITS).map(|n| (chunk(n * 7), 1.0 / (n as f32 + 1.0))).collect();
    let embedding = vector(CHUNKS);
    c.bench_function("walk over 5,000 chunks", |b| {
        b.iter(|| graph.walk(&question, black_box(&fused), &embedding, &WalkSettings::default(), HITS));
    });
    c.bench_function("entities and relations near a question", |b| {
        b.iter(|| {
            let entities = graph.entities_for(&question, black_box(&fused), 40);
            (entities, graph.relations_for(&question, &fused, 40))
        });
    });
}

fn index(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let settings = EdgeSettings::default();
    let index = EdgeIndex::new(folder.path().to_owned(), settings, Arc::new(SystemClock)).unwrap();
    let model = ModelId::parse("0123456789abcdef").unwrap();
    let partition =
        Partition::for_laboratory(TenantId(Uuid::from_u128(1)), NamespaceId(Uuid::from_u128(2)), model);
    let lexicon = Lexicon::new(LexicalSettings::default());
    let mut passages = passages();
    let points = (0..CHUNKS).map(|n| {
        let (indices, values) = lexicon.document_terms(&passages.next(60)).into_iter().unzip();
        Point { chunk: chunk(n), version: 1, embedding: vector(n), terms: Terms { indices, values } }
    });
    runtime.block_on(index.apply(&partition, points.collect(), Vec::new(), Seq(1))).unwrap();
    let passage = passages.next(60);
    let indices = lexicon.query_terms(&passages.question(&passage));
    let values = vec![1.0; indices.len()];
    let by_vector = VectorQuery { embedding: Some(vector(CHUNKS)), terms: None, limit: HITS };
    let by_words = VectorQuery { embedding: None, terms: Some(Terms { indices, values }), limit: HITS };
    for (name, query) in [("vector", by_vector), ("words", by_words)] {
        c.bench_function(&format!("the best 200 of 5,000 by {name}, tags read"), |b| {
            b.iter(|| runtime.block_on(index.search(&partition, black_box(&query))).unwrap());
        });
    }
    runtime.block_on(index.close());
}

/// In memory, and in the Redis that `REDIS_URL` names.
fn limits(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut limiters: Vec<(&str, Arc<dyn RateLimiter>)> =
        vec![("memory", Arc::new(MemoryRateLimiter::new(1000, Arc::new(SystemClock))))];
    if let Ok(url) = std::env::var("REDIS_URL") {
        let settings = RedisSettings { url, ..RedisSettings::default() };
        let client = RedisClient::new(&settings, Arc::default(), Arc::new(SystemClock)).unwrap();
        let limiter = RedisRateLimiter::new(client, &[7; 32], 0.5, 1000, Arc::new(SystemClock));
        limiters.push(("Redis", Arc::new(limiter)));
    }
    let tenant = TenantId(Uuid::from_u128(1));
    let principal = RateKey::Principal(tenant, Principal::of_a_test("one"));
    let counted = [(principal, u32::MAX), (RateKey::Tenant(tenant), u32::MAX)];
    for (name, limiter) in limiters {
        c.bench_function(&format!("a request counted for its principal and tenant in {name}"), |b| {
            b.iter(|| {
                let standings = runtime.block_on(limiter.count_all(black_box(&counted))).unwrap();
                assert_eq!(standings[1].limit, u32::MAX, "not counted alone");
            });
        });
    }
}

criterion_group!(benches, text, ranking, index, limits);
criterion_main!(benches);
