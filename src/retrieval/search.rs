//! Dense and lexical search over a corpus, fused into one ranking.

use std::collections::HashMap;

use super::engine::{Engine, Question, RetrievalError};
use super::fusion::fuse;
use super::post_filter::{Trimmed, own_hits};
use crate::domain::ids::{ChunkId, NamespaceName};
use crate::domain::lexical::idf;
use crate::store::postgres::namespaces::TermFrequencies;
use crate::store::postgres::vector_index::ROW_INDEX;
use crate::store::vector::{Found, Hit, Terms, VectorQuery};
use crate::store::{Corpus, ErrorKind, TenantReader};

/// A fused ranking, before its rows are read.
pub(super) struct Ranking {
    pub(super) corpus: Corpus,
    /// Best first, each chunk once.
    pub(super) fused: Vec<(ChunkId, f32)>,
    /// The document's version that each hit's index entry was written for.
    pub(super) versions: HashMap<ChunkId, i64>,
    /// The question's vector, unit length.
    pub(super) embedding: Vec<f32>,
    /// `pgvector` when the database had to search instead of the index, or beside it.
    pub(super) fallback: Option<&'static str>,
    pub(super) trimmed: Trimmed,
}

/// What is known of a question before its vector.
struct Ahead {
    corpus: Corpus,
    terms: Option<Terms>,
    /// What the index found by words, and how many foreign hits; absent when there was nothing to look for.
    found: Option<(Option<Found>, usize)>,
}

impl Engine {
    /// Ranks the chunks of a namespace; `None` when there is no such namespace.
    #[tracing::instrument(name = "retrieval.rank", skip_all, fields(tenant = %reader.scope().tenant()))]
    pub(super) async fn rank(
        &self,
        reader: &TenantReader,
        namespace: &NamespaceName,
        question: &Question,
    ) -> Result<Option<Ranking>, RetrievalError> {
        let tenant = reader.scope().tenant();
        // While the model is busy with the question, it is looked for by its words; unless there is a choice of
        // models, which the namespace makes.
        let (ahead, early) = tokio::join!(self.by_words(reader, namespace, question), async {
            match self.models.only() {
                Some(embedder) => Some(self.embed_asked(reader, namespace, embedder, &question.text).await),
                None => None,
            }
        });
        // An alarm, whatever else there is.
        let early = match early {
            Some(Err(alarm @ RetrievalError::Store(_))) => return Err(alarm),
            early => early,
        };
        let Some(Ahead { corpus, terms, found }) = ahead? else { return Ok(None) };
        let model = corpus.partition().model();
        let embedding = match (self.models.get(model), early) {
            (Some(_), Some(early)) => early?,
            (Some(embedder), None) => self.embed_asked(reader, namespace, embedder, &question.text).await?,
            (None, _) if question.lexical => {
                tracing::debug!(%tenant, model = model.as_str(), "searched by words alone: the model is not here");
                Vec::new()
            }
            (None, _) => return Err(RetrievalError::NoModel(model.clone())),
        };
        let query = VectorQuery {
            embedding: Some(embedding.clone()).filter(|embedding| !embedding.is_empty()),
            terms,
            limit: self.settings.candidates,
        };
        let (found, fallback, foreign) = self.search(&corpus, &query, found).await?;
        let versions = found.dense.iter().chain(&found.lexical).map(|hit| (hit.chunk, hit.version)).collect();
        let fused = fuse(&pairs(&found.dense), &pairs(&found.lexical), &self.settings.fusion);
        Ok(Some(Ranking {
            corpus,
            fused: fused.into_iter().map(|(chunk, score)| (ChunkId(chunk), score)).collect(),
            versions,
            embedding,
            fallback,
            trimmed: Trimmed { foreign, stale: 0 },
        }))
    }

    /// The corpus, and what its index finds by the question's words.
    async fn by_words(
        &self,
        reader: &TenantReader,
        namespace: &NamespaceName,
        question: &Question,
    ) -> Result<Option<Ahead>, RetrievalError> {
        let terms = if question.lexical { self.lexicon.query_terms(&question.text) } else { Vec::new() };
        let opened = reader.corpus_get_with_terms(namespace, &terms).await?;
        let Some((corpus, frequencies)) = opened else { return Ok(None) };
        let terms = question.lexical.then(|| term_weights(&corpus, &frequencies));
        let query = VectorQuery { embedding: None, terms, limit: self.settings.candidates };
        let found = match &query.terms {
            Some(terms) if !terms.indices.is_empty() => Some(self.search_index(&corpus, &query).await?),
            _ => None,
        };
        Ok(Some(Ahead { corpus, terms: query.terms, found }))
    }

    /// Searches the index; nothing, when it cannot be searched. Also tells how many hits were foreign.
    async fn search_index(
        &self,
        corpus: &Corpus,
        query: &VectorQuery,
    ) -> Result<(Option<Found>, usize), RetrievalError> {
        if corpus.chunks() == 0 {
            return Ok((Some(Found { applied: corpus.seq(), ..Found::default() }), 0));
        }
        let mut found = match corpus.vector_search(query).await {
            Ok(found) => found,
            Err(error) if error.kind == ErrorKind::Foreign => return Err(error.into()),
            // The database would be asked again.
            Err(error) if fallback(corpus).is_none() => return Err(error.into()),
            Err(error) => {
                tracing::warn!(tenant = %corpus.partition().tenant(), error = &error as &dyn std::error::Error,
                    "the index cannot be searched; the database answers");
                None
            }
        };
        let mut foreign = 0;
        if let Some(found) = &mut found {
            foreign = own_hits(corpus.partition(), found, self.settings.on_foreign_row)?;
        }
        Ok((found, foreign))
    }

