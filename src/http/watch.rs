//! Whether the caller of an answer that takes its time still may have it.
//!
//! A credential is verified when a request comes in. It is looked up again before a body that was long in coming
//! is acted on, while a question is worked on, and between the pieces of a stream.
//!
//! **Invariant:** while a check is due, nothing is worked on and nothing is sent.
//! **Invariant:** an answer ends when nobody could say for [`UNHEARD`] whether its caller still may have it.

use std::future::Future;
use std::time::{Duration, Instant};

use actix_web::web::Data;
use tokio::time::{sleep, timeout};

use super::identity::{Caller, refused};
use super::problem::{Kind, Problem};
use super::state::App;
use crate::tenancy::RefusalKind;

/// How long a running answer bears that nobody can say whether its caller is still let in.
const UNHEARD: Duration = Duration::from_secs(5);

/// The checks of one running answer.
pub(crate) struct Watch {
    app: Data<App>,
    caller: Caller,
    /// When the last check ended.
    checked: Instant,
    /// When the last check that was answered began.
    heard: Instant,
}

impl Watch {
    /// For a caller who was just let in.
    pub(crate) fn new(app: Data<App>, caller: Caller) -> Self {
        let now = app.clock.instant();
        Self { app, caller, checked: now, heard: now }
    }

    /// The time until a check is due.
    pub(crate) fn rest(&self) -> Duration {
        let since = self.app.clock.instant().saturating_duration_since(self.checked);
        self.app.authenticator.recheck_every().saturating_sub(since)
    }

    /// How much longer the answer may go on without a word about its caller.
    pub(crate) fn borne(&self) -> Duration {
        UNHEARD.saturating_sub(self.app.clock.instant().saturating_duration_since(self.heard))
    }

    /// Looks the caller up again, if that is due.
    ///
    /// # Errors
    /// Why the answer ends; written down as every refusal is.
    pub(crate) async fn check(&mut self) -> Result<(), Problem> {
        if !self.rest().is_zero() {
            return Ok(());
        }
        let asked = self.app.clock.instant();
        let answer =
            timeout(self.borne(), self.app.authenticator.still_valid(self.caller.authenticated())).await;
        self.checked = self.app.clock.instant();
        match answer {
            Ok(Ok(())) => self.heard = asked,
            Ok(Err(refusal)) if refusal.kind() != RefusalKind::Unavailable => {
                return Err(refused(&self.app, refusal, self.caller.attempted()).await);
            }
            Ok(Err(_)) | Err(_) if self.borne().is_zero() => return Err(Problem::new(Kind::Unavailable)),
            Ok(Err(_)) | Err(_) => {}
        }
        Ok(())
    }
}

/// Runs to its end, unless the caller's credential ends before.
pub(crate) async fn while_valid<T>(
    app: &Data<App>,
    caller: &Caller,
    work: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    let mut work = std::pin::pin!(work);
    let mut watch = Watch::new(app.clone(), caller.clone());
    loop {
        tokio::select! {
            biased;
            () = sleep(watch.rest()) => watch.check().await?,
            done = &mut work => return done,
        }
    }
}

/// Looks a caller up again whose request was long in coming.
///
/// # Errors
/// What the request would be answered if it came now.
pub(super) async fn still_let_in(app: &App, caller: &Caller) -> Result<(), Problem> {
    match app.authenticator.still_valid(caller.authenticated()).await {
        Ok(()) => Ok(()),
        Err(refusal) => Err(refused(app, refusal, caller.attempted()).await),
    }
}
