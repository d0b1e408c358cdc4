//! The shards of all partitions: which are open, who may use them, and on which thread.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex as Spin;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::fault::{BACKEND, Fault, require_free};
use super::layout::Layout;
use super::settings::EdgeSettings;
use super::slot::{Reading, Slot, State, Writing};
use crate::domain::clock::Clock;
use crate::store::error::StoreError;
use crate::store::partition::Partition;

/// Vectors in on-disk shards inside this process, one for each partition.
///
/// Clones share the shards.
#[derive(Debug, Clone)]
pub struct EdgeIndex {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) layout: Layout,
    pub(super) settings: EdgeSettings,
    pub(super) clock: Arc<dyn Clock>,
    slots: Spin<HashMap<Partition, Arc<Slot>>>,
    ticks: AtomicU64,
    /// Since when [`Slot::used_ms`] counts.
    started: Instant,
    open: AtomicUsize,
    /// Turns of what a query may have to wait for: searching, opening, closing.
    pub(super) searches: Arc<Semaphore>,
    /// Turns of what may take long.
    pub(super) writes: Arc<Semaphore>,
    #[cfg(any(test, feature = "laboratory"))]
    pub(super) filter_off: std::sync::atomic::AtomicBool,
}

impl EdgeIndex {
    /// Takes the folder of all shards into use; opens none yet.
    ///
    /// The folder is made if need be and closed to other users. Files inside get the process' mode: a server
    /// sets its umask to 077.
    ///
    /// # Errors
    /// `Unavailable` when the folder cannot be made or written.
    pub fn new(root: PathBuf, settings: EdgeSettings, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let words = format!("taking the folder of vector shards into use: {}", root.display());
        let layout = Layout::open(root)
            .map_err(|error| Fault::from_io(&words, &error).into_store("vector.open").with_source(error))?;
        let inner = Inner {
            layout,
            slots: Spin::default(),
            ticks: AtomicU64::new(1),
            started: clock.instant(),
            open: AtomicUsize::new(0),
            searches: Arc::new(Semaphore::new(settings.max_searches.max(1))),
            writes: Arc::new(Semaphore::new(settings.max_writes.max(1))),
            settings,
            clock,
            #[cfg(any(test, feature = "laboratory"))]
            filter_off: std::sync::atomic::AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Shards open at this moment.
    #[must_use]
    pub fn open_shards(&self) -> usize {
        self.inner.open.load(Ordering::Relaxed)
    }

    /// Closes shards that nobody uses, until the server stops: a tenant that rests holds no descriptor.
    pub async fn close_idle(self, stop: CancellationToken) {
        let limit = Duration::from_secs(self.inner.settings.idle_seconds);
        while stop.run_until_cancelled(tokio::time::sleep(limit / 4)).await.is_some() {
            self.inner.close_unused(limit).await;
        }
    }

    /// Flushes and closes every shard. For stopping; a shard that is asked for afterwards opens again.
    pub async fn close(&self) {
        let slots: Vec<_> = self.inner.slots.lock().values().cloned().collect();
        for slot in slots {
            let state = Arc::clone(&slot.state).write_owned().await;
            self.inner.close(slot, state, true).await;
        }
    }
}

impl Inner {
    /// The partition's slot.
    pub(super) fn slot(&self, partition: &Partition) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        // Looked up before the key is cloned: most partitions are there.
        if let Some(slot) = slots.get(partition) {
            return Arc::clone(slot);
        }
        let slot = Arc::new(Slot::new(partition.clone(), self.layout.partition(partition)));
        slots.insert(partition.clone(), Arc::clone(&slot));
        slot
    }

    /// Milliseconds since the index was taken into use.
    fn now_ms(&self) -> u64 {
        let since = self.clock.instant().saturating_duration_since(self.started);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// The partition's state, opened if need be and pinned as long as the guard lives. Opened once for all
    /// who wait; noted as used just now.
    pub(super) async fn reading(self: &Arc<Self>, slot: &Arc<Slot>) -> Result<Reading, Fault> {
        slot.used.store(self.ticks.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        slot.used_ms.store(self.now_ms(), Ordering::Relaxed);
        let state = Arc::clone(&slot.state).read_owned().await;
        if is_settled(&state) {
            return Ok(state);
        }
        drop(state);
        let mut state = Arc::clone(&slot.state).write_owned().await;
        if is_settled(&state) {
            return Ok(state.downgrade());
        }
        self.make_room().await;
        let (inner, slot) = (Arc::clone(self), Arc::clone(slot));
        blocking(&self.searches, move || {
            inner.change(&mut state, |state| slot.settle(state, &inner.layout, &inner.settings))?;
            Ok(state.downgrade())
        })
        .await
    }

    /// Changes a state and keeps count of what is open.
    pub(super) fn change<T>(&self, state: &mut State, change: impl FnOnce(&mut State) -> T) -> T {
        let before = usize::from(matches!(state, State::Served(_)));
        let result = change(state);
        let after = usize::from(matches!(state, State::Served(_)));
        if after > before {
            self.open.fetch_add(1, Ordering::Relaxed);
        } else if before > after {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
        result
    }

    /// Closes what has been unused for longest until one more may be opened, or all are in use.
    pub(super) async fn make_room(self: &Arc<Self>) {
        while self.open.load(Ordering::Relaxed) >= self.settings.max_open.max(1) {
            let mut slots: Vec<_> = self.slots.lock().values().cloned().collect();
            slots.sort_unstable_by_key(|slot| slot.used.load(Ordering::Relaxed));
            let idle = slots.into_iter().find_map(|slot| {
                let state = Arc::clone(&slot.state).try_write_owned().ok()?;
                matches!(*state, State::Served(_)).then_some((slot, state))
            });
            let Some((slot, state)) = idle else { return };
            self.close(slot, state, false).await;
        }
    }

    /// Closes every shard that was not used for so long, one after the other.
    async fn close_unused(self: &Arc<Self>, limit: Duration) {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let slots: Vec<_> = self.slots.lock().values().cloned().collect();
        for slot in slots {
            let is_unused = || self.now_ms().saturating_sub(slot.used_ms.load(Ordering::Relaxed)) >= limit;
            if !is_unused() {
                continue;
            }
            if let Ok(state) = Arc::clone(&slot.state).try_write_owned()
                && matches!(*state, State::Served(_))
                && is_unused()
            {
                self.close(slot, state, false).await;
            }
        }
    }

    /// Flushes and closes, for a while or at the end of the server.
    pub(super) async fn close(self: &Arc<Self>, slot: Arc<Slot>, mut state: Writing, at_end: bool) {
        let inner = Arc::clone(self);
        let closed = blocking(&self.searches, move || {
            inner.change(&mut state, |state| slot.close(state, &inner.layout, at_end))
        });
        if let Err(fault) = closed.await {
            tracing::warn!(%fault, "a vector shard closed without all that belongs to it");
        }
    }

    /// Puts a partition's files away. What was removed for good stays so.
    pub(super) async fn discard(self: &Arc<Self>, partition: &Partition, end: State) -> Result<(), Fault> {
        let slot = self.slot(partition);
        let mut state = Arc::clone(&slot.state).write_owned().await;
        let inner = Arc::clone(self);
        blocking(&self.writes, move || {
            inner.change(&mut state, |state| {
                if !matches!(state, State::Removed) {
                    *state = end;
                }
            });
            inner
                .layout
                .discard_partition(&slot.folder)
                .map_err(|error| Fault::from_io("deleting the files of a vector shard", &error))
        })
        .await
    }

    /// Blocks for a moment. Refuses when the disk has too little room left to write safely.
    pub(super) fn require_room(&self) -> Result<(), Fault> {
        require_free(self.layout.root(), self.settings.min_free_bytes)
    }
}

fn is_settled(state: &State) -> bool {
    match state {
        State::Unopened => false,
        State::Served(served) => served.is_sound(),
        State::Absent | State::Removed => true,
    }
}

/// Runs a blocking call when its turn comes. Once begun it is carried through, wait or not.
pub(super) async fn blocking<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    call: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let turn = Arc::clone(turns).acquire_owned().await;
    let turn = turn.map_err(|_| Fault::Refused(format!("{BACKEND} is closed")))?;
    let run = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        call()
    });
    run.await.unwrap_or_else(|error| Err(Fault::Interrupted(format!("a call was given up: {error}"))))
}
