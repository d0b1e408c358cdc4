//! A whole server over Neo4j: the same answers as from its own memory, an outage, and what a deletion leaves.

use std::time::{Duration, Instant};

use bulkhead::domain::ids::TenantId;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::Test;
use crate::neo4j_server::{Neo4jServer, PASSWORD, nodes_of, raw};
use crate::whole::{Folder, Tenant, UNLIMITED, Whole};

/// How long something may take that happens by itself.
const PATIENCE: Duration = Duration::from_secs(90);

/// All of them.
pub fn tests() -> Vec<Test> {
    tests![a_server_answers_alike_over_neo4j_and_over_memory_and_leaves_nothing_of_what_is_deleted]
}

const DOCUMENTS: [(&str, &str); 4] = [
    (
        "tern.txt",
        "The Tern was built by Halvorsen Yard for the northern route. Mara Okonjo was its first master.",
    ),
    (
        "halvorsen yard.txt",
        "Halvorsen Yard stands in Port Anselm and employs ninety. The Gull was repaired there.",
    ),
    (
        "port anselm.txt",
        "Port Anselm is a harbour on the east coast. Halvorsen Yard and the Customs House are there.",
    ),
    ("gull.txt", "The Gull was repaired by Mara Okonjo in spring, and sailed for Port Anselm."),
];

const MODES: [&str; 4] = ["local", "global", "hybrid", "mix"];

async fn send(request: reqwest::RequestBuilder) -> Value {
    let answer = request.send().await.expect("an answer");
    let (status, text) = (answer.status(), answer.text().await.expect("a body"));
    assert!(status.is_success(), "{status}: {text}");
    serde_json::from_str(&text).expect("JSON")
}

/// Every answer for which a graph is walked, and where it was.
async fn answers(server: &Whole, tenant: &Tenant) -> (Vec<Value>, Vec<Value>) {
    let (mut data, mut about) = (Vec::new(), Vec::new());
    for mode in MODES {
        let body = json!({"query": "Where was the Tern of Mara Okonjo built?", "mode": mode, "top_k": 20});
        let mut answer = send(server.request("POST", "/query/data", tenant).json(&body)).await;
        assert!(!answer["data"]["relationships"].as_array().expect("a list").is_empty(), "{mode}: {answer}");
        data.push(answer["data"].take());
        about.push(answer["metadata"].take());
    }
    for path in ["/graphs?label=Halvorsen%20Yard&max_depth=2", "/graphs?label=*&max_nodes=5"] {
        let view = send(server.request("GET", path, tenant)).await;
        assert!(!view["edges"].as_array().expect("a list").is_empty(), "{path}: {view}");
        data.push(view);
    }
    (data, about)
}

/// Answers once every graph was walked there.
async fn answers_from(server: &Whole, tenant: &Tenant, place: &str) -> (Vec<Value>, Vec<Value>) {
    let end = Instant::now() + PATIENCE;
    loop {
        let (data, about) = answers(server, tenant).await;
        if about.iter().all(|about| about["graph"] == place) {
            return (data, about);
        }
        assert!(Instant::now() < end, "not from {place}: {about:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn status_counts(server: &Whole, tenant: &Tenant) -> Value {
    send(server.request("GET", "/documents/status_counts", tenant)).await
}

async fn insert(server: &Whole, tenant: &Tenant) {
    for (name, text) in DOCUMENTS {
        let body = json!({"text": text, "file_source": name});
        send(server.request("POST", "/documents/text", tenant).json(&body)).await;
    }
    let end = Instant::now() + PATIENCE;
    while status_counts(server, tenant).await["status_counts"]["processed"] != DOCUMENTS.len() {
        assert!(Instant::now() < end, "not processed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn a_server_answers_alike_over_neo4j_and_over_memory_and_leaves_nothing_of_what_is_deleted() {
    let mut neo4j = tokio::task::spawn_blocking(Neo4jServer::start).await.expect("it starts");
    let folder = Folder::new();
    let further = format!(
        "{UNLIMITED}
        graph.backend = 'neo4j'
        graph.sweep_ms = 200
        graph.upkeep_ms = 1000
        graph.neo4j.url = '{}'
        graph.neo4j.password = '{}'
        graph.neo4j.calls.deadline_ms = 60000
        graph.neo4j.calls.breaker_rest_ms = 200",
        neo4j.url(),
        PASSWORD,
    );
    let server = Whole::start(&folder.0, &further).await;
    let (alice, bob) = (server.tenant().await, server.tenant().await);
    insert(&server, &alice).await;
    insert(&server, &bob).await;
    let (before, _) = answers_from(&server, &alice, "neo4j").await;
    answers_from(&server, &bob, "neo4j").await;

    // Away: the same answers from memory, which say so.
    neo4j.process.kill();
    let (away, about) = answers_from(&server, &alice, "memory").await;
    assert_eq!(away, before);
    assert!(about.iter().all(|about| about["degraded"] == json!(["graph_index"])), "{about:?}");
    let text = json!({"text": "The Petrel was built by Halvorsen Yard.", "file_source": "petrel.txt"});
    send(server.request("POST", "/documents/text", &alice).json(&text)).await;

    // Back: what came meanwhile gets there by itself.
    tokio::task::block_in_place(|| neo4j.restart());
    let end = Instant::now() + PATIENCE;
    let petrel = |data: &[Value]| data.iter().any(|view| view["nodes"].to_string().contains("Petrel"));
    while !petrel(&answers_from(&server, &alice, "neo4j").await.0) {
        assert!(Instant::now() < end, "what came meanwhile is not there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // A document goes, then the tenant.
    let raw = raw(&neo4j.settings()).await;
    let id = |tenant: &Tenant| TenantId(tenant.id.parse().expect("an id"));
    let full = nodes_of(&raw, id(&alice)).await;
    let page = json!({"page": 1, "page_size": 50});
    let listed = send(server.request("POST", "/documents/paginated", &alice).json(&page)).await;
    let all = listed["documents"].as_array().expect("documents").clone();
    let petrel = all.iter().find(|document| document["file_path"] == "petrel.txt").expect("it is there");
    let gone = json!({"doc_ids": [petrel["id"]]});
    send(server.request("DELETE", "/documents/delete_document", &alice).json(&gone)).await;
    fewer(&raw, id(&alice), full).await;
    let gone = json!({"reason": "a test"});
    let path = format!("/admin/tenants/{}", alice.id);
    assert_eq!(server.operator(Method::DELETE, &path, &gone).await.0, StatusCode::ACCEPTED);
    fewer(&raw, id(&alice), 1).await;
    assert!(nodes_of(&raw, id(&bob)).await > 5);
    answers_from(&server, &bob, "neo4j").await;
    server.stop().await;
}

/// Waits until a tenant has fewer nodes.
async fn fewer(raw: &neo4rs::Graph, tenant: TenantId, than: i64) {
    let end = Instant::now() + PATIENCE;
    while nodes_of(raw, tenant).await >= than {
        assert!(Instant::now() < end, "nodes are left");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
