//! The graph of one partition in memory: chunks, the titles their texts name, the entities they share.
//!
//! Chunks are nodes. A chunk links to the documents (and sections) whose titles its text names, and to chunks that share a rare entity with it; both are found by text alone. The index of words and names is kept, links are read off it, so that a change touches only what names it.
//!
//! A [`Graph`] is immutable. [`Graph::apply`] makes the next version from a packed base that both share and the lists that changed; when those grow, the base is packed anew.
//!
//! **Invariant:** `apply` gives the graph that `build` would have given from the chunks that are left.
//! A graph may also be a part of one that an index holds ([`Known`]): what is asked of it and is not here is remembered, so that it can be fetched and asked again.
//!
//! **Invariant:** ids and keyed hashes only: no text, no name.

mod entities;
mod link;
mod node;
mod partial;
mod postings;
mod walk;

use std::collections::HashMap;
use std::sync::Arc;

use crate::domain::Seq;
use crate::domain::ids::ChunkId;
use crate::domain::names::NameHasher;
use crate::store::graph::{LinkedChunk, LinkedGroup};
pub use entities::{EntityHit, Neighbourhood, RelationHit};
use link::{Titles, link};
pub use node::GraphChunk;
use node::{Group, Node, Reader, Slot};
pub use partial::Known;
use partial::Partial;
use postings::{KeyMap, Postings};
pub use walk::WalkSettings;

/// One version of a partition's graph. Cheap to clone.
#[derive(Clone)]
pub struct Graph {
    seq: Seq,
    hasher: NameHasher,
    /// Chunks by place; a removed one leaves its place empty until the next packing.
    slots: Vec<Option<Slot>>,
    places: HashMap<ChunkId, u32>,
    titles: Titles,
    /// Chunks of a group.
    members: Postings<u32>,
    /// Chunks whose text names a title.
    namers: Postings<u32>,
    /// Chunks that mention an entity which is a name.
    names: Postings<u32>,
    /// Chunks that mention an entity which is a concept.
    concepts: Postings<u32>,
    /// What this graph is a part of, when it is one.
    partial: Option<Arc<Partial>>,
    /// Changes since the last packing.
    unpacked: usize,
    node_bytes: usize,
}

/// A version is packed anew once this many chunks changed, or a quarter of them all.
const PACK_AFTER: usize = 512;

impl Graph {
    /// Builds the graph of these chunks as of `seq`. `hasher` is the partition's own, the one that made the mentions' keys.
    #[must_use]
    pub fn build(seq: Seq, hasher: NameHasher, chunks: impl IntoIterator<Item = GraphChunk>) -> Self {
        let mut reader = Reader::new(&hasher);
        let mut nodes: HashMap<ChunkId, Arc<Node>> = HashMap::new();
        for chunk in chunks {
            nodes.insert(chunk.chunk, Arc::new(reader.node(&chunk)));
        }
        let mut nodes: Vec<Arc<Node>> = nodes.into_values().collect();
        nodes.sort_unstable_by_key(|node| node.chunk);
        Self::pack(seq, hasher, nodes)
    }

    /// The next version: without the chunks `removed`, with those of `added`, as of `seq`.
    ///
    /// A chunk in both, or added again, is replaced. Unknown chunks in `removed` are passed over.
    #[must_use]
    pub fn apply(&self, seq: Seq, added: impl IntoIterator<Item = GraphChunk>, removed: &[ChunkId]) -> Self {
        let mut next = self.clone();
        next.seq = seq;
        let mut touched: KeyMap<u64, (Group, bool)> = KeyMap::default();
        for chunk in removed {
            next.remove(*chunk, &mut touched);
        }
        let mut fresh = Vec::new();
        let mut reader = Reader::new(&self.hasher);
        for chunk in added {
            next.remove(chunk.chunk, &mut touched);
            fresh.push(next.insert(Arc::new(reader.node(&chunk)), &mut touched));
        }
        next.relink(fresh, &touched);
        if next.unpacked > PACK_AFTER.max(next.places.len() / 4) {
            let nodes = next.slots.into_iter().flatten().map(|slot| slot.node).collect();
            return Self::pack(seq, self.hasher, nodes);
        }
        next
    }

