//! An S3-compatible store over loopback, as much of one as a backup uses: multipart uploads, reading, listing,
//! deleting. It holds objects in memory and wants the credentials' name in every request.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::TcpListener;
use std::sync::Arc;

use actix_web::http::Method;
use actix_web::web::{self, Bytes, Data, Query};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use tokio::sync::Mutex;

/// The name of the credentials.
pub const KEY_ID: &str = "AKIATEST";

#[derive(Default)]
struct Objects {
    whole: BTreeMap<String, Bytes>,
    parts: BTreeMap<String, BTreeMap<usize, Bytes>>,
    begun: usize,
    /// Requests after which every further one fails; for a store that breaks off.
    left: Option<usize>,
}

/// A store that runs until the test ends.
#[derive(Clone)]
pub struct Bucket {
    objects: Arc<Mutex<Objects>>,
    pub url: String,
}

impl Bucket {
    pub fn start() -> Self {
        let objects = Arc::new(Mutex::new(Objects::default()));
        let data = Data::from(Arc::clone(&objects));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        std::thread::spawn(move || {
            let app = move || {
                App::new()
                    .app_data(data.clone())
                    .app_data(web::PayloadConfig::new(64 << 20))
                    .default_service(web::to(serve))
            };
            actix_web::rt::System::new().block_on(async {
                let server = HttpServer::new(app).workers(1).disable_signals().listen(listener);
                server.expect("it listens").run().await.expect("it serves");
            });
        });
        Self { objects, url }
    }

    /// The names that are there.
    pub async fn names(&self) -> Vec<String> {
        self.objects.lock().await.whole.keys().cloned().collect()
    }

    /// Lets so many more requests through.
    pub async fn break_after(&self, requests: Option<usize>) {
        self.objects.lock().await.left = requests;
    }
}

fn xml(body: &str) -> HttpResponse {
    HttpResponse::Ok().content_type("application/xml").body(format!("<?xml version=\"1.0\"?>{body}"))
}

async fn serve(
    request: HttpRequest,
    query: Query<BTreeMap<String, String>>,
    body: Bytes,
    objects: Data<Mutex<Objects>>,
) -> HttpResponse {
    let mut objects = objects.lock().await;
    let authorization = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let credential = format!("Credential={KEY_ID}/");
    let is_signed = authorization.is_some_and(|signed| signed.contains(&credential));
    if !is_signed {
        return HttpResponse::Forbidden().finish();
    }
    if let Some(left) = &mut objects.left {
        if *left == 0 {
            return HttpResponse::Forbidden().finish();
        }
        *left -= 1;
    }
    // Path style: the bucket first.
    let name = request.path().trim_start_matches('/').split_once('/').map(|(_, name)| name.to_owned());
    let upload = query.get("uploadId").cloned();
    match (request.method(), name.filter(|name| !name.is_empty()), upload) {
        (&Method::GET, None, _) => {
            let prefix = query.get("prefix").cloned().unwrap_or_default();
            let mut listed = String::new();
            for (name, content) in objects.whole.iter().filter(|(name, _)| name.starts_with(&prefix)) {
                let _ = write!(
                    listed,
                    "<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
                     <Size>{}</Size><ETag>\"1\"</ETag></Contents>",
                    content.len()
                );
            }
            xml(&format!("<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>"))
        }
        (&Method::POST, Some(name), None) => {
            objects.begun += 1;
            let id = format!("upload-{}", objects.begun);
            objects.parts.insert(id.clone(), BTreeMap::new());
            xml(&format!(
                "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>{name}</Key><UploadId>{id}</UploadId>\
                 </InitiateMultipartUploadResult>"
            ))
        }
        (&Method::PUT, Some(_), Some(id)) => {
            let number = query.get("partNumber").and_then(|number| number.parse().ok()).expect("a number");
            objects.parts.get_mut(&id).expect("begun").insert(number, body);
            HttpResponse::Ok().insert_header(("ETag", format!("\"{number}\""))).finish()
        }
        (&Method::POST, Some(name), Some(id)) => {
            let parts = objects.parts.remove(&id).expect("begun");
            let whole = parts.into_values().collect::<Vec<_>>().concat();
            objects.whole.insert(name.clone(), whole.into());
            xml(&format!(
                "<CompleteMultipartUploadResult><Location>l</Location><Bucket>b</Bucket><Key>{name}</Key>\
                 <ETag>\"1\"</ETag></CompleteMultipartUploadResult>"
            ))
        }
        (&Method::DELETE, Some(_), Some(id)) => {
            objects.parts.remove(&id);
            HttpResponse::NoContent().finish()
        }
        (&Method::DELETE, Some(name), None) => {
            objects.whole.remove(&name);
            HttpResponse::NoContent().finish()
        }
        (&Method::GET, Some(name), _) => match objects.whole.get(&name) {
            Some(content) => HttpResponse::Ok()
                .insert_header(("ETag", "\"1\""))
                .insert_header(("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT"))
                .body(content.clone()),
            None => HttpResponse::NotFound().finish(),
        },
        _ => HttpResponse::NotImplemented().finish(),
    }
}
