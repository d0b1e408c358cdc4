//! The one entry into retrieval: a question in, checked material out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::entities::{Entity, Relation, Support, Wanted, describe};
use super::fusion::FusionSettings;
use super::graph::{Graph, WalkSettings};
use super::graphs::Graphs;
use super::post_filter::{first_page, rows};
use crate::domain::clock::Clock;
use crate::domain::ids::{ChunkId, ModelId, NamespaceName};
use crate::domain::lexical::Lexicon;
use crate::domain::query::{Mode, TopK};
use crate::inference::{EmbedderError, Models};
use crate::store::postgres::chunks::ChunkRow;
use crate::store::{Corpus, Epoch, StoreError, TenantReader};

/// What to do with a row of another partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnForeignRow {
    /// Fail the request and raise an alarm.
    Fail,
    /// Take it out, mark the answer degraded, search the database instead, and raise an alarm.
    Drop,
}

/// Bounds and weights of retrieval.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetrievalSettings {
    /// Hits of each kind that are fused.
    pub candidates: usize,
    /// Chunks of an answer when the question does not say.
    pub chunk_top_k: u16,
    /// Entities and relations of an answer when the question does not say.
    pub top_k: u16,
    /// What to do with a row of another partition.
    pub on_foreign_row: OnForeignRow,
    /// How dense and lexical scores are fused.
    pub fusion: FusionSettings,
    /// How the walk over the graph spreads.
    #[serde(default)]
    pub walk: WalkSettings,
    /// Seconds after which a graph that is behind is brought up to date before it answers.
    pub graph_max_lag_seconds: u64,
    /// Bytes of all graphs in memory; those not used for longest go.
    pub graph_memory_bytes: u64,
    /// Sentences that an answer without a language model quotes, at most.
    pub quoted_sentences: usize,
}

/// A question, parsed.
#[derive(Debug, Clone)]
pub struct Question {
    /// What is asked.
    pub text: String,
    /// How to look for it.
    pub mode: Mode,
    /// Entities and relations, at most.
    pub top_k: TopK,
    /// Chunks, at most.
    pub chunk_top_k: TopK,
    /// Whether words count beside meaning.
    pub lexical: bool,
    /// Tokens of all chunks, at most.
    pub max_total_tokens: usize,
}

/// A chunk in its place.
#[derive(Debug, Clone)]
pub struct RankedChunk {
    /// The chunk, as the record has it.
    pub row: ChunkRow,
    /// Its score; comparable within one answer only.
    pub score: f32,
}

/// A document that the chunks of an answer are from.
#[derive(Debug, Clone)]
pub struct Reference {
    /// `1` for the most used.
    pub reference_id: String,
    /// The name by which the document is cited.
    pub file_path: String,
    /// Places of its chunks in [`Material::chunks`].
    pub chunks: Vec<usize>,
}

/// What is said about how the material was found.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    /// The corpus' history that the answer is from.
    pub corpus_seq: i64,
    /// The graph's history, where one was used.
    pub graph_seq: Option<i64>,
    /// Where the graph was walked: `memory`, or the name of an index; where one was used.
    pub graph: Option<&'static str>,
    /// `pgvector` when the database searched instead of the index, or beside it.
    pub fallback: Option<&'static str>,
    /// What was not as it should be.
    pub degraded: Vec<&'static str>,
    /// Hits that were trimmed since their row is gone.
    pub stale: usize,
    /// Hits of another partition that were dropped.
    pub foreign: usize,
}

/// All that an answer can be made of, checked and in order.
#[derive(Debug, Clone, Default)]
pub struct Material {
    /// Best first.
    pub chunks: Vec<RankedChunk>,
    /// Best first.
    pub entities: Vec<Entity>,
    /// Best first.
    pub relations: Vec<Relation>,
    /// Most used first.
    pub references: Vec<Reference>,
    /// How it was found.
    pub metadata: Metadata,
    /// The moment of the corpus that it is from; absent when nothing was looked at.
    pub epoch: Option<Epoch>,
}

