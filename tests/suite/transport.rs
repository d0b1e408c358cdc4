//! How requests reach the server: over TLS with a certificate that may change, over the operators' own address,
//! and through a proxy that is believed or not.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead::http::HttpSettings;
use bulkhead::http::settings::TlsSettings;
use bulkhead::tenancy::AuthSettings;
use reqwest::{Certificate, Client, Method, StatusCode};
use serde_json::json;
use tempfile::TempDir;

use crate::site::{Site, send};

/// Writes a new certificate of this machine and its key.
fn certify(folder: &Path) -> Certificate {
    let made =
        rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).expect("made");
    fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).expect("key");
    fs::write(folder.join("chain.pem"), made.cert.pem()).expect("certificate");
    Certificate::from_pem(made.cert.pem().as_bytes()).expect("read")
}

fn over_tls(folder: &Path) -> HttpSettings {
    let tls =
        TlsSettings { certificate: folder.join("chain.pem"), key: folder.join("key.pem"), reload_seconds: 1 };
    let admin_address = Some(([127, 0, 0, 1], 0).into());
    HttpSettings { tls: Some(tls), admin_address, ..HttpSettings::default() }
}

/// A new client, hence a new connection, that believes one certificate.
fn believing(certificate: &Certificate) -> Client {
    Client::builder().no_proxy().tls_certs_only([certificate.clone()]).build().expect("client")
}

/// Whether a handshake with the server ends well.
async fn reached(site: &Site, certificate: &Certificate) -> bool {
    let answer = believing(certificate).get(format!("{}/health", site.url())).send().await;
    answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
}

#[tokio::test]
async fn tls_is_spoken_with_the_configured_certificate_and_plain_http_is_not() {
    let folder = TempDir::new().expect("folder");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (other, own) = (certify(folder.path()), certify(folder.path()));
    let site = Site::with(over_tls(folder.path())).await;
    assert!(site.url().starts_with("https://"));
    assert!(reached(&site, &own).await);
    assert!(!reached(&site, &other).await, "a client that does not believe the certificate goes no further");
    let plain = site.client.get(format!("http://{}/health", site.address())).send().await;
    assert!(plain.is_err() || plain.is_ok_and(|answer| !answer.status().is_success()));

    let alice = site.tenant("Alice").await;
    let url = format!("{}/auth/whoami", site.url());
    let answer = believing(&own).get(url).bearer_auth(&alice.reader).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);

    // Operators' credentials go over TLS too.
    let operators = format!("//{}/admin/tenants", site.admin_address().expect("configured"));
    let listed = believing(&own).get(format!("https:{operators}")).bearer_auth(&site.operator).send().await;
    assert_eq!(listed.expect("an answer").status(), StatusCode::OK);
    assert!(site.client.get(format!("http:{operators}")).send().await.is_err());
    site.stop().await;
}

#[tokio::test]
async fn a_new_certificate_is_taken_up_without_a_restart_and_a_broken_one_is_not() {
    let folder = TempDir::new().expect("folder");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let first = certify(folder.path());
    let site = Site::with(over_tls(folder.path())).await;
    let before = believing(&first);
    let health = format!("{}/health", site.url());
    assert_eq!(before.get(&health).send().await.expect("an answer").status(), StatusCode::OK);

    fs::write(folder.path().join("chain.pem"), "half a certif").expect("written");
    tokio::time::sleep(Duration::from_millis(2200)).await;
    assert!(reached(&site, &first).await, "the one in use stays");

    let second = certify(folder.path());
    let until = Instant::now() + Duration::from_secs(30);
    while !reached(&site, &second).await {
        assert!(Instant::now() < until, "the new certificate is not in use");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!reached(&site, &first).await, "the old one is not shown any more");
    assert_eq!(before.get(&health).send().await.expect("still open").status(), StatusCode::OK);
    site.stop().await;
}

#[tokio::test]
async fn operators_are_served_on_their_own_address_and_nowhere_else() {
    let admin_address = Some(([127, 0, 0, 1], 0).into());
    let site = Site::with(HttpSettings { admin_address, ..HttpSettings::default() }).await;
    let alice = site.tenant("Alice").await;
    let operators = format!("http://{}", site.admin_address().expect("configured"));
    let get = |url: String, key: &str| send(site.client.get(url).bearer_auth(key));
    let listed = get(format!("{operators}/admin/tenants"), &site.operator).await;
    assert_eq!(listed.status, StatusCode::OK);
    assert!(listed.body["tenants"].as_array().expect("tenants").iter().any(|one| one["name"] == "Alice"));
    assert_eq!(
        get(format!("{operators}/admin/tenants"), &alice.admin).await.status,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(get(format!("{operators}/auth/whoami"), &alice.admin).await.status, StatusCode::NOT_FOUND);
    assert_eq!(
        get(format!("{}/admin/tenants", site.url()), &site.operator).await.status,
        StatusCode::NOT_FOUND
    );
    let made = send(
        site.client
            .post(format!("{operators}/admin/tenants"))
            .bearer_auth(&site.operator)
            .json(&json!({"name": "Over TCP", "reason": "a test"})),
    )
    .await;
    assert_eq!(made.status, StatusCode::CREATED);
    site.stop().await;
}

#[tokio::test]
async fn a_forwarded_host_counts_from_a_trusted_proxy_alone() {
    let auth = AuthSettings {
        hosts: vec!["{slug}.base.example".to_owned()],
        trusted_proxies: vec!["127.0.0.1/32".parse().expect("a network")],
        ..AuthSettings::default()
    };
    let site = Site::with_auth(HttpSettings { behind_proxy: true, ..HttpSettings::default() }, auth).await;
    let (alice, bob) = (site.tenant("Alice").await, site.tenant("Bob").await);
    let from = |last: u8| {
        let address = IpAddr::from(Ipv4Addr::new(127, 0, 0, last));
        Client::builder().no_proxy().local_address(address).build().expect("client")
    };
    let asked = async |client: &Client, host: Option<String>| {
        let mut request =
            client.request(Method::GET, format!("{}/auth/whoami", site.url())).bearer_auth(&alice.reader);
        if let Some(host) = host {
            request = request.header("X-Forwarded-Host", host);
        }
        send(request).await
    };
    let host = |slug: &str| Some(format!("{slug}.base.example"));
    let (proxy, stranger) = (from(1), from(2));
    for client in [&proxy, &stranger] {
        assert_eq!(asked(client, None).await.status, StatusCode::OK);
        assert_eq!(asked(client, host(&alice.slug)).await.status, StatusCode::OK);
    }
    // What the proxy says of the host must agree with the credential.
    let disagrees = asked(&proxy, host(&bob.slug)).await;
    assert_eq!(disagrees.status, StatusCode::FORBIDDEN, "{}", disagrees.body);
    let nobody = asked(&proxy, host("nobody-at-all")).await;
    assert_eq!(
        nobody.without_request_id(),
        disagrees.without_request_id(),
        "whether a tenant exists stays unsaid"
    );
    // What a stranger says of it is not read.
    let whoami = asked(&stranger, host(&bob.slug)).await;
    assert_eq!((whoami.status, &whoami.body["tenant_id"]), (StatusCode::OK, &json!(alice.id.0)));
    site.stop().await;
}
