//! The system of record as a model: what PostgreSQL's transactions do to documents, jobs and history, each at once.
//!
//! A transition says what its statements say, no more: `conformance` runs both side by side. What a transaction does
//! inside is not modelled; `store_races` holds that on PostgreSQL itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bulkhead::domain::Seq;
use bulkhead::domain::ids::{ChunkId, IdSource, JobId, NamespaceId, TenantId};
use bulkhead::store::postgres::ingest::{Committed, ProcessedDocument};
use bulkhead::store::postgres::jobs::{IngestTask, JobKind, LeasedJob};
use bulkhead::store::postgres::leases::LeaseTerms;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::Broken;

pub type Place = (TenantId, NamespaceId);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobState {
    Queued,
    Running,
    Done,
    Failed,
    Cancelled,
}

#[derive(Debug, Clone)]
pub struct Job {
    pub tenant: TenantId,
    pub namespace: NamespaceId,
    pub document: String,
    pub version: i64,
    pub state: JobState,
    pub lease: Option<Uuid>,
    pub leased_until: Option<DateTime<Utc>>,
    pub leased_by: Option<Uuid>,
    pub due_at: DateTime<Utc>,
    pub attempts: i32,
    pub cost: i64,
    /// How often its result was written. Not a column: what the simulation watches.
    pub effects: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub version: i64,
    pub live: Option<i64>,
    pub status: &'static str,
    pub error: Option<String>,
    /// The content of each version that is kept.
    pub bodies: BTreeMap<i64, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    pub document: String,
    pub version: i64,
    pub seq: i64,
    pub text: String,
}

/// A chunk's life: its version, and the transaction that removed it.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    pub version: i64,
    pub removed: Option<i64>,
}

#[derive(Debug, Clone, Default)]
pub struct Namespace {
    pub name: String,
    pub seq: i64,
    pub documents: BTreeMap<String, Document>,
    pub chunks: BTreeMap<ChunkId, Chunk>,
    pub outbox: BTreeMap<i64, (DateTime<Utc>, Vec<ChunkId>)>,
    pub consumers: BTreeMap<String, i64>,
    /// Every chunk that ever was. Not rows: what the simulation watches.
    pub lives: BTreeMap<ChunkId, Life>,
}

#[derive(Debug, Clone, Default)]
pub struct Record {
    pub namespaces: BTreeMap<Place, Namespace>,
    pub jobs: BTreeMap<JobId, Job>,
    /// A fault that was built in, to see that it is found.
    pub broken: Option<Broken>,
    /// Rises with every change that could be a wrong one.
    pub revision: u64,
}

impl Record {
    pub fn is(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }

    pub fn find(&self, tenant: TenantId, name: &str) -> Option<NamespaceId> {
        let found = self.namespaces.iter().find(|((own, _), space)| *own == tenant && space.name == name);
        found.map(|((_, namespace), _)| *namespace)
    }

    pub fn corpus_require(&mut self, tenant: TenantId, name: &str, ids: &dyn IdSource) -> NamespaceId {
        self.find(tenant, name).unwrap_or_else(|| {
            let namespace = NamespaceId(ids.uuid());
            let made = Namespace { name: name.to_owned(), ..Namespace::default() };
            self.namespaces.insert((tenant, namespace), made);
            namespace
        })
    }

    /// Accepts a version of each document, as `PUT` does; `None`: the namespace is gone.
    pub fn accept(
        &mut self,
        place: Place,
        documents: &[(String, String)],
        now: DateTime<Utc>,
        ids: &dyn IdSource,
    ) -> Option<Vec<(i64, JobId)>> {
        self.revision += 1;
        let space = self.namespaces.get_mut(&place)?;
        let named: BTreeSet<&String> = documents.iter().map(|(id, _)| id).collect();
        for job in self.jobs.values_mut().filter(|job| job.place() == place && job.is_open()) {
            if named.contains(&job.document) {
                job.state = JobState::Cancelled;
            }
        }
        let mut accepted = Vec::new();
        for (id, body) in documents {
            let fresh =
                Document { version: 0, live: None, status: "pending", error: None, bodies: BTreeMap::new() };
            let document = space.documents.entry(id.clone()).or_insert(fresh);
            document.version += 1;
            (document.status, document.error) = ("pending", None);
            document.bodies.insert(document.version, body.clone());
            let job = JobId(ids.uuid());
            let cost = i64::try_from(body.len()).expect("short");
            self.jobs.insert(job, Job::queued(place, (id, document.version), now, cost));
            accepted.push((document.version, job));
        }
        Some(accepted)
    }

