//! Who asks: the extractors that come first in every handler, and the gate that all others wait at.
//!
//! The server polls a handler's extractors together, so that reading a body could begin before the permit is
//! decided. Hence the gate: the first extractor leaves its decision in the request, and every other extractor
//! of this module's floor waits for it before it looks at anything.
//!
//! **Invariant:** an extractor without a gate before it fails; nothing is read for a caller who is not let in.
//! **Invariant:** a refusal by identity is in the audit log before it is answered.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use actix_web::dev::Payload;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::web::Data;
use actix_web::{FromRequest, HttpMessage, HttpRequest};
use futures::FutureExt;
use futures::future::{LocalBoxFuture, Shared};
use tracing::Span;

use super::edge::alarm;
use super::limits::{self, Standings};
use super::operations;
use super::problem::{Kind, Problem};
use super::state::App;
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::domain::ids::TenantId;
use crate::tenancy::{
    Action, Authenticated, Denied, OperatorScope, Permit, PresentedCredentials, Refusal, RefusalKind,
    RequestHints, TenantScope,
};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const X_TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// A caller who was let in, whatever it may do. Streams keep it to ask again whether it still may.
#[derive(Debug, Clone)]
pub struct Caller {
    authenticated: Authenticated,
    standings: Standings,
    attempted: Arc<str>,
}

impl Caller {
    /// The caller's authority.
    #[must_use]
    pub fn scope(&self) -> &TenantScope {
        self.authenticated.scope()
    }

    /// The verified credential.
    #[must_use]
    pub fn authenticated(&self) -> &Authenticated {
        &self.authenticated
    }

    /// Where its limits stand after its request.
    pub(super) fn standings(&self) -> &Standings {
        &self.standings
    }

    /// The operation that it asked for, as `POST /query`.
    #[must_use]
    pub fn attempted(&self) -> &str {
        &self.attempted
    }
}

/// Whom the gate let in.
#[derive(Clone)]
pub(super) enum Identity {
    Tenant(Box<Caller>),
    Operator(OperatorScope),
}

/// The decision that other extractors wait for.
pub(super) type Gate = Shared<LocalBoxFuture<'static, Result<Identity, Problem>>>;

struct GateSlot(Gate);

/// Whose request it is, as soon as a credential says so; for the span and the metrics around it.
#[derive(Debug, Clone, Default)]
pub(super) struct Whose(Arc<OnceLock<TenantId>>);

impl Whose {
    /// The tenant, once it is known.
    pub(super) fn tenant(&self) -> Option<TenantId> {
        self.0.get().copied()
    }

    fn is(&self, tenant: TenantId) {
        if self.0.set(tenant).is_ok() {
            // The request's own, since nothing of a handler runs before the gate.
            Span::current().record("tenant", tracing::field::display(tenant));
        }
    }
}

/// Puts a decision before all extractors that follow.
pub(super) fn close_gate(
    request: &HttpRequest,
    decision: impl Future<Output = Result<Identity, Problem>> + 'static,
) -> Gate {
    // The future must not hold the request, which holds the future.
    let gate = decision.boxed_local().shared();
    request.extensions_mut().insert(GateSlot(gate.clone()));
    gate
}

/// The decision that was made before this extractor.
///
/// # Errors
/// A fault of ours when a handler's first extractor does not decide.
pub(super) fn gate(request: &HttpRequest) -> Result<Gate, Problem> {
    let slot = request.extensions().get::<GateSlot>().map(|slot| slot.0.clone());
    slot.ok_or_else(|| Problem::internal("an extractor comes before the permit"))
}

/// The server's parts.
pub(super) fn state(request: &HttpRequest) -> Result<Data<App>, Problem> {
    request.app_data::<Data<App>>().cloned().ok_or_else(|| Problem::internal("a server without its state"))
}

