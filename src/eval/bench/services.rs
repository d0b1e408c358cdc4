//! The services against what is embedded: the same corpus, questions and tenants on a server of each profile.
//!
//! The targets are of this project's own making but for the audit log's share of a question.

use std::time::Duration;

use super::machine::{listener, resident};
use super::{Bench, BenchError, PASSAGE, Part, Place, Plan, Subject, TOP, question};
use crate::eval::figures::{Row, Target, between, median, progress};
use crate::store::vector::VectorQuery;

/// Most times that a search takes as long as in a shard: a message there and back, and two encodings.
const SEARCH: f64 = 6.0;
/// Most times that a question takes as long as on what is embedded.
const QUESTION: f64 = 2.0;
/// Most of a question that waiting for the audit log is.
const AUDIT: f64 = 0.05;
/// Most that one more tenant of a few documents takes of a store's memory while it rests, KB.
const TENANT: f64 = 1024.0;
/// Most seconds from a document's chunks to its graph in an index, and most calls for that: no call for a chunk.
const GRAPH: (f64, f64) = (10.0, 50.0);
/// Words of that document: about a thousand chunks.
const LONG: usize = 150_000;
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// Chunks that are asked about.
const PASSAGES: usize = 2000;
/// Questions, and searches, of each profile.
const QUESTIONS: usize = 300;
/// Those before that let every connection plan and every client connect.
const WARM: usize = 30;
/// Events that are written one after the other.
const EVENTS: usize = 500;
/// Tenants whose memory is looked at, and the documents of each.
const TENANTS: usize = 50;
const DOCUMENTS: usize = 10;

/// A service that the measured server uses on this machine.
#[derive(Debug, Clone)]
pub struct Listening {
    /// Its name, for a row.
    pub name: &'static str,
    /// The port on which it answers.
    pub port: u16,
}

/// What was measured on one profile. Times are medians, milliseconds.
#[derive(Debug)]
pub struct Profile {
    vectors: &'static str,
    audit_log: &'static str,
    search: f64,
    naive: f64,
    audit: f64,
    graph: Option<GraphWrite>,
    /// KB of each service for each tenant that rests.
    tenants: Vec<(&'static str, f64)>,
}

/// How a document's graph came into an index.
#[derive(Debug)]
struct GraphWrite {
    seconds: f64,
    calls: f64,
    chunks: f64,
}

/// Measures one profile.
///
/// # Errors
/// [`BenchError`] with what failed.
pub async fn profile(
    subject: &Subject<'_>,
    plan: &Plan,
    source: &str,
    listening: &[Listening],
) -> Result<Profile, BenchError> {
    let mut bench = Bench::new(subject, plan, source)?;
    let mut place = bench.place("services").await?;
    let texts = bench.texts(PASSAGES, PASSAGE);
    place.ingest(subject.clock.as_ref(), &texts).await?;
    let tenant = place.reader.scope().tenant();
    let names = subject.deployment.names();
    Ok(Profile {
        vectors: names.vectors,
        audit_log: names.audit,
        search: bench.searched(&place).await?,
        naive: bench.asked(&place).await?,
        audit: median(&subject.deployment.audited(tenant, EVENTS, TOP).await?),
        graph: bench.graph_written().await?,
        tenants: bench.resting(listening).await?,
    })
}

/// The rows of the services, each over what is embedded.
#[must_use]
pub fn compared(embedded: &Profile, services: &Profile) -> Vec<Row> {
    let times = |what: &str, most, pair: [f64; 2]| {
        Row::new(what, pair[0] / pair[1], "times", Target::Most(most), pair.to_vec())
    };
    let mut rows = Vec::new();
    if services.vectors != embedded.vectors {
        let what = format!("search in {}, times in {}", services.vectors, embedded.vectors);
        rows.push(times(&what, SEARCH, [services.search, embedded.search]));
    }
    rows.push(times(
        "naive question on the services, times on what is embedded",
        QUESTION,
        [services.naive, embedded.naive],
    ));
    for profile in [embedded, services] {
        let pair = vec![profile.audit, profile.naive];
        let what = format!("audit log in {}, share of a naive question", profile.audit_log);
        rows.push(Row::new(&what, profile.audit / profile.naive, "share", Target::Most(AUDIT), pair));
    }
    if let Some(GraphWrite { seconds, calls, chunks }) = services.graph {
        let row = |what: &str, value, unit, most| {
            let what = format!("graph of a document of {chunks} chunks, {what}");
            Row::new(&what, value, unit, Target::Most(most), vec![seconds, calls, chunks])
        };
        rows.extend([
            row("written", seconds, "s", GRAPH.0),
            row("calls of the index", calls, "calls", GRAPH.1),
        ]);
    }
    for (name, each) in &services.tenants {
        let what = format!("a tenant of ten documents that rests, memory of {name}");
        rows.push(Row::new(&what, *each, "KB", Target::Most(TENANT), vec![*each]));
    }
    rows
}

impl Bench<'_> {
    /// The median of searches past the API.
    async fn searched(&mut self, place: &Place) -> Result<f64, BenchError> {
        let corpus = place.indexed().await?;
        let tenant = corpus.partition().tenant();
        let mut times = Vec::with_capacity(QUESTIONS);
        for (at, text) in self.questions(WARM + QUESTIONS).into_iter().enumerate() {
            let embedded = self.subject.embedder.embed_question(tenant, vec![text]).await?;
            let query = VectorQuery { embedding: embedded.into_iter().next(), terms: None, limit: TOP };
            let begun = self.now();
            corpus.vector_search(&query).await?;
            if at >= WARM {
                times.push(between(begun, self.now()));
            }
        }
        Ok(median(&times))
    }

