//! What survives when the server ends in the middle of its work: killed at every stage of ingestion, killed at
//! any moment, told to stop.
//!
//! Accepted is what a call was answered for. It must be there after the next start, once.

#[cfg(feature = "laboratory")]
mod acts;
#[cfg(feature = "laboratory")]
mod changes;
pub mod child;
mod database;
mod storm;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{IdSource as _, SystemIds};
use serde_json::json;

use child::{Ground, Running};

/// The longest that a second start may take.
const SECOND_START: Duration = Duration::from_secs(3);

/// How often it is tried, since other tests run beside it; the quickest counts.
const STARTS: usize = 3;

/// The longest until work goes on that a dead server had leased: far less than a lease, which is 60 s.
const TAKEN_UP: Duration = Duration::from_secs(15);

/// One call that takes several texts in, and what is known of it.
struct Call {
    number: usize,
    once: String,
    answered: bool,
}

/// Texts of one call.
const TEXTS: usize = 4;

fn name(call: usize, text: usize) -> String {
    format!("ledger-{call}-{text}.txt")
}

/// A word that only this call's texts have.
fn word(call: usize) -> String {
    let letters: String =
        call.to_string().bytes().map(|digit| char::from(b'a' + (digit - b'0') * 2)).collect();
    format!("quorv{letters}zim")
}

fn body(call: usize) -> serde_json::Value {
    let word = word(call);
    let texts: Vec<String> = (0..TEXTS)
        .map(|text| {
            let mut body = format!("Ledger {text} of Port Varnel speaks of {word} in its first line.");
            // The last one is cut into several chunks.
            for line in 0..if text == TEXTS - 1 { 60 } else { 3 } {
                let _ = write!(
                    body,
                    " On day {line} of call {call} a barge of text {text} brought {line} casks."
                );
            }
            body
        })
        .collect();
    let names: Vec<String> = (0..TEXTS).map(|text| name(call, text)).collect();
    json!({"texts": texts, "file_sources": names})
}

/// Everything that was sent to a server, over all its lives.
struct Book {
    ground: Ground,
    calls: Vec<Call>,
}

impl Book {
    async fn new(model: &str) -> Self {
        Self { ground: Ground::new(model).await, calls: Vec::new() }
    }

    /// Sends a new call.
    async fn send(&mut self, server: &Running) {
        let number = self.calls.len();
        let once = SystemIds(SystemClock).uuid().to_string();
        let answered = self.ground.try_post(server, "/documents/texts", &body(number), &once).await.is_some();
        self.calls.push(Call { number, once, answered });
    }

    /// Waits until nothing waits.
    async fn settle(&self, server: &Running) {
        self.ground.settled(server).await;
    }

    /// What was accepted is there, once, in documents, chunks and answers; what was not answered can be sent
    /// again and is there once then.
    async fn check(&mut self, server: &Running) {
        let listed = self.ground.settled(server).await;
        let names: Vec<&str> = listed.iter().filter_map(|document| document["file_path"].as_str()).collect();
        for call in self.calls.iter().filter(|call| call.answered) {
            for text in 0..TEXTS {
                let name = name(call.number, text);
                assert!(names.contains(&name.as_str()), "{name} was accepted and is lost");
            }
        }
        for call in self.calls.iter_mut().filter(|call| !call.answered) {
            let again =
                self.ground.try_post(server, "/documents/texts", &body(call.number), &call.once).await;
            call.answered = again.is_some();
            assert!(call.answered, "no answer: {}", self.ground.log());
        }

        let listed = self.ground.settled(server).await;
        let mut documents = BTreeMap::new();
        for document in &listed {
            assert_eq!(document["status"], "processed", "{document}");
            let name = document["file_path"].as_str().expect("name").to_owned();
            let chunks = document["chunks_count"].as_i64().expect("chunks");
            assert!(documents.insert(name.clone(), chunks).is_none(), "{name} is there twice");
        }
        assert_eq!(documents.len(), self.calls.len() * TEXTS);
        for text in 0..TEXTS {
            let of_first = documents[&name(0, text)];
            let all = (0..self.calls.len()).map(|call| documents[&name(call, text)]);
            assert!(
                all.into_iter().all(|chunks| (chunks - of_first).abs() <= 1),
                "chunks of one form: {documents:?}"
            );
        }
        assert_eq!(self.ground.chunks(server).await, documents.values().sum::<i64>());
        for call in &self.calls {
            let expected: BTreeMap<String, usize> =
                (0..TEXTS).map(|text| (name(call.number, text), 1)).collect();
            assert_eq!(
                self.ground.found(server, &word(call.number)).await,
                expected,
                "what an answer draws on"
            );
        }
    }
}

