//! The only error outside (RFC 9457): a table of slug, status and title, and what a caller may be told.
//!
//! **Invariant:** no word of a store, model or library reaches a caller; causes are logged once, with the
//! request id that the body carries.
//! **Invariant:** no problem names the thing that was asked for: what is missing and what is somebody else's
//! are answered by equal bytes.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use serde_json::Value;

use crate::inference::{EmbedderError, LanguageModelError};
use crate::retrieval::RetrievalError;
use crate::store::error::{ErrorKind, Retry, StoreError};
use crate::tenancy::{Refusal, RefusalKind};

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident, $status:literal, $slug:literal, $title:literal, $detail:literal;)*) => {
        /// What went wrong, in the words that callers are given.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind {
            $($(#[$doc])* $name,)*
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The HTTP status.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// The stable name that programs compare.
            #[must_use]
            pub const fn slug(self) -> &'static str {
                match self { $(Self::$name => $slug,)* }
            }

            /// The same for every occurrence.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// What to do, when nothing more particular is said.
            #[must_use]
            pub const fn usual_detail(self) -> &'static str {
                match self { $(Self::$name => $detail,)* }
            }
        }
    };
}

problems! {
    /// No credential that is accepted.
    Unauthorized, 401, "unauthorized", "No valid credential",
        "Send an API key or a token as `Authorization: Bearer ...` or `X-API-Key: ...`.";
    /// The credential has ended.
    TokenExpired, 401, "token-expired", "The credential has expired", "Ask for a new credential.";
    /// Host or header names a tenant in a form that cannot be read.
    TenantHintMalformed, 400, "tenant-hint-malformed", "The request names a tenant in a form that cannot be read",
        "A host name or header names a tenant in a wrong form, or two of them differ.";
    /// The credential names no tenant.
    NoTenant, 403, "no-tenant", "The credential belongs to no tenant", "Use a credential of a tenant.";
    /// The request names another tenant than the credential's.
    TenantMismatch, 403, "tenant-mismatch", "The request names another tenant than its credential",
        "Use a credential of the tenant that the request names.";
    /// The caller's own tenant is suspended.
    TenantSuspended, 403, "tenant-suspended", "The tenant is suspended", "Ask the operator to resume the tenant.";
    /// The role does not include the action.
    MissingRole, 403, "missing-role", "The credential does not allow this",
        "Use a credential with a role that includes this action.";
    /// A request that cannot be understood.
    BadRequest, 400, "bad-request", "The request cannot be understood", "Something in the request is malformed.";
    /// A namespace's name is malformed, or two headers name different ones.
    NamespaceMalformed, 400, "namespace-malformed", "The namespace cannot be read",
        "`LIGHTRAG-WORKSPACE` or `X-Namespace` names one namespace: 1 to 63 of a-z, 0-9, _ and -, beginning with a letter or digit.";
    /// A file of a type that is not read.
    UnsupportedFile, 400, "unsupported-file-type", "This type of file is not supported",
        "`GET /documents/supported_file_types` lists the extensions that are.";
    /// Not there, or somebody else's.
    NotFound, 404, "not-found", "Not found", "There is nothing here that this credential reaches.";
    /// Another method than the route has.
    MethodNotAllowed, 405, "method-not-allowed", "This method is not allowed here", "The header `Allow` names the methods that are.";
    /// The request did not arrive in time.
    RequestTimeout, 408, "request-timeout", "The request took too long to arrive", "Send the body without pauses.";
    /// It exists already, or changed meanwhile.
    Conflict, 409, "conflict", "The request conflicts with what is there", "Something with this name is there already, or it changed meanwhile.";
    /// The body is too large.
    TooLarge, 413, "too-large", "The request is too large", "Send less at once.";
    /// The media type is not accepted.
    UnsupportedMediaType, 415, "unsupported-media-type", "This content type is not accepted", "Send `Content-Type: application/json`.";
    /// The body or a parameter is invalid.
    InvalidBody, 422, "invalid-body", "The request is invalid", "A field is missing or has a value that is not allowed.";
    /// The key was used for another body.
    IdempotencyKeyReused, 422, "idempotency-key-reused", "The idempotency key was used for another request",
        "Use a new `Idempotency-Key` for each request, and the same one only to repeat it.";
    /// Over the tenant's limit.
    RateLimited, 429, "rate-limited", "The tenant's limit is reached", "Try again later.";
    /// The tenant keeps as much as it may.
    QuotaReached, 429, "quota-reached", "The tenant keeps as much as it may",
        "Delete documents, or ask the operator for more.";
    /// A foreign row came back from a store.
    IsolationAlarm, 500, "isolation-alarm", "The request was stopped", "The request was stopped to protect data.";
    /// A fault of ours.
    Internal, 500, "internal", "Something went wrong here", "The request id names this error in the server's log.";
    /// It needs a language model, and there is none.
    NoLanguageModel, 501, "no-language-model", "No language model is configured",
        "This call needs a language model, and this server has none.";
    /// A store is away, a pool is full, or a deadline passed.
    Unavailable, 503, "unavailable", "The service is not available at the moment", "Try again in a moment.";
}

