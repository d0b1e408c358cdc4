//! A server that is told to stop loses nothing that it accepted.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::crashes::child::Ground;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_is_not_ready_first_and_keeps_every_write_that_it_accepted() {
    const WRITERS: usize = 4;
    let ground = Ground::new("hashing").await;
    ground.set("http.drain_seconds = 2");
    let mut server = ground.start(None).await;
    let stopping = AtomicBool::new(false);
    let write = async |writer: usize| {
        let (mut accepted, mut late) = (Vec::new(), 0);
        for n in 0.. {
            let name = format!("w{writer}-{n}.txt");
            let body = json!({"text": format!("Ship {n} of fleet {writer} is at sea."), "file_source": name});
            let was_stopping = stopping.load(Ordering::Relaxed);
            // No answer: the server is gone, or says that it cannot.
            let Some(_) = ground.try_post(&server, "/documents/text", &body, "").await else { break };
            accepted.push(name);
            late += usize::from(was_stopping);
        }
        (accepted, late)
    };
    let stop = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let ready = async || ground.http.get(format!("{}/ready", server.url())).send().await;
        assert_eq!(ready().await.expect("an answer").status(), 200);
        server.ask_to_stop();
        let asked = Instant::now();
        while ready().await.expect("connections are still taken").status() != 503 {
            assert!(asked.elapsed() < Duration::from_secs(2), "still ready");
        }
        stopping.store(true, Ordering::Relaxed);
    };
    let ((), writers) = tokio::join!(stop, futures::future::join_all((0..WRITERS).map(write)));
    assert!(server.ended().success());
    let late: usize = writers.iter().map(|(_, late)| late).sum();
    assert!(late > 0, "what comes while others look elsewhere is still taken");
    let accepted: BTreeSet<String> = writers.into_iter().flat_map(|(accepted, _)| accepted).collect();
    assert!(accepted.len() > 2 * WRITERS, "{} were written", accepted.len());

    let server = ground.start(None).await;
    let documents = ground.settled(&server).await;
    let processed: BTreeSet<String> = documents
        .iter()
        .filter(|document| document["status"] == "processed")
        .map(|document| document["file_path"].as_str().expect("a name").to_owned())
        .collect();
    let lost: Vec<&String> = accepted.difference(&processed).collect();
    assert_eq!(lost, Vec::<&String>::new(), "accepted and gone");
    assert!(server.terminate().success());
}

#[tokio::test]
async fn a_server_that_stops_gives_long_work_back_instead_of_finishing_it() {
    let ground = Ground::new("all-MiniLM-L6-v2").await;
    let mut server = ground.start(None).await;
    // Minutes of embedding.
    let mut text = String::new();
    for n in 0..40_000 {
        let _ = write!(text, "Ship {n} carries {} crates of oranges. ", n * 7);
    }
    let body = json!({"text": text, "file_source": "long.txt"});
    ground.try_post(&server, "/documents/text", &body, "").await.expect("accepted");
    let status = async |server: &crate::crashes::child::Running| {
        let request = ground.request(server, "GET", "/documents/status_counts", "default");
        ground.answered(request).await.expect("an answer").1["status_counts"].clone()
    };
    let until = Instant::now() + crate::server::PATIENCE;
    while status(&server).await["processing"] != 1 {
        assert!(Instant::now() < until, "it is never begun");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.ask_to_stop();
    let asked = Instant::now();
    assert!(server.ended().success());
    assert!(asked.elapsed() < Duration::from_secs(45), "{:?}", asked.elapsed());
    let server = ground.start(None).await;
    let counts = status(&server).await;
    assert_eq!((&counts["processed"], &counts["failed"]), (&json!(0), &json!(0)), "{counts}");
    drop(server);
}
