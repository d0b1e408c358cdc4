//! What every vector index must do: one function for each sentence of the trait's documentation.
//!
//! The functions take the index by its trait; a back end's own file runs them all, by `every_behaviour`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use bulkhead::domain::Seq;
use bulkhead::domain::ids::{ChunkId, ModelId, NamespaceId, TenantId};
use bulkhead::store::error::ErrorKind;
use bulkhead::store::partition::Partition;
use bulkhead::store::vector::{Found, Point, Terms, VectorIndex, VectorQuery};
use uuid::Uuid;

/// Hands the name of every behaviour to a macro of the back end's own file.
macro_rules! every_behaviour {
    ($run:ident) => {
        $run! {
            a_search_sees_only_its_partition;
            a_partition_without_an_index_is_none;
            everything_is_listed_once_in_order;
            what_is_applied_is_found_at_once;
            changes_without_points_count;
            the_same_changes_again_change_nothing;
            a_point_written_again_is_replaced;
            what_is_deleted_is_not_found;
            lexical_scores_are_sums_of_products;
            a_small_partition_answers_exactly;
            malformed_vectors_are_refused;
            a_removed_partition_stays_removed;
            a_retired_partition_may_come_back;
            a_rebuild_replaces_what_was_there;
            searches_go_on_during_rebuilds;
            searches_go_on_beside_a_writer;
        }
    };
}
pub(crate) use every_behaviour;

/// Numbers in the embeddings of these tests.
pub const DIMENSION: usize = 8;

/// The partition of a tenant's namespace.
pub fn partition(tenant: u128, namespace: u128) -> Partition {
    let model = ModelId::parse("00112233445566ff").unwrap();
    Partition::for_laboratory(
        TenantId(Uuid::from_u128(tenant)),
        NamespaceId(Uuid::from_u128(namespace)),
        model,
    )
}

/// A chunk's id.
pub fn chunk(number: u128) -> ChunkId {
    ChunkId(Uuid::from_u128(number))
}

/// Unit vectors, the same for the same seed.
pub fn unit(seed: u128) -> Vec<f32> {
    let mut state = u64::try_from(seed % 1_000_003).unwrap().wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        f32::from(u16::try_from(state >> 48).unwrap()) / 65_536.0 - 0.5
    };
    let numbers: Vec<f32> = (0..DIMENSION).map(|_| next()).collect();
    let length = numbers.iter().map(|x| x * x).sum::<f32>().sqrt();
    numbers.into_iter().map(|x| x / length).collect()
}

/// A point with these terms.
pub fn point_with(number: u128, version: i64, terms: &[(u32, f32)]) -> Point {
    let (indices, values) = terms.iter().copied().unzip();
    Point { chunk: chunk(number), version, embedding: unit(number), terms: Terms { indices, values } }
}

/// A point.
pub fn point(number: u128) -> Point {
    point_with(number, 1, &[(5, 1.0), (u32::try_from(number % 900).unwrap() + 10, 2.0)])
}

/// By meaning only.
pub fn dense(seed: u128, limit: usize) -> VectorQuery {
    VectorQuery { embedding: Some(unit(seed)), terms: None, limit }
}

/// By words only.
pub fn lexical(terms: &[(u32, f32)], limit: usize) -> VectorQuery {
    let (indices, values) = terms.iter().copied().unzip();
    VectorQuery { embedding: None, terms: Some(Terms { indices, values }), limit }
}

/// Searches a partition that has an index.
pub async fn find(index: &dyn VectorIndex, partition: &Partition, query: &VectorQuery) -> Found {
    index.search(partition, query).await.unwrap().expect("the partition has an index")
}

/// Chunks found by meaning among all.
pub async fn chunks(index: &dyn VectorIndex, partition: &Partition) -> Vec<u128> {
    let found = find(index, partition, &dense(1, 10_000)).await;
    let mut numbers: Vec<u128> = found.dense.iter().map(|hit| hit.chunk.0.as_u128()).collect();
    numbers.sort_unstable();
    numbers
}

