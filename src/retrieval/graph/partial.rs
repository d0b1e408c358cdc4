//! A part of a graph that an index holds: what was fetched so far, and what was asked for and is still to be fetched.
//!
//! Whoever asks makes a [`Graph`] of what is known, asks it, fetches what it lacked, and asks again, until it lacks
//! nothing. What is asked next follows from what is known, so that what is reached is fetched and no more.
//!
//! **Invariant:** an answer of a graph that lacked nothing is the one that the whole graph gives. A list is here whole,
//! or cut where nobody looks further.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use super::Graph;
use super::link::Titles;
use super::node::{Group, Node, Quantised, Slot};
use super::postings::Postings;
use super::walk::{MAX_NAMERS, RARE};
use crate::domain::Seq;
use crate::domain::ids::ChunkId;
use crate::domain::names::NameHasher;
use crate::store::graph::{GraphBounds, GraphLoaded, GraphWanted, LinkedChunk, Mention};

/// Groups of a title beyond which it is as good as nothing: a step backwards falls with their number, and below the
/// floor long before.
const GROUPS: usize = 1_024;

/// What makes a graph a part of another.
pub(super) struct Partial {
    /// Chunks of the whole graph.
    pub(super) chunks: usize,
    /// Chunks that mention an entity which is a name, the first few.
    pub(super) rare: Postings<u32>,
    ids: Vec<ChunkId>,
    /// Chunks that are not in the whole graph.
    absent: BTreeSet<ChunkId>,
    asked: Mutex<BTreeSet<ChunkId>>,
}

impl Partial {
    pub(super) fn chunk_at(&self, at: u32) -> Option<ChunkId> {
        self.ids.get(at as usize).copied()
    }

    pub(super) fn ask_at(&self, at: u32) {
        if let Some(chunk) = self.chunk_at(at) {
            self.ask_for(chunk);
        }
    }

    pub(super) fn ask_for(&self, chunk: ChunkId) {
        if !self.absent.contains(&chunk) {
            self.asked.lock().insert(chunk);
        }
    }
}

/// What is known of a graph that an index holds.
pub struct Known {
    seq: Seq,
    chunks: usize,
    hasher: NameHasher,
    /// Each chunk that was fetched, with its embedding; `None`: it is not in the graph.
    nodes: BTreeMap<ChunkId, Option<(LinkedChunk, Vec<f32>)>>,
    titles: HashMap<u64, Vec<u64>>,
    members: HashMap<u64, Vec<ChunkId>>,
    namers: HashMap<u64, Vec<ChunkId>>,
    rare: HashMap<u64, Vec<ChunkId>>,
    mentions: HashMap<u64, Vec<Mention>>,
}

impl Known {
    /// How far lists are looked at; one more tells that there is more.
    pub const BOUNDS: GraphBounds =
        GraphBounds { groups: GROUPS + 1, namers: MAX_NAMERS + 1, rare: RARE + 1 };

    /// Nothing yet of a graph of so many chunks as of `seq`. `hasher` is the partition's own.
    #[must_use]
    pub fn new(seq: Seq, chunks: usize, hasher: NameHasher) -> Self {
        Self {
            seq,
            chunks,
            hasher,
            nodes: BTreeMap::new(),
            titles: HashMap::new(),
            members: HashMap::new(),
            namers: HashMap::new(),
            rare: HashMap::new(),
            mentions: HashMap::new(),
        }
    }

    /// Takes in what an index answered to `wanted`, and the embeddings of its chunks as far as they are there.
    pub fn learn(
        &mut self,
        wanted: &GraphWanted,
        loaded: GraphLoaded,
        mut embeddings: HashMap<ChunkId, Vec<f32>>,
    ) {
        fill(&mut self.titles, &wanted.titles, loaded.titles);
        fill(&mut self.members, &wanted.members, loaded.members);
        fill(&mut self.namers, &wanted.namers, loaded.namers);
        fill(&mut self.rare, &wanted.rare, loaded.rare);
        fill(&mut self.mentions, &wanted.mentions, loaded.mentions);
        self.nodes.extend(wanted.chunks.iter().map(|chunk| (*chunk, None)));
        for chunk in loaded.chunks {
            let embedding = embeddings.remove(&chunk.chunk).unwrap_or_default();
            self.nodes.insert(chunk.chunk, Some((chunk, embedding)));
        }
    }

