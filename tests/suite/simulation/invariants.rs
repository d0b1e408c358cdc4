//! What must hold after every step, and what at the end.

use std::collections::{BTreeMap, BTreeSet};

use bulkhead::domain::Seq;
use bulkhead::domain::ids::ChunkId;
use parking_lot::Mutex;

use super::executor::World;
use super::handles::Database;
use super::record::{JobState, Namespace, Place};
use super::server::{MAX_ATTEMPTS, Server, chunks_of, is_poison};
use super::short;

/// Every version that was ever accepted, by its content, which is never the same twice.
#[derive(Default)]
pub struct Ledger {
    pub written: BTreeMap<String, Written>,
    /// Contents whose acceptance a client was told of.
    pub told: BTreeSet<String>,
}

pub struct Written {
    pub place: Place,
    pub document: String,
    pub version: i64,
    /// Its document or namespace was deleted since.
    pub gone: bool,
    pub cancelled: bool,
}

impl Ledger {
    /// Notes a deletion: of one document, or of all of a namespace.
    pub fn forget(&mut self, place: Place, document: Option<&str>) {
        let of = |written: &&mut Written| {
            written.place == place && document.is_none_or(|document| written.document == document)
        };
        self.written.values_mut().filter(of).for_each(|written| written.gone = true);
    }
}

/// Looks at everything, if something changed since `seen`.
pub fn hold(world: &World, database: &Database, servers: &[Server], ledger: &Mutex<Ledger>, seen: &mut u64) {
    let record = database.record.lock();
    let revision =
        record.revision + servers.iter().map(|server| server.handles.index.revision()).sum::<u64>();
    if std::mem::replace(seen, revision) == revision {
        return;
    }
    let ledger = ledger.lock();
    for (place, space) in &record.namespaces {
        if let Err(what) = documents_hold(*place, space, &ledger) {
            world.violation(|| format!("{} of {}: {what}", short(place.1.0), short(place.0.0)));
        }
    }
    for (id, job) in record.jobs.iter().filter(|(_, job)| job.effects > 1) {
        world.violation(|| format!("job {} was done {} times", short(id.0), job.effects));
    }
    for server in servers {
        server.handles.index.each(|place, slot| {
            let Some(space) = record.namespaces.get(&place) else { return };
            let durable = slot.disk.durable;
            let held = slot.open.as_ref().map(|(points, applied)| ("index", points, *applied));
            let left = durable.map(|durable| ("index after a crash", &slot.disk.points, durable));
            if let (Some((_, _, applied)), Some(durable)) = (held, durable)
                && applied < durable
            {
                world.violation(|| format!("durable at {durable}, applied at {applied}"));
            }
            for (which, points, at) in held.into_iter().chain(left) {
                if let Err(what) = index_holds(space, points, at) {
                    let (process, place) = (server.process, short(place.1.0));
                    world.violation(|| format!("{which} of {place} on server {process} at {at}: {what}"));
                }
            }
        });
    }
}

/// The version that answers is the one that was accepted, whole and once; nothing else answers.
fn documents_hold(place: Place, space: &Namespace, ledger: &Ledger) -> Result<(), String> {
    let mut answering: BTreeMap<&str, usize> = BTreeMap::new();
    for chunk in space.chunks.values() {
        let written = ledger.written.get(&chunk.text).filter(|written| written.place == place);
        let Some(written) = written else { return Err(format!("{} was never accepted here", chunk.text)) };
        if written.gone {
            return Err(format!("{} of {} is deleted, and answers", chunk.text, chunk.document));
        }
        let live = space.documents.get(&chunk.document).and_then(|document| document.live);
        if (written.document.as_str(), Some(written.version)) != (&chunk.document, live)
            || chunk.version != written.version
        {
            return Err(format!("{} is not the version of {} that answers", chunk.text, chunk.document));
        }
        *answering.entry(&chunk.text).or_default() += 1;
    }
    for (id, document) in space.documents.iter().filter(|(_, document)| document.live.is_some()) {
        let text = space.chunks.values().find(|chunk| chunk.document == *id).map(|chunk| chunk.text.as_str());
        let whole = text.is_some_and(|text| answering.get(text) == Some(&chunks_of(text)));
        if !whole {
            return Err(format!("{id} is answered by a part of itself, or doubly: {document:?}"));
        }
    }
    Ok(())
}

