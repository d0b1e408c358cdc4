//! Documents, jobs and histories through the handles, with chunks made by the test.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bulkhead::domain::Seq;
use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::document::Status;
use bulkhead::domain::ids::{ChunkId, DocumentId, IdSource as _, NamespaceName, SystemIds};
use bulkhead::domain::limits::Limits;
use bulkhead::store::postgres::documents::{Acceptance, OnExisting};
use bulkhead::store::postgres::ingest::{NewChunk, ProcessedDocument};
use bulkhead::store::postgres::jobs::{IngestTask, Progress};
use bulkhead::store::postgres::projection::History;
use bulkhead::store::vector::{Terms, VectorQuery};
use bulkhead::store::{CorpusWriter, ErrorKind, TenantWriter};

use crate::consistency::{consistent, residue};
use crate::database::deletion;
use crate::deployment::{Harness, LEASE, accept, chunk, document, only_job, status, term, terms};

/// Deletes the namespace in which everything is.
async fn delete_namespace(harness: &Harness, writer: &TenantWriter) {
    let act = deletion(&harness.postgres, writer.scope());
    let erased = writer.namespace_delete(act, &NamespaceName::default()).await.expect("deleted");
    assert!(erased.is_some());
}

/// Leases the one job that is due, and opens it.
pub async fn only_task(harness: &Harness, corpus: &CorpusWriter) -> IngestTask {
    let leased = harness.lease(corpus).await;
    let mut tasks = corpus.job_open(&leased).await.expect("opened");
    assert_eq!((leased.len(), tasks.len()), (1, 1), "one job is due");
    tasks.remove(0)
}

/// The outcome of a task.
pub fn processed(task: &IngestTask, chunks: Vec<NewChunk>) -> ProcessedDocument {
    ProcessedDocument {
        job: task.job,
        lease: task.lease,
        document_id: task.document_id.clone(),
        version: task.version,
        title: None,
        chunks,
    }
}

/// The ids of a document's chunks that answer.
async fn live(corpus: &CorpusWriter, candidates: &[ChunkId]) -> BTreeSet<ChunkId> {
    corpus.chunk_list(candidates).await.expect("read").into_iter().map(|row| row.chunk).collect()
}

#[tokio::test]
async fn a_document_answers_when_it_is_committed_and_not_before() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    let acceptance = accept(&corpus, &[document("doc", "harbour")], OnExisting::Replace).await;
    assert!(only_job(&acceptance).is_some());
    assert_eq!(status(&corpus, "doc").await, Some(Status::Pending));

    let task = only_task(&harness, &corpus).await;
    assert_eq!((task.body.as_deref(), task.version, task.replaces), (Some("harbour"), 1, false));
    let progress = Progress { stage: Status::Processing, done: 1, total: 2, rate: 9.0 };
    let held = corpus.job_progress(&[(task.job, task.lease)], progress, LEASE).await.expect("recorded");
    assert_eq!(held, [task.job]);
    assert_eq!(status(&corpus, "doc").await, Some(Status::Processing));

    let chunks = vec![chunk(0, "harbour"), chunk(1, "lighthouse")];
    let ids: Vec<ChunkId> = chunks.iter().map(|chunk| chunk.chunk).collect();
    assert!(live(&corpus, &ids).await.is_empty());
    let committed = corpus.documents_commit(&[processed(&task, chunks)]).await.expect("committed");
    assert_eq!((committed.seq, committed.jobs), (Seq(1), vec![task.job]));
    assert_eq!(live(&corpus, &ids).await.len(), 2);
    assert_eq!(status(&corpus, "doc").await, Some(Status::Processed));
    let jobs = harness.stores.reader(&permit).job_track("track-1").await.expect("track");
    assert_eq!((jobs.len(), jobs[0].state.as_str(), jobs[0].done), (1, "done", 2));

    let opened = harness.stores.reader(&permit);
    let words = [term("lighthouse"), term("nowhere")];
    let (opened, counts) =
        opened.corpus_get_with_terms(&NamespaceName::default(), &words).await.expect("read").expect("there");
    assert_eq!((opened.seq(), opened.chunks()), (Seq(1), 2));
    assert_eq!(counts.chunks, [(term("lighthouse"), 1)]);
    let query = VectorQuery {
        embedding: Some(chunk(0, "lighthouse").embedding),
        terms: Some(Terms { indices: vec![term("harbour")], values: vec![2.0] }),
        limit: 10,
    };
    let found = opened.chunk_search_exact(&query, Seq(-1)).await.expect("found");
    assert_eq!(found.dense.iter().map(|hit| hit.chunk).collect::<Vec<_>>(), [ids[1], ids[0]]);
    assert_eq!(found.lexical.iter().map(|hit| (hit.chunk, hit.score)).collect::<Vec<_>>(), [(ids[0], 2.0)]);
    harness.close().await;
}

