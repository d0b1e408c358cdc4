//! Changes of a partition's graph, each a transaction under the lock of its head.

use std::collections::{BTreeMap, BTreeSet};

use neo4rs::BoltType;

use super::client::{Client, Statement, Transaction, list, map};
use super::{BACKEND, about, column, cypher, own};
use crate::domain::Seq;
use crate::domain::ids::{ChunkId, NamespaceId, TenantId};
use crate::store::error::{ErrorKind, StoreError};
use crate::store::graph::{GraphChange, LinkedChunk};
use crate::store::partition::Partition;

const OPERATION: &str = "graph.apply";

/// Nodes that are removed in one transaction.
const REMOVED_AT_ONCE: i64 = 2_000;

/// As [`GraphIndex::apply`](crate::store::graph::GraphIndex::apply).
pub(super) async fn apply(
    client: &Client,
    partition: &Partition,
    change: &GraphChange,
) -> Result<(), StoreError> {
    let place = client.place(OPERATION, Some(partition.tenant())).await?;
    let apply = async {
        let mut transaction = place.begin(OPERATION).await?;
        let rows = transaction.run(about(cypher::LOCK, partition)).await?;
        let conflict =
            || StoreError::new(ErrorKind::Conflict, BACKEND, OPERATION, "it leads on from another graph");
        let row = rows.first().ok_or_else(conflict)?;
        own(row, partition, OPERATION)?;
        if column::<String>(row, "token", OPERATION)? != change.from.to_string() {
            return Err(conflict());
        }
        // What comes anew goes first, so that it leads nowhere that it led before.
        let anew = change.added.iter().map(|chunk| chunk.chunk);
        let gone: Vec<ChunkId> = change.removed.iter().copied().chain(anew).collect();
        let left = take(&mut transaction, partition, &gone).await?;
        put(&mut transaction, partition, &change.added).await?;
        for (template, keys) in [
            (cypher::CLEAR_ENTITIES, left.entities),
            (cypher::CLEAR_GROUPS, left.groups),
            (cypher::CLEAR_TITLES, left.titles),
        ] {
            if !keys.is_empty() {
                let keys: Vec<i64> = keys.into_iter().collect();
                transaction.run(about(template, partition).with("keys", keys)).await?;
            }
        }
        let moved = about(cypher::MOVE, partition)
            .with("seq", change.seq.map(|Seq(seq)| seq))
            .with("chunks", change.chunks.cast_signed())
            .with("token", change.to.to_string());
        transaction.run(moved).await?;
        transaction.commit().await
    };
    Box::pin(client.writing().once(OPERATION, Some(partition.tenant()), apply)).await
}

/// Keys of nodes that chunks led to which are gone.
#[derive(Default)]
struct Left {
    entities: BTreeSet<i64>,
    groups: BTreeSet<i64>,
    titles: BTreeSet<i64>,
}

async fn take(
    transaction: &mut Transaction,
    partition: &Partition,
    chunks: &[ChunkId],
) -> Result<Left, StoreError> {
    let mut left = Left::default();
    if chunks.is_empty() {
        return Ok(left);
    }
    let keys: Vec<String> = chunks.iter().map(ToString::to_string).collect();
    for row in transaction.run(about(cypher::TAKE, partition).with("keys", keys)).await? {
        left.entities.extend(column::<Vec<i64>>(&row, "entities", OPERATION)?);
        left.groups.extend(column::<Vec<i64>>(&row, "groups", OPERATION)?);
        left.titles.extend(column::<Vec<i64>>(&row, "titles", OPERATION)?);
    }
    Ok(left)
}