    /// Deletes documents, and returns those that were there.
    pub fn documents_delete(&mut self, place: Place, ids: &[String], now: DateTime<Utc>) -> Vec<String> {
        let forgetful = self.is(Broken::TombstoneForgotten);
        self.revision += 1;
        let Some(space) = self.namespaces.get_mut(&place) else { return Vec::new() };
        let gone: Vec<String> =
            ids.iter().filter(|id| space.documents.remove(*id).is_some()).cloned().collect();
        if gone.is_empty() {
            return gone;
        }
        self.jobs.retain(|_, job| job.place() != place || !gone.contains(&job.document));
        space.seq += 1;
        let removed = space.chunks_remove(&gone);
        let told = if forgetful { Vec::new() } else { removed };
        space.outbox.insert(space.seq, (now, told));
        gone
    }

    /// Deletes the rows of a namespace.
    pub fn namespace_delete(&mut self, place: Place) -> bool {
        self.revision += 1;
        self.jobs.retain(|_, job| job.place() != place);
        self.namespaces.remove(&place).is_some()
    }

    /// Tenants with work that is due, those first whose work waits longest.
    pub fn job_backlog(&self, now: DateTime<Utc>) -> Vec<TenantId> {
        let mut due: BTreeMap<TenantId, DateTime<Utc>> = BTreeMap::new();
        for job in self.jobs.values().filter(|job| job.is_due(now)) {
            let first = due.entry(job.tenant).or_insert(job.due_at);
            *first = job.due_at.min(*first);
        }
        let mut list: Vec<_> = due.into_iter().map(|(tenant, first)| (first, tenant)).collect();
        list.sort_unstable();
        list.into_iter().map(|(_, tenant)| tenant).collect()
    }

