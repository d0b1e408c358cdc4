//! What the server adds to its raw parts, what it bears, and what a tenant costs: measured on servers of its own, each ratio from one run.
//!
//! **Invariant:** nothing is switched off in what is measured; the raw part gets the best of its batch sizes and orders.
//! **Invariant:** a figure's row says what it is made of, so that it can be made again from its samples.

mod asking;
mod free;
mod generator;
mod ingestion;
mod load;
mod machine;
mod neighbour;
mod recovery;
mod row_security;
mod services;
mod tenants;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use secrecy::SecretString;
use serde_json::{Value, json};

pub use recovery::Recovery;
pub use services::{Listening, Profile, compared, profile};

use super::client::{Client, ClientError};
use super::figures::{Row, lines, progress};
use super::passages::Passages;
use crate::domain::clock::Clock;
use crate::domain::ids::{NamespaceName, TenantId};
use crate::inference::{Embedder, EmbedderError, EmbeddingSettings};
use crate::pipeline::chunk::{ChunkError, Chunker};
use crate::store::vector::VectorQuery;
use crate::store::{Corpus, StoreError, TenantReader};

/// What is measured together, since it shares a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// Ingestion with the model.
    Ingestion,
    /// One client's questions, with the model.
    Question,
    /// Many clients' questions, with the model.
    Clients,
    /// Deleting a document.
    Delete,
    /// A small tenant beside a busy one, with the model.
    Neighbour,
    /// Ingestion without the cost of a model, as the corpus grows.
    Free,
    /// Questions of several clients without the cost of a model.
    FreeClients,
    /// A question with row-level security and without.
    RowSecurity,
    /// Many tenants.
    Tenants,
    /// A backup, and a restore until the first answer.
    Recovery,
    /// The services that are configured, against what is embedded.
    Services,
}

impl Part {
    /// Every part, in the order in which they are measured.
    pub const ALL: [Self; 11] = [
        Self::Ingestion,
        Self::Question,
        Self::Clients,
        Self::Delete,
        Self::Neighbour,
        Self::Free,
        Self::FreeClients,
        Self::RowSecurity,
        Self::Tenants,
        Self::Recovery,
        Self::Services,
    ];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingestion => "ingestion",
            Self::Question => "question",
            Self::Clients => "clients",
            Self::Delete => "delete",
            Self::Neighbour => "neighbour",
            Self::Free => "free",
            Self::FreeClients => "free-clients",
            Self::RowSecurity => "row-security",
            Self::Tenants => "tenants",
            Self::Recovery => "recovery",
            Self::Services => "services",
        }
    }

    /// Whether it is measured with the embedding model; else with one that costs nothing.
    #[must_use]
    pub const fn wants_model(self) -> bool {
        matches!(self, Self::Ingestion | Self::Question | Self::Clients | Self::Delete | Self::Neighbour)
    }
}

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The parts.
    pub parts: Vec<Part>,
    /// Rounds of ingestion, each of new documents.
    pub rounds: usize,
    /// Documents of a round.
    pub documents: usize,
    /// Words of a document.
    pub words: usize,
    /// Chunks in the corpus that is queried.
    pub passages: usize,
    /// Questions of one client.
    pub questions: usize,
    /// Those of a tenant that asks now and then beside a busy one.
    pub neighbour_questions: usize,
    /// Chunks at which the corpus without a model is looked at as it grows.
    pub growth: Vec<usize>,
    /// Tenants without a document.
    pub empty_tenants: usize,
    /// Tenants of ten documents.
    pub small_tenants: usize,
    /// What passages and questions are drawn with.
    pub seed: u64,
}

impl Plan {
    /// Enough to tell whether a target holds, in less than 20 minutes on 2 cores.
    #[must_use]
    pub fn short(parts: Vec<Part>) -> Self {
        Self {
            parts,
            rounds: 3,
            documents: 40,
            words: 1200,
            passages: 5000,
            questions: 300,
            neighbour_questions: 250,
            growth: vec![1000, 10_000],
            empty_tenants: 1000,
            small_tenants: 200,
            seed: 20_260_101,
        }
    }

    /// As large as the targets say.
    #[must_use]
    pub fn full(parts: Vec<Part>) -> Self {
        Self {
            questions: 1000,
            neighbour_questions: 2000,
            growth: vec![1000, 10_000, 50_000],
            empty_tenants: 10_000,
            small_tenants: 1000,
            ..Self::short(parts)
        }
    }
}

/// The names of a deployment's back ends, for rows.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// Of the vectors.
    pub vectors: &'static str,
    /// Of the audit log.
    pub audit: &'static str,
}

