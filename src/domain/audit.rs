//! What the audit log says: who did what to whom, when, and how it was decided.
//!
//! **Invariant:** no text of a query, document or prompt, and no secret; a query is named by a keyed hash.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::ids::TenantId;

/// At most this many identifiers are kept of one event; the rest is counted.
pub const MAX_IDS: usize = 256;
/// At most this many tenants that a request named are kept.
pub const MAX_ASKED_FOR: usize = 4;
/// At most this many characters are kept of a reason, a name or an identifier.
pub const MAX_CHARACTERS: usize = 256;

/// At most this many characters are kept of a receipt, whose words are the server's own.
pub const MAX_RECEIPT: usize = 1024;

/// What sort of event it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuditKind {
    /// Something done with an operator's or a tenant admin's authority.
    Admin,
    /// A request refused by identity.
    Refusal,
    /// A layer found what must not be, as a foreign row.
    Alarm,
    /// A question, or another reading call.
    Query,
    /// A change to documents.
    Write,
}

impl AuditKind {
    /// The kind's name in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Refusal => "refusal",
            Self::Alarm => "alarm",
            Self::Query => "query",
            Self::Write => "write",
        }
    }
}

/// How it was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It was done.
    Allowed,
    /// It was refused.
    Denied,
    /// It was allowed and could not be done.
    Failed,
}

/// What the place of an event tells: everything but who, whose and when, which the log adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    pub(crate) kind: AuditKind,
    pub(crate) action: Cow<'static, str>,
    pub(crate) decision: Decision,
    pub(crate) reason: String,
    pub(crate) asked_for: Vec<String>,
    pub(crate) ids: Vec<String>,
    pub(crate) ids_omitted: u64,
    pub(crate) rows_dropped: u64,
    pub(crate) query_hash: Option<[u8; 32]>,
}

impl AuditEntry {
    /// An entry of this kind; `action` names resource and verb, as `document.delete`, or what was refused, as
    /// `POST /query`.
    #[must_use]
    pub fn new(kind: AuditKind, action: impl Into<Cow<'static, str>>, decision: Decision) -> Self {
        Self {
            kind,
            action: action.into(),
            decision,
            reason: String::new(),
            asked_for: Vec::new(),
            ids: Vec::new(),
            ids_omitted: 0,
            rows_dropped: 0,
            query_hash: None,
        }
    }

    /// Why: an operator's stated reason, or the fixed words of a refusal or an alarm.
    #[must_use]
    pub fn because(mut self, reason: &str) -> Self {
        self.reason = shortened(reason);
        self
    }

    /// What was done, in the server's own words: its names of stores and tables, and numbers.
    #[must_use]
    pub fn with_receipt(mut self, words: &str) -> Self {
        self.reason = words.chars().take(MAX_RECEIPT).collect();
        self
    }

    /// The tenants that the request named, as it wrote them.
    #[must_use]
    pub fn asking_for<S: AsRef<str>>(mut self, tenants: impl IntoIterator<Item = S>) -> Self {
        self.asked_for =
            tenants.into_iter().take(MAX_ASKED_FOR).map(|tenant| shortened(tenant.as_ref())).collect();
        self
    }

    /// The chunks, documents, keys or jobs that were returned or touched.
    #[must_use]
    pub fn with_ids<S: AsRef<str>>(mut self, ids: impl IntoIterator<Item = S>) -> Self {
        for id in ids {
            if self.ids.len() < MAX_IDS {
                self.ids.push(shortened(id.as_ref()));
            } else {
                self.ids_omitted += 1;
            }
        }
        self
    }

    /// How many rows were trimmed, as stale or foreign.
    #[must_use]
    pub fn dropping(mut self, rows: u64) -> Self {
        self.rows_dropped = rows;
        self
    }

    /// The keyed hash of the query's text.
    #[must_use]
    pub fn of_query(mut self, hash: [u8; 32]) -> Self {
        self.query_hash = Some(hash);
        self
    }

    /// The same entry without what belongs to somebody else: identifiers and asked-for tenants.
    #[must_use]
    pub fn without_names(&self) -> Self {
        Self { ids: Vec::new(), asked_for: Vec::new(), ..self.clone() }
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_CHARACTERS).collect()
}

/// An event, before it has its place in a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    /// The tenant of the credential; `None`: the deployment's own log.
    pub tenant: Option<TenantId>,
    /// Who acted, as `key:<id>`; `anonymous` without a verified credential.
    pub principal: String,
    /// When.
    pub at: DateTime<Utc>,
    /// What.
    pub entry: AuditEntry,
}

