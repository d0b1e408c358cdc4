//! What an index holds of a partition's graph, compared with the graph as the record makes it.
//!
//! A chunk's version is the fingerprint of all that it leads to, reckoned from the relations that were read and not
//! from what the index says that it is. Entities, titles and groups have no version: what leads to them is the chunks'.
//!
//! **Invariant:** the two are of one place in the history; whoever compares sees to that.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{LinkedChunk, WholeGraph, Writers};
use crate::domain::ids::ChunkId;
use crate::store::digest::{Digest, IndexKind, StoreDigest};
use crate::store::error::StoreError;
use crate::store::handles::Corpus;
use crate::store::postgres::examine::{FindingKind, IndexExamined, note};

/// A chunk as an index holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldChunk {
    /// The chunk, with what its relations lead to; what is led to twice is there twice.
    pub linked: LinkedChunk,
    /// The mark that the index keeps of it.
    pub mark: i64,
    /// Its relations of the partition's own, of whatever kind.
    pub relations: u64,
}

/// A node that is no chunk, as an index holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldKey {
    /// Its key.
    pub key: u64,
    /// How often it is there.
    pub copies: u64,
}

/// Everything that an index holds of a partition, in no order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GraphContents {
    /// How many chunks the head says that there are.
    pub counted: u64,
    /// Its chunks, each as often as it is there.
    pub chunks: Vec<HeldChunk>,
    /// Entities.
    pub entities: Vec<HeldKey>,
    /// Groups of titles.
    pub groups: Vec<HeldKey>,
    /// Titles.
    pub titles: Vec<HeldKey>,
    /// Nodes of the partition's own beside its head and all of these.
    pub others: u64,
    /// Nodes and relations that are not wholly the partition's own.
    pub foreign: u64,
}

/// The nodes of a graph that are no chunks, by kind.
#[derive(Debug, Default)]
struct Keys {
    entities: BTreeSet<u64>,
    groups: BTreeSet<u64>,
    titles: BTreeSet<u64>,
}

impl Keys {
    fn of(whole: &WholeGraph) -> Self {
        let mut keys = Self::default();
        for chunk in &whole.chunks {
            keys.entities.extend(chunk.names.iter().chain(&chunk.concepts));
            keys.groups.extend(chunk.groups.iter().map(|group| group.group));
            keys.titles
                .extend(chunk.groups.iter().map(|group| group.title).chain(chunk.named.iter().copied()));
        }
        keys
    }
}

/// How many of each fault there are.
#[derive(Debug, Default)]
struct Faults {
    missing: usize,
    extra: usize,
    changed: usize,
    doubled: usize,
}

/// The same with every list in order and nothing in it twice.
fn in_order(chunk: &LinkedChunk) -> LinkedChunk {
    let mut chunk = chunk.clone();
    for keys in [&mut chunk.names, &mut chunk.concepts, &mut chunk.named] {
        keys.sort_unstable();
        keys.dedup();
    }
    chunk.groups.sort_unstable();
    chunk.groups.dedup();
    chunk
}

/// How many relations a chunk has when each is there once.
fn relations(chunk: &LinkedChunk) -> u64 {
    let entities: BTreeSet<u64> = chunk.names.iter().chain(&chunk.concepts).copied().collect();
    let groups: BTreeSet<u64> = chunk.groups.iter().map(|group| group.group).collect();
    (entities.len() + groups.len() + chunk.named.len()) as u64
}

/// A node's identity among all kinds: a digest is over identities.
fn node_id(kind: &str, key: u64) -> Uuid {
    let hash = Sha256::new().chain_update(kind).chain_update(key.to_be_bytes()).finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    Uuid::from_bytes(id)
}

impl GraphContents {
    /// How many nodes there are, each copy counted, without the head.
    fn nodes(&self) -> u64 {
        let keys = [&self.entities, &self.groups, &self.titles];
        let copies: u64 = keys.into_iter().flatten().map(|held| held.copies).sum();
        self.chunks.len() as u64 + copies + self.others
    }

