//! Calls on the points of one collection, each with a token for that collection alone.
//!
//! **Invariant:** a client is made from a token; none here ever had the API key.
//! **Invariant:** a client is found by tenant, collection and access together: no tenant is handed another's.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use moka::sync::Cache;
use qdrant_client::qdrant::points_selector::PointsSelectorOneOf;
use qdrant_client::qdrant::{
    BatchResult, DeletePoints, Filter, GetPoints, PointId, PointStruct, PointsOperationResponse,
    PointsSelector, QueryBatchPoints, QueryPoints, RetrievedPoint, ScrollPoints, UpdateStatus, UpsertPoints,
    WithPayloadSelector,
};
use qdrant_client::{Qdrant, QdrantError};
use secrecy::ExposeSecret as _;

use super::fault::{BACKEND, Fault};
use super::name::CollectionName;
use super::provisioner::Provisioner;
use super::token::Access;
use super::wire::{self, Stamp};
use crate::domain::clock::Clock;
use crate::domain::ids::TenantId;
use crate::store::error::{ErrorKind, StoreError};
use crate::store::layers::Layers;
use crate::store::partition::Partition;

/// A token is not used for the last part of its life: it might end on the way.
const SPARE: chrono::Duration = chrono::Duration::seconds(30);

type Key = (TenantId, CollectionName, Access);

struct Ready {
    client: Qdrant,
    until: DateTime<Utc>,
}

/// The clients of all tenants.
pub(super) struct Clients {
    /// Sends no credential; its connections are everybody's.
    bare: Qdrant,
    ready: Cache<Key, Arc<Ready>>,
    layers: Layers,
    clock: Arc<dyn Clock>,
}

/// One tenant's collection.
#[derive(Clone, Copy)]
pub(super) struct Points<'a> {
    clients: &'a Clients,
    provisioner: &'a Provisioner,
    tenant: TenantId,
    name: &'a CollectionName,
}

/// A page of points, and where the next one begins.
pub(super) type Page = (Vec<RetrievedPoint>, Option<PointId>);

impl Clients {
    pub(super) fn new(
        bare: Qdrant,
        most: u64,
        life: Duration,
        layers: Layers,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let ready = Cache::builder().max_capacity(most).time_to_live(life).build();
        Self { bare, ready, layers, clock }
    }

    /// The points of a tenant's collection.
    pub(super) fn points<'a>(
        &'a self,
        provisioner: &'a Provisioner,
        tenant: TenantId,
        name: &'a CollectionName,
    ) -> Points<'a> {
        Points { clients: self, provisioner, tenant, name }
    }

    /// Forgets the clients of a collection that is no more.
    pub(super) fn forget(&self, tenant: TenantId, name: &CollectionName) {
        for access in [Access::Read, Access::Write] {
            self.ready.invalidate(&(tenant, name.clone(), access));
        }
    }
}

