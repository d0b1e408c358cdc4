//! Sessions for questions: one for tenants that ask little, and one of lower priority for those that ask much, so that
//! a question of the former waits for little else than itself.
//!
//! **Invariant:** which session embeds a question changes when its vector is there, and nothing of the vector.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::lane::Lane;
use super::{Embedded, EmbedderError, EmbeddingSettings, Source};
use crate::domain::ids::TenantId;
use crate::inference::priority::Priority;

/// The share of the time that a tenant's questions may keep the first session busy.
const SHARE: f64 = 0.1;
/// What it may use at once, after it has asked nothing for long.
const AT_ONCE: Duration = Duration::from_millis(100);
/// Tenants that are remembered before those are forgotten that are within their share.
const REMEMBERED: usize = 1024;

/// Both sessions. The second is loaded when a tenant first asks much.
pub(super) struct Questions {
    first: Lane,
    second: OnceLock<Lane>,
    loading: AtomicBool,
    identity: String,
    settings: EmbeddingSettings,
    threads: usize,
    spent: Mutex<Spent>,
}

impl Questions {
    pub(super) fn start(
        source: &Source,
        settings: &EmbeddingSettings,
        threads: usize,
        identity: String,
    ) -> Result<Arc<Self>, EmbedderError> {
        Ok(Arc::new(Self {
            first: Lane::start("embed-questions", source, settings, threads, Priority::First)?,
            second: OnceLock::new(),
            loading: AtomicBool::new(false),
            identity,
            settings: settings.clone(),
            threads,
            spent: Mutex::default(),
        }))
    }

    /// The vectors of one question's texts, when its turn comes.
    pub(super) async fn run(
        self: &Arc<Self>,
        tenant: TenantId,
        texts: Vec<String>,
    ) -> Result<Vec<Embedded>, EmbedderError> {
        let much = self.spent.lock().is_much(tenant, Instant::now());
        let lane = match self.second.get() {
            Some(second) if much => second,
            _ => {
                if much {
                    self.load_second();
                }
                &self.first
            }
        };
        let done = lane.run(tenant, texts).await?;
        self.spent.lock().add(tenant, done.busy, Instant::now());
        Ok(done.vectors)
    }

    /// Loads the second session on a thread of its own; meanwhile the first does all.
    fn load_second(self: &Arc<Self>) {
        if self.loading.swap(true, Ordering::Relaxed) {
            return;
        }
        let questions = Arc::clone(self);
        let load = move || {
            Priority::Second.take();
            let second = Source::open(&questions.settings).and_then(|source| {
                let (settings, threads) = (&questions.settings, questions.threads);
                if source.identity(settings) != questions.identity {
                    // Its files were replaced meanwhile: a question would be compared with vectors of another model.
                    return Err(EmbedderError::Replaced);
                }
                Lane::start("embed-much", &source, settings, threads, Priority::Second)
            });
            match second {
                Ok(second) => drop(questions.second.set(second)),
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "tenants that ask much are not held apart: the model cannot be loaded again"
                    );
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("embed-load".to_owned()).spawn(load) {
            tracing::warn!(error = &error as &dyn std::error::Error, "no thread to load the model again");
        }
    }

    /// The sessions that are there.
    pub(super) fn lanes(&self) -> impl Iterator<Item = (&'static str, &Lane)> {
        [("questions", &self.first)].into_iter().chain(self.second.get().map(|second| ("much", second)))
    }

    pub(super) fn dimension(&self) -> usize {
        self.first.dimension
    }
}

/// What tenants' questions have used of the model lately: it runs off by [`SHARE`] of the time.
#[derive(Default)]
struct Spent {
    /// Seconds, and when that was.
    tenants: HashMap<TenantId, (f64, Instant)>,
    forget_at: usize,
}

impl Spent {
    fn is_much(&self, tenant: TenantId, now: Instant) -> bool {
        self.tenants.get(&tenant).is_some_and(|spent| left(*spent, now) >= AT_ONCE.as_secs_f64())
    }

    fn add(&mut self, tenant: TenantId, busy: Duration, now: Instant) {
        let before = self.tenants.get(&tenant).map_or(0.0, |spent| left(*spent, now));
        // At most twice the bound, so that whoever stops asking much is soon as good as anybody.
        let spent = (before + busy.as_secs_f64()).min(2.0 * AT_ONCE.as_secs_f64());
        self.tenants.insert(tenant, (spent, now));
        if self.tenants.len() > self.forget_at.max(REMEMBERED) {
            self.tenants.retain(|_, spent| left(*spent, now) > 0.0);
            self.forget_at = 2 * self.tenants.len();
        }
    }
}

fn left((spent, at): (f64, Instant), now: Instant) -> f64 {
    (spent - SHARE * now.saturating_duration_since(at).as_secs_f64()).max(0.0)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn whoever_asks_without_a_pause_asks_much_and_is_as_good_as_anybody_a_second_later() {
        let tenant = TenantId(Uuid::from_u128(1));
        let (mut spent, mut now) = (Spent::default(), Instant::now());
        let mut asked = 0;
        while !spent.is_much(tenant, now) {
            now += 5 * MILLISECOND;
            spent.add(tenant, 5 * MILLISECOND, now);
            asked += 1;
        }
        assert!((20..30).contains(&asked), "{asked}");
        for _ in 0..1000 {
            now += 5 * MILLISECOND;
            spent.add(tenant, 5 * MILLISECOND, now);
        }
        assert!(spent.is_much(tenant, now));
        assert!(!spent.is_much(TenantId(Uuid::from_u128(2)), now));
        assert!(!spent.is_much(tenant, now + 1100 * MILLISECOND));
    }

    #[test]
    fn whoever_asks_now_and_then_never_asks_much_and_is_forgotten() {
        let (mut spent, mut now) = (Spent::default(), Instant::now());
        for n in 0..10 * REMEMBERED as u128 {
            now += 100 * MILLISECOND;
            spent.add(TenantId(Uuid::from_u128(n % 3)), 5 * MILLISECOND, now);
            spent.add(TenantId(Uuid::from_u128(n)), 5 * MILLISECOND, now);
            assert!((0..3).all(|n| !spent.is_much(TenantId(Uuid::from_u128(n)), now)));
        }
        assert!(spent.tenants.len() <= REMEMBERED + 1, "{}", spent.tenants.len());
    }
}
