//! What leads out of a partition, looked for page by page, so that no call walks as many relations as a large partition
//! has; and nodes that are only half its own, of which there should be none.

use neo4rs::Row;
use serde::de::DeserializeOwned;

use super::client::{Client, Statement};
use super::{about, column, cypher};
use crate::store::error::StoreError;
use crate::store::partition::Partition;

const OPERATION: &str = "graph.strays";

/// Nodes whose relations are looked at in one call.
const PAGE: i64 = 1_000;

/// As [`GraphIndex::strays`](crate::store::graph::GraphIndex::strays).
pub(super) async fn count(client: &Client, partition: &Partition) -> Result<u64, StoreError> {
    let mut strays = 0;
    let mut after = Some(String::new());
    while let Some(last) = after {
        let page = about(cypher::STRAYS_OF_CHUNKS, partition).with("after", last);
        after = looked(client, partition, page, &mut strays).await?;
    }
    for template in [cypher::STRAYS_OF_ENTITIES, cypher::STRAYS_OF_GROUPS, cypher::STRAYS_OF_TITLES] {
        let mut from = Some(i64::MIN);
        while let Some(first) = from {
            let page = about(template, partition).with("from", first);
            let last: Option<i64> = looked(client, partition, page, &mut strays).await?;
            from = last.and_then(|last| last.checked_add(1));
        }
    }
    for template in [cypher::STRAYS_OF_OTHERS, cypher::LODGERS, cypher::EXILES] {
        for row in &client.scan(OPERATION, partition.tenant(), &about(template, partition)).await? {
            strays += told(row)?;
        }
    }
    Ok(strays)
}

/// Adds what a page tells, and returns the last key that it looked at; `None`: there was none.
async fn looked<K: DeserializeOwned>(
    client: &Client,
    partition: &Partition,
    page: Statement,
    strays: &mut u64,
) -> Result<Option<K>, StoreError> {
    let rows = client.scan(OPERATION, partition.tenant(), &page.with("most", PAGE)).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    *strays += told(row)?;
    column(row, "last", OPERATION)
}

fn told(row: &Row) -> Result<u64, StoreError> {
    column::<i64>(row, "strays", OPERATION).map(i64::cast_unsigned)
}