    /// The graph of what is known. Places follow the chunks' ids, as in a graph that was packed.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a partition has far fewer than 2^32 chunks")]
    pub fn graph(&self) -> Graph {
        let listed =
            [&self.members, &self.namers, &self.rare].into_iter().flat_map(HashMap::values).flatten();
        let mentioned = self.mentions.values().flatten().map(|mention| &mention.chunk);
        let fetched = self.nodes.iter().filter(|(_, node)| node.is_some()).map(|(chunk, _)| chunk);
        let ids: BTreeSet<ChunkId> = listed.chain(mentioned).chain(fetched).copied().collect();
        let ids: Vec<ChunkId> = ids.into_iter().collect();
        let places: HashMap<ChunkId, u32> =
            ids.iter().enumerate().map(|(at, chunk)| (*chunk, at as u32)).collect();
        let lists_of = |lists: &HashMap<u64, Vec<ChunkId>>| {
            let at = |list: &Vec<ChunkId>| list.iter().map(|chunk| places[chunk]).collect();
            Postings::partial(lists.iter().map(|(key, list)| (*key, at(list))))
        };
        let kind = |is: fn(&Mention) -> bool| {
            let at = |list: &Vec<Mention>| {
                list.iter().filter(|mention| is(mention)).map(|mention| places[&mention.chunk]).collect()
            };
            Postings::partial(self.mentions.iter().map(|(key, list)| (*key, at(list))))
        };
        let slot = |chunk: &ChunkId| self.nodes.get(chunk)?.as_ref().map(slot);
        let absent = self.nodes.iter().filter(|(_, node)| node.is_none()).map(|(chunk, _)| *chunk).collect();
        let (members, named_by, rare) =
            (lists_of(&self.members), lists_of(&self.namers), lists_of(&self.rare));
        let (names, concepts) = (kind(|mention| mention.name), kind(|mention| mention.concept));
        let slots = ids.iter().map(slot).collect();
        let partial = Partial { chunks: self.chunks, rare, ids, absent, asked: Mutex::default() };
        Graph {
            seq: self.seq,
            hasher: self.hasher,
            slots,
            titles: Titles::partial(self.titles.iter().map(|(key, list)| (*key, list.clone()))),
            members,
            namers: named_by,
            names,
            concepts,
            partial: Some(Arc::new(partial)),
            unpacked: 0,
            node_bytes: 0,
            places,
        }
    }
}

impl Graph {
    /// What was asked of this part of a graph and is not in it. Nothing: what it answered is the whole graph's answer.
    #[must_use]
    pub fn missing(&self) -> GraphWanted {
        let Some(partial) = &self.partial else { return GraphWanted::default() };
        let mut mentions = self.names.missing();
        mentions.extend(self.concepts.missing());
        mentions.sort_unstable();
        mentions.dedup();
        GraphWanted {
            chunks: partial.asked.lock().iter().copied().collect(),
            titles: self.titles.missing(),
            members: self.members.missing(),
            namers: self.namers.missing(),
            rare: partial.rare.missing(),
            mentions,
        }
    }
}

/// What was asked for is known afterwards, though it be nothing.
fn fill<T>(known: &mut HashMap<u64, Vec<T>>, wanted: &[u64], loaded: Vec<(u64, Vec<T>)>) {
    for key in wanted {
        known.entry(*key).or_default();
    }
    known.extend(loaded);
}

fn slot((chunk, embedding): &(LinkedChunk, Vec<f32>)) -> Slot {
    let group = |group: &crate::store::graph::LinkedGroup| Group {
        title: group.title,
        first: 0,
        length: 0,
        id: group.group,
    };
    let node = Node {
        chunk: chunk.chunk,
        own: chunk.own,
        own_title: None,
        groups: chunk.groups.iter().map(group).collect(),
        words: Box::default(),
        names: chunk.names.clone().into_boxed_slice(),
        concepts: chunk.concepts.clone().into_boxed_slice(),
        vector: Quantised::new(embedding),
    };
    Slot { node: Arc::new(node), named: chunk.named.clone().into() }
}
