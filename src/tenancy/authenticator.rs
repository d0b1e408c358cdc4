//! Who is asking: from the headers of a request to a scope, or to a refusal.
//!
//! The order is fixed. First the credential, all of it; then the tenant's existence; only then the hints, and
//! last the tenant's suspension. Without a verified credential every answer is 401 (or 503 when nothing could
//! be checked), so nothing about any tenant can be inferred; with one, a hint is compared with the caller's own
//! tenant alone.
//!
//! **Invariant:** what is known of a key or tenant is never older than `revocation_poll` when it is used, and
//! when the directory does not answer, the answer is [`RefusalKind::Unavailable`], never an old one and never
//! a word about the credential.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use subtle::ConstantTimeEq;

use super::address;
use super::api_key::{ApiKey, KeyKind, KeyPepper};
use super::directory::{Directory, DirectoryError, KeyRecord, OperatorRecord, TenantRecord, TenantState};
use super::hints::{HintRules, RequestHints, TenantHint};
use super::jwks::KeySetError;
use super::jwt::{TokenFault, TokenVerifier};
use super::lookup::Lookup;
use super::operator::OperatorScope;
use super::refusal::{Refusal, RefusalKind};
use super::scope::{Principal, TenantScope};
use super::settings::AuthSettings;
use super::token_signer::TokenSigner;
use crate::domain::clock::Clock;
use crate::domain::ids::TenantId;

/// The longest credential that is looked at, bytes.
const MAX_CREDENTIAL_BYTES: usize = 8 * 1024 + 16;

/// The headers of a request that may hold a credential, as they came, with every repetition.
#[derive(Clone, Default)]
pub struct PresentedCredentials<'a> {
    /// Every `Authorization` header.
    pub authorization: Vec<&'a [u8]>,
    /// Every `X-API-Key` header.
    pub x_api_key: Vec<&'a [u8]>,
}

/// The kinds of credential that a tenant's caller can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialKind {
    /// A key of this server.
    ApiKey,
    /// A token of an issuer.
    Token,
}

/// A caller whose credential was verified, and by what it can be verified again.
#[derive(Debug, Clone)]
pub struct Authenticated {
    scope: TenantScope,
    source: Source,
    expires_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone)]
enum Source {
    Key { id: Arc<str>, digest: [u8; 32] },
    Token { leeway: TimeDelta },
}

impl Authenticated {
    /// The caller's authority.
    #[must_use]
    pub fn scope(&self) -> &TenantScope {
        &self.scope
    }

    /// What was presented.
    #[must_use]
    pub fn kind(&self) -> CredentialKind {
        match self.source {
            Source::Key { .. } => CredentialKind::ApiKey,
            Source::Token { .. } => CredentialKind::Token,
        }
    }

    /// When the credential ends, if ever.
    #[must_use]
    pub fn expires_at(&self) -> Option<DateTime<Utc>> {
        self.expires_at
    }
}

/// The authenticator cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum AuthSetupError {
    /// The settings have these faults.
    #[error("{}", .0.join("; "))]
    Settings(Vec<String>),
    /// An issuer's keys cannot be read.
    #[error("the keys of issuer {issuer}")]
    Keys {
        /// The issuer.
        issuer: String,
        /// Why.
        #[source]
        source: KeySetError,
    },
}

/// Turns credentials into scopes.
pub struct Authenticator {
    directory: Arc<dyn Directory>,
    clock: Arc<dyn Clock>,
    pepper: KeyPepper,
    tokens: TokenVerifier,
    hints: HintRules,
    recheck_every: Duration,
    keys: Lookup<String, KeyRecord>,
    operators: Lookup<String, OperatorRecord>,
    tenants: Lookup<TenantId, TenantRecord>,
    slugs: Lookup<String, TenantRecord>,
}

