//! The sweep of files that nothing names any more, since a crash came between the database and the disk.
//!
//! A file is on disk before its document is accepted, and goes after its document's rows did; so a crash leaves
//! at worst a file too many, never one too few.
//!
//! **Invariant:** only files of tenants that the database knows are removed: one that knows none of them may be
//! the wrong database.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

use crate::domain::clock::Clock;
use crate::domain::ids::TenantId;
use crate::store::Stores;
use crate::tenancy::{self, Directory, DirectoryError, Permit, Write};

/// When the sweep runs, and what it leaves alone.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrphanSettings {
    /// Seconds between two sweeps; the first is at the start.
    pub every_seconds: u64,
    /// Seconds for which a file is left alone, since its document may be about to be accepted.
    pub margin_seconds: u64,
}

/// Sweeps until it is told to stop.
pub struct OrphanSweep {
    stores: Stores,
    directory: Arc<dyn Directory>,
    settings: OrphanSettings,
    clock: Arc<dyn Clock>,
    /// When it was made, by either clock.
    begun: (DateTime<Utc>, Instant),
}

impl OrphanSweep {
    /// A sweep over these stores.
    #[must_use]
    pub fn new(
        stores: Stores,
        directory: Arc<dyn Directory>,
        settings: OrphanSettings,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let begun = (clock.now(), clock.instant());
        Self { stores, directory, settings, clock, begun }
    }

    /// The time, or what it would be if nobody had set the clock forwards: a file that is being accepted must not grow
    /// old by that.
    fn now(&self) -> DateTime<Utc> {
        self.clock.now().min(self.begun.0 + self.clock.instant().saturating_duration_since(self.begun.1))
    }

    /// Sweeps at once, and then on an interval.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.sweep() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(self.settings.every_seconds)) => {}
            }
        }
    }

    /// One round over every tenant of which there are files, one after the other.
    async fn sweep(&self) {
        let (tenants, failed) = self.stores.tenants_on_disk().await;
        for error in failed {
            let store = error.backend;
            tracing::warn!(
                store,
                error = &error as &dyn std::error::Error,
                "orphans cannot be looked for in it"
            );
        }
        let mut strangers = 0_u64;
        for tenant in tenants {
            match self.permit(tenant).await {
                Ok(Some(permit)) => self.sweep_tenant(&permit).await,
                // Suspended, or unknown here.
                Ok(None) => strangers += 1,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "orphans cannot be looked for");
                    return;
                }
            }
        }
        if strangers > 0 {
            tracing::info!(tenants = strangers, "files of suspended or unknown tenants were left alone");
        }
    }

    async fn permit(&self, tenant: TenantId) -> Result<Option<Permit<Write>>, DirectoryError> {
        match tenancy::reauthorise(self.directory.as_ref(), tenant, "orphans").await? {
            Some(permit) => Ok(Some(permit)),
            None => tenancy::authorise_purge(self.directory.as_ref(), tenant).await,
        }
    }

    async fn sweep_tenant(&self, permit: &Permit<Write>) {
        let margin = chrono::Duration::from_std(Duration::from_secs(self.settings.margin_seconds));
        let before = margin.ok().and_then(|margin| self.now().checked_sub_signed(margin));
        // A margin longer than time itself leaves everything alone.
        let Some(before) = before else { return };
        let tenant = permit.scope().tenant();
        let removed = self.stores.background(permit).orphans_remove(before).await;
        for error in removed.failed {
            tracing::warn!(%tenant, error = &error as &dyn std::error::Error, "its orphans stay for now");
        }
        if removed.uploads + removed.indexes > 0 {
            tracing::warn!(%tenant, uploads = removed.uploads, indexes = removed.indexes, "orphaned files were removed");
        }
    }
}
