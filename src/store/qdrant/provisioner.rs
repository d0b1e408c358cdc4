//! The only holder of the API key: it makes and deletes collections, and signs tokens for one of them.
//!
//! **Invariant:** the API key is sent for making and deleting collections, and for nothing else.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use qdrant_client::Qdrant;
use qdrant_client::qdrant::payload_index_params::IndexParams;
use qdrant_client::qdrant::vectors_config::Config;
use qdrant_client::qdrant::{
    CreateCollection, CreateFieldIndexCollection, DeleteCollection, Distance, FieldType, HnswConfigDiff,
    OptimizersConfigDiff, PayloadIndexParams, SparseIndexConfig, SparseVectorConfig, SparseVectorParams,
    UuidIndexParams, VectorParams, VectorParamsMap, VectorsConfig, WalConfigDiff,
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::OnceCell;

use super::fault::{BACKEND, Fault};
use super::name::CollectionName;
use super::registry::Collection;
use super::token::{Access, Token, mint};
use super::wire::{DENSE, GENERATION, KIND, NAMESPACE, TENANT, TERMS};
use crate::domain::ids::TenantId;
use crate::store::error::{ErrorKind, StoreError};
use crate::store::layers::Layers;
use crate::store::placement::Placement;

const BYTES_PER_NUMBER: u64 = 4;
/// Edges of a point in an HNSW graph.
const EDGES: u64 = 16;
/// The first version that writes under a condition; an older one would ignore it.
const OLDEST: (u32, u32) = (1, 16);

/// How collections are made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Making {
    /// Collections with more points than this get an HNSW graph; smaller ones are searched exactly.
    pub(super) hnsw_from_points: u64,
    /// Size of a segment of the write-ahead log, MiB.
    pub(super) wal_capacity_mb: u64,
    /// For how long a token is valid, seconds.
    pub(super) token_seconds: u64,
}

/// Makes and deletes collections.
pub(super) struct Provisioner {
    /// Sends no credential: asked for its version, a server wants none.
    bare: Qdrant,
    client: Qdrant,
    api_key: SecretString,
    making: Making,
    layers: Layers,
    is_known: OnceCell<()>,
}

impl Provisioner {
    /// With a client that sends no credential yet.
    pub(super) fn new(bare: Qdrant, api_key: SecretString, making: Making, layers: Layers) -> Self {
        let mut client = bare.clone();
        client.config.set_api_key(api_key.expose_secret());
        Self { bare, client, api_key, making, layers, is_known: OnceCell::new() }
    }

    /// A token for one collection.
    pub(super) fn token(
        &self,
        collection: &CollectionName,
        access: Access,
        now: DateTime<Utc>,
    ) -> Result<Token, StoreError> {
        mint(&self.api_key, collection, access, now, self.making.token_seconds).map_err(|_| {
            StoreError::new(ErrorKind::Internal, BACKEND, "token.mint", "a token cannot be signed")
        })
    }

    /// Refuses a server that is too old to keep order. Asked once.
    async fn require_version(&self) -> Result<(), StoreError> {
        const OPERATION: &str = "server.version";
        let health = || async {
            self.bare.health_check().await.map_err(|error| match Fault::of(&error, OPERATION) {
                Fault::Store(error) => error,
                Fault::Absent | Fault::Present => super::fault::vanished(OPERATION),
            })
        };
        let version = self.layers.repeatable(OPERATION, None, health).await?.version;
        match version_of(&version) {
            Some(version) if version < OLDEST => {
                let (major, minor) = OLDEST;
                let words = format!("the server is too old: Qdrant {major}.{minor} or newer is needed");
                Err(StoreError::new(ErrorKind::Invalid, BACKEND, OPERATION, words))
            }
            Some(_) => {
                tracing::info!(version, "vectors are in a Qdrant server");
                Ok(())
            }
            None => {
                tracing::warn!(version, "vectors are in a server that does not say that it is Qdrant");
                Ok(())
            }
        }
    }