    /// Searches the index by the vector, joins what was found by words, and searches the database for what the
    /// index does not have.
    async fn search(
        &self,
        corpus: &Corpus,
        query: &VectorQuery,
        by_words: Option<(Option<Found>, usize)>,
    ) -> Result<(Found, Option<&'static str>, usize), RetrievalError> {
        if corpus.chunks() == 0 {
            return Ok((Found::default(), None, 0));
        }
        let by_vector = match query.embedding {
            Some(_) => {
                let nearest = VectorQuery { terms: None, ..query.clone() };
                Some(self.search_index(corpus, &nearest).await?)
            }
            None => None,
        };
        let (found, foreign) = joined(by_vector, by_words);
        match found {
            // What is foreign displaced what is ours: the whole corpus is searched again, exactly.
            Some(found) if foreign == 0 && found.applied >= corpus.seq() => Ok((found, None, 0)),
            Some(found) if foreign == 0 => {
                (self.on_behind)(corpus);
                let newer = corpus.chunk_search_exact(query, found.applied).await?;
                Ok((merge(found, newer, query.limit), fallback(corpus), 0))
            }
            _ => {
                (self.on_behind)(corpus);
                let found = corpus.chunk_search(query).await?;
                Ok((found, fallback(corpus), foreign))
            }
        }
    }

    /// The ranking by exact search alone, when what the index found does not suffice.
    pub(super) async fn rank_exactly(
        &self,
        ranking: &mut Ranking,
        question: &Question,
    ) -> Result<(), RetrievalError> {
        let terms = if question.lexical { self.lexicon.query_terms(&question.text) } else { Vec::new() };
        let reader = ranking.corpus.tenant();
        let Some((corpus, frequencies)) = reader.corpus_get_with_terms(ranking.corpus.name(), &terms).await?
        else {
            return Ok(());
        };
        let query = VectorQuery {
            embedding: Some(ranking.embedding.clone()).filter(|embedding| !embedding.is_empty()),
            terms: question.lexical.then(|| term_weights(&corpus, &frequencies)),
            limit: self.settings.candidates,
        };
        let found = corpus.chunk_search(&query).await?;
        let fused = fuse(&pairs(&found.dense), &pairs(&found.lexical), &self.settings.fusion);
        ranking.fused = fused.into_iter().map(|(chunk, score)| (ChunkId(chunk), score)).collect();
        ranking.versions =
            found.dense.iter().chain(&found.lexical).map(|hit| (hit.chunk, hit.version)).collect();
        ranking.fallback = fallback(&corpus);
        ranking.corpus = corpus;
        Ok(())
    }
}

/// What answers when the index does not: the database, which is no fallback where it is the index.
fn fallback(corpus: &Corpus) -> Option<&'static str> {
    Some(ROW_INDEX).filter(|rows| *rows != corpus.vectors_name())
}

/// What the index found by the vector and by words, either of which may not have been looked for.
fn joined(
    by_vector: Option<(Option<Found>, usize)>,
    by_words: Option<(Option<Found>, usize)>,
) -> (Option<Found>, usize) {
    match (by_vector, by_words) {
        (Some((by_vector, foreign)), Some((by_words, more))) => {
            let both = by_vector.zip(by_words).map(|(by_vector, by_words)| Found {
                dense: by_vector.dense,
                lexical: by_words.lexical,
                // What came between the two searches counts as lacking.
                applied: by_vector.applied.min(by_words.applied),
            });
            (both, foreign + more)
        }
        (Some(found), None) | (None, Some(found)) => found,
        (None, None) => (None, 0),
    }
}

/// The question's terms, each weighed by how rare it is in this corpus.
#[must_use]
pub fn term_weights(corpus: &Corpus, frequencies: &TermFrequencies) -> Terms {
    let mut terms: Vec<(u32, u32)> = frequencies.chunks.clone();
    terms.sort_unstable();
    Terms {
        indices: terms.iter().map(|(term, _)| *term).collect(),
        values: terms.iter().map(|(_, count)| idf(corpus.chunks(), u64::from(*count))).collect(),
    }
}

fn pairs(hits: &[Hit]) -> Vec<(uuid::Uuid, f32)> {
    hits.iter().map(|hit| (hit.chunk.0, hit.score)).collect()
}

/// Both results as one; a chunk that is in both, since the index moved on meanwhile, counts once.
fn merge(mut found: Found, newer: Found, limit: usize) -> Found {
    let join = |mut hits: Vec<Hit>, newer: Vec<Hit>| {
        hits.extend(newer);
        hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.chunk.cmp(&b.chunk)));
        hits.dedup_by_key(|hit| hit.chunk);
        hits.truncate(limit);
        hits
    };
    found.dense = join(found.dense, newer.dense);
    found.lexical = join(found.lexical, newer.lexical);
    found
}
