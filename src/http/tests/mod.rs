//! The edge over a server without a database: who is let in, what is read, how it is answered.

mod world;

use actix_web::http::{Method, StatusCode, header};
use actix_web::test::{TestRequest, call_service, init_service, read_body};
use actix_web::web;
use serde_json::Value;

use self::world::{ALICE, World};
use super::identity::Caller;
use super::json::{ApiJson, Check, Faults};
use super::operations::{Access, OPERATIONS};
use super::problem::Problem;
use super::server::{Side, application};
use crate::domain::audit::AuditKind;
use crate::domain::limits::Limits;
use crate::tenancy::{LimitSettings, Permit, Read, Write};

macro_rules! answer {
    ($world:expr, $side:expr, $request:expr) => {{
        let service = init_service(application($world.data.clone(), $side)).await;
        let response = match actix_web::dev::Service::call(&service, $request.to_request()).await {
            Ok(response) => response.into_parts().1.map_into_boxed_body(),
            Err(error) => error.error_response(),
        };
        let (status, headers) = (response.status(), response.headers().clone());
        let body = actix_web::body::to_bytes(response.into_body()).await.expect("a body");
        (status, headers, serde_json::from_slice::<Value>(&body).unwrap_or_default())
    }};
}

fn get(path: &str) -> TestRequest {
    TestRequest::with_uri(path)
}

fn with(path: &str, key: &str) -> TestRequest {
    get(path).insert_header((header::AUTHORIZATION, format!("Bearer {key}")))
}

#[actix_web::test]
async fn every_answer_is_private_and_carries_its_id() {
    let world = World::new();
    for request in [get("/health"), get("/no/such"), get("/namespaces")] {
        let (_, headers, _) = answer!(world, Side::Tenants, request);
        assert_eq!(headers.get(header::CACHE_CONTROL).expect("stated"), "private, no-store");
        assert_eq!(headers.get(header::X_CONTENT_TYPE_OPTIONS).expect("stated"), "nosniff");
        assert_eq!(headers.get("x-request-id").expect("an id").len(), 36);
    }
}

