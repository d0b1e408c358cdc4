//! Everything that is there of a partition, read page by page between two looks at its head.
//!
//! Each change leaves another token in the head, so that equal tokens before and behind mean that nothing changed
//! between. A large graph takes a while to read, so whoever writes waits for it only when that is asked for.

use neo4rs::Row;
use uuid::Uuid;

use super::client::{Place, Statement, Transaction};
use super::read::chunk;
use super::{BACKEND, Neo4jGraph, about, column, cypher, own};
use crate::store::error::{ErrorKind, StoreError};
use crate::store::graph::{GraphContents, GraphHead, GraphIndex as _, HeldChunk, HeldKey, Writers};
use crate::store::partition::Partition;

const OPERATION: &str = "graph.contents";

/// Chunks that are read at once, with all that they lead to.
const CHUNKS: i64 = 1_000;

/// Keys that are read at once.
const KEYS: i64 = 10_000;

impl Neo4jGraph {
    /// As [`GraphIndex::contents`](crate::store::graph::GraphIndex::contents).
    pub(super) async fn read_contents(
        &self,
        partition: &Partition,
        token: Uuid,
        writers: Writers,
    ) -> Result<GraphContents, StoreError> {
        // Gives up the lock when it is dropped.
        let _held = match writers {
            Writers::GoOn => None,
            Writers::Wait => Some(self.hold(partition).await?),
        };
        let head = self.head_at(partition, token).await?;
        let chunks = self.chunks(partition).await?;
        let entities = self.keys(partition, cypher::ENTITY_KEYS).await?;
        let groups = self.keys(partition, cypher::GROUP_KEYS).await?;
        let titles = self.keys(partition, cypher::TITLE_KEYS).await?;
        let nodes = self.nodes(partition).await?;
        let foreign = self.strays(partition).await?;
        self.head_at(partition, token).await?;
        let keyed: u64 = [&entities, &groups, &titles].into_iter().flatten().map(|held| held.copies).sum();
        // And the head.
        let others = nodes.saturating_sub(chunks.len() as u64 + keyed + 1);
        Ok(GraphContents { counted: head.chunks, chunks, entities, groups, titles, others, foreign })
    }

    /// Takes the lock under which changes are made. Not of the tenant's share, which may be one connection: what is read
    /// meanwhile needs another one.
    async fn hold(&self, partition: &Partition) -> Result<(Transaction, Place), StoreError> {
        let place = self.client.place(OPERATION, None).await?;
        let lock = async {
            let mut transaction = place.begin(OPERATION).await?;
            transaction.run(about(cypher::LOCK, partition)).await?;
            Ok(transaction)
        };
        let transaction = self.client.writing().once(OPERATION, Some(partition.tenant()), lock).await?;
        Ok((transaction, place))
    }

    async fn head_at(&self, partition: &Partition, token: Uuid) -> Result<GraphHead, StoreError> {
        let head = self.head(partition).await?.filter(|head| head.token == token);
        let changed = || StoreError::new(ErrorKind::Conflict, BACKEND, OPERATION, "the graph changed");
        head.ok_or_else(changed)
    }

    async fn chunks(&self, partition: &Partition) -> Result<Vec<HeldChunk>, StoreError> {
        let (mut chunks, mut after) = (Vec::new(), String::new());
        loop {
            let page = about(cypher::CONTENTS, partition).with("after", after.as_str()).with("most", CHUNKS);
            let rows = self.scan(partition, page).await?;
            let Some(last) = rows.last() else { return Ok(chunks) };
            after = column(last, "key", OPERATION)?;
            for row in &rows {
                let (mark, relations): (i64, i64) =
                    (column(row, "mark", OPERATION)?, column(row, "relations", OPERATION)?);
                let relations = relations.cast_unsigned();
                chunks.push(HeldChunk { linked: chunk(row)?, mark, relations });
            }
        }
    }

    async fn keys(&self, partition: &Partition, template: &str) -> Result<Vec<HeldKey>, StoreError> {
        let (mut keys, mut from) = (Vec::new(), Some(i64::MIN));
        while let Some(first) = from {
            let page = about(template, partition).with("from", first).with("most", KEYS);
            let rows = self.scan(partition, page).await?;
            from = None;
            for row in &rows {
                let (key, copies): (i64, i64) =
                    (column(row, "key", OPERATION)?, column(row, "copies", OPERATION)?);
                keys.push(HeldKey { key: key.cast_unsigned(), copies: copies.cast_unsigned() });
                from = key.checked_add(1);
            }
        }
        Ok(keys)
    }

    async fn nodes(&self, partition: &Partition) -> Result<u64, StoreError> {
        let statement = about(cypher::NODES, partition);
        let rows = self.client.scan(OPERATION, partition.tenant(), &statement).await?;
        let number = rows.first().map_or(Ok(0), |row| column::<i64>(row, "number", OPERATION))?;
        Ok(number.cast_unsigned())
    }

    async fn scan(&self, partition: &Partition, statement: Statement) -> Result<Vec<Row>, StoreError> {
        let rows = self.client.scan(OPERATION, partition.tenant(), &statement).await?;
        for row in &rows {
            own(row, partition, OPERATION)?;
        }
        Ok(rows)
    }
}
