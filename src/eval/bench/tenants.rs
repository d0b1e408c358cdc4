//! What a tenant costs: empty, with a few documents, and when it is asked again after a long time.

use std::path::Path;
use std::time::Duration;

use super::free::{GROWTH, STEADY};
use super::machine::{Footprint, footprint, open_below};
use super::{Bench, BenchError, PASSAGE, Place, question};
use crate::eval::figures::{Row, Target, between, median, percentile, progress};

/// Most of an empty tenant: milliseconds to make, KB of memory and disk, descriptors.
const EMPTY: (f64, f64, f64, f64) = (10.0, 20.0, 20.0, 0.0);
/// Most of a tenant of ten documents: KB of disk and memory, descriptors.
const SMALL: (f64, f64, f64) = (1024.0, 20.0, 0.0);
/// Its documents.
const DOCUMENTS: usize = 10;
/// How long nothing is done before what is taken is looked at: longer than writing behind, and than a shard rests open.
const REST: Duration = Duration::from_secs(8);
/// How often in a row no more than a few shards must be open then; what looks after indexes opens one now and then.
const LOOKS: usize = 2;
const FEW_OPEN: usize = 4;
const MOST_LOOKS: usize = 100;
/// Most milliseconds of its first question after it was put away.
const COLD: f64 = 50.0;
/// Tenants beside which one is few.
const FEW: usize = 10;
/// Documents of a tenant whose rate is measured among others, and its questions.
const AMONG: usize = 1000;
const AMONG_ASKED: usize = 200;
/// Tenants that are asked after they were put away.
const ASKED: usize = 20;
const KB: f64 = 1024.0;
/// A descriptor of the database's pool comes and goes, whatever tenants there are.
const NEGLIGIBLE: f64 = 0.05;

