//! Killed while operators and tenants' administrators act: what they asked for is done and recorded, or neither.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::child::{Ground, PATIENCE, Running};

/// Where an act is when the server ends: done and not recorded, both and not committed, committed and not answered.
const STAGES: [(&str, bool); 3] = [("act-done", false), ("act-recorded", false), ("act-committed", true)];

/// How often a word is in the deployment's log and in the tenant's.
async fn recorded(ground: &Ground, word: &str) -> (usize, usize) {
    let of = async |path: String| {
        let exported = ground.operate("POST", &path, &json!({"reason": "to look"})).await.expect("an answer");
        let lines = exported["lines"].as_array().unwrap_or_else(|| panic!("{exported}"));
        assert!(!lines.is_empty(), "{exported}");
        lines.iter().filter(|line| line.to_string().contains(word)).count()
    };
    let own = format!("/admin/tenants/{}/audit/export", ground.tenant);
    (of("/admin/audit/export".to_owned()).await, of(own).await)
}

/// Every chain is whole, by the server's own word.
async fn whole(ground: &Ground) {
    for path in ["/admin/audit/chains".to_owned(), format!("/admin/tenants/{}/audit/chains", ground.tenant)] {
        let chains = ground.operate("GET", &path, &Value::Null).await.expect("an answer");
        let chains = chains.as_array().unwrap_or_else(|| panic!("{chains}"));
        assert!(!chains.is_empty() && chains.iter().all(|chain| chain["fault"].is_null()), "{chains:?}");
    }
}

async fn namespaces(ground: &Ground, server: &Running) -> Vec<String> {
    let listed = ground.answered(ground.request(server, "GET", "/namespaces", "default")).await;
    let listed = listed.expect("an answer").1;
    let names = listed["namespaces"].as_array().expect("a list").iter();
    names.map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_while_somebody_acts_leaves_the_action_and_its_event_or_neither() {
    let ground = Ground::new("hashing").await;
    let path = format!("/admin/tenants/{}", ground.tenant);
    for (stage, is_done) in STAGES {
        // An operator's, in both logs.
        let mut server = ground.start(Some(stage)).await;
        let why = format!("suspended at {stage}");
        let suspended = ground.operate("POST", &format!("{path}/suspend"), &json!({"reason": why})).await;
        assert!(suspended.is_none(), "{stage}: {suspended:?}");
        assert!(!server.ended().success(), "it ends at {stage}");
        let server = ground.start(None).await;
        let view = ground.operate("GET", &path, &Value::Null).await.expect("an answer");
        assert_eq!(view["state"], if is_done { "suspended" } else { "active" }, "{stage}");
        let times = usize::from(is_done);
        assert_eq!(recorded(&ground, &why).await, (times, times), "{stage}");
        ground
            .operate("POST", &format!("{path}/resume"), &json!({"reason": "go on"}))
            .await
            .expect("resumed");

        // The tenant's own administrator's, in the tenant's.
        let name = format!("hall-{stage}");
        let text = json!({"text": format!("The guests of {name} are Orla and Finn.")});
        let taken =
            ground.answered(ground.request(&server, "POST", "/documents/text", &name).json(&text)).await;
        assert_eq!(taken.expect("an answer").0, 200);
        ground.settled_in(&server, &name).await;
        assert!(server.terminate().success());
        let mut server = ground.start(Some(stage)).await;
        let delete = ground.request(&server, "DELETE", &format!("/namespaces/{name}"), &name);
        let gone = ground.answered(delete).await;
        assert!(gone.is_none(), "{stage}: {gone:?}");
        assert!(!server.ended().success(), "it ends at {stage}");
        let server = ground.start(None).await;
        assert_eq!(!namespaces(&ground, &server).await.contains(&name), is_done, "{stage}");
        assert_eq!(deletions(&ground, &name).await, times, "{stage}");
        whole(&ground).await;
        assert!(server.terminate().success());
    }
}

/// How often the deletion of a namespace is in the tenant's log.
async fn deletions(ground: &Ground, name: &str) -> usize {
    let path = format!("/admin/tenants/{}/audit/export", ground.tenant);
    let exported = ground.operate("POST", &path, &json!({"reason": "to look"})).await.expect("an answer");
    let lines = exported["lines"].as_array().expect("lines").iter().map(Value::to_string);
    lines.filter(|line| line.contains("namespace.delete") && line.contains(name)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_that_is_killed_at_its_end_has_one_receipt_in_each_log() {
    for (stage, is_done) in STAGES {
        let ground = Ground::new("hashing").await;
        let path = format!("/admin/tenants/{}", ground.tenant);
        // The deletion itself is recorded in a life before.
        let mut server = ground.start(Some("tenant-rows-purged")).await;
        let _ = ground.operate("DELETE", &path, &json!({"reason": "a test"})).await;
        assert!(!server.ended().success(), "it ends in its purge");
        assert!(!ground.one_life(stage).success(), "it ends at {stage}");
        let server = ground.start(None).await;
        let begun = Instant::now();
        loop {
            let receipts = recorded(&ground, "tenant.purge").await;
            if receipts == (1, 1) {
                break;
            }
            // The one log is read after the other, and it may come between.
            assert!(!is_done && receipts.0 <= receipts.1 && receipts.1 <= 1, "{stage}: {receipts:?}");
            assert!(begun.elapsed() < PATIENCE, "{stage}: {}", ground.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        whole(&ground).await;
        assert!(server.terminate().success());
    }
}