    /// How the index differs from the graph that the record makes.
    #[must_use]
    pub fn compare(&self, whole: &WholeGraph, store: &str) -> IndexExamined {
        let (mut faults, keys) = (Faults::default(), Keys::of(whole));
        let (mut expected, mut held) = (Digest::default(), Digest::default());
        self.compare_chunks(whole, &mut faults, (&mut expected, &mut held));
        for (kind, keys, there) in [
            ("entity", keys.entities, &self.entities),
            ("group", keys.groups, &self.groups),
            ("title", keys.titles, &self.titles),
        ] {
            let mut missing = keys;
            for key in &missing {
                expected.add(node_id(kind, *key), 0);
            }
            for node in there {
                (0..node.copies).for_each(|_| held.add(node_id(kind, node.key), 0));
                faults.extra += usize::from(!missing.remove(&node.key));
                faults.doubled += usize::from(node.copies > 1);
            }
            faults.missing += missing.len();
        }
        let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        faults.extra = faults.extra.saturating_add(size(self.others));
        faults.changed += usize::from(self.counted != whole.chunks.len() as u64);
        let digests: Vec<StoreDigest> =
            vec![expected.of_store(IndexKind::Graph, "postgres"), held.of_store(IndexKind::Graph, store)];
        let mut examined = IndexExamined { points: self.nodes(), digests, findings: Vec::new() };
        for (kind, count) in [
            (FindingKind::MissingNodes, faults.missing),
            (FindingKind::ExtraNodes, faults.extra),
            (FindingKind::ChangedNodes, faults.changed),
            (FindingKind::DoubledNodes, faults.doubled),
            (FindingKind::ForeignNodes, size(self.foreign)),
        ] {
            note(&mut examined.findings, kind, count, false);
        }
        examined
    }

    fn compare_chunks(
        &self,
        whole: &WholeGraph,
        faults: &mut Faults,
        (expected, held): (&mut Digest, &mut Digest),
    ) {
        let mut missing: HashMap<ChunkId, LinkedChunk> = HashMap::with_capacity(whole.chunks.len());
        for chunk in &whole.chunks {
            let chunk = in_order(chunk);
            expected.add(chunk.chunk.0, chunk.mark());
            missing.insert(chunk.chunk, chunk);
        }
        let mut seen: BTreeMap<ChunkId, u64> = BTreeMap::new();
        for there in &self.chunks {
            let id = there.linked.chunk;
            let once = in_order(&there.linked);
            let is_once = there.relations == relations(&once) && once.mark() == there.linked.mark();
            held.add(id.0, once.mark());
            if !is_once || once.mark() != there.mark {
                // So that the digests differ where something is found.
                held.add(id.0, there.mark.wrapping_add(there.relations.cast_signed()));
            }
            let copies = seen.entry(id).or_default();
            *copies += 1;
            if *copies > 1 {
                faults.doubled += 1;
                continue;
            }
            match missing.remove(&id) {
                None => faults.extra += 1,
                Some(wanted) if wanted != once || wanted.mark() != there.mark => faults.changed += 1,
                Some(_) if !is_once => faults.doubled += 1,
                Some(_) => {}
            }
        }
        faults.missing += missing.len();
    }
}

