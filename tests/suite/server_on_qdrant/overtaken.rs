//! Moves of a tenant that are asked for while one is under way.

use std::time::Duration;

use serde_json::json;

use super::{Ground, contents};

#[tokio::test(flavor = "multi_thread")]
async fn of_moves_that_are_asked_for_at_once_the_last_is_done_and_nothing_is_lost() {
    let ground = Ground::new("qdrant-overtaken").await;
    let (alice, _) = ground.server.tenants().await;
    for n in 0..20 {
        let text = format!("Ottoline keeps the light {n} at Pier Nine.");
        alice.writer.put_document(&format!("light-{n}"), "The guide", &text).await;
    }
    ground.indexed(&alice).await;
    let operator = ground.server.operator();
    let path = format!("/admin/tenants/{}/placement", alice.id);
    let place = async |to: &str, after: Duration| {
        tokio::time::sleep(after).await;
        operator.send("POST", &path, &json!({"placement": to, "reason": "a test"})).await
    };
    for (round, to) in ["shared", "own", "shared", "own"].into_iter().enumerate() {
        // As far apart as a move has steps, so that the second comes at each of them.
        let pause = Duration::from_millis(30 * round as u64);
        let (first, second) = tokio::join!(place(to, Duration::ZERO), place(to, pause));
        let statuses = [first.status, second.status];
        assert!(statuses.contains(&200), "{statuses:?}: {} {}", first.text(), second.text());
        assert!(statuses.iter().all(|status| [200, 409].contains(status)), "{statuses:?}");
        let answer = contents(&ground.indexed(&alice).await);
        for n in 0..20 {
            assert!(answer.contains(&format!("keeps the light {n} at")), "round {round}, {n}: {answer}");
        }
        let served = "select count(*) from vector_collection where state = 'served'";
        assert_eq!(ground.count(served).await, 1);
        assert_eq!(ground.count("select count(*) from consumer where consumer like '%move'").await, 0);
    }
    let body = json!({"repair": false, "namespace": "default", "reason": "a test"});
    let report = operator.post(&format!("/admin/tenants/{}/verify", alice.id), &body, 200).await;
    assert_eq!(report["namespace"]["findings"], json!([]), "{report}");

    // A server that stops gives a move up, and does not wait for it.
    let (answer, ()) = tokio::join!(place("shared", Duration::ZERO), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        ground.stop().await;
    });
    assert!([200, 409, 503].contains(&answer.status), "{}", answer.text());
}
