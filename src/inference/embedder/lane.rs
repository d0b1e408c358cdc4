//! A session of the model on a thread of its own, fed in turns by tenants.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::super::fair_queue::FairQueue;
use super::super::vector_cache::VectorCache;
use super::{Embedded, EmbedderError, EmbeddingSettings, Model, Source};
use crate::domain::ids::TenantId;
use crate::inference::priority::Priority;

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) texts: AtomicU64,
    pub(super) busy_us: AtomicU64,
}

/// Texts of one tenant and one call, and where that call waits for their vectors, in their order.
struct Batch {
    tenant: TenantId,
    texts: Vec<String>,
    reply: oneshot::Sender<Vec<Embedded>>,
}

pub(super) struct Waiting {
    queue: FairQueue<TenantId, Batch>,
    pub(super) count: usize,
    closed: bool,
}

/// One session on a thread of its own, fed in turns by tenants.
#[derive(Clone)]
pub(super) struct Lane {
    pub(super) shared: Arc<(Mutex<Waiting>, Condvar)>,
    pub(super) dimension: usize,
    bound: usize,
    pub(super) counters: Arc<Counters>,
    pub(super) thread: Arc<thread::JoinHandle<()>>,
    _stop: Arc<StopOnDrop>,
}

/// Ends the lane's thread when its last handle goes.
struct StopOnDrop(Arc<(Mutex<Waiting>, Condvar)>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.0.lock().closed = true;
        self.0.1.notify_all();
    }
}

impl Lane {
    /// `ran` is told of each batch whose it was and for how long the model ran.
    pub(super) fn start(
        name: &str,
        source: &Source,
        settings: &EmbeddingSettings,
        threads: usize,
        priority: Priority,
        ran: impl Fn(TenantId, Duration) + Send + 'static,
    ) -> Result<Self, EmbedderError> {
        let waiting = Waiting { queue: FairQueue::new(), count: 0, closed: false };
        let shared = Arc::new((Mutex::new(waiting), Condvar::new()));
        let lane = Arc::clone(&shared);
        // The session is made inside a thread of low priority so that its own threads inherit that.
        let made = thread::scope(|scope| {
            let make = move || {
                priority.apply();
                source.session(settings, threads)
            };
            scope.spawn(make).join()
        });
        let mut model = made.map_err(|_| EmbedderError::Model("it panicked while loading".to_owned()))??;
        let dimension = model.embed(&["dimension".to_owned()])?.first().map_or(0, Vec::len);
        if let Some(folder) = &settings.vector_cache {
            let cache = VectorCache::open(folder, &source.identity(settings), dimension)
                .map_err(|error| EmbedderError::Model(format!("{}: {error}", folder.display())))?;
            model = Model::Remembering(Box::new(model), cache);
        }
        let counters = Arc::<Counters>::default();
        let counted = Arc::clone(&counters);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                priority.apply();
                serve(&lane, &mut model, &counted, &ran);
            })
            .map_err(|error| EmbedderError::Model(error.to_string()))?;
        let stop = Arc::new(StopOnDrop(Arc::clone(&shared)));
        let (bound, thread) = (settings.queue, Arc::new(thread));
        Ok(Self { shared, dimension, bound, counters, thread, _stop: stop })
    }

    pub(super) async fn run(
        &self,
        tenant: TenantId,
        texts: Vec<String>,
    ) -> Result<Vec<Embedded>, EmbedderError> {
        if self.shared.0.lock().count >= self.bound {
            return Err(EmbedderError::Busy);
        }
        self.submit(tenant, texts).await.map_err(|_| EmbedderError::Stopped)
    }

    pub(super) fn submit(&self, tenant: TenantId, texts: Vec<String>) -> oneshot::Receiver<Vec<Embedded>> {
        let (reply, receiver) = oneshot::channel();
        let cost: usize = texts.iter().map(String::len).sum();
        let mut waiting = self.shared.0.lock();
        if !waiting.closed {
            waiting.count += 1;
            waiting.queue.push(tenant, cost as u64, Batch { tenant, texts, reply });
            self.shared.1.notify_one();
        }
        receiver
    }
}

fn serve(
    shared: &(Mutex<Waiting>, Condvar),
    model: &mut Model,
    counters: &Counters,
    ran: &impl Fn(TenantId, Duration),
) {
    loop {
        let batch = {
            let mut waiting = shared.0.lock();
            loop {
                if let Some(batch) = waiting.queue.pop() {
                    waiting.count -= 1;
                    break batch;
                }
                if waiting.closed {
                    return;
                }
                shared.1.wait(&mut waiting);
            }
        };
        // Whoever asked may have gone.
        if !batch.reply.is_closed() {
            let begun = Instant::now();
            let vectors = model.embed_each(&batch.texts);
            let busy = begun.elapsed();
            let busy_us = u64::try_from(busy.as_micros()).unwrap_or(u64::MAX);
            counters.busy_us.fetch_add(busy_us, Ordering::Relaxed);
            counters.texts.fetch_add(batch.texts.len() as u64, Ordering::Relaxed);
            // Before the answer, and though nobody may wait for it any more.
            ran(batch.tenant, busy);
            let _ = batch.reply.send(vectors);
        }
    }
}
