//! Retrieval quality of a server on a set of questions with known answers: ingested and asked through its API.
//!
//! **Invariant:** every figure is of answers that a caller would get, but for those that say they were made past the API.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::dataset::{Asked, DataSet, Source};
use super::figures::{Row, Target, between, median, percentile, progress};
use super::judge::{FoundChunk, Judge};
use super::quality::Quality;
use crate::domain::Seq;
use crate::domain::clock::Clock;
use crate::domain::ids::NamespaceName;
use crate::domain::lexical::Lexicon;
use crate::inference::{Embedder, EmbedderError};
use crate::retrieval::term_weights;
use crate::store::vector::{Hit, VectorQuery};
use crate::store::{Corpus, StoreError, TenantReader};

/// How a set is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// Questions, at most.
    pub questions: usize,
    /// Passages that are joined to one document.
    pub join: usize,
    /// What the intervals are drawn with.
    pub seed: u64,
}

/// The inside of a server in this process, for what its API does not show: BM25 alone, and exact search.
pub struct Inside {
    /// The tenant's data.
    pub reader: TenantReader,
    /// The server's lexicon.
    pub lexicon: Arc<Lexicon>,
    /// Its embedding model.
    pub embedder: Embedder,
}

/// The figures of one way to ask.
#[derive(Debug, Clone, Serialize)]
pub struct Method {
    /// Its name.
    pub method: &'static str,
    /// Recall and gain.
    pub quality: Quality,
    /// Milliseconds of a question at the median; absent where no request was made.
    pub median_ms: Option<f64>,
    /// Milliseconds that 99 of 100 questions do not exceed.
    pub p99_ms: Option<f64>,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The set.
    pub set: String,
    /// Its passages.
    pub passages: usize,
    /// Documents that they were ingested as.
    pub documents: usize,
    /// Seconds until all could be found; absent when they were there already.
    pub ingestion_seconds: Option<f64>,
    /// Each way to ask.
    pub methods: Vec<Method>,
    /// What follows from them.
    pub rows: Vec<Row>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The inside of the server.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The model.
    #[error(transparent)]
    Embedder(#[from] EmbedderError),
    /// Another set is in the namespace.
    #[error("the namespace holds {found} documents that are not those of the set ({wanted}); choose another")]
    Occupied {
        /// Documents there.
        found: usize,
        /// Documents of the set.
        wanted: usize,
    },
    /// The namespace cannot be searched by its index.
    #[error("the namespace has no index")]
    NoIndex,
    /// Nothing was ingested.
    #[error("the namespace is not there")]
    NoNamespace,
}

/// Ways to ask over the API: name, mode, whether words count.
const ASKED: [(&str, &str, bool); 6] = [
    ("dense", "naive", false),
    ("naive", "naive", true),
    ("local", "local", true),
    ("global", "global", true),
    ("hybrid", "hybrid", true),
    ("mix", "mix", true),
];
/// Documents that are sent at once.
const SENT_AT_ONCE: usize = 8;
/// Chunks that are asked for, so that 10 passages are among them even where each has several.
const CHUNKS: usize = 50;
/// Neighbours that index and exact search are compared by.
const NEIGHBOURS: usize = 10;
/// Cosines that differ by no more are equal: two programs add in another order.
const TIE: f32 = 1e-5;
/// Points of recall that fusion may lose to the better of its halves.
const FUSION_LOSS: f64 = 0.01;
/// What the walk may lose where there is nothing to walk along.
const WALK_LOSS: f64 = 0.005;
/// Recall of the index against exact search.
pub(super) const INDEX_RECALL: f64 = 0.99;

/// Ingests a set, unless it is there, asks every question in every way, and sums up.
///
/// # Errors
/// [`EvalError`].
pub async fn run(
    client: &Client,
    inside: Option<&Inside>,
    set: &DataSet,
    options: &Options,
    clock: &dyn Clock,
) -> Result<Report, EvalError> {
    let sources = set.sources(options.join);
    let ingestion_seconds = ingest(client, &sources, clock).await?;
    let judge = Judge::new(set, &sources, options.seed);
    let asked = &set.questions[..options.questions.min(set.questions.len())];
    let mut methods = Vec::new();
    for (method, mode, lexical) in ASKED {
        let bar = progress(&format!("{}: {method}", set.name), asked.len());
        let (mut found, mut times) = (Vec::new(), Vec::new());
        for question in asked {
            let body = json!({
                "query": question.text, "mode": mode, "lexical": lexical, "chunk_top_k": CHUNKS,
                "max_total_tokens": 1_000_000,
            });
            let begun = clock.instant();
            let answer = client.post("/query/data", &body).await?;
            times.push(between(begun, clock.instant()));
            found.push(chunks(&answer));
            bar.inc(1);
        }
        bar.finish_and_clear();
        methods.extend(judge.quality(asked, &found).map(|quality| Method {
            method,
            quality,
            median_ms: Some(median(&times)),
            p99_ms: Some(percentile(&times, 99)),
        }));
    }
    let mut rows = Vec::new();
    if let Some(inside) = inside {
        let bar = progress(&format!("{}: bm25, exact search", set.name), asked.len());
        let (found, recall) = inside.search(client.namespace(), asked, || bar.inc(1)).await?;
        bar.finish_and_clear();
        let bm25 = judge.quality(asked, &found).map(|quality| Method {
            method: "bm25",
            quality,
            median_ms: None,
            p99_ms: None,
        });
        methods.splice(1..1, bm25);
        let target = Target::Least(INDEX_RECALL);
        rows.push(Row::new("index against exact search, recall at 10", recall, "share", target, Vec::new()));
    }
    rows.extend(checks(&methods));
    Ok(Report {
        set: set.name.clone(),
        passages: set.passages.len(),
        documents: sources.len(),
        ingestion_seconds,
        methods,
        rows,
    })
}

/// Ingests the documents, and returns in how many seconds; nothing when they are there already.
async fn ingest(client: &Client, sources: &[Source], clock: &dyn Clock) -> Result<Option<f64>, EvalError> {
    let there = client.counts().await?.all;
    if there == sources.len() {
        return Ok(None);
    }
    if there > 0 {
        return Err(EvalError::Occupied { found: there, wanted: sources.len() });
    }
    let bar = progress("documents", sources.len());
    let begun = clock.instant();
    let puts =
        stream::iter(sources).map(|source| client.put(&source.id, source.title.as_deref(), &source.text));
    let send = async { puts.buffer_unordered(SENT_AT_ONCE).try_collect::<Vec<()>>().await };
    let done = client.processed(sources.len(), |processed| bar.set_position(processed as u64));
    tokio::try_join!(send, done)?;
    // Answers from the graph, which is brought up to date for it.
    client.post("/query/data", &json!({"query": "What is known?", "mode": "mix"})).await?;
    bar.finish_and_clear();
    Ok(Some(clock.instant().duration_since(begun).as_secs_f64()))
}

/// The chunks of an answer, best first.
fn chunks(answer: &Value) -> Vec<FoundChunk> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let chunk = |chunk: &Value| {
        Some(FoundChunk { document: text(&chunk["document_id"])?, text: text(&chunk["content"])? })
    };
    answer["data"]["chunks"].as_array().into_iter().flatten().filter_map(chunk).collect()
}

