//! Vectors in a Qdrant server: the conformance of every vector index, and what is its own: tokens, tags, names, what
//! comes late, and what an outage leaves.
//!
//! Over a stand-in, unless `QDRANT_URL` names a server (with its API key in `QDRANT_API_KEY`).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod isolation;
mod outages;
mod registry;
mod shared;
pub mod site;

use std::sync::Arc;
use std::time::Duration;

use bulkhead::domain::Seq;
use bulkhead::domain::clock::SystemClock;
use bulkhead::store::error::ErrorKind;
use bulkhead::store::qdrant_edge::{EdgeIndex, EdgeSettings};
use bulkhead::store::vector::{Found, VectorIndex, VectorQuery};
use tempfile::TempDir;

use super::conformance_vectors::{
    self as suite, chunk, chunks, dense, find, lexical, partition, point, point_with, unit,
};
use crate::qdrant_stand_in::VERSION;
use site::Site;

macro_rules! conformance {
    ($($behaviour:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $behaviour() {
            let site = Site::new();
            let index = site.index();
            suite::$behaviour(&index).await;
            site.clear(&index).await;
        }
    )*};
}

mod conformance {
    use super::*;

    suite::every_behaviour!(conformance);
}

/// Numbers that look random, the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// A whole number below 8.
    fn weight(&mut self) -> f32 {
        f32::from(u8::try_from(self.below(8)).unwrap())
    }
}

