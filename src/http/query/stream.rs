//! Answers that are sent as they come to be.
//!
//! One channel belongs to one request, and work and channel to its body: when the client goes, the body is
//! dropped and the work with it.
//!
//! **Invariant:** a stream ends with the line of its error as soon as its caller's credential ends.

use std::convert::Infallible;
use std::future::Future;

use actix_web::HttpResponse;
use actix_web::http::header;
use actix_web::web::Data;
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::http::edge::alarm;
use crate::http::form::openai_error;
use crate::http::identity::Caller;
use crate::http::problem::{Kind, Problem};
use crate::http::state::App;
use crate::http::watch::while_valid;

/// Lines that wait for a slow client before the work waits too.
const WAITING_LINES: usize = 8;

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// One JSON value in a line.
    Lines,
    /// Server-sent events.
    Events,
}

impl Framing {
    fn media_type(self) -> &'static str {
        match self {
            Self::Lines => "application/x-ndjson",
            Self::Events => "text/event-stream",
        }
    }

    fn line(self, value: &Value) -> Bytes {
        match self {
            Self::Lines => format!("{value}\n").into(),
            Self::Events => format!("data: {value}\n\n").into(),
        }
    }

    fn error(self, problem: &Problem) -> Bytes {
        match self {
            Self::Lines => self.line(&json!({"error": problem.detail(), "slug": problem.kind().slug()})),
            Self::Events => self.line(&json!({"error": openai_error(problem)})),
        }
    }
}

/// Where the work of a stream writes its lines.
#[derive(Clone)]
pub(crate) struct Lines {
    sender: mpsc::Sender<Bytes>,
    framing: Framing,
}

/// The client has gone.
#[derive(Debug)]
pub(crate) struct Gone;

impl Lines {
    /// Writes one value, and waits while the client is slow.
    pub(crate) async fn send(&self, value: &Value) -> Result<(), Gone> {
        self.raw(self.framing.line(value)).await
    }

    /// Writes one value from where nothing can wait. It is lost when the client is so slow that lines wait.
    pub(crate) fn tell(&self, value: &Value) {
        let _lost = self.sender.try_send(self.framing.line(value));
    }

    /// Writes bytes as they are.
    pub(crate) async fn raw(&self, bytes: Bytes) -> Result<(), Gone> {
        self.sender.send(bytes).await.map_err(|_| Gone)
    }
}

/// Why a stream's work ended before its end.
pub(crate) enum Broken {
    /// The client has gone; there is nobody to tell.
    Gone,
    /// To be told as the last line.
    Problem(Problem),
}

impl From<Gone> for Broken {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl From<Problem> for Broken {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// A response whose body is what `work` writes while the caller's credential lasts.
pub(crate) fn respond<W, F>(app: Data<App>, caller: Caller, framing: Framing, work: W) -> HttpResponse
where
    W: FnOnce(Lines) -> F,
    F: Future<Output = Result<(), Broken>> + 'static,
{
    let (sender, receiver) = mpsc::channel(WAITING_LINES);
    let lines = Lines { sender, framing };
    let last = lines.clone();
    let work = work(lines);
    let work = async move {
        let work = work.map(|ended| match ended {
            Ok(()) | Err(Broken::Gone) => Ok(()),
            Err(Broken::Problem(problem)) => Err(problem),
        });
        if let Err(problem) = while_valid(&app, &caller, work).await {
            let slug = problem.kind().slug();
            app.metrics.problem(slug);
            if problem.kind() == Kind::IsolationAlarm {
                alarm(&app, caller.scope()).await;
            }
            tracing::warn!(slug, causes = problem.causes(), "a stream ended with an error");
            let _gone = last.raw(framing.error(&problem)).await;
        }
    };
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, framing.media_type()))
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(body(receiver, work.instrument(tracing::Span::current())))
}

/// What the channel brings, with the work driven by the same hand.
fn body(
    mut receiver: mpsc::Receiver<Bytes>,
    work: impl Future<Output = ()> + 'static,
) -> impl Stream<Item = Result<Bytes, Infallible>> + 'static {
    let lines = stream::poll_fn(move |context| receiver.poll_recv(context));
    let work = work.into_stream().filter_map(|()| std::future::ready(None));
    stream::select(lines, work).map(Ok)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    async fn all(stream: impl Stream<Item = Result<Bytes, Infallible>>) -> Vec<Bytes> {
        stream.map(|line| line.expect("never fails")).collect().await
    }

    #[tokio::test]
    async fn a_body_ends_with_its_work_and_keeps_the_order() {
        let (sender, receiver) = mpsc::channel(2);
        let work = async move {
            for n in 0..100 {
                sender.send(Bytes::from(format!("{n}"))).await.expect("read");
            }
        };
        let sent = all(body(receiver, work)).await;
        let wanted: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        assert_eq!(sent, wanted);
    }

    #[tokio::test]
    async fn work_stops_when_its_body_is_dropped() {
        struct Dropped(Arc<AtomicBool>);
        impl Drop for Dropped {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let dropped = Arc::new(AtomicBool::new(false));
        let guard = Dropped(Arc::clone(&dropped));
        let (sender, receiver) = mpsc::channel(2);
        let work = async move {
            let _guard = guard;
            sender.send(Bytes::from_static(b"first")).await.expect("read");
            std::future::pending::<()>().await;
        };
        let mut body = Box::pin(body(receiver, work));
        assert!(body.next().await.is_some());
        drop(body);
        assert!(dropped.load(Ordering::Relaxed));
    }

    #[test]
    fn an_error_is_a_line_of_its_own_in_the_words_of_each_surface() {
        let problem = Problem::not_found();
        let line = Framing::Lines.error(&problem);
        let value: Value = serde_json::from_slice(&line).expect("JSON");
        assert!(value["error"].is_string() && line.ends_with(b"\n"));
        let event = Framing::Events.error(&problem);
        let event =
            std::str::from_utf8(&event).expect("text").strip_prefix("data: ").expect("an event").to_owned();
        let value: Value = serde_json::from_str(&event).expect("JSON");
        assert_eq!(value["error"]["code"], "not-found");
    }
}
