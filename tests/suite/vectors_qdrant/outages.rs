//! The server is away, slow, back, or back with less than it had.

use std::time::Duration;

use bulkhead::domain::Seq;
use bulkhead::store::error::ErrorKind;
use bulkhead::store::layers::CallSettings;
use bulkhead::store::qdrant::QdrantSettings;
use bulkhead::store::vector::VectorIndex as _;
use qdrant_client::qdrant::DeleteCollection;

use super::super::conformance_vectors::{chunk, chunks, dense, find, partition, point};
use super::site::Site;

fn impatient(site: &Site) -> QdrantSettings {
    let calls =
        CallSettings { deadline_ms: 400, attempts: 1, breaker_failures: 1_000, ..CallSettings::default() };
    QdrantSettings { calls, ..site.settings() }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_server_is_away_nothing_is_told_and_afterwards_it_goes_on() {
    let mut site = Site::stand_in();
    let index = site.index_with(impatient(&site));
    let own = partition(1, 1);
    index.apply(&own, (1..=10).map(point).collect(), vec![], Seq(1)).await.unwrap();
    site.kill();
    let away = [ErrorKind::Unavailable, ErrorKind::Timeout];
    assert!(away.contains(&index.search(&own, &dense(1, 5)).await.unwrap_err().kind));
    assert!(away.contains(&index.position(&own).await.unwrap_err().kind));
    assert!(away.contains(&index.apply(&own, vec![point(11)], vec![], Seq(2)).await.unwrap_err().kind));
    assert!(away.contains(&index.flush(&own).await.unwrap_err().kind));
    assert!(away.contains(&index.remove(&partition(1, 2)).await.unwrap_err().kind));
    assert!(away.contains(&index.partitions(own.tenant()).await.unwrap_err().kind));
    site.start_again();
    assert_eq!(index.position(&own).await.unwrap().unwrap().applied, Seq(1));
    index.apply(&own, vec![point(11)], vec![chunk(1)], Seq(2)).await.unwrap();
    assert_eq!(chunks(&index, &own).await, (2..=11).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_carried_out_though_it_timed_out_is_applied_again_without_harm() {
    let site = Site::stand_in();
    let index = site.index_with(impatient(&site));
    let own = partition(1, 1);
    index.apply(&own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    let stand_in = site.stand_in.as_ref().unwrap();
    stand_in.lag(Duration::from_secs(2));
    let slow = index.apply(&own, vec![point(2), point(3)], vec![chunk(1)], Seq(2)).await.unwrap_err();
    assert_eq!(slow.kind, ErrorKind::Timeout);
    stand_in.lag(Duration::ZERO);
    assert_eq!(index.position(&own).await.unwrap().unwrap().applied, Seq(1), "the position moves last");
    index.apply(&own, vec![point(3)], vec![chunk(1), chunk(2)], Seq(3)).await.unwrap();
    assert_eq!(chunks(&index, &own).await, [3]);
    assert_eq!(find(&index, &own, &dense(1, 1)).await.applied, Seq(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_lost_is_no_index_and_is_written_anew() {
    let site = Site::new();
    let index = site.index();
    let own = partition(1, 1);
    index.apply(&own, (1..=10).map(point).collect(), vec![], Seq(4)).await.unwrap();
    let name = index.laboratory_collection(&own).await.unwrap();
    let delete = DeleteCollection { collection_name: name, ..DeleteCollection::default() };
    site.everything().delete_collection(delete).await.unwrap();
    assert_eq!(index.search(&own, &dense(1, 5)).await.unwrap(), None);
    let late = index.apply(&own, vec![point(11)], vec![], Seq(5)).await.unwrap_err();
    assert_eq!(late.kind, ErrorKind::Conflict, "it went back, and nobody asked yet");
    assert_eq!(index.position(&own).await.unwrap(), None);
    let mut rebuild = index.rebuild(&own).await.unwrap();
    rebuild.add((1..=11).map(point).collect()).await.unwrap();
    rebuild.finish(Seq(5)).await.unwrap();
    assert_eq!(chunks(&index, &own).await, (1..=11).collect::<Vec<_>>());
    assert_eq!(index.position(&own).await.unwrap().unwrap().applied, Seq(5));
    site.clear(&index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_without_a_point_is_rebuilt_though_its_collection_is_lost() {
    let site = Site::new();
    let index = site.index();
    let own = partition(1, 1);
    index.apply(&own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    let name = index.laboratory_collection(&own).await.unwrap();
    let delete = DeleteCollection { collection_name: name, ..DeleteCollection::default() };
    site.everything().delete_collection(delete).await.unwrap();
    assert_eq!(index.position(&own).await.unwrap(), None);
    index.rebuild(&own).await.unwrap().finish(Seq(2)).await.unwrap();
    assert_eq!(chunks(&index, &own).await, [0_u128; 0]);
    assert_eq!(index.flush(&own).await.unwrap(), Seq(2));
    site.clear(&index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_again_and_again_is_left_alone_for_a_while() {
    let mut site = Site::stand_in();
    let calls = CallSettings { attempts: 1, breaker_failures: 2, ..CallSettings::default() };
    let index = site.index_with(QdrantSettings { calls, ..site.settings() });
    let own = partition(1, 1);
    index.apply(&own, vec![point(1)], vec![], Seq(1)).await.unwrap();
    site.kill();
    for _ in 0..2 {
        index.search(&own, &dense(1, 5)).await.unwrap_err();
    }
    site.start_again();
    let error = index.search(&own, &dense(1, 5)).await.unwrap_err();
    assert!(error.context.contains("not asked"), "{error}");
    site.clock.advance(Duration::from_secs(2));
    assert_eq!(chunks(&index, &own).await, [1]);
}
