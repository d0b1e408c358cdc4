//! A part of the graph to look at: entities around one, or those that most chunks mention.
//!
//! **Invariant:** what is found by hashes is named by rows of live chunks alone, so that a deleted document
//! leaves nothing to look at.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::engine::{Engine, RetrievalError};
use super::entities::{Entity, Relation, Support};
use crate::domain::ids::ChunkId;
use crate::domain::names::{NameHasher, title_key};
use crate::domain::words::plain;
use crate::store::Corpus;

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

/// Chunks that one view looks at.
const MAX_CHUNKS: i64 = 50_000;
/// Chunks that are read to name an entity or relation.
const SUPPORT: usize = 3;
/// Entities of one chunk that are paired.
const PAIRED: usize = 24;
/// Relations for each node, at most.
const EDGES_PER_NODE: usize = 8;

/// The keys by which a corpus may know an entity of this name: as a name in a text, and as a title.
#[must_use]
pub fn entity_keys(corpus: &Corpus, name: &str) -> Vec<u64> {
    let hasher = NameHasher::new(corpus.partition().namespace().0.as_bytes());
    let mut forms = vec![plain(name), title_key(name)];
    forms.retain(|form| !form.is_empty());
    forms.dedup();
    forms.iter().map(|form| hasher.key(form).0).collect()
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
        let rows = corpus.mention_keys(MAX_CHUNKS).await?;
        let cut = i64::try_from(rows.len()).is_ok_and(|rows| rows == MAX_CHUNKS);
        let mentions = Mentions::of(&rows);
        let (keys, mut truncated) = if label == EVERYTHING {
            mentions.most_mentioned(max_nodes)
        } else {
            mentions.around(&entity_keys(corpus, label), max_depth, max_nodes)
        };
        truncated |= cut && !keys.is_empty();
        let pairs = mentions.pairs(&keys);

        let mut wanted: BTreeSet<ChunkId> = BTreeSet::new();
        for key in &keys {
            wanted.extend(mentions.chunks(*key).take(SUPPORT));
        }
        wanted.extend(pairs.iter().flat_map(|pair| &pair.chunks));
        let support = Support::read(corpus, &wanted, &[]).await?;
        let nodes: Vec<Entity> = keys.iter().filter_map(|key| support.entity(*key)).collect();
        let by_key: HashMap<u64, &Entity> = nodes.iter().map(|node| (node.key, node)).collect();
        let edges = pairs.iter().filter_map(|pair| {
            support.relation(by_key.get(&pair.ends.0)?, by_key.get(&pair.ends.1)?, pair.weight)
        });
        let edges = edges.collect();
        Ok(GraphView { nodes, edges, truncated })
    }
}

/// Which chunk mentions which entity, both ways.
struct Mentions<'r> {
    rows: &'r [(ChunkId, Vec<i64>)],
    places: HashMap<u64, Vec<usize>>,
}

/// Two entities that chunks mention together.
#[derive(Debug, PartialEq)]
struct Pair {
    ends: (u64, u64),
    weight: f32,
    /// Some of the chunks that mention both.
    chunks: Vec<ChunkId>,
}

impl<'r> Mentions<'r> {
    fn of(rows: &'r [(ChunkId, Vec<i64>)]) -> Self {
        let mut places: HashMap<u64, Vec<usize>> = HashMap::new();
        for (place, (_, keys)) in rows.iter().enumerate() {
            for key in keys {
                places.entry(key.cast_unsigned()).or_default().push(place);
            }
        }
        Self { rows, places }
    }

