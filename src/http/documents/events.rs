//! `GET /documents/track_status/{track_id}/events`: progress as server-sent events.
//!
//! **Invariant:** a stream belongs to one request and reads under its caller's own scope; it asks again and
//! again whether the caller still may, and ends when not.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use actix_web::HttpResponse;
use actix_web::http::header;
use actix_web::web::Data;
use bytes::Bytes;
use serde_json::{Value, json};

use super::super::extract::{LastEventId, TrackPath};
use super::super::identity::Caller;
use super::super::problem::{Kind, Problem};
use super::super::state::{App, Place};
use super::super::watch::Watch;
use crate::domain::document::Status;
use crate::store::{StoreError, TenantReader};
use crate::tenancy::{Permit, Read};

/// Follows the documents of one call: `progress` for every change, at last `done`, `failed` or `auth_expired`.
///
/// `id` rises with every change; after `Last-Event-ID` only later changes are sent.
#[utoipa::path(
    get, path = "/documents/track_status/{track_id}/events", tag = "documents",
    params(
        ("track_id" = String, Path, description = "From the answer to the call"),
        ("Last-Event-ID" = Option<i64>, Header, description = "Where a broken stream goes on"),
    ),
    responses((
        status = 200, content_type = "text/event-stream", body = String,
        description = "`data` of `progress`: `{track_id, job_id, document_id, stage, done, total, rate, state}`",
    )),
)]
#[tracing::instrument(name = "http.document.events", skip_all)]
pub(in crate::http) async fn track_events(
    permit: Permit<Read>,
    caller: Caller,
    track: TrackPath,
    last: LastEventId,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let reader = app.stores.reader(&permit);
    let parts = if track.known_form { look(&reader, &track.raw).await? } else { Vec::new() };
    if parts.is_empty() {
        return Err(Problem::not_found());
    }
    let place = app.meters.stream(permit.scope().tenant()).ok_or_else(|| {
        Problem::new(Kind::RateLimited)
            .saying("This tenant has as many event streams as it may.")
            .at_limit("streams")
    })?;
    let now = app.clock.instant();
    let mut stream = Progress {
        reader,
        watch: Watch::new(app.clone(), caller),
        track: track.raw,
        last: last.0.unwrap_or(0),
        resumed: last.0,
        seen: HashMap::new(),
        waiting: VecDeque::new(),
        ended: false,
        refused: false,
        told: now,
        app,
        _place: place,
    };
    stream.tell(&parts);
    let events = futures::stream::unfold(stream, |mut stream| async move {
        let piece = stream.next().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), stream))
    });
    Ok(HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/event-stream"))
        .insert_header(("X-Accel-Buffering", "no"))
        .streaming(events))
}

/// One document of the track.
struct Part {
    key: String,
    /// Rises with every change, from 1.
    revision: i64,
    state: String,
    data: Value,
}

/// The track's jobs, and its documents that have none: duplicates, and those whose job is forgotten.
async fn look(reader: &TenantReader, track: &str) -> Result<Vec<Part>, StoreError> {
    let jobs = reader.job_track(track).await?;
    let documents = reader.document_track(track).await?;
    let mut parts: Vec<Part> = jobs
        .iter()
        .map(|job| Part {
            key: job.job.to_string(),
            revision: job.revision + 1,
            state: job.state.clone(),
            data: json!({
                "track_id": track, "job_id": job.job, "document_id": job.document_id, "stage": job.stage,
                "done": job.done, "total": job.total, "rate": job.rate, "state": job.state, "error": job.error,
            }),
        })
        .collect();
    let lone = documents.iter().filter(|document| {
        jobs.iter().all(|job| job.document_id.as_deref() != Some(document.document_id.as_str()))
    });
    parts.extend(lone.map(|document| {
        let state = match document.status {
            Status::Processed => "done",
            Status::Failed => "failed",
            _ => "queued",
        };
        Part {
            key: document.document_id.clone(),
            revision: 1,
            state: state.to_owned(),
            data: json!({
                "track_id": track, "job_id": null, "document_id": document.document_id,
                "stage": document.status, "done": document.chunks_count.unwrap_or(0),
                "total": document.chunks_count.unwrap_or(0), "rate": 0.0, "state": state, "error": document.error,
            }),
        }
    }));
    Ok(parts)
}

