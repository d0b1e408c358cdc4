//! The requests of each tenant: how many, how many failed, and how long they took.
//!
//! Numbers are of two windows of five minutes, the one that runs and the one before; so a tenant that rests is
//! forgotten, and quantiles tell of now. The metrics name the tenants with the most requests; who is named changes
//! between two windows at most. A tenant that is named anew begins at 0, which Prometheus takes for a restart.
//!
//! **Invariant:** memory and labels are bounded, whatever tenants do: those for whom there is no room are `other`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;

use super::page::{Page, Written};
use super::quantiles::Durations;
use crate::domain::clock::Clock;
use crate::domain::ids::TenantId;

/// How long a window is.
const WINDOW: Duration = Duration::from_mins(5);

/// What stands for tenants that are not named.
pub const OTHER: &str = "other";

/// A tenant's requests in a window.
#[derive(Debug, Clone, Default)]
struct Meter {
    requests: u64,
    errors: u64,
    durations: Durations,
}

/// What a tenant asked of this server lately.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, utoipa::ToSchema)]
pub struct Recent {
    /// The time that the numbers tell of, seconds: at most ten minutes.
    pub seconds: f64,
    /// Requests, refused ones among them.
    pub requests: u64,
    /// Of these, how many were answered with 4xx or 5xx.
    pub errors: u64,
    /// The time that they took together, seconds.
    pub busy_seconds: f64,
    /// Half of them began to be answered within so many milliseconds; null when there were none.
    pub p50_ms: Option<f64>,
    /// 95 of 100 did.
    pub p95_ms: Option<f64>,
    /// 99 of 100 did.
    pub p99_ms: Option<f64>,
}

/// Counts that only grow, as they are exported.
#[derive(Debug, Clone, Copy, Default)]
struct Series {
    requests: u64,
    errors: u64,
    busy: Duration,
}

struct State {
    began: Instant,
    before: Option<Instant>,
    current: HashMap<TenantId, Meter>,
    previous: HashMap<TenantId, Meter>,
    named: HashMap<TenantId, Series>,
    other: Series,
}

/// The requests of all tenants.
pub struct Tenants {
    named: usize,
    remembered: usize,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

impl Tenants {
    pub(super) fn new(named: usize, remembered: usize, clock: Arc<dyn Clock>) -> Self {
        let state = State {
            began: clock.instant(),
            before: None,
            current: HashMap::new(),
            previous: HashMap::new(),
            named: HashMap::new(),
            other: Series::default(),
        };
        Self { named, remembered, clock, state: Mutex::new(state) }
    }

    /// Counts a request.
    pub(super) fn count(&self, tenant: TenantId, failed: bool, took: Duration) {
        let mut state = self.state.lock();
        self.turn(&mut state);
        if state.current.len() < self.remembered || state.current.contains_key(&tenant) {
            let meter = state.current.entry(tenant).or_default();
            meter.requests += 1;
            meter.errors += u64::from(failed);
            meter.durations.add(took);
        }
        let room = state.named.len() < self.named;
        let State { named, other, .. } = &mut *state;
        let series =
            if room { named.entry(tenant).or_default() } else { named.get_mut(&tenant).unwrap_or(other) };
        series.requests += 1;
        series.errors += u64::from(failed);
        series.busy += took;
    }

    /// Begins another window when it is time, and names the tenants with the most requests.
    fn turn(&self, state: &mut State) {
        let now = self.clock.instant();
        let age = now.saturating_duration_since(state.began);
        if age < WINDOW {
            return;
        }
        let ended = std::mem::take(&mut state.current);
        // A window that ended long ago tells of nobody's now.
        let lately = age < 2 * WINDOW;
        state.before = lately.then_some(state.began);
        state.previous = if lately { ended } else { HashMap::new() };
        state.began = now;
        let mut most: Vec<(TenantId, u64)> =
            state.previous.iter().map(|(tenant, meter)| (*tenant, meter.requests)).collect();
        most.sort_unstable_by_key(|(tenant, requests)| (std::cmp::Reverse(*requests), *tenant));
        most.truncate(self.named);
        let named = std::mem::take(&mut state.named);
        let kept = |(tenant, _): (TenantId, u64)| (tenant, named.get(&tenant).copied().unwrap_or_default());
        state.named = most.into_iter().map(kept).collect();
    }

