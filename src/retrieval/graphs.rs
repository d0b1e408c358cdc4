//! Graphs in memory.

use std::sync::Arc;

use super::engine::{Engine, Metadata, Question, RetrievalError, RetrievalSettings, Walked};
use super::search::Ranking;
use crate::domain::clock::Clock;

/// The graphs of a server.
#[derive(Clone)]
pub(super) struct Graphs {}

impl Graphs {
    pub(super) fn new(_settings: &RetrievalSettings, _clock: Arc<dyn Clock>) -> Self {
        Self {}
    }
}

impl Engine {
    pub(super) async fn walk(
        &self,
        _ranking: &Ranking,
        _question: &Question,
        metadata: &mut Metadata,
    ) -> Result<Option<Walked>, RetrievalError> {
        metadata.degraded.push("graph");
        Ok(None)
    }
}
