//! Whose work goes first when there are not processors enough.

use std::sync::LazyLock;
use std::thread;

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use thread_priority::{ThreadPriority, ThreadPriorityValue, set_current_thread_priority};
use tokio::sync::oneshot;

/// A thread's priority. It can be lowered and not raised again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Priority {
    /// That of everything else in the server.
    First,
    /// Below it.
    Second,
    /// When nobody waits.
    Last,
}

impl Priority {
    /// Gives it to the thread that calls this, and to those that it starts.
    pub(super) fn apply(self) {
        // Niceness 9 and 17.
        let value: u8 = match self {
            Self::First => return,
            Self::Second => 25,
            Self::Last => 5,
        };
        if let Ok(value) = ThreadPriorityValue::try_from(value) {
            // A machine that refuses is a slower machine, not a broken one.
            let _ = set_current_thread_priority(ThreadPriority::Crossplatform(value));
        }
    }
}

/// The work panicked, or there are no threads for it.
#[derive(Debug, thiserror::Error)]
#[error("work in the background was given up")]
pub struct GivenUp;

/// Runs what keeps a processor busy and nobody waits for, on threads of the last priority.
///
/// # Errors
/// [`GivenUp`].
pub async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, GivenUp> {
    static POOL: LazyLock<Result<ThreadPool, ThreadPoolBuildError>> = LazyLock::new(|| {
        ThreadPoolBuilder::new()
            .num_threads(thread::available_parallelism().map_or(1, std::num::NonZero::get))
            .thread_name(|n| format!("background-{n}"))
            .start_handler(|_| Priority::Last.apply())
            // Whoever waits for the work is told.
            .panic_handler(drop)
            .build()
    });
    let (reply, done) = oneshot::channel();
    let pool = POOL.as_ref().map_err(|_| GivenUp)?;
    pool.spawn(move || drop(reply.send(work())));
    done.await.map_err(|_| GivenUp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_panics_is_told_and_harms_nothing_else() {
        assert!(in_background(|| panic!("on purpose")).await.is_err());
        assert_eq!(in_background(|| 7).await.ok(), Some(7));
    }
}