async fn put(
    transaction: &mut Transaction,
    partition: &Partition,
    chunks: &[LinkedChunk],
) -> Result<(), StoreError> {
    let (mut nodes, mut mentions, mut groups, mut named) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for chunk in chunks {
        let id = chunk.chunk.to_string();
        let own: Option<i64> = chunk.own.map(u64::cast_signed);
        nodes.push(map([("key", id.as_str().into()), ("mark", chunk.mark().into()), ("own", own.into())]));
        for (key, (name, concept)) in kinds(chunk) {
            mentions.push(map([
                ("chunk", id.as_str().into()),
                ("key", key.cast_signed().into()),
                ("name", name.into()),
                ("concept", concept.into()),
            ]));
        }
        for group in &chunk.groups {
            groups.push(map([
                ("chunk", id.as_str().into()),
                ("key", group.group.cast_signed().into()),
                ("title", group.title.cast_signed().into()),
            ]));
        }
        for title in &chunk.named {
            named.push(map([("chunk", id.as_str().into()), ("title", title.cast_signed().into())]));
        }
    }
    let all: [(&str, Vec<BoltType>); 4] = [
        (cypher::PUT, nodes),
        (cypher::PUT_MENTIONS, mentions),
        (cypher::PUT_GROUPS, groups),
        (cypher::PUT_NAMED, named),
    ];
    for (template, rows) in all {
        if !rows.is_empty() {
            transaction.run(about(template, partition).with("rows", list(rows))).await?;
        }
    }
    Ok(())
}

/// The entities of a chunk: whether as a name, whether as a concept.
fn kinds(chunk: &LinkedChunk) -> BTreeMap<u64, (bool, bool)> {
    let mut kinds: BTreeMap<u64, (bool, bool)> = BTreeMap::new();
    for key in &chunk.names {
        kinds.entry(*key).or_default().0 = true;
    }
    for key in &chunk.concepts {
        kinds.entry(*key).or_default().1 = true;
    }
    kinds
}

/// As [`GraphIndex::remove`](crate::store::graph::GraphIndex::remove). The head goes last, so that a removal that was
/// broken off is found again.
///
/// Several may remove one graph at once, and somebody may begin it anew behind the first that is done. So each takes the
/// head's lock, and removes only while that head is closed: those that are late find it gone, or open, and nothing to do.
pub(super) async fn remove(
    client: &Client,
    tenant: TenantId,
    namespace: NamespaceId,
) -> Result<u64, StoreError> {
    let removal = Removal { client, tenant, namespace };
    let mut all = 0;
    // A head without the tenant's label is in the way of the one that is locked; nobody writes what this removes.
    all += removal.all(cypher::REPATRIATE, Under::NoLock).await?;
    removal.run(cypher::CLOSE, Under::NoLock).await?;
    for template in [cypher::EMPTY, cypher::EVICT] {
        all += removal.all(template, Under::ClosedHead).await?;
    }
    removal.run(cypher::END, Under::ClosedHead).await?;
    Ok(all)
}

/// What a statement of a removal runs under.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Under {
    NoLock,
    /// The lock of the head; nothing is done unless it is closed.
    ClosedHead,
}

struct Removal<'a> {
    client: &'a Client,
    tenant: TenantId,
    namespace: NamespaceId,
}

impl Removal<'_> {
    const OPERATION: &'static str = "graph.remove";

    /// Runs it until nothing more is gone; how much was.
    async fn all(&self, template: &'static str, under: Under) -> Result<u64, StoreError> {
        let mut all = 0;
        loop {
            match self.run(template, under).await? {
                0 => return Ok(all),
                gone => all += gone,
            }
        }
    }

    /// Runs it once, in a transaction; how much is gone.
    async fn run(&self, template: &'static str, under: Under) -> Result<u64, StoreError> {
        let place = self.client.place(Self::OPERATION, Some(self.tenant)).await?;
        let once = || async {
            let mut transaction = place.begin(Self::OPERATION).await?;
            let rows = if under == Under::NoLock || self.is_closed(&mut transaction).await? {
                transaction.run(self.about(template).with("most", REMOVED_AT_ONCE)).await?
            } else {
                Vec::new()
            };
            transaction.commit().await?;
            let gone = rows.first().map_or(Ok(0), |row| column::<i64>(row, "gone", Self::OPERATION))?;
            Ok(gone.cast_unsigned())
        };
        self.client.writing().repeatable(Self::OPERATION, Some(self.tenant), once).await
    }

    /// Locks the head, to the end of the transaction; whether there is one, and it is closed.
    async fn is_closed(&self, transaction: &mut Transaction) -> Result<bool, StoreError> {
        let rows = transaction.run(self.about(cypher::LOCK)).await?;
        let Some(row) = rows.first() else { return Ok(false) };
        let token: Option<String> = column(row, "token", Self::OPERATION)?;
        Ok(token.as_deref() == Some(cypher::CLOSED))
    }

    fn about(&self, template: &str) -> Statement {
        cypher::about(template, self.tenant, self.namespace)
    }
}
