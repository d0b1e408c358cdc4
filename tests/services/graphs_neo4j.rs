//! Graphs in Neo4j: what is somebody else's, what comes late, what is deleted, and a server that hangs or is killed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bulkhead::domain::Seq;
use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{ChunkId, TenantId};
use bulkhead::retrieval::graph::Known;
use bulkhead::store::graph::{GraphChange, GraphIndex, GraphLoaded, GraphWanted, LinkedChunk, LinkedGroup};
use bulkhead::store::layers::{CallSettings, Calls};
use bulkhead::store::neo4j::{Neo4jGraph, Neo4jSettings};
use bulkhead::store::{ErrorKind, Partition, StoreError};
use neo4rs::{Graph, Query};

use crate::Test;
use crate::graphs::{Place, chunk_id, fleet, neo4j, partition};
use crate::limits::id;
use crate::neo4j_server::{DEADLINE, Neo4jServer, index, nodes_of, number, raw, shared};

/// All of them.
pub fn tests() -> Vec<Test> {
    tests![
        what_is_anothers_is_led_over_nowhere_and_counted,
        what_leads_out_is_found_however_many_pages_there_are,
        a_tenant_that_holds_its_share_keeps_no_other_waiting_and_counts_against_nobody,
        a_change_leads_on_from_one_graph_alone,
        of_changes_at_once_from_one_graph_one_is_made,
        a_chunk_that_goes_takes_what_it_alone_led_to,
        hostile_names_are_nowhere_in_it,
        answers_are_never_swapped_however_many_are_given_up,
        one_that_hangs_or_is_killed_is_told_and_used_again,
        a_wrong_password_is_told_as_away,
        a_document_of_a_thousand_chunks_is_written,
    ]
}

