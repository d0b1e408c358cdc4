//! The queue and the namespaces that batches write to, by traits: a simulation puts a model of them behind.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use uuid::Uuid;

use crate::domain::ids::{JobId, ModelId, NamespaceId, TenantId};
use crate::store::postgres::ingest::{Committed, ProcessedDocument, SecondVectors};
use crate::store::postgres::jobs::{IngestTask, LeasedJob, Progress};
use crate::store::postgres::leases::LeaseTerms;
use crate::store::{CorpusWriter, Partition, StoreError, Stores};
use crate::tenancy::{Permit, Write};

/// The queue. Each method is that of [`Stores`], with the errors said there.
#[async_trait]
pub trait Queue: Send + Sync {
    /// As [`Stores::job_backlog`].
    async fn backlog(&self, limit: i64) -> Result<Vec<TenantId>, StoreError>;
    /// As [`Stores::job_lease`].
    async fn lease(&self, tenant: TenantId, terms: LeaseTerms) -> Result<Vec<LeasedJob>, StoreError>;
    /// As [`Stores::job_release`].
    async fn release(&self, jobs: &[LeasedJob], delay: Duration) -> Result<(), StoreError>;
    /// As [`Stores::job_retry`].
    async fn retry(&self, jobs: &[LeasedJob], delay: Duration) -> Result<(), StoreError>;
    /// A namespace of the tenant that the permit is for; `None` when it is there no more.
    async fn open(
        &self,
        permit: &Permit<Write>,
        namespace: NamespaceId,
    ) -> Result<Option<Arc<dyn Target>>, StoreError>;
}

/// A namespace that documents are written to. Each method is that of [`CorpusWriter`], with the errors said there.
#[async_trait]
pub trait Target: Send + Sync {
    /// The address of its index.
    fn partition(&self) -> &Partition;
    /// As [`Corpus::building`](crate::store::Corpus::building).
    fn building(&self) -> Option<&ModelId>;
    /// As [`CorpusWriter::job_open`].
    async fn job_open(&self, jobs: &[LeasedJob]) -> Result<Vec<IngestTask>, StoreError>;
    /// As [`CorpusWriter::job_progress`].
    async fn job_progress(
        &self,
        jobs: &[(JobId, Uuid)],
        progress: Progress,
        lease_time: Duration,
    ) -> Result<Vec<JobId>, StoreError>;
    /// As [`CorpusWriter::job_fail`].
    async fn job_fail(&self, job: JobId, lease: Uuid, reason: &str) -> Result<(), StoreError>;
    /// As [`CorpusWriter::upload_get`].
    async fn upload_get(&self, upload: Uuid) -> Result<Option<Bytes>, StoreError>;
    /// As [`Corpus::embedding_list`](crate::store::Corpus::embedding_list).
    async fn embedding_list(&self, documents: &[String]) -> Result<HashMap<[u8; 16], Vec<f32>>, StoreError>;
    /// As [`CorpusWriter::documents_commit_with`].
    async fn documents_commit(
        &self,
        documents: &[ProcessedDocument],
        also: Option<&SecondVectors>,
    ) -> Result<Committed, StoreError>;
}

#[async_trait]
impl Queue for Stores {
    async fn backlog(&self, limit: i64) -> Result<Vec<TenantId>, StoreError> {
        self.job_backlog(limit).await
    }

    async fn lease(&self, tenant: TenantId, terms: LeaseTerms) -> Result<Vec<LeasedJob>, StoreError> {
        self.job_lease(tenant, terms).await
    }

    async fn release(&self, jobs: &[LeasedJob], delay: Duration) -> Result<(), StoreError> {
        self.job_release(jobs, delay).await
    }

    async fn retry(&self, jobs: &[LeasedJob], delay: Duration) -> Result<(), StoreError> {
        self.job_retry(jobs, delay).await
    }

    async fn open(
        &self,
        permit: &Permit<Write>,
        namespace: NamespaceId,
    ) -> Result<Option<Arc<dyn Target>>, StoreError> {
        let corpus = self.background(permit).corpus_writer(namespace).await?;
        Ok(corpus.map(|corpus| Arc::new(corpus) as Arc<dyn Target>))
    }
}

#[async_trait]
impl Target for CorpusWriter {
    fn partition(&self) -> &Partition {
        crate::store::Corpus::partition(self)
    }

    fn building(&self) -> Option<&ModelId> {
        crate::store::Corpus::building(self)
    }

    async fn job_open(&self, jobs: &[LeasedJob]) -> Result<Vec<IngestTask>, StoreError> {
        CorpusWriter::job_open(self, jobs).await
    }

    async fn job_progress(
        &self,
        jobs: &[(JobId, Uuid)],
        progress: Progress,
        lease_time: Duration,
    ) -> Result<Vec<JobId>, StoreError> {
        CorpusWriter::job_progress(self, jobs, progress, lease_time).await
    }

    async fn job_fail(&self, job: JobId, lease: Uuid, reason: &str) -> Result<(), StoreError> {
        CorpusWriter::job_fail(self, job, lease, reason).await
    }

    async fn upload_get(&self, upload: Uuid) -> Result<Option<Bytes>, StoreError> {
        CorpusWriter::upload_get(self, upload).await
    }

    async fn embedding_list(&self, documents: &[String]) -> Result<HashMap<[u8; 16], Vec<f32>>, StoreError> {
        crate::store::Corpus::embedding_list(self, documents).await
    }

    async fn documents_commit(
        &self,
        documents: &[ProcessedDocument],
        also: Option<&SecondVectors>,
    ) -> Result<Committed, StoreError> {
        self.documents_commit_with(documents, also).await
    }
}
