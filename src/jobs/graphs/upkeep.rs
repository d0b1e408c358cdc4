//! Looks at graphs whether they seem to lag or not: one that the index lost is written anew, and what leads out of one,
//! or is only half its own, is an alarm.
//!
//! One after the other, however long one takes: nobody waits for it, and one that cannot be looked at is told and
//! passed over.

use std::sync::Arc;

use super::{Inner, Listing, Place, every};
use crate::domain::audit::{AuditEntry, AuditKind, Decision};
use crate::store::StoreError;

impl Inner {
    /// Goes round all namespaces, a page at a time.
    pub(super) async fn look_after(self: &Arc<Self>) {
        let (mut ticks, mut listing) = (every(self.settings.upkeep), Listing::default());
        loop {
            ticks.tick().await;
            let places = self.list(&mut listing, true).await;
            // How far it has come was registered when it lagged.
            for place in &places {
                self.order(*place, false);
            }
            for place in places {
                self.look(place).await;
            }
        }
    }

    /// Looks for what leads out of a namespace's graph.
    #[tracing::instrument(name = "jobs.examine_graph", level = "error", skip_all, fields(tenant = %place.0))]
    async fn look(&self, place: Place) {
        let (tenant, namespace) = place;
        match self.strays(place).await {
            Ok(0) => {}
            Ok(strays) => {
                tracing::error!(%tenant, %namespace, strays, "a namespace's graph is not wholly its own");
            }
            // Left alone, it is told of by whoever leaves it.
            Err(_) if self.stores.graph_is_left_alone() => {}
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(%tenant, %namespace, error, "what leads out of a graph was not looked for this time");
            }
        }
    }

    /// How much leads out of it, which is an alarm.
    async fn strays(&self, place: Place) -> Result<u64, StoreError> {
        let Some((permit, corpus)) = self.open(place, "graph upkeep").await? else { return Ok(0) };
        let strays = corpus.graph_strays().await?;
        if strays > 0 {
            let entry = AuditEntry::new(AuditKind::Alarm, "graph.examine", Decision::Denied);
            self.audit.record_alarm(permit.scope(), entry.because("isolation-alarm")).await?;
        }
        Ok(strays)
    }
}
