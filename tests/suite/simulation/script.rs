//! What happens in a simulation: two servers over one database, two tenants with the same names, and a seed.

use std::sync::Arc;
use std::time::Duration;

use bulkhead::domain::clock::Clock;
use bulkhead::domain::ids::{ModelId, TenantId};
use bulkhead::store::vector::{VectorIndex, VectorQuery};
use bulkhead::store::{Partition, StoreError};
use bulkhead::tenancy::TenantState;
use parking_lot::Mutex;
use uuid::Uuid;

use super::executor::World;
use super::handles::{Database, Handles, Opened, Sent};
use super::index::ModelIndex;
use super::invariants::{Ledger, Written, hold, nothing_lost, unsettled};
use super::record::{Place, Record};
use super::server::{Server, project};
use super::{Broken, short};

const NAMES: [&str; 2] = ["default", "manuals"];
const DOCUMENTS: [&str; 3] = ["a", "b", "c"];
/// Things that happen, in one simulation.
const EVENTS: u64 = 40;
/// After the last one there is peace, and all must be at rest within this time.
const PATIENCE: Duration = Duration::from_mins(10);

pub struct Simulation {
    world: World,
    database: Database,
    servers: Vec<Server>,
    tenants: [TenantId; 2],
    ledger: Arc<Mutex<Ledger>>,
    seen: u64,
    /// Handles that were opened earlier, with the server that holds them.
    kept: Vec<(usize, Arc<Opened>)>,
    contents: u64,
}

/// How a simulation went.
pub struct Outcome {
    pub violation: Option<String>,
    pub trace: Vec<String>,
    /// Of the last state: the same for the same seed.
    pub fingerprint: String,
}

/// Runs the simulation of a seed.
pub fn simulate(seed: u64, broken: Option<Broken>, traced: bool) -> Outcome {
    let world = World::new(seed, traced);
    let mut simulation = Simulation::new(&world, broken);
    simulation.play();
    let violation = world.violated();
    let record = simulation.database.record.lock().clone();
    let fingerprint = format!("{:?} {:?} {violation:?}", world.elapsed(), record);
    let outcome = Outcome { violation, trace: world.traced(), fingerprint };
    world.end();
    outcome
}

impl Simulation {
    fn new(world: &World, broken: Option<Broken>) -> Self {
        let database = Database::new(world, broken);
        let model = ModelId::parse("0123456789abcdef").expect("model");
        let server = |process| Server::new(&database, process, model.clone(), ModelIndex::new(world, broken));
        let tenants = [1, 2].map(|number| TenantId(Uuid::from_u128(number)));
        database.tenants.lock().extend(tenants.map(|tenant| (tenant, TenantState::Active)));
        let servers = vec![server(1), server(2)];
        Self {
            world: world.clone(),
            database,
            servers,
            tenants,
            ledger: Arc::default(),
            seen: 0,
            kept: Vec::new(),
            contents: 0,
        }
    }

    fn play(&mut self) {
        self.set_faults([0, 60, 15][self.below(3)]);
        self.servers.iter_mut().for_each(Server::start);
        for _ in 0..EVENTS {
            self.event();
            let milliseconds = if self.world.one_in(6) { 4000 } else { 300 };
            self.run(Duration::from_millis(self.world.below(milliseconds)));
            if self.world.violated().is_some() {
                return;
            }
        }
        self.make_peace();
        let begun = self.world.elapsed();
        loop {
            self.run(Duration::from_secs(1));
            let unsettled = unsettled(&self.database, &self.servers);
            match unsettled {
                _ if self.world.violated().is_some() => return,
                None => break,
                Some(what) if self.world.elapsed() > begun + PATIENCE => {
                    self.world.violation(|| format!("not at rest: {what}"));
                    return;
                }
                Some(_) => {}
            }
        }
        if let Err(what) = nothing_lost(&self.database, &self.ledger.lock()) {
            self.world.violation(|| what);
        }
    }

