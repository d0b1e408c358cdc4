//! The graph that a question goes over: the one in memory, or what an index holds of it, asked until it lacks nothing.
//!
//! **Invariant:** what an index answers counts only when it was one graph from the first call to the last.

use std::collections::HashMap;
use std::sync::Arc;

use super::graph::{Graph, Known};
use crate::domain::Seq;
use crate::domain::names::NameHasher;
use crate::store::graph::GraphHead;
use crate::store::{Corpus, ErrorKind, StoreError};

/// Calls of an index for one question, at most: a question that leads on and on is answered in memory.
const ROUNDS: usize = 64;

/// Where a graph is.
pub(super) const MEMORY: &str = "memory";

/// A graph to ask.
pub(super) enum Over {
    /// In memory.
    Memory(Arc<Graph>),
    /// In an index.
    Index(Box<Indexed>),
}

/// A graph in an index, and what is known of it.
pub(super) struct Indexed {
    corpus: Corpus,
    head: GraphHead,
    seq: Seq,
    known: Known,
    embeddings: bool,
    rounds: usize,
}

impl Over {
    /// The graph that an index holds of a corpus; `None` when there is no index, or it is behind the corpus.
    /// `embeddings`: how near chunks are to the question will be asked.
    pub(super) async fn index(corpus: &Corpus, embeddings: bool) -> Result<Option<Self>, StoreError> {
        let Some(head) = corpus.graph_head().await? else { return Ok(None) };
        let Some(seq) = head.seq.filter(|seq| *seq >= corpus.seq()) else { return Ok(None) };
        let hasher = NameHasher::new(corpus.partition().namespace().0.as_bytes());
        let chunks = usize::try_from(head.chunks).unwrap_or(usize::MAX);
        let known = Known::new(seq, chunks, hasher);
        let indexed = Indexed { corpus: corpus.clone(), head, seq, known, embeddings, rounds: 0 };
        Ok(Some(Self::Index(Box::new(indexed))))
    }

    /// Where it is.
    pub(super) fn place(&self) -> &'static str {
        match self {
            Self::Memory(_) => MEMORY,
            Self::Index(indexed) => indexed.corpus.tenant().graph_name().unwrap_or(MEMORY),
        }
    }

    /// The corpus' history that the graph has seen.
    pub(super) fn seq(&self) -> Seq {
        match self {
            Self::Memory(graph) => graph.seq(),
            Self::Index(indexed) => indexed.seq,
        }
    }

    /// What `question` finds. It is asked several times of an index, of more each time.
    pub(super) async fn ask<T>(&mut self, question: impl Fn(&Graph) -> T) -> Result<T, StoreError> {
        match self {
            Self::Memory(graph) => Ok(question(graph)),
            Self::Index(indexed) => indexed.ask(question).await,
        }
    }

    /// The entities that most chunks mention, at most `limit`, and whether there are more.
    pub(super) async fn top(&self, limit: usize) -> Result<(Vec<u64>, bool), StoreError> {
        let top: Vec<u64> = match self {
            Self::Memory(graph) => {
                let top = graph.top_entities(limit.saturating_add(1));
                top.into_iter().map(|(key, _)| key.0).collect()
            }
            Self::Index(indexed) => {
                let top = indexed.corpus.graph_top(limit.saturating_add(1)).await?;
                top.into_iter().map(|(key, _)| key).collect()
            }
        };
        let more = top.len() > limit;
        Ok((top.into_iter().take(limit).collect(), more))
    }

    /// Whether everything that was found is of one graph.
    pub(super) async fn is_one(&self) -> Result<bool, StoreError> {
        match self {
            Self::Memory(_) => Ok(true),
            Self::Index(indexed) => Ok(indexed.corpus.graph_head().await? == Some(indexed.head)),
        }
    }
}

impl Indexed {
    async fn ask<T>(&mut self, question: impl Fn(&Graph) -> T) -> Result<T, StoreError> {
        loop {
            let wanted = {
                let graph = self.known.graph();
                let found = question(&graph);
                let wanted = graph.missing();
                if wanted.is_empty() {
                    return Ok(found);
                }
                wanted
            };
            self.rounds += 1;
            if self.rounds > ROUNDS {
                let words = "it leads on and on";
                return Err(StoreError::new(ErrorKind::Invalid, "graph", "graph.load", words));
            }
            let loaded = self.corpus.graph_load(&wanted, Known::BOUNDS).await?;
            let embeddings = if self.embeddings && !wanted.chunks.is_empty() {
                self.corpus.chunk_embeddings(&wanted.chunks).await?.into_iter().collect()
            } else {
                HashMap::new()
            };
            self.known.learn(&wanted, loaded, embeddings);
        }
    }
}
