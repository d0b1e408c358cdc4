//! The audit log on MongoDB, with PostgreSQL beside it.
//!
//! Each server has two chains for each tenant here. What is in the log before it is answered (administrative actions,
//! refusals, alarms) is written into the chain of PostgreSQL first, as without MongoDB, and copied from there with its
//! numbers and hashes. Questions and writes lie in the local spool, and get their numbers in the chain `<node>/queue`
//! when they are forwarded. The heads of both are anchored in PostgreSQL.
//!
//! Read together, the log is what is here up to the anchors and what waits in PostgreSQL beyond them; events in a spool
//! are found once they are forwarded.
//!
//! **Invariant:** an event is in one chain once: it is known by its number here, and by its spool's in the anchor.
//! **Invariant:** no action waits for MongoDB.

mod collection;
mod document;
mod error;
mod forward;
pub mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::domain::audit::{AuditCursor, AuditDay, AuditEvent, AuditRecord};
use crate::domain::clock::Clock;
use crate::domain::ids::TenantId;
use crate::store::audit::AuditLog;
use crate::store::audit::chain::{Chain, Link};
use crate::store::audit::export::Times;
use crate::store::audit::spool::Spool;
use crate::store::error::StoreError;
use crate::store::layers::{CallSettings, Calls, Layers};
use crate::store::postgres::audit::PostgresAudit;
use collection::Events;
use settings::{MongoError, MongoSettings};

const BACKEND: &str = "mongodb";
/// What the name of a spool's chain ends with; no server's name can.
const QUEUE: &str = "/queue";
/// How often anchors are looked at again, when there is more than they say, and the pause between.
const ANCHOR_LOOKS: u32 = 10;
const ANCHOR_PAUSE: Duration = Duration::from_millis(200);

/// The layers around each call.
#[must_use]
pub fn layers(settings: &MongoSettings, calls: Arc<Calls>, clock: Arc<dyn Clock>) -> Layers {
    let settings = CallSettings { deadline_ms: settings.deadline_ms, ..CallSettings::default() };
    Layers::new(BACKEND, &settings, calls, clock)
}

/// The audit log of one server. Clones are cheap and are the same log.
#[derive(Clone)]
pub struct MongoAudit {
    inner: Arc<Inner>,
}

struct Inner {
    events: Events,
    /// The chain that is written first, and the anchors.
    first: PostgresAudit,
    spool: Arc<Spool>,
    /// The name of the spool's chains.
    queue: String,
    batch: usize,
    every: Duration,
    /// Tenants with events in PostgreSQL that wait.
    waiting: Mutex<BTreeSet<Option<TenantId>>>,
    /// One at a time forwards.
    turn: tokio::sync::Mutex<()>,
}

impl MongoAudit {
    /// The log of these settings. `first` is the chain of this server in PostgreSQL; `batch` events are forwarded at
    /// once. Connects when first used.
    ///
    /// # Errors
    /// [`MongoError`]: the address cannot be used.
    pub async fn open(
        settings: &MongoSettings,
        first: PostgresAudit,
        spool: Arc<Spool>,
        batch: usize,
        layers: Layers,
    ) -> Result<Self, MongoError> {
        let inner = Inner {
            events: Events::open(settings, layers).await?,
            queue: format!("{}{QUEUE}", first.node()),
            first,
            spool,
            batch: batch.max(1),
            every: Duration::from_millis(settings.forward_ms),
            waiting: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The last events here, heads there, in one: what is forwarded at this moment is let arrive first.
    async fn ends(&self, tenant: Option<TenantId>) -> Result<Ends, StoreError> {
        let mut look = 0;
        loop {
            // Events before anchors: an anchor is never ahead of what is here.
            let lasts: BTreeMap<String, i64> =
                self.inner.events.of(tenant).lasts().await?.into_iter().collect();
            let anchors: BTreeMap<String, (i64, Vec<u8>)> = self
                .inner
                .first
                .anchor_list(tenant)
                .await?
                .into_iter()
                .map(|(node, anchor)| (node, (anchor.tip.number, anchor.tip.hash.to_vec())))
                .collect();
            let is_ahead =
                lasts.iter().any(|(node, last)| *last > anchors.get(node).map_or(0, |(number, _)| *number));
            if !is_ahead || look == ANCHOR_LOOKS {
                return Ok(Ends { lasts, anchors });
            }
            if look == 0 {
                // This server's own: it may have been broken off between the two.
                self.forward().await?;
            } else {
                tokio::time::sleep(ANCHOR_PAUSE).await;
            }
            look += 1;
        }
    }
}

/// Has a tenant's chain in PostgreSQL looked at when it goes.
struct Waits<'a> {
    log: &'a MongoAudit,
    tenant: Option<TenantId>,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.log.appended(self.tenant);
    }
}

