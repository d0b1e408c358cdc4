//! `POST /documents/upload`: one file as `multipart/form-data`.
//!
//! **Invariant:** name, type and room are decided before the file's bytes are read; its name is never a path.

use std::cell::Cell;

use actix_multipart::{Field, Multipart, MultipartError};
use actix_web::HttpResponse;
use actix_web::web::Data;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::super::extract::{IdempotencyKey, Namespace};
use super::super::identity::Caller;
use super::super::json::{no_memory, tenant_named};
use super::super::problem::{FieldError, Kind, Problem};
use super::super::room::Room;
use super::super::settings::HttpSettings;
use super::super::state::{App, Place};
use super::super::watch::still_let_in;
use super::accept::{
    Submission, Submitted, fingerprint, inserted, name_taken, new_document_id, new_track_id, respond, submit,
};
use super::corpus_writer;
use super::wire::Insert;
use crate::pipeline::parse::FileType;
use crate::store::CorpusWriter;
use crate::store::postgres::documents::{Accepted, Content, NewDocument, OnExisting};
use crate::tenancy::{Permit, Write};

/// The longest name of a file, bytes.
const MAX_FILE_NAME: usize = 255;
/// Form fields beside the file, bytes each.
const MAX_OTHER_FIELD: usize = 16 * 1024;

/// A file.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the form for the OpenAPI document")]
pub(in crate::http) struct UploadForm {
    /// The file. Its name's extension tells its type.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Takes in a file.
///
/// A name that is taken is 409. A content that is there under another name is accepted, and its document ends
/// `failed` with `metadata.is_duplicate`.
#[utoipa::path(
    post, path = "/documents/upload", tag = "documents",
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    params(
        ("LIGHTRAG-WORKSPACE" = Option<String>, Header, description = "The namespace"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same request with the same key is answered as before, for a day"),
    ),
    responses(
        (status = 200, body = Insert),
        (status = 400, description = "The type of the file is not supported, or its name is malformed"),
        (status = 409, description = "The name is taken"),
    ),
)]
#[tracing::instrument(name = "http.document.upload", skip_all)]
pub(in crate::http) async fn upload(
    permit: Permit<Write>,
    (caller, _room): (Caller, Room),
    namespace: Namespace,
    key: IdempotencyKey,
    app: Data<App>,
    form: Multipart,
) -> Result<HttpResponse, Problem> {
    let corpus = corpus_writer(&app, &permit, &namespace).await?;
    let _place = app.meters.upload(permit.scope().tenant()).ok_or_else(|| {
        let detail = "Too many files are being received; try again in a moment.";
        Problem::new(Kind::RateLimited).saying(detail).at_limit("uploads")
    })?;
    let mut buffer = app.meters.buffer(permit.scope().tenant());
    let (name, bytes) = receive(&app, &corpus, &key, form, &mut buffer).await?;
    still_let_in(&app, &caller).await?;

    let track_id = new_track_id(&app, "upload");
    let content_hash: [u8; 32] = Sha256::digest(&bytes).into();
    let (length, summary) = (bytes.len() as u64, summary(&name, &bytes));
    let upload = corpus.upload_put(bytes).await?;
    let document = NewDocument {
        document_id: new_document_id(&app),
        title: None,
        metadata: json!({}),
        content: Content::Upload(upload),
        content_hash,
        content_length: length,
        summary,
        file_name: name,
    };
    let answer = |accepted: &[Accepted]| inserted(accepted, &track_id);
    let submission = Submission {
        permit: &permit,
        documents: std::slice::from_ref(&document),
        existing: OnExisting::Refuse,
        track_id: &track_id,
        operation: "document.upload",
        key: &key,
        request: fingerprint(&(&document.file_name, hex::encode(content_hash)))?,
        answer: &answer,
    };
    let submitted = submit(&app, &corpus, submission).await;
    let kept = matches!(&submitted, Ok(Submitted::Now(accepted)) if accepted.iter().all(|document| document.job.is_some()));
    if !kept && let Err(error) = corpus.upload_remove(upload).await {
        tracing::warn!(error = &error as &dyn std::error::Error, "an upload stays behind");
    }
    match submitted? {
        Submitted::Now(accepted) => Ok(respond(&answer(&accepted), false)),
        Submitted::Before(answer) => Ok(respond(&answer, true)),
    }
}

/// The file's name and bytes.
async fn receive(
    app: &App,
    corpus: &CorpusWriter,
    key: &IdempotencyKey,
    mut form: Multipart,
    buffer: &mut Place,
) -> Result<(String, Bytes), Problem> {
    let pace = Pace { begun: tokio::time::Instant::now(), received: Cell::new(0), limits: &app.limits };
    let mut received = None;
    while let Some(field) = pace.next(&mut form).await? {
        let mut field = field.map_err(|error| broken(&error))?;
        let name = field.name().unwrap_or_default().to_owned();
        if name != "file" || received.is_some() {
            let names = [(name.clone(), json!(null))].into_iter().collect();
            if tenant_named(&names).is_some() || name == "file" {
                return Err(wrong_field(&name));
            }
            read(&mut field, MAX_OTHER_FIELD, &pace, buffer).await?;
            continue;
        }
        let file_name =
            field.content_disposition().and_then(|header| header.get_filename()).unwrap_or_default();
        let file_name = checked(file_name)?;
        // A repeated request must reach the answer that was kept of the first, whose name is taken now.
        if key.0.is_none() && corpus.document_name_taken(&file_name).await? {
            return Err(name_taken());
        }
        let bytes = read(&mut field, app.limits.max_upload_bytes, &pace, buffer).await?;
        if bytes.is_empty() {
            return Err(Problem::new(Kind::InvalidBody).saying("The file is empty."));
        }
        drop(field);
        received = Some((file_name, bytes));
    }
    received.ok_or_else(|| wrong_field("file"))
}

