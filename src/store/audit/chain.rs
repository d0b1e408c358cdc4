//! The hash chain of the audit log and its examination, the same over every back end and over an exported file.
//!
//! An event's hash is SHA-256 of the hash before it and of the event's canonical text, which is kept as it was
//! hashed. Each tenant and server has a chain; its head, kept apart from the events, holds number and hash of the
//! last one. So a cut end shows, too.
//!
//! **Invariant:** what is examined is what was read; nothing here trusts a number, time or hash that a back end states.

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use super::AuditLog;
use crate::domain::audit::{AuditRecord, ChainFault, ChainReport, written};
use crate::domain::ids::TenantId;
use crate::store::error::{ErrorKind, StoreError};

/// Events read at once when a chain is examined.
const VERIFY_PAGE: i64 = 1000;
/// What the first event of a chain follows.
pub const GENESIS: [u8; 32] = [0; 32];

/// The hash of an event: of the hash before it and of its canonical text.
#[must_use]
pub fn link(previous: &[u8], body: &str) -> [u8; 32] {
    Sha256::new().chain_update(previous).chain_update(body.as_bytes()).finalize().into()
}

/// What a back end keeps beside an event's text, to find it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// When, microseconds.
    pub at: DateTime<Utc>,
    /// The kind's name.
    pub kind: String,
}

/// An event in its place in a chain, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number, from 1, without gaps.
    pub number: i64,
    /// Its canonical text: an [`AuditRecord`].
    pub body: String,
    /// The hash before it, 32 bytes.
    pub previous: Vec<u8>,
    /// Its own hash, 32 bytes.
    pub hash: Vec<u8>,
    /// `None` where there is the text alone, as in a file.
    pub columns: Option<Columns>,
}

/// The end of a chain: number and hash of its last event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    /// Its number; 0: there is no event yet.
    pub number: i64,
    /// Its hash.
    pub hash: [u8; 32],
}

impl Tip {
    /// The end of a chain without events.
    pub const START: Self = Self { number: 0, hash: GENESIS };

    /// Puts the next event into its place, and is its tip then. Number and node are the chain's.
    ///
    /// # Errors
    /// `Internal`: the event cannot be written as text, or its time is none.
    pub fn seal(
        &mut self,
        node: &str,
        record: AuditRecord,
        backend: &'static str,
    ) -> Result<Link, StoreError> {
        const OPERATION: &str = "audit.append";
        let internal = |context: &str| StoreError::new(ErrorKind::Internal, backend, OPERATION, context);
        let record = AuditRecord { node: node.to_owned(), number: self.number + 1, ..record };
        let at = record.at.parse().map_err(|error| internal("an event's time is none").with_source(error))?;
        let body = serde_json::to_string(&record)
            .map_err(|error| internal("an event cannot be written").with_source(error))?;
        let previous = self.hash;
        *self = Self { number: record.number, hash: link(&previous, &body) };
        let columns = Columns { at, kind: record.kind.name().to_owned() };
        Ok(Link {
            number: self.number,
            body,
            previous: previous.to_vec(),
            hash: self.hash.to_vec(),
            columns: Some(columns),
        })
    }
}

/// What is known of a chain before its events are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The server whose chain it is.
    pub node: String,
    /// Number and hash of its head; `None`: there is no head.
    pub head: Option<(i64, Vec<u8>)>,
    /// The number of the last event that is there; 0: there is none.
    pub last: i64,
}

impl Chain {
    /// Up to which number events are examined: without a head, everything that is there.
    fn end(&self) -> i64 {
        self.head.as_ref().map_or(self.last, |(number, _)| *number)
    }

    /// What is wrong with the end of a chain whose events are all in order up to this tip.
    fn fault(&self, tip: &Tip) -> Option<ChainFault> {
        match &self.head {
            None => Some(ChainFault::Head { number: tip.number }),
            Some((head, _)) if tip.number < *head => Some(ChainFault::Truncated { number: tip.number + 1 }),
            Some((head, _)) if self.last > *head => Some(ChainFault::Inserted { number: head + 1 }),
            Some((_, hash)) => (*hash != tip.hash).then_some(ChainFault::Head { number: tip.number }),
        }
    }
}

/// A walk along one chain, event by event.
#[derive(Debug, Clone)]
pub struct Walk {
    tenant: Option<TenantId>,
    node: String,
    tip: Tip,
    /// The hash before the tip's own.
    before: [u8; 32],
    fault: Option<ChainFault>,
}

impl Walk {
    /// From this tip on: [`Tip::START`] for the whole chain.
    #[must_use]
    pub fn from(tip: Tip, tenant: Option<TenantId>, node: &str) -> Self {
        Self { tenant, node: node.to_owned(), tip, before: GENESIS, fault: None }
    }

    /// The last event that was in order.
    #[must_use]
    pub fn tip(&self) -> Tip {
        self.tip
    }

    /// The first departure, if there was one.
    #[must_use]
    pub fn fault(&self) -> Option<ChainFault> {
        self.fault
    }

    /// Takes the next event. False: it is not in order, and what comes after it says nothing more.
    pub fn take(&mut self, event: &Link) -> bool {
        if self.fault.is_none() {
            self.fault = self.departure(event);
            if self.fault.is_none() {
                self.before = self.tip.hash;
                self.tip = Tip { number: event.number, hash: link(&self.tip.hash, &event.body) };
            }
        }
        self.fault.is_none()
    }

