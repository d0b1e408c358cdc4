//! Two tenants that are served, one suspended, one deleted; their keys; three issuers.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use ed25519_dalek::Signer as _;
use ed25519_dalek::pkcs8::EncodePublicKey as _;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use parking_lot::Mutex;
use rsa::pkcs1v15::SigningKey as RsaSigningKey;
use rsa::signature::SignatureEncoding as _;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sha2::Sha256;
use tempfile::TempDir;
use uuid::Uuid;

use crate::domain::clock::{Clock, SystemClock};
use crate::domain::ids::{SystemIds, TenantId};
use crate::domain::limits::LimitOverrides;
use crate::tenancy::directory::OperatorRecord;
use crate::tenancy::{
    ApiKey, AuthSettings, Authenticated, Authenticator, Directory, DirectoryError, KeyKind, KeyPepper,
    KeyRecord, PresentedCredentials, Refusal, RefusalKind, RequestHints, Role, TenantRecord, TenantState,
    TokenSigner,
};

pub(super) const ACME: TenantId = TenantId(Uuid::from_u128(0x6f1c_2a34_0000_4000_8000_0000_0000_000a));
pub(super) const GLOBEX: TenantId = TenantId(Uuid::from_u128(0x6f1c_2a34_0000_4000_8000_0000_0000_000b));
pub(super) const SLEEPING: TenantId = TenantId(Uuid::from_u128(0x6f1c_2a34_0000_4000_8000_0000_0000_000c));
pub(super) const GONE: TenantId = TenantId(Uuid::from_u128(0x6f1c_2a34_0000_4000_8000_0000_0000_000d));
pub(super) const NOBODY: TenantId = TenantId(Uuid::from_u128(0x6f1c_2a34_0000_4000_8000_0000_0000_000e));

pub(super) const ED_ISSUER: &str = "https://ed.example";
pub(super) const ES_ISSUER: &str = "https://es.example";
pub(super) const RS_ISSUER: &str = "https://rs.example";

/// A clock that moves when told to.
#[derive(Debug)]
pub(super) struct FakeClock {
    start: (DateTime<Utc>, Instant),
    passed: Mutex<Duration>,
}

impl FakeClock {
    pub(super) fn new() -> Arc<Self> {
        let start = DateTime::from_timestamp(1_800_000_000, 0).expect("a time");
        Arc::new(Self { start: (start, SystemClock.instant()), passed: Mutex::default() })
    }

    pub(super) fn pass(&self, time: Duration) {
        *self.passed.lock() += time;
    }
}

impl Clock for FakeClock {
    fn now(&self) -> DateTime<Utc> {
        self.start.0 + *self.passed.lock()
    }

    fn instant(&self) -> Instant {
        self.start.1 + *self.passed.lock()
    }
}

/// A directory that can be changed, counted and switched off.
#[derive(Default)]
pub(super) struct MemoryDirectory {
    pub(super) tenants: Mutex<HashMap<TenantId, TenantRecord>>,
    pub(super) keys: Mutex<HashMap<String, KeyRecord>>,
    pub(super) operators: Mutex<HashMap<String, OperatorRecord>>,
    pub(super) away: AtomicBool,
    pub(super) asked: AtomicUsize,
}

impl MemoryDirectory {
    pub(super) fn set_state(&self, tenant: TenantId, state: TenantState) {
        self.tenants.lock().get_mut(&tenant).expect("a tenant").state = state;
    }

    async fn ask<T>(&self, read: impl FnOnce() -> T) -> Result<T, DirectoryError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        if self.away.load(Ordering::SeqCst) { Err(DirectoryError("away".into())) } else { Ok(read()) }
    }
}

#[async_trait]
impl Directory for MemoryDirectory {
    async fn key(&self, key_id: &str) -> Result<Option<KeyRecord>, DirectoryError> {
        self.ask(|| {
            let mut record = self.keys.lock().get(key_id)?.clone();
            record.tenant = self.tenants.lock().get(&record.tenant.tenant)?.clone();
            Some(record)
        })
        .await
    }

    async fn operator(&self, key_id: &str) -> Result<Option<OperatorRecord>, DirectoryError> {
        self.ask(|| self.operators.lock().get(key_id).cloned()).await
    }

    async fn tenant(&self, tenant: TenantId) -> Result<Option<TenantRecord>, DirectoryError> {
        self.ask(|| self.tenants.lock().get(&tenant).cloned()).await
    }

