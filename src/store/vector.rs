//! The trait of vector indexes, and what goes in and comes out.

use async_trait::async_trait;

use super::error::StoreError;
use super::partition::Partition;
use crate::domain::Seq;
use crate::domain::ids::{ChunkId, NamespaceId, TenantId};

/// A sparse vector: the BM25 term part of a text, or the inverse document frequencies of a question's terms.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Terms {
    /// Hashed terms, ascending, each below 10^9.
    pub indices: Vec<u32>,
    /// One weight for each term.
    pub values: Vec<f32>,
}

/// A chunk as an index knows it: no text.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// The chunk.
    pub chunk: ChunkId,
    /// The version of its document.
    pub version: i64,
    /// `[f32; dimension]`, unit length.
    pub embedding: Vec<f32>,
    /// The BM25 term part.
    pub terms: Terms,
}

/// A found chunk, with the tag that its index entry carries.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// The tenant that the index entry was written for.
    pub tenant: TenantId,
    /// The namespace that the index entry was written for.
    pub namespace: NamespaceId,
    /// The chunk.
    pub chunk: ChunkId,
    /// The version of its document.
    pub version: i64,
    /// Cosine, or the BM25 sum.
    pub score: f32,
}

/// What to search for: the nearest by each vector that is given.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorQuery {
    /// `[f32; dimension]`, unit length.
    pub embedding: Option<Vec<f32>>,
    /// The question's terms with their weights.
    pub terms: Option<Terms>,
    /// At most this many hits of each kind.
    pub limit: usize,
}

/// The hits of one search.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Found {
    /// By cosine, best first.
    pub dense: Vec<Hit>,
    /// By BM25, best first. Chunks that share no term are absent.
    pub lexical: Vec<Hit>,
    /// Everything up to here is in the index.
    pub applied: Seq,
}

/// A point as the index tags it, without its vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The tenant that it was written for.
    pub tenant: TenantId,
    /// The namespace that it was written for.
    pub namespace: NamespaceId,
    /// The chunk.
    pub chunk: ChunkId,
    /// The version of its document.
    pub version: i64,
}

/// A page of what an index holds, ordered by chunk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entries {
    /// The points.
    pub list: Vec<Entry>,
    /// Where the next page begins; `None`: this is the last.
    pub next: Option<ChunkId>,
}

/// How far an index has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Everything up to here is found by searches.
    pub applied: Seq,
    /// Everything up to here survives a crash.
    pub durable: Seq,
}

/// An index of vectors, one partition at a time.
///
/// Order: the caller applies changes of one partition in the order of their [`Seq`], one at a time, beginning
/// behind [`Position::applied`].
/// Idempotence: applying the same changes again changes nothing; so a late upsert cannot bring back what a
/// later change deleted.
/// Visibility: what `apply` returned for is found by the next `search`; it survives a crash after `flush`.
/// After a failure: the index may have gone back to what was durable. Whoever applies asks for its `position`
/// and goes on from there, or rebuilds it when there is none; until then `apply` answers `Conflict`.
/// Isolation: a search of one partition never returns a point of another.
/// Removal: identifiers are never reused, so a removed partition does not come back.
#[async_trait]
pub trait VectorIndex: Send + Sync {
    /// The back end's name, for answers and logs.
    fn name(&self) -> &'static str;

    /// The nearest chunks; `None` when the partition has no usable index here. Equal scores are ordered by id.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout`, `Invalid` (another dimension than the index has, terms out of order), or
    /// `Damaged` (the index was put away and is to be rebuilt).
    async fn search(&self, partition: &Partition, query: &VectorQuery) -> Result<Option<Found>, StoreError>;

    /// How far the index has come; `None` when there is none. For whoever applies: asking is how it learns
    /// that the index went back. Others read [`Found::applied`].
    ///
    /// # Errors
    /// As [`VectorIndex::search`].
    async fn position(&self, partition: &Partition) -> Result<Option<Position>, StoreError>;