impl Inside {
    /// The chunks that BM25 alone finds for each question, and the recall of the index against exact search.
    ///
    /// # Errors
    /// [`EvalError`].
    #[expect(clippy::cast_precision_loss, reason = "counts of hits")]
    pub async fn search(
        &self,
        namespace: &str,
        questions: &[Asked],
        asked: impl Fn(),
    ) -> Result<(Vec<Vec<FoundChunk>>, f64), EvalError> {
        let name = NamespaceName::parse(namespace).map_err(|_| EvalError::NoNamespace)?;
        let (mut lists, mut same, mut all) = (Vec::new(), 0, 0);
        for question in questions {
            let terms = self.lexicon.query_terms(&question.text);
            let opened = self.reader.corpus_get_with_terms(&name, &terms).await?;
            let (corpus, frequencies) = opened.ok_or(EvalError::NoNamespace)?;
            let tenant = corpus.partition().tenant();
            let embedded = self.embedder.embed_question(tenant, vec![question.text.clone()]).await?;
            let by_words = VectorQuery {
                embedding: None,
                terms: Some(term_weights(&corpus, &frequencies)),
                limit: CHUNKS,
            };
            let found = corpus.vector_search(&by_words).await?.ok_or(EvalError::NoIndex)?;
            lists.push(read(&corpus, &found.lexical).await?);
            let nearest =
                VectorQuery { embedding: embedded.into_iter().next(), terms: None, limit: NEIGHBOURS };
            let indexed = corpus.vector_search(&nearest).await?.ok_or(EvalError::NoIndex)?;
            let exact = corpus.chunk_search_exact(&nearest, Seq(-1)).await?;
            // One of several that are equally near is as good as another.
            let least = exact.dense.last().map_or(f32::INFINITY, |hit| hit.score - TIE);
            let near = indexed.dense.iter().filter(|hit| hit.score >= least).count();
            same += near.min(exact.dense.len());
            all += exact.dense.len();
            asked();
        }
        Ok((lists, same as f64 / all.max(1) as f64))
    }
}