/// Why there is no material.
#[derive(Debug, thiserror::Error)]
pub enum RetrievalError {
    /// A row of another partition came back. To be audited as an alarm; nothing else is said outside.
    #[error("{count} rows of another partition came back from an index")]
    ForeignRow {
        /// How many.
        count: usize,
    },
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The question could not be embedded.
    #[error(transparent)]
    Embed(#[from] EmbedderError),
    /// The namespace's model is not on this server, and the question forbids to search by words alone.
    #[error("model {} is not on this server: name it in embedding.further, or run `bulkhead reembed`", .0.as_str())]
    NoModel(ModelId),
}

/// What retrieval begins to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The question is embedded, its terms are weighed, and both are searched for.
    Ranking,
    /// The graph is walked.
    Walking,
    /// The texts are read and checked.
    Reading,
    /// What was found is put in its order and within its bounds.
    Ordering,
}

/// Called with a corpus whose index is behind or missing.
pub type OnBehind = Arc<dyn Fn(&Corpus) + Send + Sync>;

/// Retrieval with its models, bounds and graphs.
#[derive(Clone)]
pub struct Engine {
    pub(super) models: Models,
    pub(super) lexicon: Arc<Lexicon>,
    pub(super) settings: Arc<RetrievalSettings>,
    pub(super) graphs: Graphs,
    pub(super) on_behind: OnBehind,
}

impl Engine {
    /// An engine over these models. `on_behind` is told of a corpus whose index does not have everything.
    #[must_use]
    pub fn new(
        models: impl Into<Models>,
        lexicon: Arc<Lexicon>,
        settings: RetrievalSettings,
        clock: Arc<dyn Clock>,
        on_behind: OnBehind,
    ) -> Self {
        let graphs = Graphs::new(&settings, clock);
        Self { models: models.into(), lexicon, settings: Arc::new(settings), graphs, on_behind }
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> &RetrievalSettings {
        &self.settings
    }

    /// Finds the material for a question; `None` when there is no such namespace.
    ///
    /// # Errors
    /// [`RetrievalError::ForeignRow`], which is an alarm; `Store` or `Embed`.
    pub async fn retrieve(
        &self,
        reader: &TenantReader,
        namespace: &NamespaceName,
        question: &Question,
    ) -> Result<Option<Material>, RetrievalError> {
        self.retrieve_telling(reader, namespace, question, &|_| ()).await
    }

    /// The same, and `begun` is told of each stage as it begins.
    ///
    /// # Errors
    /// As [`Engine::retrieve`].
    pub async fn retrieve_telling(
        &self,
        reader: &TenantReader,
        namespace: &NamespaceName,
        question: &Question,
        begun: &(dyn Fn(Stage) + Sync),
    ) -> Result<Option<Material>, RetrievalError> {
        if question.mode == Mode::Bypass {
            return Ok(Some(Material::default()));
        }
        begun(Stage::Ranking);
        let Some(mut ranking) = self.rank(reader, namespace, question).await? else { return Ok(None) };
        let mut metadata = Metadata { corpus_seq: ranking.corpus.seq().0, ..Metadata::default() };
        if ranking.embedding.is_empty() {
            metadata.degraded.push("model_unavailable");
        }
        let wanted = question.chunk_top_k.get();
        let walked = match question.mode {
            Mode::Naive | Mode::Bypass => None,
            _ => {
                begun(Stage::Walking);
                self.walk(&ranking, question, &mut metadata).await?
            }
        };
        begun(Stage::Reading);
        let order = walked.as_ref().map_or(&ranking.fused, |walked| &walked.chunks);
        let best = first_page(order, wanted);
        let top = question.top_k.get();
        let (first, mentions) = match &walked {
            Some(walked) => Wanted::of(&best, walked, top).read_with(&ranking.corpus, &best).await?,
            None => (ranking.corpus.chunk_list(&best).await?, Vec::new()),
        };
        let (mut chunks, mut stale) =
            rows(&ranking.corpus, order, &ranking.versions, wanted, Some(first)).await?;
        if stale > 0 && chunks.len() < wanted {
            self.rank_exactly(&mut ranking, question).await?;
            let have: HashSet<ChunkId> = chunks.iter().map(|chunk| chunk.row.chunk).collect();
            let more: Vec<_> =
                ranking.fused.iter().filter(|(chunk, _)| !have.contains(chunk)).copied().collect();
            let (refill, gone) =
                rows(&ranking.corpus, &more, &ranking.versions, wanted - chunks.len(), None).await?;
            chunks.extend(refill);
            stale += gone;
        }
        begun(Stage::Ordering);
        let (entities, relations) = match &walked {
            Some(walked) => describe(walked, &Support::new(mentions, &chunks), top),
            None => Default::default(),
        };
        within_budget(&mut chunks, question.max_total_tokens);
        metadata.fallback = ranking.fallback;
        metadata.foreign = ranking.trimmed.foreign;
        metadata.stale = stale;
        if metadata.foreign > 0 {
            metadata.degraded.push("foreign_rows_dropped");
        }
        let references = references(&chunks);
        let epoch = Some(ranking.corpus.epoch());
        Ok(Some(Material { chunks, entities, relations, references, metadata, epoch }))
    }

    /// The graph of everything in a corpus when it was opened, or of more.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn graph(&self, corpus: &Corpus) -> Result<Arc<Graph>, StoreError> {
        self.graphs.refresh(corpus).await
    }

