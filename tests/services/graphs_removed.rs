//! Graphs in Neo4j that are removed: nothing of them stays or comes back, and nobody takes what is left for a graph.

use std::time::Duration;

use bulkhead::domain::Seq;
use bulkhead::store::graph::{GraphChange, GraphIndex as _, LinkedChunk, Writers};
use bulkhead::store::neo4j::Neo4jGraph;
use bulkhead::store::{ErrorKind, Partition};

use crate::Test;
use crate::graphs::{fleet, neo4j, partition};
use crate::graphs_neo4j::{change, everything, linked, run, write};
use crate::limits::id;
use crate::neo4j_server::{index, nodes_of, raw, shared};

/// All of them.
pub fn tests() -> Vec<Test> {
    tests![
        what_comes_after_a_removal_brings_nothing_back,
        a_removed_namespace_leaves_nothing_and_its_neighbour_everything,
        a_removal_that_was_broken_off_is_found_and_ended,
        what_says_that_it_is_complete_is_whole_while_it_is_removed_and_begun_anew,
    ]
}

async fn what_comes_after_a_removal_brings_nothing_back() {
    let (index, partition, raw) = (index(shared()), partition(), raw(&shared()).await);
    let first = change(&index, &partition, vec![linked(1, &[1])], 1).await;
    let second = GraphChange { from: first.to, to: id(), added: vec![linked(2, &[2])], ..first.clone() };
    index.apply(&partition, &first).await.expect("applied");
    index.remove(partition.tenant(), partition.namespace()).await.expect("removed");
    for late in [&first, &second] {
        assert_eq!(index.apply(&partition, late).await.expect_err("refused").kind, ErrorKind::Conflict);
    }
    assert_eq!(nodes_of(&raw, partition.tenant()).await, 0);
}

async fn a_removed_namespace_leaves_nothing_and_its_neighbour_everything() {
    let (mut alice, mut bob, raw) = (neo4j(), neo4j(), raw(&shared()).await);
    for place in [&mut alice, &mut bob] {
        let all = fleet(&place.partition);
        place.change(all, &[]).await;
    }
    let index = alice.index.clone().expect("an index");
    let (hers, his) = (alice.partition.tenant(), bob.partition.tenant());
    let tenants = index.tenants().await.expect("tenants");
    assert!(tenants.contains(&hers) && tenants.contains(&his));
    // Of each her own, and no word of a neighbour's.
    for place in [&alice, &bob] {
        let listed = index.namespaces(place.partition.tenant()).await.expect("namespaces");
        assert_eq!(listed, [place.partition.namespace()]);
    }
    let before = everything(&bob).await;
    assert!(nodes_of(&raw, hers).await > 5);
    index.remove(hers, alice.partition.namespace()).await.expect("removed");
    assert_eq!(nodes_of(&raw, hers).await, 0);
    assert_eq!(index.head(&alice.partition).await.expect("answered"), None);
    assert!(!index.tenants().await.expect("tenants").contains(&hers));
    assert_eq!(index.namespaces(hers).await.expect("namespaces"), []);
    assert_eq!(everything(&bob).await, before);
    assert!(nodes_of(&raw, his).await > 5);
    index.remove(hers, alice.partition.namespace()).await.expect("nothing to remove is no error");
}

async fn a_removal_that_was_broken_off_is_found_and_ended() {
    let (mut place, raw) = (neo4j(), raw(&shared()).await);
    let all = fleet(&place.partition);
    place.change(all, &[]).await;
    let (tenant, namespace) = (place.partition.tenant(), place.partition.namespace());
    let closed = "MATCH (h:Head:%T {%OWN, key: 'head'}) SET h.token = 'removed', h.seq = null
        RETURN count(h) AS n";
    assert_eq!(run(&raw, &place.partition, closed, tenant, namespace.0).await, 1);
    let index = place.index.clone().expect("an index");
    assert_eq!(index.head(&place.partition).await.expect("answered"), None);
    let refused = index.begin(&place.partition, id()).await.expect_err("it is being removed");
    assert_eq!(refused.kind, ErrorKind::Conflict);
    assert_eq!(index.namespaces(tenant).await.expect("namespaces"), [namespace]);
    index.remove(tenant, namespace).await.expect("removed");
    assert_eq!(nodes_of(&raw, tenant).await, 0);
}

/// Chunks of a graph that takes a while to remove.
const MANY: u128 = 300;

/// Removes a graph again and again, with time between to begin it anew; every error but that somebody else changed it
/// fails the test.
async fn remove_often(index: &Neo4jGraph, partition: &Partition) {
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        match index.remove(partition.tenant(), partition.namespace()).await {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind, ErrorKind::Conflict, "{error:?}"),
        }
    }
}

async fn what_says_that_it_is_complete_is_whole_while_it_is_removed_and_begun_anew() {
    let (index, partition) = (index(shared()), partition());
    let chunks: Vec<LinkedChunk> = (1..=MANY).map(|n| linked(n, &[1, 2])).collect();
    let change = async || write(&index, &partition, chunks.clone()).await;
    let look_at_head = async || {
        let head = index.head(&partition).await.expect("a head");
        head.filter(|head| head.seq == Some(Seq(1)))
    };
    // Whatever says that it is complete is.
    let look = async || {
        let Some(head) = look_at_head().await else { return 0 };
        match index.contents(&partition, head.token, Writers::GoOn).await {
            Ok(all) => {
                assert_eq!((all.chunks.len(), all.entities.len(), all.titles.len()), (300, 3, 1));
                1
            }
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Conflict, "{error:?}");
                0
            }
        }
    };
    let stop = std::sync::atomic::AtomicBool::new(false);
    let goes_on = || !stop.load(std::sync::atomic::Ordering::Relaxed);
    let write = async {
        let mut written = 0;
        while goes_on() {
            if look_at_head().await.is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            match change().await {
                Ok(()) => written += 1,
                Err(error) => assert_eq!(error.kind, ErrorKind::Conflict, "{error:?}"),
            }
        }
        written
    };
    let read = async {
        let mut seen = 0;
        while goes_on() {
            seen += look().await;
        }
        seen
    };
    let remove = async {
        tokio::join!(remove_often(&index, &partition), remove_often(&index, &partition));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let ((), written, seen) = tokio::join!(remove, write, read);
    assert!(written > 0 && seen > 0, "it was begun anew and looked at meanwhile: {written} {seen}");
    index.remove(partition.tenant(), partition.namespace()).await.expect("removed");
    change().await.expect("begun anew");
    assert_eq!(look().await, 1, "it is whole at the end");
}