impl Authenticator {
    /// From the settings; `signer` is the server's own issuer.
    ///
    /// # Errors
    /// [`AuthSetupError`] when the settings are faulty or a key file cannot be read.
    pub fn new(
        directory: Arc<dyn Directory>,
        settings: &AuthSettings,
        clock: Arc<dyn Clock>,
        pepper: KeyPepper,
        signer: Option<&TokenSigner>,
    ) -> Result<Self, AuthSetupError> {
        let faults = settings.validate();
        if !faults.is_empty() {
            return Err(AuthSetupError::Settings(faults));
        }
        let hints =
            HintRules::new(settings).map_err(|rule| AuthSetupError::Settings(vec![rule.to_string()]))?;
        let tokens = TokenVerifier::new(settings, signer.map(TokenSigner::profile), Arc::clone(&clock))
            .map_err(|(issuer, source)| AuthSetupError::Keys { issuer, source })?;
        let poll = settings.revocation_poll;
        Ok(Self {
            directory,
            pepper,
            tokens,
            hints,
            recheck_every: poll,
            keys: Lookup::new(poll, Arc::clone(&clock)),
            operators: Lookup::new(poll, Arc::clone(&clock)),
            tenants: Lookup::new(poll, Arc::clone(&clock)),
            slugs: Lookup::new(poll, Arc::clone(&clock)),
            clock,
        })
    }

    /// How often a running stream asks [`Authenticator::still_valid`].
    #[must_use]
    pub fn recheck_every(&self) -> Duration {
        self.recheck_every
    }

    /// Forgets what is known of keys and tenants, because one of them changed.
    pub fn forget(&self) {
        self.keys.forget();
        self.operators.forget();
        self.tenants.forget();
        self.slugs.forget();
    }

    /// Whose requests a request is counted with before anybody is known, by its peer and its
    /// `X-Forwarded-For` headers.
    #[must_use]
    pub fn client_address(&self, peer: IpAddr, forwarded_for: &[&[u8]]) -> IpAddr {
        address::network(address::client(peer, forwarded_for, |proxy| self.hints.trusts(proxy)))
    }

    /// The scope of a request's credential, when everything else in the request agrees with it.
    ///
    /// # Errors
    /// [`Refusal`], in the order that the module's documentation gives.
    pub async fn authenticate(
        &self,
        credentials: &PresentedCredentials<'_>,
        hints: &RequestHints<'_>,
    ) -> Result<Authenticated, Refusal> {
        let presented = presented(credentials)?;
        let (caller, tenant) = match ApiKey::parse(presented) {
            Ok(key) => self.by_key(&key).await?,
            Err(_) => self.by_token(presented).await?,
        };
        let refuse =
            |kind, reason| Refusal::new(kind, reason).by(caller.scope.principal(), Some(tenant.tenant));
        let named = self
            .hints
            .read(hints)
            .map_err(|malformed| refuse(RefusalKind::TenantHintMalformed, malformed.0))?;
        if !named.iter().all(|hint| hint.names(&tenant)) {
            return Err(
                refuse(RefusalKind::TenantMismatch, "the request names another tenant").asking_for(named)
            );
        }
        if tenant.state == TenantState::Suspended {
            return Err(refuse(RefusalKind::TenantSuspended, "the tenant is suspended").asking_for(named));
        }
        Ok(caller)
    }

    /// Whether a caller who was let in may go on: for streams, every [`Authenticator::recheck_every`].
    ///
    /// # Errors
    /// [`Refusal`] when key or token ended, the key was revoked or may less than before, or the tenant is
    /// suspended or gone; [`RefusalKind::Unavailable`] when that cannot be told now, which a stream may bear
    /// for 5 seconds.
    pub async fn still_valid(&self, caller: &Authenticated) -> Result<(), Refusal> {
        let scope = &caller.scope;
        let refuse = |kind, reason| Refusal::new(kind, reason).by(scope.principal(), Some(scope.tenant()));
        let away = |_| refuse(RefusalKind::Unavailable, "the directory does not answer");
        let tenant = match &caller.source {
            Source::Token { .. } => self.tenant(scope.tenant()).await.map_err(away)?,
            Source::Key { id, digest } => {
                let record = self.key(id).await.map_err(away)?;
                let record = record
                    .filter(|record| !record.revoked && bool::from(record.digest.ct_eq(digest)))
                    .ok_or_else(|| refuse(RefusalKind::Unauthorized, "the key was revoked"))?;
                if ended(record.expires_at, TimeDelta::zero(), self.clock.now()) {
                    return Err(refuse(RefusalKind::TokenExpired, "the key has expired"));
                }
                if record.roles.iter().copied().max() < scope.role()
                    || record.namespaces.as_deref() != scope.namespaces()
                {
                    return Err(refuse(RefusalKind::MissingRole, "the key may less than before"));
                }
                Some(record.tenant)
            }
        };
        if let Source::Token { leeway } = caller.source
            && ended(caller.expires_at, leeway, self.clock.now())
        {
            return Err(refuse(RefusalKind::TokenExpired, "the token has expired"));
        }
        match tenant.filter(|tenant| tenant.tenant == scope.tenant()).map(|tenant| tenant.state) {
            Some(TenantState::Active) => Ok(()),
            Some(TenantState::Suspended) => {
                Err(refuse(RefusalKind::TenantSuspended, "the tenant is suspended"))
            }
            Some(TenantState::Deleted) | None => {
                Err(refuse(RefusalKind::Unauthorized, "the tenant is deleted"))
            }
        }
    }

