//! A Qdrant server for a test: the one that `QDRANT_URL` names, with the API key in `QDRANT_API_KEY`, or a stand-in of
//! the test's own; and indexes over it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bulkhead::domain::clock::{Clock, SystemClock};
use bulkhead::domain::ids::{IdSource as _, SystemIds, TenantId};
use bulkhead::store::Placement;
use bulkhead::store::error::{ErrorKind, StoreError};
use bulkhead::store::partition::Partition;
use bulkhead::store::qdrant::{
    Collection, CollectionName, Hold, NameKey, QdrantIndex, QdrantParts, QdrantSettings, Registered,
    Registry, State,
};
use bulkhead::store::qdrant_edge::EdgeSettings;
use bulkhead::store::vector::VectorIndex as _;
use chrono::{DateTime, Utc};
use qdrant_client::Qdrant;
use qdrant_client::qdrant::{RetrievedPoint, ScrollPoints, WithPayloadSelector};
use secrecy::SecretString;
use tempfile::TempDir;

use super::super::conformance_vectors::partition;
use crate::qdrant_stand_in::StandIn;

pub const API_KEY: &str = "an API key of thirty-two letters";

/// A registry in memory.
#[derive(Debug)]
pub struct MemoryRegistry(Mutex<Rows>, Moved);

#[derive(Debug, Default)]
struct Rows {
    rows: Vec<Row>,
    chosen: BTreeMap<TenantId, Placement>,
}

#[derive(Debug)]
struct Row {
    tenant: TenantId,
    registered: Registered,
    generations: i64,
}

impl Rows {
    fn find(&mut self, partition: &Partition, holds: impl Fn(&Registered) -> bool) -> Option<&mut Row> {
        let is_own =
            |row: &&mut Row| row.tenant == partition.tenant() && row.registered.model == *partition.model();
        self.rows.iter_mut().filter(is_own).find(|row| holds(&row.registered))
    }

    fn named(&mut self, partition: &Partition, name: &CollectionName) -> Option<&mut Row> {
        self.find(partition, |row| row.collection.name == *name)
    }

    fn served(&mut self, partition: &Partition) -> Option<Collection> {
        let row = self.find(partition, |row| row.state == State::Served)?;
        Some(row.registered.collection.clone())
    }

    /// Registers a collection for this, again if need be.
    fn put(&mut self, partition: &Partition, fresh: &Collection, state: State, since: i64) -> &mut Row {
        if self.named(partition, &fresh.name).is_none() {
            let (model, collection) = (partition.model().clone(), fresh.clone());
            let registered = Registered { model, collection, state, moves: 0, since };
            self.rows.push(Row { tenant: partition.tenant(), registered, generations: 0 });
        }
        let row = self.named(partition, &fresh.name).unwrap();
        row.enter(state, since);
        row
    }

    fn held(
        &mut self,
        partition: &Partition,
        name: &CollectionName,
        as_what: Option<Hold>,
    ) -> Option<&mut Row> {
        self.named(partition, name).filter(|row| row.registered.hold() == as_what)
    }

    fn draw(&mut self, partition: &Partition, name: &CollectionName, as_what: Option<Hold>) -> Option<i64> {
        let row = self.held(partition, name, as_what)?;
        row.generations += 1;
        Some(row.generations)
    }
}

impl Row {
    fn enter(&mut self, state: State, since: i64) {
        if self.registered.state != state {
            (self.registered.state, self.registered.since) = (state, since);
        }
    }
}

impl MemoryRegistry {
    fn now(&self) -> i64 {
        self.1.now().timestamp()
    }
}

#[async_trait]
impl Registry for MemoryRegistry {
    async fn get(&self, partition: &Partition) -> Result<Option<Collection>, StoreError> {
        Ok(self.0.lock().unwrap().served(partition))
    }

    async fn register(&self, partition: &Partition, fresh: &Collection) -> Result<Collection, StoreError> {
        let mut rows = self.0.lock().unwrap();
        if let Some(served) = rows.served(partition) {
            return Ok(served);
        }
        rows.put(partition, fresh, State::Served, self.now());
        Ok(fresh.clone())
    }