/// Everything up to `at` is in the index, and nothing that was removed up to `at`, or of another namespace.
fn index_holds(space: &Namespace, points: &BTreeMap<ChunkId, i64>, at: Seq) -> Result<(), String> {
    if at.0 > space.seq {
        return Err(format!("it is ahead of the record at {}", space.seq));
    }
    for (chunk, version) in points {
        match space.lives.get(chunk) {
            None => return Err(format!("{} is foreign", short(chunk.0))),
            Some(life) if life.version != *version => {
                return Err(format!("{} has version {version}", short(chunk.0)));
            }
            Some(life) if life.removed.is_some_and(|removed| removed <= at.0) => {
                return Err(format!("{} was removed at {:?}, and is found", short(chunk.0), life.removed));
            }
            Some(_) => {}
        }
    }
    let lost = space.chunks.iter().find(|(id, chunk)| chunk.seq <= at.0 && !points.contains_key(id));
    lost.map_or(Ok(()), |(id, chunk)| Err(format!("{} of {} is lost", short(id.0), chunk.document)))
}

/// Whether all is at rest: no job left, and every index exactly the record, made durable. Says what is not.
pub fn unsettled(database: &Database, servers: &[Server]) -> Option<String> {
    let record = database.record.lock();
    if let Some((id, job)) = record.jobs.iter().find(|(_, job)| job.is_open()) {
        return Some(format!("job {} is {:?}: {job:?}", short(id.0), job.state));
    }
    for server in servers {
        let mut wrong = None;
        let mut seen = BTreeSet::new();
        server.handles.index.each(|place, slot| {
            let served = slot.open.as_ref().map(|(points, applied)| (points, *applied));
            let served = served.or(slot.disk.durable.map(|durable| (&slot.disk.points, durable)));
            let Some((points, applied)) = served else { return };
            let Some(space) = record.namespaces.get(&place) else {
                wrong = Some(format!(
                    "server {} has an index of {}, which is gone",
                    server.process,
                    short(place.1.0)
                ));
                return;
            };
            seen.insert(place);
            let rows: BTreeMap<ChunkId, i64> = space.chunks.iter().map(|(id, c)| (*id, c.version)).collect();
            if *points != rows || applied.0 != space.seq || slot.disk.durable != Some(applied) {
                let (name, process, durable) = (short(place.1.0), server.process, slot.disk.durable);
                let (found, wanted) = (points.len(), rows.len());
                wrong = Some(format!(
                    "{name} on server {process}: applied {applied}, durable {durable:?}, {found} points; \
                     the record is at {}, {wanted} chunks",
                    space.seq
                ));
            }
        });
        let missing = record.namespaces.iter().find(|(place, space)| space.seq > 0 && !seen.contains(*place));
        if let Some((place, _)) = missing {
            wrong = Some(format!("server {} has no index of {}", server.process, short(place.1.0)));
        }
        if wrong.is_some() {
            return wrong;
        }
    }
    None
}

/// At the end: every accepted document answers, was overtaken or deleted, or failed for a reason that is true.
pub fn nothing_lost(database: &Database, ledger: &Ledger) -> Result<(), String> {
    let record = database.record.lock();
    for token in &ledger.told {
        let Some(written) = ledger.written.get(token) else {
            return Err(format!("{token} was told of, not written"));
        };
        if written.gone {
            continue;
        }
        let document =
            record.namespaces.get(&written.place).and_then(|space| space.documents.get(&written.document));
        let Some(document) = document else { return Err(format!("{token} is lost: {}", written.document)) };
        if document.version < written.version {
            return Err(format!("{token} is lost: {} is at {}", written.document, document.version));
        }
        if document.version > written.version {
            continue;
        }
        let gave_up = record.jobs.values().any(|job| {
            (job.place(), &job.document, job.version) == (written.place, &written.document, written.version)
                && job.state == JobState::Failed
                && job.attempts >= 2.min(MAX_ATTEMPTS)
        });
        let is_right = match (document.status, document.error.as_deref()) {
            ("processed", None) => document.live == Some(document.version),
            ("failed", Some("cancelled")) => written.cancelled,
            ("failed", Some(_)) => is_poison(token) || gave_up,
            _ => false,
        };
        if !is_right {
            return Err(format!("{token} came to nothing: {document:?}"));
        }
    }
    Ok(())
}
