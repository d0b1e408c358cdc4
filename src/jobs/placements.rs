//! Moves a tenant's vectors from one placement to another while questions and writes go on.
//!
//! The other collection is written by a projector of its own, under a name of its own in the history: what changed
//! since it was read is kept until the move has ended, however far the index that is served has come.
//!
//! Of two moves of a tenant the later one wins: it has the one before it end, and begins then. One on another server is
//! overtaken in the registry.
//!
//! **Invariant:** nothing is served from where it was moved to before all of its points were compared with the rows.
//! **Invariant:** a server writes one move of a tenant at a time, and none is left running when the server has stopped.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::FutureExt as _;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::projector::{Projector, ProjectorSettings};
use crate::config::crash_point;
use crate::domain::clock::Clock;
use crate::domain::ids::{ModelId, NamespaceId, TenantId};
use crate::store::placement::{MovedModel, Placement, Placements};
use crate::store::qdrant::{QdrantIndex, Staged};
use crate::store::{Corpus, ErrorKind, StoreError, Stores, TenantWriter};
use crate::tenancy::{Directory, Permit, Write};

/// Under this name a move follows the history. A node's name has no colon.
const NODE: &str = ":move";
const OPERATION: &str = "tenant.place";

/// Moves tenants between the placements of a Qdrant server. Clones share the work.
#[derive(Clone)]
pub struct Mover {
    index: QdrantIndex,
    stores: Stores,
    directory: Arc<dyn Directory>,
    /// Of the index that is served.
    projector: Projector,
    settings: ProjectorSettings,
    clock: Arc<dyn Clock>,
    turns: Arc<Mutex<HashMap<TenantId, Turn>>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// The moves of a tenant that have not ended.
#[derive(Default)]
struct Turn {
    /// Has the latest of them end.
    overtaken: CancellationToken,
    /// Held by the one that runs.
    alone: Arc<tokio::sync::Mutex<()>>,
}

impl Mover {
    /// For these stores, whose vectors are in this index and are kept up by this projector.
    #[must_use]
    pub fn new(
        index: QdrantIndex,
        stores: Stores,
        directory: Arc<dyn Directory>,
        (projector, settings): (Projector, ProjectorSettings),
        clock: Arc<dyn Clock>,
    ) -> Self {
        let (turns, tasks, stopping) = (Arc::default(), TaskTracker::new(), CancellationToken::new());
        Self { index, stores, directory, projector, settings, clock, turns, tasks, stopping }
    }

    /// A turn for a move of this tenant, which is to end when the token is cancelled. Those before it are told to.
    fn turn(&self, tenant: TenantId) -> (CancellationToken, Arc<tokio::sync::Mutex<()>>) {
        let end = self.stopping.child_token();
        let mut turns = self.turns.lock();
        // Those that have ended.
        turns.retain(|_, turn| Arc::strong_count(&turn.alone) > 1);
        let turn = turns.entry(tenant).or_default();
        std::mem::replace(&mut turn.overtaken, end.clone()).cancel();
        (end, Arc::clone(&turn.alone))
    }

    /// Why a move ends that was told to.
    fn told(&self) -> StoreError {
        let (kind, words) = if self.stopping.is_cancelled() {
            (ErrorKind::Unavailable, "the server stops")
        } else {
            (ErrorKind::Conflict, "another move of this tenant was asked for")
        };
        StoreError::new(kind, "qdrant", OPERATION, words)
    }

    async fn move_all(
        &self,
        permit: &Permit<Write>,
        to: Placement,
        end: &CancellationToken,
    ) -> Result<Vec<MovedModel>, StoreError> {
        if end.is_cancelled() {
            return Err(self.told());
        }
        let tenant = permit.scope().tenant();
        let mut staged = self.index.stage(tenant, to).boxed().await?.into_iter();
        let (mut moved, mut ended) = (Vec::new(), Ok(()));
        for one in staged.by_ref() {
            ended = self.move_one(permit, one, end).await.map(|model| moved.push(model));
            if ended.is_err() {
                break;
            }
        }
        for one in staged {
            one.abandon().boxed().await;
        }
        // The index that is served follows from where the move ended; then the history may go.
        let own = self.stores.background(permit);
        if let Err(error) = self.catch_up(&own).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(%tenant, error, "what was moved is behind, and catches up later");
        }
        ended?;
        tracing::info!(%tenant, placement = to.name(), models = moved.len(), "a tenant's vectors were placed");
        Ok(moved)
    }

