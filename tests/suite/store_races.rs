//! Writes and deletions at the same time: all of a document or nothing, and nobody locked out.

use std::time::Duration;

use bulkhead::domain::document::Status;
use bulkhead::domain::ids::NamespaceName;
use bulkhead::domain::limits::Limits;
use bulkhead::store::ErrorKind;
use bulkhead::store::postgres::documents::{Acceptance, OnExisting};
use bulkhead::store::postgres::jobs::Progress;

use crate::consistency::consistent;
use crate::database::deletion;
use crate::deployment::{Harness, LEASE, accept, chunk, document};
use crate::store::processed;

#[tokio::test]
async fn a_write_and_a_deletion_at_once_leave_all_of_a_document_or_nothing() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let mut superuser = harness.deployment.superuser().await;
    for round in 0..25 {
        let corpus = harness.corpus(&permit).await;
        harness.put(&corpus, "doc", vec![chunk(0, "first")]).await;
        let writer = harness.stores.writer(&permit);
        let batch = [document("doc", &format!("round {round}"))];
        let name = NamespaceName::default();
        let ids = ["doc".to_owned()];
        let limits = Limits::default();
        let accepting = corpus.documents_accept(&batch, OnExisting::Replace, "track", &limits);
        let accepted = if round % 2 == 0 {
            let (accepted, deleted) = tokio::join!(accepting, corpus.documents_delete(&ids));
            assert_eq!(deleted.expect("deleted").len(), 1);
            accepted
        } else {
            let act = deletion(&harness.postgres, permit.scope());
            let (accepted, deleted) = tokio::join!(accepting, writer.namespace_delete(act, &name));
            assert!(deleted.expect("deleted").is_some());
            accepted
        };
        match accepted {
            Ok(Acceptance::Accepted(_)) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => assert_eq!(error.kind, ErrorKind::Conflict, "only for a namespace that went"),
        }
        consistent(&mut superuser, permit.scope().tenant()).await;
        harness.stores.writer(&permit).tenant_purge().await.expect("purged");
    }
    harness.close().await;
}

#[tokio::test]
async fn replacements_progress_commits_and_deletions_at_once_do_not_lock_each_other_out() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    let ids: Vec<String> = (0..6).map(|number| format!("doc-{number}")).collect();
    let begun = std::time::Instant::now();
    for round in 0..20 {
        let batch: Vec<_> = ids.iter().map(|id| document(id, &format!("{id} {round}"))).collect();
        accept(&corpus, &batch, OnExisting::Replace).await;
        let leased = harness.lease(&corpus).await;
        let tasks = corpus.job_open(&leased).await.expect("opened");
        let held: Vec<_> = tasks.iter().rev().map(|task| (task.job, task.lease)).collect();
        let progress = Progress { stage: Status::Processing, done: 1, total: 2, rate: 9.0 };
        let done: Vec<_> = tasks.iter().map(|task| processed(task, vec![chunk(0, "text")])).collect();
        let (again, gone) = (&batch[..3], &ids[3..]);
        let limits = Limits::default();
        let (accepted, progressed, committed, deleted) = tokio::join!(
            corpus.documents_accept(again, OnExisting::Replace, "track", &limits),
            corpus.job_progress(&held, progress, LEASE),
            corpus.documents_commit(&done),
            corpus.documents_delete(gone),
        );
        accepted.expect("accepted");
        progressed.expect("progressed");
        committed.expect("committed");
        assert_eq!(deleted.expect("deleted").len(), 3);
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "a deadlock costs a second each time");
    let mut superuser = harness.deployment.superuser().await;
    consistent(&mut superuser, permit.scope().tenant()).await;
    harness.close().await;
}