    /// What a tenant asked lately.
    #[must_use]
    pub fn recent(&self, tenant: TenantId) -> Recent {
        let mut state = self.state.lock();
        self.turn(&mut state);
        self.recent_of(&state, tenant)
    }

    /// What every tenant asked that asked anything lately.
    #[must_use]
    pub fn all(&self) -> HashMap<TenantId, Recent> {
        let mut state = self.state.lock();
        self.turn(&mut state);
        let tenants = state.current.keys().chain(state.previous.keys());
        tenants.map(|tenant| (*tenant, self.recent_of(&state, *tenant))).collect()
    }

    fn recent_of(&self, state: &State, tenant: TenantId) -> Recent {
        let mut sum = Meter::default();
        for meter in [state.previous.get(&tenant), state.current.get(&tenant)].into_iter().flatten() {
            sum.requests += meter.requests;
            sum.errors += meter.errors;
            sum.durations.merge(&meter.durations);
        }
        let since = state.before.unwrap_or(state.began);
        let quantile = |share| sum.durations.quantile(share).map(|time| time.as_secs_f64() * 1e3);
        Recent {
            seconds: self.clock.instant().saturating_duration_since(since).as_secs_f64(),
            requests: sum.requests,
            errors: sum.errors,
            busy_seconds: sum.durations.sum().as_secs_f64(),
            p50_ms: quantile(0.5),
            p95_ms: quantile(0.95),
            p99_ms: quantile(0.99),
        }
    }

    /// The tenants that metrics name.
    #[must_use]
    pub fn named(&self) -> Vec<TenantId> {
        let mut state = self.state.lock();
        self.turn(&mut state);
        state.named.keys().copied().collect()
    }

    /// Writes the numbers of the tenants that are named, and of the others together.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub(super) fn write(&self, page: &mut Page<'_, '_>) -> Written {
        let mut state = self.state.lock();
        self.turn(&mut state);
        let mut rows: Vec<(String, Series, Option<Recent>)> = state
            .named
            .iter()
            .map(|(tenant, series)| (tenant.to_string(), *series, Some(self.recent_of(&state, *tenant))))
            .collect();
        rows.push((OTHER.to_owned(), state.other, None));
        drop(state);
        let each = |number: fn(&Series) -> f64| {
            rows.iter().map(move |(tenant, series, _)| ([("tenant", tenant.as_str())], number(series)))
        };
        let requests = each(|series| series.requests as f64);
        page.counters("bulkhead_tenant_requests", "Requests of a tenant", requests)?;
        let errors = each(|series| series.errors as f64);
        page.counters("bulkhead_tenant_errors", "Requests answered with 4xx or 5xx", errors)?;
        let busy = each(|series| series.busy.as_secs_f64());
        page.counters("bulkhead_tenant_busy_seconds", "Time that a tenant's requests took together", busy)?;
        let quantiles = rows.iter().flat_map(|(tenant, _, recent)| {
            let recent = recent.as_ref();
            let told = [
                ("0.5", recent.and_then(|recent| recent.p50_ms)),
                ("0.95", recent.and_then(|recent| recent.p95_ms)),
                ("0.99", recent.and_then(|recent| recent.p99_ms)),
            ];
            told.into_iter().filter_map(move |(quantile, time)| {
                Some(([("tenant", tenant.as_str()), ("quantile", quantile)], time? / 1e3))
            })
        });
        let help = "Time until a tenant's answers began, over the last five to ten minutes";
        page.gauges("bulkhead_tenant_request_seconds", help, quantiles)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use chrono::{DateTime, Utc};
    use uuid::Uuid;

