//! The model of the record and PostgreSQL, side by side: the same random calls, the same answers, the same rows.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bulkhead::domain::Seq;
use bulkhead::domain::clock::Clock;
use bulkhead::domain::document::Status;
use bulkhead::domain::ids::{ChunkId, IdSource, ModelId, NamespaceName};
use bulkhead::domain::limits::Limits;
use bulkhead::store::postgres::Postgres;
use bulkhead::store::postgres::documents::{Acceptance, OnExisting};
use bulkhead::store::postgres::ingest::{NewChunk, ProcessedDocument};
use bulkhead::store::postgres::jobs::{IngestTask, LeasedJob, Progress};
use bulkhead::store::postgres::leases::LeaseTerms;
use bulkhead::store::postgres::projection::{Changes, History};
use bulkhead::store::uploads::Uploads;
use bulkhead::store::vector::VectorIndex;
use bulkhead::store::{CorpusWriter, Stores};
use bulkhead::tenancy::{Permit, Write};
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::executor::World;
use super::record::{JobState, Place, Record};
use crate::database::{MODEL, deletion};
use crate::deployment::{Harness, LEASE, chunk, document, pools};

const NAMES: [&str; 2] = ["default", "manuals"];
const DOCUMENTS: [&str; 3] = ["a", "b", "c"];
const TRACES: u64 = 12;
const CALLS: u64 = 60;

/// A lease that was once given, with what it was opened for.
type Held = (usize, LeasedJob, Option<IngestTask>);

struct Pair {
    harness: Harness,
    stores: Stores,
    superuser: PgConnection,
    record: Record,
    /// Chance; and identities, drawn alike by both sides.
    world: World,
    ids: World,
    permits: Vec<Permit<Write>>,
    /// Handles that were opened, those of namespaces that are gone among them.
    opened: Vec<CorpusWriter>,
    held: Vec<Held>,
    node: Uuid,
    call: String,
}

#[tokio::test]
async fn the_model_does_what_postgresql_does() {
    for seed in 0..TRACES {
        let mut pair = Pair::new(seed).await;
        for number in 0..CALLS {
            pair.call = format!("trace {seed}, call {number}");
            pair.step().await;
            pair.same_rows().await;
        }
        assert!(!pair.held.is_empty() && !pair.opened.is_empty(), "things happened");
        pair.harness.close().await;
    }
}

impl Pair {
    async fn new(seed: u64) -> Self {
        let harness = Harness::new().await;
        let model = ModelId::parse(MODEL).expect("model");
        let (clock, ids) = (Arc::new(harness.clock.clone()), Arc::new(World::new(seed, false)));
        let postgres = Postgres::new(&harness.deployment.addresses, &pools(2), model, clock, ids);
        let uploads = Uploads::in_folder(harness.deployment.uploads.path()).expect("uploads");
        let index = Arc::clone(&harness.index) as Arc<dyn VectorIndex>;
        let superuser = harness.deployment.superuser().await;
        let permits = vec![harness.tenant().await, harness.tenant().await];
        let world = World::new(seed + 1_000_000, false);
        Self {
            stores: Stores::new(postgres, index, uploads),
            harness,
            superuser,
            record: Record::default(),
            node: world.uuid(),
            world,
            ids: World::new(seed, false),
            permits,
            opened: Vec::new(),
            held: Vec::new(),
            call: String::new(),
        }
    }

    fn same<T: PartialEq + Debug>(&self, what: &str, real: &T, model: &T) {
        assert_eq!(real, model, "{}: {what}: PostgreSQL, then the model", self.call);
    }

    fn below(&self, bound: usize) -> usize {
        usize::try_from(self.world.below(bound as u64)).expect("small")
    }

