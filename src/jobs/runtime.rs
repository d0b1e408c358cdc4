//! What runs work in the background: time that passes, and tasks beside each other.
//!
//! A parameter, as time is, so that a simulation can choose in which order things happen.
//!
//! **Invariant:** a task is spawned into a tracker that its owner waits for.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio_util::task::TaskTracker;

/// What runs work in the background. Its time is that of the [`Clock`](crate::domain::clock::Clock) beside it.
pub trait Runtime: Send + Sync {
    /// Runs a task beside its caller, counted by `tasks`.
    fn spawn(&self, tasks: &TaskTracker, task: BoxFuture<'static, ()>);
    /// Ends after this time.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;
}

/// The runtime of the server.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokioRuntime;

impl Runtime for TokioRuntime {
    fn spawn(&self, tasks: &TaskTracker, task: BoxFuture<'static, ()>) {
        tasks.spawn(task);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }
}

/// Ticks at once, and then a period after each tick was taken: what takes longer has no ticks to catch up with.
pub(super) struct Ticks {
    runtime: Arc<dyn Runtime>,
    period: Duration,
    next: Option<BoxFuture<'static, ()>>,
}

impl Ticks {
    pub(super) fn every(runtime: &Arc<dyn Runtime>, period: Duration) -> Self {
        Self { runtime: Arc::clone(runtime), period, next: None }
    }

    /// The next tick. Given up and called again, it goes on waiting for the same one.
    pub(super) async fn tick(&mut self) {
        if let Some(next) = &mut self.next {
            next.await;
        }
        self.next = Some(self.runtime.sleep(self.period));
    }
}