#[actix_web::test]
async fn liveness_is_a_constant_and_needs_no_credential() {
    let world = World::new();
    let (status, _, body) = answer!(world, Side::Tenants, get("/health"));
    assert_eq!((status, &body["status"]), (StatusCode::OK, &Value::from("healthy")));
    assert!(body.get("configuration").is_none() && body.get("pipeline_busy").is_none());
    let (status, ..) = answer!(world, Side::Tenants, with("/health", "wrong"));
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[actix_web::test]
async fn an_unknown_route_and_a_wrong_method_are_problems() {
    let world = World::new();
    let (status, headers, body) = answer!(world, Side::Tenants, get("/no/such"));
    assert_eq!((status, &body["slug"]), (StatusCode::NOT_FOUND, &Value::from("not-found")));
    assert_eq!(headers.get(header::CONTENT_TYPE).expect("stated"), "application/problem+json");
    assert!(body["detail"].is_string() && body.get("instance").is_none());
    let (status, headers, body) = answer!(world, Side::Tenants, get("/health").method(Method::PATCH));
    assert_eq!((status, &body["slug"]), (StatusCode::METHOD_NOT_ALLOWED, &Value::from("method-not-allowed")));
    assert_eq!(headers.get(header::ALLOW).expect("stated"), "GET");
}

#[actix_web::test]
async fn every_operation_refuses_a_caller_without_its_credential() {
    let world = World::new();
    for operation in OPERATIONS {
        let path = operation
            .path
            .replace("{id}", "doc-1")
            .replace("{name}", "n")
            .replace("{track_id}", "t")
            .replace("{key_id}", "k");
        let method = Method::from_bytes(operation.method.to_uppercase().as_bytes()).expect("a method");
        let side = if operation.access == Access::Operator { Side::Operators } else { Side::Tenants };
        let wanted = if operation.access == Access::Open { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
        let (status, ..) = answer!(world, side, get(&path).method(method.clone()));
        assert_eq!(status, wanted, "{method} {path}");
        if let Access::Role(role) = operation.access
            && role > crate::tenancy::Role::Reader
        {
            let (status, _, body) = answer!(world, side, with(&path, &world.reader).method(method.clone()));
            assert_eq!(
                (status, &body["slug"]),
                (StatusCode::FORBIDDEN, &Value::from("missing-role")),
                "{method} {path}"
            );
        }
        if operation.access != Access::Open {
            let other = if operation.access == Access::Operator { &world.admin } else { &world.operator };
            let (status, ..) = answer!(world, side, with(&path, other).method(method.clone()));
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path} with the other side's credential");
        }
    }
}

#[actix_web::test]
async fn a_refusal_is_in_the_audit_log_before_it_is_answered() {
    let world = World::new();
    let (status, ..) = answer!(world, Side::Tenants, get("/namespaces"));
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let request = with("/namespaces", &world.reader).insert_header(("X-Tenant-ID", "bob"));
    let (status, _, body) = answer!(world, Side::Tenants, request);
    assert_eq!((status, &body["slug"]), (StatusCode::FORBIDDEN, &Value::from("tenant-mismatch")));
    let events = world.audit.events.lock();
    let seen: Vec<_> = events
        .iter()
        .map(|(tenant, event)| (*tenant, event.entry.kind, event.entry.asked_for.clone()))
        .collect();
    assert_eq!(
        seen,
        [(None, AuditKind::Refusal, vec![]), (Some(ALICE), AuditKind::Refusal, vec!["bob".to_owned()])]
    );
}

#[actix_web::test]
async fn a_directory_that_is_away_is_503_and_says_nothing_of_the_credential() {
    let world = World::new();
    world.directory_away.store(true, std::sync::atomic::Ordering::Relaxed);
    let (status, headers, body) = answer!(world, Side::Tenants, with("/auth/verify", &world.reader));
    assert_eq!((status, &body["slug"]), (StatusCode::SERVICE_UNAVAILABLE, &Value::from("unavailable")));
    assert!(headers.contains_key(header::RETRY_AFTER));
    world.directory_away.store(false, std::sync::atomic::Ordering::Relaxed);
    World::outlive_the_lookup().await;
    let (status, ..) = answer!(world, Side::Tenants, with("/auth/verify", &world.reader));
    assert_eq!(status, StatusCode::OK);
}

#[actix_web::test]
async fn a_store_that_is_away_is_503_and_never_404() {
    let world = World::new();
    let (status, headers, body) = answer!(world, Side::Tenants, with("/namespaces", &world.reader));
    assert_eq!((status, &body["slug"]), (StatusCode::SERVICE_UNAVAILABLE, &Value::from("unavailable")));
    assert!(headers.contains_key(header::RETRY_AFTER));
    assert!(!body.to_string().contains("postgres"));
}

#[actix_web::test]
async fn a_tenant_over_its_limit_is_told_when_to_come_back() {
    let world = World::limited(super::HttpSettings::default(), requests(2, 0));
    let told = |headers: &header::HeaderMap, name: &str| {
        headers.get(name).map(|value| value.to_str().expect("text").to_owned())
    };
    for (wanted, remaining) in [(200, "1"), (200, "0"), (429, "0")] {
        let (status, headers, body) = answer!(world, Side::Tenants, with("/auth/verify", &world.reader));
        assert_eq!(status, wanted);
        assert_eq!(told(&headers, "ratelimit-limit").as_deref(), Some("2"));
        assert_eq!(told(&headers, "ratelimit-remaining").as_deref(), Some(remaining));
        assert!(told(&headers, "ratelimit-reset").is_some_and(|seconds| seconds != "0"));
        assert_eq!(told(&headers, "ratelimit-policy").as_deref(), Some("\"tenant\";q=2;w=60"));
        // The next comes back after its half of the minute.
        assert_eq!(told(&headers, "retry-after").as_deref(), (status == 429).then_some("30"), "{body}");
    }
    // In the form that each surface's clients read.
    let (status, _, body) = answer!(world, Side::Tenants, with("/v1/models", &world.reader));
    assert_eq!(
        (status, &body["error"]["type"]),
        (StatusCode::TOO_MANY_REQUESTS, &Value::from("rate_limit_error"))
    );
    let (status, _, body) = answer!(world, Side::Tenants, with("/api/tags", &world.reader));
    assert!(status == 429 && body["error"].is_string(), "{body}");
}

fn requests(per_minute: u32, of_principal: u32) -> LimitSettings {
    let tenant = Limits {
        requests_per_minute: per_minute,
        principal_requests_per_minute: of_principal,
        ..Limits::default()
    };
    LimitSettings { tenant, ..LimitSettings::default() }
}

#[actix_web::test]
async fn a_principal_over_its_limit_takes_nothing_of_its_tenants() {
    let world = World::limited(super::HttpSettings::default(), requests(3, 1));
    for (key, wanted) in [
        (&world.reader, 200),
        (&world.reader, 429),
        (&world.reader, 429),
        (&world.writer, 200),
        (&world.admin, 200),
        // The principal's own is used up; the tenant's is not looked at.
        (&world.admin, 429),
    ] {
        let (status, headers, _) = answer!(world, Side::Tenants, with("/auth/verify", key));
        assert_eq!(status, wanted);
        let policy = headers.get("ratelimit-policy").expect("told").to_str().expect("text");
        assert!(policy.contains("\"principal\";q=1;w=60"), "{policy}");
    }
}

#[actix_web::test]
async fn an_address_is_counted_before_anybody_is_known_and_its_refusals_before_they_are_recorded() {
    let quotas = LimitSettings {
        address_requests_per_minute: 6,
        address_refusals_per_minute: 2,
        ..LimitSettings::default()
    };
    let world = World::limited(super::HttpSettings::default(), quotas);
    let from = |address: &str, request: TestRequest| request.peer_addr(address.parse().expect("an address"));
    let here = "[2001:db8:1:2::1]:40000";
    // Others of the same network count, those of another do not.
    let there = ["[2001:db8:1:2::ffff]:40001", "[2001:db8:1:3::1]:40000"];
    for (address, request, wanted) in [
        (here, get("/namespaces"), 401),
        (here, with("/namespaces", "wrong"), 401),
        (here, with("/namespaces", "wrong"), 429),
        (here, with("/auth/verify", &world.reader), 200),
        (there[1], with("/namespaces", "wrong"), 401),
        (there[0], get("/health"), 200),
        (here, get("/health"), 200),
        (here, get("/health"), 429),
        (there[0], with("/auth/verify", &world.reader), 429),
        (there[1], with("/auth/verify", &world.reader), 200),
    ] {
        let (status, headers, body) = answer!(world, Side::Tenants, from(address, request));
        assert_eq!(status, wanted, "{address}: {body}");
        assert_eq!(headers.contains_key(header::RETRY_AFTER), wanted == 429);
        // Whoever shares an address is told nothing of it while there is room.
        let policy = headers.get("ratelimit-policy").map(|policy| policy.to_str().expect("text"));
        assert!(
            wanted == 429 || policy.is_none_or(|policy| policy == "\"tenant\";q=1000;w=60"),
            "{policy:?}"
        );
    }
    assert_eq!(world.audit.events.lock().len(), 3);
}

#[derive(Debug, serde::Deserialize)]
struct Said {
    text: String,
}

impl Check for Said {
    fn check(&self, faults: &mut Faults) {
        faults.text("text", &self.text, 1, 100);
    }
}

async fn write(_permit: Permit<Write>, said: ApiJson<Said>) -> Result<String, Problem> {
    Ok(said.into_inner().text)
}

async fn ungated(_said: ApiJson<Said>) -> Result<String, Problem> {
    Ok(String::new())
}

async fn panics(_permit: Permit<Read>) -> String {
    panic!("a fault of the test's making")
}

async fn told(caller: Caller) -> String {
    caller.scope().slug().to_owned()
}

macro_rules! answer_own {
    ($world:expr, $request:expr) => {{
        let routes = |config: &mut web::ServiceConfig| {
            config
                .service(web::resource("/documents/write").route(web::post().to(write)))
                .service(web::resource("/documents/ungated").route(web::post().to(ungated)))
                .service(web::resource("/panics").route(web::get().to(panics)))
                .service(web::resource("/told").route(web::get().to(told)));
        };
        let application = actix_web::App::new()
            .app_data($world.data.clone())
            .configure(routes)
            .wrap(actix_web::middleware::from_fn(super::edge::edge));
        let service = init_service(application).await;
        match actix_web::dev::Service::call(&service, $request.to_request()).await {
            Ok(response) => {
                let status = response.status();
                (status, serde_json::from_slice::<Value>(&read_body(response).await).unwrap_or_default())
            }
            Err(error) => {
                let response = error.error_response();
                let status = response.status();
                let body = actix_web::body::to_bytes(response.into_body()).await.expect("a body");
                (status, serde_json::from_slice(&body).unwrap_or_default())
            }
        }
    }};
}

#[actix_web::test]
async fn a_body_is_not_looked_at_before_its_caller_is_let_in() {
    let world = World::new();
    let post = |key: &str| with("/documents/write", key).method(Method::POST).set_payload("{not json");
    assert_eq!(answer_own!(world, post("wrong")).0, StatusCode::UNAUTHORIZED);
    assert_eq!(answer_own!(world, post(&world.reader)).0, StatusCode::FORBIDDEN);
    assert_eq!(answer_own!(world, post(&world.writer)).0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let json = post(&world.writer).insert_header((header::CONTENT_TYPE, "application/json"));
    let (status, body) = answer_own!(world, json);
    assert_eq!(
        (status, &body["detail"][0]["type"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &Value::from("json_invalid"))
    );
}

#[actix_web::test]
async fn an_extractor_before_the_permit_is_a_fault_of_ours() {
    let world = World::new();
    let request = with("/documents/ungated", &world.admin)
        .method(Method::POST)
        .set_json(serde_json::json!({"text": "a"}));
    let (status, body) = answer_own!(world, request);
    assert_eq!((status, &body["slug"]), (StatusCode::INTERNAL_SERVER_ERROR, &Value::from("internal")));
}

#[actix_web::test]
async fn a_panic_is_answered_without_its_words() {
    let world = World::new();
    let (status, body) = answer_own!(world, with("/panics", &world.reader));
    assert_eq!((status, &body["slug"]), (StatusCode::INTERNAL_SERVER_ERROR, &Value::from("internal")));
    assert!(!body.to_string().contains("making"));
}

#[actix_web::test]
async fn a_body_that_is_too_large_is_413_stated_or_not() {
    let limits = super::HttpSettings { max_json_bytes: 20, ..super::HttpSettings::default() };
    let world = World::with(limits);
    let json = serde_json::json!({"text": "a long text"});
    let post = || with("/documents/write", &world.writer).method(Method::POST).set_json(&json);
    assert_eq!(answer_own!(world, post()).0, StatusCode::PAYLOAD_TOO_LARGE);
    let stated = post().insert_header((header::CONTENT_LENGTH, "24"));
    assert_eq!(answer_own!(world, stated).0, StatusCode::PAYLOAD_TOO_LARGE);
}

#[actix_web::test]
async fn a_caller_is_told_of_itself() {
    let world = World::new();
    let service = init_service(application(world.data.clone(), Side::Tenants)).await;
    let response = call_service(&service, with("/auth/whoami", &world.writer).to_request()).await;
    let body: Value = serde_json::from_slice(&read_body(response).await).expect("JSON");
    assert_eq!(
        (&body["slug"], &body["roles"]),
        (&Value::from("alice"), &serde_json::json!(["reader", "writer"]))
    );
}

#[actix_web::test]
async fn what_a_path_names_reaches_the_store() {
    let world = World::new();
    let id = uuid::Uuid::from_u128(3);
    for (side, path, key) in [
        (Side::Tenants, "/documents/doc%3A1".to_owned(), &world.reader),
        (Side::Tenants, "/documents/track_status/insert_1".to_owned(), &world.reader),
        (Side::Operators, format!("/admin/tenants/{id}"), &world.operator),
        (Side::Operators, format!("/admin/tenants/{id}/keys"), &world.operator),
    ] {
        let (status, _, body) = answer!(world, side, with(&path, key));
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}: {body}");
    }
}