    /// Checks a tenant's name that came in a body or a query, where one is accepted at all.
    ///
    /// # Errors
    /// [`Refusal`] when it cannot be read or is not the caller's own.
    pub fn agrees(&self, scope: &TenantScope, named: &[u8]) -> Result<(), Refusal> {
        let refuse = |kind, reason| Refusal::new(kind, reason).by(scope.principal(), Some(scope.tenant()));
        let hint = TenantHint::parse(named)
            .map_err(|malformed| refuse(RefusalKind::TenantHintMalformed, malformed.0))?;
        let own = match &hint {
            TenantHint::Id(id) => *id == scope.tenant(),
            TenantHint::Slug(slug) => slug.as_str() == scope.slug(),
        };
        if own {
            Ok(())
        } else {
            let refusal = refuse(RefusalKind::TenantMismatch, "the request names another tenant");
            Err(refusal.asking_for(vec![hint]))
        }
    }

    /// The authority of an operator's credential. Hints are not read: an operator has no tenant.
    ///
    /// # Errors
    /// [`Refusal`]: 401, or 503 when the directory does not answer.
    pub async fn authenticate_operator(
        &self,
        credentials: &PresentedCredentials<'_>,
    ) -> Result<OperatorScope, Refusal> {
        let wrong = |reason| Refusal::new(RefusalKind::Unauthorized, reason);
        let key = ApiKey::parse(presented(credentials)?)
            .ok()
            .filter(|key| key.kind() == KeyKind::Operator)
            .ok_or_else(|| wrong("not an operator's credential"))?;
        let id = key.id().to_owned();
        let directory = Arc::clone(&self.directory);
        let record = self
            .operators
            .get(id.clone(), || async move { directory.operator(&id).await })
            .await
            .map_err(|_| away().presented(key.id()))?;
        let digest = record.as_ref().map(|record| &record.digest);
        let record = if key.matches(&self.pepper, digest) { record } else { None };
        let record = record.ok_or_else(|| wrong("unknown or wrong credential").presented(key.id()))?;
        let scope = OperatorScope::verified(key.id(), record.expires_at);
        let refuse =
            |kind, reason| Err(Refusal::new(kind, reason).presented(key.id()).by(scope.principal(), None));
        if record.revoked {
            return refuse(RefusalKind::Unauthorized, "the credential was revoked");
        }
        if ended(record.expires_at, TimeDelta::zero(), self.clock.now()) {
            return refuse(RefusalKind::TokenExpired, "the credential has expired");
        }
        Ok(scope)
    }

    async fn by_key(&self, key: &ApiKey) -> Result<(Authenticated, TenantRecord), Refusal> {
        let wrong = |reason| Refusal::new(RefusalKind::Unauthorized, reason).presented(key.id());
        if key.kind() != KeyKind::Tenant {
            return Err(wrong("an operator's credential is none of a tenant"));
        }
        let record = self.key(key.id()).await.map_err(|_| away().presented(key.id()))?;
        let digest = record.as_ref().map(|record| &record.digest);
        let matches = key.matches(&self.pepper, digest);
        let record = record.filter(|_| matches).ok_or_else(|| wrong("unknown or wrong key"))?;
        let principal = Principal::new("key", key.id());
        let by = |refusal: Refusal| refusal.by(&principal, Some(record.tenant.tenant));
        if record.revoked {
            return Err(by(wrong("the key was revoked")));
        }
        if record.tenant.state == TenantState::Deleted {
            return Err(by(wrong("the tenant is deleted")));
        }
        if ended(record.expires_at, TimeDelta::zero(), self.clock.now()) {
            let expired = Refusal::new(RefusalKind::TokenExpired, "the key has expired");
            return Err(by(expired.presented(key.id())));
        }
        let namespaces = record.namespaces.as_deref().map(Arc::from);
        let scope = TenantScope::verified(&record.tenant, principal, &record.roles, namespaces);
        let source = Source::Key { id: key.id().into(), digest: record.digest };
        Ok((Authenticated { scope, source, expires_at: record.expires_at }, record.tenant))
    }

