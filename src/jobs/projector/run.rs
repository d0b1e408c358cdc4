//! One run: catch up, rebuild if need be, make durable when it is time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::lane::{Lane, State};
use super::source::Projected;
use super::{Inner, Order, Place};
use crate::config::crash_point;
use crate::domain::Seq;
use crate::store::postgres::examine::{Finding, FindingKind, IndexExamined};
use crate::store::postgres::projection::History;
use crate::store::{Corpus, ErrorKind, StoreError};
use crate::tenancy::reauthorise;

const OPERATION: &str = "partition.project";

/// How far following the history led.
enum Followed {
    /// To its end.
    End(Seq),
    /// The index has to be written anew.
    Broken,
}

fn stopping() -> StoreError {
    StoreError::new(ErrorKind::Unavailable, "projector", OPERATION, "stopping")
}

impl Inner {
    /// A run that somebody waits for. Also tells whether the index wants to be written anew, which is left to
    /// the background.
    #[tracing::instrument(name = "jobs.project", level = "error", skip_all, fields(tenant = %corpus.partition().tenant()))]
    pub(super) async fn project(&self, corpus: &dyn Projected) -> (Result<Seq, StoreError>, bool) {
        let lane = self.lane(super::place_of(corpus.partition()));
        let ticket = lane.ticket();
        let mut state = lane.state.lock().await;
        if let Some(shared) = state.shared(ticket) {
            return (shared, false);
        }
        let share = self.share(corpus.partition().tenant());
        let _places = match self.places(&share).await {
            Ok(places) => places,
            Err(error) => return (Err(error), false),
        };
        let result = self.run(&lane, &mut state, corpus, Order::CATCH_UP).await;
        let wants_upkeep = result.is_ok() && corpus.index_wants_rebuild().await;
        (result, wants_upkeep)
    }

    /// A run that compares the index with the rows, and writes it anew when they differ and it is asked to.
    pub(super) async fn examine(&self, corpus: &Corpus, repair: bool) -> Result<IndexExamined, StoreError> {
        let lane = self.lane(super::place_of(corpus.partition()));
        let mut state = lane.state.lock().await;
        let share = self.share(corpus.partition().tenant());
        let _places = self.places(&share).await?;
        let run = lane.begin();
        let examined = self.examine_in(&lane, &mut state, corpus, repair).await;
        let result = examined.as_ref().map(|(seq, _)| *seq).map_err(StoreError::retold);
        self.ended(&lane, &mut state, run, super::place_of(corpus.partition()), &result);
        examined.map(|(_, examined)| examined)
    }

    async fn examine_in(
        &self,
        lane: &Lane,
        state: &mut State,
        corpus: &Corpus,
        repair: bool,
    ) -> Result<(Seq, IndexExamined), StoreError> {
        let seq = self.catch_up(lane, state, corpus).await?;
        let found = match corpus.index_examine().await {
            Err(error) if error.kind == ErrorKind::Damaged => {
                tracing::warn!(%error, source = ?error.source, "a vector index cannot be read");
                let damage = Finding { kind: FindingKind::DamagedIndex, count: 1, repaired: false };
                IndexExamined { findings: vec![damage], ..IndexExamined::default() }
            }
            examined => examined?,
        };
        if !repair || found.findings.is_empty() {
            return Ok((seq, found));
        }
        self.rebuild(lane, state, corpus).await?;
        let seq = self.catch_up(lane, state, corpus).await?;
        let again = corpus.index_examine().await?;
        let repaired = |finding: &Finding| !again.findings.iter().any(|left| left.kind == finding.kind);
        let findings = found
            .findings
            .iter()
            .map(|finding| Finding { repaired: repaired(finding), ..*finding })
            .collect();
        Ok((seq, IndexExamined { findings, ..again }))
    }

