//! Tokens (RFC 7519, RFC 8725): which are believed, and what they say.
//!
//! The signature is checked by `jsonwebtoken`; all else is checked here, because that library checks `aud` and
//! `iss` only on demand, rounds and forgives claims of wrong types, and reads the machine's clock.
//!
//! **Invariant:** the issuer's profile alone chooses algorithm and keys; a header that brings a key, or an
//! address of one, or anything that we would have to understand, is refused.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::hints::TenantHint;
use super::jwks::{KeyRing, KeySetError};
use super::scope::Role;
use super::settings::{AudienceRule, AuthSettings, IssuerProfile, TenantClaimForm};
use crate::domain::clock::Clock;
use crate::domain::ids::{Slug, TenantId};

/// The longest token that is read, bytes.
const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// The longest subject, bytes: it is written to the audit log with every act.
const MAX_SUBJECT_BYTES: usize = 255;
/// Headers that bring a key, its address, or a rule that we would have to follow.
const REFUSED_HEADERS: [&str; 8] = ["jku", "jwk", "x5u", "x5c", "crit", "b64", "enc", "zip"];

/// Why a token is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenFault {
    /// It is wrong; the words are for the audit log.
    Wrong(&'static str),
    /// It was right and has ended.
    Expired,
    /// Its issuer's keys cannot be had now.
    KeysAway,
}

/// What a believed token says.
#[derive(Debug, Clone)]
pub(super) struct VerifiedToken {
    pub(super) profile: Arc<IssuerProfile>,
    pub(super) subject: String,
    pub(super) tenant: Option<TenantHint>,
    pub(super) roles: Vec<Role>,
    pub(super) expires_at: DateTime<Utc>,
}

struct Issuer {
    profile: Arc<IssuerProfile>,
    keys: Arc<KeyRing>,
}

/// All issuers that are believed.
pub(super) struct TokenVerifier {
    issuers: HashMap<String, Issuer>,
    session_ttl: TimeDelta,
    clock: Arc<dyn Clock>,
}

impl TokenVerifier {
    pub(super) fn new(
        settings: &AuthSettings,
        own: Option<(IssuerProfile, Arc<KeyRing>)>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, (String, KeySetError)> {
        let mut issuers = HashMap::new();
        for profile in &settings.issuers {
            let keys = KeyRing::open(&profile.keys, profile.algorithm, Arc::clone(&clock))
                .map_err(|error| (profile.issuer.clone(), error))?;
            issuers.insert(profile.issuer.clone(), Issuer { profile: Arc::new(profile.clone()), keys });
        }
        if let Some((profile, keys)) = own {
            issuers.insert(profile.issuer.clone(), Issuer { profile: Arc::new(profile), keys });
        }
        let session_ttl = TimeDelta::from_std(settings.session_ttl).unwrap_or(TimeDelta::zero());
        Ok(Self { issuers, session_ttl, clock })
    }

    /// Checks everything about a token but its tenant's existence.
    pub(super) async fn verify(&self, raw: &str) -> Result<VerifiedToken, TokenFault> {
        if raw.len() > MAX_TOKEN_BYTES {
            return Err(TokenFault::Wrong("the token is too long"));
        }
        let (message, signature) = raw.rsplit_once('.').ok_or(TokenFault::Wrong("not a token"))?;
        let (header, payload) = message.split_once('.').ok_or(TokenFault::Wrong("not a token"))?;
        let header = object(header).ok_or(TokenFault::Wrong("the header cannot be read"))?;
        let claims = object(payload).ok_or(TokenFault::Wrong("the claims cannot be read"))?;

        let issuer = text(&claims, "iss").and_then(|iss| self.issuers.get(iss));
        let Issuer { profile, keys } = issuer.ok_or(TokenFault::Wrong("unknown issuer"))?;
        let kid = check_header(&header, profile)?;
        let key = keys.find(kid).await.map_err(|_| TokenFault::KeysAway)?;
        let key = key.ok_or(TokenFault::Wrong("unknown key"))?;
        if !key.verifies(message.as_bytes(), signature) {
            return Err(TokenFault::Wrong("wrong signature"));
        }
        self.check_claims(claims, profile)
    }

    fn check_claims(
        &self,
        claims: Map<String, Value>,
        profile: &Arc<IssuerProfile>,
    ) -> Result<VerifiedToken, TokenFault> {
        check_audience(claims.get("aud"), &profile.audience)?;
        let subject = text(&claims, "sub")
            .filter(|sub| {
                !sub.is_empty() && sub.len() <= MAX_SUBJECT_BYTES && !sub.chars().any(char::is_control)
            })
            .ok_or(TokenFault::Wrong("no usable subject"))?
            .to_owned();

        let now = self.clock.now();
        let leeway = TimeDelta::from_std(profile.leeway).unwrap_or(TimeDelta::zero());
        let expires_at = moment(&claims, "exp")?.ok_or(TokenFault::Wrong("no expiry"))?;
        if moment(&claims, "nbf")?.is_some_and(|from| from > now + leeway) {
            return Err(TokenFault::Wrong("not yet valid"));
        }
        let issued_at = moment(&claims, "iat")?;
        if issued_at.is_some_and(|at| at > now + leeway || at > expires_at) {
            return Err(TokenFault::Wrong("issued in the future or after its end"));
        }
        if expires_at - issued_at.unwrap_or(now) > self.session_ttl {
            return Err(TokenFault::Wrong("lives longer than session_ttl"));
        }

        let claims = Value::Object(claims);
        let tenant = match claim(&claims, &profile.tenant_claim) {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(tenant_claim(name, profile.tenant_claim_is)?),
            Some(_) => return Err(TokenFault::Wrong("the tenant claim is no text")),
        };
        let roles = roles(claim(&claims, &profile.roles_claim), profile)?;
        // Last, so that only a token that was right in all else is told that it has expired.
        if expires_at + leeway <= now {
            return Err(TokenFault::Expired);
        }
        Ok(VerifiedToken { profile: Arc::clone(profile), subject, tenant, roles, expires_at })
    }
}

/// Checks the header; gives the key id.
fn check_header<'h>(
    header: &'h Map<String, Value>,
    profile: &IssuerProfile,
) -> Result<Option<&'h str>, TokenFault> {
    if text(header, "alg") != Some(profile.algorithm.name()) {
        return Err(TokenFault::Wrong("not the issuer's algorithm"));
    }
    if REFUSED_HEADERS.iter().any(|name| header.contains_key(*name)) {
        return Err(TokenFault::Wrong("a header that is not accepted"));
    }
    let known_type = |typ: &str| ["JWT", "at+jwt"].iter().any(|known| typ.eq_ignore_ascii_case(known));
    match header.get("typ") {
        None => {}
        Some(Value::String(typ)) if known_type(typ.strip_prefix("application/").unwrap_or(typ)) => {}
        Some(_) => return Err(TokenFault::Wrong("not the type of an access token")),
    }
    match header.get("kid") {
        None => Ok(None),
        Some(Value::String(kid)) => Ok(Some(kid)),
        Some(_) => Err(TokenFault::Wrong("the key id is no text")),
    }
}

