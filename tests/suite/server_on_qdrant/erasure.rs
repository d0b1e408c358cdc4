//! A namespace that is deleted while the index is away.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Ground, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_deleted_while_it_is_away_is_gone_and_recorded_and_the_rest_is_swept() {
    let ground = Ground::new("qdrant-erasure").await;
    let (alice, _) = ground.server.tenants().await;
    alice.writer.put_document("light", "The guide", "Ottoline keeps the light at Pier Nine.").await;
    ground.indexed(&alice).await;
    alice.writer.upload("rope.txt", b"Ottoline mends the rope.").await;
    let folder = ground.base.join("data/uploads").join(&alice.id);
    let files = || files_below(&folder);
    assert_eq!(files(), 1);

    ground.kill();
    let answer = alice.admin.send("DELETE", "/namespaces/default", &Value::Null).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!(answer.json(), json!({"status": "deleted", "swept_later": ["qdrant"]}));
    assert_eq!(files(), 0, "no file waits for the index");
    assert_eq!(ground.count("select count(*) from chunk").await, 0);
    assert_eq!(alice.admin.send("DELETE", "/namespaces/default", &Value::Null).await.status, 404);
    let recorded = "select count(*) from audit_event where body::text like '%namespace.delete%'";
    assert_eq!(ground.count(recorded).await, 1);

    // Of the other route the words tell.
    alice.writer.put_document("boat", "The guide", "Ottoline rows the boat.").await;
    let said = alice.writer.delete("/documents", &Value::Null, 200).await;
    assert_eq!(said["status"], "success");
    assert!(said["message"].as_str().is_some_and(|words| words.contains("qdrant")), "{said}");

    ground.start_again();
    let path = format!("/admin/tenants/{}/verify", alice.id);
    let body = json!({"repair": true, "reason": "a test"});
    until("what is left in it is not swept", async || {
        // What the sweep does, at once.
        let answer = ground.server.operator().send("POST", &path, &body).await;
        answer.status == 200 && ground.collections().is_empty()
    })
    .await;
    ground.stop().await;
}

/// Files below a folder.
fn files_below(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let count = |path: PathBuf| if path.is_dir() { files_below(&path) } else { 1 };
    entries.map(|entry| count(entry.expect("an entry").path())).sum()
}
