//! Identifiers, each a type of its own, and the source of new ones.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::clock::Clock;

macro_rules! uuid_id {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

uuid_id! {
    /// A customer of the deployment. Never reused.
    TenantId;
    /// A namespace (LightRAG's workspace) inside a tenant. Never reused, unlike its name.
    NamespaceId;
    /// A chunk of one version of a document. A new version has new chunks.
    ChunkId;
    /// A unit of work in the queue.
    JobId;
}

/// A malformed identifier or name, with the rule that it breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(pub &'static str);

/// A document's identifier, chosen by the caller or generated: `[A-Za-z0-9._~:-]{1,128}`, unique per namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct DocumentId(String);

/// Words that are routes under `/documents` and hence cannot be identifiers.
const RESERVED_DOCUMENT_IDS: [&str; 12] = [
    "text",
    "texts",
    "upload",
    "scan",
    "paginated",
    "status_counts",
    "track_status",
    "pipeline_status",
    "supported_file_types",
    "delete_document",
    "clear_cache",
    "reprocess_failed",
];

impl DocumentId {
    /// Checks the alphabet, the length and the reserved words.
    ///
    /// # Errors
    /// [`InvalidName`] names the rule that is broken.
    pub fn parse(raw: &str) -> Result<Self, InvalidName> {
        if raw.is_empty() || raw.len() > 128 {
            return Err(InvalidName("a document id has 1 to 128 characters"));
        }
        if !raw.bytes().all(|b| b.is_ascii_alphanumeric() || b"._~:-".contains(&b)) {
            return Err(InvalidName("a document id consists of letters, digits and . _ ~ : -"));
        }
        if raw == "." || raw == ".." || raw == "cancel_pipeline" || RESERVED_DOCUMENT_IDS.contains(&raw) {
            return Err(InvalidName("this document id is the name of a route"));
        }
        Ok(Self(raw.to_owned()))
    }

    /// An identifier read back from the store, where it was checked when it came in.
    #[must_use]
    pub fn stored(raw: String) -> Self {
        Self(raw)
    }

    /// The identifier as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A namespace's name: `[a-z0-9][a-z0-9_-]{0,62}`. `default` always exists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct NamespaceName(String);

impl NamespaceName {
    /// The name of the namespace that always exists.
    pub const DEFAULT: &'static str = "default";

    /// Checks alphabet and length.
    ///
    /// # Errors
    /// [`InvalidName`] names the rule that is broken.
    pub fn parse(raw: &str) -> Result<Self, InvalidName> {
        let mut bytes = raw.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let rest = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
        if !first || !rest || raw.len() > 63 {
            return Err(InvalidName(
                "a namespace is 1 to 63 of a-z, 0-9, _ and -, beginning with a letter or digit",
            ));
        }
        Ok(Self(raw.to_owned()))
    }

    /// Whether this is the namespace that always exists.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.0 == Self::DEFAULT
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for NamespaceName {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

impl fmt::Display for NamespaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tenant's short name in host names: `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Slug(String);

impl Slug {
    /// Checks that the name can be a label of a host name.
    ///
    /// # Errors
    /// [`InvalidName`] names the rule that is broken.
    pub fn parse(raw: &str) -> Result<Self, InvalidName> {
        let inside = raw.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if raw.is_empty() || raw.len() > 63 || !inside || raw.starts_with('-') || raw.ends_with('-') {
            return Err(InvalidName("a slug is 1 to 63 of a-z, 0-9 and -, with no - at either end"));
        }
        // Where a tenant is named, an id and a slug are told apart by their form.
        if Uuid::try_parse(raw).is_ok() {
            return Err(InvalidName("a slug does not look like a UUID"));
        }
        Ok(Self(raw.to_owned()))
    }

    /// The slug as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Identity of an embedding model: a hash of weights, tokenizer, pooling, prefix and maximum length.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelId(String);

impl ModelId {
    /// From 16 lower-case hexadecimal digits, so that it can be a part of a path or a table's name.
    ///
    /// # Errors
    /// [`InvalidName`] when it is anything else.
    pub fn parse(raw: &str) -> Result<Self, InvalidName> {
        if raw.len() == 16 && raw.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            Ok(Self(raw.to_owned()))
        } else {
            Err(InvalidName("a model id is 16 lower-case hexadecimal digits"))
        }
    }

    /// The identity as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where new identifiers and secrets come from.
pub trait IdSource: Send + Sync + fmt::Debug {
    /// A new identifier (version 7: ordered by time).
    fn uuid(&self) -> Uuid;
    /// 256 bits for a secret.
    fn secret(&self) -> [u8; 32];
}

/// The operating system's randomness and the given clock.
#[derive(Debug)]
pub struct SystemIds<C>(pub C);

impl<C: Clock> IdSource for SystemIds<C> {
    fn uuid(&self) -> Uuid {
        let bytes = self.secret();
        let mut random = [0; 10];
        random.copy_from_slice(&bytes[..10]);
        let millis = u64::try_from(self.0.now().timestamp_millis()).unwrap_or_default();
        uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
    }

    fn secret(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the operating system gives randomness");
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_id_that_is_a_route_is_refused() {
        assert!(DocumentId::parse("upload").is_err());
        assert!(DocumentId::parse("..").is_err());
        assert!(DocumentId::parse("a/b").is_err());
        assert!(DocumentId::parse("doc-1:2~x._").is_ok());
    }

    #[test]
    fn namespaces_that_differ_stay_different() {
        assert_ne!(NamespaceName::parse("a-b"), NamespaceName::parse("a_b"));
        assert!(NamespaceName::parse("-a").is_err());
        assert!(NamespaceName::parse("A").is_err());
        assert!(NamespaceName::parse(&"a".repeat(64)).is_err());
    }
}
