//! The task that writes audit events, in batches, one transaction for each tenant of a batch.
//!
//! **Invariant:** events of one tenant are written in the order in which they were recorded.
//! **Invariant:** an event is written, answered with an error, or counted as lost; none goes silently.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{AuditLog, AuditSettings, Counters};
use crate::domain::audit::AuditEvent;
use crate::domain::ids::TenantId;
use crate::store::error::{ErrorKind, StoreError};

/// Tenants written at the same time.
const CONCURRENT_CHAINS: usize = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

type Answer = oneshot::Sender<Result<(), StoreError>>;

/// What the writer is sent.
pub(super) enum Message {
    /// An event, and who waits for it to be written.
    Event(Box<AuditEvent>, Option<Answer>),
    /// Somebody waits for everything before.
    Flush(oneshot::Sender<()>),
}

/// Events of one chain, with those who wait for them.
#[derive(Default)]
struct Group {
    events: Vec<AuditEvent>,
    answers: Vec<Answer>,
}

pub(super) struct Writer {
    pub(super) log: Arc<dyn AuditLog>,
    pub(super) receiver: mpsc::Receiver<Message>,
    pub(super) counters: Arc<Counters>,
    pub(super) settings: Arc<AuditSettings>,
}

impl Writer {
    pub(super) async fn run(mut self) {
        while let Some(first) = self.receiver.recv().await {
            let batch = self.collect(first).await;
            self.write(batch).await;
        }
    }

    /// Waits for more, until somebody waits for what is there.
    async fn collect(&mut self, first: Message) -> Vec<Message> {
        let deadline = Instant::now() + Duration::from_millis(self.settings.flush_ms);
        let mut awaited = is_awaited(&first);
        let mut batch = vec![first];
        while batch.len() < self.settings.batch {
            let next = if awaited {
                self.receiver.try_recv().ok()
            } else {
                tokio::time::timeout_at(deadline, self.receiver.recv()).await.unwrap_or_default()
            };
            let Some(message) = next else { break };
            awaited |= is_awaited(&message);
            batch.push(message);
        }
        batch
    }

    async fn write(&self, batch: Vec<Message>) {
        let mut groups: BTreeMap<Option<TenantId>, Group> = BTreeMap::new();
        let mut flushes = Vec::new();
        for message in batch {
            match message {
                Message::Event(event, answer) => {
                    let group = groups.entry(event.tenant).or_default();
                    group.events.push(*event);
                    group.answers.extend(answer);
                }
                Message::Flush(done) => flushes.push(done),
            }
        }
        futures::stream::iter(groups)
            .for_each_concurrent(CONCURRENT_CHAINS, |(tenant, group)| self.write_group(tenant, group))
            .await;
        for done in flushes {
            // Whoever flushed may have gone.
            let _gone = done.send(());
        }
    }

    async fn write_group(&self, tenant: Option<TenantId>, group: Group) {
        let count = group.events.len() as u64;
        match self.append(tenant, &group.events).await {
            Ok(()) => {
                self.counters.written.fetch_add(count, Ordering::Relaxed);
                for answer in group.answers {
                    let _gone = answer.send(Ok(()));
                }
            }
            Err(error) => {
                self.counters.lost.fetch_add(count, Ordering::Relaxed);
                tracing::error!(count, %error, source = ?error.source, "audit events were lost");
                for answer in group.answers {
                    let _gone = answer.send(Err(error.retold()));
                }
            }
        }
    }

    async fn append(&self, tenant: Option<TenantId>, events: &[AuditEvent]) -> Result<(), StoreError> {
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let error = match self.log.append(tenant, events).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let passing =
                matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Conflict);
            if !passing || attempt >= self.settings.attempts {
                return Err(error);
            }
            tracing::warn!(attempt, %error, "audit events could not be written, and are tried again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            attempt += 1;
        }
    }
}

fn is_awaited(message: &Message) -> bool {
    !matches!(message, Message::Event(_, None))
}