    pub fn job_lease(
        &mut self,
        tenant: TenantId,
        terms: LeaseTerms,
        now: DateTime<Utc>,
        lease: Uuid,
    ) -> Vec<LeasedJob> {
        let attempt = i32::from(!self.is(Broken::AttemptsUncounted));
        let mut due: Vec<(DateTime<Utc>, JobId)> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.tenant == tenant && job.is_due(now))
            .map(|(id, job)| (job.due_at, *id))
            .collect();
        due.sort_unstable();
        due.truncate(usize::try_from(terms.jobs).unwrap_or(usize::MAX));
        let Some(head) = due.first().map(|(_, id)| self.jobs[id].namespace) else { return Vec::new() };
        due.retain(|(_, id)| self.jobs[id].namespace == head);
        let (mut leased, mut before) = (Vec::new(), 0);
        for (at, (_, id)) in due.iter().enumerate() {
            let job = self.jobs.get_mut(id).expect("listed");
            let cost = if job.attempts > 1 { terms.bytes } else { job.cost };
            if at == 0 || before < terms.bytes && job.attempts < 2 {
                job.state = JobState::Running;
                job.lease = Some(lease);
                job.leased_until = Some(now + terms.time);
                job.leased_by = Some(terms.node);
                job.attempts += attempt;
                leased.push(LeasedJob {
                    tenant,
                    namespace: head,
                    job: *id,
                    kind: JobKind::Ingest,
                    lease,
                    attempts: job.attempts,
                    cost: job.cost,
                    upload: false,
                });
            }
            before = before.saturating_add(cost);
        }
        leased
    }

    /// Puts jobs back that are still held.
    pub fn put_back(&mut self, jobs: &[LeasedJob], delay: Duration, given_back: i32, now: DateTime<Utc>) {
        for held in jobs {
            if let Some(job) = self.held(held.job, held.lease) {
                (job.state, job.lease, job.leased_until) = (JobState::Queued, None, None);
                job.due_at = now + delay;
                job.attempts -= given_back;
            }
        }
    }

    pub fn leases_free(&mut self, node: Uuid) -> u64 {
        let mut freed = 0;
        for job in self.jobs.values_mut() {
            if job.state == JobState::Running && job.leased_by == Some(node) {
                (job.state, job.lease, job.leased_until) = (JobState::Queued, None, None);
                freed += 1;
            }
        }
        freed
    }

    pub fn job_open(&self, place: Place, jobs: &[LeasedJob]) -> Vec<IngestTask> {
        let open = |held: &LeasedJob| {
            let job = self.jobs.get(&held.job).filter(|job| job.is_held(held.lease))?;
            let document = self.namespaces.get(&place)?.documents.get(&job.document)?;
            let body = document.bodies.get(&job.version).filter(|_| document.version == job.version)?;
            Some(IngestTask {
                job: held.job,
                lease: held.lease,
                document_id: job.document.clone(),
                version: job.version,
                title: None,
                file_name: String::new(),
                metadata: serde_json::Value::Null,
                body: Some(body.clone()),
                upload: None,
                replaces: document.live.is_some(),
            })
        };
        jobs.iter().filter_map(open).collect()
    }

    /// Extends leases, and returns the jobs that are still held.
    pub fn job_progress(
        &mut self,
        place: Place,
        jobs: &[(JobId, Uuid)],
        stage: &'static str,
        until: DateTime<Utc>,
    ) -> Vec<JobId> {
        let mut held = Vec::new();
        for (id, lease) in jobs {
            let Some(job) = self.held(*id, *lease).filter(|job| job.place() == place) else { continue };
            job.leased_until = Some(until);
            let (document, version) = (job.document.clone(), job.version);
            self.tell(place, (&document, version), stage, None);
            held.push(*id);
        }
        held
    }

    pub fn job_fail(&mut self, place: Place, job: JobId, lease: Uuid, reason: &str) {
        if let Some(job) = self.held(job, lease) {
            (job.state, job.lease, job.leased_until) = (JobState::Failed, None, None);
            let (document, version) = (job.document.clone(), job.version);
            self.tell(place, (&document, version), "failed", Some(reason));
        }
    }

    /// `None`: there is no such job; `false`: it had ended.
    pub fn job_cancel(&mut self, tenant: TenantId, job: JobId) -> Option<bool> {
        let job = self.jobs.get_mut(&job).filter(|job| job.tenant == tenant)?;
        if !job.is_open() {
            return Some(false);
        }
        (job.state, job.lease, job.leased_until) = (JobState::Cancelled, None, None);
        let (place, document, version) = (job.place(), job.document.clone(), job.version);
        self.tell(place, (&document, version), "failed", Some("cancelled"));
        Some(true)
    }

    /// Puts the failed versions of a namespace back.
    pub fn documents_requeue(&mut self, place: Place, now: DateTime<Utc>, ids: &dyn IdSource) -> u64 {
        let Some(space) = self.namespaces.get_mut(&place) else { return 0 };
        let mut again = 0;
        for (id, document) in space.documents.iter_mut().filter(|(_, document)| document.status == "failed") {
            let Some(body) = document.bodies.get(&document.version) else { continue };
            (document.status, document.error) = ("pending", None);
            let ended = |job: &Job| matches!(job.state, JobState::Failed | JobState::Cancelled);
            self.jobs.retain(|_, job| job.place() != place || job.document != *id || !ended(job));
            let cost = i64::try_from(body.len()).expect("short");
            self.jobs.insert(JobId(ids.uuid()), Job::queued(place, (id, document.version), now, cost));
            again += 1;
        }
        again
    }

    /// Makes documents answer whose lease and version still hold; `opened` is what the caller's handle knows.
    pub fn documents_commit(
        &mut self,
        place: Place,
        documents: &[ProcessedDocument],
        opened: Seq,
        now: DateTime<Utc>,
    ) -> Committed {
        let unfenced = self.is(Broken::FenceIgnored);
        self.revision += 1;
        let Some(space) = self.namespaces.get_mut(&place) else {
            return Committed { seq: opened, jobs: Vec::new() };
        };
        let holds = |new: &&ProcessedDocument| {
            let document = space.documents.get(&new.document_id);
            let job = self.jobs.get(&new.job).filter(|job| job.is_held(new.lease) && job.place() == place);
            job.zip(document).is_some_and(|(job, document)| document.version == job.version)
                || unfenced && document.is_some()
        };
        let live: Vec<&ProcessedDocument> = documents.iter().filter(holds).collect();
        if live.is_empty() {
            return Committed { seq: Seq(space.seq), jobs: Vec::new() };
        }
        space.seq += 1;
        let replaced = live.iter().map(|new| &new.document_id);
        let replaced: Vec<String> =
            replaced.filter(|id| space.documents[*id].live.is_some()).cloned().collect();
        let removed = space.chunks_remove(&replaced);
        for new in &live {
            let document = space.documents.get_mut(&new.document_id).expect("held");
            (document.status, document.error, document.live) = ("processed", None, Some(new.version));
            document.bodies.retain(|version, _| *version >= new.version);
            for chunk in &new.chunks {
                let (document, text) = (new.document_id.clone(), chunk.text.clone());
                let (version, seq) = (new.version, space.seq);
                space.chunks.insert(chunk.chunk, Chunk { document, version, seq, text });
                space.lives.insert(chunk.chunk, Life { version, removed: None });
            }
            if let Some(job) = self.jobs.get_mut(&new.job) {
                (job.state, job.lease, job.leased_until) = (JobState::Done, None, None);
                job.effects += 1;
            }
        }
        space.outbox.insert(space.seq, (now, removed));
        Committed { seq: Seq(space.seq), jobs: live.iter().map(|new| new.job).collect() }
    }

    fn held(&mut self, job: JobId, lease: Uuid) -> Option<&mut Job> {
        self.jobs.get_mut(&job).filter(|job| job.is_held(lease))
    }

    /// Writes a state to a document, if this is still its version.
    fn tell(&mut self, place: Place, (id, version): (&str, i64), status: &'static str, error: Option<&str>) {
        let document = self.namespaces.get_mut(&place).and_then(|space| space.documents.get_mut(id));
        if let Some(document) = document.filter(|document| document.version == version) {
            document.status = status;
            if error.is_some() {
                document.error = error.map(str::to_owned);
            }
        }
    }
}

