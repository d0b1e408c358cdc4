//! What the server adds to its raw parts: ingestion against embedding alone, a query against embedding and search
//! alone, each pair measured in the same run.
//!
//! **Invariant:** nothing is switched off in what is measured; the raw part gets the best of its batch sizes and orders.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Client;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::{Value, json};

use super::passages::Passages;
use crate::domain::clock::Clock;
use crate::domain::ids::NamespaceName;
use crate::inference::{Embedder, EmbedderError, EmbeddingSettings, RawModel};
use crate::pipeline::chunk::{ChunkError, Chunker, embedding_text};
use crate::pipeline::parse::parse_text;
use crate::store::vector::VectorQuery;
use crate::store::{StoreError, TenantReader};

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Rounds of ingestion, each of new documents.
    pub rounds: usize,
    /// Documents of a round.
    pub documents: usize,
    /// Words of a document.
    pub words: usize,
    /// Chunks in the corpus that is queried.
    pub passages: usize,
    /// Questions.
    pub questions: usize,
    /// What passages and questions are drawn with.
    pub seed: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self { rounds: 3, documents: 40, words: 1200, passages: 5000, questions: 200, seed: 20_260_101 }
    }
}

/// A running server with its parts.
pub struct Subject {
    /// Where it answers, as `http://127.0.0.1:9621`.
    pub url: String,
    /// A writer's key.
    pub key: SecretString,
    /// Its embedding model.
    pub embedder: Embedder,
    /// How that is loaded.
    pub embedding: EmbeddingSettings,
    /// Its chunker.
    pub chunker: Chunker,
    /// The tenant's data.
    pub reader: TenantReader,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
}

/// One figure against its target.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub row: &'static str,
    /// The median of the samples.
    pub value: f64,
    /// What the value is.
    pub unit: &'static str,
    /// What it should be at least, or at most.
    pub target: f64,
    /// Whether it is.
    pub holds: bool,
    /// One for each round, or the two medians in milliseconds.
    pub samples: Vec<f64>,
}

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The server did not answer.
    #[error("the server did not answer")]
    Http(#[from] reqwest::Error),
    /// The server answered otherwise than it should.
    #[error("the server answered {0}")]
    Answer(String),
    /// The model failed.
    #[error(transparent)]
    Embedder(#[from] EmbedderError),
    /// A text could not be cut.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder whose documents are imitated cannot be read.
    #[error("the documents to imitate cannot be read: {0}")]
    Source(std::io::Error),
    /// It holds no sentence.
    #[error("the documents to imitate hold no sentence")]
    NoSentence,
    /// The raw model ended.
    #[error("the raw model ended")]
    Raw,
}

/// Least share of raw embedding that ingestion reaches.
const INGESTION: f64 = 0.85;
/// Most times that a query takes as long as its raw parts.
const QUERY: f64 = 1.5;
/// Texts in one call.
const CALL: usize = 50;
/// Batch sizes that raw embedding is tried with.
const BATCHES: [usize; 4] = [1, 4, 8, 32];
/// Words of a passage of the corpus that is queried.
const PASSAGE: usize = 60;
/// Chunks that a question asks for.
const TOP: usize = 20;

/// Measures everything.
///
/// # Errors
/// [`BenchError`] with what failed.
pub async fn run(subject: &Subject, plan: &Plan, source: &str) -> Result<Vec<Row>, BenchError> {
    let passages = Passages::new(source, plan.seed).ok_or(BenchError::NoSentence)?;
    let mut bench = Bench { subject, plan, passages, http: Client::new(), sent: 0 };
    let ingestion = bench.ingestion().await?;
    let query = bench.query().await?;
    Ok(vec![ingestion, query])
}

/// The text of every document below a folder.
///
/// # Errors
/// [`BenchError::Source`].
pub fn documents_below(folder: &Path) -> Result<String, BenchError> {
    let mut folders = vec![folder.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(BenchError::Source)? {
            let path = entry.map_err(BenchError::Source)?.path();
            let text = path.extension().is_some_and(|extension| extension == "md" || extension == "txt");
            if path.is_dir() {
                folders.push(path);
            } else if text {
                files.push(path);
            }
        }
    }
    files.sort();
    let texts: Result<Vec<String>, _> = files.iter().map(std::fs::read_to_string).collect();
    Ok(texts.map_err(BenchError::Source)?.join("\n"))
}

struct Bench<'a> {
    subject: &'a Subject,
    plan: &'a Plan,
    passages: Passages,
    http: Client,
    /// Documents that were accepted so far.
    sent: usize,
}

