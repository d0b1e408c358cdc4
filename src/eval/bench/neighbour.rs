//! A tenant that asks now and then, beside one that asks a hundred times as much, and ingests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use super::generator::Generator;
use super::{Bench, BenchError, CALL, question};
use crate::eval::client::Client;
use crate::eval::figures::{Row, Target, between, median, percentile, progress};

/// Most times that its questions take as long, at the median and of the slowest.
const TIMES: (f64, f64) = (1.3, 2.0);
/// Questions of the other for each of its own.
const TIMES_AS_MUCH: usize = 100;
/// Clients of the other, each with its next question at once.
const BUSY_CLIENTS: usize = 4;
/// Different questions that it asks.
const BUSY_QUESTIONS: usize = 100;
/// Documents of which it always has some to be ingested, and their words.
const BUSY_DOCUMENTS: usize = 100;
const BUSY_WORDS: usize = 1200;
/// How often it is looked whether the other has asked enough.
const LOOK: Duration = Duration::from_millis(5);
/// What passes between two questions when nobody else asks: about what the other takes for its hundred.
const ALONE: Duration = Duration::from_millis(500);

/// What the other tenant does, for as long as it is measured.
#[derive(Clone)]
struct Busy {
    client: Client,
    questions: Arc<Vec<String>>,
    documents: Arc<Vec<String>>,
    asked: Arc<AtomicUsize>,
}

impl Busy {
    /// Asks one question after the other. Ends with an error alone.
    async fn ask(self) -> Result<(), BenchError> {
        loop {
            let at = self.asked.fetch_add(1, Ordering::Relaxed);
            let body = question(&self.questions[at % self.questions.len()], "mix");
            self.client.post("/query/data", &body).await?;
        }
    }

    /// Keeps documents waiting to be ingested. Ends with an error alone.
    async fn ingest(self) -> Result<(), BenchError> {
        let mut sent = self.client.counts().await?.all;
        loop {
            for call in self.documents.chunks(CALL) {
                // A number makes each a document of its own.
                let texts: Vec<String> = (sent..).zip(call).map(|(n, text)| format!("{n}. {text}")).collect();
                self.client.post("/documents/texts", &json!({"texts": texts})).await?;
                sent += call.len();
            }
            while self.client.counts().await?.processed + BUSY_DOCUMENTS / 2 < sent {
                tokio::time::sleep(ALONE).await;
            }
        }
    }

    /// Passes once it has asked a hundred questions more.
    async fn rest(&self) {
        let until = self.asked.load(Ordering::Relaxed) + TIMES_AS_MUCH;
        while self.asked.load(Ordering::Relaxed) < until {
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Bench<'_> {
    pub(super) async fn neighbour(&mut self) -> Result<Vec<Row>, BenchError> {
        let small = self.shared().await?.client.on_connections_of_its_own();
        let other = self.place("busy").await?;
        let busy = Busy {
            client: other.client.on_connections_of_its_own(),
            questions: Arc::new(self.questions(BUSY_QUESTIONS)),
            documents: Arc::new(self.texts(BUSY_DOCUMENTS, BUSY_WORDS)),
            asked: Arc::default(),
        };
        // Something to be asked about.
        other.send(&self.texts(1, BUSY_WORDS)).await?;
        other.client.processed(1, |_| ()).await?;
        let alone = self.now_and_then(&small, || tokio::time::sleep(ALONE)).await?;
        let mut rows = Vec::new();
        for ingests in [false, true] {
            let noise = Generator::new()?;
            let mut running = JoinSet::new();
            for _ in 0..BUSY_CLIENTS {
                running.spawn_on(busy.clone().ask(), noise.handle()?);
            }
            if ingests {
                running.spawn_on(busy.clone().ingest(), noise.handle()?);
            }
            let beside = tokio::select! {
                beside = self.now_and_then(&small, || busy.rest()) => beside?,
                // It would not be busy any more.
                Some(ended) = running.join_next() => {
                    ended.map_err(|_| BenchError::Ended)??;
                    return Err(BenchError::Ended);
                }
            };
            running.shutdown().await;
            let what = if ingests {
                "asks a hundred times as much and ingests"
            } else {
                "asks a hundred times as much"
            };
            rows.extend(compared(what, &beside, &alone));
        }
        Ok(rows)
    }

    /// Asks questions, each after a pause; the milliseconds of each.
    async fn now_and_then<P: Future<Output = ()>>(
        &mut self,
        client: &Client,
        pause: impl Fn() -> P,
    ) -> Result<Vec<f64>, BenchError> {
        let count = self.plan.neighbour_questions;
        let generator = Generator::new()?;
        let bar = progress("questions now and then", count);
        let mut times = Vec::with_capacity(count);
        for text in self.questions(count) {
            pause().await;
            let (client, clock) = (client.clone(), Arc::clone(&self.subject.clock));
            let ask = async move {
                let begun = clock.instant();
                client.post("/query/data", &question(&text, "naive")).await?;
                Ok::<_, BenchError>(between(begun, clock.instant()))
            };
            times.push(generator.handle()?.spawn(ask).await.map_err(|_| BenchError::Ended)??);
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(times)
    }
}

fn compared(what: &str, beside: &[f64], alone: &[f64]) -> [Row; 2] {
    let row = |which: &str, most, times: [f64; 2]| {
        let what = format!("small tenant beside one that {what}, {which} times alone");
        Row::new(&what, times[0] / times[1], "times", Target::Most(most), times.to_vec())
    };
    [
        row("median", TIMES.0, [median(beside), median(alone)]),
        row("p99", TIMES.1, [percentile(beside, 99), percentile(alone, 99)]),
    ]
}
