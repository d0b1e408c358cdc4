//! Stores whose entries go by themselves after a while, as caches and counts, and what a deletion does there.
//!
//! **Invariant:** a deletion waits for none of them, and what could not be looked at is never told as nothing.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use super::error::StoreError;
use super::handles::TenantWriter;
use crate::domain::ids::TenantId;

/// A store whose entries go by themselves.
#[async_trait]
pub trait Ephemeral: Send + Sync {
    /// For people, as `Redis`.
    fn name(&self) -> &'static str;

    /// After how long nothing is left of what was put before.
    fn longest(&self) -> Duration;

    /// Removes everything of a tenant; returns how many entries there were.
    ///
    /// # Errors
    /// The store's own; then some may be removed.
    async fn forget(&self, tenant: TenantId) -> Result<u64, StoreError>;

    /// How many entries a tenant has.
    ///
    /// # Errors
    /// The store's own.
    async fn held(&self, tenant: TenantId) -> Result<u64, StoreError>;
}

/// What a deletion did in such a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forgotten {
    /// The store's name, for people.
    pub store: &'static str,
    /// What was found there.
    pub outcome: Outcome,
}

/// What was found in such a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was looked at.
    Counted {
        /// Entries that were there.
        before: u64,
        /// Entries that were there after all of them were removed.
        after: u64,
    },
    /// It did not do its work: entries go by themselves.
    NotReached {
        /// Within so long.
        expire: Duration,
    },
}

impl Forgotten {
    /// With what the same store was found to hold later, when everything was removed once more.
    #[must_use]
    pub fn then(self, later: Self) -> Self {
        let outcome = match (self.outcome, later.outcome) {
            (Outcome::Counted { before: first, .. }, Outcome::Counted { before, after }) => {
                Outcome::Counted { before: first + before, after }
            }
            (_, later) => later,
        };
        Self { outcome, ..self }
    }
}

impl fmt::Display for Forgotten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.outcome {
            Outcome::Counted { before, after } => write!(f, "{} {before}, left {after}", self.store),
            Outcome::NotReached { expire } => {
                write!(f, "{} not reached, entries expire within {} s", self.store, expire.as_secs())
            }
        }
    }
}

async fn forget(store: &dyn Ephemeral, tenant: TenantId) -> Forgotten {
    let counted: Result<_, StoreError> =
        async { Ok((store.forget(tenant).await?, store.held(tenant).await?)) }.await;
    let outcome = match counted {
        Ok((before, after)) => Outcome::Counted { before, after },
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(%tenant, error, "entries of a deleted tenant go when they expire");
            Outcome::NotReached { expire: store.longest() }
        }
    };
    Forgotten { store: store.name(), outcome }
}

impl TenantWriter {
    /// Whether entries of this tenant may be in stores from which they go by themselves.
    #[must_use]
    pub fn has_ephemeral(&self) -> bool {
        !self.stores.ephemeral().is_empty()
    }

    /// Removes what such stores hold of the tenant, and tells of each what it held.
    pub async fn tenant_forget(&self) -> Vec<Forgotten> {
        let mut all = Vec::new();
        for store in self.stores.ephemeral() {
            all.push(forget(store.as_ref(), self.scope.tenant()).await);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::store::error::ErrorKind;

    /// Holds a tenant's entries as far as it answers.
    struct Answering(bool);

    #[async_trait]
    impl Ephemeral for Answering {
        fn name(&self) -> &'static str {
            "Test"
        }

        fn longest(&self) -> Duration {
            Duration::from_mins(15)
        }

        async fn forget(&self, _tenant: TenantId) -> Result<u64, StoreError> {
            Ok(3)
        }

        async fn held(&self, _tenant: TenantId) -> Result<u64, StoreError> {
            let away = || StoreError::new(ErrorKind::Unavailable, "test", "tenant.held", "away");
            if self.0 { Ok(1) } else { Err(away()) }
        }
    }

    #[tokio::test]
    async fn what_was_not_looked_at_to_the_end_is_told_so_and_is_no_number() {
        let tenant = TenantId(Uuid::from_u128(1));
        assert_eq!(forget(&Answering(true), tenant).await.to_string(), "Test 3, left 1");
        let away = forget(&Answering(false), tenant).await;
        assert_eq!(away.to_string(), "Test not reached, entries expire within 900 s");
        let (counted, again) =
            (forget(&Answering(true), tenant).await, forget(&Answering(true), tenant).await);
        assert_eq!(counted.then(again).to_string(), "Test 6, left 1");
        assert_eq!(counted.then(away), away, "what came between is not known");
        assert_eq!(away.then(counted), counted);
    }
}
