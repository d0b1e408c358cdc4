//! Names that callers and operators choose: none of them says where a row belongs, and none is a path.

use serde_json::json;

use crate::calls::{Ids, calls};
use crate::operations::operations;
use crate::server::{random, random_id, server};

#[tokio::test]
async fn metadata_that_says_where_a_document_belongs_is_refused_with_nothing_written() {
    let (alice, bob) = server().tenants().await;
    for metadata in [
        json!({"tenant_id": bob.id}),
        json!({"tenant": bob.slug}),
        json!({"Tenant_ID": bob.id}),
        json!({" tenant_id ": bob.id}),
        json!({"namespace": "default"}),
        json!({"workspace": "default"}),
        json!({"groups": [bob.id]}),
        json!({"a": {"groups": []}}),
        json!({"a": [{"tenant_id": bob.id}]}),
        json!({"a": {"b": {"c": {"d": {"e": 1}}}}}),
        json!({"a": vec![0; 1000]}),
        json!({"a": "x".repeat(20_000)}),
        json!([1]),
    ] {
        let body = json!({"text": "A page.", "metadata": metadata});
        let answer = alice.writer.send("PUT", "/documents/page", &body).await;
        assert_eq!(answer.status, 422, "{metadata}: {}", answer.text());
    }
    alice.reader.get("/documents/page", 404).await;
    bob.reader.get("/documents/page", 404).await;
    // What is allowed is a caller's own and filters nothing.
    let body = json!({"text": "A page.", "metadata": {"owner": bob.id, "tags": ["namespace"]}});
    alice.writer.put("/documents/page", &body, 202).await;
    bob.reader.get("/documents/page", 404).await;
}

#[tokio::test]
async fn a_slug_that_is_a_path_or_looks_like_an_id_is_no_slug() {
    let operator = server().operator();
    let id = random_id();
    let simple = id.replace('-', "");
    for slug in [
        "../shards",
        "..",
        ".",
        "a/b",
        "a\\b",
        "a.b",
        "A",
        "a b",
        "-a",
        "a-",
        "",
        "a_b",
        "%2e%2e",
        "a\u{0}",
        "é",
        &id,
        &id.to_uppercase(),
        &simple,
        &"a".repeat(64),
    ] {
        let body = json!({"name": "Works", "slug": slug, "reason": "a test"});
        let answer = operator.send("POST", "/admin/tenants", &body).await;
        assert_eq!(answer.status, 422, "{slug}: {}", answer.text());
    }
    // A slug that is made of a name does not become one either.
    let made = operator.post("/admin/tenants", &json!({"name": id, "reason": "a test"}), 201).await;
    let slug = made["slug"].as_str().expect("a slug");
    assert!(slug != id && slug.starts_with("tenant-"), "{slug}");
    let name = format!("../../{}", random(8));
    let made = operator.post("/admin/tenants", &json!({"name": name, "reason": "a test"}), 201).await;
    assert!(!made["slug"].as_str().expect("a slug").contains(['.', '/']));
    let paths: Vec<_> = std::fs::read_dir(&server().data_dir).expect("a folder").flatten().collect();
    assert!(paths.iter().all(|path| !path.file_name().to_string_lossy().contains(&name[6..])));
}

#[tokio::test]
async fn every_answer_of_every_operation_is_private_and_is_what_it_says_it_is() {
    let tenant = server().tenant("alice").await;
    let mut seen = 0;
    for operation in operations(server()).await {
        let (caller, stranger) = if operation.is_operators() {
            (server().operator(), server().operator().without("authorization"))
        } else {
            (tenant.admin.clone(), server().anybody())
        };
        let mut answers = vec![operation.call(&caller).await, operation.call(&stranger).await];
        // And as it is when it succeeds.
        let safe = !operation.is_operators() && operation.method != "delete";
        for call in calls(&operation, &Ids::nobody()).into_iter().flatten().take(usize::from(safe)) {
            answers.push(call.make(&operation.method, &caller).await);
        }
        for answer in answers {
            let about = format!("{} {}", operation.name(), answer.status);
            for (name, value) in [
                ("cache-control", "private, no-store"),
                ("x-content-type-options", "nosniff"),
                ("referrer-policy", "no-referrer"),
                ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
            ] {
                assert_eq!(
                    answer.headers.get(name).map(|v| v.to_str().expect("text")),
                    Some(value),
                    "{about}"
                );
            }
            assert!(answer.headers.contains_key("x-request-id"), "{about}");
            for name in ["server", "x-powered-by", "set-cookie", "etag", "access-control-allow-origin", "age"]
            {
                assert!(!answer.headers.contains_key(name), "{name} of {about}");
            }
            assert!(answer.body.is_empty() || answer.headers.contains_key("content-type"), "{about}");
            seen += 1;
        }
    }
    assert!(seen > 90, "{seen} answers");
}
