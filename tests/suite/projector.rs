//! The projector between PostgreSQL and real shards: nothing is lost, doubled, resurrected or left behind.

mod observed;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bulkhead::domain::Seq;
use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{ChunkId, DocumentId, IdSource, NamespaceName, SystemIds};
use bulkhead::domain::limits::Limits;
use bulkhead::jobs::projector::{Projector, ProjectorSettings};
use bulkhead::store::postgres::documents::{Acceptance, Content, NewDocument, OnExisting};
use bulkhead::store::postgres::ingest::{Mentions, NewChunk, ProcessedDocument};
use bulkhead::store::postgres::projection::History;
use bulkhead::store::qdrant_edge::{EdgeIndex, EdgeSettings};
use bulkhead::store::uploads::Uploads;
use bulkhead::store::vector::{Terms, VectorIndex, VectorQuery};
use bulkhead::store::{Corpus, CorpusWriter, ErrorKind, Stores};
use bulkhead::tenancy::{Directory, Permit, Write};
use observed::Observed;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::database::{Database, deletion};
use crate::deployment::{Harness, chunk, terms};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("folder");
    for entry in std::fs::read_dir(from).expect("folder") {
        let (path, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).expect("entry");
        if path.is_dir() {
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).expect("copied");
        }
    }
}

/// A database, shards and a projector between them.
struct Rig {
    database: Database,
    folder: PathBuf,
    index: Arc<Observed>,
    stores: Stores,
    projector: Projector,
}

/// Small pages, so that everything takes several.
fn settings() -> ProjectorSettings {
    ProjectorSettings { page: 7, flush_ms: 50, sweep_ms: 50, rest_ms: 50, ..ProjectorSettings::default() }
}

impl Rig {
    async fn start(settings: ProjectorSettings) -> Self {
        Self::with_edge(settings, EdgeSettings::default()).await
    }

    async fn with_edge(settings: ProjectorSettings, edge: EdgeSettings) -> Self {
        let database = Database::start().await;
        let folder = database.folder().join("vectors");
        Self::over(database, folder, settings, edge)
    }

    fn over(database: Database, folder: PathBuf, settings: ProjectorSettings, edge: EdgeSettings) -> Self {
        let index = EdgeIndex::new(folder.clone(), edge, Arc::new(SystemClock)).expect("folder");
        let index = Arc::new(Observed {
            index,
            now: Mutex::default(),
            most: AtomicUsize::new(0),
            most_of_a_tenant: AtomicUsize::new(0),
            flushes: AtomicUsize::new(0),
            away: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            unwritable: AtomicBool::new(false),
            slow: AtomicBool::new(false),
        });
        let uploads = Uploads::in_folder(&database.folder().join("uploads")).expect("uploads");
        let vectors: Arc<dyn VectorIndex> = Arc::<Observed>::clone(&index);
        let stores = Stores::new(database.postgres.clone(), vectors, uploads);
        let directory: Arc<dyn Directory> = Arc::new(database.postgres.clone());
        let projector = Projector::new(stores.clone(), directory, settings, "node-1", Arc::new(SystemClock));
        Self { database, folder, index, stores, projector }
    }

    /// The same data after a crash: of the shards what was in their files then. The old shards close in peace
    /// afterwards, on files of their own.
    fn crashed(self, settings: ProjectorSettings) -> Self {
        let folder = self.folder.with_extension("left");
        copy(&self.folder, &folder);
        Self::over(self.database, folder, settings, EdgeSettings::default())
    }

    async fn corpus(&self, permit: &Permit<Write>, name: &str) -> CorpusWriter {
        let name = NamespaceName::parse(name).expect("name");
        self.stores.background(permit).corpus_require(&name).await.expect("corpus").expect("reached")
    }

    /// Writes a version of a document with this many chunks.
    async fn ingest(&self, corpus: &CorpusWriter, document: &str, chunks: u16) {
        let ids = SystemIds(SystemClock);
        let new = NewDocument {
            document_id: DocumentId::parse(document).expect("id"),
            title: None,
            file_name: document.to_owned(),
            metadata: serde_json::json!({}),
            content: Content::Text("text".to_owned()),
            content_hash: ids.secret(),
            content_length: 4,
            summary: String::new(),
        };
        let accepted =
            corpus.documents_accept(&[new], OnExisting::Replace, "track", &Limits::default()).await;
        assert!(matches!(accepted.expect("accepted"), Acceptance::Accepted(_)));
        let leased =
            self.stores.job_lease(corpus.partition().tenant(), terms(1, 1000)).await.expect("leased");
        let task = corpus.job_open(&leased).await.expect("opened").remove(0);
        let chunk = |ordinal: u16| NewChunk {
            chunk: ChunkId(ids.uuid()),
            ordinal: i32::from(ordinal),
            heading: None,
            text: format!("{document} {ordinal}"),
            tokens: 3,
            text_hash: [0; 16],
            embedding: vec![1.0, f32::from(ordinal) / 1000.0, 0.0, 0.0],
            terms: Terms { indices: vec![u32::from(ordinal)], values: vec![1.0] },
            mentions: Mentions::default(),
        };
        let processed = ProcessedDocument {
            job: task.job,
            lease: task.lease,
            document_id: task.document_id,
            title: task.title,
            version: task.version,
            chunks: (0..chunks).map(chunk).collect(),
        };
        let committed = corpus.documents_commit(&[processed]).await.expect("committed");
        assert_eq!(committed.jobs.len(), 1);
    }

