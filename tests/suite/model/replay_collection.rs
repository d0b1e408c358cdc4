//! Paths of the model of a collection on the real back end, over the stand-in: what it sends waits for the fate that
//! the path says.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::time::Duration;

use bulkhead::domain::Seq;
use bulkhead::store::partition::Partition;
use bulkhead::store::qdrant::{QdrantIndex, QdrantSettings};
use bulkhead::store::vector::{Point, VectorIndex, VectorQuery};
use stateright::Model;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinHandle;

use super::collection::{Action, Collection, Fate, Message, State, Task};
use super::record::{Chunk, History, PARTITIONS, Points};
use crate::conformance_vectors::{chunk, dense, partition, point_with};
use crate::qdrant_stand_in::{self as stand_in, Arrived, StandIn};
use crate::vectors_qdrant::site::Site;

/// Longer than marks are kept.
const LONG: Duration = Duration::from_secs(601);

/// A server: its index, and the call that it is in.
struct Server {
    index: QdrantIndex,
    call: Option<JoinHandle<()>>,
    held: Option<Arrived>,
}

/// A path on the way.
struct Stage<'a> {
    model: &'a Collection,
    state: State,
    site: Site,
    gate: UnboundedReceiver<Arrived>,
    servers: [Server; 2],
    /// What is late, as the stand-in keeps it.
    late: Vec<Message>,
    places: [Partition; 2],
}

fn point(chunk: Chunk, version: u8) -> Point {
    point_with(u128::from(chunk), i64::from(version), &[(5, 1.0)])
}

fn points(points: &Points) -> Vec<Point> {
    points.iter().map(|(chunk, version)| point(*chunk, *version)).collect()
}

fn fate(fate: Fate) -> stand_in::gate::Fate {
    match fate {
        Fate::Applied => stand_in::gate::Fate::Applied,
        Fate::Refused => stand_in::gate::Fate::Refused,
        Fate::TimedOut => stand_in::gate::Fate::TimedOut,
        Fate::Late => stand_in::gate::Fate::Late,
        Fate::Doubled => stand_in::gate::Fate::Doubled,
    }
}

/// One attempt for each call, which may wait for as long as the path likes.
fn index(site: &Site) -> QdrantIndex {
    let mut settings = QdrantSettings { ..site.settings() };
    settings.calls.attempts = 1;
    settings.calls.deadline_ms = 60_000;
    settings.calls.breaker_failures = 1_000;
    site.index_with(settings)
}

/// Replays a path, comparing what is found after each step, and then lets sweeps run until the index is the record.
pub async fn replay(model: &Collection, path: &[Action]) {
    let site = Site::stand_in();
    let gate = server_of(&site).close_gate();
    let server = || Server { index: index(&site), call: None, held: None };
    let servers = [server(), server()];
    let places = [partition(1, 1), partition(1, 2)];
    let state = State::default();
    let mut scene = Stage { model, state, site, gate, servers, late: Vec::new(), places };
    for (number, action) in path.iter().enumerate() {
        let about = format!("step {number} of {path:?}");
        scene.step(*action).await;
        scene.compare(&about).await;
    }
    scene.converge(&format!("{path:?}")).await;
}

fn server_of(site: &Site) -> &StandIn {
    site.stand_in.as_ref().expect("a stand-in")
}