impl Namespace {
    /// Takes away the chunks of whole documents.
    fn chunks_remove(&mut self, documents: &[String]) -> Vec<ChunkId> {
        let gone = self.chunks.iter().filter(|(_, chunk)| documents.contains(&chunk.document));
        let gone: Vec<ChunkId> = gone.map(|(id, _)| *id).collect();
        for id in &gone {
            self.chunks.remove(id);
            if let Some(life) = self.lives.get_mut(id) {
                life.removed = Some(self.seq);
            }
        }
        gone
    }
}

impl Job {
    fn queued(
        (tenant, namespace): Place,
        (document, version): (&str, i64),
        now: DateTime<Utc>,
        cost: i64,
    ) -> Self {
        Self {
            tenant,
            namespace,
            document: document.to_owned(),
            version,
            state: JobState::Queued,
            lease: None,
            leased_until: None,
            leased_by: None,
            due_at: now,
            attempts: 0,
            cost,
            effects: 0,
        }
    }

    pub fn place(&self) -> Place {
        (self.tenant, self.namespace)
    }

    pub fn is_open(&self) -> bool {
        matches!(self.state, JobState::Queued | JobState::Running)
    }

    fn is_due(&self, now: DateTime<Utc>) -> bool {
        self.is_open() && self.due_at <= now && self.leased_until.is_none_or(|until| until < now)
    }

    fn is_held(&self, lease: Uuid) -> bool {
        self.state == JobState::Running && self.lease == Some(lease)
    }
}
