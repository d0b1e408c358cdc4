//! The graph over HTTP: names and parts of it, of the caller's own documents alone.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::running::{Neighbours, Running, assert_own};

fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().map(|name| name.as_str().expect("a name")).collect()
}

#[tokio::test]
async fn names_are_those_of_the_callers_own_documents() {
    let both = Neighbours::new().await;
    for (tenant, own, foreign) in both.sides() {
        for path in
            ["/graph/label/list", "/graph/label/popular?limit=100", "/graph/label/search?q=l&limit=100"]
        {
            let answer = both.server.get(path, &tenant.key).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
            assert!(names(&answer.body).contains(&own[0]), "{path}: {}", answer.text);
            assert_own(&answer, tenant, foreign);
        }
        let sought = both.server.get(&format!("/graph/label/search?q={}", foreign[0]), &tenant.key).await;
        assert_eq!(sought.body, json!([]));
    }
    let popular = both.server.get("/graph/label/popular?limit=1", &both.alice.key).await;
    assert_eq!(names(&popular.body).len(), 1);
}

#[tokio::test]
async fn an_entity_of_a_neighbour_is_as_unknown_as_one_that_nobody_has() {
    let both = Neighbours::new().await;
    for (tenant, own, foreign) in both.sides() {
        let exists = async |name: &str| {
            both.server.get(&format!("/graph/entity/exists?name={name}"), &tenant.key).await.body
        };
        assert_eq!(exists(own[0]).await, json!({"exists": true}));
        assert_eq!(exists(&own[0].to_uppercase()).await, json!({"exists": true}));
        assert_eq!(exists(foreign[0]).await, exists("Nobody At All").await);
        let part = async |name: &str| both.server.get(&format!("/graphs?label={name}"), &tenant.key).await;
        let (neighbours, nobodys) = (part(foreign[0]).await, part("Nobody At All").await);
        assert_eq!((neighbours.status, &neighbours.text), (StatusCode::OK, &nobodys.text));
        assert_eq!(nobodys.body, json!({"nodes": [], "edges": [], "is_truncated": false}));
    }
}

#[tokio::test]
async fn a_part_of_the_graph_holds_the_callers_own_entities_and_says_where_they_are_from() {
    let both = Neighbours::new().await;
    for (tenant, own, foreign) in both.sides() {
        for path in [format!("/graphs?label={}&max_depth=2", own[0]), "/graphs?label=*".to_owned()] {
            let answer = both.server.get(&path, &tenant.key).await;
            assert_own(&answer, tenant, foreign);
            let nodes = answer.body["nodes"].as_array().expect("nodes");
            let node = nodes.iter().find(|node| node["id"] == own[0]).expect("the entity");
            assert_eq!(
                (&node["labels"], &node["properties"]["entity_id"]),
                (&json!([own[0]]), &json!(own[0]))
            );
            assert_eq!(node["properties"]["file_path"], "turbine.txt");
            assert_eq!(node["properties"]["tenant_id"], tenant.id.as_str());
            let edges = answer.body["edges"].as_array().expect("edges");
            let edge = edges.iter().find(|edge| edge["source"] == own[0] || edge["target"] == own[0]);
            assert!(edge.expect("a relation")["properties"]["weight"].as_f64() > Some(0.0));
            let ids: Vec<&Value> = nodes.iter().map(|node| &node["id"]).collect();
            assert!(
                edges.iter().all(|edge| ids.contains(&&edge["source"]) && ids.contains(&&edge["target"]))
            );
        }
        let one = both.server.get("/graphs?label=*&max_nodes=1", &tenant.key).await.body;
        assert_eq!((one["nodes"].as_array().map(Vec::len), &one["is_truncated"]), (Some(1), &json!(true)));
    }
}

#[tokio::test]
async fn a_deleted_document_leaves_no_name_behind() {
    let server = Running::shared().await;
    let tenant = server.tenant().await;
    server.insert(&tenant, "default", &[("a.txt", "Mara Quill met Norvik Energy.")]).await;
    let page = json!({"page": 1, "page_size": 10});
    let listed = server.post("/documents/paginated", &tenant.key, &page).await;
    let id = listed.body["documents"][0]["id"].as_str().expect("an id");
    let gone = server.request(reqwest::Method::DELETE, &format!("/documents/{id}"), &tenant.key);
    assert!(crate::running::send(gone).await.status.is_success());
    assert_eq!(server.get("/graph/label/list", &tenant.key).await.body, json!([]));
    assert_eq!(server.get("/graphs?label=*", &tenant.key).await.body["nodes"], json!([]));
    let exists = server.get("/graph/entity/exists?name=Mara Quill", &tenant.key).await;
    assert_eq!(exists.body, json!({"exists": false}));
}

#[tokio::test]
async fn what_cannot_be_asked_of_the_graph_is_refused() {
    let server = Running::shared().await;
    let tenant = server.tenant().await;
    for path in [
        "/graphs",
        "/graphs?label=x&max_depth=0",
        "/graph/label/popular?limit=1001",
        "/graph/label/search",
        "/graphs?label=x&tenant_id=y",
    ] {
        let answer = server.get(path, &tenant.key).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{path}: {}", answer.text);
        assert!(answer.body["detail"][0]["loc"].is_array());
    }
}