/// An event in its place. Its serialised form is what is hashed and kept: fields in the order of their
/// names, no insignificant space, integers only (RFC 8785).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditRecord {
    /// Resource and verb.
    pub action: String,
    /// The tenants that the request named.
    pub asked_for: Vec<String>,
    /// When, RFC 3339 with microseconds, UTC.
    pub at: String,
    /// How it was decided.
    pub decision: Decision,
    /// The chunks, documents, keys or jobs that were returned or touched.
    pub ids: Vec<String>,
    /// How many more there were.
    pub ids_omitted: u64,
    /// What sort of event.
    pub kind: AuditKind,
    /// The server that wrote it.
    pub node: String,
    /// Its number in the chain of this tenant and node, from 1, without gaps.
    pub number: i64,
    /// Who acted.
    pub principal: String,
    /// Keyed hash of the query's text, hexadecimal.
    pub query_hash: Option<String>,
    /// Why.
    pub reason: String,
    /// How many rows were trimmed.
    pub rows_dropped: u64,
    /// The tenant of the credential.
    #[schema(value_type = Option<uuid::Uuid>)]
    pub tenant: Option<TenantId>,
}

impl AuditRecord {
    /// The event at this place of a chain.
    #[must_use]
    pub fn new(event: &AuditEvent, node: &str, number: i64) -> Self {
        let entry = &event.entry;
        Self {
            action: entry.action.clone().into_owned(),
            asked_for: entry.asked_for.clone(),
            at: written(event.at),
            decision: entry.decision,
            ids: entry.ids.clone(),
            ids_omitted: entry.ids_omitted,
            kind: entry.kind,
            node: node.to_owned(),
            number,
            principal: shortened(&event.principal),
            query_hash: entry.query_hash.map(hex::encode),
            reason: entry.reason.clone(),
            rows_dropped: entry.rows_dropped,
            tenant: event.tenant,
        }
    }
}

/// A time as records write it.
#[must_use]
pub fn written(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

/// How many events of one kind a tenant had on one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct AuditDay {
    /// As 2026-01-31, UTC.
    pub day: String,
    /// The kind's name.
    pub kind: String,
    /// How many.
    pub events: i64,
}

/// Where a page of the log ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditCursor {
    /// When the last event of the page was.
    pub at: DateTime<Utc>,
    /// The server that wrote it.
    pub node: String,
    /// Its number.
    pub number: i64,
}

/// How a chain departs from what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum ChainFault {
    /// The event of this number is not there, though later ones are.
    Removed {
        /// Its number.
        number: i64,
    },
    /// The event of this number is not the one that was written there.
    Changed {
        /// Its number.
        number: i64,
    },
    /// At this number stands an event that was written at another.
    Reordered {
        /// The number where it stands.
        number: i64,
    },
    /// The log ends before the chain's head.
    Truncated {
        /// The first number that is missing.
        number: i64,
    },
    /// There are events that were not written: between others, twice at one number, or beyond the chain's head.
    Inserted {
        /// The first such number.
        number: i64,
    },
    /// The head is missing, or its hash is not that of the last event.
    Head {
        /// The number of the last event.
        number: i64,
    },
}

/// What the examination of one chain found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ChainReport {
    /// The server whose chain it is.
    pub node: String,
    /// How many events are there and in order.
    pub events: i64,
    /// Hash of the last of them, hexadecimal. Kept outside, it shows later that the log was not rewritten
    /// as a whole, which no chain can show by itself.
    pub head: String,
    /// The first departure, if there is one.
    pub fault: Option<ChainFault>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> AuditRecord {
        let entry = AuditEntry::new(AuditKind::Query, "query.create", Decision::Allowed)
            .because("a \"quoted\"\n reason")
            .with_ids((0..MAX_IDS + 3).map(|n| format!("doc-{n}")))
            .of_query([7; 32]);
        let event = AuditEvent {
            tenant: None,
            principal: "key:abc".to_owned(),
            at: DateTime::from_timestamp_nanos(1_700_000_000_123_456_789),
            entry,
        };
        AuditRecord::new(&event, "node-1", 9)
    }

    #[test]
    fn the_fields_of_a_record_are_written_in_the_order_of_their_names() {
        let text = serde_json::to_string(&record()).unwrap();
        let positions: Vec<usize> = [
            "action",
            "asked_for",
            "at",
            "decision",
            "ids",
            "ids_omitted",
            "kind",
            "node",
            "number",
            "principal",
            "query_hash",
            "reason",
            "rows_dropped",
            "tenant",
        ]
        .iter()
        .map(|name| text.find(&format!("\"{name}\":")).unwrap())
        .collect();
        assert!(positions.is_sorted());
        assert!(text.contains("\"at\":\"2023-11-14T22:13:20.123456Z\""));
    }

    #[test]
    fn a_record_read_back_is_written_the_same() {
        let text = serde_json::to_string(&record()).unwrap();
        let read: AuditRecord = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }

    #[test]
    fn identifiers_beyond_the_bound_are_counted() {
        let record = record();
        assert_eq!((record.ids.len(), record.ids_omitted), (MAX_IDS, 3));
    }
}
