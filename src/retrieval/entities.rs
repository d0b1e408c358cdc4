//! Entities and relations of an answer: found by the graph as hashes, named by the rows of live chunks.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::engine::{Engine, Question, RankedChunk, RetrievalError, Walked};
use super::search::Ranking;
use crate::domain::ids::{ChunkId, TenantId};
use crate::domain::words::sentences;
use crate::store::postgres::chunks::{ChunkRow, MentionRow};
use crate::store::{Corpus, StoreError};

/// Where a statement is from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Chunks.
    pub chunks: Vec<ChunkId>,
    /// Their documents.
    pub documents: BTreeSet<String>,
    /// The names by which the documents are cited.
    pub files: BTreeSet<String>,
    /// When the first was accepted, seconds since 1970.
    pub created_at: i64,
}

/// An entity, merged from the chunks that mention it.
#[derive(Debug, Clone)]
pub struct Entity {
    /// The hash of its normalised name, by which the graph knows it.
    pub key: u64,
    /// The form that the texts use most.
    pub name: String,
    /// What it is.
    pub kind: String,
    /// A sentence that mentions it.
    pub description: String,
    /// Where it is from.
    pub sources: Sources,
    /// The tenant, as the rows say.
    pub tenant: TenantId,
    /// The namespace, as the rows say.
    pub namespace: String,
}

/// Two entities that chunks mention together.
#[derive(Debug, Clone)]
pub struct Relation {
    /// One end's name.
    pub source: String,
    /// The other end's name.
    pub target: String,
    /// A sentence that mentions both.
    pub description: String,
    /// How strongly they belong together.
    pub weight: f32,
    /// Where it is from.
    pub sources: Sources,
    /// The tenant, as the rows say.
    pub tenant: TenantId,
    /// The namespace, as the rows say.
    pub namespace: String,
}

/// Chunks that are read to name one entity or relation.
const SUPPORT: usize = 3;
/// Chunks whose sentences are looked at for a description.
const DESCRIBED: usize = 8;

/// Rows of the chunks that support entities and relations.
pub(super) struct Support {
    mentions: Vec<MentionRow>,
    /// Places of the mentions of each entity, in order.
    by_key: HashMap<u64, Vec<usize>>,
    rows: HashMap<ChunkId, ChunkRow>,
}

impl Support {
    /// Reads the rows of these chunks, and of those that were read already none again.
    pub(super) async fn read(
        corpus: &Corpus,
        chunks: &BTreeSet<ChunkId>,
        have: &[RankedChunk],
    ) -> Result<Self, StoreError> {
        let ids: Vec<ChunkId> = chunks.iter().copied().collect();
        let mut rows: HashMap<ChunkId, ChunkRow> =
            have.iter().map(|chunk| (chunk.row.chunk, chunk.row.clone())).collect();
        let missing: Vec<ChunkId> = ids.iter().filter(|id| !rows.contains_key(id)).copied().collect();
        let (mentions, more) = tokio::join!(corpus.mention_list(&ids), async {
            if missing.is_empty() { Ok(Vec::new()) } else { corpus.chunk_list(&missing).await }
        });
        rows.extend(more?.into_iter().map(|row| (row.chunk, row)));
        let mut mentions = mentions?;
        // The store gives them in no order; the same rows are always described the same.
        mentions.sort_unstable_by_key(|mention| mention.chunk);
        let mut by_key: HashMap<u64, Vec<usize>> = HashMap::new();
        for (place, mention) in mentions.iter().enumerate() {
            for key in &mention.keys {
                let places = by_key.entry(key.cast_unsigned()).or_default();
                if places.last() != Some(&place) {
                    places.push(place);
                }
            }
        }
        Ok(Self { mentions, by_key, rows })
    }

    /// Places of the rows that mention an entity, in order.
    fn places(&self, key: u64) -> &[usize] {
        self.by_key.get(&key).map_or(&[], Vec::as_slice)
    }

