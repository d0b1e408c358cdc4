//! MongoDB killed and halted, and the server killed: questions are answered, operators act, and each event is in the
//! log once when it is over.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use mongodb::bson::{Document, doc};
use serde_json::{Value, json};

use crate::crashes::child::{Ground, PATIENCE, Running};
use crate::mongodb::Mongo;

/// What an operator's action may take while MongoDB does not answer.
const PROMPT: Duration = Duration::from_secs(5);

struct Site {
    ground: Ground,
    mongo: Mongo,
}

impl Site {
    async fn new() -> Self {
        let mongo = tokio::task::spawn_blocking(Mongo::stand_in).await.expect("a stand-in");
        let ground = Ground::new("hashing").await;
        ground.set(&mongo.settings());
        Self { ground, mongo }
    }

    /// Starts the server for the first time, with a document to be asked about.
    async fn first(&self) -> Running {
        let server = self.ground.start(None).await;
        let text = json!({"text": "The lamp of Osterkai was lit in 1897."});
        self.ground.try_post(&server, "/documents/text", &text, "").await.expect("an answer");
        self.ground.settled(&server).await;
        server
    }

    async fn ask(&self, server: &Running, number: usize) {
        let asked = json!({"query": format!("Which lamp is number {number}?"), "only_need_context": true});
        let request = self.ground.request(server, "POST", "/query", "default").json(&asked);
        let (status, answer) = self.ground.answered(request).await.expect("an answer");
        assert_eq!(status, 200, "{answer}");
    }

    /// Makes a tenant, suspends it and resumes it.
    async fn act(&self, name: &str) {
        let begun = Instant::now();
        let made = json!({"name": name, "reason": "a test"});
        let made = self.ground.operate("POST", "/admin/tenants", &made).await.expect("an answer");
        let id = made["tenant_id"].as_str().expect("a tenant").to_owned();
        for (verb, state) in [("suspend", "suspended"), ("resume", "active")] {
            let path = format!("/admin/tenants/{id}/{verb}");
            let view = self.ground.operate("POST", &path, &json!({"reason": name})).await.expect("an answer");
            assert_eq!(view["state"], state, "{view}");
        }
        assert!(begun.elapsed() < PROMPT, "an action waited for MongoDB: {:?}", begun.elapsed());
    }

    /// The bodies of everything that is there.
    async fn bodies(&self) -> Vec<Value> {
        let found = self.mongo.events().await.find(doc! {}).await.expect("found");
        let events: Vec<Document> = found.try_collect().await.expect("read");
        let body = |event: &Document| serde_json::from_str(event.get_str("body").expect("a text"));
        events.iter().map(|event| body(event).expect("JSON")).collect()
    }

    /// Waits until so many questions are there, and says how often each action of operators is.
    async fn arrived(&self, questions: usize) -> BTreeMap<String, usize> {
        let begun = Instant::now();
        loop {
            let mut actions = BTreeMap::new();
            for body in self.bodies().await {
                *actions.entry(body["action"].as_str().expect("an action").to_owned()).or_default() += 1;
            }
            let asked = actions.get("query.create").copied().unwrap_or(0);
            assert!(asked <= questions, "a question is there twice: {asked} of {questions}");
            if asked == questions {
                return actions;
            }
            assert!(begun.elapsed() < PATIENCE, "{asked} of {questions}: {}", self.ground.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until an operators' action with this reason is in both logs.
    async fn recorded(&self, reason: &str) {
        let begun = Instant::now();
        loop {
            let bodies = self.bodies().await;
            let of = |action: &str| {
                bodies.iter().filter(|body| body["action"] == action && body["reason"] == reason).count()
            };
            let counts = (of("tenant.suspend"), of("tenant.resume"));
            if counts == (2, 2) {
                return;
            }
            assert!(counts.0 <= 2 && counts.1 <= 2, "{counts:?}");
            assert!(begun.elapsed() < PATIENCE, "{counts:?}: {}", self.ground.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Every chain is whole, by the server's own word.
    async fn whole(&self) {
        for path in
            ["/admin/audit/chains".to_owned(), format!("/admin/tenants/{}/audit/chains", self.ground.tenant)]
        {
            let chains = self.ground.operate("GET", &path, &Value::Null).await.expect("an answer");
            let chains = chains.as_array().unwrap_or_else(|| panic!("{chains}"));
            assert!(!chains.is_empty() && chains.iter().all(|chain| chain["fault"].is_null()), "{chains:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mongodb_killed_and_halted_loses_no_event_and_holds_up_nobody() {
    let mut site = Site::new().await;
    let server = site.first().await;
    let mut asked = 0;
    let mut ask = async |site: &Site, count: usize| {
        for _ in 0..count {
            site.ask(&server, asked).await;
            asked += 1;
        }
        asked
    };
    ask(&site, 5).await;
    site.act("before").await;
    site.arrived(5).await;
    site.recorded("before").await;

    site.mongo.kill();
    ask(&site, 5).await;
    site.act("killed").await;
    ask(&site, 5).await;
    tokio::task::block_in_place(|| site.mongo.restart());
    site.arrived(15).await;
    site.recorded("killed").await;
    site.whole().await;

    site.mongo.halt(true);
    ask(&site, 5).await;
    site.act("halted").await;
    // Longer than a call's deadline, so that one is broken off in the middle.
    tokio::time::sleep(Duration::from_secs(2)).await;
    ask(&site, 5).await;
    site.mongo.halt(false);
    site.arrived(25).await;
    site.recorded("halted").await;
    site.whole().await;

    // Killed again and again while it is written to.
    for _ in 0..3 {
        ask(&site, 10).await;
        site.mongo.kill();
        ask(&site, 5).await;
        tokio::task::block_in_place(|| site.mongo.restart());
    }
    site.arrived(70).await;
    site.whole().await;
    assert!(server.terminate().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_servers_spooled_events_are_in_the_log_after_its_restart_once() {
    let mut site = Site::new().await;
    let server = site.first().await;
    for number in 0..5 {
        site.ask(&server, number).await;
    }
    site.arrived(5).await;
    site.mongo.kill();
    for number in 5..20 {
        site.ask(&server, number).await;
    }
    site.act("spooled").await;
    // Without a moment for anything to be written.
    site.ask(&server, 20).await;
    server.kill();
    // It starts without MongoDB, and goes on spooling.
    let server = site.ground.start(None).await;
    for number in 21..25 {
        site.ask(&server, number).await;
    }
    tokio::task::block_in_place(|| site.mongo.restart());
    site.arrived(25).await;
    site.recorded("spooled").await;
    site.whole().await;
    // Killed while it forwards, several times.
    let mut server = server;
    for round in 0..3 {
        for number in 0..10 {
            site.ask(&server, 25 + round * 10 + number).await;
        }
        tokio::time::sleep(Duration::from_millis(60 * u64::try_from(round).expect("a number"))).await;
        server.kill();
        server = site.ground.start(None).await;
    }
    site.arrived(55).await;
    site.whole().await;
    assert!(server.terminate().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_in_order_leaves_nothing_behind() {
    let site = Site::new().await;
    let server = site.first().await;
    for number in 0..10 {
        site.ask(&server, number).await;
    }
    assert!(server.terminate().success());
    site.arrived(10).await;
}
