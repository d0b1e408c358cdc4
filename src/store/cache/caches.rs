//! What keeps things for a server, as those use it who would else compute them.
//!
//! **Invariant:** a back end that is away, slow or wrong costs its deadline and nothing else; an isolation alarm alone
//! is handed on.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::time::sleep;
use uuid::Uuid;

use super::{Cache, CacheKey, CacheKind, CacheSettings};
use crate::domain::clock::Clock;
use crate::domain::ids::IdSource;
use crate::store::error::{ErrorKind, StoreError};
use crate::telemetry::page::{Page, Written};

/// How long a lock is held without being held again, as when its server was killed; and how often it is.
const HELD: Duration = Duration::from_secs(6);
const AGAIN: Duration = Duration::from_secs(2);
/// How often it is held again at most: for longer than any answer takes.
const HELD_AGAIN: u32 = 600;
/// How often it is looked whether an answer that another one writes is there.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// An outage is told of again only after so long without one.
const QUIET: Duration = Duration::from_mins(1);

/// What a look-up came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked {
    /// The value.
    Hit(Vec<u8>),
    /// There is none, and one may be put.
    Miss,
    /// Nothing is kept now.
    Off,
}

/// A value that was made, and whether the next one may be given it too.
pub struct Made {
    value: Vec<u8>,
    keep: bool,
}

impl Made {
    /// One that is kept if `keep` says so, and otherwise used once.
    #[must_use]
    pub fn new(value: Vec<u8>, keep: bool) -> Self {
        Self { value, keep }
    }
}

impl From<Vec<u8>> for Made {
    fn from(value: Vec<u8>) -> Self {
        Self { value, keep: true }
    }
}

/// What happens, as labels.
const HAPPENS: [&str; 6] = ["hit", "miss", "away", "damaged", "foreign", "too_large"];

#[derive(Default)]
struct Counts([[AtomicU64; HAPPENS.len()]; CacheKind::ALL.len()]);

impl Counts {
    fn count(&self, kind: CacheKind, happened: &'static str) {
        if let Some(at) = HAPPENS.iter().position(|known| *known == happened) {
            self.0[kind as usize][at].fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Inner {
    cache: Arc<dyn Cache>,
    settings: CacheSettings,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    counts: Counts,
    last_away: Mutex<Option<Instant>>,
}

/// What keeps things, or nothing. Clones are cheap and are the same.
#[derive(Clone, Default)]
pub struct Caches(Option<Arc<Inner>>);

impl Caches {
    /// Kept by this back end.
    #[must_use]
    pub fn new(
        cache: Arc<dyn Cache>,
        settings: CacheSettings,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
    ) -> Self {
        let (counts, last_away) = Default::default();
        Self(Some(Arc::new(Inner { cache, settings, clock, ids, counts, last_away })))
    }

    /// For people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.0.as_ref().map_or("off", |inner| inner.cache.name())
    }

    /// Whether anything of this kind is kept.
    #[must_use]
    pub fn keeps(&self, kind: CacheKind) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.settings.keep(kind).is_some())
    }

    /// Looks a key up.
    ///
    /// # Errors
    /// `Foreign` when another tenant's or namespace's value is there.
    pub async fn get(&self, key: &CacheKey) -> Result<Looked, StoreError> {
        match &self.0 {
            Some(inner) if inner.settings.keep(key.kind).is_some() => inner.get(key).await,
            _ => Ok(Looked::Off),
        }
    }

    /// Keeps a value, unless it is too large. To be called after a [`Looked::Miss`] alone, so that a back end that
    /// hangs is waited for once.
    pub async fn put(&self, key: &CacheKey, value: &[u8]) {
        if let Some(inner) = &self.0 {
            let _answered = inner.put(key, value).await;
        }
    }

    /// The value of a key, and whether it was kept. Of those who ask for the same at the same time, on all servers
    /// over the back end, one makes it and the others wait for it, within bounds.
    ///
    /// # Errors
    /// What `make` fails with, or `Foreign` when another tenant's or namespace's value is there.
    pub async fn get_or_make<E: From<StoreError>, M: Into<Made>>(
        &self,
        key: &CacheKey,
        make: impl Future<Output = Result<M, E>>,
    ) -> Result<(Vec<u8>, bool), E> {
        let looked = self.get(key).await?;
        let (Some(inner), Looked::Miss) = (&self.0, &looked) else {
            return match looked {
                Looked::Hit(value) => Ok((value, true)),
                Looked::Miss | Looked::Off => Ok((make.await?.into().value, false)),
            };
        };
        let holder = inner.ids.uuid();
        match inner.turn(key, holder).await? {
            Turn::There(value) => Ok((value, true)),
            Turn::Away => Ok((make.await?.into().value, false)),
            Turn::WithoutLock => {
                let new: Made = make.await?.into();
                inner.keep(key, &new).await;
                Ok((new.value, false))
            }
            Turn::Ours => {
                let new: Result<Made, E> = inner.holding(key, holder, make).await.map(Into::into);
                let answers = match &new {
                    Ok(new) => inner.keep(key, new).await,
                    Err(_) => true,
                };
                // Else it lapses, and nobody waits for the same outage twice.
                if answers {
                    inner.unlock(key, holder).await;
                }
                Ok((new?.value, false))
            }
        }
    }

