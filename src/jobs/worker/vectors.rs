//! The vectors of a batch of documents, for the namespace's model and for one that is being filled.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Held, Target, Workers};
use crate::domain::document::Status;
use crate::inference::EmbedderError;
use crate::pipeline::process::{Draft, Drafts, ProcessError, Steps};
use crate::store::postgres::ingest::SecondVectors;
use crate::store::postgres::jobs::{IngestTask, Progress};

impl Workers {
    /// The vectors of the model that is being filled, so that a namespace that is written to switches all the same.
    pub(super) async fn second_vectors(
        &self,
        corpus: &dyn Target,
        documents: &[(IngestTask, Drafts)],
    ) -> Result<Option<SecondVectors>, ProcessError> {
        let building = corpus.building().and_then(|model| Some((model, self.pipelines.get(model)?)));
        let Some((model, pipeline)) = building else { return Ok(None) };
        let chunks = documents.iter().flat_map(|(_, drafts)| {
            drafts.chunks.iter().map(|draft| {
                let chunk = &draft.chunk;
                (chunk.chunk, (drafts.title.as_deref(), chunk.heading.as_deref(), chunk.text.as_str()))
            })
        });
        let (ids, texts): (Vec<_>, Vec<_>) = chunks.unzip();
        let vectors = pipeline.embed_again(corpus.partition().tenant(), &texts).await?;
        Ok(Some(SecondVectors { model: model.clone(), vectors: std::iter::zip(ids, vectors).collect() }))
    }

    /// Embeds the chunks of a batch, those of like length together, and reports now and then. Returns the documents,
    /// by their place, that have a chunk on which the model failed; `None` when it did not come to the end, since
    /// a server that stops gives its work back.
    pub(super) async fn embed(
        &self,
        held: &Held<'_>,
        pipeline: &dyn Steps,
        documents: &mut [(IngestTask, Drafts)],
        known: &HashMap<[u8; 16], Vec<f32>>,
        stop: &CancellationToken,
    ) -> Result<Option<BTreeMap<usize, EmbedderError>>, ProcessError> {
        let mut drafts: Vec<(usize, &mut Draft)> = documents
            .iter_mut()
            .enumerate()
            .flat_map(|(at, (_, drafts))| drafts.chunks.iter_mut().map(move |draft| (at, draft)))
            .collect();
        drafts.sort_by_key(|(_, draft)| draft.model_text.len());
        let (owners, mut drafts): (Vec<usize>, Vec<&mut Draft>) = drafts.into_iter().unzip();
        let mut failed = BTreeMap::new();
        let total = i64::try_from(drafts.len()).unwrap_or(i64::MAX);
        let begun = self.clock.instant();
        let mut reported = begun;
        let mut done = 0;
        let size = self.settings.progress_chunks.max(1);
        for (slice, owners) in std::iter::zip(drafts.chunks_mut(size), owners.chunks(size)) {
            if stop.is_cancelled() {
                return Ok(None);
            }
            let size = i64::try_from(slice.len()).unwrap_or(i64::MAX);
            let faults = pipeline.embed(held.corpus.partition().tenant(), slice, known).await?;
            failed.extend(faults.into_iter().map(|(at, error)| (owners[at], error)));
            done += size;
            let now = self.clock.instant();
            if now.duration_since(reported) >= Duration::from_millis(500) {
                reported = now;
                #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
                let rate = done as f32 / now.duration_since(begun).as_secs_f32();
                if held.report(Progress { stage: Status::Processing, done, total, rate }).await? == 0 {
                    break;
                }
            }
        }
        Ok(Some(failed))
    }
}
