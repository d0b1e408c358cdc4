//! A world of one thread whose order, time, identities and faults all follow from a seed.
//!
//! Of the tasks that could go on, chance takes one; when none can, time leaps to the next timer. Nothing else here
//! waits, so that the same seed gives the same history, step by step.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bulkhead::domain::clock::Clock;
use bulkhead::domain::ids::IdSource;
use bulkhead::jobs::runtime::Runtime;
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

/// Tasks that end together: a process.
pub type Process = usize;

/// The world. Clones share it.
#[derive(Clone)]
pub struct World(Arc<Mutex<State>>);

struct State {
    /// Of chance; splitmix64.
    chance: u64,
    now: Duration,
    begun: Instant,
    tasks: BTreeMap<u64, Task>,
    ready: Vec<u64>,
    timers: BTreeMap<(Duration, u64), Waker>,
    /// Processes that stand still until then, as a stopped or swapped-out one does.
    still: BTreeMap<Process, Duration>,
    made: u64,
    /// What was found to be wrong first.
    violation: Option<String>,
    /// What happened, when it is wanted.
    trace: Option<Vec<String>>,
}

struct Task {
    process: Process,
    /// `None` while it is polled.
    future: Option<BoxFuture<'static, ()>>,
}

impl World {
    pub fn new(seed: u64, traced: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            chance: seed,
            now: Duration::ZERO,
            begun: Instant::now(),
            tasks: BTreeMap::new(),
            ready: Vec::new(),
            timers: BTreeMap::new(),
            still: BTreeMap::new(),
            made: 0,
            violation: None,
            trace: traced.then(Vec::new),
        })))
    }

    /// Below `bound`, each as likely.
    pub fn below(&self, bound: u64) -> u64 {
        self.0.lock().below(bound)
    }

    pub fn one_in(&self, of: u64) -> bool {
        self.below(of) == 0
    }

    pub fn elapsed(&self) -> Duration {
        self.0.lock().now
    }

    /// Notes what must not be. The first note counts.
    pub fn violation(&self, what: impl FnOnce() -> String) {
        let mut state = self.0.lock();
        if state.violation.is_none() {
            state.violation = Some(what());
        }
    }

    pub fn violated(&self) -> Option<String> {
        self.0.lock().violation.clone()
    }

    pub fn trace(&self, what: impl FnOnce() -> String) {
        let mut state = self.0.lock();
        let now = state.now;
        if let Some(trace) = &mut state.trace {
            trace.push(format!("{:>9.3} s  {}", now.as_secs_f64(), what()));
        }
    }

    pub fn traced(&self) -> Vec<String> {
        self.0.lock().trace.clone().unwrap_or_default()
    }

    pub fn spawn(&self, process: Process, future: impl Future<Output = ()> + Send + 'static) {
        let mut state = self.0.lock();
        state.made += 1;
        let id = state.made;
        state.tasks.insert(id, Task { process, future: Some(Box::pin(future)) });
        state.ready.push(id);
    }

    /// Ends a process between two steps: none of its tasks goes on.
    pub fn kill(&self, process: Process) {
        let mut state = self.0.lock();
        let ids: Vec<u64> =
            state.tasks.iter().filter(|(_, t)| t.process == process).map(|(id, _)| *id).collect();
        let killed: Vec<_> = ids.iter().filter_map(|id| state.tasks.remove(id)).collect();
        state.ready.retain(|id| !ids.contains(id));
        state.still.remove(&process);
        drop(state);
        // Dropping wakes others, which takes the lock.
        drop(killed);
    }

    /// Lets a process stand still, while all others go on.
    pub fn pause(&self, process: Process, time: Duration) {
        let mut state = self.0.lock();
        let until = state.now + time;
        state.still.insert(process, until);
    }

    pub fn sleep(&self, time: Duration) -> Sleep {
        let mut state = self.0.lock();
        state.made += 1;
        Sleep { world: self.clone(), key: (state.now + time, state.made), listed: false }
    }

    /// Time that a call takes: mostly none but a step, now and then so long that others run out of patience.
    pub async fn delay(&self) {
        let milliseconds = match self.below(200) {
            0 => 2000 + self.below(15_000),
            1..=60 => self.below(40),
            _ => 0,
        };
        self.sleep(Duration::from_millis(milliseconds)).await;
    }

    /// Lets go of everything: tasks and timers hold the world, and it holds them.
    pub fn end(&self) {
        let mut state = self.0.lock();
        let (tasks, timers) = (std::mem::take(&mut state.tasks), std::mem::take(&mut state.timers));
        drop(state);
        drop((tasks, timers));
    }

    /// One step. `false`: nothing happens any more before `limit`, where time stands now.
    fn step(&self, limit: Duration) -> bool {
        let mut state = self.0.lock();
        let now = state.now;
        state.still.retain(|_, until| *until > now);
        let able: Vec<usize> = (0..state.ready.len())
            .filter(|at| !state.still.contains_key(&state.tasks[&state.ready[*at]].process))
            .collect();
        if able.is_empty() {
            let resumed = state.still.values().min().copied();
            let rung = state.timers.first_key_value().map(|((at, _), _)| *at);
            let Some(next) = resumed.into_iter().chain(rung).min().filter(|next| *next <= limit) else {
                state.now = limit;
                return false;
            };
            state.now = now.max(next);
            let mut due = Vec::new();
            while let Some(timer) = state.timers.first_entry().filter(|timer| timer.key().0 <= next) {
                due.push(timer.remove());
            }
            drop(state);
            due.into_iter().for_each(Waker::wake);
            return true;
        }
        let chosen = able[usize::try_from(state.below(able.len() as u64)).expect("small")];
        let id = state.ready.swap_remove(chosen);
        let Some(mut future) = state.tasks.get_mut(&id).and_then(|task| task.future.take()) else {
            return true;
        };
        drop(state);
        let waker = Waker::from(Arc::new(Wakeup { world: self.clone(), id }));
        let ended = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let mut state = self.0.lock();
        if ended {
            state.tasks.remove(&id);
            state.ready.retain(|ready| *ready != id);
            drop(state);
            drop(future);
        } else if let Some(task) = state.tasks.get_mut(&id) {
            task.future = Some(future);
        }
        true
    }

    /// Goes on for `time`, and calls `check` after each step; stops at a violation.
    pub fn run(&self, time: Duration, mut check: impl FnMut()) {
        let limit = self.elapsed() + time;
        while self.elapsed() < limit && self.0.lock().violation.is_none() {
            if !self.step(limit) {
                return;
            }
            check();
        }
    }
}

