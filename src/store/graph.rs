//! The trait of graph indexes: which chunks mention which entities and name which titles, by ids and keyed hashes.
//!
//! An index answers where a graph leads from what is asked; what is near a question is reckoned by whoever asks, by the
//! same code as over a graph in memory.
//!
//! **Invariant:** ids and keyed hashes only: no text, no name, no embedding.

mod bring;
mod contents;

use std::collections::HashMap;

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use uuid::Uuid;

pub use self::bring::{WholeGraph, bring};
pub use self::contents::{GraphContents, HeldChunk, HeldKey};

use super::error::StoreError;
use super::handles::{Corpus, Stores, TenantReader};
use super::partition::Partition;
use crate::domain::Seq;
use crate::domain::ids::{ChunkId, IdSource, NamespaceId, TenantId};

/// As whom the index of graphs follows the history: it is one for all servers. A node's name has no colon.
pub const GRAPH_CONSUMER: &str = "graph:index";

/// A chunk with everything that it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkedChunk {
    /// The chunk.
    pub chunk: ChunkId,
    /// Key of its document's title among the names.
    pub own: Option<u64>,
    /// Entities that it mentions and that are names, ascending.
    pub names: Vec<u64>,
    /// Entities that it mentions and that are concepts, ascending.
    pub concepts: Vec<u64>,
    /// What it belongs to: its document under each of its titles, and its section; ascending by group.
    pub groups: Vec<LinkedGroup>,
    /// Titles that its text names, ascending.
    pub named: Vec<u64>,
}

/// The chunks that a title stands for, in one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkedGroup {
    /// Hash of title and document.
    pub group: u64,
    /// Hash of the title's words.
    pub title: u64,
}

impl LinkedChunk {
    /// A fingerprint of everything but the chunk's id: two that differ lead elsewhere.
    #[must_use]
    pub fn mark(&self) -> i64 {
        let mut digest = Sha256::new();
        let mut add = |keys: &mut dyn Iterator<Item = u64>| {
            for key in keys {
                digest.update(key.to_le_bytes());
            }
            digest.update(b"/");
        };
        add(&mut self.own.into_iter());
        add(&mut self.names.iter().copied());
        add(&mut self.concepts.iter().copied());
        add(&mut self.groups.iter().flat_map(|group| [group.group, group.title]));
        add(&mut self.named.iter().copied());
        let mut mark = [0; 8];
        mark.copy_from_slice(&digest.finalize()[..8]);
        i64::from_le_bytes(mark)
    }
}

/// How far a partition's graph has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphHead {
    /// Everything up to here is in it; `None` while a change is only in part.
    pub seq: Option<Seq>,
    /// Its chunks.
    pub chunks: u64,
    /// Another one after each change; never the same twice.
    pub token: Uuid,
}

/// What is asked of an index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GraphWanted {
    /// Chunks, with what they lead to.
    pub chunks: Vec<ChunkId>,
    /// Titles, for their groups.
    pub titles: Vec<u64>,
    /// Groups, for their chunks.
    pub members: Vec<u64>,
    /// Titles, for the chunks that name them.
    pub namers: Vec<u64>,
    /// Entities, for a few of the chunks that mention them as a name.
    pub rare: Vec<u64>,
    /// Entities, for all chunks that mention them.
    pub mentions: Vec<u64>,
}

impl GraphWanted {
    /// Whether nothing is asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How long lists become; what is longer is cut, and nobody asks for more of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphBounds {
    /// Groups of a title.
    pub groups: usize,
    /// Chunks that name a title.
    pub namers: usize,
    /// Chunks that mention a rare entity.
    pub rare: usize,
}

/// A list under a key.
pub type Listed<T> = (u64, Vec<T>);

/// What an index answers. What is not there is absent. Lists are in no order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GraphLoaded {
    /// Chunks, with what they lead to.
    pub chunks: Vec<LinkedChunk>,
    /// Groups of titles.
    pub titles: Vec<Listed<u64>>,
    /// Chunks of groups.
    pub members: Vec<Listed<ChunkId>>,
    /// Chunks that name titles.
    pub namers: Vec<Listed<ChunkId>>,
    /// Chunks that mention entities as a name, a few of each.
    pub rare: Vec<Listed<ChunkId>>,
    /// Chunks that mention entities: as a name, as a concept.
    pub mentions: Vec<Listed<Mention>>,
}

