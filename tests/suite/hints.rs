//! Tenants named by host, header, body, query and path, over plain sockets: none of it selects one.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::server::{Tenant, TestServer, new_folder, random_id};

/// A server that knows tenants by host name. Its proxies are elsewhere, unless `trusting` says so.
async fn server(trusting: bool) -> TestServer {
    let proxies = if trusting { "127.0.0.0/8" } else { "10.0.0.0/8" };
    let further = format!(
        "embedding.model = 'hashing'
        auth.hosts = ['{{slug}}.base.example', 'app.{{slug}}.base.example']
        auth.trusted_proxies = ['{proxies}']"
    );
    let start = move || TestServer::start(&new_folder("hosts"), &further);
    tokio::task::spawn_blocking(start).await.expect("a server")
}

async fn stop(server: TestServer) {
    tokio::task::spawn_blocking(move || server.stop()).await.expect("stopped");
}

/// The status, the headers but for those that differ in any two answers, and the body without its request id.
type Seen = (u16, BTreeMap<String, String>, String);

/// Sends the lines of a head as they are.
async fn raw(server: &TestServer, lines: &[String]) -> Seen {
    let address = server.url.strip_prefix("http://").expect("an address");
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let head = format!("{}\r\nConnection: close\r\n\r\n", lines.join("\r\n"));
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("read");
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).expect("a status");
    let mut headers: BTreeMap<String, String> = lines
        .map(|line| line.split_once(": ").expect("a header"))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    // The HTTP library refuses some heads before the server sees them; those answers have no id.
    let id = headers.remove("x-request-id").unwrap_or_else(|| "no id".to_owned());
    headers.remove("date");
    (status, headers, body.replace(&id, "ID"))
}

fn get(tenant: &Tenant, lines: &[String]) -> Vec<String> {
    let mut all = vec!["GET /auth/verify HTTP/1.1".to_owned()];
    all.extend_from_slice(lines);
    all.push(format!("X-API-Key: {}", tenant.admin_key.secret));
    all
}

fn slug(seen: &Seen) -> String {
    let body: Value = serde_json::from_str(&seen.2).unwrap_or_default();
    body["slug"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_host_name_can_only_agree_with_the_credential() {
    let server = server(false).await;
    let (alice, bob) = server.tenants().await;
    let suspended = server.tenant("carol").await;
    let path = format!("/admin/tenants/{}/suspend", suspended.id);
    server.operator().post(&path, &json!({"reason": "a test"}), 200).await;
    let host = |name: &str| format!("Host: {name}");
    let (hers, his) = (format!("{}.base.example", alice.slug), format!("{}.base.example", bob.slug));
    for agreeing in [
        vec![host(&hers)],
        vec![host(&hers.to_uppercase())],
        vec![host(&format!("{hers}."))],
        vec![host(&format!("app.{hers}:9621"))],
        vec![host("elsewhere.example")],
        vec![host(&hers), format!("X-Tenant-ID: {}", alice.slug.to_uppercase())],
        vec![host(&hers), format!("X-Tenant-ID: {}", alice.id), format!("X-Tenant-ID: {}", alice.id)],
        // Nobody asked this peer.
        vec![host(&hers), format!("X-Forwarded-Host: {his}")],
        vec![host(&hers), "Forwarded: host=nonsense".to_owned()],
    ] {
        let seen = raw(&server, &get(&alice, &agreeing)).await;
        assert_eq!(seen.0, 200, "{agreeing:?}: {}", seen.2);
    }
    let nobody = format!("{}-zzzzzzzz.base.example", &bob.slug[..bob.slug.len() - 9]);
    let others: Vec<Vec<String>> = vec![
        vec![host(&his)],
        vec![host(&his.to_uppercase())],
        vec![host(&format!("{his}."))],
        vec![host(&format!("app.{his}:9621"))],
        vec![host(&nobody)],
        vec![host(&format!("{}.base.example", suspended.slug))],
        vec![host(&hers), format!("X-Tenant-ID: {}", bob.id)],
        vec![host(&hers), format!("X-Tenant-ID: {}", bob.id.to_uppercase())],
        vec![host(&hers), format!("x-tenant-id: {}", suspended.id)],
        vec![host(&hers), format!("X-TENANT-ID: {}", random_id())],
        // Each of them agrees with somebody.
        vec![host(&his), format!("X-Tenant-ID: {}", alice.id)],
    ];
    let mut first: Option<Seen> = None;
    for other in others {
        let seen = raw(&server, &get(&alice, &other)).await;
        assert_eq!((seen.0, slug(&seen).as_str()), (403, "tenant-mismatch"), "{other:?}: {}", seen.2);
        assert_eq!(&seen, first.get_or_insert_with(|| seen.clone()), "{other:?}");
    }
    for malformed in [
        vec![host(&hers), host(&his)],
        vec![host(&his), host(&hers)],
        vec![host(&hers), host("localhost")],
        vec![host(&format!("{hers},{his}"))],
        vec![host(&hers), format!("X-Tenant-ID: {}", alice.id), format!("X-Tenant-ID: {}", bob.id)],
        vec![host(&hers), format!("X-Tenant-ID: {}, {}", alice.id, bob.id)],
        vec![host(&hers), format!("X-Tenant-ID: {}.", alice.slug)],
        vec![host(&hers), "X-Tenant-ID: ../other".to_owned()],
    ] {
        let seen = raw(&server, &get(&alice, &malformed)).await;
        assert_eq!(seen.0, 400, "{malformed:?}: {}", seen.2);
    }
    stop(server).await;
}

#[tokio::test]
async fn a_forwarded_host_counts_when_a_trusted_proxy_says_it() {
    let server = server(true).await;
    let (alice, bob) = server.tenants().await;
    let forwarded =
        |names: &str| vec!["Host: inside.example".to_owned(), format!("X-Forwarded-Host: {names}")];
    let (hers, his) = (format!("{}.base.example", alice.slug), format!("{}.base.example", bob.slug));
    assert_eq!(raw(&server, &get(&alice, &forwarded(&hers))).await.0, 200);
    let seen = raw(&server, &get(&alice, &forwarded(&his))).await;
    assert_eq!((seen.0, slug(&seen).as_str()), (403, "tenant-mismatch"));
    for names in [format!("{hers}, {his}"), format!("{his}, {hers}")] {
        let seen = raw(&server, &get(&alice, &forwarded(&names))).await;
        assert_eq!((seen.0, slug(&seen).as_str()), (400, "tenant-hint-malformed"), "{names}");
    }
    stop(server).await;
}