    async fn tenant_by_slug(&self, slug: &str) -> Result<Option<TenantRecord>, DirectoryError> {
        self.ask(|| self.tenants.lock().values().find(|tenant| &*tenant.slug == slug).cloned()).await
    }
}

static RSA: LazyLock<rsa::RsaPrivateKey> =
    LazyLock::new(|| rsa::RsaPrivateKey::new(&mut rsa::rand_core::OsRng, 2048).expect("a key"));

/// Signs as one of the issuers does.
#[derive(Clone)]
pub(super) enum Signer {
    Ed(Box<ed25519_dalek::SigningKey>),
    Es(Box<p256::ecdsa::SigningKey>),
    Rs,
}

impl Signer {
    pub(super) fn ed(seed: u8) -> Self {
        Self::Ed(Box::new(ed25519_dalek::SigningKey::from_bytes(&[seed; 32])))
    }

    pub(super) fn es(seed: u8) -> Self {
        Self::Es(Box::new(p256::ecdsa::SigningKey::from_slice(&[seed; 32]).expect("a scalar")))
    }

    pub(super) fn algorithm(&self) -> &'static str {
        match self {
            Self::Ed(_) => "EdDSA",
            Self::Es(_) => "ES256",
            Self::Rs => "RS256",
        }
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Ed(key) => key.sign(message).to_bytes().to_vec(),
            Self::Es(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
            Self::Rs => RsaSigningKey::<Sha256>::new(RSA.clone()).sign(message).to_vec(),
        }
    }

    pub(super) fn public_pem(&self) -> String {
        match self {
            Self::Ed(key) => key.verifying_key().to_public_key_pem(LineEnding::LF).expect("encoded"),
            Self::Es(key) => key.verifying_key().to_public_key_pem(LineEnding::LF).expect("encoded"),
            Self::Rs => RSA.to_public_key().to_public_key_pem(LineEnding::LF).expect("encoded"),
        }
    }

    pub(super) fn jwk(&self, kid: &str) -> Value {
        use rsa::traits::PublicKeyParts as _;
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Ed(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": text(key.verifying_key().as_bytes())})
            }
            Self::Es(key) => {
                let point = key.verifying_key().to_encoded_point(false);
                let (x, y) = (point.x().expect("x"), point.y().expect("y"));
                json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": text(x), "y": text(y), "use": "sig"})
            }
            Self::Rs => {
                let (n, e) = (RSA.n().to_bytes_be(), RSA.e().to_bytes_be());
                json!({"kty": "RSA", "kid": kid, "n": text(&n), "e": text(&e), "alg": "RS256"})
            }
        }
    }

    /// A token of exactly these texts.
    pub(super) fn token(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    pub(super) fn header(&self) -> Value {
        json!({"alg": self.algorithm(), "typ": "JWT", "kid": "one"})
    }
}

pub(super) struct World {
    pub(super) auth: Arc<Authenticator>,
    pub(super) directory: Arc<MemoryDirectory>,
    pub(super) clock: Arc<FakeClock>,
    pub(super) signer: TokenSigner,
    pub(super) ed: Signer,
    pub(super) es: Signer,
    pub(super) rs: Signer,
    _folder: TempDir,
}

const PEPPER: [u8; 32] = [9; 32];

pub(super) fn new_key(kind: KeyKind) -> (ApiKey, String) {
    let key = ApiKey::generate(kind, &SystemIds(SystemClock));
    let text = key.expose().expose_secret().to_owned();
    (key, text)
}

pub(super) fn settings(folder: &Path) -> AuthSettings {
    let file = |name: &str| folder.join(name);
    let issuers = json!([
        {"issuer": ED_ISSUER, "algorithm": "EdDSA", "keys": {"pem_file": file("ed.pem")},
         "audience": ["bulkhead-test"], "tenants": [ACME, "sleeping", GONE, NOBODY], "role_names": {"boss": "tenant_admin"}},
        {"issuer": ES_ISSUER, "algorithm": "ES256", "keys": {"jwks_file": file("es.json")}, "audience": "none",
         "tenants": "any", "tenant_claim": "/org/slug", "tenant_claim_is": "slug", "roles_claim": "groups"},
        {"issuer": RS_ISSUER, "algorithm": "RS256", "keys": {"jwks_file": file("rs.json")},
         "audience": ["bulkhead-test"], "tenants": ["globex"]},
    ]);
    serde_json::from_value(json!({"issuers": issuers, "hosts": ["{slug}.base.example"]})).expect("settings")
}

