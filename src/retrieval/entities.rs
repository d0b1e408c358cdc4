//! Entities and relations of an answer: found by the graph as hashes, named by the rows of live chunks.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::engine::{RankedChunk, Walked};
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

/// Chunks by which entities and relations are named, and those of them whose text is read to describe them.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    mentions: BTreeSet<ChunkId>,
    /// Chunks whose text is read anyway.
    have: HashSet<ChunkId>,
    texts: BTreeSet<ChunkId>,
}

impl Wanted {
    /// What names the best entities and relations of a walk, beside the chunks of the answer.
    pub(super) fn of(answer: &[ChunkId], walked: &Walked, top: usize) -> Self {
        let have: HashSet<ChunkId> = answer.iter().copied().collect();
        let mut wanted = Self { mentions: have.iter().copied().collect(), have, texts: BTreeSet::new() };
        for (_, mentioned) in walked.entities.iter().take(top) {
            wanted.support(mentioned, SUPPORT);
        }
        for (_, _, _, mentioned) in walked.relations.iter().take(top) {
            wanted.support(mentioned, SUPPORT);
        }
        wanted
    }

    /// So many of the chunks that mention one entity or relation, first of all those that are read anyway; of these, one
    /// text, unless one is read anyway.
    pub(super) fn support(&mut self, chunks: &[ChunkId], count: usize) {
        let read = chunks.iter().filter(|chunk| self.mentions.contains(chunk)).count();
        let more = chunks.iter().filter(|chunk| !self.mentions.contains(chunk));
        let more: Vec<ChunkId> = more.take(count.saturating_sub(read)).copied().collect();
        self.mentions.extend(more);
        let is_read = |chunk: &ChunkId| self.have.contains(chunk) || self.texts.contains(chunk);
        if !chunks.iter().any(is_read) {
            self.texts.extend(chunks.first());
        }
    }

    /// Reads what names them.
    pub(super) async fn read(&self, corpus: &Corpus) -> Result<Vec<MentionRow>, StoreError> {
        let (mentions, texts) = self.lists();
        corpus.mention_list(&mentions, &texts).await
    }

    /// The same, and the rows of the answer's chunks.
    pub(super) async fn read_with(
        &self,
        corpus: &Corpus,
        answer: &[ChunkId],
    ) -> Result<(Vec<ChunkRow>, Vec<MentionRow>), StoreError> {
        let (mentions, texts) = self.lists();
        corpus.chunk_and_mention_list(answer, &mentions, &texts).await
    }

    fn lists(&self) -> (Vec<ChunkId>, Vec<ChunkId>) {
        (self.mentions.iter().copied().collect(), self.texts.iter().copied().collect())
    }
}

/// Rows of the chunks that support entities and relations.
pub(super) struct Support<'t> {
    mentions: Vec<MentionRow>,
    /// Places of the mentions of each entity, in order.
    by_key: HashMap<u64, Vec<usize>>,
    have: HashMap<ChunkId, &'t str>,
}

impl<'t> Support<'t> {
    /// What was read, beside the texts of an answer.
    pub(super) fn new(mut mentions: Vec<MentionRow>, answer: &'t [RankedChunk]) -> Self {
        let have = answer.iter().map(|chunk| (chunk.row.chunk, chunk.row.text.as_str())).collect();
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
        Self { mentions, by_key, have }
    }

    /// Places of the rows that mention an entity, in order.
    fn places(&self, key: u64) -> &[usize] {
        self.by_key.get(&key).map_or(&[], Vec::as_slice)
    }

    /// The rows that mention an entity, in order.
    fn rows(&self, key: u64) -> impl Iterator<Item = &MentionRow> {
        self.places(key).iter().map(|place| &self.mentions[*place])
    }

