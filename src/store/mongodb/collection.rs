//! The one collection of events, and a tenant's share of it.
//!
//! **Invariant:** every filter is built here, names the tenant first and joins the rest by `$and`; there is no other way
//! to the collection, and no raw handle leaves this file.
//! **Invariant:** events are inserted, never updated, replaced or deleted.
//! **Invariant:** what comes back is looked at again: an event of another tenant is an error.

use std::time::Duration;

use futures::TryStreamExt as _;
use mongodb::bson::{Bson, Document, doc};
use mongodb::options::{Acknowledgment, ClientOptions, IndexOptions, WriteConcern};
use mongodb::{Client, Collection, IndexModel};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::sync::OnceCell;

use super::BACKEND;
use super::document::{EventDocument, TenantKey};
use super::error::{failed, is_duplicate, is_not_allowed};
use super::settings::{MongoError, MongoSettings};
use crate::domain::audit::{AuditCursor, AuditDay, AuditRecord};
use crate::domain::ids::TenantId;
use crate::store::audit::chain::Link;
use crate::store::audit::export::Times;
use crate::store::error::{ErrorKind, StoreError};
use crate::store::layers::Layers;

const COLLECTION: &str = "audit_event";
/// Connections of each account: one forwarder, some readers.
const CONNECTIONS: u32 = 4;

/// The events of all tenants.
pub(super) struct Events {
    writer: Collection<EventDocument>,
    reader: Collection<Document>,
    layers: Layers,
    /// Whether the indexes are there.
    indexed: OnceCell<()>,
}

/// The events of one tenant.
pub(super) struct TenantEvents<'a> {
    events: &'a Events,
    of: Option<TenantId>,
    tenant: TenantKey,
}

