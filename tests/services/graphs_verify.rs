//! `bulkhead verify` and `rebuild` over Neo4j: every fault that can be planted is found by its name and put right, and
//! none is found where others only write.

use std::collections::BTreeMap;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bulkhead::domain::ids::TenantId;
use neo4rs::{Graph, Query};
use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::Test;
use crate::limits::id;
use crate::neo4j_server::{nodes_of, number, raw, shared};
use crate::whole::{Folder, Tenant, UNLIMITED, Whole, program};

/// How long something may take that happens by itself.
const PATIENCE: Duration = Duration::from_secs(90);

/// All of them.
pub fn tests() -> Vec<Test> {
    tests![
        every_planted_fault_of_a_graph_is_found_by_its_name_and_put_right,
        a_graph_that_two_servers_write_to_is_compared_and_written_anew_without_a_false_alarm,
    ]
}

/// A server's settings over a database of its own or this one.
fn settings(database: &str) -> String {
    let neo4j = shared();
    format!(
        "{UNLIMITED}
        database.url = '{database}'
        graph.backend = 'neo4j'
        graph.sweep_ms = 100
        # The upkeep raises an alarm at what is planted here, which is not what is shown.
        graph.upkeep_ms = 3600000
        graph.neo4j.url = '{}'
        graph.neo4j.user = '{}'
        graph.neo4j.password = '{}'
        graph.neo4j.calls.deadline_ms = 60000",
        neo4j.url,
        neo4j.user,
        neo4j.password.expect("a password").expose_secret(),
    )
}

async fn put(server: &Whole, tenant: &Tenant, document: &str, text: &str) {
    let path = format!("/documents/{}", document.replace(' ', "-"));
    let request = server.request("PUT", &path, tenant).header("Prefer", "wait=60");
    let answer = request.json(&json!({"text": text, "title": document})).send().await.expect("an answer");
    assert!(answer.status().is_success(), "{}", answer.status());
}

async fn fill(server: &Whole, tenant: &Tenant) {
    for (document, text) in [
        ("Tern", "The Tern was built by Halvorsen Yard for the northern route."),
        ("Halvorsen Yard", "Halvorsen Yard stands in Port Anselm. The Gull was repaired there."),
        ("Port Anselm", "Port Anselm is a harbour on the east coast, near Halvorsen Yard."),
        ("Gull", "The Gull was repaired by Mara Okonjo in spring."),
    ] {
        put(server, tenant, document, text).await;
    }
}

/// What an operator is answered to a comparison of a tenant's first namespace's graph.
async fn compare(server: &Whole, tenant: &Tenant, repair: bool) -> Value {
    let asked = json!({"repair": repair, "index": "graph", "reason": "a test"});
    let path = format!("/admin/tenants/{}/verify", tenant.id);
    let (status, body) = server.operator(Method::POST, &path, &asked).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    answer["namespace"].clone()
}

/// Findings by name, with how many there are and whether they were put right.
fn found(namespace: &Value) -> BTreeMap<String, (i64, bool)> {
    let findings = namespace["findings"].as_array().expect("findings").iter();
    let state = |finding: &Value| {
        (finding["count"].as_i64().expect("a count"), finding["repaired"].as_bool().expect("whether"))
    };
    findings.map(|finding| (finding["kind"].as_str().expect("a kind").to_owned(), state(finding))).collect()
}

/// Digests of the record and of the index.
fn digests(namespace: &Value) -> (String, String) {
    let stores = namespace["stores"].as_array().expect("stores");
    assert_eq!(
        stores.iter().map(|held| (held["index"].clone(), held["store"].clone())).collect::<Vec<_>>(),
        [(json!("graph"), json!("postgres")), (json!("graph"), json!("neo4j"))]
    );
    assert!(stores.iter().all(|held| held["count"].as_i64().expect("a count") > 0), "{stores:?}");
    let digest = |at: usize| stores[at]["digest"].as_str().expect("a digest").to_owned();
    (digest(0), digest(1))
}

