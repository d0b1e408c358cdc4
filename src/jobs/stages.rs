//! Where the time of ingestion goes, summed since the start.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::domain::clock::Clock;

/// Sums over all batches, microseconds of time on the clock: batches that run side by side each count.
#[derive(Debug, Default)]
pub struct Stages {
    analysis: AtomicU64,
    embedding: AtomicU64,
    commit: AtomicU64,
    chunks: AtomicU64,
    documents: AtomicU64,
    failed: AtomicU64,
}

/// A reading of [`Stages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageTimes {
    /// Reading, cutting, entities and terms, microseconds.
    pub analysis_us: u64,
    /// Embedding with its turns, microseconds.
    pub embedding_us: u64,
    /// Writing, microseconds.
    pub commit_us: u64,
    /// Chunks that went through.
    pub chunks: u64,
    /// Documents that went through.
    pub documents: u64,
    /// Documents that failed for good.
    pub failed: u64,
}

/// Follows one batch through its stages.
pub(super) struct Watch<'a> {
    stages: &'a Stages,
    clock: &'a dyn Clock,
    begun: Instant,
}

impl Stages {
    /// What was summed so far.
    #[must_use]
    pub fn read(&self) -> StageTimes {
        let read = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        StageTimes {
            analysis_us: read(&self.analysis),
            embedding_us: read(&self.embedding),
            commit_us: read(&self.commit),
            chunks: read(&self.chunks),
            documents: read(&self.documents),
            failed: read(&self.failed),
        }
    }

    /// A document failed for good.
    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// A batch begins.
    pub(super) fn watch<'a>(&'a self, clock: &'a dyn Clock) -> Watch<'a> {
        Watch { stages: self, clock, begun: clock.instant() }
    }
}

impl Watch<'_> {
    pub(super) fn analysed(&mut self) {
        self.add(&self.stages.analysis);
    }

    pub(super) fn embedded(&mut self) {
        self.add(&self.stages.embedding);
    }

    pub(super) fn committed(&mut self, documents: usize, chunks: usize) {
        self.add(&self.stages.commit);
        self.stages.documents.fetch_add(documents as u64, Ordering::Relaxed);
        self.stages.chunks.fetch_add(chunks as u64, Ordering::Relaxed);
    }

    fn add(&mut self, sum: &AtomicU64) {
        let now = self.clock.instant();
        let time = now.saturating_duration_since(self.begun).as_micros();
        sum.fetch_add(u64::try_from(time).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.begun = now;
    }
}