/// What events are meant, beside whose they are.
enum Condition<'a> {
    Every,
    Node(&'a str),
    /// After the first number, up to the second.
    Range(&'a str, (i64, i64)),
    /// Before a cursor, in the order of pages.
    Before(&'a AuditCursor),
    Times(Times),
    NodeTimes(&'a str, Times),
}

impl Condition<'_> {
    fn document(&self) -> Document {
        match self {
            Self::Every => doc! {},
            Self::Node(node) => doc! { "node": *node },
            Self::Range(node, (after, until)) => {
                doc! { "node": *node, "number": { "$gt": *after, "$lte": *until } }
            }
            Self::Before(cursor) => {
                let (at, node, number) = (cursor.at.timestamp_micros(), &cursor.node, cursor.number);
                doc! { "$or": [
                    { "at": { "$lt": at } },
                    { "at": at, "node": { "$lt": node } },
                    { "at": at, "node": node, "number": { "$lt": number } },
                ] }
            }
            Self::Times(times) => during(times),
            Self::NodeTimes(node, times) => doc! { "$and": [{ "node": *node }, during(times)] },
        }
    }
}

fn during(times: &Times) -> Document {
    let since = times.since.map_or(i64::MIN, |since| since.timestamp_micros());
    let until = times.until.map_or(i64::MAX, |until| until.timestamp_micros());
    doc! { "at": { "$gte": since, "$lt": until } }
}

impl Events {
    /// The collection of these settings. Connects when first used.
    pub(super) async fn open(settings: &MongoSettings, layers: Layers) -> Result<Self, MongoError> {
        let (writer, reader) = settings.addresses()?;
        let deadline = Duration::from_millis(settings.deadline_ms);
        let writer = client(&writer, deadline).await?.database(&settings.database);
        let reader = client(&reader, deadline).await?.database(&settings.database);
        Ok(Self {
            writer: writer.collection(COLLECTION),
            reader: reader.collection(COLLECTION),
            layers,
            indexed: OnceCell::new(),
        })
    }

    /// One tenant's share; `None`: the deployment's own.
    pub(super) fn of(&self, tenant: Option<TenantId>) -> TenantEvents<'_> {
        TenantEvents { events: self, of: tenant, tenant: TenantKey::of(tenant) }
    }

    /// Makes the indexes, once. An account that may only insert leaves that to whoever made it: the events' own
    /// identities hold each number unique all the same.
    async fn index(&self) -> Result<(), StoreError> {
        let make = async || {
            let unique = IndexOptions::builder().unique(true).build();
            let place = IndexModel::builder()
                .keys(doc! { "tenant": 1, "node": 1, "number": 1 })
                .options(unique)
                .build();
            let time =
                IndexModel::builder().keys(doc! { "tenant": 1, "at": -1, "node": -1, "number": -1 }).build();
            match self.writer.create_indexes([place, time]).await {
                Err(error) if !is_not_allowed(&error) => Err(failed("audit.index")(error)),
                _ => Ok(()),
            }
        };
        self.layers.once("audit.index", None, self.indexed.get_or_try_init(make)).await?;
        Ok(())
    }
}

async fn client(url: &SecretString, deadline: Duration) -> Result<Client, MongoError> {
    let options = ClientOptions::parse(url.expose_secret()).await;
    let mut options = options.map_err(|_| MongoError::Driver)?;
    options.app_name = Some("bulkhead".to_owned());
    options.server_selection_timeout = Some(deadline);
    options.connect_timeout = Some(deadline);
    options.max_pool_size = Some(CONNECTIONS);
    // The layers around each call repeat what may be.
    options.retry_writes = Some(false);
    options.retry_reads = Some(false);
    let durable = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build();
    options.write_concern = Some(durable);
    Client::with_options(options).map_err(|_| MongoError::Driver)
}

impl TenantEvents<'_> {
    /// A filter: the tenant, and then the rest.
    fn own(&self, condition: &Condition<'_>) -> Document {
        doc! { "$and": [{ "tenant": &self.tenant }, condition.document()] }
    }

    /// Inserts events of one chain. Those that are there already, as they are here, are left as they are.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout`; then some may be there. `Damaged`: at a number stands another event.
    pub(super) async fn insert(&self, node: &str, links: &[Link]) -> Result<(), StoreError> {
        const OPERATION: &str = "audit.insert";
        let documents: Vec<EventDocument> = links
            .iter()
            .map(|event| EventDocument::new(&self.tenant, node, event))
            .collect::<Result<_, _>>()?;
        self.events.index().await?;
        // Twice is once: each event has its own identity.
        let insert = || async {
            match self.events.writer.insert_many(&documents).ordered(false).await {
                Ok(_) => Ok(true),
                Err(error) if is_duplicate(&error) => Ok(false),
                Err(error) => Err(failed(OPERATION)(error)),
            }
        };
        if self.events.layers.repeatable(OPERATION, self.of, insert).await? {
            return Ok(());
        }
        self.compare(node, links).await
    }

    /// Some of the events were there: an earlier attempt, of which nobody heard, or somebody else's.
    async fn compare(&self, node: &str, links: &[Link]) -> Result<(), StoreError> {
        const OPERATION: &str = "audit.insert";
        let (Some(first), Some(last)) = (links.first(), links.last()) else { return Ok(()) };
        let limit = i64::try_from(links.len()).unwrap_or(i64::MAX);
        let there = self.links(node, (first.number - 1, last.number), limit).await?;
        if there.len() < links.len() {
            let words = "not all of the events are there";
            return Err(StoreError::new(ErrorKind::Unavailable, BACKEND, OPERATION, words));
        }
        if there != links {
            let words = "at a number of this chain stands an event that this server did not write";
            return Err(StoreError::new(ErrorKind::Damaged, BACKEND, OPERATION, words));
        }
        Ok(())
    }

    /// Events of one chain by number; what stands at one number is in one page.
    pub(super) async fn links(
        &self,
        node: &str,
        range: (i64, i64),
        limit: i64,
    ) -> Result<Vec<Link>, StoreError> {
        const OPERATION: &str = "audit.links";
        let by_number = doc! { "number": 1 };
        let found = self.find(OPERATION, &Condition::Range(node, range), by_number.clone(), limit).await?;
        let is_full = i64::try_from(found.len()).unwrap_or(i64::MAX) >= limit;
        let mut links: Vec<Link> = found.into_iter().map(EventDocument::link).collect();
        if let Some(last) = links.last().map(|last| last.number).filter(|_| is_full) {
            // No index may hold numbers unique any more: then others could stand at the last one, too.
            links.retain(|link| link.number != last);
            let there = Condition::Range(node, (last - 1, last));
            let found = self.find(OPERATION, &there, by_number, limit).await?;
            links.extend(found.into_iter().map(EventDocument::link));
        }
        Ok(links)
    }

    /// A page of the tenant's events, newest first.
    pub(super) async fn page(
        &self,
        after: Option<&AuditCursor>,
        limit: i64,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        const OPERATION: &str = "audit.page";
        let condition = after.map_or(Condition::Every, Condition::Before);
        let newest = doc! { "at": -1, "node": -1, "number": -1 };
        let found = self.find(OPERATION, &condition, newest, limit).await?;
        let read = |found| {
            serde_json::from_str(&EventDocument::link(found).body).map_err(|error| {
                StoreError::new(ErrorKind::Damaged, BACKEND, OPERATION, "an event cannot be read")
                    .with_source(error)
            })
        };
        found.into_iter().map(read).collect()
    }

    /// The number of the last event of each chain, by server.
    pub(super) async fn lasts(&self) -> Result<Vec<(String, i64)>, StoreError> {
        const OPERATION: &str = "audit.chains";
        let filter = self.own(&Condition::Every);
        let distinct =
            || async { self.events.reader.distinct("node", filter.clone()).await.map_err(failed(OPERATION)) };
        let nodes = self.events.layers.repeatable(OPERATION, self.of, distinct).await?;
        let mut lasts = Vec::with_capacity(nodes.len());
        for node in nodes {
            let Bson::String(node) = node else { continue };
            let newest = doc! { "number": -1 };
            let last = self.find(OPERATION, &Condition::Node(&node), newest, 1).await?;
            let number = last.into_iter().next().map_or(0, |last| EventDocument::link(last).number);
            lasts.push((node, number));
        }
        Ok(lasts)
    }

    /// The first and the last number of a chain in these times.
    pub(super) async fn span(&self, node: &str, times: Times) -> Result<Option<(i64, i64)>, StoreError> {
        const OPERATION: &str = "audit.span";
        let condition = Condition::NodeTimes(node, times);
        let first = self.find(OPERATION, &condition, doc! { "number": 1 }, 1).await?;
        let last = self.find(OPERATION, &condition, doc! { "number": -1 }, 1).await?;
        let number =
            |found: Vec<Document>| found.into_iter().next().map(|one| EventDocument::link(one).number);
        Ok(number(first).zip(number(last)))
    }

    /// Events by day and kind, in order.
    pub(super) async fn days(&self, times: Times) -> Result<Vec<AuditDay>, StoreError> {
        const OPERATION: &str = "audit.days";
        let stages = [
            doc! { "$match": self.own(&Condition::Times(times)) },
            doc! { "$group": { "_id": { "day": "$day", "kind": "$kind" }, "events": { "$sum": 1_i64 } } },
            doc! { "$sort": { "_id.day": 1, "_id.kind": 1 } },
        ];
        let call = || async {
            let found = self.events.reader.aggregate(stages.clone()).with_type::<DayGroup>().await;
            let groups: Vec<DayGroup> =
                found.map_err(failed(OPERATION))?.try_collect().await.map_err(failed(OPERATION))?;
            Ok(groups.into_iter().map(AuditDay::from).collect())
        };
        self.events.layers.repeatable(OPERATION, self.of, call).await
    }

    async fn find(
        &self,
        operation: &'static str,
        condition: &Condition<'_>,
        order: Document,
        limit: i64,
    ) -> Result<Vec<Document>, StoreError> {
        let filter = self.own(condition);
        let call = || async {
            let found = self.events.reader.find(filter.clone());
            let cursor = found.sort(order.clone()).limit(limit).await;
            let found: Vec<Document> =
                cursor.map_err(failed(operation))?.try_collect().await.map_err(failed(operation))?;
            let own = Bson::from(&self.tenant);
            if found.iter().any(|event| event.get("tenant") != Some(&own)) {
                let words = "an event of another tenant came back";
                return Err(StoreError::new(ErrorKind::Foreign, BACKEND, operation, words));
            }
            Ok(found)
        };
        self.events.layers.repeatable(operation, self.of, call).await
    }
}

#[derive(Deserialize)]
struct DayGroup {
    #[serde(rename = "_id")]
    key: DayKey,
    events: i64,
}

#[derive(Deserialize)]
struct DayKey {
    day: String,
    kind: String,
}

impl From<DayGroup> for AuditDay {
    fn from(group: DayGroup) -> Self {
        Self { day: group.key.day, kind: group.key.kind, events: group.events }
    }
}

#[cfg(test)]
mod tests;