/// A chunk that mentions an entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mention {
    /// The chunk.
    pub chunk: ChunkId,
    /// Whether as a name.
    pub name: bool,
    /// Whether as a concept.
    pub concept: bool,
}

/// What leads from the graph that an index holds to the one of `seq`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphChange {
    /// The token of the graph that it leads on from.
    pub from: Uuid,
    /// The token of the graph that it leads to.
    pub to: Uuid,
    /// Chunks that go.
    pub removed: Vec<ChunkId>,
    /// Chunks that come, or come anew.
    pub added: Vec<LinkedChunk>,
    /// What is complete behind it; `None` when more is to follow.
    pub seq: Option<Seq>,
    /// Chunks that there are behind it.
    pub chunks: u64,
}

/// What becomes of changes while everything of a graph is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// They go on; the reading is for nothing then.
    GoOn,
    /// They wait, as long as the reading takes.
    Wait,
}

/// An index of graphs, one partition at a time.
///
/// Order: a change leads on from the head that it names, and from no other: applied late, twice or beside another one,
/// it is refused, and nothing of it is done. Whoever applies asks for the head and for what is there, and begins anew.
/// Visibility: all of an acknowledged change is found by the next call, and survives a crash; of one that is under way, a
/// part may be.
/// Isolation: nothing that was written for another partition is returned, or led over.
/// Removal: behind `remove` there is nothing of the partition, and changes that come late are refused.
#[async_trait]
pub trait GraphIndex: Send + Sync {
    /// The back end's name, for answers and logs.
    fn name(&self) -> &'static str;

    /// Whether it is not called at this moment, since it failed several times in a row.
    fn is_left_alone(&self) -> bool;

    /// How far a partition's graph has come; `None` when there is none.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; `Foreign` when what comes back is another partition's.
    async fn head(&self, partition: &Partition) -> Result<Option<GraphHead>, StoreError>;

    /// Where the graph leads from what is asked, in at most one round trip for each field that is not empty.
    ///
    /// # Errors
    /// As [`GraphIndex::head`]; `Damaged` when what is there cannot be read.
    async fn load(
        &self,
        partition: &Partition,
        wanted: &GraphWanted,
        bounds: GraphBounds,
    ) -> Result<GraphLoaded, StoreError>;

    /// The entities that are mentioned most, at most `limit`, each with how often; equal ones by key.
    ///
    /// # Errors
    /// As [`GraphIndex::head`].
    async fn top(&self, partition: &Partition, limit: usize) -> Result<Vec<(u64, u64)>, StoreError>;

    /// Every chunk that is there, with its [`LinkedChunk::mark`].
    ///
    /// # Errors
    /// As [`GraphIndex::head`].
    async fn marks(&self, partition: &Partition) -> Result<HashMap<ChunkId, i64>, StoreError>;

    /// The head, made with this token when there is none: an empty graph of nothing.
    ///
    /// # Errors
    /// As [`GraphIndex::head`].
    async fn begin(&self, partition: &Partition, token: Uuid) -> Result<GraphHead, StoreError>;

    /// Applies a change.
    ///
    /// # Errors
    /// `Conflict` when the head is another than it leads on from; `Unavailable` or `Timeout`, when it is not known
    /// whether it was applied.
    async fn apply(&self, partition: &Partition, change: &GraphChange) -> Result<(), StoreError>;

    /// Everything that is there of the graph with this token, while whoever would change it goes on or waits.
    ///
    /// # Errors
    /// As [`GraphIndex::head`]; `Conflict` when the head had another token before it was read, or has one behind it;
    /// `Damaged` when what is there cannot be read.
    async fn contents(
        &self,
        partition: &Partition,
        token: Uuid,
        writers: Writers,
    ) -> Result<GraphContents, StoreError>;

    /// Relations and nodes in and around a partition that are not wholly its own. It looks at everything there is of it,
    /// and takes its time: nobody's question waits behind it.
    ///
    /// # Errors
    /// As [`GraphIndex::head`].
    async fn strays(&self, partition: &Partition) -> Result<u64, StoreError>;

    /// Removes a namespace's graph, with what is in it and is not wholly its own; returns how many nodes there were.
    /// Removing what is not there is no error.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    async fn remove(&self, tenant: TenantId, namespace: NamespaceId) -> Result<u64, StoreError>;

