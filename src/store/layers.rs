//! What goes around one call to a remote service: a deadline, retries, a breaker, a span, numbers.
//!
//! A back end says what it calls, of which tenant, and whether the call is safe to repeat; all else is done here,
//! the same for every service.
//!
//! **Invariant:** a call is repeated only where the back end said that it is safe, and only within its deadline.
//! **Invariant:** only what the service itself failed at (`Unavailable`, `Timeout`) counts against it; a caller's own
//! mistakes, conflicts and cancelled calls never keep others from it.

mod breaker;
mod calls;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::Instrument as _;
use tracing::field::{Empty, display};

pub use calls::Calls;

use self::breaker::{Breaker, Change};
use super::error::{ErrorKind, Retry, StoreError};
use crate::domain::clock::Clock;
use crate::domain::ids::TenantId;

/// How one service is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CallSettings {
    /// How long a call may take, with all its attempts, milliseconds.
    pub deadline_ms: u64,
    /// How often a call that is safe to repeat is tried.
    pub attempts: u32,
    /// The pause before the second attempt, milliseconds; it doubles with each further one, and up to as much again
    /// is added at random.
    pub pause_ms: u64,
    /// Failures in a row after which the service is left alone.
    pub breaker_failures: u32,
    /// For how long, milliseconds; then one call tries it.
    pub breaker_rest_ms: u64,
}

/// How a service is called of which nothing is asked twice: whoever calls it goes on without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OneCallSettings {
    /// How long a call may take, milliseconds.
    pub deadline_ms: u64,
    /// Failures in a row after which the service is left alone.
    pub breaker_failures: u32,
    /// For how long, milliseconds; then one call tries it.
    pub breaker_rest_ms: u64,
}

impl Default for OneCallSettings {
    fn default() -> Self {
        let CallSettings { deadline_ms, breaker_failures, breaker_rest_ms, .. } = CallSettings::default();
        Self { deadline_ms, breaker_failures, breaker_rest_ms }
    }
}

impl From<OneCallSettings> for CallSettings {
    fn from(OneCallSettings { deadline_ms, breaker_failures, breaker_rest_ms }: OneCallSettings) -> Self {
        Self { deadline_ms, attempts: 1, breaker_failures, breaker_rest_ms, ..Self::default() }
    }
}

impl OneCallSettings {
    /// All faults, each with the name of the setting in this section. Empty: none.
    #[must_use]
    pub fn validate(self, section: &str) -> Vec<String> {
        CallSettings::from(self).validate(section)
    }
}

impl Default for CallSettings {
    fn default() -> Self {
        Self { deadline_ms: 2000, attempts: 3, pause_ms: 20, breaker_failures: 5, breaker_rest_ms: 1000 }
    }
}

impl CallSettings {
    /// All faults, each with the name of the setting in this section. Empty: none.
    #[must_use]
    pub fn validate(&self, section: &str) -> Vec<String> {
        let positive = [
            ("deadline_ms", self.deadline_ms),
            ("attempts", u64::from(self.attempts)),
            ("pause_ms", self.pause_ms),
            ("breaker_failures", u64::from(self.breaker_failures)),
            ("breaker_rest_ms", self.breaker_rest_ms),
        ];
        let none = positive.iter().filter(|(_, number)| *number == 0);
        none.map(|(name, _)| format!("{section}.{name}: at least 1")).collect()
    }
}

/// The layers around the calls to one service. Clones are cheap and share its breaker and numbers.
#[derive(Clone)]
pub struct Layers {
    backend: &'static str,
    deadline: Duration,
    pauses: ExponentialBuilder,
    breaker: Arc<Breaker>,
    calls: Arc<Calls>,
    clock: Arc<dyn Clock>,
}

