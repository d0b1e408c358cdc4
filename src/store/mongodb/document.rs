//! An event as MongoDB keeps it.
//!
//! **Invariant:** every field has one type of ours; what a caller wrote is a string value, never a key or a document.

use chrono::DateTime;
use mongodb::bson::{Bson, Document, deserialize_from_document};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::BACKEND;
use crate::domain::ids::TenantId;
use crate::store::audit::chain::{Columns, Link};
use crate::store::error::{ErrorKind, StoreError};

/// A tenant as documents name it; the deployment's own events have the nil uuid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct TenantKey(String);

impl TenantKey {
    pub(super) fn of(tenant: Option<TenantId>) -> Self {
        Self(tenant.map_or(Uuid::nil(), |tenant| tenant.0).hyphenated().to_string())
    }
}

impl From<&TenantKey> for Bson {
    fn from(key: &TenantKey) -> Self {
        Self::String(key.0.clone())
    }
}

/// An event. Times as microseconds, since dates of MongoDB have milliseconds only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventDocument {
    /// Tenant, node and number: the same event has the same wherever it is written from.
    #[serde(rename = "_id")]
    id: String,
    pub(super) tenant: TenantKey,
    pub(super) node: String,
    pub(super) number: i64,
    pub(super) at: i64,
    /// As 2026-01-31, UTC: what usage is grouped by.
    day: String,
    kind: String,
    pub(super) body: String,
    previous: String,
    pub(super) hash: String,
}

impl EventDocument {
    pub(super) fn new(tenant: &TenantKey, node: &str, event: &Link) -> Result<Self, StoreError> {
        let columns = event.columns.as_ref().ok_or_else(|| {
            StoreError::new(ErrorKind::Internal, BACKEND, "audit.insert", "an event without its columns")
        })?;
        Ok(Self {
            id: format!("{}/{node}/{}", tenant.0, event.number),
            tenant: tenant.clone(),
            node: node.to_owned(),
            number: event.number,
            at: columns.at.timestamp_micros(),
            day: columns.at.format("%Y-%m-%d").to_string(),
            kind: columns.kind.clone(),
            body: event.body.clone(),
            previous: hex::encode(&event.previous),
            hash: hex::encode(&event.hash),
        })
    }

    /// What is found of an event. Whatever is not as it was written becomes a link that no chain accepts.
    pub(super) fn link(found: Document) -> Link {
        let number = match found.get("number") {
            Some(Bson::Int64(number)) => *number,
            Some(Bson::Int32(number)) => i64::from(*number),
            _ => 0,
        };
        let spoilt =
            || Link { number, body: String::new(), previous: Vec::new(), hash: Vec::new(), columns: None };
        let Ok(event) = deserialize_from_document::<Self>(found) else { return spoilt() };
        let (previous, hash) = (hex::decode(&event.previous), hex::decode(&event.hash));
        let (Some(at), Ok(previous), Ok(hash)) = (DateTime::from_timestamp_micros(event.at), previous, hash)
        else {
            return spoilt();
        };
        let is_day = event.day == at.format("%Y-%m-%d").to_string();
        if !is_day {
            return spoilt();
        }
        let columns = Some(Columns { at, kind: event.kind });
        Link { number: event.number, body: event.body, previous, hash, columns }
    }
}
