//! Each store cut off, halted and killed in turn, while documents come in and questions are asked.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::Test;
use crate::nodes::{Answer, HASHING, Node, PATIENCE, Tenant, client};
use crate::proxy::Mode;
use crate::stores::{Fault, Name, Stores};

/// How long each fault lasts.
const FAULT: Duration = Duration::from_millis(2500);

/// Documents of each tenant before anything happens.
const BEFORE: usize = 4;

/// What networks do.
const NETWORK: [Fault; 4] = [
    Fault::Network(Mode::Dropped),
    Fault::Network(Mode::Reset),
    Fault::Network(Mode::BlackHole),
    Fault::Network(Mode::Delayed(Duration::from_millis(400))),
];

/// All of them.
pub fn tests() -> Vec<Test> {
    tests![
        whatever_happens_to_qdrant_answers_are_whole_and_it_is_used_again,
        whatever_happens_to_mongodb_nobody_waits_and_every_event_arrives,
        whatever_happens_to_redis_nobody_is_refused_and_it_counts_again,
        whatever_happens_to_neo4j_graphs_are_walked_in_memory_and_it_is_used_again,
        whatever_happens_to_the_way_to_postgresql_is_503_and_nothing_that_was_accepted_is_lost,
        a_server_that_starts_while_every_service_is_away_serves_from_its_database,
        a_server_that_starts_while_its_database_is_away_says_so_and_ends,
    ]
}

/// One server, two tenants with documents about the same thing, and who wrote what.
struct World {
    stores: Stores,
    node: Node,
    /// In which questions are asked.
    mode: &'static str,
    tenants: [Tenant; 2],
    /// Documents that were accepted, by number, of each tenant.
    accepted: [BTreeSet<usize>; 2],
    next: usize,
}

fn word(side: usize, number: usize) -> String {
    format!("lamp{}x{number}y", ["alice", "bob"][side])
}

/// What became of the calls of one fault.
#[derive(Debug, Default)]
struct Seen {
    /// Questions that were answered.
    asked: usize,
    refused: usize,
    /// Answers for which PostgreSQL was searched in Qdrant's place: when that is away, or a write behind.
    fallbacks: usize,
    /// Answers that say that their graph was walked in memory in Neo4j's place.
    in_memory: usize,
    slowest: Duration,
}

impl World {
    /// One in which questions go over no graph.
    async fn new(name: &str) -> Self {
        Self::over(Stores::start(name).await, "naive").await
    }

    async fn over(stores: Stores, mode: &'static str) -> Self {
        // An answer is asked to hold every document.
        let further = format!("{HASHING}\nretrieval.candidates = 1000");
        let node = Node::start(&stores, "node-1", &further).await;
        let tenants = [node.tenant().await, node.tenant().await];
        let accepted = [BTreeSet::new(), BTreeSet::new()];
        let mut world = Self { stores, node, mode, tenants, accepted, next: 0 };
        for _ in 0..BEFORE {
            let written = world.write().await;
            assert!(written.iter().all(|answer| answer.status.is_success()), "{written:?}");
        }
        world.recovered().await;
        world
    }

    /// A document of each tenant, at the same time.
    async fn write(&mut self) -> [Answer; 2] {
        let number = self.next;
        self.next += 1;
        let put = async |side: usize| {
            let text =
                format!("Ottoline Marsh keeps the lamp of Pier Nine, which is {}.", word(side, number));
            let body = json!({"text": text});
            self.node.ask(&self.tenants[side], "PUT", &format!("/documents/doc-{number}"), &body).await
        };
        let (alices, bobs) = tokio::join!(put(0), put(1));
        for (side, answer) in [&alices, &bobs].into_iter().enumerate() {
            if answer.status.is_success() {
                self.accepted[side].insert(number);
            }
        }
        [alices, bobs]
    }

    /// The same question of each tenant, at the same time.
    async fn ask(&self) -> [Answer; 2] {
        let query = "What is the lamp of Pier Nine that Ottoline Marsh keeps?";
        let body = json!({"query": query, "mode": self.mode, "chunk_top_k": 1000});
        let ask = |side: usize| self.node.ask(&self.tenants[side], "POST", "/query/data", &body);
        let (alices, bobs) = tokio::join!(ask(0), ask(1));
        [alices, bobs]
    }

    fn walks(&self) -> bool {
        self.mode != "naive"
    }

