//! Namespace, query, path and header values of a request, each checked once. All wait for the permit.

use std::future::Future;
use std::pin::Pin;

use actix_web::dev::Payload;
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::{FromRequest, HttpMessage, HttpRequest};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::edge::RequestId;
use super::identity::gate;
use super::json::tenant_named;
use super::problem::{FieldError, Kind, Problem};
use crate::domain::ids::{DocumentId, JobId, NamespaceName};

const NAMESPACE: [HeaderName; 2] =
    [HeaderName::from_static("lightrag-workspace"), HeaderName::from_static("x-namespace")];
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const PREFER: HeaderName = HeaderName::from_static("prefer");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

pub(super) type Extraction<T> = Pin<Box<dyn Future<Output = Result<T, Problem>>>>;

/// Reads something of the head once the caller was let in.
pub(super) fn behind_gate<T: 'static>(
    request: &HttpRequest,
    value: impl FnOnce(&HttpRequest) -> Result<T, Problem>,
) -> Extraction<T> {
    let gate = gate(request);
    let value = value(request);
    Box::pin(async move {
        gate?.await?;
        value
    })
}

/// The one value of a header that may be repeated, if all of them are equal.
fn one<'a>(headers: &'a HeaderMap, names: &[HeaderName]) -> Result<Option<&'a str>, ()> {
    let mut values = names.iter().flat_map(|name| headers.get_all(name)).map(HeaderValue::to_str);
    let Some(first) = values.next() else { return Ok(None) };
    let first = first.map_err(drop)?.trim();
    for other in values {
        if other.map_err(drop)?.trim() != first {
            return Err(());
        }
    }
    Ok(Some(first))
}

/// The namespace inside the caller's tenant that the request is about; `default` when it names none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace(pub NamespaceName);

impl FromRequest for Namespace {
    type Error = Problem;
    type Future = Extraction<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        behind_gate(request, |request| {
            let malformed = || Problem::new(Kind::NamespaceMalformed);
            match one(request.headers(), &NAMESPACE).map_err(|()| malformed())? {
                Some(name) => NamespaceName::parse(name).map(Self).map_err(|_| malformed()),
                None => Ok(Self(NamespaceName::default())),
            }
        })
    }
}

/// Query parameters. Unknown ones are ignored, unless they name a tenant.
#[derive(Debug)]
pub struct ApiQuery<T>(pub T);

impl<T: DeserializeOwned + 'static> FromRequest for ApiQuery<T> {
    type Error = Problem;
    type Future = Extraction<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        behind_gate(request, |request| parse_query(request.query_string()).map(Self))
    }
}

fn parse_query<T: DeserializeOwned>(query: &str) -> Result<T, Problem> {
    let wrong = |rule, name: &str, msg: &str| {
        let loc = vec![json!("query"), json!(name)];
        Problem::invalid(vec![FieldError { rule, loc, msg: msg.to_owned(), input: Value::Null, ctx: None }])
    };
    let pairs = actix_web::web::Query::<Vec<(String, String)>>::from_query(query)
        .map_err(|_| wrong("value_error", "", "The query cannot be read"))?
        .into_inner();
    let names = pairs.iter().map(|(name, _)| (name.clone(), Value::Null)).collect();
    if let Some(name) = tenant_named(&names) {
        return Err(wrong("extra_forbidden", name, "The tenant comes from the credential alone"));
    }
    if let Some((name, _)) = pairs.iter().find(|(name, value)| name.contains('\0') || value.contains('\0')) {
        return Err(wrong("string_nul", &name.replace('\0', ""), "A text has no NUL character"));
    }
    actix_web::web::Query::<T>::from_query(query).map(actix_web::web::Query::into_inner).map_err(|error| {
        let text = error.to_string();
        match text.split('`').nth(1).filter(|_| text.contains("missing field")) {
            Some(name) => wrong("missing", name, "Field required"),
            None => wrong("value_error", "", "A parameter has a value that is not allowed"),
        }
    })
}

/// The document that the path names. One that cannot exist is not there.
#[derive(Debug, Clone)]
pub struct DocumentPath(pub DocumentId);

impl FromRequest for DocumentPath {
    type Error = Problem;
    type Future = Extraction<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        behind_gate(request, |request| {
            let raw = path_part(request, "id").ok_or_else(Problem::not_found)?;
            DocumentId::parse(&raw).map(Self).map_err(|rule| {
                if request.method() == actix_web::http::Method::PUT {
                    let loc = vec![json!("path"), json!("id")];
                    let field = FieldError {
                        rule: "value_error",
                        loc,
                        msg: rule.0.to_owned(),
                        input: Value::Null,
                        ctx: None,
                    };
                    Problem::invalid(vec![field])
                } else {
                    Problem::not_found()
                }
            })
        })
    }
}