/// Faults: what is done with a tenant's graph, and what is found then. Another tenant is `$other`, with label `%O`.
const FAULTS: [(&str, &str); 12] = [
    ("MATCH (c:Chunk:%T) WITH c LIMIT 1 DETACH DELETE c RETURN 1 AS n", "missing_nodes"),
    ("MATCH (e:Entity:%T) WITH e LIMIT 1 DETACH DELETE e RETURN 1 AS n", "missing_nodes"),
    ("MATCH (:Chunk:%T)-[m:MENTIONS]->() WITH m LIMIT 1 DELETE m RETURN 1 AS n", "changed_nodes"),
    ("MATCH (c:Chunk:%T) WITH c LIMIT 1 SET c.mark = c.mark + 1 RETURN 1 AS n", "changed_nodes"),
    ("MATCH (h:Head:%T) SET h.chunks = h.chunks + 1 RETURN 1 AS n", "changed_nodes"),
    (
        "MATCH (h:Head:%T) CREATE (:Entity:%T {tenant_id: $tenant, namespace_id: h.namespace_id, key: 1}) RETURN 1 AS n",
        "extra_nodes",
    ),
    (
        "MATCH (h:Head:%T) CREATE (:Canary:%T {tenant_id: $tenant, namespace_id: h.namespace_id}) RETURN 1 AS n",
        "extra_nodes",
    ),
    (
        "MATCH (c:Chunk:%T)-[m:MENTIONS]->(e) WITH c, m, e LIMIT 1
      CREATE (c)-[r:MENTIONS]->(e) SET r = properties(m) RETURN 1 AS n",
        "doubled_nodes",
    ),
    ("MATCH (c:Chunk:%T) WITH c LIMIT 1 SET c.key = 'no identity' RETURN 1 AS n", "damaged_graph"),
    (
        "MATCH (h:Head:%T) CREATE (:Chunk:%T {tenant_id: $other, namespace_id: h.namespace_id, key: '1'}) RETURN 1 AS n",
        "foreign_nodes",
    ),
    (
        "MATCH (h:Head:%T) CREATE (:Chunk:%O {tenant_id: $tenant, namespace_id: h.namespace_id, key: '1'}) RETURN 1 AS n",
        "foreign_nodes",
    ),
    (
        "MATCH (c:Chunk:%T), (x:Chunk:%O) WITH c, x LIMIT 1
      CREATE (c)-[:MENTIONS {tenant_id: $tenant, namespace_id: c.namespace_id}]->(x) RETURN 1 AS n",
        "foreign_nodes",
    ),
];

async fn plant(raw: &Graph, text: &str, tenant: TenantId, other: TenantId) {
    let label = |tenant: TenantId| format!("T_{}", tenant.0.simple());
    let query = Query::new(text.replace("%T", &label(tenant)).replace("%O", &label(other)));
    let query = query.param("tenant", tenant.to_string()).param("other", other.to_string());
    assert_eq!(number(raw, query).await, 1, "{text}");
}

