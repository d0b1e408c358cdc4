//! Bad input and bad manners over real connections: each gets its answer, and nothing is half written.

use std::time::{Duration, Instant};

use bulkhead::http::HttpSettings;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::site::{Site, Tenant, send};

/// Sends bytes as they are, and reads until the server closes.
async fn raw(site: &Site, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(site.address()).await.expect("connected");
    stream.write_all(bytes).await.expect("sent");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    read.expect("closed in time").expect("read");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn documents(site: &Site, tenant: &Tenant) -> Value {
    site.get("/documents/status_counts", &tenant.reader).await.body["status_counts"]["all"].clone()
}

#[tokio::test]
async fn a_bad_body_is_told_what_is_wrong_with_it_and_writes_nothing() {
    let site =
        Site::with(HttpSettings { max_json_bytes: 5000, max_text_bytes: 1000, ..HttpSettings::default() })
            .await;
    let alice = site.tenant("Alice").await;
    let post = |body: Vec<u8>| {
        let request = site.request(Method::POST, "/documents/text", &alice.writer);
        send(request.header("Content-Type", "application/json").body(body))
    };
    let cases: [(Vec<u8>, u16, &str); 12] = [
        (b"".to_vec(), 422, "json_invalid"),
        (b"{".to_vec(), 422, "json_invalid"),
        (b"{\"text\": \"\xc3\x28\"}".to_vec(), 422, "json_invalid"),
        (vec![b'['; 4000], 422, "json_invalid"),
        (b"[]".to_vec(), 422, "model_attributes_type"),
        (b"{}".to_vec(), 422, "missing"),
        (b"{\"text\": null}".to_vec(), 422, "string_type"),
        (b"{\"text\": \"\"}".to_vec(), 422, "string_too_short"),
        (b"{\"text\": \" \\n\\t\"}".to_vec(), 422, "string_too_short"),
        (b"{\"text\": \"a\\u0000b\"}".to_vec(), 422, "string_nul"),
        (b"{\"text\": \"a\", \"tenant_id\": \"b\"}".to_vec(), 422, "extra_forbidden"),
        (b"{\"text\": \"a\", \"file_source\": \"a\\u0007b\"}".to_vec(), 422, "value_error"),
    ];
    for (body, status, rule) in cases {
        let answer = post(body.clone()).await;
        assert_eq!(answer.status.as_u16(), status, "{}", String::from_utf8_lossy(&body));
        assert_eq!(answer.body["detail"][0]["type"], rule, "{}", answer.body);
        assert!(answer.body["detail"][0]["msg"].is_string() && answer.body["detail"][0]["loc"][0] == "body");
    }
    let long = json!({"text": "x".repeat(1001)});
    assert_eq!(post(long.to_string().into_bytes()).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(post(vec![b' '; 5001]).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    for media_type in
        ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", "nonsense"]
    {
        let request = site.request(Method::POST, "/documents/text", &alice.writer);
        let answer = send(request.header("Content-Type", media_type).body("{\"text\": \"a\"}")).await;
        assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{media_type}");
    }
    for (page, rule) in [
        (json!({"page": 0, "page_size": 10}), "greater_than_equal"),
        (json!({"page": 1, "page_size": 201}), "less_than_equal"),
        (json!({"page": "one"}), "int_type"),
        (json!({"sort_field": "color"}), "enum"),
        (json!({"status_filter": "lost"}), "enum"),
    ] {
        let answer = site.post("/documents/paginated", &alice.reader, &page).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["detail"][0]["type"]),
            (422, &json!(rule)),
            "{page}"
        );
    }
    assert_eq!(documents(&site, &alice).await, 0);
    site.stop().await;
}

#[tokio::test]
async fn a_tenant_named_anywhere_in_a_request_can_only_agree() {
    let site = Site::new().await;
    let (alice, bob) = (site.tenant("Alice").await, site.tenant("Bob").await);
    let verify = |names: &[(&str, String)]| {
        let request = site.request(Method::GET, "/auth/verify", &alice.reader);
        send(names.iter().fold(request, |request, (name, value)| request.header(*name, value)))
    };
    assert_eq!(verify(&[("X-Tenant-ID", alice.id.to_string())]).await.status, StatusCode::OK);
    assert_eq!(verify(&[("X-Tenant-ID", alice.slug.to_uppercase())]).await.status, StatusCode::OK);
    let mut refusals = Vec::new();
    for name in
        [bob.id.to_string(), bob.slug.clone(), "nobody".to_owned(), uuid::Uuid::from_u128(9).to_string()]
    {
        let refused = verify(&[("X-Tenant-ID", name)]).await;
        assert_eq!((refused.status, refused.slug()), (StatusCode::FORBIDDEN, "tenant-mismatch"));
        refusals.push(refused.without_request_id());
    }
    assert!(refusals.windows(2).all(|pair| pair[0] == pair[1]));
    let two = verify(&[("X-Tenant-ID", alice.id.to_string()), ("X-Tenant-ID", bob.id.to_string())]).await;
    assert_eq!((two.status, two.slug()), (StatusCode::BAD_REQUEST, "tenant-hint-malformed"));
    assert_eq!(verify(&[("X-Tenant-ID", "a b".to_owned())]).await.slug(), "tenant-hint-malformed");
    for query in ["tenant=bob", "tenant_id=bob", "Tenant_ID=bob"] {
        let answer = site.get(&format!("/graph/label/popular?limit=5&{query}"), &alice.reader).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{query}: {}", answer.body);
    }
    let both = site.request(Method::GET, "/auth/verify", &alice.reader).header("X-API-Key", &bob.reader);
    assert_eq!(send(both).await.status, StatusCode::UNAUTHORIZED);
    site.stop().await;
}

#[tokio::test]
async fn every_answer_to_a_stranger_is_the_same_whatever_is_asked_for() {
    let site = Site::new().await;
    let alice = site.tenant("Alice").await;
    site.put("/documents/known", &alice.writer, &json!({"text": "The harbour."})).await;
    let mut answers = Vec::new();
    for path in ["/documents/known", "/documents/unknown", "/namespaces", "/auth/whoami"] {
        for key in ["", "nonsense", "bk_0123456789abcdef_00_00"] {
            let answer = site.get(path, key).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            answers.push(answer.without_request_id());
        }
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
    site.stop().await;
}

#[tokio::test]
async fn who_sends_too_slowly_is_cut_off_and_keeps_nobody_out() {
    let limits = HttpSettings { head_seconds: 1, body_seconds: 1, ..HttpSettings::default() };
    let site = Site::with(limits).await;
    let alice = site.tenant("Alice").await;
    let begun = Instant::now();
    let head = raw(&site, b"GET /health HTTP/1.1\r\nHost: x\r\n");
    let body = format!(
        "POST /documents/text HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Content-Length: 100\r\nConnection: close\r\n\r\n{{\"te",
        alice.writer
    );
    let (head, body, ()) = tokio::join!(head, raw(&site, body.as_bytes()), async {
        assert_eq!(site.get("/auth/verify", &alice.reader).await.status, StatusCode::OK);
    });
    assert!(head.is_empty() || head.starts_with("HTTP/1.1 408"), "{head}");
    assert!(body.starts_with("HTTP/1.1 408") && body.contains("request-timeout"), "{body}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(documents(&site, &alice).await, 0);
    site.stop().await;
}

#[tokio::test]
async fn what_is_not_http_and_what_ends_too_soon_harms_nobody() {
    let site = Site::new().await;
    let alice = site.tenant("Alice").await;
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"POST /documents/text HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\nzz\r\n",
    ] {
        let answer = tokio::time::timeout(Duration::from_secs(12), raw(&site, bytes)).await.expect("answered");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let mut stream = TcpStream::connect(site.address()).await.expect("connected");
    let half = format!(
        "POST /documents/text HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\n\
         Content-Length: 500\r\n\r\n{{\"text\": \"half",
        alice.writer
    );
    stream.write_all(half.as_bytes()).await.expect("sent");
    drop(stream);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(documents(&site, &alice).await, 0);
    site.stop().await;
}

#[tokio::test]
async fn the_documentation_needs_no_other_host_and_no_credential() {
    let site = Site::new().await;
    let document = send(site.client.get(format!("{}/openapi.json", site.url()))).await;
    assert_eq!(document.body["openapi"], "3.1.0");
    assert!(document.body["paths"]["/query"]["post"]["x-required-role"].is_string());
    let page = send(site.client.get(format!("{}/docs", site.url()))).await;
    let html = String::from_utf8(page.bytes).expect("HTML");
    assert_eq!(page.status, StatusCode::OK);
    assert!(html.contains("swagger-ui") && !html.contains("https://") && !html.contains("http://"), "{html}");
    let policy = page.headers["content-security-policy"].to_str().expect("text");
    assert!(policy.contains("default-src 'self'"), "{policy}");
    let script = send(site.client.get(format!("{}/docs/swagger-initializer.js", site.url()))).await;
    assert!(String::from_utf8(script.bytes).expect("text").contains("/openapi.json"));
    site.stop().await;
}
