//! Where a partition's graph leads from what is asked, in one transaction.

use neo4rs::Row;

use super::client::{Client, Statement};
use super::{about, column, cypher, own, uuid};
use crate::domain::ids::ChunkId;
use crate::store::error::StoreError;
use crate::store::graph::{GraphBounds, GraphLoaded, GraphWanted, LinkedChunk, LinkedGroup, Listed, Mention};
use crate::store::partition::Partition;

const OPERATION: &str = "graph.load";

/// As [`GraphIndex::load`](crate::store::graph::GraphIndex::load).
pub(super) async fn load(
    client: &Client,
    partition: &Partition,
    wanted: &GraphWanted,
    bounds: GraphBounds,
) -> Result<GraphLoaded, StoreError> {
    let (mut statements, mut readers) = (Vec::new(), Vec::<Reader>::new());
    let mut ask = |statement: Statement, is_asked: bool, read: Reader| {
        if is_asked {
            statements.push(statement);
            readers.push(read);
        }
    };
    let chunks: Vec<String> = wanted.chunks.iter().map(ToString::to_string).collect();
    ask(about(cypher::CHUNKS, partition).with("keys", chunks), !wanted.chunks.is_empty(), |row, loaded| {
        loaded.chunks.push(chunk(row)?);
        Ok(())
    });
    let lists: [(&str, &[u64], Option<usize>, Reader); 5] = [
        (cypher::TITLES, &wanted.titles, Some(bounds.groups), |row, loaded| {
            loaded.titles.push((key(row)?, keys(row)?));
            Ok(())
        }),
        (cypher::MEMBERS, &wanted.members, None, |row, loaded| {
            loaded.members.push(chunks_of(row)?);
            Ok(())
        }),
        (cypher::NAMERS, &wanted.namers, Some(bounds.namers), |row, loaded| {
            loaded.namers.push(chunks_of(row)?);
            Ok(())
        }),
        (cypher::RARE, &wanted.rare, Some(bounds.rare), |row, loaded| {
            loaded.rare.push(chunks_of(row)?);
            Ok(())
        }),
        (cypher::MENTIONS, &wanted.mentions, None, |row, loaded| {
            loaded.mentions.push(mentions(row)?);
            Ok(())
        }),
    ];
    for (template, asked, most, read) in lists {
        let signed: Vec<i64> = asked.iter().map(|key| key.cast_signed()).collect();
        let statement = about(template, partition).with("keys", signed);
        let cut = |most: usize| i64::try_from(most).unwrap_or(i64::MAX);
        let statement = match most {
            Some(most) => statement.with("most", cut(most)),
            None => statement,
        };
        ask(statement, !asked.is_empty(), read);
    }
    let answers = client.read(OPERATION, Some(partition.tenant()), &statements).await?;
    let mut loaded = GraphLoaded::default();
    for (rows, read) in std::iter::zip(&answers, readers) {
        for row in rows {
            own(row, partition, OPERATION)?;
            read(row, &mut loaded)?;
        }
    }
    Ok(loaded)
}

/// Puts a row where it belongs.
type Reader = fn(&Row, &mut GraphLoaded) -> Result<(), StoreError>;

fn chunk_id(text: &str) -> Result<ChunkId, StoreError> {
    uuid(text, OPERATION).map(ChunkId)
}

fn key(row: &Row) -> Result<u64, StoreError> {
    column::<i64>(row, "key", OPERATION).map(i64::cast_unsigned)
}

fn unsigned(keys: impl IntoIterator<Item = i64>) -> Vec<u64> {
    let mut keys: Vec<u64> = keys.into_iter().map(i64::cast_unsigned).collect();
    keys.sort_unstable();
    keys
}

fn keys(row: &Row) -> Result<Vec<u64>, StoreError> {
    column::<Vec<i64>>(row, "list", OPERATION).map(unsigned)
}

fn chunks_of(row: &Row) -> Result<Listed<ChunkId>, StoreError> {
    let list: Vec<String> = column(row, "list", OPERATION)?;
    let chunks = list.iter().map(|text| chunk_id(text)).collect::<Result<_, _>>()?;
    Ok((key(row)?, chunks))
}

fn mentions(row: &Row) -> Result<Listed<Mention>, StoreError> {
    let list: Vec<(String, bool, bool)> = column(row, "list", OPERATION)?;
    let read = |(chunk, name, concept): &(String, bool, bool)| {
        Ok(Mention { chunk: chunk_id(chunk)?, name: *name, concept: *concept })
    };
    let mentions = list.iter().map(read).collect::<Result<_, StoreError>>()?;
    Ok((key(row)?, mentions))
}

/// A chunk, with what it leads to as often as it does.
pub(super) fn chunk(row: &Row) -> Result<LinkedChunk, StoreError> {
    let text: String = column(row, "key", OPERATION)?;
    let own: Option<i64> = column(row, "own", OPERATION)?;
    let entities: Vec<(i64, bool, bool)> = column(row, "entities", OPERATION)?;
    let groups: Vec<(i64, i64)> = column(row, "groups", OPERATION)?;
    let named: Vec<i64> = column(row, "named", OPERATION)?;
    let group = |(group, title): (i64, i64)| LinkedGroup {
        group: group.cast_unsigned(),
        title: title.cast_unsigned(),
    };
    let mut groups: Vec<LinkedGroup> = groups.into_iter().map(group).collect();
    groups.sort_unstable();
    Ok(LinkedChunk {
        chunk: chunk_id(&text)?,
        own: own.map(i64::cast_unsigned),
        names: unsigned(entities.iter().filter(|entity| entity.1).map(|entity| entity.0)),
        concepts: unsigned(entities.iter().filter(|entity| entity.2).map(|entity| entity.0)),
        groups,
        named: unsigned(named),
    })
}
