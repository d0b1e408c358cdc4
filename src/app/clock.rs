//! The clock of a server: the machine's, which a test may have set forwards or back.

use std::sync::Arc;

use crate::domain::clock::{Clock, SystemClock};

/// The clock of a server.
pub(super) fn clock() -> Arc<dyn Clock> {
    #[cfg(feature = "laboratory")]
    if let Some(file) = std::env::var_os("BULKHEAD_CLOCK") {
        return Arc::new(laboratory::SetClock(file.into()));
    }
    Arc::new(SystemClock)
}

#[cfg(feature = "laboratory")]
mod laboratory {
    use std::path::PathBuf;
    use std::time::Instant;

    use chrono::{DateTime, TimeDelta, Utc};

    use crate::domain::clock::{Clock, SystemClock};

    /// The machine's clock, set forwards by as many seconds as the file says.
    #[derive(Debug)]
    pub(super) struct SetClock(pub(super) PathBuf);

    impl Clock for SetClock {
        fn now(&self) -> DateTime<Utc> {
            let seconds = std::fs::read_to_string(&self.0).ok().and_then(|text| text.trim().parse().ok());
            SystemClock.now() + TimeDelta::seconds(seconds.unwrap_or_default())
        }

        fn instant(&self) -> Instant {
            SystemClock.instant()
        }
    }
}
