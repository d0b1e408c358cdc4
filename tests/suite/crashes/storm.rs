//! Killed at random moments under writes of every kind, again and again.
//!
//! `BULKHEAD_ROUNDS` says how often, `BULKHEAD_SEED` repeats the moments and writes of an earlier run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use bulkhead::domain::clock::SystemClock;
use bulkhead::domain::ids::{IdSource as _, SystemIds};
use serde_json::{Value, json};

use super::child::{Ground, Running};

/// Rounds when nothing else is asked for.
const ROUNDS: u64 = 20;
/// Documents of one writer.
const DOCUMENTS: usize = 4;
/// Each with a namespace of its own.
const NAMESPACES: [&str; 3] = ["default", "annex", "attic"];

/// A generator whose numbers follow from its seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// What is known of a document: the version that was last confirmed, if it is there, and those that were sent
/// later without an answer.
#[derive(Debug, Clone, Default)]
struct Known {
    sure: Option<u64>,
    maybe: Vec<Option<u64>>,
}

impl Known {
    fn sent(&mut self, state: Option<u64>, answered: bool) {
        if answered {
            self.sure = state;
            self.maybe.clear();
        } else {
            self.maybe.push(state);
        }
    }
}

/// One client, which writes into one namespace, one call after the other.
struct Writer {
    namespace: &'static str,
    documents: Vec<Known>,
    version: u64,
    dice: Dice,
}

impl Writer {
    fn text(document: usize, version: u64) -> String {
        let mut text = String::new();
        // Some have several chunks.
        for line in 0..if version.is_multiple_of(3) { 40 } else { 2 } {
            let _ = write!(text, "Berth {document} holds load {version} in line {line} of the register. ");
        }
        text
    }

    /// Writes until there is no answer.
    async fn storm(&mut self, ground: &Ground, server: &Running) {
        loop {
            let document = usize::try_from(self.dice.roll(DOCUMENTS as u64)).expect("small");
            let path = format!("/documents/berth-{document}");
            let what = self.dice.roll(20);
            let (request, state) = match what {
                0 => {
                    let whole = format!("/namespaces/{}", self.namespace);
                    (ground.request(server, "DELETE", &whole, "default"), None)
                }
                1..4 => (ground.request(server, "DELETE", &path, self.namespace), None),
                _ => {
                    self.version += 1;
                    let body = json!({"text": Self::text(document, self.version)});
                    (ground.request(server, "PUT", &path, self.namespace).json(&body), Some(self.version))
                }
            };
            let answer = ground.answered(request).await;
            if let Some((status, body)) = &answer {
                // 404: it was not there. Anything else is a success.
                assert!(*status < 300 || (*status == 404 && state.is_none()), "{status} {body}");
            }
            let answered = answer.is_some();
            for (number, known) in self.documents.iter_mut().enumerate() {
                if what == 0 || number == document {
                    known.sent(state, answered);
                }
            }
            if !answered {
                return;
            }
            let pause = self.dice.roll(30);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// What is there is what is known, once; what is known from now on is what is there.
    async fn check(&mut self, ground: &Ground, server: &Running, seed: u64) {
        let listed = ground.settled_in(server, self.namespace).await;
        let mut versions: BTreeMap<usize, BTreeSet<u64>> = BTreeMap::new();
        for (_, text) in ground.texts(server, self.namespace, "Berth").await {
            let mut words = text.split_whitespace().skip_while(|word| *word != "Berth").skip(1);
            let document = words.next().and_then(|word| word.parse().ok()).expect("a number");
            let version = words.nth(2).and_then(|word| word.parse().ok()).expect("a number");
            versions.entry(document).or_default().insert(version);
        }
        let about = format!("seed {seed}, {}: {listed:?}\n{}", self.namespace, ground.log());
        for (number, known) in self.documents.iter_mut().enumerate() {
            let id = json!(format!("berth-{number}"));
            let own: Vec<&Value> = listed.iter().filter(|document| document["id"] == id).collect();
            assert!(own.len() <= 1, "listed twice: {about}");
            assert!(own.iter().all(|document| document["status"] == "processed"), "{about}");
            let found = versions.remove(&number).unwrap_or_default();
            assert_eq!(found.len(), own.len(), "document {number} is listed and found: {found:?}, {about}");
            let state = found.first().copied();
            let may_be = state == known.sure || known.maybe.contains(&state);
            assert!(may_be, "document {number} is {state:?}, and was {known:?}: {about}");
            *known = Known { sure: state, maybe: Vec::new() };
        }
        assert!(versions.is_empty(), "what nobody wrote: {versions:?}, {about}");
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_under_writes_of_every_kind_keeps_what_it_confirmed_and_nothing_else() {
    let random = || u64::from_le_bytes(SystemIds(SystemClock).secret()[..8].try_into().expect("8 bytes"));
    let seed = number("BULKHEAD_SEED").unwrap_or_else(random);
    println!("BULKHEAD_SEED={seed}");
    let mut dice = Dice(seed);
    let ground = Ground::new("hashing").await;
    let mut writers: Vec<Writer> = NAMESPACES
        .iter()
        .map(|namespace| Writer {
            namespace,
            documents: vec![Known::default(); DOCUMENTS],
            version: 0,
            dice: Dice(dice.roll(u64::MAX)),
        })
        .collect();
    let mut server = ground.start(None).await;
    for _ in 0..number("BULKHEAD_ROUNDS").unwrap_or(ROUNDS) {
        let delay = Duration::from_millis(20 + dice.roll(1500));
        let storms = writers.iter_mut().map(|writer| writer.storm(&ground, &server));
        let pid = server.pid();
        let kill = async {
            tokio::time::sleep(delay).await;
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it runs");
        };
        tokio::join!(futures::future::join_all(storms), kill);
        assert!(!server.ended().success());
        server = ground.start(None).await;
        for writer in &mut writers {
            writer.check(&ground, &server, seed).await;
        }
    }
    let mut pieces = 0;
    for namespace in NAMESPACES {
        for document in ground.settled_in(&server, namespace).await {
            pieces += document["chunks_count"].as_i64().expect("chunks");
        }
    }
    assert_eq!(ground.chunks(&server).await, pieces, "seed {seed}");
    assert!(server.terminate().success());
}
