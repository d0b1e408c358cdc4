//! What documents there are and how far they have come.

use std::collections::BTreeMap;

use actix_web::HttpResponse;
use actix_web::web::Data;
use serde::{Deserialize, Serialize};

use super::super::extract::{Namespace, TrackPath};
use super::super::json::{ApiJson, Check, Faults};
use super::super::problem::Problem;
use super::super::state::App;
use super::corpus;
use super::wire::{Document, counts};
use crate::domain::document::Status;
use crate::pipeline::parse::FileType;
use crate::store::postgres::documents::{Listing, SortField};
use crate::tenancy::{Permit, Read};

/// A document's state as LightRAG names it.
#[derive(Debug, Clone, Copy, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::http) enum StatusFilter {
    /// Accepted, not begun.
    Pending,
    /// Its file is being read.
    Parsing,
    /// It is being cut into chunks.
    Analyzing,
    /// It is being embedded and written.
    Processing,
    /// No document is ever in this state here.
    Preprocessed,
    /// It can be found.
    Processed,
    /// It could not be processed.
    Failed,
}

impl StatusFilter {
    fn status(self) -> Option<Status> {
        Some(match self {
            Self::Pending => Status::Pending,
            Self::Parsing => Status::Parsing,
            Self::Analyzing => Status::Analyzing,
            Self::Processing => Status::Processing,
            Self::Preprocessed => return None,
            Self::Processed => Status::Processed,
            Self::Failed => Status::Failed,
        })
    }
}

/// Which way a listing runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::http) enum Direction {
    /// Smallest first.
    Asc,
    /// Largest first.
    #[default]
    Desc,
}

fn one() -> i64 {
    1
}

fn fifty() -> i64 {
    50
}

/// A page that is asked for.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub(in crate::http) struct PageRequest {
    /// Only this state.
    #[serde(default)]
    status_filter: Option<StatusFilter>,
    /// Only these states; replaces `status_filter`.
    #[serde(default)]
    status_filters: Option<Vec<StatusFilter>>,
    /// From 1.
    #[serde(default = "one")]
    #[schema(minimum = 1, default = 1)]
    page: i64,
    /// 10 to 200.
    #[serde(default = "fifty")]
    #[schema(minimum = 10, maximum = 200, default = 50)]
    page_size: i64,
    /// By what it is ordered.
    #[serde(default)]
    sort_field: SortField,
    /// Which way.
    #[serde(default)]
    sort_direction: Direction,
}

impl Check for PageRequest {
    fn check(&self, faults: &mut Faults) {
        faults.number("page", self.page, 1, i64::from(i32::MAX));
        faults.number("page_size", self.page_size, 10, 200);
        faults.list("status_filters", self.status_filters.as_ref().map_or(0, Vec::len), 0, 50);
    }
}

/// Where a page is among all.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct Pagination {
    page: i64,
    page_size: i64,
    total_count: i64,
    total_pages: i64,
    has_next: bool,
    has_prev: bool,
}

/// A page of documents.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct Page {
    /// In the order that was asked for.
    documents: Vec<Document>,
    /// Where the page is among all.
    pagination: Pagination,
    /// Documents in each state, whatever was asked for.
    #[schema(value_type = BTreeMap<String, i64>)]
    status_counts: BTreeMap<&'static str, i64>,
}

