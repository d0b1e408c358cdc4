//! The life of one partition's index in this process: unopened, absent, served, removed.
//!
//! **Locks**, in this order: `writer`, then `state`. A search holds `state` for reading as long as it uses the
//! shard, and so pins it; who opens, closes, switches or removes holds it for writing. Who writes to the
//! shard holds `writer`, so as to be the only one, and `state` for reading, so that searches go on beside it.
//!
//! **Invariant:** guards move into the blocking call that needs them. A caller that goes away cannot cut a
//! transition in half.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex as Spin;
use tokio::sync::{Mutex, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::fault::{Fault, require_free};
use super::layout::{self, Layout, Watermark};
use super::settings::EdgeSettings;
use super::shard::{self, Shard};
use crate::config::crash_point;
use crate::domain::Seq;
use crate::domain::ids::ChunkId;
use crate::store::partition::Partition;
use crate::store::vector::{Point, Position};

/// What this process knows of a partition's index.
#[derive(Debug)]
pub(super) enum State {
    /// Perhaps on disk; nobody has looked since it was last closed.
    Unopened,
    /// There is none.
    Absent,
    /// Open.
    Served(Box<Served>),
    /// Removed for good; identifiers are never reused.
    Removed,
}

/// An open generation.
#[derive(Debug)]
pub(super) struct Served {
    /// Its number; 0 as long as there is no point and hence no shard.
    pub(super) generation: u64,
    /// `None` as long as there has been no point.
    pub(super) shard: Option<Shard>,
    applied: AtomicI64,
    durable: AtomicI64,
    points: AtomicUsize,
    /// Milliseconds of Unix time.
    deleted_since: Spin<Option<i64>>,
    /// Whether the names of its files are durable, beside their content.
    names_synced: AtomicBool,
    /// What a call ran into; the next one to come closes the shard or puts it away.
    failed: AtomicU8,
}

/// What has to be free on the disk for a shard to be opened, where less is not kept free anyway.
const OPENING_BYTES: u64 = 64 * 1024 * 1024;

const SOUND: u8 = 0;
const INTERRUPTED: u8 = 1;
const DAMAGED: u8 = 2;

/// One partition.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) partition: Partition,
    pub(super) folder: PathBuf,
    pub(super) state: Arc<RwLock<State>>,
    pub(super) writer: Arc<Mutex<()>>,
    /// Held by the one rebuild.
    pub(super) rebuilding: Arc<Mutex<()>>,
    /// The generation that a rebuild is writing, or 0: not a leftover.
    pub(super) draft: AtomicU64,
    /// When it was last used, in ticks of the index.
    pub(super) used: AtomicU64,
    /// The same in milliseconds since the index was taken into use.
    pub(super) used_ms: AtomicU64,
    /// The highest position that a caller could know.
    reached: AtomicI64,
    /// The index went back behind `reached`, and nobody has asked for its position since.
    pub(super) went_back: AtomicBool,
}

/// Pins what is served.
pub(super) type Reading = OwnedRwLockReadGuard<State>;
/// Keeps everybody else away.
pub(super) type Writing = OwnedRwLockWriteGuard<State>;

impl Served {
    pub(super) fn new(shard: Option<Shard>, mark: Watermark) -> Result<Self, Fault> {
        let points = shard.as_ref().map_or(Ok(0), Shard::points)?;
        Ok(Self {
            generation: mark.generation,
            shard,
            applied: AtomicI64::new(mark.seq.0),
            durable: AtomicI64::new(mark.seq.0),
            points: AtomicUsize::new(points),
            deleted_since: Spin::new(mark.deleted_since),
            names_synced: AtomicBool::new(false),
            failed: AtomicU8::new(SOUND),
        })
    }

    /// Notes what a call ran into.
    pub(super) fn note(&self, fault: &Fault) {
        let found = match fault {
            Fault::Refused(_) => SOUND,
            Fault::Interrupted(_) => INTERRUPTED,
            Fault::Damaged(_) => DAMAGED,
        };
        self.failed.fetch_max(found, Ordering::AcqRel);
    }

    /// Whether it can be used as it is.
    pub(super) fn is_sound(&self) -> bool {
        self.failed.load(Ordering::Acquire) == SOUND
    }

    /// An index without a point.
    pub(super) fn empty() -> Result<Self, Fault> {
        Self::new(None, Watermark { generation: 0, seq: Seq(0), deleted_since: None })
    }

