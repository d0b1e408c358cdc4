//! The public keys of an issuer, and how they are kept up to date.
//!
//! A set of keys (RFC 7517) is reduced to those that can verify the one pinned algorithm. It is fetched when it
//! is old or when a token names a key that is not in it, by one caller at a time and at most once per
//! `FETCH_EVERY`, so that tokens with invented key ids cannot make us flood an issuer.
//!
//! **Invariant:** a key never comes from a token; a token's `kid` is nothing but a key of this map.
//! **Invariant:** keys come by verified TLS or from this machine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::RwLock;
use reqwest::Url;
use serde::Deserialize;
use tokio_util::task::TaskTracker;

use super::settings::{KeySource, TokenAlgorithm};
use crate::domain::address::{guarded, is_on_loopback};
use crate::domain::clock::Clock;

/// The largest set that is read, bytes.
const MAX_SET_BYTES: usize = 256 * 1024;
/// The most keys that a set may have.
const MAX_KEYS: usize = 64;
/// After this long a set is fetched anew.
const FRESH_FOR: Duration = Duration::from_mins(5);
/// When it cannot be fetched anew, it is used this long: a key that its issuer withdrew must end some time.
const USABLE_FOR: Duration = Duration::from_hours(1);
/// The shortest time between two fetches.
const FETCH_EVERY: Duration = Duration::from_secs(10);
/// The longest that a fetch may take.
const FETCH_WITHIN: Duration = Duration::from_secs(5);
/// The least length of an RSA modulus, bits (RFC 7518, 3.3).
const MIN_RSA_BITS: usize = 2048;

/// Public keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// The file cannot be read.
    #[error("{path} cannot be read")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The address did not answer with a set.
    #[error("the key set cannot be fetched")]
    Fetch(#[source] reqwest::Error),
    /// What was read is no set of keys, or has no key for the algorithm.
    #[error("{0}")]
    Content(&'static str),
}

/// A public key of the pinned algorithm.
#[derive(Debug, Clone)]
pub(super) struct VerifyingKey {
    algorithm: TokenAlgorithm,
    key: DecodingKey,
}

impl VerifyingKey {
    pub(super) fn ed25519(key: &[u8; 32]) -> Self {
        Self { algorithm: TokenAlgorithm::EdDSA, key: DecodingKey::from_ed_der(key) }
    }

    fn from_pem(algorithm: TokenAlgorithm, pem: &[u8]) -> Result<Self, KeySetError> {
        let key = match algorithm {
            TokenAlgorithm::EdDSA => DecodingKey::from_ed_pem(pem),
            TokenAlgorithm::ES256 => DecodingKey::from_ec_pem(pem),
            TokenAlgorithm::RS256 => DecodingKey::from_rsa_pem(pem),
        };
        let key = key.map_err(|_| KeySetError::Content("not a public key of the issuer's algorithm, PEM"))?;
        let bytes = key.try_get_as_bytes().map_or(0, <[u8]>::len);
        let fits = match algorithm {
            TokenAlgorithm::EdDSA => bytes == 32,
            // An uncompressed point of P-256; the other curves' are longer.
            TokenAlgorithm::ES256 => bytes == 65,
            // The encoded key holds the modulus and a few bytes more.
            TokenAlgorithm::RS256 => bytes > MIN_RSA_BITS / 8,
        };
        if fits {
            Ok(Self { algorithm, key })
        } else {
            Err(KeySetError::Content("the key has the wrong length"))
        }
    }

    /// Whether `signature` (base64url) is of this key over `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &str) -> bool {
        let algorithm = match self.algorithm {
            TokenAlgorithm::EdDSA => Algorithm::EdDSA,
            TokenAlgorithm::ES256 => Algorithm::ES256,
            TokenAlgorithm::RS256 => Algorithm::RS256,
        };
        jsonwebtoken::crypto::verify(signature, message, &self.key, algorithm).unwrap_or(false)
    }
}

#[derive(Deserialize)]
struct WireSet {
    keys: Vec<serde_json::Value>,
}

/// The members of a JSON Web Key that matter here; `kty` chooses among them.
#[derive(Deserialize)]
struct WireKey {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

/// The usable keys of a set, by key id.
#[derive(Debug, Default)]
pub(super) struct KeySet {
    named: HashMap<String, Arc<VerifyingKey>>,
    /// The key for every token (a PEM file), or for one without `kid` when the set has no other.
    only: Option<Arc<VerifyingKey>>,
    ignores_kid: bool,
}

impl KeySet {
    pub(super) fn of_one(key: VerifyingKey) -> Self {
        Self { named: HashMap::new(), only: Some(Arc::new(key)), ignores_kid: true }
    }

