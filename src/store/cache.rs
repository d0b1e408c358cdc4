//! The trait of back ends that keep what was computed for a while, and the keys under which they do.
//!
//! Nothing that is kept here is needed: what is gone is computed again. So no failure of a back end is a caller's,
//! but for the one that is an alarm.
//!
//! **Invariant:** a key is made from a reader's or a corpus' authority and holds its tenant, its namespace and, where
//! the documents matter, the corpus' history; what a caller wrote is in it as a hash alone.
//! **Invariant:** a value repeats whose it is. One of another tenant or namespace is an alarm, never used; one that
//! is none at all is as good as absent.

mod caches;
mod settings;
mod value;

use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use uuid::Uuid;

pub use self::caches::{Caches, Looked, Made};
pub use self::settings::{CacheBackend, CacheSettings};
pub(in crate::store) use self::value::{unwrap, wrap};

use super::StoreError;
use super::handles::{Corpus, TenantReader};
use crate::domain::Seq;
use crate::domain::ids::{ModelId, NamespaceId, NamespaceName, TenantId};

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheKind {
    /// The vector of a question.
    Embedding,
    /// What a language model answered.
    Answer,
}

impl CacheKind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Embedding, Self::Answer];

    /// In keys and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Answer => "answer",
        }
    }
}

/// A moment of a namespace's history: what is said of its documents holds for this one alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch {
    tenant: TenantId,
    namespace: NamespaceId,
    seq: Seq,
}

impl Corpus {
    /// The moment in which it was opened.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch { tenant: self.partition.tenant(), namespace: self.partition.namespace(), seq: self.seq }
    }
}

impl Epoch {
    /// A moment for a back end's own tests. Releases do not have this.
    #[cfg(any(test, feature = "laboratory"))]
    #[must_use]
    pub fn for_laboratory(tenant: TenantId, namespace: NamespaceId, seq: i64) -> Self {
        Self { tenant, namespace, seq: Seq(seq) }
    }
}

/// Under what something is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheKey {
    tenant: TenantId,
    namespace: Uuid,
    seq: Seq,
    kind: CacheKind,
    rest: [u8; 32],
}

impl CacheKey {
    /// Of what a language model answers from the documents of this moment. `rest`: all that the answer depends on.
    #[must_use]
    pub fn answer(epoch: &Epoch, rest: &[&[u8]]) -> Self {
        let Epoch { tenant, namespace, seq } = *epoch;
        Self { tenant, namespace: namespace.0, seq, kind: CacheKind::Answer, rest: hash(rest) }
    }

    /// Of a question's vector by this model; `None` when the reader's credential does not reach the namespace, in
    /// which it must not learn what others asked by how long it takes.
    #[must_use]
    pub fn embedding(
        reader: &TenantReader,
        namespace: &NamespaceName,
        model: &ModelId,
        text: &str,
    ) -> Option<Self> {
        let scope = reader.scope();
        scope.reaches(namespace).then(|| Self::embedding_of(scope.tenant(), namespace, model, text))
    }

    fn embedding_of(tenant: TenantId, namespace: &NamespaceName, model: &ModelId, text: &str) -> Self {
        Self {
            tenant,
            // The vector is wanted before the namespace's own identifier is known; its documents do not matter.
            namespace: Uuid::new_v5(&tenant.0, namespace.as_str().as_bytes()),
            seq: Seq(0),
            kind: CacheKind::Embedding,
            rest: hash(&[model.as_str().as_bytes(), text.as_bytes()]),
        }
    }

    /// A question's key for a back end's own tests. Releases do not have this.
    #[cfg(any(test, feature = "laboratory"))]
    #[must_use]
    pub fn for_laboratory(tenant: TenantId, namespace: &NamespaceName, model: &ModelId, text: &str) -> Self {
        Self::embedding_of(tenant, namespace, model, text)
    }