impl Stage<'_> {
    async fn step(&mut self, action: Action) {
        let before = self.state.clone();
        // A path that was found with something broken may want what is not to be had.
        let Some(after) = self.model.next_state(&before, action) else { return };
        self.state = after;
        match action {
            Action::Write(..) | Action::Rebuild { .. } => {}
            Action::Read { server, partition } => {
                self.servers[server].index.position(&self.places[partition]).await.unwrap();
            }
            Action::Start(server) => self.start(&before, server).await,
            Action::Send(server, met) => {
                let message = before.servers[server].call.as_ref().and_then(|call| call.held.clone());
                if matches!(met, Fate::Late | Fate::Doubled) {
                    self.late.push(message.expect("what the model sends"));
                }
                let held = self.servers[server].held.take().expect("the real one sends it too");
                held.meet(fate(met));
                self.advance(server).await;
            }
            Action::Crash(server) => {
                if let Some(call) = self.servers[server].call.take() {
                    call.abort();
                }
                self.servers[server] = Server { index: index(&self.site), call: None, held: None };
            }
            Action::Deliver(at) => {
                let at = self.late.iter().position(|kept| *kept == before.late[at]).expect("it is late");
                self.late.remove(at);
                server_of(&self.site).deliver(at);
            }
            Action::Wait => {
                self.late.clear();
                server_of(&self.site).lose_late();
                self.pass_time().await;
            }
        }
        for server in [0, 1] {
            let expected = self.state.servers[server].call.as_ref().is_some_and(|call| call.held.is_some());
            assert_eq!(
                self.servers[server].held.is_some(),
                expected,
                "{action:?}: what server {server} sends"
            );
        }
    }

    /// Begins the call that was prepared, and waits until it sends something that changes something, or ends.
    async fn start(&mut self, before: &State, server: usize) {
        let call = before.servers[server].call.clone().expect("a call");
        let (index, place) = (self.servers[server].index.clone(), self.places[call.partition].clone());
        let rows = points(&before.records[call.partition].points());
        self.servers[server].call = Some(tokio::spawn(async move {
            // A failure is what the path wanted.
            let _ended = match call.task {
                Task::Apply(changes) => {
                    let removed = changes.removed.iter().map(|number| chunk(u128::from(*number))).collect();
                    let through = Seq(i64::from(changes.through));
                    index.apply(&place, points(&changes.added), removed, through).await
                }
                Task::Rebuild(from) => {
                    async {
                        let mut rebuild = index.rebuild(&place).await?;
                        if !rows.is_empty() {
                            rebuild.add(rows).await?;
                        }
                        rebuild.finish(Seq(i64::from(from))).await
                    }
                    .await
                }
                Task::Remove => index.remove(&place).await,
            };
        }));
        self.advance(server).await;
    }

    async fn advance(&mut self, server: usize) {
        let Some(call) = &mut self.servers[server].call else { return };
        tokio::select! {
            biased;
            ended = &mut *call => {
                ended.unwrap();
                self.servers[server].call = None;
            }
            arrived = self.gate.recv() => self.servers[server].held = arrived,
        }
    }

    /// Nothing that was sent can arrive any more, and whoever keeps indexes up comes by.
    async fn pass_time(&mut self) {
        self.site.clock.advance(LONG);
        server_of(&self.site).open_gate();
        for (partition, place) in self.places.iter().enumerate() {
            for server in &self.servers {
                if !self.state.records[partition].is_gone {
                    server.index.flush(place).await.unwrap();
                    server.index.wants_rebuild(place).await;
                }
            }
        }
        self.gate = server_of(&self.site).close_gate();
    }

    /// What the first server's searches find is what the model's find, and nobody else's.
    async fn compare(&self, about: &str) {
        for partition in PARTITIONS {
            let expected = self.state.search(partition, None);
            let place = &self.places[partition];
            let query = VectorQuery { terms: point(1, 1).terms.into(), ..dense(1, 100) };
            for server in &self.servers {
                let mut found = server.index.search(place, &query).await.unwrap();
                if found.is_none() {
                    // Of a collection that another server took away, it learns by asking.
                    found = server.index.search(place, &query).await.unwrap();
                }
                let found = found.unwrap_or_default();
                for hits in [found.dense, found.lexical] {
                    assert!(hits.iter().all(|hit| hit.namespace == place.namespace()), "{about}: {hits:?}");
                    if !self.state.records[partition].is_gone {
                        let found: BTreeSet<_> = hits.iter().map(|hit| (hit.chunk, hit.version)).collect();
                        let expected = expected.iter().map(|(n, v)| (chunk(u128::from(*n)), i64::from(*v)));
                        assert_eq!(found, expected.collect(), "{about}: partition {partition}");
                    }
                }
            }
        }
    }

    /// Lets every call end and everything late arrive; then the sweeps run until nothing is to be done.
    async fn converge(&mut self, about: &str) {
        let stand_in = server_of(&self.site);
        stand_in.open_gate();
        for server in &mut self.servers {
            if let Some(held) = server.held.take() {
                held.meet(stand_in::gate::Fate::Applied);
            }
            if let Some(call) = server.call.take() {
                call.await.unwrap();
            }
        }
        while !self.late.is_empty() {
            self.late.pop();
            stand_in.deliver(0);
        }
        for _ in 0..4 {
            self.sweep(about).await;
            self.pass_time().await;
            server_of(&self.site).open_gate();
        }
        let mut expected = BTreeSet::new();
        for (record, place) in std::iter::zip(&self.state.records, &self.places) {
            let own = record.points();
            let rows: Vec<_> = own.iter().map(|(n, v)| (chunk(u128::from(*n)), i64::from(*v))).collect();
            let listed = self.servers[0].index.entries(place, None, 100).await.unwrap().unwrap_or_default();
            let listed: Vec<_> = listed.list.iter().map(|entry| (entry.chunk, entry.version)).collect();
            assert_eq!(listed, rows, "{about}: the index of {}", place.namespace());
            expected.extend(own.keys().map(|_| place.namespace().to_string()));
        }
        for collection in server_of(&self.site).collections() {
            let points = self.site.points(&collection).await;
            let of = |point: &qdrant_client::qdrant::RetrievedPoint| {
                point.payload["namespace"].as_str().map(|name| name.as_str().to_owned())
            };
            let bare = points.iter().filter(|point| !point.payload.contains_key("kind"));
            let rows: usize = self.state.records.iter().map(|record| record.rows.len()).sum();
            assert_eq!(bare.clone().count(), rows, "{about}: nothing but the rows: {points:?}");
            assert!(bare.map(of).all(|name| expected.contains(&name.unwrap())), "{about}: {points:?}");
            for (record, place) in std::iter::zip(&self.state.records, &self.places) {
                let own = points.iter().filter(|point| of(point) == Some(place.namespace().to_string()));
                assert!(!record.is_gone || own.count() == 0, "{about}: nothing of what is gone: {points:?}");
            }
        }
    }

    /// What the projector's sweep and the sweep of orphans do.
    async fn sweep(&self, about: &str) {
        let index = &self.servers[0].index;
        for (record, place) in std::iter::zip(&self.state.records, &self.places) {
            if record.is_gone {
                if index.partitions(place.tenant()).await.unwrap().contains(place) {
                    index.remove(place).await.unwrap();
                }
                continue;
            }
            let at = index.position(place).await.unwrap().map_or(0, |position| position.applied.0);
            match record.history(u8::try_from(at).unwrap()) {
                History::Changes(changes) => {
                    let removed = changes.removed.iter().map(|number| chunk(u128::from(*number))).collect();
                    let through = Seq(i64::from(changes.through));
                    index.apply(place, points(&changes.added), removed, through).await.unwrap();
                }
                History::UpToDate if index.wants_rebuild(place).await => {
                    let mut rebuild = index.rebuild(place).await.unwrap();
                    rebuild.add(points(&record.points())).await.unwrap();
                    rebuild.finish(Seq(i64::from(record.seq))).await.unwrap();
                }
                History::UpToDate => {}
                other => panic!("{about}: {other:?}"),
            }
        }
    }
}