    /// The similarity of sentences to a question, for an answer that quotes them. `[sentences]`
    ///
    /// # Errors
    /// As [`Embedder::embed_question`].
    pub(super) async fn similarity(
        &self,
        reader: &TenantReader,
        question: &str,
        sentences: &[String],
    ) -> Result<Vec<f32>, EmbedderError> {
        let mut texts = vec![question.to_owned()];
        texts.extend_from_slice(sentences);
        let vectors = self.models.active().embed_question(reader.scope().tenant(), texts).await?;
        let (asked, rest) = vectors.split_first().ok_or(EmbedderError::Stopped)?;
        Ok(rest.iter().map(|vector| std::iter::zip(asked, vector).map(|(a, b)| a * b).sum()).collect())
    }
}

/// Keeps chunks from the front while their tokens fit; the first always stays.
fn within_budget(chunks: &mut Vec<RankedChunk>, max_tokens: usize) {
    let mut used = 0;
    let fit = chunks.iter().take_while(|chunk| {
        used += usize::try_from(chunk.row.tokens).unwrap_or_default();
        used <= max_tokens
    });
    let fit = fit.count().max(1);
    chunks.truncate(fit);
}

/// One reference a file, the most used first; among equals the one whose best chunk ranks higher.
fn references(chunks: &[RankedChunk]) -> Vec<Reference> {
    let mut by_file: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, chunk) in chunks.iter().enumerate() {
        by_file.entry(&chunk.row.file_name).or_default().push(at);
    }
    let mut files: Vec<(&str, Vec<usize>)> = by_file.into_iter().collect();
    files.sort_by_key(|(_, places)| (std::cmp::Reverse(places.len()), places.first().copied()));
    files
        .into_iter()
        .enumerate()
        .map(|(at, (file, chunks))| Reference {
            reference_id: (at + 1).to_string(),
            file_path: file.to_owned(),
            chunks,
        })
        .collect()
}

/// What a walk over the graph adds to a ranking.
pub(super) struct Walked {
    pub(super) chunks: Vec<(ChunkId, f32)>,
    /// Entities by key, best first, with chunks that mention them.
    pub(super) entities: Vec<(u64, Vec<ChunkId>)>,
    /// Related pairs by key, best first, with chunks that mention both.
    pub(super) relations: Vec<(u64, u64, f32, Vec<ChunkId>)>,
}
