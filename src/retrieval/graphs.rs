//! The graphs of a server: loaded when first asked for, brought up to date as their corpus changes, bounded
//! in memory.
//!
//! **Invariant:** a graph is found by its partition alone, and holds ids and hashes only; what it finds is
//! named by rows of live chunks.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::sync::Cache;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::engine::{Engine, Metadata, Question, RetrievalError, RetrievalSettings, Walked};
use super::graph::{EntityHit, Graph, GraphChunk, RelationHit};
use super::over::Over;
use super::search::Ranking;
use crate::domain::Seq;
use crate::domain::clock::Clock;
use crate::domain::ids::ChunkId;
use crate::domain::names::{NameHasher, NameKey, NameKind};
use crate::domain::query::Mode;
use crate::store::graph::WholeGraph;
use crate::store::postgres::labels::GraphRow;
use crate::store::{Corpus, ErrorKind, Partition, StoreError};

/// A graph with the time when it was last compared with the record.
#[derive(Clone)]
struct Held {
    graph: Arc<Graph>,
    fresh_at: Instant,
}

/// The graphs of a server.
#[derive(Clone)]
pub(super) struct Graphs {
    held: Cache<Partition, Held>,
    loading: Cache<Partition, Arc<Mutex<()>>>,
    refreshing: TaskTracker,
    clock: Arc<dyn Clock>,
    max_lag: Duration,
}

/// How long a question may be led over an index, milliseconds of which are usual: then the graph in memory answers it.
const LONGEST: Duration = Duration::from_secs(5);

/// Chunks that are read at once.
const PAGE: i64 = 2_000;
/// A corpus of up to this many chunks is brought up to date before it answers: that takes a few milliseconds.
const AT_ONCE: u64 = 5_000;
/// How often an index is asked whose graph changed meanwhile, before the one in memory answers.
const ATTEMPTS: usize = 2;
/// Before the first change of any corpus.
const EVERYTHING: Seq = Seq(-1);

impl Graphs {
    pub(super) fn new(settings: &RetrievalSettings, clock: Arc<dyn Clock>) -> Self {
        let weigh =
            |_: &Partition, held: &Held| u32::try_from(held.graph.bytes() / 1024 + 1).unwrap_or(u32::MAX);
        Self {
            held: Cache::builder().weigher(weigh).max_capacity(settings.graph_memory_bytes / 1024).build(),
            loading: Cache::builder().time_to_idle(Duration::from_mins(10)).build(),
            refreshing: TaskTracker::new(),
            clock,
            max_lag: Duration::from_secs(settings.graph_max_lag_seconds),
        }
    }

    /// The graph of a corpus. One that is a little behind answers while it is brought up to date.
    pub(super) async fn get(&self, corpus: &Corpus) -> Result<Arc<Graph>, StoreError> {
        let Some(held) = self.held.get(corpus.partition()) else { return self.refresh(corpus).await };
        if held.graph.seq() >= corpus.seq() {
            return Ok(held.graph);
        }
        let age = self.clock.instant().duration_since(held.fresh_at);
        if age >= self.max_lag || corpus.chunks() <= AT_ONCE {
            return self.refresh(corpus).await;
        }
        let at_it = self.loading.get_with(corpus.partition().clone(), Arc::default);
        if at_it.try_lock().is_err() {
            // Tasks that only wait for one that is at it already would pile up.
            return Ok(held.graph);
        }
        let (graphs, corpus) = (self.clone(), corpus.clone());
        self.refreshing.spawn(async move {
            if let Err(error) = graphs.refresh(&corpus).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "a graph stays behind");
            }
        });
        Ok(held.graph)
    }

    /// Brings the graph to the corpus' history; whoever comes meanwhile waits and shares the result.
    pub(super) async fn refresh(&self, corpus: &Corpus) -> Result<Arc<Graph>, StoreError> {
        let partition = corpus.partition();
        let lock = self.loading.get_with(partition.clone(), Arc::default);
        let _alone = lock.lock().await;
        let held = self.held.get(partition);
        if let Some(held) = &held
            && held.graph.seq() >= corpus.seq()
        {
            return Ok(Arc::clone(&held.graph));
        }
        let since = held.as_ref().map_or(EVERYTHING, |held| held.graph.seq());
        let mut added = Vec::new();
        let mut after = None;
        loop {
            let page = corpus.graph_page(since, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.chunk);
            added.extend(page.into_iter().map(chunk));
        }
        let (seq, namespace) = (corpus.seq(), partition.namespace());
        let live: Option<HashSet<ChunkId>> = match &held {
            Some(_) => Some(corpus.chunk_ids().await?.into_iter().collect()),
            None => None,
        };
        let make = move || match (held, live) {
            (Some(held), Some(live)) => {
                let gone: Vec<ChunkId> =
                    held.graph.chunk_ids().filter(|chunk| !live.contains(chunk)).collect();
                held.graph.apply(seq, added, &gone)
            }
            _ => Graph::build(seq, NameHasher::new(namespace.0.as_bytes()), added),
        };
        let graph = tokio::task::spawn_blocking(make).await.map_err(|error| {
            StoreError::new(ErrorKind::Internal, "graph", "graph.refresh", "building it failed")
                .with_source(error)
        })?;
        let graph = Arc::new(graph);
        let fresh_at = self.clock.instant();
        self.held.insert(partition.clone(), Held { graph: Arc::clone(&graph), fresh_at });
        Ok(graph)
    }
}

