//! Faults of the machine, of files and of clients, and what is left after each: every document that was accepted, once;
//! not a byte of a neighbour's; a server that recovers by itself, and a log that says what happened.
//!
//! `docs/faults.md` lists the faults and their tests. Crashes of the server and of PostgreSQL are in `crashes`.

mod clients;
mod clock;
mod descriptors;
mod disk;
mod overload;
mod shards;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::crashes::child::{Ground, PATIENCE, Running};
use crate::server::{random, random_id, random_name};

/// A tenant, and what it had accepted.
pub struct Party {
    pub id: String,
    pub key: String,
    /// In each of its texts and in nobody else's.
    pub canary: String,
    /// Name of each document that was accepted, and a word that it alone has.
    pub accepted: BTreeMap<String, String>,
    /// Calls that had no answer: they may have been carried out or not.
    open: Vec<Call>,
}

/// A call that brings documents: name, word and text of each.
struct Call {
    once: String,
    documents: Vec<(String, String, String)>,
}

impl Party {
    fn new((id, key): (String, String)) -> Self {
        Self { id, key, canary: format!("canary{}", random(24)), accepted: BTreeMap::new(), open: Vec::new() }
    }
}

/// A data folder, and two tenants whose documents outlive every fault.
pub struct Town {
    pub ground: Ground,
    pub parties: [Party; 2],
}

impl Town {
    /// A new folder with two tenants that have nothing yet; no server runs.
    pub async fn new() -> Self {
        Self::on(Ground::new("hashing").await).await
    }

    /// The same on this ground.
    pub async fn on(ground: Ground) -> Self {
        let first = (ground.tenant.clone(), ground.key().to_owned());
        let server = ground.start(None).await;
        let second = server.tenant(&ground).await;
        assert!(server.terminate().success());
        Self { ground, parties: [first, second].map(Party::new) }
    }

    /// A call of a tenant's.
    pub fn call(&self, server: &Running, party: usize, method: Method, path: &str) -> RequestBuilder {
        let key = &self.parties[party].key;
        self.ground.http.request(method, format!("{}{path}", server.url())).bearer_auth(key)
    }

    /// A tenant's file as a form.
    pub fn upload(&self, server: &Running, party: usize, name: &str, text: &str) -> RequestBuilder {
        let disposition = format!("Content-Disposition: form-data; name=\"file\"; filename=\"{name}\"");
        let body = format!("--edge\r\n{disposition}\r\n\r\n{text}\r\n--edge--\r\n");
        let request = self.call(server, party, Method::POST, "/documents/upload");
        request.header("Content-Type", "multipart/form-data; boundary=edge").body(body)
    }

    /// Each tenant sends so many documents. Returns how many were accepted; calls without an answer are sent again later.
    pub async fn send(&mut self, server: &Running, count: usize) -> usize {
        let mut accepted = 0;
        for party in 0..self.parties.len() {
            let canary = &self.parties[party].canary;
            let new = |_| {
                let (name, word) = (format!("log-{}.txt", random(12)), random_name() + &random_name());
                let text = format!("The log of the harbour speaks of {word} on one day. Signed {canary}.");
                (name, word, text)
            };
            let call = Call { once: random_id(), documents: (0..count).map(new).collect() };
            if self.sent(server, party, call).await {
                accepted += count;
            }
        }
        accepted
    }

    /// Sends a call, again or for the first time, and keeps what becomes of it.
    async fn sent(&mut self, server: &Running, party: usize, call: Call) -> bool {
        let texts: Vec<&str> = call.documents.iter().map(|(_, _, text)| text.as_str()).collect();
        let names: Vec<&str> = call.documents.iter().map(|(name, ..)| name.as_str()).collect();
        let body = json!({"texts": texts, "file_sources": names});
        let request = self.call(server, party, Method::POST, "/documents/texts").json(&body);
        let answer = self.ground.answered(request.header("Idempotency-Key", &call.once)).await;
        let Some((status, answer)) = answer else {
            self.parties[party].open.push(call);
            return false;
        };
        assert_eq!(status, 200, "{answer}");
        let documents = call.documents.into_iter().map(|(name, word, _)| (name, word));
        self.parties[party].accepted.extend(documents);
        true
    }