/// The deployment that is measured: what only its operator can do.
#[async_trait]
pub trait Deployment: Send + Sync {
    /// Makes a tenant with a writer's key.
    async fn tenant(&self, name: &str) -> Result<(TenantId, SecretString), BenchError>;

    /// A tenant's data, past the API.
    async fn reader(&self, tenant: TenantId) -> Result<TenantReader, BenchError>;

    /// Switches row-level security on or off for every table. `false`: this build cannot, and nothing was done.
    async fn row_security(&self, on: bool) -> Result<bool, BenchError>;
    /// Takes a backup, makes a data folder of it, starts a server over that and asks as the holder of a key.
    async fn recover(&self, key: SecretString, question: &str) -> Result<Recovery, BenchError>;

    /// Writes events of questions that returned so many chunks, one after the other; the milliseconds that a caller
    /// waits for each.
    async fn audited(&self, tenant: TenantId, events: usize, chunks: usize) -> Result<Vec<f64>, BenchError>;

    /// What it keeps its data in.
    fn names(&self) -> Names;

    /// Calls of a service so far.
    fn calls(&self, backend: &str) -> u64;

    /// Seconds that ingestion has spent in each stage since the start, over all workers.
    fn stages(&self) -> Vec<(&'static str, f64)>;
}

/// A running server with its parts.
pub struct Subject<'a> {
    /// Where it answers, as `http://127.0.0.1:9621`.
    pub url: String,
    /// Where it keeps its data.
    pub data_dir: std::path::PathBuf,
    /// Its operator.
    pub deployment: &'a dyn Deployment,
    /// Its embedding model, in sessions beside its own.
    pub embedder: Embedder,
    /// How that is loaded.
    pub embedding: EmbeddingSettings,
    /// Its chunker.
    pub chunker: Chunker,
    /// Where the time comes from.
    pub clock: Arc<dyn Clock>,
}

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The model failed.
    #[error(transparent)]
    Embedder(#[from] EmbedderError),
    /// A text could not be cut.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file or folder cannot be read or written.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The documents that are imitated hold no sentence.
    #[error("the documents to imitate hold no sentence")]
    NoSentence,
    /// A task of the measurement ended.
    #[error("a task of the measurement ended")]
    Ended,
    /// Shards stay open.
    #[error("shards are still opened though nothing is asked and nothing written")]
    Restless,
    /// The deployment did not do what it should.
    #[error("{0}")]
    Deployment(String),
}

/// Texts in one call.
const CALL: usize = 50;
/// Calls that are under way at once.
const CALLS: usize = 4;
/// Words of a passage of a corpus that is queried.
const PASSAGE: usize = 60;
/// How often, and with which pauses, an index is looked at until it is up to date.
const INDEXED_TRIES: u32 = 600;
const INDEXED_PAUSE: Duration = Duration::from_millis(50);
/// Chunks that a question asks for.
const TOP: usize = 20;

/// Measures what the plan holds and this subject is for.
///
/// # Errors
/// [`BenchError`] with what failed.
pub async fn run(subject: &Subject<'_>, plan: &Plan, source: &str) -> Result<Vec<Row>, BenchError> {
    let mut bench = Bench::new(subject, plan, source)?;
    let mut rows = Vec::new();
    for part in &plan.parts {
        let made = match part {
            Part::Ingestion => bench.ingestion().await?,
            Part::Question => bench.question().await?,
            Part::Clients => bench.clients().await?,
            Part::Delete => bench.delete().await?,
            Part::Neighbour => bench.neighbour().await?,
            Part::Free => bench.free().await?,
            Part::FreeClients => bench.free_clients().await?,
            Part::RowSecurity => bench.row_security().await?,
            Part::Tenants => bench.tenants().await?,
            Part::Recovery => bench.recovery().await?,
            // On servers of both profiles: see `profile`.
            Part::Services => Vec::new(),
        };
        // Told at once: what comes later may be interrupted.
        eprint!("{}", lines(&made));
        rows.extend(made);
    }
    Ok(rows)
}

/// The text of every document below a folder.
///
/// # Errors
/// When one cannot be read.
pub fn documents_below(folder: &Path) -> std::io::Result<String> {
    let mut folders = vec![folder.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
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
    Ok(texts?.join("\n"))
}

struct Bench<'a> {
    subject: &'a Subject<'a>,
    plan: &'a Plan,
    passages: Passages,
    /// Connections of all tenants: each of its own would be taken for what a tenant costs the server.
    http: reqwest::Client,
    /// The corpus that several parts query, once it is there.
    corpus: Option<Place>,
}

