//! Clients that send a byte at a time, that vanish in the middle of an upload or a stream, and a thousand at once; beside
//! them a neighbour whose answers stay right and quick.

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Town;
use crate::crashes::child::Running;

/// The longest that the neighbour waits for an answer, beside all other tests.
const PROMPT: Duration = Duration::from_secs(5);

fn address(server: &Running) -> &str {
    server.url().strip_prefix("http://").expect("an address")
}

/// The second tenant asks until `done`, and gets its own answer each time. Returns how often, and the longest wait;
/// a question that is still waited for at the end counts too.
async fn neighbour(town: &Town, server: &Running, done: impl Future<Output = ()>) -> (u32, Duration) {
    let (name, word) = town.parties[1].accepted.first_key_value().expect("a document");
    let (mut times, mut longest) = (0, Duration::ZERO);
    let ended = Cell::new(false);
    let asking = async {
        while !ended.get() {
            let begun = Instant::now();
            let answer = town.ask(server, 1, word).await;
            assert_eq!(answer["data"]["chunks"][0]["file_path"], *name, "{answer}");
            longest = longest.max(begun.elapsed());
            times += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let done = async {
        done.await;
        ended.set(true);
    };
    tokio::join!(asking, done);
    (times, longest)
}

/// Sends these bytes at once and the rest one by one; returns what was answered before the connection ended, and when.
async fn trickle(address: &str, at_once: &[u8], rest: &[u8], pause: Duration) -> (String, Duration) {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(address).await.expect("the kernel takes it");
    stream.write_all(at_once).await.expect("sent");
    let (mut reading, mut writing) = stream.split();
    let sending = async {
        for byte in rest {
            tokio::time::sleep(pause).await;
            if writing.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    let reading = async {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = reading.read(&mut piece).await {
            answer.extend_from_slice(&piece[..count]);
        }
    };
    tokio::select! {
        () = sending => {}
        () = reading => {}
    }
    (String::from_utf8_lossy(&answer).into_owned(), begun.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_send_a_byte_at_a_time_are_cut_off_and_hold_up_nobody() {
    let mut town = Town::new().await;
    let settings = [("BULKHEAD__HTTP__HEAD_SECONDS", "2"), ("BULKHEAD__HTTP__BODY_SECONDS", "3")];
    let server = town.ground.start_with(&settings).await;
    town.send(&server, 2).await;
    town.check(&server).await;
    let key = &town.parties[0].key;
    let head = |path: &str, media: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Type: {media}\r\nContent-Length: 5000\r\n\r\n"
        )
    };
    let json = head("/documents/text", "application/json");
    let form = head("/documents/upload", "multipart/form-data; boundary=edge");
    let part = "--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"slow.txt\"\r\n\r\n";
    let kinds: [(&str, &str, String); 3] = [
        ("", "a head", json.clone()),
        (&json, "a body", "{\"text\": \"".to_owned() + &"x".repeat(4000)),
        (&form, "a file", part.to_owned() + &"x".repeat(4000)),
    ];
    let many = (0..150).map(|n| {
        let (at_once, what, rest) = &kinds[n % kinds.len()];
        let address = address(&server);
        async move {
            let pause = Duration::from_millis(500);
            let (answer, after) = trickle(address, at_once.as_bytes(), rest.as_bytes(), pause).await;
            assert!(after < Duration::from_secs(20), "{what} was waited for {after:?}");
            let status = answer.split(' ').nth(1).unwrap_or_default().to_owned();
            // A file has to wait for a place first, of which the tenant has a few.
            assert!(["408", "429"].contains(&status.as_str()), "{what}: {answer:?}");
            assert!(status == "408" || answer.to_lowercase().contains("retry-after: "), "{answer}");
            (*what, status)
        }
    });
    let mut answers = Vec::new();
    let storm =
        async { answers = futures::stream::iter(many).buffer_unordered(150).collect::<Vec<_>>().await };
    let (times, longest) = neighbour(&town, &server, storm).await;
    println!("the neighbour was answered {times} times, after at most {longest:?}");
    assert!(times > 10 && longest < PROMPT, "{times} times, {longest:?}");
    for what in ["a head", "a body", "a file"] {
        assert!(answers.contains(&(what, "408".to_owned())), "{what}: {answers:?}");
    }
    town.check(&server).await;
    assert!(server.terminate().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_callers_at_once_are_answered_or_told_when_to_come_again() {
    rlimit::increase_nofile_limit(4096).expect("descriptors for this test");
    let mut town = Town::new().await;
    let server = town.ground.start(None).await;
    town.send(&server, 2).await;
    town.check(&server).await;
    let (name, word) = town.parties[0].accepted.first_key_value().expect("a document");
    let body = json!({"query": word, "mode": "naive"});
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(Duration::from_mins(1));
    let client = client.build().expect("a client");
    let asked = (0..1000).map(|_| {
        let request = client.post(format!("{}/query/data", server.url())).bearer_auth(&town.parties[0].key);
        let request = request.json(&body);
        let town = &town;
        async move {
            let answer = request.send().await.expect("an answer");
            let (status, again) = (answer.status().as_u16(), answer.headers().contains_key("retry-after"));
            let text = answer.text().await.expect("whole");
            town.assert_own(0, &text);
            match status {
                200 => assert!(text.contains(name), "{text}"),
                429 | 503 => assert!(again, "{status} without Retry-After"),
                _ => panic!("{status} {text}"),
            }
            status
        }
    });
    let mut answers = Vec::new();
    let storm = async { answers = futures::future::join_all(asked).await };
    let (times, longest) = neighbour(&town, &server, storm).await;
    let answered = answers.iter().filter(|status| **status == 200).count();
    println!("{answered} of 1000 were answered; the neighbour {times} times, after at most {longest:?}");
    assert!(answered >= 16 && answers.len() == 1000, "{answered}");
    assert!(longest < PROMPT, "{longest:?}");
    town.check(&server).await;
    assert!(server.terminate().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_vanish_in_the_middle_of_an_upload_or_a_stream_leave_nothing_behind() {
    let mut town = Town::new().await;
    let server = town.ground.start(None).await;
    town.send(&server, 2).await;
    town.check(&server).await;
    let key = &town.parties[0].key;
    let part = "--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"half.txt\"\r\n\r\n";
    let upload = format!(
        "POST /documents/upload HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Type: multipart/form-data; \
         boundary=edge\r\nContent-Length: 400000\r\n\r\n{part}{}",
        "The half of a file. ".repeat(10_000)
    );
    let question = json!({"query": "What does the log speak of?", "include_progress": true}).to_string();
    let stream = format!(
        "POST /query/stream HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{question}",
        question.len()
    );
    let vanish = (0..120_u64).map(|n| {
        let whole = if n % 2 == 0 { upload.as_bytes() } else { stream.as_bytes() };
        // An upload breaks off anywhere; of a stream a piece is read, or nothing.
        let sent = if n % 2 == 0 {
            &whole[..whole.len() * usize::try_from(n + 1).expect("small") / 121]
        } else {
            whole
        };
        let address = address(&server);
        async move {
            let mut connection = TcpStream::connect(address).await.expect("the kernel takes it");
            connection.write_all(sent).await.expect("sent");
            let some = connection.read_u8();
            let _piece = tokio::time::timeout(Duration::from_millis(n % 7 * 5), some).await;
        }
    });
    let storm = async { futures::stream::iter(vanish).for_each_concurrent(16, |gone| gone).await };
    let (times, longest) = neighbour(&town, &server, storm).await;
    assert!(times > 0 && longest < PROMPT, "{times} times, {longest:?}");
    // No place of those who vanished is taken: there is one for each of the tenant's files at once.
    let whole =
        |n: usize| town.upload(&server, 0, &format!("whole-{n}.txt"), &format!("Whole file {n}.")).send();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let answers = futures::future::join_all((0..4).map(whole)).await;
    let mut ids = Vec::new();
    for answer in answers {
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), 200);
        ids.push(answer.json::<serde_json::Value>().await.expect("JSON")["document_ids"][0].clone());
    }
    let kept = town.ground.below("uploads").into_iter().filter(|path| path.is_file()).count();
    assert_eq!(kept, 4, "of the halves nothing is kept");
    town.settled(&server, 0).await;
    let gone =
        town.call(&server, 0, Method::DELETE, "/documents/delete_document").json(&json!({"doc_ids": ids}));
    assert_eq!(gone.send().await.expect("an answer").status(), 200);
    town.check(&server).await;
    assert!(server.terminate().success());
}
