//! A tenant that asks now and then, beside one that ingests and asks a hundred times as much.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::generator::Generator;
use super::{Bench, BenchError, question};
use crate::domain::clock::Clock;
use crate::eval::client::Client;
use crate::eval::figures::{Row, Target, between, median, percentile, progress};

/// Most times that its questions take as long, at the median and of the slowest.
const TIMES: (f64, f64) = (1.3, 2.0);
/// Questions of the other for each of its own.
const BUSY_QUESTIONS: usize = 100;
/// Clients of the other, each with its next question at once.
const BUSY_CLIENTS: usize = 4;
/// Documents of the other that are accepted before the next ones are sent, and their words.
const BUSY_DOCUMENTS: usize = 100;
const BUSY_WORDS: usize = 1200;
/// How often it is looked whether the other has asked enough.
const LOOK: Duration = Duration::from_millis(5);
/// What passes between two questions when nobody else asks: about what the other takes for its hundred.
const ALONE: Duration = Duration::from_millis(500);

/// What the other tenant does, until it is told to stop.
#[derive(Clone)]
struct Busy {
    client: Client,
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Busy {
    async fn ask(self, questions: Arc<Vec<String>>) -> Result<(), BenchError> {
        while !self.stop.load(Ordering::Relaxed) {
            let at = self.asked.fetch_add(1, Ordering::Relaxed);
            let body = question(&questions[at % questions.len()], "mix");
            self.client.post("/query/data", &body).await?;
        }
        Ok(())
    }

    async fn ingest(self, batches: Vec<Vec<String>>) -> Result<(), BenchError> {
        let mut sent = 0;
        for batch in batches {
            for call in batch.chunks(super::CALL) {
                self.client.post("/documents/texts", &serde_json::json!({"texts": call})).await?;
            }
            sent += batch.len();
            // The next ones are there before the last of these are done.
            while self.client.counts().await?.processed + BUSY_DOCUMENTS / 2 < sent {
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                tokio::time::sleep(ALONE).await;
            }
        }
        Err(BenchError::Deployment("the busy tenant ran out of documents".to_owned()))
    }
}

impl Bench<'_> {
    pub(super) async fn neighbour(&mut self) -> Result<Vec<Row>, BenchError> {
        let place = self.shared().await?;
        let count = self.plan.neighbour_questions;
        let generator = Generator::new()?;
        let clock = Arc::clone(&self.subject.clock);
        let client = place.client.on_connections_of_its_own();
        let texts = self.questions(count);
        let pause = || tokio::time::sleep(ALONE);
        let alone = generator.spawn(now_and_then(Arc::clone(&clock), client.clone(), texts, pause))?;
        let alone = alone.await.map_err(|_| BenchError::Ended)??;

        let other = self.place("busy").await?;
        let noise = Generator::new()?;
        let busy = Busy {
            client: other.client.on_connections_of_its_own(),
            stop: Arc::default(),
            asked: Arc::default(),
        };
        let questions = Arc::new(self.questions(BUSY_QUESTIONS));
        let batches: Vec<Vec<String>> =
            (0..count.div_ceil(10)).map(|_| self.texts(BUSY_DOCUMENTS, BUSY_WORDS)).collect();
        // Something to be asked about.
        other.send(&self.texts(1, BUSY_WORDS)).await?;
        let mut running = vec![noise.spawn(busy.clone().ingest(batches))?];
        for _ in 0..BUSY_CLIENTS {
            running.push(noise.spawn(busy.clone().ask(Arc::clone(&questions)))?);
        }
        let asked = Arc::clone(&busy.asked);
        let pause = move || {
            let asked = Arc::clone(&asked);
            async move {
                let until = asked.load(Ordering::Relaxed) + BUSY_QUESTIONS;
                while asked.load(Ordering::Relaxed) < until {
                    tokio::time::sleep(LOOK).await;
                }
            }
        };
        let texts = self.questions(count);
        let beside = generator.spawn(now_and_then(clock, client, texts, pause))?;
        let beside = beside.await.map_err(|_| BenchError::Ended)??;
        busy.stop.store(true, Ordering::Relaxed);
        for task in running {
            // What the busy tenant was refused or lacked would have made it less busy.
            task.await.map_err(|_| BenchError::Ended)??;
        }
        Ok(rows(&beside, &alone).into())
    }
}

/// Asks each question after a pause; the milliseconds of each.
async fn now_and_then<P: Future<Output = ()> + Send>(
    clock: Arc<dyn Clock>,
    client: Client,
    texts: Vec<String>,
    pause: impl Fn() -> P + Send,
) -> Result<Vec<f64>, BenchError> {
    let bar = progress("questions now and then", texts.len());
    let mut times = Vec::with_capacity(texts.len());
    for text in texts {
        pause().await;
        let begun = clock.instant();
        client.post("/query/data", &question(&text, "naive")).await?;
        times.push(between(begun, clock.instant()));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(times)
}

fn rows(beside: &[f64], alone: &[f64]) -> [Row; 2] {
    let row = |what: &str, most, times: [f64; 2]| {
        let what = format!("small tenant beside one that does a hundred times as much, {what} times alone");
        Row::new(&what, times[0] / times[1], "times", Target::Most(most), times.to_vec())
    };
    [
        row("median", TIMES.0, [median(beside), median(alone)]),
        row("p99", TIMES.1, [percentile(beside, 99), percentile(alone, 99)]),
    ]
}
