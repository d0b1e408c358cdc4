//! A stand-in for a language model's endpoint: it says, word by word, what it was given, so that a test sees
//! whose context an answer was made from.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use actix_web::{App, HttpResponse, HttpServer, web};
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::running::Running;

/// A running stand-in, cut off when it is dropped.
pub struct Stub {
    url: String,
    handle: actix_web::dev::ServerHandle,
}

impl Drop for Stub {
    fn drop(&mut self) {
        // The returned future only waits; the command is sent.
        drop(self.handle.stop(false));
    }
}

/// All that was said to it; ten times over when it was asked to be long.
fn answer(body: &Value) -> String {
    let messages = body["messages"].as_array().cloned().unwrap_or_default();
    let said: Vec<&str> = messages.iter().filter_map(|message| message["content"].as_str()).collect();
    let said = said.join(" ");
    if said.contains(" long") { said.repeat(10) } else { said }
}

async fn complete(pause: web::Data<Duration>, body: web::Json<Value>) -> HttpResponse {
    let text = answer(&body);
    if body["stream"] != true {
        return HttpResponse::Ok()
            .json(json!({"choices": [{"message": {"role": "assistant", "content": text}}]}));
    }
    let pause = **pause;
    let words: Vec<String> = text.split_inclusive(' ').map(str::to_owned).collect();
    let pieces: Vec<String> = words.chunks(8).map(<[String]>::concat).collect();
    let events = futures::stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(pause).await;
        let event = json!({"choices": [{"delta": {"content": piece}}]});
        Ok::<_, Infallible>(Bytes::from(format!("data: {event}\n\n")))
    });
    let end = futures::stream::iter([Ok(Bytes::from_static(b"data: [DONE]\n\n"))]);
    HttpResponse::Ok().content_type("text/event-stream").streaming(events.chain(end))
}

impl Stub {
    /// Starts one that waits so long before each piece.
    #[expect(clippy::unused_async, reason = "it spawns, which needs the runtime that it is awaited in")]
    pub async fn start(pause: Duration) -> Self {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let server = HttpServer::new(move || {
            App::new()
                .app_data(web::Data::new(pause))
                .app_data(web::JsonConfig::default().limit(10_000_000))
                .route("/v1/chat/completions", web::post().to(complete))
        });
        let server = server.workers(1).disable_signals().listen(listener).expect("listening").run();
        let handle = server.handle();
        tokio::spawn(server);
        Self { url, handle }
    }

    /// A server of its own that asks it.
    pub async fn server(&self) -> Arc<Running> {
        // Tests ask at once what callers would not.
        let further = format!(
            "language_model.url = '{}'\nlanguage_model.model = 'stub'\nlimits.tenant.concurrent_queries = 300",
            self.url
        );
        Running::with("language-model", further).await
    }
}