impl Kind {
    /// Whether a request was understood and refused for what is there already or for a limit, not for its form.
    #[must_use]
    pub const fn is_decision(self) -> bool {
        matches!(self, Self::Conflict | Self::IdempotencyKeyReused | Self::RateLimited | Self::QuotaReached)
    }
}

/// One field that is wrong, in the words that LightRAG's clients read.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct FieldError {
    /// The rule that is broken, as `missing` or `string_too_short`.
    #[serde(rename = "type")]
    pub rule: &'static str,
    /// Where: `body`, `query` or `path`, then names and positions.
    #[schema(value_type = Vec<String>)]
    pub loc: Vec<Value>,
    /// For people.
    pub msg: String,
    /// The short value that was sent; empty for anything long.
    #[schema(value_type = Object)]
    pub input: Value,
    /// The rule's bounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub ctx: Option<Value>,
}

/// An answer that says what went wrong.
#[derive(Debug, Clone)]
pub struct Problem {
    kind: Kind,
    detail: Cow<'static, str>,
    fields: Arc<[FieldError]>,
    retry_after: Option<Duration>,
    headers: Vec<(HeaderName, HeaderValue)>,
    cause: Option<Arc<dyn StdError + Send + Sync>>,
    limit: Option<&'static str>,
}

impl Problem {
    /// A problem in the kind's usual words.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        let retry_after = match kind {
            Kind::Unavailable | Kind::RateLimited => Some(Duration::from_secs(1)),
            // Nothing comes back by itself.
            Kind::QuotaReached => Some(Duration::from_mins(1)),
            _ => None,
        };
        Self {
            kind,
            detail: Cow::Borrowed(kind.usual_detail()),
            fields: Arc::new([]),
            retry_after,
            headers: Vec::new(),
            cause: None,
            limit: None,
        }
    }

    /// What is not there or is somebody else's.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(Kind::NotFound)
    }

    /// A fault of ours, for what cannot happen.
    #[must_use]
    pub fn internal(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(Kind::Internal).because(cause)
    }

    /// Fields that are wrong.
    #[must_use]
    pub fn invalid(fields: Vec<FieldError>) -> Self {
        let detail = fields.first().map(|field| {
            let place: Vec<String> = field
                .loc
                .iter()
                .map(|part| part.as_str().map_or_else(|| part.to_string(), str::to_owned))
                .collect();
            format!("{}: {}", place.join("."), field.msg)
        });
        let problem = Self { fields: fields.into(), ..Self::new(Kind::InvalidBody) };
        match detail {
            Some(detail) => problem.saying(detail),
            None => problem,
        }
    }

    /// The same problem with more particular words. They name rules and bounds, never a thing that was asked for.
    #[must_use]
    pub fn saying(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = detail.into();
        self
    }

    /// The same problem with its cause, for the log.
    #[must_use]
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.cause = Some(Arc::from(cause.into()));
        self
    }

    /// The same problem with the time after which to try again.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The same problem, met at this limit; for metrics alone.
    #[must_use]
    pub(super) fn at_limit(self, limit: &'static str) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// The limit at which it was met.
    pub(super) fn limit(&self) -> Option<&'static str> {
        self.limit
    }

    /// The same problem with a header of its own, as `Allow`.
    #[must_use]
    pub(super) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The headers of its own.
    pub(super) fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> + '_ {
        self.headers.iter().cloned()
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// What a person is told.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The fields that are wrong.
    #[must_use]
    pub fn fields(&self) -> &[FieldError] {
        &self.fields
    }

    /// When to try again.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Cause and its causes, for the log alone.
    #[must_use]
    pub fn causes(&self) -> Option<String> {
        let mut cause: &dyn StdError = self.cause.as_deref()?;
        let mut chain = cause.to_string();
        while let Some(next) = cause.source() {
            chain.push_str(": ");
            chain.push_str(&next.to_string());
            cause = next;
        }
        Some(chain)
    }

    /// The problem of an answer that somebody else made, by its status alone.
    #[must_use]
    pub(super) fn of_status(status: StatusCode) -> Self {
        let known = [
            Kind::BadRequest,
            Kind::Unauthorized,
            Kind::MissingRole,
            Kind::NotFound,
            Kind::MethodNotAllowed,
            Kind::RequestTimeout,
            Kind::Conflict,
            Kind::TooLarge,
            Kind::UnsupportedMediaType,
            Kind::InvalidBody,
            Kind::RateLimited,
            Kind::Unavailable,
        ];
        let kind = known.into_iter().find(|kind| kind.status() == status.as_u16());
        let other = if status.is_server_error() { Kind::Internal } else { Kind::BadRequest };
        Self::new(kind.unwrap_or(other))
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind.slug())
    }
}

