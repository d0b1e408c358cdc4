//! Brings what an index holds of a partition to the graph as it is: what differs is written, and nothing else.
//!
//! An index may show a part of a change while that is being committed. So a change of its own says before that the graph
//! is not complete, and another one behind it that it is: whoever sees something of what is between sees that.
//!
//! **Invariant:** each transaction leads on from the one before, and the last alone says that the graph is complete.
//! **Invariant:** while nodes are written, the graph is not said to be complete.

use std::collections::HashMap;

use uuid::Uuid;

use super::{GraphChange, GraphHead, GraphIndex, LinkedChunk};
use crate::domain::Seq;
use crate::domain::ids::{ChunkId, IdSource};
use crate::store::error::StoreError;
use crate::store::partition::Partition;

/// A whole graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeGraph {
    /// Everything up to here is in it.
    pub seq: Seq,
    /// Its chunks, in no order.
    pub chunks: Vec<LinkedChunk>,
}

/// Writes what differs between `whole` and what the index holds behind `head`, `most` chunks in a transaction.
///
/// Returns the token of the graph that is there then.
///
/// # Errors
/// As [`GraphIndex::apply`]: `Conflict` when somebody else changed it since `head`. What was written stays, and is taken
/// into account by whoever begins anew.
pub async fn bring(
    index: &dyn GraphIndex,
    partition: &Partition,
    head: GraphHead,
    whole: &WholeGraph,
    (most, ids): (usize, &dyn IdSource),
) -> Result<Uuid, StoreError> {
    let (seq, chunks) = (whole.seq, whole.chunks.len() as u64);
    let marks = index.marks(partition).await?;
    let (mut removed, mut added) = differences(&whole.chunks, marks);
    let (most, mut from) = (most.max(1), head.token);
    let mut apply = async |removed, added, seq| {
        let to = ids.uuid();
        index.apply(partition, &GraphChange { from, to, removed, added, seq, chunks }).await?;
        from = to;
        Ok::<_, StoreError>(to)
    };
    let differs = !(removed.is_empty() && added.is_empty());
    if differs && head.seq.is_some() {
        apply(Vec::new(), Vec::new(), None).await?;
    }
    while !(removed.is_empty() && added.is_empty()) {
        let gone = removed.split_off(removed.len().saturating_sub(most));
        let come = added.split_off(added.len().saturating_sub(most));
        apply(gone, come, None).await?;
    }
    apply(Vec::new(), Vec::new(), Some(seq)).await
}

/// Chunks that the index has and the graph has not, and those that the index lacks or has otherwise.
fn differences(graph: &[LinkedChunk], mut marks: HashMap<ChunkId, i64>) -> (Vec<ChunkId>, Vec<LinkedChunk>) {
    let differs = |chunk: &&LinkedChunk| marks.remove(&chunk.chunk) != Some(chunk.mark());
    let added = graph.iter().filter(differs).cloned().collect();
    (marks.into_keys().collect(), added)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(n: u128, names: &[u64]) -> LinkedChunk {
        LinkedChunk {
            chunk: ChunkId(Uuid::from_u128(n)),
            own: None,
            names: names.to_vec(),
            concepts: Vec::new(),
            groups: Vec::new(),
            named: Vec::new(),
        }
    }

    #[test]
    fn what_is_gone_new_or_otherwise_differs_and_nothing_else() {
        let held = [chunk(1, &[1]), chunk(2, &[2]), chunk(3, &[3])];
        let marks = held.iter().map(|chunk| (chunk.chunk, chunk.mark())).collect();
        let now = [chunk(2, &[2]), chunk(3, &[3, 4]), chunk(5, &[5])];
        let (removed, added) = differences(&now, marks);
        assert_eq!(removed, [held[0].chunk]);
        assert_eq!(added, now[1..]);
    }

    #[test]
    fn an_entity_as_a_name_and_as_a_concept_are_told_apart() {
        let name = chunk(1, &[7]);
        let concept = LinkedChunk { names: Vec::new(), concepts: vec![7], ..name.clone() };
        let own = LinkedChunk { names: Vec::new(), own: Some(7), ..name.clone() };
        assert_ne!(name.mark(), concept.mark());
        assert_ne!(name.mark(), own.mark());
    }
}