/// A decoded part of the path.
pub(super) fn path_part(request: &HttpRequest, name: &str) -> Option<String> {
    // By position: the router's deserialiser gives names to structs alone, and only it decodes.
    let position = request.match_info().iter().position(|(found, _)| found == name)?;
    let parts = actix_web::web::Path::<Vec<String>>::extract(request);
    let mut parts = futures::FutureExt::now_or_never(parts)?.ok()?.into_inner();
    (position < parts.len()).then(|| parts.swap_remove(position))
}

/// A track's name in the path; `None` when no track can have it.
#[derive(Debug, Clone)]
pub struct TrackPath {
    /// As it was sent.
    pub raw: String,
    /// As the store may be asked for it.
    pub known_form: bool,
}

impl FromRequest for TrackPath {
    type Error = Problem;
    type Future = Extraction<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        behind_gate(request, |request| {
            let raw = path_part(request, "track_id").ok_or_else(Problem::not_found)?;
            let known_form =
                raw.len() <= 64 && raw.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            Ok(Self { raw, known_form })
        })
    }
}

/// The job that the path names.
#[derive(Debug, Clone, Copy)]
pub struct JobPath(pub JobId);

impl FromRequest for JobPath {
    type Error = Problem;
    type Future = Extraction<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        behind_gate(request, |request| {
            let raw = path_part(request, "id").ok_or_else(Problem::not_found)?;
            let id = uuid::Uuid::try_parse(&raw).map_err(|_| Problem::not_found())?;
            Ok(Self(JobId(id)))
        })
    }
}

/// The key under which a repeated write is answered as the first was.
#[derive(Debug, Clone)]
pub struct IdempotencyKey(pub Option<String>);

impl FromRequest for IdempotencyKey {
    type Error = Problem;
    type Future = Extraction<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        behind_gate(request, |request| {
            let malformed = || {
                Problem::new(Kind::BadRequest)
                    .saying("`Idempotency-Key` is one value of 1 to 255 visible characters.")
            };
            let key = one(request.headers(), &[IDEMPOTENCY_KEY]).map_err(|()| malformed())?;
            if key.is_some_and(|key| {
                key.is_empty() || key.len() > 255 || !key.bytes().all(|b| (0x20..0x7f).contains(&b))
            }) {
                return Err(malformed());
            }
            Ok(Self(key.map(str::to_owned)))
        })
    }
}

/// How long the caller would wait for the result (`Prefer: wait=SECONDS`, RFC 7240).
#[derive(Debug, Clone, Copy)]
pub struct PreferWait(pub Option<u64>);

impl FromRequest for PreferWait {
    type Error = Problem;
    type Future = Extraction<Self>;

    /// A preference that cannot be read is ignored, as the standard wants it.
    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        behind_gate(request, |request| {
            let preferences = request.headers().get_all(&PREFER).filter_map(|value| value.to_str().ok());
            let wait = preferences.flat_map(|value| value.split([',', ';'])).find_map(|preference| {
                let (name, seconds) = preference.split_once('=')?;
                let named = name.trim().eq_ignore_ascii_case("wait");
                named.then(|| seconds.trim().trim_matches('"').parse().ok()).flatten()
            });
            Ok(Self(wait))
        })
    }
}

/// Where a broken stream goes on.
#[derive(Debug, Clone, Copy)]
pub struct LastEventId(pub Option<i64>);

impl FromRequest for LastEventId {
    type Error = Problem;
    type Future = Extraction<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        behind_gate(request, |request| {
            let id = request
                .headers()
                .get(&LAST_EVENT_ID)
                .and_then(|value| value.to_str().ok()?.trim().parse().ok());
            Ok(Self(id))
        })
    }
}

impl FromRequest for RequestId {
    type Error = Problem;
    type Future = std::future::Ready<Result<Self, Problem>>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        let id = request.extensions().get::<Self>().copied();
        std::future::ready(id.ok_or_else(|| Problem::internal("a request without an id")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    struct Limits {
        limit: u32,
    }

    #[test]
    fn a_part_of_the_path_is_found_by_its_name_and_decoded() {
        let request = actix_web::test::TestRequest::default().param("id", "a%20b").param("key_id", "k");
        let request = request.to_http_request();
        assert_eq!(path_part(&request, "id").as_deref(), Some("a b"));
        assert_eq!(path_part(&request, "key_id").as_deref(), Some("k"));
        assert_eq!(path_part(&request, "name"), None);
    }

    #[test]
    fn a_query_that_names_a_tenant_is_refused() {
        assert_eq!(parse_query::<Limits>("limit=3&x=1").expect("read").limit, 3);
        for query in ["limit=3&tenant_id=b", "limit=3&TENANT=b", "limit=x", "", "limit=3&x=%00"] {
            let problem = parse_query::<Limits>(query).expect_err("refused");
            assert_eq!(problem.kind(), Kind::InvalidBody, "{query}");
        }
    }
}