    /// Whose it is.
    #[must_use]
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// What is kept under it.
    #[must_use]
    pub fn kind(&self) -> CacheKind {
        self.kind
    }

    /// All of it but tenant and kind, 56 bytes.
    pub(in crate::store) fn rest(&self) -> Vec<u8> {
        [&self.namespace.as_bytes()[..], &self.seq.0.to_be_bytes(), &self.rest].concat()
    }
}

/// Parts with their lengths, so that no two lists of parts are the same bytes.
fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// Keeps values for a while, and locks.
///
/// A value may be gone at any time. A lock keeps servers from doing the same work at once; what must not be done
/// twice needs another one, since a lock that lapsed while its holder slept has two.
#[async_trait]
pub trait Cache: Send + Sync {
    /// For people, as `Redis`.
    fn name(&self) -> &'static str;

    /// What is kept under a key, as it was put.
    ///
    /// # Errors
    /// `Foreign` when it is another tenant's or namespace's; `Damaged` when it is not a value of this key at all;
    /// `Unavailable`, `Timeout` or `Internal` when the back end does not do its work.
    async fn get(&self, key: &CacheKey) -> Result<Option<Vec<u8>>, StoreError>;

    /// Keeps a value so long at most, in place of an earlier one.
    ///
    /// # Errors
    /// `Unavailable`, `Timeout` or `Internal` when the back end does not do its work.
    async fn put(&self, key: &CacheKey, value: &[u8], keep: Duration) -> Result<(), StoreError>;

    /// Takes the lock of a key for so long, or holds it for so long again; whether this `holder` has it now.
    ///
    /// # Errors
    /// As [`Self::get`].
    async fn lock(&self, key: &CacheKey, holder: Uuid, keep: Duration) -> Result<bool, StoreError>;

    /// Lets go of a lock, if this `holder` has it.
    ///
    /// # Errors
    /// As [`Self::get`].
    async fn unlock(&self, key: &CacheKey, holder: Uuid) -> Result<(), StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tenant: u128, namespace: &str, model: &str, text: &str) -> CacheKey {
        let namespace = NamespaceName::parse(namespace).expect("a name");
        let model = ModelId::parse(model).expect("a model");
        CacheKey::embedding_of(TenantId(Uuid::from_u128(tenant)), &namespace, &model, text)
    }

    #[test]
    fn whatever_differs_has_another_key() {
        const MODEL: &str = "0123456789abcdef";
        let epoch = |tenant, namespace, seq| {
            let namespace = NamespaceId(Uuid::from_u128(namespace));
            Epoch::for_laboratory(TenantId(Uuid::from_u128(tenant)), namespace, seq)
        };
        let answer = |epoch: Epoch, rest: &[&str]| {
            let rest: Vec<&[u8]> = rest.iter().map(|part| part.as_bytes()).collect();
            CacheKey::answer(&epoch, &rest)
        };
        let keys = [
            key(1, "default", MODEL, "who?"),
            key(2, "default", MODEL, "who?"),
            key(1, "other", MODEL, "who?"),
            key(1, "default", "fedcba9876543210", "who?"),
            key(1, "default", MODEL, "who"),
            answer(epoch(1, 1, 1), &["a", "b"]),
            answer(epoch(2, 1, 1), &["a", "b"]),
            answer(epoch(1, 2, 1), &["a", "b"]),
            answer(epoch(1, 1, 2), &["a", "b"]),
            answer(epoch(1, 1, 1), &["ab", ""]),
            answer(epoch(1, 1, 1), &["", "ab"]),
            answer(epoch(1, 1, 1), &["ab"]),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[at + 1..].contains(key), "{key:?}");
            let same = |other: &&CacheKey| {
                (other.tenant, other.kind, other.rest()) == (key.tenant, key.kind, key.rest())
            };
            assert_eq!(keys.iter().filter(same).count(), 1, "{key:?}");
        }
        assert_eq!(key(1, "default", MODEL, "who?"), keys[0]);
    }
}