    fn run(&mut self, time: Duration) {
        let Self { world, database, servers, ledger, seen, .. } = self;
        world.run(time, || hold(world, database, servers, ledger, seen));
    }

    fn make_peace(&mut self) {
        self.world.trace(|| "peace: nothing goes wrong from here on".to_owned());
        self.set_faults(0);
        self.database.tenants.lock().values_mut().for_each(|state| *state = TenantState::Active);
        for server in &mut self.servers {
            if server.running.is_none() {
                server.start();
            }
        }
    }

    fn set_faults(&self, one_in: u64) {
        *self.database.faults.lock() = one_in;
        self.servers.iter().for_each(|server| server.handles.index.set_faults(one_in));
    }

    fn below(&self, bound: usize) -> usize {
        usize::try_from(self.world.below(bound as u64)).expect("small")
    }

    fn event(&mut self) {
        let at = self.below(self.servers.len());
        let tenant = self.tenants[self.below(2)];
        let name = NAMES[self.below(2)];
        let kind = self.world.below(100);
        match kind {
            85..88 => return self.set_faults([0, 0, 60, 15][self.below(4)]),
            88..92 => return self.suspend_or_resume(tenant),
            _ => {}
        }
        if self.servers[at].running.is_none() {
            return self.servers[at].start();
        }
        match kind {
            0..34 => self.put(at, tenant, name),
            34..46 => self.delete(at, tenant, name),
            46..50 => self.delete_namespace(at, tenant, name),
            50..58 => self.ask(at, tenant, name),
            58..66 => self.project(at, tenant, name),
            66..70 => self.cancel(at, tenant),
            70..73 => self.requeue(at, tenant, name),
            73..77 => self.repeat_a_commit(at),
            77..83 => {
                self.servers[at].kill();
                self.kept.retain(|(process, _)| *process != at);
            }
            83..85 => self.stop(at),
            _ => {
                let time = Duration::from_secs(2 + self.world.below(18));
                self.world.trace(|| format!("server {} stands still for {time:?}", at + 1));
                self.world.pause(self.servers[at].process, time);
            }
        }
    }

    /// Begins a request to a server, which ends with it.
    fn request(
        &self,
        at: usize,
        what: &str,
        work: impl Future<Output = Result<(), StoreError>> + Send + 'static,
    ) {
        let (world, what) = (self.world.clone(), format!("server {}: {what}", at + 1));
        world.trace(|| what.clone());
        let told = world.clone();
        world.spawn(self.servers[at].process, async move {
            let done = work.await;
            told.trace(|| format!("{what}: {}", super::outcome(&done)));
        });
    }

    fn put(&mut self, at: usize, tenant: TenantId, name: &'static str) {
        let first = self.below(DOCUMENTS.len());
        let many = if self.world.one_in(4) { DOCUMENTS.len() - first } else { 1 };
        let mut documents = Vec::new();
        for id in &DOCUMENTS[first..first + many] {
            self.contents += 1;
            documents.push(((*id).to_owned(), format!("text-{}", self.contents)));
        }
        let (database, ledger) = (self.database.clone(), Arc::clone(&self.ledger));
        let wake = self.servers[at].running.as_ref().map(|running| Arc::clone(&running.wake));
        self.request(at, &format!("put {documents:?} into {name} of {}", short(tenant.0)), async move {
            let (tokens, write): (Vec<String>, _) =
                (documents.iter().map(|(_, text)| text.clone()).collect(), Arc::clone(&ledger));
            let accepted = database.ask("document.accept", move |record, world| {
                let namespace = record.corpus_require(tenant, name, world);
                let accepted = record.accept((tenant, namespace), &documents, world.now(), world)?;
                let mut ledger = write.lock();
                for ((document, token), (version, _)) in std::iter::zip(documents, &accepted) {
                    let (place, version) = ((tenant, namespace), *version);
                    ledger
                        .written
                        .insert(token, Written { place, document, version, gone: false, cancelled: false });
                }
                Some(())
            });
            if accepted.await?.is_some() {
                ledger.lock().told.extend(tokens);
                if let Some(wake) = wake {
                    wake.notify_one();
                }
            }
            Ok(())
        });
    }