fn check_audience(aud: Option<&Value>, rule: &AudienceRule) -> Result<(), TokenFault> {
    let wrong = Err(TokenFault::Wrong("wrong audience"));
    let ours = match rule {
        AudienceRule::OneOf(ours) => ours,
        AudienceRule::Stated(_) => return if aud.is_none() { Ok(()) } else { wrong },
    };
    let named = match aud {
        Some(Value::String(one)) => ours.contains(one),
        Some(Value::Array(all)) => {
            all.iter().all(Value::is_string)
                && all.iter().filter_map(Value::as_str).any(|one| ours.iter().any(|our| our == one))
        }
        _ => false,
    };
    if named { Ok(()) } else { wrong }
}

fn tenant_claim(name: &str, form: TenantClaimForm) -> Result<TenantHint, TokenFault> {
    let tenant = match form {
        TenantClaimForm::Id => Uuid::try_parse(name).ok().map(|id| TenantHint::Id(TenantId(id))),
        TenantClaimForm::Slug => Slug::parse(name).ok().map(TenantHint::Slug),
    };
    tenant.ok_or(TokenFault::Wrong("the tenant claim cannot be read"))
}

/// The roles that have a meaning here; an issuer's others are its own affair.
fn roles(claim: Option<&Value>, profile: &IssuerProfile) -> Result<Vec<Role>, TokenFault> {
    let wrong = TokenFault::Wrong("the roles claim is neither text nor a list of texts");
    let names: Vec<&str> = match claim {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(all)) => all.iter().map(Value::as_str).collect::<Option<_>>().ok_or(wrong)?,
        Some(_) => return Err(wrong),
    };
    let meaning = |name: &str| profile.role_names.get(name).copied().or_else(|| Role::from_name(name));
    Ok(names.into_iter().filter_map(meaning).collect())
}

fn text<'m>(map: &'m Map<String, Value>, name: &str) -> Option<&'m str> {
    map.get(name).and_then(Value::as_str)
}

fn claim<'v>(claims: &'v Value, name: &str) -> Option<&'v Value> {
    if name.starts_with('/') { claims.pointer(name) } else { claims.get(name) }
}

/// A `NumericDate`: a number of seconds, whole or not. Absent is `None`; any other type is a fault.
fn moment(claims: &Map<String, Value>, name: &str) -> Result<Option<DateTime<Utc>>, TokenFault> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let millis = value.as_i64().and_then(|seconds| seconds.checked_mul(1000)).or_else(|| {
        let millis = value.as_f64()? * 1000.0;
        #[expect(clippy::cast_possible_truncation, reason = "bounded just before")]
        (value.is_f64() && millis.abs() < 1e15).then(|| millis.floor() as i64)
    });
    let moment = millis.filter(|millis| *millis >= 0).and_then(DateTime::from_timestamp_millis);
    moment.map(Some).ok_or(TokenFault::Wrong("a time that is no number of seconds"))
}

/// A part of a token: base64url without padding, a JSON object, no member twice.
fn object(part: &str) -> Option<Map<String, Value>> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice::<Members>(&bytes).ok().map(|members| members.0)
}

struct Members(Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Members, A::Error> {
                let mut members = Map::new();
                while let Some((name, value)) = access.next_entry::<String, Value>()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("a member twice"));
                    }
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(Reader)
    }
}