fn wrong_field(name: &str) -> Problem {
    let (rule, msg) = if name == "file" {
        ("missing", "One file is expected in the field `file`")
    } else {
        ("extra_forbidden", "The tenant comes from the credential alone")
    };
    let loc = vec![json!("body"), json!(name)];
    Problem::invalid(vec![FieldError { rule, loc, msg: msg.to_owned(), input: json!(null), ctx: None }])
}

/// A file's name that can be cited. One that holds a path is refused, not repaired.
fn checked(raw: &str) -> Result<String, Problem> {
    let name = raw.trim();
    let malformed = name.is_empty()
        || name.len() > MAX_FILE_NAME
        || name.starts_with('.')
        || name.contains(['/', '\\'])
        || name.chars().any(char::is_control);
    if malformed {
        let detail = "A file's name has 1 to 255 bytes, no path, no control characters, and does not begin with a dot.";
        return Err(Problem::new(Kind::BadRequest).saying(detail));
    }
    if FileType::from_name(name).is_none() {
        return Err(Problem::new(Kind::UnsupportedFile));
    }
    Ok(name.to_owned())
}

/// How long a form may take to arrive.
struct Pace<'a> {
    begun: tokio::time::Instant,
    received: Cell<usize>,
    limits: &'a HttpSettings,
}

impl Pace<'_> {
    /// The next piece, unless it comes too late for so many bytes as have come.
    async fn next<S: Stream + Unpin>(&self, stream: &mut S) -> Result<Option<S::Item>, Problem> {
        let until = self.begun + self.limits.body_time(self.received.get());
        let piece = tokio::time::timeout_at(until, stream.next()).await;
        piece.map_err(|_| Problem::new(Kind::RequestTimeout))
    }
}

async fn read(field: &mut Field, most: usize, pace: &Pace<'_>, buffer: &mut Place) -> Result<Bytes, Problem> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = pace.next(field).await? {
        let piece = piece.map_err(|error| broken(&error))?;
        if bytes.len() + piece.len() > most {
            return Err(Problem::new(Kind::TooLarge).saying(format!("A file has at most {most} bytes.")));
        }
        if !buffer.grow(piece.len()) {
            return Err(no_memory());
        }
        pace.received.set(pace.received.get() + piece.len());
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

fn broken(error: &MultipartError) -> Problem {
    let problem = match error {
        MultipartError::ContentTypeMissing
        | MultipartError::ContentTypeParse
        | MultipartError::ContentTypeIncompatible => {
            Problem::new(Kind::UnsupportedMediaType).saying("Send the file as `multipart/form-data`.")
        }
        _ => Problem::new(Kind::BadRequest).saying("The form cannot be read."),
    };
    problem.because(error.to_string())
}

/// The first words of a text file; of any other its name alone.
fn summary(name: &str, bytes: &[u8]) -> String {
    let text = matches!(
        FileType::from_name(name),
        Some(FileType::Txt | FileType::Markdown | FileType::Csv | FileType::Json | FileType::Jsonl)
    );
    let head = &bytes[..bytes.len().min(4096)];
    let head = match std::str::from_utf8(head) {
        Ok(head) => head,
        // The cut may have split the last character.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => "",
    };
    if text && !head.contains('\0') && !head.trim().is_empty() {
        super::accept::summary(head)
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_holds_a_path_is_refused() {
        for name in
            ["../a.txt", "a/b.txt", "a\\b.txt", "", " ", ".txt", "..", "a\n.txt", "a\0.txt", &"x".repeat(300)]
        {
            assert_eq!(checked(name).expect_err(name).kind(), Kind::BadRequest, "{name}");
        }
        assert_eq!(checked("a.exe").expect_err("unsupported").kind(), Kind::UnsupportedFile);
        assert_eq!(checked("Über uns (1).PDF").expect("fine"), "Über uns (1).PDF");
    }

    #[test]
    fn the_summary_of_a_file_that_is_no_text_is_its_name() {
        assert_eq!(summary("a.txt", "äöü".as_bytes()), "äöü");
        assert_eq!(summary("a.txt", &[0xff, 0xfe, 0]), "a.txt");
        assert_eq!(summary("a.pdf", b"%PDF"), "a.pdf");
        let long = "ä".repeat(3000);
        assert!(summary("a.md", long.as_bytes()).starts_with('ä'));
    }
}
