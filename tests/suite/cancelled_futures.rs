//! A caller can go away at any moment. Each operation is dropped after 1, 2, 3 ... polls, on a pool of a single
//! connection, until it lives to its end; after each drop another tenant uses the same connection.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bulkhead::domain::Seq;
use bulkhead::domain::ids::{ChunkId, DocumentId, NamespaceName};
use bulkhead::domain::limits::Limits;
use bulkhead::store::postgres::documents::{Listing, OnExisting, SortField};
use bulkhead::store::postgres::ingest::ProcessedDocument;
use bulkhead::store::vector::{Terms, VectorQuery};
use bulkhead::store::{CorpusWriter, TenantReader};
use bulkhead::tenancy::{Directory as _, Permit, Write};
use sqlx::postgres::PgConnection;

use crate::consistency::consistent;
use crate::database::deletion;
use crate::deployment::{Harness, LEASE, accept, chunk, document, pools, terms};
use crate::store::only_task;

/// More polls than any operation takes, those included in which its pool opens connections anew that were dropped while
/// they were opened; a sweep that gets here never ends.
const MOST_POLLS: usize = 2000;

/// What the future returns if it needs at most this many polls; otherwise it is dropped after them.
async fn cancelled_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut done = 0;
    poll_fn(|context| {
        done += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if done >= polls => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// One tenant to cancel, and one to watch from the same connection.
struct Sweep {
    harness: Harness,
    superuser: PgConnection,
    name: String,
    a: Permit<Write>,
    b: TenantReader,
    a_chunks: Vec<ChunkId>,
    b_chunks: Vec<ChunkId>,
}

impl Sweep {
    async fn new(name: &str) -> Self {
        let harness = Harness::with(&pools(1), |addresses| {
            for address in
                [&mut addresses.app, &mut addresses.auth, &mut addresses.dispatch, &mut addresses.control]
            {
                *address = address.clone().application_name(name);
            }
        })
        .await;
        let (a, b) = (harness.tenant().await, harness.tenant().await);
        let mut ids = Vec::new();
        for permit in [&a, &b] {
            let corpus = harness.corpus(permit).await;
            let chunks = vec![chunk(0, "harbour lighthouse"), chunk(1, "lighthouse")];
            ids.push(chunks.iter().map(|chunk| chunk.chunk).collect::<Vec<_>>());
            harness.put(&corpus, "doc", chunks).await;
        }
        let (b_chunks, a_chunks) = (ids.pop().expect("two"), ids.pop().expect("two"));
        let superuser = harness.deployment.superuser().await;
        let b = harness.stores.reader(&b);
        Self { harness, superuser, name: name.to_owned(), a, b, a_chunks, b_chunks }
    }

    fn writer(&self) -> bulkhead::store::TenantWriter {
        self.harness.stores.writer(&self.a)
    }

    async fn corpus(&self) -> CorpusWriter {
        let opened = self.writer().corpus_require(&NamespaceName::default()).await.expect("opened");
        opened.expect("reached")
    }

    /// B uses the connection that A just left, and sees what is B's.
    async fn check(&mut self, operation: &str, polls: usize) {
        let about = format!("{operation}, dropped after {polls} polls");
        let corpus = self.b.corpus_get(&NamespaceName::default()).await;
        let corpus = corpus.unwrap_or_else(|error| panic!("{about}: {error}")).expect("B's namespace");
        let every: Vec<ChunkId> = self.a_chunks.iter().chain(&self.b_chunks).copied().collect();
        let rows = corpus.chunk_list(&every).await.unwrap_or_else(|error| panic!("{about}: {error}"));
        assert_eq!(rows.len(), self.b_chunks.len(), "{about}");
        for row in rows {
            assert_eq!(row.tenant, self.b.scope().tenant(), "{about}");
        }
        // The rollback of what was dropped is sent by a task; it is waited for.
        for attempt in 0.. {
            let open: i64 = sqlx::query_scalar(
                "select count(*) from pg_stat_activity where state like 'idle in transaction%'
                     and application_name in ($1, 'bulkhead ' || $2, 'bulkhead ' || $3)",
            )
            .bind(&self.name)
            .bind(self.a.scope().tenant().to_string())
            .bind(self.b.scope().tenant().to_string())
            .fetch_one(&mut self.superuser)
            .await
            .expect("activity");
            if open == 0 {
                break;
            }
            assert!(attempt < 100, "{about}: a transaction stays open");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn end(mut self) {
        consistent(&mut self.superuser, self.a.scope().tenant()).await;
        drop(self.superuser);
        self.harness.close().await;
    }
}

/// Sweeps one operation: `$future` is evaluated anew for each number of polls.
macro_rules! sweep {
    ($sweep:ident, $name:literal, $polls:ident => $future:expr) => {
        let (mut dropped, mut at_once, mut completed) = (0, 0, false);
        while !completed && dropped < MOST_POLLS {
            let $polls = dropped + 1;
            completed = cancelled_after($polls, $future)
                .await
                .map(|result| result.unwrap_or_else(|error| panic!("{}: {error}", $name)))
                .is_some();
            $sweep.check($name, $polls).await;
            if !completed {
                dropped += 1;
            } else if dropped == 0 && at_once < 100 {
                // The answer was there before the first poll ended. Nothing was cancelled: once more.
                at_once += 1;
                completed = false;
            }
        }
        assert!(completed, "{} never came to its end", $name);
        assert!(dropped > 0, "{} never waited: nothing was cancelled", $name);
    };
}

#[tokio::test]
async fn a_read_that_is_dropped_anywhere_leaves_a_clean_connection() {
    let mut sweep = Sweep::new("sweep-reads").await;
    let name = NamespaceName::default();
    let reader = sweep.harness.stores.reader(&sweep.a);
    let corpus = reader.corpus_get(&name).await.expect("read").expect("there");
    let chunks = sweep.a_chunks.clone();
    let query = VectorQuery {
        embedding: Some(chunk(0, "harbour").embedding),
        terms: Some(Terms { indices: vec![crate::deployment::term("harbour")], values: vec![1.0] }),
        limit: 5,
    };
    let listing = Listing {
        statuses: Vec::new(),
        page: 1,
        page_size: 10,
        sort: SortField::UpdatedAt,
        descending: true,
    };
    let document_id = DocumentId::parse("doc").expect("id");
    sweep!(sweep, "corpus_get_with_terms", polls => reader.corpus_get_with_terms(&name, &[1, 2]));
    sweep!(sweep, "chunk_list", polls => corpus.chunk_list(&chunks));
    sweep!(sweep, "mention_list", polls => corpus.mention_list(&chunks, &[]));
    sweep!(sweep, "chunk_search_exact", polls => corpus.chunk_search_exact(&query, Seq(-1)));
    sweep!(sweep, "document_list", polls => corpus.document_list(&listing));
    sweep!(sweep, "document_get", polls => corpus.document_get(&document_id));
    sweep!(sweep, "document_track", polls => reader.document_track("track-1"));
    sweep!(sweep, "job_track", polls => reader.job_track("track-1"));
    sweep!(sweep, "history", polls => corpus.history(Seq(0), 10));
    sweep!(sweep, "point_page", polls => corpus.point_page(None, 10));
    sweep!(sweep, "namespace_list", polls => reader.namespace_list());
    sweep.end().await;
}

#[tokio::test]
async fn a_write_that_is_dropped_anywhere_is_done_whole_or_not_at_all() {
    let mut sweep = Sweep::new("sweep-writes").await;
    let corpus = sweep.corpus().await;
    let writer = sweep.writer();
    sweep!(sweep, "corpus_require", polls => {
        let (writer, name) = (writer.clone(), NamespaceName::parse(&format!("n-{polls}")).expect("name"));
        async move { writer.corpus_require(&name).await }
    });
    sweep!(sweep, "documents_accept", polls => {
        let (corpus, new) = (corpus.clone(), document(&format!("doc-{polls}"), "harbour"));
        async move { corpus.documents_accept(&[new], OnExisting::Replace, "track-2", &Limits::default()).await }
    });
    sweep!(sweep, "documents_accept again", polls => {
        let (corpus, new) = (corpus.clone(), document("doc-1", &format!("harbour {polls}")));
        async move { corpus.documents_accept(&[new], OnExisting::Replace, "track-2", &Limits::default()).await }
    });
    let track = sweep.harness.stores.reader(&sweep.a).document_track("track-2").await.expect("read");
    let ids: Vec<String> = track.into_iter().map(|row| row.document_id).collect();
    corpus.documents_delete(&ids).await.expect("deleted");

    sweep!(sweep, "documents_commit", polls => {
        let id = format!("commit-{polls}");
        accept(&corpus, &[document(&id, "harbour")], OnExisting::Replace).await;
        let task = only_task(&sweep.harness, &corpus).await;
        let chunks = vec![chunk(0, "harbour"), chunk(1, "harbour lighthouse")];
        let done = ProcessedDocument {
            job: task.job, lease: task.lease, document_id: id, version: task.version, title: None, chunks,
        };
        let corpus = corpus.clone();
        async move { corpus.documents_commit(&[done]).await }
    });
    sweep!(sweep, "documents_delete", polls => {
        let (corpus, id) = (corpus.clone(), format!("commit-{polls}"));
        async move { corpus.documents_delete(&[id, "doc".to_owned()]).await }
    });
    sweep!(sweep, "index_flush", polls => corpus.index_flush("sweep"));
    sweep!(sweep, "namespace_delete", polls => {
        let (writer, name) = (writer.clone(), NamespaceName::parse("n-50").expect("name"));
        writer.corpus_require(&name).await.expect("made");
        let act = deletion(&sweep.harness.postgres, writer.scope());
        async move { writer.namespace_delete(act, &name).await }
    });
    sweep.end().await;
}

#[tokio::test]
async fn the_queue_and_the_directory_survive_callers_that_go_away() {
    let mut sweep = Sweep::new("sweep-queue").await;
    let corpus = sweep.corpus().await;
    let tenant = sweep.a.scope().tenant();
    accept(&corpus, &[document("doc", "harbour")], OnExisting::Replace).await;
    let stores = sweep.harness.stores.clone();
    let postgres = sweep.harness.postgres.clone();
    sweep!(sweep, "job_backlog", polls => stores.job_backlog(10));
    sweep!(sweep, "directory.tenant", polls => postgres.tenant(tenant));
    sweep!(sweep, "directory.key", polls => postgres.key("none"));
    sweep!(sweep, "job_lease", polls => {
        sweep.harness.clock.advance(LEASE * 2);
        stores.job_lease(tenant, terms(10, i64::MAX))
    });
    let held = {
        sweep.harness.clock.advance(LEASE * 2);
        sweep.harness.lease(&corpus).await
    };
    sweep!(sweep, "job_open", polls => corpus.job_open(&held));
    sweep!(sweep, "job_release", polls => stores.job_release(&held, Duration::ZERO));
    assert_eq!(sweep.harness.lease(&corpus).await.len(), 1, "the job can be leased again");
    sweep.end().await;
}
