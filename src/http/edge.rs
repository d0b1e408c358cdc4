//! The outermost layer: request id, span, panics, headers of every answer, and problems in the form of their route.
//!
//! **Invariant:** whatever fails further in leaves here as a problem document; its causes are logged here, once.
//! **Invariant:** the span names the route's pattern and the tenant's id, never a path, query or header.

use std::panic::AssertUnwindSafe;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::{ConnectionType, header};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpMessage, ResponseError};
use futures::FutureExt;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use uuid::Uuid;

use super::form::{Answer, Form, protect};
use super::identity::{Caller, Whose, record_refused_write};
use super::limits::count_address;
use super::problem::{Kind, Problem};
use super::state::App;
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::telemetry::metrics::{Answered, known};
use crate::tenancy::TenantScope;

/// The id of a request, for answers and the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestId(pub Uuid);

/// Wraps every route of a server.
pub(super) async fn edge(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let Some(app) = request.app_data::<Data<App>>().cloned() else {
        let problem = Problem::internal("a server without its state");
        return Err(Answer { problem, form: Form::Own, request_id: Uuid::nil() }.into());
    };
    let request_id = app.ids.uuid();
    let pattern = request.match_pattern();
    let form = Form::of(request.path(), pattern.as_deref());
    let route = pattern.unwrap_or_default();
    let method = request.method().clone();
    // Of the highest level, so that a line of any level is told with whose it is.
    let span = tracing::error_span!(
        "http.request", %request_id, method = known(method.as_str()), route, tenant = Empty, status = Empty
    );
    let whose = Whose::default();
    request.extensions_mut().insert(RequestId(request_id));
    request.extensions_mut().insert(whose.clone());
    let begun = app.clock.instant();
    let answer =
        answered(&app, request, next, &Around { request_id, form, route: &route, span: &span }).await;
    let status = match &answer {
        Ok(response) => response.status(),
        Err(error) => error.as_response_error().status_code(),
    };
    let took = app.clock.instant().saturating_duration_since(begun);
    let status = status.as_u16();
    app.metrics.answered(&Answered {
        tenant: whose.tenant(),
        method: method.as_str(),
        route: &route,
        status,
        took,
    });
    span.record("status", status);
    span.in_scope(|| tracing::info!(status, milliseconds = took.as_millis(), "answered"));
    answer
}

/// What is known of a request before it is answered.
struct Around<'a> {
    request_id: Uuid,
    form: Form,
    route: &'a str,
    span: &'a Span,
}

async fn answered(
    app: &Data<App>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
    around: &Around<'_>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let Around { request_id, form, route, span } = *around;
    let told = |problem| told(app, Answer { problem, form, request_id });
    let outcome = match count_address(app, &request).await {
        Ok(()) => AssertUnwindSafe(next.call(request)).catch_unwind().instrument(span.clone()).await,
        Err(problem) => Ok(Err(problem.into())),
    };
    let response = match outcome {
        Ok(Ok(response)) => response.map_into_boxed_body(),
        // Neither has a request any more: the answer is rendered whole.
        Ok(Err(error)) => {
            let problem = problem_of(&error);
            return Err(span.in_scope(|| told(problem).into()));
        }
        Err(_panic) => {
            let problem = Problem::internal("a handler panicked");
            return Err(span.in_scope(|| told(problem).into()));
        }
    };
    let mut response = match failed(&response) {
        Some(problem) => {
            let caller = response.request().extensions().get::<Caller>().cloned();
            if let Some(caller) = caller {
                if problem.kind() == Kind::IsolationAlarm {
                    alarm(app, caller.scope()).instrument(span.clone()).await;
                }
                record_refused_write(app, caller.scope(), caller.attempted(), &problem).await;
            }
            let answer = span.in_scope(|| told(problem));
            response.into_response(answer.error_response())
        }
        None => response,
    };
    if route.starts_with("/docs/") {
        // The page of the documentation runs the scripts that are beside it, and nothing else.
        let own = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, header::HeaderValue::from_static(own));
    }
    protect(response.headers_mut(), request_id);
    if app.readiness.is_stopping() {
        // Callers that keep connections open, as proxies do, leave before the server closes them: what they would send
        // at that moment would be lost.
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    let caller = response.request().extensions().get::<Caller>().cloned();
    if let Some(caller) = caller {
        caller.standings().tell(response.status(), response.headers_mut());
    }
    Ok(response)
}

/// The problem behind a response that failed; `None` when it is to go out as it is.
fn failed(response: &ServiceResponse<BoxBody>) -> Option<Problem> {
    let inner = response.response();
    if let Some(error) = inner.error() {
        return Some(problem_of(error));
    }
    // The router's own answers have no body of any type.
    let status = response.status();
    let bare = (status.is_client_error() || status.is_server_error())
        && !inner.headers().contains_key(header::CONTENT_TYPE);
    bare.then(|| {
        let problem = Problem::of_status(status);
        match inner.headers().get(header::ALLOW) {
            Some(methods) => problem.with_header(header::ALLOW, methods.clone()),
            None => problem,
        }
    })
}

fn problem_of(error: &Error) -> Problem {
    match error.as_error::<Problem>() {
        Some(problem) => problem.clone(),
        None => Problem::of_status(error.as_response_error().status_code()).because(error.to_string()),
    }
}

/// Counts a problem, and logs its causes, the one time that they are.
fn told(app: &App, answer: Answer) -> Answer {
    let slug = answer.problem.kind().slug();
    app.metrics.problem(slug);
    if let Some(limit) = answer.problem.limit() {
        app.metrics.limit(limit);
    }
    if let Some(causes) = answer.problem.causes() {
        if answer.problem.status().is_server_error() {
            tracing::error!(slug, causes, "the request failed");
        } else {
            tracing::debug!(slug, causes, "the request was refused");
        }
    }
    answer
}

/// A foreign row stopped the request. The answer is the same whether the log takes the alarm or not.
pub(super) async fn alarm(app: &App, scope: &TenantScope) {
    let entry =
        AuditEntry::new(AuditKind::Alarm, "request.stopped", Decision::Denied).because("isolation-alarm");
    if let Err(error) = app.audit.record_alarm(scope, entry).await {
        tracing::error!(error = &error as &dyn std::error::Error, "an alarm is not in the audit log");
    }
}
