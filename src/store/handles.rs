//! Handles: what a caller may do with the stores, bound to its tenant from the first moment.
//!
//! **Invariant:** a handle is made from a permit or from another handle, and never hands out what it wraps.

use std::sync::Arc;

use sqlx::postgres::PgRow;

use super::StoreError;
use super::cache::Caches;
use super::ephemeral::Ephemeral;
use super::graph::GraphIndex;
use super::partition::Partition;
use super::postgres::Postgres;
use super::postgres::pools::Lane;
use super::postgres::prepared::Call;
use super::postgres::transaction::{Plans, TenantTransaction};
use super::uploads::Uploads;
use super::vector::VectorIndex;
use crate::domain::Seq;
use crate::domain::ids::{ModelId, NamespaceName};
use crate::tenancy::{Permit, Reads, TenantScope, Writes};

/// Every store of a server.
#[derive(Clone)]
pub struct Stores {
    pub(in crate::store) inner: Arc<StoresInner>,
    caches: Caches,
    ephemeral: Arc<[Arc<dyn Ephemeral>]>,
}

pub(in crate::store) struct StoresInner {
    pub(in crate::store) postgres: Postgres,
    pub(in crate::store) vectors: Arc<dyn VectorIndex>,
    pub(in crate::store) graph: Option<Arc<dyn GraphIndex>>,
    pub(in crate::store) uploads: Uploads,
}

impl Stores {
    /// The stores over these back ends.
    #[must_use]
    pub fn new(postgres: Postgres, vectors: Arc<dyn VectorIndex>, uploads: Uploads) -> Self {
        let (graph, caches, ephemeral) = (None, Caches::default(), Arc::default());
        Self { inner: Arc::new(StoresInner { postgres, vectors, graph, uploads }), caches, ephemeral }
    }

    /// The same with an index of graphs beside those in memory.
    #[must_use]
    pub fn with_graph(self, graph: Arc<dyn GraphIndex>) -> Self {
        let StoresInner { postgres, vectors, uploads, .. } = self.inner.as_ref();
        let (postgres, vectors, uploads) = (postgres.clone(), Arc::clone(vectors), uploads.clone());
        Self { inner: Arc::new(StoresInner { postgres, vectors, graph: Some(graph), uploads }), ..self }
    }

    /// The same, with what keeps things that were computed.
    #[must_use]
    pub fn with_caches(self, caches: Caches) -> Self {
        Self { caches, ..self }
    }

    /// What keeps things that were computed.
    #[must_use]
    pub fn caches(&self) -> &Caches {
        &self.caches
    }

    /// The same, with stores whose entries go by themselves; a deletion removes a tenant's before.
    #[must_use]
    pub fn with_ephemeral(self, stores: Vec<Arc<dyn Ephemeral>>) -> Self {
        Self { ephemeral: stores.into(), ..self }
    }

    pub(in crate::store) fn ephemeral(&self) -> &[Arc<dyn Ephemeral>] {
        &self.ephemeral
    }

    /// The same database and files with another index of vectors.
    #[must_use]
    pub fn with_vectors(&self, vectors: Arc<dyn VectorIndex>) -> Self {
        Self::new(self.inner.postgres.clone(), vectors, self.inner.uploads.clone())
    }

    /// The tenant's data, for reading while somebody waits.
    #[must_use]
    pub fn reader<A: Reads>(&self, permit: &Permit<A>) -> TenantReader {
        TenantReader { stores: self.clone(), scope: permit.scope().clone(), lane: Lane::Query }
    }

    /// The tenant's data, for writing while somebody waits.
    #[must_use]
    pub fn writer<A: Writes>(&self, permit: &Permit<A>) -> TenantWriter {
        TenantWriter { reader: self.reader(permit) }
    }