    /// Sends again what had no answer, until it has one.
    async fn send_again(&mut self, server: &Running) {
        let begun = Instant::now();
        for party in 0..self.parties.len() {
            for call in std::mem::take(&mut self.parties[party].open) {
                let mut waiting = Some(call);
                while let Some(call) = waiting.take() {
                    if !self.sent(server, party, call).await {
                        assert!(begun.elapsed() < PATIENCE, "it does not recover: {}", self.ground.log());
                        waiting = self.parties[party].open.pop();
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
            }
        }
    }

    /// Asks until there is an answer: whoever recovers may refuse for a while, and says when to come again.
    async fn patiently(&self, ask: impl Fn() -> RequestBuilder) -> (u16, String) {
        let begun = Instant::now();
        loop {
            if let Ok(answer) = ask().send().await {
                let (status, again) =
                    (answer.status().as_u16(), answer.headers().contains_key("retry-after"));
                if let (true, Ok(text)) = (status != 503 && status != 429, answer.text().await) {
                    assert!(status < 500, "{status} {text}\n{}", self.ground.log());
                    return (status, text);
                }
                assert!(again || status < 300, "{status} without Retry-After");
            }
            assert!(begun.elapsed() < PATIENCE, "it does not recover: {}", self.ground.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A tenant's documents when none waits any more.
    async fn settled(&self, server: &Running, party: usize) -> Vec<Value> {
        let begun = Instant::now();
        loop {
            let mut documents = Vec::new();
            for page in 1.. {
                let body =
                    json!({"page": page, "page_size": 200, "sort_field": "id", "sort_direction": "asc"});
                let ask = || self.call(server, party, Method::POST, "/documents/paginated").json(&body);
                let (status, text) = self.patiently(ask).await;
                assert_eq!(status, 200, "{text}");
                self.assert_own(party, &text);
                let listed: Value = serde_json::from_str(&text).expect("JSON");
                documents.extend(listed["documents"].as_array().expect("documents").iter().cloned());
                if listed["pagination"]["has_next"] != true {
                    break;
                }
            }
            if documents.iter().all(|one| one["status"] == "processed" || one["status"] == "failed") {
                return documents;
            }
            assert!(begun.elapsed() < PATIENCE, "documents wait without end: {}", self.ground.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What a question brings a tenant.
    async fn ask(&self, server: &Running, party: usize, question: &str) -> Value {
        let body = json!({"query": question, "mode": "naive", "chunk_top_k": 50});
        let ask = || self.call(server, party, Method::POST, "/query/data").json(&body);
        let (status, text) = self.patiently(ask).await;
        assert_eq!(status, 200, "{text}");
        self.assert_own(party, &text);
        serde_json::from_str(&text).expect("JSON")
    }

    fn assert_own(&self, party: usize, answer: &str) {
        let other = &self.parties[1 - party];
        assert!(!answer.contains(&other.canary) && !answer.contains(&other.id), "a neighbour's: {answer}");
    }

    /// What every fault leaves: all that was accepted, once, in the list and in answers, and nothing of a neighbour's.
    pub async fn check(&mut self, server: &Running) {
        self.send_again(server).await;
        for (party, own) in self.parties.iter().enumerate() {
            let listed = self.settled(server, party).await;
            let mut names: Vec<&str> = listed.iter().filter_map(|one| one["file_path"].as_str()).collect();
            names.sort_unstable();
            assert_eq!(names, own.accepted.keys().map(String::as_str).collect::<Vec<_>>(), "{listed:?}");
            for document in &listed {
                assert_eq!(document["status"], "processed", "{document}\n{}", self.ground.log());
                assert_eq!(document["chunks_count"], 1, "{document}");
            }
            for (name, word) in &own.accepted {
                let answer = self.ask(server, party, word).await;
                let chunks = answer["data"]["chunks"].as_array().expect("chunks");
                let holding: Vec<&Value> = chunks
                    .iter()
                    .filter(|chunk| chunk["content"].as_str().is_some_and(|text| text.contains(word)))
                    .map(|chunk| &chunk["file_path"])
                    .collect();
                assert_eq!(holding, [name], "{word}: {answer}");
            }
        }
    }

    /// Waits until the shards answer again, and not the database for them.
    pub async fn served_by_shards(&self, server: &Running) {
        let begun = Instant::now();
        for (party, own) in self.parties.iter().enumerate() {
            let word = own.accepted.values().next().expect("a document");
            while !self.ask(server, party, word).await["metadata"]["fallback"].is_null() {
                assert!(begun.elapsed() < PATIENCE, "no shard answers: {}", self.ground.log());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// Fails unless the servers' log has a line with these words.
    pub fn assert_told(&self, words: &str) {
        let log = self.ground.whole_log();
        assert!(log.contains(words), "the log does not say {words:?}:\n{log}");
    }
}