/// Which of several hits with the last score are cut off by the limit is not settled; all else is.
fn assert_same(one: &Found, other: &Found) {
    assert_eq!(one.applied, other.applied);
    for (ours, theirs) in [(&one.dense, &other.dense), (&one.lexical, &other.lexical)] {
        assert_eq!(ours.len(), theirs.len());
        let last = theirs.last().map_or(0.0, |hit| hit.score);
        for (ours, theirs) in std::iter::zip(ours, theirs) {
            assert!((ours.score - theirs.score).abs() < 1e-5, "{ours:?}\n{theirs:?}");
            assert_eq!((ours.tenant, ours.namespace), (theirs.tenant, theirs.namespace));
            if theirs.score > last + 1e-5 {
                assert_eq!((ours.chunk, ours.version), (theirs.chunk, theirs.version));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_and_scores_are_those_of_the_shards() {
    let site = Site::new();
    let (folder, own) = (TempDir::new().unwrap(), partition(1, 1));
    let index = site.index();
    let shards =
        EdgeIndex::new(folder.path().to_owned(), EdgeSettings::default(), Arc::new(SystemClock)).unwrap();
    let mut dice = Dice(0x5EED_CAFE);
    for seq in 1..=12 {
        let points: Vec<_> = (0..40)
            .map(|_| {
                let mut terms = Vec::new();
                for term in 0..6 {
                    if dice.below(2) == 0 {
                        terms.push((term, 0.5 + dice.weight()));
                    }
                }
                point_with(1 + u128::from(dice.below(300)), seq, &terms)
            })
            .collect();
        // A chunk once in a change, as the record has it.
        let mut points = points;
        points.sort_by_key(|point| point.chunk);
        points.dedup_by_key(|point| point.chunk);
        let gone: Vec<_> = (0..8).map(|_| chunk(1 + u128::from(dice.below(300)))).collect();
        for each in [&index as &dyn VectorIndex, &shards] {
            each.apply(&own, points.clone(), gone.clone(), Seq(seq)).await.unwrap();
        }
        // Neighbours, which change nothing.
        let neighbours = (0..20).map(|_| point(1 + u128::from(dice.below(300)))).collect();
        index.apply(&partition(1, 2), neighbours, vec![], Seq(seq)).await.unwrap();
        for _ in 0..5 {
            let terms: Vec<(u32, f32)> = (0..6).map(|term| (term, 0.25 + dice.weight())).collect();
            let terms = lexical(&terms, 0).terms;
            let embedding = Some(unit(u128::from(dice.below(5_000))));
            let query = VectorQuery { embedding, terms, limit: 1 + usize::try_from(dice.below(40)).unwrap() };
            assert_same(&find(&index, &own, &query).await, &find(&shards, &own, &query).await);
        }
    }
    let listed = index.entries(&own, None, 1_000).await.unwrap();
    assert_eq!(listed, shards.entries(&own, None, 1_000).await.unwrap());
    site.clear(&index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_are_equal_with_and_without_a_neighbour() {
    let site = Site::new();
    let index = site.index();
    let own = partition(1, 1);
    index.apply(&own, (1..=60).map(point).collect(), vec![], Seq(1)).await.unwrap();
    let query = VectorQuery { terms: Some(point(3).terms), ..dense(7, 100) };
    let alone = find(&index, &own, &query).await;
    // In the same collection, and in another.
    for neighbour in [partition(1, 2), partition(2, 1)] {
        let points = (1..=200).map(|n| point_with(n, 1, &[(5, 3.0), (13, 4.0)])).collect();
        index.apply(&neighbour, points, vec![], Seq(1)).await.unwrap();
    }
    assert_eq!(find(&index, &own, &query).await, alone);
    site.clear(&index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_of_a_tenant_share_a_collection_and_the_last_takes_it_along() {
    let site = Site::new();
    let index = site.index();
    let (first, second, other) = (partition(1, 1), partition(1, 2), partition(2, 1));
    for each in [&first, &second, &other] {
        index.apply(each, vec![point(1)], vec![], Seq(1)).await.unwrap();
    }
    let name = index.laboratory_collection(&first).await.unwrap();
    assert_eq!(name, index.laboratory_collection(&second).await.unwrap());
    assert_ne!(name, index.laboratory_collection(&other).await.unwrap());
    let mut partitions = index.partitions(first.tenant()).await.unwrap();
    partitions.sort_by_key(bulkhead::store::Partition::namespace);
    assert_eq!(partitions, [first.clone(), second.clone()]);

    index.remove(&first).await.unwrap();
    assert!(site.collections().await.contains(&name));
    assert_eq!(chunks(&index, &second).await, [1]);
    index.retire(&second).await.unwrap();
    assert!(!site.collections().await.contains(&name));
    assert_eq!(index.tenants().await.unwrap(), [other.tenant()]);

    index.apply(&second, vec![point(2)], vec![], Seq(2)).await.unwrap();
    assert_ne!(index.laboratory_collection(&second).await.unwrap(), name, "what was late finds nothing");
    assert_eq!(chunks(&index, &second).await, [2]);
    site.clear(&index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_late_brings_nothing_back_and_replaces_nothing() {
    let site = Site::new();
    let index = site.index();
    let own = partition(1, 1);
    index.apply(&own, vec![point(1), point(2)], vec![], Seq(3)).await.unwrap();
    index.apply(&own, vec![point_with(2, 2, &[(8, 1.0)])], vec![chunk(1), chunk(3)], Seq(5)).await.unwrap();
    // Of chunks that were deleted, one of them before it ever came, and of one that was replaced.
    for number in 1..=3 {
        index.laboratory_late(&own, point(number), Seq(4)).await.unwrap();
    }
    assert_eq!(chunks(&index, &own).await, [2]);
    assert_eq!(find(&index, &own, &dense(2, 1)).await.dense[0].version, 2);
    site.clear(&index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_and_old_generations_go_when_nothing_can_be_late_any_more() {
    let site = Site::new();
    let index = site.index();
    let own = partition(1, 1);
    index.apply(&own, (1..=10).map(point).collect(), vec![], Seq(1)).await.unwrap();
    index.apply(&own, vec![], (1..=4).map(chunk).collect(), Seq(2)).await.unwrap();
    let name = index.laboratory_collection(&own).await.unwrap();
    let count = async || site.points(&name).await.len();
    index.flush(&own).await.unwrap();
    assert_eq!(count().await, 11, "six points, four marks, one head");
    site.clock.advance(Duration::from_secs(601));
    assert_eq!(index.flush(&own).await.unwrap(), Seq(2));
    assert_eq!(count().await, 7);

    let mut rebuild = index.rebuild(&own).await.unwrap();
    rebuild.add((5..=10).map(point).collect()).await.unwrap();
    rebuild.finish(Seq(2)).await.unwrap();
    assert!(!index.wants_rebuild(&own).await);
    assert_eq!(count().await, 13, "searches that are under way still read the old generation");
    site.clock.advance(Duration::from_secs(601));
    assert!(!index.wants_rebuild(&own).await);
    assert_eq!(count().await, 7);
    assert_eq!(chunks(&index, &own).await, (5..=10).collect::<Vec<_>>());

    // What is given up goes with the next one.
    let mut given_up = index.rebuild(&own).await.unwrap();
    given_up.add((900..=910).map(point).collect()).await.unwrap();
    drop(given_up);
    index.rebuild(&own).await.unwrap().finish(Seq(3)).await.unwrap();
    site.clock.advance(Duration::from_secs(601));
    index.flush(&own).await.unwrap();
    assert_eq!(count().await, 1);
    site.clear(&index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_after_a_namespace_went_is_found_when_nothing_else_can_and_goes() {
    let site = Site::new();
    let (one, two) = (site.index(), site.index());
    let (gone, kept) = (partition(1, 1), partition(1, 2));
    for each in [&gone, &kept] {
        one.apply(each, vec![point(each.namespace().0.as_u128() * 10)], vec![], Seq(1)).await.unwrap();
    }
    let name = one.laboratory_collection(&kept).await.unwrap();
    let mut unaware = two.rebuild(&gone).await.unwrap();
    unaware.add(vec![point(30)]).await.unwrap();
    one.remove(&gone).await.unwrap();
    assert_eq!(site.points(&name).await.len(), 3, "a head and a point of the one, a mark of the other");
    unaware.add(vec![point(31)]).await.unwrap();
    drop(unaware);
    assert_eq!(site.points(&name).await.len(), 4);
    assert_eq!(one.partitions(kept.tenant()).await.unwrap(), std::slice::from_ref(&kept), "more may arrive");
    site.clock.advance(Duration::from_secs(601));
    let mut listed = one.partitions(kept.tenant()).await.unwrap();
    listed.sort_by_key(bulkhead::store::Partition::namespace);
    assert_eq!(listed, [gone.clone(), kept.clone()]);
    one.remove(&gone).await.unwrap();
    assert_eq!(site.points(&name).await.len(), 2);
    assert_eq!(one.partitions(kept.tenant()).await.unwrap(), std::slice::from_ref(&kept));
    assert_eq!(chunks(&one, &kept).await, [20]);
    site.clear(&one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rebuild_left_that_was_given_up_asks_for_another_one() {
    let site = Site::new();
    let index = site.index();
    let own = partition(1, 1);
    index.apply(&own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    let name = index.laboratory_collection(&own).await.unwrap();
    let mut given_up = index.rebuild(&own).await.unwrap();
    given_up.add(vec![point(1), point(2)]).await.unwrap();
    drop(given_up);
    assert!(!index.wants_rebuild(&own).await, "another server may be writing it");
    site.clock.advance(Duration::from_secs(601));
    assert!(index.wants_rebuild(&own).await);
    assert!(index.wants_rebuild(&own).await, "whoever looks twice sees it twice");
    let mut rebuild = index.rebuild(&own).await.unwrap();
    rebuild.add(vec![point(1)]).await.unwrap();
    rebuild.finish(Seq(1)).await.unwrap();
    assert!(!index.wants_rebuild(&own).await);
    site.clock.advance(Duration::from_secs(601));
    index.flush(&own).await.unwrap();
    assert_eq!(site.points(&name).await.len(), 2, "a point and a head");
    assert!(!index.wants_rebuild(&own).await);
    site.clear(&index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_over_one_collection_see_the_same() {
    let site = Site::new();
    let (one, two) = (site.index(), site.index());
    let own = partition(1, 1);
    one.apply(&own, (1..=20).map(point).collect(), vec![], Seq(1)).await.unwrap();
    assert_eq!(chunks(&two, &own).await, (1..=20).collect::<Vec<_>>());
    // Both apply the same history, cut in different places.
    one.apply(&own, vec![point(21)], vec![chunk(1)], Seq(2)).await.unwrap();
    two.apply(&own, vec![point(22)], vec![chunk(1), chunk(21)], Seq(4)).await.unwrap();
    one.apply(&own, vec![], vec![chunk(21)], Seq(3)).await.unwrap();
    let expected: Vec<u128> = (2..=20).chain([22]).collect();
    assert_eq!(chunks(&one, &own).await, expected);
    assert_eq!(one.position(&own).await.unwrap().unwrap().applied, Seq(4));

    let mut rebuild = two.rebuild(&own).await.unwrap();
    rebuild.add((2..=5).map(point).collect()).await.unwrap();
    rebuild.finish(Seq(4)).await.unwrap();
    assert_eq!(chunks(&one, &own).await, (2..=5).collect::<Vec<_>>(), "the other one learns of it");

    // Of two that are written at once the later one is served; the other's writer is told.
    let (earlier, mut later) = (one.rebuild(&own).await.unwrap(), two.rebuild(&own).await.unwrap());
    let mut earlier = earlier;
    earlier.add(vec![point(50)]).await.unwrap();
    later.add(vec![point(60)]).await.unwrap();
    later.finish(Seq(5)).await.unwrap();
    assert_eq!(earlier.finish(Seq(5)).await.unwrap_err().kind, ErrorKind::Conflict);
    for index in [&one, &two] {
        assert_eq!(chunks(index, &own).await, [60]);
    }
    site.clear(&two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stand_in_says_that_it_is_one() {
    let site = Site::stand_in();
    let health = site.everything().health_check().await.unwrap();
    assert_eq!(health.version, VERSION);
    assert!(health.version.contains("stand-in") && health.title.contains("not Qdrant"), "{health:?}");
}
