//! Whether requests should be sent here.
//!
//! **Invariant:** one bit, the same for everybody: what makes a server unready is in its log and its metrics.

use std::sync::atomic::{AtomicBool, Ordering};

/// Set by whoever looks after the server's parts, read by probes.
#[derive(Debug, Default)]
pub struct Readiness {
    works: AtomicBool,
    stopping: AtomicBool,
}

impl Readiness {
    /// Notes whether everything answers that requests need.
    pub fn note(&self, works: bool) {
        if self.works.swap(works, Ordering::Relaxed) != works {
            tracing::info!(ready = works, "readiness changed");
        }
    }

    /// The server is about to stop: not ready any more, whatever else holds.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether the server is about to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Whether requests should be sent here.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.works.load(Ordering::Relaxed) && !self.stopping.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_stops_is_not_ready_whatever_works() {
        let readiness = Readiness::default();
        assert!(!readiness.is_ready(), "nothing was looked at yet");
        readiness.note(true);
        assert!(readiness.is_ready());
        readiness.note(false);
        assert!(!readiness.is_ready());
        readiness.note(true);
        readiness.stop();
        readiness.note(true);
        assert!(!readiness.is_ready());
    }
}