    /// What a search for everything finds; `None` when there is no index.
    async fn indexed(&self, corpus: &Corpus) -> Option<BTreeSet<ChunkId>> {
        let query = VectorQuery { embedding: Some(vec![1.0, 0.0, 0.0, 0.0]), terms: None, limit: 1000 };
        let found = self.index.search(corpus.partition(), &query).await.expect("searched")?;
        Some(found.dense.into_iter().map(|hit| hit.chunk).collect())
    }

    async fn recorded(&self, corpus: &Corpus) -> BTreeSet<ChunkId> {
        let points = corpus.point_page(None, 10_000).await.expect("points");
        points.into_iter().map(|point| point.chunk).collect()
    }

    async fn assert_equal(&self, corpus: &Corpus) {
        assert_eq!(self.indexed(corpus).await, Some(self.recorded(corpus).await));
    }

    /// Waits until the index holds what the database does.
    async fn until_equal(&self, corpus: &Corpus) {
        let equal = async {
            while self.indexed(corpus).await != Some(self.recorded(corpus).await) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), equal).await.expect("in time");
    }

    async fn history_length(&self) -> i64 {
        sqlx::query_scalar("select count(*) from outbox")
            .fetch_one(&mut self.database.superuser().await)
            .await
            .expect("count")
    }

    async fn stop(self) {
        self.index.index.close().await;
        self.database.stop().await;
    }
}

#[tokio::test]
async fn an_index_follows_additions_replacements_and_deletions() {
    let rig = Rig::start(settings()).await;
    let alice = rig.database.tenant("alice").await;
    let corpus = rig.corpus(&alice, "default").await;
    assert_eq!(rig.projector.project(&corpus).await.expect("projected"), Seq(0));
    assert_eq!(rig.indexed(&corpus).await, None, "no index before the first point");
    // Smaller than a page, exactly one, and several.
    for (document, chunks) in [("a", 3), ("b", 7), ("c", 30), ("d", 6), ("e", 0)] {
        rig.ingest(&corpus, document, chunks).await;
    }
    assert_eq!(rig.projector.project(&corpus).await.expect("projected"), Seq(5));
    rig.assert_equal(&corpus).await;
    rig.ingest(&corpus, "c", 12).await;
    corpus.documents_delete(&["a".to_owned(), "none".to_owned()]).await.expect("deleted");
    assert_eq!(rig.projector.project(&corpus).await.expect("projected"), Seq(7));
    rig.assert_equal(&corpus).await;
    assert_eq!(rig.recorded(&corpus).await.len(), 12 + 7 + 6);
    assert_eq!(rig.projector.counts().rebuilds, 0);
    rig.projector.flush().await;
    assert_eq!(rig.history_length().await, 0, "history that was made durable goes");
    rig.stop().await;
}

#[tokio::test]
async fn what_was_not_made_durable_is_applied_again_after_a_crash() {
    let rig = Rig::start(settings()).await;
    let alice = rig.database.tenant("alice").await;
    let corpus = rig.corpus(&alice, "default").await;
    rig.ingest(&corpus, "a", 5).await;
    rig.ingest(&corpus, "b", 5).await;
    rig.projector.project(&corpus).await.expect("projected");
    rig.projector.flush().await;
    rig.ingest(&corpus, "c", 5).await;
    corpus.documents_delete(&["a".to_owned()]).await.expect("deleted");
    rig.projector.project(&corpus).await.expect("projected");
    // It holds the old shards open.
    drop(corpus);

    let rig = rig.crashed(settings());
    let corpus = rig.corpus(&alice, "default").await;
    rig.projector.project(&corpus).await.expect("projected");
    rig.assert_equal(&corpus).await;
    assert_eq!(rig.projector.counts().rebuilds, 0);
    rig.stop().await;
}