    /// The corpus' history that this version has seen.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// How many chunks there are.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.partial.as_ref().map_or(self.places.len(), |partial| partial.chunks)
    }

    /// The chunks, in no order.
    pub fn chunk_ids(&self) -> impl Iterator<Item = ChunkId> + '_ {
        self.places.keys().copied()
    }

    /// Whether the graph has this chunk.
    #[must_use]
    pub fn contains(&self, chunk: ChunkId) -> bool {
        self.place(chunk).is_some()
    }

    /// The chunks with everything that they lead to, in no order: what an index keeps of this graph.
    pub fn linked(&self) -> impl Iterator<Item = LinkedChunk> + '_ {
        self.slots.iter().flatten().map(|Slot { node, named }| LinkedChunk {
            chunk: node.chunk,
            own: node.own,
            names: node.names.to_vec(),
            concepts: node.concepts.to_vec(),
            groups: node.groups.iter().map(|own| LinkedGroup { group: own.id, title: own.title }).collect(),
            named: named.to_vec(),
        })
    }

    /// Memory, bytes, nearly; what versions share is counted in each.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let lists = [&self.members, &self.namers, &self.names, &self.concepts];
        self.node_bytes
            + self.slots.iter().flatten().map(|slot| slot.named.len() * 8 + 56).sum::<usize>()
            + self.places.capacity() * 24
            + lists.iter().map(|postings| postings.bytes()).sum::<usize>()
            + self.titles.bytes()
    }

    #[expect(clippy::cast_possible_truncation, reason = "a partition has far fewer than 2^32 chunks")]
    fn pack(seq: Seq, hasher: NameHasher, nodes: Vec<Arc<Node>>) -> Self {
        let of = |keys: fn(&Node) -> Vec<u64>| {
            let pairs = nodes.iter().enumerate();
            pairs.flat_map(|(at, node)| keys(node).into_iter().map(move |key| (key, at as u32))).collect()
        };
        let members = Postings::pack(of(|node| node.groups.iter().map(|group| group.id).collect()));
        let names = Postings::pack(of(|node| node.names.to_vec()));
        let concepts = Postings::pack(of(|node| node.concepts.to_vec()));
        let titles = Titles::pack(nodes.iter().flat_map(|node| node.groups.iter().copied()));
        let places = nodes.iter().enumerate().map(|(at, node)| (node.chunk, at as u32)).collect();
        let node_bytes = nodes.iter().map(|node| node.bytes()).sum();
        let slots: Vec<Option<Slot>> =
            nodes.into_iter().map(|node| Some(Slot { named: link(&titles, &node).into(), node })).collect();
        let mut naming = Vec::new();
        for (at, slot) in slots.iter().enumerate() {
            naming.extend(slot.iter().flat_map(|slot| slot.named.iter().map(|&title| (title, at as u32))));
        }
        let named_by = Postings::pack(naming);
        Self {
            seq,
            hasher,
            slots,
            places,
            titles,
            members,
            namers: named_by,
            names,
            concepts,
            partial: None,
            unpacked: 0,
            node_bytes,
        }
    }

    /// Takes a chunk out; `touched` learns of titles that may be gone, and whether they were there before.
    fn remove(&mut self, chunk: ChunkId, touched: &mut KeyMap<u64, (Group, bool)>) {
        let Some(at) = self.places.remove(&chunk) else { return };
        let Some(Slot { node, named }) = self.slots[at as usize].take() else { return };
        for group in &node.groups {
            touched.entry(group.title).or_insert((*group, self.titles.has(group.title)));
            self.members.remove(group.id, at);
            if self.members.get(group.id).is_empty() {
                self.titles.remove(group);
            }
        }
        node.names.iter().for_each(|&key| self.names.remove(key, at));
        node.concepts.iter().for_each(|&key| self.concepts.remove(key, at));
        named.iter().for_each(|&title| self.namers.remove(title, at));
        self.node_bytes -= node.bytes();
        self.unpacked += 1;
    }

    /// Puts a chunk in, without its links; returns its place.
    #[expect(clippy::cast_possible_truncation, reason = "a partition has far fewer than 2^32 chunks")]
    fn insert(&mut self, node: Arc<Node>, touched: &mut KeyMap<u64, (Group, bool)>) -> u32 {
        let at = self.slots.len() as u32;
        for group in &node.groups {
            touched.entry(group.title).or_insert((*group, self.titles.has(group.title)));
            self.members.insert(group.id, at);
            self.titles.insert(group);
        }
        node.names.iter().for_each(|&key| self.names.insert(key, at));
        node.concepts.iter().for_each(|&key| self.concepts.insert(key, at));
        self.places.insert(node.chunk, at);
        self.node_bytes += node.bytes();
        self.unpacked += 1;
        self.slots.push(Some(Slot { node, named: Arc::new([]) }));
        at
    }

    /// Finds anew which titles are named: by `fresh` chunks, by those that named a title which is gone, and by those that name a new one.
    #[expect(clippy::cast_possible_truncation, reason = "a partition has far fewer than 2^32 chunks")]
    fn relink(&mut self, fresh: Vec<u32>, touched: &KeyMap<u64, (Group, bool)>) {
        let mut stale = fresh;
        let mut new = Vec::new();
        for (group, before) in touched.values() {
            match (*before, self.titles.has(group.title)) {
                (true, false) => stale.extend(self.namers.get(group.title)),
                (false, true) => new.push(*group),
                _ => {}
            }
        }
        if !new.is_empty() {
            let new = Titles::pack(new.into_iter());
            let slots = self.slots.iter().enumerate();
            stale.extend(
                slots
                    .filter(|(_, slot)| slot.as_ref().is_some_and(|slot| new.any_in(&slot.node.words)))
                    .map(|(at, _)| at as u32),
            );
        }
        stale.sort_unstable();
        stale.dedup();
        for at in stale {
            let Some(slot) = &mut self.slots[at as usize] else { continue };
            let named = link(&self.titles, &slot.node);
            for &title in slot.named.iter().filter(|title| !named.contains(title)) {
                self.namers.remove(title, at);
            }
            for &title in named.iter().filter(|title| !slot.named.contains(title)) {
                self.namers.insert(title, at);
            }
            slot.named = named.into();
        }
    }

    /// The place of a chunk that is in the graph.
    fn place(&self, chunk: ChunkId) -> Option<u32> {
        let place = self.places.get(&chunk).copied();
        if let (None, Some(partial)) = (place, &self.partial) {
            partial.ask_for(chunk);
        }
        place
    }

    fn slot(&self, at: u32) -> Option<&Slot> {
        let slot = self.slots[at as usize].as_ref();
        if let (None, Some(partial)) = (slot, &self.partial) {
            partial.ask_at(at);
        }
        slot
    }

    fn node(&self, at: u32) -> Option<&Node> {
        self.slot(at).map(|slot| slot.node.as_ref())
    }

    /// The chunk at this place.
    fn chunk_at(&self, at: u32) -> Option<ChunkId> {
        match &self.partial {
            Some(partial) => partial.chunk_at(at),
            None => self.node(at).map(|node| node.chunk),
        }
    }

    /// Chunks that mention an entity which is a name: all of them, as long as they are few.
    fn sharing(&self, entity: u64) -> &[u32] {
        self.partial.as_ref().map_or(&self.names, |partial| &partial.rare).get(entity)
    }

    /// Whether the chunk at this place belongs to a group.
    fn is_member(&self, at: u32, group: u64) -> bool {
        self.node(at).is_some_and(|node| node.groups.iter().any(|own| own.id == group))
    }
}

#[cfg(test)]
mod tests;