#[tokio::test]
async fn whoever_changes_a_document_meanwhile_wins_over_its_processing() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    for change in ["delete", "replace", "cancel", "delete and put again", "delete namespace"] {
        let first = vec![chunk(0, "first")];
        let first_ids = [first[0].chunk];
        harness.put(&corpus, "doc", first).await;
        accept(&corpus, &[document("doc", "second")], OnExisting::Replace).await;
        let task = only_task(&harness, &corpus).await;
        assert!(task.replaces);
        let corpus = match change {
            "delete" => {
                assert_eq!(corpus.documents_delete(&["doc".to_owned()]).await.expect("deleted"), ["doc"]);
                corpus.clone()
            }
            "replace" => {
                accept(&corpus, &[document("doc", "third")], OnExisting::Replace).await;
                corpus.clone()
            }
            "cancel" => {
                let writer = harness.stores.writer(&permit);
                assert_eq!(writer.job_cancel(task.job).await.expect("cancelled"), Some(true));
                assert_eq!(writer.job_cancel(task.job).await.expect("again"), Some(false));
                corpus.clone()
            }
            "delete and put again" => {
                corpus.documents_delete(&["doc".to_owned()]).await.expect("deleted");
                accept(&corpus, &[document("doc", "third")], OnExisting::Replace).await;
                corpus.clone()
            }
            _ => {
                let writer = harness.stores.writer(&permit);
                delete_namespace(&harness, &writer).await;
                harness.corpus(&permit).await
            }
        };
        let late = vec![chunk(0, "second")];
        let late_ids = [late[0].chunk];
        let committed = corpus.documents_commit(&[processed(&task, late)]).await.expect("committed");
        assert!(committed.jobs.is_empty(), "{change}");
        assert!(live(&corpus, &late_ids).await.is_empty(), "{change}");
        let progress = Progress { stage: Status::Processing, done: 1, total: 2, rate: 9.0 };
        let held = corpus.job_progress(&[(task.job, task.lease)], progress, LEASE).await.expect("recorded");
        assert!(held.is_empty(), "{change}");
        corpus.job_fail(task.job, task.lease, "late").await.expect("nothing to fail");

        let kept = live(&corpus, &first_ids).await.len();
        match change {
            "replace" => {
                assert_eq!((kept, status(&corpus, "doc").await), (1, Some(Status::Pending)));
                let third = only_task(&harness, &corpus).await;
                let done = corpus.documents_commit(&[processed(&third, vec![chunk(0, "third")])]).await;
                assert_eq!(done.expect("committed").jobs, [third.job]);
                assert!(live(&corpus, &first_ids).await.is_empty(), "the old version went with it");
            }
            "cancel" => assert_eq!((kept, status(&corpus, "doc").await), (1, Some(Status::Failed))),
            "delete and put again" => {
                assert_eq!((kept, status(&corpus, "doc").await), (0, Some(Status::Pending)));
            }
            _ => assert_eq!((kept, status(&corpus, "doc").await), (0, None), "{change}"),
        }
        let mut superuser = harness.deployment.superuser().await;
        consistent(&mut superuser, permit.scope().tenant()).await;
        corpus.documents_delete(&["doc".to_owned()]).await.expect("deleted");
    }
    harness.close().await;
}

