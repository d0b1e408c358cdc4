//! The server's own issuer: short-lived tokens for tenants, signed with a key of its own.
//!
//! **Invariant:** no token lives longer than `session_ttl`, and only an operator has one made.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use ed25519_dalek::{Signer, SigningKey};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::jwks::{KeyRing, VerifyingKey};
use super::operator::OperatorScope;
use super::scope::Role;
use super::secret_file::{self, SecretFileError};
use super::settings::{
    AnyTenant, AssertableTenants, AudienceRule, AuthSettings, IssuerProfile, KeySource, TenantClaimForm,
    TokenAlgorithm,
};
use crate::domain::clock::Clock;
use crate::domain::ids::{IdSource, TenantId};

/// Signs tokens of the server's own issuer (Ed25519).
pub struct TokenSigner {
    key: SigningKey,
    key_id: String,
    issuer: String,
    session_ttl: Duration,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
}

impl std::fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenSigner").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

/// A token that was made, to be shown once.
#[derive(Debug)]
pub struct MintedToken {
    /// The token.
    pub token: SecretString,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
}

/// A token cannot be made as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The subject would be refused when the token is presented.
    #[error("the subject is 1 to 255 bytes without control characters")]
    Subject,
    /// The life is zero or beyond `session_ttl`.
    #[error("a token lives at least one second and at most {max_seconds}")]
    Lifetime {
        /// `session_ttl`, in seconds.
        max_seconds: u64,
    },
}

impl TokenSigner {
    /// The signer whose key is in the file (PKCS #8, PEM), which is made with mode 0600 when there is none.
    /// A replaced key ends all tokens that the old one signed.
    ///
    /// # Errors
    /// [`SecretFileError`] when the file cannot be read or written, is open to others or holds no such key.
    pub fn load_or_create(
        path: &Path,
        settings: &AuthSettings,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Result<Self, SecretFileError> {
        let wrong =
            || SecretFileError::Content { path: path.to_owned(), wanted: "an Ed25519 private key, PEM" };
        let pem = secret_file::load_or_create(path, || new_key(&*ids))?;
        let key = SigningKey::from_pkcs8_pem(pem.expose_secret()).map_err(|_| wrong())?;
        let key_id = thumbprint(&key);
        let issuer = settings.own_issuer.clone();
        Ok(Self { key, key_id, issuer, session_ttl: settings.session_ttl, clock, ids })
    }

    /// Makes a token for a tenant.
    ///
    /// # Errors
    /// [`MintError`] for a subject or a life that would not be accepted.
    pub fn mint(
        &self,
        _by: &OperatorScope,
        tenant: TenantId,
        subject: &str,
        roles: &[Role],
        lifetime: Duration,
    ) -> Result<MintedToken, MintError> {
        if subject.is_empty() || subject.len() > 255 || subject.chars().any(char::is_control) {
            return Err(MintError::Subject);
        }
        let max_seconds = self.session_ttl.as_secs();
        let seconds = lifetime.as_secs();
        if seconds == 0 || lifetime > self.session_ttl {
            return Err(MintError::Lifetime { max_seconds });
        }
        let issued_at = DateTime::from_timestamp(self.clock.now().timestamp(), 0).unwrap_or_default();
        let life = i64::try_from(seconds).ok().and_then(TimeDelta::try_seconds);
        let expires_at = issued_at + life.ok_or(MintError::Lifetime { max_seconds })?;
        let header = json!({"typ": "JWT", "alg": TokenAlgorithm::EdDSA.name(), "kid": self.key_id});
        let claims = json!({
            "iss": self.issuer, "aud": self.issuer, "sub": subject, "tenant_id": tenant,
            "roles": roles.iter().map(|role| role.name()).collect::<Vec<_>>(),
            "iat": issued_at.timestamp(), "exp": expires_at.timestamp(), "jti": self.ids.uuid(),
        });
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let message = format!("{}.{}", encode(&header), encode(&claims));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(message.as_bytes()).to_bytes());
        Ok(MintedToken { token: format!("{message}.{signature}").into(), expires_at })
    }

    /// The public key as a JSON Web Key Set, to be published.
    #[must_use]
    pub fn jwks(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.key.verifying_key().as_bytes());
        let alg = TokenAlgorithm::EdDSA.name();
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x, "use": "sig", "alg": alg, "kid": self.key_id}]})
    }

    /// How this issuer's tokens are believed: as any other's, with its own key.
    pub(super) fn profile(&self) -> (IssuerProfile, Arc<KeyRing>) {
        let key = VerifyingKey::ed25519(self.key.verifying_key().as_bytes());
        (own_profile(self.issuer.clone()), KeyRing::fixed(key, Arc::clone(&self.clock)))
    }
}

/// How tokens of the server's own making are believed.
pub(super) fn own_profile(issuer: String) -> IssuerProfile {
    IssuerProfile {
        algorithm: TokenAlgorithm::EdDSA,
        // Never opened: the key ring beside it is at hand.
        keys: KeySource::JwksUrl(String::new()),
        audience: AudienceRule::OneOf(vec![issuer.clone()]),
        tenants: AssertableTenants::Every(AnyTenant::Any),
        tenant_claim: "tenant_id".to_owned(),
        tenant_claim_is: TenantClaimForm::Id,
        roles_claim: "roles".to_owned(),
        role_names: std::collections::BTreeMap::new(),
        leeway: Duration::from_secs(5),
        issuer,
    }
}

fn new_key(ids: &dyn IdSource) -> SecretString {
    let pem = SigningKey::from_bytes(&ids.secret()).to_pkcs8_pem(LineEnding::LF);
    pem.expect("an Ed25519 key can always be encoded").as_str().into()
}

/// The key's id: its thumbprint (RFC 7638, RFC 8037).
fn thumbprint(key: &SigningKey) -> String {
    let x = URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes());
    let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    URL_SAFE_NO_PAD.encode(Sha256::digest(canonical))
}