#[tokio::test]
async fn an_index_that_is_lost_damaged_or_ahead_is_written_anew() {
    let rig = Rig::start(settings()).await;
    let alice = rig.database.tenant("alice").await;
    let corpus = rig.corpus(&alice, "default").await;
    rig.ingest(&corpus, "a", 20).await;
    rig.ingest(&corpus, "b", 5).await;
    rig.projector.project(&corpus).await.expect("projected");
    rig.projector.flush().await;

    // Lost: its history is gone as well.
    rig.index.index.close().await;
    std::fs::remove_dir_all(&rig.folder).expect("removed");
    std::fs::create_dir(&rig.folder).expect("folder");
    let rig = rig.crashed(settings());
    rig.projector.project(&*rig.corpus(&alice, "default").await).await.expect("projected");
    rig.assert_equal(&corpus).await;
    assert_eq!(rig.projector.counts().rebuilds, 1);

    rig.ingest(&rig.corpus(&alice, "default").await, "c", 3).await;
    rig.index.damaged.store(true, Ordering::Relaxed);
    rig.projector.project(&*rig.corpus(&alice, "default").await).await.expect("projected");
    rig.assert_equal(&corpus).await;
    assert_eq!(rig.projector.counts().rebuilds, 2);

    // The database was restored to an earlier time.
    sqlx::raw_sql(
        "update namespace set seq = 2; delete from chunk_embedding where seq > 2; delete from consumer",
    )
    .execute(&mut rig.database.superuser().await)
    .await
    .expect("restored");
    rig.projector.project(&*rig.corpus(&alice, "default").await).await.expect("projected");
    rig.assert_equal(&corpus).await;
    assert_eq!(rig.projector.counts().rebuilds, 3);
    rig.stop().await;
}

/// Found by the simulation: the position was registered before the new generation was there, so that nothing lagged.
#[tokio::test]
async fn an_index_that_could_not_be_written_anew_is_tried_again_though_nobody_asks() {
    let rig = Rig::start(settings()).await;
    let alice = rig.database.tenant("alice").await;
    let corpus = rig.corpus(&alice, "default").await;
    rig.ingest(&corpus, "a", 20).await;
    rig.projector.project(&corpus).await.expect("projected");
    rig.projector.flush().await;
    rig.index.index.close().await;
    std::fs::remove_dir_all(&rig.folder).expect("removed");
    std::fs::create_dir(&rig.folder).expect("folder");
    let rig = rig.crashed(settings());
    let corpus = rig.corpus(&alice, "default").await;
    rig.index.unwritable.store(true, Ordering::Relaxed);
    rig.projector.project(&corpus).await.expect_err("the disk is full");
    rig.index.unwritable.store(false, Ordering::Relaxed);
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(rig.projector.clone().run(shutdown.clone()));
    rig.until_equal(&corpus).await;
    shutdown.cancel();
    running.await.expect("ended");
    rig.stop().await;
}

#[tokio::test]
async fn a_rebuild_misses_nothing_that_comes_or_goes_meanwhile() {
    let rig = Rig::start(settings()).await;
    let alice = rig.database.tenant("alice").await;
    let corpus = rig.corpus(&alice, "default").await;
    for document in ["a", "b", "c"] {
        rig.ingest(&corpus, document, 30).await;
    }
    let rebuilds = async {
        for _ in 0..5 {
            corpus.index_rebuild("vectors:node-1", 7).await.expect("rebuilt");
            rig.projector.project(&corpus).await.expect("projected");
        }
    };
    let changes = async {
        for round in 0..10 {
            rig.ingest(&corpus, &format!("new-{round}"), 4).await;
            rig.ingest(&corpus, "b", 20 + round).await;
            corpus.documents_delete(&[format!("new-{}", round / 2)]).await.expect("deleted");
        }
    };
    tokio::join!(rebuilds, changes);
    rig.projector.project(&corpus).await.expect("projected");
    rig.assert_equal(&corpus).await;
    rig.stop().await;
}

#[tokio::test]
async fn callers_who_come_together_share_few_runs_and_tenants_take_turns() {
    let rig = Rig::start(ProjectorSettings { concurrent: 3, ..settings() }).await;
    rig.index.slow.store(true, Ordering::Relaxed);
    let (alice, bob) = (rig.database.tenant("alice").await, rig.database.tenant("bob").await);
    let mut corpora = Vec::new();
    for name in ["one", "two", "three", "four"] {
        corpora.push(rig.corpus(&alice, name).await);
    }
    corpora.push(rig.corpus(&bob, "default").await);
    for corpus in &corpora {
        rig.ingest(corpus, "a", 20).await;
    }
    let calls = corpora.iter().flat_map(|corpus| (0..20).map(|_| rig.projector.project(corpus)));
    let results = futures::future::join_all(calls).await;
    assert!(results.into_iter().all(|result| result.expect("projected") == Seq(1)));
    for corpus in &corpora {
        rig.assert_equal(corpus).await;
    }
    assert_eq!(rig.index.most_of_a_tenant.load(Ordering::Relaxed), 1);
    assert_eq!(rig.index.most.load(Ordering::Relaxed), 2, "the other tenant was not kept waiting");
    assert_eq!(rig.projector.counts().points, 100, "each point was applied once");
    rig.stop().await;
}