#[tokio::test]
async fn a_job_whose_lease_ran_out_is_done_once_by_whoever_holds_it_now() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    accept(&corpus, &[document("doc", "harbour")], OnExisting::Replace).await;
    let first = only_task(&harness, &corpus).await;
    assert!(harness.lease(&corpus).await.is_empty(), "it is leased");
    harness.clock.advance(LEASE + Duration::from_secs(1));
    let leased = harness.lease(&corpus).await;
    assert_eq!((leased.len(), leased[0].attempts), (1, 2));
    let second = corpus.job_open(&leased).await.expect("opened").remove(0);
    assert_ne!(first.lease, second.lease);

    let late = corpus.documents_commit(&[processed(&first, vec![chunk(0, "late")])]).await.expect("late");
    assert_eq!((late.jobs.len(), late.seq), (0, Seq(0)));
    let done = corpus.documents_commit(&[processed(&second, vec![chunk(0, "harbour")])]).await.expect("done");
    assert_eq!((done.jobs.len(), done.seq), (1, Seq(1)));
    let again = corpus.documents_commit(&[processed(&second, vec![chunk(0, "harbour")])]).await;
    assert_eq!(again.expect("again").jobs, [], "a commit that is repeated writes nothing");
    harness.clock.advance(LEASE * 2);
    assert!(harness.lease(&corpus).await.is_empty(), "what is done is not leased");

    accept(&corpus, &[document("doc", "lighthouse")], OnExisting::Replace).await;
    let held = harness.lease(&corpus).await;
    harness.stores.job_release(&held, Duration::from_mins(1)).await.expect("released");
    assert!(harness.lease(&corpus).await.is_empty(), "not due yet");
    harness.clock.advance(Duration::from_secs(61));
    let task = only_task(&harness, &corpus).await;
    harness.stores.job_release(&held, Duration::ZERO).await.expect("an old lease releases nothing");
    corpus.job_fail(task.job, task.lease, "unreadable").await.expect("failed");
    let row =
        corpus.document_get(&DocumentId::parse("doc").expect("id")).await.expect("read").expect("there");
    assert_eq!((row.status, row.live_version, row.version), (Status::Failed, Some(1), 2));
    assert_eq!(row.error.as_deref(), Some("unreadable"));
    let mut superuser = harness.deployment.superuser().await;
    consistent(&mut superuser, permit.scope().tenant()).await;
    harness.close().await;
}

#[tokio::test]
async fn leases_are_of_one_namespace_within_the_budget_and_never_twice() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let (one, two) = (harness.namespace(&permit, "one").await, harness.namespace(&permit, "two").await);
    for number in 0..20 {
        let corpus = if number % 2 == 0 { &one } else { &two };
        let text = format!("ten bytes {number:02}");
        accept(corpus, &[document(&format!("doc-{number}"), &text)], OnExisting::Replace).await;
        harness.clock.advance(Duration::from_millis(1));
    }
    let tenant = permit.scope().tenant();
    assert!(harness.stores.job_backlog(1000).await.expect("backlog").contains(&tenant));
    let few = harness.stores.job_lease(tenant, terms(10, 25)).await.expect("leased");
    assert_eq!(few.len(), 3, "25 bytes are reached by the third");
    assert!(few.iter().all(|job| job.namespace == one.partition().namespace()));

    let races = (0..8).map(|_| harness.stores.job_lease(tenant, terms(4, i64::MAX)));
    let mut seen: BTreeSet<_> = few.iter().map(|job| job.job).collect();
    for leased in futures::future::join_all(races).await {
        let leased = leased.expect("leased");
        let namespaces: BTreeSet<_> = leased.iter().map(|job| job.namespace).collect();
        assert!(namespaces.len() <= 1);
        for job in leased {
            assert!(seen.insert(job.job), "{} was leased twice", job.job);
        }
    }
    harness.close().await;
}