/// A tenant with a namespace that is measured.
#[derive(Clone)]
struct Place {
    client: Client,
    reader: TenantReader,
    /// Documents that were accepted so far.
    sent: usize,
}

impl Place {
    /// The corpus as it stands.
    async fn corpus(&self) -> Result<Corpus, BenchError> {
        let name = NamespaceName::parse(self.client.namespace());
        let name = name.map_err(|rule| BenchError::Deployment(rule.to_string()))?;
        let opened = self.reader.corpus_get(&name).await?;
        opened.ok_or_else(|| BenchError::Deployment("no namespace".to_owned()))
    }

    /// Sends texts and waits until all can be found, the graph among what finds them.
    async fn ingest(&mut self, clock: &dyn Clock, texts: &[String]) -> Result<Duration, BenchError> {
        let bar = progress("documents through the API", texts.len());
        let before = self.sent;
        self.sent += texts.len();
        let begun = clock.instant();
        let send = async { self.send(texts).await };
        let done =
            self.client.processed(self.sent, |all| bar.set_position(all.saturating_sub(before) as u64));
        tokio::try_join!(send, done)?;
        // Answers from the graph, which is brought up to date for it.
        self.client.post("/query/data", &question("Who keeps the archive?", "mix")).await?;
        bar.finish_and_clear();
        Ok(clock.instant().duration_since(begun))
    }

    /// The corpus, once its index holds everything.
    async fn indexed(&self) -> Result<Corpus, BenchError> {
        let corpus = self.corpus().await?;
        let query = VectorQuery { embedding: None, terms: None, limit: 1 };
        for _ in 0..INDEXED_TRIES {
            let found = corpus.vector_search(&query).await?;
            if found.is_some_and(|found| found.applied >= corpus.seq()) {
                return Ok(corpus);
            }
            tokio::time::sleep(INDEXED_PAUSE).await;
        }
        Err(BenchError::Deployment("the index does not come up to date".to_owned()))
    }

    /// Sends texts, and returns when they are accepted.
    async fn send(&self, texts: &[String]) -> Result<(), ClientError> {
        let sent = stream::iter(texts.chunks(CALL)).map(|call| async move {
            let body = json!({"texts": call});
            self.client.post("/documents/texts", &body).await.map(drop)
        });
        sent.buffer_unordered(CALLS).try_collect::<Vec<()>>().await.map(drop)
    }
}

/// The body of a question.
fn question(text: &str, mode: &str) -> Value {
    json!({"query": text, "mode": mode, "chunk_top_k": TOP})
}

impl<'a> Bench<'a> {
    fn new(subject: &'a Subject<'a>, plan: &'a Plan, source: &str) -> Result<Self, BenchError> {
        let passages = Passages::new(source, plan.seed).ok_or(BenchError::NoSentence)?;
        Ok(Self { subject, plan, passages, http: reqwest::Client::new(), corpus: None })
    }
}

impl Bench<'_> {
    /// A new tenant's namespace.
    async fn place(&self, name: &str) -> Result<Place, BenchError> {
        let (tenant, key) = self.subject.deployment.tenant(name).await?;
        let reader = self.subject.deployment.reader(tenant).await?;
        let client = Client::over(self.http.clone(), &self.subject.url, key, "default");
        Ok(Place { client, reader, sent: 0 })
    }

    fn texts(&mut self, count: usize, words: usize) -> Vec<String> {
        (0..count).map(|_| self.passages.next(words)).collect()
    }

    /// The corpus that several parts share, made the first time.
    async fn shared(&mut self) -> Result<Place, BenchError> {
        if let Some(place) = &self.corpus {
            return Ok(place.clone());
        }
        let mut place = self.place("shared").await?;
        let texts = self.texts(self.plan.passages, PASSAGE);
        place.ingest(self.subject.clock.as_ref(), &texts).await?;
        place.indexed().await?;
        self.corpus = Some(place.clone());
        Ok(place)
    }

    /// Questions in the words of passages that are nowhere.
    fn questions(&mut self, count: usize) -> Vec<String> {
        (0..count)
            .map(|_| {
                let passage = self.passages.next(PASSAGE);
                self.passages.question(&passage)
            })
            .collect()
    }

    /// Says how long each stage of ingestion has worked since.
    fn tell_stages(&self, before: &[(&'static str, f64)]) {
        for ((stage, after), (_, before)) in std::iter::zip(self.subject.deployment.stages(), before) {
            eprintln!("{stage}: {:.2} s of work in all workers", after - before);
        }
    }

    fn now(&self) -> Instant {
        self.subject.clock.instant()
    }
}