    async fn next_generation(
        &self,
        partition: &Partition,
        name: &CollectionName,
        hold: Hold,
    ) -> Result<Option<i64>, StoreError> {
        Ok(self.0.lock().unwrap().draw(partition, name, Some(hold)))
    }

    async fn leave(
        &self,
        partition: &Partition,
        name: &CollectionName,
        hold: Hold,
    ) -> Result<bool, StoreError> {
        let mut rows = self.0.lock().unwrap();
        let row = rows.held(partition, name, Some(hold));
        Ok(row.map(|row| row.enter(State::Left, self.now())).is_some())
    }

    async fn last_generation(
        &self,
        partition: &Partition,
        name: &CollectionName,
    ) -> Result<Option<i64>, StoreError> {
        Ok(self.0.lock().unwrap().draw(partition, name, None))
    }

    async fn forget(&self, partition: &Partition, name: &CollectionName) -> Result<(), StoreError> {
        self.0.lock().unwrap().rows.retain(|row| {
            let Registered { model, collection, state, .. } = &row.registered;
            (row.tenant, model, &collection.name, *state)
                != (partition.tenant(), partition.model(), name, State::Left)
        });
        Ok(())
    }

    async fn stage(&self, partition: &Partition, fresh: &Collection) -> Result<i64, StoreError> {
        let mut rows = self.0.lock().unwrap();
        if rows.held(partition, &fresh.name, Some(Hold::Served)).is_some() {
            let words = "the collection is served: another move came between";
            return Err(StoreError::new(ErrorKind::Conflict, "memory", "collection.stage", words));
        }
        let row = rows.put(partition, fresh, State::Written, self.now());
        row.registered.moves += 1;
        Ok(row.registered.moves)
    }

    async fn switch(
        &self,
        partition: &Partition,
        from: &CollectionName,
        (to, number): (&CollectionName, i64),
    ) -> Result<bool, StoreError> {
        let mut rows = self.0.lock().unwrap();
        let is_served = rows.named(partition, from).is_some_and(|row| row.registered.state == State::Served);
        if !is_served || rows.held(partition, to, Some(Hold::Moving(number))).is_none() {
            return Ok(false);
        }
        for (name, state) in [(from, State::Left), (to, State::Served)] {
            rows.named(partition, name).unwrap().enter(state, self.now());
        }
        Ok(true)
    }

    async fn list(&self, tenant: TenantId) -> Result<Vec<Registered>, StoreError> {
        let rows = self.0.lock().unwrap();
        let own = rows.rows.iter().filter(|row| row.tenant == tenant);
        Ok(own.map(|row| row.registered.clone()).collect())
    }

    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        let mut tenants: Vec<TenantId> = self.0.lock().unwrap().rows.iter().map(|row| row.tenant).collect();
        tenants.sort();
        tenants.dedup();
        Ok(tenants)
    }

    async fn owned(&self) -> Result<u64, StoreError> {
        let rows = self.0.lock().unwrap();
        let own = |row: &&Row| row.registered.collection.placement == Placement::Own;
        Ok(rows.rows.iter().filter(own).count() as u64)
    }

    async fn chosen(&self, tenant: TenantId) -> Result<Option<Placement>, StoreError> {
        Ok(self.0.lock().unwrap().chosen.get(&tenant).copied())
    }
}

/// A clock that a test moves forwards.
#[derive(Debug, Clone, Default)]
pub struct Moved(Arc<Mutex<Duration>>);

impl Moved {
    pub fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for Moved {
    fn now(&self) -> DateTime<Utc> {
        SystemClock.now() + *self.0.lock().unwrap()
    }

    fn instant(&self) -> Instant {
        Instant::now() + *self.0.lock().unwrap()
    }
}

/// A server, and what indexes over it share.
pub struct Site {
    pub stand_in: Option<StandIn>,
    pub folder: TempDir,
    pub registry: Arc<MemoryRegistry>,
    pub clock: Moved,
    /// The secret that names are made with, of this site's own: on a real server sites have no collection in common.
    names: SecretString,
    url: String,
    api_key: String,
}

impl Site {
    /// The server that is named, or a stand-in.
    pub fn new() -> Self {
        match std::env::var("QDRANT_URL") {
            Ok(url) => Self::over(None, url, std::env::var("QDRANT_API_KEY").expect("QDRANT_API_KEY")),
            Err(_) => Self::stand_in(),
        }
    }

