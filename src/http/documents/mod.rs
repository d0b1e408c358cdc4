//! Documents: taken in, listed, followed on their way, deleted.
//!
//! **Invariant:** quota and queue depth are looked at before a body is read, and again when it is accepted.
//! **Invariant:** an id that is unknown and one that is somebody else's are answered by equal bytes.

mod accept;
mod by_id;
mod events;
mod insert;
mod listing;
mod pipeline;
mod upload;
mod wire;

use actix_web::web::{self, Data, ServiceConfig};

pub(super) use by_id::{
    __path_document_delete, __path_document_get, __path_document_put, document_delete, document_get,
    document_put,
};
pub(super) use events::{__path_track_events, track_events};
pub(super) use insert::{__path_text, __path_texts, text, texts};
pub(super) use listing::{
    __path_paginated, __path_status_counts, __path_supported_file_types, __path_track_status, paginated,
    status_counts, supported_file_types, track_status,
};
pub(super) use pipeline::{
    __path_cancel_pipeline, __path_clear, __path_clear_cache, __path_delete_document, __path_pipeline_status,
    __path_reprocess_failed, __path_scan, cancel_pipeline, clear, clear_cache, delete_document,
    pipeline_status, reprocess_failed, scan,
};
pub(super) use upload::{__path_upload, upload};
#[cfg(feature = "laboratory")]
pub(super) use {
    by_id::PutRequest,
    insert::{TextRequest, TextsRequest},
    listing::PageRequest,
    pipeline::DeleteRequest,
};

use super::extract::Namespace;
use super::problem::Problem;
use super::state::App;
use crate::store::{Corpus, CorpusWriter};
use crate::tenancy::{Permit, Reads, Writes};

/// The namespace, to read; `None` when it is `default` and nothing was ever written to it.
///
/// # Errors
/// 404 for any other that is not there or that the credential does not reach.
pub(super) async fn corpus<A: Reads>(
    app: &Data<App>,
    permit: &Permit<A>,
    namespace: &Namespace,
) -> Result<Option<Corpus>, Problem> {
    let corpus = app.stores.reader(permit).corpus_get(&namespace.0).await?;
    if corpus.is_none() && !(namespace.0.is_default() && permit.scope().reaches(&namespace.0)) {
        return Err(Problem::not_found());
    }
    Ok(corpus)
}

/// The namespace, to write; made if there is none.
///
/// # Errors
/// 404 when the credential does not reach it.
async fn corpus_writer<A: Writes>(
    app: &Data<App>,
    permit: &Permit<A>,
    namespace: &Namespace,
) -> Result<CorpusWriter, Problem> {
    app.stores.writer(permit).corpus_require(&namespace.0).await?.ok_or_else(Problem::not_found)
}

/// The namespace, to remove something from; `None` as in [`corpus`], so that nothing is made by a deletion.
async fn corpus_existing<A: Writes>(
    app: &Data<App>,
    permit: &Permit<A>,
    namespace: &Namespace,
) -> Result<Option<CorpusWriter>, Problem> {
    match corpus(app, permit, namespace).await? {
        None => Ok(None),
        Some(_) => corpus_writer(app, permit, namespace).await.map(Some),
    }
}

pub(super) fn routes(config: &mut ServiceConfig) {
    config
        .service(web::resource("/documents").route(web::delete().to(clear)))
        .service(web::resource("/documents/text").route(web::post().to(text)))
        .service(web::resource("/documents/texts").route(web::post().to(texts)))
        .service(web::resource("/documents/upload").route(web::post().to(upload)))
        .service(web::resource("/documents/scan").route(web::post().to(scan)))
        .service(web::resource("/documents/paginated").route(web::post().to(paginated)))
        .service(web::resource("/documents/status_counts").route(web::get().to(status_counts)))
        .service(web::resource("/documents/track_status/{track_id}").route(web::get().to(track_status)))
        .service(
            web::resource("/documents/track_status/{track_id}/events").route(web::get().to(track_events)),
        )
        .service(web::resource("/documents/pipeline_status").route(web::get().to(pipeline_status)))
        .service(web::resource("/documents/supported_file_types").route(web::get().to(supported_file_types)))
        .service(web::resource("/documents/delete_document").route(web::delete().to(delete_document)))
        .service(web::resource("/documents/clear_cache").route(web::post().to(clear_cache)))
        .service(web::resource("/documents/reprocess_failed").route(web::post().to(reprocess_failed)))
        .service(web::resource("/documents/cancel_pipeline").route(web::post().to(cancel_pipeline)))
        .service(
            web::resource("/documents/{id}")
                .route(web::put().to(document_put))
                .route(web::get().to(document_get))
                .route(web::delete().to(document_delete)),
        );
}