    fn delete(&mut self, at: usize, tenant: TenantId, name: &'static str) {
        let id = DOCUMENTS[self.below(DOCUMENTS.len())].to_owned();
        let (handles, ledger) = (self.servers[at].handles.clone(), Arc::clone(&self.ledger));
        let projector = self.servers[at].running.as_ref().map(|running| running.projector.clone());
        self.request(at, &format!("delete {id} of {name} of {}", short(tenant.0)), async move {
            let deleted = handles.database.ask("document.delete", move |record, world| {
                let place = (tenant, record.find(tenant, name)?);
                let deleted = record.documents_delete(place, std::slice::from_ref(&id), world.now());
                ledger.lock().forget(place, deleted.first().map(String::as_str).or(Some("")));
                Some(place)
            });
            if let (Some((tenant, namespace)), Some(projector)) = (deleted.await?, projector) {
                projector.kick(&Partition::for_laboratory(tenant, namespace, handles.model.clone()));
            }
            Ok(())
        });
    }

    fn delete_namespace(&self, at: usize, tenant: TenantId, name: &'static str) {
        let (handles, ledger) = (self.servers[at].handles.clone(), Arc::clone(&self.ledger));
        self.request(at, &format!("delete {name} of {}", short(tenant.0)), async move {
            let deleted = handles.database.ask("namespace.delete", move |record, _| {
                let place = (tenant, record.find(tenant, name)?);
                record.namespace_delete(place);
                ledger.lock().forget(place, None);
                Some(place)
            });
            let Some((tenant, namespace)) = deleted.await? else { return Ok(()) };
            handles.index.remove(&Partition::for_laboratory(tenant, namespace, handles.model.clone())).await
        });
    }

    /// A question, as retrieval asks it: what the index finds and still has a row, and what it lacks from the record.
    fn ask(&self, at: usize, tenant: TenantId, name: &'static str) {
        let (world, handles) = (self.world.clone(), self.servers[at].handles.clone());
        self.request(at, &format!("ask {name} of {}", short(tenant.0)), async move {
            let all = |record: &mut Record, place: &Place| {
                record.namespaces.get(place).map(|space| space.chunks.clone())
            };
            let opened = handles.database.ask("namespace.get", move |record, _| {
                let place = (tenant, record.find(tenant, name)?);
                Some((place, all(record, &place)?))
            });
            let Some((place, before)) = opened.await? else { return Ok(()) };
            let partition = Partition::for_laboratory(place.0, place.1, handles.model.clone());
            let query = VectorQuery { embedding: None, terms: None, limit: 1000 };
            let found = handles.index.search(&partition, &query).await?.unwrap_or_default();
            let Some(rows) = handles.database.ask("chunk.read", move |record, _| all(record, &place)).await?
            else {
                return Ok(());
            };
            let answered = |id| found.dense.iter().any(|hit| hit.chunk == id);
            for (id, chunk) in rows.iter().filter(|(id, _)| before.contains_key(id)) {
                if chunk.seq <= found.applied.0 && !answered(*id) {
                    world.violation(|| {
                        format!("{} was committed before the question, and not found", short(id.0))
                    });
                }
            }
            for hit in &found.dense {
                if rows.get(&hit.chunk).is_some_and(|row| row.version != hit.version) {
                    world
                        .violation(|| format!("{} answers with version {}", short(hit.chunk.0), hit.version));
                }
            }
            Ok(())
        });
    }

