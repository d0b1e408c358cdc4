//! [`GraphIndex`] on a Neo4j server: chunks, entities, titles and their groups as nodes under a label of the tenant.
//!
//! ```text
//! (Chunk)-[MENTIONS]->(Entity)   (Chunk)-[PART_OF]->(Group)-[TITLED]->(Title)   (Chunk)-[NAMES]->(Title)
//! ```
//!
//! Layers of isolation here: a label of the tenant on every node; tenant and namespace as properties of every node and
//! relation, asked at every hop; keys that are made under the namespace's own key; and the tag of what comes back.
//!
//! A change is one transaction. It locks the partition's head first, and is refused unless it leads on from the token
//! that it finds there; so one that comes late, twice, or from another server beside this one does nothing, and nothing
//! that was deleted comes back. Neo4j shows what is committed without a snapshot, nodes before their index entries: a head
//! may be read before all that was committed with it.
//!
//! **Invariant:** ids, keyed hashes and numbers only: no name, no text, no embedding.

mod client;
mod contents;
mod cypher;
mod read;
mod settings;
mod strays;
mod write;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use neo4rs::Row;
use serde::de::DeserializeOwned;
use uuid::Uuid;

pub use self::settings::Neo4jSettings;

use self::client::{Client, Statement};
use super::error::{ErrorKind, StoreError};
use super::graph::{
    GraphBounds, GraphChange, GraphContents, GraphHead, GraphIndex, GraphLoaded, GraphWanted, Writers,
};
use super::layers::Calls;
use super::partition::Partition;
use crate::domain::Seq;
use crate::domain::clock::Clock;
use crate::domain::ids::{ChunkId, NamespaceId, TenantId};

/// The name in errors, logs and metrics.
const BACKEND: &str = "neo4j";

/// Chunks whose marks are read at once.
const PAGE: i64 = 10_000;

/// Graphs in Neo4j. Clones are cheap and share the connections.
#[derive(Clone)]
pub struct Neo4jGraph {
    client: Client,
}

impl Neo4jGraph {
    /// Graphs in the Neo4j of these settings. It connects with the first call.
    #[must_use]
    pub fn new(settings: Neo4jSettings, calls: Arc<Calls>, clock: Arc<dyn Clock>) -> Self {
        Self { client: Client::new(settings, calls, clock) }
    }

    /// The rows of one statement about a partition, each of which is the partition's own.
    async fn rows(
        &self,
        operation: &'static str,
        partition: &Partition,
        statement: Statement,
    ) -> Result<Vec<Row>, StoreError> {
        let read = self.client.read(operation, Some(partition.tenant()), &[statement]).await?;
        let rows = read.into_iter().next().unwrap_or_default();
        for row in &rows {
            own(row, partition, operation)?;
        }
        Ok(rows)
    }

    /// Makes those constraints that are not there, as after Neo4j lost its data.
    async fn constrain(&self, operation: &'static str) -> Result<(), StoreError> {
        let place = self.client.place(operation, None).await?;
        let constrain = || async {
            let mut transaction = place.begin(operation).await?;
            for text in cypher::CONSTRAINTS {
                transaction.run(Statement::new(text.to_owned())).await?;
            }
            transaction.commit().await
        };
        self.client.writing().repeatable(operation, None, constrain).await
    }
}

/// A statement about a partition.
fn about(template: &str, partition: &Partition) -> Statement {
    cypher::about(template, partition.tenant(), partition.namespace())
}

/// A column of a row.
fn column<T: DeserializeOwned>(row: &Row, name: &str, operation: &'static str) -> Result<T, StoreError> {
    let unread = |_| {
        StoreError::new(ErrorKind::Damaged, BACKEND, operation, format!("the column {name} cannot be read"))
    };
    row.get(name).map_err(unread)
}

/// Refuses a row with the tag of another partition.
fn own(row: &Row, partition: &Partition, operation: &'static str) -> Result<(), StoreError> {
    let tenant: String = column(row, "tenant", operation)?;
    let namespace: String = column(row, "namespace", operation)?;
    if tenant == partition.tenant().to_string() && namespace == partition.namespace().to_string() {
        return Ok(());
    }
    Err(StoreError::new(ErrorKind::Foreign, BACKEND, operation, "a row of another partition"))
}

fn tenant_of(row: &Row, operation: &'static str) -> Result<TenantId, StoreError> {
    let tenant: String = column(row, "tenant", operation)?;
    uuid(&tenant, operation).map(TenantId)
}

fn uuid(text: &str, operation: &'static str) -> Result<Uuid, StoreError> {
    let unread = |_| StoreError::new(ErrorKind::Damaged, BACKEND, operation, "an identifier cannot be read");
    text.parse().map_err(unread)
}

#[async_trait]
impl GraphIndex for Neo4jGraph {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn is_left_alone(&self) -> bool {
        self.client.is_left_alone()
    }

    async fn head(&self, partition: &Partition) -> Result<Option<GraphHead>, StoreError> {
        const OPERATION: &str = "graph.head";
        let rows = self.rows(OPERATION, partition, about(cypher::HEAD, partition)).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        // One that is being removed has no token of ours, or none when it is seen as it goes.
        let token: Option<String> = column(row, "token", OPERATION)?;
        let Some(token) = token.and_then(|token| token.parse().ok()) else { return Ok(None) };
        let seq: Option<i64> = column(row, "seq", OPERATION)?;
        let chunks: i64 = column(row, "chunks", OPERATION)?;
        Ok(Some(GraphHead { seq: seq.map(Seq), chunks: chunks.cast_unsigned(), token }))
    }

