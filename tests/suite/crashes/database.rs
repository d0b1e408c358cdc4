//! PostgreSQL is killed under load: the server lives on, says so, and loses nothing.

use std::time::{Duration, Instant};

use super::Book;

/// The longest until calls are answered again.
const BACK: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_database_is_killed_refuses_for_a_while_and_loses_nothing() {
    let mut book = Book::new("hashing").await;
    let server = book.ground.start(None).await;
    for _ in 0..3 {
        for _ in 0..3 {
            book.send(&server).await;
        }
        // In the middle of processing what was just accepted.
        book.ground.kill_postgres();
        let killed = Instant::now();
        let mut refused = 0;
        // Refusals are 503 and say when to come again; anything else fails in `answered`.
        loop {
            book.send(&server).await;
            if book.calls.last().is_some_and(|call| call.answered) {
                break;
            }
            refused += 1;
            assert!(killed.elapsed() < BACK, "it does not come back: {}", book.ground.log());
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        println!("{refused} refused, back after {:?}", killed.elapsed());
        let begun = Instant::now();
        book.settle(&server).await;
        assert!(begun.elapsed() < BACK, "what was leased waited for {:?}", begun.elapsed());
    }
    book.check(&server).await;
    assert!(server.terminate().success());
}