    async fn by_token(&self, raw: &str) -> Result<(Authenticated, TenantRecord), Refusal> {
        let token = self.tokens.verify(raw).await.map_err(|fault| match fault {
            TokenFault::Wrong(reason) => Refusal::new(RefusalKind::Unauthorized, reason),
            TokenFault::Expired => Refusal::new(RefusalKind::TokenExpired, "the token has expired"),
            TokenFault::KeysAway => Refusal::new(RefusalKind::Unavailable, "the issuer's keys cannot be had"),
        })?;
        let profile = &token.profile;
        let principal = Principal::new("token", &format!("{}:{}", profile.issuer, token.subject));
        let refuse = |kind, reason| Refusal::new(kind, reason).by(&principal, None);
        let claimed =
            token.tenant.ok_or_else(|| refuse(RefusalKind::NoTenant, "the token names no tenant"))?;
        let record = match &claimed {
            TenantHint::Id(id) => self.tenant(*id).await,
            TenantHint::Slug(slug) => self.tenant_by_slug(slug.as_str()).await,
        };
        let record = record.map_err(|_| away())?.filter(|record| record.state != TenantState::Deleted);
        // Unknown, deleted and not its own: an issuer cannot tell which tenants there are.
        let record =
            record.filter(|record| profile.tenants.includes(record.tenant, &record.slug)).ok_or_else(
                || refuse(RefusalKind::Unauthorized, "not a tenant of this issuer").asking_for(vec![claimed]),
            )?;
        let scope = TenantScope::verified(&record, principal.clone(), &token.roles, None);
        let leeway = TimeDelta::from_std(profile.leeway).unwrap_or(TimeDelta::zero());
        let expires_at = Some(token.expires_at);
        Ok((Authenticated { scope, source: Source::Token { leeway }, expires_at }, record))
    }

    async fn key(&self, id: &str) -> Result<Option<KeyRecord>, Arc<DirectoryError>> {
        let (directory, id) = (Arc::clone(&self.directory), id.to_owned());
        self.keys.get(id.clone(), || async move { directory.key(&id).await }).await
    }

    async fn tenant(&self, tenant: TenantId) -> Result<Option<TenantRecord>, Arc<DirectoryError>> {
        let directory = Arc::clone(&self.directory);
        self.tenants.get(tenant, || async move { directory.tenant(tenant).await }).await
    }

    async fn tenant_by_slug(&self, slug: &str) -> Result<Option<TenantRecord>, Arc<DirectoryError>> {
        let (directory, slug) = (Arc::clone(&self.directory), slug.to_owned());
        self.slugs.get(slug.clone(), || async move { directory.tenant_by_slug(&slug).await }).await
    }
}

fn away() -> Refusal {
    Refusal::new(RefusalKind::Unavailable, "the directory does not answer")
}

fn ended(expires_at: Option<DateTime<Utc>>, leeway: TimeDelta, now: DateTime<Utc>) -> bool {
    expires_at.is_some_and(|at| at + leeway <= now)
}

/// The one credential of a request. It may be repeated, in either header, but must then be the same: which of
/// two would win is what a confused proxy and we could see differently.
fn presented<'a>(credentials: &PresentedCredentials<'a>) -> Result<&'a str, Refusal> {
    let wrong = |reason| Refusal::new(RefusalKind::Unauthorized, reason);
    let bearer = |raw: &'a [u8]| {
        let (scheme, rest) = raw.split_at_checked(b"Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then_some(rest)
    };
    let authorization = credentials.authorization.iter().map(|raw| bearer(raw));
    let mut values = authorization.chain(credentials.x_api_key.iter().map(|raw| Some(*raw)));
    let first = values.next().ok_or_else(|| wrong("no credential"))?;
    let first = first.ok_or_else(|| wrong("not a bearer credential"))?.trim_ascii();
    for other in values {
        let equal = other.is_some_and(|other| bool::from(other.trim_ascii().ct_eq(first)));
        if !equal {
            return Err(wrong("two different credentials"));
        }
    }
    let text = std::str::from_utf8(first).ok().filter(|text| !text.is_empty() && text.is_ascii());
    text.filter(|text| text.len() <= MAX_CREDENTIAL_BYTES).ok_or_else(|| wrong("a malformed credential"))
}
