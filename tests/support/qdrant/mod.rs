//! A stand-in for a Qdrant server: shards of qdrant-edge behind the gRPC services of qdrant-client. It is not Qdrant.
//!
//! It knows the calls that the client back end makes, keeps collections in a folder, and checks API key and tokens by
//! Qdrant's rules. What only a real server shows: its own refusal of a foreign token, its optimisers, its write-ahead
//! log, its cluster.

mod access;
mod convert;
pub mod gate;
mod held;
mod points;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use qdrant_client::qdrant::CreateCollection;
use qdrant_client::qdrant::collections_server::CollectionsServer;
use qdrant_client::qdrant::points_server::PointsServer;
use qdrant_client::qdrant::qdrant_server::QdrantServer;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tonic::transport::server::TcpIncoming;

pub use access::Seen;
pub use gate::Arrived;
use gate::Gate;
use held::Held;

/// What it says of itself wherever it is asked.
pub const VERSION: &str = "stand-in (qdrant-edge 0.7.2)";

/// Bytes of a request, as the real server takes at most.
const REQUEST_BYTES: usize = 32 * 1024 * 1024;

/// How a collection was asked for since the start, and which of its fields tell tenants apart.
pub type Made = (CreateCollection, Vec<String>);

/// What the services share.
#[derive(Clone)]
pub(crate) struct Shared(Arc<State>);

pub(crate) struct State {
    folder: PathBuf,
    api_key: String,
    collections: RwLock<HashMap<String, Arc<Held>>>,
    seen: Mutex<Vec<Seen>>,
    made: Mutex<HashMap<String, Made>>,
    lag_ms: AtomicU64,
    gate: Gate,
}

impl std::ops::Deref for Shared {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl Shared {
    /// Waits for as long as answers are held back, after the work was done.
    async fn lag(&self) {
        let lag = self.lag_ms.load(Ordering::Relaxed);
        if lag > 0 {
            tokio::time::sleep(Duration::from_millis(lag)).await;
        }
    }
}

/// A running stand-in, in a thread and with a runtime of its own.
pub struct StandIn {
    address: SocketAddr,
    shared: Shared,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    /// Serves the collections in a folder on a port of loopback, 0 for any, until it is stopped.
    pub fn start(folder: &Path, api_key: &str, port: u16) -> Self {
        std::fs::create_dir_all(folder).expect("a folder");
        let shared = Shared(Arc::new(State {
            folder: folder.to_owned(),
            api_key: api_key.to_owned(),
            collections: RwLock::new(held::load_all(folder)),
            seen: Mutex::default(),
            made: Mutex::default(),
            lag_ms: AtomicU64::new(0),
            gate: Gate::default(),
        }));
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let services = shared.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("a runtime").block_on(serve(services, port, &tell, stopped));
        });
        let address = told.recv().expect("it listens");
        Self { address, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The names of its collections, in order.
    pub fn collections(&self) -> Vec<String> {
        let collections = self.shared.collections.read().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<String> = collections.keys().cloned().collect();
        names.sort();
        names
    }

    /// How a collection was asked for.
    pub fn made(&self, name: &str) -> Option<Made> {
        self.shared.made.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Every call with its credential since the last time.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Holds answers to changes back for so long, after the changes were made.
    pub fn lag(&self, lag: Duration) {
        let lag = u64::try_from(lag.as_millis()).expect("short");
        self.shared.lag_ms.store(lag, Ordering::Relaxed);
    }

    /// From now on each change of points waits for its fate: what arrives is to be taken from here.
    pub fn close_gate(&self) -> UnboundedReceiver<Arrived> {
        self.shared.gate.close()
    }

    /// Lets changes through again.
    pub fn open_gate(&self) {
        self.shared.gate.open();
    }

    /// Has a late change arrive, the one of this number among those that are late, in the order in which they were
    /// sent. What it was for may be gone.
    pub fn deliver(&self, number: usize) {
        let late = self.shared.gate.take_late(number);
        if let Ok(held) = self.shared.collection(&late.collection) {
            held.change(late.change).expect("it was good when it was sent");
        }
    }

    /// Loses every late change.
    pub fn lose_late(&self) {
        self.shared.gate.lose_late();
    }

    /// Stops, at once and for whoever waits for an answer.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                assert!(ended.is_ok(), "the stand-in did not stop");
            }
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.end();
    }
}

async fn serve(shared: Shared, port: u16, tell: &mpsc::Sender<SocketAddr>, stopped: oneshot::Receiver<()>) {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("a free port");
    tell.send(listener.local_addr().expect("an address")).expect("somebody waits");
    let serving = tonic::transport::Server::builder()
        .add_service(PointsServer::new(shared.clone()).max_decoding_message_size(REQUEST_BYTES))
        .add_service(CollectionsServer::new(shared.clone()))
        .add_service(QdrantServer::new(shared))
        // As the real server does: else an answer in several pieces waits 40 ms for the client's acknowledgement.
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
    // Dropped, it hangs up, as a process that was killed does.
    tokio::select! {
        served = serving => served.expect("it serves"),
        _ = stopped => {}
    }
}
