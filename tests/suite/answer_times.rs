//! How long an answer takes tells nothing of a neighbour: what is Bob's and what is nobody's take Alice equally long.
//!
//! Pairs are asked in turns, and the median of their differences is held inside a margin. The interval of the median
//! is that of the sign test, which assumes nothing of how times are distributed (Conover, Practical Nonparametric
//! Statistics). More pairs are asked while the interval is too wide to say.

use std::cell::Cell;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{Client, random, random_id, random_name, server, text};

/// Milliseconds that the interval must stay below, on either side.
const MARGIN: f64 = 0.5;
/// Pairs that are asked before the interval is looked at, each time.
const BLOCK: usize = 100;
/// Times that it is looked at, at most.
const BLOCKS: usize = 12;

/// Things of Bob's that are asked about in turn: how long the model takes depends on a word's parts, and one word is not
/// like the average of those that are nobody's.
const MANY: usize = 40;

/// A way to ask for something by name.
#[derive(Clone)]
enum Probe {
    Call(&'static str, String),
    Ask(String),
}

/// Makes something that exists and something that does not, each time anew.
type Pairs = Box<dyn Fn() -> (Probe, Probe)>;

impl Probe {
    /// Milliseconds until the answer is whole; the delay is counted.
    async fn make(&self, caller: &Client, delay: Duration) -> f64 {
        let begun = Instant::now();
        tokio::time::sleep(delay).await;
        match self {
            Self::Call(method, path) => caller.send(method, path, &serde_json::Value::Null).await,
            Self::Ask(question) => {
                let body = json!({"query": question, "mode": "naive", "chunk_top_k": 3});
                caller.send("POST", "/query/data", &body).await
            }
        };
        begun.elapsed().as_secs_f64() * 1000.0
    }
}

/// The 95% interval of the median.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "ranks of some hundreds of pairs"
)]
fn median_interval(differences: &[f64]) -> (f64, f64) {
    let mut sorted = differences.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let half = sorted.len() as f64 / 2.0;
    let reach = 1.96 * (sorted.len() as f64).sqrt() / 2.0;
    let at = |rank: f64| sorted[(rank.max(0.0) as usize).min(sorted.len() - 1)];
    (at((half - reach).floor()), at((half + reach).ceil()))
}

/// The interval of how much longer the first takes than the second, once it is inside the margin or no more is asked.
async fn difference(caller: &Client, pairs: impl Fn() -> (Probe, Probe), delay: Duration) -> (f64, f64) {
    let mut differences = Vec::new();
    let mut interval = (f64::NEG_INFINITY, f64::INFINITY);
    for _ in 0..BLOCKS {
        for turn in 0..BLOCK {
            let (exists, nowhere) = pairs();
            let (mut first, mut second) = (0.0, 0.0);
            for step in 0..2 {
                if (turn + step) % 2 == 0 {
                    first = exists.make(caller, delay).await;
                } else {
                    second = nowhere.make(caller, Duration::ZERO).await;
                }
            }
            differences.push(first - second);
        }
        interval = median_interval(&differences);
        if inside(interval) {
            break;
        }
    }
    interval
}

fn inside((low, high): (f64, f64)) -> bool {
    low > -MARGIN && high < MARGIN
}

#[tokio::test]
async fn what_is_anothers_takes_as_long_as_what_never_was() {
    let (alice, bob) = server().tenants().await;
    let known: Vec<(String, String)> = (0..MANY).map(|_| (random_name(), random(24))).collect();
    let sentence = |(person, word): &(String, String)| {
        format!("{person} keeps the light at {word}, and nobody else does.")
    };
    let made = bob.writer.put_document("kept", "The light", &sentence(&known[0])).await;
    let others: Vec<String> = known[1..].iter().map(sentence).collect();
    let sent = bob.writer.post("/documents/texts", &json!({ "texts": others }), 200).await;
    bob.writer.wait_processed(&text(&sent, "track_id")).await;
    let (job, track) = (text(&made, "job_id"), text(&made, "track_id"));
    alice.writer.put_document("own", "A boat", "The boat of the harbour is green.").await;
    let stem = track.rsplit_once('_').expect("a track").0.to_owned();

    let turn = Cell::new(0);
    let get = |path: String| Probe::Call("GET", path);
    let of_person = known[0].0.clone();
    let probes: Vec<(&str, Pairs)> = vec![
        (
            "a document",
            Box::new(move || (get("/documents/kept".to_owned()), get(format!("/documents/{}", random(4))))),
        ),
        (
            "a track",
            Box::new(move || {
                let status = |track: String| get(format!("/documents/track_status/{track}"));
                (status(track.clone()), status(format!("{stem}_{}", random(8))))
            }),
        ),
        (
            "a job",
            Box::new(move || {
                let cancel = |job: &str| Probe::Call("DELETE", format!("/jobs/{job}"));
                (cancel(&job), cancel(&random_id()))
            }),
        ),
        (
            "an entity",
            Box::new(move || {
                let exists =
                    |name: &str| get(format!("/graph/entity/exists?name={}", name.replace(' ', "%20")));
                (exists(&of_person), exists(&random_name()))
            }),
        ),
        (
            "a question",
            Box::new(move || {
                let ask = |person: &str, word: &str| {
                    Probe::Ask(format!("Where does {person} keep the light {word}?"))
                };
                let (person, word) = &known[turn.replace((turn.get() + 1) % MANY)];
                (ask(person, word), ask(&random_name(), &random(24)))
            }),
        ),
    ];
    for (what, pairs) in &probes {
        let interval = difference(&alice.reader, pairs, Duration::ZERO).await;
        assert!(inside(interval), "{what}: {interval:?} ms of the median difference");
    }
    let (_, pairs) = &probes[0];
    let interval = difference(&alice.reader, pairs, Duration::from_millis(2)).await;
    assert!(interval.0 > MARGIN, "a delay of 2 ms is not seen: {interval:?}");
}