impl StdError for Problem {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn StdError + 'static))
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.status()
    }

    /// Empty: the edge, which knows the route and the request id, writes the body.
    fn error_response(&self) -> HttpResponse {
        HttpResponse::new(self.status())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let kind = match error.kind {
            ErrorKind::Unavailable | ErrorKind::Timeout => Kind::Unavailable,
            ErrorKind::Conflict => Kind::Conflict,
            ErrorKind::Invalid => Kind::InvalidBody,
            ErrorKind::Foreign => Kind::IsolationAlarm,
            ErrorKind::Damaged | ErrorKind::Internal => Kind::Internal,
        };
        let problem = Self::new(kind);
        let problem = match (kind, error.retry) {
            (Kind::Unavailable, Retry::After(wait)) => problem.retry_after(wait),
            _ => problem,
        };
        problem.because(error)
    }
}

impl From<RetrievalError> for Problem {
    fn from(error: RetrievalError) -> Self {
        match error {
            RetrievalError::ForeignRow { .. } => Self::new(Kind::IsolationAlarm).because(error),
            RetrievalError::NoModel(_) => Self::new(Kind::Unavailable).because(error),
            RetrievalError::Store(error) => error.into(),
            RetrievalError::Embed(error) => error.into(),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::new(match refusal.kind() {
            RefusalKind::Unauthorized => Kind::Unauthorized,
            RefusalKind::TokenExpired => Kind::TokenExpired,
            RefusalKind::TenantHintMalformed => Kind::TenantHintMalformed,
            RefusalKind::NoTenant => Kind::NoTenant,
            RefusalKind::TenantMismatch => Kind::TenantMismatch,
            RefusalKind::TenantSuspended => Kind::TenantSuspended,
            RefusalKind::MissingRole => Kind::MissingRole,
            RefusalKind::Unavailable => Kind::Unavailable,
        })
    }
}

impl From<EmbedderError> for Problem {
    fn from(error: EmbedderError) -> Self {
        let kind = match error {
            EmbedderError::Busy | EmbedderError::Stopped => Kind::Unavailable,
            _ => Kind::Internal,
        };
        Self::new(kind).because(error)
    }
}

impl From<LanguageModelError> for Problem {
    fn from(error: LanguageModelError) -> Self {
        Self::new(Kind::Unavailable).because(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_the_status_and_slug_of_the_table() {
        for refusal in RefusalKind::ALL {
            let kind = Kind::ALL.iter().find(|kind| kind.slug() == refusal.slug()).expect("in the table");
            assert_eq!(kind.status(), refusal.status(), "{}", refusal.slug());
        }
    }

    #[test]
    fn slugs_are_unique() {
        let mut slugs: Vec<_> = Kind::ALL.iter().map(|kind| kind.slug()).collect();
        slugs.sort_unstable();
        slugs.dedup();
        assert_eq!(slugs.len(), Kind::ALL.len());
    }

    #[test]
    fn a_store_that_is_away_is_never_a_word_about_the_thing_asked_for() {
        let away = StoreError::new(ErrorKind::Unavailable, "postgres", "document.get", "no route");
        let problem = Problem::from(away);
        assert_eq!(problem.kind(), Kind::Unavailable);
        assert!(problem.wait().is_some());
        let foreign = StoreError::new(ErrorKind::Foreign, "postgres", "chunk.read", "tenant x");
        let problem = Problem::from(foreign);
        assert_eq!(problem.kind(), Kind::IsolationAlarm);
        assert!(!problem.detail().contains("tenant x"));
        assert!(problem.causes().expect("a cause").contains("tenant x"));
    }
}