    /// Tenants of which there is anything, in no order.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError>;

    /// A tenant's namespaces of which there is anything, in no order.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; `Foreign` when what comes back is another tenant's.
    async fn namespaces(&self, tenant: TenantId) -> Result<Vec<NamespaceId>, StoreError>;
}

impl Stores {
    /// The name of the graph index in use, if there is one.
    #[must_use]
    pub fn graph_name(&self) -> Option<&'static str> {
        self.inner.graph.as_deref().map(GraphIndex::name)
    }

    /// As [`GraphIndex::is_left_alone`]; false without an index.
    #[must_use]
    pub fn graph_is_left_alone(&self) -> bool {
        self.inner.graph.as_deref().is_some_and(GraphIndex::is_left_alone)
    }
}

impl TenantReader {
    /// The name of the graph index in use, if there is one.
    #[must_use]
    pub fn graph_name(&self) -> Option<&'static str> {
        self.stores.graph_name()
    }
}

impl Corpus {
    /// The index that holds this corpus' graph; `None`: graphs are in memory alone.
    fn graph(&self) -> Option<&dyn GraphIndex> {
        self.reader.stores.inner.graph.as_deref()
    }

    /// Whether there is an index of graphs.
    #[must_use]
    pub fn has_graph_index(&self) -> bool {
        self.graph().is_some()
    }

    /// As [`GraphIndex::head`]; `None` without an index too.
    ///
    /// # Errors
    /// The index's own.
    pub async fn graph_head(&self) -> Result<Option<GraphHead>, StoreError> {
        match self.graph() {
            Some(graph) => graph.head(&self.partition).await,
            None => Ok(None),
        }
    }

    /// As [`GraphIndex::load`]; nothing without an index.
    ///
    /// # Errors
    /// The index's own.
    pub async fn graph_load(
        &self,
        wanted: &GraphWanted,
        bounds: GraphBounds,
    ) -> Result<GraphLoaded, StoreError> {
        match self.graph() {
            Some(graph) => graph.load(&self.partition, wanted, bounds).await,
            None => Ok(GraphLoaded::default()),
        }
    }

    /// As [`GraphIndex::top`]; nothing without an index.
    ///
    /// # Errors
    /// The index's own.
    pub async fn graph_top(&self, limit: usize) -> Result<Vec<(u64, u64)>, StoreError> {
        match self.graph() {
            Some(graph) => graph.top(&self.partition, limit).await,
            None => Ok(Vec::new()),
        }
    }

    /// As [`GraphIndex::begin`]; `None` without an index.
    ///
    /// # Errors
    /// The index's own.
    pub async fn graph_begin(&self, token: Uuid) -> Result<Option<GraphHead>, StoreError> {
        match self.graph() {
            Some(graph) => graph.begin(&self.partition, token).await.map(Some),
            None => Ok(None),
        }
    }

    /// As [`bring`]; nothing without an index, where the token is the head's.
    ///
    /// # Errors
    /// The index's own.
    pub async fn graph_bring(
        &self,
        head: GraphHead,
        whole: &WholeGraph,
        around: (usize, &dyn IdSource),
    ) -> Result<Uuid, StoreError> {
        match self.graph() {
            Some(graph) => bring(graph, &self.partition, head, whole, around).await,
            None => Ok(head.token),
        }
    }

    /// As [`GraphIndex::strays`]; none without an index.
    ///
    /// # Errors
    /// The index's own.
    pub async fn graph_strays(&self) -> Result<u64, StoreError> {
        match self.graph() {
            Some(graph) => graph.strays(&self.partition).await,
            None => Ok(0),
        }
    }

    /// As [`GraphIndex::remove`]; nothing without an index.
    ///
    /// # Errors
    /// The index's own.
    pub async fn graph_remove(&self) -> Result<(), StoreError> {
        match self.graph() {
            Some(graph) => graph.remove(self.partition.tenant(), self.partition.namespace()).await.map(drop),
            None => Ok(()),
        }
    }

    /// Registers that the index of graphs has everything up to here.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`.
    pub async fn graph_pass(&self, seq: Seq) -> Result<(), StoreError> {
        self.consumer_pass(GRAPH_CONSUMER, seq).await
    }
}
