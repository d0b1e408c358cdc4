//! Paths of the model of shards on real shards: a crash is what their files are at that moment, a panic closes one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bulkhead::domain::Seq;
use bulkhead::domain::clock::SystemClock;
use bulkhead::store::partition::Partition;
use bulkhead::store::qdrant_edge::{EdgeIndex, EdgeSettings};
use bulkhead::store::vector::{Point, VectorIndex};
use stateright::Model;
use tempfile::TempDir;

use super::record::{PARTITIONS, Points};
use super::shards::{Action, Call, Shards, State};
use crate::conformance_vectors::{chunk, dense, partition, point_with};
use crate::vectors_edge;

struct Stage<'a> {
    model: &'a Shards,
    state: State,
    /// Goes before its folder does.
    index: EdgeIndex,
    root: TempDir,
    places: [Partition; 2],
    /// The record of what is durable, as it was before the flush that is under way.
    before_flush: [Option<Vec<u8>>; 2],
    /// A shard was closed in the middle: its files may hold more of what was applied than was flushed.
    interrupted: [bool; 2],
}

fn points(points: &Points) -> Vec<Point> {
    let point =
        |(number, version): (&u8, &u8)| point_with(u128::from(*number), i64::from(*version), &[(5, 1.0)]);
    points.iter().map(point).collect()
}

fn open(root: &TempDir) -> EdgeIndex {
    EdgeIndex::new(root.path().to_owned(), EdgeSettings::default(), Arc::new(SystemClock)).unwrap()
}

/// Replays a path, comparing what is found after each step, and then lets sweeps run until the index is the record.
pub async fn replay(model: &Shards, path: &[Action]) {
    let root = TempDir::new().unwrap();
    let index = open(&root);
    let places = [partition(1, 1), partition(2, 1)];
    let (state, before_flush) = (State::default(), [None, None]);
    let mut scene = Stage { model, state, index, root, places, before_flush, interrupted: [false; 2] };
    for (number, action) in path.iter().enumerate() {
        scene.step(*action).await;
        scene.compare(&format!("step {number} of {path:?}")).await;
    }
    // As sweeps do by themselves.
    for partition in PARTITIONS.into_iter().cycle().take(8) {
        for action in [Action::Step(partition), Action::Read(partition), Action::Flush(partition)] {
            let mut next = action;
            while scene.step(next).await {
                next = Action::Step(partition);
            }
        }
    }
    scene.interrupted = [false; 2];
    scene.compare(&format!("{path:?}, settled")).await;
    assert!(scene.state.is_converged(), "{path:?}");
    // And so it is after the process ended.
    scene.step(Action::Crash).await;
    scene.compare(&format!("{path:?}, settled, after a crash")).await;
}

impl Stage<'_> {
    fn record_of_durable(&self, partition: usize) -> PathBuf {
        vectors_edge::folder(self.root.path(), &self.places[partition]).join("watermark.json")
    }

    /// `false`: there is no such step now.
    async fn step(&mut self, action: Action) -> bool {
        let before = self.state.clone();
        let unbounded = Shards { faults: u8::MAX, ..self.model.clone() };
        let Some(after) = unbounded.next_state(&before, action) else { return false };
        self.state = after;
        match action {
            Action::Write(..) | Action::Rebuild(_) => {}
            Action::Read(partition) => {
                let place = &self.places[partition];
                self.index.position(place).await.unwrap();
                if self.state.records[partition].is_gone {
                    self.index.remove(place).await.unwrap();
                }
            }
            Action::Flush(partition) => {
                self.before_flush[partition] = std::fs::read(self.record_of_durable(partition)).ok();
                self.index.flush(&self.places[partition]).await.unwrap();
            }
            Action::Step(partition) => self.go_on(&before, partition).await,
            Action::Interrupt(partition) => {
                self.index.laboratory_interrupt(&self.places[partition]).await.unwrap();
                self.interrupted[partition] = true;
            }
            Action::Crash => {
                let left = vectors_edge::crash(self.root.path());
                let ended = std::mem::replace(&mut self.root, left);
                for partition in PARTITIONS {
                    if matches!(before.shards[partition].call, Some(Call::Flush(..))) {
                        let record = self.record_of_durable(partition);
                        match &self.before_flush[partition] {
                            Some(bytes) => std::fs::write(record, bytes).unwrap(),
                            None => std::fs::remove_file(record).unwrap(),
                        }
                    }
                }
                self.index = open(&self.root);
                drop(ended);
            }
        }
        true
    }

    /// What the real one does in one call is done where the model's call ends.
    async fn go_on(&self, before: &State, partition: usize) {
        let place = &self.places[partition];
        match before.shards[partition].call.clone().unwrap() {
            Call::Apply(changes) => {
                let removed = changes.removed.iter().map(|number| chunk(u128::from(*number))).collect();
                let through = Seq(i64::from(changes.through));
                // Refused when it went back: that is what is compared.
                let _ended = self.index.apply(place, points(&changes.added), removed, through).await;
            }
            Call::Rebuild { from, rows: Some(rows) } => {
                if let Ok(mut rebuild) = self.index.rebuild(place).await {
                    rebuild.add(points(&rows)).await.unwrap();
                    rebuild.finish(Seq(i64::from(from))).await.unwrap();
                }
            }
            Call::Rebuild { .. } | Call::Flush(..) | Call::Pass(_) => {}
        }
    }

    async fn compare(&self, about: &str) {
        for partition in PARTITIONS {
            let (shard, place) = (&self.state.shards[partition], &self.places[partition]);
            let found = self.index.search(place, &dense(1, 100)).await.unwrap();
            let expected = shard.search();
            assert_eq!(found.is_some(), expected.is_some(), "{about}: {place:?}");
            let (found, (expected, at)) = (found.unwrap_or_default(), expected.unwrap_or_default());
            assert!(found.dense.iter().all(|hit| hit.tenant == place.tenant()), "{about}: {found:?}");
            let hits: BTreeMap<_, _> = found.dense.iter().map(|hit| (hit.chunk, hit.version)).collect();
            let as_points = hits.iter().map(|(chunk, version)| {
                (u8::try_from(chunk.0.as_u128()).unwrap(), u8::try_from(*version).unwrap())
            });
            let is_allowed = self.state.records[partition].allows(&as_points.collect(), at);
            if self.interrupted[partition] && is_allowed && found.applied == Seq(i64::from(at)) {
                continue;
            }
            let expected: BTreeMap<_, _> =
                expected.iter().map(|(n, v)| (chunk(u128::from(*n)), i64::from(*v))).collect();
            assert_eq!((hits, found.applied), (expected, Seq(i64::from(at))), "{about}: {place:?}");
        }
    }
}