    fn departure(&self, event: &Link) -> Option<ChainFault> {
        let number = event.number;
        if number <= self.tip.number {
            return Some(ChainFault::Inserted { number });
        }
        if number > self.tip.number + 1 {
            return Some(ChainFault::Removed { number: self.tip.number + 1 });
        }
        let changed = Some(ChainFault::Changed { number });
        let own = |record: &AuditRecord| record.tenant == self.tenant && record.node == self.node;
        let Some(record) = serde_json::from_str::<AuditRecord>(&event.body).ok().filter(own) else {
            return changed;
        };
        let intact = event.hash == link(&event.previous, &event.body);
        if intact && record.number != number {
            // The one that was written where the one before this stands now: that one was put in.
            let pushed = record.number == self.tip.number && event.previous == self.before;
            return Some(if pushed {
                ChainFault::Inserted { number: record.number }
            } else {
                ChainFault::Reordered { number }
            });
        }
        let columns = event
            .columns
            .as_ref()
            .is_none_or(|columns| columns.kind == record.kind.name() && written(columns.at) == record.at);
        let sound = intact && columns && record.number == number && event.previous == self.tip.hash;
        if sound { None } else { changed }
    }
}

/// Examines each of a tenant's chains, by server.
///
/// # Errors
/// As the log's own. A damaged log is a report, not an error.
pub(super) async fn verify<L: AuditLog + ?Sized>(
    log: &L,
    tenant: Option<TenantId>,
) -> Result<Vec<ChainReport>, StoreError> {
    let chains = log.chains(tenant).await?;
    let mut reports = Vec::with_capacity(chains.len());
    for chain in chains {
        reports.push(examine(log, tenant, chain).await?);
    }
    Ok(reports)
}

async fn examine<L: AuditLog + ?Sized>(
    log: &L,
    tenant: Option<TenantId>,
    chain: Chain,
) -> Result<ChainReport, StoreError> {
    let mut walk = Walk::from(Tip::START, tenant, &chain.node);
    let end = chain.end();
    'chain: while walk.tip().number < end {
        let page = log.links(tenant, &chain.node, (walk.tip().number, end), VERIFY_PAGE).await?;
        if page.is_empty() {
            break;
        }
        for event in &page {
            if !walk.take(event) {
                break 'chain;
            }
        }
    }
    let tip = walk.tip();
    let fault = walk.fault().or_else(|| chain.fault(&tip));
    Ok(ChainReport { node: chain.node, events: tip.number, head: hex::encode(tip.hash), fault })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::audit::{AuditEntry, AuditEvent, AuditKind, Decision};

    fn sealed(count: u64) -> (Option<TenantId>, Vec<Link>) {
        let tenant = Some(TenantId(Uuid::from_u128(1)));
        let mut tip = Tip::START;
        let events = (0..count).map(|number| {
            let entry = AuditEntry::new(AuditKind::Query, "query.create", Decision::Allowed).dropping(number);
            let at = DateTime::from_timestamp_nanos(1_700_000_000_000_000_000);
            let event = AuditEvent { tenant, principal: "key:k".to_owned(), at, entry };
            tip.seal("node-1", AuditRecord::new(&event, "", 0), "memory").unwrap()
        });
        (tenant, events.collect())
    }

    fn walked(tenant: Option<TenantId>, events: &[Link]) -> Option<ChainFault> {
        let mut walk = Walk::from(Tip::START, tenant, "node-1");
        for event in events {
            if !walk.take(event) {
                break;
            }
        }
        walk.fault()
    }

    #[test]
    fn each_kind_of_damage_has_its_name_and_its_place() {
        let (tenant, events) = sealed(6);
        assert_eq!(walked(tenant, &events), None);
        let with = |change: &dyn Fn(&mut Vec<Link>)| {
            let mut events = events.clone();
            change(&mut events);
            walked(tenant, &events)
        };
        let changed = with(&|events| events[2].body = events[2].body.replace("allowed", "denied"));
        assert_eq!(changed, Some(ChainFault::Changed { number: 3 }));
        let removed = with(&|events| drop(events.remove(2)));
        assert_eq!(removed, Some(ChainFault::Removed { number: 3 }));
        let swapped = with(&|events| {
            events.swap(1, 4);
            events[1].number = 2;
            events[4].number = 5;
        });
        assert_eq!(swapped, Some(ChainFault::Reordered { number: 2 }));
        let twice = with(&|events| events.insert(3, events[2].clone()));
        assert_eq!(twice, Some(ChainFault::Inserted { number: 3 }));
        // One that links as it should, and those after it moved up.
        let between = with(&|events| {
            let mut tip = Tip { number: 2, hash: events[1].hash.clone().try_into().unwrap() };
            let record: AuditRecord = serde_json::from_str(&events[4].body).unwrap();
            let planted = tip.seal("node-1", record, "memory").unwrap();
            events[2..].iter_mut().for_each(|event| event.number += 1);
            events.insert(2, planted);
        });
        assert_eq!(between, Some(ChainFault::Inserted { number: 3 }));
    }

    #[test]
    fn an_event_of_another_tenant_or_server_is_foreign_to_the_chain() {
        let (tenant, events) = sealed(1);
        assert_eq!(walked(None, &events), Some(ChainFault::Changed { number: 1 }));
        let mut walk = Walk::from(Tip::START, tenant, "node-2");
        assert!(!walk.take(&events[0]));
    }

    #[test]
    fn what_a_back_end_states_beside_the_text_must_be_what_the_text_says() {
        let (tenant, mut events) = sealed(1);
        let columns = events[0].columns.as_mut().unwrap();
        columns.kind = "write".to_owned();
        assert_eq!(walked(tenant, &events), Some(ChainFault::Changed { number: 1 }));
    }
}