    pub(super) fn position(&self) -> Position {
        // Durable first: it never passes what is applied.
        let durable = Seq(self.durable.load(Ordering::Acquire));
        Position { applied: Seq(self.applied.load(Ordering::Acquire)), durable }
    }

    pub(super) fn points(&self) -> usize {
        self.points.load(Ordering::Relaxed)
    }

    pub(super) fn deleted_since(&self) -> Option<i64> {
        *self.deleted_since.lock()
    }

    /// Blocks. Writes to the shard; the caller holds `writer`.
    pub(super) fn apply(
        &self,
        partition: &Partition,
        upserts: &[Point],
        deletes: &[ChunkId],
        through: Seq,
        now: i64,
    ) -> Result<(), Fault> {
        if let Some(shard) = &self.shard {
            shard.upsert(partition, upserts)?;
            if !deletes.is_empty() {
                // Before deleting: what half a delete leaves behind is residue, too.
                self.deleted_since.lock().get_or_insert(now);
                shard.delete(deletes)?;
            }
            self.points.store(shard.points()?, Ordering::Relaxed);
        }
        self.applied.store(through.0, Ordering::Release);
        Ok(())
    }

    /// Blocks. Makes durable what is applied; the caller holds `writer`.
    pub(super) fn flush(&self, layout: &Layout, folder: &Path) -> Result<Seq, Fault> {
        let Position { applied, durable } = self.position();
        if applied == durable {
            return Ok(durable);
        }
        if let Some(shard) = &self.shard {
            shard.flush()?;
            if !self.names_synced.load(Ordering::Acquire) {
                layout::sync_tree(shard.path()).map_err(|e| Fault::from_io("syncing a vector shard", &e))?;
                self.names_synced.store(true, Ordering::Release);
            }
        }
        crash_point("flushed");
        let mark =
            Watermark { generation: self.generation, seq: applied, deleted_since: self.deleted_since() };
        layout
            .write_watermark(folder, mark)
            .map_err(|error| Fault::from_io("recording what is durable of a vector shard", &error))?;
        self.durable.store(applied.0, Ordering::Release);
        Ok(applied)
    }
}

impl Slot {
    pub(super) fn new(partition: Partition, folder: PathBuf) -> Self {
        Self {
            partition,
            folder,
            state: Arc::new(RwLock::new(State::Unopened)),
            writer: Arc::default(),
            rebuilding: Arc::default(),
            draft: AtomicU64::new(0),
            used: AtomicU64::new(0),
            used_ms: AtomicU64::new(0),
            reached: AtomicI64::new(0),
            went_back: AtomicBool::new(false),
        }
    }

    /// Notes a position that a caller learns of.
    pub(super) fn reached(&self, seq: Seq) {
        self.reached.fetch_max(seq.0, Ordering::AcqRel);
    }

    /// A caller has learnt where the index stands and goes on from there.
    pub(super) fn acknowledge(&self, seq: Seq) {
        self.reached.store(seq.0, Ordering::Release);
        self.went_back.store(false, Ordering::Release);
    }

    /// Blocks. Opens what is on disk and deletes leftovers.
    fn open(&self, layout: &Layout, settings: &EdgeSettings) -> Result<State, Fault> {
        let state = self.open_files(layout, settings)?;
        let at = if let State::Served(served) = &state { served.position().applied.0 } else { 0 };
        if at < self.reached.load(Ordering::Acquire) {
            self.went_back.store(true, Ordering::Release);
        }
        Ok(state)
    }