#[tokio::test]
async fn a_name_an_id_and_a_content_that_are_there_are_refused_or_recorded() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    accept(&corpus, &[document("a", "harbour")], OnExisting::Refuse).await;

    let mut renamed = document("b", "lighthouse");
    renamed.file_name = "a.txt".to_owned();
    let batch = [document("c", "quay"), renamed];
    assert_eq!(accept(&corpus, &batch, OnExisting::Refuse).await, Acceptance::NameTaken("a.txt".to_owned()));
    assert_eq!(status(&corpus, "c").await, None, "all or none");
    let mut twice = document("d", "pier");
    twice.file_name = "c.txt".to_owned();
    let batch = [document("c", "quay"), twice];
    assert_eq!(accept(&corpus, &batch, OnExisting::Refuse).await, Acceptance::NameTaken("c.txt".to_owned()));
    let mut same_id = document("a", "another text");
    same_id.file_name = "e.txt".to_owned();
    let taken = accept(&corpus, &[same_id], OnExisting::Refuse).await;
    assert_eq!(
        taken,
        Acceptance::NameTaken("e.txt".to_owned()),
        "a document is never overwritten by an insert"
    );
    let batch = [document("f", "one"), document("f", "two")];
    let invalid = corpus.documents_accept(&batch, OnExisting::Replace, "t", &Limits::default()).await;
    assert_eq!(invalid.expect_err("an id comes twice").kind, ErrorKind::Invalid);

    let Acceptance::Accepted(accepted) = accept(
        &corpus,
        &[document("g", "harbour"), document("h", "new"), document("i", "new")],
        OnExisting::Refuse,
    )
    .await
    else {
        panic!("accepted")
    };
    assert_eq!(accepted.iter().map(|one| one.job.is_some()).collect::<Vec<_>>(), [false, true, false]);
    for (id, original) in [("g", "a"), ("i", "h")] {
        let row =
            corpus.document_get(&DocumentId::parse(id).expect("id")).await.expect("read").expect("there");
        assert_eq!(row.status, Status::Failed);
        assert_eq!(row.metadata["is_duplicate"], true);
        assert_eq!(row.metadata["original_doc_id"], original);
        assert_eq!(row.metadata["original_track_id"], "track-1");
    }
    // A replacement refuses no name and no content.
    assert!(only_job(&accept(&corpus, &[document("j", "harbour")], OnExisting::Replace).await).is_some());
    let full = corpus
        .documents_accept(
            &[document("k", "more")],
            OnExisting::Replace,
            "t",
            &Limits { queued_jobs: 3, ..Limits::default() },
        )
        .await;
    assert_eq!(full.expect("answered"), Acceptance::QueueFull);
    harness.close().await;
}

