//! Entry points of the fuzzers, in laboratory builds alone: what is promised about any credential and any hint.
//!
//! **Invariant:** nothing here is reached by a request.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use ed25519_dalek::{Signer as _, SigningKey};
use futures::executor::block_on;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use uuid::Uuid;

use super::hints::HintRules;
use super::jwks::{KeyRing, VerifyingKey};
use super::jwt::TokenVerifier;
use super::token_signer::own_profile;
use super::{ApiKey, AuthSettings, RequestHints};
use crate::domain::clock::Clock;

/// The moment at which fuzzed tokens are read.
const NOW_SECONDS: i64 = 1_800_000_000;

#[derive(Debug)]
struct Standing;

impl Clock for Standing {
    fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp(NOW_SECONDS, 0).unwrap_or_default()
    }

    fn instant(&self) -> Instant {
        static FIRST: OnceLock<Instant> = OnceLock::new();
        *FIRST.get_or_init(Instant::now)
    }
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn verifier() -> &'static TokenVerifier {
    static VERIFIER: OnceLock<TokenVerifier> = OnceLock::new();
    VERIFIER.get_or_init(|| {
        let settings = AuthSettings::default();
        let ring =
            KeyRing::fixed(VerifyingKey::ed25519(key().verifying_key().as_bytes()), Arc::new(Standing));
        let own = Some((own_profile(settings.own_issuer.clone()), ring));
        TokenVerifier::new(&settings, own, Arc::new(Standing))
            .unwrap_or_else(|(issuer, error)| unreachable!("{issuer} has its key at hand: {error}"))
    })
}

/// API keys: what is read is what is shown again.
///
/// # Panics
/// When another text than the one that was read comes back.
pub fn api_keys(data: &[u8]) {
    let Ok(raw) = std::str::from_utf8(data) else { return };
    if let Ok(key) = ApiKey::parse(raw) {
        assert_eq!(key.expose().expose_secret(), raw);
    }
}

/// Tokens as they come: none of them is signed, so none may be believed.
///
/// # Panics
/// When one is.
pub fn tokens(data: &[u8]) {
    let raw = String::from_utf8_lossy(data);
    assert!(block_on(verifier().verify(&raw)).is_err(), "an unsigned token is believed");
}

/// What a signed token says: header and claims, a line each. Who signs may say nonsense; what is believed has an
/// issuer, an audience, a subject and an end within `session_ttl`.
///
/// # Panics
/// When more is believed than that.
pub fn signed_claims(data: &[u8]) {
    let mut lines = data.splitn(2, |byte| *byte == b'\n');
    let (Some(header), Some(claims)) = (lines.next(), lines.next()) else { return };
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(key().sign(message.as_bytes()).to_bytes());
    let Ok(token) = block_on(verifier().verify(&format!("{message}.{signature}"))) else { return };
    let settings = AuthSettings::default();
    let said: Value = serde_json::from_slice(claims).unwrap_or_default();
    assert_eq!(said["iss"], *settings.own_issuer);
    let audience = &said["aud"];
    let ours = |value: &Value| *value == *settings.own_issuer;
    assert!(ours(audience) || audience.as_array().is_some_and(|all| all.iter().any(ours)), "{audience}");
    assert_eq!(said["sub"], *token.subject);
    assert!(!token.subject.is_empty());
    let longest = Standing.now() + TimeDelta::from_std(settings.session_ttl).unwrap_or_default();
    assert!(token.expires_at <= longest + TimeDelta::seconds(5), "ends at {}", token.expires_at);
    assert!(said["exp"].is_number(), "{}", said["exp"]);
    if token.tenant.is_some() {
        assert!(said["tenant_id"].as_str().is_some_and(|id| Uuid::try_parse(id).is_ok()));
    }
}

/// Hosts, forwarded hosts and headers that name a tenant, a line each: `h`, `f` or `t`, then the value. Whatever is
/// read, at most one id and one slug come of it.
///
/// # Panics
/// When more does.
pub fn hints(data: &[u8]) {
    static RULES: OnceLock<HintRules> = OnceLock::new();
    let rules = RULES.get_or_init(|| {
        let settings = AuthSettings {
            hosts: vec!["{slug}.example.com".to_owned(), "app.{slug}.example.org".to_owned()],
            trusted_proxies: vec![IpAddr::V4(Ipv4Addr::LOCALHOST).into()],
            ..AuthSettings::default()
        };
        HintRules::new(&settings).unwrap_or_else(|error| unreachable!("both are host patterns: {error}"))
    });
    let mut request = RequestHints { peer: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), ..RequestHints::default() };
    for line in data.split(|byte| *byte == b'\n') {
        match line.split_first() {
            Some((b'h', value)) => request.host.push(value),
            Some((b'f', value)) => request.forwarded_host.push(value),
            Some((b't', value)) => request.x_tenant_id.push(value),
            _ => {}
        }
    }
    if let Ok(named) = rules.read(&request) {
        assert!(named.len() <= 2, "{named:?}");
        assert!(named.len() < 2 || std::mem::discriminant(&named[0]) != std::mem::discriminant(&named[1]));
    }
}