    /// A page of everything that the index holds, whoever it was written for, from this chunk on; `None` when there
    /// is no index. Pages fit together as long as nothing is applied between them.
    ///
    /// # Errors
    /// As [`VectorIndex::search`].
    async fn entries(
        &self,
        partition: &Partition,
        from: Option<ChunkId>,
        limit: usize,
    ) -> Result<Option<Entries>, StoreError>;

    /// Adds, replaces and removes points; a chunk that is in both ends up removed. Afterwards everything
    /// through `through` is applied. Creates the index when there is none; the first point settles its
    /// dimension. Does nothing when `through` is applied already.
    ///
    /// # Errors
    /// `Damaged` when the index cannot be written; it is to be rebuilt. `Conflict` when the index went back
    /// (ask for its position) or the partition was removed. `Invalid` for malformed vectors, with nothing
    /// changed. `Unavailable`.
    async fn apply(
        &self,
        partition: &Partition,
        upserts: Vec<Point>,
        deletes: Vec<ChunkId>,
        through: Seq,
    ) -> Result<(), StoreError>;

    /// Makes durable what was applied, and returns up to where: 0 when there is no index. Now and then it
    /// reorganises the index, which takes seconds for each ten thousand points; searches go on.
    ///
    /// # Errors
    /// `Damaged` or `Unavailable`; what was durable before stays so.
    async fn flush(&self, partition: &Partition) -> Result<Seq, StoreError>;

    /// Begins a new generation beside the one that is served. Changes that are applied meanwhile are not
    /// carried over: they lie behind the `through` it is finished with, and are applied again.
    ///
    /// # Errors
    /// `Unavailable` when no room can be had for it; `Conflict` when another is being written or the
    /// partition was removed.
    async fn rebuild(&self, partition: &Partition) -> Result<Box<dyn Rebuild>, StoreError>;

    /// Whether the index should be rewritten, since its files have outgrown its data or have held what was
    /// deleted for long.
    async fn wants_rebuild(&self, partition: &Partition) -> bool;

    /// Tenants of which there are files here, in no order.
    ///
    /// # Errors
    /// `Unavailable` when the files cannot be listed.
    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError>;

    /// Partitions of a tenant of which there are files here, in no order: those with an index among them, and
    /// what a crash may have left of others.
    ///
    /// # Errors
    /// `Unavailable` when the files cannot be listed.
    async fn partitions(&self, tenant: TenantId) -> Result<Vec<Partition>, StoreError>;

    /// Removes the partition's index, its files included. Removing what is not there is no error.
    ///
    /// # Errors
    /// `Unavailable` when files cannot be removed.
    async fn remove(&self, partition: &Partition) -> Result<(), StoreError>;

    /// Removes the index of a model that a namespace has left, which may come back: as [`VectorIndex::remove`] where
    /// that does not forbid it.
    ///
    /// # Errors
    /// `Unavailable` when files cannot be removed.
    async fn retire(&self, partition: &Partition) -> Result<(), StoreError> {
        self.remove(partition).await
    }
}

/// A generation being written. Dropped without [`Rebuild::finish`], it leaves nothing behind.
#[async_trait]
pub trait Rebuild: Send {
    /// Whether points are to be added at all: not where the system of record holds them itself.
    fn wants_points(&self) -> bool {
        true
    }

    /// Adds a page of points. After a failure the generation is lost.
    ///
    /// # Errors
    /// `Unavailable`, `Damaged`, or `Conflict` when the partition was removed; `Invalid` for malformed vectors,
    /// with nothing changed.
    async fn add(&mut self, points: Vec<Point>) -> Result<(), StoreError>;

    /// Makes the generation durable at `through`, switches searches to it and deletes the one before.
    ///
    /// # Errors
    /// `Unavailable`, `Damaged`, or `Conflict` when the partition was removed; the generation before goes on
    /// being served.
    async fn finish(self: Box<Self>, through: Seq) -> Result<(), StoreError>;
}
