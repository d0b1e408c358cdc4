//! Gives large namespaces partitions of their own, and drops those that nobody needs any more.
//!
//! **Invariant:** one change at a time; what fails is tried again at the next look.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::store::{StoreError, Stores};

/// Looks every `interval` until it is told to stop. What it is at then is left, and gone on with another time.
pub async fn keep(stores: Stores, interval: Duration, stop: CancellationToken) {
    let mut looks = tokio::time::interval(interval);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let work = async {
        loop {
            looks.tick().await;
            if let Err(error) = look(&stores).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "partitions stay as they are");
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

async fn look(stores: &Stores) -> Result<(), StoreError> {
    let dropped = stores.partitions_drop_orphans().await?;
    if dropped > 0 {
        tracing::info!(dropped, "partitions without a namespace were dropped");
    }
    for due in stores.partitions_due().await? {
        if stores.partition_make(&due).await? {
            let (tenant, namespace) = (due.tenant(), due.namespace());
            tracing::info!(%tenant, %namespace, "a large namespace has a partition of its own");
        }
    }
    Ok(())
}