    /// Makes a collection, unless it is there.
    pub(super) async fn create(&self, tenant: TenantId, collection: &Collection) -> Result<(), StoreError> {
        const OPERATION: &str = "collection.create";
        self.is_known.get_or_try_init(|| self.require_version()).await?;
        let name = collection.name.as_str();
        let create = || async {
            match self.client.create_collection(self.request(collection)).await {
                Ok(_) => Ok(()),
                Err(error) => match Fault::of(&error, OPERATION) {
                    Fault::Present => Ok(()),
                    Fault::Absent => Err(super::fault::vanished(OPERATION)),
                    Fault::Store(error) => Err(error),
                },
            }
        };
        Box::pin(self.layers.repeatable(OPERATION, Some(tenant), create)).await?;
        let fields = [
            (TENANT, FieldType::Uuid),
            (NAMESPACE, FieldType::Uuid),
            (GENERATION, FieldType::Integer),
            (KIND, FieldType::Keyword),
        ];
        for (field, kind) in fields {
            let index = || async {
                let request = CreateFieldIndexCollection {
                    collection_name: name.to_owned(),
                    wait: Some(true),
                    field_name: field.to_owned(),
                    field_type: Some(kind.into()),
                    field_index_params: tenants_apart(field, collection.placement),
                    ..CreateFieldIndexCollection::default()
                };
                match self.client.create_field_index(request).await {
                    Ok(_) => Ok(()),
                    Err(error) => match Fault::of(&error, OPERATION) {
                        Fault::Present => Ok(()),
                        Fault::Absent => Err(super::fault::vanished(OPERATION)),
                        Fault::Store(error) => Err(error),
                    },
                }
            };
            self.layers.repeatable(OPERATION, Some(tenant), index).await?;
        }
        Ok(())
    }

    /// Deletes a collection, if it is there.
    pub(super) async fn delete(&self, tenant: TenantId, name: &CollectionName) -> Result<(), StoreError> {
        const OPERATION: &str = "collection.delete";
        let delete = || async {
            let request =
                DeleteCollection { collection_name: name.as_str().to_owned(), ..DeleteCollection::default() };
            match self.client.delete_collection(request).await {
                Ok(_) => Ok(()),
                Err(error) => match Fault::of(&error, OPERATION) {
                    Fault::Absent => Ok(()),
                    Fault::Present => Err(super::fault::vanished(OPERATION)),
                    Fault::Store(error) => Err(error),
                },
            }
        };
        self.layers.repeatable(OPERATION, Some(tenant), delete).await
    }

    /// As the shards are: cosine, exact below the same size, the same graph above; one segment and a small log. Where
    /// tenants share it, no graph is over all of them: each has one over its own points.
    fn request(&self, collection: &Collection) -> CreateCollection {
        let dimension = u64::try_from(collection.dimension).unwrap_or(u64::MAX);
        let is_shared = collection.placement == Placement::Shared;
        let kilobytes =
            self.making.hnsw_from_points.saturating_mul(dimension).saturating_mul(BYTES_PER_NUMBER) / 1024;
        let dense =
            VectorParams { size: dimension, distance: Distance::Cosine.into(), ..VectorParams::default() };
        let index = SparseIndexConfig { full_scan_threshold: Some(0), ..SparseIndexConfig::default() };
        let terms = SparseVectorParams { index: Some(index), ..SparseVectorParams::default() };
        CreateCollection {
            collection_name: collection.name.as_str().to_owned(),
            vectors_config: Some(VectorsConfig {
                config: Some(Config::ParamsMap(VectorParamsMap {
                    map: HashMap::from([(DENSE.to_owned(), dense)]),
                })),
            }),
            sparse_vectors_config: Some(SparseVectorConfig {
                map: HashMap::from([(TERMS.to_owned(), terms)]),
            }),
            hnsw_config: Some(HnswConfigDiff {
                m: Some(if is_shared { 0 } else { EDGES }),
                payload_m: is_shared.then_some(EDGES),
                ef_construct: Some(128),
                // The least that a server takes.
                full_scan_threshold: Some(kilobytes.max(10)),
                ..HnswConfigDiff::default()
            }),
            optimizers_config: Some(OptimizersConfigDiff {
                // As many as the server sees fit, where many tenants write.
                default_segment_number: (!is_shared).then_some(1),
                // 0 would mean never.
                indexing_threshold: Some(kilobytes.max(1)),
                ..OptimizersConfigDiff::default()
            }),
            wal_config: Some(WalConfigDiff {
                wal_capacity_mb: Some(self.making.wal_capacity_mb),
                wal_segments_ahead: Some(0),
                ..WalConfigDiff::default()
            }),
            shard_number: Some(1),
            ..CreateCollection::default()
        }
    }
}

/// How the tenant's field is indexed where tenants share a collection: points of one lie beside each other, with a
/// graph over them alone.
fn tenants_apart(field: &str, placement: Placement) -> Option<PayloadIndexParams> {
    let apart = UuidIndexParams { is_tenant: Some(true), ..UuidIndexParams::default() };
    (field == TENANT && placement == Placement::Shared)
        .then_some(PayloadIndexParams { index_params: Some(IndexParams::UuidIndexParams(apart)) })
}

/// Major and minor version.
fn version_of(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers_and_a_stand_in_has_none() {
        assert!(version_of("1.9.7") < Some(OLDEST));
        assert!(version_of("1.18.3") > Some(OLDEST));
        assert_eq!(version_of("stand-in (qdrant-edge 0.7.2)"), None);
    }
}
