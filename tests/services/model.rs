//! A stand-in for a language model's endpoint, which counts what it is asked and never says the same twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_web::{App, HttpResponse, HttpServer, web};
use serde_json::{Value, json};

/// A running stand-in, cut off when it is dropped.
pub struct Model {
    url: String,
    asked: Arc<AtomicUsize>,
    handle: actix_web::dev::ServerHandle,
}

impl Drop for Model {
    fn drop(&mut self) {
        // The returned future only waits; the command is sent.
        drop(self.handle.stop(false));
    }
}

/// What it is given, and how long it takes.
struct State {
    asked: Arc<AtomicUsize>,
    pause: Duration,
}

async fn complete(state: web::Data<State>, body: web::Json<Value>) -> HttpResponse {
    let n = state.asked.fetch_add(1, Ordering::SeqCst) + 1;
    tokio::time::sleep(state.pause).await;
    let messages = body["messages"].as_array().cloned().unwrap_or_default();
    let said: Vec<&str> = messages.iter().filter_map(|message| message["content"].as_str()).collect();
    let text = format!("Answer {n}: {}", said.join(" "));
    if body["stream"] != true {
        let ended = if text.contains("Be cut off.") { "length" } else { "stop" };
        let message = json!({"role": "assistant", "content": text});
        return HttpResponse::Ok().json(json!({"choices": [{"message": message, "finish_reason": ended}]}));
    }
    let event = json!({"choices": [{"delta": {"content": text}}]});
    HttpResponse::Ok().content_type("text/event-stream").body(format!("data: {event}\n\ndata: [DONE]\n\n"))
}

impl Model {
    /// Starts one that waits so long before it answers.
    #[expect(clippy::unused_async, reason = "it spawns, which needs the runtime that it is awaited in")]
    pub async fn start(pause: Duration) -> Self {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let asked = Arc::<AtomicUsize>::default();
        let state = web::Data::new(State { asked: Arc::clone(&asked), pause });
        let server = HttpServer::new(move || {
            App::new()
                .app_data(state.clone())
                .app_data(web::JsonConfig::default().limit(10_000_000))
                .route("/v1/chat/completions", web::post().to(complete))
        });
        let server = server.workers(1).disable_signals().listen(listener).expect("listening").run();
        let handle = server.handle();
        tokio::spawn(server);
        Self { url, asked, handle }
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}