impl Corpus {
    /// Compares the graph with this token in the index with the one that the record makes; nothing without an index.
    ///
    /// # Errors
    /// As [`GraphIndex::contents`](super::GraphIndex::contents).
    pub async fn graph_compare(
        &self,
        whole: &WholeGraph,
        token: Uuid,
        writers: Writers,
    ) -> Result<IndexExamined, StoreError> {
        match self.graph() {
            Some(graph) => {
                let contents = graph.contents(&self.partition, token, writers).await?;
                Ok(contents.compare(whole, graph.name()))
            }
            None => Ok(IndexExamined::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Seq;
    use crate::store::graph::LinkedGroup;

    fn linked(n: u128, names: &[u64]) -> LinkedChunk {
        LinkedChunk {
            chunk: ChunkId(Uuid::from_u128(n)),
            own: Some(5),
            names: names.to_vec(),
            concepts: vec![7],
            groups: vec![LinkedGroup { group: 20, title: 5 }],
            named: vec![6],
        }
    }

    fn whole() -> WholeGraph {
        WholeGraph { seq: Seq(1), chunks: vec![linked(1, &[1, 7]), linked(2, &[2])] }
    }

    fn once(keys: &[u64]) -> Vec<HeldKey> {
        keys.iter().map(|key| HeldKey { key: *key, copies: 1 }).collect()
    }

    /// What an index holds when all is well.
    fn sound() -> GraphContents {
        let held = |linked: LinkedChunk| {
            let (mark, relations) = (linked.mark(), relations(&linked));
            HeldChunk { linked, mark, relations }
        };
        GraphContents {
            counted: 2,
            chunks: whole().chunks.into_iter().map(held).collect(),
            entities: once(&[7, 1, 2]),
            groups: once(&[20]),
            titles: once(&[5, 6]),
            others: 0,
            foreign: 0,
        }
    }

    fn found(contents: &GraphContents) -> Vec<(FindingKind, u64)> {
        let examined = contents.compare(&whole(), "test");
        let differ = examined.digests[0].digest != examined.digests[1].digest;
        let kinds: Vec<_> = examined.findings.iter().map(|finding| (finding.kind, finding.count)).collect();
        let told = kinds.iter().any(|(kind, _)| !matches!(kind, FindingKind::ForeignNodes));
        assert!(!differ || told, "what differs is found: {kinds:?}");
        kinds
    }

    #[test]
    fn a_sound_graph_is_equal_in_whatever_order_it_is_read() {
        let mut contents = sound();
        contents.chunks.reverse();
        contents.entities.reverse();
        let examined = contents.compare(&whole(), "test");
        assert_eq!(examined.findings, []);
        assert_eq!((examined.digests[0].count, examined.points), (8, 8));
        assert_eq!(examined.digests[0].digest, examined.digests[1].digest);
    }

    #[test]
    fn every_fault_has_its_name() {
        use FindingKind::{ChangedNodes, DoubledNodes, ExtraNodes, ForeignNodes, MissingNodes};
        type Fault = (&'static str, FindingKind, fn(&mut GraphContents));
        let faults: Vec<Fault> = vec![
            ("a chunk is gone", MissingNodes, |held| held.chunks.truncate(1)),
            ("an entity is gone", MissingNodes, |held| held.entities.truncate(2)),
            ("a chunk nobody knows", ExtraNodes, |held| held.chunks[0].linked.chunk.0 = Uuid::from_u128(9)),
            ("a title nobody leads to", ExtraNodes, |held| held.titles.extend(once(&[99]))),
            ("a node of no kind", ExtraNodes, |held| held.others = 1),
            ("another mark", ChangedNodes, |held| held.chunks[0].mark += 1),
            ("a mention is gone", ChangedNodes, |held| held.chunks[0].linked.names.truncate(1)),
            ("a name is a concept", ChangedNodes, |held| held.chunks[0].linked.concepts.push(1)),
            ("another own title", ChangedNodes, |held| held.chunks[0].linked.own = None),
            ("another title of a group", ChangedNodes, |held| held.chunks[0].linked.groups[0].title = 6),
            ("a head that counts wrongly", ChangedNodes, |held| held.counted = 3),
            ("a chunk twice", DoubledNodes, |held| held.chunks.push(held.chunks[0].clone())),
            ("an entity twice", DoubledNodes, |held| held.entities[0].copies = 2),
            ("a mention twice", DoubledNodes, |held| {
                held.chunks[0].linked.names.push(1);
                held.chunks[0].relations += 1;
            }),
            ("a relation of another kind", DoubledNodes, |held| held.chunks[0].relations += 1),
            ("somebody else's", ForeignNodes, |held| held.foreign = 1),
        ];
        for (words, kind, fault) in faults {
            let mut contents = sound();
            fault(&mut contents);
            let found = found(&contents);
            assert!(found.iter().any(|(found, _)| *found == kind), "{words}: {found:?}");
        }
    }

    #[test]
    fn what_is_found_shows_in_the_digests_too() {
        let faults: [fn(&mut GraphContents); 6] = [
            |held| held.chunks.truncate(1),
            |held| held.chunks[0].mark += 1,
            |held| held.chunks[0].linked.names.truncate(1),
            |held| held.chunks[0].relations += 1,
            |held| held.entities[0].copies = 2,
            |held| held.titles.extend(once(&[99])),
        ];
        for fault in faults {
            let mut contents = sound();
            fault(&mut contents);
            let examined = contents.compare(&whole(), "test");
            assert_ne!(examined.digests[0].digest, examined.digests[1].digest, "{:?}", examined.findings);
        }
    }
}
