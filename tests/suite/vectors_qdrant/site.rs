//! A Qdrant server for a test: the one that `QDRANT_URL` names, with the API key in `QDRANT_API_KEY`, or a stand-in of
//! the test's own; and indexes over it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bulkhead::domain::clock::{Clock, SystemClock};
use bulkhead::domain::ids::{ModelId, SystemIds, TenantId};
use bulkhead::store::error::StoreError;
use bulkhead::store::partition::Partition;
use bulkhead::store::qdrant::{
    Collection, CollectionName, NameKey, QdrantIndex, QdrantParts, QdrantSettings, Registry,
};
use bulkhead::store::qdrant_edge::EdgeSettings;
use bulkhead::store::vector::VectorIndex as _;
use chrono::{DateTime, Utc};
use qdrant_client::Qdrant;
use qdrant_client::qdrant::{RetrievedPoint, ScrollPoints, WithPayloadSelector};
use tempfile::TempDir;

use crate::qdrant_stand_in::StandIn;

pub const API_KEY: &str = "an API key of thirty-two letters";

/// A registry in memory.
#[derive(Debug, Default)]
pub struct MemoryRegistry(Mutex<BTreeMap<(TenantId, String), (Collection, i64)>>);

fn key(partition: &Partition) -> (TenantId, String) {
    (partition.tenant(), partition.model().as_str().to_owned())
}

#[async_trait]
impl Registry for MemoryRegistry {
    async fn get(&self, partition: &Partition) -> Result<Option<Collection>, StoreError> {
        Ok(self.0.lock().unwrap().get(&key(partition)).map(|(collection, _)| collection.clone()))
    }

    async fn register(&self, partition: &Partition, fresh: &Collection) -> Result<Collection, StoreError> {
        let mut rows = self.0.lock().unwrap();
        Ok(rows.entry(key(partition)).or_insert_with(|| (fresh.clone(), 0)).0.clone())
    }

    async fn next_generation(
        &self,
        partition: &Partition,
        name: &CollectionName,
    ) -> Result<Option<i64>, StoreError> {
        let mut rows = self.0.lock().unwrap();
        let row = rows.get_mut(&key(partition)).filter(|(collection, _)| collection.name == *name);
        Ok(row.map(|(_, generations)| {
            *generations += 1;
            *generations
        }))
    }

    async fn forget(&self, partition: &Partition, name: &CollectionName) -> Result<(), StoreError> {
        self.0.lock().unwrap().retain(|of, (row, _)| *of != key(partition) || row.name != *name);
        Ok(())
    }

    async fn list(&self, tenant: TenantId) -> Result<Vec<(ModelId, Collection)>, StoreError> {
        let rows = self.0.lock().unwrap();
        let own = rows.iter().filter(|((of, _), _)| *of == tenant);
        Ok(own.map(|((_, model), (row, _))| (ModelId::parse(model).unwrap(), row.clone())).collect())
    }

    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        let mut tenants: Vec<TenantId> = self.0.lock().unwrap().keys().map(|(tenant, _)| *tenant).collect();
        tenants.dedup();
        Ok(tenants)
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
        let (folder, registry) = (TempDir::new().unwrap(), Arc::default());
        Self { stand_in, folder, registry, clock: Moved::default(), url, api_key }
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
            names: NameKey::new(&"the key of a deployment".to_owned().into()),
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

    /// Takes away everything that was made through this site's registry, and sees that nothing is left.
    pub async fn clear(&self, index: &QdrantIndex) {
        for tenant in index.tenants().await.unwrap() {
            for partition in index.partitions(tenant).await.unwrap() {
                index.remove(&partition).await.unwrap();
            }
        }
        assert_eq!(index.tenants().await.unwrap(), []);
        if let Some(stand_in) = &self.stand_in {
            assert_eq!(stand_in.collections(), Vec::<String>::new());
        }
    }
}
