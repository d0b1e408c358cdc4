//! One search: all questions and the head in one request.

use qdrant_client::qdrant::{
    BatchResult, Condition, DenseVector, Filter, Query, QueryPoints, ScoredPoint, SearchParams, SparseVector,
    VectorInput, WithPayloadSelector, query, vector_input,
};

use super::fault::{BACKEND, damaged, invalid};
use super::index::Inner;
use super::lane::Lane;
use super::registry::Collection;
use super::wire::{self, DENSE, Head, TERMS};
use crate::store::error::{ErrorKind, StoreError};
use crate::store::partition::Partition;
use crate::store::vector::{Found, Hit, VectorQuery};
use crate::store::well_formed;

const OPERATION: &str = "vector.search";
/// How often a search begins anew since another generation is served meanwhile.
const TRIES: usize = 4;

/// What a request was answered.
enum Answer {
    /// From the generation that was asked for.
    Found(Found),
    /// Another generation is served, or none.
    Moved(Option<Head>),
}

impl Inner {
    /// The nearest points of a partition; `None` when it has no index.
    pub(super) async fn find(
        &self,
        partition: &Partition,
        query: &VectorQuery,
    ) -> Result<Option<Found>, StoreError> {
        let lane = self.lanes.lane(partition);
        if lane.known().is_removed {
            return Ok(None);
        }
        let Some(mut home) = self.home(partition).await? else {
            let empty = lane.known().empty;
            return Ok(empty.map(|applied| Found { applied, ..Found::default() }));
        };
        well_formed::query(query, home.dimension).map_err(|words| invalid(OPERATION, words))?;
        let mut head = match lane.known().head {
            Some(head) => Some(head),
            None => self.read_head(partition, &home, &lane, OPERATION).await?,
        };
        for _ in 0..TRIES {
            let Some(served) = head else {
                // Not there, or not there any more: perhaps the tenant was moved.
                match self.served(partition, &lane, OPERATION).await? {
                    (Some(now), Some(at)) => (home, head) = (now, Some(at)),
                    _ => return Ok(None),
                }
                continue;
            };
            match self.ask(partition, &home, &lane, served, query).await? {
                Answer::Found(found) => return Ok(Some(found)),
                Answer::Moved(to) => head = to,
            }
        }
        let words = "generations changed faster than they could be searched";
        Err(StoreError::new(ErrorKind::Unavailable, BACKEND, OPERATION, words))
    }

    async fn ask(
        &self,
        partition: &Partition,
        home: &Collection,
        lane: &Lane,
        served: Head,
        query: &VectorQuery,
    ) -> Result<Answer, StoreError> {
        let filter = self.filter(partition, served.stamp.generation);
        let mut questions = vec![whole_head(partition, home)];
        let dense = query.embedding.as_ref().filter(|_| query.limit > 0).map(|embedding| {
            questions.push(self.nearest(home, &filter, embedding, query.limit));
        });
        let terms = query.terms.as_ref().filter(|terms| query.limit > 0 && !terms.indices.is_empty());
        let lexical = terms.map(|terms| {
            let terms = SparseVector { values: terms.values.clone(), indices: terms.indices.clone() };
            let input = vector_input::Variant::Sparse(terms);
            questions.push(question(home, &filter, TERMS, input, query.limit));
        });
        let Some(answers) = self.points(partition, home).query(OPERATION, &questions).await? else {
            lane.change(|known| known.head = None);
            return Ok(Answer::Moved(None));
        };
        if answers.len() != questions.len() {
            return Err(damaged(OPERATION, "the server did not answer every question"));
        }
        let mut answers = answers.into_iter();
        let now = answers.next().and_then(|answer| answer.result.into_iter().next());
        let now = match now {
            Some(point) => {
                let read = wire::head_of(partition, &point.payload);
                read.map_err(|_| damaged(OPERATION, "the head of the partition cannot be read"))?
            }
            None => None,
        };
        // One that was read earlier than what another call has learnt meanwhile must not take its place.
        lane.change(|known| {
            if now.is_none() || now.map(|head| head.stamp) > known.head.map(|head| head.stamp) {
                known.head = now;
            }
        });
        let Some(now) = now.filter(|now| now.stamp.generation == served.stamp.generation) else {
            return Ok(Answer::Moved(now));
        };
        // What was applied meanwhile may be missed; what was lost meanwhile too.
        let mut found = Found { applied: served.stamp.seq.min(now.stamp.seq), ..Found::default() };
        if dense.is_some() {
            found.dense = hits(answers.next())?;
        }
        if lexical.is_some() {
            found.lexical = hits(answers.next())?;
            found.lexical.retain(|hit| hit.score > 0.0);
        }
        Ok(Answer::Found(found))
    }

    fn nearest(&self, home: &Collection, filter: &Filter, embedding: &[f32], limit: usize) -> QueryPoints {
        let input = vector_input::Variant::Dense(DenseVector { data: embedding.to_vec() });
        let candidates = u64::try_from(self.hnsw_candidates.max(limit)).unwrap_or(u64::MAX);
        let params = SearchParams { hnsw_ef: Some(candidates), ..SearchParams::default() };
        QueryPoints { params: Some(params), ..question(home, filter, DENSE, input, limit) }
    }

    #[cfg_attr(
        not(any(test, feature = "laboratory")),
        expect(clippy::unused_self, reason = "the laboratory can switch the filter off")
    )]
    fn filter(&self, partition: &Partition, generation: i64) -> Filter {
        #[cfg(any(test, feature = "laboratory"))]
        if self.filter_off.load(std::sync::atomic::Ordering::Relaxed) {
            return Filter::must([Condition::is_empty(wire::KIND)]);
        }
        wire::served(partition, generation)
    }
}

fn question(
    home: &Collection,
    filter: &Filter,
    using: &str,
    input: vector_input::Variant,
    limit: usize,
) -> QueryPoints {
    let nearest = query::Variant::Nearest(VectorInput { variant: Some(input) });
    QueryPoints {
        collection_name: home.name.as_str().to_owned(),
        query: Some(Query { variant: Some(nearest) }),
        using: Some(using.to_owned()),
        filter: Some(filter.clone()),
        limit: Some(u64::try_from(limit).unwrap_or(u64::MAX)),
        with_payload: Some(WithPayloadSelector::from(true)),
        ..QueryPoints::default()
    }
}

/// The partition's head, whatever it says.
fn whole_head(partition: &Partition, home: &Collection) -> QueryPoints {
    let mut must = wire::of_namespace(partition);
    must.push(Condition::has_id([wire::head_id(partition, home.placement)]));
    QueryPoints {
        collection_name: home.name.as_str().to_owned(),
        filter: Some(Filter::must(must)),
        limit: Some(1),
        with_payload: Some(WithPayloadSelector::from(true)),
        ..QueryPoints::default()
    }
}

/// Best first; equal ones by id.
fn hits(answer: Option<BatchResult>) -> Result<Vec<Hit>, StoreError> {
    let read = |point: &ScoredPoint| {
        let hit = wire::read_hit(point.id.as_ref(), &point.payload, point.score);
        hit.ok_or_else(|| damaged(OPERATION, "a point without a readable tag"))
    };
    let points = answer.map(|answer| answer.result).unwrap_or_default();
    let mut hits = points.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.chunk.cmp(&b.chunk)));
    Ok(hits)
}
