//! Everything that keeps data, behind handles that know their tenant.
//!
//! **Invariant:** no getter for a pool or client; a call without a partition or a permit does not compile.
//! **Invariant:** indexes hold ids, never text.

pub mod audit;
pub mod backup;
pub mod cache;
pub mod digest;
pub mod ephemeral;
pub mod error;
pub mod graph;
pub mod handles;
pub mod layers;
pub mod memory;
pub mod mongodb;
pub mod neo4j;
pub mod partition;
pub mod placement;
pub mod postgres;
pub mod qdrant;
pub mod qdrant_edge;
pub mod rate_limit;
pub mod redis;
pub mod shares;
pub mod upkeep;
pub mod uploads;
pub mod vector;
mod well_formed;

pub use audit::{Audit, AuditBackend, AuditLog, AuditSettings, OperatorAct, ServerAct, TenantAct};
pub use cache::{Cache, CacheBackend, CacheKey, CacheKind, CacheSettings, Caches, Epoch, Looked, Made};
pub use error::{ErrorKind, StoreError};
pub use handles::{Corpus, CorpusWriter, Stores, TenantReader, TenantWriter};
pub use partition::Partition;
pub use placement::{MovedModel, Placement, Placements};
pub use rate_limit::{RateKey, RateLimiter, Standing};
