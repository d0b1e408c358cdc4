//! What operators see: metrics on a port of their own, probes, and tenants side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use regex::Regex;
use serde_json::{Value, json};

use crate::crashes::child::Ground;
use crate::oracle::assert_without;
use crate::server::{PATIENCE, TestServer, new_folder, random, server};

/// The page of metrics.
async fn page(server: &TestServer) -> String {
    let url = format!("{}/metrics", server.metrics.as_ref().expect("metrics are served"));
    let answer = reqwest::get(url).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let media_type = answer.headers()["content-type"].to_str().expect("a text").to_owned();
    assert!(media_type.starts_with("application/openmetrics-text"), "{media_type}");
    answer.text().await.expect("a page")
}

/// The values of a label, over all metrics of a page.
fn values(page: &str, label: &str) -> BTreeSet<String> {
    let start = format!("{label}=\"");
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let values = lines.filter_map(|line| {
        let (_, rest) = line.split_once(&start)?;
        Some(rest.split('"').next()?.to_owned())
    });
    values.collect()
}

/// The number in the line that begins so.
fn number(page: &str, start: &str) -> f64 {
    let line = page.lines().find(|line| line.starts_with(start));
    let line = line.unwrap_or_else(|| panic!("no {start} in {page}"));
    line.rsplit(' ').next().and_then(|number| number.parse().ok()).expect("a number")
}

/// The names under which a page's metrics are asked for.
fn exported(page: &str) -> BTreeSet<String> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let names = types.flat_map(|(name, kind)| match kind {
        "counter" => vec![format!("{name}_total")],
        "histogram" => ["bucket", "sum", "count"].map(|part| format!("{name}_{part}")).to_vec(),
        _ => vec![name.to_owned()],
    });
    names.collect()
}

