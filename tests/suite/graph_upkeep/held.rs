//! An index of graphs that keeps what it is told, and fails as it is told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bulkhead::domain::Seq;
use bulkhead::domain::ids::{ChunkId, NamespaceId, TenantId};
use bulkhead::store::graph::{
    GraphBounds, GraphChange, GraphContents, GraphHead, GraphIndex, GraphLoaded, GraphWanted, Writers,
};
use bulkhead::store::{ErrorKind, Partition, StoreError};
use parking_lot::Mutex;
use uuid::Uuid;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The deadline passes.
    Timeout,
    /// It never ends.
    Hangs,
}

/// A head, and the marks of chunks.
type HeldGraph = (GraphHead, HashMap<ChunkId, i64>);

/// Graphs by tenant and namespace.
#[derive(Default)]
pub struct Held {
    graphs: Mutex<BTreeMap<(TenantId, NamespaceId), HeldGraph>>,
    /// Whose changes fail.
    pub broken: Mutex<BTreeMap<TenantId, Fault>>,
    /// Whose relations cannot be counted.
    pub uncountable: Mutex<BTreeSet<TenantId>>,
    /// Whose relations lead out.
    pub leaky: Mutex<BTreeSet<TenantId>>,
    /// It refuses whoever calls.
    pub is_left_alone: AtomicBool,
    /// Calls, by the tenant that they are of.
    calls: Mutex<Vec<(&'static str, Option<TenantId>)>>,
}

impl Held {
    /// Notes a call, and refuses it while all are.
    fn called(&self, operation: &'static str, tenant: Option<TenantId>) -> Result<(), StoreError> {
        self.calls.lock().push((operation, tenant));
        if self.is_left_alone.load(Ordering::Relaxed) {
            return Err(StoreError::new(ErrorKind::Unavailable, "held", operation, "left alone"));
        }
        Ok(())
    }

    /// How often it was called so, of this tenant.
    pub fn calls(&self, operation: &str, tenant: Option<TenantId>) -> usize {
        self.calls.lock().iter().filter(|call| call.0 == operation && call.1 == tenant).count()
    }

    /// How often it was called.
    pub fn all_calls(&self) -> usize {
        self.calls.lock().len()
    }

    /// How far a graph is complete.
    pub fn seq(&self, partition: &Partition) -> Option<Seq> {
        self.graphs.lock().get(&(partition.tenant(), partition.namespace())).and_then(|graph| graph.0.seq)
    }

    /// A graph of a namespace that nobody knows.
    pub fn leave(&self, tenant: TenantId, namespace: NamespaceId) {
        let head = GraphHead { seq: Some(Seq(1)), chunks: 0, token: Uuid::nil() };
        self.graphs.lock().insert((tenant, namespace), (head, HashMap::new()));
    }
}

fn of(partition: &Partition) -> (TenantId, NamespaceId) {
    (partition.tenant(), partition.namespace())
}

fn fault(kind: ErrorKind, operation: &'static str) -> StoreError {
    StoreError::new(kind, "held", operation, "as told")
}

#[async_trait]
impl GraphIndex for Held {
    fn name(&self) -> &'static str {
        "held"
    }

    fn is_left_alone(&self) -> bool {
        self.is_left_alone.load(Ordering::Relaxed)
    }

    async fn head(&self, partition: &Partition) -> Result<Option<GraphHead>, StoreError> {
        self.called("head", Some(partition.tenant()))?;
        Ok(self.graphs.lock().get(&of(partition)).map(|graph| graph.0))
    }

    async fn load(
        &self,
        partition: &Partition,
        _wanted: &GraphWanted,
        _bounds: GraphBounds,
    ) -> Result<GraphLoaded, StoreError> {
        self.called("load", Some(partition.tenant()))?;
        Err(fault(ErrorKind::Unavailable, "load"))
    }

    async fn top(&self, partition: &Partition, _limit: usize) -> Result<Vec<(u64, u64)>, StoreError> {
        self.called("top", Some(partition.tenant()))?;
        Err(fault(ErrorKind::Unavailable, "top"))
    }

    async fn marks(&self, partition: &Partition) -> Result<HashMap<ChunkId, i64>, StoreError> {
        self.called("marks", Some(partition.tenant()))?;
        Ok(self.graphs.lock().get(&of(partition)).map(|graph| graph.1.clone()).unwrap_or_default())
    }

    async fn begin(&self, partition: &Partition, token: Uuid) -> Result<GraphHead, StoreError> {
        self.called("begin", Some(partition.tenant()))?;
        let fresh = || (GraphHead { seq: Some(Seq(0)), chunks: 0, token }, HashMap::new());
        Ok(self.graphs.lock().entry(of(partition)).or_insert_with(fresh).0)
    }

    async fn apply(&self, partition: &Partition, change: &GraphChange) -> Result<(), StoreError> {
        self.called("apply", Some(partition.tenant()))?;
        let broken = self.broken.lock().get(&partition.tenant()).copied();
        match broken {
            Some(Fault::Timeout) => return Err(fault(ErrorKind::Timeout, "apply")),
            Some(Fault::Hangs) => std::future::pending().await,
            None => {}
        }
        let mut graphs = self.graphs.lock();
        let graph = graphs.get_mut(&of(partition)).filter(|graph| graph.0.token == change.from);
        let (head, marks) = graph.ok_or_else(|| fault(ErrorKind::Conflict, "apply"))?;
        marks.retain(|chunk, _| !change.removed.contains(chunk));
        marks.extend(change.added.iter().map(|chunk| (chunk.chunk, chunk.mark())));
        *head = GraphHead { seq: change.seq, chunks: change.chunks, token: change.to };
        Ok(())
    }

    async fn strays(&self, partition: &Partition) -> Result<u64, StoreError> {
        self.called("strays", Some(partition.tenant()))?;
        if self.uncountable.lock().contains(&partition.tenant()) {
            return Err(fault(ErrorKind::Timeout, "strays"));
        }
        Ok(u64::from(self.leaky.lock().contains(&partition.tenant())))
    }

    async fn contents(
        &self,
        partition: &Partition,
        _token: Uuid,
        _writers: Writers,
    ) -> Result<GraphContents, StoreError> {
        self.called("contents", Some(partition.tenant()))?;
        Err(fault(ErrorKind::Unavailable, "contents"))
    }

    async fn remove(&self, tenant: TenantId, namespace: NamespaceId) -> Result<u64, StoreError> {
        self.called("remove", Some(tenant))?;
        let gone = self.graphs.lock().remove(&(tenant, namespace));
        Ok(gone.map_or(0, |(_, marks)| marks.len() as u64 + 1))
    }

    async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        self.called("tenants", None)?;
        let tenants: BTreeSet<TenantId> = self.graphs.lock().keys().map(|place| place.0).collect();
        Ok(tenants.into_iter().collect())
    }

    async fn namespaces(&self, tenant: TenantId) -> Result<Vec<NamespaceId>, StoreError> {
        self.called("namespaces", Some(tenant))?;
        let graphs = self.graphs.lock();
        Ok(graphs.keys().filter(|place| place.0 == tenant).map(|place| place.1).collect())
    }
}
