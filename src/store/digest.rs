//! A digest of what a store holds of a partition: how much, and which versions, in whatever order.
//!
//! Entries are hashed one by one and summed modulo 2^128, so that stores can be compared without bringing what they hold
//! into one order. It finds what went wrong by itself; whoever chooses the entries could make two sets collide.
//!
//! **Invariant:** nothing can be learnt of an entry from a digest but that it was there.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

/// The digest of a set of (id, version).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest {
    count: u64,
    sum: u128,
}

impl Digest {
    /// Adds an entry.
    pub fn add(&mut self, id: Uuid, version: i64) {
        let hash = Sha256::new().chain_update(id.as_bytes()).chain_update(version.to_be_bytes()).finalize();
        let mut half = [0; 16];
        half.copy_from_slice(&hash[..16]);
        self.count += 1;
        self.sum = self.sum.wrapping_add(u128::from_be_bytes(half));
    }

    /// How it is told, of the store with this name, where an index of this kind is compared.
    #[must_use]
    pub fn of_store(self, index: IndexKind, store: &str) -> StoreDigest {
        StoreDigest {
            index,
            store: store.to_owned(),
            count: self.count,
            digest: format!("{:032x}", self.sum),
        }
    }
}

/// What an index holds of a partition, beside the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IndexKind {
    /// Embeddings of chunks.
    Vectors,
    /// Which chunks mention what, and lead where.
    Graph,
}

impl IndexKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Vectors, Self::Graph];

    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vectors => "vectors",
            Self::Graph => "graph",
        }
    }

    /// As [`IndexKind::name`] writes it.
    #[must_use]
    pub fn parse(raw: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == raw)
    }
}

/// What a store holds of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct StoreDigest {
    /// What is compared.
    pub index: IndexKind,
    /// The store: `postgres`, or the back end of an index.
    pub store: String,
    /// Entries.
    pub count: u64,
    /// Hash over the id and version of each, in hexadecimal digits: equal where the same is held.
    pub digest: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(entries: &[(u128, i64)]) -> Digest {
        let mut digest = Digest::default();
        for (id, version) in entries {
            digest.add(Uuid::from_u128(*id), *version);
        }
        digest
    }

    #[test]
    fn the_same_in_any_order_is_equal_and_nothing_else_is() {
        let all = of(&[(1, 1), (2, 1), (3, 2)]);
        assert_eq!(all, of(&[(3, 2), (1, 1), (2, 1)]));
        for other in [
            &[(1, 1), (2, 1)][..],
            &[(1, 1), (2, 1), (3, 1)],
            &[(1, 1), (2, 2), (3, 1)],
            &[(1, 1), (2, 1), (3, 2), (3, 2)],
        ] {
            assert_ne!(all, of(other));
        }
        // A sum, and no exclusive or: what is there twice does not vanish.
        assert_ne!(of(&[(1, 1), (1, 1)]).sum, 0);
    }
}
