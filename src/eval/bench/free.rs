//! Ingestion and questions without the cost of a model, as a corpus grows.

use std::sync::Mutex;
use std::time::Instant;

use super::asking::Asked;
use super::{Bench, BenchError, PASSAGE, Place};
use crate::eval::figures::{Row, Target, progress};

/// Least chunks in a second.
const RATE: f64 = 400.0;
/// Least rate of a large corpus as a share of a small one's.
pub(super) const STEADY: f64 = 0.9;
/// Most times that a question's share of its raw parts grows with the corpus.
pub(super) const GROWTH: f64 = 1.1;
/// Chunks at whose rate each size is looked at.
const WINDOW: usize = 1000;
/// Questions at each size.
const QUESTIONS: usize = 200;

impl Bench<'_> {
    pub(super) async fn free(&mut self) -> Result<Vec<Row>, BenchError> {
        let mut place = self.place("free").await?;
        let before = self.subject.deployment.stages();
        // The graph is built before the first question, and its time counts.
        let begun = self.now();
        let mut steps: Vec<(usize, f64, Asked)> = Vec::new();
        let mut asking = 0.0;
        for &size in &self.plan.growth {
            let rate = self.grow(&mut place, size).await?;
            let asked_from = self.now();
            let asked = self.ask(&place, QUESTIONS).await?;
            asking += self.now().duration_since(asked_from).as_secs_f64();
            steps.push((size, rate, asked));
        }
        #[expect(clippy::cast_precision_loss, reason = "a count of documents")]
        let whole = place.sent as f64 / (self.now().duration_since(begun).as_secs_f64() - asking);
        self.tell_stages(&before);
        let mut rows = vec![Row::new(
            "ingestion with a free embedder",
            whole,
            "chunks/s",
            Target::Least(RATE),
            steps.iter().map(|step| step.1).collect(),
        )];
        let Some(((_, slow, small), larger)) = steps.split_first() else { return Ok(rows) };
        let share = |asked: &Asked| asked.naive / asked.raw;
        for (size, rate, large) in larger {
            rows.push(Row::new(
                &format!("ingestion rate at {size} chunks, times that at the first {WINDOW}"),
                rate / slow,
                "times",
                Target::Least(STEADY),
                vec![*rate, *slow],
            ));
            rows.push(Row::new(
                &format!("naive question over its raw parts at {size} chunks, times at the first"),
                share(large) / share(small),
                "times",
                Target::Most(GROWTH),
                vec![large.naive, large.raw, small.naive, small.raw],
            ));
        }
        Ok(rows)
    }

    /// Ingests until there are so many chunks; returns the rate of the last ones, in a second.
    pub(super) async fn grow(&mut self, place: &mut Place, size: usize) -> Result<f64, BenchError> {
        let count = size.saturating_sub(place.sent);
        let texts = self.texts(count, PASSAGE);
        let bar = progress(&format!("documents, up to {size}"), count);
        let seen: Mutex<Vec<(usize, Instant)>> = Mutex::new(vec![(0, self.now())]);
        let before = place.sent;
        let note = |all: usize| {
            let done = all.saturating_sub(before);
            bar.set_position(done as u64);
            if let Ok(mut seen) = seen.lock()
                && seen.last().is_some_and(|(last, _)| done > *last)
            {
                seen.push((done, self.now()));
            }
        };
        let send = async { place.send(&texts).await };
        tokio::try_join!(send, place.client.processed(before + count, note))?;
        bar.finish_and_clear();
        place.sent += count;
        let seen = seen.into_inner().map_err(|_| BenchError::Ended)?;
        Ok(rate(&seen, count.saturating_sub(WINDOW), count))
    }
}

/// Documents in a second between two counts: from the last one that was seen up to the first, to the first one from the
/// second on, since many may be done between two looks.
#[expect(clippy::cast_precision_loss, reason = "counts of documents")]
fn rate(seen: &[(usize, Instant)], from: usize, to: usize) -> f64 {
    let first = seen.iter().rfind(|(done, _)| *done <= from);
    match (first, seen.iter().find(|(done, _)| *done >= to)) {
        (Some((less, begun)), Some((more, ended))) => {
            (more - less) as f64 / ended.duration_since(*begun).as_secs_f64()
        }
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_is_taken_between_the_counts_that_were_seen() {
        let start = Instant::now();
        let seen = [(0, start), (60, start + Duration::from_secs(1)), (110, start + Duration::from_secs(2))];
        assert!((rate(&seen, 0, 110) - 55.0).abs() < 1e-9);
        assert!((rate(&seen, 60, 100) - 50.0).abs() < 1e-9);
        // Nothing was seen between them.
        assert!((rate(&seen, 70, 80) - 50.0).abs() < 1e-9);
        assert!(rate(&seen, 0, 500).is_nan());
    }
}