    fn parse(algorithm: TokenAlgorithm, json: &[u8]) -> Result<Self, KeySetError> {
        let set: WireSet =
            serde_json::from_slice(json).map_err(|_| KeySetError::Content("not a JSON Web Key Set"))?;
        if set.keys.len() > MAX_KEYS {
            return Err(KeySetError::Content("the set has too many keys"));
        }
        let mut named = HashMap::new();
        let mut nameless = Vec::new();
        // Keys of other kinds and forms may stand in the set; they are nobody's business here.
        for wire in set.keys.into_iter().filter_map(|key| serde_json::from_value::<WireKey>(key).ok()) {
            let Some(key) = wire.usable(algorithm).map(Arc::new) else { continue };
            let Some(kid) = wire.kid else {
                nameless.push(key);
                continue;
            };
            if named.insert(kid, key).is_some() {
                return Err(KeySetError::Content("two keys of the set have one id"));
            }
        }
        let mut all = named.values().chain(&nameless);
        let only = match (all.next(), all.next()) {
            (None, _) => return Err(KeySetError::Content("the set has no key of the issuer's algorithm")),
            (Some(only), None) => Some(Arc::clone(only)),
            _ => None,
        };
        Ok(Self { named, only, ignores_kid: false })
    }

    fn find(&self, kid: Option<&str>) -> Option<Arc<VerifyingKey>> {
        match kid {
            Some(kid) if !self.ignores_kid => self.named.get(kid).cloned(),
            _ => self.only.clone(),
        }
    }
}

impl WireKey {
    fn usable(&self, algorithm: TokenAlgorithm) -> Option<VerifyingKey> {
        let meant = self.usage.as_deref().is_none_or(|usage| usage == "sig")
            && self.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"))
            && self.alg.as_deref().is_none_or(|alg| alg == algorithm.name());
        let bytes = |part: &Option<String>| URL_SAFE_NO_PAD.decode(part.as_deref()?).ok();
        let key = match (algorithm, self.kty.as_str(), self.crv.as_deref()) {
            (TokenAlgorithm::EdDSA, "OKP", Some("Ed25519")) => {
                DecodingKey::from_ed_der(&bytes(&self.x).filter(|x| x.len() == 32)?)
            }
            (TokenAlgorithm::ES256, "EC", Some("P-256")) => {
                let (x, y) = (bytes(&self.x)?, bytes(&self.y)?);
                let point = [&[4], x.as_slice(), &y].concat();
                (x.len() == 32 && y.len() == 32).then(|| DecodingKey::from_ec_der(&point))?
            }
            (TokenAlgorithm::RS256, "RSA", _) => {
                let (n, e) = (bytes(&self.n)?, bytes(&self.e)?);
                let whole = n.iter().position(|byte| *byte != 0).map_or(0, |zeros| n.len() - zeros);
                (whole * 8 >= MIN_RSA_BITS).then(|| DecodingKey::from_rsa_raw_components(&n, &e))?
            }
            _ => return None,
        };
        meant.then_some(VerifyingKey { algorithm, key })
    }
}

#[derive(Debug)]
enum Source {
    Fixed,
    Pem(PathBuf),
    SetFile(PathBuf),
    SetUrl(Url),
}

#[derive(Debug, Default)]
struct Held {
    set: Option<(Arc<KeySet>, Instant)>,
    /// When a fetch last ended, and whether it brought a set.
    fetched: Option<(Instant, bool)>,
}

/// The keys of one issuer.
#[derive(Debug)]
pub(super) struct KeyRing {
    source: Source,
    algorithm: TokenAlgorithm,
    clock: Arc<dyn Clock>,
    held: RwLock<Held>,
    fetching: Arc<tokio::sync::Mutex<()>>,
    tasks: TaskTracker,
}

/// The keys cannot be had now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeysAway;

impl KeyRing {
    /// Keys that do not change.
    pub(super) fn fixed(key: VerifyingKey, clock: Arc<dyn Clock>) -> Arc<Self> {
        let algorithm = key.algorithm;
        Self::holding(Source::Fixed, algorithm, clock, Some(KeySet::of_one(key)))
    }