/// The graph of a corpus as its rows are in one moment, made of nothing else: no version that is held is used, so that
/// what is wrong with one is not taken over. `None`: the namespace is gone.
///
/// # Errors
/// `Unavailable` or `Timeout`.
pub async fn graph_of_record(corpus: &Corpus) -> Result<Option<WholeGraph>, StoreError> {
    let Some((seq, rows)) = corpus.graph_whole().await? else { return Ok(None) };
    let namespace = corpus.partition().namespace();
    let make = move || {
        let hasher = NameHasher::new(namespace.0.as_bytes());
        let graph = Graph::build(seq, hasher, rows.into_iter().map(chunk));
        WholeGraph { seq, chunks: graph.linked().collect() }
    };
    tokio::task::spawn_blocking(make).await.map(Some).map_err(|error| {
        StoreError::new(ErrorKind::Internal, "graph", "graph.record", "building it failed").with_source(error)
    })
}

fn chunk(row: GraphRow) -> GraphChunk {
    let (mut names, mut concepts) = (Vec::new(), Vec::new());
    for (key, kind) in std::iter::zip(row.keys, row.kinds) {
        let key = NameKey(key.cast_unsigned());
        match NameKind::from_name(&kind) {
            Some(NameKind::Concept) | None => concepts.push(key),
            Some(NameKind::Title | NameKind::Name) => names.push(key),
        }
    }
    GraphChunk {
        chunk: row.chunk,
        document: row.document_id,
        title: row.title,
        heading: row.heading,
        text: row.text,
        names,
        concepts,
        embedding: row.embedding,
    }
}

