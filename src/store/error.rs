//! The one error of every back end: what kind, whether to try again, where, and why.

use std::time::Duration;

/// What went wrong, in kinds that callers treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The store is away or a pool is full: 503.
    Unavailable,
    /// The deadline passed: 503.
    Timeout,
    /// The thing exists already, or changed meanwhile: 409.
    Conflict,
    /// The request cannot be carried out as it is.
    Invalid,
    /// What is stored cannot be read; the index is to be rebuilt.
    Damaged,
    /// A row of another partition came back. Never trimmed in silence.
    Foreign,
    /// Anything else: a fault of ours.
    Internal,
}

impl ErrorKind {
    /// Whether the store is to blame and not the call: what it holds is not known, and the same call may succeed later.
    #[must_use]
    pub fn is_outage(self) -> bool {
        matches!(self, Self::Unavailable | Self::Timeout)
    }
}

/// When the same call may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Not as it is.
    Never,
    /// After this time.
    After(Duration),
}

/// A failed call to a back end. Its words are for the log, never for a caller.
#[derive(Debug, thiserror::Error)]
#[error("{backend}: {operation}: {kind:?}: {context}")]
pub struct StoreError {
    /// What went wrong.
    pub kind: ErrorKind,
    /// Whether and when to try again.
    pub retry: Retry,
    /// Which back end, as `postgres` or `qdrant_edge`.
    pub backend: &'static str,
    /// What was being done, resource first, as `chunk.search`.
    pub operation: &'static str,
    /// What is known beside the source, without tenant text.
    pub context: String,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// An error of this kind, with the usual advice on trying again.
    #[must_use]
    pub fn new(
        kind: ErrorKind,
        backend: &'static str,
        operation: &'static str,
        context: impl Into<String>,
    ) -> Self {
        let retry = if kind.is_outage() { Retry::After(Duration::from_secs(1)) } else { Retry::Never };
        Self { kind, retry, backend, operation, context: context.into(), source: None }
    }

    /// The same error with its cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same error for somebody else who waits for the same call. The cause stays with the original.
    #[must_use]
    pub fn retold(&self) -> Self {
        Self {
            kind: self.kind,
            retry: self.retry,
            backend: self.backend,
            operation: self.operation,
            context: self.context.clone(),
            source: None,
        }
    }
}