    /// The keys of a source. Files are read at once, so that a fault is seen at start; an address is asked
    /// when the first token comes, so that we start while the issuer is away.
    pub(super) fn open(
        source: &KeySource,
        algorithm: TokenAlgorithm,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, KeySetError> {
        let (source, set) = match source {
            KeySource::PemFile(path) => {
                let set = KeySet::of_one(VerifyingKey::from_pem(algorithm, &read(path)?)?);
                (Source::Pem(path.clone()), Some(set))
            }
            KeySource::JwksFile(path) => {
                let set = KeySet::parse(algorithm, &read(path)?)?;
                (Source::SetFile(path.clone()), Some(set))
            }
            KeySource::JwksUrl(url) => (Source::SetUrl(guarded(url).map_err(KeySetError::Content)?), None),
        };
        Ok(Self::holding(source, algorithm, clock, set))
    }

    fn holding(
        source: Source,
        algorithm: TokenAlgorithm,
        clock: Arc<dyn Clock>,
        set: Option<KeySet>,
    ) -> Arc<Self> {
        let set = set.map(|set| (Arc::new(set), clock.instant()));
        Arc::new(Self {
            source,
            algorithm,
            clock,
            held: RwLock::new(Held { set, fetched: None }),
            fetching: Arc::default(),
            tasks: TaskTracker::new(),
        })
    }

    /// The key of this id. `None`: the issuer has no such key.
    ///
    /// # Errors
    /// [`KeysAway`] when that cannot be told, because the issuer's keys could not be fetched.
    pub(super) async fn find(
        self: &Arc<Self>,
        kid: Option<&str>,
    ) -> Result<Option<Arc<VerifyingKey>>, KeysAway> {
        let asked = self.clock.instant();
        let (known, age) = self.look(kid, asked);
        if matches!(self.source, Source::Fixed) || (known.is_some() && age < FRESH_FOR) {
            return Ok(known);
        }
        let usable = known.is_some() && age < USABLE_FOR;
        let turn = if usable {
            // Whoever finds somebody fetching goes on with the old key instead of waiting.
            match Arc::clone(&self.fetching).try_lock_owned() {
                Ok(turn) => turn,
                Err(_) => return Ok(known),
            }
        } else {
            Arc::clone(&self.fetching).lock_owned().await
        };
        if self.may_fetch() {
            let ring = Arc::clone(self);
            // In a task of its own: a caller who goes away must not end the fetch for all.
            let fetch = async move {
                let _turn = turn;
                ring.fetch().await;
            };
            // A fetch that panicked brought no keys; what is held decides below.
            self.tasks.spawn(fetch).await.ok();
        }
        let (found, age) = self.look(kid, self.clock.instant());
        match found {
            Some(found) if age < USABLE_FOR => Ok(Some(found)),
            _ if self.held.read().fetched.is_some_and(|(_, succeeded)| succeeded) => Ok(None),
            _ => Err(KeysAway),
        }
    }

    fn look(&self, kid: Option<&str>, now: Instant) -> (Option<Arc<VerifyingKey>>, Duration) {
        match &self.held.read().set {
            Some((set, since)) => (set.find(kid), now.saturating_duration_since(*since)),
            None => (None, Duration::MAX),
        }
    }

    fn may_fetch(&self) -> bool {
        let now = self.clock.instant();
        let fetched = self.held.read().fetched;
        fetched.is_none_or(|(at, _)| now.saturating_duration_since(at) >= FETCH_EVERY)
    }

    async fn fetch(&self) {
        let outcome = self.load().await;
        let now = self.clock.instant();
        let mut held = self.held.write();
        held.fetched = Some((now, outcome.is_ok()));
        match outcome {
            Ok(set) => held.set = Some((Arc::new(set), now)),
            Err(error) => tracing::warn!(error = %error, cause = ?error, "an issuer's keys cannot be had"),
        }
    }

    async fn load(&self) -> Result<KeySet, KeySetError> {
        match &self.source {
            Source::Fixed => Err(KeySetError::Content("these keys do not change")),
            Source::Pem(path) => {
                Ok(KeySet::of_one(VerifyingKey::from_pem(self.algorithm, &read_async(path).await?)?))
            }
            Source::SetFile(path) => KeySet::parse(self.algorithm, &read_async(path).await?),
            Source::SetUrl(url) => KeySet::parse(self.algorithm, &download(url).await?),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, KeySetError> {
    std::fs::read(path).map_err(|source| KeySetError::File { path: path.to_owned(), source })
}

async fn read_async(path: &Path) -> Result<Vec<u8>, KeySetError> {
    tokio::fs::read(path).await.map_err(|source| KeySetError::File { path: path.to_owned(), source })
}

async fn download(url: &Url) -> Result<Vec<u8>, KeySetError> {
    // Fails when a provider is installed already, which is what we want.
    rustls::crypto::ring::default_provider().install_default().ok();
    let mut client = reqwest::Client::builder()
        // A redirect could lead to an address that the configuration would refuse.
        .redirect(reqwest::redirect::Policy::none())
        .timeout(FETCH_WITHIN);
    if is_on_loopback(url) {
        client = client.no_proxy();
    }
    let client = client.build().map_err(KeySetError::Fetch)?;
    let mut response = client
        .get(url.clone())
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(KeySetError::Fetch)?;
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(KeySetError::Fetch)? {
        body.extend_from_slice(&piece);
        if body.len() > MAX_SET_BYTES {
            return Err(KeySetError::Content("the key set is too large"));
        }
    }
    Ok(body)
}
