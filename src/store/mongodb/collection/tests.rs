//! Filters as they are sent: the tenant first, and nothing of a caller's that could be an operator.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use mongodb::bson::serialize_to_document;
use uuid::Uuid;

use super::*;
use crate::domain::audit::{AuditEntry, AuditEvent, AuditKind, Decision};
use crate::domain::clock::SystemClock;
use crate::store::audit::chain::Tip;
use crate::store::layers::CallSettings;

/// What would be an operator, a path, a script or the end of a key, were it more than a string.
const HOSTILE: [&str; 8] = [
    r#"{"$ne": null}"#,
    "$where",
    "$nin",
    "a.b.$[]",
    r"', $or: [{}], x: '",
    "\u{0}",
    "* : ? [ { } ]",
    r#"{"$regex": ".*"}"#,
];

const TENANT: Option<TenantId> = Some(TenantId(Uuid::from_u128(7)));

fn cursor(node: &str) -> AuditCursor {
    AuditCursor { at: DateTime::<Utc>::UNIX_EPOCH, node: node.to_owned(), number: 3 }
}

/// Whether a document holds one of these words as a key, at any depth.
fn has_key(document: &Document, words: &[&str]) -> bool {
    document.iter().any(|(key, value)| {
        words.contains(&key.as_str())
            || match value {
                Bson::Document(inner) => has_key(inner, words),
                Bson::Array(items) => {
                    items.iter().filter_map(Bson::as_document).any(|inner| has_key(inner, words))
                }
                _ => false,
            }
    })
}

async fn events() -> Events {
    let settings = MongoSettings { url: "mongodb://127.0.0.1:1/".into(), ..Default::default() };
    let clock = Arc::new(SystemClock);
    let layers = Layers::new(BACKEND, &CallSettings::default(), Arc::default(), clock);
    Events::open(&settings, layers).await.unwrap()
}

#[tokio::test]
async fn every_filter_names_the_tenant_first_and_joins_the_rest_to_it() {
    let events = events().await;
    let own = events.of(TENANT);
    let place = cursor("node-1");
    for condition in [
        Condition::Every,
        Condition::Node("n"),
        Condition::Range("n", (1, 2)),
        Condition::Before(&place),
        Condition::Times(Times::default()),
        Condition::NodeTimes("n", Times::default()),
    ] {
        let filter = own.own(&condition);
        assert_eq!(filter.len(), 1, "{filter}");
        let joined = filter.get_array("$and").unwrap();
        let tenant = doc! { "tenant": "00000000-0000-0000-0000-000000000007" };
        assert_eq!(joined[0], Bson::Document(tenant), "{filter}");
        assert_eq!(joined.len(), 2);
    }
}

#[tokio::test]
async fn what_a_caller_wrote_stays_a_string_in_filters_and_documents() {
    let events = events().await;
    let own = events.of(TENANT);
    for hostile in HOSTILE {
        let place = cursor(hostile);
        for condition in [
            Condition::Node(hostile),
            Condition::Range(hostile, (0, 1)),
            Condition::Before(&place),
            Condition::NodeTimes(hostile, Times::default()),
        ] {
            let filter = own.own(&condition);
            assert!(!has_key(&filter, &[hostile, "$ne", "$where", "$regex"]), "{filter}");
        }
        let entry = AuditEntry::new(AuditKind::Query, hostile.to_owned(), Decision::Allowed)
            .because(hostile)
            .asking_for([hostile])
            .with_ids([hostile]);
        let at = DateTime::<Utc>::UNIX_EPOCH;
        let event = AuditEvent { tenant: TENANT, principal: hostile.to_owned(), at, entry };
        let mut tip = Tip::START;
        let sealed = tip.seal(hostile, AuditRecord::new(&event, "", 0), BACKEND).unwrap();
        let document = EventDocument::new(&own.tenant, hostile, &sealed).unwrap();
        let document = serialize_to_document(&document).unwrap();
        let only_values = document.values().all(|value| matches!(value, Bson::String(_) | Bson::Int64(_)));
        assert!(only_values && !has_key(&document, &[hostile]), "{document}");
        assert_eq!(EventDocument::link(document), sealed);
    }
}

#[test]
fn a_document_that_is_not_as_it_was_written_is_no_link_of_a_chain() {
    let whole = doc! { "number": 3_i64, "tenant": "t", "body": { "$ne": Bson::Null } };
    let link = EventDocument::link(whole);
    assert_eq!((link.number, link.body.as_str(), link.hash.len()), (3, "", 0));
}
