//! Killed while documents are replaced and deleted, namespaces and tenants deleted, files taken in.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::child::{Ground, PATIENCE, Running};

async fn put(ground: &Ground, server: &Running, text: &str) -> bool {
    let request = ground.request(server, "PUT", "/documents/tariff", "default").json(&json!({"text": text}));
    let answer = ground.answered(request).await;
    answer.is_some_and(|(status, body)| {
        assert!(status < 300, "{status} {body}");
        true
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_while_a_document_is_replaced_leaves_the_old_version_until_the_new_one_answers() {
    let ground = Ground::new("hashing").await;
    let mut old = "The tariff of Port Varnel is forty crowns.".to_owned();
    let server = ground.start(None).await;
    assert!(put(&ground, &server, &old).await);
    ground.settled(&server).await;
    assert!(server.terminate().success());
    for stage in ["opened", "analysed", "embedded", "committed", "not-yet-applied", "applied", "flushed"] {
        let new = format!("The tariff of Port Varnel was changed when it was {stage}.");
        let mut server = ground.start(Some(stage)).await;
        let answered = put(&ground, &server, &new).await;
        assert!(!server.ended().success(), "it ends at {stage}");
        let server = ground.start(None).await;
        if !answered {
            assert!(put(&ground, &server, &new).await);
        }
        let begun = Instant::now();
        loop {
            let texts = ground.texts(&server, "default", "tariff").await;
            assert_eq!(texts.len(), 1, "{stage}: {texts:?}");
            if texts[0].1.contains(&new) {
                break;
            }
            assert!(texts[0].1.contains(&old) && begun.elapsed() < PATIENCE, "{stage}: {texts:?}");
        }
        let listed = ground.settled(&server).await;
        assert_eq!((listed.len(), &listed[0]["status"]), (1, &json!("processed")), "{stage}");
        assert_eq!(ground.chunks(&server).await, 1, "{stage}");
        assert!(server.terminate().success());
        old = new;
    }
}

/// Waits until the files of the tenant are so many.
async fn files_become(ground: &Ground, uploads: usize) {
    let begun = Instant::now();
    loop {
        let files = ground.below("uploads").into_iter().filter(|path| path.is_file()).count();
        if files == uploads {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{files} files instead of {uploads}: {}", ground.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Takes a file in and returns its document's identity.
async fn take_in(ground: &Ground, server: &Running, namespace: &str, name: &str, text: &str) -> String {
    let (status, answer) =
        ground.answered(ground.upload(server, namespace, name, text)).await.expect("an answer");
    assert_eq!(status, 200, "{answer}");
    let listed = ground.settled_in(server, namespace).await;
    let own = listed.iter().find(|document| document["file_path"] == name).expect("listed");
    assert_eq!(own["status"], "processed", "{own}");
    own["id"].as_str().expect("an id").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_while_a_document_is_deleted_leaves_all_of_it_or_nothing() {
    let ground = Ground::new("hashing").await;
    for (stage, survives) in [("document-not-yet-deleted", true), ("document-rows-deleted", false)] {
        let server = ground.start(None).await;
        let id =
            take_in(&ground, &server, "default", "manifest.txt", "The manifest names ninety casks.").await;
        server.kill();
        let mut server = ground.start(Some(stage)).await;
        let path = format!("/documents/{id}");
        let gone = ground.answered(ground.request(&server, "DELETE", &path, "default")).await;
        assert!(gone.is_none(), "{stage}: {gone:?}");
        assert!(!server.ended().success(), "it ends at {stage}");

        let server = ground.start(None).await;
        let there = usize::from(survives);
        assert_eq!(ground.texts(&server, "default", "manifest").await.len(), there, "{stage}");
        assert_eq!(ground.settled(&server).await.len(), there, "{stage}");
        let (status, _) =
            ground.answered(ground.request(&server, "DELETE", &path, "default")).await.expect("an answer");
        assert_eq!(status, if survives { 200 } else { 404 }, "{stage}");
        assert!(ground.texts(&server, "default", "manifest").await.is_empty(), "{stage}");
        assert_eq!(ground.chunks(&server).await, 0, "{stage}");
        files_become(&ground, 0).await;
        assert!(server.terminate().success());
    }
}

fn holds_nothing(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none()) || !folder.exists()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_while_a_namespace_or_a_tenant_is_deleted_leaves_nothing_of_it() {
    let ground = Ground::new("hashing").await;
    let shards = ground.data().join("shards").join(&ground.tenant);
    for stage in ["namespace-rows-deleted", "namespace-files-deleted", "tenant-rows-purged"] {
        let server = ground.start(None).await;
        take_in(&ground, &server, "hall", "guests.txt", "The guests of the hall are named Orla and Finn.")
            .await;
        let begun = Instant::now();
        while holds_nothing(&shards) {
            assert!(begun.elapsed() < PATIENCE, "never projected");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(server.terminate().success());

        let mut server = ground.start(Some(stage)).await;
        if stage.starts_with("tenant") {
            let path = format!("/admin/tenants/{}", ground.tenant);
            let reason = json!({"reason": "a test"});
            // The purge may end the server before the answer is out.
            let _ = ground.operate("DELETE", &path, &reason).await;
        } else {
            let gone = ground.answered(ground.request(&server, "DELETE", "/namespaces/hall", "hall")).await;
            assert!(gone.is_none(), "{stage}: {gone:?}");
        }
        assert!(!server.ended().success(), "it ends at {stage}");

        let server = ground.start(None).await;
        if !stage.starts_with("tenant") {
            assert!(ground.texts(&server, "hall", "guests").await.is_empty(), "{stage}");
            let (_, spaces) = ground
                .answered(ground.request(&server, "GET", "/namespaces", "default"))
                .await
                .expect("an answer");
            let names: Vec<&Value> = spaces["namespaces"].as_array().expect("a list").iter().collect();
            assert!(names.iter().all(|space| space["name"] != "hall"), "{stage}: {names:?}");
        }
        files_become(&ground, 0).await;
        let begun = Instant::now();
        while !holds_nothing(&shards) {
            assert!(begun.elapsed() < PATIENCE, "{stage}: {:?} stay", ground.below("shards"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(server.terminate().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_whose_document_was_never_accepted_goes_and_one_that_was_stays() {
    let ground = Ground::new("hashing").await;
    let mut server = ground.start(Some("upload-stored")).await;
    let text = "The ballast is of gravel.";
    let lost = ground.answered(ground.upload(&server, "default", "ballast.txt", text)).await;
    assert!(lost.is_none(), "{lost:?}");
    assert!(!server.ended().success());
    files_become(&ground, 1).await;
    let server = ground.start(None).await;
    assert!(ground.settled(&server).await.is_empty(), "nothing was accepted");
    take_in(&ground, &server, "default", "ballast.txt", text).await;
    files_become(&ground, 1).await;
    // Several sweeps later, and older than the margin.
    tokio::time::sleep(Duration::from_secs(6)).await;
    files_become(&ground, 1).await;
    assert_eq!(ground.texts(&server, "default", "gravel").await.len(), 1);
    assert!(server.terminate().success());
}
