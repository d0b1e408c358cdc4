//! What projection follows, by traits: a simulation puts a model of the stores behind them.

use std::sync::Arc;

use async_trait::async_trait;

use super::Place;
use crate::domain::Seq;
use crate::domain::ids::NamespaceId;
use crate::store::postgres::projection::{Changes, History};
use crate::store::vector::Position;
use crate::store::{Corpus, Partition, StoreError, Stores};
use crate::tenancy::{Permit, Write};

/// The namespaces of the system of record.
///
/// # Errors
/// Every method: `Unavailable` or `Timeout`.
#[async_trait]
pub trait Source: Send + Sync {
    /// As [`Stores::projection_backlog`].
    async fn backlog(
        &self,
        consumer: &str,
        every: bool,
        after: Option<Place>,
        limit: i64,
    ) -> Result<Vec<Place>, StoreError>;

    /// A namespace of the tenant that the permit is for; `None` when it is there no more.
    async fn open(
        &self,
        permit: &Permit<Write>,
        namespace: NamespaceId,
    ) -> Result<Option<Arc<dyn Projected>>, StoreError>;
}

/// A namespace with its index. Each method is that of [`Corpus`], with the errors said there.
#[async_trait]
pub trait Projected: Send + Sync {
    /// The address of its index.
    fn partition(&self) -> &Partition;
    /// As [`Corpus::history`].
    async fn history(&self, since: Seq, limit: i64) -> Result<History, StoreError>;
    /// As [`Corpus::index_position`].
    async fn index_position(&self) -> Result<Option<Position>, StoreError>;
    /// As [`Corpus::index_apply`].
    async fn index_apply(&self, changes: Changes) -> Result<(), StoreError>;
    /// As [`Corpus::index_flush`].
    async fn index_flush(&self, consumer: &str) -> Result<Seq, StoreError>;
    /// As [`Corpus::index_rebuild`].
    async fn index_rebuild(&self, consumer: &str, page: i64) -> Result<Seq, StoreError>;
    /// As [`Corpus::index_forget`].
    async fn index_forget(&self) -> Result<bool, StoreError>;
    /// As [`Corpus::index_wants_rebuild`].
    async fn index_wants_rebuild(&self) -> bool;
}

#[async_trait]
impl Source for Stores {
    async fn backlog(
        &self,
        consumer: &str,
        every: bool,
        after: Option<Place>,
        limit: i64,
    ) -> Result<Vec<Place>, StoreError> {
        self.projection_backlog(consumer, every, after, limit).await
    }

    async fn open(
        &self,
        permit: &Permit<Write>,
        namespace: NamespaceId,
    ) -> Result<Option<Arc<dyn Projected>>, StoreError> {
        let corpus = self.background(permit).corpus_get_by_id(namespace).await?;
        Ok(corpus.map(|corpus| Arc::new(corpus) as Arc<dyn Projected>))
    }
}

#[async_trait]
impl Projected for Corpus {
    fn partition(&self) -> &Partition {
        Corpus::partition(self)
    }

    async fn history(&self, since: Seq, limit: i64) -> Result<History, StoreError> {
        Corpus::history(self, since, limit).await
    }

    async fn index_position(&self) -> Result<Option<Position>, StoreError> {
        Corpus::index_position(self).await
    }

    async fn index_apply(&self, changes: Changes) -> Result<(), StoreError> {
        Corpus::index_apply(self, changes).await
    }

    async fn index_flush(&self, consumer: &str) -> Result<Seq, StoreError> {
        Corpus::index_flush(self, consumer).await
    }

    async fn index_rebuild(&self, consumer: &str, page: i64) -> Result<Seq, StoreError> {
        Corpus::index_rebuild(self, consumer, page).await
    }

    async fn index_forget(&self) -> Result<bool, StoreError> {
        Corpus::index_forget(self).await
    }

    async fn index_wants_rebuild(&self) -> bool {
        Corpus::index_wants_rebuild(self).await
    }
}