#[tokio::test]
async fn the_sweep_finds_what_nobody_asked_for_and_stopping_makes_it_durable() {
    let edge = EdgeSettings { purge_after_seconds: 0, ..EdgeSettings::default() };
    let rig = Rig::with_edge(ProjectorSettings { upkeep_ms: 50, ..settings() }, edge).await;
    let (alice, bob) = (rig.database.tenant("alice").await, rig.database.tenant("bob").await);
    let corpora = [rig.corpus(&alice, "default").await, rig.corpus(&bob, "default").await];
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(rig.projector.clone().run(shutdown.clone()));
    rig.index.away.store(true, Ordering::Relaxed);
    for corpus in &corpora {
        rig.ingest(corpus, "a", 20).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(rig.projector.counts().failures > 0);
    rig.index.away.store(false, Ordering::Relaxed);
    for corpus in &corpora {
        rig.until_equal(corpus).await;
    }
    // A deletion wants a new generation, here at once, so that no byte of what was deleted stays.
    let generations = rig.projector.counts().rebuilds;
    corpora[0].documents_delete(&["a".to_owned()]).await.expect("deleted");
    rig.projector.kick(corpora[0].partition());
    rig.until_equal(&corpora[0]).await;
    let rebuilt = async {
        while rig.projector.counts().rebuilds == generations {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), rebuilt).await.expect("in time");
    rig.ingest(&corpora[1], "b", 20).await;
    rig.projector.project(&corpora[1]).await.expect("projected");
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), running).await.expect("in time").expect("ended");
    assert_eq!(rig.history_length().await, 0);
    let refused = rig.projector.project(&corpora[1]).await;
    assert_eq!(refused.expect_err("stopping").kind, ErrorKind::Unavailable);
    rig.stop().await;
}

#[tokio::test]
async fn a_suspended_tenant_waits_and_a_deleted_namespace_leaves_no_index() {
    let rig = Rig::start(settings()).await;
    let (alice, bob) = (rig.database.tenant("alice").await, rig.database.tenant("bob").await);
    let corpora = [rig.corpus(&alice, "default").await, rig.corpus(&bob, "gone").await];
    for corpus in &corpora {
        rig.ingest(corpus, "a", 20).await;
    }
    rig.projector.project(&corpora[1]).await.expect("projected");
    let mut superuser = rig.database.superuser().await;
    sqlx::raw_sql("update tenant set state = 'suspended' where slug = 'alice'")
        .execute(&mut superuser)
        .await
        .expect("suspended");
    let name = NamespaceName::parse("gone").expect("name");
    let act = deletion(&rig.database.postgres, bob.scope());
    assert!(rig.stores.background(&bob).namespace_delete(act, &name).await.expect("deleted").is_some());
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(rig.projector.clone().run(shutdown.clone()));
    // A handle from before the deletion brings nothing back.
    for corpus in &corpora[1..] {
        let _refused = rig.projector.project(corpus).await;
        rig.projector.kick(corpus.partition());
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for corpus in &corpora {
        assert_eq!(rig.indexed(corpus).await, None);
    }
    sqlx::raw_sql("update tenant set state = 'active'").execute(&mut superuser).await.expect("resumed");
    rig.until_equal(&corpora[0]).await;
    shutdown.cancel();
    running.await.expect("ended");
    rig.stop().await;
}

#[tokio::test]
async fn history_stays_until_every_consumer_has_passed_it() {
    let harness = Harness::new().await;
    let permit = harness.tenant().await;
    let corpus = harness.corpus(&permit).await;
    corpus.index_flush("slow").await.expect("registered at 0");
    for id in ["a", "b"] {
        harness.put(&corpus, id, vec![chunk(0, id)]).await;
    }
    let follow = async |from: Seq| match corpus.history(from, 100).await.expect("history") {
        History::Changes(changes) => Some(changes),
        History::Broken | History::Gone => None,
    };
    corpus.index_apply(follow(Seq(0)).await.expect("leads on")).await.expect("applied");
    corpus.index_flush("fast").await.expect("flushed");
    assert!(follow(Seq(0)).await.is_some(), "the slow one still needs it");
    corpus.index_flush("slow").await.expect("flushed");
    assert!(follow(Seq(0)).await.is_none(), "forgotten");
    assert_eq!(follow(Seq(2)).await.map(|changes| changes.through), Some(Seq(2)));
    harness.close().await;
}