/// The parts of a request's head that say who asks, without the request.
struct Head {
    authorization: Vec<HeaderValue>,
    x_api_key: Vec<HeaderValue>,
    host: Vec<HeaderValue>,
    authority: Option<String>,
    forwarded_host: Vec<HeaderValue>,
    x_tenant_id: Vec<HeaderValue>,
    peer: Option<IpAddr>,
    /// As limits see it.
    address: Option<IpAddr>,
    /// Method and pattern of the route.
    attempted: Arc<str>,
    whose: Whose,
}

fn values(headers: &HeaderMap, name: &HeaderName) -> Vec<HeaderValue> {
    headers.get_all(name).cloned().collect()
}

fn bytes(values: &[HeaderValue]) -> Vec<&[u8]> {
    values.iter().map(HeaderValue::as_bytes).collect()
}

impl Head {
    fn of(request: &HttpRequest) -> Self {
        let headers = request.headers();
        Self {
            authorization: values(headers, &header::AUTHORIZATION),
            x_api_key: values(headers, &X_API_KEY),
            host: values(headers, &header::HOST),
            authority: request.uri().authority().map(|authority| authority.as_str().to_owned()),
            forwarded_host: values(headers, &X_FORWARDED_HOST),
            x_tenant_id: values(headers, &X_TENANT_ID),
            peer: request.peer_addr().map(|peer| peer.ip()),
            address: limits::address(request),
            attempted: format!("{} {}", request.method(), request.match_pattern().unwrap_or_default()).into(),
            whose: request.extensions().get::<Whose>().cloned().unwrap_or_default(),
        }
    }

    fn credentials(&self) -> PresentedCredentials<'_> {
        PresentedCredentials { authorization: bytes(&self.authorization), x_api_key: bytes(&self.x_api_key) }
    }

    fn hints(&self) -> RequestHints<'_> {
        let mut host = bytes(&self.host);
        host.extend(self.authority.as_deref().map(str::as_bytes));
        RequestHints {
            host,
            forwarded_host: bytes(&self.forwarded_host),
            x_tenant_id: bytes(&self.x_tenant_id),
            peer: self.peer,
        }
    }
}

/// Refuses `attempted`, once it is written down. Where it cannot be, the answer is 503, which says nothing of the credential.
pub(super) async fn refused(app: &App, refusal: Refusal, attempted: &str) -> Problem {
    let problem = Problem::from(refusal.clone());
    if problem.kind() == Kind::Unavailable {
        return problem;
    }
    match app.audit.record_refusal(&refusal, attempted.to_owned()).await {
        Ok(()) => problem,
        Err(error) => Problem::new(Kind::Unavailable).because(error),
    }
}

/// Tells the log of a caller's tenant of a write that was refused for what is there or for a limit, as it tells of
/// writes that were done. What could not be understood was no write.
pub(super) async fn record_refused_write(app: &App, scope: &TenantScope, attempted: &str, problem: &Problem) {
    if problem.kind().is_decision() && operations::writes(attempted) {
        let entry = AuditEntry::new(AuditKind::Write, attempted.to_owned(), Decision::Denied)
            .because(problem.kind().slug());
        app.audit.record(scope, entry).await;
    }
}

/// Refuses a credential, unless so many were refused from its address that another must not be written down.
async fn turned_away(app: &App, head: &Head, refusal: Refusal) -> Problem {
    // That nobody can be asked is no refusal of the credential.
    if refusal.kind() != RefusalKind::Unavailable
        && let Err(problem) = limits::count_refusal(app, head.address).await
    {
        return problem;
    }
    refused(app, refusal, &head.attempted).await
}

