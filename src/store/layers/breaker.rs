//! Leaves a service alone that fails, and finds out when it is back (the circuit breaker of Nygard, "Release It!").
//!
//! **Invariant:** while a service is left alone, at most one call at a time tries it.
//! **Invariant:** what was begun in another state than the present one changes nothing: a late answer neither opens
//! nor closes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::domain::clock::Clock;

#[derive(Debug, Clone, Copy)]
enum State {
    /// It is called; so many failures in a row.
    Closed { failures: u32 },
    /// It is left alone until then.
    Open { until: Instant },
    /// One call tries it.
    Trying,
}

/// What a reported call changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The service is left alone from now on.
    Opened,
    /// It is called again.
    Closed,
}

/// Counts failures in a row. The crates there are for this go by rates, let several calls try at once, and read the
/// machine's clock.
pub(super) struct Breaker {
    failures: u32,
    rest: Duration,
    clock: Arc<dyn Clock>,
    /// With how many states there were before it.
    state: Mutex<(State, u64)>,
}

impl Breaker {
    /// Opens after so many failures in a row, for so long.
    pub(super) fn new(failures: u32, rest: Duration, clock: Arc<dyn Clock>) -> Self {
        Self { failures, rest, clock, state: Mutex::new((State::Closed { failures: 0 }, 0)) }
    }

    /// Whether calls are refused, but for the one that tries.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state.lock().0, State::Closed { .. })
    }

    /// Whether the next call would be refused.
    pub(super) fn refuses(&self) -> bool {
        match self.state.lock().0 {
            State::Closed { .. } => false,
            State::Open { until } => self.clock.instant() < until,
            State::Trying => true,
        }
    }

    /// Whether a call may be made; if not, for how long.
    pub(super) fn enter(&self) -> Result<Passage<'_>, Duration> {
        let mut state = self.state.lock();
        match state.0 {
            State::Closed { .. } => {}
            State::Open { until } => {
                let now = self.clock.instant();
                if now < until {
                    return Err(until - now);
                }
                *state = (State::Trying, state.1 + 1);
            }
            State::Trying => return Err(self.rest),
        }
        Ok(Passage { breaker: self, epoch: state.1 })
    }

    fn report(&self, epoch: u64, failed: Option<bool>) -> Option<Change> {
        let mut state = self.state.lock();
        if state.1 != epoch {
            return None;
        }
        let now = self.clock.instant();
        let (next, change) = match (state.0, failed) {
            (State::Closed { failures }, Some(true)) if failures + 1 < self.failures => {
                state.0 = State::Closed { failures: failures + 1 };
                return None;
            }
            (State::Closed { .. }, Some(false)) => {
                state.0 = State::Closed { failures: 0 };
                return None;
            }
            (State::Closed { .. }, None) | (State::Open { .. }, _) => return None,
            (State::Closed { .. }, Some(true)) => {
                (State::Open { until: now + self.rest }, Some(Change::Opened))
            }
            (State::Trying, Some(true)) => (State::Open { until: now + self.rest }, None),
            (State::Trying, Some(false)) => (State::Closed { failures: 0 }, Some(Change::Closed)),
            // The call that tried was given up by its caller: the next one may try at once.
            (State::Trying, None) => (State::Open { until: now }, None),
        };
        *state = (next, epoch + 1);
        change
    }
}

/// The right to make one call. Dropped without a report, the call was cancelled.
pub(super) struct Passage<'a> {
    breaker: &'a Breaker,
    epoch: u64,
}

impl Passage<'_> {
    /// Tells whether the service failed. What is reported when this is dropped then changes nothing.
    pub(super) fn report(self, failed: bool) -> Option<Change> {
        self.breaker.report(self.epoch, Some(failed))
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        self.breaker.report(self.epoch, None);
    }
}
