//! Sessions for questions: one for everybody, and one of lower priority for busy tenants, so that a question of any
//! other waits for little else than itself.
//!
//! **Invariant:** which session embeds a question changes when its vector is there, and nothing of the vector.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use moka::sync::Cache;

use super::lane::Lane;
use super::{Embedded, EmbedderError, EmbeddingSettings, Source};
use crate::domain::ids::TenantId;
use crate::inference::priority::Priority;

/// The share of the time that a tenant's questions may keep the model busy before it is a busy tenant.
const SHARE: f64 = 0.1;
/// Seconds of the model that it may use at once, after it has asked nothing for long.
const AT_ONCE: f64 = 0.1;
/// The most that is held against it, so that whoever stops is soon as good as anybody.
const MOST: f64 = 2.0 * AT_ONCE;
/// When all of that has run off.
const FORGOTTEN: Duration = Duration::from_secs(2);
/// Tenants that are remembered.
const TENANTS: u64 = 100_000;

/// Both sessions. The second is loaded when there first is a busy tenant.
pub(super) struct Questions {
    everybody: Lane,
    busy_tenants: OnceLock<Lane>,
    loading: AtomicBool,
    used: Used,
    settings: EmbeddingSettings,
    threads: usize,
    /// Of the model that was loaded first.
    identity: String,
}

impl Questions {
    pub(super) fn start(
        source: &Source,
        settings: &EmbeddingSettings,
        threads: usize,
        identity: String,
    ) -> Result<Arc<Self>, EmbedderError> {
        let used = Used::default();
        let priority = Priority::First;
        Ok(Arc::new(Self {
            everybody: Lane::start("embed-questions", source, settings, threads, priority, used.meter())?,
            busy_tenants: OnceLock::new(),
            loading: AtomicBool::new(false),
            used,
            settings: settings.clone(),
            threads,
            identity,
        }))
    }

    /// The vectors of one question's texts, when its turn comes.
    pub(super) async fn run(
        self: &Arc<Self>,
        tenant: TenantId,
        texts: Vec<String>,
    ) -> Result<Vec<Embedded>, EmbedderError> {
        self.lane(tenant).run(tenant, texts).await
    }

    fn lane(self: &Arc<Self>, tenant: TenantId) -> &Lane {
        if !self.used.is_busy(tenant, Instant::now()) {
            return &self.everybody;
        }
        self.busy_tenants.get().unwrap_or_else(|| {
            self.load_second();
            &self.everybody
        })
    }

    /// Loads the second session on a thread of its own; meanwhile the first does all.
    fn load_second(self: &Arc<Self>) {
        if self.loading.swap(true, Ordering::Relaxed) {
            return;
        }
        let questions = Arc::clone(self);
        let load = move || {
            Priority::Second.apply();
            if let Err(error) = questions.start_second() {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "busy tenants are not held apart: the model cannot be loaded again"
                );
            }
        };
        if let Err(error) = thread::Builder::new().name("embed-load".to_owned()).spawn(load) {
            tracing::warn!(error = &error as &dyn std::error::Error, "no thread to load the model again");
        }
    }

    fn start_second(&self) -> Result<(), EmbedderError> {
        let source = Source::open(&self.settings)?;
        if source.identity(&self.settings) != self.identity {
            // A question would be compared with vectors of another model.
            return Err(EmbedderError::Replaced);
        }
        let (priority, meter) = (Priority::Second, self.used.meter());
        let lane = Lane::start("embed-busy", &source, &self.settings, self.threads, priority, meter)?;
        drop(self.busy_tenants.set(lane));
        Ok(())
    }

    /// The sessions that are there.
    pub(super) fn lanes(&self) -> impl Iterator<Item = (&'static str, &Lane)> {
        let second = self.busy_tenants.get().map(|lane| ("busy_tenants", lane));
        [("questions", &self.everybody)].into_iter().chain(second)
    }

    pub(super) fn dimension(&self) -> usize {
        self.everybody.dimension
    }
}

/// What tenants' questions have used of the model lately, in seconds and as of when: it runs off by [`SHARE`] of the
/// time.
#[derive(Clone)]
struct Used(Cache<TenantId, (f64, Instant)>);

impl Default for Used {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(TENANTS).time_to_idle(FORGOTTEN).build())
    }
}

impl Used {
    fn is_busy(&self, tenant: TenantId, now: Instant) -> bool {
        self.0.get(&tenant).is_some_and(|used| left(used, now) >= AT_ONCE)
    }

    fn add(&self, tenant: TenantId, busy: Duration, now: Instant) {
        self.0.entry(tenant).and_upsert_with(|used| {
            let before = used.map_or(0.0, |used| left(used.into_value(), now));
            ((before + busy.as_secs_f64()).min(MOST), now)
        });
    }

    /// What a session tells of each batch.
    fn meter(&self) -> impl Fn(TenantId, Duration) + Send + 'static {
        let used = self.clone();
        move |tenant, busy| used.add(tenant, busy, Instant::now())
    }
}

fn left((seconds, at): (f64, Instant), now: Instant) -> f64 {
    (seconds - SHARE * now.saturating_duration_since(at).as_secs_f64()).max(0.0)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);
    const ALICE: TenantId = TenantId(Uuid::from_u128(1));
    const BOB: TenantId = TenantId(Uuid::from_u128(2));

    #[test]
    fn whoever_asks_without_a_pause_is_busy_and_a_second_later_as_good_as_anybody() {
        let (used, mut now) = (Used::default(), Instant::now());
        let mut asked = 0;
        while !used.is_busy(ALICE, now) {
            now += 5 * MILLISECOND;
            used.add(ALICE, 5 * MILLISECOND, now);
            asked += 1;
        }
        assert!((20..30).contains(&asked), "{asked}");
        for _ in 0..1000 {
            now += 5 * MILLISECOND;
            used.add(ALICE, 5 * MILLISECOND, now);
        }
        assert!(used.is_busy(ALICE, now) && !used.is_busy(BOB, now));
        assert!(!used.is_busy(ALICE, now + 1100 * MILLISECOND));
    }

    #[test]
    fn whoever_asks_now_and_then_is_never_busy() {
        let (used, mut now) = (Used::default(), Instant::now());
        for _ in 0..1000 {
            now += 100 * MILLISECOND;
            used.add(ALICE, 5 * MILLISECOND, now);
            assert!(!used.is_busy(ALICE, now));
        }
    }
}
