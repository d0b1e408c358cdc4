//! Any JSON body on any operation is answered by 2xx or 4xx: made up wholly, or a right one with something wrong in it.
//!
//! `PROPTEST_CASES` says how many bodies each operation gets.

use std::cell::Cell;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use crate::calls::{Ids, calls};
use crate::operations::{Operation, operations};
use crate::server::{Client, TestServer, new_folder};

/// Bodies for each operation where the environment says nothing.
const CASES: u32 = 40;

fn text() -> impl Strategy<Value = String> {
    let odd = ["", " ", "\0", "default", "mix", "x", "0", "-1", "../..", "\u{202e}", "a b", "🜂", "doc-1"];
    prop_oneof![
        select(odd.to_vec()).prop_map(str::to_owned),
        ".{0,24}",
        (any::<char>(), 1..3000_usize).prop_map(|(character, times)| character.to_string().repeat(times)),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-3..300_i64).prop_map(Value::from),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number,
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 32, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            btree_map(text(), inner, 0..6).prop_map(|fields| fields.into_iter().collect::<Value>()),
        ]
    })
}

/// What may be wrong with a body that was right.
#[derive(Debug, Clone)]
enum Fault {
    Without(Index),
    With(Index, Value),
    Further(String, Value),
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        any::<Index>().prop_map(Fault::Without),
        (any::<Index>(), value()).prop_map(|(at, value)| Fault::With(at, value)),
        (text(), value()).prop_map(|(name, value)| Fault::Further(name, value)),
    ]
}

/// A right body with all that the document says that it may have, and faults in it.
fn faulty(right: &Map<String, Value>, faults: &[Fault]) -> Value {
    let mut body = right.clone();
    for fault in faults {
        let nth = |at: &Index| body.keys().nth(at.index(body.len().max(1))).cloned();
        match fault {
            Fault::Without(at) => nth(at).and_then(|name| body.remove(&name)).map(drop).unwrap_or_default(),
            Fault::With(at, value) => {
                if let Some(name) = nth(at) {
                    body.insert(name, value.clone());
                }
            }
            Fault::Further(name, value) => drop(body.insert(name.clone(), value.clone())),
        }
    }
    Value::Object(body)
}

/// The names of the fields that an operation's body may have, by the OpenAPI document.
fn fields(document: &Value, operation: &Operation) -> Vec<String> {
    let called = &document["paths"][operation.path.as_str()][operation.method.as_str()];
    let mut schema = &called["requestBody"]["content"]["application/json"]["schema"];
    if let Some(reference) = schema["$ref"].as_str() {
        schema = document.pointer(reference.trim_start_matches('#')).expect("the schema is there");
    }
    schema["properties"].as_object().into_iter().flat_map(Map::keys).cloned().collect()
}

/// An operation, whom it is called by, and bodies to begin with.
struct Subject {
    operation: Operation,
    path: String,
    caller: Client,
    right: Map<String, Value>,
}

async fn subjects(server: &TestServer) -> Vec<Subject> {
    let (tenant, acted_on) = server.tenants().await;
    let document = server.anybody().get("/openapi.json", 200).await;
    let mut subjects = Vec::new();
    for operation in operations(server).await {
        let named = Ids { track: "insert_20260101_000000_0".to_owned(), ..Ids::nobody() };
        let ids = Ids { tenant: acted_on.id.clone(), ..Ids::random_like(&named) };
        let known = calls(&operation, &ids).unwrap_or_else(|| panic!("{} is not known", operation.name()));
        let Some(call) = known.into_iter().next() else { continue };
        let mut right = call.body.as_object().cloned().unwrap_or_default();
        for field in fields(&document, &operation) {
            right.entry(field).or_insert(Value::Null);
        }
        let caller = if operation.is_operators() { server.operator() } else { tenant.admin.clone() };
        subjects.push(Subject { operation, path: call.path, caller, right });
    }
    assert!(subjects.iter().filter(|subject| subject.right.len() > 1).count() > 12, "too few take a body");
    subjects
}

#[test]
fn any_body_on_any_operation_is_answered_by_2xx_or_4xx() {
    // Of its own: it makes whatever the bodies ask for.
    let server = TestServer::start(&new_folder("any-body"), "");
    let runtime = Runtime::new().expect("a runtime");
    let subjects = runtime.block_on(subjects(&server));
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    let (answered, done) = (Cell::new(0_u32), Cell::new(0_u32));
    for subject in &subjects {
        let mut runner = TestRunner::new(Config {
            cases,
            failure_persistence: None,
            max_shrink_iters: 200,
            ..Config::default()
        });
        let right = subject.right.clone();
        let bodies = prop_oneof![
            1 => value(),
            4 => vec(fault(), 0..4).prop_map(move |faults| faulty(&right, &faults)),
        ];
        let verdict = runner.run(&bodies, |body| {
            let name = subject.operation.name();
            let answer = runtime.block_on(subject.caller.send(
                &subject.operation.method,
                &subject.path,
                &if body.is_null() { json!([null]) } else { body.clone() },
            ));
            answered.set(answered.get() + 1);
            done.set(done.get() + u32::from((200..300).contains(&answer.status)));
            // A model that writes answers is no part of every server, and its absence is said so.
            let without_model = answer.status == 501 && answer.json()["slug"] == "no-language-model";
            if (200..500).contains(&answer.status) || without_model {
                return Ok(());
            }
            Err(TestCaseError::fail(format!("{name}: {} to {body}: {}", answer.status, answer.text())))
        });
        verdict.unwrap_or_else(|error| panic!("{error}"));
    }
    // Bodies that are all refused would show little.
    assert!(done.get() > answered.get() / 10, "{} of {} were accepted", done.get(), answered.get());
    server.stop();
}
