//! How the index of graphs is kept up over PostgreSQL: nobody's graph waits for another one that fails, takes long or
//! cannot be looked at.

mod held;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bulkhead::app::Settings;
use bulkhead::domain::audit::AuditKind;
use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{IdSource as _, NamespaceId, NamespaceName, SystemIds};
use bulkhead::domain::lexical::Lexicon;
use bulkhead::jobs::graph_keeper::HeldGraphs;
use bulkhead::jobs::graphs::{GraphKicks, GraphProjector, GraphProjectorSettings};
use bulkhead::jobs::orphans::{OrphanSettings, OrphanSweep};
use bulkhead::retrieval::Engine;
use bulkhead::store::graph::GraphIndex;
use bulkhead::store::postgres::audit::PostgresAudit;
use bulkhead::store::postgres::documents::OnExisting;
use bulkhead::store::postgres::ingest::ProcessedDocument;
use bulkhead::store::uploads::Uploads;
use bulkhead::store::vector::VectorIndex;
use bulkhead::store::{Audit, AuditLog, AuditSettings, CorpusWriter, Stores};
use bulkhead::tenancy::{Directory, Permit, Write};
use held::{Fault, Held};
use tokio_util::sync::CancellationToken;

use crate::database::Database;
use crate::deployment::{MemoryIndex, accept, chunk, document, terms};

/// How long something may take that happens by itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is between the database and an index of graphs.
struct Rig {
    database: Database,
    held: Arc<Held>,
    stores: Stores,
    stop: CancellationToken,
}

fn settings() -> GraphProjectorSettings {
    GraphProjectorSettings {
        write_chunks: 2,
        sweep: Duration::from_millis(20),
        upkeep: Duration::from_millis(50),
        page: 2,
        concurrent: 2,
        tenant_concurrent: 1,
        queue: 64,
        rest: (Duration::from_millis(50), Duration::from_millis(400)),
    }
}

impl Rig {
    async fn new() -> Self {
        let database = Database::start().await;
        let held = Arc::new(Held::default());
        let uploads = Uploads::in_folder(&database.folder().join("uploads")).expect("uploads");
        let vectors: Arc<dyn VectorIndex> = Arc::new(MemoryIndex::default());
        let stores = Stores::new(database.postgres.clone(), vectors, uploads);
        let stores = stores.with_graph(Arc::clone(&held) as Arc<dyn GraphIndex>);
        Self { database, held, stores, stop: CancellationToken::new() }
    }

    fn log(&self) -> Arc<PostgresAudit> {
        Arc::new(PostgresAudit::new(self.database.postgres.clone(), "node-1"))
    }

    /// Projects until it is stopped.
    fn project(&self, settings: GraphProjectorSettings) -> tokio::task::JoinHandle<()> {
        let all: Settings = bulkhead::config::load(None).expect("the defaults");
        let lexicon = Arc::new(Lexicon::new(all.lexical));
        let engine = Engine::new(
            crate::site::embedder(),
            lexicon,
            all.retrieval,
            Arc::new(SystemClock),
            Arc::new(|_| ()),
        );
        let directory: Arc<dyn Directory> = Arc::new(self.database.postgres.clone());
        let audit = Audit::start(self.log(), AuditSettings::default(), Arc::new(SystemClock), &[3; 32]);
        let projector = GraphProjector::new(
            (self.stores.clone(), directory, audit),
            engine,
            (Arc::new(SystemClock), Arc::new(SystemIds(SystemClock))),
            settings,
            (GraphKicks::new(settings.queue), HeldGraphs::default()),
        );
        tokio::spawn(projector.run(self.stop.clone()))
    }

    /// A namespace with a document of three chunks.
    async fn namespace(&self, permit: &Permit<Write>, name: &str) -> CorpusWriter {
        let name = NamespaceName::parse(name).expect("a name");
        let opened = self.stores.background(permit).corpus_require(&name).await.expect("opened");
        let corpus = opened.expect("there is room");
        accept(&corpus, &[document("log", "The Tern sails.")], OnExisting::Replace).await;
        let leased = self.stores.job_lease(corpus.partition().tenant(), terms(1, i64::MAX)).await;
        let task = corpus.job_open(&leased.expect("leased")).await.expect("opened").remove(0);
        let chunks = ["Tern", "Gull", "Petrel"].iter().zip(0..).map(|(text, ordinal)| chunk(ordinal, text));
        let processed = ProcessedDocument {
            job: task.job,
            lease: task.lease,
            document_id: task.document_id,
            version: task.version,
            title: None,
            chunks: chunks.collect(),
        };
        corpus.documents_commit(&[processed]).await.expect("committed");
        corpus
    }

    fn is_projected(&self, corpus: &CorpusWriter) -> bool {
        self.held.seq(corpus.partition()).is_some_and(|seq| seq.0 > 0)
    }

