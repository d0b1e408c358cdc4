//! What is done to an index with the system of record at hand: made durable, written anew, forgotten.
//!
//! **Invariant:** history that an index still needs is kept: what is durable is registered after it is, and what a
//! new generation will need before its first page is read.
//! **Invariant:** an index that is not finished lags, to whoever looks at what is registered.

use async_trait::async_trait;

use super::StoreError;
use super::partition::Partition;
use super::vector::{Point, VectorIndex};
use crate::domain::Seq;
use crate::domain::ids::ChunkId;

/// What an index is kept by: one namespace of the system of record.
///
/// # Errors
/// Every method: `Unavailable` or `Timeout`.
#[async_trait]
pub trait Record: Send + Sync {
    /// Its history as it stands now; `None` when the namespace is there no more.
    async fn seq_now(&self) -> Result<Option<Seq>, StoreError>;
    /// Registers that a consumer needs the history after `seq`, though it may have passed it before.
    async fn consumer_hold(&self, consumer: &str, seq: Seq) -> Result<(), StoreError>;
    /// Registers how far a consumer has come, and forgets the history that all have passed.
    async fn consumer_pass(&self, consumer: &str, seq: Seq) -> Result<(), StoreError>;
    /// A page of all points, ordered by chunk.
    async fn point_page(&self, after: Option<ChunkId>, limit: i64) -> Result<Vec<Point>, StoreError>;
}

/// Makes durable what was applied, and registers up to where.
///
/// # Errors
/// As the index's and the record's.
pub async fn flush(
    record: &dyn Record,
    index: &dyn VectorIndex,
    partition: &Partition,
    consumer: &str,
) -> Result<Seq, StoreError> {
    let durable = index.flush(partition).await?;
    record.consumer_pass(consumer, durable).await?;
    Ok(durable)
}

/// Writes an index anew, and returns up to where: `opened`, the history that the caller's handle knows, when the
/// namespace is gone meanwhile.
///
/// # Errors
/// As the index's and the record's; what was served before goes on being served.
pub async fn rebuild(
    record: &dyn Record,
    index: &dyn VectorIndex,
    partition: &Partition,
    (consumer, page): (&str, i64),
    opened: Seq,
) -> Result<Seq, StoreError> {
    // As it stands now, not when the handle was opened: a point that went in between is in no page and would be in
    // no history that was kept.
    let from = record.seq_now().await?.unwrap_or(opened);
    // Registered first, so that the history from here on is kept until it was applied. One behind: broken off, by a
    // crash too, the index lags until it is begun again.
    record.consumer_hold(consumer, Seq((from.0 - 1).max(0))).await?;
    let mut rebuild = index.rebuild(partition).await?;
    let mut after = None;
    while rebuild.wants_points() {
        let points = record.point_page(after, page).await?;
        let Some(last) = points.last() else { break };
        after = Some(last.chunk);
        rebuild.add(points).await?;
    }
    rebuild.finish(from).await?;
    record.consumer_pass(consumer, from).await?;
    Ok(from)
}

/// Removes the index of a namespace that is there no more. `false`: it is there, and nothing was done.
///
/// # Errors
/// As the index's and the record's.
pub async fn forget(
    record: &dyn Record,
    index: &dyn VectorIndex,
    partition: &Partition,
) -> Result<bool, StoreError> {
    if record.seq_now().await?.is_some() {
        return Ok(false);
    }
    index.remove(partition).await?;
    Ok(true)
}