/// Killed where ingestion has opened its jobs, cut and read their texts, embedded them, committed them; and where
/// projection has read the changes, applied them, written them to the disk but not that it did.
#[cfg(feature = "laboratory")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_stage_of_ingestion_and_projection_loses_and_doubles_nothing() {
    let mut book = Book::new("hashing").await;
    for stage in ["opened", "analysed", "embedded", "committed", "not-yet-applied", "applied", "flushed"] {
        let mut server = book.ground.start(Some(stage)).await;
        book.send(&server).await;
        assert!(!server.ended().success(), "it ends at {stage}");
        let orphan = book.ground.postgres();
        let server = book.ground.start(None).await;
        let now = book.ground.postgres().expect("PostgreSQL runs");
        assert!(orphan.is_none_or(|pid| pid == now || !alive(pid)), "the orphan is adopted or stopped");
        let begun = Instant::now();
        book.ground.settled(&server).await;
        assert!(begun.elapsed() < TAKEN_UP, "what was leased waited for {:?}", begun.elapsed());
        book.check(&server).await;
        assert!(server.terminate().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_at_any_moment_loses_and_doubles_nothing() {
    let mut book = Book::new("hashing").await;
    let mut seed = SystemIds(SystemClock).uuid().as_u128();
    println!("the moments come from {seed}");
    for _ in 0..4 {
        let server = book.ground.start(None).await;
        let moment = Duration::from_millis(u64::try_from(seed % 400).expect("small"));
        seed /= 400;
        let deadline = tokio::time::Instant::now() + moment;
        book.send(&server).await;
        while tokio::time::Instant::now() < deadline && book.calls.len() < 40 {
            book.send(&server).await;
        }
        let orphan = book.ground.postgres();
        server.kill();
        let server = book.ground.start(None).await;
        let now = book.ground.postgres().expect("PostgreSQL runs");
        assert!(orphan.is_none_or(|pid| pid == now || !alive(pid)), "the orphan is adopted or stopped");
        book.check(&server).await;
        // Another life begins on what this one leaves without a farewell.
        server.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_told_to_stop_keeps_what_it_accepted_and_starts_again_at_once() {
    let mut book = Book::new("all-MiniLM-L6-v2").await;
    let mut server = book.ground.start(None).await;
    for _ in 0..3 {
        book.send(&server).await;
    }
    server.ask_to_stop();
    // In the middle of its farewell it may answer or not; what it answers counts.
    book.send(&server).await;
    assert!(server.ended().success(), "{}", book.ground.log());
    assert_eq!(book.ground.postgres(), None, "its PostgreSQL stopped with it");

    let mut quickest = Duration::MAX;
    for _ in 0..STARTS {
        let server = book.ground.start(None).await;
        quickest = quickest.min(server.took);
        book.check(&server).await;
        let history = book.ground.history(&server).await;
        assert!(server.terminate().success());
        assert_eq!(watermarks(&book.ground), [history], "a stop makes everything durable");
    }
    assert_permissions(&book.ground);
    println!("a second start took {quickest:?}");
    assert!(quickest < SECOND_START, "a second start took {quickest:?}");
}

/// Up to where each shard's record says that it is durable.
fn watermarks(ground: &Ground) -> Vec<i64> {
    let files = ground.below("shards");
    let records = files.iter().filter(|path| path.ends_with("watermark.json"));
    let read = |path| serde_json::from_slice(&std::fs::read(path).expect("a record")).expect("JSON");
    records.map(read).filter_map(|record: serde_json::Value| record["seq"].as_i64()).collect()
}

/// Nobody but the server's own user reads, writes or enters what it made.
fn assert_permissions(ground: &Ground) {
    use std::os::unix::fs::PermissionsExt as _;
    let mut paths = ground.below("");
    paths.push(ground.data().to_owned());
    assert!(paths.len() > 100, "{paths:?}");
    let mut open = Vec::new();
    for path in paths {
        let Ok(about) = std::fs::symlink_metadata(&path) else { continue };
        // The database's own system user goes through the folder to its files, and reads what configures it.
        let passes = if path == ground.data() { 0o010 } else { 0 };
        let configures = path.starts_with(ground.data().join("postgres-config"));
        if !about.is_symlink() && !configures && about.permissions().mode() & 0o077 & !passes != 0 {
            open.push(format!("{:o} {}", about.permissions().mode(), path.display()));
        }
    }
    assert!(open.is_empty(), "{}", open.join("\n"));
}

fn alive(pid: i32) -> bool {
    std::path::Path::new("/proc").join(pid.to_string()).exists()
}
