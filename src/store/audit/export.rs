//! The audit log as a file: JSON lines that can be examined without any server.
//!
//! A chain is its events in order, one a line with number, node, previous, hash and body, and after them a line that
//! says where they end and where the chain's head stood. From a time on, or up to one, it is the part of the chain
//! from the first event of that time to the last.
//!
//! **Invariant:** a part of a chain has no gaps: what lies between its first and its last event is in it.
//! **Invariant:** a file is read line by line; no more is held than one line and a walk for each chain.

use std::collections::BTreeMap;
use std::io::BufRead;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::AuditLog;
use super::chain::{Link, Tip, Walk};
use crate::domain::audit::{ChainFault, ChainReport};
use crate::domain::ids::TenantId;
use crate::store::error::StoreError;

/// The events of one call, at most.
pub const EXPORT_PAGE: i64 = 500;

/// From when and until when.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Events of this time and later; `None`: all.
    pub since: Option<DateTime<Utc>>,
    /// Events before this time; `None`: all.
    pub until: Option<DateTime<Utc>>,
}

/// Where a page ended: the chain, and the number of its last event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportPlace {
    /// The server whose chain it is.
    pub node: String,
    /// The number of the last event; 0: the chain was not begun.
    pub number: i64,
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "line", rename_all = "snake_case", deny_unknown_fields)]
pub enum ExportLine {
    /// An event.
    Event {
        /// The tenant whose log it is; null: the deployment's.
        #[schema(value_type = Option<uuid::Uuid>)]
        tenant: Option<TenantId>,
        /// The server that wrote it.
        node: String,
        /// Its number in the chain.
        number: i64,
        /// The hash before it, hexadecimal.
        previous: String,
        /// Its own: SHA-256 of the 32 bytes of `previous` and of the bytes of `body`.
        hash: String,
        /// Its canonical text.
        body: String,
    },
    /// The end of a chain's events.
    End {
        /// The tenant whose log it is; null: the deployment's.
        #[schema(value_type = Option<uuid::Uuid>)]
        tenant: Option<TenantId>,
        /// The server whose chain it is.
        node: String,
        /// The number before the first event.
        after: i64,
        /// The number of the last event.
        last: i64,
        /// Where the chain's head stood; null: it had none.
        head: Option<i64>,
        /// The head's hash, hexadecimal.
        head_hash: Option<String>,
        /// Whether the chain goes on after the time that was asked for.
        goes_on: bool,
    },
}

/// A page of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, utoipa::ToSchema)]
pub struct ExportPage {
    /// Its lines, in order.
    pub lines: Vec<ExportLine>,
    /// Where the next page goes on; absent: this was the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<ExportPlace>,
}

/// The next page of a log: events of one chain, and its end when they are all.
///
/// # Errors
/// As the log's own.
pub(super) async fn page<L: AuditLog + ?Sized>(
    log: &L,
    tenant: Option<TenantId>,
    times: Times,
    after: Option<&ExportPlace>,
) -> Result<ExportPage, StoreError> {
    let chains = log.chains(tenant).await?;
    let begun = after.filter(|place| place.number > 0);
    let mut rest = chains.into_iter().skip_while(|chain| after.is_some_and(|place| chain.node < place.node));
    while let Some(chain) = rest.next() {
        let is_whole = times == Times::default();
        let span =
            if is_whole { Some((1, chain.last)) } else { log.span(tenant, &chain.node, times).await? };
        // Nothing of that time.
        let Some((first, last)) = span else { continue };
        let from = begun.filter(|place| place.node == chain.node).map_or(first - 1, |place| place.number);
        let events = log.links(tenant, &chain.node, (from, last), EXPORT_PAGE).await?;
        let is_full = i64::try_from(events.len()).unwrap_or(i64::MAX) >= EXPORT_PAGE;
        let reached = events.last().map_or(from, |event| event.number);
        let mut lines: Vec<ExportLine> =
            events.into_iter().map(|event| event_line(tenant, &chain.node, event)).collect();
        if is_full {
            return Ok(ExportPage { lines, next: Some(ExportPlace { node: chain.node, number: reached }) });
        }
        lines.push(ExportLine::End {
            tenant,
            node: chain.node,
            after: first - 1,
            last: reached,
            head: chain.head.as_ref().map(|(number, _)| *number),
            head_hash: chain.head.as_ref().map(|(_, hash)| hex::encode(hash)),
            goes_on: times.until.is_some() && reached < chain.last,
        });
        let next = rest.next().map(|chain| ExportPlace { node: chain.node, number: 0 });
        return Ok(ExportPage { lines, next });
    }
    Ok(ExportPage::default())
}

