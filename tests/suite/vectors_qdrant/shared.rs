//! The second placement: one collection of a model for many tenants; and moves between it and one of a tenant's own.

use std::time::Duration;

use bulkhead::domain::Seq;
use bulkhead::store::Placement;
use bulkhead::store::error::{ErrorKind, StoreError};
use bulkhead::store::qdrant::{QdrantIndex, QdrantSettings, Staged};
use bulkhead::store::vector::VectorIndex;
use qdrant_client::qdrant::CountPoints;
use secrecy::ExposeSecret as _;

use super::super::conformance_vectors::{
    self as suite, chunk, chunks, dense, find, lexical, partition, point, point_with,
};
use super::site::Site;

/// All of its tenants share.
fn sharing(site: &Site) -> QdrantIndex {
    site.index_with(QdrantSettings { collections: 0, ..site.settings() })
}

macro_rules! conformance {
    ($($behaviour:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $behaviour() {
            let site = Site::new();
            let index = sharing(&site);
            suite::$behaviour(&index).await;
            site.clear(&index).await;
        }
    )*};
}

mod conformance {
    use super::*;

    suite::every_behaviour!(conformance);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_made_for_many_tenants_and_a_token_for_it_reaches_all_of_them() {
    let site = Site::stand_in();
    let index = sharing(&site);
    let (alice, bob) = (partition(1, 1), partition(2, 2));
    index.apply(&alice, (1..=3).map(point).collect(), vec![], Seq(1)).await.unwrap();
    index.apply(&bob, (11..=12).map(point).collect(), vec![], Seq(1)).await.unwrap();
    let name = index.laboratory_shared(&alice);
    for each in [&alice, &bob] {
        assert_eq!(index.laboratory_collection(each).await.unwrap(), name);
    }
    let (made, tenants) = site.stand_in.as_ref().unwrap().made(&name).unwrap();
    let graph = made.hnsw_config.unwrap();
    assert_eq!((graph.m, graph.payload_m), (Some(0), Some(16)), "no graph over all, one for each tenant");
    assert_eq!(tenants, ["tenant"], "points of a tenant lie beside each other");

    // Layer 5 separates nobody here, and the documents say so.
    let token = index.laboratory_token(&alice, false).await.unwrap();
    let count = CountPoints { collection_name: name, exact: Some(true), ..CountPoints::default() };
    let counted = site.raw(token.expose_secret()).count(count).await.unwrap().result.unwrap().count;
    assert_eq!(counted, 7, "five points and two heads");
    site.clear(&index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbours_points_are_not_found_and_show_their_tag_without_the_filter() {
    let site = Site::new();
    let index = sharing(&site);
    // Namespaces of the same identity, too.
    let (alice, bob) = (partition(1, 1), partition(2, 1));
    index.apply(&alice, (1..=5).map(point).collect(), vec![], Seq(1)).await.unwrap();
    index.apply(&bob, (61..=65).map(point).collect(), vec![], Seq(1)).await.unwrap();
    index.laboratory_plant(&alice, &bob, point(66)).await.unwrap();
    assert_eq!(chunks(&index, &alice).await, [1, 2, 3, 4, 5]);
    let listed = index.entries(&alice, None, 100).await.unwrap().unwrap().list;
    assert!(listed.len() == 5 && listed.iter().all(|entry| entry.tenant == alice.tenant()));

    index.laboratory_filter_off(true);
    let found = find(&index, &alice, &dense(66, 100)).await.dense;
    assert_eq!((found[0].tenant, found[0].chunk), (bob.tenant(), point(66).chunk));
    assert_eq!(found.iter().filter(|hit| hit.tenant == bob.tenant()).count(), 6);
    index.laboratory_filter_off(false);

    // What has another's id does not take its place, nor does a rebuild or a removal touch it.
    index.apply(&alice, vec![point_with(61, 9, &[(8, 1.0)])], vec![chunk(62)], Seq(2)).await.unwrap();
    let mut rebuild = index.rebuild(&alice).await.unwrap();
    rebuild.add((1..=5).map(point).collect()).await.unwrap();
    rebuild.finish(Seq(3)).await.unwrap();
    index.remove(&alice).await.unwrap();
    let his = find(&index, &bob, &lexical(&[(5, 1.0)], 50)).await.lexical;
    assert!(his.len() >= 5 && his.iter().all(|hit| hit.version == 1), "{his:?}");
    site.clear(&index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_ceiling_a_tenant_shares_unless_its_placement_was_chosen() {
    let site = Site::stand_in();
    let index = site.index_with(QdrantSettings { collections: 2, ..site.settings() });
    let of = |tenant| partition(tenant, tenant);
    for (tenant, placement) in [(of(4).tenant(), Placement::Own), (of(1).tenant(), Placement::Shared)] {
        site.choose(tenant, placement);
        assert!(index.stage(tenant, placement).await.unwrap().is_empty(), "nothing to move");
    }
    let shared = index.laboratory_shared(&of(1));
    for (tenant, is_shared) in [(1, true), (2, false), (3, false), (5, true), (4, false), (6, true)] {
        index.apply(&of(tenant), vec![point(tenant)], vec![], Seq(1)).await.unwrap();
        let name = index.laboratory_collection(&of(tenant)).await.unwrap();
        assert_eq!(name == shared, is_shared, "tenant {tenant}");
    }
    assert_eq!(site.collections().await.len(), 4);
    site.clear(&index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_goes_leaves_nothing_and_one_that_comes_back_loses_nothing() {
    let site = Site::new();
    let index = sharing(&site);
    let (alice, bob) = (partition(1, 1), partition(2, 2));
    let name = index.laboratory_shared(&alice);
    for (each, numbers) in [(&alice, 1..=9), (&bob, 11..=19)] {
        index.apply(each, numbers.map(point).collect(), vec![], Seq(1)).await.unwrap();
    }
    let hers = async || {
        let tenant = alice.tenant().to_string();
        let points = site.points(&name).await;
        let own = |point: &&qdrant_client::qdrant::RetrievedPoint| {
            point.payload["tenant"].as_str().is_some_and(|of| *of == tenant)
        };
        let mine: Vec<_> = points.iter().filter(own).collect();
        let marks = mine.iter().filter(|point| point.payload.contains_key("kind")).count();
        (mine.len() - marks, marks)
    };
    assert_eq!(hers().await, (9, 1));
    index.retire(&alice).await.unwrap();
    assert_eq!(hers().await, (0, 1), "a mark, in the way of what is late");
    assert_eq!(index.search(&alice, &dense(1, 5)).await.unwrap(), None);

    // She comes back before that is gone, and the sweep finds nothing to do.
    index.apply(&alice, vec![point(3)], vec![], Seq(2)).await.unwrap();
    site.clock.advance(Duration::from_hours(1));
    assert_eq!(index.partitions(alice.tenant()).await.unwrap(), std::slice::from_ref(&alice));
    index.flush(&alice).await.unwrap();
    assert_eq!(chunks(&index, &alice).await, [3]);

    index.remove(&alice).await.unwrap();
    assert_eq!(index.partitions(alice.tenant()).await.unwrap(), [], "nothing can go yet");
    site.clock.advance(Duration::from_hours(1));
    for partition in index.partitions(alice.tenant()).await.unwrap() {
        index.remove(&partition).await.unwrap();
    }
    assert_eq!(hers().await, (0, 0));
    assert_eq!(index.tenants().await.unwrap(), [bob.tenant()], "and nobody names it any more");
    assert_eq!(chunks(&index, &bob).await, (11..=19).collect::<Vec<_>>());
    site.clear(&index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_index_that_is_being_written_loses_nothing_when_its_neighbour_goes() {
    let site = Site::new();
    let index = sharing(&site);
    let (gone, written) = (partition(1, 1), partition(1, 2));
    index.apply(&gone, vec![point(1)], vec![], Seq(1)).await.unwrap();
    let mut rebuild = index.rebuild(&written).await.unwrap();
    rebuild.add((11..=13).map(point).collect()).await.unwrap();
    // Of the tenant's heads in the collection, the only one.
    index.remove(&gone).await.unwrap();
    rebuild.add((14..=16).map(point).collect()).await.unwrap();
    rebuild.finish(Seq(1)).await.unwrap();
    assert_eq!(chunks(&index, &written).await, (11..=16).collect::<Vec<_>>());
    site.clear(&index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_index_that_is_being_written_where_a_tenant_is_moved_from_is_not_served() {
    let site = Site::stand_in();
    let index = sharing(&site);
    let (own, written) = (partition(1, 1), partition(1, 2));
    index.apply(&own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    let mut rebuild = index.rebuild(&written).await.unwrap();
    rebuild.add((11..=13).map(point).collect()).await.unwrap();
    moved(&index, &own, Placement::Own, &[1], Seq(2)).await;
    rebuild.add((14..=16).map(point).collect()).await.unwrap();
    rebuild.finish(Seq(1)).await.unwrap_err();
    assert_eq!(index.search(&written, &dense(11, 5)).await.unwrap(), None, "there is none");
    assert_eq!(chunks(&index, &own).await, [1]);
    // The pages that came late go with the sweep, and their mark with the one after it.
    site.clock.advance(Duration::from_hours(1));
    for partition in index.partitions(own.tenant()).await.unwrap() {
        if partition.namespace().0.is_nil() {
            index.remove(&partition).await.unwrap();
        }
    }
    assert_eq!(chunks(&index, &own).await, [1]);
    site.clear(&index).await;
}

/// A move that has written these chunks, and neither ended nor served them.
async fn begun(
    index: &QdrantIndex,
    of: &bulkhead::store::Partition,
    to: Placement,
    numbers: &[u128],
    at: Seq,
) -> Staged {
    let staged = index.stage(of.tenant(), to).await.unwrap().remove(0);
    write(&staged, of, numbers, at).await.unwrap();
    staged
}

async fn write(
    staged: &Staged,
    of: &bulkhead::store::Partition,
    numbers: &[u128],
    at: Seq,
) -> Result<(), StoreError> {
    let mut rebuild = staged.index().rebuild(of).await?;
    rebuild.add(numbers.iter().copied().map(point).collect()).await?;
    rebuild.finish(at).await
}

/// Moves a tenant whose record has these chunks.
async fn moved(
    index: &QdrantIndex,
    of: &bulkhead::store::Partition,
    to: Placement,
    numbers: &[u128],
    at: Seq,
) {
    for staged in index.stage(of.tenant(), to).await.unwrap() {
        write(&staged, of, numbers, at).await.unwrap();
        assert_eq!(chunks(staged.index().as_ref(), of).await, numbers);
        staged.switch().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tenant_is_answered_from_where_it_is_by_every_server() {
    let site = Site::new();
    let (one, two) = (site.index(), site.index());
    let (own, neighbour) = (partition(1, 1), partition(2, 2));
    one.apply(&own, (1..=9).map(point).collect(), vec![], Seq(4)).await.unwrap();
    two.apply(&neighbour, vec![point(70)], vec![], Seq(1)).await.unwrap();
    let first = one.laboratory_collection(&own).await.unwrap();
    let numbers: Vec<u128> = (1..=9).collect();
    for index in [&one, &two] {
        assert_eq!(chunks(index, &own).await, numbers);
    }
    for (round, to) in [(0, Placement::Shared), (1, Placement::Own), (2, Placement::Shared)] {
        let at = Seq(5 + 2 * round);
        moved(&one, &own, to, &numbers, at).await;
        let name = one.laboratory_collection(&own).await.unwrap();
        assert_eq!(name == one.laboratory_shared(&own), to == Placement::Shared);
        // The other one, which still remembers where it was, is right too, whatever it does first.
        if round == 1 {
            two.position(&own).await.unwrap().unwrap();
            two.apply(&own, vec![], vec![chunk(99)], Seq(at.0 + 1)).await.unwrap();
        }
        for index in [&two, &one] {
            assert_eq!(chunks(index, &own).await, numbers, "round {round}");
            assert!(find(index, &own, &dense(1, 1)).await.applied >= at);
        }
    }
    assert!(!site.collections().await.contains(&first), "what it was moved from is gone");
    assert_eq!(chunks(&two, &neighbour).await, [70]);
    site.clear(&one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_broken_off_changes_nothing_and_its_rest_goes_with_the_next() {
    let site = Site::stand_in();
    let index = site.index();
    let own = partition(1, 1);
    index.apply(&own, (1..=9).map(point).collect(), vec![], Seq(1)).await.unwrap();
    let begin = async |to| begun(&index, &own, to, &[1, 2, 3], Seq(1)).await;
    let shared = index.laboratory_shared(&own);
    // Given up, and broken off by the end of the process.
    begin(Placement::Shared).await.abandon().await;
    let late = begin(Placement::Shared).await;
    assert_eq!(chunks(&index, &own).await, (1..=9).collect::<Vec<_>>());
    let staged = index.stage(own.tenant(), Placement::Shared).await.unwrap();
    let is_point = |point: &qdrant_client::qdrant::RetrievedPoint| !point.payload.contains_key("kind");
    assert!(!site.points(&shared).await.iter().any(is_point), "what was left of it is gone");
    for each in staged {
        each.abandon().await;
    }
    let error = late.switch().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict, "one that was overtaken serves nothing");
    assert_eq!(chunks(&index, &own).await, (1..=9).collect::<Vec<_>>());

    // Of a collection of one's own nothing stays after a day, though nobody moves the tenant again.
    moved(&index, &own, Placement::Shared, &[1, 2, 3], Seq(2)).await;
    drop(begin(Placement::Own).await);
    assert_eq!(site.collections().await.len(), 2);
    site.clock.advance(Duration::from_hours(25));
    for partition in index.partitions(own.tenant()).await.unwrap() {
        if partition.namespace().0.is_nil() {
            index.remove(&partition).await.unwrap();
        }
    }
    assert_eq!(site.collections().await, [shared]);
    assert_eq!(chunks(&index, &own).await, [1, 2, 3]);
    site.clear(&index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_was_overtaken_takes_nothing_from_the_later_one() {
    let site = Site::stand_in();
    // Two servers, on each of which an operator has asked.
    let (one, two) = (site.index(), site.index());
    let (own, further) = (partition(1, 1), partition(1, 2));
    let all: Vec<u128> = (1..=9).collect();
    one.apply(&own, all.iter().copied().map(point).collect(), vec![], Seq(1)).await.unwrap();

    // Given up before the later one is served.
    let late = begun(&one, &own, Placement::Shared, &[1, 2], Seq(1)).await;
    let later = begun(&two, &own, Placement::Shared, &all, Seq(1)).await;
    late.abandon().await;
    assert_eq!(chunks(later.index().as_ref(), &own).await, all);
    later.switch().await.unwrap();
    assert_eq!(chunks(&two, &own).await, all);
    moved(&two, &own, Placement::Own, &all, Seq(2)).await;

    // Behind that, and in the middle of its work.
    let late = begun(&one, &own, Placement::Shared, &[1, 2], Seq(2)).await;
    let later = begun(&two, &own, Placement::Shared, &all, Seq(2)).await;
    later.switch().await.unwrap();
    for of in [&own, &further] {
        let error = write(&late, of, &[1, 2], Seq(2)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict, "it writes no further generation");
    }
    late.abandon().await;
    for index in [&one, &two] {
        assert_eq!(chunks(index, &own).await, all);
    }

    // One into a collection of the tenant's own makes none that nobody knows.
    let late = begun(&one, &own, Placement::Own, &[1, 2], Seq(2)).await;
    let later = begun(&two, &own, Placement::Own, &all, Seq(2)).await;
    let before = site.collections().await;
    write(&late, &own, &[1, 2], Seq(2)).await.unwrap_err();
    assert_eq!(site.collections().await, before);
    late.abandon().await;
    later.switch().await.unwrap();
    assert_eq!(chunks(&one, &own).await, all);
    site.clear(&one).await;
}