    async fn load(
        &self,
        partition: &Partition,
        wanted: &GraphWanted,
        bounds: GraphBounds,
    ) -> Result<GraphLoaded, StoreError> {
        read::load(&self.client, partition, wanted, bounds).await
    }

    async fn top(&self, partition: &Partition, limit: usize) -> Result<Vec<(u64, u64)>, StoreError> {
        const OPERATION: &str = "graph.top";
        let most = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = self.rows(OPERATION, partition, about(cypher::TOP, partition).with("most", most)).await?;
        let read = |row: &Row| {
            let (key, count): (i64, i64) = (column(row, "key", OPERATION)?, column(row, "count", OPERATION)?);
            Ok((key.cast_unsigned(), count.cast_unsigned()))
        };
        rows.iter().map(read).collect()
    }

    async fn marks(&self, partition: &Partition) -> Result<HashMap<ChunkId, i64>, StoreError> {
        const OPERATION: &str = "graph.marks";
        let (mut marks, mut after) = (HashMap::new(), String::new());
        loop {
            let page = about(cypher::MARKS, partition).with("after", after.as_str()).with("most", PAGE);
            let rows = self.rows(OPERATION, partition, page).await?;
            for row in &rows {
                after = column(row, "key", OPERATION)?;
                marks.insert(ChunkId(uuid(&after, OPERATION)?), column(row, "mark", OPERATION)?);
            }
            if rows.len() < usize::try_from(PAGE).unwrap_or(usize::MAX) {
                return Ok(marks);
            }
        }
    }

    async fn begin(&self, partition: &Partition, token: Uuid) -> Result<GraphHead, StoreError> {
        const OPERATION: &str = "graph.begin";
        if let Some(head) = self.head(partition).await? {
            return Ok(head);
        }
        self.constrain(OPERATION).await?;
        let statement = about(cypher::BEGIN, partition).with("token", token.to_string());
        self.client.read(OPERATION, Some(partition.tenant()), &[statement]).await?;
        let removed =
            || StoreError::new(ErrorKind::Conflict, BACKEND, OPERATION, "the graph is being removed");
        self.head(partition).await?.ok_or_else(removed)
    }

    async fn apply(&self, partition: &Partition, change: &GraphChange) -> Result<(), StoreError> {
        Box::pin(write::apply(&self.client, partition, change)).await
    }

    async fn strays(&self, partition: &Partition) -> Result<u64, StoreError> {
        strays::count(&self.client, partition).await
    }

    async fn contents(
        &self,
        partition: &Partition,
        token: Uuid,
        writers: Writers,
    ) -> Result<GraphContents, StoreError> {
        Box::pin(self.read_contents(partition, token, writers)).await
    }

    async fn remove(&self, tenant: TenantId, namespace: NamespaceId) -> Result<u64, StoreError> {
        write::remove(&self.client, tenant, namespace).await
    }

    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        const OPERATION: &str = "graph.tenants";
        let read = self.client.read(OPERATION, None, &[Statement::new(cypher::TENANTS.to_owned())]).await?;
        read.iter().flatten().map(|row| tenant_of(row, OPERATION)).collect()
    }

    async fn namespaces(&self, tenant: TenantId) -> Result<Vec<NamespaceId>, StoreError> {
        const OPERATION: &str = "graph.namespaces";
        let read = self.client.read(OPERATION, Some(tenant), &[cypher::namespaces(tenant)]).await?;
        let namespace = |row: &Row| {
            if tenant_of(row, OPERATION)? != tenant {
                return Err(StoreError::new(
                    ErrorKind::Foreign,
                    BACKEND,
                    OPERATION,
                    "a row of another tenant",
                ));
            }
            let namespace: String = column(row, "namespace", OPERATION)?;
            uuid(&namespace, OPERATION).map(NamespaceId)
        };
        read.iter().flatten().map(namespace).collect()
    }
}

#[cfg(test)]
mod tests {
    use neo4rs::{BoltList, BoltString, BoltType};

    use super::*;
    use crate::domain::ids::ModelId;

    #[test]
    fn a_row_with_another_partitions_tag_is_foreign() {
        let (tenant, other) = (TenantId(Uuid::from_u128(1)), TenantId(Uuid::from_u128(2)));
        let namespace = NamespaceId(Uuid::from_u128(3));
        let model = ModelId::parse("00112233445566ff").expect("a model");
        let partition = Partition::new(tenant, namespace, model);
        let row = |tenant: TenantId, namespace: NamespaceId| {
            let text = |text: String| BoltType::String(BoltString::from(text));
            let list = |value: Vec<BoltType>| BoltList { value };
            Row::new(
                list(vec![text("tenant".into()), text("namespace".into())]),
                list(vec![text(tenant.to_string()), text(namespace.to_string())]),
            )
        };
        assert!(own(&row(tenant, namespace), &partition, "test").is_ok());
        for row in [row(other, namespace), row(tenant, NamespaceId(other.0))] {
            assert_eq!(own(&row, &partition, "test").map_err(|error| error.kind), Err(ErrorKind::Foreign));
        }
    }
}
