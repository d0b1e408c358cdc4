//! Looks after what nobody is asked for: whether the parts of a server answer, and what tenants keep.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::domain::ids::TenantId;
use crate::inference::Models;
use crate::store::Stores;
use crate::store::postgres::Postgres;
use crate::store::postgres::usage::Usage;
use crate::telemetry::Readiness;

/// How often the parts are asked, and how long each may take to answer.
const BEAT: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(2);
/// How often tenants' usage is read, in beats.
const USAGE_EVERY: u32 = 10;

/// What tenants keep, as it was read last.
pub(super) type Usages = Arc<Mutex<Arc<HashMap<TenantId, Usage>>>>;

/// Asks the parts of a server how they are.
pub(super) struct Pulse {
    pub(super) postgres: Postgres,
    pub(super) stores: Stores,
    pub(super) models: Models,
    pub(super) readiness: Arc<Readiness>,
    pub(super) usages: Usages,
    /// Tenants whose usage is read, at most.
    pub(super) tenants: usize,
}

impl Pulse {
    /// Asks once.
    pub(super) async fn beat(&self) {
        let answers = matches!(timeout(PATIENCE, self.postgres.ping()).await, Ok(Ok(())));
        let models = self.models.all().all(crate::inference::Embedder::is_alive);
        self.readiness.note(answers && models);
    }

    async fn read_usages(&self) {
        let limit = i64::try_from(self.tenants).unwrap_or(i64::MAX);
        // What cannot be read now stays as it was; that the database is away is told by readiness.
        if let Ok(Ok(usages)) = timeout(BEAT * USAGE_EVERY, self.stores.usage_list(limit)).await {
            *self.usages.lock() = Arc::new(usages);
        }
    }

    /// Asks until it is told to stop.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let work = async {
            for beat in (0..USAGE_EVERY).cycle() {
                beats.tick().await;
                self.beat().await;
                if beat == 0 {
                    self.read_usages().await;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }
}