    /// An answer is whole, and its reader's own: every document from before the fault and what the graph has of them,
    /// and nothing of the neighbour's.
    fn whole(&self, side: usize, answer: &Answer) {
        let texts = answer.texts().join("\n");
        for number in 0..BEFORE {
            assert!(texts.contains(&word(side, number)), "doc-{number} of {side} is missing: {answer:?}");
        }
        let body = answer.body.to_string();
        assert!(!body.contains(["alice", "bob"][1 - side]), "a neighbour's: {body}");
        if self.walks() {
            assert!(answer.graph().is_some(), "no graph was walked: {body}");
            let entities = answer.body["data"]["entities"].to_string();
            assert!(entities.contains("Ottoline Marsh") && entities.contains("Pier Nine"), "{body}");
            assert_ne!(answer.body["data"]["relationships"], json!([]), "{body}");
        }
    }

    /// Writes and asks for as long as a fault lasts. An answer is whole, or says that the caller should come again.
    async fn load(&mut self, seen: &mut Seen) {
        let end = Instant::now() + FAULT;
        while Instant::now() < end {
            let begun = Instant::now();
            let asked = self.ask().await;
            for (side, answer) in asked.iter().enumerate() {
                if answer.status == StatusCode::OK {
                    self.whole(side, answer);
                    seen.asked += 1;
                    seen.fallbacks += usize::from(answer.fallback().is_some());
                    seen.in_memory += usize::from(answer.is_without_graph_index());
                }
            }
            let written = self.write().await;
            for answer in asked.iter().chain(&written) {
                if answer.status.is_success() {
                    continue;
                }
                assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
                assert!(answer.retry_after.is_some() && answer.body["slug"].is_string(), "{answer:?}");
                seen.refused += 1;
            }
            seen.slowest = seen.slowest.max(begun.elapsed());
        }
    }

    /// Without a hand: what was accepted is found once, by the index, and nothing else is there.
    async fn recovered(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let asked = self.ask().await;
            let found = |side: usize| -> bool {
                let answer = &asked[side];
                let texts = answer.texts();
                let has = |number: &usize| texts.iter().any(|text| text.contains(&word(side, *number)));
                answer.status == StatusCode::OK
                    && answer.fallback().is_none()
                    && (!self.walks() || answer.graph() == Some("neo4j"))
                    && self.accepted[side].iter().all(has)
            };
            if found(0) && found(1) {
                break;
            }
            assert!(Instant::now() < end, "it does not recover: {asked:?}\n{}", self.node.told());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let once = "select count(*), count(distinct (tenant_id, document_id)) from chunk";
        let (chunks, documents): (i64, i64) =
            sqlx::query_as(once).fetch_one(&mut self.stores.connection().await).await.expect("counts");
        assert_eq!(chunks, documents, "a document is there twice");
    }

    /// A fault of a service, its end, and what was seen meanwhile.
    async fn through(&mut self, name: Name, fault: Fault) -> Seen {
        let mut seen = Seen::default();
        self.stores.service(name).suffer(fault);
        self.load(&mut seen).await;
        self.stores.service(name).mend(fault);
        self.recovered().await;
        println!("{name:?} {fault:?}: {seen:?}");
        seen
    }

    async fn left_alone(&self, service: &str) -> bool {
        let report = self.node.operate("GET", "/admin/doctor", &Value::Null, 200).await;
        let findings = report["findings"].as_array().expect("findings");
        findings.iter().any(|finding| {
            finding["check"] == "stores.resting"
                && finding["what"].as_str().expect("words").starts_with(service)
        })
    }

    /// Who is left alone is told, until it answers.
    async fn tells(&mut self, name: Name, service: &str) {
        self.stores.service(name).suffer(Fault::Killed);
        let end = Instant::now() + PATIENCE;
        while !self.left_alone(service).await {
            assert!(Instant::now() < end, "it is not told");
            self.ask().await;
        }
        self.stores.service(name).mend(Fault::Killed);
        self.recovered().await;
        assert!(!self.left_alone(service).await);
    }

    async fn end(mut self) {
        self.node.stop().await;
        self.stores.stop().await;
    }
}

async fn whatever_happens_to_qdrant_answers_are_whole_and_it_is_used_again() {
    let mut world = World::new("cut-off-qdrant").await;
    for fault in NETWORK.into_iter().chain([Fault::Halted, Fault::Killed]) {
        let seen = world.through(Name::Qdrant, fault).await;
        assert_eq!(seen.refused, 0, "{fault:?}: {seen:?}");
        if !matches!(fault, Fault::Network(Mode::Delayed(_))) {
            assert!(seen.fallbacks > 0, "{fault:?}: {seen:?}");
        }
    }
    world.tells(Name::Qdrant, "qdrant").await;
    world.end().await;
}