/// Every expression in the dashboard: of its panels, and of what can be picked.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let asked = [fields.get("expr"), fields.get("query")].into_iter().flatten();
            found.extend(asked.filter_map(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| expressions(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

/// The rules, each by the values of its fields. Every line has the one form that it may have there.
fn rules(file: &str) -> Vec<BTreeMap<String, String>> {
    let mut lines = file.lines().filter(|line| !line.starts_with('#'));
    for head in ["groups:", "  - name: bulkhead", "    rules:"] {
        assert_eq!(lines.next(), Some(head));
    }
    let mut rules: Vec<BTreeMap<String, String>> = Vec::new();
    for line in lines {
        let indent = line.len() - line.trim_start().len();
        let (name, value) = line.trim().split_once(':').unwrap_or_else(|| panic!("no field: {line}"));
        let value = value.trim();
        match (indent, name) {
            (6, "- alert") => rules.push(BTreeMap::new()),
            (8, "labels" | "annotations") => {
                assert!(value.is_empty(), "{line}");
                continue;
            }
            (8, "expr" | "for") => {}
            (10, "severity") => assert!(["critical", "warning", "info"].contains(&value), "{line}"),
            (10, "summary" | "description") => {
                let inside = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
                assert!(inside.is_some_and(|inside| !inside.contains(['"', '\\'])), "{line}");
            }
            _ => panic!("not of a rule: {line}"),
        }
        let known = rules.last_mut().expect("a rule").insert(name.to_owned(), value.to_owned());
        assert!(known.is_none() && !value.is_empty(), "{line}");
    }
    rules
}

fn every_metric_of_the_dashboard_and_the_rules_is_exported(page: &str) {
    let exported = exported(page);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("a file");
    let dashboard: Value = serde_json::from_str(&read("grafana-dashboard.json")).expect("JSON");
    let mut asked = Vec::new();
    expressions(&dashboard, &mut asked);
    assert!(
        asked.iter().any(|query| query == "label_values(bulkhead_tenant_requests_total, tenant)"),
        "{asked:?}"
    );
    let rules = rules(&read("alerts.yml"));
    assert!(rules.len() > 8, "{rules:?}");
    for rule in &rules {
        for field in ["- alert", "expr", "severity", "summary", "description"] {
            assert!(rule.contains_key(field), "{field} in {rule:?}");
        }
        asked.push(rule["expr"].clone());
    }
    let name = Regex::new("(?:bulkhead|process)_[a-z0-9_]+").expect("a pattern");
    let mut named = BTreeSet::new();
    for expression in &asked {
        let balance = |open, close| expression.matches(open).count() == expression.matches(close).count();
        assert!(balance('(', ')') && balance('{', '}') && balance('[', ']'), "{expression}");
        named.extend(name.find_iter(expression).map(|found| found.as_str().to_owned()));
    }
    let mut missing: Vec<&String> = named.difference(&exported).collect();
    if !crate::server::is_on_services() {
        missing.retain(|name| !name.starts_with("bulkhead_store_"));
    }
    assert_eq!(missing, Vec::<&String>::new(), "asked for and not exported");
    assert!(named.len() > 40, "{named:?}");
}

#[tokio::test]
async fn metrics_are_on_a_port_of_their_own_with_bounded_labels_and_hold_no_text() {
    const TENANTS: usize = 6;
    let start = || {
        let further = "embedding.model = 'hashing'\ntelemetry.metrics_address = '127.0.0.1:0'\n\
                       telemetry.named_tenants = 3\nlimits.tenant.documents = 3\n";
        TestServer::start(&new_folder("metrics"), further)
    };
    let server = tokio::task::spawn_blocking(start).await.expect("a server");
    let mark = random(16);
    let word = |what: &str| format!("{what}{mark}");
    let mut ids = BTreeSet::new();
    for n in 0..TENANTS {
        let tenant = server.tenant(&format!("name{mark}")).await;
        let text = format!("The word of the document is {}.", word("document"));
        tenant.writer.put_document(&word("id"), &word("title"), &text).await;
        let question = json!({"query": format!("Is {} the word of {}?", word("question"), word("document"))});
        tenant.reader.post("/query", &question, 200).await;
        tenant.reader.get(&format!("/documents/{}", word("missing")), 404).await;
        tenant.reader.get(&format!("/{}", word("path")), 404).await;
        for copy in 0..n {
            tenant.writer.send("PUT", &format!("/documents/copy-{copy}"), &json!({"text": text})).await;
        }
        ids.insert(tenant.id);
    }
    server.caller(&word("bk_")).get("/namespaces", 401).await;

    let until = Instant::now() + PATIENCE;
    let page = loop {
        let page = page(&server).await;
        // What tenants keep is read every ten seconds.
        if number(&page, "bulkhead_tenant_documents{tenant=\"other\"}") > 0.0 {
            break page;
        }
        assert!(Instant::now() < until, "{page}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let tenants = values(&page, "tenant");
    assert_eq!(tenants.len(), 4, "three are named, the others are other: {tenants:?}");
    assert!(tenants.iter().all(|tenant| tenant == "other" || ids.contains(tenant)), "{tenants:?}");
    for status in values(&page, "status") {
        assert!(["2xx", "4xx"].contains(&status.as_str()), "{status}");
    }
    let routes = values(&page, "route");
    assert!(routes.contains("/documents/{id}") && routes.contains("none"), "{routes:?}");
    let mut canaries =
        ["document", "id", "title", "question", "missing", "path", "name", "bk_"].map(word).to_vec();
    canaries.push(mark.clone());
    assert_without(&page, canaries.iter().map(String::as_str), "the page of metrics");

    let at_least = |start: &str, least: f64| assert!(number(&page, start) >= least, "{start}\n{page}");
    let asked = "bulkhead_http_requests_total{method=\"POST\",route=\"/query\",status=\"2xx\"}";
    at_least(asked, 6.0);
    at_least("bulkhead_http_request_seconds_count{method=\"POST\",route=\"/query\"}", 6.0);
    at_least("bulkhead_problems_total{slug=\"not-found\"}", 12.0);
    at_least("bulkhead_problems_total{slug=\"unauthorized\"}", 1.0);
    at_least("bulkhead_limit_refusals_total{limit=\"documents\"}", 1.0);
    at_least("bulkhead_questions_total{mode=\"mix\",outcome=\"found\"}", 6.0);
    at_least("bulkhead_chunks_total", 6.0);
    at_least("bulkhead_documents_processed_total", 6.0);
    at_least("bulkhead_ingestion_seconds_total{stage=\"embedding\"}", 0.0);
    at_least("bulkhead_embedded_texts_total{model=\"hashing\",session=\"documents\"}", 6.0);
    at_least("bulkhead_embedded_texts_total{model=\"hashing\",session=\"questions\"}", 6.0);
    at_least("bulkhead_projected_points_total", 1.0);
    at_least("bulkhead_audit_events_written_total", 6.0);
    at_least("bulkhead_pool_connections{pool=\"query\",state=\"idle\"}", 0.0);
    if !crate::server::is_on_services() {
        at_least("bulkhead_open_shards", 1.0);
    }
    at_least("bulkhead_ready", 1.0);
    at_least("process_resident_memory_bytes", 1e6);
    at_least("process_open_fds", 10.0);
    at_least("bulkhead_tenant_errors_total{tenant=\"other\"}", 6.0);
    at_least("bulkhead_tenant_bytes{tenant=\"other\"}", 100.0);
    for none in ["bulkhead_alarms_total{kind=\"request_stopped\"}", "bulkhead_audit_events_lost_total"] {
        assert!(number(&page, none) < 0.5, "{none}");
    }
    assert!(page.ends_with("# EOF\n"));

    every_metric_of_the_dashboard_and_the_rules_is_exported(&page);

    // The port has no other route, and tenants' address has not this one.
    let metrics = server.metrics.clone().expect("an address");
    let status = async |path: &str| {
        reqwest::get(format!("{metrics}{path}")).await.expect("an answer").status().as_u16()
    };
    assert_eq!((status("/ready").await, status("/health").await), (200, 200));
    for path in ["/namespaces", "/admin/tenants", "/openapi.json", "/query", "/"] {
        assert_eq!(status(path).await, 404, "{path}");
    }
    server.anybody().get("/metrics", 404).await;
    tokio::task::spawn_blocking(move || server.stop()).await.expect("stopped");
}

#[tokio::test]
async fn a_tenants_metrics_tell_its_requests_errors_times_queue_and_bytes_and_nobody_elses() {
    let (alice, bob) = server().tenants().await;
    alice.writer.put_document("kept", "Kept", "Twelve bytes and some more are kept here.").await;
    for _ in 0..5 {
        alice.reader.get("/documents/status_counts", 200).await;
    }
    alice.reader.get("/documents/none-such", 404).await;
    let operator = server().operator();
    let metrics = operator.get(&format!("/admin/tenants/{}/metrics", alice.id), 200).await;
    let recent = &metrics["recent"];
    assert_eq!((&recent["requests"], &recent["errors"]), (&json!(7), &json!(1)), "{metrics}");
    let time = |name: &str| recent[name].as_f64().unwrap_or_else(|| panic!("{name} in {metrics}"));
    assert!(time("p50_ms") > 0.0 && time("p50_ms") <= time("p95_ms") && time("p95_ms") <= time("p99_ms"));
    assert_eq!((&metrics["documents"], &metrics["queued_jobs"]), (&json!(1), &json!(0)), "{metrics}");
    assert_eq!(metrics["bytes"], 41, "{metrics}");
    let idle = operator.get(&format!("/admin/tenants/{}/metrics", bob.id), 200).await;
    assert_eq!((&idle["recent"]["requests"], &idle["bytes"]), (&json!(0), &json!(0)), "{idle}");
    assert_eq!(idle["recent"]["p50_ms"], Value::Null);
    let nobody = "/admin/tenants/00000000-0000-4000-8000-000000000000/metrics";
    operator.get(nobody, 404).await;
    operator.get("/admin/top?by=beauty", 422).await;
    operator.get("/admin/top?limit=0", 422).await;
}

#[tokio::test]
async fn a_tenant_above_twice_the_median_of_a_resource_is_named_by_tenant_top() {
    let folder = new_folder("top");
    let base = folder.clone();
    let start = move || TestServer::start(&base, "embedding.model = 'hashing'\n");
    let server = tokio::task::spawn_blocking(start).await.expect("a server");
    let mut tenants = Vec::new();
    for size in [10, 11, 12, 30] {
        let tenant = server.tenant("tenant").await;
        tenant.writer.put_document("only", "Only", &"word ".repeat(size)).await;
        tenants.push(tenant);
    }
    for _ in 0..30 {
        tenants[0].reader.get("/documents/status_counts", 200).await;
    }
    let top = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command.arg("--config").arg(folder.join("settings.toml")).args(["tenant", "top"]).args(arguments);
        let output = command.env_remove("DATABASE_URL").output().expect("it starts");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let json = |arguments: &[&str]| -> Value {
        serde_json::from_str(&top(&[arguments, &["--json"]].concat())).expect("JSON")
    };
    let by_bytes = json(&["--by", "bytes", "--limit", "2"]);
    let listed = by_bytes["tenants"].as_array().expect("tenants");
    let ids: Vec<&Value> = listed.iter().map(|tenant| &tenant["tenant_id"]).collect();
    assert_eq!(ids, [&json!(tenants[3].id), &json!(tenants[2].id)], "{by_bytes}");
    let above = |tenant: &Value, resource: &str| {
        tenant["above_twice_the_median"].as_array().expect("a list").contains(&json!(resource))
    };
    assert!(above(&listed[0], "bytes") && !above(&listed[1], "bytes"), "{by_bytes}");
    assert_eq!(by_bytes["medians"]["bytes"], 57.5, "{by_bytes}");
    let by_requests = json(&[]);
    let first = &by_requests["tenants"][0];
    assert_eq!(first["tenant_id"], json!(tenants[0].id), "{by_requests}");
    assert!(above(first, "requests") && !above(first, "bytes"), "{by_requests}");
    let shown = top(&["--by", "bytes"]);
    let line = shown.lines().find(|line| line.starts_with(&tenants[3].id)).expect("its line");
    assert!(line.ends_with("bytes"), "{shown}");
    tokio::task::spawn_blocking(move || server.stop()).await.expect("stopped");
}

#[tokio::test]
async fn readiness_follows_the_database_and_liveness_does_not() {
    let ground = Ground::new("hashing").await;
    let server = ground.start(None).await;
    let status = async |path: &str| {
        let answer = ground.http.get(format!("{}{path}", server.url())).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a text"))
    };
    let (code, said) = status("/ready").await;
    assert_eq!((code, said.as_str()), (200, r#"{"status":"ready"}"#));
    let alive = status("/health").await;
    let becomes = async |wanted: u16| {
        let until = Instant::now() + PATIENCE;
        while status("/ready").await.0 != wanted {
            assert!(Instant::now() < until, "/ready never says {wanted}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    ground.halt_postgres(true);
    becomes(503).await;
    assert_eq!(status("/health").await, alive, "it lives all the same, and says nothing else");
    let said = status("/ready").await.1;
    for word in ["postgres", "database", "pool"] {
        assert!(!said.to_lowercase().contains(word), "{said}");
    }
    ground.halt_postgres(false);
    becomes(200).await;
    assert!(server.terminate().success());
}
