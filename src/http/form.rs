//! The form of a problem, chosen by route in this one place: LightRAG's, OpenAI's and Ollama's clients each
//! look for the words in a field of their own, and every form is a problem document (RFC 9457) besides.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use serde_json::{Value, json};
use uuid::Uuid;

use super::problem::{Kind, Problem};

/// The name of the header that carries the request's id.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Whose clients read the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// LightRAG's: wrong fields are a list under `detail`.
    LightRag,
    /// LightRAG's `/query/data`, which answers invalid input with 400 and a form of its own.
    QueryData,
    /// OpenAI's: an object under `error`.
    OpenAi,
    /// Ollama's: a text under `error`.
    Ollama,
    /// Our own: wrong fields are a list under `errors`.
    Own,
}

/// Our own routes among LightRAG's.
const OWN: [&str; 8] = [
    "/documents/{id}",
    "/documents/track_status/{track_id}/events",
    "/namespaces",
    "/jobs",
    "/admin",
    "/usage",
    "/ready",
    "/auth/whoami",
];

impl Form {
    /// The form of a route, given the request's path and the pattern that it matched.
    pub(super) fn of(path: &str, pattern: Option<&str>) -> Self {
        let own = |pattern: &str| {
            OWN.iter().any(|own| {
                pattern == *own || pattern.strip_prefix(own).is_some_and(|rest| rest.starts_with('/'))
            })
        };
        if path.starts_with("/v1/") {
            Self::OpenAi
        } else if path.starts_with("/api/") {
            Self::Ollama
        } else if path == "/query/data" {
            Self::QueryData
        } else if pattern.is_some_and(own) || path == "/query/explain" {
            Self::Own
        } else {
            Self::LightRag
        }
    }
}

/// A problem on its way out.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) problem: Problem,
    pub(super) form: Form,
    pub(super) request_id: Uuid,
}

impl Answer {
    fn failure(&self) -> bool {
        self.form == Form::QueryData && matches!(self.problem.kind(), Kind::InvalidBody | Kind::BadRequest)
    }

    fn status(&self) -> StatusCode {
        if self.failure() { StatusCode::BAD_REQUEST } else { self.problem.status() }
    }

    /// The body.
    pub(super) fn body(&self) -> Value {
        let problem = &self.problem;
        let (kind, detail) = (problem.kind(), problem.detail());
        let mut body = json!({
            "type": format!("urn:bulkhead:problem:{}", kind.slug()),
            "title": kind.title(),
            "status": self.status().as_u16(),
            "slug": kind.slug(),
            "detail": detail,
            "request_id": self.request_id,
        });
        let mut add = |name: &str, value: Value| body[name] = value;
        if !problem.fields().is_empty() {
            let place = if self.form == Form::LightRag { "detail" } else { "errors" };
            add(place, json!(problem.fields()));
        }
        match self.form {
            Form::OpenAi => {
                add("error", openai_error(problem));
            }
            Form::Ollama => add("error", json!(detail)),
            Form::QueryData if self.failure() => {
                add("status", json!("failure"));
                add("message", json!(detail));
                add("data", json!({}));
                add("metadata", json!({}));
            }
            Form::QueryData | Form::LightRag | Form::Own => {}
        }
        body
    }
}

/// A problem as OpenAI's clients read it.
pub(super) fn openai_error(problem: &Problem) -> Value {
    let kind = problem.kind();
    json!({"message": problem.detail(), "type": openai_type(kind), "param": null, "code": kind.slug()})
}

fn openai_type(kind: Kind) -> &'static str {
    match kind.status() {
        401 => "authentication_error",
        403 => "permission_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.problem.fmt(f)
    }
}

impl std::error::Error for Answer {}

impl ResponseError for Answer {
    fn status_code(&self) -> StatusCode {
        self.status()
    }

    fn error_response(&self) -> HttpResponse {
        let mut builder = HttpResponse::build(self.status());
        builder.insert_header((header::CONTENT_TYPE, "application/problem+json"));
        if self.status() == StatusCode::UNAUTHORIZED {
            builder.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        if let Some(wait) = self.problem.wait() {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            builder.insert_header((header::RETRY_AFTER, seconds.max(1)));
        }
        for (name, value) in self.problem.headers() {
            builder.insert_header((name, value));
        }
        let mut response = builder.body(self.body().to_string());
        protect(response.headers_mut(), self.request_id);
        response
    }
}

/// The headers of every answer.
pub(super) fn protect(headers: &mut header::HeaderMap, request_id: Uuid) {
    const FIXED: [(HeaderName, &str); 4] = [
        (header::CACHE_CONTROL, "private, no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    ];
    for (name, value) in FIXED {
        if !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    if let Ok(value) = HeaderValue::from_str(&request_id.to_string()) {
        headers.insert(REQUEST_ID, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::problem::FieldError;

    fn answer(kind: Kind, form: Form) -> Answer {
        let problem = if kind == Kind::InvalidBody {
            let loc = vec![json!("body"), json!("text")];
            Problem::invalid(vec![FieldError {
                rule: "missing",
                loc,
                msg: "Field required".into(),
                input: json!({}),
                ctx: None,
            }])
        } else {
            Problem::new(kind)
        };
        Answer { problem, form, request_id: Uuid::nil() }
    }

    #[test]
    fn the_clients_of_each_surface_find_the_words_where_they_look() {
        let body = answer(Kind::InvalidBody, Form::LightRag).body();
        assert_eq!(body["detail"][0]["type"], "missing");
        let body = answer(Kind::InvalidBody, Form::Own).body();
        assert_eq!(
            (&body["detail"], &body["errors"][0]["loc"][1]),
            (&json!("body.text: Field required"), &json!("text"))
        );
        let body = answer(Kind::NotFound, Form::OpenAi).body();
        assert_eq!((&body["error"]["code"], &body["status"]), (&json!("not-found"), &json!(404)));
        assert!(answer(Kind::NotFound, Form::Ollama).body()["error"].is_string());
        let failure = answer(Kind::InvalidBody, Form::QueryData);
        assert_eq!(failure.status_code(), StatusCode::BAD_REQUEST);
        assert_eq!((&failure.body()["status"], &failure.body()["data"]), (&json!("failure"), &json!({})));
    }

    #[test]
    fn the_route_decides_the_form() {
        assert_eq!(Form::of("/documents/doc-1", Some("/documents/{id}")), Form::Own);
        assert_eq!(Form::of("/documents/text", Some("/documents/text")), Form::LightRag);
        assert_eq!(Form::of("/admin/tenants", Some("/admin/tenants")), Form::Own);
        assert_eq!(Form::of("/v1/models", None), Form::OpenAi);
        assert_eq!(Form::of("/api/chat", None), Form::Ollama);
        assert_eq!(Form::of("/no/such", None), Form::LightRag);
    }
}
