//! Entities and relations near a question, and the graph around an entity, as keys and chunks.
//!
//! Two entities are related where a chunk mentions both; the relation weighs how often, and how much oftener than chance (pointwise mutual information).
//!
//! **Invariant:** what is returned is supported by chunks of this version, and they are named.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashMap;

use super::Graph;
use super::node::Node;
use super::postings::{KeyMap, KeySet};
use crate::domain::ids::ChunkId;
use crate::domain::names::{NameKey, names};
use crate::domain::words::{plain, sentences};

/// An entity near a question, or in a neighbourhood.
#[derive(Debug, Clone, PartialEq)]
pub struct EntityHit {
    /// The entity.
    pub key: NameKey,
    /// How near; comparable within one answer only. In a neighbourhood: how many chunks mention it.
    pub score: f32,
    /// Some of the chunks that mention it, the nearest first.
    pub chunks: Vec<ChunkId>,
}

/// Two entities that chunks mention together.
#[derive(Debug, Clone, PartialEq)]
pub struct RelationHit {
    /// The one with the smaller key.
    pub source: NameKey,
    /// The one with the greater key.
    pub target: NameKey,
    /// How near the question is; comparable within one answer only.
    pub score: f32,
    /// Chunks with both, times how much oftener than chance they meet.
    pub weight: f32,
    /// Some of the chunks that mention both, the nearest first.
    pub chunks: Vec<ChunkId>,
}

/// A part of the graph.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Neighbourhood {
    /// Entities, the nearest to the start first.
    pub entities: Vec<EntityHit>,
    /// Relations between them, the strongest first.
    pub relations: Vec<RelationHit>,
    /// Whether there is more than was asked for.
    pub truncated: bool,
}

/// Chunks of the fused ranking whose entities are looked at.
const SOURCES: usize = 20;
/// Entities of a chunk that are paired.
const PAIRED: usize = 12;
/// Chunks named per entity or relation.
const SUPPORT: usize = 5;
/// Longest run of a question's words that is looked up as a name.
const LONGEST_NAME: usize = 5;
/// An entity that the question names comes before one that is only near.
const NAMED: f32 = 2.0;
/// Chunks of one entity that a neighbourhood looks at.
const MAX_CHUNKS: usize = 256;
/// Relations of a neighbourhood per entity in it.
const MAX_RELATIONS: usize = 8;

impl Graph {
    /// The entities that a question names, then those of the best of the fused ranking, at most `limit`.
    #[must_use]
    pub fn entities_for(&self, question: &str, fused: &[(ChunkId, f32)], limit: usize) -> Vec<EntityHit> {
        let near = Near::new(self, fused);
        let mut scored: Vec<(u64, f32)> = self.score(question, &near).into_iter().collect();
        scored.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        scored.truncate(limit);
        scored
            .into_iter()
            .map(|(key, score)| EntityHit {
                key: NameKey(key),
                score,
                chunks: near.support(self.mentions(key).iter().copied()),
            })
            .collect()
    }

    /// The relations between entities of the best of the fused ranking, at most `limit`.
    #[must_use]
    pub fn relations_for(&self, question: &str, fused: &[(ChunkId, f32)], limit: usize) -> Vec<RelationHit> {
        let near = Near::new(self, fused);
        let scores = self.score(question, &near);
        let mut pairs: KeyMap<(u64, u64), f32> = KeyMap::default();
        for &(at, prior) in &near.sources {
            let Some(node) = self.node(at) else { continue };
            let mut keys: Vec<u64> = entities(node).collect();
            let score = |key: &u64| scores.get(key).copied().unwrap_or_default();
            keys.sort_unstable_by(|a, b| score(b).total_cmp(&score(a)).then(a.cmp(b)));
            keys.dedup();
            keys.truncate(PAIRED);
            for (n, &a) in keys.iter().enumerate() {
                for &b in &keys[n + 1..] {
                    *pairs.entry((a.min(b), a.max(b))).or_default() += prior * (score(&a) + score(&b));
                }
            }
        }
        let mentions: KeyMap<u64, Cow<'_, [u32]>> =
            pairs.keys().flat_map(|&(a, b)| [a, b]).map(|key| (key, self.mentions(key))).collect();
        // There are many pairs and few are kept, so that chunks are looked for last.
        let mut strongest: Vec<(f32, f32, (u64, u64))> = pairs
            .into_iter()
            .map(|((a, b), near_score)| {
                let (of_a, of_b) = (&mentions[&a], &mentions[&b]);
                let weight = self.weight(of_a.len(), of_b.len(), meet(of_a, of_b).count());
                (near_score * weight.ln_1p(), weight, (a, b))
            })
            .collect();
        strongest.sort_unstable_by(|x, y| y.0.total_cmp(&x.0).then(x.2.cmp(&y.2)));
        strongest.truncate(limit);
        let hit = |(score, weight, (a, b)): (f32, f32, (u64, u64))| {
            let chunks = near.support(meet(&mentions[&a], &mentions[&b]));
            RelationHit { source: NameKey(a), target: NameKey(b), score, weight, chunks }
        };
        strongest.into_iter().map(hit).collect()
    }