#[tokio::test]
async fn counts_and_histories_stay_true_through_any_changes() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    let mut superuser = harness.deployment.superuser().await;
    let words = ["harbour", "lighthouse", "quay", "pier", "anchor", "tide", "gull", "buoy"];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = move |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below as u64).expect("small")
    };
    let mut model: BTreeMap<String, Vec<ChunkId>> = BTreeMap::new();
    let mut seq = 0;
    for step in 0..120 {
        let id = format!("doc-{}", draw(10));
        if draw(3) == 0 {
            let deleted = corpus.documents_delete(std::slice::from_ref(&id)).await.expect("deleted");
            let was_there = model.remove(&id).is_some();
            assert_eq!(deleted.len(), usize::from(was_there));
            seq += i64::from(was_there);
        } else {
            let chunks: Vec<NewChunk> = (0..=draw(3))
                .map(|ordinal| {
                    let text: Vec<&str> = (0..=draw(4)).map(|_| words[draw(words.len())]).collect();
                    let mut chunk = chunk(i32::try_from(ordinal).expect("small"), &text.join(" "));
                    // A weight of 0 is not stored, and must not be counted.
                    chunk.terms.values[0] = if draw(8) == 0 { 0.0 } else { chunk.terms.values[0] };
                    chunk
                })
                .collect();
            model.insert(id.clone(), chunks.iter().map(|chunk| chunk.chunk).collect());
            harness.put(&corpus, &id, chunks).await;
            seq += 1;
        }
        if step % 10 == 9 {
            consistent(&mut superuser, permit.scope().tenant()).await;
            // An index that follows in steps of a random size ends where the record stands.
            let mut position =
                corpus.index_position().await.expect("position").map_or(Seq(0), |at| at.applied);
            let page = 1 + i64::try_from(draw(5)).expect("small");
            loop {
                let History::Changes(changes) = corpus.history(position, page).await.expect("history") else {
                    panic!("the history leads on from {position}");
                };
                if changes.through == position {
                    break;
                }
                position = changes.through;
                corpus.index_apply(changes).await.expect("applied");
            }
            assert_eq!(position, Seq(seq));
            let mut expected: Vec<ChunkId> = model.values().flatten().copied().collect();
            expected.sort();
            assert_eq!(harness.index.chunks(corpus.partition()), expected);
        }
        if step == 59 {
            // Another consumer holds the history back; without it, everything passed goes.
            let before = corpus.index_flush("first").await.expect("flushed");
            assert_eq!(before, Seq(seq));
            assert!(matches!(corpus.history(Seq(0), 10).await.expect("history"), History::Broken));
            let ahead = corpus.history(Seq(seq + 1), 10).await.expect("history");
            assert!(matches!(ahead, History::Broken), "an index that is ahead of the record is wrong");
        }
    }
    // From nothing, by pages, as a rebuild reads.
    let mut points = Vec::new();
    while let Some(page) = {
        let page = corpus.point_page(points.last().copied(), 3).await.expect("page");
        (!page.is_empty()).then_some(page)
    } {
        points.extend(page.into_iter().map(|point| point.chunk));
    }
    assert_eq!(points, harness.index.chunks(corpus.partition()));
    harness.close().await;
}

#[tokio::test]
async fn tenants_with_the_same_ids_names_and_contents_never_meet() {
    let harness = Harness::new().await;
    let tenants = [harness.tenant().await, harness.tenant().await];
    let mut corpora = Vec::new();
    let mut ids = Vec::new();
    // The same chunk ids too, which only a fault could bring about.
    let shared = [chunk(0, "harbour lighthouse"), chunk(1, "harbour")];
    for permit in &tenants {
        let corpus = harness.corpus(permit).await;
        let accepted = accept(&corpus, &[document("doc", "harbour")], OnExisting::Refuse).await;
        assert!(only_job(&accepted).is_some(), "nobody else's name or content is in the way");
        let task = only_task(&harness, &corpus).await;
        corpus.documents_commit(&[processed(&task, shared.to_vec())]).await.expect("committed");
        ids.push(task.job);
        corpora.push(corpus);
    }
    let all: Vec<ChunkId> = shared.iter().map(|chunk| chunk.chunk).collect();
    let query = VectorQuery {
        embedding: Some(shared[0].embedding.clone()),
        terms: Some(shared[0].terms.clone()),
        limit: 100,
    };
    for (number, (permit, corpus)) in std::iter::zip(&tenants, &corpora).enumerate() {
        let tenant = permit.scope().tenant();
        let rows = corpus.chunk_list(&all).await.expect("read");
        assert_eq!(rows.len(), 2);
        assert!(rows.iter().all(|row| row.tenant == tenant));
        assert_eq!(corpus.mention_list(&all, &[]).await.expect("read").len(), 2);
        let found = corpus.chunk_search_exact(&query, Seq(-1)).await.expect("found");
        assert_eq!((found.dense.len(), found.lexical.len()), (2, 2));
        assert!(found.dense.iter().chain(&found.lexical).all(|hit| hit.tenant == tenant));
        let reader = harness.stores.reader(permit);
        assert_eq!(reader.document_track("track-1").await.expect("track").len(), 1);
        assert_eq!(reader.job_track("track-1").await.expect("track").len(), 1);
        let (_, counts) = reader
            .corpus_get_with_terms(&NamespaceName::default(), &[term("harbour")])
            .await
            .expect("read")
            .expect("there");
        assert_eq!(counts.chunks, [(term("harbour"), 2)], "counts are of the own corpus");
        let writer = harness.stores.writer(permit);
        assert_eq!(writer.job_cancel(ids[1 - number]).await.expect("asked"), None, "not its job");
        let foreign = corpora[1 - number].partition().namespace();
        assert!(reader.corpus_get_by_id(foreign).await.expect("asked").is_none(), "not its namespace");
    }
    corpora[0].documents_delete(&["doc".to_owned()]).await.expect("deleted");
    assert_eq!(corpora[1].chunk_list(&all).await.expect("read").len(), 2, "B keeps what A deletes");
    let writer = harness.stores.writer(&tenants[0]);
    delete_namespace(&harness, &writer).await;
    writer.tenant_purge().await.expect("purged");
    assert_eq!(corpora[1].chunk_list(&all).await.expect("read").len(), 2);
    let mut superuser = harness.deployment.superuser().await;
    for permit in &tenants {
        consistent(&mut superuser, permit.scope().tenant()).await;
    }
    harness.close().await;
}