    /// The history is let go of whether or not the index came so far: one that it is missing to is written anew.
    async fn catch_up(&self, tenant: &TenantWriter) -> Result<(), StoreError> {
        let (mut after, mut ended) = (None, Ok(()));
        while let Some(corpus) = next(tenant, &mut after).await? {
            if let Err(error) = self.projector.project(&corpus).await {
                ended = Err(error);
            }
            corpus.consumer_release(&consumer()).await?;
        }
        ended
    }

    async fn move_one(
        &self,
        permit: &Permit<Write>,
        staged: Staged,
        end: &CancellationToken,
    ) -> Result<MovedModel, StoreError> {
        match self.write(permit, &staged, end).await {
            Ok(model) => {
                crash_point("vectors-moved");
                staged.switch().boxed().await?;
                Ok(model)
            }
            Err(error) => {
                staged.abandon().boxed().await;
                Err(error)
            }
        }
    }

    /// Writes the other collection, and compares it with the rows. Nothing is written any more when this returns.
    async fn write(
        &self,
        permit: &Permit<Write>,
        staged: &Staged,
        end: &CancellationToken,
    ) -> Result<MovedModel, StoreError> {
        let beside = self.stores.with_vectors(staged.index());
        let projector = Projector::new(
            beside.clone(),
            Arc::clone(&self.directory),
            self.settings.clone(),
            NODE,
            Arc::clone(&self.clock),
        );
        let tenant = beside.background(permit);
        let written = tokio::select! {
            biased;
            () = end.cancelled() => Err(self.told()),
            written = write_with(&projector, &tenant, staged.model()) => written,
        };
        projector.end().await;
        written
    }
}

/// Writes what the projector's index is to hold of a tenant and model, and compares it with the rows.
async fn write_with(
    projector: &Projector,
    tenant: &TenantWriter,
    model: &ModelId,
) -> Result<MovedModel, StoreError> {
    let mut after = None;
    while let Some(corpus) = next(tenant, &mut after).await? {
        if corpus.partition().model() == model {
            projector.project(&corpus).await?;
            // Registers how far it is, so that the history from there is kept.
            corpus.index_flush(&consumer()).await?;
        }
    }
    crash_point("vectors-copied");
    let mut moved =
        MovedModel { model: model.as_str().to_owned(), namespaces: 0, points: 0, checksum: String::new() };
    let (mut checksum, mut after) = (Sha256::new(), None);
    while let Some(corpus) = next(tenant, &mut after).await? {
        if corpus.partition().model() != model {
            continue;
        }
        let examined = projector.examine(&corpus, false).await?;
        let is_same = examined
            .digests
            .windows(2)
            .all(|pair| (pair[0].count, &pair[0].digest) == (pair[1].count, &pair[1].digest));
        if !(examined.findings.is_empty() && is_same) {
            let tenant = corpus.partition().tenant();
            tracing::error!(%tenant, findings = ?examined.findings, "a move wrote something else than the rows");
            let words = "what was written is not what the rows say";
            return Err(StoreError::new(ErrorKind::Damaged, "qdrant", OPERATION, words));
        }
        moved.namespaces += 1;
        moved.points += examined.points;
        checksum.update(corpus.partition().namespace().0.as_bytes());
        examined.digests.iter().for_each(|held| checksum.update(held.digest.as_bytes()));
    }
    moved.checksum = hex::encode(checksum.finalize());
    Ok(moved)
}

fn consumer() -> String {
    Projector::consumer(NODE)
}

/// The namespace after this one. One that is made meanwhile may be left out.
async fn next(tenant: &TenantWriter, after: &mut Option<NamespaceId>) -> Result<Option<Corpus>, StoreError> {
    while let Some(namespace) = tenant.namespace_after(*after).await? {
        *after = Some(namespace);
        if let Some(corpus) = tenant.corpus_get_by_id(namespace).await? {
            return Ok(Some(corpus));
        }
        // Deleted between the two.
    }
    Ok(None)
}

#[async_trait]
impl Placements for Mover {
    /// Goes on when the caller goes away.
    async fn place(&self, permit: &Permit<Write>, to: Placement) -> Result<Vec<MovedModel>, StoreError> {
        let (mover, permit) = (self.clone(), permit.clone());
        let (end, alone) = self.turn(permit.scope().tenant());
        let task = self.tasks.spawn(async move {
            let _alone = alone.lock().await;
            Box::pin(mover.move_all(&permit, to, &end)).await
        });
        task.await.unwrap_or_else(|error| {
            let words = "a move was given up";
            Err(StoreError::new(ErrorKind::Internal, "qdrant", OPERATION, words).with_source(error))
        })
    }

    async fn end(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