    /// A run that writes the index anew, whatever it is like.
    pub(super) async fn renew(&self, corpus: &Corpus) -> Result<Seq, StoreError> {
        let lane = self.lane(super::place_of(corpus.partition()));
        let mut state = lane.state.lock().await;
        let share = self.share(corpus.partition().tenant());
        let _places = self.places(&share).await?;
        let run = lane.begin();
        let result = match self.rebuild(&lane, &mut state, corpus).await {
            Ok(()) => self.catch_up(&lane, &mut state, corpus).await,
            Err(error) => Err(error),
        };
        self.ended(&lane, &mut state, run, super::place_of(corpus.partition()), &result);
        result
    }

    /// A run that nobody waits for: looks the tenant up again, opens the namespace and projects it.
    #[tracing::instrument(name = "jobs.project", level = "error", skip_all, fields(tenant = %place.0))]
    pub(super) async fn background(&self, place: Place, order: Order) {
        let lane = self.lane(place);
        let mut state = lane.state.lock().await;
        // From here on a kick is for the next run.
        let order = self.take_order(place).unwrap_or_default().and(order);
        if lane.rests(self.clock.instant()) {
            return;
        }
        let share = self.share(place.0);
        let Ok(_places) = self.places(&share).await else { return };
        match self.open(place).await {
            // Looked at without opening the index.
            Ok(Some(corpus)) if !order.catch_up && !order.flush && !corpus.index_wants_rebuild().await => {}
            // A run logs its own failures.
            Ok(Some(corpus)) => drop(self.run(&lane, &mut state, corpus.as_ref(), order).await),
            // Suspended, deleted, or the namespace is gone, whose index goes with it.
            Ok(None) => lane.clean(),
            Err(error) => {
                let run = lane.begin();
                self.ended(&lane, &mut state, run, place, &Err(error));
            }
        }
    }