/// Verifies a tenant's credential and counts the request; `allowed` then says whether the role suffices.
async fn admit(
    app: Data<App>,
    head: Head,
    allowed: fn(&TenantScope) -> Result<(), Denied>,
) -> Result<Identity, Problem> {
    let authenticated = match app.authenticator.authenticate(&head.credentials(), &head.hints()).await {
        Ok(authenticated) => authenticated,
        Err(refusal) => return Err(turned_away(&app, &head, refusal).await),
    };
    let scope = authenticated.scope();
    head.whose.is(scope.tenant());
    let standings = match limits::count_request(&app, scope).await {
        Ok(standings) => standings,
        Err(problem) => {
            if problem.kind() == Kind::IsolationAlarm {
                alarm(&app, scope).await;
            }
            if operations::writes(&head.attempted) && limits::may_be_recorded(&app, scope).await {
                record_refused_write(&app, scope, &head.attempted, &problem).await;
            }
            return Err(problem);
        }
    };
    if let Err(denied) = allowed(scope) {
        return Err(standings.on(refused(&app, Refusal::missing_role(scope, &denied), &head.attempted).await));
    }
    Ok(Identity::Tenant(Box::new(Caller { authenticated, standings, attempted: head.attempted })))
}

type Extraction<T> = Pin<Box<dyn Future<Output = Result<T, Problem>>>>;

/// Closes the gate for a tenant's caller, and waits for the decision.
fn tenant_gate<T: 'static>(
    request: &HttpRequest,
    allowed: fn(&TenantScope) -> Result<(), Denied>,
    finish: impl FnOnce(Caller) -> Result<T, Problem> + 'static,
) -> Extraction<T> {
    let app = match state(request) {
        Ok(app) => app,
        Err(problem) => return Box::pin(async { Err(problem) }),
    };
    let gate = close_gate(request, admit(app, Head::of(request), allowed));
    let request = request.clone();
    Box::pin(async move {
        let Identity::Tenant(caller) = gate.await? else {
            return Err(Problem::internal("an operator at a tenant's gate"));
        };
        request.extensions_mut().insert(Caller::clone(&caller));
        finish(*caller)
    })
}

impl<A: Action> FromRequest for Permit<A> {
    type Error = Problem;
    type Future = Extraction<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        tenant_gate(
            request,
            |scope| scope.permit::<A>().map(drop),
            |caller| {
                caller.scope().permit::<A>().map_err(|denied| Problem::new(Kind::MissingRole).because(denied))
            },
        )
    }
}

/// First in a handler, it lets in any caller of a tenant, with or without a role. After a permit, it is the
/// caller that the permit was given to.
impl FromRequest for Caller {
    type Error = Problem;
    type Future = Extraction<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        match gate(request) {
            Ok(gate) => Box::pin(async move {
                match gate.await? {
                    Identity::Tenant(caller) => Ok(*caller),
                    Identity::Operator(_) => Err(Problem::internal("an operator at a tenant's gate")),
                }
            }),
            Err(_) => tenant_gate(request, |_| Ok(()), Ok),
        }
    }
}

/// A caller where none is needed: absent without a credential, refused with a wrong one.
pub struct PossibleCaller(pub Option<Caller>);

impl FromRequest for PossibleCaller {
    type Error = Problem;
    type Future = Extraction<Self>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let headers = request.headers();
        if headers.contains_key(header::AUTHORIZATION) || headers.contains_key(X_API_KEY) {
            let caller = Caller::from_request(request, payload);
            Box::pin(async move { Ok(Self(Some(caller.await?))) })
        } else {
            Box::pin(async { Ok(Self(None)) })
        }
    }
}

impl FromRequest for OperatorScope {
    type Error = Problem;
    type Future = Extraction<Self>;

    fn from_request(request: &HttpRequest, _payload: &mut Payload) -> Self::Future {
        let app = match state(request) {
            Ok(app) => app,
            Err(problem) => return Box::pin(async { Err(problem) }),
        };
        let head = Head::of(request);
        let gate = close_gate(request, async move {
            match app.authenticator.authenticate_operator(&head.credentials()).await {
                Ok(operator) => Ok(Identity::Operator(operator)),
                Err(refusal) => Err(turned_away(&app, &head, refusal).await),
            }
        });
        Box::pin(async move {
            match gate.await? {
                Identity::Operator(operator) => Ok(operator),
                Identity::Tenant(_) => Err(Problem::internal("a tenant at the operators' gate")),
            }
        })
    }
}
