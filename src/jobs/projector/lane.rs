//! What is remembered of one namespace between runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex as Spin;
use tokio::sync::Mutex;

use crate::domain::Seq;
use crate::store::StoreError;

/// A namespace's turns: whoever holds `state` runs.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Runs begun. Written under `state`, read without.
    begun: AtomicU64,
    mark: Spin<Mark>,
    pub(super) state: Mutex<State>,
}

/// What is looked at without waiting for a run.
#[derive(Debug, Default, Clone, Copy)]
struct Mark {
    /// When the first point was applied that is not durable.
    dirty_since: Option<Instant>,
    /// No background run before this.
    rests_until: Option<Instant>,
}

/// What a run leaves to the next.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The number of the run that ended last, and how.
    ended: Option<(u64, Result<Seq, StoreError>)>,
    /// Points applied since the index was made durable.
    pub(super) unflushed: u64,
    failures: u32,
}

/// The number of runs that had begun when somebody came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket(u64);

impl Lane {
    /// To be drawn on arrival, before waiting for `state`.
    pub(super) fn ticket(&self) -> Ticket {
        Ticket(self.begun.load(Ordering::Acquire))
    }

    pub(super) fn begin(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::AcqRel) + 1
    }

    pub(super) fn dirty_since(&self) -> Option<Instant> {
        self.mark.lock().dirty_since
    }

    pub(super) fn soil(&self, now: Instant) {
        self.mark.lock().dirty_since.get_or_insert(now);
    }

    pub(super) fn clean(&self) {
        self.mark.lock().dirty_since = None;
    }

    pub(super) fn rests(&self, now: Instant) -> bool {
        self.mark.lock().rests_until.is_some_and(|until| now < until)
    }

    /// Whether nothing is lost by forgetting the lane.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.dirty_since().is_none() && !self.rests(now)
    }

    /// Notes how a run ended; after a failure the lane rests, twice as long each time. Returns for how long.
    pub(super) fn end(
        &self,
        state: &mut State,
        run: u64,
        result: &Result<Seq, StoreError>,
        now: Instant,
        rest: (Duration, Duration),
    ) -> Duration {
        let mut mark = self.mark.lock();
        let kept = match result {
            Ok(seq) => {
                state.failures = 0;
                mark.rests_until = None;
                Ok(*seq)
            }
            Err(error) => {
                state.failures = state.failures.saturating_add(1);
                Err(error.retold())
            }
        };
        let doubled = rest.0.saturating_mul(1 << state.failures.saturating_sub(1).min(16));
        let pause = doubled.min(rest.1);
        if kept.is_err() {
            mark.rests_until = Some(now + pause);
        }
        state.ended = Some((run, kept));
        pause
    }
}

impl State {
    /// The result of a run that began after the ticket was drawn.
    pub(super) fn shared(&self, ticket: Ticket) -> Option<Result<Seq, StoreError>> {
        match &self.ended {
            Some((run, result)) if *run > ticket.0 => {
                Some(result.as_ref().copied().map_err(StoreError::retold))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ErrorKind;

    const REST: (Duration, Duration) = (Duration::from_millis(500), Duration::from_mins(1));

    #[tokio::test]
    async fn a_run_is_shared_by_those_who_came_before_it_began() {
        let lane = Lane::default();
        let now = Instant::now();
        let early = lane.ticket();
        let mut state = lane.state.lock().await;
        let run = lane.begin();
        let too_late = lane.ticket();
        lane.end(&mut state, run, &Ok(Seq(7)), now, REST);
        assert_eq!(state.shared(early).map(Result::unwrap), Some(Seq(7)));
        assert!(state.shared(too_late).is_none(), "its commit may be younger than what the run read");
    }

    #[tokio::test]
    async fn failures_rest_longer_each_time_and_a_success_ends_the_rest() {
        let lane = Lane::default();
        let now = Instant::now();
        let mut state = lane.state.lock().await;
        let failure = || Err(StoreError::new(ErrorKind::Unavailable, "memory", "test", "away"));
        let pauses: Vec<u128> = (0..10)
            .map(|_| {
                let run = lane.begin();
                lane.end(&mut state, run, &failure(), now, REST).as_millis()
            })
            .collect();
        assert_eq!(pauses[..4], [500, 1000, 2000, 4000]);
        assert_eq!(pauses[9], 60_000);
        assert!(lane.rests(now) && !lane.rests(now + Duration::from_secs(61)));
        let run = lane.begin();
        lane.end(&mut state, run, &Ok(Seq(1)), now, REST);
        assert!(!lane.rests(now));
        assert!(lane.is_idle(now));
    }
}