    fn some<'a, T>(&self, list: &'a [T]) -> Option<&'a T> {
        list.get(self.below(list.len().max(1)))
    }

    async fn step(&mut self) {
        let tenant = self.below(2);
        let corpus = self.some(&self.opened).cloned();
        let now = self.harness.clock.now();
        match (self.world.below(100), corpus) {
            (0..8, _) | (_, None) => self.require(tenant).await,
            (8..30, Some(corpus)) => self.accept(&corpus).await,
            (30..42, Some(corpus)) => self.lease(&corpus).await,
            (42..60, Some(_)) => self.commit().await,
            (60..66, Some(corpus)) => {
                let ids = vec![DOCUMENTS[self.below(3)].to_owned(), "none".to_owned()];
                let real = corpus.documents_delete(&ids).await.expect("deleted");
                let model = self.record.documents_delete(place(&corpus), &ids, now);
                self.same("deleted", &real, &model);
            }
            (66..69, Some(corpus)) => {
                let name = corpus.name().clone();
                let tenant = corpus.partition().tenant();
                let permit =
                    self.permits.iter().find(|permit| permit.scope().tenant() == tenant).expect("own");
                let act = deletion(&self.harness.postgres, permit.scope());
                let real = self
                    .stores
                    .background(permit)
                    .namespace_delete(act, &name)
                    .await
                    .expect("deleted")
                    .is_some();
                let found = self.record.find(tenant, name.as_str());
                let model = found.is_some_and(|namespace| self.record.namespace_delete((tenant, namespace)));
                self.same("namespace deleted", &real, &model);
            }
            (69..74, Some(_)) => self.put_back(now).await,
            (74..79, Some(_)) => self.progress_or_fail().await,
            (79..82, Some(_)) => self.cancel(tenant).await,
            (82..85, Some(corpus)) => self.requeue(&corpus).await,
            (85..87, Some(_)) => {
                let real = self.stores.leases_free(self.node).await.expect("freed");
                let model = self.record.leases_free(self.node);
                self.same("freed", &real, &model);
            }
            (87..92, Some(corpus)) => self.pass(&corpus).await,
            (92..94, Some(corpus)) => {
                // This index is never written anew: it stays at what is registered before.
                corpus.index_rebuild("slow", 10).await.expect_err("refused");
                let head = self.record.namespaces.get(&place(&corpus)).map_or(0, |space| space.seq);
                self.record.consumer_hold(place(&corpus), "slow", Seq((head - 1).max(0)));
            }
            (_, Some(_)) => self.harness.clock.advance(Duration::from_secs(self.world.below(500))),
        }
        if let Some(corpus) = self.some(&self.opened).cloned() {
            self.follow(&corpus).await;
        }
    }

    async fn require(&mut self, tenant: usize) {
        let name = NAMES[self.below(2)];
        let parsed = NamespaceName::parse(name).expect("name");
        let real = self.stores.background(&self.permits[tenant]).corpus_require(&parsed).await;
        let real = real.expect("opened").expect("reached");
        let model = self.record.corpus_require(real.partition().tenant(), name, &self.ids);
        self.same("namespace", &real.partition().namespace(), &model);
        self.opened.push(real);
    }

    async fn accept(&mut self, corpus: &CorpusWriter) {
        let first = self.below(3);
        let many = 1 + self.below(3 - first);
        let texts: Vec<(String, String)> = DOCUMENTS[first..first + many]
            .iter()
            .map(|id| ((*id).to_owned(), "x".repeat(1 + self.below(40))))
            .collect();
        let batch: Vec<_> = texts.iter().map(|(id, text)| document(id, text)).collect();
        let real = corpus.documents_accept(&batch, OnExisting::Replace, "track", &Limits::default()).await;
        let real = real.ok().map(|acceptance| match acceptance {
            Acceptance::Accepted(list) => {
                list.iter().map(|one| (one.version, one.job.expect("a job"))).collect()
            }
            other => panic!("{other:?}"),
        });
        let model = self.record.accept(place(corpus), &texts, self.harness.clock.now(), &self.ids);
        self.same("accepted", &real, &model);
    }

    async fn lease(&mut self, corpus: &CorpusWriter) {
        let (tenant, now) = (corpus.partition().tenant(), self.harness.clock.now());
        let backlog = self.stores.job_backlog(i64::MAX).await.expect("backlog");
        let own = |id: &_| self.permits.iter().any(|permit| permit.scope().tenant() == *id);
        let backlog: Vec<_> = backlog.into_iter().filter(own).collect();
        self.same("backlog", &backlog, &self.record.job_backlog(now));
        let (jobs, bytes) = (1 + i64::try_from(self.below(3)).expect("small"), 1 + self.below(60));
        let bytes = i64::try_from(bytes).expect("small");
        let terms = LeaseTerms { jobs, bytes, time: LEASE, uploads: true, node: self.node };
        let mut real = self.stores.job_lease(tenant, terms).await.expect("leased");
        let mut model = self.record.job_lease(tenant, terms, now, self.ids.uuid());
        real.sort_by_key(|job| job.job);
        model.sort_by_key(|job| job.job);
        self.same("leased", &real, &model);
        let Some(first) = real.first() else { return };
        let at = self.opened.iter().position(|one| place(one) == (tenant, first.namespace));
        let at = at.expect("only opened namespaces have jobs");
        let tasks = self.opened[at].job_open(&real).await.expect("opened");
        let told = |task: &IngestTask| {
            (task.job, task.lease, task.document_id.clone(), task.version, task.body.clone(), task.replaces)
        };
        let mut opened: Vec<_> = tasks.iter().map(told).collect();
        opened.sort();
        let mut model: Vec<_> =
            self.record.job_open(place(&self.opened[at]), &real).iter().map(told).collect();
        model.sort();
        self.same("opened", &opened, &model);
        for job in real {
            let task = tasks.iter().find(|task| task.job == job.job).cloned();
            self.held.push((at, job, task));
        }
    }

    /// Commits what was leased now or long ago, once or again.
    async fn commit(&mut self) {
        let recent = self.held.len().saturating_sub(if self.world.one_in(3) { 100 } else { 3 });
        let Some((at, _, _)) = self.some(&self.held[recent..]) else { return };
        let corpus = self.opened[*at].clone();
        let tasks = self.held[recent..].iter().filter(|(other, ..)| other == at);
        let mut documents: BTreeMap<String, ProcessedDocument> = BTreeMap::new();
        for task in tasks.filter_map(|(.., task)| task.as_ref()) {
            let word = |n| NewChunk { chunk: ChunkId(self.world.uuid()), ..chunk(n, "word") };
            let last = i32::try_from(self.below(3)).expect("small");
            let chunks = (0..=last).map(word).collect();
            let (job, lease, version) = (task.job, task.lease, task.version);
            let document_id = task.document_id.clone();
            documents.insert(
                document_id.clone(),
                ProcessedDocument { job, lease, document_id, version, title: None, chunks },
            );
        }
        let documents: Vec<_> = documents.into_values().collect();
        let mut real = corpus.documents_commit(&documents).await.expect("committed");
        let mut model =
            self.record.documents_commit(place(&corpus), &documents, corpus.seq(), self.harness.clock.now());
        real.jobs.sort();
        model.jobs.sort();
        self.same("committed", &real, &model);
    }

    async fn put_back(&mut self, now: chrono::DateTime<chrono::Utc>) {
        let Some((_, job, _)) = self.some(&self.held).cloned() else { return };
        let (jobs, delay) = ([job], Duration::from_secs(self.world.below(100)));
        if self.world.one_in(2) {
            self.stores.job_release(&jobs, delay).await.expect("released");
            self.record.put_back(&jobs, delay, 1, now);
        } else {
            self.stores.job_retry(&jobs, delay).await.expect("put back");
            self.record.put_back(&jobs, delay, 0, now);
        }
    }

    async fn progress_or_fail(&mut self) {
        let recent = self.held.len().saturating_sub(4);
        let Some((at, job, _)) = self.some(&self.held[recent..]).cloned() else { return };
        let corpus = self.opened[at].clone();
        if self.world.one_in(2) {
            let progress = Progress { stage: Status::Parsing, done: 0, total: 0, rate: 0.0 };
            let jobs = [(job.job, job.lease)];
            let real = corpus.job_progress(&jobs, progress, LEASE).await.expect("noted");
            let until = self.harness.clock.now() + LEASE;
            let model = self.record.job_progress(place(&corpus), &jobs, "parsing", until);
            self.same("held", &real, &model);
        } else {
            corpus.job_fail(job.job, job.lease, "unreadable").await.expect("failed");
            self.record.job_fail(place(&corpus), job.job, job.lease, "unreadable");
        }
    }

    async fn cancel(&mut self, tenant: usize) {
        let Some((_, job, _)) = self.some(&self.held).cloned() else { return };
        let permit = self.permits[tenant].clone();
        let real = self.stores.writer(&permit).job_cancel(job.job).await.expect("cancelled");
        let model = self.record.job_cancel(permit.scope().tenant(), job.job);
        self.same("cancelled", &real, &model);
    }

    /// Of one document at a time: identities of new jobs are drawn in the order of the failures.
    async fn requeue(&mut self, corpus: &CorpusWriter) {
        let space = self.record.namespaces.get(&place(corpus));
        let failed =
            space.map_or(0, |space| space.documents.values().filter(|d| d.status == "failed").count());
        if failed <= 1 {
            let real = corpus.documents_requeue().await.expect("put back");
            let now = self.harness.clock.now();
            let model = self.record.documents_requeue(place(corpus), now, &self.ids);
            self.same("put back", &real, &model);
        }
    }

    /// A consumer passes a position.
    async fn pass(&mut self, corpus: &CorpusWriter) {
        let consumer = ["fast", "slow"][self.below(2)];
        let head = self.record.namespaces.get(&place(corpus)).map_or(0, |space| space.seq);
        let through =
            Seq(i64::try_from(self.world.below(u64::try_from(head).expect("positive") + 1)).expect("small"));
        corpus.index_apply(Changes { through, ..Changes::default() }).await.expect("applied");
        corpus.index_flush(consumer).await.expect("registered");
        self.record.consumer_pass(place(corpus), consumer, through, self.harness.clock.now());
    }

    /// History, pages and lag, as projectors read them.
    async fn follow(&mut self, corpus: &CorpusWriter) {
        let place = place(corpus);
        let since = Seq(i64::try_from(self.below(12)).expect("small"));
        let limit = 1 + i64::try_from(self.below(6)).expect("small");
        let real = corpus.history(since, limit).await.expect("history");
        let model = match self.record.removals(place, since, limit) {
            Ok(removals) => History::Changes(self.record.changes(place, since, removals, limit)),
            Err(history) => history,
        };
        self.same(&format!("history since {since}, {limit}"), &told(real), &told(model));
        let after = self.record.point_page(place, None, 2).pop().map(|point| point.chunk);
        let real: Vec<_> = corpus
            .point_page(after, limit)
            .await
            .expect("page")
            .iter()
            .map(|p| (p.chunk, p.version))
            .collect();
        let model: Vec<_> =
            self.record.point_page(place, after, limit).iter().map(|p| (p.chunk, p.version)).collect();
        self.same("page", &real, &model);
        let every = self.world.one_in(2);
        let real = self.stores.projection_backlog("fast", every, None, i64::MAX).await.expect("backlog");
        let own = |(tenant, _): &Place| self.permits.iter().any(|permit| permit.scope().tenant() == *tenant);
        let real: Vec<Place> = real.into_iter().filter(own).collect();
        self.same("lag", &real, &self.record.projection_backlog("fast", every, None, i64::MAX));
    }

    async fn same_rows(&mut self) {
        let tenants: Vec<Uuid> = self.permits.iter().map(|permit| permit.scope().tenant().0).collect();
        let real: Vec<String> =
            sqlx::query_scalar(ROWS).bind(&tenants).fetch_all(&mut self.superuser).await.expect("rows");
        let mut model = rows(&self.record);
        model.sort();
        let mut real = real;
        real.sort();
        self.same("rows", &real, &model);
    }
}