impl Engine {
    /// Ranks by the graph what search found. `None`, and said so, when there is no graph to be had.
    ///
    /// # Errors
    /// `Store`, when an index gave what is another partition's.
    #[tracing::instrument(name = "retrieval.walk", skip_all, fields(tenant = %ranking.corpus.partition().tenant()))]
    pub(super) async fn walk(
        &self,
        ranking: &Ranking,
        question: &Question,
        metadata: &mut Metadata,
    ) -> Result<Option<Walked>, RetrievalError> {
        let corpus = &ranking.corpus;
        let embeddings = question.mode == Mode::Mix;
        let walk = async |mut over: Over| {
            let walked = self.walk_over(&mut over, ranking, question).await?;
            Ok((walked, over))
        };
        let walked = match self.over_index(corpus, embeddings, walk, &mut metadata.degraded).await? {
            Some(walked) => Some(walked),
            None => match self.graphs.get(corpus).await {
                Ok(graph) => Some(walk(Over::Memory(graph)).await?),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "an answer goes without its graph"
                    );
                    metadata.degraded.push("graph");
                    None
                }
            },
        };
        Ok(walked.map(|(walked, over)| {
            metadata.graph_seq = Some(over.seq().0);
            metadata.graph = Some(over.place());
            walked
        }))
    }

    /// What `work` finds over the graph that an index holds. `None`: there is no index, it is behind, or it cannot be
    /// used now, which is told; the graph in memory answers then.
    pub(super) async fn over_index<T>(
        &self,
        corpus: &Corpus,
        embeddings: bool,
        work: impl AsyncFn(Over) -> Result<(T, Over), StoreError>,
        degraded: &mut Vec<&'static str>,
    ) -> Result<Option<(T, Over)>, StoreError> {
        if !corpus.has_graph_index() {
            return Ok(None);
        }
        for _ in 0..ATTEMPTS {
            let found = timeout(LONGEST, async {
                let Some(over) = Over::index(corpus, embeddings).await? else {
                    (self.on_behind)(corpus);
                    return Ok(None);
                };
                let (found, over) = work(over).await?;
                Ok(Some((over.is_one().await?, found, over)))
            });
            let late = || StoreError::new(ErrorKind::Timeout, "graph", "graph.walk", "no answer in time");
            match found.await.unwrap_or_else(|_| Err(late())) {
                Ok(Some((true, found, over))) => return Ok(Some((found, over))),
                Ok(Some((false, ..))) => {}
                Ok(None) => return Ok(None),
                Err(error) if error.kind == ErrorKind::Foreign => return Err(error),
                Err(error) => {
                    tracing::warn!(tenant = %corpus.partition().tenant(), error = &error as &dyn std::error::Error,
                        "the index of graphs cannot be used; the graph in memory answers");
                    degraded.push("graph_index");
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    async fn walk_over(
        &self,
        over: &mut Over,
        ranking: &Ranking,
        question: &Question,
    ) -> Result<Walked, StoreError> {
        let (text, fused) = (question.text.as_str(), ranking.fused.as_slice());
        let (settings, limit) = (&self.settings.walk, self.settings.candidates);
        let top = question.top_k.get();
        let walked = match question.mode {
            Mode::Mix => {
                over.ask(|graph| graph.walk(text, fused, &ranking.embedding, settings, limit)).await?
            }
            _ => fused.to_vec(),
        };
        let entities = match question.mode {
            Mode::Global => Vec::new(),
            _ => over.ask(|graph| graph.entities_for(text, &walked, top)).await?,
        };
        let relations = over.ask(|graph| graph.relations_for(text, &walked, top)).await?;
        let chunks = match question.mode {
            Mode::Local => supported(&walked, by_entity(&entities)),
            Mode::Global => supported(&walked, by_relation(&relations)),
            Mode::Hybrid => in_turn(
                &supported(&walked, by_entity(&entities)),
                &supported(&walked, by_relation(&relations)),
            ),
            _ => walked,
        };
        let mut named: Vec<(u64, Vec<ChunkId>)> =
            entities.iter().map(|hit| (hit.key.0, hit.chunks.clone())).collect();
        if named.is_empty() {
            named = ends(&relations);
        }
        Ok(Walked {
            chunks,
            entities: named,
            relations: relations
                .into_iter()
                .map(|hit| (hit.source.0, hit.target.0, hit.weight, hit.chunks))
                .collect(),
        })
    }
}

/// The entities that relations join, each once.
fn ends(relations: &[RelationHit]) -> Vec<(u64, Vec<ChunkId>)> {
    let mut seen = HashSet::new();
    let ends = relations.iter().flat_map(|hit| [(hit.source, &hit.chunks), (hit.target, &hit.chunks)]);
    ends.filter(|(key, _)| seen.insert(*key)).map(|(key, chunks)| (key.0, chunks.clone())).collect()
}

fn by_entity(hits: &[EntityHit]) -> impl Iterator<Item = (f32, &[ChunkId])> {
    hits.iter().map(|hit| (hit.score, hit.chunks.as_slice()))
}

fn by_relation(hits: &[RelationHit]) -> impl Iterator<Item = (f32, &[ChunkId])> {
    hits.iter().map(|hit| (hit.score, hit.chunks.as_slice()))
}

/// Chunks by what supports them: the sum of the hits that name a chunk, weighed by the chunk's own score.
/// What nothing supports follows in its own order.
fn supported<'a>(
    fused: &[(ChunkId, f32)],
    hits: impl Iterator<Item = (f32, &'a [ChunkId])>,
) -> Vec<(ChunkId, f32)> {
    let own: HashMap<ChunkId, f32> = fused.iter().copied().collect();
    let mut support: HashMap<ChunkId, f32> = HashMap::new();
    for (score, chunks) in hits {
        for chunk in chunks {
            *support.entry(*chunk).or_default() += score;
        }
    }
    let most = support.values().copied().fold(f32::MIN_POSITIVE, f32::max);
    let score = |chunk: ChunkId| {
        let own = own.get(&chunk).copied().unwrap_or(0.0);
        own + support.get(&chunk).map_or(0.0, |sum| sum / most * (0.2 + own))
    };
    let mut ranked: Vec<(ChunkId, f32)> = own
        .keys()
        .chain(support.keys())
        .collect::<HashSet<_>>()
        .into_iter()
        .map(|id| (*id, score(*id)))
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked
}

/// Two rankings in turn, each chunk once.
fn in_turn(first: &[(ChunkId, f32)], second: &[(ChunkId, f32)]) -> Vec<(ChunkId, f32)> {
    let mut seen = HashSet::new();
    let longest = first.len().max(second.len());
    (0..longest)
        .flat_map(|at| [first.get(at), second.get(at)])
        .flatten()
        .filter(|(chunk, _)| seen.insert(*chunk))
        .copied()
        .collect()
}
