//! A change of model, in slices of a few seconds so that other tenants' jobs have their turns.
//!
//! **Invariant:** a slice leaves nothing but rows that are right whatever comes next: the job begun again goes on.

use std::time::{Duration, Instant};

use super::{Workers, away, crash_point};
use crate::pipeline::process::{ProcessError, Steps};
use crate::store::postgres::jobs::LeasedJob;
use crate::store::postgres::reembed::{EMBEDDING, ReembedTask, SWEEPING, Switch};
use crate::store::{CorpusWriter, Stores, TenantWriter};
use crate::tenancy;

/// How long one slice works before it lets others.
const SLICE: Duration = Duration::from_secs(5);
/// Rows that are removed in one transaction.
const SWEPT_ROWS: i64 = 2000;

impl Workers {
    pub(super) async fn reembed(&self, stores: &Stores, job: &LeasedJob) -> Result<(), ProcessError> {
        let permit =
            tenancy::reauthorise(self.directory.as_ref(), job.tenant, "reembed").await.map_err(away)?;
        let one = std::slice::from_ref(job);
        let Some(permit) = permit else {
            self.queue.release(one, Duration::from_secs(5)).await?;
            return Ok(());
        };
        let writer = stores.background(&permit);
        let Some(task) = writer.reembed_open(job).await? else { return Ok(()) };
        let Some(pipeline) = self.pipelines.get(&task.model) else {
            writer.reembed_end(job, Some("this server does not have the model")).await?;
            return Ok(());
        };
        if let Some(name) = &task.namespace
            && !writer.namespace_list().await?.iter().any(|namespace| namespace.name.as_str() == name)
        {
            writer.reembed_end(job, Some("there is no namespace of this name")).await?;
            return Ok(());
        }
        let until = self.clock.instant() + SLICE;
        let mut just_switched = false;
        // What was made meanwhile with another model, too.
        while let Some(namespace) = writer.reembed_next(&task).await? {
            let Some(corpus) = writer.corpus_writer(namespace).await? else { continue };
            if !self.fill(&writer, &corpus, pipeline, (job, &task), until).await? {
                return Ok(self.queue.release(one, Duration::ZERO).await?);
            }
            crash_point("filled");
            if let Switch::Done(seq) = corpus.reembed_switch(&task.model).await? {
                just_switched = true;
                crash_point("switched");
                let (tenant, model) = (job.tenant, task.model.as_str());
                tracing::info!(%tenant, %namespace, model, %seq, "a namespace has another model");
                if let Some(switched) = writer.corpus_writer(namespace).await? {
                    self.projector.kick(switched.partition());
                }
            }
        }
        if just_switched || !task.is_sweeping {
            writer.reembed_progress(job, &task, SWEEPING, self.lease_time()).await?;
            let grace = Duration::from_secs(self.settings.reembed_grace_seconds);
            return Ok(self.queue.release(one, grace).await?);
        }
        for namespace in writer.reembed_retired().await? {
            let Some(corpus) = writer.corpus_writer(namespace).await? else { continue };
            while !corpus.reembed_sweep(SWEPT_ROWS).await? {
                if self.clock.instant() >= until {
                    return Ok(self.queue.release(one, Duration::ZERO).await?);
                }
            }
        }
        writer.reembed_progress(job, &task, SWEEPING, self.lease_time()).await?;
        Ok(writer.reembed_end(job, None).await?)
    }

    /// Embeds what a namespace lacks. `false`: there may be more, but time is up, the lease was lost or the
    /// namespace is gone.
    async fn fill(
        &self,
        writer: &TenantWriter,
        corpus: &CorpusWriter,
        pipeline: &dyn Steps,
        (job, task): (&LeasedJob, &ReembedTask),
        until: Instant,
    ) -> Result<bool, ProcessError> {
        let page = i64::try_from(self.settings.progress_chunks.max(1)).unwrap_or(i64::MAX);
        let mut after = None;
        loop {
            if writer.reembed_progress(job, task, EMBEDDING, self.lease_time()).await?.is_none() {
                return Ok(false);
            }
            let missing = corpus.reembed_missing(&task.model, after, page).await?;
            let Some(last) = missing.last() else {
                // Once more from the start: documents may have come while the pages went by.
                if after.take().is_some() {
                    continue;
                }
                return Ok(true);
            };
            after = Some(last.chunk);
            let texts: Vec<_> = missing
                .iter()
                .map(|chunk| (chunk.title.as_deref(), chunk.heading.as_deref(), chunk.text.as_str()))
                .collect();
            let vectors = pipeline.embed_again(job.tenant, &texts).await?;
            let ids = missing.iter().map(|chunk| chunk.chunk);
            if !corpus.reembed_fill(&task.model, std::iter::zip(ids, vectors).collect()).await? {
                return Ok(false);
            }
            crash_point("filling");
            if self.clock.instant() >= until {
                return Ok(false);
            }
        }
    }
}