    /// Waits for an index, in several calls at once, now and then through a handle from long ago.
    fn project(&mut self, at: usize, tenant: TenantId, name: &'static str) {
        let Some(running) = &self.servers[at].running else { return };
        let (projector, handles) = (running.projector.clone(), self.servers[at].handles.clone());
        let Some(namespace) = self.database.record.lock().find(tenant, name) else { return };
        let partition = Partition::for_laboratory(tenant, namespace, handles.model.clone());
        let old: Vec<_> =
            self.kept.iter().filter(|(server, _)| *server == at).map(|(_, old)| Arc::clone(old)).collect();
        self.kept.push((at, Arc::new(Opened::now(&handles, (tenant, namespace)))));
        self.request(at, &format!("project {name} of {}", short(tenant.0)), async move {
            projector.kick(&partition);
            let late = futures::future::join_all(old.into_iter().map(|old| projector.project_from(old)));
            let (first, second) =
                (project(&handles, &projector, &partition), project(&handles, &projector, &partition));
            projector.kick(&partition);
            let query = VectorQuery { embedding: None, terms: None, limit: 1 };
            let questions = async {
                for _ in 0..10 {
                    // One that panics closes the shard under whoever applies.
                    let _ = handles.index.search(&partition, &query).await;
                }
            };
            futures::join!(first, second, late, questions);
            Ok(())
        });
    }

    fn cancel(&self, at: usize, tenant: TenantId) {
        let open: Vec<_> = {
            let record = self.database.record.lock();
            record
                .jobs
                .iter()
                .filter(|(_, job)| job.tenant == tenant && job.is_open())
                .map(|(id, _)| *id)
                .collect()
        };
        if open.is_empty() {
            return;
        }
        let job = open[self.below(open.len())];
        let (database, ledger) = (self.database.clone(), Arc::clone(&self.ledger));
        self.request(at, &format!("cancel {}", short(job.0)), async move {
            let cancel = move |record: &mut Record, _: &World| {
                if record.job_cancel(tenant, job) == Some(true) {
                    let job = &record.jobs[&job];
                    let mut ledger = ledger.lock();
                    let of = |written: &&mut Written| {
                        (written.place, &written.document, written.version)
                            == (job.place(), &job.document, job.version)
                    };
                    ledger.written.values_mut().filter(of).for_each(|written| written.cancelled = true);
                }
            };
            database.ask("job.cancel", cancel).await
        });
    }

    fn requeue(&self, at: usize, tenant: TenantId, name: &'static str) {
        let database = self.database.clone();
        self.request(
            at,
            &format!("process failed ones of {name} of {} again", short(tenant.0)),
            async move {
                let again = move |record: &mut Record, world: &World| {
                    if let Some(namespace) = record.find(tenant, name) {
                        record.documents_requeue((tenant, namespace), world.now(), world);
                    }
                };
                database.ask("document.requeue", again).await
            },
        );
    }

    /// A commit that was sent long ago arrives once more.
    fn repeat_a_commit(&self, at: usize) {
        let sent: Vec<Sent> = self.database.sent.lock().clone();
        if sent.is_empty() {
            return;
        }
        let (place, documents) = sent[self.below(sent.len())].clone();
        let handles: Handles = self.servers[at].handles.clone();
        self.request(at, "an old commit once more", async move {
            use bulkhead::jobs::worker::Target as _;
            let Some(opened) = handles.opened(place).await? else { return Ok(()) };
            opened.documents_commit(&documents, None).await.map(drop)
        });
    }

    fn suspend_or_resume(&self, tenant: TenantId) {
        let mut tenants = self.database.tenants.lock();
        let Some(state) = tenants.get_mut(&tenant) else { return };
        *state = if *state == TenantState::Active { TenantState::Suspended } else { TenantState::Active };
        self.world.trace(|| format!("tenant {} is {state:?}", short(tenant.0)));
    }

    /// Tells a server to stop and waits a while for it, before its process ends.
    fn stop(&mut self, at: usize) {
        if let Some(running) = &self.servers[at].running {
            self.world.trace(|| format!("server {} is told to stop", at + 1));
            running.stop.cancel();
        }
        self.run(Duration::from_millis(self.world.below(10_000)));
        self.servers[at].kill();
        self.kept.retain(|(server, _)| *server != at);
    }
}