    /// Writes its numbers on the page of metrics; none while nothing is kept.
    ///
    /// # Errors
    /// When the page cannot be written.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub fn write(&self, page: &mut Page<'_, '_>) -> Written {
        let Some(inner) = &self.0 else { return Ok(()) };
        let counts = CacheKind::ALL.into_iter().flat_map(|kind| {
            let of_kind = HAPPENS.iter().zip(&inner.counts.0[kind as usize]);
            of_kind.map(move |(happened, count)| {
                ([("kind", kind.name()), ("outcome", *happened)], count.load(Ordering::Relaxed) as f64)
            })
        });
        page.counters(
            "bulkhead_cache",
            "Look-ups in caches by what came of them, and values too large to be kept",
            counts,
        )
    }
}

/// What came of waiting for a turn to make a value.
enum Turn {
    /// Another one made it.
    There(Vec<u8>),
    /// This one has the lock.
    Ours,
    /// It is made without the lock, since the wait was long enough.
    WithoutLock,
    /// Nothing is kept now.
    Away,
}

impl Inner {
    async fn get(&self, key: &CacheKey) -> Result<Looked, StoreError> {
        let (looked, happened) = match self.cache.get(key).await {
            Ok(Some(value)) => (Looked::Hit(value), "hit"),
            Ok(None) => (Looked::Miss, "miss"),
            Err(error) if error.kind == ErrorKind::Foreign => {
                self.counts.count(key.kind, "foreign");
                return Err(error);
            }
            Err(error) => {
                self.failed(key, &error);
                let unreadable = error.kind == ErrorKind::Damaged;
                return Ok(if unreadable { Looked::Miss } else { Looked::Off });
            }
        };
        self.counts.count(key.kind, happened);
        Ok(looked)
    }

    /// Whether the back end answers, as far as that was seen.
    async fn put(&self, key: &CacheKey, value: &[u8]) -> bool {
        let Some(keep) = self.settings.keep(key.kind) else { return true };
        if value.len() > self.settings.value_bytes {
            self.counts.count(key.kind, "too_large");
            return true;
        }
        let put = self.cache.put(key, value, keep).await;
        if let Err(error) = &put {
            self.failed(key, error);
        }
        put.is_ok()
    }

    /// Keeps a value that was made, where it may be kept; as [`Self::put`].
    async fn keep(&self, key: &CacheKey, made: &Made) -> bool {
        !made.keep || self.put(key, &made.value).await
    }

    /// Counts what failed, and tells of a value that cannot be read and of an outage that begins.
    fn failed(&self, key: &CacheKey, error: &StoreError) {
        if error.kind == ErrorKind::Damaged {
            self.counts.count(key.kind, "damaged");
            tracing::warn!(tenant = %key.tenant, error = error as &dyn std::error::Error, "what a cache holds cannot be used");
            return;
        }
        self.counts.count(key.kind, "away");
        let now = self.clock.instant();
        let last = self.last_away.lock().replace(now);
        if last.is_none_or(|last| now.saturating_duration_since(last) > QUIET) {
            tracing::warn!(error = error as &dyn std::error::Error, "nothing is kept in caches for now");
        }
    }

    /// Waits until the value is there, or the lock is ours, or for as long as is waited at most.
    async fn turn(&self, key: &CacheKey, holder: Uuid) -> Result<Turn, StoreError> {
        let end = self.clock.instant() + Duration::from_secs(self.settings.wait_seconds);
        loop {
            match self.cache.lock(key, holder, HELD).await {
                Ok(true) => break,
                Ok(false) if self.clock.instant() < end => {}
                Ok(false) => return Ok(Turn::WithoutLock),
                Err(error) if error.kind == ErrorKind::Foreign => return Err(error),
                Err(error) => {
                    self.failed(key, &error);
                    let unreadable = error.kind == ErrorKind::Damaged;
                    return Ok(if unreadable { Turn::WithoutLock } else { Turn::Away });
                }
            }
            sleep(LOOK_AGAIN).await;
            if let Some(value) = self.there(key).await? {
                return Ok(Turn::There(value));
            }
        }
        // Whoever had it before may have put the value between our two looks.
        let there = self.there(key).await;
        if !matches!(there, Ok(None)) {
            self.unlock(key, holder).await;
        }
        Ok(there?.map_or(Turn::Ours, Turn::There))
    }

    async fn unlock(&self, key: &CacheKey, holder: Uuid) {
        if let Err(error) = self.cache.unlock(key, holder).await {
            self.failed(key, &error);
        }
    }

    /// The value, looked up without being counted, since its question was.
    async fn there(&self, key: &CacheKey) -> Result<Option<Vec<u8>>, StoreError> {
        match self.cache.get(key).await {
            Err(error) if error.kind == ErrorKind::Foreign => Err(error),
            looked => Ok(looked.unwrap_or_default()),
        }
    }

    /// Makes the value and holds the lock meanwhile. It lapses by itself when this is dropped or its server killed.
    async fn holding<T>(&self, key: &CacheKey, holder: Uuid, make: impl Future<Output = T>) -> T {
        let mut make = pin!(make);
        let again = async {
            for _ in 0..HELD_AGAIN {
                sleep(AGAIN).await;
                if let Err(error) = self.cache.lock(key, holder, HELD).await {
                    self.failed(key, &error);
                }
            }
        };
        tokio::select! {
            new = make.as_mut() => return new,
            () = again => {}
        }
        make.await
    }
}