/// A search never returns a neighbour's chunk, even for the identical vector.
pub async fn a_search_sees_only_its_partition(index: &dyn VectorIndex) {
    let (alice, bob, other) = (partition(1, 1), partition(2, 1), partition(1, 2));
    index.apply(&alice, vec![point(100)], vec![], Seq(1)).await.unwrap();
    index.apply(&bob, vec![point(200)], vec![], Seq(1)).await.unwrap();
    index.apply(&other, vec![point(300)], vec![], Seq(1)).await.unwrap();
    for (own, number) in [(&alice, 100), (&bob, 200), (&other, 300)] {
        for seed in [100, 200, 300] {
            let query = VectorQuery { terms: Some(point(seed).terms), ..dense(seed, 10) };
            let found = find(index, own, &query).await;
            for hit in found.dense.iter().chain(&found.lexical) {
                assert_eq!((hit.tenant, hit.namespace), (own.tenant(), own.namespace()));
                assert_eq!(hit.chunk, chunk(number));
            }
        }
        assert_eq!(chunks(index, own).await, [number]);
    }
}

/// Everything that an index holds is listed once, in order, page by page, and nothing of a neighbour's.
pub async fn everything_is_listed_once_in_order(index: &dyn VectorIndex) {
    let (own, neighbour) = (partition(1, 1), partition(2, 1));
    assert_eq!(index.entries(&own, None, 10).await.unwrap(), None);
    index.apply(&own, (1..=25).map(point).collect(), vec![chunk(7)], Seq(1)).await.unwrap();
    index.apply(&own, vec![point_with(9, 4, &[(5, 1.0)])], vec![], Seq(2)).await.unwrap();
    index.apply(&neighbour, vec![point(100)], vec![], Seq(1)).await.unwrap();
    let (mut listed, mut from) = (Vec::new(), None);
    loop {
        let page = index.entries(&own, from, 10).await.unwrap().unwrap();
        assert!(page.list.len() <= 10);
        listed.extend(page.list);
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    let expected: Vec<_> =
        (1..=25).filter(|n| *n != 7).map(|n| (chunk(n), if n == 9 { 4 } else { 1 })).collect();
    assert_eq!(listed.iter().map(|entry| (entry.chunk, entry.version)).collect::<Vec<_>>(), expected);
    assert!(listed.iter().all(|entry| (entry.tenant, entry.namespace) == (own.tenant(), own.namespace())));
}

/// A partition nobody wrote to has no index.
pub async fn a_partition_without_an_index_is_none(index: &dyn VectorIndex) {
    assert_eq!(index.search(&partition(1, 1), &dense(1, 10)).await.unwrap(), None);
    assert_eq!(index.position(&partition(1, 1)).await.unwrap(), None);
    assert!(!index.wants_rebuild(&partition(1, 1)).await);
}

/// What `apply` returned for is found by the next search, and is durable after `flush`.
pub async fn what_is_applied_is_found_at_once(index: &dyn VectorIndex) {
    let own = partition(1, 1);
    for seq in 1..=20 {
        index.apply(&own, vec![point(u128::try_from(seq).unwrap())], vec![], Seq(seq)).await.unwrap();
        let found = find(index, &own, &dense(u128::try_from(seq).unwrap(), 1)).await;
        assert_eq!(found.dense[0].chunk, chunk(u128::try_from(seq).unwrap()));
        assert_eq!(found.applied, Seq(seq));
    }
    let before = index.position(&own).await.unwrap().unwrap();
    assert_eq!(before.applied, Seq(20));
    assert_eq!(index.flush(&own).await.unwrap(), Seq(20));
    assert_eq!(index.position(&own).await.unwrap().unwrap().durable, Seq(20));
}

/// Changes without a point move the position all the same.
pub async fn changes_without_points_count(index: &dyn VectorIndex) {
    let own = partition(1, 1);
    index.apply(&own, vec![], vec![chunk(9)], Seq(3)).await.unwrap();
    assert_eq!(find(index, &own, &dense(1, 10)).await, Found { applied: Seq(3), ..Found::default() });
    assert_eq!(index.flush(&own).await.unwrap(), Seq(3));
    index.apply(&own, vec![point(1)], vec![], Seq(4)).await.unwrap();
    assert_eq!(chunks(index, &own).await, [1]);
}

/// Applying the same changes again changes nothing, and a late upsert does not bring back what was deleted.
pub async fn the_same_changes_again_change_nothing(index: &dyn VectorIndex) {
    let own = partition(1, 1);
    let first = || vec![point(1), point(2)];
    index.apply(&own, first(), vec![], Seq(1)).await.unwrap();
    index.apply(&own, vec![point(3)], vec![chunk(1)], Seq(2)).await.unwrap();
    for _ in 0..2 {
        index.apply(&own, first(), vec![], Seq(1)).await.unwrap();
        index.apply(&own, vec![point(3)], vec![chunk(1)], Seq(2)).await.unwrap();
        assert_eq!(chunks(index, &own).await, [2, 3]);
        assert_eq!(index.position(&own).await.unwrap().unwrap().applied, Seq(2));
    }
}

/// A point that is written again is replaced.
pub async fn a_point_written_again_is_replaced(index: &dyn VectorIndex) {
    let own = partition(1, 1);
    index.apply(&own, vec![point_with(1, 1, &[(7, 1.0)])], vec![], Seq(1)).await.unwrap();
    index.apply(&own, vec![point_with(1, 2, &[(8, 4.0)])], vec![], Seq(2)).await.unwrap();
    assert!(find(index, &own, &lexical(&[(7, 1.0)], 10)).await.lexical.is_empty());
    let found = find(index, &own, &lexical(&[(8, 0.5)], 10)).await.lexical;
    assert_eq!((found.len(), found[0].version, found[0].score), (1, 2, 2.0));
}

/// What is deleted is not found; deleting what is not there is no error; deleting wins within one call.
pub async fn what_is_deleted_is_not_found(index: &dyn VectorIndex) {
    let own = partition(1, 1);
    index.apply(&own, (1..=10).map(point).collect(), vec![], Seq(1)).await.unwrap();
    index.apply(&own, vec![point(11)], vec![chunk(3), chunk(77), chunk(11)], Seq(2)).await.unwrap();
    assert_eq!(chunks(index, &own).await, [1, 2, 4, 5, 6, 7, 8, 9, 10]);
    let found = find(index, &own, &lexical(&[(5, 1.0)], 50)).await;
    assert_eq!(found.lexical.len(), 9);
}

/// The lexical score is the sum of products of weights; chunks that share no term are absent.
pub async fn lexical_scores_are_sums_of_products(index: &dyn VectorIndex) {
    let own = partition(1, 1);
    let points = vec![
        point_with(1, 1, &[(1, 1.5), (2, 2.0), (999_999_999, 0.5)]),
        point_with(2, 1, &[(2, 0.25)]),
        point_with(3, 1, &[(3, 9.0)]),
        point_with(4, 1, &[]),
    ];
    index.apply(&own, points, vec![], Seq(1)).await.unwrap();
    let found = find(index, &own, &lexical(&[(1, 2.0), (2, 3.0), (999_999_999, 4.0)], 10)).await;
    let scores: Vec<_> = found.lexical.iter().map(|hit| (hit.chunk.0.as_u128(), hit.score)).collect();
    assert_eq!(scores, [(1, 11.0), (2, 0.75)]);
    assert!(found.dense.is_empty(), "only what was asked for is searched");
    assert_eq!(
        find(index, &own, &dense(4, 10)).await.dense.len(),
        4,
        "a chunk without terms is found by meaning"
    );
}

/// By meaning a small partition answers exactly: the same chunks in the same order as a scan of all.
pub async fn a_small_partition_answers_exactly(index: &dyn VectorIndex) {
    let own = partition(1, 1);
    for page in 0..4 {
        let points = (page * 100 + 1..=page * 100 + 100).map(point).collect();
        index.apply(&own, points, vec![], Seq(i64::try_from(page).unwrap() + 1)).await.unwrap();
    }
    for seed in 5_000..5_020 {
        let question = unit(seed);
        let mut all: Vec<(f32, u128)> = (1..=400)
            .map(|number| (unit(number).iter().zip(&question).map(|(a, b)| a * b).sum::<f32>(), number))
            .collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let found = find(index, &own, &dense(seed, 10)).await.dense;
        assert_eq!(found.len(), 10);
        for (hit, (score, number)) in found.iter().zip(&all) {
            assert_eq!(hit.chunk.0.as_u128(), *number);
            assert!((hit.score - score).abs() < 1e-5, "{} is not {score}", hit.score);
        }
    }
    assert!(find(index, &own, &dense(1, 0)).await.dense.is_empty());
}

/// What cannot be carried out is refused, and nothing changes.
pub async fn malformed_vectors_are_refused(index: &dyn VectorIndex) {
    let own = partition(1, 1);
    index.apply(&own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    let short = Point { embedding: vec![1.0; 3], ..point(2) };
    let infinite = Point { embedding: vec![f32::NAN; DIMENSION], ..point(2) };
    let unordered = point_with(2, 1, &[(5, 1.0), (4, 1.0)]);
    for bad in [short, infinite, unordered] {
        let error = index.apply(&own, vec![point(3), bad], vec![chunk(1)], Seq(2)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    }
    let query = VectorQuery { embedding: Some(vec![1.0; 3]), terms: None, limit: 5 };
    assert_eq!(index.search(&own, &query).await.unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(chunks(index, &own).await, [1]);
}

/// A removed partition is gone for good, and its neighbour is not.
pub async fn a_removed_partition_stays_removed(index: &dyn VectorIndex) {
    let (own, neighbour) = (partition(1, 1), partition(1, 2));
    for each in [&own, &neighbour] {
        index.apply(each, vec![point(1)], vec![], Seq(1)).await.unwrap();
        index.flush(each).await.unwrap();
    }
    index.remove(&own).await.unwrap();
    index.remove(&own).await.unwrap();
    index.remove(&partition(9, 9)).await.unwrap();
    assert_eq!(index.search(&own, &dense(1, 10)).await.unwrap(), None);
    assert_eq!(index.position(&own).await.unwrap(), None);
    let late = index.apply(&own, vec![point(2)], vec![], Seq(2)).await.unwrap_err();
    assert_eq!(late.kind, ErrorKind::Conflict);
    assert_eq!(index.rebuild(&own).await.map(drop).unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(index.search(&own, &dense(1, 10)).await.unwrap(), None);
    assert_eq!(chunks(index, &neighbour).await, [1]);
}

/// The index of a model that was left is gone and may come back; one that was removed may not.
pub async fn a_retired_partition_may_come_back(index: &dyn VectorIndex) {
    let own = partition(1, 1);
    index.apply(&own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    index.flush(&own).await.unwrap();
    index.retire(&own).await.unwrap();
    index.retire(&own).await.unwrap();
    assert_eq!(index.search(&own, &dense(1, 10)).await.unwrap(), None);
    assert_eq!(index.position(&own).await.unwrap(), None);
    index.apply(&own, vec![point(2)], vec![], Seq(2)).await.unwrap();
    assert_eq!(chunks(index, &own).await, [2]);
    index.remove(&own).await.unwrap();
    index.retire(&own).await.unwrap();
    let late = index.apply(&own, vec![point(3)], vec![], Seq(3)).await.unwrap_err();
    assert_eq!(late.kind, ErrorKind::Conflict);
}

/// A rebuild that is finished replaces what was there; one that is dropped leaves nothing behind.
pub async fn a_rebuild_replaces_what_was_there(index: &dyn VectorIndex) {
    let own = partition(1, 1);
    index.apply(&own, (1..=50).map(point).collect(), vec![], Seq(5)).await.unwrap();
    index.flush(&own).await.unwrap();
    let mut dropped = index.rebuild(&own).await.unwrap();
    dropped.add(vec![point(900)]).await.unwrap();
    let second = index.rebuild(&own).await.map(drop).unwrap_err();
    assert_eq!(second.kind, ErrorKind::Conflict, "one rebuild at a time");
    drop(dropped);
    assert_eq!(chunks(index, &own).await.len(), 50);

    let mut rebuild = index.rebuild(&own).await.unwrap();
    rebuild.add((1..=20).map(point).collect()).await.unwrap();
    rebuild.add((21..=40).map(point).collect()).await.unwrap();
    assert_eq!(chunks(index, &own).await.len(), 50, "served until the end");
    rebuild.finish(Seq(7)).await.unwrap();
    assert_eq!(chunks(index, &own).await, (1..=40).collect::<Vec<_>>());
    let position = index.position(&own).await.unwrap().unwrap();
    assert_eq!((position.applied, position.durable), (Seq(7), Seq(7)));
    index.apply(&own, vec![point(41)], vec![chunk(1)], Seq(8)).await.unwrap();
    assert_eq!(chunks(index, &own).await, (2..=41).collect::<Vec<_>>());

    index.rebuild(&own).await.unwrap().finish(Seq(9)).await.unwrap();
    assert_eq!(chunks(index, &own).await, [0_u128; 0], "rebuilt from nothing it is empty, not absent");
    index.apply(&own, vec![point(1)], vec![], Seq(10)).await.unwrap();
    assert_eq!(chunks(index, &own).await, [1]);
}

/// Searches go on while generations are switched, and each sees one of them whole.
pub async fn searches_go_on_during_rebuilds(index: &dyn VectorIndex) {
    let own = partition(1, 1);
    index.apply(&own, (1..=30).map(point).collect(), vec![], Seq(1)).await.unwrap();
    let is_done = std::sync::atomic::AtomicBool::new(false);
    let searching = async {
        let mut searches = 0;
        while !is_done.load(std::sync::atomic::Ordering::Acquire) {
            assert_eq!(chunks(index, &own).await, (1..=30).collect::<Vec<_>>());
            searches += 1;
            tokio::task::yield_now().await;
        }
        searches
    };
    let rebuilding = async {
        for seq in 2..8 {
            let mut rebuild = index.rebuild(&own).await.unwrap();
            rebuild.add((1..=30).map(point).collect()).await.unwrap();
            rebuild.finish(Seq(seq)).await.unwrap();
        }
        is_done.store(true, std::sync::atomic::Ordering::Release);
    };
    let (searches, ()) = tokio::join!(searching, rebuilding);
    assert!(searches > 6, "{searches} searches");
}

/// One writes and flushes, many search: nobody fails, and no search misses what was there before it.
pub async fn searches_go_on_beside_a_writer(index: &dyn VectorIndex) {
    let own = partition(1, 1);
    index.apply(&own, (1..=100).map(point).collect(), vec![], Seq(1)).await.unwrap();
    let is_done = std::sync::atomic::AtomicBool::new(false);
    let search = async || {
        while !is_done.load(std::sync::atomic::Ordering::Acquire) {
            let found = find(index, &own, &dense(50, 1)).await;
            assert_eq!(found.dense[0].chunk, chunk(50));
            tokio::task::yield_now().await;
        }
    };
    let writing = async {
        for seq in 2..40 {
            let base = u128::try_from(seq).unwrap() * 100;
            index.apply(&own, (base..base + 40).map(point).collect(), vec![], Seq(seq)).await.unwrap();
            assert_eq!(index.flush(&own).await.unwrap(), Seq(seq));
        }
        is_done.store(true, std::sync::atomic::Ordering::Release);
    };
    tokio::join!(writing, search(), search(), search());
}