/// Everything that an index says of a graph, in order.
pub async fn everything(place: &Place) -> (GraphLoaded, Vec<(u64, u64)>, HashMap<ChunkId, i64>) {
    let index = place.index.as_ref().expect("an index");
    let chunks: Vec<LinkedChunk> = place.graph.linked().collect();
    let groups = || chunks.iter().flat_map(|chunk| &chunk.groups);
    let entities = || chunks.iter().flat_map(|chunk| chunk.names.iter().chain(&chunk.concepts)).copied();
    let distinct = |mut keys: Vec<u64>| {
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    let titles = distinct(groups().map(|group| group.title).collect());
    let wanted = GraphWanted {
        chunks: chunks.iter().map(|chunk| chunk.chunk).collect(),
        titles: titles.clone(),
        members: distinct(groups().map(|group| group.group).collect()),
        namers: titles,
        rare: distinct(entities().collect()),
        mentions: distinct(entities().collect()),
    };
    let mut loaded = index.load(&place.partition, &wanted, Known::BOUNDS).await.expect("loaded");
    loaded.chunks.sort_by_key(|chunk| chunk.chunk);
    for lists in [&mut loaded.members, &mut loaded.namers, &mut loaded.rare] {
        for (_, list) in lists.iter_mut() {
            list.sort_unstable();
        }
        lists.sort();
    }
    loaded.titles.sort();
    loaded.mentions.iter_mut().for_each(|(_, list)| list.sort_by_key(|mention| mention.chunk));
    loaded.mentions.sort_by_key(|(key, _)| *key);
    let top = index.top(&place.partition, 1000).await.expect("a list");
    (loaded, top, index.marks(&place.partition).await.expect("marks"))
}

pub async fn run(raw: &Graph, place: &Partition, text: &str, tenant: TenantId, namespace: uuid::Uuid) -> i64 {
    let query = text
        .replace("%T", &format!("T_{}", place.tenant().0.simple()))
        .replace("%OWN", "tenant_id: $tenant, namespace_id: $namespace")
        .replace("%OTHER", "tenant_id: $other, namespace_id: $elsewhere");
    let query = Query::new(query)
        .param("tenant", place.tenant().to_string())
        .param("namespace", place.namespace().to_string())
        .param("other", tenant.to_string())
        .param("elsewhere", namespace.to_string());
    number(raw, query).await
}

/// Kinds of relations: from, relation, to.
const HOPS: [(&str, &str, &str); 4] = [
    ("Chunk", "MENTIONS", "Entity"),
    ("Chunk", "PART_OF", "Group"),
    ("Group", "TITLED", "Title"),
    ("Chunk", "NAMES", "Title"),
];

async fn what_is_anothers_is_led_over_nowhere_and_counted() {
    let (mut place, raw) = (neo4j(), raw(&shared()).await);
    let all = fleet(&place.partition);
    place.change(all, &[]).await;
    let before = everything(&place).await;
    let index = place.index.clone().expect("an index");
    assert_eq!(index.strays(&place.partition).await.expect("counted"), 0);
    let (tenant, namespace) = (place.partition.tenant(), place.partition.namespace().0);
    // Another tenant's, and another namespace's of the same tenant.
    for (other, elsewhere) in [(TenantId(id()), namespace), (tenant, id())] {
        for (from, relation, to) in HOPS {
            // A relation of another's between all that is the partition's own.
            let made = format!(
                "MATCH (a:{from}:%T {{%OWN}}), (b:{to}:%T {{%OWN}})
                 CREATE (a)-[r:{relation} {{%OTHER, name: true, concept: true}}]->(b) RETURN count(r) AS n"
            );
            assert!(run(&raw, &place.partition, &made, other, elsewhere).await > 0, "{relation}");
            // A node of another's, under the partition's own label, in the middle of its own relations.
            for (kind, own, made) in [
                (to, from, format!("CREATE (own)-[r:{relation} {{%OWN, name: true, concept: true}}]->(x)")),
                (from, to, format!("CREATE (x)-[r:{relation} {{%OWN, name: true, concept: true}}]->(own)")),
            ] {
                let key = if kind == "Chunk" {
                    format!("'{}'", id())
                } else {
                    id().as_u64_pair().0.cast_signed().to_string()
                };
                let planted = format!(
                    "CREATE (x:{kind}:%T {{%OTHER, key: {key}, mark: 1}}) WITH x
                     MATCH (own:{own}:%T {{%OWN}}) {made} RETURN count(r) AS n"
                );
                assert!(run(&raw, &place.partition, &planted, other, elsewhere).await > 0, "{planted}");
            }
        }
        assert_eq!(everything(&place).await, before);
        assert!(index.strays(&place.partition).await.expect("counted") > 0);
    }
    // A node with another tenant's label in the middle of what is the partition's own in every property.
    let label = format!("T_{}", id().simple());
    let planted = format!(
        "CREATE (x:Entity:{label} {{%OWN, key: 1}}) WITH x MATCH (own:Chunk:%T {{%OWN}})
         CREATE (own)-[r:MENTIONS {{%OWN, name: true, concept: true}}]->(x) RETURN count(r) AS n"
    );
    assert!(run(&raw, &place.partition, &planted, tenant, namespace).await > 0);
    assert_eq!(everything(&place).await, before);
    // The same with nothing of another's about it is seen: the comparison is not blind.
    let own = "MATCH (a:Chunk:%T {%OWN}), (b:Entity:%T {%OWN})
         CREATE (a)-[r:MENTIONS {%OWN, name: true, concept: true}]->(b) RETURN count(r) AS n";
    assert!(run(&raw, &place.partition, own, tenant, namespace).await > 0);
    assert_ne!(everything(&place).await, before);
}

/// Writes a graph of these chunks, five hundred at a time.
pub async fn write(
    index: &Neo4jGraph,
    partition: &Partition,
    chunks: Vec<LinkedChunk>,
) -> Result<(), StoreError> {
    let head = index.begin(partition, id()).await?;
    let ids = bulkhead::domain::ids::SystemIds(SystemClock);
    let whole = bulkhead::store::graph::WholeGraph { seq: Seq(1), chunks };
    bulkhead::store::graph::bring(index, partition, head, &whole, (500, &ids)).await.map(drop)
}

async fn what_leads_out_is_found_however_many_pages_there_are() {
    let (index, partition, raw) = (index(shared()), partition(), raw(&shared()).await);
    // Of each kind more than a page, with keys from end to end of their range.
    let key = |n: u64| (1_u64 << 63).wrapping_add(n * (u64::MAX / 1099));
    let chunk = |n: u64| LinkedChunk {
        names: vec![key(n)],
        groups: vec![LinkedGroup { group: key(n), title: key(n) }],
        named: vec![0],
        ..linked(u128::from(n) + 1, &[])
    };
    write(&index, &partition, (0..1100).map(chunk).collect()).await.expect("written");
    assert_eq!(index.strays(&partition).await.expect("counted"), 0);
    let mut planted = 0;
    for kind in ["Chunk", "Entity", "Group", "Title", "Head"] {
        for order in ["", "DESC"] {
            let stray = format!(
                "MATCH (n:{kind}:%T {{%OWN}}) WITH n ORDER BY n.key {order} LIMIT 1
                 CREATE (n)-[r:MENTIONS {{%OTHER}}]->(:Chunk {{%OTHER}}) RETURN count(r) AS n"
            );
            assert_eq!(run(&raw, &partition, &stray, TenantId(id()), id()).await, 1, "{kind}");
            planted += 1;
            assert_eq!(index.strays(&partition).await.expect("counted"), planted, "{kind} {order}");
        }
    }
    index.remove(partition.tenant(), partition.namespace()).await.expect("removed");
}

async fn a_tenant_that_holds_its_share_keeps_no_other_waiting_and_counts_against_nobody() {
    let (alice, bob, raw) = (partition(), partition(), raw(&shared()).await);
    let calls = std::sync::Arc::<Calls>::default();
    let narrow = Neo4jSettings { connections: 3, tenant_connections: 1, wait_ms: 200, ..shared() };
    let failures = narrow.calls.breaker_failures;
    let index = Neo4jGraph::new(narrow, std::sync::Arc::clone(&calls), std::sync::Arc::new(SystemClock));
    for partition in [&alice, &bob] {
        write(&index, partition, vec![linked(1, &[1])]).await.expect("written");
    }
    let first = change(&index, &alice, vec![linked(2, &[1])], 2).await;
    let changes = [0, 1, 2].map(|_| GraphChange { to: id(), ..first.clone() });
    // Whoever changes her graph waits for this.
    let mut lock = raw.start_txn().await.expect("a transaction");
    let text = format!("MATCH (h:Head:T_{} {{key: 'head'}}) SET h.locked = true", alice.tenant().0.simple());
    lock.run(Query::new(text)).await.expect("locked");
    let changing = futures::future::join_all(changes.iter().map(|change| index.apply(&alice, change)));
    let asking = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        for _ in 0..2 * failures {
            let refused = index.head(&alice).await.expect_err("her share is in use");
            assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused}");
            assert!(index.head(&bob).await.expect("answered").is_some());
            assert!(!index.is_left_alone() && calls.left_alone().is_empty());
        }
        lock.rollback().await.expect("unlocked");
    };
    let (ended, ()) = tokio::join!(changing, asking);
    assert_eq!(ended.iter().filter(|ended| ended.is_ok()).count(), 1, "{ended:?}");
    assert!(index.head(&alice).await.expect("answered").is_some());
}

