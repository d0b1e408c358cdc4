//! Every operation of the OpenAPI document with every credential that must not do.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::operations::{Operation, operations};
use crate::server::{Answer, Client, Tenant, random, random_id, server, text};

/// Operations that need a credential, and who has to be called for them.
async fn guarded() -> Vec<Operation> {
    let mut all = operations(server()).await;
    all.retain(|operation| operation.access != "none");
    all
}

fn refused(answer: &Answer, status: u16, slug: &str, operation: &Operation) {
    let said = answer.text();
    assert_eq!(answer.status, status, "{}: {said}", operation.name());
    assert_eq!(answer.json()["slug"], slug, "{}: {said}", operation.name());
    assert_eq!(answer.headers["content-type"], "application/problem+json");
    assert_eq!(answer.headers["cache-control"], "private, no-store");
}

/// Calls every operation of tenants, and checks that each is refused in the same way.
async fn all_refused(caller: &Client, status: u16, slug: &str) {
    for operation in guarded().await.iter().filter(|operation| !operation.is_operators()) {
        refused(&operation.call(caller).await, status, slug, operation);
    }
}

#[tokio::test]
async fn every_operation_but_the_open_ones_is_401_without_a_credential_and_with_a_wrong_one() {
    let tenant = server().tenant("alice").await;
    let wrong = format!("Bearer {}x", tenant.admin_key.secret);
    for operation in operations(server()).await {
        let (nobody, name) = (server().anybody(), operation.name());
        if operation.access == "none" {
            let answer = operation.call(&nobody).await;
            assert_eq!(answer.status, 200, "{name}: {}", answer.text());
            continue;
        }
        let stranger = if operation.is_operators() { server().operator() } else { nobody };
        let without = operation.call(&stranger.without("authorization")).await;
        refused(&without, 401, "unauthorized", &operation);
        for credential in ["Bearer x", "Basic YTpi", wrong.as_str(), "Bearer a.b.c"] {
            let with = operation.call(&stranger.with("authorization", credential)).await;
            assert_eq!(with.all(), without.all(), "{name} with {credential}");
        }
    }
}

#[tokio::test]
async fn a_credential_of_the_other_side_is_no_credential() {
    let tenant = server().tenant("alice").await;
    let operator_key = std::fs::read_to_string(server().data_dir.join("secrets/operator.key")).expect("key");
    for operation in guarded().await {
        let stranger = if operation.is_operators() {
            server().operator().with("authorization", &format!("Bearer {}", tenant.admin_key.secret))
        } else {
            server().caller(operator_key.trim())
        };
        refused(&operation.call(&stranger).await, 401, "unauthorized", &operation);
        if operation.is_operators() {
            // Not on the tenants' address at all.
            let answer = operation.call(&tenant.admin).await;
            assert_eq!(answer.status, 404, "{}: {}", operation.name(), answer.text());
        }
    }
}

#[tokio::test]
async fn a_hint_at_another_tenant_an_unknown_or_a_suspended_one_is_the_same_403() {
    let (alice, bob) = server().tenants().await;
    let suspended = server().tenant("carol").await;
    suspend(&suspended).await;
    let unknown = random_id();
    let hints =
        [&bob.id, &bob.slug, &suspended.id, &suspended.slug, &unknown, &format!("dave-{}", random(8))];
    for operation in guarded().await.iter().filter(|operation| !operation.is_operators()) {
        let mut first: Option<Answer> = None;
        for hint in hints {
            let answer = operation.call(&alice.admin.with("x-tenant-id", hint)).await;
            refused(&answer, 403, "tenant-mismatch", operation);
            let first = first.get_or_insert_with(|| answer.clone());
            assert_eq!(answer.all(), first.all(), "{} differs for {hint}", operation.name());
        }
        let malformed = operation.call(&alice.admin.with("x-tenant-id", "not a tenant!")).await;
        refused(&malformed, 400, "tenant-hint-malformed", operation);
    }
    for own in [&alice.id, &alice.slug] {
        alice.admin.with("x-tenant-id", own).get("/auth/verify", 200).await;
    }
}

