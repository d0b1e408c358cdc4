//! A generation being written beside the one that is served.
//!
//! **Invariant:** until `watermark.json` names it, it is a leftover: dropped, it takes its files with it, and
//! after a crash the next opening deletes them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use tokio::sync::OwnedMutexGuard;

use super::fault::{BACKEND, Fault};
use super::index::{Inner, blocking};
use super::layout::{self, Watermark};
use super::shard::{self, Shard};
use super::slot::{Served, Slot, State};
use super::validate;
use crate::domain::Seq;
use crate::store::error::{ErrorKind, StoreError};
use crate::store::vector::{Point, Rebuild};

/// The handle that a caller holds; the draft is away while a blocking call uses it.
pub(super) struct EdgeRebuild {
    inner: Arc<Inner>,
    draft: Option<Draft>,
}

/// The files. Only one of a partition exists at a time.
struct Draft {
    inner: Arc<Inner>,
    slot: Arc<Slot>,
    generation: u64,
    folder: PathBuf,
    shard: Option<Shard>,
    switched: bool,
    _one: OwnedMutexGuard<()>,
}

impl EdgeRebuild {
    pub(super) fn begin(
        inner: &Arc<Inner>,
        slot: &Arc<Slot>,
        one: OwnedMutexGuard<()>,
    ) -> Result<Self, Fault> {
        let generation = slot.next_generation()?;
        slot.draft.store(generation, Ordering::Release);
        let folder = slot.folder.join(generation.to_string());
        let draft = Draft {
            inner: Arc::clone(inner),
            slot: Arc::clone(slot),
            generation,
            folder,
            shard: None,
            switched: false,
            _one: one,
        };
        Ok(Self { inner: Arc::clone(inner), draft: Some(draft) })
    }
}

impl Draft {
    /// Whether its partition still exists.
    async fn require_partition(&self, operation: &'static str) -> Result<(), StoreError> {
        match *self.slot.state.read().await {
            State::Removed => Err(validate::removed(operation)),
            _ => Ok(()),
        }
    }

    /// Blocks.
    fn add(&mut self, points: &[Point]) -> Result<(), Fault> {
        self.inner.require_room()?;
        let Some(first) = points.first() else { return Ok(()) };
        let shard = if let Some(shard) = self.shard.take() {
            shard
        } else {
            self.inner
                .layout
                .create_generation(&self.slot.folder, self.generation)
                .map_err(|error| Fault::from_io("making the folder of a vector shard", &error))?;
            Shard::create(&self.folder, first.embedding.len(), &self.inner.settings)?
        };
        let added = shard.upsert(&self.slot.partition, points);
        self.shard = Some(shard);
        added
    }

    /// Blocks. Makes the shard durable and compact, as it will be served.
    fn prepare(&mut self) -> Result<(), Fault> {
        let Some(shard) = self.shard.take() else { return Ok(()) };
        self.inner.require_room()?;
        let settings = &self.inner.settings;
        shard.flush()?;
        if shard.optimize(settings)? {
            shard.flush()?;
        }
        drop(shard);
        let doing = "finishing a vector shard";
        shard::cut_log(&self.folder).map_err(|error| Fault::from_io(doing, &error))?;
        layout::sync_tree(&self.folder).map_err(|error| Fault::from_io(doing, &error))?;
        self.shard = Some(Shard::load(&self.folder, settings)?);
        Ok(())
    }

    /// Blocks. Makes it the one that is served; nobody uses the one before.
    fn switch(mut self, state: &mut State, through: Seq) -> Result<(), Fault> {
        let generation = if self.shard.is_some() { self.generation } else { 0 };
        let mark = Watermark { generation, seq: through, deleted_since: None };
        let served = Served::new(self.shard.take(), mark)?;
        let folder = &self.slot.folder;
        if let Err(error) = self.inner.layout.write_watermark(folder, mark) {
            // Which of the two is named is not known: look again at the next use.
            *state = State::Unopened;
            return Err(Fault::from_io("recording the new generation of a vector shard", &error));
        }
        self.switched = true;
        let before = std::mem::replace(state, State::Served(Box::new(served)));
        self.slot.acknowledge(through);
        if let State::Served(before) = before
            && before.shard.is_some()
        {
            let generation = before.generation;
            drop(before);
            if let Err(error) = self.inner.layout.discard(&folder.join(generation.to_string())) {
                tracing::error!(folder = %folder.display(), %error, "an old generation cannot be deleted");
            }
        }
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        drop(self.shard.take());
        if !self.switched
            && let Err(error) = self.inner.layout.discard(&self.folder)
        {
            tracing::warn!(folder = %self.folder.display(), %error, "an unfinished generation cannot be deleted");
        }
        self.slot.draft.store(0, Ordering::Release);
    }
}

fn lost(operation: &'static str) -> StoreError {
    StoreError::new(ErrorKind::Unavailable, BACKEND, operation, "this generation failed before: begin anew")
}

#[async_trait]
impl Rebuild for EdgeRebuild {
    async fn add(&mut self, points: Vec<Point>) -> Result<(), StoreError> {
        const OPERATION: &str = "vector.rebuild.add";
        validate::points(&points, None).map_err(|words| validate::invalid(OPERATION, words))?;
        let mut draft = self.draft.take().ok_or_else(|| lost(OPERATION))?;
        draft.require_partition(OPERATION).await?;
        let dimension = draft.shard.as_ref().map(Shard::dimension);
        if let Err(words) = validate::points(&points, dimension) {
            self.draft = Some(draft);
            return Err(validate::invalid(OPERATION, words));
        }
        // On failure the draft is dropped in the blocking call, and its files with it.
        let added = blocking(&self.inner.writes, move || {
            draft.add(&points)?;
            Ok(draft)
        });
        self.draft = Some(added.await.map_err(|fault| fault.into_store(OPERATION))?);
        Ok(())
    }

    async fn finish(mut self: Box<Self>, through: Seq) -> Result<(), StoreError> {
        const OPERATION: &str = "vector.rebuild.finish";
        let mut draft = self.draft.take().ok_or_else(|| lost(OPERATION))?;
        draft.require_partition(OPERATION).await?;
        let prepared = blocking(&self.inner.writes, move || {
            draft.prepare()?;
            Ok(draft)
        });
        let draft = prepared.await.map_err(|fault| fault.into_store(OPERATION))?;
        self.inner.make_room().await;
        let mut state = Arc::clone(&draft.slot.state).write_owned().await;
        if matches!(*state, State::Removed) {
            return Err(validate::removed(OPERATION));
        }
        let inner = Arc::clone(&self.inner);
        blocking(&self.inner.writes, move || inner.change(&mut state, |state| draft.switch(state, through)))
            .await
            .map_err(|fault| fault.into_store(OPERATION))
    }
}
