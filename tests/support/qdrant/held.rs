//! The collections: one shard each, in a folder of its name.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use qdrant_client::qdrant::collections_server::Collections;
use qdrant_client::qdrant::vectors_config::Config;
use qdrant_client::qdrant::{self as wire, CollectionOperationResponse};
use qdrant_edge::{
    Distance, EdgeConfig, EdgeShard, EdgeSparseVectorParams, EdgeVectorParams, OperationResult,
    UpdateOperation, WalOptions,
};
use tonic::{Request, Response, Status};

use super::access::Needs;
use super::{Shared, State, VERSION};

/// A collection.
pub(crate) struct Held {
    pub(crate) shard: EdgeShard,
    path: PathBuf,
    /// One change at a time; qdrant-edge's flush panics beside another writer.
    changes: Mutex<()>,
}

/// What a failed call of qdrant-edge is answered with.
pub(crate) fn failed(error: impl std::fmt::Display) -> Status {
    let words = error.to_string();
    if words.contains("dimension")
        || words.contains("Wrong input")
        || words.contains("Not existing vector name")
    {
        Status::invalid_argument(words)
    } else {
        Status::internal(words)
    }
}

impl Held {
    fn new(path: PathBuf, shard: OperationResult<EdgeShard>) -> Result<Arc<Self>, Status> {
        Ok(Arc::new(Self { shard: shard.map_err(failed)?, path, changes: Mutex::new(()) }))
    }

    /// Makes a change, which survives the process once it is answered.
    pub(crate) fn change(&self, change: UpdateOperation) -> Result<(), Status> {
        let _one = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        self.shard.update(change).map_err(failed)?;
        self.shard.flush();
        Ok(())
    }
}

/// The collections that are in a folder already.
pub(crate) fn load_all(folder: &Path) -> HashMap<String, Arc<Held>> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let loaded = entries.map(|entry| {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("a name");
        let held = Held::new(entry.path(), load(&entry.path()));
        (name, held.expect("a shard"))
    });
    loaded.collect()
}

/// Waits for a log that its last holder in this process is just letting go: its lock lives a moment longer.
fn load(path: &Path) -> OperationResult<EdgeShard> {
    let mut tries = 0;
    loop {
        match EdgeShard::load(path, None) {
            Err(_) if tries < 40 => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            loaded => return loaded,
        }
    }
}

fn config(request: &wire::CreateCollection) -> Result<EdgeConfig, Status> {
    let wanted = request.vectors_config.as_ref().and_then(|config| config.config.as_ref());
    let Some(Config::ParamsMap(dense)) = wanted else {
        return Err(Status::unimplemented("the stand-in knows named vectors only"));
    };
    let dense = dense.map.iter().map(|(name, params)| {
        let size = usize::try_from(params.size).map_err(failed)?;
        Ok((name.clone(), EdgeVectorParams::builder(size, Distance::Cosine).build()))
    });
    let sparse = request.sparse_vectors_config.iter().flat_map(|config| config.map.keys());
    let sparse = sparse.map(|name| {
        (name.clone(), EdgeSparseVectorParams { full_scan_threshold: Some(0), ..Default::default() })
    });
    Ok(EdgeConfig {
        vectors: dense.collect::<Result<_, Status>>()?,
        sparse_vectors: sparse.collect(),
        on_disk_payload: true,
        wal_options: Some(WalOptions { segment_capacity: 256 * 1024, ..Default::default() }),
        ..EdgeConfig::builder().build()
    })
}

impl State {
    pub(crate) fn collection(&self, name: &str) -> Result<Arc<Held>, Status> {
        let collections = self.collections.read().unwrap_or_else(PoisonError::into_inner);
        let absent = || Status::not_found(format!("Not found: Collection `{name}` doesn't exist!"));
        collections.get(name).cloned().ok_or_else(absent)
    }

    fn create(&self, request: &wire::CreateCollection) -> Result<(), Status> {
        let name = &request.collection_name;
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || !name.chars().all(plain) {
            return Err(Status::invalid_argument("Wrong input: a name"));
        }
        let mut collections = self.collections.write().unwrap_or_else(PoisonError::into_inner);
        if collections.contains_key(name) {
            return Err(Status::already_exists(format!("Wrong input: Collection `{name}` already exists!")));
        }
        let path = self.folder.join(name);
        std::fs::create_dir_all(&path).map_err(failed)?;
        let shard = EdgeShard::new(&path, config(request)?);
        collections.insert(name.clone(), Held::new(path, shard)?);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.insert(name.clone(), (request.clone(), Vec::new()));
        Ok(())
    }

