//! Requests counted before they are looked at: by address, then by principal and tenant; and what a caller is
//! told of where it stands.
//!
//! **Invariant:** a caller is told numbers of its own tenant alone. Those of an address, which neighbours may
//! share, are in no answer but the refusal's own.
//! **Invariant:** an answer that must not say whether a thing exists carries no number that differs.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use actix_web::dev::ServiceRequest;
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::{HttpMessage, HttpRequest};

use super::problem::{Kind, Problem};
use super::state::App;
use crate::store::{RateKey, Standing};
use crate::tenancy::TenantScope;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// Where a request came from, as far as limits go; absent on a Unix socket.
#[derive(Debug, Clone, Copy)]
struct ClientAddress(IpAddr);

/// Where a request came from, once it was counted.
pub(super) fn address(request: &HttpRequest) -> Option<IpAddr> {
    request.extensions().get::<ClientAddress>().map(|address| address.0)
}

/// Counts a request of whomever, by its address.
///
/// # Errors
/// 429 when too many come from there.
pub(super) async fn count_address(app: &App, request: &ServiceRequest) -> Result<(), Problem> {
    let Some(peer) = request.peer_addr() else { return Ok(()) };
    let forwarded: Vec<&[u8]> =
        request.headers().get_all(&X_FORWARDED_FOR).map(HeaderValue::as_bytes).collect();
    let address = app.authenticator.client_address(peer.ip(), &forwarded);
    request.extensions_mut().insert(ClientAddress(address));
    let limit = app.quotas.address_requests_per_minute;
    let standing = app.rates.count(&RateKey::Address(address), limit).await?;
    over(&standing, || {
        Problem::new(Kind::RateLimited)
            .saying("Too many requests come from this address.")
            .at_limit("address_requests")
    })
}

/// Counts a request whose credential is to be refused.
///
/// # Errors
/// 429 when too many came from there: the refusal is then not written down, so that nobody can fill the log.
pub(super) async fn count_refusal(app: &App, address: Option<IpAddr>) -> Result<(), Problem> {
    let Some(address) = address else { return Ok(()) };
    let limit = app.quotas.address_refusals_per_minute;
    let standing = app.rates.count(&RateKey::Refused(address), limit).await?;
    over(&standing, || {
        Problem::new(Kind::RateLimited)
            .saying("Too many credentials from this address were refused.")
            .at_limit("address_refusals")
    })
}

fn over(standing: &Standing, problem: impl FnOnce() -> Problem) -> Result<(), Problem> {
    match standing.wait {
        None => Ok(()),
        Some(wait) => Err(Standings(vec![("address", *standing)]).on(problem().retry_after(wait))),
    }
}

/// Counts a caller's request against its principal's limit and its tenant's.
///
/// # Errors
/// 429 when one of them is reached. What the principal may not, takes nothing of the tenant's.
pub(super) async fn count_request(app: &App, scope: &TenantScope) -> Result<Standings, Problem> {
    let limits = app.quotas.of(scope);
    let tenant = scope.tenant();
    let mut names = vec!["tenant"];
    let mut counted = vec![(RateKey::Tenant(tenant), limits.requests_per_minute)];
    if limits.principal_requests_per_minute > 0 {
        let key = RateKey::Principal(tenant, scope.principal().clone());
        names.insert(0, "principal");
        counted.insert(0, (key, limits.principal_requests_per_minute));
    }
    let standings = app.rates.count_all(&counted).await?;
    let standings = Standings(std::iter::zip(names, standings).collect());
    let reached = standings.0.iter().find_map(|(name, standing)| Some((*name, standing.wait?)));
    app.meters.count(tenant, reached.is_some());
    match reached {
        None => Ok(standings),
        Some((name, wait)) => {
            let limit = if name == "principal" { "principal_requests" } else { "requests" };
            Err(standings.on(Problem::new(Kind::RateLimited).retry_after(wait).at_limit(limit)))
        }
    }
}

/// Whether a write over its tenant's rate may go into the log: as many as the tenant may ask, so that what is refused
/// cannot fill it.
pub(super) async fn may_be_recorded(app: &App, scope: &TenantScope) -> bool {
    let key = RateKey::Excess(scope.tenant());
    let standing = app.rates.count(&key, app.quotas.of(scope).requests_per_minute).await;
    standing.is_ok_and(|standing| standing.wait.is_none())
}

/// Where a caller stands after a request, by the name of each limit.
#[derive(Debug, Clone)]
pub(super) struct Standings(Vec<(&'static str, Standing)>);

impl Standings {
    /// The header fields: those that are widely read, for the limit that is nearest, and those of
    /// draft-ietf-httpapi-ratelimit-headers, for all.
    fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let Some((_, nearest)) = self.0.iter().min_by_key(|(_, standing)| standing.remaining) else {
            return Vec::new();
        };
        let (mut policies, mut states) = (String::new(), String::new());
        for (name, standing) in &self.0 {
            let separator = if policies.is_empty() { "" } else { ", " };
            // Writing to a text cannot fail.
            let _ = write!(policies, "{separator}\"{name}\";q={};w=60", standing.limit);
            let (remaining, reset) = (standing.remaining, seconds(standing.reset));
            let _ = write!(states, "{separator}\"{name}\";r={remaining};t={reset}");
        }
        let mut headers = vec![
            (LIMIT, HeaderValue::from(nearest.limit)),
            (REMAINING, HeaderValue::from(nearest.remaining)),
            (RESET, HeaderValue::from(seconds(nearest.reset))),
        ];
        let structured = [(POLICY, policies), (STATE, states)];
        headers.extend(structured.into_iter().filter_map(|(name, text)| Some((name, text.parse().ok()?))));
        headers
    }

    /// The same problem with where its caller stands.
    pub(super) fn on(&self, problem: Problem) -> Problem {
        self.headers().into_iter().fold(problem, |problem, (name, value)| problem.with_header(name, value))
    }

    /// Tells it in an answer that does not yet. Where nothing is found nothing is told: two such answers are
    /// equal, whatever they were asked for.
    pub(super) fn tell(&self, status: StatusCode, headers: &mut HeaderMap) {
        if status != StatusCode::NOT_FOUND && !headers.contains_key(LIMIT) {
            for (name, value) in self.headers() {
                headers.insert(name, value);
            }
        }
    }
}

/// Whole seconds, never too few.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_limit_is_told_in_the_old_fields_and_all_in_the_new() {
        let standing = |limit, remaining, millis| Standing {
            limit,
            remaining,
            reset: Duration::from_millis(millis),
            wait: None,
        };
        let standings =
            Standings(vec![("principal", standing(10, 3, 42_000)), ("tenant", standing(1000, 990, 600))]);
        let told: Vec<(String, String)> = standings
            .headers()
            .into_iter()
            .map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()))
            .collect();
        let told: Vec<(&str, &str)> =
            told.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            told,
            [
                ("ratelimit-limit", "10"),
                ("ratelimit-remaining", "3"),
                ("ratelimit-reset", "42"),
                ("ratelimit-policy", r#""principal";q=10;w=60, "tenant";q=1000;w=60"#),
                ("ratelimit", r#""principal";r=3;t=42, "tenant";r=990;t=1"#),
            ]
        );
    }
}
