//! Compares the index of graphs with the record, and writes a namespace's graph anew.
//!
//! What is compared is of one place in the history: the index is brought to the graph that one snapshot of the rows
//! makes, and read between two looks at its head, which has another token after each change. While a graph is compared
//! this server's own projector leaves it alone; when another server changes it, it is compared again, and after some
//! attempts that server waits while it is read.
//!
//! **Invariant:** a write that is under way is never taken for a fault.
//! **Invariant:** nothing is written anew unless that was asked for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use uuid::Uuid;

use super::projector::Place;
use crate::admin::IndexKeeper;
use crate::domain::Seq;
use crate::domain::ids::IdSource;
use crate::retrieval::graph_of_record;
use crate::store::graph::{GraphHead, WholeGraph, Writers};
use crate::store::postgres::examine::{Finding, FindingKind, IndexExamined};
use crate::store::{Corpus, ErrorKind, StoreError};

/// How often a comparison begins anew since another server changed the graph under it; from which on that server waits
/// while it is read.
const ATTEMPTS: usize = 20;
const PATIENT: usize = 4;
/// How often what cannot be read is looked at again, and when: what another server deletes while it is read may be seen
/// half, and only what stays is damage.
const LOOKS: usize = 2;
const LOOK: Duration = Duration::from_millis(200);

/// Namespaces whose graph is being compared or written anew, with by how many. Clones share them.
#[derive(Clone, Default)]
pub struct HeldGraphs(Arc<Mutex<BTreeMap<Place, usize>>>);

/// Holds one until it is dropped.
struct Hold {
    held: HeldGraphs,
    place: Place,
}

impl HeldGraphs {
    /// Whether it is held.
    pub(super) fn has(&self, place: Place) -> bool {
        self.0.lock().contains_key(&place)
    }

    fn hold(&self, place: Place) -> Hold {
        *self.0.lock().entry(place).or_default() += 1;
        Hold { held: self.clone(), place }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.held.0.lock();
        if let Some(by) = held.get_mut(&self.place) {
            *by -= 1;
            if *by == 0 {
                held.remove(&self.place);
            }
        }
    }
}

/// The head of a corpus' graph, made when there is none; `None` without an index.
///
/// # Errors
/// The index's own. After a `Conflict`, a removal that was broken off is ended, and it is to be begun anew.
pub(super) async fn begun(corpus: &Corpus, ids: &dyn IdSource) -> Result<Option<GraphHead>, StoreError> {
    match corpus.graph_begin(ids.uuid()).await {
        Err(error) if error.kind == ErrorKind::Conflict => {
            corpus.graph_remove().await?;
            Err(error)
        }
        begun => begun,
    }
}

/// Compares graphs in an index with the record, and writes them anew. Clones share what they hold.
#[derive(Clone)]
pub struct GraphKeeper {
    ids: Arc<dyn IdSource>,
    write_chunks: usize,
    held: HeldGraphs,
}

impl GraphKeeper {
    /// One that writes so many chunks in a transaction.
    #[must_use]
    pub fn new(ids: Arc<dyn IdSource>, write_chunks: usize) -> Self {
        Self { ids, write_chunks, held: HeldGraphs::default() }
    }

    /// What is held at the moment, for whoever projects graphs.
    #[must_use]
    pub fn held(&self) -> HeldGraphs {
        self.held.clone()
    }

    /// Brings the index to the graph of the rows as they are now: that graph, and the token of what the index holds
    /// then. `None`: the namespace is gone, or there is no index.
    async fn bring(&self, corpus: &Corpus) -> Result<Option<(WholeGraph, Uuid)>, StoreError> {
        let ids = self.ids.as_ref();
        let Some(head) = begun(corpus, ids).await? else { return Ok(None) };
        // After the head: an index that is said to be complete up to the rows' place can hold nothing younger than they.
        let Some(whole) = graph_of_record(corpus).await? else { return Ok(None) };
        if head.seq == Some(whole.seq) {
            return Ok(Some((whole, head.token)));
        }
        let token = corpus.graph_bring(head, &whole, (self.write_chunks, ids)).await?;
        Ok(Some((whole, token)))
    }