    /// A stand-in whatever is named: for what a test does to the server itself.
    pub fn stand_in() -> Self {
        let folder = TempDir::new().unwrap();
        let stand_in = StandIn::start(folder.path(), API_KEY, 0);
        let url = stand_in.url();
        Self { folder, ..Self::over(Some(stand_in), url, API_KEY.to_owned()) }
    }

    fn over(stand_in: Option<StandIn>, url: String, api_key: String) -> Self {
        let (folder, clock) = (TempDir::new().unwrap(), Moved::default());
        let registry = Arc::new(MemoryRegistry(Mutex::default(), clock.clone()));
        let names = SystemIds(SystemClock).uuid().to_string().into();
        Self { stand_in, folder, registry, clock, names, url, api_key }
    }

    /// Chooses a placement for a tenant, as an operator does.
    pub fn choose(&self, tenant: TenantId, placement: Placement) {
        self.registry.0.lock().unwrap().chosen.insert(tenant, placement);
    }

    pub fn settings(&self) -> QdrantSettings {
        QdrantSettings {
            url: self.url.clone(),
            api_key: Some(self.api_key.clone().into()),
            ..QdrantSettings::default()
        }
    }

    pub fn index(&self) -> QdrantIndex {
        self.index_with(self.settings())
    }

    pub fn index_with(&self, settings: QdrantSettings) -> QdrantIndex {
        let parts = QdrantParts {
            registry: Arc::clone(&self.registry) as Arc<dyn Registry>,
            names: NameKey::new(&self.names),
            calls: Arc::default(),
            clock: Arc::new(self.clock.clone()),
            ids: Arc::new(SystemIds(SystemClock)),
        };
        QdrantIndex::new(settings, &EdgeSettings::default(), parts).unwrap()
    }

    /// A client of the test's own, with this credential.
    pub fn raw(&self, credential: &str) -> Qdrant {
        Qdrant::from_url(&self.url).api_key(credential).skip_compatibility_check().build().unwrap()
    }

    /// One that may do everything.
    pub fn everything(&self) -> Qdrant {
        self.raw(&self.api_key)
    }

    pub fn api_key(&self) -> &str {
        &self.api_key
    }

    /// Every point of a collection, heads and marks too.
    pub async fn points(&self, collection: &str) -> Vec<RetrievedPoint> {
        let request = ScrollPoints {
            collection_name: collection.to_owned(),
            limit: Some(10_000),
            with_payload: Some(WithPayloadSelector::from(true)),
            ..ScrollPoints::default()
        };
        self.everything().scroll(request).await.unwrap().result
    }

    /// The names of all collections that this site's tenants have, as the server lists them.
    pub async fn collections(&self) -> Vec<String> {
        let listed = self.everything().list_collections().await.unwrap().collections;
        let mut names: Vec<String> = listed.into_iter().map(|collection| collection.name).collect();
        names.sort();
        names
    }

    /// Stops the stand-in as a kill would.
    pub fn kill(&mut self) {
        self.stand_in.take().unwrap().stop();
    }

    /// Starts it again where it was.
    pub fn start_again(&mut self) {
        let port = self.url.rsplit(':').next().unwrap().parse().unwrap();
        self.stand_in = Some(StandIn::start(self.folder.path(), &self.api_key, port));
    }

    /// Takes away everything that was made through this site's registry, and sees that nothing is left but shared
    /// collections, which stay and are empty once nothing can be late any more.
    pub async fn clear(&self, index: &QdrantIndex) {
        for _ in 0..2 {
            for tenant in index.tenants().await.unwrap() {
                for partition in index.partitions(tenant).await.unwrap() {
                    index.remove(&partition).await.unwrap();
                }
            }
            self.clock.advance(Duration::from_hours(1));
        }
        assert_eq!(index.tenants().await.unwrap(), []);
        if let Some(stand_in) = &self.stand_in {
            for name in stand_in.collections() {
                assert_eq!(name, index.laboratory_shared(&partition(1, 1)));
                assert_eq!(self.points(&name).await.len(), 0);
            }
        }
    }
}
