//! What calls that were given up may have left in a collection, and how it is found.
//!
//! **Invariant:** what may still arrive has time to: a namespace that is gone is looked at again when nothing that was
//! sent before can be on its way any more, and only then is its mark taken away too.

use std::collections::BTreeSet;

use super::index::Inner;
use super::lane::Lane;
use super::registry::Collection;
use super::wire::{self, Head};
use crate::domain::ids::NamespaceId;
use crate::store::error::StoreError;
use crate::store::partition::Partition;

/// Heads of a page, when they are listed.
const HEADS: u32 = 256;

impl Inner {
    /// Namespaces of the tenant of which a collection holds an index; `None`: there is no collection.
    pub(super) async fn indexed(
        &self,
        any: &Partition,
        home: &Collection,
        operation: &'static str,
    ) -> Result<Option<BTreeSet<NamespaceId>>, StoreError> {
        let (points, filter) = (self.points(any, home), wire::heads(any.tenant()));
        let (mut indexed, mut from) = (BTreeSet::new(), None);
        loop {
            let page = points.scroll(operation, &filter, from.as_ref(), HEADS).await?;
            let Some((heads, next)) = page else { return Ok(None) };
            let read = heads.iter().filter_map(|point| wire::read_head(&point.payload));
            indexed.extend(read.map(|(namespace, _)| namespace));
            match next {
                Some(next) => from = Some(next),
                None => return Ok(Some(indexed)),
            }
        }
    }

    /// Namespaces of which a collection holds any point but a mark: an index, or what was written so far of a first one.
    pub(super) async fn written(
        &self,
        any: &Partition,
        home: &Collection,
        operation: &'static str,
    ) -> Result<BTreeSet<NamespaceId>, StoreError> {
        let points = self.points(any, home);
        let Some(mut known) = self.indexed(any, home, operation).await? else { return Ok(BTreeSet::new()) };
        loop {
            let page = points.scroll(operation, &wire::drafts(any, &known), None, 1).await?;
            let draft = page.and_then(|(list, _)| wire::namespace_of(&list.first()?.payload));
            if draft.is_none_or(|draft| !known.insert(draft)) {
                return Ok(known);
            }
        }
    }

    /// Namespaces of which a collection holds an index, or anything that nobody will take away by himself.
    pub(super) async fn namespaces(
        &self,
        any: &Partition,
        home: &Collection,
        operation: &'static str,
    ) -> Result<Vec<NamespaceId>, StoreError> {
        let points = self.points(any, home);
        let Some(mut known) = self.indexed(any, home, operation).await? else { return Ok(Vec::new()) };
        let mut listed: Vec<NamespaceId> = known.iter().copied().collect();
        loop {
            let page = points.scroll(operation, &wire::strays(any, &known), None, 1).await?;
            let stray = page.and_then(|(list, _)| wire::namespace_of(&list.first()?.payload));
            let Some(stray) = stray.filter(|stray| known.insert(*stray)) else { return Ok(listed) };
            let partition = Partition::new(any.tenant(), stray, any.model().clone());
            if self.ended(&partition, home, operation).await?.is_none_or(|at| self.is_past(at)) {
                listed.push(stray);
            }
        }
    }

    /// When a partition's index was taken away, seconds of Unix time; `None` when there is no mark of that.
    async fn ended(
        &self,
        partition: &Partition,
        home: &Collection,
        operation: &'static str,
    ) -> Result<Option<i64>, StoreError> {
        let id = wire::head_id(partition, home.placement);
        let point = self.points(partition, home).get(operation, &id).await?;
        Ok(point.and_then(|point| wire::ended_at(&point.payload)))
    }

    /// Whether nothing that was sent at this time, seconds of Unix time, can arrive any more.
    fn is_past(&self, at: i64) -> bool {
        at <= self.purge_before()
    }

    /// Deletes whatever is left of a partition that was taken away so long ago that nothing can arrive any more.
    /// `false`: it was not.
    pub(super) async fn clear(
        &self,
        partition: &Partition,
        home: &Collection,
        operation: &'static str,
    ) -> Result<bool, StoreError> {
        let is_over = self.ended(partition, home, operation).await?.is_some_and(|at| self.is_past(at));
        if is_over {
            self.points(partition, home).delete(operation, &wire::everything(partition)).await?;
        }
        Ok(is_over)
    }

    /// Looks for what a rebuild left that was given up: points of a later generation than the one that is served. They
    /// go with the generation after theirs.
    pub(super) async fn look_for_drafts(
        &self,
        partition: &Partition,
        home: &Collection,
        lane: &Lane,
        head: Head,
        operation: &'static str,
    ) -> Result<(), StoreError> {
        if lane.rebuilding.try_lock().is_err() {
            lane.soil(self.purge_time());
            return Ok(());
        }
        let drafts = wire::after(partition, head.stamp.generation);
        let page = self.points(partition, home).scroll(operation, &drafts, None, 1).await?;
        let is_there = page.is_some_and(|(list, _)| !list.is_empty());
        let now = self.now();
        lane.change(|known| {
            known.draft = known.draft.filter(|_| is_there).or_else(|| is_there.then_some(now));
        });
        if is_there {
            // Another server may be writing it.
            lane.soil(self.purge_time());
        }
        Ok(())
    }

    /// Whether there is what a rebuild left that was given up long ago.
    pub(super) fn has_old_draft(&self, lane: &Lane) -> bool {
        lane.known().draft.is_some_and(|since| self.is_past(since))
    }
}
