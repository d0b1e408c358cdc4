//! Numbers of the calls to all services.
//!
//! **Invariant:** labels are words of this program: back ends, operations, outcomes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::ErrorKind;
use crate::telemetry::page::{Page, Written};

/// The outcome of a call that was not made, since its service is left alone.
pub(super) const RESTING: &str = "resting";

/// Bounds of the classes of durations, seconds.
const SECONDS: [f64; 12] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    backend: &'static str,
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    backend: &'static str,
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabels {
    backend: &'static str,
}

/// The numbers. One of these for a server, shared by the layers of all its services.
#[derive(Debug)]
pub struct Calls {
    attempts: Family<CallLabels, Counter>,
    seconds: Family<OperationLabels, Histogram, fn() -> Histogram>,
    resting: Family<BackendLabels, Gauge>,
    left_alone: Mutex<BTreeSet<&'static str>>,
    made: Mutex<BTreeMap<&'static str, u64>>,
}

impl Default for Calls {
    fn default() -> Self {
        let seconds = || Histogram::new(SECONDS);
        Self {
            attempts: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            resting: Family::default(),
            left_alone: Mutex::default(),
            made: Mutex::default(),
        }
    }
}

impl Calls {
    pub(super) fn count(
        &self,
        backend: &'static str,
        operation: &'static str,
        outcome: &'static str,
        took: Duration,
    ) {
        self.attempts.get_or_create(&CallLabels { backend, operation, outcome }).inc();
        if outcome != RESTING {
            *self.made.lock().entry(backend).or_default() += 1;
            let labels = OperationLabels { backend, operation };
            self.seconds.get_or_create(&labels).observe(took.as_secs_f64());
        }
    }

    pub(super) fn resting(&self, backend: &'static str, resting: bool) {
        self.resting.get_or_create(&BackendLabels { backend }).set(i64::from(resting));
        let mut left_alone = self.left_alone.lock();
        if resting {
            left_alone.insert(backend)
        } else {
            left_alone.remove(backend)
        };
    }

    /// The services that are left alone at this moment, by their names.
    #[must_use]
    pub fn left_alone(&self) -> Vec<&'static str> {
        self.left_alone.lock().iter().copied().collect()
    }

    /// Attempts that were made to call a service since the start, whatever became of them.
    #[must_use]
    pub fn made(&self, backend: &str) -> u64 {
        self.made.lock().get(backend).copied().unwrap_or_default()
    }

    /// Writes them on the page of metrics; nothing while no service is used.
    ///
    /// # Errors
    /// When the page cannot be written.
    pub fn write(&self, page: &mut Page<'_, '_>) -> Written {
        let help = "Attempts to call a service, by what became of them";
        page.metric("bulkhead_store_calls", help, &self.attempts)?;
        let help = "Time of an attempt to call a service";
        page.metric("bulkhead_store_call_seconds", help, &self.seconds)?;
        let help = "Whether a service is left alone, since it failed several times in a row";
        page.metric("bulkhead_store_resting", help, &self.resting)
    }
}

/// What became of a call, as a label.
pub(super) fn outcome(kind: Option<ErrorKind>) -> &'static str {
    match kind {
        None => "ok",
        Some(ErrorKind::Unavailable) => "unavailable",
        Some(ErrorKind::Timeout) => "timeout",
        Some(ErrorKind::Conflict) => "conflict",
        Some(ErrorKind::Invalid) => "invalid",
        Some(ErrorKind::Damaged) => "damaged",
        Some(ErrorKind::Foreign) => "foreign",
        Some(ErrorKind::Internal) => "internal",
    }
}
