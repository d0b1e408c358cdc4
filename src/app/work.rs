//! What works in the background, for a server and for a command that does the work of one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Foundation, Settings};
use crate::domain::ids::ModelId;
use crate::domain::lexical::Lexicon;
use crate::inference::{Embedder, Models};
use crate::jobs::projector::Projector;
use crate::jobs::worker::Workers;
use crate::pipeline::chunk::{ChunkSettings, Chunker};
use crate::pipeline::extract::{ExtractSettings, Extractor};
use crate::pipeline::parse::Parser;
use crate::pipeline::process::{Pipeline, Pipelines, Steps};
use crate::store::StoreError;
use crate::telemetry::Alarms;
use crate::telemetry::webhook::{self, Webhook};
use crate::tenancy::Directory;

/// Tenants that are named when their model is not here.
const NAMED_STRANGERS: i64 = 20;

/// The workers and the projector that they hand their changes to.
pub(super) struct Background {
    pub(super) workers: Workers,
    pub(super) projector: Projector,
    pub(super) lexicon: Arc<Lexicon>,
    /// Woken when a job was accepted.
    pub(super) wake: Arc<Notify>,
}

/// Where alarms go, also those of the audit log, and what delivers them.
pub(super) fn alarms(
    settings: &Settings,
    foundation: &mut Foundation,
) -> anyhow::Result<(Alarms, Option<Webhook>)> {
    let (clock, ids) = (Arc::clone(&foundation.clock), Arc::clone(&foundation.ids));
    let made = webhook::alarms(&settings.telemetry.webhook, &settings.node, clock, ids);
    let (alarms, webhook) = made.context("telemetry.webhook cannot be used")?;
    foundation.audit = foundation.audit.clone().with_alarms(alarms.clone());
    Ok((alarms, webhook))
}

impl Background {
    pub(super) fn new(settings: &Settings, foundation: &Foundation, models: &Models) -> anyhow::Result<Self> {
        let Foundation { clock, ids, stores, .. } = foundation;
        let directory: Arc<dyn Directory> = Arc::new(foundation.postgres.clone());
        let projector = foundation.projector.clone();
        let lexicon = Arc::new(Lexicon::new(settings.lexical));
        let program = settings.program.clone().map_or_else(std::env::current_exe, Ok)?;
        let parser = Parser::new(program, settings.parse, settings.ingestion.parsers());
        let pipeline = |embedder: &Embedder| -> anyhow::Result<(ModelId, Arc<dyn Steps>)> {
            let pipeline = Pipeline {
                parser: parser.clone(),
                chunker: Chunker::new(
                    &embedder.tokenizer(),
                    ChunkSettings {
                        max_tokens: settings.embedding.max_tokens,
                        overlap_tokens: settings.ingestion.overlap_tokens,
                        title_tokens: settings.ingestion.title_tokens,
                    },
                )?,
                extractor: Extractor::new(ExtractSettings::default()),
                lexicon: Arc::clone(&lexicon),
                embedder: embedder.clone(),
                ids: Arc::clone(ids),
                max_chunks: settings.ingestion.max_chunks,
            };
            Ok((embedder.info().id.clone(), Arc::new(pipeline)))
        };
        let pipelines = models.all().map(pipeline).collect::<anyhow::Result<_>>()?;
        let wake = Arc::new(Notify::new());
        let workers = Workers::new(
            stores.clone(),
            directory,
            Pipelines::new(pipelines),
            projector.clone(),
            settings.ingestion.clone(),
            Arc::clone(clock),
            Arc::clone(&wake),
            foundation.node,
            foundation.audit.clone(),
        );
        Ok(Self { workers, projector, lexicon, wake })
    }
}

/// Does the work that is queued as long as `work` takes. For a command that holds the data folder alone: no
/// question runs, so that what a change of model leaves behind can go at once.
///
/// # Errors
/// As the models' own, and as `work`.
pub async fn while_working<T>(
    foundation: &Foundation,
    settings: &Settings,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let mut settings = settings.clone();
    settings.ingestion.reembed_grace_seconds = 0;
    let embedding = settings.embedding.clone();
    let models = tokio::task::spawn_blocking(move || Models::load(&embedding)).await??;
    take_up(foundation).await?;
    let Background { workers, projector, .. } = Background::new(&settings, foundation, &models)?;
    let stop = CancellationToken::new();
    let ((), (), done) = tokio::join!(workers.run(stop.clone()), projector.run(stop.clone()), async {
        let done = work.await;
        stop.cancel();
        done
    });
    done
}

/// Frees what an earlier server over the same data folder held when it ended, so that its work goes on at once.
pub(super) async fn take_up(foundation: &Foundation) -> Result<(), StoreError> {
    let freed = foundation.stores.leases_free(foundation.node).await?;
    if freed > 0 {
        tracing::warn!(
            jobs = freed,
            "the server before this one ended in the middle of its work; it goes on"
        );
    }
    Ok(())
}

/// Says which namespaces cannot be served as they should be, and what to do.
pub(super) async fn tell_of_strangers(foundation: &Foundation, name: &str) -> Result<(), StoreError> {
    for (tenant, model) in foundation.stores.model_strangers(NAMED_STRANGERS).await? {
        tracing::warn!(%tenant, model, "namespaces are embedded by a model that this server does not have: they are \
            searched by words alone, and documents wait. Name the model in embedding.further, or run \
            `bulkhead reembed --tenant {tenant} --all --model {name}`");
    }
    Ok(())
}

/// How often partitions are looked after.
pub(super) fn partition_sweep(settings: &Settings) -> Duration {
    Duration::from_secs(settings.database.vectors.sweep_seconds)
}
