//! A gate before changes of points, which a test may close: then it says of each what becomes of it.

use std::sync::{Mutex, PoisonError};

use qdrant_edge::UpdateOperation;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tonic::Status;

/// What becomes of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is carried out and answered.
    Applied,
    /// It is not carried out, and the caller learns that.
    Refused,
    /// It is carried out, and the caller learns that it waited too long.
    TimedOut,
    /// The caller learns that it waited too long, and it is kept.
    Late,
    /// It is carried out and answered, and it is kept.
    Doubled,
}

/// A change that waits for its fate. Dropped, the change is refused.
#[derive(Debug)]
pub struct Arrived(oneshot::Sender<Fate>);

impl Arrived {
    /// Settles what becomes of it.
    pub fn meet(self, fate: Fate) {
        // Whoever sent it may be gone.
        let _gone = self.0.send(fate);
    }
}

/// A change that may arrive later.
pub(crate) struct LateChange {
    pub(crate) collection: String,
    pub(crate) change: UpdateOperation,
}

/// What the stand-in knows of it.
#[derive(Default)]
pub(crate) struct Gate {
    tell: Mutex<Option<UnboundedSender<Arrived>>>,
    late: Mutex<Vec<LateChange>>,
}

/// What is told to a caller in place of an answer.
pub(crate) type Told = Result<(), Status>;

impl Gate {
    pub(crate) fn close(&self) -> UnboundedReceiver<Arrived> {
        let (tell, told) = unbounded_channel();
        *self.tell.lock().unwrap_or_else(PoisonError::into_inner) = Some(tell);
        told
    }

    pub(crate) fn open(&self) {
        *self.tell.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Waits for the fate of a change. Returns the change if it is to be carried out now, and what is told after that.
    pub(crate) async fn pass(
        &self,
        collection: &str,
        change: UpdateOperation,
    ) -> (Option<UpdateOperation>, Told) {
        let tell = self.tell.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(tell) = tell else { return (Some(change), Ok(())) };
        let (fate, met) = oneshot::channel();
        let is_told = tell.send(Arrived(fate)).is_ok();
        let fate = if is_told { met.await.unwrap_or(Fate::Refused) } else { Fate::Applied };
        if matches!(fate, Fate::Late | Fate::Doubled) {
            let late = LateChange { collection: collection.to_owned(), change: change.clone() };
            self.late.lock().unwrap_or_else(PoisonError::into_inner).push(late);
        }
        let timeout = || Err(Status::deadline_exceeded("as the test wishes"));
        match fate {
            Fate::Applied | Fate::Doubled => (Some(change), Ok(())),
            // Not what the client itself would try once more.
            Fate::Refused => (None, Err(Status::resource_exhausted("as the test wishes"))),
            Fate::TimedOut => (Some(change), timeout()),
            Fate::Late => (None, timeout()),
        }
    }

    pub(crate) fn take_late(&self, number: usize) -> LateChange {
        self.late.lock().unwrap_or_else(PoisonError::into_inner).remove(number)
    }

    pub(crate) fn lose_late(&self) {
        self.late.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
