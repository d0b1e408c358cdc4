//! What the system of record keeps of collections: whose they are, what they are called and what they are for.

use async_trait::async_trait;

use super::name::CollectionName;
use crate::domain::ids::{ModelId, TenantId};
use crate::store::error::StoreError;
use crate::store::partition::Partition;
use crate::store::placement::Placement;

/// A registered collection: all that a tenant's namespaces have of one model, beside other tenants' where it is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collection {
    /// Its name in Qdrant.
    pub name: CollectionName,
    /// Numbers in its embeddings.
    pub dimension: usize,
    /// Whether other tenants' points are in it too.
    pub placement: Placement,
}

/// What a tenant's collection is for. Of one model a tenant has one that is served, and any number of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Questions are answered from it.
    Served,
    /// A move writes it, to be served later.
    Written,
    /// What the tenant has in it is to be removed.
    Left,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Served, Self::Written, Self::Left];

    /// As the registry writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Served => "served",
            Self::Written => "written",
            Self::Left => "left",
        }
    }
}

/// As what a collection is written. Whoever finds that it is not that any more was overtaken, and leaves it alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Questions are answered from it.
    Served,
    /// The move of this number writes it.
    Moving(i64),
}

impl Hold {
    /// The state in which it is, and the number of the last move into it where that has to be the same.
    #[must_use]
    pub fn condition(self) -> (State, Option<i64>) {
        match self {
            Self::Served => (State::Served, None),
            Self::Moving(number) => (State::Written, Some(number)),
        }
    }
}

/// A tenant's collection of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// The model.
    pub model: ModelId,
    /// The collection.
    pub collection: Collection,
    /// What it is for.
    pub state: State,
    /// How many moves have begun to write it: the number of the last one.
    pub moves: i64,
    /// Since when it is for that, seconds of Unix time.
    pub since: i64,
}

impl Registered {
    /// As what it is written; `None`: the tenant has left it.
    #[must_use]
    pub fn hold(&self) -> Option<Hold> {
        match self.state {
            State::Served => Some(Hold::Served),
            State::Written => Some(Hold::Moving(self.moves)),
            State::Left => None,
        }
    }
}

/// The registry of collections. A partition stands for its tenant and model.
///
/// # Errors
/// Every method: `Unavailable` or `Timeout`.
#[async_trait]
pub trait Registry: Send + Sync {
    /// The collection that is served.
    async fn get(&self, partition: &Partition) -> Result<Option<Collection>, StoreError>;

    /// Registers a collection as served, before it is made; the one that is served already wins.
    async fn register(&self, partition: &Partition, fresh: &Collection) -> Result<Collection, StoreError>;

    /// A generation's number: larger than any that was given for this tenant in this collection before; `None` when
    /// the collection is not held like this any more.
    async fn next_generation(
        &self,
        partition: &Partition,
        name: &CollectionName,
        hold: Hold,
    ) -> Result<Option<i64>, StoreError>;

    /// The tenant leaves a collection. `false`: it is not held like this any more, or was left already; nothing changed.
    async fn leave(
        &self,
        partition: &Partition,
        name: &CollectionName,
        hold: Hold,
    ) -> Result<bool, StoreError>;

    /// A number as of a generation, in a collection that the tenant has left: everything of the tenant that has an
    /// earlier one is to go. `None`: it has not left it, or has come back.
    async fn last_generation(
        &self,
        partition: &Partition,
        name: &CollectionName,
    ) -> Result<Option<i64>, StoreError>;

    /// Forgets a collection that the tenant has left, after nothing of the tenant was in it any more.
    async fn forget(&self, partition: &Partition, name: &CollectionName) -> Result<(), StoreError>;

    /// Registers a collection that a move is about to write, and returns the move's number. A move that was writing it
    /// holds it no more.
    ///
    /// # Errors
    /// `Conflict` too, when the collection is served.
    async fn stage(&self, partition: &Partition, fresh: &Collection) -> Result<i64, StoreError>;

    /// Serves a collection that the move of this number has written, in place of `from`, which is left. `false`: `from`
    /// is not served, or `to` is not being written by that move any more; nothing changed.
    async fn switch(
        &self,
        partition: &Partition,
        from: &CollectionName,
        to: (&CollectionName, i64),
    ) -> Result<bool, StoreError>;

    /// All collections of a tenant.
    async fn list(&self, tenant: TenantId) -> Result<Vec<Registered>, StoreError>;

    /// Tenants with collections.
    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError>;

    /// How many collections there are that hold one tenant each.
    async fn owned(&self) -> Result<u64, StoreError>;

    /// What an operator chose for a tenant.
    async fn chosen(&self, tenant: TenantId) -> Result<Option<Placement>, StoreError>;
}