    use super::super::metrics::{Answered, Metrics};
    use super::*;

    #[derive(Debug)]
    struct Moved(Instant, Mutex<Duration>);

    impl Clock for Moved {
        fn now(&self) -> DateTime<Utc> {
            DateTime::UNIX_EPOCH
        }

        fn instant(&self) -> Instant {
            self.0 + *self.1.lock()
        }
    }

    fn tenant(n: u128) -> TenantId {
        TenantId(Uuid::from_u128(n))
    }

    fn ask(metrics: &Metrics, n: u64, times: u64) {
        for _ in 0..times {
            let took = Duration::from_millis(20);
            metrics.answered(&Answered {
                tenant: Some(tenant(n.into())),
                method: "GET",
                route: "/x",
                status: 200,
                took,
            });
        }
    }

    fn labels(page: &str, metric: &str) -> BTreeSet<String> {
        let values = page.lines().filter_map(|line| {
            let rest = line.strip_prefix(metric)?.strip_prefix("{tenant=\"")?;
            Some(rest.split('"').next()?.to_owned())
        });
        values.collect()
    }

    fn total(page: &str, metric: &str) -> f64 {
        let lines = page.lines().filter(|line| line.starts_with(metric) && line.contains('{'));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    #[test]
    fn a_hundred_tenants_have_as_many_labels_as_are_configured_and_other() {
        let clock = Arc::new(Moved(Instant::now(), Mutex::default()));
        let metrics = Metrics::new(5, 30, Arc::<Moved>::clone(&clock));
        for n in 0..100 {
            ask(&metrics, n, n + 1);
        }
        let page = metrics.page().expect("a page");
        for metric in ["bulkhead_tenant_requests_total", "bulkhead_tenant_errors_total"] {
            let labels = labels(&page, metric);
            assert_eq!(labels.len(), 6, "{labels:?}");
            assert!(labels.contains(OTHER));
        }
        assert!(
            (total(&page, "bulkhead_tenant_requests_total") - 5050.0).abs() < 0.5,
            "each is counted once"
        );
        assert_eq!(metrics.tenants().all().len(), 30, "no more are told apart than are remembered");
        assert_eq!(metrics.tenants().recent(tenant(99)).requests, 0);

        // Those with the most requests of a window are named in the next.
        *clock.1.lock() += WINDOW;
        for n in [90, 7, 91, 8, 92, 9] {
            ask(&metrics, n, n);
        }
        *clock.1.lock() += WINDOW;
        ask(&metrics, 93, 1);
        let page = metrics.page().expect("a page");
        let named = labels(&page, "bulkhead_tenant_requests_total");
        assert_eq!(named.len(), 6);
        for n in [90, 91, 92, 9, 8] {
            assert!(named.contains(&tenant(n).to_string()), "{n}: {named:?}");
        }
        assert!(!named.contains(&tenant(7).to_string()));
    }

    #[test]
    fn numbers_tell_of_now_and_are_forgotten_with_their_window() {
        let clock = Arc::new(Moved(Instant::now(), Mutex::default()));
        let metrics = Metrics::new(5, 30, Arc::<Moved>::clone(&clock));
        ask(&metrics, 1, 100);
        let recent = metrics.tenants().recent(tenant(1));
        assert_eq!((recent.requests, recent.errors), (100, 0));
        assert!(recent.p99_ms.is_some_and(|time| (18.0..23.0).contains(&time)), "{recent:?}");
        *clock.1.lock() += WINDOW;
        assert_eq!(metrics.tenants().recent(tenant(1)).requests, 100);
        *clock.1.lock() += WINDOW;
        let recent = metrics.tenants().recent(tenant(1));
        assert_eq!((recent.requests, recent.p50_ms), (0, None));
    }
}