fn event_line(tenant: Option<TenantId>, node: &str, event: Link) -> ExportLine {
    ExportLine::Event {
        tenant,
        node: node.to_owned(),
        number: event.number,
        previous: hex::encode(event.previous),
        hash: hex::encode(event.hash),
        body: event.body,
    }
}

/// What is wrong with a file itself.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It cannot be read.
    #[error("the file cannot be read")]
    Io(#[from] std::io::Error),
    /// A line is none of an export.
    #[error("line {0} is not one of an export")]
    Line(usize, #[source] serde_json::Error),
}

/// What the examination of a file found of one chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// The tenant whose log it is; null: the deployment's.
    pub tenant: Option<TenantId>,
    /// What was found.
    #[serde(flatten)]
    pub chain: ChainReport,
}

/// A chain of a file as far as it was read.
struct Part {
    walk: Walk,
    /// The number before its first event.
    after: i64,
    events: i64,
    ended: bool,
    fault: Option<ChainFault>,
}

/// Examines a file: each chain by itself, in order of tenant and server.
///
/// # Errors
/// [`ExportError`]; a damaged log is a report, not an error.
pub fn examine(file: impl BufRead) -> Result<Vec<FileReport>, ExportError> {
    let mut parts: BTreeMap<(Option<TenantId>, String), Part> = BTreeMap::new();
    for (index, line) in file.lines().enumerate() {
        match serde_json::from_str(&line?).map_err(|error| ExportError::Line(index + 1, error))? {
            ExportLine::Event { tenant, node, number, previous, hash, body } => {
                let bytes = |text: &str| hex::decode(text).unwrap_or_default();
                let event =
                    Link { number, body, previous: bytes(&previous), hash: bytes(&hash), columns: None };
                let part = parts.entry((tenant, node.clone())).or_insert_with(|| {
                    Part::begun(number - 1, event.previous.clone().try_into().ok(), tenant, &node)
                });
                part.take(&event);
            }
            ExportLine::End { tenant, node, after, last, head, head_hash, goes_on } => {
                let part = parts
                    .entry((tenant, node.clone()))
                    .or_insert_with(|| Part::begun(after, None, tenant, &node));
                part.end(after, last, head.zip(head_hash), goes_on);
            }
        }
    }
    Ok(parts.into_iter().map(|((tenant, node), part)| part.report(tenant, node)).collect())
}

impl Part {
    /// What the first event follows is taken from itself, but at the beginning of the chain.
    fn begun(after: i64, previous: Option<[u8; 32]>, tenant: Option<TenantId>, node: &str) -> Self {
        let tip = match previous {
            Some(hash) if after > 0 => Tip { number: after, hash },
            _ => Tip { number: after, ..Tip::START },
        };
        Self { walk: Walk::from(tip, tenant, node), after, events: 0, ended: false, fault: None }
    }

    fn take(&mut self, event: &Link) {
        if self.ended {
            self.fault = self.fault.or(Some(ChainFault::Inserted { number: event.number }));
        } else if self.walk.take(event) {
            self.events += 1;
        }
    }

    fn end(&mut self, after: i64, last: i64, head: Option<(i64, String)>, goes_on: bool) {
        let tip = self.walk.tip();
        let fault = match head {
            _ if self.ended => Some(ChainFault::Inserted { number: tip.number }),
            _ if after < self.after => Some(ChainFault::Removed { number: after + 1 }),
            _ if tip.number < last => Some(ChainFault::Truncated { number: tip.number + 1 }),
            _ if tip.number > last => Some(ChainFault::Inserted { number: last + 1 }),
            None => Some(ChainFault::Head { number: tip.number }),
            Some((number, _)) if number < last => Some(ChainFault::Inserted { number: number + 1 }),
            Some((number, _)) if number > last && !goes_on => {
                Some(ChainFault::Truncated { number: last + 1 })
            }
            Some((number, hash)) if number == last && hash != hex::encode(tip.hash) => {
                Some(ChainFault::Head { number: last })
            }
            Some(_) => None,
        };
        self.fault = self.fault.or(fault);
        self.ended = true;
    }

    fn report(self, tenant: Option<TenantId>, node: String) -> FileReport {
        let tip = self.walk.tip();
        let unended = (!self.ended).then_some(ChainFault::Head { number: tip.number });
        let fault = self.walk.fault().or(self.fault).or(unended);
        let chain = ChainReport { node, events: self.events, head: hex::encode(tip.hash), fault };
        FileReport { tenant, chain }
    }
}