    /// What is around an entity, by at most `max_depth` relations and with at most `max_nodes` entities; empty when no chunk mentions it.
    #[must_use]
    pub fn neighbourhood(&self, start: NameKey, max_depth: usize, max_nodes: usize) -> Neighbourhood {
        if self.mentions(start.0).is_empty() || max_nodes == 0 {
            return Neighbourhood::default();
        }
        let mut found = vec![start.0];
        let mut seen: KeySet = KeySet::default();
        seen.insert(start.0);
        let mut truncated = false;
        let mut ring = 0..1;
        for _ in 0..max_depth {
            for n in ring.clone() {
                for other in self.met(found[n]) {
                    if seen.contains(&other) {
                        continue;
                    }
                    if found.len() == max_nodes {
                        truncated = true;
                        break;
                    }
                    seen.insert(other);
                    found.push(other);
                }
            }
            ring = ring.end..found.len();
            if ring.is_empty() {
                break;
            }
        }
        self.among(&found, truncated)
    }

    /// The entities that most chunks mention, at most `n`, with the number of those chunks.
    #[must_use]
    pub fn top_entities(&self, n: usize) -> Vec<(NameKey, usize)> {
        let mut counts: KeyMap<u64, usize> = KeyMap::default();
        for (key, list) in self.names.iter().chain(self.concepts.iter()).filter(|(_, list)| !list.is_empty())
        {
            *counts.entry(key).or_default() += list.len();
        }
        let mut counts: Vec<(u64, usize)> = counts.into_iter().collect();
        let order = |&(key, count): &(u64, usize)| (Reverse(count), key);
        if n < counts.len() {
            counts.select_nth_unstable_by_key(n, order);
            counts.truncate(n);
        }
        counts.sort_unstable_by_key(order);
        counts.into_iter().map(|(key, count)| (NameKey(key), count)).collect()
    }

    /// How near entities are to a question: named by it, or mentioned by what search found; rare ones nearer.
    fn score(&self, question: &str, near: &Near<'_>) -> KeyMap<u64, f32> {
        let mut scores: KeyMap<u64, f32> = KeyMap::default();
        for &(at, prior) in &near.sources {
            for key in self.node(at).into_iter().flat_map(entities) {
                *scores.entry(key).or_default() += prior * self.rarity(key);
            }
        }
        let words = plain(question);
        let words: Vec<&str> = words.split(' ').collect();
        let runs =
            (1..=LONGEST_NAME.min(words.len())).flat_map(|n| words.windows(n).map(|run| run.join(" ")));
        let mut named: Vec<u64> = runs
            .chain(sentences(question).flat_map(names).map(|name| name.key))
            .map(|name| self.hasher.key(&name).0)
            .filter(|&key| !self.mentions(key).is_empty())
            .collect();
        named.sort_unstable();
        named.dedup();
        for key in named {
            *scores.entry(key).or_default() += NAMED + self.rarity(key);
        }
        scores
    }

    /// From near 0 for an entity in every chunk to 1 for one in a single chunk.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^24")]
    fn rarity(&self, key: u64) -> f32 {
        let chunks = self.chunks() as f32;
        (chunks / self.mentions(key).len().max(1) as f32).ln_1p() / chunks.ln_1p()
    }

    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^24")]
    fn weight(&self, a: usize, b: usize, both: usize) -> f32 {
        let expected = a as f32 * b as f32 / self.chunks().max(1) as f32;
        both as f32 * (both as f32 / expected.max(f32::MIN_POSITIVE)).ln_1p()
    }

