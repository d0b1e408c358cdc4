//! Several clients at once, and a deletion.

use std::io::Write;
use std::sync::Arc;

use super::generator::Generator;
use super::{Bench, BenchError, PASSAGE, question};
use crate::eval::figures::{Row, Target, between, median, percentile};

/// Clients beside each other with the model.
const CLIENTS: usize = 16;
/// Least share of what embedding alone bears that questions of as many clients reach.
const THROUGHPUT: f64 = 0.8;
/// Most times that the slowest of a hundred takes as long as the middle one.
const SPREAD: f64 = 2.5;
/// Clients beside each other without the cost of a model.
const FREE_CLIENTS: usize = 8;
/// Passages that they ask about.
const FREE_PASSAGES: usize = 500;
/// Least questions with the walk in a second.
const FREE_RATE: f64 = 400.0;
/// Documents of which some are deleted.
const DELETED_FROM: usize = 500;
/// How many are.
const DELETED: usize = 20;
/// Most milliseconds of a deletion beyond writing something durably.
const DELETION: f64 = 15.0;

impl Bench<'_> {
    pub(super) async fn clients(&mut self) -> Result<Vec<Row>, BenchError> {
        let place = self.shared().await?;
        let count = self.plan.questions * 4;
        let texts = self.questions(count);
        let asked = self.asked_by(CLIENTS, &place.client, texts, "naive").await?;
        let texts = self.questions(count);
        let tenant = place.reader.scope().tenant();
        let embedder = self.subject.embedder.clone();
        let clock = Arc::clone(&self.subject.clock);
        let bare = Generator::new()?
            .load(clock, CLIENTS, texts, move |text| {
                let embedder = embedder.clone();
                async move { Ok(embedder.embed_question(tenant, vec![text]).await.map(drop)?) }
            })
            .await?;
        let (middle, slow) = (median(&asked.times), percentile(&asked.times, 99));
        Ok(vec![
            Row::new(
                "16 clients, questions in a second, share of embedding alone",
                asked.rate / bare.rate,
                "share",
                Target::Least(THROUGHPUT),
                vec![asked.rate, bare.rate],
            ),
            Row::new(
                "16 clients, p99 times the median",
                slow / middle,
                "times",
                Target::Most(SPREAD),
                vec![slow, middle],
            ),
        ])
    }

    pub(super) async fn free_clients(&mut self) -> Result<Vec<Row>, BenchError> {
        let mut place = self.place("free clients").await?;
        let texts = self.texts(FREE_PASSAGES, PASSAGE);
        place.ingest(self.subject.clock.as_ref(), &texts).await?;
        let texts = self.questions(self.plan.questions * 10);
        let asked = self.asked_by(FREE_CLIENTS, &place.client, texts, "mix").await?;
        let [server, database, generator] = asked.processors;
        eprintln!(
            "processors in use: {server:.2} by the server, {database:.2} by its database, {generator:.2} by the clients"
        );
        Ok(vec![Row::new(
            "mix, 8 clients, free embedder (clients beside it on the same processors)",
            asked.rate,
            "1/s",
            Target::Least(FREE_RATE),
            vec![asked.rate, median(&asked.times), percentile(&asked.times, 99), server, database, generator],
        )])
    }

    pub(super) async fn delete(&mut self) -> Result<Vec<Row>, BenchError> {
        let place = self.place("deletion").await?;
        let texts = self.texts(DELETED_FROM, PASSAGE);
        for (at, text) in texts.iter().enumerate() {
            place.client.put(&format!("d{at}"), None, text).await?;
        }
        place.client.processed(DELETED_FROM, |_| ()).await?;
        let (mut deletions, mut commits) = (Vec::new(), Vec::new());
        for (at, text) in texts.iter().enumerate().take(DELETED) {
            let id = format!("d{at}");
            let begun = self.now();
            place.client.delete(&id).await?;
            deletions.push(between(begun, self.now()));
            // Asked in its own words, it would be the first.
            let answer = place.client.post("/query/data", &question(text, "mix")).await?;
            let chunks = answer["data"]["chunks"].as_array().cloned().unwrap_or_default();
            if chunks.iter().any(|chunk| chunk["document_id"] == id) {
                return Err(BenchError::Deployment("what was deleted still answers".to_owned()));
            }
            commits.push(self.bare_commit()?);
        }
        let (deletion, commit) = (median(&deletions), median(&commits));
        Ok(vec![Row::new(
            "delete one of 500, until gone, beyond a bare durable write",
            deletion - commit,
            "ms",
            Target::Most(DELETION),
            vec![deletion, commit],
        )])
    }

    /// Milliseconds in which a page is written durably to the disk of the data.
    fn bare_commit(&self) -> Result<f64, BenchError> {
        let path = self.subject.data_dir.join("bare-commit");
        let begun = self.now();
        let mut file = std::fs::File::create(&path)?;
        file.write_all(&[7; 8192])?;
        file.sync_data()?;
        let time = between(begun, self.now());
        std::fs::remove_file(path)?;
        Ok(time)
    }
}