    /// The tenant's data, for work in the background: connections of its own, so that nobody waits for it.
    #[must_use]
    pub fn background<A: Writes>(&self, permit: &Permit<A>) -> TenantWriter {
        let reader = TenantReader { lane: Lane::Ingest, ..self.reader(permit) };
        TenantWriter { reader }
    }

    /// The name of the vector index in use.
    #[must_use]
    pub fn vectors_name(&self) -> &'static str {
        self.inner.vectors.name()
    }
}

/// A tenant's data, to read.
#[derive(Clone)]
pub struct TenantReader {
    pub(in crate::store) stores: Stores,
    pub(in crate::store) scope: TenantScope,
    pub(in crate::store) lane: Lane,
}

impl TenantReader {
    /// The authority that this handle carries.
    #[must_use]
    pub fn scope(&self) -> &TenantScope {
        &self.scope
    }

    /// What keeps things that were computed, for this tenant under its keys alone.
    #[must_use]
    pub fn caches(&self) -> &Caches {
        &self.stores.caches
    }

    pub(in crate::store) fn postgres(&self) -> &Postgres {
        &self.stores.inner.postgres
    }

    pub(in crate::store) async fn begin(&self) -> Result<TenantTransaction, StoreError> {
        self.begin_with(Plans::Usual).await
    }

    /// The rows of each call, read in one message.
    pub(in crate::store) async fn read<const N: usize>(
        &self,
        calls: [Call<'_>; N],
        operation: &'static str,
    ) -> Result<[Vec<PgRow>; N], StoreError> {
        self.postgres().read(self.lane, self.scope.tenant(), calls, operation).await
    }

    pub(in crate::store) async fn begin_with(&self, plans: Plans) -> Result<TenantTransaction, StoreError> {
        self.postgres().begin_with(self.lane, self.scope.tenant(), plans).await
    }
}

/// A tenant's data, to change.
#[derive(Clone)]
pub struct TenantWriter {
    pub(in crate::store) reader: TenantReader,
}

impl std::ops::Deref for TenantWriter {
    type Target = TenantReader;

    fn deref(&self) -> &TenantReader {
        &self.reader
    }
}

/// One namespace of a tenant, to read, as it stood when it was opened.
#[derive(Clone)]
pub struct Corpus {
    pub(in crate::store) reader: TenantReader,
    pub(in crate::store) partition: Partition,
    pub(in crate::store) name: NamespaceName,
    pub(in crate::store) seq: Seq,
    /// The timeline of the primary that said so; `None`: nothing of this corpus is read from a replica.
    pub(in crate::store) timeline: Option<i64>,
    pub(in crate::store) chunks: u64,
    pub(in crate::store) building: Option<ModelId>,
}

impl Corpus {
    /// The address of this corpus in an index.
    #[must_use]
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// The namespace's name.
    #[must_use]
    pub fn name(&self) -> &NamespaceName {
        &self.name
    }

    /// The corpus' history when it was opened.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// How many chunks it had when it was opened.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.chunks
    }

    /// The model whose embeddings of this corpus were being filled beside the active one's when it was opened.
    #[must_use]
    pub fn building(&self) -> Option<&ModelId> {
        self.building.as_ref()
    }

    /// The tenant's handle that opened it.
    #[must_use]
    pub fn tenant(&self) -> &TenantReader {
        &self.reader
    }

    /// The name of the index that holds this corpus' vectors.
    #[must_use]
    pub fn vectors_name(&self) -> &'static str {
        self.vectors().name()
    }

    /// The index that holds this corpus' vectors.
    pub(in crate::store) fn vectors(&self) -> &dyn VectorIndex {
        self.reader.stores.inner.vectors.as_ref()
    }
}

/// One namespace of a tenant, to change.
#[derive(Clone)]
pub struct CorpusWriter {
    pub(in crate::store) corpus: Corpus,
}

impl std::ops::Deref for CorpusWriter {
    type Target = Corpus;

    fn deref(&self) -> &Corpus {
        &self.corpus
    }
}
