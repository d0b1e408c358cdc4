//! A clock that is set forwards and back by an hour: nothing is done twice, and nothing waits until time has caught up.

use std::time::{Duration, Instant};

use bulkhead::domain::document::Status;
use bulkhead::store::postgres::documents::OnExisting;
use bulkhead::store::postgres::ingest::ProcessedDocument;
use bulkhead::store::postgres::jobs::IngestTask;

use super::Town;
use crate::deployment::{Harness, accept, chunk, document, status};

const HOUR: Duration = Duration::from_hours(1);

/// The longest until what waited for a clock is done, beside all other tests.
const SOON: Duration = Duration::from_secs(20);

fn processed(task: &IngestTask, text: &str) -> ProcessedDocument {
    ProcessedDocument {
        job: task.job,
        lease: task.lease,
        document_id: task.document_id.clone(),
        version: task.version,
        title: None,
        chunks: vec![chunk(0, text)],
    }
}

#[tokio::test]
async fn of_two_workers_between_whom_the_clock_was_set_the_one_with_the_lease_commits() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    accept(&corpus, &[document("doc", "harbour")], OnExisting::Replace).await;
    let first = harness.lease(&corpus).await;
    let early = corpus.job_open(&first).await.expect("opened").remove(0);
    assert!(harness.lease(&corpus).await.is_empty(), "it is held");

    // Set forwards, every lease has run out; set back further, each seems to last for hours.
    harness.clock.advance(HOUR);
    let second = harness.lease(&corpus).await;
    assert_eq!(second.len(), 1);
    harness.clock.set_back(2 * HOUR);
    let third = harness.lease(&corpus).await;
    assert_eq!(third.len(), 1, "a lease that lasts longer than any may is none");
    assert!(harness.lease(&corpus).await.is_empty(), "and the new one is");
    let late = corpus.job_open(&third).await.expect("opened").remove(0);
    assert!(corpus.job_open(&second).await.expect("opened").is_empty());

    let overtaken = corpus.documents_commit(&[processed(&early, "too late")]).await.expect("answered");
    assert!(overtaken.jobs.is_empty(), "whose lease is another's writes nothing");
    let committed = corpus.documents_commit(&[processed(&late, "harbour")]).await.expect("answered");
    assert_eq!(committed.jobs, [late.job]);
    assert_eq!(status(&corpus, "doc").await, Some(Status::Processed));
    harness.close().await;
}

#[tokio::test]
async fn what_was_accepted_before_the_clock_was_set_back_is_due_at_once() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    accept(&corpus, &[document("doc", "harbour")], OnExisting::Replace).await;
    harness.clock.set_back(HOUR);
    assert_eq!(harness.lease(&corpus).await.len(), 1);
    // What was put off is put off still.
    accept(&corpus, &[document("later", "tide")], OnExisting::Replace).await;
    let leased = harness.lease(&corpus).await;
    harness.stores.job_retry(&leased, Duration::from_mins(5)).await.expect("put off");
    assert!(harness.lease(&corpus).await.is_empty());
    harness.clock.advance(Duration::from_mins(5));
    assert_eq!(harness.lease(&corpus).await.len(), 1);
    harness.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_clock_is_set_forwards_and_back_loses_doubles_and_holds_up_nothing() {
    let mut town = Town::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("seconds");
    let set = |seconds: i64| std::fs::write(&file, seconds.to_string()).expect("written");
    let clock = [("BULKHEAD_CLOCK", file.to_str().expect("text"))];
    set(0);
    // Ends with documents accepted and leased at a time that the next server has not come to yet.
    let mut server = town.ground.start_with(&[clock[0], ("BULKHEAD_CRASH_AT", "opened")]).await;
    town.send(&server, 3).await;
    assert!(!server.ended().success());
    set(-3600);
    let server = town.ground.start_with(&clock).await;
    let begun = Instant::now();
    town.check(&server).await;
    assert!(begun.elapsed() < SOON, "it waited for {:?}", begun.elapsed());
    // Back and forth under load.
    for seconds in [3600, -3600, 0, 3600, 0] {
        town.send(&server, 3).await;
        set(seconds);
        town.send(&server, 1).await;
    }
    let begun = Instant::now();
    town.check(&server).await;
    town.served_by_shards(&server).await;
    assert!(begun.elapsed() < SOON, "it waited for {:?}", begun.elapsed());
    assert!(server.terminate().success());
}
