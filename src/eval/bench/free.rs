//! Ingestion and questions without the cost of a model, as a corpus grows.

use std::sync::Mutex;
use std::time::Instant;

use super::asking::Asked;
use super::{Bench, BenchError, PASSAGE};
use crate::eval::figures::{Row, Target, progress};

/// Least chunks in a second.
const RATE: f64 = 400.0;
/// Least rate of the last tenth as a share of the first's.
const STEADY: f64 = 0.9;
/// Most times that a question's share of its raw parts grows with the corpus.
const GROWTH: f64 = 1.1;
/// Chunks at which questions are asked first.
const SMALL: usize = 1000;
/// Questions at each size.
const QUESTIONS: usize = 200;

impl Bench<'_> {
    pub(super) async fn free(&mut self) -> Result<Vec<Row>, BenchError> {
        let mut place = self.place("free").await?;
        let texts = self.texts(SMALL, PASSAGE);
        place.ingest(self.subject.clock.as_ref(), &texts).await?;
        let small = self.ask(&place, QUESTIONS).await?;

        let count = self.plan.growth.saturating_sub(SMALL).max(10);
        let texts = self.texts(count, PASSAGE);
        let before = self.subject.deployment.stages();
        let bar = progress("documents through the API", count);
        let seen: Mutex<Vec<(usize, Instant)>> = Mutex::new(vec![(0, self.now())]);
        let note = |all: usize| {
            let done = all.saturating_sub(place.sent);
            bar.set_position(done as u64);
            if let Ok(mut seen) = seen.lock()
                && seen.last().is_some_and(|(last, _)| done > *last)
            {
                seen.push((done, self.now()));
            }
        };
        let send = async { place.send(&texts).await };
        tokio::try_join!(send, place.client.processed(place.sent + count, note))?;
        bar.finish_and_clear();
        place.sent += count;
        let seen = seen.into_inner().map_err(|_| BenchError::Ended)?;
        let (first, last) = (rate(&seen, 0, count / 10), rate(&seen, count - count / 10, count));
        let whole = rate(&seen, 0, count);
        self.tell_stages(&before);
        let large = self.ask(&place, QUESTIONS).await?;
        let share = |asked: &Asked| asked.naive / asked.raw;
        Ok(vec![
            Row::new("ingestion with a free embedder", whole, "chunks/s", Target::Least(RATE), vec![whole]),
            Row::new(
                "the last tenth's rate, times the first's",
                last / first,
                "times",
                Target::Least(STEADY),
                vec![last, first],
            ),
            Row::new(
                "naive question over its raw parts, large corpus against small",
                share(&large) / share(&small),
                "times",
                Target::Most(GROWTH),
                vec![large.naive, large.raw, small.naive, small.raw],
            ),
        ])
    }
}

/// Documents in a second between two counts.
#[expect(clippy::cast_precision_loss, reason = "counts of documents")]
fn rate(seen: &[(usize, Instant)], from: usize, to: usize) -> f64 {
    let at = |count: usize| seen.iter().find(|(done, _)| *done >= count);
    match (at(from), at(to)) {
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
        assert!((rate(&seen, 50, 100) - 50.0).abs() < 1e-9);
        assert!(rate(&seen, 0, 500).is_nan());
    }
}