    fn open_files(&self, layout: &Layout, settings: &EdgeSettings) -> Result<State, Fault> {
        let mark = match layout::read_watermark(&self.folder) {
            Ok(mark) => mark,
            Err(error) if error.raw_os_error().is_none() => {
                return Err(Fault::Damaged(format!("the record of what is durable is unreadable: {error}")));
            }
            Err(error) => return Err(Fault::from_io("reading what is durable of a vector shard", &error)),
        };
        let named = mark.map_or(0, |mark| mark.generation);
        let draft = self.draft.load(Ordering::Acquire);
        let leftovers = |error| Fault::from_io("deleting leftovers of a vector shard", &error);
        for generation in layout::generations(&self.folder).map_err(leftovers)? {
            if generation != named && generation != draft {
                layout.discard(&self.folder.join(generation.to_string())).map_err(leftovers)?;
            }
        }
        let Some(mark) = mark else { return Ok(State::Absent) };
        let shard = if mark.generation == 0 {
            None
        } else {
            let path = self.folder.join(mark.generation.to_string());
            if !path.is_dir() {
                return Err(Fault::Damaged("the folder of the vector shard is gone".into()));
            }
            // Opening writes too, though little.
            require_free(layout.root(), settings.min_free_bytes.min(OPENING_BYTES))?;
            let sealed = |error| Fault::from_io("reading the files of a vector shard", &error);
            if !layout::is_as_sealed(&self.folder, mark.generation).map_err(sealed)? {
                let words = "the files of the vector shard are not what the last stop of the server left";
                return Err(Fault::Damaged(words.into()));
            }
            layout::break_seal(&self.folder).map_err(sealed)?;
            if shard::log_bytes(&path) > settings.log_bound() {
                shard::cut_log(&path).map_err(|error| Fault::from_io("cutting a shard's log", &error))?;
            }
            if !layout::begin_opening(&self.folder) {
                layout::end_opening(&self.folder);
                return Err(Fault::Damaged("the server ended while it opened this vector shard".into()));
            }
            crash_point("shard-opening");
            let loaded = Shard::load(&path, settings);
            layout::end_opening(&self.folder);
            Some(loaded?)
        };
        Ok(State::Served(Box::new(Served::new(shard, mark)?)))
    }

    /// Blocks. Makes of an unopened or failed state one that can be used.
    pub(super) fn settle(
        &self,
        state: &mut State,
        layout: &Layout,
        settings: &EdgeSettings,
    ) -> Result<(), Fault> {
        if let State::Served(served) = state {
            match served.failed.load(Ordering::Acquire) {
                SOUND => {}
                INTERRUPTED => *state = State::Unopened,
                _ => self.quarantine(state, layout),
            }
        }
        if matches!(state, State::Unopened) {
            match self.open(layout, settings) {
                Ok(opened) => *state = opened,
                Err(fault) => {
                    if matches!(fault, Fault::Damaged(_)) {
                        self.quarantine(state, layout);
                    }
                    return Err(fault);
                }
            }
        }
        Ok(())
    }

    /// Blocks. Flushes and closes what is served. At the end of the server it is sealed, so that the next one notices
    /// what happens to its files in between; whoever only makes room reads no whole shard for it.
    pub(super) fn close(&self, state: &mut State, layout: &Layout, at_end: bool) -> Result<(), Fault> {
        let State::Served(served) = std::mem::replace(state, State::Unopened) else { return Ok(()) };
        if !served.is_sound() {
            return Ok(());
        }
        served.flush(layout, &self.folder)?;
        let generation = served.generation;
        drop(served);
        if at_end && generation > 0 {
            layout::seal(&self.folder, generation)
                .map_err(|error| Fault::from_io("sealing a vector shard", &error))?;
        }
        Ok(())
    }

    /// Blocks. Puts the index away, files and all: it is not to be trusted.
    fn quarantine(&self, state: &mut State, layout: &Layout) {
        *state = State::Absent;
        self.went_back.store(true, Ordering::Release);
        // The watermark first: without it whatever remains is a leftover.
        let mut result =
            layout::discard_watermark(&self.folder).and_then(|()| layout::break_seal(&self.folder));
        for generation in layout::generations(&self.folder).unwrap_or_default() {
            if generation != self.draft.load(Ordering::Acquire) {
                result = result.and(layout.discard(&self.folder.join(generation.to_string())));
            }
        }
        match result {
            Ok(()) => tracing::error!(folder = %self.folder.display(), "a damaged vector shard was put away"),
            Err(error) => {
                tracing::error!(folder = %self.folder.display(), %error, "a damaged vector shard cannot be deleted");
            }
        }
    }

    /// The number of the next generation.
    pub(super) fn next_generation(&self) -> Result<u64, Fault> {
        let read = |error| Fault::from_io("reading the folder of a vector shard", &error);
        let highest = layout::generations(&self.folder).map_err(read)?.into_iter().max().unwrap_or(0);
        let named = layout::read_watermark(&self.folder).map_err(read)?.map_or(0, |mark| mark.generation);
        Ok(highest.max(named) + 1)
    }
}