async fn whatever_happens_to_mongodb_nobody_waits_and_every_event_arrives() {
    let mut world = World::new("cut-off-mongodb").await;
    for fault in NETWORK {
        let seen = world.through(Name::Mongodb, fault).await;
        assert_eq!(seen.refused, 0, "{fault:?}: {seen:?}");
        assert!(seen.slowest < Duration::from_secs(5), "{fault:?}: {seen:?}");
    }
    // Every accepted write is in the log once, and no other.
    let end = Instant::now() + PATIENCE;
    for (side, tenant) in world.tenants.iter().enumerate() {
        let path = format!("/admin/tenants/{}/audit/days", tenant.id);
        loop {
            let answer = world.node.operated("GET", &path, &Value::Null).await;
            let days = answer.body.as_array().into_iter().flatten().filter(|day| day["kind"] == "write");
            let events: u64 = days.filter_map(|day| day["events"].as_u64()).sum();
            if events == world.accepted[side].len() as u64 {
                break;
            }
            assert!(Instant::now() < end, "{} writes and {answer:?}", world.accepted[side].len());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    world.end().await;
}

async fn whatever_happens_to_redis_nobody_is_refused_and_it_counts_again() {
    let mut world = World::new("cut-off-redis").await;
    for fault in NETWORK {
        let seen = world.through(Name::Redis, fault).await;
        assert_eq!(seen.refused, 0, "{fault:?}: {seen:?}");
        assert!(seen.slowest < Duration::from_secs(5), "{fault:?}: {seen:?}");
    }
    let end = Instant::now() + PATIENCE;
    while world.left_alone("redis").await {
        assert!(Instant::now() < end, "it is not used again");
        world.ask().await;
    }
    world.end().await;
}

async fn whatever_happens_to_neo4j_graphs_are_walked_in_memory_and_it_is_used_again() {
    let mut world = World::over(Stores::with_own_neo4j("cut-off-neo4j").await, "mix").await;
    for fault in NETWORK.into_iter().chain([Fault::Halted, Fault::Killed]) {
        let seen = world.through(Name::Neo4j, fault).await;
        assert!(seen.refused == 0 && seen.asked > 0, "{fault:?}: {seen:?}");
        assert!(seen.slowest < Duration::from_secs(5), "{fault:?}: {seen:?}");
        if !matches!(fault, Fault::Network(Mode::Delayed(_))) {
            assert_eq!(seen.in_memory, seen.asked, "{fault:?}: {seen:?}");
        }
    }
    world.tells(Name::Neo4j, "neo4j").await;
    world.end().await;
}

async fn whatever_happens_to_the_way_to_postgresql_is_503_and_nothing_that_was_accepted_is_lost() {
    let mut world = World::new("cut-off-postgresql").await;
    for fault in NETWORK {
        let Fault::Network(mode) = fault else { continue };
        // A request makes a dozen statements, each of which is delayed several times.
        let mode =
            if matches!(mode, Mode::Delayed(_)) { Mode::Delayed(Duration::from_millis(100)) } else { mode };
        let mut seen = Seen::default();
        world.stores.postgres.set(mode);
        world.load(&mut seen).await;
        let alive = client().get(format!("{}/health", world.node.url)).send().await.expect("an answer");
        assert_eq!(alive.status(), StatusCode::OK, "liveness is the process' own");
        world.stores.postgres.set(Mode::Open);
        world.recovered().await;
        println!("PostgreSQL {mode:?}: {seen:?}");
        if !matches!(mode, Mode::Delayed(_)) {
            assert!(seen.refused > 0 && seen.fallbacks == 0, "{mode:?}: {seen:?}");
        }
    }
    world.end().await;
}

async fn a_server_that_starts_while_every_service_is_away_serves_from_its_database() {
    let mut world = World::over(Stores::start("cut-off-start").await, "mix").await;
    world.node.stop().await;
    for service in &world.stores.services {
        service.proxy.set(Mode::Dropped);
    }
    world.node.run();
    world.node.ready().await;
    let mut seen = Seen::default();
    world.load(&mut seen).await;
    assert!(seen.refused == 0 && seen.fallbacks > 0, "{seen:?}");
    assert!(seen.asked > 0 && seen.in_memory == seen.asked, "{seen:?}");
    for service in &world.stores.services {
        service.proxy.set(Mode::Open);
    }
    world.recovered().await;
    world.end().await;
}

async fn a_server_that_starts_while_its_database_is_away_says_so_and_ends() {
    let mut world = World::new("cut-off-database").await;
    world.node.stop().await;
    world.stores.postgres.set(Mode::Dropped);
    world.node.run();
    let status = world.node.ended().await;
    assert!(!status.success() && !world.node.listens());
    assert!(world.node.told().contains("PostgreSQL"), "{}", world.node.told());
    world.stores.postgres.set(Mode::Open);
    world.node.run();
    world.node.ready().await;
    world.recovered().await;
    world.end().await;
}