#[tokio::test]
async fn a_role_below_what_the_operation_demands_is_403() {
    let tenant = server().tenant("alice").await;
    let mut seen = 0;
    for operation in guarded().await {
        let below: &[&Client] = match operation.access.as_str() {
            "writer" => &[&tenant.reader],
            "tenant_admin" => &[&tenant.reader, &tenant.writer],
            _ => &[],
        };
        for caller in below {
            refused(&operation.call(caller).await, 403, "missing-role", &operation);
            seen += 1;
        }
        // And the role it demands is enough: what is refused then is refused for another reason.
        let enough = match operation.access.as_str() {
            "any" | "reader" => &tenant.reader,
            "writer" => &tenant.writer,
            "tenant_admin" => &tenant.admin,
            _ => continue,
        };
        let answer = operation.call(enough).await;
        assert!(![401, 403, 500, 503].contains(&answer.status), "{}: {}", operation.name(), answer.text());
    }
    assert!(seen > 10, "{seen} operations need more than a reader");
}

async fn suspend(tenant: &Tenant) {
    let path = format!("/admin/tenants/{}/suspend", tenant.id);
    server().operator().post(&path, &json!({"reason": "a test"}), 200).await;
}

/// Waits, at most the two seconds that are promised, until the caller is refused.
async fn within_two_seconds(caller: &Client, status: u16) {
    let began = Instant::now();
    while caller.send("GET", "/auth/verify", &Value::Null).await.status != status {
        assert!(began.elapsed() < Duration::from_secs(2), "still let in");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A token of the server's own making.
async fn token(tenant: &Tenant) -> Client {
    let body =
        json!({"subject": "somebody", "roles": ["tenant_admin"], "expires_in": 600, "reason": "a test"});
    let made = server().operator().post(&format!("/admin/tenants/{}/tokens", tenant.id), &body, 201).await;
    let caller = server().caller(&text(&made, "token"));
    caller.get("/auth/verify", 200).await;
    caller
}

#[tokio::test]
async fn a_suspended_tenant_is_told_so_everywhere_and_comes_back_when_resumed() {
    let tenant = server().tenant("alice").await;
    let by_token = token(&tenant).await;
    tenant.admin.get("/auth/verify", 200).await;
    suspend(&tenant).await;
    for caller in [&tenant.admin, &by_token] {
        within_two_seconds(caller, 403).await;
        all_refused(caller, 403, "tenant-suspended").await;
    }
    let path = format!("/admin/tenants/{}/resume", tenant.id);
    server().operator().post(&path, &json!({"reason": "a test"}), 200).await;
    within_two_seconds(&tenant.admin, 200).await;
}

#[tokio::test]
async fn a_revoked_key_is_refused_everywhere_within_two_seconds_and_others_go_on() {
    let tenant = server().tenant("alice").await;
    tenant.admin.get("/auth/verify", 200).await;
    let path = format!("/admin/tenants/{}/keys/{}", tenant.id, tenant.admin_key.id);
    server().operator().delete(&path, &json!({"reason": "a test"}), 204).await;
    within_two_seconds(&tenant.admin, 401).await;
    all_refused(&tenant.admin, 401, "unauthorized").await;
    tenant.writer.get("/auth/verify", 200).await;
}

#[tokio::test]
async fn a_deleted_tenant_is_refused_everywhere_as_if_it_had_never_been() {
    let tenant = server().tenant("alice").await;
    let by_token = token(&tenant).await;
    let path = format!("/admin/tenants/{}", tenant.id);
    server().operator().delete(&path, &json!({"reason": "a test"}), 202).await;
    for caller in [&tenant.admin, &by_token] {
        within_two_seconds(caller, 401).await;
        all_refused(caller, 401, "unauthorized").await;
    }
    let never = operations(server()).await.swap_remove(0);
    let never = Operation { method: "get".to_owned(), path: "/auth/verify".to_owned(), ..never };
    let unknown = never.call(&server().anybody()).await;
    assert_eq!(never.call(&tenant.admin).await.all(), unknown.all());
}