    fn delete(&self, name: &str) -> Result<bool, Status> {
        let held = self.collections.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        let Some(mut held) = held else { return Ok(false) };
        let path = held.path.clone();
        // A shard writes its files once more when it goes, so they go after it, and after whoever still reads it.
        while let Err(others) = Arc::try_unwrap(held) {
            held = others;
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        std::fs::remove_dir_all(&path).map_err(failed)?;
        Ok(true)
    }
}

fn done(result: bool) -> Response<CollectionOperationResponse> {
    Response::new(CollectionOperationResponse { result, time: 0.0 })
}

/// Calls that the stand-in does not know: name, request, answer.
macro_rules! unknown {
    ($($name:ident($request:ty) -> $answer:ty;)*) => {$(
        fn $name<'life, 'call>(
            &'life self,
            _request: Request<$request>,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<Response<$answer>, Status>> + Send + 'call>>
        where
            'life: 'call,
            Self: 'call,
        {
            Box::pin(async { Err(Status::unimplemented(super::VERSION)) })
        }
    )*};
}
pub(crate) use unknown;

#[tonic::async_trait]
impl Collections for Shared {
    async fn create(
        &self,
        request: Request<wire::CreateCollection>,
    ) -> Result<Response<CollectionOperationResponse>, Status> {
        self.check(&request, "create", Needs::Manage)?;
        let shared = self.clone();
        let create = move || State::create(&shared, request.get_ref());
        tokio::task::spawn_blocking(create).await.map_err(failed)??;
        self.lag().await;
        Ok(done(true))
    }

    async fn delete(
        &self,
        request: Request<wire::DeleteCollection>,
    ) -> Result<Response<CollectionOperationResponse>, Status> {
        self.check(&request, "delete collection", Needs::Manage)?;
        let shared = self.clone();
        let delete = move || State::delete(&shared, &request.get_ref().collection_name);
        let is_deleted = tokio::task::spawn_blocking(delete).await.map_err(failed)??;
        self.lag().await;
        Ok(done(is_deleted))
    }

    async fn list(
        &self,
        request: Request<wire::ListCollectionsRequest>,
    ) -> Result<Response<wire::ListCollectionsResponse>, Status> {
        self.check(&request, "list", Needs::Manage)?;
        let names: Vec<String> =
            self.collections.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        let collections = names.into_iter().map(|name| wire::CollectionDescription { name }).collect();
        Ok(Response::new(wire::ListCollectionsResponse { collections, time: 0.0 }))
    }

    unknown! {
        get(wire::GetCollectionInfoRequest) -> wire::GetCollectionInfoResponse;
        update(wire::UpdateCollection) -> CollectionOperationResponse;
        update_aliases(wire::ChangeAliases) -> CollectionOperationResponse;
        list_collection_aliases(wire::ListCollectionAliasesRequest) -> wire::ListAliasesResponse;
        list_aliases(wire::ListAliasesRequest) -> wire::ListAliasesResponse;
        collection_cluster_info(wire::CollectionClusterInfoRequest) -> wire::CollectionClusterInfoResponse;
        collection_exists(wire::CollectionExistsRequest) -> wire::CollectionExistsResponse;
        update_collection_cluster_setup(wire::UpdateCollectionClusterSetupRequest)
            -> wire::UpdateCollectionClusterSetupResponse;
        create_shard_key(wire::CreateShardKeyRequest) -> wire::CreateShardKeyResponse;
        delete_shard_key(wire::DeleteShardKeyRequest) -> wire::DeleteShardKeyResponse;
        list_shard_keys(wire::ListShardKeysRequest) -> wire::ListShardKeysResponse;
    }
}

#[tonic::async_trait]
impl wire::qdrant_server::Qdrant for Shared {
    async fn health_check(
        &self,
        _request: Request<wire::HealthCheckRequest>,
    ) -> Result<Response<wire::HealthCheckReply>, Status> {
        Ok(Response::new(wire::HealthCheckReply {
            title: "a stand-in for Qdrant, not Qdrant".to_owned(),
            version: VERSION.to_owned(),
            commit: None,
        }))
    }
}