impl Bench<'_> {
    async fn call(&self, path: &str, body: &Value) -> Result<Value, BenchError> {
        let url = format!("{}{path}", self.subject.url);
        let request = self.http.post(url).bearer_auth(self.subject.key.expose_secret()).json(body);
        let answer = request.send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        if !status.is_success() {
            return Err(BenchError::Answer(format!("{path}: {status} {text}")));
        }
        serde_json::from_str(&text).map_err(|error| BenchError::Answer(format!("{path}: {error}")))
    }

    /// Sends texts and waits until all can be found, the graph among what finds them.
    async fn ingest(&mut self, texts: &[String]) -> Result<Duration, BenchError> {
        let bar = progress("ingestion through the API", texts.len());
        let clock = &self.subject.clock;
        let begun = clock.instant();
        for call in texts.chunks(CALL) {
            self.call("/documents/texts", &json!({"texts": call})).await?;
        }
        let before = self.sent;
        self.sent += texts.len();
        loop {
            let page = self.call("/documents/paginated", &json!({"page_size": 10})).await?;
            let counts = &page["status_counts"];
            if counts["failed"].as_u64() != Some(0) {
                return Err(BenchError::Answer(format!("failed documents: {counts}")));
            }
            let done = usize::try_from(counts["processed"].as_u64().unwrap_or(0)).unwrap_or(usize::MAX);
            bar.set_position(done.saturating_sub(before) as u64);
            if done >= self.sent {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Answers from the graph, which is brought up to date for it.
        self.call("/query/data", &json!({"query": "Who keeps the archive?", "mode": "mix"})).await?;
        bar.finish_and_clear();
        Ok(clock.instant().duration_since(begun))
    }

    /// What the model sees of these texts.
    fn model_texts(&self, texts: &[String]) -> Result<Vec<String>, BenchError> {
        let chunker = &self.subject.chunker;
        let mut seen = Vec::new();
        for text in texts {
            let parsed = parse_text(text);
            for piece in chunker.chunk(parsed.title.as_deref(), &parsed.sections)? {
                let lead = chunker.lead(parsed.title.as_deref(), piece.heading.as_deref())?;
                seen.push(embedding_text(&lead, &piece.text));
            }
        }
        Ok(seen)
    }

    async fn ingestion(&mut self) -> Result<Row, BenchError> {
        let mut shares = Vec::new();
        for _ in 0..self.plan.rounds {
            let texts: Vec<String> =
                (0..self.plan.documents).map(|_| self.passages.next(self.plan.words)).collect();
            let chunks = self.model_texts(&texts)?;
            let whole = self.ingest(&texts).await?;
            let raw = raw(&self.subject.embedding, chunks, Arc::clone(&self.subject.clock)).await?;
            // Both embedded the same chunks, so that the ratio of times is that of rates.
            shares.push(raw.as_secs_f64() / whole.as_secs_f64());
        }
        let value = median(&mut shares.clone());
        Ok(Row {
            row: "ingestion, as a share of raw embedding",
            value,
            unit: "share",
            target: INGESTION,
            holds: value >= INGESTION,
            samples: shares,
        })
    }

    async fn query(&mut self) -> Result<Row, BenchError> {
        let name = NamespaceName::parse("default").map_err(|rule| BenchError::Answer(rule.to_string()))?;
        let opened = self.subject.reader.corpus_get(&name).await?;
        let there = opened.map_or(0, |corpus| usize::try_from(corpus.chunks()).unwrap_or(usize::MAX));
        let texts: Vec<String> = (there..self.plan.passages).map(|_| self.passages.next(PASSAGE)).collect();
        self.ingest(&texts).await?;
        let opened = self.subject.reader.corpus_get(&name).await?;
        let corpus = opened.ok_or_else(|| BenchError::Answer("no namespace".to_owned()))?;
        let tenant = corpus.partition().tenant();
        let clock = &self.subject.clock;
        let bar = progress("questions", self.plan.questions);
        let (mut whole, mut raw) = (Vec::new(), Vec::new());
        for at in 0..self.plan.questions {
            let passage = self.passages.next(PASSAGE);
            // One question for each side, so that neither finds what the other has warmed.
            let (one, other) = (self.passages.question(&passage), self.passages.question(&passage));
            for turn in [at % 2, (at + 1) % 2] {
                let begun = clock.instant();
                if turn == 0 {
                    let body = json!({"query": &one, "mode": "naive", "chunk_top_k": TOP});
                    self.call("/query/data", &body).await?;
                    whole.push(milliseconds(begun, clock.instant()));
                } else {
                    let embedding = self.subject.embedder.embed_question(tenant, vec![other.clone()]).await?;
                    let query =
                        VectorQuery { embedding: embedding.into_iter().next(), terms: None, limit: TOP };
                    if corpus.vector_search(&query).await?.is_none() {
                        return Err(BenchError::Answer("the index is not there yet".to_owned()));
                    }
                    raw.push(milliseconds(begun, clock.instant()));
                }
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        let (whole, raw) = (median(&mut whole), median(&mut raw));
        let value = whole / raw;
        Ok(Row {
            row: "naive query, times embedding and search alone",
            value,
            unit: "times",
            target: QUERY,
            holds: value <= QUERY,
            samples: vec![whole, raw],
        })
    }
}

/// The least time in which the library alone embeds these texts.
async fn raw(
    settings: &EmbeddingSettings,
    texts: Vec<String>,
    clock: Arc<dyn Clock>,
) -> Result<Duration, BenchError> {
    let settings = settings.clone();
    let task = tokio::task::spawn_blocking(move || {
        let mut sorted = texts.clone();
        sorted.sort_by_key(String::len);
        let mut model = RawModel::load(&settings)?;
        model.embed(&sorted[..1], 1)?;
        let bar = progress("raw embedding", BATCHES.len() * 2);
        let mut best = Duration::MAX;
        for batch in BATCHES {
            for order in [&texts, &sorted] {
                let begun = clock.instant();
                model.embed(order, batch)?;
                best = best.min(clock.instant().duration_since(begun));
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(best)
    });
    task.await.map_err(|_| BenchError::Raw)?
}

fn milliseconds(from: Instant, to: Instant) -> f64 {
    to.duration_since(from).as_secs_f64() * 1000.0
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn progress(what: &'static str, length: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:28} {wide_bar} {pos}/{len} {elapsed}");
    let bar = ProgressBar::new(length as u64);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what);
    bar
}
