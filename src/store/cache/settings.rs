//! Where and how long things are kept.

use std::time::Duration;

use serde::Deserialize;

use super::CacheKind;

/// The longest that anything is kept: what was deleted is gone everywhere after as long.
const LONGEST_SECONDS: u64 = 900;

/// Where things are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheBackend {
    /// Nowhere.
    Off,
    /// In this process, for this server.
    Memory,
    /// In Redis, for all servers over it.
    Redis,
}

/// `[cache]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheSettings {
    /// Where things are kept.
    pub backend: CacheBackend,
    /// How long the vector of a question is kept, seconds; 0: not at all.
    pub embedding_seconds: u64,
    /// How long a language model's answer is kept, seconds; 0: not at all.
    pub answer_seconds: u64,
    /// The longest value that is kept, bytes.
    pub value_bytes: usize,
    /// All values in memory, bytes.
    pub memory_bytes: u64,
    /// Those of one tenant.
    pub tenant_bytes: u64,
    /// How long a question waits for the same question's answer that is being written already, seconds; 0: not at all.
    pub wait_seconds: u64,
}

impl CacheSettings {
    /// All faults, each with the name of its setting. Empty: none.
    #[must_use]
    pub fn validate(&self) -> Vec<String> {
        let longest = |seconds: u64| seconds <= LONGEST_SECONDS;
        let rules = [
            (longest(self.embedding_seconds), "embedding_seconds: at most 900"),
            (longest(self.answer_seconds), "answer_seconds: at most 900"),
            ((1..=1 << 20).contains(&self.value_bytes), "value_bytes: 1 to 1048576"),
            (self.memory_bytes > 0, "memory_bytes: at least 1"),
            ((1..=self.memory_bytes).contains(&self.tenant_bytes), "tenant_bytes: 1 to cache.memory_bytes"),
            (self.wait_seconds <= 600, "wait_seconds: at most 600"),
        ];
        rules.iter().filter(|(holds, _)| !holds).map(|(_, rule)| format!("cache.{rule}")).collect()
    }

    /// The longest that anything is kept.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_secs(self.embedding_seconds.max(self.answer_seconds))
    }

    /// How long something of this kind is kept; `None`: not at all.
    pub(super) fn keep(&self, kind: CacheKind) -> Option<Duration> {
        let seconds = match kind {
            CacheKind::Embedding => self.embedding_seconds,
            CacheKind::Answer => self.answer_seconds,
        };
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_told_by_name() {
        let settings = CacheSettings {
            backend: CacheBackend::Memory,
            embedding_seconds: 300,
            answer_seconds: 0,
            value_bytes: 65536,
            memory_bytes: 1000,
            tenant_bytes: 100,
            wait_seconds: 0,
        };
        assert_eq!(settings.validate(), Vec::<String>::new());
        assert_eq!(settings.keep(CacheKind::Answer), None);
        let faulty = CacheSettings {
            embedding_seconds: 901,
            answer_seconds: 901,
            value_bytes: 0,
            tenant_bytes: 1001,
            wait_seconds: 601,
            ..settings
        };
        assert_eq!(faulty.validate().len(), 5, "{:?}", faulty.validate());
    }
}