/// A change of a few chunks from where a graph is.
pub async fn change(
    index: &Neo4jGraph,
    partition: &Partition,
    added: Vec<LinkedChunk>,
    seq: i64,
) -> GraphChange {
    let head = index.begin(partition, id()).await.expect("a head");
    let chunks = added.len() as u64;
    GraphChange { from: head.token, to: id(), removed: Vec::new(), added, seq: Some(Seq(seq)), chunks }
}

pub fn linked(n: u128, names: &[u64]) -> LinkedChunk {
    LinkedChunk {
        chunk: chunk_id(n),
        own: None,
        names: names.to_vec(),
        concepts: vec![u64::MAX],
        groups: Vec::new(),
        named: vec![8],
    }
}

async fn a_change_leads_on_from_one_graph_alone() {
    let (index, partition) = (index(shared()), partition());
    let first = change(&index, &partition, vec![linked(1, &[1]), linked(2, &[1, 2])], 1).await;
    let late = GraphChange { to: id(), added: vec![linked(3, &[3])], ..first.clone() };
    index.apply(&partition, &first).await.expect("applied");
    let removal = GraphChange {
        from: first.to,
        to: id(),
        removed: vec![chunk_id(2)],
        added: Vec::new(),
        seq: Some(Seq(2)),
        chunks: 1,
    };
    index.apply(&partition, &removal).await.expect("applied");
    let after = index.marks(&partition).await.expect("marks");
    assert_eq!(after.len(), 1);
    // Twice, late, and in another order: nothing is done, and what was removed does not come back.
    for change in [&first, &late, &removal, &first] {
        let refused = index.apply(&partition, change).await.expect_err("refused");
        assert_eq!(refused.kind, ErrorKind::Conflict);
    }
    assert_eq!(index.marks(&partition).await.expect("marks"), after);
    let head = index.head(&partition).await.expect("a head").expect("a graph");
    assert_eq!((head.seq, head.chunks, head.token), (Some(Seq(2)), 1, removal.to));
}

