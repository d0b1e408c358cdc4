//! The record as projectors read it: history, pages, and who has come how far.

use std::time::Duration;

use bulkhead::domain::Seq;
use bulkhead::domain::ids::ChunkId;
use bulkhead::store::postgres::projection::{Changes, History};
use bulkhead::store::vector::{Point, Terms};
use chrono::{DateTime, Utc};

use super::Broken;
use super::record::{Chunk, Place, Record};

/// Writing transactions of which history is read at once, as in `projection.rs`.
const HISTORY_PAGE: usize = 512;
const HISTORY_KEPT: Duration = Duration::from_hours(24);

impl Record {
    /// Namespaces whose index lags, or all of them.
    pub fn projection_backlog(
        &self,
        consumer: &str,
        every: bool,
        after: Option<Place>,
        limit: i64,
    ) -> Vec<Place> {
        self.namespaces
            .iter()
            .filter(|(place, _)| after.is_none_or(|after| **place > after))
            .filter(|(_, space)| every || space.seq > space.consumers.get(consumer).copied().unwrap_or(0))
            .map(|(place, _)| *place)
            .take(usize::try_from(limit).unwrap_or(usize::MAX))
            .collect()
    }

    /// The first statement of the history: what was removed, or an answer at once.
    pub fn removals(
        &self,
        place: Place,
        since: Seq,
        limit: i64,
    ) -> Result<Vec<(Seq, Vec<ChunkId>)>, History> {
        let Some(space) = self.namespaces.get(&place) else { return Err(History::Gone) };
        if space.seq == since.0 {
            return Err(History::Changes(Changes { through: since, ..Changes::default() }));
        }
        let (mut list, mut size) = (Vec::new(), 0);
        let mut rows = space.outbox.range(since.0 + 1..).take(HISTORY_PAGE);
        for expected in since.0 + 1.. {
            let Some((seq, (_, removed))) = rows.next() else { break };
            if *seq != expected && !self.is(Broken::HistoryForgottenEarly) {
                return Err(History::Broken);
            }
            size += removed.len();
            list.push((Seq(*seq), removed.clone()));
            if size >= usize::try_from(limit.max(1)).unwrap_or(usize::MAX) {
                break;
            }
        }
        if list.is_empty() { Err(History::Broken) } else { Ok(list) }
    }

    /// The second statement: what came and is still there, cut so that transactions stay whole.
    pub fn changes(
        &self,
        place: Place,
        since: Seq,
        removals: Vec<(Seq, Vec<ChunkId>)>,
        limit: i64,
    ) -> Changes {
        let limit = usize::try_from(limit.max(1)).unwrap_or(usize::MAX);
        let last = removals.last().map_or(since, |(seq, _)| *seq);
        let between = |through: Seq, limit: usize| {
            let chunks = self.namespaces.get(&place).into_iter().flat_map(|space| &space.chunks);
            let mut found: Vec<(Seq, Point)> = chunks
                .filter(|(_, chunk)| chunk.seq > since.0 && chunk.seq <= through.0)
                .map(|(id, chunk)| (Seq(chunk.seq), point(*id, chunk)))
                .collect();
            found.sort_by_key(|(seq, point)| (*seq, point.chunk));
            found.truncate(limit);
            found
        };
        let (mut added, mut through) = (between(last, limit), last);
        if let Some((cut, _)) = added.last().filter(|_| added.len() >= limit) {
            through = Seq(cut.0 - 1);
            if through == since {
                through = *cut;
                added = between(through, usize::MAX);
            }
        }
        let removed = removals.into_iter().take_while(|(seq, _)| *seq <= through);
        Changes {
            removed: removed.flat_map(|(_, chunks)| chunks).collect(),
            added: added.into_iter().take_while(|(seq, _)| *seq <= through).map(|(_, point)| point).collect(),
            through,
        }
    }

    pub fn point_page(&self, place: Place, after: Option<ChunkId>, limit: i64) -> Vec<Point> {
        let chunks = self.namespaces.get(&place).into_iter().flat_map(|space| &space.chunks);
        chunks
            .filter(|(id, _)| after.is_none_or(|after| **id > after))
            .map(|(id, chunk)| point(*id, chunk))
            .take(usize::try_from(limit).unwrap_or(usize::MAX))
            .collect()
    }

    pub fn consumer_hold(&mut self, place: Place, consumer: &str, seq: Seq) {
        if let Some(space) = self.namespaces.get_mut(&place) {
            let held = space.consumers.entry(consumer.to_owned()).or_insert(seq.0);
            *held = seq.0.min(*held);
        }
    }

    pub fn consumer_pass(&mut self, place: Place, consumer: &str, seq: Seq, now: DateTime<Utc>) {
        let hasty = self.is(Broken::HistoryForgottenEarly);
        let Some(space) = self.namespaces.get_mut(&place) else { return };
        space.consumers.insert(consumer.to_owned(), seq.0);
        let positions = space.consumers.values().copied();
        let passed = if hasty { positions.max() } else { positions.min() }.unwrap_or(0);
        space.outbox.retain(|at, (made, _)| *at > passed && (*at > seq.0 || *made >= now - HISTORY_KEPT));
    }
}

fn point(chunk: ChunkId, row: &Chunk) -> Point {
    Point { chunk, version: row.version, embedding: Vec::new(), terms: Terms::default() }
}