    /// The form of an entity's name that the texts use most; `None` when no live chunk mentions it.
    pub(super) fn name(&self, key: u64) -> Option<&str> {
        let mut names: BTreeMap<&str, i64> = BTreeMap::new();
        for mention in self.rows(key) {
            let at = mention.keys.iter().position(|found| found.cast_unsigned() == key);
            if let Some((at, name)) = at.and_then(|at| Some((at, mention.names.get(at)?))) {
                *names.entry(name).or_default() +=
                    1 + i64::from(mention.counts.get(at).copied().unwrap_or(0));
            }
        }
        names.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name)
    }

    /// The entity of this key; `None` when no live chunk mentions it.
    pub(super) fn entity(&self, key: u64) -> Option<Entity> {
        let name = self.name(key)?;
        let first = self.rows(key).next()?;
        let at = first.keys.iter().position(|found| found.cast_unsigned() == key)?;
        Some(Entity {
            key,
            name: name.to_owned(),
            kind: first.kinds.get(at).cloned().unwrap_or_default(),
            description: self.sentence(self.rows(key), &[name]),
            sources: Sources::of(self.rows(key)),
            tenant: first.tenant,
            namespace: first.namespace.clone(),
        })
    }

    /// The relation of two entities by key and name, the one whose name comes first as its source, since a relation
    /// has no direction and keys are drawn at random; `None` when no live chunk mentions both.
    pub(super) fn relation(&self, one: (u64, &str), other: (u64, &str), weight: f32) -> Option<Relation> {
        let (source, target) = if one.1 <= other.1 { (one, other) } else { (other, one) };
        let others = self.places(target.0);
        let both = || {
            let places = self.places(source.0).iter().filter(|place| others.binary_search(place).is_ok());
            places.map(|place| &self.mentions[*place])
        };
        let first = both().next()?;
        Some(Relation {
            source: source.1.to_owned(),
            target: target.1.to_owned(),
            description: self.sentence(both(), &[source.1, target.1]),
            weight,
            sources: Sources::of(both()),
            tenant: first.tenant,
            namespace: first.namespace.clone(),
        })
    }

    /// The first sentence that holds all these names, else the first that holds one.
    fn sentence<'m>(&'m self, rows: impl Iterator<Item = &'m MentionRow>, names: &[&str]) -> String {
        let mut second = None;
        let text = |row: &'m MentionRow| self.have.get(&row.chunk).copied().or(row.text.as_deref());
        for text in rows.filter_map(text).take(DESCRIBED) {
            // Told of the whole text first, which is much cheaper than cutting it.
            if !names.iter().any(|name| text.contains(name)) {
                continue;
            }
            for sentence in sentences(text) {
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
    fn of<'m>(rows: impl Iterator<Item = &'m MentionRow>) -> Self {
        let mut sources = Self { created_at: i64::MAX, ..Self::default() };
        for row in rows {
            sources.chunks.push(row.chunk);
            sources.documents.insert(row.document_id.clone());
            sources.files.insert(row.file_name.clone());
            sources.created_at = sources.created_at.min(row.created_at);
        }
        sources
    }
}

/// Names what a walk found. An entity that no live chunk mentions any more is left out.
pub(super) fn describe(walked: &Walked, support: &Support<'_>, top: usize) -> (Vec<Entity>, Vec<Relation>) {
    let entities = walked.entities.iter().take(top).filter_map(|(key, _)| support.entity(*key)).collect();
    let mut names: HashMap<u64, Option<&str>> = HashMap::new();
    let mut relations = Vec::new();
    for (source, target, weight, _) in walked.relations.iter().take(top) {
        let [one, other] = [source, target]
            .map(|key| Some((*key, (*names.entry(*key).or_insert_with(|| support.name(*key)))?)));
        if let (Some(one), Some(other)) = (one, other) {
            relations.extend(support.relation(one, other, *weight));
        }
    }
    (entities, relations)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn chunks(numbers: &[u128]) -> Vec<ChunkId> {
        numbers.iter().map(|n| ChunkId(Uuid::from_u128(*n))).collect()
    }

    #[test]
    fn chunks_that_are_read_anyway_are_counted_before_more_are_read() {
        let (answer, walked) = (
            chunks(&[1, 2]),
            Walked {
                chunks: Vec::new(),
                entities: vec![(7, chunks(&[3, 4, 5, 1, 2])), (8, chunks(&[6, 3, 1]))],
                relations: vec![(7, 8, 1.0, chunks(&[8, 9, 10]))],
            },
        );
        let wanted = Wanted::of(&answer, &walked, 10);
        let (mentions, texts) = wanted.lists();
        // Of the first entity 1, 2 and one more; of the second all three, of which only 6 is new.
        assert_eq!(mentions, chunks(&[1, 2, 3, 6, 8, 9, 10]));
        assert_eq!(texts, chunks(&[8]));
    }
}
