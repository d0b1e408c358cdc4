//! How what is in Qdrant goes: a partition from its collection, a tenant from a collection, and a collection of a
//! tenant's own with it.
//!
//! What comes late must find something in its way, so in a shared collection a mark stays in the place of each head
//! that is gone, for as long as the token of a late write could be valid. The registry names the collection until
//! nothing of the tenant is in it; whoever sweeps comes by until then.
//!
//! **Invariant:** what goes from a shared collection is of one tenant and of generations before a number that was drawn
//! while the tenant had left it: a tenant that comes back meanwhile has later ones, and loses nothing.

use uuid::Uuid;

use super::index::Inner;
use super::registry::{Collection, Hold, Registered, State};
use super::wire::{self, Head, Stamp};
use crate::domain::Seq;
use crate::domain::ids::{ModelId, NamespaceId, TenantId};
use crate::store::error::StoreError;
use crate::store::partition::Partition;
use crate::store::placement::Placement;

/// How long a collection may be written by a move before it is taken for one that was given up, seconds.
const LONGEST_MOVE_SECONDS: i64 = 86_400;

/// What stands for a tenant and model where no namespace is meant: one that is never there.
pub(super) fn nobody(tenant: TenantId, model: &ModelId) -> Partition {
    Partition::new(tenant, NamespaceId(Uuid::nil()), model.clone())
}

impl Inner {
    /// Takes a partition away, and its tenant from the collection when it was the last one in it.
    pub(super) async fn take_away(
        &self,
        partition: &Partition,
        for_good: bool,
        operation: &'static str,
    ) -> Result<(), StoreError> {
        let lane = self.lanes.lane(partition);
        let _writer = lane.writer.lock().await;
        lane.change(|known| {
            known.is_removed |= for_good;
            (known.head, known.empty, known.reached) = (None, None, Seq(0));
        });
        let life = self.lanes.life(partition);
        let _life = life.write().await;
        if partition.namespace().0.is_nil() {
            self.clear_all(partition, operation).await?;
        }
        // Not as it is remembered: the tenant may have been moved.
        let Some(home) = self.registry.get(partition).await? else { return Ok(()) };
        if !partition.namespace().0.is_nil() && !self.clear(partition, &home, operation).await? {
            let served = self.read_head(partition, &home, &lane, operation).await?;
            lane.change(|known| known.head = None);
            let Some(generation) = self.next_generation(partition, &home, served, operation).await? else {
                return Ok(());
            };
            self.mark(partition, &home, generation, operation).await?;
            self.points(partition, &home).delete(operation, &wire::before(partition, generation)).await?;
        }
        // In one that others use too, the pages of a first index that is being written have no head yet. A collection of
        // the tenant's own goes as a whole, and whoever writes it finds it gone.
        let is_last = match home.placement {
            Placement::Own => {
                self.indexed(partition, &home, operation).await?.is_none_or(|held| held.is_empty())
            }
            Placement::Shared => self.written(partition, &home, operation).await?.is_empty(),
        };
        if is_last && self.registry.leave(partition, &home.name, self.hold).await? {
            self.forget_home(partition, &home);
            self.clear_out(partition, &home, operation).await?;
        }
        Ok(())
    }

    /// What comes late for the partition finds this, and what has an earlier generation goes.
    async fn mark(
        &self,
        partition: &Partition,
        home: &Collection,
        generation: i64,
        operation: &'static str,
    ) -> Result<(), StoreError> {
        let head = Head { stamp: Stamp { generation, seq: Seq(0) }, at: self.now() };
        let mark = [wire::head(partition, home.placement, head, false)];
        self.points(partition, home).upsert(operation, partition, &mark, head.stamp).await?;
        Ok(())
    }

    /// Removes what the tenant has in a collection that it has left, as far as it can go by now. Nothing, when it has
    /// come back.
    pub(super) async fn clear_out(
        &self,
        any: &Partition,
        left: &Collection,
        operation: &'static str,
    ) -> Result<(), StoreError> {
        let Some(generation) = self.registry.last_generation(any, &left.name).await? else { return Ok(()) };
        if left.placement == Placement::Own {
            self.provisioner.delete(any.tenant(), &left.name).await?;
            self.forget_home(any, left);
            return self.registry.forget(any, &left.name).await;
        }
        let (tenant, points) = (any.tenant(), self.points(any, left));
        // Those too of which a first index is being written: its head comes late, and must not be taken.
        for namespace in self.written(any, left, operation).await? {
            let of = Partition::new(tenant, namespace, any.model().clone());
            self.mark(&of, left, generation, operation).await?;
        }
        points.delete(operation, &wire::of_tenant_before(tenant, generation)).await?;
        points.delete(operation, &wire::of_tenant_gone_before(tenant, self.purge_before())).await?;
        let still = points.scroll(operation, &wire::of_tenant(tenant), None, 1).await?;
        if still.is_none_or(|(points, _)| points.is_empty()) {
            self.registry.forget(any, &left.name).await?;
        }
        Ok(())
    }

    /// The same for a collection that is not served, unless a move has taken it up or served it since it was listed.
    pub(super) async fn clear_listed(
        &self,
        nobody: &Partition,
        row: &Registered,
        operation: &'static str,
    ) -> Result<(), StoreError> {
        let is_left = match row.hold() {
            None => true,
            Some(Hold::Served) => false,
            Some(hold) => self.registry.leave(nobody, &row.collection.name, hold).await?,
        };
        if is_left { self.clear_out(nobody, &row.collection, operation).await } else { Ok(()) }
    }

    /// The same for every collection of this tenant and model whose time has come.
    async fn clear_all(&self, nobody: &Partition, operation: &'static str) -> Result<(), StoreError> {
        let rows = self.registry.list(nobody.tenant()).await?;
        for row in rows.iter().filter(|row| row.model == *nobody.model() && self.is_due(row, &rows)) {
            self.clear_listed(nobody, row, operation).await?;
        }
        Ok(())
    }

    /// Whether there is something to remove by now: of what was left, its marks; of what a move was writing, all of
    /// it, when that was given up or there is nothing that it could take the place of.
    fn is_due(&self, row: &Registered, rows: &[Registered]) -> bool {
        let age = self.now().saturating_sub(row.since);
        let is_served = |of: &ModelId| rows.iter().any(|row| row.model == *of && row.state == State::Served);
        match row.state {
            State::Served => false,
            State::Written => age >= LONGEST_MOVE_SECONDS || !is_served(&row.model),
            State::Left => row.collection.placement == Placement::Own || age >= self.purge_after(),
        }
    }

    /// The tenant's partitions in every collection that is served. What is nobody's goes with a namespace that is never
    /// there: what a crash left without a head or a collection, and what was left and can go by now.
    pub(super) async fn partitions(
        &self,
        tenant: TenantId,
        operation: &'static str,
    ) -> Result<Vec<Partition>, StoreError> {
        let (mut partitions, rows) = (Vec::new(), self.registry.list(tenant).await?);
        for row in &rows {
            let nobody = nobody(tenant, &row.model);
            let is_stray = if row.state == State::Served {
                let namespaces = self.namespaces(&nobody, &row.collection, operation).await?;
                let of = |namespace| Partition::new(tenant, namespace, row.model.clone());
                partitions.extend(namespaces.iter().copied().map(of));
                namespaces.is_empty()
            } else {
                self.is_due(row, &rows)
            };
            if is_stray && !partitions.contains(&nobody) {
                partitions.push(nobody);
            }
        }
        Ok(partitions)
    }
}