struct Ends {
    lasts: BTreeMap<String, i64>,
    anchors: BTreeMap<String, (i64, Vec<u8>)>,
}

fn is_queue(node: &str) -> bool {
    node.ends_with(QUEUE)
}

#[async_trait]
impl AuditLog for MongoAudit {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn node(&self) -> &str {
        self.inner.first.node()
    }

    /// So that it is forwarded.
    fn appended(&self, tenant: Option<TenantId>) {
        self.inner.waiting.lock().insert(tenant);
    }

    /// Into PostgreSQL, from where it is forwarded: whoever waits for it does not wait for MongoDB.
    async fn append(&self, tenant: Option<TenantId>, events: &[AuditEvent]) -> Result<(), StoreError> {
        // However it ends, cancelled too: what it wrote is to be forwarded.
        let _looked_at = Waits { log: self, tenant };
        self.inner.first.append(tenant, events).await
    }

    async fn page(
        &self,
        tenant: Option<TenantId>,
        after: Option<&AuditCursor>,
        limit: i64,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        // What waits first: what is forwarded meanwhile is in both then, and in none otherwise.
        let mut page = self.inner.first.waiting_page(tenant, after, limit).await?;
        page.extend(self.inner.events.of(tenant).page(after, limit).await?);
        let place = |record: &AuditRecord| (record.at.clone(), record.node.clone(), record.number);
        page.sort_by_cached_key(|record| std::cmp::Reverse(place(record)));
        page.dedup_by_key(|record| place(record));
        page.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(page)
    }

    async fn chains(&self, tenant: Option<TenantId>) -> Result<Vec<Chain>, StoreError> {
        let first = self.inner.first.chains(tenant).await?;
        let Ends { lasts, mut anchors } = self.ends(tenant).await?;
        let mut chains: BTreeMap<String, Chain> = BTreeMap::new();
        for chain in first {
            let anchored = anchors.remove(&chain.node).map_or(0, |(number, _)| number);
            let there = lasts.get(&chain.node).copied().unwrap_or(0);
            // Up to the anchor counts what is here; beyond it what waits, and what should not be here.
            let waits = Some(chain.last).filter(|last| *last > anchored).unwrap_or(0);
            chains.insert(chain.node.clone(), Chain { last: there.max(waits), ..chain });
        }
        for (node, head) in anchors {
            let last = lasts.get(&node).copied().unwrap_or(0);
            chains.insert(node.clone(), Chain { node, head: Some(head), last });
        }
        for (node, last) in lasts {
            chains.entry(node.clone()).or_insert(Chain { node, head: None, last });
        }
        Ok(chains.into_values().collect())
    }

    async fn links(
        &self,
        tenant: Option<TenantId>,
        node: &str,
        (after, until): (i64, i64),
        limit: i64,
    ) -> Result<Vec<Link>, StoreError> {
        let events = self.inner.events.of(tenant);
        if is_queue(node) {
            return events.links(node, (after, until), limit).await;
        }
        let anchored = self.inner.first.anchor_get(tenant, node).await?.tip.number;
        let mut links = Vec::new();
        if after < anchored {
            links = events.links(node, (after, until.min(anchored)), limit).await?;
        }
        let rest = limit - i64::try_from(links.len()).unwrap_or(i64::MAX);
        if rest > 0 && until > anchored {
            let range = (after.max(anchored), until);
            links.extend(self.inner.first.links(tenant, node, range, rest).await?);
        }
        Ok(links)
    }

    async fn span(
        &self,
        tenant: Option<TenantId>,
        node: &str,
        times: Times,
    ) -> Result<Option<(i64, i64)>, StoreError> {
        if is_queue(node) {
            return self.inner.events.of(tenant).span(node, times).await;
        }
        // PostgreSQL keeps what was forwarded, too.
        self.inner.first.span(tenant, node, times).await
    }

    async fn days(&self, tenant: Option<TenantId>, times: Times) -> Result<Vec<AuditDay>, StoreError> {
        self.inner.events.of(tenant).days(times).await
    }
}