fn place(corpus: &CorpusWriter) -> Place {
    (corpus.partition().tenant(), corpus.partition().namespace())
}

/// A history without its vectors, which the model does not have.
fn told(history: History) -> String {
    match history {
        History::Changes(mut changes) => {
            changes.removed.sort();
            let added: Vec<_> = changes.added.iter().map(|point| (point.chunk, point.version)).collect();
            format!("through {}: {added:?} {:?}", changes.through, changes.removed)
        }
        other => format!("{other:?}"),
    }
}

/// Every row that the model has, each as a line of text.
const ROWS: &str = "
    select concat_ws(' ', 'namespace', namespace_id, name, seq, chunks) from namespace where tenant_id = any($1)
    union all
    select concat_ws(' ', 'document', namespace_id, document_id, version, coalesce(live_version, 0), status,
        coalesce(error, '-')) from document where tenant_id = any($1)
    union all
    select concat_ws(' ', 'version', namespace_id, document_id, version, body)
    from document_version where tenant_id = any($1)
    union all
    select concat_ws(' ', 'job', namespace_id, job_id, document_id, version, state, coalesce(lease::text, '-'),
        coalesce(extract(epoch from leased_until)::bigint, 0), extract(epoch from due_at)::bigint, attempts, cost)
    from job where tenant_id = any($1)
    union all
    select concat_ws(' ', 'chunk', namespace_id, chunk_id, document_id, version, seq)
    from chunk where tenant_id = any($1)
    union all
    select concat_ws(' ', 'outbox', namespace_id, seq,
        (select string_agg(r::text, ',' order by r) from unnest(removed) r)) from outbox where tenant_id = any($1)
    union all
    select concat_ws(' ', 'consumer', namespace_id, consumer, seq) from consumer where tenant_id = any($1)";

