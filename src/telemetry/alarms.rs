//! Alarms: a layer found what must not be, as a row of another tenant. Each is counted, and sent to a webhook.
//!
//! **Invariant:** raising an alarm never waits: where the queue of the webhook is full, the alarm is counted as lost
//! there, and is in the audit log all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::page::{Page, Written};
use crate::domain::clock::Clock;
use crate::domain::ids::{IdSource, TenantId};

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AlarmKind {
    /// A foreign row stopped a request.
    RequestStopped,
    /// Foreign rows were taken out of an answer that went on.
    RowsDropped,
}

impl AlarmKind {
    const ALL: [(Self, &'static str); 2] =
        [(Self::RequestStopped, "request_stopped"), (Self::RowsDropped, "rows_dropped")];
}

/// An alarm as it is sent: ids, numbers and words of this program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alarm {
    /// Names it, so that one that is sent twice is known.
    pub id: Uuid,
    /// What was found.
    pub kind: AlarmKind,
    /// When, RFC 3339.
    pub at: String,
    /// The server that found it.
    pub node: String,
    /// The tenant that asked.
    pub tenant_id: Uuid,
    /// What it asked for, as `query.create`.
    pub action: String,
    /// How many rows were dropped.
    pub rows: u64,
}

#[derive(Debug, Default)]
pub(super) struct Deliveries {
    pub(super) delivered: AtomicU64,
    pub(super) failed: AtomicU64,
    lost: AtomicU64,
}

struct Inner {
    node: String,
    clock: Arc<dyn Clock>,
    ids: Arc<dyn IdSource>,
    counts: [AtomicU64; AlarmKind::ALL.len()],
    deliveries: Arc<Deliveries>,
    sender: Option<mpsc::Sender<Alarm>>,
}

/// Where alarms are raised. Clones raise the same.
#[derive(Clone)]
pub struct Alarms(Arc<Inner>);

impl Alarms {
    /// Alarms that are counted, and sent on where there is a queue.
    pub(super) fn over(
        node: &str,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn IdSource>,
        sender: Option<mpsc::Sender<Alarm>>,
        deliveries: Arc<Deliveries>,
    ) -> Self {
        let counts = Default::default();
        Self(Arc::new(Inner { node: node.to_owned(), clock, ids, counts, deliveries, sender }))
    }

    /// Raises an alarm about what a tenant asked for.
    pub fn raise(&self, kind: AlarmKind, tenant: TenantId, action: &str, rows: u64) {
        let inner = &self.0;
        for ((own, _), count) in std::iter::zip(AlarmKind::ALL, &inner.counts) {
            count.fetch_add(u64::from(own == kind), Ordering::Relaxed);
        }
        tracing::error!(%tenant, ?kind, action, rows, "an alarm was raised");
        let Some(sender) = &inner.sender else { return };
        let alarm = Alarm {
            id: inner.ids.uuid(),
            kind,
            at: inner.clock.now().to_rfc3339(),
            node: inner.node.clone(),
            tenant_id: tenant.0,
            action: action.to_owned(),
            rows,
        };
        if sender.try_send(alarm).is_err() {
            inner.deliveries.lost.fetch_add(1, Ordering::Relaxed);
            tracing::error!("an alarm is not sent: too many wait already");
        }
    }

    /// Writes how many there were, and what became of their delivery.
    ///
    /// # Errors
    /// When the page cannot be written.
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub fn write(&self, page: &mut Page<'_, '_>) -> Written {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64;
        let counts = std::iter::zip(AlarmKind::ALL, &self.0.counts);
        let counts = counts.map(|((_, name), count)| ([("kind", name)], read(count)));
        page.counters("bulkhead_alarms", "Alarms: a layer found what must not be", counts)?;
        let Deliveries { delivered, failed, lost } = &*self.0.deliveries;
        let outcomes = [("delivered", delivered), ("failed", failed), ("lost", lost)];
        let outcomes = outcomes.map(|(outcome, count)| ([("outcome", outcome)], read(count)));
        page.counters("bulkhead_webhook_alarms", "Alarms that were to be sent to the webhook", outcomes)?;
        let waiting = self.0.sender.as_ref().map_or(0, |sender| sender.max_capacity() - sender.capacity());
        page.gauge("bulkhead_webhook_waiting", "Alarms that wait to be sent", waiting as f64)
    }
}