    /// A place of the tenant's, then one of the server's.
    async fn places<'a>(
        &'a self,
        share: &'a Arc<tokio::sync::Semaphore>,
    ) -> Result<(tokio::sync::SemaphorePermit<'a>, tokio::sync::SemaphorePermit<'a>), StoreError> {
        let own = share.acquire().await.map_err(|_| stopping())?;
        Ok((own, self.places.acquire().await.map_err(|_| stopping())?))
    }

    async fn open(&self, (tenant, namespace): Place) -> Result<Option<Arc<dyn Projected>>, StoreError> {
        let permit = reauthorise(self.directory.as_ref(), tenant, "projection").await.map_err(|error| {
            StoreError::new(ErrorKind::Unavailable, "projector", OPERATION, "the directory is away")
                .with_source(error)
        })?;
        match permit {
            Some(permit) => self.source.open(&permit, namespace).await,
            None => Ok(None),
        }
    }

    async fn run(
        &self,
        lane: &Lane,
        state: &mut State,
        corpus: &dyn Projected,
        order: Order,
    ) -> Result<Seq, StoreError> {
        let run = lane.begin();
        let result = self.carry_out(lane, state, corpus, order).await;
        self.ended(lane, state, run, super::place_of(corpus.partition()), &result);
        result
    }

    fn ended(
        &self,
        lane: &Lane,
        state: &mut State,
        run: u64,
        place: Place,
        result: &Result<Seq, StoreError>,
    ) {
        let rest = (
            Duration::from_millis(self.settings.rest_ms),
            Duration::from_millis(self.settings.longest_rest_ms),
        );
        let pause = lane.end(state, run, result, self.clock.instant(), rest);
        let Err(error) = result else { return };
        if self.stopping.is_cancelled() {
            return;
        }
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        let (tenant, namespace) = place;
        tracing::warn!(%tenant, %namespace, %error, source = ?error.source, ?pause, "a vector index is behind");
    }

    async fn carry_out(
        &self,
        lane: &Lane,
        state: &mut State,
        corpus: &dyn Projected,
        order: Order,
    ) -> Result<Seq, StoreError> {
        if self.stopping.is_cancelled() {
            if order.flush {
                self.make_durable(lane, state, corpus).await?;
            }
            return Err(stopping());
        }
        let mut seq = self.catch_up(lane, state, corpus).await?;
        if order.upkeep && corpus.index_wants_rebuild().await {
            self.rebuild(lane, state, corpus).await?;
            seq = self.catch_up(lane, state, corpus).await?;
        }
        if order.flush || state.unflushed >= self.settings.flush_points {
            self.make_durable(lane, state, corpus).await?;
        }
        Ok(seq)
    }

    /// Follows the history to its end; when that cannot be, writes the index anew, once, and follows from there.
    async fn catch_up(
        &self,
        lane: &Lane,
        state: &mut State,
        corpus: &dyn Projected,
    ) -> Result<Seq, StoreError> {
        match self.follow(lane, state, corpus).await {
            Ok(Followed::End(seq)) => return Ok(seq),
            Ok(Followed::Broken) => {}
            Err(error) if error.kind == ErrorKind::Damaged => {
                tracing::warn!(%error, source = ?error.source, "a vector index is damaged and written anew");
            }
            Err(error) => return Err(error),
        }
        self.rebuild(lane, state, corpus).await?;
        match self.follow(lane, state, corpus).await? {
            Followed::End(seq) => Ok(seq),
            Followed::Broken => {
                let words = "the history is broken behind a new index";
                Err(StoreError::new(ErrorKind::Conflict, "projector", OPERATION, words))
            }
        }
    }

    async fn follow(
        &self,
        lane: &Lane,
        state: &mut State,
        corpus: &dyn Projected,
    ) -> Result<Followed, StoreError> {
        let page = i64::try_from(self.settings.page).unwrap_or(i64::MAX);
        let position = corpus.index_position().await?;
        let mut since = position.map_or(Seq(0), |position| position.applied);
        loop {
            let changes = match corpus.history(since, page).await? {
                History::Changes(changes) if changes.through == since => return Ok(Followed::End(since)),
                History::Changes(changes) => changes,
                History::Broken => return Ok(Followed::Broken),
                History::Gone => {
                    // Deleted while it was projected: what was applied after the deletion removed the index
                    // would stay forever.
                    corpus.index_forget().await?;
                    state.unflushed = 0;
                    lane.clean();
                    return Ok(Followed::End(since));
                }
            };
            if self.stopping.is_cancelled() {
                return Err(stopping());
            }
            let points = (changes.added.len() + changes.removed.len()) as u64;
            since = changes.through;
            lane.soil(self.clock.instant());
            crash_point("not-yet-applied");
            corpus.index_apply(changes).await?;
            crash_point("applied");
            self.counters.points.fetch_add(points, Ordering::Relaxed);
            // An empty transaction moves the position, which is worth keeping too.
            state.unflushed += points.max(1);
            if state.unflushed >= self.settings.flush_points {
                // It asks for the position: an index that went back meanwhile takes that for known from here on.
                since = self.make_durable(lane, state, corpus).await?;
            }
        }
    }

    async fn rebuild(
        &self,
        lane: &Lane,
        state: &mut State,
        corpus: &dyn Projected,
    ) -> Result<(), StoreError> {
        let page = i64::try_from(self.settings.page).unwrap_or(i64::MAX);
        // Left unfinished, a new generation leaves nothing behind.
        let from = tokio::select! {
            biased;
            () = self.stopping.cancelled() => return Err(stopping()),
            from = corpus.index_rebuild(&self.consumer, page) => from?,
        };
        // Finishing made it durable.
        state.unflushed = 0;
        lane.clean();
        self.counters.rebuilds.fetch_add(1, Ordering::Relaxed);
        let partition = corpus.partition();
        let (tenant, namespace) = (partition.tenant(), partition.namespace());
        tracing::info!(%tenant, %namespace, %from, "a vector index was written anew");
        Ok(())
    }

    /// Makes durable what was applied, and returns how far the index has come; 0 when there is none.
    async fn make_durable(
        &self,
        lane: &Lane,
        state: &mut State,
        corpus: &dyn Projected,
    ) -> Result<Seq, StoreError> {
        let Some(position) = corpus.index_position().await? else {
            lane.clean();
            return Ok(Seq(0));
        };
        corpus.index_flush(&self.consumer).await?;
        state.unflushed = 0;
        lane.clean();
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(position.applied)
    }
}