/// The chunks of hits, in their order.
async fn read(corpus: &Corpus, hits: &[Hit]) -> Result<Vec<FoundChunk>, StoreError> {
    let wanted: Vec<_> = hits.iter().map(|hit| hit.chunk).collect();
    let rows = corpus.chunk_list(&wanted).await?;
    let mut rows: HashMap<_, _> = rows.into_iter().map(|row| (row.chunk, row)).collect();
    let found = wanted.iter().filter_map(|chunk| {
        let row = rows.remove(chunk)?;
        Some(FoundChunk { document: row.document_id, text: row.text })
    });
    Ok(found.collect())
}

/// What fusion must not lose, and the walk must not spoil.
fn checks(methods: &[Method]) -> Vec<Row> {
    let of = |name: &str| methods.iter().find(|method| method.method == name).map(|method| &method.quality);
    let mut rows = Vec::new();
    let Some(naive) = of("naive") else { return rows };
    let halves: Vec<f64> =
        ["dense", "bm25"].into_iter().filter_map(|name| Some(of(name)?.recall_at_5.mean)).collect();
    let best = halves.iter().copied().fold(0.0, f64::max);
    let value = naive.recall_at_5.mean - best;
    rows.push(Row::new(
        "naive less the better of its halves, recall at 5",
        value,
        "share",
        Target::Least(-FUSION_LOSS),
        halves,
    ));
    if let Some(mix) = of("mix") {
        let compared = [
            ("mix less naive, recall at 5", Some((mix.recall_at_5, naive.recall_at_5))),
            ("mix less naive, nDCG at 10", mix.ndcg_at_10.zip(naive.ndcg_at_10)),
        ];
        for (row, pair) in compared {
            let Some((with, without)) = pair.map(|(mix, naive)| (mix.mean, naive.mean)) else { continue };
            let target = Target::Least(-WALK_LOSS);
            rows.push(Row::new(row, with - without, "share", target, vec![with, without]));
        }
    }
    rows
}

impl Report {
    /// The figures as a table for people, recall in per cent.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "{}: {} passages in {} documents, {} questions\n",
            self.set,
            self.passages,
            self.documents,
            self.methods.first().map_or(0, |method| method.quality.questions),
        );
        let _ = writeln!(
            text,
            "{:<8} {:>18} {:>18} {:>18} {:>20} {:>8} {:>8}",
            "method", "R@2", "R@5", "R@10", "nDCG@10", "ms", "p99 ms"
        );
        let milliseconds = |time: Option<f64>| time.map_or_else(String::new, |time| format!("{time:.2}"));
        for method in &self.methods {
            let recall =
                [method.quality.recall_at_2, method.quality.recall_at_5, method.quality.recall_at_10];
            let recall = recall.map(|share| {
                format!("{:.1} [{:.1}, {:.1}]", 100.0 * share.mean, 100.0 * share.low, 100.0 * share.high)
            });
            let gain = method.quality.ndcg_at_10.map_or_else(String::new, |gain| {
                format!("{:.3} [{:.3}, {:.3}]", gain.mean, gain.low, gain.high)
            });
            let _ = writeln!(
                text,
                "{:<8} {:>18} {:>18} {:>18} {gain:>20} {:>8} {:>8}",
                method.method,
                recall[0],
                recall[1],
                recall[2],
                milliseconds(method.median_ms),
                milliseconds(method.p99_ms),
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::quality::{Judged, quality};
    use super::*;

    #[test]
    fn fusion_and_walk_are_held_against_what_they_are_made_of() {
        let method = |name, right: usize| {
            // One question with its answer at this rank.
            let ranked: Vec<usize> = (0..10).map(|rank| if rank == right { 99 } else { rank }).collect();
            let judged = Judged { ranked, relevant: HashSet::from([99]) };
            let quality = quality(&[judged], 1).expect("a question");
            Method { method: name, quality, median_ms: None, p99_ms: None }
        };
        let rows = checks(&[method("dense", 0), method("bm25", 9), method("naive", 6), method("mix", 6)]);
        assert_eq!(rows.iter().map(|row| row.holds).collect::<Vec<_>>(), [false, true, true]);
        let rows = checks(&[method("dense", 0), method("naive", 0), method("mix", 1)]);
        assert_eq!(rows.iter().map(|row| row.holds).collect::<Vec<_>>(), [true, true, false]);
    }
}