    fn chunks(&self, key: u64) -> impl Iterator<Item = ChunkId> + '_ {
        self.places.get(&key).into_iter().flatten().map(|place| self.rows[*place].0)
    }

    /// The most mentioned first; equal ones by key, so that the order is always the same.
    fn most_mentioned(&self, limit: usize) -> (Vec<u64>, bool) {
        let mut keys: Vec<(usize, u64)> =
            self.places.iter().map(|(key, places)| (places.len(), *key)).collect();
        keys.sort_unstable_by_key(|(count, key)| (std::cmp::Reverse(*count), *key));
        let truncated = keys.len() > limit;
        (keys.into_iter().take(limit).map(|(_, key)| key).collect(), truncated)
    }

    /// In rings around the start; within a ring those first that most chunks mention.
    fn around(&self, start: &[u64], max_depth: usize, limit: usize) -> (Vec<u64>, bool) {
        let mut found: Vec<u64> = start.iter().filter(|key| self.places.contains_key(key)).copied().collect();
        let mut seen: HashSet<u64> = found.iter().copied().collect();
        let mut ring = found.clone();
        for _ in 0..max_depth {
            let mut next: Vec<u64> = Vec::new();
            for key in &ring {
                for place in self.places.get(key).into_iter().flatten() {
                    let others = self.rows[*place].1.iter().map(|key| key.cast_unsigned());
                    next.extend(others.filter(|other| seen.insert(*other)));
                }
            }
            if next.is_empty() {
                break;
            }
            next.sort_unstable_by_key(|key| (std::cmp::Reverse(self.places[key].len()), *key));
            found.extend(&next);
            if found.len() > limit {
                break;
            }
            ring = next;
        }
        let truncated = found.len() > limit;
        found.truncate(limit);
        (found, truncated)
    }

    /// The pairs among these entities, those first that most chunks mention together.
    fn pairs(&self, keys: &[u64]) -> Vec<Pair> {
        let among: HashSet<u64> = keys.iter().copied().collect();
        let places: BTreeSet<usize> =
            keys.iter().filter_map(|key| self.places.get(key)).flatten().copied().collect();
        let mut together: HashMap<(u64, u64), Pair> = HashMap::new();
        for place in places {
            let (chunk, mentioned) = &self.rows[place];
            let own = mentioned.iter().map(|key| key.cast_unsigned()).filter(|key| among.contains(key));
            let own: Vec<u64> = own.take(PAIRED).collect();
            for (at, one) in own.iter().enumerate() {
                for other in own[at + 1..].iter().filter(|other| *other != one) {
                    let ends = (*one.min(other), *one.max(other));
                    let pair = together.entry(ends).or_insert(Pair { ends, weight: 0.0, chunks: Vec::new() });
                    pair.weight += 1.0;
                    if pair.chunks.len() < SUPPORT {
                        pair.chunks.push(*chunk);
                    }
                }
            }
        }
        let mut pairs: Vec<Pair> = together.into_values().collect();
        pairs.sort_by(|a, b| b.weight.total_cmp(&a.weight).then(a.ends.cmp(&b.ends)));
        pairs.truncate(keys.len() * EDGES_PER_NODE);
        pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn rows(chunks: &[&[i64]]) -> Vec<(ChunkId, Vec<i64>)> {
        let chunk = |at: usize| ChunkId(Uuid::from_u128(at as u128));
        chunks.iter().enumerate().map(|(at, keys)| (chunk(at), keys.to_vec())).collect()
    }

    #[test]
    fn a_neighbourhood_grows_in_rings_and_stops_at_its_bounds() {
        let rows = rows(&[&[1, 2], &[2, 3], &[3, 4], &[9]]);
        let mentions = Mentions::of(&rows);
        assert_eq!(mentions.around(&[1], 1, 10), (vec![1, 2], false));
        assert_eq!(mentions.around(&[1], 2, 10), (vec![1, 2, 3], false));
        assert_eq!(mentions.around(&[1], 9, 3), (vec![1, 2, 3], true));
        assert_eq!(mentions.around(&[7], 9, 3), (vec![], false));
    }

    #[test]
    fn the_most_mentioned_come_first_and_the_rest_is_told_of() {
        let rows = rows(&[&[1, 2], &[2, 3], &[2], &[3]]);
        assert_eq!(Mentions::of(&rows).most_mentioned(2), (vec![2, 3], true));
        assert_eq!(Mentions::of(&rows).most_mentioned(3), (vec![2, 3, 1], false));
    }

    #[test]
    fn relations_are_weighed_by_the_chunks_that_mention_both_ends() {
        let rows = rows(&[&[1, 2], &[2, 1, 3], &[1, 1]]);
        let pairs = Mentions::of(&rows).pairs(&[1, 2]);
        assert_eq!(pairs.len(), 1);
        assert_eq!((pairs[0].ends, pairs[0].weight, pairs[0].chunks.len()), ((1, 2), 2.0, 2));
    }
}
