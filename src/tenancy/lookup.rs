//! Answers of the directory, reused for less than a second, asked for once by all who wait.
//!
//! **Invariant:** an answer is reused only while the question that it answers is younger than the bound;
//! a failed one is told to those who waited for it and is then forgotten.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;

use super::directory::DirectoryError;
use crate::domain::clock::Clock;

/// The most answers that are kept; beyond, each caller asks for itself.
const MAX_ENTRIES: usize = 20_000;
/// How long the directory may take. Also bounds how old an answer is when it arrives.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

type Answer<V> = Result<Option<V>, Arc<DirectoryError>>;

struct Entry<V> {
    begun: Instant,
    answer: Shared<BoxFuture<'static, Answer<V>>>,
}

struct Entries<K, V> {
    by_key: HashMap<K, Entry<V>>,
    swept: Instant,
}

/// One kind of question to the directory.
pub(super) struct Lookup<K, V> {
    max_age: Duration,
    clock: Arc<dyn Clock>,
    entries: Mutex<Entries<K, V>>,
}

impl<K: Hash + Eq + Clone, V: Clone + Send + Sync + 'static> Lookup<K, V> {
    pub(super) fn new(max_age: Duration, clock: Arc<dyn Clock>) -> Self {
        let entries = Mutex::new(Entries { by_key: HashMap::new(), swept: clock.instant() });
        Self { max_age, clock, entries }
    }

    /// The directory's answer, at most `max_age` old when the call is made.
    pub(super) async fn get<F>(&self, key: K, ask: impl FnOnce() -> F) -> Answer<V>
    where
        F: Future<Output = Result<Option<V>, DirectoryError>> + Send + 'static,
    {
        let answer = {
            let now = self.clock.instant();
            let mut entries = self.entries.lock();
            if let Some(entry) = entries.by_key.get(&key).filter(|entry| self.usable(entry, now)) {
                entry.answer.clone()
            } else {
                // Whoever waits drives the question, so it goes on when the first caller goes away.
                let answer = within(ask()).boxed().shared();
                if self.has_room(&mut entries, now) || entries.by_key.contains_key(&key) {
                    entries.by_key.insert(key, Entry { begun: now, answer: answer.clone() });
                }
                answer
            }
        };
        answer.await
    }

    /// Forgets all answers: somebody told that something changed.
    pub(super) fn forget(&self) {
        self.entries.lock().by_key.clear();
    }

    fn usable(&self, entry: &Entry<V>, now: Instant) -> bool {
        let failed = entry.answer.peek().is_some_and(Result::is_err);
        !failed && now.saturating_duration_since(entry.begun) < self.max_age
    }

    fn has_room(&self, entries: &mut Entries<K, V>, now: Instant) -> bool {
        let Entries { by_key, swept } = entries;
        if by_key.len() >= MAX_ENTRIES && now.saturating_duration_since(*swept) >= self.max_age {
            by_key.retain(|_, entry| self.usable(entry, now));
            *swept = now;
        }
        by_key.len() < MAX_ENTRIES
    }
}

async fn within<V>(ask: impl Future<Output = Result<Option<V>, DirectoryError>>) -> Answer<V> {
    match tokio::time::timeout(ANSWER_WITHIN, ask).await {
        Ok(answer) => answer.map_err(Arc::new),
        Err(late) => Err(Arc::new(DirectoryError(Box::new(late)))),
    }
}