impl Bench<'_> {
    #[expect(clippy::cast_precision_loss, reason = "counts of tenants")]
    pub(super) async fn tenants(&mut self) -> Result<Vec<Row>, BenchError> {
        // The first of each kind makes what all share.
        let mut first = self.place("first").await?;
        first.ingest(self.subject.clock.as_ref(), &self.passages_of_one()).await?;

        let before = self.footprint().await?;
        let count = self.plan.empty_tenants;
        let bar = progress("empty tenants", count);
        let mut times = Vec::new();
        for at in 0..count {
            let begun = self.now();
            self.subject.deployment.tenant(&format!("empty {at}")).await?;
            times.push(between(begun, self.now()));
            bar.inc(1);
        }
        bar.finish_and_clear();
        let made = vec![median(&times), percentile(&times, 99)];
        let mut rows = vec![Row::new(
            "an empty tenant with its key, to make",
            made[0],
            "ms",
            Target::Most(EMPTY.0),
            made,
        )];
        let each = Each::new(&before, &self.footprint().await?, count as f64);
        rows.extend(each.rows("an empty tenant", (EMPTY.1, EMPTY.2, EMPTY.3)));

        self.small_tenants(&mut rows).await?;
        Ok(rows)
    }

    /// Tenants of ten documents: what each takes, and what a tenant among many is slower than among few.
    #[expect(clippy::cast_precision_loss, reason = "counts of tenants")]
    async fn small_tenants(&mut self, rows: &mut Vec<Row>) -> Result<(), BenchError> {
        let mut places = self.tenants_of_ten(FEW, 0).await?;
        let (few_rate, few_time) = self.among(&places).await?;
        let before = self.footprint().await?;
        let count = self.plan.small_tenants.saturating_sub(FEW).max(1);
        places.extend(self.tenants_of_ten(count, FEW).await?);
        let each = Each::new(&before, &self.footprint().await?, count as f64);
        rows.extend(each.rows("a tenant of ten documents", (SMALL.1, SMALL.0, SMALL.2)));
        rows.push(self.cold(&places).await?);
        let (rate, time) = self.among(&places).await?;
        let count = places.len();
        rows.push(Row::new(
            &format!("ingestion rate among {count} tenants, times among {FEW}"),
            rate / few_rate,
            "times",
            Target::Least(STEADY),
            vec![rate, few_rate],
        ));
        rows.push(Row::new(
            &format!("naive question among {count} tenants, times among {FEW}"),
            time / few_time,
            "times",
            Target::Most(GROWTH),
            vec![time, few_time],
        ));
        Ok(())
    }

    /// The rate at which one tenant's documents are ingested, and the median of its questions, milliseconds.
    async fn among(&mut self, others: &[Place]) -> Result<(f64, f64), BenchError> {
        let mut place = self.place(&format!("among {}", others.len())).await?;
        let rate = self.grow(&mut place, AMONG).await?;
        let texts = self.questions(AMONG_ASKED);
        let asked = self.asked_by(1, &place.client, texts, "naive").await?;
        Ok((rate, median(&asked.times)))
    }

    async fn tenants_of_ten(&mut self, count: usize, from: usize) -> Result<Vec<Place>, BenchError> {
        let bar = progress("tenants of ten documents", count);
        let mut places = Vec::with_capacity(count);
        for at in from..from + count {
            let mut place = self.place(&format!("small {at}")).await?;
            place.send(&self.passages_of_one()).await?;
            place.sent = DOCUMENTS;
            places.push(place);
            bar.inc(1);
        }
        for place in &places {
            place.client.processed(place.sent, |_| ()).await?;
        }
        bar.finish_and_clear();
        Ok(places)
    }

    fn passages_of_one(&mut self) -> Vec<String> {
        self.texts(DOCUMENTS, PASSAGE)
    }

    /// Once everything that was written is projected and flushed, and what is idle is put away: when hardly a shard is
    /// open, twice in a row.
    async fn footprint(&self) -> Result<Footprint, BenchError> {
        let folders: [&Path; 1] = [&self.subject.data_dir];
        let shards = self.subject.data_dir.join("shards");
        let mut quiet = 0;
        for _ in 0..MOST_LOOKS {
            tokio::time::sleep(REST).await;
            quiet = if open_below(&shards)? <= FEW_OPEN { quiet + 1 } else { 0 };
            if quiet == LOOKS {
                return Ok(footprint(&folders)?);
            }
        }
        Err(BenchError::Restless)
    }

    /// The first questions of tenants whose shards were closed for others.
    async fn cold(&mut self, places: &[Place]) -> Result<Row, BenchError> {
        let mut times = Vec::new();
        for place in places.iter().take(ASKED) {
            let text = self.questions(1).remove(0);
            let begun = self.now();
            place.client.post("/query/data", &question(&text, "mix")).await?;
            times.push(between(begun, self.now()));
        }
        let (middle, slow) = (median(&times), percentile(&times, 99));
        let what = "first question of a cold tenant";
        Ok(Row::new(what, middle, "ms", Target::Most(COLD), vec![middle, slow]))
    }
}

/// What one tenant takes.
struct Each {
    memory: f64,
    allocated: f64,
    disk: f64,
    descriptors: f64,
}

impl Each {
    fn new(before: &Footprint, after: &Footprint, count: f64) -> Self {
        Self {
            memory: (after.memory - before.memory) / KB / count,
            allocated: (after.allocated - before.allocated) / KB / count,
            disk: (after.disk - before.disk) / KB / count,
            descriptors: (after.descriptors - before.descriptors) / count,
        }
    }

    fn rows(&self, what: &str, (memory, disk, descriptors): (f64, f64, f64)) -> [Row; 3] {
        let row = |kind: &str, samples: Vec<f64>, unit, most| {
            Row::new(&format!("{what}, {kind}"), samples[0], unit, Target::Most(most), samples)
        };
        [
            row("memory", vec![self.memory, self.allocated], "KB", memory),
            row("disk", vec![self.disk], "KB", disk),
            row("descriptors", vec![self.descriptors], "each", descriptors + NEGLIGIBLE),
        ]
    }
}