fn rows(record: &Record) -> Vec<String> {
    let mut rows = Vec::new();
    for ((_, namespace), space) in &record.namespaces {
        rows.push(format!("namespace {namespace} {} {} {}", space.name, space.seq, space.chunks.len()));
        for (id, document) in &space.documents {
            let (live, error) = (document.live.unwrap_or(0), document.error.as_deref().unwrap_or("-"));
            let (version, status) = (document.version, document.status);
            rows.push(format!("document {namespace} {id} {version} {live} {status} {error}"));
            rows.extend(
                document.bodies.iter().map(|(v, body)| format!("version {namespace} {id} {v} {body}")),
            );
        }
        let chunks = space.chunks.iter();
        rows.extend(
            chunks.map(|(id, c)| format!("chunk {namespace} {id} {} {} {}", c.document, c.version, c.seq)),
        );
        for (seq, (_, removed)) in &space.outbox {
            let mut removed: Vec<String> = removed.iter().map(ToString::to_string).collect();
            removed.sort();
            rows.push(format!("outbox {namespace} {seq} {}", removed.join(",")).trim_end().to_owned());
        }
        rows.extend(space.consumers.iter().map(|(name, seq)| format!("consumer {namespace} {name} {seq}")));
    }
    for (id, job) in &record.jobs {
        let state = match job.state {
            JobState::Queued => "queued",
            JobState::Running => "running",
            JobState::Done => "done",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        };
        let lease = job.lease.map_or("-".to_owned(), |lease| lease.to_string());
        let (until, due) = (job.leased_until.map_or(0, |until| until.timestamp()), job.due_at.timestamp());
        let (namespace, document, version) = (job.namespace, &job.document, job.version);
        let (attempts, cost) = (job.attempts, job.cost);
        rows.push(format!(
            "job {namespace} {id} {document} {version} {state} {lease} {until} {due} {attempts} {cost}"
        ));
    }
    rows
}