    async fn compare(&self, corpus: &Corpus) -> Result<IndexExamined, StoreError> {
        match self.again(corpus, Task::Compare).await {
            Err(error) if error.kind == ErrorKind::Damaged => {
                tracing::warn!(%error, source = ?error.source, "a graph in the index cannot be read");
                let damage = Finding { kind: FindingKind::DamagedGraph, count: 1, repaired: false };
                Ok(IndexExamined { findings: vec![damage], ..IndexExamined::default() })
            }
            compared => Ok(compared?.1),
        }
    }

    /// Removes the graph and writes it from the rows; up to where. Questions are answered from memory meanwhile.
    async fn renew(&self, corpus: &Corpus) -> Result<Seq, StoreError> {
        Ok(self.again(corpus, Task::Renew).await?.0)
    }

    /// Does it with the corpus as it is now, and again when another server changed its graph meanwhile.
    async fn again(&self, corpus: &Corpus, task: Task) -> Result<(Seq, IndexExamined), StoreError> {
        let (mut attempts, mut looks) = (0, 0);
        loop {
            attempts += 1;
            // Its model may have changed, too.
            let Some(now) = self.now(corpus).await? else {
                return Ok((corpus.seq(), IndexExamined::default()));
            };
            let writers = if attempts > PATIENT { Writers::Wait } else { Writers::GoOn };
            let done = match self.once(&now, task, writers).await {
                Err(error) if error.kind == ErrorKind::Conflict && attempts < ATTEMPTS => continue,
                Err(error) if error.kind == ErrorKind::Conflict => {
                    let words = "another server changes it again and again";
                    let late = StoreError::new(ErrorKind::Unavailable, "graph", "graph.keep", words);
                    return Err(late.with_source(error));
                }
                Err(error) if error.kind == ErrorKind::Damaged && looks < LOOKS => {
                    looks += 1;
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                done => done?,
            };
            if self.now(corpus).await?.is_some() {
                return Ok(done);
            }
        }
    }

    /// The corpus as it is now. When it was deleted meanwhile, what was written after its graph was removed would stay.
    async fn now(&self, corpus: &Corpus) -> Result<Option<Corpus>, StoreError> {
        let now = corpus.tenant().corpus_get_by_id(corpus.partition().namespace()).await?;
        if now.is_none() {
            corpus.graph_remove().await?;
        }
        Ok(now)
    }

    async fn once(
        &self,
        corpus: &Corpus,
        task: Task,
        writers: Writers,
    ) -> Result<(Seq, IndexExamined), StoreError> {
        if task == Task::Renew {
            corpus.graph_remove().await?;
        }
        let Some((whole, token)) = self.bring(corpus).await? else {
            return Ok((corpus.seq(), IndexExamined::default()));
        };
        let examined = match task {
            Task::Compare => corpus.graph_compare(&whole, token, writers).await?,
            Task::Renew => IndexExamined::default(),
        };
        Ok((whole.seq, examined))
    }
}

/// What is done with a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Compare,
    Renew,
}

#[async_trait]
impl IndexKeeper for GraphKeeper {
    async fn examine(&self, corpus: &Corpus, repair: bool) -> Result<IndexExamined, StoreError> {
        let _held = self.held.hold((corpus.partition().tenant(), corpus.partition().namespace()));
        let found = self.compare(corpus).await?;
        if !repair || found.findings.is_empty() {
            return Ok(found);
        }
        self.renew(corpus).await?;
        let again = self.compare(corpus).await?;
        let left = |kind| again.findings.iter().any(|left| left.kind == kind);
        let findings = found.findings.iter();
        let findings =
            findings.map(|finding| Finding { repaired: !left(finding.kind), ..*finding }).collect();
        Ok(IndexExamined { findings, ..again })
    }

    async fn rebuild(&self, corpus: &Corpus) -> Result<Seq, StoreError> {
        let _held = self.held.hold((corpus.partition().tenant(), corpus.partition().namespace()));
        self.renew(corpus).await
    }
}