#[tokio::test]
async fn nothing_of_a_deleted_document_stays_in_any_table() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let mut superuser = harness.deployment.superuser().await;
    for end in ["document", "namespace", "tenant"] {
        let corpus = harness.corpus(&permit).await;
        let mark = SystemIds(SystemClock).uuid().simple().to_string();
        let canary = |what: &str| format!("canary-{what}-{mark}");
        let (id, text, late) = (canary("id"), canary("text"), canary("late"));
        let mut new = document(&id, &text);
        new.title = Some(canary("title"));
        new.metadata = serde_json::json!({ "note": canary("note") });
        new.file_name = canary("name");
        accept(&corpus, &[new.clone()], OnExisting::Replace).await;
        let task = only_task(&harness, &corpus).await;
        let chunks = vec![chunk(0, &text), chunk(1, &text)];
        let chunk_ids: Vec<String> = chunks.iter().map(|chunk| chunk.chunk.to_string()).collect();
        corpus.documents_commit(&[processed(&task, chunks)]).await.expect("committed");
        // A version that failed and one that waits.
        accept(&corpus, &[document(&id, &late)], OnExisting::Replace).await;
        let task = only_task(&harness, &corpus).await;
        corpus.job_fail(task.job, task.lease, &canary("error")).await.expect("failed");
        accept(&corpus, &[new], OnExisting::Replace).await;

        let mut needles: Vec<String> =
            ["id", "text", "late", "title", "note", "name", "error"].map(canary).to_vec();
        for needle in &needles {
            assert!(!residue(&mut superuser, needle).await.is_empty(), "{needle} is found while it is there");
        }
        match end {
            "document" => {
                corpus.documents_delete(std::slice::from_ref(&id)).await.expect("deleted");
                // The ids of removed chunks stay in the history until every index has passed it.
                let History::Changes(changes) = corpus.history(Seq(0), 100).await.expect("history") else {
                    panic!("leads on")
                };
                corpus.index_apply(changes).await.expect("applied");
                corpus.index_flush("index").await.expect("flushed");
            }
            "namespace" => {
                let writer = harness.stores.writer(&permit);
                delete_namespace(&harness, &writer).await;
            }
            _ => {
                harness.stores.background(&permit).tenant_purge().await.expect("purged");
            }
        }
        needles.extend(chunk_ids);
        if end != "document" {
            needles.push(corpus.partition().namespace().to_string());
        }
        for needle in &needles {
            assert_eq!(residue(&mut superuser, needle).await, Vec::<String>::new(), "{needle} after {end}");
        }
        consistent(&mut superuser, permit.scope().tenant()).await;
        // The same id and name again meet nothing old.
        let again = harness.corpus(&permit).await;
        assert_eq!(status(&again, &id).await, None);
    }
    harness.close().await;
}