impl Layers {
    /// Around a service that did not fail yet. `backend` is the name in errors, logs and metrics, as `redis`.
    #[must_use]
    pub fn new(
        backend: &'static str,
        settings: &CallSettings,
        calls: Arc<Calls>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let rest = Duration::from_millis(settings.breaker_rest_ms);
        let retries = settings.attempts.saturating_sub(1);
        calls.resting(backend, false);
        Self {
            backend,
            deadline: Duration::from_millis(settings.deadline_ms),
            pauses: ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(settings.pause_ms))
                .with_max_times(usize::try_from(retries).unwrap_or(usize::MAX))
                .with_jitter(),
            breaker: Arc::new(Breaker::new(settings.breaker_failures, rest, Arc::clone(&clock))),
            calls,
            clock,
        }
    }

    /// The same with another deadline, for calls that take longer by their nature.
    #[must_use]
    pub fn within(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// A call that is made once: repeated, it could do its work twice. `operation` is resource, then verb.
    ///
    /// # Errors
    /// The call's own; `Timeout` after the deadline, when it is not known whether the work was done; `Unavailable`
    /// without a call while the service is left alone.
    pub async fn once<T>(
        &self,
        operation: &'static str,
        tenant: Option<TenantId>,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let span = self.span(operation, tenant);
        self.attempt(operation, Instant::now() + self.deadline, call).instrument(span).await
    }

    /// A call that may be made again when it failed in passing, since twice does no more than once.
    ///
    /// # Errors
    /// As [`Self::once`]; of several attempts, the last one's.
    pub async fn repeatable<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        operation: &'static str,
        tenant: Option<TenantId>,
        mut call: impl FnMut() -> F,
    ) -> Result<T, StoreError> {
        let end = Instant::now() + self.deadline;
        let mut pauses = self.pauses.build();
        let attempts = async {
            loop {
                let error = match self.attempt(operation, end, call()).await {
                    Err(error) if matches!(error.retry, Retry::After(_)) => error,
                    settled => return settled,
                };
                // While it is left alone, further attempts would only be refused.
                let pause = pauses.next().filter(|_| !self.breaker.is_open());
                match pause.filter(|pause| Instant::now() + *pause < end) {
                    Some(pause) => sleep(pause).await,
                    None => return Err(error),
                }
            }
        };
        attempts.instrument(self.span(operation, tenant)).await
    }

    async fn attempt<T>(
        &self,
        operation: &'static str,
        end: Instant,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let passage = match self.breaker.enter() {
            Ok(passage) => passage,
            Err(rest) => {
                self.told(operation, calls::RESTING, Duration::ZERO);
                return Err(self.left_alone(operation, rest));
            }
        };
        let started = self.clock.instant();
        let answer = timeout_at(end, call).await.unwrap_or_else(|_| {
            let context = format!("no answer within {} ms", self.deadline.as_millis());
            Err(StoreError::new(ErrorKind::Timeout, self.backend, operation, context))
        });
        let kind = answer.as_ref().err().map(|error| error.kind);
        let failed = matches!(kind, Some(ErrorKind::Unavailable | ErrorKind::Timeout));
        match passage.report(failed) {
            Some(Change::Opened) => {
                let error = answer.as_ref().err().map(display);
                tracing::warn!(backend = self.backend, error, "left alone for a while: it fails");
                self.calls.resting(self.backend, true);
            }
            Some(Change::Closed) => {
                tracing::info!(backend = self.backend, "answers again");
                self.calls.resting(self.backend, false);
            }
            None => {}
        }
        self.told(operation, calls::outcome(kind), self.clock.instant().duration_since(started));
        answer
    }

    /// Whether calls are refused at this moment, since the service failed several times in a row.
    #[must_use]
    pub fn is_left_alone(&self) -> bool {
        self.breaker.refuses()
    }

    fn left_alone(&self, operation: &'static str, rest: Duration) -> StoreError {
        let context = "not asked: it failed several times in a row";
        let error = StoreError::new(ErrorKind::Unavailable, self.backend, operation, context);
        StoreError { retry: Retry::After(rest), ..error }
    }

    fn told(&self, operation: &'static str, outcome: &'static str, took: Duration) {
        tracing::Span::current().record("outcome", outcome);
        self.calls.count(self.backend, operation, outcome, took);
    }

    fn span(&self, operation: &'static str, tenant: Option<TenantId>) -> tracing::Span {
        // At this level, so that it is traced whatever is logged.
        tracing::error_span!(
            "store.call",
            otel.name = operation,
            otel.kind = "client",
            backend = self.backend,
            tenant = tenant.map(display),
            outcome = Empty,
        )
    }
}

#[cfg(test)]
mod tests;
