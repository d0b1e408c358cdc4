//! Operators on their Unix socket, and what becomes of a tenant's callers.

use std::os::unix::fs::PermissionsExt as _;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::site::{Site, send};

#[tokio::test]
async fn the_operators_socket_is_its_owners_alone_and_tenants_are_nowhere_near() {
    let site = Site::new().await;
    let alice = site.tenant("Alice").await;
    let mode =
        std::fs::metadata(site.folder.path().join("admin.sock")).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(site.get("/admin/tenants", &site.operator).await.status, StatusCode::NOT_FOUND);
    for path in ["/auth/verify", "/documents/status_counts", "/namespaces"] {
        assert_eq!(site.get(path, &site.operator).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    assert_eq!(site.get("/auth/verify", &alice.reader).await.status, StatusCode::OK);
    site.stop().await;
}

#[tokio::test]
async fn a_tenants_life_is_directed_by_operators_and_effective_at_once() {
    let site = Site::new().await;
    let alice = site.tenant("Alice").await;
    let path = format!("/admin/tenants/{}", alice.id);
    let reason = json!({"reason": "an unpaid bill"});
    let view = site.operate(Method::GET, &path, &Value::Null).await;
    assert_eq!((&view.body["name"], &view.body["state"]), (&json!("Alice"), &json!("active")));
    let suspended = site.operate(Method::POST, &format!("{path}/suspend"), &reason).await;
    assert_eq!(suspended.body["state"], "suspended");
    let refused = site.get("/auth/verify", &alice.reader).await;
    assert_eq!((refused.status, refused.slug()), (StatusCode::FORBIDDEN, "tenant-suspended"));
    site.operate(Method::POST, &format!("{path}/resume"), &reason).await;
    assert_eq!(site.get("/auth/verify", &alice.reader).await.status, StatusCode::OK);

    let deleted = site.operate(Method::DELETE, &path, &reason).await;
    assert_eq!((deleted.status, &deleted.body["state"]), (StatusCode::ACCEPTED, &json!("deleted")));
    assert!(deleted.body["job_id"].is_string());
    assert_eq!(site.get("/auth/verify", &alice.reader).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(site.operate(Method::DELETE, &path, &reason).await.status, StatusCode::NOT_FOUND);
    assert_eq!(
        site.operate(Method::GET, &format!("{path}/keys"), &Value::Null).await.status,
        StatusCode::NOT_FOUND
    );
    site.stop().await;
}

#[tokio::test]
async fn keys_and_tokens_are_shown_once_and_allow_what_they_say() {
    let site = Site::new().await;
    let alice = site.tenant("Alice").await;
    let path = format!("/admin/tenants/{}", alice.id);
    let body = json!({"name": "ci", "roles": ["writer"], "namespaces": ["ci"], "expires_in": 60, "reason": "a pipeline"});
    let key = site.operate(Method::POST, &format!("{path}/keys"), &body).await;
    let secret = key.body["api_key"].as_str().expect("a key").to_owned();
    let whoami = site.get("/auth/whoami", &secret).await;
    assert_eq!(
        (&whoami.body["roles"], &whoami.body["namespaces"]),
        (&json!(["reader", "writer"]), &json!(["ci"]))
    );
    assert_eq!(whoami.body["expires_at"], key.body["expires_at"]);
    // Confined to its namespace, whose neighbours are not there for it.
    let write = |namespace: &str| {
        let request = site
            .request(Method::POST, "/documents/text", &secret)
            .header("X-Namespace", namespace.to_owned());
        send(request.json(&json!({"text": "Built."})))
    };
    assert_eq!(write("ci").await.status, StatusCode::OK);
    assert_eq!(write("default").await.status, StatusCode::NOT_FOUND);
    let listed = site.operate(Method::GET, &format!("{path}/keys"), &Value::Null).await;
    assert_eq!(listed.body["keys"].as_array().map(Vec::len), Some(4));
    assert!(!listed.body.to_string().contains("digest") && !listed.body.to_string().contains(&secret));

    let body = json!({"subject": "anna", "roles": ["reader"], "expires_in": 60});
    let token = site.operate(Method::POST, &format!("{path}/tokens"), &body).await;
    assert_eq!(token.status, StatusCode::CREATED, "{}", token.body);
    let whoami = site.get("/auth/whoami", token.body["token"].as_str().expect("a token")).await;
    assert_eq!((&whoami.body["slug"], &whoami.body["roles"]), (&json!(alice.slug), &json!(["reader"])));
    site.harness.clock.advance(std::time::Duration::from_mins(2));
    let expired = site.get("/auth/whoami", token.body["token"].as_str().expect("a token")).await;
    assert_eq!((expired.status, expired.slug()), (StatusCode::UNAUTHORIZED, "token-expired"));
    assert_eq!(site.get("/auth/whoami", &secret).await.slug(), "token-expired");
    site.stop().await;
}

#[tokio::test]
async fn an_operators_request_that_is_wrong_is_told_what_is() {
    let site = Site::new().await;
    let alice = site.tenant("Alice").await;
    let path = format!("/admin/tenants/{}", alice.id);
    let cases = [
        ("/admin/tenants".to_owned(), json!({"name": "X"}), 422, "reason"),
        ("/admin/tenants".to_owned(), json!({"name": "", "reason": "why not"}), 422, "name"),
        ("/admin/tenants".to_owned(), json!({"name": "X", "slug": "a.b", "reason": "why not"}), 422, "slug"),
        ("/admin/tenants".to_owned(), json!({"name": "X", "slug": alice.slug, "reason": "why not"}), 409, ""),
        ("/admin/tenants".to_owned(), json!({"name": "X", "plan": "gold", "reason": "why not"}), 422, "plan"),
        (format!("{path}/keys"), json!({"name": "k", "roles": ["root"], "reason": "why not"}), 422, "roles"),
        (format!("{path}/keys"), json!({"name": "k", "roles": [], "reason": "why not"}), 422, "roles"),
        (
            format!("{path}/tokens"),
            json!({"subject": "a", "roles": ["reader"], "expires_in": 3601}),
            422,
            "expires_in",
        ),
    ];
    for (path, body, status, place) in cases {
        let refused = site.operate(Method::POST, &path, &body).await;
        assert_eq!(refused.status.as_u16(), status, "{path} {body}: {}", refused.body);
        assert!(
            refused.body["detail"].as_str().is_some_and(|detail| detail.contains(place)),
            "{}",
            refused.body
        );
    }
    let nobody = format!("/admin/tenants/{}/suspend", uuid::Uuid::from_u128(7));
    let refused = site.operate(Method::POST, &nobody, &json!({"reason": "why not"})).await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
    site.stop().await;
}

#[tokio::test]
async fn every_action_is_in_both_audit_logs_with_its_reason() {
    use bulkhead::domain::ids::TenantId;
    use bulkhead::store::AuditLog as _;
    let site = Site::new().await;
    let alice = site.tenant("Alice").await;
    let body = json!({"reason": "a fire drill"});
    site.operate(Method::POST, &format!("/admin/tenants/{}/suspend", alice.id), &body).await;
    let log = bulkhead::store::postgres::audit::PostgresAudit::new(site.harness.postgres.clone(), "node-1");
    for chain in [None, Some(TenantId(alice.id.0))] {
        let page = log.page(chain, None, 50).await.expect("read");
        let found = page.iter().find(|record| {
            record.action == "tenant.suspend"
                && record.asked_for.iter().any(|asked| *asked == alice.id.to_string())
        });
        let found = found.unwrap_or_else(|| panic!("not in {chain:?}"));
        assert_eq!(found.reason, "a fire drill");
        assert!(found.principal.starts_with("operator:"));
    }
    site.stop().await;
}