    /// The entity of this key; `None` when no live chunk mentions it.
    pub(super) fn entity(&self, key: u64) -> Option<Entity> {
        let mut names: BTreeMap<&str, i64> = BTreeMap::new();
        let mut kind = None;
        let mut sources = Sources { created_at: i64::MAX, ..Sources::default() };
        let mut tenant = None;
        for mention in self.places(key).iter().map(|place| &self.mentions[*place]) {
            let Some(at) = mention.keys.iter().position(|found| found.cast_unsigned() == key) else {
                continue;
            };
            let Some(name) = mention.names.get(at) else { continue };
            *names.entry(name).or_default() += 1 + i64::from(mention.counts.get(at).copied().unwrap_or(0));
            kind = kind.or(mention.kinds.get(at));
            tenant = Some(mention.tenant);
            sources.add(mention);
        }
        let name = names.iter().max_by_key(|(_, count)| **count).map(|(name, _)| (*name).to_owned())?;
        let row = sources.chunks.iter().find_map(|chunk| self.rows.get(chunk))?;
        Some(Entity {
            key,
            description: self.sentence(&sources, &[&name]),
            kind: kind.cloned().unwrap_or_default(),
            sources,
            tenant: tenant?,
            namespace: row.namespace.clone(),
            name,
        })
    }

    /// The relation of two entities, the one whose name comes first as its source, since a relation has no direction
    /// and keys are drawn at random; `None` when no live chunk mentions both.
    pub(super) fn relation(&self, one: &Entity, other: &Entity, weight: f32) -> Option<Relation> {
        let (source, target) = if one.name <= other.name { (one, other) } else { (other, one) };
        let mut sources = Sources { created_at: i64::MAX, ..Sources::default() };
        let others = self.places(target.key);
        for place in self.places(source.key) {
            if others.binary_search(place).is_ok() {
                sources.add(&self.mentions[*place]);
            }
        }
        let row = sources.chunks.iter().find_map(|chunk| self.rows.get(chunk))?;
        Some(Relation {
            source: source.name.clone(),
            target: target.name.clone(),
            description: self.sentence(&sources, &[&source.name, &target.name]),
            weight,
            tenant: row.tenant,
            namespace: row.namespace.clone(),
            sources,
        })
    }

    /// The first sentence that holds all these names, else the first that holds one.
    fn sentence(&self, sources: &Sources, names: &[&str]) -> String {
        let mut second = None;
        for row in sources.chunks.iter().filter_map(|chunk| self.rows.get(chunk)).take(DESCRIBED) {
            for sentence in sentences(&row.text) {
                let held = names.iter().filter(|name| sentence.contains(**name)).count();
                if held == names.len() {
                    return sentence.to_owned();
                }
                if held > 0 && second.is_none() {
                    second = Some(sentence);
                }
            }
        }
        second.unwrap_or_default().to_owned()
    }
}

impl Sources {
    fn add(&mut self, mention: &MentionRow) {
        self.chunks.push(mention.chunk);
        self.documents.insert(mention.document_id.clone());
        self.files.insert(mention.file_name.clone());
        self.created_at = self.created_at.min(mention.created_at);
    }
}

impl Engine {
    /// Names what a walk found. An entity that no live chunk mentions any more is left out.
    pub(super) async fn describe(
        &self,
        ranking: &Ranking,
        walked: &Walked,
        chunks: &[RankedChunk],
        question: &Question,
    ) -> Result<(Vec<Entity>, Vec<Relation>), RetrievalError> {
        let top = question.top_k.get();
        let mut support: BTreeSet<ChunkId> = chunks.iter().map(|chunk| chunk.row.chunk).collect();
        for (_, mentioned) in walked.entities.iter().take(top) {
            support.extend(mentioned.iter().take(SUPPORT));
        }
        for (_, _, _, mentioned) in walked.relations.iter().take(top) {
            support.extend(mentioned.iter().take(SUPPORT));
        }
        let support = Support::read(&ranking.corpus, &support, chunks).await?;
        let mut named: HashMap<u64, Entity> = HashMap::new();
        let mut entities = Vec::new();
        for (key, _) in walked.entities.iter().take(top) {
            if let Some(entity) = support.entity(*key) {
                named.insert(*key, entity.clone());
                entities.push(entity);
            }
        }
        let mut relations = Vec::new();
        for (source, target, weight, _) in walked.relations.iter().take(top) {
            let end = |key: &u64| named.get(key).cloned().or_else(|| support.entity(*key));
            if let (Some(source), Some(target)) = (end(source), end(target)) {
                relations.extend(support.relation(&source, &target, *weight));
            }
        }
        Ok((entities, relations))
    }
}