async fn of_changes_at_once_from_one_graph_one_is_made() {
    let (index, partition) = (index(shared()), partition());
    let first = change(&index, &partition, Vec::new(), 1).await;
    for round in 0..5 {
        let from = index.head(&partition).await.expect("a head").map_or(first.from, |head| head.token);
        let changes: Vec<GraphChange> = (0..8_u128)
            .map(|n| GraphChange {
                from,
                to: id(),
                added: vec![linked(100 * round + n, &[1, 2])],
                ..first.clone()
            })
            .collect();
        let applied =
            futures::future::join_all(changes.iter().map(|change| index.apply(&partition, change))).await;
        let made: Vec<bool> = applied.iter().map(Result::is_ok).collect();
        assert_eq!(made.iter().filter(|made| **made).count(), 1, "{applied:?}");
        let chunks = index.marks(&partition).await.expect("marks").len();
        assert_eq!(chunks, usize::try_from(round).expect("few") + 1);
    }
}

async fn a_chunk_that_goes_takes_what_it_alone_led_to() {
    let (mut place, raw) = (neo4j(), raw(&shared()).await);
    let all = fleet(&place.partition);
    place.change(all.clone(), &[]).await;
    let kinds = async || {
        let label = format!("T_{}", place.partition.tenant().0.simple());
        number(&raw, Query::new(format!("MATCH (n:{label}) RETURN count(n) AS n"))).await
    };
    let (whole, mut places) = (kinds().await, Vec::new());
    let ids: Vec<ChunkId> = all.iter().map(|chunk| chunk.chunk).collect();
    for gone in &ids {
        place.change(Vec::new(), &[*gone]).await;
        places.push(nodes_of(&raw, place.partition.tenant()).await);
    }
    assert!(places[0] < whole && places.is_sorted_by(|a, b| a > b), "{whole} {places:?}");
    // The head alone.
    assert_eq!(places.last(), Some(&1));
}

async fn hostile_names_are_nowhere_in_it() {
    let (mut place, raw) = (neo4j(), raw(&shared()).await);
    let mut all = fleet(&place.partition);
    let hostile = "Canary`\\u0060}) DETACH DELETE n // Canaryname";
    all[0].title = Some(hostile.to_owned());
    hostile.clone_into(&mut all[0].document);
    all[0].text = format!("{hostile} was built by Canaryname Yard.");
    place.change(all, &[]).await;
    let found = place.ask(|graph| graph.entities_for(hostile, &[(chunk_id(1), 1.0)], 20)).await;
    assert!(!found.is_empty());
    let label = format!("T_{}", place.partition.tenant().0.simple());
    let texts = format!(
        "MATCH (n:{label}) UNWIND keys(n) AS key WITH n, key WHERE toLower(toString(n[key])) CONTAINS 'canary'
         RETURN count(n) AS n"
    );
    assert_eq!(number(&raw, Query::new(texts)).await, 0);
    let labels =
        "CALL db.labels() YIELD label WHERE NOT label =~ '(T_[0-9a-f]{32}|Chunk|Entity|Title|Group|Head)'
        RETURN count(label) AS n";
    assert_eq!(number(&raw, Query::new(labels.to_owned())).await, 0);
}

