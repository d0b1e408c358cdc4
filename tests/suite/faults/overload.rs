//! More than a server can do: it says so before its memory grows, and goes on answering.

use std::cell::Cell;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Town;
use crate::crashes::child::{PATIENCE, Running};
use crate::server::random;

/// The longest that anybody else waits for an answer meanwhile, beside all other tests.
const PROMPT: Duration = Duration::from_secs(5);
/// By how much the server may grow while it is flooded, KiB.
const GROWTH_KIB: u64 = 256 * 1024;

/// Memory that the server has now, KiB; its peak begins anew.
fn memory(server: &Running) -> u64 {
    std::fs::write(format!("/proc/{}/clear_refs", server.pid()), "5").expect("one's own process");
    peak(server)
}

/// The most that it has had since, KiB.
fn peak(server: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a field");
    line.split_whitespace().next().expect("a number").parse().expect("a number")
}

/// Documents that a tenant floods the server with where `BULKHEAD_FLOOD` says nothing, and the bound of its queue.
const FLOOD: usize = 3000;
const QUEUE: usize = 400;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_documents_is_refused_at_its_bound_while_questions_and_health_are_answered() {
    let mut town = Town::new().await;
    let queue = QUEUE.to_string();
    let server = town.ground.start_with(&[("BULKHEAD__LIMITS__TENANT__QUEUED_JOBS", &queue)]).await;
    town.send(&server, 2).await;
    town.check(&server).await;
    let wanted = std::env::var("BULKHEAD_FLOOD").ok().and_then(|count| count.parse().ok()).unwrap_or(FLOOD);
    let before = memory(&server);
    let (accepted, refused) = (Cell::new(town.parties[0].accepted.len()), Cell::new(0));
    let filling = "The barge brought so many casks that nobody counted them all. ".repeat(20);
    let flood = async {
        let senders = (0..6).map(|_| async {
            while accepted.get() < wanted {
                let texts: Vec<String> = (0..100).map(|_| format!("{filling} {}", random(16))).collect();
                let names: Vec<String> = (0..100).map(|_| format!("{}.txt", random(16))).collect();
                let body = json!({"texts": texts, "file_sources": names});
                let request = town.call(&server, 0, Method::POST, "/documents/texts").json(&body);
                let answer = request.send().await.expect("an answer");
                let (status, again) =
                    (answer.status().as_u16(), answer.headers().contains_key("retry-after"));
                match status {
                    200 => accepted.set(accepted.get() + 100),
                    429 | 503 => {
                        assert!(again, "{status} without Retry-After");
                        refused.set(refused.get() + 1);
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    _ => panic!("{status}: {}", answer.text().await.expect("whole")),
                }
            }
        });
        futures::future::join_all(senders).await;
    };
    let (name, word) = town.parties[1].accepted.first_key_value().expect("a document");
    let (times, longest, most) = (Cell::new(0), Cell::new(Duration::ZERO), Cell::new(0));
    let others = async {
        loop {
            let begun = Instant::now();
            let health = town.ground.http.get(format!("{}/health", server.url())).send().await;
            assert_eq!(health.expect("an answer").status(), 200);
            let answer = town.ask(&server, 1, word).await;
            assert_eq!(answer["data"]["chunks"][0]["file_path"], *name, "{answer}");
            longest.set(longest.get().max(begun.elapsed()));
            times.set(times.get() + 1);
            let waiting = town.call(&server, 0, Method::GET, "/health").send().await.expect("an answer");
            let waiting: Value = waiting.json().await.expect("JSON");
            most.set(most.get().max(waiting["queue"]["queued"].as_u64().expect("a number")));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = flood => {}
        () = others => {}
    }
    let after = peak(&server);
    println!(
        "{} accepted, {} calls refused, at most {} waited; {} others' calls, the longest {:?}; {before} KiB became {after}",
        accepted.get(),
        refused.get(),
        most.get(),
        times.get(),
        longest.get()
    );
    assert!(refused.get() > 0 && times.get() > 10);
    assert!(most.get() <= QUEUE as u64, "{} wait", most.get());
    assert!(longest.get() < PROMPT, "{:?}", longest.get());
    assert!(after < before + GROWTH_KIB, "{before} KiB became {after}");
    let begun = Instant::now();
    loop {
        let counts =
            town.call(&server, 0, Method::GET, "/documents/status_counts").send().await.expect("an answer");
        let counts: Value = counts.json().await.expect("JSON");
        if counts["status_counts"]["processed"] == accepted.get() {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{} were accepted: {counts}", accepted.get());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(server.terminate().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_would_fill_the_memory_are_refused_and_a_neighbours_are_not() {
    let mut town = Town::new().await;
    let mib = |count: usize| (count * 1024 * 1024).to_string();
    let (largest, own, all) = (mib(8), mib(20), mib(40));
    let server = town
        .ground
        .start_with(&[
            ("BULKHEAD__HTTP__MAX_JSON_BYTES", &largest),
            ("BULKHEAD__HTTP__MAX_UPLOAD_BYTES", &largest),
            ("BULKHEAD__HTTP__TENANT_BUFFERED_BYTES", &own),
            ("BULKHEAD__HTTP__BUFFERED_BYTES", &all),
        ])
        .await;
    town.send(&server, 2).await;
    town.check(&server).await;
    let before = memory(&server);
    let address = server.url().strip_prefix("http://").expect("an address").to_owned();
    let length = 6 * 1024 * 1024;
    let head = format!(
        "POST /query/data HTTP/1.1\r\nHost: x\r\nX-API-Key: {}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n",
        town.parties[0].key
    );
    // Each sends all but its last byte, and waits.
    let sending = (0..24).map(|_| {
        let (address, head) = (&address, &head);
        async move {
            let mut stream = TcpStream::connect(address).await.expect("the kernel takes it");
            stream.write_all(head.as_bytes()).await.expect("sent");
            let piece = vec![b' '; 64 * 1024];
            for _ in 0..length / piece.len() {
                let last = &piece[..piece.len() - 1];
                // Whoever is refused finds nobody who reads.
                if stream.write_all(last).await.is_err() {
                    break;
                }
            }
            stream
        }
    });
    let mut callers = futures::future::join_all(sending).await;
    let (mut refused, mut told) = (0, 0);
    for stream in &mut callers {
        let mut answer = vec![0; 1024];
        let read = tokio::time::timeout(Duration::from_millis(300), stream.read(&mut answer)).await;
        if let Ok(Ok(count @ 1..)) = read {
            let answer = String::from_utf8_lossy(&answer[..count]).to_lowercase();
            assert!(answer.starts_with("http/1.1 429 ") && answer.contains("retry-after: "), "{answer}");
            told += 1;
        }
        // Whoever goes on sending may find the connection reset before it reads why.
        refused += u32::from(read.is_ok());
    }
    // Three of them fit into the tenant's share.
    assert!((20..=21).contains(&refused) && told > 0, "{refused} were refused, {told} told");
    let most = peak(&server);
    println!("{before} KiB became {most}");
    assert!(most < before + 100 * 1024, "{before} KiB became {most}");
    let word = town.parties[1].accepted.values().next().expect("a document");
    let begun = Instant::now();
    town.ask(&server, 1, word).await;
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
    drop(callers);
    town.check(&server).await;
    assert!(server.terminate().success());
}