/// Lists documents.
#[utoipa::path(
    post, path = "/documents/paginated", tag = "documents", request_body = PageRequest,
    params(("LIGHTRAG-WORKSPACE" = Option<String>, Header, description = "The namespace")),
    responses((status = 200, body = Page)),
)]
#[tracing::instrument(name = "http.document.list", skip_all)]
pub(in crate::http) async fn paginated(
    permit: Permit<Read>,
    namespace: Namespace,
    app: Data<App>,
    body: ApiJson<PageRequest>,
) -> Result<HttpResponse, Problem> {
    let body = body.into_inner();
    let filters = match (body.status_filters, body.status_filter) {
        (Some(filters), _) if !filters.is_empty() => filters,
        (_, one) => one.into_iter().collect(),
    };
    let statuses: Vec<Status> = filters.iter().filter_map(|filter| filter.status()).collect();
    // Only states that no document is ever in.
    let nothing = !filters.is_empty() && statuses.is_empty();
    let corpus = corpus(&app, &permit, &namespace).await?;
    let (rows, total, counted) = match &corpus {
        None => (Vec::new(), 0, BTreeMap::new()),
        Some(corpus) if nothing => (Vec::new(), 0, corpus.document_counts().await?),
        Some(corpus) => {
            let listing = Listing {
                statuses,
                page: body.page,
                page_size: body.page_size,
                sort: body.sort_field,
                descending: body.sort_direction == Direction::Desc,
            };
            let (rows, total) = corpus.document_list(&listing).await?;
            (rows, total, corpus.document_counts().await?)
        }
    };
    let total_pages = (total + body.page_size - 1) / body.page_size;
    Ok(HttpResponse::Ok().json(Page {
        documents: rows.into_iter().map(Document::from).collect(),
        pagination: Pagination {
            page: body.page,
            page_size: body.page_size,
            total_count: total,
            total_pages,
            has_next: body.page < total_pages,
            has_prev: body.page > 1,
        },
        status_counts: counts(&counted),
    }))
}

/// Documents in each state.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct StatusCounts {
    /// By state, and `all`.
    #[schema(value_type = BTreeMap<String, i64>)]
    status_counts: BTreeMap<&'static str, i64>,
}

/// Counts the documents in each state.
#[utoipa::path(
    get, path = "/documents/status_counts", tag = "documents",
    params(("LIGHTRAG-WORKSPACE" = Option<String>, Header, description = "The namespace")),
    responses((status = 200, body = StatusCounts)),
)]
#[tracing::instrument(name = "http.document.counts", skip_all)]
pub(in crate::http) async fn status_counts(
    permit: Permit<Read>,
    namespace: Namespace,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let counted = match corpus(&app, &permit, &namespace).await? {
        Some(corpus) => corpus.document_counts().await?,
        None => BTreeMap::new(),
    };
    Ok(HttpResponse::Ok().json(StatusCounts { status_counts: counts(&counted) }))
}

/// The documents of one call.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct TrackStatus {
    /// As it was asked for.
    track_id: String,
    /// The documents whose newest version this call brought.
    documents: Vec<Document>,
    /// How many they are.
    total_count: usize,
    /// How many are in each state, as `DocStatus.PROCESSED`.
    status_summary: BTreeMap<String, usize>,
}

/// Tells how far the documents of one call have come. A track that is not there has no documents.
#[utoipa::path(
    get, path = "/documents/track_status/{track_id}", tag = "documents",
    params(("track_id" = String, Path, description = "From the answer to the call")),
    responses((status = 200, body = TrackStatus)),
)]
#[tracing::instrument(name = "http.document.track", skip_all)]
pub(in crate::http) async fn track_status(
    permit: Permit<Read>,
    track: TrackPath,
    app: Data<App>,
) -> Result<HttpResponse, Problem> {
    let rows = if track.known_form {
        app.stores.reader(&permit).document_track(&track.raw).await?
    } else {
        Vec::new()
    };
    let mut status_summary = BTreeMap::new();
    for row in &rows {
        *status_summary.entry(format!("DocStatus.{}", row.status.name().to_uppercase())).or_default() += 1;
    }
    Ok(HttpResponse::Ok().json(TrackStatus {
        track_id: track.raw,
        total_count: rows.len(),
        documents: rows.into_iter().map(Document::from).collect(),
        status_summary,
    }))
}

/// The types of files that are read.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(in crate::http) struct FileTypes {
    /// Extensions with their dot, sorted.
    supported_extensions: Vec<&'static str>,
    /// Extensions without it, by what reads them.
    engines: BTreeMap<&'static str, Vec<&'static str>>,
}

/// Lists the types of files that are read.
#[utoipa::path(
    get, path = "/documents/supported_file_types", tag = "documents",
    responses((status = 200, body = FileTypes)),
)]
#[tracing::instrument(name = "http.document.types", skip_all)]
pub(in crate::http) async fn supported_file_types(_permit: Permit<Read>) -> HttpResponse {
    let supported_extensions = FileType::supported_extensions();
    let native = supported_extensions.iter().map(|extension| extension.trim_start_matches('.')).collect();
    HttpResponse::Ok().json(FileTypes { supported_extensions, engines: [("native", native)].into() })
}