/// A running stream.
struct Progress {
    app: Data<App>,
    reader: TenantReader,
    watch: Watch,
    track: String,
    /// The id of the last event.
    last: i64,
    /// The id that the caller had seen, until the first look.
    resumed: Option<i64>,
    seen: HashMap<String, i64>,
    waiting: VecDeque<Bytes>,
    ended: bool,
    /// Whether its caller may no longer.
    refused: bool,
    /// When something was last sent.
    told: Instant,
    _place: Place,
}

impl Progress {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.end_when_refused().await;
            if let Some(piece) = self.waiting.pop_front() {
                self.told = self.app.clock.instant();
                return Some(piece);
            }
            if self.ended {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(self.app.limits.progress_poll_ms)).await;
            self.end_when_refused().await;
            if self.ended {
                continue;
            }
            match tokio::time::timeout(self.watch.borne(), look(&self.reader, &self.track)).await {
                Ok(Ok(parts)) => self.tell(&parts),
                // The next look may succeed; meanwhile the heartbeat goes on.
                Ok(Err(error)) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "a stream waits for the store");
                }
                // Too long without a word about the caller, which the next check says.
                Err(_) => continue,
            }
            let heartbeat = Duration::from_secs(self.app.limits.heartbeat_seconds);
            let silent = self.app.clock.instant().saturating_duration_since(self.told);
            if self.waiting.is_empty() && silent >= heartbeat {
                self.waiting.push_back(Bytes::from_static(b": alive\n\n"));
            }
        }
    }

    /// Takes back what was not sent yet, when the caller may no longer have it.
    async fn end_when_refused(&mut self) {
        if !self.refused && self.watch.check().await.is_err() {
            self.refused = true;
            self.waiting.clear();
            self.end("auth_expired", &json!({"track_id": self.track}));
        }
    }

    /// Queues an event for each change, and the last one when every document has ended.
    fn tell(&mut self, parts: &[Part]) {
        let total: i64 = parts.iter().map(|part| part.revision).sum();
        let seen_all = self.resumed.take().is_some_and(|seen| seen >= total);
        if seen_all {
            self.seen = parts.iter().map(|part| (part.key.clone(), part.revision)).collect();
        }
        let news: Vec<&Part> =
            parts.iter().filter(|part| self.seen.get(&part.key) != Some(&part.revision)).collect();
        let changes = i64::try_from(news.len()).unwrap_or(i64::MAX);
        for (at, part) in std::iter::zip(1.., news) {
            // The last of them has the id of the whole look: a caller who missed any of them is sent them again.
            self.last = self.last.max(total - changes + at);
            self.seen.insert(part.key.clone(), part.revision);
            self.waiting.push_back(event(self.last, "progress", &part.data));
        }
        let going = parts.iter().any(|part| part.state == "queued" || part.state == "running");
        if !going {
            let failed = parts.iter().filter(|part| part.state != "done").count();
            // No part at all: the documents were deleted meanwhile.
            let name = if failed == 0 && !parts.is_empty() { "done" } else { "failed" };
            self.end(
                name,
                &json!({"track_id": self.track, "state": name, "documents": parts.len(), "failed": failed}),
            );
        }
    }

    fn end(&mut self, name: &str, data: &Value) {
        self.waiting.push_back(event(self.last, name, data));
        self.ended = true;
    }
}

fn event(id: i64, name: &str, data: &Value) -> Bytes {
    // JSON has no line break outside of its strings, and escapes those inside.
    format!("id: {id}\nevent: {name}\ndata: {data}\n\n").into()
}
