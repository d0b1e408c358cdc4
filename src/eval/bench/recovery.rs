//! What a backup costs, and how long nobody is answered after everything was lost.

use std::time::Duration;

use super::{Bench, BenchError, PASSAGE};
use crate::eval::client::Client;
use crate::eval::figures::{Row, Target};

/// Most seconds of a backup, and of a restore until the first answer, for the documents of a short plan.
const BACKUP: f64 = 30.0;
const RECOVERY: f64 = 60.0;

/// How long each step took.
#[derive(Debug, Clone, Copy)]
pub struct Recovery {
    /// Everything into one archive.
    pub backup: Duration,
    /// The archive into a data folder.
    pub restore: Duration,
    /// A server over that, until it answered.
    pub start: Duration,
    /// Bytes of the archive.
    pub bytes: u64,
}

impl Bench<'_> {
    #[expect(clippy::cast_precision_loss, reason = "bytes of an archive")]
    pub(super) async fn recovery(&mut self) -> Result<Vec<Row>, BenchError> {
        let (tenant, key) = self.subject.deployment.tenant("recovery").await?;
        let reader = self.subject.deployment.reader(tenant).await?;
        let client = Client::new(&self.subject.url, key.clone(), "default");
        let mut place = super::Place { client, reader, sent: 0 };
        let texts = self.texts(self.plan.passages, PASSAGE);
        place.ingest(self.subject.clock.as_ref(), &texts).await?;
        let asked = self.questions(1).remove(0);
        let took = self.subject.deployment.recover(key, &asked).await?;
        let (backup, restore) = (took.backup.as_secs_f64(), took.restore.as_secs_f64());
        let all = restore + took.start.as_secs_f64();
        let each = took.bytes as f64 / 1024.0 / self.plan.passages as f64;
        let what = format!("{} documents", self.plan.passages);
        let samples = vec![restore, took.start.as_secs_f64()];
        Ok(vec![
            Row::new(
                &format!("a backup of {what}, encrypted"),
                backup,
                "s",
                Target::Most(BACKUP),
                vec![backup],
            ),
            Row::new(
                &format!("a restore of {what} until the first answer"),
                all,
                "s",
                Target::Most(RECOVERY),
                samples,
            ),
            Row::new("an archive, for each document", each, "KB", Target::Most(10.0), vec![each]),
        ])
    }
}
