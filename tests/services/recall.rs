//! What is found does not depend on where it is kept: the same questions of a server over its own stores and of one over
//! all services, with the real model.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::Test;
use crate::nodes::{Node, PATIENCE, Tenant};
use crate::stores::Stores;

const MODES: [&str; 5] = ["naive", "local", "global", "hybrid", "mix"];

/// By how much two scores of one chunk may differ: each index computes its own, in single precision.
const SAME: f64 = 1e-5;

/// All of them.
pub fn tests() -> Vec<Test> {
    tests![every_question_finds_the_same_passages_in_the_same_order_in_both_profiles]
}

fn lines(name: &str) -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/evaluation/passages").join(name);
    let text = std::fs::read_to_string(file).expect("a fixture");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Takes the passages in, and waits until the indexes answer.
async fn filled(node: &Node, graph: &str) -> Tenant {
    let tenant = node.tenant().await;
    let passages = lines("corpus.jsonl");
    for passage in &passages {
        let path = format!("/documents/{}", passage["_id"].as_str().expect("an id"));
        let body = json!({"text": passage["text"], "title": passage["title"]});
        let answer = node.ask(&tenant, "PUT", &path, &body).await;
        assert!(answer.status.is_success(), "{answer:?}");
    }
    node.processed(&tenant, passages.len()).await;
    let question = json!({"query": "Osterkai", "mode": "mix"});
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = node.ask(&tenant, "POST", "/query/data", &question).await;
        if answer.fallback().is_none() && answer.graph() == Some(graph) {
            break;
        }
        assert!(Instant::now() < end, "the indexes never answer: {:?}", answer.body["metadata"]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tenant
}

/// Documents with their scores, in their order, by mode and question, for which graphs are walked there.
async fn found(node: &Node, tenant: &Tenant, graph: &str) -> BTreeMap<(String, String), Vec<(String, f64)>> {
    let mut found = BTreeMap::new();
    for (question, mode) in
        lines("queries.jsonl").iter().flat_map(|question| MODES.map(|mode| (question, mode)))
    {
        let body = json!({"query": question["text"], "mode": mode, "chunk_top_k": 20});
        let answer = node.ask(tenant, "POST", "/query/data", &body).await;
        assert_eq!((answer.status, answer.fallback()), (StatusCode::OK, None), "{answer:?}");
        assert_eq!(answer.graph(), Some(graph).filter(|_| mode != "naive"), "{mode}: {answer:?}");
        let chunks = answer.body["data"]["chunks"].as_array().expect("chunks").iter();
        let chunks = chunks.map(|chunk| {
            let id = chunk["document_id"].as_str().unwrap_or_else(|| panic!("no document: {chunk}"));
            (id.to_owned(), chunk["score"].as_f64().expect("a score"))
        });
        found.insert((mode.to_owned(), question["_id"].to_string()), chunks.collect::<Vec<_>>());
    }
    found
}

/// Names in their order; those of the same score by name, since between them the chunks' numbers decide, which each server
/// draws for itself.
fn ranked(found: &[(String, f64)]) -> Vec<&str> {
    let mut found: Vec<_> = found.iter().map(|(name, score)| (name.as_str(), *score)).collect();
    for tie in found.chunk_by_mut(|one, two| (one.1 - two.1).abs() < SAME) {
        tie.sort_by_key(|(name, _)| *name);
    }
    found.into_iter().map(|(name, _)| name).collect()
}

async fn every_question_finds_the_same_passages_in_the_same_order_in_both_profiles() {
    let stores = Stores::start("recall").await;
    // Neo4j plans each tenant's statements when they are first asked.
    let mut services = Node::start(&stores, "services", "graph.neo4j.calls.deadline_ms = 60000").await;
    let relocated = stores.folder.join("relocated-embedded");
    let settings = format!(
        "database.server.durable = false
        database.server.shared_buffers_mib = 16
        database.server.relocation = '{}'",
        relocated.display()
    );
    let mut embedded = Node::of(&stores.folder, "embedded", &settings);
    embedded.run();
    embedded.ready().await;

    let tenant = filled(&services, "neo4j").await;
    let there = found(&services, &tenant, "neo4j").await;
    let tenant = filled(&embedded, "memory").await;
    let here = found(&embedded, &tenant, "memory").await;
    assert_eq!(here.len(), MODES.len() * lines("queries.jsonl").len());
    for (asked, own) in &here {
        let other = &there[asked];
        assert!(!own.is_empty(), "{asked:?} finds nothing");
        assert_eq!(ranked(own), ranked(other), "{asked:?}: {own:?} and {other:?}");
        let near = own.iter().zip(other).all(|((_, one), (_, two))| (one - two).abs() < SAME);
        assert!(near, "{asked:?}: {own:?} and {other:?}");
    }
    embedded.stop().await;
    services.stop().await;
    stores.stop().await;
}
