//! A part of the graph to look at: entities around one, or those that most chunks mention.
//!
//! **Invariant:** what is found by hashes is named by rows of live chunks alone, so that a deleted document
//! leaves nothing to look at.

use std::collections::HashMap;

use super::engine::{Engine, RetrievalError};
use super::entities::{Entity, Relation, Support, Wanted};
use super::graph::Neighbourhood;
use super::over::Over;
use crate::domain::names::{NameHasher, NameKey, title_key};
use crate::domain::words::plain;
use crate::store::{Corpus, StoreError};

/// A part of a graph.
#[derive(Debug, Clone, Default)]
pub struct GraphView {
    /// The nearest to the start first, or the most mentioned.
    pub nodes: Vec<Entity>,
    /// Relations between the nodes, the strongest first.
    pub edges: Vec<Relation>,
    /// Whether there is more than was asked for.
    pub truncated: bool,
}

/// The label that stands for the entities that most chunks mention.
pub const EVERYTHING: &str = "*";

/// Chunks that are read to name an entity or relation.
const SUPPORT: usize = 3;
/// Entities beyond which one chunk has to do for each.
const WIDE: usize = 200;

/// The keys by which a corpus may know an entity of this name: as a name in a text, and as a title.
#[must_use]
pub fn entity_keys(corpus: &Corpus, name: &str) -> Vec<u64> {
    let hasher = NameHasher::new(corpus.partition().namespace().0.as_bytes());
    let mut forms = vec![plain(name), title_key(name)];
    forms.retain(|form| !form.is_empty());
    forms.dedup();
    forms.iter().map(|form| hasher.key(form).0).collect()
}

/// What is around the entity of this name, or the entities that most chunks mention.
async fn part(
    over: &mut Over,
    corpus: &Corpus,
    label: &str,
    (max_depth, max_nodes): (usize, usize),
) -> Result<Neighbourhood, StoreError> {
    if label == EVERYTHING {
        let (keys, more) = over.top(max_nodes).await?;
        return over.ask(|graph| graph.among(&keys, more)).await;
    }
    for key in entity_keys(corpus, label) {
        let found = over.ask(|graph| graph.neighbourhood(NameKey(key), max_depth, max_nodes)).await?;
        if !found.entities.is_empty() {
            return Ok(found);
        }
    }
    Ok(Neighbourhood::default())
}

impl Engine {
    /// Entities at most `max_depth` relations from the one of this name, at most `max_nodes`, with the
    /// relations between them. [`EVERYTHING`] gives the entities that most chunks mention; an unknown name
    /// gives nothing.
    ///
    /// # Errors
    /// `Store`.
    pub async fn neighbourhood(
        &self,
        corpus: &Corpus,
        label: &str,
        max_depth: usize,
        max_nodes: usize,
    ) -> Result<GraphView, RetrievalError> {
        let look = async |mut over: Over| {
            let found = part(&mut over, corpus, label, (max_depth, max_nodes)).await?;
            Ok((found, over))
        };
        let found = match self.over_index(corpus, false, look, &mut Vec::new()).await? {
            Some(found) => found,
            None => look(Over::Memory(self.graphs.get(corpus).await?)).await?,
        };
        let found = found.0;
        let support = if found.entities.len() > WIDE { 1 } else { SUPPORT };
        let mut wanted = Wanted::default();
        for entity in &found.entities {
            wanted.support(&entity.chunks, support);
        }
        for relation in &found.relations {
            wanted.support(&relation.chunks, support);
        }
        let support = Support::new(wanted.read(corpus).await?, &[]);
        let nodes: Vec<Entity> =
            found.entities.iter().filter_map(|entity| support.entity(entity.key.0)).collect();
        let by_key: HashMap<u64, &Entity> = nodes.iter().map(|node| (node.key, node)).collect();
        let edges = found.relations.iter().filter_map(|relation| {
            let (source, target) = (by_key.get(&relation.source.0)?, by_key.get(&relation.target.0)?);
            support.relation((source.key, &source.name), (target.key, &target.name), relation.weight)
        });
        let edges = edges.collect();
        Ok(GraphView { nodes, edges, truncated: found.truncated })
    }
}