    /// Places of the chunks that mention an entity, sorted.
    fn mentions(&self, key: u64) -> Cow<'_, [u32]> {
        match (self.names.get(key), self.concepts.get(key)) {
            (one, []) | ([], one) => Cow::Borrowed(one),
            (names, concepts) => {
                let mut all = [names, concepts].concat();
                all.sort_unstable();
                all.dedup();
                Cow::Owned(all)
            }
        }
    }

    /// Entities that chunks mention together with this one, most often first.
    fn met(&self, key: u64) -> Vec<u64> {
        let mut counts: KeyMap<u64, usize> = KeyMap::default();
        for &at in self.mentions(key).iter().take(MAX_CHUNKS) {
            for other in self.node(at).into_iter().flat_map(entities).filter(|&other| other != key) {
                *counts.entry(other).or_default() += 1;
            }
        }
        let mut met: Vec<(u64, usize)> = counts.into_iter().collect();
        met.sort_unstable_by_key(|&(key, count)| (Reverse(count), key));
        met.into_iter().map(|(key, _)| key).collect()
    }

    /// Some of the chunks at these places: the first by id.
    fn sample(&self, places: &[u32]) -> Vec<ChunkId> {
        let mut chunks: Vec<ChunkId> = places.iter().filter_map(|&at| self.chunk_at(at)).collect();
        chunks.sort_unstable();
        chunks.truncate(SUPPORT);
        chunks
    }

    /// These entities, in this order, and the relations between them; `truncated` tells whether there are more.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^24")]
    pub fn among(&self, keys: &[u64], truncated: bool) -> Neighbourhood {
        let inside: KeySet = keys.iter().copied().collect();
        let mut pairs: HashMap<(u64, u64), Vec<u32>> = HashMap::new();
        for &key in keys {
            for &at in self.mentions(key).iter().take(MAX_CHUNKS) {
                let others = self.node(at).into_iter().flat_map(entities);
                for other in others.filter(|other| *other > key && inside.contains(other)) {
                    let both = pairs.entry((key, other)).or_default();
                    if both.last() != Some(&at) {
                        both.push(at);
                    }
                }
            }
        }
        let mut relations: Vec<RelationHit> = pairs
            .into_iter()
            .map(|((a, b), both)| {
                let weight = self.weight(self.mentions(a).len(), self.mentions(b).len(), both.len());
                let chunks = self.sample(&both);
                RelationHit { source: NameKey(a), target: NameKey(b), score: weight, weight, chunks }
            })
            .collect();
        relations.sort_unstable_by(|a, b| {
            b.weight.total_cmp(&a.weight).then((a.source, a.target).cmp(&(b.source, b.target)))
        });
        let cut = relations.len() > keys.len() * MAX_RELATIONS;
        relations.truncate(keys.len() * MAX_RELATIONS);
        let entities = keys
            .iter()
            .map(|&key| {
                let mentions = self.mentions(key);
                EntityHit { key: NameKey(key), score: mentions.len() as f32, chunks: self.sample(&mentions) }
            })
            .collect();
        Neighbourhood { entities, relations, truncated: truncated || cut }
    }
}

/// Every entity of a chunk.
fn entities(node: &Node) -> impl Iterator<Item = u64> {
    node.names.iter().chain(&node.concepts).copied()
}

/// What two sorted lists share, in order.
fn meet<'l>(a: &'l [u32], b: &'l [u32]) -> impl Iterator<Item = u32> + 'l {
    let (short, mut long) = if a.len() < b.len() { (a, b) } else { (b, a) };
    short.iter().copied().filter(move |at| {
        let (before, same) = match long.binary_search(at) {
            Ok(before) => (before + 1, true),
            Err(before) => (before, false),
        };
        long = &long[before..];
        same
    })
}

/// What search found, by place.
struct Near<'g> {
    graph: &'g Graph,
    /// The best, with scores from 0 to 1.
    sources: Vec<(u32, f32)>,
    scores: KeyMap<u32, f32>,
}

impl<'g> Near<'g> {
    fn new(graph: &'g Graph, fused: &[(ChunkId, f32)]) -> Self {
        let best = fused.iter().map(|hit| hit.1).fold(f32::MIN_POSITIVE, f32::max);
        let found: Vec<(u32, f32)> = fused
            .iter()
            .filter_map(|(chunk, score)| Some((graph.place(*chunk)?, score.max(0.0) / best)))
            .collect();
        let scores = found.iter().copied().collect();
        Self { graph, sources: found.into_iter().take(SOURCES).collect(), scores }
    }

    /// Some of these chunks, those that search found first.
    fn support(&self, places: impl Iterator<Item = u32>) -> Vec<ChunkId> {
        let mut ranked: Vec<(f32, ChunkId)> = places
            .filter_map(|at| {
                Some((self.scores.get(&at).copied().unwrap_or_default(), self.graph.chunk_at(at)?))
            })
            .collect();
        let order = |a: &(f32, ChunkId), b: &(f32, ChunkId)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if SUPPORT < ranked.len() {
            ranked.select_nth_unstable_by(SUPPORT, order);
            ranked.truncate(SUPPORT);
        }
        ranked.sort_unstable_by(order);
        ranked.into_iter().map(|(_, chunk)| chunk).collect()
    }
}