impl World {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (ed, es, rs) = (Signer::ed(1), Signer::es(2), Signer::Rs);
        let write =
            |name: &str, text: String| std::fs::write(folder.path().join(name), text).expect("written");
        write("ed.pem", ed.public_pem());
        // A set as issuers have them: keys of other kinds stand beside ours.
        let other = json!({"kty": "oct", "kid": "oct", "k": "c2VjcmV0"});
        write("es.json", json!({"keys": [other, es.jwk("one"), rs.jwk("two"), {"kty": 5}]}).to_string());
        write("rs.json", json!({"keys": [rs.jwk("one"), es.jwk("two")]}).to_string());

        let settings = settings(folder.path());
        let clock = FakeClock::new();
        let directory = Arc::new(MemoryDirectory::default());
        for (tenant, slug, state) in [
            (ACME, "acme", TenantState::Active),
            (GLOBEX, "globex", TenantState::Active),
            (SLEEPING, "sleeping", TenantState::Suspended),
            (GONE, "gone", TenantState::Deleted),
        ] {
            let record = TenantRecord { tenant, slug: slug.into(), state, limits: LimitOverrides::default() };
            directory.tenants.lock().insert(tenant, record);
        }
        let ids = Arc::new(SystemIds(SystemClock));
        let signer =
            TokenSigner::load_or_create(&folder.path().join("own.pem"), &settings, clock.clone(), ids);
        let signer = signer.expect("a signer");
        let auth = Authenticator::new(
            directory.clone(),
            &settings,
            clock.clone(),
            KeyPepper::new(PEPPER),
            Some(&signer),
        );
        let auth = Arc::new(auth.expect("an authenticator"));
        Self { auth, directory, clock, signer, ed, es, rs, _folder: folder }
    }

    /// Stores a new key of the tenant and gives its text.
    pub(super) fn key(&self, tenant: TenantId) -> String {
        self.key_with(tenant, |_| ())
    }

    pub(super) fn key_with(&self, tenant: TenantId, change: impl FnOnce(&mut KeyRecord)) -> String {
        let (key, text) = new_key(KeyKind::Tenant);
        let mut record = KeyRecord {
            tenant: self.directory.tenants.lock().get(&tenant).expect("a tenant").clone(),
            digest: key.digest(&KeyPepper::new(PEPPER)),
            roles: vec![Role::Writer],
            namespaces: None,
            expires_at: None,
            revoked: false,
        };
        change(&mut record);
        self.directory.keys.lock().insert(key.id().to_owned(), record);
        text
    }

    pub(super) fn change_key(&self, text: &str, change: impl FnOnce(&mut KeyRecord)) {
        let key = ApiKey::parse(text).expect("a key");
        change(self.directory.keys.lock().get_mut(key.id()).expect("stored"));
    }

    /// Stores a new operator credential and gives its text.
    pub(super) fn operator(&self) -> String {
        let (key, text) = new_key(KeyKind::Operator);
        let digest = key.digest(&KeyPepper::new(PEPPER));
        let record = OperatorRecord { digest, expires_at: None, revoked: false };
        self.directory.operators.lock().insert(key.id().to_owned(), record);
        text
    }

    /// Claims of the first issuer that are right in everything.
    pub(super) fn claims(&self) -> Value {
        let now = self.clock.now().timestamp();
        json!({"iss": ED_ISSUER, "sub": "ann", "aud": "bulkhead-test", "tenant_id": ACME, "roles": ["reader"],
               "iat": now - 10, "nbf": now - 10, "exp": now + 600})
    }

    pub(super) fn ed_token(&self, claims: &Value) -> String {
        self.ed.token(&self.ed.header().to_string(), &claims.to_string())
    }

    pub(super) async fn bearer(&self, token: &str) -> Result<Authenticated, Refusal> {
        self.bearer_asking(token, &RequestHints::default()).await
    }

    pub(super) async fn bearer_asking(
        &self,
        token: &str,
        hints: &RequestHints<'_>,
    ) -> Result<Authenticated, Refusal> {
        let header = format!("Bearer {token}");
        let credentials = PresentedCredentials { authorization: vec![header.as_bytes()], x_api_key: vec![] };
        self.auth.authenticate(&credentials, hints).await
    }

    pub(super) async fn kind(&self, token: &str) -> Option<RefusalKind> {
        self.bearer(token).await.err().map(|refusal| refusal.kind())
    }
}
