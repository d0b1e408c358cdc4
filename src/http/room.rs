//! Room for what a caller would write: asked for before a body is read, and told when there is none.
//!
//! **Invariant:** what is refused here would be refused when it is accepted, which decides.

use actix_web::dev::Payload;
use actix_web::http::{Method, header};
use actix_web::{FromRequest, HttpMessage, HttpRequest};

use super::extract::{Extraction, IDEMPOTENCY_KEY};
use super::identity::{Identity, close_gate, gate, state};
use super::problem::{Kind, Problem};
use crate::domain::limits::Limits;
use crate::store::postgres::usage::{Quota, Usage};
use crate::tenancy::Read;

/// Bytes of a form that are not the file's.
const FORM: u64 = 64 * 1024;

/// Room in the tenant's queue and storage. The answer that counts is given when the document is accepted.
pub struct Room;

impl FromRequest for Room {
    type Error = Problem;
    type Future = Extraction<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        let (before, app) = match (gate(request), state(request)) {
            (Ok(before), Ok(app)) => (before, app),
            (Err(problem), _) | (_, Err(problem)) => return Box::pin(async { Err(problem) }),
        };
        let wanted = Wanted::of(request);
        let gate = close_gate(request, async move {
            let identity = before.await?;
            let Identity::Tenant(caller) = &identity else {
                return Err(Problem::internal("an operator at a tenant's gate"));
            };
            let permit = caller.scope().permit::<Read>();
            let permit = permit.map_err(|denied| Problem::new(Kind::MissingRole).because(denied))?;
            let usage = app.stores.reader(&permit).usage_get().await?;
            match wanted.refused(&usage, &app.quotas.of(caller.scope())) {
                Some(problem) => Err(problem),
                None => Ok(identity),
            }
        });
        Box::pin(async move { gate.await.map(|_| Self) })
    }
}

/// The least that a request would write.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// Whether it makes a document for certain.
    makes: bool,
    /// Bytes that it would keep for certain, 0 where nothing is certain.
    bytes: u64,
    /// Whether it may have been answered before, and must then reach that answer although it filled the storage.
    keyed: bool,
}

impl Wanted {
    fn of(request: &HttpRequest) -> Self {
        let headers = request.headers();
        let stated =
            headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let form =
            request.mime_type().ok().flatten().is_some_and(|media_type| media_type.type_() == "multipart");
        // A text can be far shorter than the JSON that says it.
        let bytes = stated.filter(|_| form).map_or(0, |length: u64| length.saturating_sub(FORM));
        let keyed = headers.contains_key(IDEMPOTENCY_KEY);
        Self { makes: request.method() != Method::PUT, bytes, keyed }
    }

    fn refused(self, usage: &Usage, limits: &Limits) -> Option<Problem> {
        if usage.queue_full(limits) {
            return Some(queue_full());
        }
        if self.keyed {
            return None;
        }
        if self.bytes > limits.bytes {
            let detail = format!("This tenant keeps at most {} bytes.", limits.bytes);
            return Some(Problem::new(Kind::TooLarge).saying(detail));
        }
        // One that is replaced needs no place for another.
        let documents = if self.makes { limits.documents } else { u64::MAX };
        let full = usage.full(&Limits { documents, ..*limits }, self.bytes);
        full.map(|quota| quota_reached(quota, limits))
    }
}

/// More jobs would wait than the tenant may have.
pub(super) fn queue_full() -> Problem {
    Problem::new(Kind::RateLimited)
        .saying("Too many of this tenant's documents wait to be processed.")
        .retry_after(std::time::Duration::from_secs(5))
        .at_limit("queued_jobs")
}

/// More would be kept than the tenant may.
pub(super) fn quota_reached(quota: Quota, limits: &Limits) -> Problem {
    let (name, limit, what) = match quota {
        Quota::Documents => ("documents", limits.documents, "documents"),
        Quota::Bytes => ("bytes", limits.bytes, "bytes of texts and files"),
    };
    let words =
        format!("This tenant keeps at most {limit} {what}. Delete some, or ask the operator for more.");
    Problem::new(Kind::QuotaReached).saying(words).at_limit(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_surely_does_not_fit_is_refused_before_it_is_read() {
        let limits = Limits { documents: 2, bytes: 1000, queued_jobs: 1, ..Limits::default() };
        let usage = |documents, bytes, queued_jobs| Usage { documents, bytes, queued_jobs, running_jobs: 0 };
        let refused =
            |wanted: Wanted, usage: Usage| wanted.refused(&usage, &limits).map(|problem| problem.kind());
        let text = Wanted { makes: true, bytes: 0, keyed: false };
        let put = Wanted { makes: false, ..text };
        let file = |bytes| Wanted { bytes, ..text };
        let again = Wanted { keyed: true, ..text };
        assert_eq!(refused(text, usage(1, 999, 0)), None);
        assert_eq!(refused(text, usage(2, 0, 0)), Some(Kind::QuotaReached));
        assert_eq!(refused(put, usage(2, 0, 0)), None);
        assert_eq!(refused(again, usage(2, 1000, 0)), None);
        assert_eq!(refused(again, usage(0, 0, 1)), Some(Kind::RateLimited));
        assert_eq!(refused(put, usage(2, 1000, 0)), Some(Kind::QuotaReached));
        assert_eq!(refused(text, usage(0, 0, 1)), Some(Kind::RateLimited));
        assert_eq!(refused(file(1000), usage(0, 0, 0)), None);
        assert_eq!(refused(file(1000), usage(0, 1, 0)), Some(Kind::QuotaReached));
        assert_eq!(refused(file(1001), usage(0, 0, 0)), Some(Kind::TooLarge));
    }
}