fn report(output: &Output, code: i32) -> Value {
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{complaint} {}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

async fn every_planted_fault_of_a_graph_is_found_by_its_name_and_put_right() {
    let (folder, raw) = (Folder::new(), raw(&shared()).await);
    let server = Whole::start(&folder.0, &settings("")).await;
    let (alice, bob) = (server.tenant().await, server.tenant().await);
    for tenant in [&alice, &bob] {
        fill(&server, tenant).await;
    }
    let id = |tenant: &Tenant| TenantId(tenant.id.parse().expect("an id"));
    let sound = compare(&server, &alice, false).await;
    let whole = nodes_of(&raw, id(&alice)).await;
    assert_eq!(found(&sound), BTreeMap::new());
    let (record, index) = digests(&sound);
    assert_eq!(record, index);
    for (text, kind) in FAULTS {
        let other = id(&bob);
        plant(&raw, text, id(&alice), other).await;
        let wrong = compare(&server, &alice, false).await;
        assert!(
            found(&wrong).get(kind).is_some_and(|(count, repaired)| *count > 0 && !repaired),
            "{text}: {wrong}"
        );
        if !["foreign_nodes", "damaged_graph"].contains(&kind)
            && !text.contains("Canary")
            && !text.contains("h.chunks +")
        {
            let (record, index) = digests(&wrong);
            assert_ne!(record, index, "{text}");
        }
        // Looked at, and left as it was.
        assert!(found(&compare(&server, &alice, false).await).contains_key(kind), "{text}");
        // What lies between the two is somebody else's to both.
        let mut neighbour = found(&compare(&server, &bob, false).await);
        if kind == "foreign_nodes" {
            neighbour.remove(kind);
        }
        assert_eq!(neighbour, BTreeMap::new(), "{text}: a neighbour's");
        let repaired = compare(&server, &alice, true).await;
        assert!(found(&repaired).values().all(|(_, repaired)| *repaired), "{text}: {repaired}");
        assert_eq!(found(&compare(&server, &bob, false).await), BTreeMap::new(), "{text}");
        let after = compare(&server, &alice, false).await;
        assert_eq!(
            (found(&after), digests(&after)),
            (BTreeMap::new(), (record.clone(), record.clone())),
            "{text}"
        );
        assert_eq!(nodes_of(&raw, id(&alice)).await, whole, "{text}: nothing is left of it");
    }
    // The command says it by its exit code, and without a server too.
    let fault = "MATCH (c:Chunk:%T) WITH c LIMIT 1 DETACH DELETE c RETURN 1 AS n";
    plant(&raw, fault, id(&alice), id(&bob)).await;
    let wrong = report(&server.program(&["verify", "--tenant", &alice.id, "--json"]).await, 3);
    assert_eq!(wrong["findings"][0]["finding"], "missing_nodes", "{wrong}");
    let base = server.base();
    server.stop().await;
    let run = async |arguments: &[&str]| program(&base, arguments).await;
    report(&run(&["verify", "--tenant", &alice.id, "--index", "vectors", "--json"]).await, 0);
    report(&run(&["verify", "--tenant", &alice.id, "--index", "graph", "--json"]).await, 3);
    let rebuilt = report(&run(&["rebuild", "--tenant", &alice.id, "--index", "graph", "--json"]).await, 0);
    assert_eq!(rebuilt.as_array().map(Vec::len), Some(1), "{rebuilt}");
    assert_eq!(report(&run(&["verify", "--json"]).await, 0)["findings"], json!([]));
    assert_eq!(nodes_of(&raw, id(&alice)).await, whole);
}

/// Writes until it is told to stop; how often.
async fn write(server: &Whole, tenant: &Tenant, stop: &AtomicBool) -> usize {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        // Another title each time: what others name changes with it.
        put(
            server,
            tenant,
            &format!("Boat {}", round % 3),
            &format!("Round {round} of Mara Okonjo to Port Anselm."),
        )
        .await;
        let path = format!("/documents/Boat-{}", (round + 1) % 3);
        let gone = server.request("DELETE", &path, tenant).send().await.expect("an answer");
        assert!(gone.status().is_success() || gone.status() == StatusCode::NOT_FOUND, "{}", gone.status());
        round += 1;
    }
    round
}

async fn a_graph_that_two_servers_write_to_is_compared_and_written_anew_without_a_false_alarm() {
    let folder = Folder::new();
    let first = Whole::start(&folder.0.join("node-1"), &settings("")).await;
    let second = first.beside(&folder.0.join("node-2"), &settings(&first.database_url())).await;
    let alice = first.tenant().await;
    fill(&first, &alice).await;
    let stop = AtomicBool::new(false);
    let work = async {
        for round in 0..12 {
            let server = if round % 2 == 0 { &first } else { &second };
            let compared = compare(server, &alice, false).await;
            assert_eq!(found(&compared), BTreeMap::new(), "{round}");
            let (record, index) = digests(&compared);
            assert_eq!(record, index, "{round}");
            if round % 4 == 3 {
                let asked = json!({"index": "graph", "reason": "a test"});
                let path = format!("/admin/tenants/{}/rebuild", alice.id);
                let (status, body) = server.operator(Method::POST, &path, &asked).await;
                assert_eq!(status, StatusCode::OK, "{body}");
            }
        }
        stop.store(true, Ordering::Relaxed);
    };
    let ((), here, there) = tokio::join!(work, write(&first, &alice, &stop), write(&second, &alice, &stop));
    assert!(here > 3 && there > 3, "there were writes meanwhile: {here} {there}");
    let question = json!({"query": "Who repaired the Gull of Port Anselm?", "mode": "mix"});
    let end = Instant::now() + PATIENCE;
    loop {
        let (_, _, answer) = first.post("/query/data", &alice, &question).await;
        if answer["metadata"]["graph"] == "neo4j" {
            break;
        }
        assert!(Instant::now() < end, "the graph is not used again: {answer}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let unknown = json!({"index": "nothing", "reason": id().to_string()});
    let path = format!("/admin/tenants/{}/verify", alice.id);
    let (status, _) = first.operator(Method::POST, &path, &unknown).await;
    assert!(status.is_client_error(), "{status}");
    second.stop().await;
    first.stop().await;
}
