//! Keys that an issuer publishes at an address and changes, and what an address may be.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::world::{FakeClock, Signer};
use crate::tenancy::jwks::{KeyRing, KeysAway};
use crate::tenancy::settings::{KeySource, TokenAlgorithm};

const MESSAGE: &[u8] = b"header.claims";

/// An issuer's address on loopback.
struct Published {
    url: String,
    answer: Arc<Mutex<(&'static str, String)>>,
    asked: Arc<AtomicUsize>,
    server: JoinHandle<()>,
}

impl Drop for Published {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Published {
    async fn new(keys: &[Value]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/keys", listener.local_addr().expect("an address"));
        let answer = Arc::new(Mutex::new(("200 OK", json!({"keys": keys}).to_string())));
        let asked = Arc::new(AtomicUsize::new(0));
        let (answers, count) = (Arc::clone(&answer), Arc::clone(&asked));
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (status, body) = answers.lock().clone();
                let mut request = [0; 4096];
                assert!(stream.read(&mut request).await.is_ok_and(|read| read > 0));
                let head = format!(
                    "HTTP/1.1 {status}\r\nlocation: /elsewhere\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all(format!("{head}{body}").as_bytes()).await.ok();
            }
        });
        Self { url, answer, asked, server }
    }

    fn publish(&self, keys: &[Value]) {
        *self.answer.lock() = ("200 OK", json!({"keys": keys}).to_string());
    }

    fn fail(&self, status: &'static str) {
        *self.answer.lock() = (status, String::new());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn ring(&self, clock: &Arc<FakeClock>) -> Arc<KeyRing> {
        let source = KeySource::JwksUrl(self.url.clone());
        KeyRing::open(&source, TokenAlgorithm::EdDSA, clock.clone()).expect("a ring")
    }
}

/// Whether the ring's key of this id is the signer's.
async fn has(ring: &Arc<KeyRing>, kid: &str, signer: &Signer) -> Result<bool, KeysAway> {
    use base64::Engine;
    let signature = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(signer.sign(MESSAGE));
    Ok(ring.find(Some(kid)).await?.is_some_and(|key| key.verifies(MESSAGE, &signature)))
}

#[tokio::test]
async fn a_new_key_is_found_and_a_withdrawn_one_is_forgotten() {
    let (old, new) = (Signer::ed(1), Signer::ed(2));
    let published = Published::new(&[old.jwk("old")]).await;
    let clock = FakeClock::new();
    let ring = published.ring(&clock);
    assert_eq!(published.asked(), 0, "nothing is fetched before a token comes");
    assert_eq!(has(&ring, "old", &old).await, Ok(true));
    published.publish(&[old.jwk("old"), new.jwk("new")]);
    clock.pass(Duration::from_secs(10));
    assert_eq!(has(&ring, "new", &new).await, Ok(true));
    assert_eq!(published.asked(), 2);
    published.publish(&[new.jwk("new")]);
    clock.pass(Duration::from_secs(299));
    assert_eq!(has(&ring, "old", &old).await, Ok(true), "the set is fresh");
    clock.pass(Duration::from_secs(1));
    assert_eq!(has(&ring, "old", &old).await, Ok(false));
    assert_eq!(published.asked(), 3);
}

#[tokio::test]
async fn invented_key_ids_cannot_flood_an_issuer() {
    let signer = Signer::ed(1);
    let published = Published::new(&[signer.jwk("one")]).await;
    let clock = FakeClock::new();
    let ring = published.ring(&clock);
    let asking = (0..100).map(|n| {
        let ring = Arc::clone(&ring);
        async move { ring.find(Some(&format!("invented-{n}"))).await.map(|key| key.is_some()) }
    });
    let all = futures::future::join_all(asking).await;
    assert!(all.iter().all(|found| *found == Ok(false)), "{all:?}");
    assert_eq!(published.asked(), 1);
    clock.pass(Duration::from_secs(9));
    assert_eq!(has(&ring, "invented", &signer).await, Ok(false));
    assert_eq!(published.asked(), 1);
    clock.pass(Duration::from_secs(1));
    assert_eq!(has(&ring, "invented", &signer).await, Ok(false));
    assert_eq!(published.asked(), 2);
}

#[tokio::test]
async fn an_issuer_that_is_away_makes_unknown_keys_unavailable_and_leaves_known_ones_for_an_hour() {
    let signer = Signer::ed(1);
    let published = Published::new(&[signer.jwk("one")]).await;
    let clock = FakeClock::new();
    let ring = published.ring(&clock);
    for failure in ["500 Internal Server Error", "302 Found", "404 Not Found"] {
        published.fail(failure);
        assert_eq!(has(&ring, "one", &signer).await, Err(KeysAway), "{failure}");
        clock.pass(Duration::from_secs(10));
    }
    published.publish(&[signer.jwk("one")]);
    assert_eq!(has(&ring, "one", &signer).await, Ok(true));
    published.fail("503 Service Unavailable");
    clock.pass(Duration::from_mins(59));
    assert_eq!(has(&ring, "one", &signer).await, Ok(true));
    assert_eq!(has(&ring, "two", &signer).await, Err(KeysAway));
    clock.pass(Duration::from_mins(1));
    assert_eq!(has(&ring, "one", &signer).await, Err(KeysAway));
}

#[tokio::test]
async fn a_caller_who_leaves_does_not_end_the_fetch() {
    let signer = Signer::ed(1);
    let published = Published::new(&[signer.jwk("one")]).await;
    let ring = published.ring(&FakeClock::new());
    {
        let mut leaving = Box::pin(ring.find(Some("one")));
        assert!(futures::poll!(&mut leaving).is_pending());
    }
    assert_eq!(has(&ring, "one", &signer).await, Ok(true));
    assert_eq!(published.asked(), 1);
}

#[tokio::test]
async fn a_set_that_is_too_large_ambiguous_or_useless_is_no_set() {
    let signer = Signer::ed(1);
    let published = Published::new(&[]).await;
    let clock = FakeClock::new();
    let ring = published.ring(&clock);
    let mut for_encryption = signer.jwk("one");
    for_encryption["use"] = "enc".into();
    let mut short = signer.jwk("one");
    short["x"] = "AAAA".into();
    let many: Vec<_> = (0..65).map(|n| signer.jwk(&n.to_string())).collect();
    for keys in [
        vec![],
        vec![Signer::es(2).jwk("one")],
        vec![for_encryption],
        vec![short],
        vec![signer.jwk("one"), Signer::ed(2).jwk("one")],
        vec![signer.jwk("one"), json!({"pad": "x".repeat(300_000)})],
        many,
    ] {
        published.publish(&keys);
        assert_eq!(has(&ring, "one", &signer).await, Err(KeysAway), "{} keys", keys.len());
        clock.pass(Duration::from_secs(10));
    }
}
