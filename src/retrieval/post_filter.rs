//! The last line: every hit against its partition's address, then against the record.
//!
//! A hit whose tag names another partition is *foreign*: the request fails and an alarm is raised. A hit
//! whose row is gone or of another version is *stale*: trimmed, counted, refilled. A wrong row with a right
//! tag cannot be seen here; row-level security is for that.

use std::collections::HashMap;

use super::engine::{OnForeignRow, RankedChunk, RetrievalError};
use crate::domain::ids::ChunkId;
use crate::store::postgres::chunks::ChunkRow;
use crate::store::vector::{Found, Hit};
use crate::store::{Corpus, Partition, StoreError};

/// What the filter took out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Trimmed {
    /// Hits of another partition.
    pub(super) foreign: usize,
    /// Hits whose row is gone or of another version.
    pub(super) stale: usize,
}

/// Takes foreign hits out, or fails on the first.
pub(super) fn own_hits(
    partition: &Partition,
    found: &mut Found,
    policy: OnForeignRow,
) -> Result<usize, RetrievalError> {
    let own = |hit: &Hit| hit.tenant == partition.tenant() && hit.namespace == partition.namespace();
    let foreign = found.dense.iter().chain(&found.lexical).filter(|hit| !own(hit)).count();
    if foreign > 0 {
        if policy == OnForeignRow::Fail {
            return Err(RetrievalError::ForeignRow { count: foreign });
        }
        found.dense.retain(own);
        found.lexical.retain(own);
    }
    Ok(foreign)
}

/// The candidates whose rows are read first.
pub(super) fn first_page(candidates: &[(ChunkId, f32)], wanted: usize) -> Vec<ChunkId> {
    candidates.iter().take(wanted).map(|(chunk, _)| *chunk).collect()
}

/// Reads the rows of the best candidates until `wanted` are there or none is left; `first` are those of the first
/// page, where they were read already.
#[tracing::instrument(name = "retrieval.rows", skip_all, fields(tenant = %corpus.partition().tenant()))]
pub(super) async fn rows(
    corpus: &Corpus,
    candidates: &[(ChunkId, f32)],
    versions: &HashMap<ChunkId, i64>,
    wanted: usize,
    mut first: Option<Vec<ChunkRow>>,
) -> Result<(Vec<RankedChunk>, usize), StoreError> {
    let mut ranked = Vec::with_capacity(wanted);
    let mut stale = 0;
    let mut rest = candidates;
    while ranked.len() < wanted && !rest.is_empty() {
        let (page, later) = rest.split_at((wanted - ranked.len()).min(rest.len()));
        rest = later;
        let read = match first.take() {
            Some(read) => read,
            None => corpus.chunk_list(&first_page(page, page.len())).await?,
        };
        let mut rows: HashMap<ChunkId, ChunkRow> = read.into_iter().map(|row| (row.chunk, row)).collect();
        for (chunk, score) in page {
            let row = rows.remove(chunk);
            match row.filter(|row| versions.get(chunk).is_none_or(|version| *version == row.version)) {
                Some(row) => ranked.push(RankedChunk { row, score: *score }),
                None => stale += 1,
            }
        }
    }
    Ok((ranked, stale))
}
