//! A small HTTP server that keeps what it is sent: where webhooks and traces go in tests.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Received {
    /// By names in lower case.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

/// The receiver. It ends with its process.
pub struct Receiver {
    /// Where it listens, as `http://ADDRESS`.
    pub url: String,
    kept: Arc<Mutex<Vec<Received>>>,
}

impl Receiver {
    /// Answers the first requests with these statuses, and all later ones with 200.
    pub fn answering(first: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let kept = Arc::<Mutex<Vec<Received>>>::default();
        let keep = Arc::clone(&kept);
        let first = first.to_vec();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // A client that goes away in the middle is not heard.
                let Some(received) = received(&stream) else { continue };
                let status = {
                    let mut kept = keep.lock().expect("what was kept");
                    kept.push(received);
                    first.get(kept.len() - 1).copied().unwrap_or(200)
                };
                let head =
                    format!("HTTP/1.1 {status} Said\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _gone = (&stream).write_all(head.as_bytes());
            }
        });
        Self { url, kept }
    }

    /// What came so far.
    pub fn kept(&self) -> Vec<Received> {
        self.kept.lock().expect("what was kept").clone()
    }

    /// What came, as soon as it is so much.
    pub async fn at_least(&self, count: usize) -> Vec<Received> {
        let until = Instant::now() + crate::server::PATIENCE;
        loop {
            let kept = self.kept();
            if kept.len() >= count {
                return kept;
            }
            assert!(Instant::now() < until, "{} of {count} came", kept.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn received(stream: &TcpStream) -> Option<Received> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut lines = BufReader::new(stream);
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end().split_once(": ") {
            Some((name, value)) => drop(headers.insert(name.to_lowercase(), value.to_owned())),
            None if line.trim_end().is_empty() => break,
            None => {}
        }
    }
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    lines.read_exact(&mut body).ok()?;
    Some(Received { headers, body })
}