impl State {
    fn below(&mut self, bound: u64) -> u64 {
        self.chance = self.chance.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.chance;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }
}

struct Wakeup {
    world: World,
    id: u64,
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        let mut state = self.world.0.lock();
        if state.tasks.contains_key(&self.id) && !state.ready.contains(&self.id) {
            state.ready.push(self.id);
        }
    }
}

/// A timer. It is always waited for at least once, so that others may come between.
pub struct Sleep {
    world: World,
    key: (Duration, u64),
    listed: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.world.0.lock();
        if self.listed && state.now >= self.key.0 {
            return Poll::Ready(());
        }
        if state.now >= self.key.0 {
            drop(state);
            context.waker().wake_by_ref();
        } else {
            state.timers.insert(self.key, context.waker().clone());
            drop(state);
        }
        self.listed = true;
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let timer = self.world.0.lock().timers.remove(&self.key);
        drop(timer);
    }
}

/// The world as one process sees it.
#[derive(Clone)]
pub struct Inside(pub World, pub Process);

impl Runtime for Inside {
    fn spawn(&self, tasks: &TaskTracker, task: BoxFuture<'static, ()>) {
        self.0.spawn(self.1, tasks.track_future(task));
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(self.0.sleep(time))
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

impl Clock for World {
    fn now(&self) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + self.elapsed()
    }

    fn instant(&self) -> Instant {
        let state = self.0.lock();
        state.begun + state.now
    }
}

impl IdSource for World {
    fn uuid(&self) -> Uuid {
        Uuid::from_u64_pair(self.below(u64::MAX), self.below(u64::MAX))
    }

    fn secret(&self) -> [u8; 32] {
        let mut secret = [0; 32];
        secret[..16].copy_from_slice(self.uuid().as_bytes());
        secret
    }
}
