//! Questions of one tenant that are answered at the same time, and those that wait for their turn.
//!
//! **Invariant:** a tenant waits for itself alone, in the order in which its questions came.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::domain::ids::TenantId;
use crate::domain::limits::Limits;

/// One tenant's questions.
#[derive(Default)]
struct Lane {
    running: u32,
    limit: u32,
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

type Lanes = Arc<Mutex<HashMap<TenantId, Lane>>>;

/// The turns of all tenants. Tenants without a question are not remembered.
#[derive(Default)]
pub(super) struct Turns(Lanes);

impl Turns {
    /// A turn, when there is one within `wait`; `None` at once when too many wait already.
    pub(super) async fn take(&self, tenant: TenantId, limits: &Limits, wait: Duration) -> Option<Turn> {
        let turn = {
            let mut lanes = self.0.lock();
            let lane = lanes.entry(tenant).or_default();
            lane.limit = limits.concurrent_queries;
            if lane.running < lane.limit {
                lane.running += 1;
                return Some(Turn { tenant, lanes: Arc::clone(&self.0) });
            }
            lane.waiting.retain(|waiting| !waiting.is_closed());
            if lane.waiting.len() >= usize::try_from(limits.queued_queries).unwrap_or(usize::MAX) {
                return None;
            }
            let (give, turn) = oneshot::channel();
            lane.waiting.push_back(give);
            turn
        };
        tokio::time::timeout(wait, turn).await.ok()?.ok()
    }
}

/// A question's turn, the next one's when it is dropped.
pub(crate) struct Turn {
    tenant: TenantId,
    lanes: Lanes,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut next = Vec::new();
        {
            let mut lanes = self.lanes.lock();
            let Some(lane) = lanes.get_mut(&self.tenant) else { return };
            lane.running -= 1;
            while lane.running < lane.limit
                && let Some(waiting) = lane.waiting.pop_front()
            {
                lane.running += 1;
                next.push(waiting);
            }
            if lane.running == 0 {
                lanes.remove(&self.tenant);
            }
        }
        for waiting in next {
            // Whoever went away meanwhile drops the turn, which gives it to the next.
            let _gone = waiting.send(Self { tenant: self.tenant, lanes: Arc::clone(&self.lanes) });
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use uuid::Uuid;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const LATER: Duration = Duration::from_mins(1);
    const ALICE: TenantId = TenantId(Uuid::from_u128(1));
    const BOB: TenantId = TenantId(Uuid::from_u128(2));

    fn limits(concurrent_queries: u32, queued_queries: u32) -> Limits {
        Limits { concurrent_queries, queued_queries, ..Limits::default() }
    }

    #[tokio::test]
    async fn a_tenant_has_so_many_questions_at_once_and_its_neighbour_has_its_own() {
        let turns = Turns::default();
        let most = limits(2, 0);
        let held = [turns.take(ALICE, &most, SOON).await, turns.take(ALICE, &most, SOON).await];
        assert!(held.iter().all(Option::is_some));
        assert!(turns.take(ALICE, &most, LATER).now_or_never().expect("at once").is_none());
        assert!(turns.take(BOB, &most, SOON).await.is_some());
        drop(held);
        assert!(turns.take(ALICE, &most, SOON).await.is_some());
        assert!(turns.0.lock().is_empty());
    }

    #[tokio::test]
    async fn those_who_wait_come_in_order_and_are_bounded_in_number_and_time() {
        let turns = Turns::default();
        let most = limits(1, 2);
        let held = turns.take(ALICE, &most, SOON).await;
        let mut first = Box::pin(turns.take(ALICE, &most, LATER));
        let mut second = Box::pin(turns.take(ALICE, &most, LATER));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        assert!(turns.take(ALICE, &most, LATER).now_or_never().expect("at once").is_none());
        drop(held);
        assert!(second.as_mut().now_or_never().is_none());
        let held = first.await;
        assert!(held.is_some());
        assert!(turns.take(ALICE, &most, SOON).await.is_none(), "too late");
        drop(held);
        assert!(second.await.is_some());
        assert!(turns.0.lock().is_empty());
    }

    #[tokio::test]
    async fn one_who_goes_away_loses_nobody_a_turn() {
        let turns = Turns::default();
        let most = limits(1, 2);
        let held = turns.take(ALICE, &most, SOON).await;
        let mut gone = Box::pin(turns.take(ALICE, &most, LATER));
        let mut stays = Box::pin(turns.take(ALICE, &most, LATER));
        assert!(gone.as_mut().now_or_never().is_none() && stays.as_mut().now_or_never().is_none());
        // Its turn has been given, but it never looks.
        drop(held);
        drop(gone);
        assert!(stays.await.is_some());
        assert!(turns.0.lock().is_empty());
    }

    #[tokio::test]
    async fn a_limit_that_is_changed_holds_from_the_next_question_on() {
        let turns = Turns::default();
        let held =
            [turns.take(ALICE, &limits(2, 0), SOON).await, turns.take(ALICE, &limits(2, 0), SOON).await];
        let [one, other] = held;
        drop(one);
        assert!(turns.take(ALICE, &limits(1, 0), SOON).await.is_none());
        let more = turns.take(ALICE, &limits(3, 0), SOON).await;
        assert!(more.is_some() && turns.take(ALICE, &limits(3, 0), SOON).await.is_some());
        drop((other, more));
        assert!(turns.0.lock().is_empty());
    }
}
