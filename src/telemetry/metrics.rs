//! What is counted of requests, questions and alarms, and the page on which Prometheus finds it (`OpenMetrics`).
//!
//! What other parts count themselves they write on the page when it is asked for ([`Metrics::watch`]).
//!
//! **Invariant:** no label is a text or a name of anybody's: routes are patterns, slugs and states are words of this
//! program, and a tenant is its id, of which there are no more than are configured.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::page::{Page, Writer, Written};
use super::process;
use super::tenants::Tenants;
use crate::domain::clock::Clock;
use crate::domain::ids::TenantId;

/// The media type of the page.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of the classes of durations, seconds.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The limits at which requests are refused.
const LIMITS: [&str; 10] = [
    "address_requests",
    "address_refusals",
    "principal_requests",
    "requests",
    "queries",
    "queued_jobs",
    "documents",
    "bytes",
    "uploads",
    "streams",
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: String,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    method: &'static str,
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SlugLabels {
    slug: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    limit: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QuestionLabels {
    mode: &'static str,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// There is material for an answer, perhaps none that fits.
    Found,
    /// It was refused or failed.
    Failed,
}

impl EncodeLabelValue for Outcome {
    fn encode(&self, encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>) -> Written {
        let name = match self {
            Self::Found => "found",
            Self::Failed => "failed",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

/// A request that was answered.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// The tenant, where a credential said so.
    pub tenant: Option<TenantId>,
    /// The method as it came.
    pub method: &'a str,
    /// The pattern of the route; empty where there is none.
    pub route: &'a str,
    /// The HTTP status.
    pub status: u16,
    /// Until the answer began; of a stream, until its head.
    pub took: Duration,
}

/// All that is counted.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Family<RouteLabels, Histogram, fn() -> Histogram>,
    problems: Family<SlugLabels, Counter>,
    limits: Family<LimitLabels, Counter>,
    questions: Family<QuestionLabels, Counter>,
    question_seconds: Histogram,
    degraded: Family<ReasonLabels, Counter>,
    stale: Counter,
    tenants: Arc<Tenants>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

fn durations() -> Histogram {
    Histogram::new(SECONDS)
}

impl Metrics {
    /// Nothing counted yet. At most `named` tenants are named by their ids, `remembered` told apart for operators.
    #[must_use]
    pub fn new(named: usize, remembered: usize, clock: Arc<dyn Clock>) -> Self {
        let metrics = Self {
            registry: Mutex::default(),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(durations),
            problems: Family::default(),
            limits: Family::default(),
            questions: Family::default(),
            question_seconds: durations(),
            degraded: Family::default(),
            stale: Counter::default(),
            tenants: Arc::new(Tenants::new(named, remembered, clock)),
        };
        // There from the start, so that the first of a kind is seen as a rise.
        for reason in ["model_unavailable", "foreign_rows_dropped", "graph"] {
            metrics.degraded.get_or_create(&ReasonLabels { reason }).inc_by(0);
        }
        for limit in LIMITS {
            metrics.limits.get_or_create(&LimitLabels { limit }).inc_by(0);
        }
        let mut registry = metrics.registry.lock();
        registry.register("bulkhead_http_requests", "Requests answered", metrics.requests.clone());
        let help = "Time until an answer began, of a stream until its head";
        registry.register("bulkhead_http_request_seconds", help, metrics.request_seconds.clone());
        let help = "Requests that ended with a problem, by the problem's slug";
        registry.register("bulkhead_problems", help, metrics.problems.clone());
        let help = "Requests refused at a limit of requests, by the limit";
        registry.register("bulkhead_limit_refusals", help, metrics.limits.clone());
        registry.register("bulkhead_questions", "Questions of every surface", metrics.questions.clone());
        let help = "Time until a question's material was found, its turn included";
        registry.register("bulkhead_question_seconds", help, metrics.question_seconds.clone());
        let help = "Questions that were answered by less than everything, by what was missing";
        registry.register("bulkhead_questions_degraded", help, metrics.degraded.clone());
        let help = "Hits whose row was gone or of another version";
        registry.register("bulkhead_stale_rows", help, metrics.stale.clone());
        drop(registry);
        metrics.watch(process::write);
        let tenants = Arc::clone(&metrics.tenants);
        metrics.watch(move |page| tenants.write(page));
        metrics.watch(|page| {
            let version = [("version", env!("CARGO_PKG_VERSION"))];
            page.gauges("bulkhead_build", "1; the label tells the version", [(version, 1.0)])
        });
        metrics
    }

    /// Has numbers written whenever the page is asked for.
    pub fn watch(&self, write: impl Fn(&mut Page<'_, '_>) -> Written + Send + Sync + 'static) {
        self.registry.lock().register_collector(Box::new(Writer(write)));
    }

    /// Counts a request.
    pub fn answered(&self, answered: &Answered<'_>) {
        let method = known(answered.method);
        let route = if answered.route.is_empty() { "none" } else { answered.route };
        let status = match answered.status {
            ..200 => "1xx",
            200..300 => "2xx",
            300..400 => "3xx",
            400..500 => "4xx",
            500.. => "5xx",
        };
        let labels = RequestLabels { method, route: route.to_owned(), status };
        self.requests.get_or_create(&labels).inc();
        let labels = RouteLabels { method, route: labels.route };
        self.request_seconds.get_or_create(&labels).observe(answered.took.as_secs_f64());
        if let Some(tenant) = answered.tenant {
            self.tenants.count(tenant, answered.status >= 400, answered.took);
        }
    }

    /// Counts a problem.
    pub fn problem(&self, slug: &'static str) {
        self.problems.get_or_create(&SlugLabels { slug }).inc();
    }

    /// Counts a request that was refused at a limit.
    pub fn limit(&self, limit: &'static str) {
        self.limits.get_or_create(&LimitLabels { limit }).inc();
    }

    /// Counts a question.
    pub fn question(&self, mode: &'static str, outcome: Outcome, took: Duration) {
        self.questions.get_or_create(&QuestionLabels { mode, outcome }).inc();
        self.question_seconds.observe(took.as_secs_f64());
    }

    /// Counts what was not as it should be in an answer.
    pub fn degraded(&self, reasons: &[&'static str], stale: usize) {
        for reason in reasons {
            self.degraded.get_or_create(&ReasonLabels { reason }).inc();
        }
        self.stale.inc_by(stale as u64);
    }

    /// The requests of tenants.
    #[must_use]
    pub fn tenants(&self) -> Arc<Tenants> {
        Arc::clone(&self.tenants)
    }

    /// The page.
    ///
    /// # Errors
    /// When a number cannot be written.
    pub fn page(&self) -> Result<String, std::fmt::Error> {
        let mut page = String::with_capacity(32 * 1024);
        encode(&mut page, &self.registry.lock())?;
        Ok(page)
    }
}

/// A method as a label and in spans: callers may send any word.
#[must_use]
pub fn known(method: &str) -> &'static str {
    const METHODS: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"];
    METHODS.into_iter().find(|known| *known == method).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::clock::SystemClock;

    #[test]
    fn whatever_callers_send_labels_are_of_this_programs_words() {
        let metrics = Metrics::new(2, 10, Arc::new(SystemClock));
        for method in ["GET", "BREW", "canary"] {
            for status in [200, 404, 599] {
                let took = Duration::from_millis(3);
                metrics.answered(&Answered { tenant: None, method, route: "", status, took });
            }
        }
        metrics.question("mix", Outcome::Found, Duration::from_secs(1));
        metrics.degraded(&["index_missing"], 2);
        let page = metrics.page().expect("a page");
        let line = "bulkhead_http_requests_total{method=\"other\",route=\"none\",status=\"5xx\"} 2";
        assert!(page.contains(line), "{page}");
        assert!(page.contains("bulkhead_questions_total{mode=\"mix\",outcome=\"found\"} 1"), "{page}");
        assert!(page.contains("bulkhead_stale_rows_total 2") && page.ends_with("# EOF\n"), "{page}");
        assert!(!page.contains("BREW") && !page.contains("canary"), "{page}");
    }
}