impl Points<'_> {
    fn client(&self, access: Access) -> Result<Arc<Ready>, StoreError> {
        let key = (self.tenant, self.name.clone(), access);
        let now = self.clients.clock.now();
        if let Some(ready) = self.clients.ready.get(&key).filter(|ready| now < ready.until) {
            return Ok(ready);
        }
        let token = self.provisioner.token(self.name, access, now)?;
        let mut client = self.clients.bare.clone();
        client.config.set_api_key(token.secret().expose_secret());
        let ready = Arc::new(Ready { client, until: token.expires() - SPARE });
        self.clients.ready.insert(key, Arc::clone(&ready));
        Ok(ready)
    }

    /// A call that may be made again; `None` when the collection is not there.
    async fn call<T, F: Future<Output = Result<T, QdrantError>>>(
        &self,
        operation: &'static str,
        access: Access,
        call: impl Fn(Qdrant) -> F,
    ) -> Result<Option<T>, StoreError> {
        let attempt = || async {
            let ready = self.client(access)?;
            match call(ready.client.clone()).await {
                Ok(answer) => Ok(Some(answer)),
                Err(error) => match Fault::of(&error, operation) {
                    Fault::Absent => Ok(None),
                    Fault::Present => Err(super::fault::vanished(operation)),
                    Fault::Store(error) => Err(error),
                },
            }
        };
        self.clients.layers.repeatable(operation, Some(self.tenant), attempt).await
    }

    fn name(&self) -> String {
        self.name.as_str().to_owned()
    }

    /// Writes points of a partition, where nothing is that has the same or a later stamp or is tagged with another
    /// partition. `None`: there is no collection.
    pub(super) async fn upsert(
        &self,
        operation: &'static str,
        partition: &Partition,
        points: &[PointStruct],
        stamp: Stamp,
    ) -> Result<Option<()>, StoreError> {
        let written = self.call(operation, Access::Write, |client| async move {
            let request = UpsertPoints {
                collection_name: self.name(),
                wait: Some(true),
                points: points.to_vec(),
                update_filter: Some(wire::earlier(partition, stamp)),
                ..UpsertPoints::default()
            };
            client.upsert_points(request).await
        });
        written.await?.map(|answer| completed(operation, &answer)).transpose()
    }

    /// Deletes what the filter shows. `None`: there is no collection.
    pub(super) async fn delete(
        &self,
        operation: &'static str,
        filter: &Filter,
    ) -> Result<Option<()>, StoreError> {
        let deleted = self.call(operation, Access::Write, |client| async move {
            let selector = PointsSelectorOneOf::Filter(filter.clone());
            let request = DeletePoints {
                collection_name: self.name(),
                wait: Some(true),
                points: Some(PointsSelector { points_selector_one_of: Some(selector) }),
                ..DeletePoints::default()
            };
            client.delete_points(request).await
        });
        deleted.await?.map(|answer| completed(operation, &answer)).transpose()
    }

    /// A point by its id. `None`: there is no collection, or no such point.
    pub(super) async fn get(
        &self,
        operation: &'static str,
        id: &PointId,
    ) -> Result<Option<RetrievedPoint>, StoreError> {
        let read = self.call(operation, Access::Read, |client| async move {
            let request = GetPoints {
                collection_name: self.name(),
                ids: vec![id.clone()],
                with_payload: Some(WithPayloadSelector::from(true)),
                ..GetPoints::default()
            };
            client.get_points(request).await
        });
        Ok(read.await?.and_then(|answer| answer.result.into_iter().next()))
    }

    /// A page of points, by id. `None`: there is no collection.
    pub(super) async fn scroll(
        &self,
        operation: &'static str,
        filter: &Filter,
        from: Option<&PointId>,
        limit: u32,
    ) -> Result<Option<Page>, StoreError> {
        let read = self.call(operation, Access::Read, |client| async move {
            let request = ScrollPoints {
                collection_name: self.name(),
                filter: Some(filter.clone()),
                offset: from.cloned(),
                limit: Some(limit),
                with_payload: Some(WithPayloadSelector::from(true)),
                ..ScrollPoints::default()
            };
            client.scroll(request).await
        });
        Ok(read.await?.map(|answer| (answer.result, answer.next_page_offset)))
    }

    /// The answers to several questions. `None`: there is no collection.
    pub(super) async fn query(
        &self,
        operation: &'static str,
        questions: &[QueryPoints],
    ) -> Result<Option<Vec<BatchResult>>, StoreError> {
        let read = self.call(operation, Access::Read, |client| async move {
            let request = QueryBatchPoints {
                collection_name: self.name(),
                query_points: questions.to_vec(),
                ..QueryBatchPoints::default()
            };
            client.query_batch(request).await
        });
        Ok(read.await?.map(|answer| answer.result))
    }
}

/// Whether a change was carried out, and not only taken.
fn completed(operation: &'static str, answer: &PointsOperationResponse) -> Result<(), StoreError> {
    let status = answer.result.as_ref().map(|result| result.status);
    if status == Some(UpdateStatus::Completed.into()) {
        return Ok(());
    }
    let words = "the server took the change and does not say that it was carried out";
    Err(StoreError::new(ErrorKind::Timeout, BACKEND, operation, words))
}
