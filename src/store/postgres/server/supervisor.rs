//! Watches the postmaster, starts it again when it dies, stops it when told.
//!
//! **Invariant:** at most one postmaster of ours at any time; a new one is started only after the
//! old one has ended.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::ServerState;
use super::cluster;
use super::error::ServerError;
use super::layout::Layout;
use super::logs;
use super::process::Postmaster;
use super::settings::ServerSettings;

/// The pause before the first restart; it doubles with each failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// One that lived this long was well; its death does not count as another failure.
const WELL: Duration = Duration::from_mins(1);
/// How often old log files are looked for.
const PRUNE: Duration = Duration::from_mins(1);

/// Writes the configuration and starts PostgreSQL, without waiting for it.
pub(super) fn spawn(layout: &Layout, configuration: &str) -> Result<Postmaster, ServerError> {
    logs::prune(&layout.log_dir);
    cluster::configure(layout, configuration)?;
    Postmaster::spawn(layout)
}

/// The watching task's belongings.
pub(super) struct Supervisor {
    pub layout: Layout,
    pub settings: ServerSettings,
    pub configuration: String,
    pub state: watch::Sender<ServerState>,
    /// Told, or dropped, when PostgreSQL shall stop.
    pub stopped: oneshot::Receiver<()>,
}

impl Supervisor {
    /// Runs until told to stop; then PostgreSQL has stopped too.
    pub async fn run(mut self, mut postmaster: Postmaster) -> Result<(), ServerError> {
        let mut prune = interval(PRUNE);
        prune.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pauses = pauses();
        loop {
            let since = Instant::now();
            let reason = loop {
                tokio::select! {
                    biased;
                    _ = &mut self.stopped => {
                        return postmaster.terminate(&self.layout, self.settings.stop_timeout).await;
                    }
                    reason = postmaster.exited() => break reason,
                    _ = prune.tick() => logs::prune(&self.layout.log_dir),
                }
            };
            if since.elapsed() >= WELL {
                pauses = self::pauses();
            }
            tracing::error!(%reason, "PostgreSQL has ended; starting it again");
            self.state.send_replace(ServerState::Restarting { reason });
            match self.restart(&mut pauses).await? {
                Some(next) => postmaster = next,
                None => return Ok(()),
            }
            tracing::info!(pid = postmaster.identity.pid, "PostgreSQL accepts connections again");
            self.state.send_replace(ServerState::Running);
        }
    }

    /// Tries until PostgreSQL runs again. `None` when told to stop meanwhile.
    async fn restart(
        &mut self,
        pauses: &mut impl Iterator<Item = Duration>,
    ) -> Result<Option<Postmaster>, ServerError> {
        loop {
            let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
            tokio::select! {
                biased;
                _ = &mut self.stopped => return Ok(None),
                () = sleep(pause) => {}
            }
            let failure = match spawn(&self.layout, &self.configuration) {
                Err(failure) => failure,
                Ok(mut postmaster) => {
                    let ready = tokio::select! {
                        biased;
                        _ = &mut self.stopped => None,
                        ready = postmaster.ready(&self.layout, self.settings.start_timeout) => Some(ready),
                    };
                    if let Some(Ok(())) = ready {
                        return Ok(Some(postmaster));
                    }
                    postmaster.terminate(&self.layout, self.settings.stop_timeout).await?;
                    match ready {
                        Some(Err(failure)) => failure,
                        _ => return Ok(None),
                    }
                }
            };
            tracing::error!(error = %failure, "PostgreSQL does not start");
            self.state.send_replace(ServerState::Down { reason: failure.to_string() });
        }
    }
}

fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_never_end() {
        let pauses: Vec<Duration> = pauses().take(100).collect();
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses.last(), Some(&LONGEST_PAUSE));
    }
}