    /// The median of questions over the API.
    async fn asked(&mut self, place: &Place) -> Result<f64, BenchError> {
        let mut times = Vec::with_capacity(QUESTIONS);
        for (at, text) in self.questions(WARM + QUESTIONS).into_iter().enumerate() {
            let begun = self.now();
            place.client.post("/query/data", &question(&text, "naive")).await?;
            if at >= WARM {
                times.push(between(begun, self.now()));
            }
        }
        Ok(median(&times))
    }

    /// From the moment a long document is processed until its graph is in the index; `None`: there is no index.
    #[expect(clippy::cast_precision_loss, reason = "counts for people")]
    async fn graph_written(&mut self) -> Result<Option<GraphWrite>, BenchError> {
        let place = self.place("graph").await?;
        let Some(backend) = place.reader.graph_name() else { return Ok(None) };
        let texts = self.texts(1, LONG);
        let before = self.subject.deployment.calls(backend);
        place.send(&texts).await?;
        place.client.processed(1, |_| ()).await?;
        let begun = self.now();
        let (corpus, mut looks) = (place.corpus().await?, 1);
        while corpus.graph_head().await?.and_then(|head| head.seq) < Some(corpus.seq()) {
            tokio::time::sleep(LOOK).await;
            looks += 1;
        }
        let seconds = between(begun, self.now()) / 1000.0;
        // Without those that only looked for it.
        let calls = self.subject.deployment.calls(backend) - before - looks;
        Ok(Some(GraphWrite { seconds, calls: calls as f64, chunks: corpus.chunks() as f64 }))
    }

    /// What each service takes in memory for one more tenant that rests, KB.
    #[expect(clippy::cast_precision_loss, reason = "bytes for people")]
    async fn resting(&mut self, listening: &[Listening]) -> Result<Vec<(&'static str, f64)>, BenchError> {
        let taken = || -> Vec<Option<u64>> {
            listening.iter().map(|service| Some(resident(listener(service.port)?))).collect()
        };
        let before = taken();
        let bar = progress("tenants of ten documents", TENANTS);
        for at in 0..TENANTS {
            let mut place = self.place(&format!("resting {at}")).await?;
            let texts = self.texts(DOCUMENTS, PASSAGE);
            place.ingest(self.subject.clock.as_ref(), &texts).await?;
            place.indexed().await?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let each = |(before, after): (u64, u64)| (after as f64 - before as f64) / 1024.0 / TENANTS as f64;
        let pairs = std::iter::zip(before, taken());
        let found = std::iter::zip(listening, pairs).filter_map(|(service, (before, after))| {
            let Some(pair) = before.zip(after) else {
                eprintln!("{} is not on this machine: its memory is not measured", service.name);
                return None;
            };
            Some((service.name, each(pair)))
        });
        Ok(found.collect())
    }
}

impl Plan {
    /// Whether the services are among what is measured.
    #[must_use]
    pub fn has_services(&self) -> bool {
        self.parts.contains(&Part::Services)
    }
}
