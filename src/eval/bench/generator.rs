//! What asks: clients on threads of their own, so that what they use of the machine can be told from what the
//! server uses.

use std::sync::Arc;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;

use super::machine::{GENERATOR, processors};
use super::{Bench, BenchError, question};
use crate::domain::clock::Clock;
use crate::eval::client::Client;
use crate::eval::figures::{between, progress};

/// What several clients had done to them.
pub(super) struct Load {
    /// Milliseconds of each.
    pub(super) times: Vec<f64>,
    /// In a second.
    pub(super) rate: f64,
    /// Processors in use meanwhile: by the server, its database, the clients.
    pub(super) processors: [f64; 3],
}

/// Threads that make load.
pub(super) struct Generator(Option<Runtime>);

impl Drop for Generator {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Generator {
    pub(super) fn new() -> std::io::Result<Self> {
        let runtime =
            Builder::new_multi_thread().worker_threads(2).thread_name(GENERATOR).enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    /// Where tasks are spawned.
    pub(super) fn handle(&self) -> Result<&Handle, BenchError> {
        Ok(self.0.as_ref().ok_or(BenchError::Ended)?.handle())
    }

    /// Has so many tasks work off the texts, each one after the other.
    #[expect(clippy::cast_precision_loss, reason = "counts of questions")]
    pub(super) async fn load<W>(
        &self,
        clock: Arc<dyn Clock>,
        clients: usize,
        texts: Vec<String>,
        work: impl Fn(String) -> W + Clone + Send + 'static,
    ) -> Result<Load, BenchError>
    where
        W: Future<Output = Result<(), BenchError>> + Send,
    {
        let handle = self.handle()?;
        let bar = progress(&format!("{clients} clients"), texts.len());
        let count = texts.len();
        let waiting = Arc::new(parking_lot::Mutex::new(texts));
        let used = processors()?;
        let begun = clock.instant();
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            let (waiting, work, bar) = (Arc::clone(&waiting), work.clone(), bar.clone());
            let clock = Arc::clone(&clock);
            let task = async move {
                let mut times = Vec::new();
                loop {
                    let Some(text) = waiting.lock().pop() else { return Ok::<_, BenchError>(times) };
                    let begun = clock.instant();
                    work(text).await?;
                    times.push(between(begun, clock.instant()));
                    bar.inc(1);
                }
            };
            tasks.spawn_on(task, handle);
        }
        let mut times = Vec::with_capacity(count);
        while let Some(task) = tasks.join_next().await {
            times.extend(task.map_err(|_| BenchError::Ended)??);
        }
        bar.finish_and_clear();
        let seconds = clock.instant().duration_since(begun).as_secs_f64();
        let processors = processors()?.in_use(used, seconds);
        Ok(Load { times, rate: count as f64 / seconds, processors })
    }
}

impl Bench<'_> {
    /// Has so many clients ask these questions, each one after the other.
    pub(super) async fn asked_by(
        &self,
        clients: usize,
        client: &Client,
        texts: Vec<String>,
        mode: &'static str,
    ) -> Result<Load, BenchError> {
        // Connections belong to the threads that opened them.
        let client = client.on_connections_of_its_own();
        let ask = move |text: String| {
            let client = client.clone();
            async move { Ok(client.post("/query/data", &question(&text, mode)).await.map(drop)?) }
        };
        Generator::new()?.load(Arc::clone(&self.subject.clock), clients, texts, ask).await
    }
}
