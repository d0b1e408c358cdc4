//! Ingestion through the API against the library alone on the same chunks.

use std::sync::Arc;
use std::time::Duration;

use super::{Bench, BenchError};
use crate::domain::clock::Clock;
use crate::eval::figures::{Row, Target, median, progress};
use crate::inference::{EmbeddingSettings, RawModel};
use crate::pipeline::chunk::embedding_text;
use crate::pipeline::parse::parse_text;

/// Least share of raw embedding that ingestion reaches.
const SHARE: f64 = 0.90;
/// Batch sizes that raw embedding is tried with, by length and as they come.
const BATCHES: [usize; 4] = [1, 4, 8, 32];

/// A way to run the raw model.
#[derive(Clone, Copy)]
struct Way {
    batch: usize,
    by_length: bool,
}

impl Bench<'_> {
    pub(super) async fn ingestion(&mut self) -> Result<Vec<Row>, BenchError> {
        let mut place = self.place("ingestion").await?;
        let clock = Arc::clone(&self.subject.clock);
        let mut ways: Vec<Way> = BATCHES
            .into_iter()
            .flat_map(|batch| [false, true].map(|by_length| Way { batch, by_length }))
            .collect();
        let sample = self.texts(self.plan.documents / 4, self.plan.words);
        let sample = self.model_texts(&sample)?;
        raw(&self.subject.embedding, sample, &mut ways, Arc::clone(&clock)).await?;
        // The best two are tried in each round.
        ways.truncate(2);
        for Way { batch, by_length } in &ways {
            let order = if *by_length { "by length" } else { "as they come" };
            eprintln!("raw embedding is fast in batches of {batch}, {order}");
        }
        let mut shares = Vec::new();
        for _ in 0..self.plan.rounds {
            let texts = self.texts(self.plan.documents, self.plan.words);
            let chunks = self.model_texts(&texts)?;
            let stages = self.subject.deployment.stages();
            let whole = place.ingest(clock.as_ref(), &texts).await?;
            eprintln!("{} chunks in {:.2} s", chunks.len(), whole.as_secs_f64());
            self.tell_stages(&stages);
            let raw = raw(&self.subject.embedding, chunks, &mut ways, Arc::clone(&clock)).await?;
            // Both embedded the same chunks, so that the ratio of times is that of rates.
            shares.push(raw.as_secs_f64() / whole.as_secs_f64());
        }
        let what = "ingestion, as a share of raw embedding";
        Ok(vec![Row::new(what, median(&shares), "share", Target::Least(SHARE), shares)])
    }

    /// What the model sees of these texts.
    fn model_texts(&self, texts: &[String]) -> Result<Vec<String>, BenchError> {
        let chunker = &self.subject.chunker;
        let mut seen = Vec::new();
        for text in texts {
            let parsed = parse_text(text);
            for piece in chunker.chunk(parsed.title.as_deref(), &parsed.sections)? {
                let lead = chunker.lead(parsed.title.as_deref(), piece.heading.as_deref())?;
                seen.push(embedding_text(&lead, &piece.text));
            }
        }
        Ok(seen)
    }
}

/// The least time in which the library alone embeds these texts; `ways` are ordered, the best first.
async fn raw(
    settings: &EmbeddingSettings,
    texts: Vec<String>,
    ways: &mut Vec<Way>,
    clock: Arc<dyn Clock>,
) -> Result<Duration, BenchError> {
    let settings = settings.clone();
    let tried = std::mem::take(ways);
    let task = tokio::task::spawn_blocking(move || {
        let mut sorted = texts.clone();
        sorted.sort_by_key(String::len);
        let mut model = RawModel::load(&settings)?;
        model.embed(&sorted[..1], 1)?;
        let bar = progress("raw embedding", tried.len());
        let mut times = Vec::new();
        for way in tried {
            let begun = clock.instant();
            model.embed(if way.by_length { &sorted } else { &texts }, way.batch)?;
            times.push((clock.instant().duration_since(begun), way));
            bar.inc(1);
        }
        bar.finish_and_clear();
        times.sort_by_key(|(time, _)| *time);
        Ok::<_, BenchError>(times)
    });
    let times = task.await.map_err(|_| BenchError::Ended)??;
    ways.extend(times.iter().map(|(_, way)| *way));
    times.first().map(|(time, _)| *time).ok_or(BenchError::Ended)
}