async fn answers_are_never_swapped_however_many_are_given_up() {
    let (mut alice, mut bob) = (neo4j(), neo4j());
    for place in [&mut alice, &mut bob] {
        let all = fleet(&place.partition);
        place.change(all, &[]).await;
    }
    // One connection, which everything goes over.
    let narrow = index(Neo4jSettings { connections: 1, ..shared() });
    for place in [&mut alice, &mut bob] {
        place.index = Some(narrow.clone());
    }
    let (hers, his) = (everything(&alice).await, everything(&bob).await);
    assert_ne!(hers, his);
    let mut given_up = 0;
    for round in 0..60_u64 {
        let patience = Duration::from_micros(200 + 150 * (round % 30));
        given_up += u32::from(tokio::time::timeout(patience, everything(&alice)).await.is_err());
        assert_eq!(everything(&bob).await, his);
    }
    assert!(given_up > 10, "{given_up}");
    assert_eq!(everything(&alice).await, hers);
}

/// Whether a call failed as one does whose server is away.
fn is_away<T: std::fmt::Debug>(called: &Result<T, StoreError>) -> bool {
    let kind = called.as_ref().map_err(|error| error.kind);
    matches!(kind, Err(ErrorKind::Unavailable | ErrorKind::Timeout))
}

async fn one_that_hangs_or_is_killed_is_told_and_used_again() {
    let mut server = tokio::task::spawn_blocking(Neo4jServer::start).await.expect("it starts");
    let settings = server.settings();
    let mut place = neo4j();
    let calls = CallSettings { deadline_ms: 4000, ..settings.calls };
    place.index = Some(index(settings.clone()));
    let all = fleet(&place.partition);
    place.change(all, &[]).await;
    let before = everything(&place).await;
    let index = index(Neo4jSettings { calls, ..settings });

    server.process.pause();
    let begun = Instant::now();
    let called = index.head(&place.partition).await;
    assert!(is_away(&called) && begun.elapsed() < DEADLINE, "{called:?} {:?}", begun.elapsed());
    server.process.resume();
    answers_again(&index, &place).await;
    assert_eq!(everything(&place).await, before);

    server.process.kill();
    assert!(is_away(&index.head(&place.partition).await));
    tokio::task::block_in_place(|| server.restart());
    answers_again(&index, &place).await;
    // What was written lasts.
    assert_eq!(everything(&place).await, before);
    place.change(Vec::new(), &[chunk_id(1)]).await;
}

async fn answers_again(index: &Neo4jGraph, place: &Place) {
    let end = Instant::now() + Duration::from_mins(1);
    while is_away(&index.head(&place.partition).await) {
        assert!(Instant::now() < end, "it is not used again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn a_wrong_password_is_told_as_away() {
    // Once: after three Neo4j would lock out the others too.
    let calls = CallSettings { attempts: 1, ..shared().calls };
    let wrong = Neo4jSettings { password: Some("canary".into()), calls, ..shared() };
    let called = index(wrong).head(&partition()).await;
    assert!(is_away(&called), "{called:?}");
    assert!(!format!("{called:?}").contains("canary"), "{called:?}");
}

/// Prints how long it takes: twenty entities to a chunk, of which every fourth is its own.
async fn a_document_of_a_thousand_chunks_is_written() {
    let (index, partition) = (index(shared()), partition());
    let chunk = |n: u64| LinkedChunk {
        names: (0..20)
            .map(|k| if k % 4 == 0 { 1_000_000 + n * 20 + k } else { (n * 7 + k * 13) % 500 })
            .collect(),
        ..linked(u128::from(n) + 1, &[])
    };
    let all: Vec<LinkedChunk> = (0..1000).map(chunk).collect();
    let begun = Instant::now();
    write(&index, &partition, all).await.expect("written");
    println!("a graph of 1,000 chunks is written in {:.2} s", begun.elapsed().as_secs_f64());
    assert_eq!(index.marks(&partition).await.expect("marks").len(), 1000);
    index.remove(partition.tenant(), partition.namespace()).await.expect("removed");
}