    async fn stop(self, projecting: tokio::task::JoinHandle<()>) {
        self.stop.cancel();
        projecting.await.expect("it ends");
        self.database.stop().await;
    }
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let held = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, held).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_graph_that_cannot_be_written_keeps_no_other_behind_and_rests_longer_each_time() {
    let rig = Rig::new().await;
    let (alice, bob) = (rig.database.tenant("alice").await, rig.database.tenant("bob").await);
    let (first, last) = (alice.scope().tenant(), bob.scope().tenant());
    assert!(first < last, "she is before him in every listing");
    let (hers, his) = (rig.namespace(&alice, "default").await, rig.namespace(&bob, "default").await);
    rig.held.broken.lock().insert(first, Fault::Timeout);
    let projecting = rig.project(settings());
    until("he waits for her", async || rig.is_projected(&his)).await;
    // 50, 100, 200, and 400 ms from then on; without rests, every 20.
    let (before, time) = (rig.held.calls("apply", Some(first)), Duration::from_secs(2));
    tokio::time::sleep(time).await;
    let tried = rig.held.calls("apply", Some(first)) - before;
    assert!((1..=9).contains(&tried), "she was tried {tried} times in {time:?}");
    assert!(!rig.is_projected(&hers));
    rig.held.broken.lock().clear();
    until("she is not tried again", async || rig.is_projected(&hers)).await;
    rig.stop(projecting).await;
}

#[tokio::test]
async fn a_tenant_whose_graphs_take_long_leaves_places_to_the_others() {
    let rig = Rig::new().await;
    let (alice, bob) = (rig.database.tenant("alice").await, rig.database.tenant("bob").await);
    for name in ["one", "two", "three"] {
        rig.namespace(&alice, name).await;
    }
    rig.held.broken.lock().insert(alice.scope().tenant(), Fault::Hangs);
    let projecting = rig.project(settings());
    until("she is not begun", async || rig.held.calls("apply", Some(alice.scope().tenant())) > 0).await;
    let his = rig.namespace(&bob, "default").await;
    until("he waits for her", async || rig.is_projected(&his)).await;
    assert_eq!(rig.held.calls("apply", Some(alice.scope().tenant())), 1, "one place is her share");
    rig.stop(projecting).await;
}

#[tokio::test]
async fn while_the_index_is_left_alone_nobody_runs_and_nobody_rests() {
    let rig = Rig::new().await;
    let alice = rig.database.tenant("alice").await;
    let hers = rig.namespace(&alice, "default").await;
    rig.held.is_left_alone.store(true, Ordering::Relaxed);
    let rest = (Duration::from_hours(1), Duration::from_hours(1));
    let projecting = rig.project(GraphProjectorSettings { rest, ..settings() });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(rig.held.all_calls(), 0);
    rig.held.is_left_alone.store(false, Ordering::Relaxed);
    until("she is not projected", async || rig.is_projected(&hers)).await;
    rig.stop(projecting).await;
}

#[tokio::test]
async fn one_that_cannot_be_looked_at_hides_nothing_that_leads_out_of_another() {
    let rig = Rig::new().await;
    let (alice, bob) = (rig.database.tenant("alice").await, rig.database.tenant("bob").await);
    let (first, last) = (alice.scope().tenant(), bob.scope().tenant());
    rig.namespace(&alice, "default").await;
    rig.namespace(&bob, "default").await;
    rig.held.uncountable.lock().insert(first);
    rig.held.leaky.lock().insert(last);
    let projecting = rig.project(settings());
    let log = rig.log();
    let alarms = async |tenant| {
        let events = log.page(Some(tenant), None, 100).await.expect("events");
        events
            .iter()
            .filter(|event| event.kind == AuditKind::Alarm && event.action == "graph.examine")
            .count()
    };
    until("no alarm", async || alarms(last).await > 0).await;
    assert_eq!(alarms(first).await, 0);
    let before = rig.held.calls("strays", Some(first));
    until("she is looked at once", async || rig.held.calls("strays", Some(first)) > before).await;
    rig.stop(projecting).await;
}

#[tokio::test]
async fn a_sweep_of_orphans_asks_for_each_tenants_own_namespaces_alone() {
    let rig = Rig::new().await;
    let mut live = Vec::new();
    let gone = NamespaceId(SystemIds(SystemClock).uuid());
    let mut tenants = Vec::new();
    for slug in ["alice", "bob", "carol"] {
        let permit = rig.database.tenant(slug).await;
        let (tenant, corpus) = (permit.scope().tenant(), rig.namespace(&permit, "default").await);
        rig.held.leave(tenant, corpus.partition().namespace());
        rig.held.leave(tenant, gone);
        live.push(corpus);
        tenants.push(tenant);
    }
    let directory: Arc<dyn Directory> = Arc::new(rig.database.postgres.clone());
    let hourly = OrphanSettings { every_seconds: 3600, margin_seconds: 0 };
    let sweep = OrphanSweep::new(rig.stores.clone(), directory, hourly, Arc::new(SystemClock));
    let sweeping = tokio::spawn(sweep.run(rig.stop.clone()));
    let removed = || tenants.iter().filter(|tenant| rig.held.calls("remove", Some(**tenant)) > 0).count();
    until("what nobody knows stays", async || removed() == tenants.len()).await;
    assert_eq!(rig.held.calls("tenants", None), 1);
    for (tenant, corpus) in tenants.iter().zip(&live) {
        assert_eq!(rig.held.calls("namespaces", Some(*tenant)), 1);
        let left = rig.held.namespaces(*tenant).await.expect("namespaces");
        assert_eq!(left, [corpus.partition().namespace()]);
    }
    rig.stop(sweeping).await;
}
