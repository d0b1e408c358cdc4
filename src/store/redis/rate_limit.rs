//! Requests counted in Redis, for all servers over it together; by this server alone while it does not answer.
//!
//! **Invariant:** the time is Redis' own: servers whose clocks differ count alike.
//! **Invariant:** a count that belongs to another tenant is an alarm and is not gone around; all else that is wrong
//! with Redis leads to a local count against a share of the limit, so that no outage lifts a limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use redis::Script;

use super::BACKEND;
use super::client::RedisClient;
use super::keys::Keys;
use crate::domain::clock::Clock;
use crate::store::error::{ErrorKind, StoreError};
use crate::store::memory::MemoryRateLimiter;
use crate::store::rate_limit::{RateKey, RateLimiter, Standing};
use crate::telemetry::page::{Page, Written};

const OPERATION: &str = "limit.count";

/// One request, in the units of the script.
const REQUEST: u64 = 60_000_000;

/// An outage is told of again only after so long without one.
const QUIET: Duration = Duration::from_mins(1);

/// Counts requests in Redis.
pub struct RedisRateLimiter {
    redis: RedisClient,
    keys: Keys,
    script: Script,
    local: MemoryRateLimiter,
    share: f64,
    clock: Arc<dyn Clock>,
    counted_alone: AtomicU64,
    last_alone: Mutex<Option<Instant>>,
}

impl RedisRateLimiter {
    /// Over this Redis. Servers with the same `secret` count together. While Redis does not answer, each counts by
    /// itself against this `share` of a limit, more than 0 and at most 1, and remembers `remembered` keys of a kind.
    #[must_use]
    pub fn new(
        redis: RedisClient,
        secret: &[u8; 32],
        share: f64,
        remembered: u64,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            redis,
            keys: Keys::new(secret),
            script: Script::new(include_str!("gcra.lua")),
            local: MemoryRateLimiter::new(remembered, Arc::clone(&clock)),
            share,
            clock,
            counted_alone: AtomicU64::new(0),
            last_alone: Mutex::default(),
        }
    }

    /// Writes its numbers on the page of metrics.
    ///
    /// # Errors
    /// When the page cannot be written.
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    pub fn write(&self, page: &mut Page<'_, '_>) -> Written {
        let help = "Requests counted by this server alone, since Redis did not answer";
        let counted = self.counted_alone.load(Ordering::Relaxed) as f64;
        page.counter("bulkhead_limits_counted_alone", help, counted)
    }

    async fn shared(&self, counted: &[(RateKey, u32)]) -> Result<Vec<Standing>, StoreError> {
        let mut script = self.script.prepare_invoke();
        let mut tenant = None;
        for (key, per_minute) in counted {
            let key = self.keys.rate(key);
            tenant = tenant.or(key.tenant);
            script.key(key.name).arg(key.owner).arg((*per_minute).max(1));
        }
        let answers: Vec<(i64, u64)> = self.redis.run(OPERATION, tenant, &script).await?;
        let error = |kind, context| StoreError::new(kind, BACKEND, OPERATION, context);
        let standings =
            std::iter::zip(&answers, counted).map(|((verdict, owed), (_, per_minute))| match verdict {
                1 => Ok(standing((*per_minute).max(1), *owed, true)),
                0 => Ok(standing((*per_minute).max(1), *owed, false)),
                -1 => Err(error(ErrorKind::Foreign, "a count of another tenant")),
                _ => Err(error(ErrorKind::Damaged, "a count that cannot be read")),
            });
        let standings: Vec<Standing> = standings.collect::<Result<_, _>>()?;
        let refused = standings.last().is_some_and(|last| last.wait.is_some());
        if standings.len() == counted.len() || refused {
            return Ok(standings);
        }
        Err(error(ErrorKind::Internal, "fewer counts than keys"))
    }

    async fn alone(
        &self,
        counted: &[(RateKey, u32)],
        error: &StoreError,
    ) -> Result<Vec<Standing>, StoreError> {
        self.counted_alone.fetch_add(1, Ordering::Relaxed);
        let now = self.clock.instant();
        let last = self.last_alone.lock().replace(now);
        if last.is_none_or(|last| now.duration_since(last) > QUIET) {
            let error = error as &dyn std::error::Error;
            tracing::warn!(error, share = self.share, "requests are counted by this server alone");
        }
        let local: Vec<(RateKey, u32)> =
            counted.iter().map(|(key, per_minute)| (key.clone(), self.share_of(*per_minute))).collect();
        self.local.count_all(&local).await
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the limit")]
    fn share_of(&self, per_minute: u32) -> u32 {
        ((f64::from(per_minute) * self.share) as u32).max(1)
    }
}

/// Where a key stands that owes so much, in parts of a request.
fn standing(limit: u32, owed: u64, may: bool) -> Standing {
    let most = REQUEST * u64::from(limit);
    let free = u32::try_from(most.saturating_sub(owed) / REQUEST).unwrap_or(limit);
    let remaining = if may { free } else { 0 };
    let wait = Duration::from_micros((owed + REQUEST).saturating_sub(most).div_ceil(u64::from(limit)));
    let missing = f64::from(limit - remaining);
    let reset = Duration::from_mins(1).mul_f64(missing / f64::from(limit));
    Standing { limit, remaining, reset, wait: (!may).then_some(wait) }
}

#[async_trait]
impl RateLimiter for RedisRateLimiter {
    async fn count(&self, key: &RateKey, per_minute: u32) -> Result<Standing, StoreError> {
        let standings = self.count_all(&[(key.clone(), per_minute)]).await?;
        let none = || StoreError::new(ErrorKind::Internal, BACKEND, OPERATION, "no count");
        standings.into_iter().next().ok_or_else(none)
    }

    async fn count_all(&self, counted: &[(RateKey, u32)]) -> Result<Vec<Standing>, StoreError> {
        match self.shared(counted).await {
            Err(error) if error.kind != ErrorKind::Foreign => self.alone(counted, &error).await,
            settled => settled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_is_told_as_the_one_in_memory_tells_it() {
        let told = standing(1000, 10 * REQUEST, true);
        assert_eq!((told.limit, told.remaining, told.wait), (1000, 990, None));
        assert_eq!(told.reset, Duration::from_millis(600));
        let told = standing(1000, 1000 * REQUEST, false);
        assert_eq!((told.remaining, told.wait), (0, Some(Duration::from_millis(60))));
        assert_eq!(told.reset, Duration::from_mins(1));
        // A part of a request that came back is none.
        assert_eq!(standing(60, 59 * REQUEST + 1, true).remaining, 0);
        let told = standing(60, 59 * REQUEST + 1, false);
        assert_eq!(told.wait, Some(Duration::from_micros(1)));
        let most = standing(u32::MAX, REQUEST * u64::from(u32::MAX), false);
        assert_eq!(most.wait, Some(Duration::from_micros(1)));
    }
}
